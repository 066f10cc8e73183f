//! The real kernel. All `unsafe` code of this crate is here.

#![expect(unsafe_code, reason = "ioctls have no safe form; each block says why it is sound")]

use std::{
    convert::Infallible,
    ffi::CString,
    fs::{File, OpenOptions},
    io::{self, Write},
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    path::Path,
    time::Duration,
};

use nix::{
    errno::Errno,
    kmod::{ModuleInitFlags, finit_module},
    libc,
    mount::MsFlags,
    sys::{
        reboot::{RebootMode, reboot},
        socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn, setsockopt, sockopt},
    },
    time::{ClockId, clock_gettime},
};

use super::{Mount, OpenWatchdog, Sys};
use crate::{dhcp::Lease, dm::Command, rescue::Net};

mod ioctls {
    // include/uapi/linux/watchdog.h
    nix::ioctl_read!(watchdog_boot_status, b'W', 2, i32);
    nix::ioctl_readwrite!(watchdog_set_timeout, b'W', 6, i32);
    nix::ioctl_read!(watchdog_get_timeout, b'W', 7, i32);
}

/// `WDIOF_CARDRESET` of include/uapi/linux/watchdog.h.
const CARD_RESET: i32 = 0x20;

/// `DM_IOCTL` of include/uapi/linux/dm-ioctl.h, and the size of its `struct dm_ioctl`.
const DM_MAGIC: u8 = 0xfd;
const DM_STRUCT: usize = 312;

/// The kernel we run on.
#[derive(Debug, Default)]
pub struct Linux;

/// `CLOCK_BOOTTIME` in milliseconds.
#[must_use]
pub fn now_ms() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// One line for the console and, as a debug message that the console does not repeat, for the kernel log, from
/// where pstore and the journal have it.
pub fn say(line: &str) {
    // there is nobody to tell that the console is gone
    let _ = writeln!(io::stderr(), "rustiot-init: {line}");
    if let Ok(mut log) = OpenOptions::new().write(true).open("/dev/kmsg") {
        let _ = log.write_all(format!("<7>rustiot-init: {line}\n").as_bytes());
    }
}

