/*
 * The one program of the lab's container images: apps that behave well and apps that do not. Static, so that an image
 * is this file. Each mode does one thing, says what it saw on standard output, and is named by its first argument.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <netdb.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long milliseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void rest(long ms)
{
	struct timespec t = { ms / 1000, ms % 1000 * 1000000 };

	nanosleep(&t, NULL);
}

static void ended(int signal)
{
	(void)signal;
	_exit(3);
}

/* Runs until it is told to end, and then ends with 3. */
static _Noreturn void idle(void)
{
	signal(SIGTERM, ended);
	puts("begun");
	for (;;)
		pause();
}

/* A neighbour: ten steps a second, each a small write to its own volume; says how late the latest one was. */
static _Noreturn void beat(const char *file)
{
	long worst = 0, told = 0, next = milliseconds();

	signal(SIGTERM, ended);
	for (;;) {
		long late, now;
		int fd = open(file, O_WRONLY | O_CREAT | O_TRUNC, 0644);

		if (fd < 0 || write(fd, "beat", 4) != 4)
			printf("cannot write: %s\n", strerror(errno));
		if (fd >= 0)
			close(fd);
		now = milliseconds();
		late = now - next;
		if (late > worst)
			worst = late;
		if (now - told >= 1000) {
			printf("late %ld\n", worst);
			worst = 0;
			told = now;
		}
		next = milliseconds() + 100;
		rest(100);
	}
}

/* Takes memory and uses it, until somebody puts an end to it. */
static _Noreturn void hog(void)
{
	for (int mib = 1;; mib++) {
		char *page = malloc(1 << 20);

		if (!page) {
			puts("refused");
			rest(100);
			continue;
		}
		memset(page, mib, 1 << 20);
		if (mib % 16 == 0)
			printf("%d MiB\n", mib);
	}
}

/* Every process makes another one for as long as it can. */
static _Noreturn void bomb(void)
{
	int told = 0;

	signal(SIGCHLD, SIG_IGN);
	for (;;) {
		pid_t child = fork();

		if (child < 0 && !told) {
			printf("refused: %s\n", strerror(errno));
			told = 1;
		}
		if (child < 0)
			rest(10);
	}
}

/* Fills the file system below `file`, to the last byte. */
static int fill(const char *file)
{
	static char block[1 << 20];
	unsigned long mib = 0;
	int fd = open(file, O_WRONLY | O_CREAT, 0644);

	memset(block, 0x5a, sizeof block);
	while (fd >= 0) {
		ssize_t n = write(fd, block, sizeof block);

		if (n < 0) {
			printf("full after %lu MiB: %s\n", mib, strerror(errno));
			idle();
		}
		mib++;
	}
	return 1;
}

static int flood(void)
{
	static char line[200];

	memset(line, 'x', sizeof line);
	line[sizeof line - 1] = '\n';
	while (write(1, line, sizeof line) > 0)
		;
	return 1;
}

static _Noreturn void spin(int processes)
{
	while (--processes > 0 && fork())
		;
	for (;;)
		;
}

/* The kernel tells of each child that dies by a fault. */
static _Noreturn void faults(void)
{
	int *volatile nowhere = NULL;

	for (;;) {
		pid_t child = fork();

		if (child == 0)
			*nowhere = 0;
		if (child > 0)
			waitpid(child, NULL, 0);
	}
}

/* Exchanges a directory and a link to `target` as fast as it can: DIR/a is now one and now the other. */
static int race(const char *dir, const char *target)
{
	if (chdir(dir) || mkdir("a", 0755) || symlink(target, "b"))
		return 1;
	puts("begun");
	for (;;)
		syscall(SYS_renameat2, AT_FDCWD, "a", AT_FDCWD, "b", 2 /* RENAME_EXCHANGE */);
}

static int broke_out;

static void tell(const char *what, long result)
{
	int why = errno;

	if (result >= 0) {
		printf("%s: DONE\n", what);
		broke_out = 1;
	} else if (why == EPERM || why == EACCES || why == EROFS || why == ENOENT || why == ENOSYS) {
		printf("%s: refused: %s\n", what, strerror(why));
	} else {
		/* It failed for another reason than that it may not. */
		printf("%s: ALLOWED: %s\n", what, strerror(why));
		broke_out = 1;
	}
}

static long put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);

	return fd < 0 ? -1 : write(fd, text, strlen(text));
}

static long device(const char *path, mode_t kind, int major, int minor)
{
	int fd;

	unlink(path);
	if (mknod(path, kind | 0600, makedev(major, minor)))
		return -1;
	fd = open(path, O_RDWR);
	if (fd < 0 && errno == EPERM)
		return -1;
	/* Without a device behind it the right is there all the same. */
	return 0;
}

static long trace(pid_t pid)
{
	return ptrace(PTRACE_SEIZE, pid, NULL, NULL);
}

