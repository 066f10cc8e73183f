//! Bundles become releases: checked, encoded in every way that devices may need, and entered into their board's index.
//!
//! A delta that is finished is in the index at once, so that a run which was cut short goes on behind it.

use super::metadata::{Repository, Signing};
use super::sbom::{self, Details, Difference, Sbom};
use super::{At, Error, bundle, install};
use crate::digest::Digest;
use crate::index::{Content, FORMAT, File, Index, MAX_NOTES, Release, Source, Way, WayKind};
use crate::rollout::{Named, PLACES, Rollout, State, Wave, is_label};
use semver::Version;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

/// What RAUC and its friends do for us.
pub trait Tool {
    /// Checks the bundle's signature, as a device would.
    ///
    /// # Errors
    /// It is not valid, in the tool's words.
    fn verify(&self, bundle: &Path) -> Result<(), String>;
    /// Unpacks the bundle's content into the empty directory `to`.
    ///
    /// # Errors
    /// It cannot, in the tool's words.
    fn unpack(&self, bundle: &Path, to: &Path) -> Result<(), String>;
}

/// Writes a `.rdelta`: target, sources by name, where to, progress 0 to 1.
pub trait Encoder {
    /// Encodes.
    ///
    /// # Errors
    /// Why it cannot.
    fn encode(
        &self,
        target: &[u8],
        sources: &[(&str, &[u8])],
        out: &mut dyn Write,
        progress: &(dyn Fn(f32) + Sync),
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;
}

/// The real one.
#[derive(Clone, Copy, Debug)]
pub struct Rdelta;

impl Encoder for Rdelta {
    fn encode(
        &self,
        target: &[u8],
        sources: &[(&str, &[u8])],
        out: &mut dyn Write,
        progress: &(dyn Fn(f32) + Sync),
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let sources: Vec<_> =
            sources.iter().map(|(name, bytes)| rustiot_delta::Source { name, bytes }).collect();
        rustiot_delta::encode(target, &sources, &rustiot_delta::Options::default(), out, progress)?;
        Ok(())
    }
}

/// What a release costs on one way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WaySize {
    /// Kind of the way.
    pub kind: WayKind,
    /// The release that it starts from.
    pub from: Option<String>,
    /// Bytes.
    pub bytes: u64,
}

/// What a publishing run did.
#[derive(Clone, Debug, Serialize)]
pub struct Published {
    /// The board.
    pub compatible: String,
    /// The release.
    pub version: String,
    /// Its manifest hash.
    pub manifest_hash: Digest,
    /// Whether it was there before.
    pub known: bool,
    /// Its ways.
    pub ways: Vec<WaySize>,
    /// What is in it, if an SPDX document said so.
    pub contents: Option<Contents>,
}

/// What is in a release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Contents {
    /// How many packages.
    pub packages: usize,
    /// The file with list and differences, below `public/targets`.
    pub details: String,
    /// The SPDX document, below `public/targets`.
    pub sbom: String,
    /// What differs from older releases, the newest of them first.
    pub differences: Vec<Difference>,
}

impl Repository {
    /// Publishes bundles, oldest first, and signs.
    ///
    /// # Errors
    /// A bundle is refused, or something cannot be written. What was finished before stays, unsigned, and the next run
    /// goes on behind it.
    pub fn publish(
        &self,
        bundles: &[PathBuf],
        notes: Option<&str>,
        tool: &dyn Tool,
        encoder: &dyn Encoder,
        now: u64,
        progress: &(dyn Fn(&str, f32) + Sync),
    ) -> Result<(Vec<Published>, Signing), Error> {
        let mut manifests = Vec::new();
        for path in bundles {
            // What is wrong is said before hours of encoding, and is read again when its turn comes: it may be large.
            sbom::read(path)?;
            manifests.push((bundle::manifest(path)?, path));
        }
        manifests.sort_by(|(a, _), (b, _)| a.version.cmp_precedence(&b.version));
        let mut published = Vec::new();
        for (manifest, path) in &manifests {
            published.push(self.publish_one(manifest, path, notes, tool, encoder, now, progress)?);
        }
        Ok((published, self.sign(now, false)?))
    }

