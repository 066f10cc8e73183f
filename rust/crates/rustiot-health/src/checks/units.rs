//! Units: everything that `rustiot-required.target` names, and the owner's list, must be active and stay so.
//!
//! The target is a list, not a stage of the boot: nothing starts it. A unit that is missing from the image fails like
//! one that crashed; so does the list itself. Other failed units are a warning.

use std::collections::BTreeMap;

use crate::check::Verdict;
use crate::systemd::{Systemd, Unit};

/// The unit whose dependencies are the list.
pub const LIST: &str = "rustiot-required.target";

/// The unit whose start is the end of a boot; [`LIST`] names it.
pub const BOOT_ENDS_AT: &str = "multi-user.target";

/// The unit that the gate runs in.
const OURSELVES: &str = "rustiot-health.service";

/// Remembers how often each required service had been restarted at the last look.
#[derive(Debug, Default)]
pub struct Units {
    restarts: BTreeMap<String, u32>,
    for_good: bool,
}

impl Units {
    /// Looks at the required units: those of [`LIST`] and `more`.
    pub async fn required(&mut self, systemd: &Systemd, more: &[String]) -> Verdict {
        self.for_good = false;
        match self.look(systemd, more).await {
            Ok(verdict) => verdict,
            Err(error) => Verdict::Fail(format!("systemd does not answer: {error}")),
        }
    }

    /// Whether at the last look a unit had failed that systemd will not start again by itself.
    #[must_use]
    pub fn failed_for_good(&self) -> bool {
        self.for_good
    }

    async fn look(&mut self, systemd: &Systemd, more: &[String]) -> zbus::Result<Verdict> {
        let list = systemd.units(&[LIST.to_owned()]).await?;
        let Some(list) = list.iter().find(|u| u.load == "loaded") else {
            self.for_good = true;
            return Ok(Verdict::Fail(format!("{LIST} is not in this image")));
        };
        let mut names = systemd.dependencies(list).await?;
        names.extend_from_slice(more);
        names.sort();
        names.dedup();
        let (mut failed, mut pending) = (Vec::new(), Vec::new());
        let mut target_waits = false;
        for unit in systemd.units(&names).await? {
            match judge(&unit) {
                Verdict::Fail(why) => {
                    self.for_good |= for_good(&unit);
                    failed.push(why);
                }
                Verdict::Pending(why) => {
                    target_waits |= unit.name.ends_with(".target");
                    pending.push(why);
                }
                Verdict::Pass | Verdict::Warn(_) => {}
            }
            if unit.name.ends_with(".service") && unit.load == "loaded" {
                let now = systemd.restarts(&unit).await?;
                let before = self.restarts.insert(unit.name.clone(), now);
                if before.is_some_and(|before| now > before) {
                    failed.push(format!("{} restarted ({now} times by now)", unit.name));
                }
            }
        }
        if target_waits {
            // A target waits for others: name them, but for the gate, which waits for the target.
            let starting = systemd.starting_units().await?.into_iter().map(|unit| unit.name);
            pending.extend(
                starting
                    .filter(|name| name != OURSELVES && !names.contains(name))
                    .map(|n| format!("{n} is starting")),
            );
        }
        Ok(if !failed.is_empty() {
            Verdict::Fail(failed.join(", "))
        } else if !pending.is_empty() {
            Verdict::Pending(pending.join(", "))
        } else {
            Verdict::Pass
        })
    }
}

/// Warns of failed units, and of the owner's `advisory` ones that are not active.
pub async fn advisory(systemd: &Systemd, advisory: &[String]) -> Verdict {
    let look = async {
        let mut bad: Vec<String> =
            systemd.failed_units().await?.into_iter().map(|u| format!("{} failed", u.name)).collect();
        if !advisory.is_empty() {
            let units = systemd.units(advisory).await?;
            bad.extend(units.iter().filter_map(|u| judge(u).detail().map(str::to_owned)));
        }
        bad.sort();
        bad.dedup();
        zbus::Result::Ok(bad)
    };
    match look.await {
        Ok(bad) if bad.is_empty() => Verdict::Pass,
        Ok(bad) => Verdict::Warn(bad.join(", ")),
        Err(error) => Verdict::Warn(format!("systemd does not answer: {error}")),
    }
}

/// Whether a unit that is not as it should be stays so: it is not in the image, or it failed and no restart is pending
/// (none is wanted, or the start limit is hit). A service that will be restarted is `activating`, never `failed`.
fn for_good(unit: &Unit) -> bool {
    unit.load != "loaded" || unit.active == "failed"
}

