//! One release of the OS for one board: root, initramfs, boot image. What `rustiot image build` calls.

use crate::base::{Base, Package, write_json};
use crate::cache::{Key, stage};
use crate::context::{Context, Progress, Silent, step};
use crate::date::BuildDate;
use crate::error::{At, Error, content, wrong};
use crate::initramfs::{self, Init};
use crate::packages::Packages;
use crate::programs::Programs;
use crate::root::{self, Inputs, Verity};
use crate::toolbox::Toolbox;
use crate::{boot, root::PackageSize};
use rustiot_board::{Arch, Board, Kernel, Layout, LoaderKind, Size};
use rustiot_scratch::Scratch;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// What to build.
#[derive(Clone, Debug)]
pub struct Request {
    /// Name of the board: a file in `conf/boards`.
    pub board: String,
    /// Version of the release (semver).
    pub version: String,
    /// The oldest version that a device with this release may go back to.
    pub floor: Option<String>,
    /// When the release was built, as devices with it take it.
    pub build_date: BuildDate,
    /// Public certificates that bundles are checked against; baked into the root.
    pub keyring: PathBuf,
    /// The root metadata of the repository that devices look for releases in (`rustiot repo init` makes it); without it
    /// they trust none.
    pub repository_root: Option<PathBuf>,
    /// For development and tests: guest agent, a root shell on the serial console, fault injection in init.
    pub dev: bool,
    /// A directory that is laid over the finished root.
    pub overlay: Option<PathBuf>,
    /// Words after the board's own on the kernel's command line.
    pub cmdline: Vec<String>,
    /// What runs as `/init`.
    pub init: Init,
}

impl Request {
    /// A plain development build of `board`.
    pub fn new(board: impl Into<String>, version: impl Into<String>, keyring: impl Into<PathBuf>) -> Self {
        Request {
            board: board.into(),
            version: version.into(),
            floor: None,
            build_date: BuildDate::FIXED,
            keyring: keyring.into(),
            repository_root: None,
            dev: true,
            overlay: None,
            cmdline: Vec::new(),
            init: Init::Built,
        }
    }
}

/// A release on disk. The paths lie in the cache: read them, never write them.
#[derive(Clone, Debug)]
pub struct Image {
    /// The board.
    pub board: Board,
    /// The disk layout.
    pub layout: Layout,
    /// Version of the release.
    pub version: String,
    /// The oldest version that a device with this release may go back to.
    pub floor: Option<String>,
    /// When it was built, as devices with it take it.
    pub build_date: BuildDate,
    /// The content of a boot partition: a FAT with the UKI, or a FIT.
    pub boot: PathBuf,
    /// The content of a root partition: erofs and verity tree.
    pub root: PathBuf,
    /// How the root is checked.
    pub verity: Verity,
    /// The initramfs, as it is in `boot`.
    pub initramfs: PathBuf,
    /// The kernel, as it is in `boot`.
    pub kernel: PathBuf,
    /// The kernel's command line.
    pub cmdline: String,
    /// The device's programs.
    pub programs: Programs,
    /// Sizes of the parts.
    pub sizes: Sizes,
    /// JSON list of [`PackageSize`], largest first.
    pub packages: PathBuf,
    /// Debian's packages in root, initramfs and boot image, by name.
    pub installed: Vec<Package>,
    /// The Debian suite that they are from.
    pub suite: String,
}

/// Sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizes {
    /// Root image with its verity tree.
    pub root: u64,
    /// Boot image.
    pub boot: u64,
    /// Initramfs, uncompressed.
    pub initramfs: u64,
    /// Multi-call binary.
    pub device_binary: u64,
    /// `rustiot-init`.
    pub init: u64,
    /// `rustiot-shim`.
    pub shim: u64,
}

impl Image {
    /// What the root consists of, largest first.
    ///
    /// # Errors
    /// The cache was removed meanwhile.
    pub fn package_sizes(&self) -> Result<Vec<PackageSize>, Error> {
        crate::base::read_json(&self.packages)
    }
}

