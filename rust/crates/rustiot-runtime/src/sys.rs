//! System calls that no crate of ours wraps: the program of a device rule, the system call filter, signals.
//!
//! Called by this crate alone.
#![allow(unsafe_code, reason = "system calls without a wrapper")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// One instruction of classic BPF.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Operation.
    pub code: u16,
    /// Instructions to skip when true.
    pub jt: u8,
    /// Instructions to skip when false.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// A copy of a descriptor above the standard ones that closes at `execve`.
pub fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: plain system call on a number; a result that is not -1 is a new descriptor that nobody else owns.
    unsafe {
        match libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 10) {
            -1 => Err(io::Error::last_os_error()),
            new => Ok(OwnedFd::from_raw_fd(new)),
        }
    }
}

/// The shim's status pipe, if it is there: our own copy of it.
pub fn status_file(fd: RawFd) -> Option<File> {
    duplicate(fd).ok().map(File::from)
}

/// Writes to a descriptor that somebody else owns.
pub fn write_all(fd: RawFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        // SAFETY: the buffer is valid for its length.
        let done = unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
        let Ok(done) = usize::try_from(done) else { return Err(io::Error::last_os_error()) };
        bytes = bytes.get(done..).unwrap_or_default();
    }
    Ok(())
}

/// Puts a system call filter in force for this thread and its descendants.
pub fn install_filter(filter: &[Filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?,
        filter: filter.as_ptr().cast_mut().cast(),
    };
    // SAFETY: `Filter` has the layout of `sock_filter`; the kernel copies the program before it returns.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, 1_u32, 0_u32, &raw const program) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Rows and columns of the terminal that is our standard input.
pub fn terminal_size(rows: u16, columns: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the request takes a pointer to a `winsize`, which lives across the call.
    let result = unsafe { libc::ioctl(0, libc::TIOCSWINSZ, &raw const size) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Signals as a program expects them: the standard library ignores SIGPIPE, and the shim blocks what it waits for.
pub fn default_signals() {
    // SAFETY: sets dispositions and the mask of this single-threaded process.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

const BPF_PROG_LOAD: u64 = 5;
const BPF_PROG_ATTACH: u64 = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
}

#[repr(C)]
#[derive(Default)]
struct ProgAttach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    u32::try_from(fd.as_raw_fd()).unwrap_or(u32::MAX)
}

/// Loads a device program (eight bytes an instruction) and attaches it to the control group.
pub fn attach_device_program(cgroup: BorrowedFd<'_>, program: &[u64]) -> io::Result<()> {
    let license = c"Apache-2.0";
    let load = ProgLoad {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(program.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?,
        insns: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
        prog_name: *b"rustiot_devices\0",
        ..ProgLoad::default()
    };
    // SAFETY: the attribute block and what it points to live across the call and have the sizes that are stated.
    let fd = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, std::mem::size_of::<ProgLoad>())
    };
    let fd = i32::try_from(fd).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor from the kernel that nobody else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let attach = ProgAttach {
        target_fd: number(cgroup),
        attach_bpf_fd: u32::try_from(fd.as_raw_fd()).unwrap_or(u32::MAX),
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: as above.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attach, std::mem::size_of::<ProgAttach>())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Replaces the environment. Names that cannot be one are left out.
pub fn set_environment(environment: &std::collections::HashMap<String, String>) {
    // SAFETY: this process has one thread.
    unsafe {
        libc::clearenv();
        for (name, value) in environment {
            if let (Ok(name), Ok(value)) =
                (std::ffi::CString::new(name.as_bytes()), std::ffi::CString::new(value.as_bytes()))
            {
                libc::setenv(name.as_ptr(), value.as_ptr(), 1);
            }
        }
    }
}

/// `execvp`; it returns only when it failed.
pub fn execute(arguments: &[std::ffi::CString]) -> io::Error {
    let mut pointers: Vec<_> = arguments.iter().map(|a| a.as_ptr()).collect();
    pointers.push(std::ptr::null());
    let Some(program) = pointers.first().copied().filter(|p| !p.is_null()) else {
        return io::Error::from_raw_os_error(libc::ENOENT);
    };
    // SAFETY: both are arrays of strings that live across the call, the second ends with a null pointer.
    unsafe { libc::execvp(program, pointers.as_ptr()) };
    io::Error::last_os_error()
}
