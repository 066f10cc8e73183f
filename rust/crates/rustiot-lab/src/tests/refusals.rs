//! Bundles that must not be installed: each is refused with its own message and exit code, and the
//! running system is untouched.

use crate::ctx::Ctx;
use crate::device::Device;
use crate::fixtures::{A, B, Release};
use crate::runner::{LabTest, Tag};
use crate::tests::update;
use anyhow::{Context as _, Result, ensure};
use std::io::Read as _;
use std::path::Path;
use testbed::{FileServer, partition_bytes};

pub(super) const TESTS: &[LabTest] = &[
    LabTest {
        name: "refuses_bundles_that_are_damaged_or_not_ours",
        boards: &[],
        promise: "Random bytes, truncated, altered, wrongly signed, plain-format, oversized bundles, those of another board and those whose signer is nobody, expired or revoked are each refused by name; nothing is written.",
        tags: &[Tag::QuickOnFirst],
        run: refuses_bundles_that_are_damaged_or_not_ours,
    },
    LabTest {
        name: "a_malformed_file_system_in_a_signed_bundle_costs_nothing",
        boards: &[],
        promise: "A bundle that a trusted key has signed, whose squashfs is malformed (superblock, data, directories): the install ends with the reason, the running system and its kernel go on, and a good bundle is installed afterwards.",
        tags: &[],
        run: a_malformed_file_system_in_a_signed_bundle_costs_nothing,
    },
    LabTest {
        name: "refuses_to_go_below_the_floor",
        boards: &[],
        promise: "A release below the committed one's floor is refused; one above it may be older.",
        tags: &[],
        run: refuses_to_go_below_the_floor,
    },
];

/// A release that forbids the way back to A.
const FLOOR: Release = Release { floor: Some("1.0.5"), ..Release::new("floor", "1.3.0") };