/// Whether `request` makes sense, before anything is built for it: the board it names.
///
/// # Errors
/// The board is unknown or its file wrong, a version is none, or a file that it names is not there.
pub fn check(ctx: &Context, request: &Request) -> Result<Board, Error> {
    let board = board(ctx, &request.board)?;
    check_lab(&board)?;
    check_version(&request.version)?;
    request.floor.as_deref().map_or(Ok(()), check_version)?;
    if let Some(overlay) = request.overlay.as_ref().filter(|dir| !dir.is_dir()) {
        return Err(wrong(
            format!("{} is no directory", overlay.display()),
            "name one whose files are to be laid over the root",
        ));
    }
    Ok(board)
}

/// Whether there is a lab image for `board` at all: Debian's kernels and the boot files that this crate makes are for
/// PCs and for arm64 with U-Boot.
fn check_lab(board: &Board) -> Result<(), Error> {
    match (board.arch, board.boot.loader) {
        (Arch::Amd64, LoaderKind::Uefi) | (Arch::Arm64, LoaderKind::Uboot) => Ok(()),
        (arch, loader) => Err(wrong(
            format!(
                "there is no lab image for {} ({}, loader {}): only for amd64 with uefi and arm64 with uboot",
                board.name,
                arch.debian(),
                loader.name()
            ),
            format!("build the product's image with Yocto: kas build kas/{}.yml", board.name),
        )),
    }
}

/// Builds a release. Everything is kept in the cache: the second build of the same takes a moment.
///
/// # Errors
/// The board is unknown or its file wrong, a step fails, or a part is over its budget.
pub fn build(
    ctx: &Context,
    toolbox: &Toolbox,
    request: &Request,
    progress: &dyn Progress,
) -> Result<Image, Error> {
    let board = check(ctx, request)?;
    let layout = Layout::load(&ctx.conf("layout.toml"))?;
    let programs = Programs::build(ctx, toolbox, board.arch, progress)?;
    let device_binary = budget(
        "device programs",
        &programs.device,
        board.sizes.device_binary,
        "sizes.device_binary",
        &board,
    )?;
    let init_size = budget("rustiot-init", &programs.init, board.sizes.init, "sizes.init", &board)?;
    let shim_size = budget("rustiot-shim", &programs.shim, board.sizes.shim, "sizes.shim", &board)?;
    let base = Base::ensure(ctx, toolbox, board.arch, request.dev, progress)?;
    let inputs = Inputs { ctx, toolbox, base: &base, programs: &programs, board: &board, request };
    let root = inputs.ensure(progress)?;
    let root_size = root::check_size(&root, board.sizes.root, &board.name)?;

    let kernel_words = Kernel::load(&ctx.conf("kernel.toml"))?.cmdline;
    let cmdline = [&kernel_words[..], &board.boot.cmdline, &request.cmdline].concat().join(" ");
    let init = request.init.program(&programs);
    let mut key = Key::new("boot 3")
        .bytes(&base.key()?)
        .text(&toolbox.root().to_string_lossy())
        .text(&root.verity.root_hash)
        .text(&cmdline)
        .text(&request.version)
        .text(if request.dev { "dev" } else { "" })
        .file(&ctx.conf("boards").join(format!("{}.toml", board.name)))?;
    key = match &init {
        Some(path) => key.file(path)?,
        None => key.text("no init"),
    };
    key = boot::key(ctx, &board, key)?;
    let title = format!("boot image {} ({})", request.version, board.name);
    let make = MakeBoot {
        ctx,
        toolbox,
        base: &base,
        board: &board,
        init: init.as_deref(),
        cmdline: &cmdline,
        request,
    };
    let dir = stage(ctx, progress, ("boot", &title, 200 << 20), &key.finish(), |work| {
        make.run(&root.verity, work)
    })?;
    let initramfs = dir.join("initramfs.cpio");
    let boot = dir.join("boot.img");
    let sizes = Sizes {
        root: root_size,
        boot: budget("boot image", &boot, board.sizes.boot, "sizes.boot", &board)?,
        initramfs: budget("initramfs", &initramfs, board.sizes.initramfs, "sizes.initramfs", &board)?,
        device_binary,
        init: init_size,
        shim: shim_size,
    };
    Ok(Image {
        kernel: base.kernel(),
        version: request.version.clone(),
        floor: request.floor.clone(),
        build_date: request.build_date,
        verity: root.verity,
        root: root.image,
        packages: root.sizes,
        installed: base.packages()?,
        suite: Packages::load(&ctx.conf("lab/packages.toml"))?.suite,
        board,
        layout,
        boot,
        initramfs,
        cmdline,
        programs,
        sizes,
    })
}

