//! `image build`, `bundle`, `keys`: thin over `rustiot-image`.

use crate::args;
use crate::fail::{Done, Fail, Why};
use anyhow::anyhow;
use rustiot_image::keys::Signer;
use rustiot_image::{BuildDate, BundleRequest, Context, DiskRequest, Image, Plain, Request, Toolbox};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

fn dev_keys(context: &Context) -> PathBuf {
    context.repo().join("keys")
}

/// Builds what was asked for. A wrong request is answered before anything is built for it.
fn release(context: &Context, args: &args::Release) -> Result<(Toolbox, Image), Fail> {
    let mut request =
        Request::new(&args.board.board, &args.version, args.keyring.clone().unwrap_or_default());
    request.floor = args.floor.clone();
    request.dev = !args.production;
    request.overlay = args.overlay.clone();
    rustiot_image::check(context, &request)?;
    request.build_date = build_date(context, args)?;
    if let Some(keyring) = args.keyring.as_ref().filter(|file| !file.is_file()) {
        return Err(Fail::usage(format!("there is no keyring {}: name a PEM file", keyring.display())));
    }
    if let Some(root) = args.repository_root.as_ref().filter(|file| !file.is_file()) {
        let hint = "make a repository with rustiot repo init and name its public/metadata/1.root.json";
        return Err(Fail::usage(format!("there is no root metadata {}: {hint}", root.display())));
    }
    request.repository_root = args.repository_root.clone();
    let toolbox = Toolbox::ensure(context, &Plain)?;
    if args.keyring.is_none() {
        request.keyring = rustiot_image::keys::development(&toolbox, &dev_keys(context))?.keyring;
    }
    let image = rustiot_image::build(context, &toolbox, &request, &Plain)?;
    Ok((toolbox, image))
}

/// The date of the release. One that is for devices has its own: a floor that never rises would not be noticed.
fn build_date(context: &Context, args: &args::Release) -> Result<BuildDate, Fail> {
    let variable = std::env::var_os("SOURCE_DATE_EPOCH");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    match BuildDate::choose(args.build_date.as_deref(), variable.as_deref(), context.repo(), now)? {
        Some(date) => Ok(date),
        None if args.production => Err(Fail::usage(format!(
            "nobody says when this release was built, and {} is no git clone with a commit: name the day with --build-date",
            context.repo().display()
        ))),
        None => {
            let date = BuildDate::FIXED;
            eprintln!(
                "rustiot: no commit and no --build-date: devices take {date} for the date of this release"
            );
            Ok(date)
        }
    }
}

/// A file that a person named.
pub(crate) fn text(file: &Path) -> Result<String, Fail> {
    std::fs::read_to_string(file)
        .map_err(|e| Fail::new(Why::Usage, anyhow!(e).context(format!("cannot read {}", file.display()))))
}

/// `rustiot image build`.
pub fn image(context: &Context, args: &args::Build) -> Done {
    let config = args.config.as_deref().map(text).transpose()?;
    let out = args.out.clone().unwrap_or_else(|| context.repo().join("build"));
    let name = format!("rustiot-{}-{}", args.release.board.board, args.release.version);
    let [path, manifest] = ["img", "json"].map(|kind| out.join(format!("{name}.{kind}")));
    rustiot_image::output_dir(&out)?;
    rustiot_image::output_file(&path)?;
    rustiot_image::output_file(&manifest)?;
    let (toolbox, image) = release(context, &args.release)?;
    let request = DiskRequest { config, both_slots: false };
    std::fs::create_dir_all(&out)?;
    rustiot_image::disk(context, &toolbox, &image, &request, &path, &Plain)?;
    rustiot_image::write_manifest(&image, &manifest)?;
    if args.json.json {
        let root_hash = &image.verity.root_hash;
        let sizes = image.sizes;
        println!("{}", json!({"image": path, "root_hash": root_hash, "sizes": sizes}));
    } else {
        println!("{}", path.display());
        println!("Write it to a card or disk with: rustiot flash {} DEVICE", path.display());
    }
    Ok(())
}

/// `rustiot bundle`.
pub fn bundle(context: &Context, args: &args::Bundle) -> Done {
    let name = format!("rustiot-{}-{}.raucb", args.release.board.board, args.release.version);
    let out = args.out.clone().unwrap_or_else(|| context.repo().join("build").join(name));
    rustiot_image::output_file(&out)?;
    let dir = out.parent().filter(|dir| !dir.as_os_str().is_empty());
    dir.map_or(Ok(()), rustiot_image::output_dir)?;
    let (toolbox, image) = release(context, &args.release)?;
    let signer = match (&args.cert, &args.key, &args.release.keyring) {
        (Some(cert), Some(key), Some(keyring)) => Signer {
            cert: cert.clone(),
            key: key.clone(),
            intermediates: args.intermediate.clone(),
            keyring: keyring.clone(),
        },
        _ => rustiot_image::keys::development(&toolbox, &dev_keys(context))?,
    };
    let request = BundleRequest {
        signer,
        description: format!("RustIoT OS {} for {}", image.version, image.board.name),
        meta: Vec::new(),
    };
    rustiot_image::bundle(&toolbox, &image, &request, &out, &Plain)?;
    let bytes = std::fs::metadata(&out)?.len();
    let sbom = rustiot_repository::publish::sbom::beside(&out);
    if args.json.json {
        println!("{}", json!({"bundle": out, "bytes": bytes, "sbom": sbom, "version": image.version}));
    } else {
        println!("{} ({} MB)", out.display(), bytes / 1_000_000);
        println!("{} (what is in it)", sbom.display());
        println!("Offer it to devices with: rustiot serve {}", dir.unwrap_or(Path::new(".")).display());
    }
    Ok(())
}

/// `rustiot keys`.
pub fn keys(context: &Context, out: Option<PathBuf>, json: bool) -> Done {
    let dir = out.unwrap_or_else(|| dev_keys(context));
    rustiot_image::output_dir(&dir)?;
    let toolbox = Toolbox::ensure(context, &Plain)?;
    let signer = rustiot_image::keys::development(&toolbox, &dir)?;
    let ssh = rustiot_image::keys::ssh_key(&toolbox, &dir)?;
    if json {
        let (cert, key, keyring) = (signer.cert, signer.key, signer.keyring);
        println!("{}", json!({"cert": cert, "key": key, "keyring": keyring, "ssh": ssh.private}));
    } else {
        println!("devices trust      {}", signer.keyring.display());
        println!("updates signed by  {}", signer.cert);
        println!("log in with        ssh -i {}", ssh.private.display());
        println!("Development only: a real CA is named with rustiot bundle --cert --key --keyring.");
    }
    Ok(())
}