fn refuses_bundles_that_are_damaged_or_not_ours(ctx: &mut Ctx) -> Result<()> {
    let machine = ctx.healthy()?;
    let before = (machine.boot()?, machine.sh("rustiot slots --json")?);
    let bundle = ctx.bundle(&B)?;
    let good = std::fs::read(&bundle).context("cannot read a bundle")?;
    let www = ctx.dir().join("bad");
    std::fs::create_dir_all(&www).context("cannot make a directory")?;
    let put = |name: &str, bytes: &[u8]| -> Result<()> {
        std::fs::write(www.join(name), bytes).with_context(|| format!("cannot write {name}"))
    };
    put("random.raucb", &good.iter().rev().copied().take(1 << 20).collect::<Vec<u8>>())?;
    put("empty.raucb", b"")?;
    put("truncated.raucb", good.get(..good.len() / 2).unwrap_or_default())?;
    let mut signature = good.clone();
    // The CMS signature stands before the last eight bytes, which are its length.
    let at = signature.len().saturating_sub(60);
    *signature.get_mut(at).context("a short bundle")? ^= 0x10;
    put("signature.raucb", &signature)?;
    foreign_signature(ctx, &bundle, &www.join("foreign.raucb"))?;
    let ours = &ctx.board.compatible;
    self_signed(ctx, &bundle, &www.join("self-signed.raucb"))?;
    std::os::unix::fs::symlink(&bundle, www.join("good.raucb")).context("cannot link a bundle")?;
    crafted(ctx, "rustiot-toaster", "verity", 4096, "", &www.join("board.raucb"))?;
    crafted(ctx, ours, "plain", 4096, "", &www.join("plain.raucb"))?;
    // What RAUC has to read before it has verified anything.
    let bloat = format!("\n[meta.bloat]\ntext={}\n", "x".repeat(200 << 10));
    crafted(ctx, ours, "verity", 4096, &bloat, &www.join("manifest.raucb"))?;
    let room = partition_bytes(&ctx.fixtures.base(ctx.lab, ctx.board)?, "root-b")?;
    // All zeros: a few kilobytes that unpack to more than the partition holds.
    crafted(ctx, ours, "verity", room.saturating_add(4096), "", &www.join("bomb.raucb"))?;
    let bomb = std::fs::metadata(www.join("bomb.raucb")).context("no bomb")?.len();
    ensure!(bomb < room / 100, "a bomb of {bomb} bytes is none");
    let server = FileServer::start(&www)?;
    // The last eight bytes are the length of the signature: what they are by chance decides between two.
    let no_end = ["not a complete RAUC bundle", "larger than any real one"];
    for (name, status, words) in [
        ("random.raucb", 5, &no_end[..]),
        ("empty.raucb", 1, &["nothing to fetch"]),
        ("truncated.raucb", 5, &no_end),
        ("signature.raucb", 5, &["signature"]),
        ("foreign.raucb", 5, &["signature"]),
        ("self-signed.raucb", 5, &["signature"]),
        ("plain.raucb", 5, &["plain"]),
        ("manifest.raucb", 5, &["larger than any real one"]),
        ("board.raucb", 3, &["rustiot-toaster"]),
        ("bomb.raucb", 3, &["root"]),
        ("absent.raucb", 1, &["nothing to fetch at"]),
    ] {
        let output = machine.install(&server.guest_url(name))?;
        let said = output.stderr.trim();
        ensure!(
            output.status == status && words.iter().any(|words| said.contains(words)),
            "{name}: exit code {} and {said}",
            output.status,
        );
        let why = machine.sh("rustiot update why")?;
        ensure!(why.contains(name), "{name}: why says {why}");
    }
    let refused = |words: &str| -> Result<()> {
        let output = machine.install(&server.guest_url("good.raucb"))?;
        let said = output.stderr.trim();
        ensure!(output.status == 5 && said.contains(words), "not {words}: {} {said}", output.status);
        Ok(())
    };
    // The good one, years after its signer's certificate has ended.
    machine.sh("systemctl stop systemd-timesyncd; date -s '+12 years'")?;
    let expired = refused("has expired");
    machine.sh("date -s '-12 years'")?;
    expired?;
    // And with its signer on the keyring's revocation list.
    machine.put("/run/keyring.pem", &revoking_keyring(ctx)?, crate::COMMAND)?;
    machine.sh("sed 's/^\\[keyring\\]$/&\\ncheck-crl=true/' /etc/rauc/system.conf > /run/system.conf && \
         mount --bind /run/system.conf /etc/rauc/system.conf && \
         mount --bind /run/keyring.pem /usr/lib/rustiot/keyring.pem && systemctl stop rauc")?;
    refused("revoked")?;
    machine
        .sh("umount /etc/rauc/system.conf && umount /usr/lib/rustiot/keyring.pem && systemctl stop rauc")?;
    ensure!(machine.sh("rustiot slots --json")? == before.1, "the slots changed");
    ensure!(machine.boot()?.boot_id == before.0.boot_id, "the device rebooted");
    Ok(())
}

