//! Bundles that hold next to nothing and that nobody has signed, where a repository is what counts and nothing is ever
//! installed from it: tests of the commands, and a herd of devices that only look.

use super::Tool;
use crate::digest::Digest;
use std::path::Path;

/// Size of each of the two images in a bundle.
const IMAGE: usize = 4096;

/// A bundle: `hsqs`, two images that begin with the version, and a signature block around a manifest, not signed.
#[must_use]
pub fn bundle(compatible: &str, version: &str) -> Vec<u8> {
    let manifest = format!(
        "[update]\ncompatible={compatible}\nversion={version}\n\n[bundle]\nformat=verity\n\n\
         [image.root]\nfilename=root.img\n\n[image.boot]\nfilename=boot.img\n\n[meta.rustiot]\nroot-hash={}\n",
        Digest::of(version.as_bytes())
    );
    let block = signature_block(&manifest);
    let length = u64::try_from(block.len()).unwrap_or_default().to_be_bytes();
    [b"hsqs", image(version).as_slice(), &image(version), &block, &length].concat()
}

fn image(version: &str) -> Vec<u8> {
    let mut image = version.as_bytes().to_vec();
    image.resize(IMAGE, 0);
    image
}

/// A CMS SignedData (RFC 5652, 5.1) around a text, without a signature.
fn signature_block(text: &str) -> Vec<u8> {
    let tlv = |tag: u8, content: &[u8]| -> Vec<u8> {
        let length = u16::try_from(content.len()).unwrap_or(u16::MAX).to_be_bytes();
        [&[tag, 0x82][..], &length, content].concat()
    };
    let octets = tlv(0xa0, &tlv(0x04, text.as_bytes()));
    let encapsulated = tlv(0x30, &[vec![0x06, 1, 0], octets].concat());
    let signed = tlv(0x30, &[vec![0x02, 1, 3], vec![0x31, 0], encapsulated].concat());
    tlv(0x30, &[vec![0x06, 1, 0], tlv(0xa0, &signed)].concat())
}

/// What takes such bundles for signed, and unpacks them.
#[derive(Clone, Copy, Debug)]
pub struct Sample;

impl Tool for Sample {
    fn verify(&self, _: &Path) -> Result<(), String> {
        Ok(())
    }

    #[expect(clippy::disallowed_methods, reason = "a cache: what is lost is unpacked again")]
    fn unpack(&self, bundle: &Path, to: &Path) -> Result<(), String> {
        let bytes = std::fs::read(bundle).map_err(|error| error.to_string())?;
        let images = bytes.get(4..).unwrap_or_default().chunks(IMAGE);
        for (name, image) in ["root.img", "boot.img"].into_iter().zip(images) {
            std::fs::write(to.join(name), image).map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}
