//! Keys for signing releases and for logging in to development devices. A development CA is made on the spot and never
//! leaves its directory; a production one is named by its files or PKCS#11 URIs ([`Signer`]).

use crate::error::{At, Error, refused};
use crate::toolbox::Toolbox;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Who signs a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signer {
    /// Certificate: a file or a PKCS#11 URI.
    pub cert: String,
    /// Private key: a file or a PKCS#11 URI.
    pub key: String,
    /// Certificates between it and the CA, as files.
    pub intermediates: Vec<PathBuf>,
    /// What devices check bundles against: the CA's certificate.
    pub keyring: PathBuf,
}

/// A pair of keys to log in with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshKey {
    /// For `ssh -i`.
    pub private: PathBuf,
    /// One line for `rustiot.toml`.
    pub public: String,
}

/// The development CA in `dir`: made if the directory is empty or missing, used if it is complete.
///
/// # Errors
/// The directory holds a part of one, or something else: nothing is overwritten.
pub fn development(toolbox: &Toolbox, dir: &Path) -> Result<Signer, Error> {
    let signer = Signer {
        cert: dir.join("dev-signing.cert.pem").to_string_lossy().into_owned(),
        key: dir.join("dev-signing.key.pem").to_string_lossy().into_owned(),
        intermediates: Vec::new(),
        keyring: dir.join("dev-ca.cert.pem"),
    };
    let there = [PathBuf::from(&signer.cert), PathBuf::from(&signer.key), signer.keyring.clone()];
    let count = || there.iter().filter(|p| p.is_file()).count();
    if count() == there.len() {
        return Ok(signer);
    }
    let _alone = alone(dir)?;
    match count() {
        3 => Ok(signer),
        0 => create_alone(toolbox, dir).map(|()| signer),
        _ => Err(refused(
            format!("{} holds part of a development CA", dir.display()),
            "restore the missing file or move the directory away; devices trust the old CA until they are flashed again",
        )),
    }
}

/// Makes a new development CA in `dir`.
///
/// # Errors
/// One is there already: it is never overwritten.
pub fn create(toolbox: &Toolbox, dir: &Path) -> Result<(), Error> {
    let _alone = alone(dir)?;
    create_alone(toolbox, dir)
}

fn create_alone(toolbox: &Toolbox, dir: &Path) -> Result<(), Error> {
    for name in ["dev-ca.cert.pem", "dev-ca.key.pem", "dev-signing.cert.pem", "dev-signing.key.pem"] {
        if dir.join(name).exists() {
            return Err(refused(
                format!("{} exists", dir.join(name).display()),
                "choose another directory; a key that devices trust is never overwritten",
            ));
        }
    }
    // Made beside and moved in, so that an interrupted run leaves no half CA.
    let toolbox = &toolbox.clone().with_path(dir);
    let work = work(dir)?;
    let config = work.join("openssl.cnf");
    crate::cache::write(&config, OPENSSL)?;
    let at = |name: &str| work.join(name).to_string_lossy().into_owned();
    let openssl = |args: &[&str]| toolbox.run("openssl", args).map(|_| ());
    for name in ["dev-ca", "dev-signing"] {
        openssl(&[
            "genpkey",
            "-algorithm",
            "EC",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-out",
            &at(&format!("{name}.key.pem")),
        ])?;
    }
    openssl(&[
        "req",
        "-x509",
        "-new",
        "-config",
        &at("openssl.cnf"),
        "-extensions",
        "ca",
        "-subj",
        "/O=RustIoT development/CN=RustIoT development CA",
        "-days",
        "3650",
        "-key",
        &at("dev-ca.key.pem"),
        "-out",
        &at("dev-ca.cert.pem"),
    ])?;
    openssl(&[
        "req",
        "-new",
        "-config",
        &at("openssl.cnf"),
        "-subj",
        "/O=RustIoT development/CN=RustIoT development signing",
        "-key",
        &at("dev-signing.key.pem"),
        "-out",
        &at("dev-signing.csr"),
    ])?;
    openssl(&[
        "x509",
        "-req",
        "-in",
        &at("dev-signing.csr"),
        "-CA",
        &at("dev-ca.cert.pem"),
        "-CAkey",
        &at("dev-ca.key.pem"),
        "-days",
        "3650",
        "-extfile",
        &at("openssl.cnf"),
        "-extensions",
        "signing",
        "-out",
        &at("dev-signing.cert.pem"),
    ])?;
    // The certificate of the CA comes last: with it the set is complete.
    for name in ["dev-ca.key.pem", "dev-signing.key.pem", "dev-signing.cert.pem", "dev-ca.cert.pem"] {
        let from = work.join(name);
        let mode = if name.ends_with(".key.pem") { 0o600 } else { 0o644 };
        fs::set_permissions(&from, fs::Permissions::from_mode(mode)).at("set the mode of", &from)?;
        fs::hard_link(&from, dir.join(name)).at("move into place", dir.join(name))?;
    }
    crate::cache::remove(&work)
}

