//! Keys of a repository in a real PKCS#11 token (SoftHSM): made there, used through OpenSSL, never outside.
#![cfg(test)]
#![expect(clippy::disallowed_methods, reason = "files of tests, where a lost one is made again")]

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const PIN: &str = "4711";
const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";

/// A token with keys `root` and `targets`, and the environment in which it is plugged in.
struct Token {
    dir: tempfile::TempDir,
}

fn run(command: &mut Command) -> Option<Output> {
    command.output().ok()
}

impl Token {
    /// None where this machine has no SoftHSM, or OpenSSL no engine for it.
    fn new() -> Option<Token> {
        let token = Token { dir: tempfile::tempdir().unwrap() };
        std::fs::create_dir(token.path("tokens")).unwrap();
        let conf = format!("directories.tokendir = {}\n", token.path("tokens").display());
        std::fs::write(token.path("softhsm2.conf"), conf).unwrap();
        std::fs::create_dir(token.path("none")).unwrap();
        let conf = format!("directories.tokendir = {}\n", token.path("none").display());
        std::fs::write(token.path("out.conf"), conf).unwrap();
        std::fs::write(token.path("pin"), PIN).unwrap();
        std::fs::write(token.path("wrong-pin"), "0000").unwrap();
        let init = ["--init-token", "--free", "--label", "repo", "--so-pin", "47110815", "--pin", PIN];
        run(token.plugged("softhsm2-util").args(init)).filter(|output| output.status.success())?;
        for (name, id) in [("root", "01"), ("targets", "02")] {
            let session = ["--module", MODULE, "--token-label", "repo", "--login", "--pin", PIN];
            let pair = ["--keypairgen", "--key-type", "EC:prime256v1", "--label", name, "--id", id];
            run(token.plugged("pkcs11-tool").args(session).args(pair))
                .filter(|output| output.status.success())?;
        }
        let engine = run(Command::new("openssl").args(["engine", "pkcs11"]))?;
        engine.status.success().then_some(token)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn plugged(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("SOFTHSM2_CONF", self.path("softhsm2.conf")).env("PKCS11_MODULE_PATH", MODULE);
        command
    }

    fn uri(&self, object: &str, pin: &str) -> String {
        format!("pkcs11:token=repo;object={object};pin-source=file:{}", self.path(pin).display())
    }

    /// `rustiot repo … --json` with the token plugged in, or not.
    fn repo(&self, plugged: bool, args: &[&str]) -> (Value, Output) {
        let mut command = self.plugged(env!("CARGO_BIN_EXE_rustiot-cli"));
        if !plugged {
            command.env("SOFTHSM2_CONF", self.path("out.conf"));
        }
        let repo = self.path("repo");
        let output = command.arg("repo").args(args).arg("--json").arg("--repo").arg(repo).output().unwrap();
        (serde_json::from_slice(&output.stdout).unwrap_or_default(), output)
    }

    fn metadata(&self, name: &str) -> Option<Value> {
        let text = std::fs::read(self.path("repo/public/metadata").join(name)).ok()?;
        Some(serde_json::from_slice(&text).unwrap())
    }
}

/// Whether a signature of the file is that of the key that its public half makes, by OpenSSL without the token.
fn is_signed(file: &Value, key: &Value, dir: &Path) -> bool {
    let id = key["keyid"].as_str().unwrap();
    let public = key["public"].as_str().unwrap();
    let signature = file["signatures"].as_array().unwrap().iter().find(|s| s["keyid"] == id);
    let Some(signature) = signature.and_then(|s| s["sig"].as_str()) else { return false };
    let bytes: Vec<u8> = (0..signature.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&signature[at..at + 2], 16).unwrap())
        .collect();
    // The canonical form (OLPC): sorted keys, no blanks, line ends as they are. serde_json's own order is the sorted one.
    let canonical = serde_json::to_string(&file["signed"]).unwrap().replace("\\n", "\n");
    let [message, sig, pem] = ["message", "sig", "public.pem"].map(|name| dir.join(name));
    std::fs::write(&message, canonical).unwrap();
    std::fs::write(&sig, bytes).unwrap();
    std::fs::write(&pem, public).unwrap();
    let mut openssl = Command::new("openssl");
    openssl.args(["dgst", "-sha256", "-verify"]).arg(&pem).arg("-signature").arg(&sig).arg(&message);
    run(&mut openssl).unwrap().status.success()
}

