//! RAUC and systemd over D-Bus: verify, write, activate, and stop what cannot be cancelled otherwise.
//!
//! Uses the `rauc` crate's proxy. Never decides what to install. Called by the engine.

use std::time::Duration;

use ::rauc::{
    BundleFormat, InspectBundleArgs, InstallBundleArgs, InstallationResult, InstallerProxy, MarkState,
    Operation, SlotIdentifier, SlotInstallationStatus,
};
use futures_lite::StreamExt;
use rustiot_boot::Slot;
use zbus::names::BusName;
use zbus::proxy::CacheProperties;
use zbus::zvariant::OwnedObjectPath;
use zbus::{Connection, proxy};

use crate::bundle::{Image, Manifest};
use crate::failure::{Failure, Kind, classify};
use crate::ports::{Installer, Order};

/// How often RAUC is asked whether it still works, to notice that it died.
const ALIVE_EVERY: Duration = Duration::from_secs(2);
/// How often and how many times systemd is asked whether RAUC has stopped. Killed after 20 s by its unit, it is gone only
/// once the kernel has written what it had left for the slot.
const STOP_EVERY: Duration = Duration::from_millis(250);
const STOP_POLLS: u32 = 360;

/// What systemd answers about a unit that it has not loaded.
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";

#[proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait SystemdManager {
    fn stop_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn start_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn get_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;
}

#[proxy(interface = "org.freedesktop.systemd1.Unit", default_service = "org.freedesktop.systemd1")]
trait SystemdUnit {
    #[zbus(property)]
    fn active_state(&self) -> zbus::Result<String>;
}

/// RAUC on the system bus.
#[derive(Debug)]
pub(crate) struct Rauc {
    /// Asked directly, never from a cache: the answers decide.
    direct: InstallerProxy<'static>,
    /// Cached, for the stream of progress changes only.
    cached: InstallerProxy<'static>,
    manager: SystemdManagerProxy<'static>,
}

impl Rauc {
    /// RAUC and systemd as `connection` names them.
    pub(crate) async fn new(connection: &Connection) -> zbus::Result<Self> {
        Self::at(connection, "de.pengutronix.rauc", "org.freedesktop.systemd1").await
    }

    async fn at(connection: &Connection, rauc: &'static str, systemd: &'static str) -> zbus::Result<Self> {
        let rauc = BusName::try_from(rauc)?;
        Ok(Self {
            direct: InstallerProxy::builder(connection)
                .destination(rauc.clone())?
                .cache_properties(CacheProperties::No)
                .build()
                .await?,
            cached: InstallerProxy::builder(connection).destination(rauc)?.build().await?,
            manager: SystemdManagerProxy::builder(connection)
                .destination(systemd)?
                .cache_properties(CacheProperties::No)
                .build()
                .await?,
        })
    }

    /// Starts an orderly restart of the machine.
    pub(crate) async fn reboot(&self) -> Result<(), Failure> {
        match self.manager.start_unit("reboot.target", "replace-irreversibly").await {
            Ok(_) => Ok(()),
            Err(e) => Err(Failure::from_error(Kind::Installer, "systemd does not restart the machine", &e)
                .hint("`systemctl reboot` does the same by hand")),
        }
    }

    async fn start(&self, order: &Order) -> zbus::Result<()> {
        let mut args = InstallBundleArgs {
            transaction_id: Some(order.id.clone()),
            require_manifest_hash: Some(order.manifest_hash.clone()),
            ..InstallBundleArgs::default()
        };
        match self.direct.install_bundle(&order.source, args.clone()).await {
            // RAUC 1.13 does not know the option; what was written is compared afterwards in any case.
            Err(e) if text(&e).contains("Unsupported key") => {
                args.require_manifest_hash = None;
                self.direct.install_bundle(&order.source, args).await
            }
            other => other,
        }
    }
}

impl Installer for Rauc {
    async fn inspect(&self, source: &str) -> Result<Manifest, Failure> {
        let info =
            self.direct.inspect_bundle(source, InspectBundleArgs::default()).await.map_err(|e| match e {
                // The one thing that RAUC describes in a shape of its own.
                zbus::Error::Variant(_) => Failure::from_error(
                    Kind::BadManifest,
                    "not a RustIoT OS release: the bundle carries a hook or handler",
                    &e,
                )
                .hint("an OS bundle has a version and exactly the images root and boot, no hooks"),
                e => failure(source, &e),
            })?;
        let format = match info.bundle.format {
            BundleFormat::Plain => "plain",
            BundleFormat::Verity => "verity",
            BundleFormat::Crypt => "crypt",
        };
        Ok(Manifest {
            hash: info.manifest_hash,
            compatible: info.update.compatible,
            version: info.update.version,
            format: format.into(),
            has_code: info.hooks.is_some()
                || info.handler.is_some()
                || info.images.iter().any(|image| !image.hooks.is_empty()),
            images: info
                .images
                .into_iter()
                .map(|image| Image { class: image.slot_class, size: image.size.unwrap_or(0) })
                .collect(),
        })
    }