const OPENSSL: &str = "[req]\ndistinguished_name = dn\n[dn]\n\
    [ca]\nbasicConstraints = critical,CA:true,pathlen:1\nkeyUsage = critical,keyCertSign,cRLSign\n\
    subjectKeyIdentifier = hash\n\
    [signing]\nbasicConstraints = critical,CA:false\nkeyUsage = critical,digitalSignature\n\
    extendedKeyUsage = critical,codeSigning\nsubjectKeyIdentifier = hash\nauthorityKeyIdentifier = keyid\n";

/// The key to log in to development devices with, in `dir`; made if missing.
///
/// # Errors
/// `ssh-keygen` fails or the directory cannot be written.
pub fn ssh_key(toolbox: &Toolbox, dir: &Path) -> Result<SshKey, Error> {
    let private = dir.join("dev-ssh");
    let public = dir.join("dev-ssh.pub");
    let there = || private.is_file() && public.is_file();
    let _alone = if there() { None } else { Some(alone(dir)?) };
    if !there() {
        if fs::symlink_metadata(&private).is_ok() {
            return Err(refused(
                format!("{} is there without its public half", private.display()),
                format!(
                    "make that with `ssh-keygen -y -f {} > {}`, or move the file away",
                    private.display(),
                    public.display()
                ),
            ));
        }
        // Made beside and moved in, as the CA is: the private half last, so that a half is only ever the public one.
        let work = work(dir)?;
        let made = work.join("dev-ssh");
        let args = ["-q", "-t", "ed25519", "-N", "", "-C", "rustiot-development", "-f"].map(OsStr::new);
        let args = args.into_iter().chain([made.as_os_str()]);
        toolbox.clone().with_path(dir).run("ssh-keygen", args)?;
        fs::copy(work.join("dev-ssh.pub"), &public).at("write", &public)?;
        fs::hard_link(&made, &private).at("move into place", &private)?;
        crate::cache::remove(&work)?;
    }
    let line = fs::read_to_string(&public).at("read", &public)?;
    Ok(SshKey { private, public: line.trim().to_owned() })
}

/// Waits until nobody else makes keys in `dir`, and keeps others out while the value lives.
fn alone(dir: &Path) -> Result<File, Error> {
    private_dir(dir)?;
    let path = dir.join(".lock");
    let lock = File::create(&path).at("create", &path)?;
    lock.lock().at("lock", &path)?;
    Ok(lock)
}

/// A directory for keys. One that is there keeps its mode: it may hold more than ours, and keys have their own.
fn private_dir(dir: &Path) -> Result<(), Error> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).at("create", dir)
}

/// An empty directory in `dir` to make keys in.
fn work(dir: &Path) -> Result<PathBuf, Error> {
    let work = dir.join(".rustiot-new-keys");
    crate::cache::remove(&work)?;
    private_dir(&work)?;
    Ok(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn part_of_a_ca_is_refused_and_a_whole_one_is_used_as_it_is() {
        let toolbox = Toolbox::of_nothing();
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str| crate::cache::write(&dir.path().join(name), "x").unwrap();
        put("dev-signing.key.pem");
        let error = development(&toolbox, dir.path()).unwrap_err();
        assert!(matches!(error, Error::Refused { .. }) && error.to_string().contains("part of"), "{error}");
        put("dev-signing.cert.pem");
        put("dev-ca.cert.pem");
        let signer = development(&toolbox, dir.path()).unwrap();
        assert_eq!(signer.keyring, dir.path().join("dev-ca.cert.pem"));
    }

    #[test]
    fn half_a_login_key_is_never_removed_and_a_directory_keeps_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        crate::cache::write(&dir.path().join("dev-ssh"), "precious").unwrap();
        let error = ssh_key(&Toolbox::of_nothing(), dir.path()).unwrap_err();
        assert!(matches!(error, Error::Refused { .. }) && error.to_string().contains("ssh-keygen -y"), "{error}");
        assert_eq!(fs::read_to_string(dir.path().join("dev-ssh")).unwrap(), "precious");
        assert_eq!(fs::metadata(dir.path()).unwrap().permissions().mode() & 0o777, 0o755);
    }

    #[test]
    fn two_that_make_keys_wait_for_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let first = alone(dir.path()).unwrap();
        let second = File::open(dir.path().join(".lock")).unwrap();
        assert!(second.try_lock().is_err());
        drop(first);
        assert!(second.try_lock().is_ok());
    }

    #[test]
    fn a_key_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["dev-ca.cert.pem", "dev-ca.key.pem", "dev-signing.cert.pem", "dev-signing.key.pem"] {
            let path = dir.path().join(name);
            crate::cache::write(&path, "precious").unwrap();
            let error = create(&Toolbox::of_nothing(), dir.path()).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
            fs::remove_file(&path).unwrap();
        }
    }
}
