//! The launcher as a user without root gets it: what he set reaches the command, and no secret is an argument of sudo.
//! Everything that it would start is a stand-in.

#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

fn program(path: &Path, script: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// What the launcher does as a user with `variables`: its arguments to sudo, a line each, then the command's environment.
fn launched(variables: &[(&str, &str)]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let (clone, bin) = (dir.path().join("clone"), dir.path().join("bin"));
    for tool in ["mmdebstrap", "ssh", "cc", "shellcheck"] {
        program(&bin.join(tool), "exit 0");
    }
    program(&bin.join("id"), "echo 1000");
    program(&bin.join("cargo"), "echo cargo 1.99.0");
    // As sudo does: an empty environment, but for what is named, and the command's arguments as they are.
    program(
        &bin.join("sudo"),
        r#"printf 'sudo: %s\n' "$@"
case "$*" in *apt-get*) exit 1;; esac
case $1 in --preserve-env=*) keep=,${1#*=},; shift;; esac
for name in $(env | cut -d = -f 1); do
  case $keep in *,$name,*) ;; *) unset "$name";; esac
done
PATH=/usr/bin:/bin; export PATH
exec "$@""#,
    );
    fs::create_dir_all(&clone).unwrap();
    fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../rustiot"), clone.join("rustiot")).unwrap();
    program(&clone.join("rust/target/debug/rustiot-cli"), r#"echo "command: $*"; env"#);
    let output = Command::new("bash")
        .arg(clone.join("rustiot"))
        .args(["bundle", "two words"])
        .env_clear()
        .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
        .env("HOME", dir.path())
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn what_was_set_reaches_the_command_through_sudo_and_no_secret_is_an_argument() {
    let variables = [
        ("RAUC_PKCS11_MODULE", "/usr/lib/token.so"),
        ("RAUC_PKCS11_PIN", "geheim"),
        ("SOFTHSM2_CONF", "/tmp/softhsm.conf"),
        ("P11_KIT_SERVER_ADDRESS", "unix:path=/run/p11"),
        ("RUSTIOT_MIRROR", "http://mirror/debian"),
        ("RUSTIOT_ACCEL", "kvm"),
        ("RUSTIOT_CACHE", "/var/tmp/r"),
        ("https_proxy", "http://user:geheim@proxy:1"),
        ("no_proxy", "localhost"),
        ("CI", "true"),
        ("SOURCE_DATE_EPOCH", "1764201600"),
    ];
    let said = launched(&[&variables[..], &[("OTHER", "x")]].concat());
    let lines: Vec<&str> = said.lines().collect();
    for (name, value) in variables {
        assert!(lines.contains(&&*format!("{name}={value}")), "{name} is lost: {said}");
    }
    assert!(lines.contains(&"command: bundle two words"), "{said}");
    assert!(!lines.iter().any(|line| line.starts_with("sudo: ") && line.contains("geheim")), "{said}");
    assert!(!said.contains("OTHER"), "{said}");
}

#[test]
fn sudo_is_asked_for_nothing_where_nothing_is_set() {
    let said = launched(&[("RUSTIOT_CACHE", "")]);
    assert!(!said.contains("--preserve-env"), "{said}");
    assert!(said.lines().any(|line| line.starts_with("RUSTIOT_ROOT=")), "{said}");
}
