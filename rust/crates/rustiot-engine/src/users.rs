//! Who a container's program runs as: names looked up in the container's own `passwd` and `group`.
//!
//! Never follows a link out of the container's root. Called at start and at exec.

use std::path::Path;

use rustiot_docker_api::Error;

use crate::beneath::Root;

/// Numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub home: String,
}

/// A file of the container may be anything: this much of it is looked at.
const LIMIT: u64 = 1 << 20;

fn lines(root: Option<&Root>, path: &str) -> Vec<Vec<String>> {
    let text = root.and_then(|root| root.read(Path::new(path), LIMIT).ok()).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.lines().map(|line| line.split(':').map(str::to_owned).collect()).collect()
}

/// `user`, `uid`, `user:group`, `uid:gid`, with `--group-add`.
///
/// # Errors
/// A name that is not there.
pub fn resolve(root: Option<&Root>, wanted: &str, add: &[String]) -> Result<User, Error> {
    let (name, group) = match wanted.split_once(':') {
        Some((name, group)) => (name, Some(group).filter(|g| !g.is_empty())),
        None => (wanted, None),
    };
    let field = |line: &Vec<String>, n: usize| line.get(n).cloned().unwrap_or_default();
    let passwd = lines(root, "etc/passwd");
    let groups = lines(root, "etc/group");
    let wanted_name = if name.is_empty() { "0" } else { name };
    let found = passwd.iter().find(|l| field(l, 0) == wanted_name).or_else(|| {
        let number: u32 = wanted_name.parse().ok()?;
        passwd.iter().find(|l| field(l, 2).parse() == Ok(number))
    });
    let mut user = User { home: "/".to_owned(), ..User::default() };
    match found {
        Some(line) => {
            user.uid = field(line, 2).parse().unwrap_or(0);
            user.gid = field(line, 3).parse().unwrap_or(0);
            user.home = field(line, 5);
        }
        None => {
            user.uid = wanted_name.parse().map_err(|_| {
                Error::Invalid(format!(
                    "unable to find user {wanted_name}: no matching entries in passwd file"
                ))
            })?;
        }
    }
    let number = |name: &str| -> Result<u32, Error> {
        let line = groups.iter().find(|l| field(l, 0) == name);
        match line.map(|l| field(l, 2)).unwrap_or_else(|| name.to_owned()).parse() {
            Ok(number) => Ok(number),
            Err(_) => {
                Err(Error::Invalid(format!("Unable to find group {name}: no matching entries in group file")))
            }
        }
    };
    if let Some(group) = group {
        user.gid = number(group)?;
    } else if let Some(name) = found.map(|l| field(l, 0)) {
        let member = |line: &&Vec<String>| field(line, 3).split(',').any(|m| m == name);
        user.groups = groups.iter().filter(member).filter_map(|l| field(l, 2).parse().ok()).collect();
    }
    for name in add {
        user.groups.push(number(name)?);
    }
    user.groups.retain(|g| *g != user.gid);
    user.groups.sort_unstable();
    user.groups.dedup();
    if user.home.is_empty() {
        user.home = "/".to_owned();
    }
    Ok(user)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_come_from_the_container() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::write(
            dir.path().join("etc/passwd"),
            "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\nbroken\n",
        )
        .unwrap();
        std::fs::write(
            dir.path().join("etc/group"),
            "root:x:0:\napp:x:1001:\nvideo:x:44:app,other\nadm:x:4:root\n",
        )
        .unwrap();
        let root = Root::open(dir.path()).unwrap();
        let of = |name: &str, add: &[&str]| {
            let add: Vec<String> = add.iter().map(|s| (*s).to_owned()).collect();
            resolve(Some(&root), name, &add).map_err(|e| e.to_string())
        };
        let app = of("app", &[]).unwrap();
        assert_eq!((app.uid, app.gid, app.groups, app.home.as_str()), (1000, 1001, vec![44], "/home/app"));
        assert_eq!(of("1000", &[]).unwrap().gid, 1001);
        assert_eq!(of("7:9", &[]).unwrap(), User { uid: 7, gid: 9, groups: vec![], home: "/".to_owned() });
        assert_eq!(of("app:video", &["adm", "77"]).unwrap().groups, [4, 77]);
        assert_eq!(of("", &[]).unwrap().uid, 0);
        assert!(of("nobody", &[]).is_err());
        assert!(of("0:nogroup", &[]).is_err());
    }
}