/// Reboots. Never returns: should the kernel refuse, the watchdog ends the wait.
pub fn reboot_now(reason: &str) -> ! {
    say(&format!("reboot: {reason}"));
    nix::unistd::sync();
    loop {
        let _ = reboot(RebootMode::RB_AUTOBOOT);
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Makes `new_root` the root and runs the first of `programs` that is there, as PID 1. The caller has moved the
/// mounts already.
///
/// # Errors
/// Which step failed and why; the system has no way back then.
pub fn switch_root(new_root: &Path, programs: &[&str], args: &[&str]) -> io::Result<Infallible> {
    std::env::set_current_dir(new_root)?;
    nix::mount::mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
    std::os::unix::fs::chroot(".")?;
    std::env::set_current_dir("/")?;
    // Rust programs ignore SIGPIPE, and exec would hand that on
    // SAFETY: sets a disposition that runs no code of ours.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let mut error = Errno::ENOENT;
    for program in programs {
        let argv: Vec<CString> =
            [program].into_iter().chain(args).map(|arg| CString::new(*arg)).collect::<Result<_, _>>()?;
        let Some(path) = argv.first() else { continue };
        let Err(errno) = nix::unistd::execv(path, &argv);
        error = errno;
        if errno != Errno::ENOENT {
            break;
        }
    }
    Err(error.into())
}

impl Sys for Linux {
    fn now_ms(&mut self) -> u64 {
        now_ms()
    }

    fn say(&mut self, line: &str) {
        say(line);
    }

    fn mount(&mut self, mount: &Mount) -> Result<(), Errno> {
        nix::mount::mount(
            Some(mount.source),
            mount.target,
            (!mount.fstype.is_empty()).then_some(mount.fstype),
            mount.flags,
            (!mount.data.is_empty()).then_some(mount.data),
        )
    }

    fn load_module(&mut self, path: &Path, params: &str) -> Result<(), Errno> {
        let file = File::open(path).map_err(errno)?;
        let params = CString::new(params).map_err(|_| Errno::EINVAL)?;
        match finit_module(&file, &params, ModuleInitFlags::empty()) {
            Err(Errno::EEXIST) => Ok(()),
            other => other,
        }
    }

    fn open_watchdog(&mut self, path: &Path, timeout_s: u32) -> Result<OpenWatchdog, Errno> {
        let file = OpenOptions::new().write(true).custom_flags(libc::O_CLOEXEC).open(path).map_err(errno)?;
        let fd = file.as_raw_fd();
        let mut status = 0;
        let mut timeout = i32::try_from(timeout_s).map_err(|_| Errno::EINVAL)?;
        // SAFETY: `fd` is open for as long as `file` lives; the kernel writes one int to `status`.
        let status = unsafe { ioctls::watchdog_boot_status(fd, &raw mut status) }.map_or(0, |_| status);
        // SAFETY: as above; the kernel reads and writes the int `timeout`. A driver with a fixed timeout refuses,
        // and the next call tells what it is.
        let _ = unsafe { ioctls::watchdog_set_timeout(fd, &raw mut timeout) };
        // SAFETY: as above; the kernel writes the int `timeout`.
        let _ = unsafe { ioctls::watchdog_get_timeout(fd, &raw mut timeout) };
        Ok(OpenWatchdog {
            file,
            timeout_s: u32::try_from(timeout).unwrap_or(timeout_s),
            card_reset: status & CARD_RESET != 0,
        })
    }

    fn device_mapper(&mut self, command: Command, message: &mut [u8]) -> Result<(), Errno> {
        let size =
            message.get(12..).and_then(|rest| rest.first_chunk()).map(|size| u32::from_ne_bytes(*size));
        if message.len() < DM_STRUCT || size.map(|n| n as usize) != Some(message.len()) {
            return Err(Errno::EINVAL);
        }
        let control = OpenOptions::new().read(true).write(true).open("/dev/mapper/control").map_err(errno)?;
        let request = nix::request_code_readwrite!(DM_MAGIC, command as u8, DM_STRUCT);
        // SAFETY: `control` is open; the kernel reads and writes at most `data_size` bytes of the message, which
        // was just compared with its length, and it is borrowed exclusively.
        Errno::result(unsafe { libc::ioctl(control.as_raw_fd(), request, message.as_mut_ptr()) }).map(drop)
    }

    fn every(&mut self, interval_s: u32, tick: Box<dyn FnMut(u64) + Send>) -> Result<(), Errno> {
        let argument = Box::into_raw(Box::new(Ticker { interval_s, tick }));
        let mut thread = 0;
        // Not std::thread: its stack guard pulls scanf and strtod into the binary, 90 KB.
        // SAFETY: `run_ticker` takes the pointer over as the Box that it came from; the attributes may be null.
        let result =
            unsafe { libc::pthread_create(&raw mut thread, std::ptr::null(), run_ticker, argument.cast()) };
        if result == 0 {
            return Ok(());
        }
        // SAFETY: no thread was made, so the Box is still ours alone.
        drop(unsafe { Box::from_raw(argument) });
        Err(Errno::from_raw(result))
    }

    fn pause(&mut self, ms: u64) {
        std::thread::sleep(Duration::from_millis(ms));
    }
}

struct Ticker {
    interval_s: u32,
    tick: Box<dyn FnMut(u64) + Send>,
}

extern "C" fn run_ticker(argument: *mut libc::c_void) -> *mut libc::c_void {
    // SAFETY: `every` made this pointer from a Box and gave it to this thread only.
    let mut ticker = unsafe { Box::from_raw(argument.cast::<Ticker>()) };
    loop {
        std::thread::sleep(Duration::from_secs(ticker.interval_s.into()));
        (ticker.tick)(now_ms());
    }
}

/// The errno of an I/O error.
fn errno(error: io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// An `ifreq` for the interface.
fn ifreq(interface: &str) -> libc::ifreq {
    // SAFETY: `ifreq` is plain old data for which all zeros is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // the last byte stays the closing zero
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

fn ipv4(address: Ipv4Addr) -> libc::sockaddr {
    // SAFETY: `sockaddr_in` and `sockaddr` are plain old data of the same size (16 bytes), which transmute checks.
    unsafe {
        std::mem::transmute(libc::sockaddr_in {
            sin_family: libc::AF_INET as libc::sa_family_t,
            sin_port: 0,
            sin_addr: libc::in_addr { s_addr: u32::from(address).to_be() },
            sin_zero: [0; 8],
        })
    }
}

fn interface_ioctl(request: libc::c_ulong, argument: &mut libc::ifreq) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // SAFETY: the socket is open; every request passed here (netdevice(7)) takes a pointer to one `ifreq`.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), request as _, std::ptr::from_mut(argument)) })?;
    Ok(())
}

/// The interfaces of this machine.
#[derive(Debug, Default)]
pub struct LinuxNet {
    sockets: Vec<(String, UdpSocket)>,
}

impl LinuxNet {
    fn socket(&self, interface: &str) -> Option<&UdpSocket> {
        self.sockets.iter().find(|(name, _)| name == interface).map(|(_, socket)| socket)
    }
}

impl Net for LinuxNet {
    fn open(&mut self, interface: &str) -> io::Result<()> {
        interface_up(interface)?;
        self.sockets.push((interface.to_string(), dhcp_socket(interface)?));
        Ok(())
    }

    fn send(&mut self, interface: &str, packet: &[u8]) {
        let socket = self.socket(interface);
        // while the link has no carrier this fails; the client repeats
        let _ = socket.map(|socket| socket.send_to(packet, (Ipv4Addr::BROADCAST, 67)));
    }

    fn receive(&mut self, interface: &str) -> Option<Vec<u8>> {
        let mut packet = vec![0; 1500];
        let length = self.socket(interface)?.recv(&mut packet).ok()?;
        packet.truncate(length);
        Some(packet)
    }

    fn apply(&mut self, interface: &str, lease: &Lease) -> io::Result<()> {
        let mut request = ifreq(interface);
        request.ifr_ifru.ifru_addr = ipv4(lease.address);
        interface_ioctl(libc::SIOCSIFADDR, &mut request)?;
        request.ifr_ifru.ifru_netmask = ipv4(lease.netmask);
        interface_ioctl(libc::SIOCSIFNETMASK, &mut request)?;
        lease.router.map_or(Ok(()), |router| default_route(interface, router))
    }
}

fn interface_up(interface: &str) -> io::Result<()> {
    let mut request = ifreq(interface);
    interface_ioctl(libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: SIOCGIFFLAGS has just written this member of the union, and any bits are a valid short.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    interface_ioctl(libc::SIOCSIFFLAGS, &mut request)
}

/// A non-blocking socket for DHCP on one interface, which may have no address yet.
fn dhcp_socket(interface: &str) -> io::Result<UdpSocket> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket: OwnedFd = socket::socket(AddressFamily::Inet, SockType::Datagram, flags, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    setsockopt(&socket, sockopt::Broadcast, &true)?;
    setsockopt(&socket, sockopt::BindToDevice, &interface.into())?;
    let any = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68));
    socket::bind(socket.as_raw_fd(), &any)?;
    Ok(socket.into())
}

fn default_route(interface: &str, router: Ipv4Addr) -> io::Result<()> {
    let mut name = CString::new(interface)?.into_bytes_with_nul();
    // SAFETY: `rtentry` is plain old data for which all zeros is valid.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = ipv4(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = ipv4(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = ipv4(router);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    route.rt_dev = name.as_mut_ptr().cast();
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // SAFETY: the socket is open; SIOCADDRT reads one `rtentry` and the name that `rt_dev` points to, which outlives
    // the call.
    let added = Errno::result(unsafe {
        libc::ioctl(socket.as_raw_fd(), libc::SIOCADDRT as _, std::ptr::from_mut(&mut route))
    });
    match added {
        Ok(_) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
