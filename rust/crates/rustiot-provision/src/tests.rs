//! Provisioning on a machine in memory: power cuts at every operation, broken media, two devices from one image.

mod machine;

use crate::journal::Journal;
use crate::status::{Outcome, Status};
use crate::{gpt, run};
use machine::{Fs, Machine, Power};
use std::collections::BTreeMap;
use std::path::PathBuf;

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f a";

fn config() -> String {
    format!("hostname = 'kitchen'\n[ssh]\nauthorized_keys = ['{KEY}']\n[network.lan]\nname = 'eth0'\n")
}

fn start(machine: &Machine) -> Status {
    machine.boot();
    run::early(machine);
    run::late(machine)
}

fn step<'a>(status: &'a Status, name: &str) -> (Outcome, &'a str) {
    let step = status.steps.iter().find(|step| step.name == name).unwrap();
    (step.outcome, step.detail.as_str())
}

/// What must be true of every device at the end of a start on sound hardware.
fn assert_provisioned(machine: &Machine, status: &Status) {
    assert!(status.ok, "{}", status.text());
    assert_eq!(status.hostname, "kitchen");
    assert_eq!(machine.hostname(), "kitchen");
    let state = machine.files("/state");
    let names: Vec<&str> = state.keys().filter_map(|path| path.to_str()).collect();
    assert_eq!(
        names,
        [
            "config/last-good.json",
            "identity/device.key",
            "identity/device.pub",
            "identity/hostname",
            "identity/machine-id",
            "provision/journal.json",
            "ssh/ssh_host_ed25519_key",
            "ssh/ssh_host_ed25519_key.pub"
        ]
    );
    let mode = |path: &str| state[&PathBuf::from(path)].1;
    assert_eq!((mode("identity/device.key"), mode("ssh/ssh_host_ed25519_key")), (0o600, 0o600));
    assert_eq!(mode("config/last-good.json"), 0o600);
    let key = machine.text("/run/rustiot/ssh/authorized_keys");
    assert!(key.ends_with(&format!("{KEY}\n")), "{key}");
    assert!(machine.text("/run/systemd/network/50-rustiot-lan.network").contains("Name=eth0"));
    assert!(machine.text("/run/rustiot/settings.json").contains("kitchen"));
    let journal = Journal::load(machine);
    assert!(journal.first_boot_done);
    assert_eq!(gpt::sample::kernel_view(&machine.medium()).unwrap().last().unwrap().2, journal.data_filled);
    assert_eq!(machine.filled("data"), journal.data_filled, "the file system fills the partition");
}

#[test]
fn a_first_start_and_then_nothing_to_do() {
    let machine = Machine::new(&config());
    let first = start(&machine);
    assert_provisioned(&machine, &first);
    assert_eq!(step(&first, "state"), (Outcome::Done, "made"));
    assert_eq!(step(&first, "partition"), (Outcome::Done, "data grows from 1 to 4 MiB"));
    assert_eq!(step(&first, "first-boot").0, Outcome::Done);
    let files = machine.files("/state");
    let before = machine.durable_writes();

    let second = start(&machine);
    assert_provisioned(&machine, &second);
    assert_eq!(machine.durable_writes(), before, "a start like the one before writes nothing");
    assert_eq!(machine.files("/state"), files);
    assert_eq!(machine.programs(), [""; 0], "and runs no program");
}

/// The promise of the contract: power may go at any operation of the first start, the next start finishes alone.
#[test]
fn a_first_start_cut_at_any_operation_finishes_on_the_next() {
    let whole = Machine::new(&config());
    start(&whole);
    let total = whole.operations();
    assert!(total > 60, "{total}");
    for cut in 0..total {
        let machine = Machine::new(&config());
        machine.cut_after(cut);
        start(&machine);
        assert_eq!(machine.power(), Power::Off, "{cut}");
        let kept = machine.fs("state").files().get(&PathBuf::from("identity/machine-id")).cloned();

        machine.mend();
        let status = start(&machine);
        assert_provisioned(&machine, &status);
        if let Some(kept) = kept {
            assert_eq!(
                machine.files("/state")[&PathBuf::from("identity/machine-id")],
                kept,
                "{cut}: kept id"
            );
        }
        let files = machine.files("/state");
        let before = machine.durable_writes();
        assert_provisioned(&machine, &start(&machine));
        assert_eq!((machine.durable_writes(), machine.files("/state")), (before, files), "{cut}");
    }
}

