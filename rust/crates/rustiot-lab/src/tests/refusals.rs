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
        promise: "Random bytes, truncated, altered, wrongly signed, plain-format, oversized bundles and those of another board are each refused by name; nothing is written.",
        tags: &[Tag::QuickOnFirst],
        run: refuses_bundles_that_are_damaged_or_not_ours,
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
    crafted(ctx, "rustiot-toaster", "verity", 4096, &www.join("board.raucb"))?;
    crafted(ctx, ours, "plain", 4096, &www.join("plain.raucb"))?;
    let room = partition_bytes(&ctx.fixtures.base(ctx.lab, ctx.board)?, "root-b")?;
    crafted(ctx, ours, "verity", room.saturating_add(4096), &www.join("oversized.raucb"))?;
    let server = FileServer::start(&www)?;
    // The last eight bytes are the length of the signature: what they are by chance decides between two.
    let no_end = ["not a complete RAUC bundle", "larger than any real one"];
    for (name, status, words) in [
        ("random.raucb", 5, &no_end[..]),
        ("empty.raucb", 1, &["nothing to fetch"]),
        ("truncated.raucb", 5, &no_end),
        ("signature.raucb", 5, &["signature"]),
        ("foreign.raucb", 5, &["signature"]),
        ("plain.raucb", 5, &["plain"]),
        ("board.raucb", 3, &["rustiot-toaster"]),
        ("oversized.raucb", 3, &["root"]),
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
    ensure!(machine.sh("rustiot slots --json")? == before.1, "the slots changed");
    ensure!(machine.boot()?.boot_id == before.0.boot_id, "the device rebooted");
    Ok(())
}

/// A bundle signed by our own CA for `compatible` in `format`, with a root of `root` zero bytes.
fn crafted(ctx: &Ctx, compatible: &str, format: &str, root: u64, to: &Path) -> Result<()> {
    let dir = ctx.dir().join(format!("crafted-{compatible}-{format}-{root}"));
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
         [image.root]\nfilename=root.img\n\n[image.boot]\nfilename=boot.img\n"
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
    let (cert, key, theirs) = (signer.cert, signer.key, signer.keyring.to_string_lossy().into_owned());
    let ours = ctx.fixtures.signer(ctx.lab)?.keyring;
    let (from, to, ours) = (bundle.to_string_lossy(), to.to_string_lossy(), ours.to_string_lossy());
    let keys = ["--cert", &cert, "--key", &key, "--keyring", &ours, "--signing-keyring", &theirs];
    let config = config(&dir, &ours)?;
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
