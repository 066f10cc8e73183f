//! A release whose signing key lies in a token (PKCS#11) and never leaves it.

use crate::ctx::Ctx;
use crate::device::Device;
use crate::fixtures::B;
use crate::runner::{LabTest, Tag};
use anyhow::{Context as _, Result, ensure};
use rustiot_image::keys::Signer;
use rustiot_image::{BundleRequest, Silent, Toolbox};
use std::path::Path;
use testbed::{FileServer, Tools};

pub(super) const TESTS: &[LabTest] = &[LabTest {
    name: "takes_a_release_signed_by_a_token",
    // The signature is the same on every board.
    boards: &["qemux86-64"],
    promise: "A release is signed by a key that was made in a PKCS#11 token and never leaves it, and a device trusts it; a wrong PIN signs nothing and says so.",
    tags: &[Tag::QuickOnFirst],
    run: takes_a_release_signed_by_a_token,
}];

const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";
const PIN: &str = "4711";
const URI: &str = "pkcs11:token=releases;object=signing";

fn takes_a_release_signed_by_a_token(ctx: &mut Ctx) -> Result<()> {
    let dir = ctx.dir().join("token");
    let toolbox = token(ctx, &dir)?;
    let signer = Signer {
        cert: URI.into(),
        key: URI.into(),
        intermediates: Vec::new(),
        keyring: ctx.fixtures.signer(ctx.lab)?.keyring,
    };
    let image = ctx.fixtures.image(ctx.lab, ctx.board, &B)?;
    let request = BundleRequest { signer, description: "signed by a token".into(), meta: Vec::new() };
    let www = dir.join("www");
    let wrong = toolbox.clone().with_variable("RAUC_PKCS11_PIN", "0000");
    let refused = rustiot_image::bundle(&wrong, &image, &request, &www.join("wrong.raucb"), &Silent);
    let said = refused.err().context("a wrong PIN signed a bundle")?.to_string();
    ensure!(said.contains("PIN incorrect"), "a wrong PIN is told as: {said}");
    ensure!(!www.join("wrong.raucb").exists(), "a wrong PIN left a bundle");

    rustiot_image::bundle(&toolbox, &image, &request, &www.join("b.raucb"), &Silent)?;
    let server = FileServer::start(&www)?;
    let machine = ctx.healthy()?;
    // By the device's own keyring and rules. The token is the workstation's affair.
    let told = machine.sh(&format!("rauc info {} 2>&1", server.guest_url("b.raucb")))?;
    for words in ["Verified", "CN = Release signing", B.version] {
        ensure!(told.contains(words), "nothing about {words}: {told}");
    }
    Ok(())
}

/// A token in `dir` that made its own key, with a certificate for it from the lab's CA. Returns a toolbox that knows it.
fn token(ctx: &Ctx, dir: &Path) -> Result<Toolbox> {
    std::fs::create_dir_all(dir.join("tokens")).context("cannot make a directory")?;
    let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let write = |name: &str, text: &str| {
        std::fs::write(dir.join(name), text).with_context(|| format!("cannot write {name}"))
    };
    write("softhsm2.conf", &format!("directories.tokendir = {}\n", path("tokens")))?;
    write(
        "extensions",
        "basicConstraints=critical,CA:false\nkeyUsage=critical,digitalSignature\n\
         extendedKeyUsage=critical,codeSigning\n",
    )?;
    let toolbox = ctx
        .lab
        .toolbox
        .clone()
        .with_variable("SOFTHSM2_CONF", path("softhsm2.conf"))
        .with_variable("RAUC_PKCS11_MODULE", MODULE)
        .with_variable("RAUC_PKCS11_PIN", PIN);
    let enter = toolbox.clone();
    let tools = Tools::new(move |program| enter.command(program));
    let init = ["--init-token", "--free", "--label", "releases", "--so-pin", "47110815", "--pin", PIN];
    tools.run("softhsm2-util", &init)?;
    let in_token = |args: &[&str]| {
        let session = ["--module", MODULE, "--token-label", "releases", "--login", "--pin", PIN];
        let object = ["--label", "signing", "--id", "01"];
        tools.run("pkcs11-tool", &[&session[..], &object, args].concat())
    };
    in_token(&["--keypairgen", "--key-type", "EC:prime256v1"])?;
    in_token(&["--read-object", "--type", "pubkey", "--output-file", &path("public.der")])?;
    let ca = ctx.fixtures.signer(ctx.lab)?.keyring.to_string_lossy().into_owned();
    let ca_key = ctx.lab.keys().join("dev-ca.key.pem").to_string_lossy().into_owned();
    let (public, extensions, certificate) = (path("public.der"), path("extensions"), path("certificate.der"));
    tools.run(
        "openssl",
        &[
            &["x509", "-new", "-subj", "/CN=Release signing", "-days", "30"][..],
            &["-force_pubkey", &public, "-CA", &ca, "-CAkey", &ca_key],
            &["-extfile", &extensions, "-outform", "DER", "-out", &certificate],
        ]
        .concat(),
    )?;
    in_token(&["--write-object", &certificate, "--type", "cert"])?;
    Ok(toolbox)
}