    #[expect(clippy::too_many_arguments, reason = "one caller, just above")]
    fn publish_one(
        &self,
        manifest: &bundle::Manifest,
        path: &Path,
        notes: Option<&str>,
        tool: &dyn Tool,
        encoder: &dyn Encoder,
        now: u64,
        progress: &(dyn Fn(&str, f32) + Sync),
    ) -> Result<Published, Error> {
        let refused = |why: String| Error::Bundle { path: path.to_owned(), why };
        let mut index = self.index(&manifest.compatible)?;
        if let Some(other) = index.releases.iter().find(|release| {
            release.version.cmp_precedence(&manifest.version).is_eq()
                && release.manifest_hash != manifest.hash
        }) {
            return Err(refused(format!(
                "another release {} is published already ({}): a version is given once; raise it",
                other.version, other.manifest_hash
            )));
        }
        let known = index.release(&manifest.hash).is_some();
        if !known {
            tool.verify(path).map_err(|why| refused(format!("its signature is refused: {why}")))?;
        }
        let held = self.hold(manifest, path)?;
        let images = self.unpacked(&manifest.hash, &held, tool)?;
        let target = std::fs::read(&held).at("read", &held)?;
        if !known {
            let content = Content { len: length(target.len()), sha256: Digest::of(&target) };
            let mut sources = Vec::new();
            for (name, image) in &images {
                sources.push(hashed(name, image)?);
            }
            let notes = notes.unwrap_or_default();
            if notes.len() > MAX_NOTES {
                return Err(refused(format!(
                    "the notes have {} bytes, at most {MAX_NOTES} fit",
                    notes.len()
                )));
            }
            index.releases.push(Release {
                version: manifest.version.clone(),
                manifest_hash: manifest.hash,
                root_hash: manifest.root_hash,
                floor: manifest.floor.clone(),
                build_epoch: manifest.build_epoch,
                notes: notes.to_owned(),
                details: None,
                bundle: content,
                images: sources,
                ways: Vec::new(),
                rollout: Rollout::default(),
            });
            index.releases.sort_by(|a, b| b.version.cmp_precedence(&a.version));
        }
        let bases: Vec<Release> = self.bases(&index, &manifest.version);
        let name = format!("{}-{}", manifest.compatible, manifest.version);
        let has = |index: &Index, kind: WayKind, from: Option<Digest>| {
            let release = index.release(&manifest.hash);
            release.is_some_and(|r| r.ways.iter().any(|way| way.kind == kind && way.from == from))
        };
        if self.settings().full_way && !has(&index, WayKind::Full, None) {
            let file = self.encode(&format!("{name}.full.rdelta"), &target, &[], encoder, progress)?;
            self.add(&mut index, &manifest.hash, way(WayKind::Full, file, None), now)?;
        }
        for base in &bases {
            if has(&index, WayKind::Delta, Some(base.manifest_hash)) {
                continue;
            }
            let old = self.dir().join("work/bundles").join(format!("{}.raucb", base.manifest_hash));
            let unpacked = self.unpacked(&base.manifest_hash, &old, tool)?;
            let mut sources = Vec::new();
            for (image, path) in &unpacked {
                sources.push((image.as_str(), std::fs::read(path).at("read", path)?));
            }
            let borrowed: Vec<(&str, &[u8])> =
                sources.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect();
            let file = self.encode(
                &format!("{name}.from-{}.rdelta", base.version),
                &target,
                &borrowed,
                encoder,
                progress,
            )?;
            let mut delta = way(WayKind::Delta, file, Some(base));
            delta.sources = base.images.clone();
            self.add(&mut index, &manifest.hash, delta, now)?;
        }
        if self.settings().bundle_way && !has(&index, WayKind::Bundle, None) {
            let content = index.release(&manifest.hash).map(|release| release.bundle);
            if let Some(content) = content {
                let file = File { name: format!("{name}.raucb"), len: content.len, sha256: content.sha256 };
                let temporary = self.dir().join("work/.bundle.tmp");
                std::fs::copy(&held, &temporary).at("copy", &held)?;
                install(&temporary, &self.targets_dir().join(file.path()))?;
                self.add(&mut index, &manifest.hash, way(WayKind::Bundle, file, None), now)?;
            }
        }
        if let Some(sbom) = sbom::read(path)? {
            self.describe(&mut index, &manifest.hash, &name, sbom, now)?;
        }
        self.roll_out(&index, &manifest.hash, now)?;
        self.forget(&mut index)?;
        let contents = index.release(&manifest.hash).map(|release| self.contents(release)).transpose()?;
        let ways = index.release(&manifest.hash).map(|release| release.ways.clone()).unwrap_or_default();
        Ok(Published {
            compatible: manifest.compatible.clone(),
            version: manifest.version.to_string(),
            manifest_hash: manifest.hash,
            known,
            ways: ways
                .into_iter()
                .map(|way| WaySize {
                    kind: way.kind,
                    from: way.from_version.map(|version| version.to_string()),
                    bytes: way.file.len,
                })
                .collect(),
            contents: contents.flatten(),
        })
    }

