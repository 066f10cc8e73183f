//! Which kernel modules something needs, and in what order they load: from the index that `depmod` wrote.

use crate::error::{At, Error, refused};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The index of a kernel's modules.
#[derive(Debug, Default)]
pub(crate) struct Index {
    dir: PathBuf,
    /// Module → (path below the index's directory, modules it needs).
    modules: BTreeMap<String, (String, Vec<String>)>,
    /// Modules that must be there first without a symbol saying so.
    soft: BTreeMap<String, Vec<String>>,
    builtin: BTreeSet<String>,
    /// Literal alias → modules; patterns are for devices and do not matter here.
    aliases: BTreeMap<String, Vec<String>>,
}

/// A module's name as the kernel spells it, from a path or a name.
fn canonical(name: &str) -> String {
    let file = name.rsplit('/').next().unwrap_or(name);
    let stem = file.split(".ko").next().unwrap_or(file);
    stem.replace('-', "_")
}

impl Index {
    /// Reads the index in `dir` (`…/lib/modules/<release>`).
    pub(crate) fn load(dir: &Path) -> Result<Self, Error> {
        let read = |name: &str| {
            let path = dir.join(name);
            std::fs::read_to_string(&path).at("read", path)
        };
        let mut index = Index::parse(
            &read("modules.dep")?,
            &read("modules.softdep")?,
            &read("modules.builtin")?,
            &read("modules.alias")?,
        );
        index.dir = dir.into();
        Ok(index)
    }

    fn parse(dep: &str, softdep: &str, builtin: &str, alias: &str) -> Self {
        let mut index = Index::default();
        for line in dep.lines() {
            if let Some((path, needs)) = line.split_once(':') {
                let needs = needs.split_whitespace().map(canonical).collect();
                index.modules.insert(canonical(path), (path.to_owned(), needs));
            }
        }
        for line in softdep.lines() {
            let mut words = line.split_whitespace();
            if words.next() == Some("softdep")
                && let Some(module) = words.next()
            {
                let pre = words.skip_while(|w| *w != "pre:").skip(1).take_while(|w| *w != "post:");
                index.soft.entry(canonical(module)).or_default().extend(pre.map(str::to_owned));
            }
        }
        index.builtin = builtin.lines().map(canonical).collect();
        for line in alias.lines() {
            let mut words = line.split_whitespace();
            if let (Some("alias"), Some(alias), Some(module)) = (words.next(), words.next(), words.next())
                && !alias.contains(['*', '?', '['])
            {
                index.aliases.entry(alias.replace('-', "_")).or_default().push(canonical(module));
            }
        }
        index
    }

    /// Directory of the index.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Name of the kernel release.
    pub(crate) fn release(&self) -> String {
        self.dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// Paths of `names` and all that they need, in an order in which they load, without what the kernel has built in.
    ///
    /// # Errors
    /// A name is neither a module nor built in.
    pub(crate) fn closure<'a>(
        &self,
        names: impl IntoIterator<Item = &'a str>,
        file: &str,
    ) -> Result<Vec<String>, Error> {
        let mut done = BTreeSet::new();
        let mut order = Vec::new();
        for name in names {
            let name = canonical(name);
            if !self.modules.contains_key(&name) && !self.builtin.contains(&name) {
                return Err(refused(
                    format!("{file}: kernel {} has no module `{name}`", self.release()),
                    "correct the name or remove it",
                ));
            }
            self.visit(&name, &mut done, &mut order);
        }
        Ok(order)
    }

    fn visit(&self, name: &str, done: &mut BTreeSet<String>, order: &mut Vec<String>) {
        if !done.insert(name.to_owned()) {
            return;
        }
        let Some((path, needs)) = self.modules.get(name) else { return };
        for need in needs.iter().rev() {
            self.visit(need, done, order);
        }
        for soft in self.soft.get(name).into_iter().flatten() {
            for provider in self.providers(soft) {
                self.visit(&provider, done, order);
            }
        }
        order.push(path.clone());
    }

    /// The modules that a soft dependency may mean. Among several implementations of an algorithm all count: which one
    /// the processor can use is not known here.
    fn providers(&self, name: &str) -> Vec<String> {
        let module = canonical(name);
        if self.builtin.contains(&module) {
            return Vec::new();
        }
        if self.modules.contains_key(&module) {
            return vec![module];
        }
        // `softdep x pre: crc32c` means the alias crypto-crc32c of the crypto API.
        let crypto = format!("crypto_{module}");
        [&module, &crypto].iter().filter_map(|a| self.aliases.get(a.as_str())).flatten().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn index() -> Index {
        Index::parse(
            "kernel/fs/ext4/ext4.ko.xz: kernel/fs/jbd2/jbd2.ko.xz kernel/fs/mbcache.ko.xz\n\
             kernel/fs/jbd2/jbd2.ko.xz:\nkernel/fs/mbcache.ko.xz:\nkernel/crypto/crc32c_generic.ko.xz:\n\
             kernel/crypto/crc32c-intel.ko.xz:\nkernel/a.ko: kernel/b.ko kernel/c.ko\nkernel/b.ko: kernel/c.ko\n\
             kernel/c.ko:\n",
            "# soft\nsoftdep ext4 pre: crc32c post: other\n",
            "kernel/drivers/virtio/virtio_pci.ko\n",
            "alias crypto-crc32c crc32c_generic\nalias crypto-crc32c crc32c_intel\nalias pci:v*d* a\n",
        )
    }

    #[test]
    fn what_is_needed_comes_before_what_needs_it() {
        let order = index().closure(["a"], "f").unwrap();
        assert_eq!(order, ["kernel/c.ko", "kernel/b.ko", "kernel/a.ko"]);
        let order = index().closure(["virtio-pci", "ext4"], "f").unwrap();
        assert_eq!(
            order,
            [
                "kernel/fs/mbcache.ko.xz",
                "kernel/fs/jbd2/jbd2.ko.xz",
                "kernel/crypto/crc32c_generic.ko.xz",
                "kernel/crypto/crc32c-intel.ko.xz",
                "kernel/fs/ext4/ext4.ko.xz"
            ]
        );
    }

    #[test]
    fn an_unknown_name_is_an_error_with_its_file() {
        let error = index().closure(["erofs"], "conf/x.toml").unwrap_err().to_string();
        assert!(error.contains("conf/x.toml") && error.contains("`erofs`"), "{error}");
    }

    const LINE: &str = "(kernel/)?[a-c]\\.ko:?( [a-c]\\.ko){0,3}|softdep [a-c]( pre:)?( [a-cx]){0,2}( post: [a-c])?|\
                        alias [a-cx*-]{1,2} [a-c]|.{0,12}";

    proptest! {
        #[test]
        fn any_index_is_read_and_each_module_of_it_loads_once(
            lines in proptest::collection::vec(LINE, 0..16), names in proptest::collection::vec("[a-d]", 0..4),
        ) {
            let text = lines.join("\n");
            let index = Index::parse(&text, &text, &text, &text);
            let Ok(order) = index.closure(names.iter().map(String::as_str), "f") else {
                let known = |name: &String| index.modules.contains_key(name) || index.builtin.contains(name);
                prop_assert!(!names.iter().all(known));
                return Ok(());
            };
            let known: BTreeSet<&String> = index.modules.values().map(|(path, _)| path).collect();
            prop_assert!(order.iter().all(|path| known.contains(path)));
            let once: BTreeSet<&String> = order.iter().collect();
            prop_assert_eq!(once.len(), order.len());
            for name in &names {
                prop_assert!(index.modules.get(name).is_none_or(|(path, _)| order.contains(path)));
            }
        }
    }
}
