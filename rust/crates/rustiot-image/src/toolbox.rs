//! The toolbox: a Debian chroot with every program that a build, a test or a simulated machine needs, so that the
//! workstation needs hardly any and all of us run the same versions. Commands see the workstation's `/proc`, `/dev`,
//! `/sys`, `/tmp`, the repository, the cache and the directory they were started in, in a mount namespace of their
//! own: nothing stays mounted when they end. It is no jail, it runs as root.

use crate::apt::Mirror;
use crate::cache::{Key, stage};
use crate::context::{Context, Progress};
use crate::error::{At, Error, refused};
use crate::packages::Packages;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::Permissions;
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Enters the toolbox: `sh -c ENTER name ROOT COUNT (path place)… program argument…`. Ends in `exec`, so that the process that
/// was spawned becomes the program.
const ENTER: &str = r#"set -e
root=$1; count=$2; shift 2
cwd=$(pwd -P)
for dir in /proc /dev /sys; do mount --rbind "$dir" "$root$dir"; done
while [ "$count" -gt 0 ]; do
  mkdir -p "$root$2"; mount --bind "$1" "$root$2"; count=$((count-1)); shift 2
done
[ -e "$root$cwd" ] && mountpoint -q "$root$cwd" || { mkdir -p "$root$cwd"; mount --bind "$cwd" "$root$cwd"; }
for file in /etc/resolv.conf /etc/hosts; do
  if [ -f "$file" ] && [ -f "$root$file" ]; then mount --bind "$(readlink -f "$file")" "$root$file"; fi
done
exec chroot "$root" env -C "$cwd" "$@"
"#;

/// The environment of every command; `HOME` and `TERM` are the workstation's where it has them.
const ENVIRONMENT: [(&str, &str); 5] = [
    ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/root"),
    ("TERM", "dumb"),
    ("LC_ALL", "C.UTF-8"),
    ("TZ", "UTC"),
];

/// What a workstation's environment may say about the token that signs (RAUC's manual; softhsm2.conf(5); p11-kit(8)).
/// Passed as environment and never as arguments, which everybody can read in the list of processes.
const TOKEN: [&str; 4] = ["RAUC_PKCS11_MODULE", "RAUC_PKCS11_PIN", "SOFTHSM2_CONF", "P11_KIT_SERVER_ADDRESS"];

/// The exit code of the shell and of `env` where the program is not there.
const NOT_FOUND: i32 = 127;

/// A toolbox that is ready.
#[derive(Clone)]
pub struct Toolbox {
    root: PathBuf,
    /// What commands see, and where they see it.
    binds: Vec<(PathBuf, PathBuf)>,
    environment: BTreeMap<OsString, OsString>,
}

/// Without the environment, which may hold a token's PIN.
impl std::fmt::Debug for Toolbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Toolbox")
            .field("root", &self.root)
            .field("binds", &self.binds)
            .finish_non_exhaustive()
    }
}

impl Toolbox {
    /// The toolbox of this repository, built if the cache has none (about a minute and 1.7 GB).
    ///
    /// # Errors
    /// No mirror is known, `mmdebstrap` is missing or fails, or the cache cannot be written.
    pub fn ensure(ctx: &Context, progress: &dyn Progress) -> Result<Self, Error> {
        // /proc/self belongs to whoever runs: no system call of our own needed.
        if std::fs::metadata("/proc/self").at("read", "/proc/self")?.uid() != 0 {
            return Err(refused("mount namespaces and a chroot need root", "run it with sudo"));
        }
        let packages = Packages::load(&ctx.conf("lab/packages.toml"))?;
        let key = Key::new("toolbox 1").text(&packages.suite).text(&packages.toolbox.packages.join(","));
        let title = ("toolbox", "toolbox (Debian chroot with all tools)", 3 << 30);
        let dir = stage(ctx, progress, title, &key.finish(), |work| create(&packages, work, progress))?;
        Ok(Toolbox {
            root: dir.join("root"),
            binds: ["/tmp".as_ref(), ctx.repo(), ctx.cache()].map(|path| (path.into(), path.into())).into(),
            environment: environment(|name| std::env::var_os(name)),
        })
    }

