//! Checks on the workspace as a whole: what `cargo deny` would say of licences and sources (for
//! machines without it), and that the lists in `docs/` name every dependency and every crate.

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The parts of `cargo metadata` that are looked at.
#[derive(Debug, Deserialize)]
pub struct Metadata {
    packages: Vec<Package>,
    workspace_members: BTreeSet<String>,
}

#[derive(Debug, Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    license_file: Option<PathBuf>,
    manifest_path: Option<PathBuf>,
    source: Option<String>,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    path: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Deny {
    licenses: Licenses,
}

#[derive(Debug, Deserialize)]
struct Licenses {
    allow: Vec<String>,
}

/// Asks cargo about the workspace at `rust`.
pub fn metadata(rust: &Path) -> Result<Metadata> {
    let mut cargo = Command::new("cargo");
    cargo.args(["metadata", "--format-version", "1", "--filter-platform", "x86_64-unknown-linux-gnu"]);
    let output = cargo.current_dir(rust).output().context("cannot run cargo")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    serde_json::from_slice(&output.stdout).context("cannot read what cargo says of the workspace")
}

/// Licences that `deny.toml` does not allow, and crates from anywhere but the registry.
pub fn supply(metadata: &Metadata, deny: &str) -> Result<Vec<String>> {
    let deny: Deny = toml::from_str(deny).context("deny.toml")?;
    let mut allowed = Vec::new();
    for license in &deny.licenses.allow {
        allowed.push(spdx::Licensee::parse(license).with_context(|| format!("deny.toml: {license}"))?);
    }
    let mut problems = Vec::new();
    for package in &metadata.packages {
        let Package { name, version, license, source, .. } = package;
        if source.as_deref().is_some_and(|source| !source.starts_with("registry+")) {
            problems.push(format!("{name} {version} comes from {}", source.as_deref().unwrap_or_default()));
        }
        let license = license.as_deref().unwrap_or_else(|| in_file(package));
        let parsed = spdx::Expression::parse_mode(license, spdx::ParseMode::LAX);
        let fine = parsed.is_ok_and(|expression| {
            expression.evaluate(|needed| allowed.iter().any(|licensee| licensee.satisfies(needed)))
        });
        if !fine {
            problems.push(format!("{name} {version} has a licence that is not allowed: {license:?}"));
        }
    }
    Ok(problems)
}

/// The licence of a package that has it in a file alone, as far as we know the text. cargo-deny knows more of them.
fn in_file(package: &Package) -> &'static str {
    const MIT: &str = "Permission is hereby granted, free of charge, to any person obtaining a copy of";
    let directory = package.manifest_path.as_deref().and_then(Path::parent);
    let text = directory
        .zip(package.license_file.as_deref())
        .and_then(|(directory, file)| std::fs::read_to_string(directory.join(file)).ok())
        .unwrap_or_default();
    if text.contains(MIT) { "MIT" } else { "" }
}

/// Direct dependencies that `docs/dependencies.md` does not name, and members of the workspace
/// that `docs/map.md` does not.
pub fn lists(metadata: &Metadata, dependencies: &str, map: &str) -> Vec<String> {
    let named: BTreeSet<&str> = dependencies
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split('|').next())
        .flat_map(|names| names.split(','))
        .map(|name| name.trim().trim_matches('`'))
        .collect();
    let ours = || metadata.packages.iter().filter(|p| metadata.workspace_members.contains(&p.id));
    let mut problems = BTreeSet::new();
    for package in ours() {
        if !map.contains(&format!("`{}`", package.name)) {
            problems.insert(format!("docs/map.md has no line for {}", package.name));
        }
        for dependency in package.dependencies.iter().filter(|dependency| dependency.path.is_none()) {
            if !named.contains(dependency.name.as_str()) {
                problems.insert(format!("docs/dependencies.md has no line for {}", dependency.name));
            }
        }
    }
    problems.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(license: &str, source: &str) -> Metadata {
        let text = format!(
            r#"{{"workspace_members": ["ours"], "packages": [
                {{"id": "ours", "name": "rustiot-x", "version": "0.1.0", "license": "MIT", "source": null,
                  "dependencies": [{{"name": "serde", "path": null}}, {{"name": "rustiot-y", "path": "/y"}}]}},
                {{"id": "theirs", "name": "serde", "version": "1.0.0", "license": "{license}",
                  "source": "{source}", "dependencies": []}}]}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    const DENY: &str = "[licenses]\nallow = [\"MIT\", \"Unicode-3.0\", \"Apache-2.0 WITH LLVM-exception\"]\n";

    #[test]
    fn allowed_licences_pass_however_they_are_combined() {
        for license in ["MIT", "MIT OR GPL-3.0", "(MIT OR Apache-2.0) AND Unicode-3.0", "MIT/Apache-2.0"] {
            assert_eq!(supply(&sample(license, "registry+x"), DENY).unwrap(), [""; 0], "{license}");
        }
    }

    #[test]
    fn other_licences_and_sources_are_named() {
        for license in ["GPL-3.0", "MIT AND GPL-3.0", "", "nonsense(("] {
            let problems = supply(&sample(license, "registry+x"), DENY).unwrap();
            assert_eq!(problems.len(), 1, "{license}: {problems:?}");
        }
        let problems = supply(&sample("MIT", "git+somewhere"), DENY).unwrap();
        assert_eq!(problems, ["serde 1.0.0 comes from git+somewhere"]);
    }

    #[test]
    fn lists_must_be_complete() {
        let metadata = sample("MIT", "registry+x");
        let (dependencies, map) = ("| crate | x |\n| anyhow, serde | y |\n", "| `rustiot-x` | job |\n");
        assert_eq!(lists(&metadata, dependencies, map), [""; 0]);
        assert_eq!(lists(&metadata, "", "").len(), 2);
    }
}
