//! Firmware that has two copies of itself, beside the slots: NVIDIA's boot chains.
//!
//! Only reads what the firmware says in its variables; never moves a chain (docs/decisions/0034). Called by
//! [`crate::UefiLoader`]. Source: edk2-nvidia, `BootChainDxe`.

use rustiot_boot::Slot;

/// `gNVIDIAPublicVariableGuid`, as efivarfs spells it in file names.
pub const NVIDIA: &str = "781e084c-a330-417c-b678-38e696380cb9";
/// The chain that runs.
pub const CURRENT: &str = "BootChainFwCurrent";
/// The chain that is asked for; deleted by the firmware when it is done with it.
pub const NEXT: &str = "BootChainFwNext";
/// How the last move ended; the firmware starts no other one before it is deleted.
pub const STATUS: &str = "BootChainFwStatus";

/// Which copy of the firmware runs, and what is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Firmware {
    /// The copy that runs. It has the letters of the slots and nothing to do with them.
    pub current: Slot,
    /// The copy that the next start is asked to move to.
    pub next: Option<Slot>,
    /// How the last move ended, for people; none was made, or its result was taken note of.
    pub last_move: Option<&'static str>,
}

/// From the data of the three variables. Without a current chain there is none.
#[must_use]
pub fn parse(current: Option<&[u8]>, next: Option<&[u8]>, status: Option<&[u8]>) -> Option<Firmware> {
    let number = |bytes: &[u8]| bytes.try_into().ok().map(u32::from_le_bytes);
    let chain = |bytes| match number(bytes) {
        Some(0) => Some(Slot::A),
        Some(1) => Some(Slot::B),
        _ => None,
    };
    Some(Firmware {
        current: chain(current?)?,
        next: next.and_then(chain),
        last_move: status.map(|bytes| match number(bytes) {
            Some(0) => "succeeded",
            Some(1) => "is under way",
            Some(2) => "was not needed: the chain runs",
            Some(3) => "gave way to a capsule",
            Some(5) => "failed: the chain did not start in three attempts",
            Some(9) => "was refused: no such chain",
            Some(12) => "failed: the chain did not start",
            Some(14) => "was refused: a slot's one-shot was pending",
            Some(17) => "was refused: the firmware repairs its own copy first",
            _ => "failed inside the firmware",
        }),
    })
}
