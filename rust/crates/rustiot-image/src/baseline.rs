//! What Debian itself would boot, to measure ours against: the initramfs of its two generators with dm-verity, and a
//! stock root of the same packages, all on the kernel and modules of the lab image. Only `rustiot bench` uses it; nothing
//! of it gets onto a device.
//!
//! The packages' own scripts must run, so there is a baseline for boards of the workstation's architecture only.

use crate::base::Base;
use crate::boot::{self, Parts};
use crate::cache::{Key, remove, stage, write};
use crate::context::{Context, Progress};
use crate::disk::write_partitions;
use crate::error::{At, Error, content, refused};
use crate::image::Image;
use crate::packages::Packages;
use crate::root::{Verity, copy_over, copy_tree};
use crate::toolbox::{Toolbox, debian};
use rustiot_board::{Board, Content, LoaderKind, Size, SlotName};
use rustiot_scratch::Scratch;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A way in which Debian makes an initramfs that opens a dm-verity root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Generator {
    /// initramfs-tools, Debian's default, with a hook that runs `veritysetup`: it has no dm-verity of its own.
    InitramfsTools,
    /// dracut as small as it gets: without systemd, with a hook that runs `veritysetup`.
    Dracut,
    /// dracut with its own dm-verity, which is systemd's.
    DracutSystemd,
}

impl Generator {
    /// All of them.
    pub const ALL: [Generator; 3] = [Generator::InitramfsTools, Generator::Dracut, Generator::DracutSystemd];

    fn file(self) -> &'static str {
        match self {
            Generator::InitramfsTools => "initramfs-tools.img",
            Generator::Dracut => "dracut.img",
            Generator::DracutSystemd => "dracut-systemd.img",
        }
    }

    /// The words on the kernel's command line by which it opens the verity root on `data`.
    fn words(self, verity: &Verity, data: &str) -> String {
        let Verity { data_block_size, hash_block_size, data_blocks, algorithm, root_hash, salt, .. } = verity;
        let offset = verity.hash_start_block.saturating_mul(*hash_block_size);
        let options = [
            format!("data-block-size={data_block_size}"),
            format!("hash-block-size={hash_block_size}"),
            format!("data-blocks={data_blocks}"),
            format!("hash-offset={offset}"),
            format!("hash={algorithm}"),
            format!("salt={salt}"),
        ];
        let root = "root=/dev/mapper/root rootfstype=erofs ro";
        match self {
            Generator::InitramfsTools | Generator::Dracut => format!(
                "{root} verity.data={data} verity.hash={root_hash} verity.options=--no-superblock,--{}",
                options.join(",--")
            ),
            Generator::DracutSystemd => format!(
                "{root} roothash={root_hash} systemd.verity_root_data={data} systemd.verity_root_hash={data} \
                 systemd.verity_root_options=superblock=no,{}",
                options.join(",")
            ),
        }
    }
}

/// `conf/bench/packages.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stock {
    packages: Vec<String>,
    disable: Vec<String>,
    enable: Vec<String>,
    root_size: Size,
}

/// How large an initramfs is, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ArchiveSizes {
    /// As the kernel unpacks it.
    pub unpacked: u64,
    /// The same with modules that are compressed in it (`.ko.xz`) uncompressed: like is compared with like.
    pub uncompressed: u64,
    /// All of it by `zstd -9`, whatever its maker does.
    pub compressed: u64,
}

/// Debian's own ways, ready to be booted.
#[derive(Clone, Debug)]
pub struct Baseline {
    chroot: PathBuf,
    initramfs: PathBuf,
    /// Packages of the lab image that the stock Debian has in another version, or not at all.
    pub differ: Vec<String>,
}

/// By which udev tells device-mapper's users that a device is ready.
const DM_RULES: [&str; 2] = ["/usr/lib/udev/rules.d/55-dm.rules", "/usr/lib/udev/rules.d/95-dm-notify.rules"];

/// Makes the kernel's modules those of the chroot and runs what follows: `release modules program argument…`.
const WITH_MODULES: &str = r#"set -e
mkdir -p "/lib/modules/$1"
mount --bind "$2" "/lib/modules/$1"
shift 2
exec "$@""#;