fn a_malformed_file_system_in_a_signed_bundle_costs_nothing(ctx: &mut Ctx) -> Result<()> {
    let machine = ctx.healthy()?;
    let before = (machine.boot()?, machine.sh("cat /proc/sys/kernel/tainted")?);
    let good = ctx.bundle(&B)?;
    let www = ctx.dir().join("malformed");
    std::fs::create_dir_all(&www).context("cannot make a directory")?;
    std::os::unix::fs::symlink(&good, www.join(format!("{}.raucb", B.name)))
        .context("cannot link a bundle")?;
    let server = FileServer::start(&www)?;
    // RAUC 1.13 dies of a directory that cannot be read, and is asked three times.
    for (name, spoil) in [
        ("superblock.raucb", spoil_superblock as Spoil),
        ("data.raucb", spoil_data),
        ("directory.raucb", spoil_directory),
    ] {
        malformed(ctx, spoil, &www.join(name))?;
        // From a server, and as a file: RAUC reads them by different ways.
        machine.put("/run/bundle.raucb", &std::fs::read(www.join(name))?, crate::COMMAND)?;
        for source in [server.guest_url(name), "/run/bundle.raucb".to_owned()] {
            let output = machine.install(&source)?;
            let said = output.stderr.trim();
            let journal = || machine.sh("journalctl -u rauc -b -n 40 --no-pager").unwrap_or_default();
            ensure!(output.status == 1 || output.status == 5, "{source}: {} and {said}", output.status);
            let told = |text: &str| text.contains(&source);
            ensure!(told(said) && said.contains("hint: "), "{source}: {said}\n{}", journal());
            let why = machine.sh("rustiot update why")?;
            ensure!(told(&why), "{source}: why says {why}\n{}", journal());
            let slots = machine.sh("rustiot slots --json")?;
            let told: serde_json::Value = serde_json::from_str(&slots).context("slots are no JSON")?;
            let default = told.pointer("/loader/default").context("no default slot")?;
            ensure!(Some(default) == told.get("running"), "{source}: the next boot is another: {slots}");
            ensure!(told.get("stable") == Some(&true.into()), "{source}: not stable: {slots}");
        }
    }
    let after = (machine.boot()?, machine.sh("cat /proc/sys/kernel/tainted")?);
    ensure!(after.0.boot_id == before.0.boot_id, "the device rebooted");
    ensure!(after.1 == before.1, "the kernel is tainted: {} after {}", after.1, before.1);
    ensure!(!machine.sh("mount")?.contains("squashfs"), "a bundle is still mounted");
    update(&machine, &server, &B)?;
    Ok(())
}

/// Makes a squashfs that no mksquashfs would write.
type Spoil = fn(&mut [u8]) -> Option<()>;

/// Its table of inodes lies behind its end (`inode_table_start` of the superblock, at 64).
fn spoil_superblock(image: &mut [u8]) -> Option<()> {
    image.get_mut(64..72)?.copy_from_slice(&(1_u64 << 40).to_le_bytes());
    Some(())
}

/// The first file's data, which stand behind the superblock, are noise where a compressed block is expected.
fn spoil_data(image: &mut [u8]) -> Option<()> {
    image.get_mut(96..1120)?.fill(0xa5);
    Some(())
}

/// Its directories, one block of metadata with two bytes of length in front (`directory_table_start`, at 72), are noise.
fn spoil_directory(image: &mut [u8]) -> Option<()> {
    let start = u64::from_le_bytes(image.get(72..80)?.try_into().ok()?);
    let start = usize::try_from(start).ok()?;
    let block = image.get_mut(start..)?;
    let length = usize::from(u16::from_le_bytes(*block.first_chunk()?) & 0x7fff);
    block.get_mut(2..)?.get_mut(..length)?.fill(0xa5);
    Some(())
}

