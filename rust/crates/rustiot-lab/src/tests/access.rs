//! Who may do what: over the network, at the bus, at the machine itself.

use crate::ctx::Ctx;
use crate::device::{Device, HEALTHY};
use crate::runner::{LabTest, Tag};
use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use std::process::Command;

pub(super) const TESTS: &[LabTest] = &[
    LabTest {
        name: "local_users_give_no_orders",
        boards: &[],
        promise: "A user who is not root and not of the group rustiot reads the update service's state and gives it, RAUC and systemd no orders.",
        tags: &[Tag::QuickOnFirst],
        run: local_users_give_no_orders,
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

fn local_users_give_no_orders(ctx: &mut Ctx) -> Result<()> {
    let machine = ctx.healthy()?;
    let before = (machine.boot()?.boot_id, machine.sh("rustiot slots --json")?);
    let as_nobody = |call: &str| {
        machine.sh(&format!(
            "setpriv --reuid=65534 --regid=65534 --clear-groups busctl {call} 2>&1; echo exit code $?"
        ))
    };
    const UPDATE: &str = "org.rustiot.Update1 /org/rustiot/Update1 org.rustiot.Update1";
    const RAUC: &str = "de.pengutronix.rauc / de.pengutronix.rauc.Installer";
    const SYSTEMD: &str =
        "org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager";
    for order in [
        format!("{UPDATE} Install 'a{{sv}}' 1 source s /data/x.raucb"),
        format!("{UPDATE} Cancel"),
        format!("{UPDATE} Activate"),
        format!("{UPDATE} Reboot"),
        format!("{RAUC} InstallBundle 'sa{{sv}}' /data/x.raucb 0"),
        format!("{RAUC} Mark ss bad booted"),
        format!("{SYSTEMD} Reboot"),
        format!("{SYSTEMD} StopUnit ss rustiot-watchdog.service replace"),
    ] {
        let said = as_nobody(&format!("call {order}"))?;
        let refused = ["Access denied", "not authorized", "authentication required", "AccessDenied"];
        ensure!(
            said.ends_with("exit code 1") && refused.iter().any(|words| said.contains(words)),
            "{order}: {said}"
        );
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
