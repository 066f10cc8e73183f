//! `/run/rustiot/provision.json`: what provisioning did on this start, and all it has to say.
//!
//! Contract: `docs/contracts/provision.md`. Written by the runs, read by `rustiot provision status` and health.

use rustiot_config::{Message, Origin, Severity};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Where the status is.
pub const STATUS: &str = "/run/rustiot/provision.json";

/// How one step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It was so already.
    Unchanged,
    /// It is so now.
    Done,
    /// Something was lost or is not as it should be, and the device goes on without.
    Degraded,
    /// It could not be done; it is tried again on the next start.
    Failed,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Its name.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// What was done or what is wrong; empty when there is nothing to say.
    pub detail: String,
    /// How long it took, in milliseconds.
    pub ms: u64,
}

/// The file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The host name in force.
    pub hostname: String,
    /// True when every step of every part that has run ended well.
    pub ok: bool,
    /// The steps in the order in which they ran.
    pub steps: Vec<Step>,
    /// What there is to say about the configuration.
    pub messages: Vec<Message>,
    /// Where each setting comes from that does not have its built-in default.
    pub origins: BTreeMap<String, Origin>,
    /// Names of the steps that the run which returned this ran; not in the file.
    #[serde(skip)]
    pub ran: Vec<String>,
}

impl Status {
    /// Puts a step in its place (a step that ran before is replaced) and says whether all is well.
    pub fn record(&mut self, step: Step) {
        self.ran.push(step.name.clone());
        match self.steps.iter_mut().find(|known| known.name == step.name) {
            Some(known) => *known = step,
            None => self.steps.push(step),
        }
        self.ok = self.steps.iter().all(|step| matches!(step.outcome, Outcome::Unchanged | Outcome::Done));
    }

    /// For people: one line per step and message.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!("host name {}\n", self.hostname);
        for Step { name, outcome, detail, ms } in &self.steps {
            let outcome = match outcome {
                Outcome::Unchanged => "ok",
                Outcome::Done => "done",
                Outcome::Degraded => "DEGRADED",
                Outcome::Failed => "FAILED",
            };
            let detail = if detail.is_empty() { String::new() } else { format!("  {detail}") };
            text.push_str(&format!("{name:<14} {outcome:<9}{ms:>6} ms{detail}\n"));
        }
        for message in &self.messages {
            text.push_str(&format!("{message}\n"));
        }
        if !self.messages.iter().any(|message| message.severity == Severity::Error) {
            text.push_str("configuration: no errors\n");
        }
        text
    }
}
