//! The process: PID 1 of the initramfs. Joins [`rustiot_init`] to the real kernel and the real boot policy, and sees
//! to it that every end is a reboot or the real init. The kernel starts it as `/init`.

#![no_main]

use std::{
    convert::Infallible,
    ffi::{c_char, c_int},
    path::Path,
    time::Duration,
};

use rustiot_init::{
    boot::{Boot, INITS, Outcome, SYSROOT},
    cmdline::Fault,
    handover, policy,
    rescue::Rescue,
    sys::linux::{self, Linux, LinuxNet},
};

/// Exit code for a request that the present state refuses.
const REFUSED: c_int = 3;

/// The entry for the C library, instead of Rust's own start-up code: that one aborts when the kernel could not open a
/// console, and its stack guard costs 90 KB.
#[expect(
    unsafe_code,
    reason = "the C library calls this symbol, and nothing else in the program has its name"
)]
#[unsafe(no_mangle)]
pub extern "C" fn main(_argc: c_int, _argv: *const *const c_char) -> c_int {
    if std::process::id() != 1 {
        eprintln!("rustiot-init: runs as PID 1 of an initramfs only");
        return REFUSED;
    }
    // the shipping profile aborts on a panic, which in PID 1 would panic the kernel: reboot before that
    std::panic::set_hook(Box::new(|info| linux::reboot_now(&format!("init panicked: {info}"))));
    let mut sys = Linux;
    let Err(reason) = boot(&mut sys, Path::new("/"));
    linux::reboot_now(&reason)
}

/// Boots. Returns only with the reason for a reboot.
fn boot(sys: &mut Linux, root: &Path) -> Result<Infallible, String> {
    let mut boot = Boot::new(sys, root);
    let outcome = boot
        .run(&mut |config, located, state_mounted| policy::open(root, config.loader, located, state_mounted));
    match outcome {
        Outcome::SwitchRoot { rescue } => {
            handover::empty_initramfs(root);
            let args: &[&str] = if rescue { &["--unit=rustiot-rescue.target"] } else { &[] };
            linux::switch_root(&root.join(SYSROOT), &INITS, args)
                .map_err(|error| format!("cannot start the real init: {error}"))
        }
        Outcome::Reboot { reason } => Err(reason),
        Outcome::Rescue { reason } => Err(rescue(boot, reason, root)),
        Outcome::Fault(Fault::Hang) => {
            linux::say("fault=init-hang");
            loop {
                std::thread::sleep(Duration::from_secs(3600));
            }
        }
        #[expect(clippy::panic, reason = "a lab image asked for it, to show that the hook reboots")]
        Outcome::Fault(Fault::Panic) => panic!("fault=init-panic"),
        Outcome::Fault(Fault::Exit) => {
            linux::say("fault=init-exit");
            std::process::exit(1)
        }
    }
}

/// Stays reachable without a root. Returns the reason for the reboot.
fn rescue(boot: Boot, reason: String, root: &Path) -> String {
    let mut boot = boot.for_rescue();
    let policy = boot.policy.take();
    let rescue = Rescue { reason, facts: &boot.facts, policy, watchdog: &boot.watchdog };
    rescue.run(&mut Linux, &mut LinuxNet::default(), root)
}