    /// A toolbox in which every command fails, for tests of what happens before one runs.
    #[cfg(test)]
    pub(crate) fn of_nothing() -> Self {
        Toolbox { root: "/nonexistent".into(), binds: Vec::new(), environment: BTreeMap::new() }
    }

    /// Lets commands see `path` too, at its own place. A relative one is below the current directory, which is what
    /// the parent of a bare file name, the empty path, means too.
    #[must_use]
    pub fn with_path(mut self, path: &Path) -> Self {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        // It only fails where there is no current directory, and then the command fails as well.
        let path = std::path::absolute(path).unwrap_or_else(|_| path.into());
        self.binds.push((path.clone(), path));
        self
    }

    /// Lets commands see `path`, an absolute one, at `place` too.
    #[must_use]
    pub(crate) fn with_path_at(mut self, path: &Path, place: &Path) -> Self {
        self.binds.push((path.into(), place.into()));
        self
    }

    /// Gives commands a variable more, or another value of one.
    #[must_use]
    pub fn with_variable(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.environment.insert(name.into(), value.as_ref().into());
        self
    }

    /// Another chroot at `root`, whose commands see the same paths.
    pub(crate) fn other(&self, root: PathBuf) -> Self {
        Toolbox { root, ..self.clone() }
    }

    /// The chroot's root directory. Only for reading.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A command that runs `program` in the toolbox in the same current directory. Its environment is a fixed small
    /// one: pass variables by [`Toolbox::with_variable`]. The spawned process becomes the program itself.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("unshare");
        command.env_clear().envs(&self.environment);
        command.args(["--mount", "--propagation", "private", "--", "/bin/sh", "-c", ENTER, "toolbox"]);
        command.arg(&self.root).arg(self.binds.len().to_string());
        command.args(self.binds.iter().flat_map(|(path, place)| [path, place])).arg(program);
        command
    }

    /// Writes scripts into the directory `dir`, each of which runs one of `programs` in the toolbox, for programs of others
    /// that look for them in `PATH`. They become the program, as [`Toolbox::command`] does, and have the same environment
    /// but for what signs.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn scripts(&self, dir: &Path, programs: &[&str]) -> Result<(), Error> {
        for program in programs {
            let mut script = b"#!/bin/sh\nexec env -i".to_vec();
            let signs = |name: &OsString| TOKEN.iter().any(|token| name == token);
            let environment = self.environment.iter().filter(|(name, _)| !signs(name));
            let environment = environment.map(|(name, value)| {
                let mut word = name.clone();
                word.push("=");
                word.push(value);
                word
            });
            let command = self.command(program);
            let entered = std::iter::once(command.get_program()).chain(command.get_args());
            for word in environment.collect::<Vec<_>>().iter().map(OsString::as_os_str).chain(entered) {
                script.push(b' ');
                script.extend(quoted(word));
            }
            script.extend(b" \"$@\"\n");
            let path = dir.join(program);
            crate::cache::write(&path, script)?;
            std::fs::set_permissions(&path, Permissions::from_mode(0o755)).at("make executable", &path)?;
        }
        Ok(())
    }

    /// Runs `program` to its end; its output only matters when it fails.
    pub(crate) fn run<I, S>(&self, program: &str, args: I) -> Result<String, Error>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        self.found(program, output(program, self.command(program).args(args)))
    }

    /// As [`Toolbox::run`], with the clock of reproducible builds.
    pub(crate) fn run_at<I, S>(&self, epoch: u64, program: &str, args: I) -> Result<String, Error>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let mut command = self.command("env");
        command.arg(format!("SOURCE_DATE_EPOCH={epoch}")).arg(program).args(args);
        self.found(program, output(program, &mut command))
    }

    /// A program that is not there is another failure than one that fails: the toolbox is not what it was.
    fn found<T>(&self, program: &str, done: Result<T, Error>) -> Result<T, Error> {
        match done {
            Err(Error::Program { status, output, .. }) if status.code() == Some(NOT_FOUND) => {
                let said = output.lines().last().unwrap_or_default();
                Err(refused(format!("the toolbox has no {program} ({said})"), self.remedy()))
            }
            other => other,
        }
    }

    /// What a person does where the toolbox lacks a program.
    pub fn remedy(&self) -> String {
        let dir = self.root.parent().unwrap_or(&self.root);
        format!("remove the toolbox {}, the next start builds it again", dir.display())
    }
}

