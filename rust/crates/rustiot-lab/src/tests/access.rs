//! Who may do what: over the network, at the bus, at the machine itself.

use crate::COMMAND;
use crate::containers::{Engine, IMAGE};
use crate::ctx::Ctx;
use crate::device::{Device, HEALTHY};
use crate::runner::{LabTest, Tag};
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;
use std::process::Command;
use testbed::Machine;

pub(super) const TESTS: &[LabTest] = &[
    LabTest {
        name: "local_users_give_no_orders",
        boards: &[],
        promise: "A user who is not root and not of the group rustiot reads the update service's state and gives it, RAUC and systemd no orders.",
        tags: &[Tag::QuickOnFirst],
        run: local_users_give_no_orders,
    },
    LabTest {
        name: "a_container_reaches_no_bus_and_gives_no_orders",
        boards: &[],
        promise: "A container reaches neither the system bus nor systemd, with the host's network neither; one that was given the bus and runs as no privileged user reads the update service's state and gives no orders.",
        tags: &[],
        run: a_container_reaches_no_bus_and_gives_no_orders,
    },
    LabTest {
        name: "only_ssh_listens_and_takes_no_password",
        boards: &[],
        promise: "Nothing but ssh listens on the network, it takes keys only, and no account has a password.",
        tags: &[Tag::QuickOnFirst],
        run: only_ssh_listens_and_takes_no_password,
    },
    LabTest {
        name: "the_power_button_shuts_down_in_order",
        // On the arm64 machine the button hangs on a GPIO.
        boards: &["qemux86-64"],
        promise: "The power button shuts the device down in order, and the next boot knows that it was.",
        tags: &[],
        run: the_power_button_shuts_down_in_order,
    },
];

const UPDATE: &str = "org.rustiot.Update1 /org/rustiot/Update1 org.rustiot.Update1";