impl Baseline {
    /// The baseline for `image`'s board, built if the cache has none (about two minutes and 400 MB).
    ///
    /// # Errors
    /// The board is of another architecture, packages cannot be fetched, or a generator fails.
    pub fn ensure(
        ctx: &Context,
        toolbox: &Toolbox,
        image: &Image,
        progress: &dyn Progress,
    ) -> Result<Self, Error> {
        let board = &image.board;
        let native = match std::env::consts::ARCH {
            "aarch64" => "arm64",
            _ => "amd64",
        };
        if board.arch.debian() != native {
            return Err(refused(
                format!(
                    "Debian's own initramfs for {} cannot be made here: its packages' scripts run on {} only",
                    board.name,
                    board.arch.debian()
                ),
                "measure it on such a machine",
            ));
        }
        let packages = Packages::load(&ctx.conf("lab/packages.toml"))?;
        let stock = Stock::load(&ctx.conf("bench/packages.toml"))?;
        let wanted = [&packages.target.packages[..], &packages.target.dev, &stock.packages].concat();
        let key = Key::new("baseline 1").text(&packages.suite).text(native).text(&wanted.join(","));
        let title = "stock Debian of the same packages";
        let dir = stage(ctx, progress, ("baseline", title, 1 << 30), &key.finish(), |work| {
            debian(&packages.suite, native, &wanted, &work.join("root"), progress)
        })?;
        let chroot = dir.join("root");
        let base = Base::ensure(ctx, toolbox, board.arch, true, progress)?;
        let key = Key::new("baseline initramfs 5")
            .text(&chroot.to_string_lossy())
            .bytes(&base.key()?)
            .tree(&ctx.conf("bench"))?
            .file(&ctx.conf("boards").join(format!("{}.toml", board.name)))?;
        let title = "initramfs of initramfs-tools and dracut";
        let initramfs =
            stage(ctx, progress, ("baseline-initramfs", title, 200 << 20), &key.finish(), |work| {
                generate(ctx, &toolbox.other(chroot.clone()), &base, board, work)
            })?;
        let admin = format!("--admindir={}", chroot.join("var/lib/dpkg").display());
        let installed = toolbox.run("dpkg-query", [&*admin, "-W", "-f", "${Package} ${Version}\n"])?;
        let there: BTreeMap<&str, &str> = installed.lines().filter_map(|l| l.split_once(' ')).collect();
        let kernel = |name: &str| name.starts_with("linux-image-");
        let differ = base
            .packages()?
            .into_iter()
            .filter(|p| !kernel(&p.name) && there.get(p.name.as_str()) != Some(&p.version.as_str()));
        Ok(Baseline { differ: differ.map(|p| p.name).collect(), chroot, initramfs })
    }

    /// The initramfs that `generator` made.
    pub fn initramfs(&self, generator: Generator) -> PathBuf {
        self.initramfs.join(generator.file())
    }

    /// Makes a boot image for `image`'s root with `generator`'s initramfs, for the same boot partition, at `out`. The
    /// root's data are on the GPT partition `data`.
    ///
    /// # Errors
    /// A tool fails.
    pub fn boot_image(
        &self,
        ctx: &Context,
        toolbox: &Toolbox,
        image: &Image,
        generator: Generator,
        data: &str,
        out: &Path,
    ) -> Result<(), Error> {
        let words = generator.words(&image.verity, &format!("/dev/disk/by-partlabel/{data}"));
        stock_boot(ctx, toolbox, image, &self.initramfs(generator), &words, out)
    }

    /// Makes the disk of a stock Debian of the same packages, without anything of ours, at `out`: an ext4 root, booted by
    /// its own initramfs from initramfs-tools on the same kernel. It takes `ssh_key` (a public key) for root.
    ///
    /// # Errors
    /// A tool fails, or the disk has no room.
    pub fn stock_disk(
        &self,
        ctx: &Context,
        toolbox: &Toolbox,
        image: &Image,
        ssh_key: &str,
        out: &Path,
        progress: &dyn Progress,
    ) -> Result<(), Error> {
        crate::context::step(progress, "disk of a stock Debian", || {
            let parent = out.parent().ok_or_else(|| content(out, "is no file in a directory"))?;
            let work = Scratch::new(parent, ".stock")?;
            let conf = Stock::load(&ctx.conf("bench/packages.toml"))?;
            let mut layout = image.layout.clone();
            layout.partitions.retain(|p| p.slot == Some(SlotName::A) || (p.content == Content::UbootEnv));
            let root = layout
                .partitions
                .iter_mut()
                .find(|p| p.content == Content::Root)
                .ok_or_else(|| content("conf/layout.toml", "has no root partition"))?;
            root.size = conf.root_size;
            let words = format!("root=PARTUUID={} rootfstype=ext4 rw", root.guid);

            let tree = work.path().join("root");
            copy_tree(&self.chroot, &tree)?;
            let base = Base::ensure(ctx, toolbox, image.board.arch, true, &crate::Silent)?;
            finish_stock(ctx, toolbox, &base, &conf, ssh_key, &tree)?;
            let file_system = work.path().join("root.img");
            fs::File::create(&file_system)
                .and_then(|f| f.set_len(conf.root_size.bytes()))
                .at("create", &file_system)?;
            let (from, to) = (tree.as_os_str(), file_system.as_os_str());
            toolbox
                .run("mkfs.ext4", ["-q".as_ref(), "-L".as_ref(), "root".as_ref(), "-d".as_ref(), from, to])?;
            remove(&tree)?;
            let boot = work.path().join("boot.img");
            stock_boot(ctx, toolbox, image, &self.initramfs(Generator::InitramfsTools), &words, &boot)?;
            write_partitions(
                toolbox,
                &image.board,
                &layout,
                &[("boot-a", &boot), ("root-a", &file_system)],
                work.path(),
                out,
            )
        })
    }
}