/// One word for a shell, whatever is in it.
fn quoted(word: &OsStr) -> Vec<u8> {
    let mut quoted = vec![b'\''];
    for byte in word.as_bytes() {
        match byte {
            b'\'' => quoted.extend(b"'\\''"),
            other => quoted.push(*other),
        }
    }
    quoted.push(b'\'');
    quoted
}

/// What commands get of the workstation's environment, which `of` looks up.
fn environment(of: impl Fn(&str) -> Option<OsString>) -> BTreeMap<OsString, OsString> {
    let fixed = ENVIRONMENT.iter().map(|(name, value)| {
        let own = of(name).filter(|_| ["HOME", "TERM"].contains(name));
        (OsString::from(name), own.unwrap_or_else(|| value.into()))
    });
    let token = TOKEN.iter().filter_map(|name| Some((OsString::from(name), of(name)?)));
    fixed.chain(token).collect()
}

fn create(packages: &Packages, work: &Path, progress: &dyn Progress) -> Result<(), Error> {
    debian(&packages.suite, "amd64,arm64", &packages.toolbox.packages, &work.join("root"), progress)?;
    // The mount points for the workstation's own files.
    for file in ["resolv.conf", "hosts"] {
        let path = work.join("root/etc").join(file);
        if std::fs::symlink_metadata(&path).is_err() {
            crate::cache::write(&path, "")?;
        }
    }
    Ok(())
}

/// Installs Debian packages, with what they depend on, into a new chroot at `root`.
pub(crate) fn debian(
    suite: &str,
    architectures: &str,
    packages: &[String],
    root: &Path,
    progress: &dyn Progress,
) -> Result<(), Error> {
    let mirror = Mirror::discover(Path::new("/etc/apt"))?;
    // It mounts /dev and /proc in the new chroot. In a namespace of its own these are gone when it is, even if it was
    // killed, and can never be taken for a part of the chroot when that is removed.
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "--", "mmdebstrap"]);
    if let Err(e) = Command::new("mmdebstrap").arg("--version").output()
        && e.kind() == std::io::ErrorKind::NotFound
    {
        return Err(refused("mmdebstrap is not installed", "run: apt-get install mmdebstrap"));
    }
    command.args(["--variant=apt", "--mode=root"]).arg(format!("--architectures={architectures}"));
    for excluded in ["doc", "man", "locale"] {
        command.arg(format!("--dpkgopt=path-exclude=/usr/share/{excluded}/*"));
    }
    command.arg("--aptopt=APT::Install-Recommends \"false\"");
    command.arg(format!("--include={}", packages.join(",")));
    command.arg(suite).arg(root).args(mirror.lines(suite));
    watched("mmdebstrap", &mut command, progress)
}

/// Runs a command to its end and returns its standard output.
pub(crate) fn output(program: &str, command: &mut Command) -> Result<String, Error> {
    let out = command
        .stdin(Stdio::null())
        .output()
        .map_err(|source| Error::Start { program: program.into(), source })?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    let said = [out.stdout, out.stderr].concat();
    Err(Error::Program {
        program: program.into(),
        status: out.status,
        output: tail(&String::from_utf8_lossy(&said)),
    })
}

/// Runs a command that takes long, passing on each line of its standard error.
pub(crate) fn watched(program: &str, command: &mut Command, progress: &dyn Progress) -> Result<(), Error> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| Error::Start { program: program.into(), source })?;
    let mut said = String::new();
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line);
            progress.line(&line);
            said.push_str(&line);
            said.push('\n');
        }
    }
    let status = child.wait().at("wait for", program)?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Program { program: program.into(), status, output: tail(&said) })
}