/// A second cut, at any operation of the start that repairs the first.
#[test]
fn two_cuts_in_a_row() {
    let total = 90;
    for first in (0..total).step_by(5) {
        for second in (0..total).step_by(3) {
            let machine = Machine::new(&config());
            for cut in [first, second] {
                machine.cut_after(cut);
                start(&machine);
                machine.mend();
            }
            assert_provisioned(&machine, &start(&machine));
        }
    }
}

#[test]
fn cut_while_a_new_configuration_is_applied_gives_the_old_or_the_new_one() {
    let machine = Machine::new(&config());
    start(&machine);
    let new = config().replace("kitchen", "cellar");
    machine.set_config(&new);
    let before = machine.operations();
    let probe = machine.clone();
    start(&probe);
    for cut in 0..probe.operations() - before {
        let machine = machine.clone();
        machine.cut_after(cut);
        start(&machine);
        machine.mend();
        // The card is pulled out and comes back empty: what was kept is one of the two, never a mixture.
        machine.set_config("");
        let status = start(&machine);
        assert!(["kitchen", "cellar"].contains(&status.hostname.as_str()), "{}", status.hostname);
        assert!(machine.text("/run/rustiot/ssh/authorized_keys").contains(KEY));
    }
}

#[test]
fn two_devices_from_one_image_are_different() {
    let secrets = |seed| {
        let machine = Machine::new("");
        machine.seed(seed);
        let status = start(&machine);
        let files = machine.files("/state");
        let file = |path: &str| files[&PathBuf::from(path)].0.clone();
        let all =
            ["identity/machine-id", "identity/device.key", "identity/device.pub", "ssh/ssh_host_ed25519_key"];
        (all.map(file), status.hostname)
    };
    let (a, b) = (secrets(1), secrets(2));
    assert!(a.0.iter().zip(&b.0).all(|(a, b)| a != b));
    assert_ne!(a.1, b.1);
    assert!(a.1.starts_with("rustiot-") && a.1.len() == 16, "{}", a.1);
}

/// State is lost in every way there is: the device stays reachable by the owner's key and says so.
#[test]
fn a_lost_state_costs_the_identity_and_nothing_else() {
    for (fs, outcome, says) in [
        (Fs::Blank, Outcome::Degraded, "it was blank, though data is in use: made anew, its content is lost"),
        (Fs::Other, Outcome::Degraded, "state held something that is no ext4 and could not be repaired"),
        (Fs::Hopeless { unfinished: false }, Outcome::Degraded, "made anew, its content is lost"),
        (Fs::Unreadable, Outcome::Degraded, "state cannot be read (I/O error); /state is in memory"),
    ] {
        let machine = Machine::new(&config());
        start(&machine);
        machine.set_fs("state", fs.clone());
        let status = start(&machine);
        let (found, detail) = step(&status, "state");
        assert_eq!(found, outcome, "{fs:?}: {detail}");
        assert!(detail.contains(says), "{detail}");
        assert_eq!(status.hostname, "kitchen");
        assert!(machine.text("/run/rustiot/ssh/authorized_keys").contains(KEY));
        assert!(machine.text("/state/ssh/ssh_host_ed25519_key").contains("PRIVATE KEY"));
        assert!(
            machine.fs("data").files().contains_key(&PathBuf::from("kept")),
            "data is not touched: {fs:?}"
        );
    }
}

