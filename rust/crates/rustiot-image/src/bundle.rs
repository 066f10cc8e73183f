//! A release as a signed RAUC bundle (format `verity`: every block is checked as it streams in). Nothing in it is
//! compressed: the images lie in it byte for byte, so that a delta against the running slot makes the exact bundle and
//! compression happens where it travels (`docs/decisions/0030-deltas.md`).

use crate::cache::write;
use crate::context::{Progress, step};
use crate::error::{At, Error, output_file, refused, wrong};
use crate::image::Image;
use crate::keys::Signer;
use crate::root::EPOCH;
use crate::sbom::write_sbom;
use crate::toolbox::Toolbox;
use rustiot_repository::publish::sbom::beside;
use rustiot_scratch::Scratch;
use std::fs;
use std::path::{Path, PathBuf};

/// No compression, and every file's data in one piece: no fragments, no holes where a file has zeros.
const SQUASHFS: &str = "-noI -noD -noF -noX -no-fragments -no-sparse -quiet -no-progress";

/// How to make a bundle.
#[derive(Clone, Debug)]
pub struct BundleRequest {
    /// Who signs.
    pub signer: Signer,
    /// One line about the release.
    pub description: String,
    /// Text of a section `[meta.rustiot]`, as key and value.
    pub meta: Vec<(String, String)>,
}

/// Writes the bundle of `image` to `out`, replacing what is there, and `NAME.spdx.json` beside it: what is in it.
///
/// # Errors
/// The directory cannot be written, or RAUC refuses keys or images.
pub fn bundle(
    toolbox: &Toolbox,
    image: &Image,
    request: &BundleRequest,
    out: &Path,
    progress: &dyn Progress,
) -> Result<(), Error> {
    let name = format!("bundle {} ({})", image.version, image.board.name);
    step(progress, &name, || create(toolbox, image, request, out))
}

fn create(toolbox: &Toolbox, image: &Image, request: &BundleRequest, out: &Path) -> Result<(), Error> {
    output_file(out)?;
    output_file(&beside(out))?;
    let (dir, out) = destination(out)?;
    let work = Scratch::new(&dir, ".rustiot-bundle")?;
    let content = work.path().join("content");
    fs::create_dir(&content).at("create", &content)?;
    for (from, to) in [(&image.boot, "boot.img"), (&image.root, "root.img")] {
        let to = content.join(to);
        if fs::hard_link(from, &to).is_err() {
            fs::copy(from, &to).at("copy", from)?;
        }
    }
    write(&content.join("manifest.raucm"), manifest(image, request)?)?;

    let made = work.path().join("bundle.raucb");
    let mut toolbox = toolbox.clone().with_path(&dir);
    let keyring = credential(&request.signer.keyring.to_string_lossy(), &mut toolbox)?;
    // The signature is checked as a device will check it (conf/rauc/system.conf.in).
    let config = work.path().join("system.conf");
    write(
        &config,
        format!(
            "[system]\ncompatible={}\nbootloader=noop\n\n[keyring]\npath={keyring}\ncheck-purpose=codesign\n\
             allow-partial-chain=true\n",
            image.board.compatible
        ),
    )?;
    let mut args = vec!["bundle".to_owned(), format!("--conf={}", config.display())];
    for (flag, value) in [("--cert", &request.signer.cert), ("--key", &request.signer.key)] {
        args.push(format!("{flag}={}", credential(value, &mut toolbox)?));
    }
    for path in &request.signer.intermediates {
        args.push(format!("--intermediate={}", credential(&path.to_string_lossy(), &mut toolbox)?));
    }
    args.push(format!(
        "--signing-keyring={}",
        credential(&request.signer.keyring.to_string_lossy(), &mut toolbox)?
    ));
    args.push(format!("--mksquashfs-args={SQUASHFS}"));
    args.extend([content.to_string_lossy().into_owned(), made.to_string_lossy().into_owned()]);
    toolbox.run_at(EPOCH, "rauc", args)?;
    let listed = work.path().join("bundle.spdx.json");
    write_sbom(image, &listed)?;
    // A run that is cut short leaves a bundle without its list, never with another's.
    let list = beside(&out);
    if list.exists() {
        fs::remove_file(&list).at("remove", &list)?;
    }
    publish(&made, &out)?;
    publish(&listed, &list)
}

/// The directory, made if it is missing, and the file in it, both absolute.
fn destination(out: &Path) -> Result<(PathBuf, PathBuf), Error> {
    let whole = std::path::absolute(out).at("find", out)?;
    let (Some(dir), Some(file)) = (whole.parent(), whole.file_name()) else {
        return Err(wrong(format!("{} is no file name", out.display()), "name the bundle's file"));
    };
    fs::create_dir_all(dir).at("create", dir)?;
    let dir = dir.canonicalize().at("find", dir)?;
    let out = dir.join(file);
    Ok((dir, out))
}

/// A file as an absolute path that the toolbox sees, or a PKCS#11 URI as it is.
fn credential(text: &str, toolbox: &mut Toolbox) -> Result<String, Error> {
    if text.starts_with("pkcs11:") {
        return Ok(text.to_owned());
    }
    let path = PathBuf::from(text).canonicalize().at("find", text)?;
    if let Some(dir) = path.parent() {
        *toolbox = toolbox.clone().with_path(dir);
    }
    Ok(path.to_string_lossy().into_owned())
}

fn manifest(image: &Image, request: &BundleRequest) -> Result<String, Error> {
    let one_line = |what: &str, text: &str| {
        if text.contains(['\n', '\r']) {
            return Err(refused(format!("the {what} has more than one line"), "write one"));
        }
        Ok(text.to_owned())
    };
    let mut text = format!(
        "[update]\ncompatible={}\nversion={}\ndescription={}\n\n[bundle]\nformat=verity\n\n\
         [image.root]\nfilename=root.img\n\n[image.boot]\nfilename=boot.img\n\n[meta.rustiot]\nroot-hash={}\nbuild-epoch={}\n",
        image.board.compatible,
        image.version,
        one_line("description", &request.description)?,
        image.verity.root_hash,
        image.build_date.seconds(),
    );
    if let Some(floor) = &image.floor {
        text.push_str(&format!("floor={}\n", one_line("floor", floor)?));
    }
    for (key, value) in &request.meta {
        text.push_str(&format!("{}={}\n", one_line("meta key", key)?, one_line("meta value", value)?));
    }
    Ok(text)
}

#[expect(clippy::disallowed_methods, reason = "a build product: a build that is cut short starts over")]
fn publish(made: &Path, out: &Path) -> Result<(), Error> {
    fs::rename(made, out).at("write", out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_file_name_is_one_in_the_current_directory() {
        let here = std::env::current_dir().unwrap().canonicalize().unwrap();
        let (dir, out) = destination(Path::new("release.raucb")).unwrap();
        assert_eq!((dir, out), (here.clone(), here.join("release.raucb")));
        assert!(matches!(destination(Path::new("/")).unwrap_err(), Error::Request { .. }));
    }

    #[test]
    fn a_bundle_replaces_a_file_and_never_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let (made, file, other) =
            (dir.path().join("made"), dir.path().join("file"), dir.path().join("other"));
        write(&made, "new").unwrap();
        write(&file, "old").unwrap();
        fs::create_dir(&other).unwrap();
        write(&other.join("precious"), "mine").unwrap();
        assert!(publish(&made, &other).is_err());
        assert_eq!(fs::read_to_string(other.join("precious")).unwrap(), "mine");
        publish(&made, &file).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
    }
}
