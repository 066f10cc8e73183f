//! What a release is made of, as an SPDX 3.0.1 document (JSON-LD) beside its bundle: Debian's packages and our programs
//! with their versions. The same release gives the same bytes. It tells names and versions; licences, sources and single
//! files it does not know. Called by [`crate::bundle`]; `rustiot publish` reads it.

use crate::base::Package;
use crate::cache::write;
use crate::date::BuildDate;
use crate::error::{At, Error, content};
use crate::image::Image;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::Path;

const CONTEXT: &str = "https://spdx.org/rdf/3.0.1/spdx-context.jsonld";
/// The one creation info of a document: a blank node.
const INFO: &str = "_:creation";

/// A program of ours.
struct Program {
    name: &'static str,
    sha256: String,
}

/// Writes the document of `image` to `out`.
pub(crate) fn write_sbom(image: &Image, out: &Path) -> Result<(), Error> {
    let program = |name, path: &Path| -> Result<Program, Error> {
        let bytes = fs::read(path).at("read", path)?;
        let sha256 = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Program { name, sha256 })
    };
    let programs = [
        program("rustiot-device", &image.programs.device)?,
        program("rustiot-init", &image.programs.init)?,
        program("rustiot-shim", &image.programs.shim)?,
    ];
    let about = About {
        compatible: &image.board.compatible,
        version: &image.version,
        root_hash: &image.verity.root_hash,
        suite: &image.suite,
        built: image.build_date,
    };
    let mut bytes = serde_json::to_vec_pretty(&document(&about, &image.installed, &programs)?)
        .map_err(|error| content(out, error.to_string()))?;
    bytes.push(b'\n');
    write(out, bytes)
}

/// Which release it is.
struct About<'a> {
    compatible: &'a str,
    version: &'a str,
    root_hash: &'a str,
    suite: &'a str,
    built: BuildDate,
}

fn document(about: &About<'_>, packages: &[Package], programs: &[Program]) -> Result<Value, Error> {
    let About { compatible, version, root_hash, suite, built } = about;
    let base = format!("http://spdx.org/spdxdocs/{compatible}-{version}-{root_hash}");
    let created = built.to_string();
    let id = |kind: &str, name: &str| format!("{base}/{kind}/{}", encoded(name));
    let mut installed = Vec::new();
    let mut ids = Vec::new();
    for Package { name, version } in packages {
        let url = [name.as_str(), version, suite].map(encoded);
        let [encoded_name, encoded_version, encoded_suite] = &url;
        ids.push(id("package", name));
        installed.push(json!({
            "type": "software_Package", "spdxId": id("package", name), "creationInfo": INFO, "name": name,
            "software_packageVersion": version, "software_primaryPurpose": "install",
            "software_packageUrl": format!("pkg:deb/debian/{encoded_name}@{encoded_version}?distro={encoded_suite}"),
        }));
    }
    for Program { name, sha256 } in programs {
        // All crates have the workspace's version, which says little: the beginning of the hash tells builds apart.
        let build = sha256.get(..12).unwrap_or(sha256);
        ids.push(id("package", name));
        installed.push(json!({
            "type": "software_Package", "spdxId": id("package", name), "creationInfo": INFO, "name": name,
            "software_packageVersion": format!("{}+{build}", env!("CARGO_PKG_VERSION")),
            "software_primaryPurpose": "install",
            "verifiedUsing": [{"type": "Hash", "algorithm": "sha256", "hashValue": sha256}],
        }));
    }

    let title = format!("{compatible} {version}");
    let (agent, release, sbom, contains) =
        (id("agent", "rustiot"), id("release", version), id("sbom", version), id("relationship", "contains"));
    let mut elements = ids.clone();
    elements.extend([agent.clone(), release.clone(), contains.clone()]);
    let mut graph = vec![
        json!({"type": "CreationInfo", "@id": INFO, "specVersion": "3.0.1", "created": created, "createdBy": [agent]}),
        json!({"type": "SoftwareAgent", "spdxId": agent, "creationInfo": INFO,
               "name": concat!("rustiot-image ", env!("CARGO_PKG_VERSION"))}),
        json!({"type": "SpdxDocument", "spdxId": id("document", version), "creationInfo": INFO, "name": title,
               "profileConformance": ["core", "software"], "rootElement": [sbom]}),
        json!({"type": "software_Sbom", "spdxId": sbom, "creationInfo": INFO, "name": title,
               "software_sbomType": ["build"], "rootElement": [release], "element": elements}),
        json!({"type": "software_Package", "spdxId": release, "creationInfo": INFO, "name": compatible,
               "software_packageVersion": version, "software_primaryPurpose": "operatingSystem",
               "comment": format!("root hash {root_hash}")}),
        json!({"type": "Relationship", "spdxId": contains, "creationInfo": INFO, "from": release,
               "relationshipType": "contains", "to": ids}),
    ];
    graph.extend(installed);
    Ok(json!({"@context": CONTEXT, "@graph": graph}))
}

/// Percent-encoded for a part of a URL, as package URLs want it.
fn encoded(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustiot_repository::publish::sbom;

    const ABOUT: About<'_> = About {
        compatible: "rustiot-x",
        version: "1.2.0",
        root_hash: "00ff",
        suite: "trixie",
        built: BuildDate::FIXED,
    };

    fn made() -> Value {
        let package = |name: &str, version: &str| Package { name: name.into(), version: version.into() };
        let packages = [package("libstdc++6", "1:14.2.0-19+b1"), package("zlib1g", "1:1.3.dfsg~rc1-1")];
        document(&ABOUT, &packages, &[Program { name: "rustiot-init", sha256: "ab".repeat(32) }]).unwrap()
    }

    #[test]
    fn the_publisher_reads_what_the_builder_writes() {
        let found = sbom::packages(made().to_string().as_bytes()).unwrap();
        let found: Vec<(&str, &str)> = found.iter().map(|p| (p.name.as_str(), p.version.as_str())).collect();
        let ours = concat!(env!("CARGO_PKG_VERSION"), "+abababababab");
        assert_eq!(
            found,
            [("libstdc++6", "1:14.2.0-19+b1"), ("rustiot-init", ours), ("zlib1g", "1:1.3.dfsg~rc1-1")]
        );
    }

    #[test]
    fn the_time_is_the_builds_and_every_reference_leads_somewhere() {
        let document = made();
        let graph = document["@graph"].as_array().unwrap();
        assert_eq!(graph[0]["created"], "2025-06-15T15:06:40Z");
        let ids: Vec<&str> = graph.iter().filter_map(|e| e["spdxId"].as_str()).collect();
        let mut once = ids.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), ids.len(), "an id is given once");
        let mut seen = 0;
        for element in graph {
            for key in ["rootElement", "element", "to", "createdBy"] {
                for to in element[key].as_array().into_iter().flatten() {
                    assert!(ids.contains(&to.as_str().unwrap()), "{key}: {to}");
                    seen += 1;
                }
            }
        }
        assert!(seen > 8, "{seen}");
        let url = "pkg:deb/debian/libstdc%2B%2B6@1%3A14.2.0-19%2Bb1?distro=trixie";
        assert!(graph.iter().any(|e| e["software_packageUrl"] == url), "{document}");
    }
}
