//! The trait that a container engine implements to be driven by Docker's clients.
//!
//! It knows nothing of HTTP, JSON or query strings: the server checks and parses those, applies list and event filters,
//! makes Docker's texts, frames streams and computes rates. Implemented by `rustiot-engine`, and by the tests' engine in
//! memory.
//!
//! Rules for implementations:
//! - A container, image or network is named by `&str` as the client did (id, prefix of an id, name, with or without a
//!   slash): see [`crate::lookup`]. Errors name it as the client did.
//! - Calls that change something run to their end even if the client goes (the server spawns them). All others may be
//!   dropped at any `await`; streams are dropped when the client goes, and must then stop what feeds them.
//! - No stream buffers without bound for a reader that is slow.
//! - A method with a body here is optional: its default answers 501.

use async_trait::async_trait;
use jiff::Timestamp;

use crate::Error;
use crate::types::*;

fn not_here<T>(what: &str) -> Result<T, Error> {
    Err(Error::Unsupported(format!("{what} is not supported by this engine")))
}

/// A container engine.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    // System.

    /// Engine, kernel, architecture.
    async fn version(&self) -> Result<Version, Error>;

    /// The host and what the engine can do on it.
    async fn info(&self) -> Result<Info, Error>;

    /// What takes how much space.
    async fn disk_usage(&self) -> Result<DiskUsage, Error>;

    /// What happens from now on, after what is still known since `since`, oldest first. Endless. A reader that is too
    /// slow loses events.
    async fn events(&self, since: Option<Timestamp>) -> Result<Items<Event>, Error>;

    /// Whether a registry takes these credentials: its status text ("Login Succeeded") and a token to keep, if any.
    async fn auth(&self, _auth: RegistryAuth) -> Result<(String, Option<String>), Error> {
        not_here("checking a registry's credentials")
    }

    // Containers.

    /// All containers, running or not; with sizes only if asked, they cost. In any order.
    async fn list_containers(&self, sizes: bool) -> Result<Vec<ContainerSummary>, Error>;

    /// Makes one; does not start it. The image must be there ([`Error::NoSuchImage`] makes the client pull it).
    async fn create_container(&self, request: CreateContainer) -> Result<Created, Error>;

    /// Everything about one.
    async fn inspect_container(&self, id: &str, sizes: bool) -> Result<ContainerInspect, Error>;

    /// [`Error::Unchanged`] if it runs; [`Error::CannotRun`] if its process cannot be started. One that is to be removed
    /// at its end is removed then, too, and a wait for that ends: the client waits for it.
    async fn start_container(&self, id: &str) -> Result<(), Error>;

    /// Stop signal, then SIGKILL after `timeout` seconds (`None`: its own, or 10; negative: never). Returns when it has
    /// ended. [`Error::Unchanged`] if it does not run. The restart policy does not start it again.
    async fn stop_container(&self, id: &str, signal: Option<&str>, timeout: Option<i64>)
    -> Result<(), Error>;

    /// Stop and start; starts one that does not run.
    async fn restart_container(
        &self,
        id: &str,
        signal: Option<&str>,
        timeout: Option<i64>,
    ) -> Result<(), Error>;

    /// A signal by name (with or without `SIG`) or number; `None` for SIGKILL. [`Error::NotRunning`].
    async fn kill_container(&self, id: &str, signal: Option<&str>) -> Result<(), Error>;

    /// Freezes it. [`Error::NotRunning`], [`Error::Conflict`] ("Container … is already paused").
    async fn pause_container(&self, id: &str) -> Result<(), Error>;

    /// Thaws it. [`Error::Conflict`] ("Container … is not paused").
    async fn unpause_container(&self, id: &str) -> Result<(), Error>;

    /// The new name is already checked. [`Error::NameInUse`].
    async fn rename_container(&self, id: &str, name: &str) -> Result<(), Error>;

    /// `force` kills it first; otherwise [`Error::Conflict`] for one that runs. `volumes`: anonymous ones too.
    async fn remove_container(&self, id: &str, force: bool, volumes: bool) -> Result<(), Error>;

    /// Begins to wait. Nothing that happens after this returned is missed: the client starts the container only then.
    async fn wait_container(&self, id: &str, condition: WaitCondition) -> Result<Waiting, Error>;

    /// New limits or restart policy; warnings.
    async fn update_container(&self, _id: &str, _update: UpdateContainer) -> Result<Vec<String>, Error> {
        not_here("updating a container's limits")
    }

    /// Its processes; `arguments` as for `ps`.
    async fn top(&self, id: &str, arguments: &str) -> Result<Top, Error>;

    /// Its full id, its name, and one reading of its counters, `None` if it does not run.
    async fn sample(&self, id: &str) -> Result<(String, String, Option<Sample>), Error>;

    /// Its log.
    async fn logs(&self, id: &str, options: LogsOptions) -> Result<Logs, Error>;

    /// Its pipes. Works before it is started: what it writes from its start on arrives.
    async fn attach(&self, id: &str, options: AttachOptions) -> Result<Attached, Error>;

    /// Size of its terminal.
    async fn resize_container(&self, id: &str, rows: u16, columns: u16) -> Result<(), Error>;

    /// Paths that differ from its image.
    async fn changes(&self, _id: &str) -> Result<Vec<Change>, Error> {
        not_here("listing what a container changed")
    }

    /// Its whole file system as a tar stream.
    async fn export(&self, _id: &str) -> Result<ByteReader, Error> {
        not_here("exporting a container")
    }

    /// About a path, its last component not followed if it is a link. The path is absolute and clean (no `.`, `..` or
    /// double slashes), relative to the container's root; a trailing `/` or `/.` means that it must be a directory.
    /// [`Error::NoSuchPath`].
    async fn stat_path(&self, id: &str, path: &str) -> Result<PathStat, Error>;

    /// The path as a tar stream whose members begin with its last component. Links in the path never lead out of the
    /// container's root.
    async fn get_archive(&self, id: &str, path: &str) -> Result<(PathStat, ByteReader), Error>;

    /// Unpacks a tar stream (gzip, bzip2, xz, zstd or plain, as far as the engine knows them) into an existing directory.
    async fn put_archive(
        &self,
        id: &str,
        path: &str,
        options: PutArchive,
        tar: ByteReader,
    ) -> Result<(), Error>;

    /// Removes stopped ones that `which` accepts.
    async fn prune_containers(&self, which: Which<ContainerSummary>) -> Result<Pruned, Error>;

    // Execs.

    /// Prepares one: its id. [`Error::NotRunning`], [`Error::Conflict`] for a paused container.
    async fn create_exec(&self, container: &str, config: ExecConfig) -> Result<String, Error>;

    /// Starts it with its pipes; the streams are those asked for at its creation.
    async fn start_exec(&self, id: &str, tty: bool, size: Option<(u16, u16)>) -> Result<Attached, Error>;

    /// Starts it without anybody attached.
    async fn start_exec_detached(&self, id: &str) -> Result<(), Error>;

    /// About it.
    async fn inspect_exec(&self, id: &str) -> Result<ExecInspect, Error>;

    /// Size of its terminal.
    async fn resize_exec(&self, id: &str, rows: u16, columns: u16) -> Result<(), Error>;

    // Images.

    /// All images. `shared`: compute shared sizes.
    async fn list_images(&self, shared: bool) -> Result<Vec<ImageSummary>, Error>;

    /// Everything about one.
    async fn inspect_image(&self, name: &str) -> Result<ImageInspect, Error>;

    /// How it came to be, newest first.
    async fn image_history(&self, name: &str) -> Result<Vec<HistoryEntry>, Error>;

    /// Gets one. The stream ends when the image is durable. If the first item is an error the client sees its status.
    async fn pull(&self, request: PullRequest) -> Result<Items<Progress>, Error>;

    /// Another name.
    async fn tag_image(&self, name: &str, repository: &str, tag: &str) -> Result<(), Error>;

    /// Removes a name, and the data with its last name. [`Error::Conflict`] while a container needs it.
    async fn remove_image(&self, name: &str, force: bool, no_prune: bool)
    -> Result<Vec<ImageRemoved>, Error>;

    /// Removes unused ones that `which` accepts, and what nothing needs any more.
    async fn prune_images(&self, which: Which<ImageSummary>) -> Result<ImagesPruned, Error>;

    /// Images as one archive.
    async fn save(&self, names: Vec<String>) -> Result<ByteReader, Error>;

    /// Images from an archive.
    async fn load(&self, archive: ByteReader, quiet: bool) -> Result<Items<Progress>, Error>;

    // Networks.

    /// All networks; `containers` may be left empty.
    async fn list_networks(&self) -> Result<Vec<Network>, Error>;

    /// Everything about one.
    async fn inspect_network(&self, id: &str) -> Result<Network, Error>;

    /// Makes one: id and warnings.
    async fn create_network(&self, request: CreateNetwork) -> Result<Created, Error>;

    /// [`Error::Forbidden`] for pre-defined ones and those with active endpoints.
    async fn remove_network(&self, id: &str) -> Result<(), Error>;

    /// Joins a container.
    async fn connect_network(
        &self,
        id: &str,
        container: &str,
        endpoint: EndpointSettings,
    ) -> Result<(), Error>;

    /// Takes a container out.
    async fn disconnect_network(&self, id: &str, container: &str, force: bool) -> Result<(), Error>;

    /// Removes unused user networks that `which` accepts.
    async fn prune_networks(&self, which: Which<Network>) -> Result<Pruned, Error>;

    // Volumes.

    /// All volumes.
    async fn list_volumes(&self) -> Result<Vec<Volume>, Error>;

    /// One.
    async fn inspect_volume(&self, name: &str) -> Result<Volume, Error>;

    /// Makes one, or returns the one of this name if it has the same driver and options.
    async fn create_volume(&self, request: CreateVolume) -> Result<Volume, Error>;

    /// [`Error::Conflict`] while in use; with `force` no error for one that is not there.
    async fn remove_volume(&self, name: &str, force: bool) -> Result<(), Error>;

    /// Removes unused ones that `which` accepts.
    async fn prune_volumes(&self, which: Which<Volume>) -> Result<Pruned, Error>;
}

/// What a prune's filters accept.
pub type Which<T> = Box<dyn Fn(&T) -> bool + Send + Sync>;