impl Stock {
    fn load(path: &Path) -> Result<Self, Error> {
        let text = fs::read_to_string(path).at("read", path)?;
        toml::from_str(&text).map_err(|e| content(path, e.to_string()))
    }
}

/// Runs all generators in `chroot`.
fn generate(ctx: &Context, chroot: &Toolbox, base: &Base, board: &Board, work: &Path) -> Result<(), Error> {
    let modules: Vec<&str> =
        board.initramfs_modules().chain(board.modules.rescue.iter().map(String::as_str)).collect();
    let index = base.modules()?;
    let release = index.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let run = |program: &str, args: &[&str]| {
        let index = index.to_string_lossy();
        let before = ["-c", WITH_MODULES, "sh", &*release, &*index, program];
        chroot.run("sh", [&before[..], args].concat())
    };
    let place = |generator: Generator| work.join(generator.file()).to_string_lossy().into_owned();

    let config = work.join("config");
    copy_tree(&ctx.conf("bench/initramfs-tools"), &config)?;
    write(&config.join("modules"), modules.join("\n") + "\n")?;
    let config = config.to_string_lossy().into_owned();
    run("mkinitramfs", &["-d", &config, "-o", &place(Generator::InitramfsTools), &release])?;

    let drivers = modules.join(" ");
    let common =
        ["--force", "--no-hostonly", "--no-early-microcode", "--kver", &release, "--drivers", &drivers];
    let hook = ctx.conf("bench/dracut/verity.sh").to_string_lossy().into_owned();
    let small = [
        "--modules",
        "dash base rootfs-block udev-rules",
        // Without the module `dm`, which brings drivers that nobody asked for. These are what it takes.
        "--install",
        "veritysetup dmsetup",
        "--include",
        DM_RULES[0],
        DM_RULES[0],
        "--include",
        DM_RULES[1],
        DM_RULES[1],
        "--include",
        &hook,
        "/var/lib/dracut/hooks/initqueue/settled/50-verity.sh",
        &place(Generator::Dracut),
    ];
    run("dracut", &[&common[..], &small].concat())?;
    let with_systemd = [
        "--modules",
        "dash base systemd systemd-initrd dracut-systemd systemd-veritysetup rootfs-block udev-rules",
        &place(Generator::DracutSystemd),
    ];
    run("dracut", &[&common[..], &with_systemd].concat())?;
    Ok(())
}

/// A boot image without anything of ours: on UEFI the firmware starts the unified kernel image itself.
fn stock_boot(
    ctx: &Context,
    toolbox: &Toolbox,
    image: &Image,
    initramfs: &Path,
    words: &str,
    out: &Path,
) -> Result<(), Error> {
    let parent = out.parent().ok_or_else(|| content(out, "is no file in a directory"))?;
    let work = Scratch::new(parent, ".boot")?;
    let cmdline = format!("{} {words}", image.cmdline);
    let parts = Parts { kernel: &image.kernel, initramfs, cmdline: &cmdline, version: &image.version };
    match (&image.board.boot.loader, &image.board.boot.uefi) {
        (LoaderKind::Uefi, Some(uefi)) => {
            let uki = boot::unified_image(toolbox, uefi, &parts, work.path())?;
            boot::fat(toolbox, &[(uefi.removable_path.as_str(), &uki)], "BOOT", None, out)
        }
        _ => boot::build(ctx, toolbox, &image.board, &parts, work.path(), out),
    }
}