/* An empty file stands where there is nothing to be read. */
static long peek(const char *path)
{
	char byte;
	int fd = open(path, O_RDONLY);

	if (fd >= 0 && read(fd, &byte, 1) == 0) {
		errno = EACCES;
		return -1;
	}
	return fd;
}

/* What a container tries that wants to be the host. Ends with 1 if anything of it was done. */
static int escape(void)
{
	struct timeval epoch = { 1, 0 };
	char byte;

	mkdir("/m", 0755);
	tell("mount proc", mount("proc", "/m", "proc", 0, NULL));
	tell("mount tmpfs", mount("tmpfs", "/m", "tmpfs", 0, NULL));
	tell("bind", mount("/", "/m", NULL, MS_BIND, NULL));
	tell("remount", mount(NULL, "/", NULL, MS_REMOUNT, NULL));
	tell("fsopen", syscall(SYS_fsopen, "tmpfs", 0));
	tell("umount /proc", umount2("/proc", MNT_DETACH));
	tell("pivot_root", syscall(SYS_pivot_root, "/", "/m"));
	tell("unshare mounts", unshare(CLONE_NEWNS));
	tell("unshare users", unshare(CLONE_NEWUSER));
	tell("namespace of 1", setns(open("/proc/1/ns/mnt", O_RDONLY), 0));
	if (getpid() != 1) {
		tell("trace 1", trace(1));
		tell("root of 1", open("/proc/1/root/etc/shadow", O_RDONLY));
		tell("memory of 1", open("/proc/1/mem", O_RDWR));
	}
	tell("sysrq", put("/proc/sysrq-trigger", "b"));
	tell("core_pattern", put("/proc/sys/kernel/core_pattern", "|/app"));
	tell("kernel.panic", put("/proc/sys/kernel/panic", "0"));
	tell("modprobe", put("/proc/sys/kernel/modprobe", "/app"));
	tell("uevent_helper", put("/sys/kernel/uevent_helper", "/app"));
	tell("own limit", put("/sys/fs/cgroup/memory.max", "max"));
	tell("another group", mkdir("/sys/fs/cgroup/x", 0755));
	tell("kcore", peek("/proc/kcore"));
	tell("disk", device("/vda", S_IFBLK, 254, 0));
	tell("virtio disk", device("/vdb", S_IFBLK, 253, 0));
	tell("mem", device("/mem", S_IFCHR, 1, 1));
	tell("kmsg", device("/kmsg", S_IFCHR, 1, 11));
	tell("watchdog", device("/watchdog", S_IFCHR, 10, 130));
	tell("reboot", syscall(SYS_reboot, 0xfee1dead, 672274793, 0x01234567, NULL));
	tell("module", syscall(SYS_init_module, &byte, 1, ""));
	tell("kexec", syscall(SYS_kexec_load, 0, 0, NULL, 0));
	tell("bpf", syscall(SYS_bpf, 0, NULL, 0));
	tell("perf", syscall(SYS_perf_event_open, NULL, 0, 0, -1, 0));
	tell("clock", settimeofday(&epoch, NULL));
	tell("host name", sethostname("x", 1));
	tell("by handle", syscall(SYS_open_by_handle_at, AT_FDCWD, NULL, O_RDONLY));
	tell("keyring", syscall(SYS_keyctl, 0, -3, 1));
	tell("swapoff", syscall(SYS_swapoff, "/dev/zram0"));
	tell("kernel log", syscall(SYS_syslog, 5, NULL, 0));
	tell("quota", syscall(SYS_quotactl, 0, NULL, 0, NULL));
	tell("real time", sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){ 50 }));
	tell("nicer", nice(-5));
	return broke_out;
}

static int show(const char *file)
{
	char text[4096];
	int fd = open(file, O_RDONLY);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text);

	if (n < 0)
		return 1;
	return fwrite(text, 1, n, stdout) == (size_t)n ? 0 : 1;
}

static int keep(const char *file, const char *text)
{
	int fd = open(file, O_WRONLY | O_CREAT | O_TRUNC, 0644);

	return fd < 0 || write(fd, text, strlen(text)) < 0 || fsync(fd) ? 1 : 0;
}

/* The address of the other end, as digits. */
static const char *peer(const struct sockaddr *address, socklen_t length)
{
	static char text[64];

	if (getnameinfo(address, length, text, sizeof text, NULL, 0, NI_NUMERICHOST))
		return "nobody";
	return text;
}

/* Tells whoever connects to the port its address, and says it itself. */
static int serve(const char *port)
{
	struct addrinfo want = { .ai_family = AF_INET, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE }, *own;
	int on = 1, listener = socket(AF_INET, SOCK_STREAM, 0);

	signal(SIGTERM, ended);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	if (getaddrinfo(NULL, port, &want, &own) || bind(listener, own->ai_addr, own->ai_addrlen) ||
	    listen(listener, 16)) {
		printf("cannot listen: %s\n", strerror(errno));
		return 1;
	}
	puts("begun");
	for (;;) {
		struct sockaddr_storage from;
		socklen_t length = sizeof from;
		int client = accept(listener, (struct sockaddr *)&from, &length);

		if (client < 0)
			continue;
		printf("from %s\n", peer((struct sockaddr *)&from, length));
		dprintf(client, "you are %s\n", peer((struct sockaddr *)&from, length));
		close(client);
	}
}

