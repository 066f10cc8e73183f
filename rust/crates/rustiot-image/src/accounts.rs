//! Users and groups of the root. Ids are fixed in `conf/lab/sysusers.conf`: files in `state` and `data` outlive a
//! release, so a user must have the same number in every one. A user without a fixed number fails the build.

use crate::cache::{remove, write};
use crate::error::{At, Error, refused};
use crate::toolbox::Toolbox;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Below this number Debian's own static ids lie (Debian Policy 9.2.2).
const STATIC_IDS: u32 = 100;
/// From here on ids are people's.
const SYSTEM_IDS_END: u32 = 1000;

/// Writes `/etc/{passwd,group,shadow,gshadow}` of `tree`.
pub(crate) fn create(toolbox: &Toolbox, fixed: &Path, tree: &Path) -> Result<(), Error> {
    let etc = tree.join("etc");
    let masters = tree.join("usr/share/base-passwd");
    for name in ["passwd", "group"] {
        let from = masters.join(format!("{name}.master"));
        let text = fs::read_to_string(&from).at("read", &from)?;
        // Passwords live in the shadow file, which only root reads.
        let text: String = text.lines().map(|l| format!("{}\n", l.replacen(":*:", ":x:", 1))).collect();
        write(&etc.join(name), text)?;
    }
    remove(&masters)?;
    let passwd = fs::read_to_string(etc.join("passwd")).at("read", etc.join("passwd"))?;
    // No account has a password, root included: keys only.
    let shadow: String = names(&passwd).map(|n| format!("{n}:*:::::::\n")).collect();
    write(&etc.join("shadow"), shadow)?;
    let group = fs::read_to_string(etc.join("group")).at("read", etc.join("group"))?;
    write(&etc.join("gshadow"), names(&group).map(|n| format!("{n}:*::\n")).collect::<String>())?;
    for name in ["shadow", "gshadow"] {
        let path = etc.join(name);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).at("set the mode of", path)?;
    }

    let own = etc.join("sysusers.d/00-fixed-ids.conf");
    fs::create_dir_all(etc.join("sysusers.d")).at("create", etc.join("sysusers.d"))?;
    fs::copy(fixed, &own).at("copy", fixed)?;
    toolbox.run_at(crate::root::EPOCH, "systemd-sysusers", [format!("--root={}", tree.display())])?;
    remove(&own)?;
    for leftover in ["passwd-", "group-", "shadow-", "gshadow-", ".pwd.lock", ".updated"] {
        remove(&etc.join(leftover))?;
    }
    let fixed_text = fs::read_to_string(fixed).at("read", fixed)?;
    for file in ["passwd", "group"] {
        let path = etc.join(file);
        let text = fs::read_to_string(&path).at("read", path)?;
        check(&text, &fixed_names(&fixed_text), file)?;
    }
    Ok(())
}

fn names(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|l| l.split(':').next())
}

/// Users and groups of a sysusers.d file with a number.
fn fixed_names(text: &str) -> BTreeSet<String> {
    let name = |line: &str| {
        let mut words = line.split_whitespace();
        let kind = words.next()?;
        let name = words.next()?;
        let id = words.next()?;
        (matches!(kind, "u" | "u!" | "g") && id.starts_with(|c: char| c.is_ascii_digit()))
            .then(|| name.to_owned())
    };
    text.lines().filter_map(name).collect()
}

fn check(text: &str, fixed: &BTreeSet<String>, file: &str) -> Result<(), Error> {
    for line in text.lines() {
        let mut fields = line.split(':');
        let (name, id) =
            (fields.next().unwrap_or_default(), fields.nth(1).and_then(|id| id.parse::<u32>().ok()));
        let dynamic = id.is_some_and(|id| id > STATIC_IDS && id < SYSTEM_IDS_END);
        if dynamic && !fixed.contains(name) {
            return Err(refused(
                format!("`{name}` in /etc/{file} has no fixed id"),
                "add a line for it to conf/lab/sysusers.conf, so that it is the same in every release",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_without_a_fixed_id_is_refused_by_name() {
        let fixed = fixed_names(
            "# c\nu systemd-network 901 - -\nu! sshd 902:65534 x\ng kvm 903\nu floating - \"x\"\n",
        );
        assert_eq!(fixed.len(), 3);
        let good = "root:x:0:0::/:\nsystemd-network:x:901:901:::\nsshd:x:902:65534:::\nperson:x:1000:1000:::\nnobody:x:65534:65534:::\n";
        assert!(check(good, &fixed, "passwd").is_ok());
        let error = check("floating:x:998:998:::\n", &fixed, "passwd").unwrap_err().to_string();
        assert!(error.contains("floating") && error.contains("sysusers.conf"), "{error}");
    }
}