/// Makes `tree`, unpacked and configured Debian packages, a machine that is reached over the network.
fn finish_stock(
    ctx: &Context,
    toolbox: &Toolbox,
    base: &Base,
    conf: &Stock,
    ssh_key: &str,
    tree: &Path,
) -> Result<(), Error> {
    let modules = base.modules()?;
    let release = modules.file_name().map(PathBuf::from).unwrap_or_default();
    let target = tree.join("usr/lib/modules").join(release);
    // An empty mount point may be left there by the generators.
    remove(&target)?;
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent).at("create", parent)?;
    }
    copy_tree(&modules, &target)?;
    copy_over(&ctx.conf("rootfs/usr/lib/systemd/network"), &tree.join("usr/lib/systemd/network"))?;
    // Its second boot, not its first one: identity is there, as ours is after provisioning.
    write(&tree.join("etc/machine-id"), "0123456789abcdef0123456789abcdef\n")?;
    write(&tree.join("etc/hostname"), "stock\n")?;
    let ssh = tree.join("root/.ssh");
    fs::create_dir_all(&ssh).at("create", &ssh)?;
    write(&ssh.join("authorized_keys"), format!("{ssh_key}\n"))?;
    // dracut is there for its initramfs only; this system does not boot by it.
    let wants = "cd \"$1\" && rm -f usr/lib/systemd/system/*.wants/dracut-*";
    toolbox.run("sh", ["-c".as_ref(), wants.as_ref(), "sh".as_ref(), tree.as_os_str()])?;
    let root = format!("--root={}", tree.display());
    for (verb, units) in [("enable", &conf.enable), ("disable", &conf.disable)] {
        toolbox.run("systemctl", [&[root.as_str(), verb][..], &refs(units)].concat())?;
    }
    Ok(())
}

fn refs(strings: &[String]) -> Vec<&str> {
    strings.iter().map(String::as_str).collect()
}