    /// Publishes the SPDX document of a release, and its details: the list of packages and what differs from the release
    /// before it and from each that a delta starts from.
    fn describe(
        &self,
        index: &mut Index,
        hash: &Digest,
        name: &str,
        sbom: Sbom,
        now: u64,
    ) -> Result<(), Error> {
        let Some(release) = index.release(hash) else { return Ok(()) };
        let older = |other: &&Release| other.version.cmp_precedence(&release.version).is_lt();
        let before = index.releases.iter().find(older).map(|other| other.manifest_hash);
        let starts = |other: &Release| release.ways.iter().any(|way| way.from == Some(other.manifest_hash));
        let mut differences = Vec::new();
        for other in index.releases.iter().filter(older) {
            if Some(other.manifest_hash) != before && !starts(other) {
                continue;
            }
            if let Some(details) = self.details(other)? {
                let version = other.version.clone();
                let (old, new) = (&details.packages, &sbom.packages);
                differences.push(sbom::difference(other.manifest_hash, version, old, new));
            }
        }
        let document = self.target(&format!("{name}.spdx.json"), &sbom.bytes)?;
        let (_, bytes) = Details::new(document, sbom.packages, differences)
            .map_err(|why| Error::Sbom { path: sbom.path, why })?;
        let details = self.target(&format!("{name}.details.json"), &bytes)?;
        if release.details.as_ref() == Some(&details) {
            return Ok(());
        }
        index.published = now;
        if let Some(release) = index.releases.iter_mut().find(|release| release.manifest_hash == *hash) {
            release.details = Some(details);
        }
        self.set_index(index)
    }

    /// Puts a file among the targets, unless it is there.
    #[expect(clippy::disallowed_methods, reason = "synced by `install` before it gets its name")]
    fn target(&self, name: &str, bytes: &[u8]) -> Result<File, Error> {
        let file = File { name: name.to_owned(), len: length(bytes.len()), sha256: Digest::of(bytes) };
        let temporary = self.dir().join("work/.target.tmp");
        std::fs::write(&temporary, bytes).at("write", &temporary)?;
        install(&temporary, &self.targets_dir().join(file.path()))?;
        Ok(file)
    }