/// The last lines, for an error message.
fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(30)..).unwrap_or_default().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_get_a_small_environment_and_what_signs() {
        let mine = |name: &str| match name {
            "RAUC_PKCS11_PIN" | "TERM" | "PATH" | "LD_PRELOAD" => Some(OsString::from("mine")),
            _ => None,
        };
        let found = environment(mine);
        let get = |name: &str| found.get(OsStr::new(name)).and_then(|value| value.to_str());
        assert_eq!(get("RAUC_PKCS11_PIN"), Some("mine"));
        assert_eq!((get("TERM"), get("HOME")), (Some("mine"), Some("/root")));
        assert_eq!(get("PATH"), Some("/usr/sbin:/usr/bin:/sbin:/bin"));
        assert_eq!((get("LD_PRELOAD"), get("RAUC_PKCS11_MODULE")), (None, None));
    }

    #[test]
    fn commands_see_a_relative_path_where_it_is_and_not_glued_to_the_root() {
        let here = std::env::current_dir().unwrap();
        let toolbox =
            ["keys", "", "/abs"].iter().fold(Toolbox::of_nothing(), |t, p| t.with_path(Path::new(p)));
        assert_eq!(
            toolbox.binds,
            [here.join("keys"), here.clone(), "/abs".into()].map(|path| (path.clone(), path))
        );
    }

    #[test]
    fn a_program_that_the_toolbox_lacks_is_named_with_the_way_to_get_it() {
        // This machine itself as a toolbox, entered in the real way; that needs root.
        let toolbox = Toolbox { root: "/".into(), ..Toolbox::of_nothing() };
        let toolbox = toolbox.with_variable("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        if let Err(error) = toolbox.run("true", [""; 0]) {
            return println!("skipped: cannot enter a chroot here: {error}");
        }
        for run in [toolbox.run("no-such-qemu", [""; 0]), toolbox.run_at(0, "no-such-qemu", [""; 0])] {
            let error = run.unwrap_err();
            assert!(matches!(error, Error::Refused { .. }), "{error}");
            let error = error.to_string();
            assert!(error.contains("no no-such-qemu") && error.contains("remove the toolbox"), "{error}");
        }
        assert!(matches!(toolbox.run("false", [""; 0]).unwrap_err(), Error::Program { .. }));
    }

    #[test]
    fn scripts_pass_on_every_word_and_no_pin() {
        let dir = tempfile::tempdir().unwrap();
        // This machine itself as a toolbox; to enter it needs root.
        let toolbox = Toolbox { root: "/".into(), ..Toolbox::of_nothing() };
        let toolbox = toolbox.with_variable("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        let toolbox = toolbox.with_variable("RAUC_PKCS11_PIN", "geheim").with_variable("ODD", "it's $HOME");
        if let Err(error) = toolbox.run("true", [""; 0]) {
            return println!("skipped: cannot enter a chroot here: {error}");
        }
        toolbox.scripts(dir.path(), &["printf", "printenv"]).unwrap();
        let said = |program: &str, words: &[&str]| {
            let output = Command::new(dir.path().join(program)).args(words).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        assert_eq!(said("printf", &["<%s>", "a b", "'", "$x", ""]), "<a b><'><$x><>");
        assert_eq!(said("printenv", &["ODD"]), "it's $HOME\n");
        assert_eq!(said("printenv", &["RAUC_PKCS11_PIN"]), "");
        assert!(!std::fs::read_to_string(dir.path().join("printenv")).unwrap().contains("geheim"));
    }

    #[test]
    fn a_pin_is_in_no_argument_and_in_no_debug_text() {
        let toolbox = Toolbox::of_nothing().with_variable("RAUC_PKCS11_PIN", "geheim");
        assert!(!format!("{toolbox:?}").contains("geheim"));
        let command = toolbox.command("true");
        assert!(command.get_args().all(|argument| argument != "geheim"));
        assert!(command.get_envs().any(|(_, value)| value == Some(OsStr::new("geheim"))));
    }
}