/// How large the initramfs at `path` is: archives in a row, the last of which may be compressed.
///
/// # Errors
/// It is neither an archive nor compressed in a known way, or cannot be read.
pub fn archive_sizes(toolbox: &Toolbox, path: &Path) -> Result<ArchiveSizes, Error> {
    let bytes = fs::read(path).at("read", path)?;
    let plain = plain_length(&bytes);
    let rest = bytes.get(plain..).unwrap_or_default();
    let unpack = match rest {
        [] => "cat",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd -dc",
        [0x1f, 0x8b, ..] => "gzip -dc",
        _ => {
            return Err(content(
                path,
                format!("byte {plain} begins neither an archive nor a known compression"),
            ));
        }
    };
    let whole =
        format!("{{ head -c {plain} \"$1\"; tail -c +{} \"$1\" | {unpack}; }}", plain.saturating_add(1));
    let work = Scratch::new(&std::env::temp_dir(), "rustiot-archive")?;
    let file = work.path().join("unpacked.cpio");
    let run = |script: &str| {
        let args = ["-c".as_ref(), script.as_ref(), "sh".as_ref(), path.as_os_str(), file.as_os_str()];
        toolbox.run("sh", args)
    };
    let bytes_said = |said: &str| said.trim().parse().map_err(|_| content(path, format!("`wc` said {said}")));
    run(&format!("{whole} > \"$2\""))?;
    let compressed = bytes_said(&run(r#"zstd -9 -q -c "$2" | wc -c"#)?)?;
    let archive = fs::read(&file).at("read", &file)?;
    let growth = modules_growth(toolbox, &archive, work.path())?;
    let unpacked = archive.len() as u64;
    Ok(ArchiveSizes { unpacked, uncompressed: unpacked.saturating_add(growth), compressed })
}

/// By how much the archive would grow if its compressed modules were not.
fn modules_growth(toolbox: &Toolbox, archive: &[u8], work: &Path) -> Result<u64, Error> {
    let mut files = Vec::new();
    for module in entries(archive).filter(|(name, _)| name.ends_with(b".ko.xz")).map(|(_, data)| data) {
        let file = work.join(format!("{}.xz", files.len()));
        write(&file, module)?;
        files.push(file);
    }
    if files.is_empty() {
        return Ok(0);
    }
    let options = ["--robot", "--list"].map(|o| o.as_ref()).into_iter();
    let said = toolbox.run("xz", options.chain(files.iter().map(|f| f.as_os_str())))?;
    // xz(1), "List mode": totals, streams, blocks, compressed, uncompressed, …; one file has no totals.
    let lines = || said.lines().map(|line| line.split('\t').collect::<Vec<_>>());
    let line = lines()
        .find(|l| l.first() == Some(&"totals"))
        .or_else(|| lines().find(|l| l.first() == Some(&"file")));
    let number = |at: usize| line.as_ref()?.get(at)?.parse::<u64>().ok();
    match (number(3), number(4)) {
        (Some(compressed), Some(plain)) => Ok(plain.saturating_sub(compressed)),
        _ => Err(content(work, format!("`xz --list` said {said}"))),
    }
}

/// Names and contents of the files in archives in a row ("newc"), up to the first byte that is of neither.
fn entries(bytes: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut at = 0;
    std::iter::from_fn(move || {
        // Between archives the kernel skips zeros.
        at += bytes.get(at..)?.iter().position(|b| *b != 0)?;
        let entry = Entry::at(bytes, at)?;
        at = entry.end;
        Some((bytes.get(entry.name)?, bytes.get(entry.data)?))
    })
}

/// Where an archive's entry lies.
struct Entry {
    name: std::ops::Range<usize>,
    data: std::ops::Range<usize>,
    end: usize,
}

impl Entry {
    /// The entry that begins at `at`, if one does and is whole.
    fn at(bytes: &[u8], at: usize) -> Option<Self> {
        const HEADER: usize = 110;
        let field = |number: usize| {
            let from = at.checked_add(6)?.checked_add(number.checked_mul(8)?)?;
            let text = std::str::from_utf8(bytes.get(from..from.checked_add(8)?)?).ok()?;
            usize::from_str_radix(text, 16).ok()
        };
        if !bytes.get(at..)?.starts_with(b"070701") {
            return None;
        }
        let name = at.checked_add(HEADER)?;
        let name_end = name.checked_add(field(11)?)?;
        let data = name_end.checked_next_multiple_of(4)?;
        let data_end = data.checked_add(field(6)?)?;
        let end = data_end.checked_next_multiple_of(4).filter(|end| *end <= bytes.len())?;
        // The name is counted with its closing zero.
        Some(Entry { name: name..name_end.checked_sub(1)?, data: data..data_end, end })
    }
}

/// The length of the uncompressed archives ("newc") and padding that `bytes` begins with.
fn plain_length(bytes: &[u8]) -> usize {
    let mut at = 0;
    loop {
        match bytes.get(at) {
            // Between archives the kernel skips zeros.
            Some(0) => at += 1,
            Some(_) => match Entry::at(bytes, at) {
                Some(entry) => at = entry.end,
                None => return at,
            },
            None => return at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpio::Archive;
    use proptest::prelude::*;

    fn archive(content: &[u8]) -> Vec<u8> {
        let mut archive = Archive::default();
        archive.file("a/b", 0o644, content).unwrap();
        archive.finish().unwrap()
    }

    #[test]
    fn archives_in_a_row_are_plain_and_what_follows_is_not() {
        let plain = [archive(b"hello"), archive(b"")].concat();
        assert_eq!(plain_length(&plain), plain.len());
        let with_rest = [&plain[..], &[0x28, 0xb5, 0x2f, 0xfd]].concat();
        assert_eq!(plain_length(&with_rest), plain.len());
        assert_eq!(plain_length(b"\x1f\x8b"), 0);
    }

    #[test]
    fn files_in_archives_in_a_row_are_found() {
        let both = [archive(b"hello"), vec![0; 512], archive(b"")].concat();
        let found: Vec<_> =
            entries(&both).filter(|(name, _)| *name == b"a/b").map(|(_, data)| data).collect();
        assert_eq!(found, [&b"hello"[..], b""]);
    }

    #[test]
    fn words_say_the_same_to_both_kinds() {
        let verity = Verity {
            data_block_size: 4096,
            hash_block_size: 4096,
            data_blocks: 10,
            hash_start_block: 10,
            algorithm: "sha256".into(),
            root_hash: "ab".into(),
            salt: "cd".into(),
        };
        let shell = Generator::Dracut.words(&verity, "/dev/x");
        assert!(shell.contains(
            "verity.options=--no-superblock,--data-block-size=4096,--hash-block-size=4096,--data-blocks=10,\
             --hash-offset=40960,--hash=sha256,--salt=cd"
        ));
        let systemd = Generator::DracutSystemd.words(&verity, "/dev/x");
        assert!(systemd.contains(
            "systemd.verity_root_options=superblock=no,data-block-size=4096,hash-block-size=4096,data-blocks=10,\
             hash-offset=40960,hash=sha256,salt=cd"
        ));
    }

    proptest! {
        #[test]
        fn any_bytes_have_a_plain_length(
            head in prop::bool::ANY,
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            flip in 0usize..400,
        ) {
            let mut all = if head { archive(b"x") } else { Vec::new() };
            all.extend(bytes);
            if let Some(byte) = all.get_mut(flip) {
                *byte ^= 0x30;
            }
            prop_assert!(plain_length(&all) <= all.len());
            prop_assert!(entries(&all).count() <= all.len());
        }
    }
}
