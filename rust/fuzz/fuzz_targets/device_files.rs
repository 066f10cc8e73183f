//! Small files of a device, after a power cut or in whatever state: what is read from them is written and read again as
//! the same, and keeps to its form. Not here: the ledger, `rustiot.toml`, init's configuration, which have a target each.
#![no_main]

use std::fmt::Debug;

use rustiot_boot::{Record, Slot, step};
use rustiot_update::{Check, HistoryEntry, Transaction, Why};
use serde::Serialize;
use serde::de::DeserializeOwned;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    // /run/rustiot/boot.json: its event goes through the policy, and what that keeps can be read again.
    if let Ok(report) = rustiot_slots::parse_boot_report(bytes)
        && let Ok((record, _)) = step(&Record::fresh(Slot::A), report.event())
    {
        let kept = serde_json::to_vec(&record).expect("a record can be written");
        assert_eq!(rustiot_slots::parse_record(&kept).expect("and read"), record);
    }

    // /state/update/{transaction,why,check}.json, history.jsonl
    same_again::<Transaction>(bytes);
    same_again::<Why>(bytes);
    same_again::<Check>(bytes);
    bytes.split(|byte| *byte == b'\n').for_each(same_again::<HistoryEntry>);

    // /state/identity/machine-id
    if let Some(id) = rustiot_init::identity::parse(bytes) {
        assert!(id.len() == 32 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')), "{id}");
        assert!(id.bytes().any(|byte| byte != b'0'));
        assert_eq!(bytes.strip_suffix(b"\n").unwrap_or(bytes), id.as_bytes());
    }

    // /sys/class/block/*/{uevent,size}, a zero byte between them
    let text = String::from_utf8_lossy(bytes);
    let (uevent, size) = text.split_once('\0').unwrap_or((&text, "8"));
    if let Some(partition) = rustiot_init::disk::parse_uevent(uevent, size) {
        assert_eq!(partition.bytes % 512, 0);
        let says = |key: &str, value: &str| uevent.lines().any(|line| line == format!("{key}={value}"));
        assert!(says("DEVNAME", &partition.device));
        assert!(partition.label.is_empty() || says("PARTNAME", &partition.label));
        let numbers = partition.devno.split_once(':').expect("major:minor");
        assert!(numbers.0.parse::<u32>().is_ok() && numbers.1.parse::<u32>().is_ok());
    }

    // A record of /dev/kmsg
    if let Some(line) = rustiot_init::rescue::kmsg_line(bytes) {
        assert!(line.starts_with('[') && line.len() <= 240, "{line}");
        assert!(!line.chars().any(char::is_control), "{line:?}");
    }
});

fn same_again<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    if let Ok(value) = serde_json::from_slice::<T>(bytes) {
        let written = serde_json::to_vec(&value).expect("what was read can be written");
        assert_eq!(serde_json::from_slice::<T>(&written).expect("and read again"), value);
    }
}
