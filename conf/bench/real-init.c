/*
 * Stands for the real init where `rustiot bench` times an initramfs: its first act is to say that it runs, so that the
 * time is that of switch_root and not that of a shell and its libraries. Static, for the same reason.
 */
#include <fcntl.h>
#include <unistd.h>

int main(void)
{
	static const char words[] = "rustiot-bench: the real init runs\n";
	int log = open("/dev/kmsg", O_WRONLY);

	if (log < 0 || write(log, words, sizeof words - 1) < 0)
		return 1;
	for (;;)
		pause();
}
