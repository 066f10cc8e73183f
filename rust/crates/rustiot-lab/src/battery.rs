//! A battery and a mains adapter for a PC in QEMU, which has none of its own: an ACPI table that the machine is started
//! with, and the switch between the two, which only the workstation can reach.
//!
//! The switch is the scratch register of the first serial port, a byte that nothing of it depends on (TI PC16550D data
//! sheet, 8.9); Linux uses it once, while it looks for the port, and puts back what was there.

use acpi_tables::aml::{
    Device, EISAName, Equal, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, If, Method,
    Name, ONE, OpRegion, OpRegionSpace, Package, Path, Return, Scope, ZERO,
};
use acpi_tables::{Aml, sdt::Sdt};
use anyhow::{Context as _, Result};
use testbed::{Machine, Off};

/// The scratch register of COM1. 0, as after a reset: on mains.
const SWITCH: u16 = 0x3ff;
const TABLE: &str = "battery.aml";

/// Gives a machine that is off the battery; it is on mains.
///
/// # Errors
/// The table cannot be written.
pub(crate) fn insert(machine: &mut Off) -> Result<()> {
    let path = machine.dir().join(TABLE);
    std::fs::write(&path, table().as_slice()).context("cannot write the battery's table")?;
    machine.spec_mut().args.extend(["-acpitable".into(), format!("file={}", path.display())]);
    Ok(())
}

/// Unplugs the mains of a running machine, or plugs it in.
///
/// # Errors
/// QEMU does not answer.
pub(crate) fn unplug(machine: &Machine, unplugged: bool) -> Result<()> {
    machine.qmp().human(&format!("o /b {SWITCH:#x} {}", u8::from(unplugged)))?;
    Ok(())
}

/// ACPI 6.5: 10.2.2 (control method batteries), 10.3.1 (power source objects).
fn table() -> Sdt {
    let switch = Path::new("SWCH");
    let port = OpRegion::new(Path::new("PORT"), OpRegionSpace::SystemIO, &SWITCH, &ONE);
    let field = Field::new(
        Path::new("PORT"),
        FieldAccessType::Byte,
        FieldLockRule::NoLock,
        FieldUpdateRule::Preserve,
        vec![FieldEntry::Named(*b"SWCH", 8)],
    );
    let consumers = Package::new(vec![&"\\_SB_"]);

    let mains = Equal::new(&switch, &ZERO);
    let online = Return::new(&mains);
    let adapter_id = Name::new(Path::new("_HID"), &"ACPI0003");
    let supplies = Name::new(Path::new("_PCL"), &consumers);
    let source = Method::new(Path::new("_PSR"), 0, false, vec![&online]);
    let adapter = Device::new(Path::new("ADP0"), vec![&adapter_id, &supplies, &source]);

    // In mW, mWh and mV: full is 50 Wh, it holds half of that and gives or takes 5 W.
    let (power, full, half, rate, volts) = (ZERO, 50_000_u16, 25_000_u16, 5_000_u16, 12_000_u16);
    let (low, grain, state_present) = (2_000_u16, 10_u16, 0x1f_u8);
    let (discharging, charging) = (ONE, 2_u8);
    let information = Package::new(vec![
        &power, &full, &full, &ONE, &volts, &low, &low, &grain, &grain, &"lab", &"1", &"LION", &"RustIoT",
    ]);
    let gives = Package::new(vec![&discharging, &rate, &half, &volts]);
    let takes = Package::new(vec![&charging, &rate, &half, &volts]);
    let (gives, takes) = (Return::new(&gives), Return::new(&takes));
    let unplugged = Equal::new(&switch, &ONE);
    let unplugged = If::new(&unplugged, vec![&gives]);
    let hardware = EISAName::new("PNP0C0A");
    let battery_id = Name::new(Path::new("_HID"), &hardware);
    let present = Name::new(Path::new("_STA"), &state_present);
    let information = Name::new(Path::new("_BIF"), &information);
    let status = Method::new(Path::new("_BST"), 0, false, vec![&unplugged, &takes]);
    let battery =
        Device::new(Path::new("BAT0"), vec![&battery_id, &present, &supplies, &information, &status]);

    let mut table = Sdt::new(*b"SSDT", 36, 2, *b"RUSTIO", *b"BATTERY ", 1);
    Scope::new(Path::new("\\_SB_"), vec![&port, &field, &adapter, &battery]).to_aml_bytes(&mut table);
    table
}