/// What a unit's state means.
fn judge(unit: &Unit) -> Verdict {
    match (unit.load.as_str(), unit.active.as_str(), unit.sub.as_str()) {
        ("loaded", "active" | "reloading" | "refreshing", _) => Verdict::Pass,
        ("loaded", "activating", "auto-restart") => Verdict::Fail(format!("{} keeps failing", unit.name)),
        ("loaded", "activating", _) => Verdict::Pending(format!("{} is starting", unit.name)),
        ("loaded", "inactive", _) => Verdict::Pending(format!("{} has not been started", unit.name)),
        ("loaded", state, _) => Verdict::Fail(format!("{} is {state}", unit.name)),
        (load, _, _) => Verdict::Fail(format!("{} is {load}", unit.name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{FakeSystemd, serve};

    fn table() -> Vec<(&'static str, &'static str, &'static str, &'static str)> {
        vec![
            ("a.service", "loaded", "active", "running"),
            ("b.service", "loaded", "active", "exited"),
            (LIST, "loaded", "inactive", "dead"),
        ]
    }

    async fn look(
        units: &[(&'static str, &'static str, &'static str, &'static str)],
        more: &[&str],
    ) -> Verdict {
        let fake = FakeSystemd::new(units, &["a.service", "b.service"]);
        let (_server, client) = serve(fake).await;
        let systemd = Systemd::peer(client);
        let more: Vec<String> = more.iter().map(|s| (*s).to_owned()).collect();
        Units::default().required(&systemd, &more).await
    }

    /// Or the gate would not wait for what it listens to.
    #[test]
    fn the_list_names_the_end_of_the_boot() {
        let list = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../../conf/rootfs/usr/lib/systemd/system")
            .join(LIST);
        let list = std::fs::read_to_string(list).unwrap();
        assert!(list.lines().any(|line| line == format!("Wants={BOOT_ENDS_AT}")), "{list}");
    }

    #[tokio::test]
    async fn active_units_pass_and_one_that_is_not_in_the_image_does_not() {
        assert_eq!(look(&table(), &[]).await, Verdict::Pass);
        assert_eq!(
            look(&table(), &["gone.service"]).await,
            Verdict::Fail("gone.service is not-found".into())
        );
        let without_list = &table()[..2];
        assert_eq!(
            look(without_list, &[]).await,
            Verdict::Fail("rustiot-required.target is not in this image".into())
        );
    }

    #[tokio::test]
    async fn a_failed_unit_fails_and_a_starting_one_is_waited_for() {
        for (active, sub, expected) in [
            ("failed", "failed", Verdict::Fail("a.service is failed".into())),
            ("activating", "auto-restart", Verdict::Fail("a.service keeps failing".into())),
            ("activating", "start", Verdict::Pending("a.service is starting".into())),
            ("inactive", "dead", Verdict::Pending("a.service has not been started".into())),
            ("deactivating", "stop", Verdict::Fail("a.service is deactivating".into())),
        ] {
            let mut units = table();
            units[0] = ("a.service", "loaded", active, sub);
            assert_eq!(look(&units, &[]).await, expected);
        }
    }

    #[tokio::test]
    async fn a_failure_without_a_pending_restart_is_for_good() {
        let found = async |units: &[(&'static str, &'static str, &'static str, &'static str)]| {
            let (_server, client) = serve(FakeSystemd::new(units, &["a.service", "b.service"])).await;
            let mut required = Units::default();
            let _ = required.required(&Systemd::peer(client), &[]).await;
            required.failed_for_good()
        };
        assert!(!found(&table()).await);
        for (load, active, sub, expected) in [
            ("loaded", "failed", "failed", true),
            ("masked", "inactive", "dead", true),
            ("not-found", "inactive", "dead", true),
            ("loaded", "activating", "auto-restart", false),
            ("loaded", "inactive", "dead", false),
            ("loaded", "deactivating", "stop", false),
        ] {
            let mut units = table();
            units[0] = ("a.service", load, active, sub);
            assert_eq!(found(&units).await, expected, "{load} {active} {sub}");
        }
        assert!(found(&table()[..2]).await, "the list itself is not in the image");
    }

    #[tokio::test]
    async fn a_target_that_is_not_reached_is_told_with_what_it_waits_for() {
        let mut units = table();
        units[1] = ("b.service", "loaded", "active", "running");
        units.push(("multi-user.target", "loaded", "inactive", "dead"));
        units.push(("slow.service", "loaded", "activating", "start"));
        units.push((OURSELVES, "loaded", "activating", "start"));
        assert_eq!(
            look(&units, &["multi-user.target"]).await,
            Verdict::Pending("multi-user.target has not been started, slow.service is starting".into())
        );
    }

    #[tokio::test]
    async fn a_restart_between_two_looks_is_seen() {
        let fake = FakeSystemd::new(&table(), &["a.service"]);
        let restarts = fake.restarts();
        let (_server, client) = serve(fake).await;
        let systemd = Systemd::peer(client);
        let mut units = Units::default();
        restarts.store(3, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(
            units.required(&systemd, &[]).await,
            Verdict::Pass,
            "what was before the first look is past"
        );
        restarts.store(4, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(
            units.required(&systemd, &[]).await,
            Verdict::Fail("a.service restarted (4 times by now)".into())
        );
        assert_eq!(units.required(&systemd, &[]).await, Verdict::Pass);
    }

    #[tokio::test]
    async fn other_failed_units_are_a_warning() {
        let mut units = table();
        units.push(("c.service", "loaded", "failed", "failed"));
        let (_server, client) = serve(FakeSystemd::new(&units, &[])).await;
        let systemd = Systemd::peer(client);
        assert_eq!(advisory(&systemd, &[]).await, Verdict::Warn("c.service failed".into()));
        let wanted = vec!["d.service".to_owned()];
        assert_eq!(
            advisory(&systemd, &wanted).await,
            Verdict::Warn("c.service failed, d.service is not-found".into())
        );
    }

    #[tokio::test]
    async fn a_systemd_that_is_gone_fails() {
        let (server, client) = serve(FakeSystemd::new(&table(), &[])).await;
        server.close().await.unwrap();
        let verdict = Units::default().required(&Systemd::peer(client), &[]).await;
        assert!(matches!(&verdict, Verdict::Fail(why) if why.contains("does not answer")), "{verdict:?}");
    }
}