#[test]
fn a_broken_state_is_repaired_and_keeps_everything() {
    let machine = Machine::new(&config());
    start(&machine);
    let files = machine.files("/state");
    for break_it in [Machine::unmountable, Machine::with_errors] {
        break_it(&machine, "state");
        let status = start(&machine);
        assert_eq!(step(&status, "state").0, Outcome::Done, "{}", status.text());
        assert!(step(&status, "state").1.contains("repaired"));
        assert_eq!(machine.files("/state"), files);
    }
}

#[test]
fn a_dead_data_never_costs_reachability() {
    for (fs, says) in [
        (Fs::Other, "made anew"),
        (Fs::Hopeless { unfinished: false }, "made anew"),
        (Fs::Unreadable, "data cannot be read (I/O error); /data is in memory until the next start"),
    ] {
        let machine = Machine::new(&config());
        start(&machine);
        let state = machine.files("/state");
        machine.set_fs("data", fs.clone());
        let status = start(&machine);
        assert_eq!(step(&status, "data").0, Outcome::Degraded);
        assert!(step(&status, "data").1.contains(says), "{fs:?}: {}", step(&status, "data").1);
        assert!(!status.ok);
        assert_eq!(step(&status, "configuration").0, Outcome::Done);
        assert_eq!(machine.files("/state"), state);
    }
}

/// A medium that could not be read is not formatted: it may be back on the next start, with everything on it.
#[test]
fn what_cannot_be_read_is_not_formatted() {
    let machine = Machine::new(&config());
    start(&machine);
    let data = machine.fs("data");
    for label in ["state", "data"] {
        let good = machine.fs(label);
        machine.set_fs(label, Fs::Unreadable);
        start(&machine);
        assert_eq!(machine.fs(label), Fs::Unreadable);
        machine.set_fs(label, good);
    }
    assert_provisioned(&machine, &start(&machine));
    assert_eq!(machine.fs("data"), data);
}

/// Tools that are missing or fail: memory in place of the file systems, the owner's key still works.
#[test]
fn without_tools_and_without_a_disk_it_is_still_reachable() {
    let machine = Machine::new(&config());
    machine.break_programs();
    let status = start(&machine);
    assert!(step(&status, "state").1.contains("/state is in memory"), "{}", status.text());
    assert!(machine.text("/run/rustiot/ssh/authorized_keys").contains(KEY));
    assert_eq!(step(&status, "ssh-host-key").0, Outcome::Failed);

    let machine = Machine::new(&config());
    machine.lose_disk();
    let status = start(&machine);
    assert_eq!(step(&status, "disk").0, Outcome::Failed);
    assert!(step(&status, "data").1.contains("/data is in memory"));
    assert!(status.hostname.starts_with("rustiot-"));
}

#[test]
fn configuration_that_is_broken_or_gone_keeps_the_last_good_values() {
    let machine = Machine::new(&config());
    start(&machine);
    for broken in ["", "hostname = my house\n", "\u{0}\u{0}\u{0}", "[ssh\n"] {
        machine.set_config(broken);
        let status = start(&machine);
        assert_eq!(status.hostname, "kitchen", "{broken:?}");
        assert!(machine.text("/run/rustiot/ssh/authorized_keys").contains(KEY), "{broken:?}");
        assert_eq!(step(&status, "configuration").0, Outcome::Degraded);
        assert!(!status.messages.is_empty());
    }
    machine.set_config(&"x".repeat(2 << 20));
    assert!(start(&machine).messages[0].what.contains("2097152 bytes"));
    machine.set_fs("config", Fs::Other);
    let status = start(&machine);
    assert_eq!(step(&status, "config").0, Outcome::Degraded);
    assert_eq!(status.hostname, "kitchen");
}