/// The last step of a build.
struct MakeBoot<'a> {
    ctx: &'a Context,
    toolbox: &'a Toolbox,
    base: &'a Base,
    board: &'a Board,
    init: Option<&'a Path>,
    cmdline: &'a str,
    request: &'a Request,
}

impl MakeBoot<'_> {
    /// Makes `initramfs.cpio` and `boot.img` in `work`.
    fn run(&self, verity: &Verity, work: &Path) -> Result<(), Error> {
        let scratch = work.join("scratch");
        std::fs::create_dir(&scratch).at("create", &scratch)?;
        let dev = self.request.dev;
        let initramfs =
            initramfs::build(self.toolbox, self.base, self.board, self.init, verity, dev, &scratch)?;
        let path = work.join("initramfs.cpio");
        crate::cache::write(&path, initramfs)?;
        let parts = boot::Parts {
            kernel: &self.base.kernel(),
            initramfs: &path,
            cmdline: self.cmdline,
            version: &self.request.version,
        };
        boot::build(self.ctx, self.toolbox, self.board, &parts, &scratch, &work.join("boot.img"))?;
        crate::cache::remove(&scratch)
    }
}

/// Builds root and boot image of `request` once more, in a directory of its own, and compares them with `image` byte
/// for byte. Programs and packages are those of the cache.
///
/// # Errors
/// A step fails, or something differs: the message names it.
pub fn verify(
    ctx: &Context,
    toolbox: &Toolbox,
    request: &Request,
    image: &Image,
    progress: &dyn Progress,
) -> Result<(), Error> {
    step(progress, "the same once more, to compare", || {
        let silent = &Silent;
        let base = Base::ensure(ctx, toolbox, image.board.arch, request.dev, silent)?;
        let work = Scratch::new(ctx.cache(), ".verify")?;
        let board = &image.board;
        Inputs { ctx, toolbox, base: &base, programs: &image.programs, board, request }
            .create(work.path())?;
        let init = request.init.program(&image.programs);
        MakeBoot {
            ctx,
            toolbox,
            base: &base,
            board,
            init: init.as_deref(),
            cmdline: &image.cmdline,
            request,
        }
        .run(&image.verity, work.path())?;
        for (made, name) in
            [(&image.root, "root.img"), (&image.initramfs, "initramfs.cpio"), (&image.boot, "boot.img")]
        {
            let again = work.path().join(name);
            let read = |path: &Path| std::fs::read(path).at("read", path);
            if read(made)? != read(&again)? {
                return Err(content(made, format!("a second build of {name} from the same inputs differs")));
            }
        }
        Ok(())
    })
}

/// Reads the file of the board `name`.
///
/// # Errors
/// There is no such board, naming those that are, or its file is wrong.
pub fn board(ctx: &Context, name: &str) -> Result<Board, Error> {
    let known = boards(ctx)?;
    if !known.iter().any(|k| k == name) {
        return Err(wrong(
            format!("there is no board `{name}`"),
            format!("choose one of: {}", known.join(", ")),
        ));
    }
    Ok(Board::load(&ctx.conf("boards").join(format!("{name}.toml")))?)
}

