//! Does the device run on its battery? As the kernel's power supplies say (Documentation/ABI/testing/sysfs-class-power).
//!
//! Reads sysfs, never writes. Called by the engine's machine before each stage.

use std::path::Path;

/// Where the kernel shows them.
pub(crate) const SUPPLIES: &str = "/sys/class/power_supply";

/// Whether a battery of the device is being used up and nothing outside supplies it. A board that says nothing of its
/// supplies is taken for one with external power.
pub(crate) fn on_battery(dir: &Path) -> bool {
    let Ok(supplies) = std::fs::read_dir(dir) else { return false };
    let mut used_up = false;
    for supply in supplies.flatten().map(|entry| entry.path()) {
        let said = |name: &str| {
            std::fs::read_to_string(supply.join(name)).map(|text| text.trim().to_owned()).unwrap_or_default()
        };
        match said("type").as_str() {
            // Not one of a keyboard or a headset.
            "Battery" if said("scope") != "Device" => used_up |= said("status") == "Discharging",
            // Mains, USB, Wireless, UPS' own input: something from outside, if it is there now.
            "Mains" | "USB" | "Wireless" if matches!(said("online").as_str(), "1" | "2") => return false,
            _ => {}
        }
    }
    used_up
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests write files")]
mod tests {
    use super::*;

    #[test]
    fn a_battery_counts_while_it_is_used_up_and_nothing_supplies_it() {
        let dir = tempfile::tempdir().unwrap();
        let put = |supply: &str, files: &[(&str, &str)]| {
            std::fs::create_dir_all(dir.path().join(supply)).unwrap();
            for (name, text) in files {
                std::fs::write(dir.path().join(supply).join(name), format!("{text}\n")).unwrap();
            }
        };
        assert!(!on_battery(&dir.path().join("none")) && !on_battery(dir.path()));
        put("hid-mouse", &[("type", "Battery"), ("scope", "Device"), ("status", "Discharging")]);
        assert!(!on_battery(dir.path()), "a mouse");
        put("BAT0", &[("type", "Battery"), ("status", "Discharging")]);
        assert!(on_battery(dir.path()));
        put("AC", &[("type", "Mains"), ("online", "0")]);
        assert!(on_battery(dir.path()));
        put("AC", &[("online", "1")]);
        assert!(!on_battery(dir.path()));
        put("AC", &[("online", "0")]);
        put("BAT0", &[("status", "Charging")]);
        assert!(!on_battery(dir.path()));
    }
}