    async fn install(&self, order: &Order, progress: impl Fn(u8, &str)) -> Result<(), Failure> {
        let source = &order.source;
        let broken = |e: zbus::Error| failure(source, &e);
        // Listening begins before the order, or a quick refusal would be missed.
        let mut completed = self.direct.receive_completed().await.map_err(broken)?;
        let mut changes = self.cached.receive_progress_changed().await;
        self.start(order).await.map_err(broken)?;
        let mut alive = tokio::time::interval(ALIVE_EVERY);
        alive.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut idle = false;
        loop {
            tokio::select! {
                biased;
                Some(signal) = completed.next() => {
                    return match signal.args().map_err(broken)?.result {
                        InstallationResult::Success => Ok(()),
                        InstallationResult::Failure(_) => {
                            Err(classify(source, &self.direct.last_error().await.unwrap_or_default()))
                        }
                    };
                }
                Some(change) = changes.next() => {
                    if let Ok(p) = change.get().await {
                        progress(u8::try_from(p.percentage.clamp(0, 100)).unwrap_or(0), &p.message);
                    }
                }
                // Its messages come in order: had it completed, the signal above would have been seen first.
                () = std::future::ready(()), if idle => {
                    return Err(Failure::new(Kind::Interrupted, "RAUC died in the middle of the install")
                        .hint("see `journalctl -u rauc`"));
                }
                _ = alive.tick() => idle = !self.busy().await?,
            }
        }
    }

    async fn busy(&self) -> Result<bool, Failure> {
        Ok(self.direct.operation().await.map_err(|e| failure("", &e))? == Operation::Installing)
    }

    async fn written(&self, slot: Slot) -> Result<Option<String>, Failure> {
        let number = match slot {
            Slot::A => 0,
            Slot::B => 1,
        };
        let all = self.direct.get_slot_status().await.map_err(|e| failure("", &e))?;
        let hash = |class: &str| {
            let name = format!("{class}.{number}");
            let (_, info) = all.iter().find(|(slot, _)| *slot == name)?;
            if info.status == Some(SlotInstallationStatus::Ok) { info.bundle_hash.clone() } else { None }
        };
        let (root, boot) = (hash("root"), hash("boot"));
        Ok(if root == boot { root } else { None })
    }

    async fn activate(&self) -> Result<(), Failure> {
        match self.direct.mark(MarkState::Active, &SlotIdentifier::Other).await {
            Ok(_) => Ok(()),
            Err(e) => {
                let failure = failure("", &e);
                Err(match failure.kind {
                    Kind::Busy => failure,
                    _ => Failure { message: "RAUC could not activate the new release".into(), ..failure },
                })
            }
        }
    }

    async fn abort(&self) -> Result<(), Failure> {
        let stuck = |e: zbus::Error| {
            Failure::from_error(Kind::Installer, "systemd does not stop RAUC", &e)
                .hint("`systemctl stop rauc.service`, then cancel again")
        };
        let path = match self.manager.get_unit("rauc.service").await {
            Ok(path) => path,
            // Not loaded: it does not run.
            Err(zbus::Error::MethodError(name, ..)) if name.as_str() == NO_SUCH_UNIT => return Ok(()),
            Err(e) => return Err(stuck(e)),
        };
        self.manager.stop_unit("rauc.service", "replace").await.map_err(stuck)?;
        let unit = SystemdUnitProxy::builder(self.manager.inner().connection())
            .destination(self.manager.inner().destination().to_owned())
            .map_err(stuck)?
            .path(path)
            .map_err(stuck)?
            .cache_properties(CacheProperties::No)
            .build()
            .await
            .map_err(stuck)?;
        for _ in 0..STOP_POLLS {
            match unit.active_state().await.as_deref() {
                Ok("inactive" | "failed") | Err(_) => return Ok(()),
                Ok(_) => tokio::time::sleep(STOP_EVERY).await,
            }
        }
        Err(Failure::new(Kind::Installer, "RAUC does not stop").hint("`systemctl status rauc.service`"))
    }
}

/// What the peer said, without D-Bus' own words around it.
fn text(error: &zbus::Error) -> String {
    match error {
        zbus::Error::MethodError(_, Some(text), _) => text.clone(),
        other => other.to_string(),
    }
}

fn failure(source: &str, error: &zbus::Error) -> Failure {
    match error {
        zbus::Error::MethodError(name, Some(text), _) if name.as_str().contains("GDBus") => {
            classify(source, text)
        }
        zbus::Error::MethodError(name, Some(text), _) if name.as_str().contains("pengutronix") => {
            classify(source, text)
        }
        other => Failure::from_error(Kind::Installer, "RAUC does not answer as it should", other)
            .hint("see `systemctl status rauc.service` and `journalctl -u rauc`"),
    }
}

#[cfg(test)]
mod tests;
