//! What the owner does to a device: configuration with mistakes, two devices from one image.

use crate::ctx::Ctx;
use crate::device::Device;
use crate::runner::{LabTest, Tag};
use anyhow::{Result, ensure};
use testbed::Machine;

pub(super) const TESTS: &[LabTest] = &[
    LabTest {
        name: "mistakes_in_the_configuration_cost_nothing",
        boards: &[],
        promise: "A typo, a wrong type and an unknown key are named with line and column; everything else applies, and the device is reachable.",
        tags: &[Tag::QuickOnFirst],
        run: mistakes_in_the_configuration_cost_nothing,
    },
    LabTest {
        name: "a_configuration_that_is_no_toml_keeps_the_last_good_one",
        boards: &[],
        promise: "Half a file, or bytes that are no text, keep the last good values; the device is reachable.",
        tags: &[],
        run: a_configuration_that_is_no_toml_keeps_the_last_good_one,
    },
    LabTest {
        name: "two_devices_from_one_image_are_different",
        boards: &[],
        promise: "Machine id, host name, device key and host keys of two devices from one image differ.",
        tags: &[Tag::QuickOnFirst],
        run: two_devices_from_one_image_are_different,
    },
];

fn mistakes_in_the_configuration_cost_nothing(ctx: &mut Ctx) -> Result<()> {
    let good = ctx.lab.config()?;
    let text = format!("hostnmae = \"typo\"\nhostname = 7\n{good}[time]\nservers = \"no list\"\n");
    let machine = ctx.fresh_with_config(text.as_bytes())?.power_on()?;
    machine.wait_healthy()?;
    let said = machine.sh("rustiot provision status")?;
    for words in ["rustiot.toml", "hostnmae", "hostname", "servers", "rustiot.toml:1:", "rustiot.toml:2:"] {
        ensure!(said.contains(words), "nothing about {words}: {said}");
    }
    let output = machine.ssh(&ctx.lab.ssh_key()?.private, "true")?;
    ensure!(output.ok(), "not reachable: {}", output.stderr);
    Ok(())
}

fn a_configuration_that_is_no_toml_keeps_the_last_good_one(ctx: &mut Ctx) -> Result<()> {
    let good = ctx.lab.config()?;
    let machine = ctx.fresh_with_config(format!("hostname = \"kept\"\n{good}").as_bytes())?.power_on()?;
    machine.wait_healthy()?;
    ensure!(machine.sh("hostname")? == "kept", "the host name was not applied");
    for (bytes, what) in
        [("printf 'hostname = \"ha'", "half a file"), ("printf '\\377\\376\\000'", "no text")]
    {
        let before = machine.boot()?;
        machine.sh(&format!(
            "mount -o remount,rw /config && {bytes} > /config/rustiot.toml && mount -o remount,ro /config && sync"
        ))?;
        machine.start("systemctl reboot", crate::COMMAND)?;
        machine.wait_next_healthy(&before)?;
        ensure!(machine.sh("hostname")? == "kept", "{what}: the host name is {}", machine.sh("hostname")?);
        let output = machine.ssh(&ctx.lab.ssh_key()?.private, "true")?;
        ensure!(output.ok(), "{what}: not reachable: {}", output.stderr);
    }
    Ok(())
}

fn two_devices_from_one_image_are_different(ctx: &mut Ctx) -> Result<()> {
    let identity = |machine: &Machine| -> Result<Vec<String>> {
        let files = ["/etc/machine-id", "/state/identity/device.pub", "/state/ssh/ssh_host_ed25519_key.pub"];
        let mut found = vec![machine.sh("hostname")?];
        for file in files {
            found.push(machine.sh(&format!("cat {file}"))?);
        }
        Ok(found)
    };
    // The one that all tests share was fresh from this image once, too.
    let first = identity(&ctx.healthy()?)?;
    let machine = ctx.fresh(Some(ctx.fixtures.medium()))?.power_on()?;
    machine.wait_healthy()?;
    let second = identity(&machine)?;
    for (one, two) in first.iter().zip(&second) {
        ensure!(!one.is_empty() && one != two, "both have {one}");
    }
    Ok(())
}