    /// The details of a release, if it has some and they are here.
    fn details(&self, release: &Release) -> Result<Option<Details>, Error> {
        let Some(file) = &release.details else { return Ok(None) };
        let path = self.targets_dir().join(file.path());
        let bytes = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            read => read.at("read", &path)?,
        };
        let damaged = |why: String| Error::Sbom { path: path.clone(), why };
        if Digest::of(&bytes) != file.sha256 {
            return Err(damaged(
                "it is damaged, its hash is not that of its name: copy it back from the web server, or remove it \
                 and publish its release's bundle again"
                    .to_owned(),
            ));
        }
        let details: Details = serde_json::from_slice(&bytes).map_err(|error| {
            damaged(format!(
                "it cannot be read: {error}; publish its release's bundle again with this program"
            ))
        })?;
        if details.format != FORMAT {
            return Err(damaged(format!(
                "it has format {}, this program reads {FORMAT}: publish with the newer one",
                details.format
            )));
        }
        Ok(Some(details))
    }

    fn contents(&self, release: &Release) -> Result<Option<Contents>, Error> {
        let (Some(file), Some(details)) = (&release.details, self.details(release)?) else { return Ok(None) };
        Ok(Some(Contents {
            packages: details.packages.len(),
            details: file.path(),
            sbom: details.sbom.path(),
            differences: details.differences,
        }))
    }

    /// Releases that get a delta to `version`: the last ones before it and those of the factory.
    fn bases(&self, index: &Index, version: &Version) -> Vec<Release> {
        let settings = self.settings();
        let have = |release: &&Release| {
            self.dir().join("work/bundles").join(format!("{}.raucb", release.manifest_hash)).exists()
        };
        let older = index
            .releases
            .iter()
            .filter(|release| release.version.cmp_precedence(version).is_lt())
            .filter(have);
        older
            .enumerate()
            .filter(|(number, release)| *number < settings.deltas || self.is_of_factory(release))
            .map(|(_, release)| release.clone())
            .collect()
    }

    /// Keeps a copy of the bundle: deltas of later releases start from it.
    fn hold(&self, manifest: &bundle::Manifest, path: &Path) -> Result<PathBuf, Error> {
        let dir = self.dir().join("work/bundles");
        std::fs::create_dir_all(&dir).at("make", &dir)?;
        let held = dir.join(format!("{}.raucb", manifest.hash));
        if !held.exists() {
            let temporary = dir.join(".new.tmp");
            std::fs::copy(path, &temporary).at("copy", path)?;
            install(&temporary, &held)?;
        }
        Ok(held)
    }

    /// The images of a bundle, unpacked once.
    #[expect(clippy::disallowed_methods, reason = "a cache: what is lost is unpacked again")]
    fn unpacked(
        &self,
        hash: &Digest,
        bundle: &Path,
        tool: &dyn Tool,
    ) -> Result<Vec<(String, PathBuf)>, Error> {
        let dir = self.dir().join("work/images").join(hash.to_string());
        if !dir.exists() {
            let new = self.dir().join("work/images/.new");
            if new.exists() {
                std::fs::remove_dir_all(&new).at("remove", &new)?;
            }
            std::fs::create_dir_all(&new).at("make", &new)?;
            tool.unpack(bundle, &new).map_err(|why| Error::Bundle { path: bundle.to_owned(), why })?;
            std::fs::rename(&new, &dir).at("put into place", &dir)?;
        }
        let images = ["root", "boot"].map(|name| (name.to_owned(), dir.join(format!("{name}.img"))));
        for (name, path) in &images {
            if !path.is_file() {
                return Err(Error::Bundle {
                    path: bundle.to_owned(),
                    why: format!("it holds no {name}.img"),
                });
            }
        }
        Ok(images.to_vec())
    }

    fn encode(
        &self,
        name: &str,
        target: &[u8],
        sources: &[(&str, &[u8])],
        encoder: &dyn Encoder,
        progress: &(dyn Fn(&str, f32) + Sync),
    ) -> Result<File, Error> {
        let temporary = self.dir().join("work/.delta.tmp");
        let out = std::fs::File::create(&temporary).at("create", &temporary)?;
        let mut out = Counted { inner: BufWriter::new(out), sha256: Sha256::new(), len: 0 };
        progress(name, 0.0);
        encoder
            .encode(target, sources, &mut out, &|share| progress(name, share))
            .map_err(|source| Error::Encode { what: name.to_owned(), source })?;
        out.inner.flush().at("write", &temporary)?;
        progress(name, 1.0);
        let file = File { name: name.to_owned(), len: out.len, sha256: Digest(out.sha256.finalize().into()) };
        install(&temporary, &self.targets_dir().join(file.path()))?;
        Ok(file)
    }

    /// Enters a finished way into the index in `work/`.
    fn add(&self, index: &mut Index, hash: &Digest, way: Way, now: u64) -> Result<(), Error> {
        index.published = now;
        if let Some(release) = index.releases.iter_mut().find(|release| release.manifest_hash == *hash) {
            release.ways.push(way);
        }
        self.set_index(index)
    }

    /// Gives a release that has none the roll-out of `repo.toml`.
    fn roll_out(&self, index: &Index, hash: &Digest, now: u64) -> Result<(), Error> {
        let mut rollouts = self.rollouts(&index.compatible)?;
        if rollouts.rollouts.iter().all(|named| named.manifest_hash != *hash) {
            let mut waves = self.settings().waves.clone();
            for wave in &mut waves {
                wave.not_before = now.saturating_add(wave.not_before);
            }
            let rollout = if waves.is_empty() {
                Rollout::everyone()
            } else {
                Rollout { state: State::Running, reason: String::new(), waves }
            };
            rollouts.rollouts.push(Named { manifest_hash: *hash, rollout });
        }
        rollouts.rollouts.retain(|named| index.release(&named.manifest_hash).is_some());
        self.set_rollouts(&rollouts)
    }

    /// Takes the oldest releases out of the index when there are more than `repo.toml` wants, but for those of the
    /// factory: later releases still get deltas from them. Files stay.
    fn forget(&self, index: &mut Index) -> Result<(), Error> {
        let keep = self.settings().releases.clamp(1, crate::index::MAX_RELEASES);
        let before = index.releases.len();
        let mut number = 0;
        index.releases.retain(|release| {
            number += 1;
            number <= keep || self.is_of_factory(release)
        });
        index.releases.truncate(crate::index::MAX_RELEASES);
        if index.releases.len() < before {
            self.set_index(index)?;
        }
        Ok(())
    }

    /// True for a release that devices are flashed with.
    fn is_of_factory(&self, release: &Release) -> bool {
        self.settings().factory.contains(&release.version.to_string())
    }

    /// Changes the roll-out of a release, and signs. Only the roll-out key and the online ones are needed.
    ///
    /// # Errors
    /// There is no such release, or the result breaks a rule.
    pub fn change_rollout(
        &self,
        compatible: &str,
        version: &Version,
        change: &dyn Fn(&mut Rollout),
        now: u64,
    ) -> Result<(Rollout, Signing), Error> {
        let index = self.index(compatible)?;
        let release = index.releases.iter().find(|release| release.version == *version).ok_or_else(|| {
            Error::Refused {
                problem: format!("there is no release {version} for {compatible}"),
                hint: "see what there is with: rustiot rollout --repo DIR",
            }
        })?;
        let mut rollouts = self.rollouts(compatible)?;
        let hash = release.manifest_hash;
        if rollouts.rollouts.iter().all(|named| named.manifest_hash != hash) {
            rollouts.rollouts.push(Named { manifest_hash: hash, rollout: Rollout::default() });
        }
        let mut result = Rollout::default();
        for named in rollouts.rollouts.iter_mut().filter(|named| named.manifest_hash == hash) {
            change(&mut named.rollout);
            result = named.rollout.clone();
        }
        result.check(&format!("roll-out of {version}")).map_err(Error::Request)?;
        self.set_rollouts(&rollouts)?;
        Ok((result, self.sign(now, false)?))
    }
}

