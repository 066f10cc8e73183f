//! The system calls that a container may make unless it is told otherwise: in effect Docker's default profile.
//!
//! Pure. What depends on capabilities is resolved here, so that the bundle holds a plain profile of the OCI
//! specification, which `rustiot-runtime` compiles. Called by `spec`.

use std::collections::BTreeSet;

use serde_json::{Value, json};

/// Allowed to everybody. Names that an architecture does not have are no harm.
const ALWAYS: &str = "accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown chown32 \
clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep \
clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl \
epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat \
faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl \
fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync \
ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake futimesat getcpu getcwd getdents \
getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername getpgid getpgrp \
getpid getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32 getrlimit get_robust_list getrusage getsid \
getsockname getsockopt get_thread_area gettid gettimeofday getuid getuid32 getxattr getxattrat inotify_add_watch inotify_init \
inotify_init1 inotify_rm_watch io_cancel ioctl io_destroy io_getevents io_pgetevents io_pgetevents_time64 ioprio_get \
ioprio_set io_setup io_submit ipc kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lchown32 \
lgetxattr link linkat listen listmount listxattr listxattrat llistxattr _llseek lremovexattr lseek lsetxattr lstat lstat64 \
madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall \
mmap mmap2 mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 \
mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat \
_newselect open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll \
ppoll_time64 prctl pread64 preadv preadv2 prlimit64 process_mrelease pselect6 pselect6_time64 pwrite64 pwritev pwritev2 read \
readahead readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr removexattrat \
rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn \
rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_getaffinity sched_getattr sched_getparam \
sched_get_priority_max sched_get_priority_min sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 \
sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop \
semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 \
setgroups setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid \
setreuid32 setrlimit set_robust_list setsid setsockopt set_thread_area set_tid_address setuid setuid32 setxattr setxattrat \
shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 sigprocmask sigreturn socketcall socketpair splice stat \
stat64 statfs statfs64 statmount statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create \
timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime \
timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat \
uretprobe utime utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev \
process_vm_readv process_vm_writev ptrace arch_prctl modify_ldt arm_fadvise64_64 arm_sync_file_range sync_file_range2 \
breakpoint cacheflush set_tls riscv_flush_icache riscv_hwprobe";

/// Allowed to who has the capability.
const BY_CAPABILITY: [(&str, &str); 14] = [
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr lsm_list_modules \
         lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname \
         sethostname setns syslog umount umount2 unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module finit_module init_module"),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace"),
    ("CAP_SYS_RAWIO", "iopl ioperm"),
    ("CAP_SYS_TIME", "clock_settime clock_settime64 settimeofday stime"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    ("CAP_SYS_NICE", "get_mempolicy mbind move_pages set_mempolicy set_mempolicy_home_node"),
    ("CAP_SYSLOG", "syslog"),
    ("CAP_BPF", "bpf"),
    ("CAP_PERFMON", "perf_event_open"),
];

/// Flags of `clone` that make namespaces.
const NAMESPACES: u64 = 0x7e02_0000;
/// `AF_VSOCK` reaches the hypervisor past every network namespace.
const VSOCK: u64 = 40;
const ENOSYS: u32 = 38;

