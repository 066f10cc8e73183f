//! The whole boot against a recorded kernel and a directory, with faults.

use std::{cell::RefCell, rc::Rc};

use rustiot_boot::{BootEntry, Record};

use super::*;
use crate::{
    disk::sample::{self, id, put},
    sys::fake::FakeSys,
};

const LABELS: [&str; 7] = ["config", "boot-a", "boot-b", "root-a", "root-b", "state", "data"];
const ID: &str = "0123456789abcdef0123456789abcdef";

/// Answers each event with the next of its effects; an empty list is an error.
struct FakePolicy {
    record: Record,
    answers: Vec<Vec<Effect>>,
    told: Rc<RefCell<Vec<Event>>>,
}

impl Policy for FakePolicy {
    fn record(&self) -> &Record {
        &self.record
    }

    fn notes(&self) -> &[String] {
        &[]
    }

    fn tell(&mut self, event: Event) -> Result<Applied, String> {
        let number = self.told.borrow().len() as u64;
        self.told.borrow_mut().push(event.clone());
        if self.answers.is_empty() {
            return Err("disk full".into());
        }
        if let Event::Booted { slot, boot_id, reset, .. } = event {
            let (pstore_tail, kind) = (Vec::new(), BootKind::Normal);
            let (healthy, stable, clean) = (false, false, false);
            let boot = BootEntry { number, boot_id, slot, kind, reset, pstore_tail, healthy, stable, clean };
            self.record.boots.push(boot);
        }
        Ok(Applied { effects: self.answers.remove(0), default_changed: false })
    }
}

/// A machine with everything in place, that booted slot B by U-Boot.
struct Machine {
    root: tempfile::TempDir,
    sys: FakeSys,
    answers: Vec<Vec<Effect>>,
    told: Rc<RefCell<Vec<Event>>>,
}

impl Machine {
    fn new() -> Machine {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        sample::disk(root.path(), "vda", &LABELS, 2048);
        put(&at("proc/cmdline"), &format!("quiet rustiot.boot={}\n", id(3)));
        put(&at("proc/sys/kernel/random/boot_id"), "the-boot-id\n");
        put(&at("proc/sys/kernel/panic"), "0\n");
        put(&at("dev/random"), "0123456789abcdef");
        put(&at("state/identity/machine-id"), &format!("{ID}\n"));
        std::fs::create_dir_all(at("sys/fs/pstore")).unwrap();
        for directory in MOVED.into_iter().chain(["state", "data", "etc"]) {
            std::fs::create_dir_all(at("sysroot").join(directory)).unwrap();
        }
        put(&at("sysroot/usr/lib/systemd/systemd"), "");
        let verity = serde_json::json!({"data_block_size":4096,"hash_block_size":4096,"data_blocks":100,
            "hash_start_block":100,"algorithm":"sha256","root_hash":"ab".repeat(32),"salt":""});
        put(&at("rustiot/verity.json"), &verity.to_string());
        let mut sys = FakeSys::new();
        sys.root = root.path().to_owned();
        let answers = vec![vec![Effect::SetDefault(Slot::B), Effect::Continue(BootKind::Normal)]];
        let machine = Machine { root, sys, answers, told: Rc::default() };
        machine.config(|_| ());
        machine
    }

    fn config(&self, change: impl Fn(&mut serde_json::Value)) {
        let mut config = serde_json::json!({"board":"test","loader":"uboot",
            "modules":["/lib/modules/watchdog.ko","/lib/modules/i6300esb.ko","/lib/modules/ramoops.ko"],
            "network_modules":["/lib/modules/net.ko"],"ramoops":{"address":4096,"size":65536},
            "watchdog":{"device":"/dev/watchdog","timeout_s":60,"deadline_s":180}});
        change(&mut config);
        put(&self.root.path().join("rustiot/init.json"), &config.to_string());
    }

    fn put(&self, path: &str, text: &str) {
        put(&self.root.path().join(path), text);
    }

    fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.root.path().join(path)).unwrap()
    }

    fn report(&self) -> serde_json::Value {
        serde_json::from_str(&self.read("run/rustiot/boot.json")).unwrap()
    }

    fn run(&mut self) -> Outcome {
        let root = self.root.path().to_owned();
        let (answers, told) = (self.answers.clone(), self.told.clone());
        let mut boot = Boot::new(&mut self.sys, &root);
        boot.run(&mut |_, _, _| {
            let (answers, told) = (answers.clone(), told.clone());
            Ok(Box::new(FakePolicy { record: Record::fresh(Slot::B), answers, told }))
        })
    }
}

fn rescue_reason(outcome: Outcome) -> String {
    match outcome {
        Outcome::Rescue { reason } => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn boots_in_the_documented_order() {
    let mut machine = Machine::new();
    // the driver makes the device node; before it there is none
    machine.sys.fail("watchdog", Errno::ENOENT);
    machine.sys.fail("watchdog", Errno::ENOENT);
    assert!(matches!(machine.run(), Outcome::SwitchRoot { rescue: false }));
    assert_eq!(
        machine.sys.take(),
        [
            "mount proc proc /proc ".to_string(),
            "mount sysfs sysfs /sys ".into(),
            "mount devtmpfs devtmpfs /dev mode=0755".into(),
            "mount tmpfs tmpfs /run mode=0755".into(),
            "watchdog /dev/watchdog 60".into(),
            "module /lib/modules/watchdog.ko".into(),
            "watchdog /dev/watchdog 60".into(),
            "module /lib/modules/i6300esb.ko".into(),
            "watchdog /dev/watchdog 60".into(),
            "every 15".into(),
            "module /lib/modules/ramoops.ko mem_address=0x1000 mem_size=0x10000 record_size=0x4000 console_size=0 \
             pmsg_size=0 ftrace_size=0"
                .into(),
            "mount pstore pstore /sys/fs/pstore ".into(),
            "mount ext4 /dev/vda6 /state data=ordered".into(),
            "mount ext4 /dev/vda7 /data data=ordered".into(),
            "dm Create".into(),
            "dm Load panic_on_corruption".into(),
            "dm Resume".into(),
            "mount erofs /dev/dm-0 /sysroot ".into(),
            "bind /run/rustiot/machine-id /sysroot/etc/machine-id".into(),
            "move /state /sysroot/state".into(),
            "move /data /sysroot/data".into(),
            "move /dev /sysroot/dev".into(),
            "move /proc /sysroot/proc".into(),
            "move /sys /sysroot/sys".into(),
            "move /run /sysroot/run".into(),
        ]
    );
    assert_eq!(
        machine.sys.said,
        [
            "watchdog=/dev/watchdog timeout_s=60",
            "slot=b kind=normal reset=unknown boot=0 state=mounted data=mounted",
            "switch-root kind=normal ms=0 root=abababababababab",
        ]
    );
    assert_eq!(machine.read("run/rustiot/machine-id"), format!("{ID}\n"));
    assert_eq!(machine.read("proc/sys/kernel/panic"), "10\n");
}

#[test]
fn the_report_says_what_this_boot_is() {
    let mut machine = Machine::new();
    machine.sys.card_reset = true;
    machine.sys.fail("mount ext4 /dev/vda7", Errno::EINVAL);
    machine.sys.fail("module /lib/modules/watchdog.ko", Errno::ENOEXEC);
    machine.sys.fail("module /lib/modules/i6300esb.ko", Errno::ENODEV);
    machine.run();
    let report = machine.report();
    assert_eq!(report["slot"], "b");
    assert_eq!(report["boot_id"], "the-boot-id");
    assert_eq!(report["reset"]["reason"], "watchdog");
    assert_eq!((&report["state"], &report["data"]), (&"mounted".into(), &"unmountable".into()));
    assert_eq!(report["root_hash"], "ab".repeat(32));
    assert_eq!(report["attempt"], serde_json::Value::Null);
    let messages = report["messages"].as_array().unwrap();
    assert_eq!(messages.len(), 2, "a driver without its hardware is no news: {messages:?}");
    assert_eq!(messages[1], "mount data (vda7): EINVAL: Invalid argument");
    for step in ["exec", "modules", "disk", "mounts", "policy", "switch_root"] {
        assert!(report["timings_ms"][step].as_u64().is_some_and(|ms| ms > 0), "{step}: {report}");
    }
}

#[test]
fn waits_for_a_disk_that_comes_late() {
    let mut machine = Machine::new();
    let class = machine.root.path().join("sys/class/block");
    let away = machine.root.path().join("away");
    #[expect(clippy::disallowed_methods, reason = "a device that appears")]
    {
        std::fs::rename(&class, &away).unwrap();
        machine.sys.on_pause = Box::new(move |n| {
            if n == 7 {
                std::fs::rename(&away, &class).unwrap();
            }
        });
    }
    assert!(matches!(machine.run(), Outcome::SwitchRoot { .. }));
    assert!(machine.sys.said[2].contains(" ms=35 "), "{:?}", machine.sys.said);
}

#[test]
fn waits_for_sister_partitions_but_not_for_ever() {
    let mut machine = Machine::new();
    let (link, device) = ("sys/class/block/vda6", "sys/devices/pci0/block/vda/vda6");
    let (link, device) = (machine.root.path().join(link), machine.root.path().join(device));
    std::fs::remove_file(&link).unwrap();
    let (late, target) = (link.clone(), device);
    machine.sys.on_pause = Box::new(move |n| {
        if n == 3 {
            std::os::unix::fs::symlink(&target, &late).unwrap();
        }
    });
    machine.run();
    assert_eq!(machine.report()["state"], "mounted");

    std::fs::remove_file(&link).unwrap();
    let before = machine.sys.now_ms();
    machine.run();
    assert_eq!(machine.report()["state"], "absent");
    assert_eq!(machine.sys.now_ms() - before, PARTITIONS_WAIT_MS);
}

#[test]
fn believes_the_raspberry_pis_firmware_about_the_partition() {
    let property = "proc/device-tree/chosen/bootloader/partition";
    let mut machine = Machine::new();
    machine.config(|config| config["loader"] = "tryboot".into());
    assert!(rescue_reason(machine.run()).contains(property));
    machine.put(property, "three");
    assert_eq!(rescue_reason(machine.run()), format!("/{property} is no number"));
    machine.put(property, "\0\0\0\u{3}");
    assert!(matches!(machine.run(), Outcome::SwitchRoot { rescue: false }));
    assert_eq!(machine.report()["slot"], "b");
    machine.put(property, "\0\0\0\u{9}");
    assert_eq!(rescue_reason(machine.run()), "no disk has the boot partition number 9");
}

#[test]
fn stays_reachable_when_it_cannot_find_itself() {
    let mut machine = Machine::new();
    machine.put("proc/cmdline", &format!("rustiot.boot={}\n", id(9)));
    let reason = rescue_reason(machine.run());
    assert_eq!(reason, format!("no disk has the boot partition {}", id(9)));

    machine.put("proc/cmdline", "quiet\n");
    assert!(rescue_reason(machine.run()).contains("rustiot.boot="));

    machine.config(|config| config["loader"] = "uefi".into());
    assert!(rescue_reason(machine.run()).contains("LoaderDevicePartUUID"));

    machine.put("rustiot/init.json", "{");
    let reason = rescue_reason(machine.run());
    assert!(reason.contains("line 1 column"), "{reason}");
}

#[test]
fn obeys_a_reboot_only_where_it_is_remembered() {
    let reboot = Effect::Reboot { reason: "the other slot".into() };
    let mut machine = Machine::new();
    machine.answers = vec![vec![reboot.clone()]];
    assert!(matches!(machine.run(), Outcome::Reboot { reason } if reason == "the other slot"));
    assert!(machine.sys.said[1].starts_with("slot=b kind=redirect "), "{:?}", machine.sys.said);

    machine.sys.fail("mount ext4 /dev/vda6", Errno::EINVAL);
    assert!(matches!(machine.run(), Outcome::SwitchRoot { rescue: false }));
    assert_eq!(machine.report()["state"], "unmountable");
    let messages = machine.report()["messages"].to_string();
    assert!(messages.contains("not rebooted"), "{messages}");

    // and when the root is unusable as well: rescue, not a loop
    machine.sys.fail("mount ext4 /dev/vda6", Errno::EINVAL);
    machine.sys.fail("mount erofs", Errno::EIO);
    machine.answers = vec![vec![Effect::Continue(BootKind::Normal)], vec![reboot]];
    assert!(rescue_reason(machine.run()).starts_with("cannot mount root-b"));
}

#[test]
fn goes_on_without_a_ledger() {
    let mut machine = Machine::new();
    machine.answers = Vec::new();
    assert!(matches!(machine.run(), Outcome::SwitchRoot { rescue: false }));
    assert!(machine.report()["messages"].to_string().contains("boot ledger: disk full"));
}

#[test]
fn a_watchdog_that_cannot_be_opened_is_reported_once() {
    let mut machine = Machine::new();
    for _ in 0..4 {
        machine.sys.fail("watchdog", Errno::EBUSY);
    }
    assert!(matches!(machine.run(), Outcome::SwitchRoot { .. }));
    let messages = machine.report()["messages"].to_string();
    assert_eq!(messages.matches("watchdog").count(), 1, "{messages}");
}

#[test]
fn rescue_with_a_root_reads_what_it_can() {
    let mut machine = Machine::new();
    machine.answers = vec![vec![Effect::Rescue { reason: "both slots failed".into() }]];
    assert!(matches!(machine.run(), Outcome::SwitchRoot { rescue: true }));
    assert!(machine.sys.take().contains(&"dm Load".to_string()), "no panic on corruption");
    let report = machine.report();
    assert_eq!((&report["kind"], &report["rescue"]), (&"rescue".into(), &"both slots failed".into()));
}

#[test]
fn an_unusable_root_is_the_policys_to_judge() {
    type Break = fn(&mut Machine);
    let breaks: [(Break, &str); 6] = [
        (|m| m.sys.fail("dm Load", Errno::EINVAL), "device mapper: Load failed: EINVAL"),
        (|m| m.sys.fail("mount erofs", Errno::EUCLEAN), "cannot mount root-b (/dev/dm-0)"),
        (|m| m.put("rustiot/verity.json", "{}"), "cannot parse /rustiot/verity.json"),
        (|m| std::fs::remove_dir(m.root.path().join("sysroot/proc")).unwrap(), "the root has no /proc"),
        (
            |m| std::fs::remove_file(m.root.path().join("sysroot/usr/lib/systemd/systemd")).unwrap(),
            "the root has none of /usr/lib/systemd/systemd, /sbin/init",
        ),
        (
            |m| {
                let verity = m.read("rustiot/verity.json").replace("100", "1000");
                m.put("rustiot/verity.json", &verity);
            },
            "root file system needs 4096000 bytes, partition root-b has 1048576",
        ),
    ];
    for (break_it, expected) in breaks {
        let mut machine = Machine::new();
        let reboot = Effect::Reboot { reason: "back".into() };
        machine.answers.push(vec![Effect::SetNext(Slot::A), reboot]);
        break_it(&mut machine);
        assert!(matches!(machine.run(), Outcome::Reboot { reason } if reason == "back"), "{expected}");
        let told = machine.told.borrow();
        let Some(Event::RootUnusable { reason }) = told.last() else { panic!("{told:?}") };
        assert!(reason.starts_with(expected), "{reason}");

        drop(told);
        machine.answers[1] = vec![Effect::Rescue { reason: "neither".into() }];
        break_it_again(&mut machine, break_it);
        assert_eq!(rescue_reason(machine.run()), "neither");
    }
}

/// Faults that are files last; those of calls are spent.
fn break_it_again(machine: &mut Machine, break_it: fn(&mut Machine)) {
    let files = |m: &Machine| {
        m.root.path().join("sysroot/proc").exists()
            && m.root.path().join("sysroot/usr/lib/systemd/systemd").exists()
            && m.read("rustiot/verity.json").contains(":100,")
    };
    if files(machine) {
        break_it(machine);
    }
}

#[test]
fn a_crash_record_leaves_pstore_only_when_it_is_remembered() {
    let record = "Panic#1 Part1\n<0>[1.0] Kernel panic - not syncing: dm-verity device corrupted\n";
    let path = "sys/fs/pstore/dmesg-efi_pstore-1";
    let mut machine = Machine::new();
    for number in 0..6 {
        machine.put(&format!("state/pstore/before-boot-{number:010}.txt"), "old");
    }
    machine.put("state/pstore/by-hand", "kept");

    machine.put(path, record);
    machine.answers = Vec::new();
    machine.run();
    assert!(machine.root.path().join(path).exists(), "the ledger failed");

    machine.answers = vec![vec![Effect::Continue(BootKind::Normal)]];
    machine.sys.fail("mount ext4 /dev/vda6", Errno::EIO);
    machine.run();
    assert!(machine.root.path().join(path).exists(), "no state");

    machine.run();
    assert!(!machine.root.path().join(path).exists());
    assert_eq!(machine.report()["reset"]["reason"], "verity");
    let told = machine.told.borrow();
    let Some(Event::Booted { pstore_tail, reset: ResetReason::Verity, .. }) = told.last() else {
        panic!("{told:?}")
    };
    assert_eq!(pstore_tail.len(), 1);
    let kept: Vec<String> = files::entries(&machine.root.path().join("state/pstore"))
        .iter()
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    assert_eq!(kept.len(), KEPT_CRASHES + 1, "{kept:?}");
    assert!(kept.contains(&"by-hand".to_string()));
}

#[test]
fn faults_are_for_lab_images_only() {
    let mut machine = Machine::new();
    machine.put("proc/cmdline", &format!("rustiot.fault=init-hang rustiot.boot={}\n", id(3)));
    assert!(matches!(machine.run(), Outcome::SwitchRoot { .. }));
    machine.config(|config| config["lab"] = true.into());
    assert!(matches!(machine.run(), Outcome::Fault(Fault::Hang)));
}

/// One failure at any call, and everything failing from a call on, end in one of the outcomes and in nothing else.
#[test]
fn every_single_failure_has_an_outcome() {
    let mut machine = Machine::new();
    machine.run();
    let calls = machine.sys.take();
    assert_eq!(calls.len(), 23, "as in the documented order, with the watchdog there at once");
    for call in &calls {
        for errno in [Errno::EIO, Errno::ENOMEM, Errno::EBUSY] {
            let mut machine = Machine::new();
            machine.answers.push(vec![Effect::Rescue { reason: "neither".into() }]);
            machine.sys.fail(call, errno);
            let outcome = machine.run();
            let needed = call.starts_with("dm ") && !(call == "dm Create" && errno == Errno::EBUSY)
                || call.starts_with("mount erofs");
            match outcome {
                Outcome::SwitchRoot { rescue: false } => assert!(!needed, "{call}"),
                Outcome::Rescue { .. } => assert!(needed, "{call}"),
                Outcome::Reboot { reason } => {
                    assert!(call.starts_with("move ") && reason.contains("cannot move"), "{call}: {reason}");
                }
                other => panic!("{call}: {other:?}"),
            }
        }
    }
}