fn way(kind: WayKind, file: File, from: Option<&Release>) -> Way {
    Way {
        kind,
        file,
        from: from.map(|base| base.manifest_hash),
        from_root_hash: from.and_then(|base| base.root_hash),
        from_version: from.map(|base| base.version.clone()),
        sources: Vec::new(),
    }
}

fn length(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

fn hashed(name: &str, path: &Path) -> Result<Source, Error> {
    let mut file = std::fs::File::open(path).at("open", path)?;
    let (mut sha256, mut len, mut buffer) = (Sha256::new(), 0u64, vec![0; 1 << 20]);
    loop {
        let count = file.read(&mut buffer).at("read", path)?;
        if count == 0 {
            break;
        }
        sha256.update(buffer.get(..count).unwrap_or_default());
        len = len.saturating_add(length(count));
    }
    Ok(Source { name: name.to_owned(), len, sha256: Digest(sha256.finalize().into()) })
}

struct Counted<W> {
    inner: W,
    sha256: Sha256,
    len: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.sha256.update(bytes.get(..count).unwrap_or_default());
        self.len = self.len.saturating_add(length(count));
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

/// Waves in words: `5%`, `50%+1d`, `canary|lab:100%`, separated by commas or spaces. What follows `+` counts from `now`: a
/// number and `s`, `m`, `h` or `d`. A date is no delay. A share is rounded to thousandths of the devices.
///
/// # Errors
/// What is wrong, and an example.
pub fn parse_waves(text: &str, now: u64) -> Result<Vec<Wave>, String> {
    let mut waves = Vec::new();
    for word in text.split([',', ' ']).filter(|word| !word.is_empty()) {
        let wrong = || format!("{word:?} is no wave; write 5%, 50%+1d or canary:100%");
        let (labels, rest): (Vec<String>, _) = match word.split_once(':') {
            Some((labels, rest)) => (labels.split('|').map(str::to_owned).collect(), rest),
            None => (Vec::new(), word),
        };
        if labels.iter().any(String::is_empty) {
            return Err(wrong());
        }
        if let Some(label) = labels.iter().find(|label| !is_label(label)) {
            return Err(format!(
                "{word:?}: no device can carry the label {label:?}; write at most 64 letters, digits, dots, hyphens and \
                 underscores"
            ));
        }
        let (share, delay) = rest.split_once('+').unwrap_or((rest, "0s"));
        let share: f64 = share.strip_suffix('%').ok_or_else(wrong)?.parse().map_err(|_| wrong())?;
        if share < 0.1 {
            return Err(format!(
                "{word:?} holds no device: shares are counted in thousandths; write 0.1% or more, give single devices a label \
                 (canary:100%), or let nobody start with: rustiot rollout pause"
            ));
        }
        if share > 100.0 || share.is_nan() {
            return Err(format!("{word:?} is no share of all devices; write at most 100%"));
        }
        let split = delay.len().checked_sub(1).and_then(|at| delay.split_at_checked(at)).ok_or_else(wrong)?;
        let unit: u64 = match split.1 {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 24 * 3600,
            _ => return Err(wrong()),
        };
        let delay = split.0.parse::<u64>().map_err(|_| wrong())?.saturating_mul(unit);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "1 to 1000, checked above"
        )]
        let permille = (share * 10.0).round() as u32;
        let not_before = if delay == 0 { 0 } else { now.saturating_add(delay) };
        waves.push(Wave { name: word.to_owned(), permille: permille.min(PLACES), not_before, labels });
    }
    if waves.is_empty() {
        return Err("no wave is named; write for example 5%,50%+1d,100%+3d".to_owned());
    }
    Ok(waves)
}