/// Every order of the update service, of its own description, then RAUC's and systemd's that matter: arguments of
/// `busctl call`.
fn orders(machine: &Machine) -> Result<Vec<String>> {
    const RAUC: &str = "de.pengutronix.rauc / de.pengutronix.rauc.Installer";
    const SYSTEMD: &str =
        "org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager";
    let xml = machine.sh("busctl introspect --xml-interface org.rustiot.Update1 /org/rustiot/Update1")?;
    let own = xml.split("<interface name=\"org.rustiot.Update1\">").nth(1).context("no description")?;
    let own = own.split("</interface>").next().unwrap_or_default();
    let mut all = Vec::new();
    for method in own.split("<method name=\"").skip(1) {
        let method = method.split("</method>").next().unwrap_or_default();
        let name = method.split('"').next().unwrap_or_default();
        let (mut signature, mut arguments) = (String::new(), String::new());
        for line in method.lines().filter(|line| line.contains("direction=\"in\"")) {
            let kind =
                line.split("type=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or_default();
            signature.push_str(kind);
            arguments.push_str(match kind {
                "s" => " /data/x.raucb",
                "b" => " true",
                "t" | "a{sv}" => " 0",
                kind => bail!("{name} takes a {kind}, which this test does not know"),
            });
        }
        all.push(format!("{UPDATE} {name} '{signature}'{arguments}"));
    }
    ensure!(all.len() >= 11, "{} orders: {all:?}", all.len());
    for more in [
        format!("{RAUC} InstallBundle 'sa{{sv}}' /data/x.raucb 0"),
        format!("{RAUC} Mark ss bad booted"),
        format!("{SYSTEMD} Reboot ''"),
        format!("{SYSTEMD} StopUnit ss rustiot-watchdog.service replace"),
    ] {
        all.push(more);
    }
    Ok(all)
}

/// Whether `busctl` was refused for want of the right.
fn refused(said: &str) -> bool {
    ["Access denied", "not authorized", "authentication required", "AccessDenied"]
        .iter()
        .any(|words| said.contains(words))
}

fn a_container_reaches_no_bus_and_gives_no_orders(ctx: &mut Ctx) -> Result<()> {
    let machine = ctx.healthy()?;
    let orders = orders(&machine)?;
    let before = (machine.boot()?.boot_id, machine.sh("rustiot slots --json")?);
    let engine = Engine::with_image(ctx, &machine)?;
    // The device's own busctl and what it is linked with, since the image has one static program.
    let mut program = vec!["-v", "/usr:/usr:ro", "-v", "/usr/lib:/lib:ro"];
    if machine.run("test -d /usr/lib64", COMMAND)?.ok() {
        program.extend(["-v", "/usr/lib64:/lib64:ro"]);
    }
    let nobody = ["--user", "65534:65534"];
    let bus = ["-v", "/run/dbus/system_bus_socket:/run/dbus/system_bus_socket"];
    let host = ["--network", "host"];
    let none = ["--network", "none"];
    for (name, more) in [
        ("alone", none.to_vec()),
        ("on-the-host", host.to_vec()),
        ("with-the-bus", [&none[..], &nobody, &bus].concat()),
    ] {
        let all = [&["run", "-d", "--name", name][..], &program, &more, &[IMAGE, "idle"]].concat();
        engine.ok(&all)?;
    }
    let call = |name: &str, verb: &str, what: &str| -> Result<(bool, String)> {
        let words = what.split_whitespace().map(|word| word.trim_matches('\''));
        let all: Vec<&str> = ["exec", name, "/usr/bin/busctl", verb].into_iter().chain(words).collect();
        let output = engine.docker(&all)?;
        Ok((output.ok(), format!("{}{}", output.stdout, output.stderr)))
    };
    let phase = format!("{UPDATE} Phase");
    for name in ["alone", "on-the-host"] {
        let (ok, said) = call(name, "get-property", &phase)?;
        ensure!(!ok && said.contains("No such file or directory"), "{name} asks the bus: {said}");
        let (ok, said) = call(name, "--address=unix:path=/run/systemd/private", "list")?;
        ensure!(!ok && said.contains("No such file or directory"), "{name} asks systemd: {said}");
    }
    let (ok, said) = call("with-the-bus", "get-property", &phase)?;
    ensure!(ok && said.contains("\"idle\""), "with the bus it cannot read: {said}");
    for order in &orders {
        let (ok, said) = call("with-the-bus", "call", order)?;
        ensure!(!ok && refused(&said), "{order}: {said}");
    }
    ensure!(machine.boot()?.boot_id == before.0, "the device rebooted");
    ensure!(machine.sh("rustiot slots --json")? == before.1, "the slots changed");
    Ok(())
}

fn local_users_give_no_orders(ctx: &mut Ctx) -> Result<()> {
    let machine = ctx.healthy()?;
    let before = (machine.boot()?.boot_id, machine.sh("rustiot slots --json")?);
    let as_nobody = |call: &str| {
        machine.sh(&format!(
            "setpriv --reuid=65534 --regid=65534 --clear-groups busctl {call} 2>&1; echo exit code $?"
        ))
    };
    for order in orders(&machine)? {
        let said = as_nobody(&format!("call {order}"))?;
        ensure!(said.ends_with("exit code 1") && refused(&said), "{order}: {said}");
    }
    let phase = as_nobody(&format!("get-property {UPDATE} Phase"))?;
    ensure!(phase.contains("\"idle\"") && phase.ends_with("exit code 0"), "cannot read: {phase}");
    ensure!(machine.boot()?.boot_id == before.0, "the device rebooted");
    ensure!(machine.sh("rustiot slots --json")? == before.1, "the slots changed");
    Ok(())
}

fn only_ssh_listens_and_takes_no_password(ctx: &mut Ctx) -> Result<()> {
    let machine = ctx.healthy()?;
    for line in machine.sh("ss -H -lntu")?.lines() {
        let mut words = line.split_whitespace();
        let protocol = words.next().context("ss says nothing")?;
        let local = words.nth(3).with_context(|| format!("no address: {line}"))?;
        let (address, port) = local.rsplit_once(':').with_context(|| format!("no port: {line}"))?;
        let at_home = address.starts_with("127.") || address.starts_with("[::1]");
        // The clients of DHCP hear answers at ports of their own.
        let known = matches!((protocol, port), ("tcp", "22") | ("udp", "68" | "546"));
        ensure!(at_home || known, "this listens: {line}");
    }
    let passwords = machine.sh("awk -F: '$2 !~ /^[!*]/ { print $1 }' /etc/shadow")?;
    ensure!(passwords.is_empty(), "accounts with a password, or with none needed: {passwords}");
    // What the server offers to whoever has no key.
    let port = machine.ssh_port().to_string();
    let output = Command::new("ssh")
        .args(["-p", &port, "-o", "PubkeyAuthentication=no", "-o", "BatchMode=yes"])
        .args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"])
        .args(["-o", "ConnectTimeout=60", "-o", "LogLevel=ERROR", "root@127.0.0.1", "true"])
        .output()
        .context("cannot run ssh")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && said.contains("(publickey)"), "without a key: {said}");
    Ok(())
}

fn the_power_button_shuts_down_in_order(ctx: &mut Ctx) -> Result<()> {
    let machine = ctx.healthy()?;
    machine.qmp().run("system_powerdown", json!({}))?;
    let machine = machine.wait_off(HEALTHY)?.power_on()?;
    let boot = machine.wait_healthy()?;
    ensure!(boot.reset.to_string().contains("clean"), "the boot before ended by: {}", boot.reset);
    Ok(())
}
