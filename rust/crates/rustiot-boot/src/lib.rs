//! The boot policy of the two slots: which one boots, how often a new release may try, when it is committed,
//! when the old one comes back, and which release is known bad.
//!
//! Pure: no clock, no disk, no bus. `rustiot-slots` loads the record, calls [`step`], persists the new record,
//! runs the effects and feeds their outcome back; `rustiot-init` and RAUC's custom backend do so through it.
//! Contract: `docs/contracts/boot.md`.

mod policy;
mod record;

pub use policy::{Effect, Event, Refused, step};
pub use record::{
    ATTEMPTS_MAX, BOOTS_MAX, BootEntry, BootKind, CUT_ATTEMPTS_MAX, Gate, INTERRUPTED_MAX, LATE_MAX,
    LINE_MAX, LOG_LINES_MAX, NotASlot, Phase, REJECTED_MAX, Record, Rejected, Release, ResetReason,
    Selection, Slot, SlotState, TAILS_MAX, Transaction,
};
