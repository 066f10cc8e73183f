//! Steps: what makes this device different from every other one that runs the same image.
//!
//! Machine id, the device's own key pair, SSH host keys, the default host name. Nothing of it is in the image;
//! each is made once, kept in `state`, and made anew only when it is lost or damaged, which is said.

use crate::os::Os;
use crate::status::Outcome;
use crate::storage::Result;
use ed25519_dalek::SigningKey;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey, EncodePrivateKey, EncodePublicKey};
use sha2::{Digest, Sha256};
use std::io;
use std::path::Path;

const MACHINE_ID: &str = "/state/identity/machine-id";
const KEY: &str = "/state/identity/device.key";
const PUBLIC: &str = "/state/identity/device.pub";
const HOSTNAME: &str = "/state/identity/hostname";
/// One kind of host key: every SSH client since 2014 knows Ed25519, and it is quick to make on a small board.
const HOST_KEY: &str = "/state/ssh/ssh_host_ed25519_key";

fn text(os: &impl Os, path: &str) -> io::Result<String> {
    let bytes = os.read(Path::new(path), 1 << 16)?.unwrap_or_default();
    Ok(String::from_utf8(bytes).unwrap_or_default())
}

/// Writes a file unless it already says so.
fn keep(os: &impl Os, path: &str, content: &str, mode: u32) -> io::Result<bool> {
    if text(os, path)? == content {
        return Ok(false);
    }
    os.write(Path::new(path), content.as_bytes(), mode, true).map(|()| true)
}

fn ended(result: io::Result<Result>) -> Result {
    result.unwrap_or_else(|error| (Outcome::Failed, error.to_string()))
}

fn is_machine_id(text: &str) -> bool {
    text.len() == 32
        && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        && text.bytes().any(|b| b != b'0')
}

/// Keeps the machine id that this start runs with (init made it up when state had none).
pub(crate) fn machine_id(os: &impl Os) -> Result {
    ended((|| {
        os.make_dir(Path::new("/state/identity"), 0o755)?;
        let kept = text(os, MACHINE_ID)?;
        if is_machine_id(kept.trim_end()) {
            return Ok((Outcome::Unchanged, String::new()));
        }
        let running = text(os, "/run/rustiot/machine-id")?;
        let id = if is_machine_id(running.trim_end()) { running } else { text(os, "/etc/machine-id")? };
        let id = id.trim_end();
        if !is_machine_id(id) {
            return Ok((Outcome::Failed, "this start has no machine id".into()));
        }
        keep(os, MACHINE_ID, &format!("{id}\n"), 0o644)?;
        Ok((Outcome::Done, if kept.is_empty() { "kept" } else { "the damaged one was replaced" }.into()))
    })())
}

/// The device's own key pair: Ed25519, PKCS#8 and SPKI in PEM.
pub(crate) fn device_key(os: &impl Os) -> Result {
    ended((|| {
        let kept = text(os, KEY)?;
        let known = SigningKey::from_pkcs8_pem(&kept).ok();
        let key = match &known {
            Some(key) => key.clone(),
            None => {
                let key = SigningKey::from_bytes(&os.random()?);
                let pem = key.to_pkcs8_pem(LineEnding::LF).map_err(io::Error::other)?;
                os.write(Path::new(KEY), pem.as_bytes(), 0o600, true)?;
                key
            }
        };
        let public = key.verifying_key().to_public_key_pem(LineEnding::LF).map_err(io::Error::other)?;
        let wrote = keep(os, PUBLIC, &public, 0o644)?;
        Ok(match (known, kept.is_empty(), wrote) {
            (Some(_), _, false) => (Outcome::Unchanged, String::new()),
            (Some(_), ..) => (Outcome::Done, "the public half was written again".into()),
            (None, true, _) => (Outcome::Done, "made".into()),
            (None, false, _) => {
                (Outcome::Degraded, "the damaged key was replaced: the device has a new one".into())
            }
        })
    })())
}

/// Whether a text is a whole OpenSSH private key, as far as can be told without taking it apart.
fn is_host_key(text: &str) -> bool {
    text.starts_with("-----BEGIN OPENSSH PRIVATE KEY-----\n")
        && text.trim_end().ends_with("\n-----END OPENSSH PRIVATE KEY-----")
        && !text.contains('\0')
}

/// The SSH host key. ssh-keygen works in memory; only whole files reach the medium.
pub(crate) fn ssh_host_key(os: &impl Os) -> Result {
    const WORK: &str = "/run/rustiot/keygen";
    ended((|| {
        os.make_dir(Path::new("/state/ssh"), 0o755)?;
        let (kept, public) = (text(os, HOST_KEY)?, format!("{HOST_KEY}.pub"));
        if is_host_key(&kept) && text(os, &public)?.starts_with("ssh-ed25519 ") {
            return Ok((Outcome::Unchanged, String::new()));
        }
        let fresh = format!("{WORK}/key");
        os.make_dir(Path::new(WORK), 0o700)?;
        os.remove(Path::new(&fresh))?;
        let ran = os.run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-C", "", "-f", &fresh])?;
        let (private, fresh_public) = (text(os, &fresh)?, text(os, &format!("{fresh}.pub"))?);
        os.remove(Path::new(&fresh))?;
        os.remove(Path::new(&format!("{fresh}.pub")))?;
        if ran.code != Some(0) || !is_host_key(&private) || fresh_public.is_empty() {
            return Ok((Outcome::Failed, format!("ssh-keygen ended with {:?}: {}", ran.code, ran.stderr)));
        }
        // The private half last: with it in place the pair is complete.
        os.write(Path::new(&public), fresh_public.as_bytes(), 0o644, true)?;
        os.write(Path::new(HOST_KEY), private.as_bytes(), 0o600, true)?;
        Ok(match kept.is_empty() {
            true => (Outcome::Done, "made".into()),
            false => (Outcome::Degraded, "the damaged host key was replaced: clients will ask".into()),
        })
    })())
}

/// The default host name, from the machine id: the same device has the same name even when `state` only lost the
/// name itself, and the name does not give the machine id away (machine-id(5) asks for a keyed hash).
fn default_hostname(machine_id: &str) -> String {
    let digest = Sha256::new().chain_update(machine_id).chain_update(b"rustiot default host name").finalize();
    digest.iter().take(4).fold("rustiot-".to_owned(), |name, byte| format!("{name}{byte:02x}"))
}

/// Writes the default host name and returns it; the second part is the step's end.
pub(crate) fn hostname(os: &impl Os) -> (String, Result) {
    let id = text(os, MACHINE_ID).unwrap_or_default();
    let name = match is_machine_id(id.trim_end()) {
        true => default_hostname(id.trim_end()),
        false => "rustiot".to_owned(),
    };
    let result = ended(keep(os, HOSTNAME, &format!("{name}\n"), 0o644).map(|wrote| match wrote {
        true => (Outcome::Done, name.clone()),
        false => (Outcome::Unchanged, String::new()),
    }));
    (name, result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_the_machine_id_and_hide_it() {
        let name = default_hostname("0123456789abcdef0123456789abcdef");
        assert_eq!(name, "rustiot-7a98c866");
        assert_ne!(name, default_hostname("0123456789abcdef0123456789abcdee"));
    }

    #[test]
    fn half_a_host_key_is_none() {
        let whole = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl\n-----END OPENSSH PRIVATE KEY-----\n";
        assert!(is_host_key(whole));
        for cut in 0..whole.len() - 1 {
            assert!(!is_host_key(&whole[..cut]), "{cut}");
        }
    }
}