/// Names of the boards, sorted.
///
/// # Errors
/// `conf/boards` cannot be read.
pub fn boards(ctx: &Context) -> Result<Vec<String>, Error> {
    let stem = |path: PathBuf| Some(path.file_name()?.to_str()?.strip_suffix(".toml")?.to_owned());
    Ok(crate::cache::sorted(&ctx.conf("boards"))?.into_iter().filter_map(|(_, p)| stem(p)).collect())
}

/// Versions go into file names, manifests and the boot menu: semver and nothing else.
fn check_version(version: &str) -> Result<(), Error> {
    semver::Version::parse(version)
        .map(|_| ())
        .map_err(|e| wrong(format!("`{version}` is no version: {e}"), "write it like 1.4.0 or 1.4.0-rc.1"))
}

fn budget(what: &str, file: &Path, limit: Size, key: &str, board: &Board) -> Result<u64, Error> {
    let bytes = std::fs::metadata(file).at("read", file)?.len();
    if bytes <= limit.bytes() {
        return Ok(bytes);
    }
    Err(Error::TooLarge {
        what: what.into(),
        size: Size::from_bytes(bytes),
        limit_name: "its budget".into(),
        limit,
        remedy: format!("shrink it, or raise {key} in conf/boards/{}.toml and say why", board.name),
    })
}

/// Writes what the image is made of, for people and scripts, to `path`.
///
/// # Errors
/// The file cannot be written.
pub fn write_manifest(image: &Image, path: &Path) -> Result<(), Error> {
    #[derive(Serialize)]
    struct Manifest<'a> {
        board: &'a str,
        version: &'a str,
        compatible: &'a str,
        cmdline: &'a str,
        root_hash: &'a str,
        /// Unix seconds, as in the image.
        build_epoch: u64,
        /// The board's smallest medium, bytes.
        min_medium: u64,
        sizes: Sizes,
    }
    let manifest = Manifest {
        board: &image.board.name,
        version: &image.version,
        compatible: &image.board.compatible,
        cmdline: &image.cmdline,
        root_hash: &image.verity.root_hash,
        build_epoch: image.build_date.seconds(),
        min_medium: image.board.storage.min_medium.bytes(),
        sizes: image.sizes,
    };
    write_json(path, &manifest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_board_is_answered_with_those_that_are() {
        let dir = tempfile::tempdir().unwrap();
        let repo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
        let ctx = Context::with_cache(&repo, dir.path()).unwrap();
        let error = board(&ctx, "toaster").unwrap_err().to_string();
        assert!(
            error.contains("`toaster`") && error.contains("qemux86-64") && error.contains("qemuarm64"),
            "{error}"
        );
        assert_eq!(board(&ctx, "qemuarm64").unwrap().name, "qemuarm64");
    }

    #[test]
    fn a_version_is_semver() {
        for good in ["1.4.0", "0.1.0-rc.1"] {
            assert!(check_version(good).is_ok());
        }
        for bad in ["", "1", "1.2", "v1.2.3", "1.2.3\nx=y", "../1.2.3"] {
            assert!(check_version(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_part_over_its_budget_names_key_and_file() {
        let dir = tempfile::tempdir().unwrap();
        let repo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
        let board = Board::load(&repo.join("conf/boards/qemux86-64.toml")).unwrap();
        let file = dir.path().join("init");
        let make = |bytes| std::fs::File::create(&file).unwrap().set_len(bytes).unwrap();
        make(1_500_000);
        assert_eq!(budget("rustiot-init", &file, board.sizes.init, "sizes.init", &board).unwrap(), 1_500_000);
        make(1_500_001);
        let error =
            budget("rustiot-init", &file, board.sizes.init, "sizes.init", &board).unwrap_err().to_string();
        for wanted in ["rustiot-init", "1500001", "sizes.init", "conf/boards/qemux86-64.toml"] {
            assert!(error.contains(wanted), "{error}");
        }
    }
}