/// The one key of a role in the root metadata.
fn key_of(root: &Value, role: &str) -> Value {
    let id = root["signed"]["roles"][role]["keyids"][0].clone();
    let public = root["signed"]["keys"][id.as_str().unwrap()]["keyval"]["public"].clone();
    serde_json::json!({"keyid": id, "public": public})
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_repository_lives_by_keys_that_never_leave_their_token() {
    let Some(token) = Token::new() else {
        println!("skipped: this machine has no softhsm2, opensc or libengine-pkcs11-openssl");
        return;
    };
    let (root_key, targets_key) = (token.uri("root", "pin"), token.uri("targets", "pin"));

    let wrong = token.uri("root", "wrong-pin");
    let (_, output) = token.repo(true, &["init", "--root-key", &wrong, "--targets-key", &targets_key]);
    assert!(!output.status.success() && said(&output).contains("PIN incorrect"), "{}", said(&output));
    assert!(token.metadata("1.root.json").is_none(), "a wrong PIN made a root");

    let (_, output) = token.repo(true, &["init", "--root-key", &root_key, "--targets-key", &targets_key]);
    assert!(output.status.success(), "{}", said(&output));
    let keys: Vec<String> = std::fs::read_dir(token.path("repo/keys"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(keys.iter().all(|name| !name.starts_with("root") && !name.starts_with("targets")), "{keys:?}");
    let root = token.metadata("1.root.json").unwrap();
    let targets = token.metadata("1.targets.json").unwrap();
    assert!(is_signed(&root, &key_of(&root, "root"), token.dir.path()), "{root}");
    assert!(is_signed(&targets, &key_of(&root, "targets"), token.dir.path()), "{targets}");
    let mut forged = root.clone();
    forged["signed"]["version"] = 9.into();
    assert!(!is_signed(&forged, &key_of(&root, "root"), token.dir.path()), "anything passes");

    // In the drawer: what needs it waits, what does not goes on.
    let (_, output) = token.repo(false, &["refresh"]);
    assert!(output.status.success(), "{}", said(&output));
    let (waits, output) = token.repo(false, &["rotate", "root"]);
    assert!(output.status.success() && waits["waiting"]["root"][0] == 0, "{waits} {}", said(&output));
    assert!(token.metadata("2.root.json").is_none());
    let (done, output) = token.repo(true, &["sign", "--key", &root_key]);
    assert!(output.status.success(), "{done} {}", said(&output));
    let second = token.metadata("2.root.json").expect("the token was there and nothing was published");
    assert!(is_signed(&second, &key_of(&root, "root"), token.dir.path()), "{second}");

    // The token is replaced by a file: the old root key still has to say so.
    let id = key_of(&root, "targets")["keyid"].as_str().unwrap().to_owned();
    let file = token.path("targets-2.pem");
    let made =
        Command::new(env!("CARGO_BIN_EXE_rustiot-cli")).args(["repo", "keys", "--out"]).arg(&file).output();
    assert!(made.unwrap().status.success());
    let rotate = ["rotate", "targets", "--add", file.to_str().unwrap(), "--remove", &id];
    let (done, output) = token.repo(true, &rotate);
    assert!(output.status.success(), "{done} {}", said(&output));
    let third = token.metadata("3.root.json").unwrap();
    assert_ne!(key_of(&third, "targets")["keyid"], id.as_str());
    assert!(is_signed(&third, &key_of(&root, "root"), token.dir.path()), "{third}");
}
