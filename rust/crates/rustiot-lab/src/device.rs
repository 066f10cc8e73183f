//! What a RustIoT device says of itself, asked from inside; and waiting for it to say something
//! else. Never trusts a single answer across a reboot: every wait asks again until its deadline.

use anyhow::{Context, Result, anyhow, bail};
use rustiot_boot::{Record, Slot};
use serde::Deserialize;
use std::time::{Duration, Instant};
use testbed::Machine;

/// A command inside, on a machine that emulates and shares its processors.
pub const COMMAND: Duration = Duration::from_secs(120);
/// From power-on or reset to healthy, emulated, two side by side.
pub const HEALTHY: Duration = Duration::from_secs(600);
/// Between two questions to a device.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// `/run/rustiot/boot.json`: how this boot came about. See `docs/contracts/boot.md`.
#[derive(Debug, Clone, Deserialize)]
pub struct BootInfo {
    /// The slot that runs.
    pub slot: Slot,
    /// The kernel's random id of this boot.
    pub boot_id: String,
    /// `normal`, `trial`, `late-fallback`, `rescue`.
    pub kind: String,
    /// Why the boot before ended.
    #[serde(default)]
    pub reset: serde_json::Value,
    /// Milliseconds of the boot's stages, since the kernel's start.
    #[serde(default)]
    pub timings_ms: serde_json::Value,
    /// Everything as it is.
    #[serde(skip)]
    pub raw: serde_json::Value,
}

/// What a machine of ours can be asked beyond what any machine can.
pub trait Device {
    /// Runs a script inside that must succeed; its output without the last line end.
    fn sh(&self, script: &str) -> Result<String>;
    /// How this boot came about.
    fn boot(&self) -> Result<BootInfo>;
    /// The running release's version.
    fn version(&self) -> Result<String>;
    /// The boot ledger.
    fn ledger(&self) -> Result<Record>;
    /// Waits for `boot-complete.target`: all required checks of this boot passed.
    fn wait_healthy(&self) -> Result<BootInfo>;
    /// Waits until `what` is true; asks again and again, across reboots.
    fn wait_until(
        &self,
        what: &str,
        within: Duration,
        is: &mut dyn FnMut(&Machine) -> Result<bool>,
    ) -> Result<()>;
    /// Waits until a boot other than `before` has become healthy.
    fn wait_next_healthy(&self, before: &BootInfo) -> Result<BootInfo>;
    /// Waits until no update is under way and the booted slot is the committed one.
    fn wait_settled(&self) -> Result<Record>;
    /// Asks the device to install the bundle at `url` and waits until the command returns.
    fn install(&self, url: &str) -> Result<testbed::Output>;
}

impl Device for Machine {
    fn sh(&self, script: &str) -> Result<String> {
        let output = self.run(script, COMMAND)?;
        if !output.ok() {
            bail!("`{script}` ended with {}: {}{}", output.status, output.stdout, output.stderr);
        }
        Ok(output.stdout.trim_end().to_string())
    }

    fn boot(&self) -> Result<BootInfo> {
        boot_of(&self.sh("cat /run/rustiot/boot.json")?)
    }

    fn version(&self) -> Result<String> {
        let text = self.sh("cat /usr/lib/rustiot/release.json")?;
        let release: serde_json::Value = serde_json::from_str(&text).context("release.json")?;
        let version = release.get("version").and_then(|version| version.as_str());
        Ok(version.ok_or_else(|| anyhow!("release.json has no version: {text}"))?.to_string())
    }

    fn ledger(&self) -> Result<Record> {
        // The device's own files rather than a command's view of them: nothing is left out.
        let copy = testbed::Scratch::new(&std::env::temp_dir(), "rustiot-ledger")?;
        for name in ["ledger.0", "ledger.1"] {
            if let Ok(bytes) = self.get(&format!("/state/boot/{name}"), COMMAND) {
                std::fs::write(copy.path().join(name), bytes).context("cannot copy the ledger")?;
            }
        }
        let read = rustiot_slots::read_record(copy.path());
        read.record.ok_or_else(|| anyhow!("the device has no boot ledger: {:?}", read.complaints))
    }

    fn wait_healthy(&self) -> Result<BootInfo> {
        self.wait_until("a healthy boot", HEALTHY, &mut |machine| {
            Ok(machine.run("systemctl is-active --quiet boot-complete.target", COMMAND)?.ok())
        })?;
        self.boot()
    }

    fn wait_until(
        &self,
        what: &str,
        within: Duration,
        is: &mut dyn FnMut(&Machine) -> Result<bool>,
    ) -> Result<()> {
        let began = Instant::now();
        loop {
            // A device that reboots right now cannot answer: that is a no.
            let answer = is(self);
            if matches!(answer, Ok(true)) {
                return Ok(());
            }
            if self.qmp().closed() {
                bail!("the machine ended while waiting for {what}: {}", self.console().tail());
            }
            if began.elapsed() > within {
                let said = answer.err().map(|e| format!("{e:#}")).unwrap_or_default();
                let (waited, tail) = (within.as_secs(), self.console().tail());
                bail!("waited {waited} s for {what}; {said}; the console says: {tail}");
            }
            std::thread::sleep(ASK_AGAIN);
        }
    }

    fn wait_next_healthy(&self, before: &BootInfo) -> Result<BootInfo> {
        self.wait_until("the next healthy boot", HEALTHY, &mut |machine| {
            if machine.boot()?.boot_id == before.boot_id {
                return Ok(false);
            }
            Ok(machine.run("systemctl is-active --quiet boot-complete.target", COMMAND)?.ok())
        })?;
        self.boot()
    }

    fn wait_settled(&self) -> Result<Record> {
        self.wait_until("the booted slot to be committed", HEALTHY, &mut |machine| {
            let (record, boot) = (machine.ledger()?, machine.boot()?);
            let stable = record.boots.iter().any(|entry| entry.boot_id == boot.boot_id && entry.stable);
            Ok(record.phase.name() == "idle" && record.committed == boot.slot && stable)
        })?;
        self.ledger()
    }

    fn install(&self, url: &str) -> Result<testbed::Output> {
        Ok(self.run(&format!("rustiot update install {url}"), HEALTHY)?)
    }
}

/// Reads `boot.json`.
pub fn boot_of(text: &str) -> Result<BootInfo> {
    let raw: serde_json::Value = serde_json::from_str(text).context("boot.json is no JSON")?;
    let info: BootInfo = serde_json::from_value(raw.clone()).context("boot.json")?;
    Ok(BootInfo { raw, ..info })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_json_is_read_with_what_we_do_not_know() {
        let text = r#"{"slot":"b","boot_id":"x","kind":"trial","new":1,"timings_ms":{"exec":3}}"#;
        let info = boot_of(text).unwrap();
        assert_eq!((info.slot, &*info.kind), (Slot::B, "trial"));
        assert_eq!(info.raw.get("new").and_then(serde_json::Value::as_i64), Some(1));
    }

    #[test]
    fn a_boot_json_without_a_slot_is_an_error() {
        assert!(boot_of(r#"{"boot_id":"x"}"#).is_err());
        assert!(boot_of("").is_err());
    }
}