/// A bundle of this board's, signed by the lab's own key, around a squashfs that `spoil` has had. RAUC signs what
/// `mksquashfs` wrote, so it is given one of ours.
fn malformed(ctx: &Ctx, spoil: Spoil, to: &Path) -> Result<()> {
    let name = to.file_stem().unwrap_or_default().to_string_lossy();
    let dir = ctx.dir().join(format!("malformed-{name}"));
    let content = dir.join("content");
    std::fs::create_dir_all(&content).context("cannot make a directory")?;
    // Compresses to some kilobytes a block and is no hole.
    let text: Vec<u8> = (0..1_u32 << 18).flat_map(|word| (word / 7).to_le_bytes()).collect();
    for image in ["root.img", "boot.img"] {
        std::fs::write(content.join(image), &text).context("cannot write an image")?;
    }
    let board = &ctx.board.compatible;
    let manifest = format!(
        "[update]\ncompatible={board}\nversion=1.9.0\n\n[bundle]\nformat=verity\n\n\
         [image.root]\nfilename=root.img\n\n[image.boot]\nfilename=boot.img\n"
    );
    std::fs::write(content.join("manifest.raucm"), manifest).context("cannot write a manifest")?;
    let at = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let (image, inside) = (at("image"), content.to_string_lossy());
    ctx.lab.tools().run("mksquashfs", &[&inside, &image, "-all-root", "-noappend", "-no-progress"])?;
    let mut bytes = std::fs::read(&image).context("cannot read a squashfs")?;
    spoil(&mut bytes).context("a short squashfs")?;
    std::fs::write(&image, bytes).context("cannot write a squashfs")?;
    let ours = dir.join("mksquashfs");
    std::fs::write(&ours, format!("#!/bin/sh\nexec cp '{image}' \"$2\"\n"))
        .context("cannot write a script")?;
    std::fs::set_permissions(&ours, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .context("cannot make a script a program")?;
    let signer = ctx.fixtures.signer(ctx.lab)?;
    let keyring = signer.keyring.to_string_lossy().into_owned();
    let config = config(&dir, &keyring)?;
    let path = format!("PATH={}:/usr/sbin:/usr/bin:/sbin:/bin", dir.display());
    let keys = ["--cert", &signer.cert, "--key", &signer.key, "--signing-keyring", &keyring];
    let to = to.to_string_lossy();
    let args = [&[&path, "rauc", "bundle", "--conf", &config], &keys[..], &[&inside, &to]].concat();
    ctx.lab.tools().run("env", &args)?;
    Ok(())
}

/// A keyring with the lab's authority and its list of revoked certificates, which has the lab's signer.
fn revoking_keyring(ctx: &Ctx) -> Result<Vec<u8>> {
    let (keys, dir) = (ctx.lab.keys(), ctx.dir().join("crl"));
    std::fs::create_dir_all(&dir).context("cannot make a directory")?;
    let at = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let key = |name: &str| keys.join(name).to_string_lossy().into_owned();
    std::fs::write(at("index"), "").context("cannot write an index")?;
    std::fs::write(at("number"), "01\n").context("cannot write a number")?;
    let config = format!(
        "[ca]\ndefault_ca=ours\n[ours]\ndatabase={}\ncrlnumber={}\ndefault_md=sha256\ndefault_crl_days=30\n",
        at("index"),
        at("number")
    );
    std::fs::write(at("config"), config).context("cannot write a configuration")?;
    let (ca, ca_key) = (key("dev-ca.cert.pem"), key("dev-ca.key.pem"));
    let (config, list, signer) = (at("config"), at("list.pem"), key("dev-signing.cert.pem"));
    let ours = ["ca", "-config", &config, "-cert", &ca, "-keyfile", &ca_key];
    for more in [&["-revoke", &signer][..], &["-gencrl", "-out", &list]] {
        ctx.lab.tools().run("openssl", &[&ours[..], more].concat())?;
    }
    let mut keyring = std::fs::read(&ca).context("cannot read the authority")?;
    keyring.extend(std::fs::read(&list).context("cannot read the list")?);
    Ok(keyring)
}

/// A bundle signed by our own CA for `compatible` in `format`, with a root of `root` zero bytes and `more` in its
/// manifest.
fn crafted(ctx: &Ctx, compatible: &str, format: &str, root: u64, more: &str, to: &Path) -> Result<()> {
    let dir = ctx.dir().join(format!("crafted-{compatible}-{format}-{root}-{}", more.len()));
    let content = dir.join("content");
    std::fs::create_dir_all(&content).context("cannot make a directory")?;
    let image = std::fs::File::create(content.join("root.img")).context("cannot make an image")?;
    image.set_len(root).context("cannot size an image")?;
    // RAUC makes no bundle of 4096 bytes or less: something that cannot be compressed.
    let mut noise = vec![0; 64 << 10];
    let mut bundle = std::fs::File::open(ctx.bundle(&B)?).context("cannot open a bundle")?;
    bundle.read_exact(&mut noise).context("cannot read a bundle")?;
    std::fs::write(content.join("boot.img"), noise).context("cannot write an image")?;
    let manifest = format!(
        "[update]\ncompatible={compatible}\nversion=1.9.0\n\n[bundle]\nformat={format}\n\n\
         [image.root]\nfilename=root.img\n\n[image.boot]\nfilename=boot.img\n{more}"
    );
    std::fs::write(content.join("manifest.raucm"), manifest).context("cannot write a manifest")?;
    let signer = ctx.fixtures.signer(ctx.lab)?;
    let keyring = signer.keyring.to_string_lossy().into_owned();
    let config = config(&dir, &keyring)?;
    let (content, to) = (content.to_string_lossy(), to.to_string_lossy());
    let keys = ["--cert", &signer.cert, "--key", &signer.key, "--signing-keyring", &keyring];
    let args = [&["bundle", "--conf", &config], &keys[..], &[&content, &to]].concat();
    ctx.lab.tools().run("rauc", &args)?;
    Ok(())
}

/// RAUC checks what it signed; our certificates sign code and nothing else.
fn config(dir: &Path, keyring: &str) -> Result<String> {
    let path = dir.join("system.conf");
    let text = format!(
        "[system]\ncompatible=x\nbootloader=noop\n[keyring]\npath={keyring}\ncheck-purpose=codesign\n"
    );
    std::fs::write(&path, text).context("cannot write RAUC's configuration")?;
    Ok(path.to_string_lossy().into_owned())
}

/// `bundle` signed anew by a certificate authority that no device knows.
fn foreign_signature(ctx: &Ctx, bundle: &Path, to: &Path) -> Result<()> {
    let dir = ctx.dir().join("foreign-ca");
    let signer = rustiot_image::keys::development(&ctx.lab.toolbox, &dir)?;
    let theirs = signer.keyring.to_string_lossy().into_owned();
    resign(ctx, &dir, bundle, (&signer.cert, &signer.key, &theirs), to)
}

/// `bundle` signed anew by a certificate for code signing that nobody but itself has signed.
fn self_signed(ctx: &Ctx, bundle: &Path, to: &Path) -> Result<()> {
    let dir = ctx.dir().join("self-signed");
    std::fs::create_dir_all(&dir).context("cannot make a directory")?;
    let at = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let (cert, key) = (at("cert.pem"), at("key.pem"));
    let make = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let what = ["-subj", "/CN=nobody", "-days", "30", "-addext", "extendedKeyUsage=critical,codeSigning"];
    let files = ["-addext", "keyUsage=critical,digitalSignature", "-keyout", &key, "-out", &cert];
    ctx.lab.tools().run("openssl", &[&make[..], &what, &files].concat())?;
    resign(ctx, &dir, bundle, (&cert, &key, &cert), to)
}

/// `bundle` signed anew with a certificate, its key, and the keyring that trusts it.
fn resign(
    ctx: &Ctx,
    dir: &Path,
    bundle: &Path,
    (cert, key, theirs): (&str, &str, &str),
    to: &Path,
) -> Result<()> {
    let ours = ctx.fixtures.signer(ctx.lab)?.keyring;
    let (from, to, ours) = (bundle.to_string_lossy(), to.to_string_lossy(), ours.to_string_lossy());
    let keys = ["--cert", cert, "--key", key, "--keyring", &ours, "--signing-keyring", theirs];
    let config = config(dir, &ours)?;
    let args = [&["resign", "--conf", &config], &keys[..], &[&from, &to]].concat();
    ctx.lab.tools().run("rauc", &args)?;
    Ok(())
}

fn refuses_to_go_below_the_floor(ctx: &mut Ctx) -> Result<()> {
    let machine = ctx.healthy()?;
    let server = ctx.serve(&[&A, &B, &FLOOR])?;
    update(&machine, &server, &FLOOR)?;
    let output = machine.install(&server.guest_url("a.raucb"))?;
    ensure!(output.status == 3, "A was not refused: {} {}", output.status, output.stderr);
    ensure!(output.stderr.contains("1.0.5"), "the floor is not named: {}", output.stderr);
    update(&machine, &server, &B)?;
    Ok(())
}