#[test]
fn a_time_zone_that_the_image_lacks_is_utc_and_said() {
    let machine = Machine::new("[time]\ntimezone = 'Europe/Atlantis'\n");
    let status = start(&machine);
    assert_eq!(status.messages.len(), 1);
    assert!(status.messages[0].to_string().starts_with("/config/rustiot.toml:2:12: error: time.timezone"));
    assert_eq!(machine.text("/run/rustiot/localtime"), "-> /usr/share/zoneinfo/UTC");
}

#[test]
fn applying_again_tells_those_whose_files_changed() {
    let machine = Machine::new(&config());
    start(&machine);
    machine.programs();
    assert_eq!(step(&run::reapply(&machine), "services").0, Outcome::Unchanged);
    assert_eq!(machine.programs(), [""; 0]);
    machine.set_config("hostname = 'cellar'\n[time]\nservers = ['ntp.example']\n");
    let status = run::reapply(&machine);
    assert_eq!(status.hostname, "cellar");
    assert_eq!(
        machine.programs(),
        ["networkctl reload", "systemctl try-restart systemd-timesyncd.service"],
        "the network section is gone, the time servers are others"
    );
    for more in [
        "[engine]\nimage_share = 50\n",
        "[engine]\nimage_share = 50\n[proxy]\nhttp = 'http://p.example:3128'\n",
    ] {
        machine.set_config(&format!("hostname = 'cellar'\n[time]\nservers = ['ntp.example']\n{more}"));
        machine.programs();
        run::reapply(&machine);
        let told = machine.programs();
        assert!(
            told.contains(&"systemctl --no-block try-restart rustiot-engine.service".to_owned()),
            "{told:?}"
        );
    }
    assert!(!machine.has("/run/systemd/network/50-rustiot-lan.network"));
}

#[test]
fn a_larger_and_a_smaller_medium() {
    let machine = Machine::new(&config());
    start(&machine);
    machine.resize_medium(12 << 20);
    let status = start(&machine);
    assert_eq!(step(&status, "partition"), (Outcome::Done, "data grows from 4 to 8 MiB"));
    assert_eq!(step(&status, "data-size"), (Outcome::Done, "data has 8 MiB"));
    assert_provisioned(&machine, &status);

    let machine = Machine::new(&config());
    machine.resize_medium((7 << 19) + 512);
    let status = start(&machine);
    let (outcome, detail) = step(&status, "partition");
    assert_eq!(outcome, Outcome::Degraded);
    assert!(detail.contains("it is smaller than the image expects"), "{detail}");
    assert_eq!(status.hostname, "kitchen", "and goes on");
}

#[test]
fn damaged_files_of_the_identity_are_replaced_and_said() {
    let machine = Machine::new(&config());
    start(&machine);
    let good = machine.files("/state");
    for (path, name) in [
        ("identity/device.key", "device-key"),
        ("identity/machine-id", "machine-id"),
        ("ssh/ssh_host_ed25519_key", "ssh-host-key"),
        ("identity/device.pub", "device-key"),
    ] {
        let machine = machine.clone();
        machine.put(&format!("/state/{path}"), "damaged");
        let status = start(&machine);
        let (outcome, detail) = step(&status, name);
        assert_ne!(outcome, Outcome::Unchanged, "{path}");
        assert!(!detail.is_empty());
        assert_ne!(machine.files("/state")[&PathBuf::from(path)].0, b"damaged", "{path}");
        let changed: BTreeMap<_, _> =
            machine.files("/state").into_iter().filter(|(path, file)| good.get(path) != Some(file)).collect();
        assert!(changed.len() <= 2, "{path}: {:?}", changed.keys());
    }
}

#[test]
fn the_status_text() {
    let machine = Machine::new("hostname = 5\n");
    let text = start(&machine).text();
    assert!(text.contains("state          done"), "{text}");
    assert!(text.contains("/config/rustiot.toml:1:12: error: hostname"), "{text}");
    assert_eq!(crate::main(["nonsense".to_owned()]), 2);
    assert_eq!(crate::main([]), 2);
}