/* Says the addresses of a name, in order. */
static int resolve(const char *name)
{
	struct addrinfo want = { .ai_family = AF_INET, .ai_socktype = SOCK_STREAM }, *found;
	int error = getaddrinfo(name, NULL, &want, &found);

	if (error) {
		printf("%s: %s\n", name, gai_strerror(error));
		return 1;
	}
	for (; found; found = found->ai_next)
		puts(peer(found->ai_addr, found->ai_addrlen));
	return 0;
}

/* Says the first that a server says; ends with 1 if there is none within a second, or it says nothing in ten. */
static int ask(const char *name, const char *port)
{
	struct addrinfo want = { .ai_family = AF_INET, .ai_socktype = SOCK_STREAM }, *found;
	struct timeval soon = { 1, 0 }, patience = { 10, 0 };
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	int error = getaddrinfo(name, port, &want, &found);
	char text[256];
	ssize_t n;

	if (error) {
		printf("%s: %s\n", name, gai_strerror(error));
		return 1;
	}
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &soon, sizeof soon);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
	if (connect(fd, found->ai_addr, found->ai_addrlen)) {
		printf("closed: %s\n", strerror(errno));
		return 1;
	}
	n = read(fd, text, sizeof text);
	if (n <= 0) {
		puts("silent");
		return 1;
	}
	return fwrite(text, 1, n, stdout) == (size_t)n ? 0 : 1;
}

/* What `nft flush ruleset` asks the kernel for: every table goes. */
static int flush(void)
{
	struct {
		struct nlmsghdr head;
		struct nfgenmsg what;
	} batch[3] = { 0 };
	const int kinds[3] = { NFNL_MSG_BATCH_BEGIN, NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_DELTABLE, NFNL_MSG_BATCH_END };
	struct sockaddr_nl kernel = { .nl_family = AF_NETLINK };
	struct {
		struct nlmsghdr head;
		struct nlmsgerr error;
		char more[512];
	} answer;
	int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER);

	for (int i = 0; i < 3; i++) {
		batch[i].head.nlmsg_len = sizeof batch[i];
		batch[i].head.nlmsg_type = kinds[i];
		batch[i].head.nlmsg_flags = NLM_F_REQUEST | (i == 1 ? NLM_F_ACK : 0);
		batch[i].head.nlmsg_seq = i;
		batch[i].what.version = NFNETLINK_V0;
		batch[i].what.res_id = i == 1 ? 0 : htons(NFNL_SUBSYS_NFTABLES);
	}
	if (sendto(fd, batch, sizeof batch, 0, (struct sockaddr *)&kernel, sizeof kernel) != sizeof batch ||
	    recv(fd, &answer, sizeof answer, 0) < (ssize_t)(sizeof answer.head + sizeof answer.error)) {
		printf("cannot flush: %s\n", strerror(errno));
		return 1;
	}
	if (answer.head.nlmsg_type != NLMSG_ERROR || answer.error.error) {
		printf("refused: %s\n", strerror(-answer.error.error));
		return 1;
	}
	puts("flushed");
	return 0;
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "idle";
	const char *first = argc > 2 ? argv[2] : "";
	const char *second = argc > 3 ? argv[3] : "";

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!strcmp(mode, "idle"))
		idle();
	if (!strcmp(mode, "beat"))
		beat(first);
	if (!strcmp(mode, "hog"))
		hog();
	if (!strcmp(mode, "bomb"))
		bomb();
	if (!strcmp(mode, "fill"))
		return fill(first);
	if (!strcmp(mode, "flood"))
		return flood();
	if (!strcmp(mode, "spin"))
		spin(atoi(first));
	if (!strcmp(mode, "faults"))
		faults();
	if (!strcmp(mode, "race"))
		return race(first, second);
	if (!strcmp(mode, "escape"))
		return escape();
	if (!strcmp(mode, "show"))
		return show(first);
	if (!strcmp(mode, "keep"))
		return keep(first, second);
	if (!strcmp(mode, "serve"))
		return serve(first);
	if (!strcmp(mode, "resolve"))
		return resolve(first);
	if (!strcmp(mode, "ask"))
		return ask(first, second);
	if (!strcmp(mode, "flush"))
		return flush();
	if (!strcmp(mode, "say"))
		return puts(first) < 0;
	if (!strcmp(mode, "end"))
		return atoi(first);
	fprintf(stderr, "no mode %s\n", mode);
	return 2;
}
