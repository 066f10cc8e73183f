//! A kernel module's file, cut down to what loads: without the signature and, where told so, without the type
//! information (BTF) that only BPF programs read.
//!
//! A signature adds nothing under dm-verity or in an initramfs that is itself signed: it costs the kernel an RSA check
//! and a hash for each module at every boot, and a small kernel update half of its delta. A kernel that refuses unsigned
//! modules (lockdown, `module.sig_enforce`) needs them; none of our boards' does. Decides nothing about which modules
//! there are: that is `modules`.

use crate::error::{At, Error, content};
use crate::toolbox::Toolbox;
use rustiot_board::Arch;
use std::path::{Path, PathBuf};

/// `MODULE_SIG_STRING` of include/linux/module_signature.h.
const MARK: &[u8] = b"~Module signature appended~\n";
/// Size of its `struct module_signature`: six bytes (algorithm, hash, kind, two lengths … padding) and the length.
const DESCRIPTOR: usize = 12;

/// Cuts an appended signature off; a file without one stays as it is.
///
/// # Errors
/// The signature's own lengths reach beyond the file.
pub(crate) fn without_signature(module: &[u8]) -> Result<&[u8], &'static str> {
    let Some(signed) = module.strip_suffix(MARK) else { return Ok(module) };
    let broken = "its signature is longer than the file";
    let (rest, descriptor) = signed.split_last_chunk::<DESCRIPTOR>().ok_or(broken)?;
    // algo, hash, id_type, signer_len, key_id_len, __pad[3], __be32 sig_len
    let [_, _, _, signer, key_id, _, _, _, length @ ..] = *descriptor;
    let length =
        (u32::from_be_bytes(length) as usize).saturating_add(signer.into()).saturating_add(key_id.into());
    rest.len().checked_sub(length).and_then(|end| rest.get(..end)).ok_or(broken)
}

/// Cuts the signatures off the uncompressed modules at `paths`.
///
/// # Errors
/// A file cannot be read or written, or its signature is damaged.
pub(crate) fn remove_signatures(paths: &[PathBuf]) -> Result<(), Error> {
    for path in paths {
        let module = std::fs::read(path).at("read", path)?;
        let plain = without_signature(&module).map_err(|why| content(path, why))?;
        if plain.len() != module.len() {
            crate::cache::write(path, plain)?;
        }
    }
    Ok(())
}

/// What goes besides the signature. Local functions keep their names: a panic's lines need them. The labels of their
/// padding (`__pfx_…`) and the names of export records tell nobody anything once the module is linked.
const REMOVE: [&str; 8] = [
    "--strip-debug",
    "--remove-section=.BTF",
    "--remove-section=.BTF.base",
    "--remove-section=.comment",
    "--wildcard",
    "--strip-unneeded-symbol=__pfx_*",
    "--strip-unneeded-symbol=__UNIQUE_ID_*",
    "--strip-unneeded-symbol=__func__*",
];

/// Removes type information and what else does not load from the modules at `paths`.
///
/// # Errors
/// The tool fails.
pub(crate) fn remove_type_information(toolbox: &Toolbox, arch: Arch, paths: &[PathBuf]) -> Result<(), Error> {
    let tool = match arch {
        Arch::Amd64 => "objcopy".to_owned(),
        foreign => format!("{}-objcopy", foreign.multiarch()),
    };
    for path in paths {
        let options = REMOVE.iter().map(AsRef::<std::ffi::OsStr>::as_ref);
        toolbox.run(&tool, options.chain([Path::as_os_str(path)]))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn signed(module: &[u8], signature: &[u8]) -> Vec<u8> {
        let length = u32::try_from(signature.len()).unwrap().to_be_bytes();
        let descriptor = [&[0, 0, 2, 0, 0, 0, 0, 0][..], &length].concat();
        [module, signature, &descriptor, MARK].concat()
    }

    #[test]
    fn a_signature_is_cut_off_and_a_file_without_one_stays() {
        assert_eq!(without_signature(&signed(b"\x7fELF", &[7; 400])), Ok(&b"\x7fELF"[..]));
        assert_eq!(without_signature(b"\x7fELF"), Ok(&b"\x7fELF"[..]));
    }

    #[test]
    fn a_signature_that_lies_is_told() {
        let mut file = signed(b"\x7fELF", &[7; 4]);
        let at = file.len() - MARK.len() - 4;
        file[at..at + 4].copy_from_slice(&[255; 4]);
        assert!(without_signature(&file).is_err());
        assert!(without_signature(MARK).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_cut_or_told(mut file in proptest::collection::vec(any::<u8>(), 0..200), mark: bool) {
            if mark {
                file.extend_from_slice(MARK);
            }
            if let Ok(plain) = without_signature(&file) {
                prop_assert!(file.starts_with(plain));
            }
        }
    }
}