#[cfg(test)]
mod tests {
    use super::parse_waves;

    #[test]
    fn waves_are_read_as_they_are_written() {
        let waves = parse_waves("canary|lab:100%, 0.5%+90s 5%+2m,50%+3h,100%+1d", 1000).unwrap();
        let told: Vec<_> = waves.iter().map(|w| (w.permille, w.not_before, w.labels.join("|"))).collect();
        let wanted =
            [(1000, 0, "canary|lab"), (5, 1090, ""), (50, 1120, ""), (500, 11_800, ""), (1000, 87_400, "")];
        assert_eq!(told, wanted.map(|(share, from, labels)| (share, from, labels.to_owned())));
        assert_eq!(waves.iter().map(|w| w.name.as_str()).next_back(), Some("100%+1d"));
        // A delay that no clock reaches stays in the future.
        assert_eq!(parse_waves("1%+18446744073709551615d", 1000).unwrap()[0].not_before, u64::MAX);
    }

    #[test]
    fn what_is_no_wave_is_refused_by_its_word() {
        for word in [
            "5",
            "%",
            "x%",
            "-1%",
            "101%",
            "NaN%",
            "5%+",
            "5%+d",
            "5%+1",
            "5%+1w",
            "5%+1.5d",
            "5%+-1d",
            ":5%",
            "a|:5%",
            "5%+é",
            "100%+2026-03-01",
            "canäry:5%",
            "lab|can/ary:5%",
        ] {
            let why = parse_waves(&format!("1%,{word}"), 0).unwrap_err();
            assert!(why.contains(&format!("{word:?}")) && why.contains("write"), "{word}: {why}");
        }
        for (share, permille) in [("0.1%", 1), ("0.14%", 1), ("0.15%", 2), ("100%", 1000)] {
            assert_eq!(parse_waves(share, 0).unwrap()[0].permille, permille, "{share}");
        }
        for none in ["0%", "0.04%", "0.05%", "0.09%+1d", "canary:0%", "0.00000001%", "-0%"] {
            let why = parse_waves(&format!("canary:100%,{none}"), 0).unwrap_err();
            assert!(why.contains(&format!("{none:?} holds no device")), "{why}");
            assert!(why.contains("write 0.1% or more") && why.contains("canary:100%"), "{why}");
        }
        for nothing in ["", " , "] {
            assert!(parse_waves(nothing, 0).unwrap_err().contains("no wave is named"));
        }
    }
}
