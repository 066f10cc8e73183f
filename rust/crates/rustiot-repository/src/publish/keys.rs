//! Signing keys: PEM files (Ed25519 or P-256, PKCS#8), or a token behind a PKCS#11 URI.
//!
//! A token is used through OpenSSL's `pkcs11` engine, as RAUC does it: one program that is there already, and no library
//! of a vendor in our address space. Its keys are P-256.

use super::{At, Error};
use async_trait::async_trait;
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair};
use futures_util::FutureExt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tough::schema::Role;
use tough::schema::decoded::{Decoded, Hex};
use tough::schema::key::Key;
use tough::schema::{Signature, Signed};
use tough::sign::Sign;

/// What OpenSSL's engine says when the token of a URI is not plugged in (libp11 0.4).
const NO_TOKEN: &str = "No matching initialized token";

/// Where a key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyPlace {
    /// A PEM file.
    File(PathBuf),
    /// A PKCS#11 URI.
    Token(String),
}

impl KeyPlace {
    /// A PKCS#11 URI, or a file; relative to `base`.
    #[must_use]
    pub fn parse(text: &str, base: &Path) -> Self {
        if text.starts_with("pkcs11:") {
            KeyPlace::Token(text.to_owned())
        } else {
            KeyPlace::File(base.join(text))
        }
    }

    /// The key, if it is at hand: an offline key's file is not there, and that is no error.
    ///
    /// # Errors
    /// It is there and is no key, or the token refuses.
    pub fn open(&self) -> Result<Option<Box<dyn Sign>>, Error> {
        match self {
            KeyPlace::File(path) if !path.exists() => Ok(None),
            KeyPlace::File(path) => {
                let text = std::fs::read(path).at("read", path)?;
                let unusable = |why: String| Error::Key { key: path.display().to_string(), why };
                let parsed = pem::parse(&text).map_err(|error| unusable(error.to_string()))?;
                let der = parsed.contents();
                if let Ok(pair) = Ed25519KeyPair::from_pkcs8(der) {
                    return Ok(Some(Box::new(pair)));
                }
                match EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der) {
                    Ok(pair) => Ok(Some(Box::new(pair))),
                    Err(_) => Err(unusable("neither an Ed25519 nor a P-256 key in PKCS#8".to_owned())),
                }
            }
            KeyPlace::Token(uri) => {
                let args = ["pkey", "-engine", "pkcs11", "-inform", "engine", "-in", uri, "-pubout"];
                let public = match openssl(uri, &args, &[]) {
                    // Taken out, as an offline key should be: no error either. A wrong PIN is one.
                    Err(Error::Key { why, .. }) if why.contains(NO_TOKEN) => return Ok(None),
                    other => other?,
                };
                Ok(Some(Box::new(Token { uri: uri.clone(), key: public_key(&public, uri)? })))
            }
        }
    }
}

/// Makes an Ed25519 key at `path`, mode 0600.
///
/// # Errors
/// A file is there already: a key is never overwritten.
pub fn generate(path: &Path) -> Result<(), Error> {
    if path.exists() {
        return Err(Error::Refused {
            problem: format!("{} exists", path.display()),
            hint: "a key is never overwritten; name another file",
        });
    }
    let failed = || Error::Key { key: path.display().to_string(), why: "no random numbers".to_owned() };
    let pair = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| failed())?;
    let text = pem::encode(&pem::Pem::new("PRIVATE KEY", pair.as_ref()));
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).at("make", dir)?;
    }
    Ok(rustiot_durable::atomic_write_private(path, text.as_bytes())?)
}

/// A public key from PEM or hexadecimal text.
fn public_key(text: &[u8], name: &str) -> Result<Key, Error> {
    let text = String::from_utf8_lossy(text);
    text.trim().parse().map_err(|_| Error::Key {
        key: name.to_owned(),
        why: "its public part cannot be read; P-256 is supported on tokens".to_owned(),
    })
}

/// A key on a token.
struct Token {
    uri: String,
    key: Key,
}

#[async_trait]
impl Sign for Token {
    fn tuf_key(&self) -> Key {
        self.key.clone()
    }

    async fn sign(
        &self,
        message: &[u8],
        _: &(dyn SecureRandom + Sync),
    ) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync + 'static>> {
        let args = ["dgst", "-sha256", "-engine", "pkcs11", "-keyform", "engine", "-sign", &self.uri];
        Ok(openssl(&self.uri, &args, message)?)
    }
}

fn openssl(key: &str, args: &[&str], input: &[u8]) -> Result<Vec<u8>, Error> {
    let failed = |why: String| Error::Key { key: key.to_owned(), why };
    let mut child = Command::new("openssl")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(format!("cannot run openssl: {error}")))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input).map_err(|error| failed(error.to_string()))?;
    }
    let out = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
    if out.status.success() {
        return Ok(out.stdout);
    }
    Err(failed(String::from_utf8_lossy(&out.stderr).trim().to_owned()))
}

/// Id of a key, as TUF computes it.
pub(super) fn id(key: &Key) -> Result<Decoded<Hex>, Error> {
    key.key_id().map_err(|error| Error::Key { key: "a public key".to_owned(), why: error.to_string() })
}

/// Hexadecimal text of a key's id.
pub(super) fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Adds the signatures of those of `signers` that have none yet.
pub(super) fn sign<T: Role>(signed: &mut Signed<T>, signers: &[&dyn Sign]) -> Result<(), Error> {
    let bytes = signed.signed.canonical_form().map_err(|error| Error::Metadata { why: error.to_string() })?;
    for signer in signers {
        let keyid = id(&signer.tuf_key())?;
        if signed.signatures.iter().any(|signature| signature.keyid == keyid) {
            continue;
        }
        let failed = |why: String| Error::Key { key: hex(&keyid), why };
        // No signer of ours waits for anything: each is ready when it is asked.
        let sig = signer.sign(&bytes, &SystemRandom::new()).now_or_never();
        let sig =
            sig.ok_or_else(|| failed("it did not answer".to_owned()))?.map_err(|e| failed(e.to_string()))?;
        signed.signatures.push(Signature { keyid, sig: sig.into() });
    }
    Ok(())
}