/// The profile for a container with these capabilities.
pub fn default_profile(capabilities: &BTreeSet<String>) -> Value {
    let names = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let allow = |text: &str| json!({ "names": names(text), "action": "SCMP_ACT_ALLOW" });
    let allow_if = |name: &str, op: &str, value: u64, value_two: u64| {
        json!({ "names": [name], "action": "SCMP_ACT_ALLOW",
            "args": [{ "index": 0, "value": value, "valueTwo": value_two, "op": op }] })
    };
    let mut calls = vec![allow(ALWAYS), allow_if("socket", "SCMP_CMP_NE", VSOCK, 0)];
    for personality in [0, 8, 0x20000, 0x20008, 0xffff_ffff] {
        calls.push(allow_if("personality", "SCMP_CMP_EQ", personality, 0));
    }
    for (capability, text) in BY_CAPABILITY {
        if capabilities.contains(capability) {
            calls.push(allow(text));
        }
    }
    if !capabilities.contains("CAP_SYS_ADMIN") {
        calls.push(allow_if("clone", "SCMP_CMP_MASKED_EQ", NAMESPACES, 0));
        // Its flags lie in memory, out of the filter's sight: programs fall back to `clone`.
        calls.push(json!({ "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS }));
    }
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM", "SCMP_ARCH_RISCV64"],
        "syscalls": calls,
    })
}

/// A profile of the user's: plain OCI, or Docker's with `archMap` and conditions on capabilities.
///
/// # Errors
/// What is wrong with it.
pub fn custom_profile(text: &str, capabilities: &BTreeSet<String>) -> Result<Value, String> {
    let mut profile: Value = serde_json::from_str(text)
        .map_err(|error| format!("the seccomp profile is not valid JSON: {error}"))?;
    let object = profile.as_object_mut().ok_or("the seccomp profile is no object")?;
    if !object.contains_key("defaultAction") {
        return Err("the seccomp profile has no defaultAction".to_owned());
    }
    if let Some(map) = object.remove("archMap") {
        let mut all = Vec::new();
        for entry in map.as_array().into_iter().flatten() {
            all.extend(entry.get("architecture").cloned());
            all.extend(entry.get("subArchitectures").and_then(Value::as_array).cloned().unwrap_or_default());
        }
        object.insert("architectures".to_owned(), all.into());
    }
    if let Some(calls) = object.get_mut("syscalls").and_then(Value::as_array_mut) {
        let has = |entry: &Value, part: &str| -> Vec<bool> {
            let list = entry.get(part).and_then(|p| p.get("caps")).and_then(Value::as_array);
            list.into_iter().flatten().map(|c| c.as_str().is_some_and(|c| capabilities.contains(c))).collect()
        };
        let native = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let arch = |entry: &Value, part: &str| -> Option<bool> {
            let list = entry.get(part)?.get("arches")?.as_array()?;
            Some(list.iter().any(|a| a.as_str() == Some(native)))
        };
        calls.retain(|entry| {
            has(entry, "includes").iter().all(|yes| *yes)
                && !has(entry, "excludes").iter().any(|yes| *yes)
                && arch(entry, "includes") != Some(false)
                && arch(entry, "excludes") != Some(true)
        });
        for entry in calls.iter_mut().filter_map(Value::as_object_mut) {
            for part in ["includes", "excludes", "comment"] {
                entry.remove(part);
            }
            if let Some(name) = entry.remove("name").filter(|n| n.is_string()) {
                entry.entry("names").or_insert_with(|| json!([name]));
            }
            if entry.get("args").is_some_and(Value::is_null) {
                entry.remove("args");
            }
        }
    }
    Ok(profile)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(profile: &Value) -> BTreeSet<String> {
        let calls = profile["syscalls"].as_array().unwrap().iter();
        let allowed = calls.filter(|c| c["action"] == "SCMP_ACT_ALLOW");
        allowed.flat_map(|c| c["names"].as_array().unwrap()).map(|n| n.as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn what_needs_a_capability_is_closed_without_it() {
        let without = names(&default_profile(&BTreeSet::new()));
        for call in [
            "mount",
            "umount2",
            "unshare",
            "setns",
            "bpf",
            "reboot",
            "init_module",
            "kexec_load",
            "keyctl",
            "userfaultfd",
            "io_uring_setup",
            "swapon",
            "pivot_root",
            "open_by_handle_at",
            "chroot",
        ] {
            assert!(!without.contains(call), "{call}");
        }
        let with = names(&default_profile(&["CAP_SYS_ADMIN".to_owned()].into()));
        assert!(with.contains("mount") && !with.contains("kexec_load"));
    }

    #[test]
    fn docker_s_own_format_is_understood() {
        let text = r#"{"defaultAction": "SCMP_ACT_ERRNO", "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
            "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": null, "comment": "", "includes": {}, "excludes": {}},
                {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}}]}"#;
        let profile = custom_profile(text, &BTreeSet::new()).unwrap();
        assert_eq!(profile["architectures"], json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]));
        assert_eq!(names(&profile), ["read".to_owned()].into());
        assert!(custom_profile("{", &BTreeSet::new()).is_err());
        assert!(custom_profile("{}", &BTreeSet::new()).is_err());
    }
}
