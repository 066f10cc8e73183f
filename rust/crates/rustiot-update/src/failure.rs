//! Why something was refused or failed: a kind for programs, a sentence, a hint and the full chain for people.
//!
//! Pure. Turns RAUC's texts (which have no error codes on D-Bus) into kinds; the table is held by tests that quote
//! RAUC 1.13. Used by every module here and by the command line for exit codes.

use serde::{Deserialize, Serialize};

/// What went wrong, for programs. The names are part of the contract (`docs/contracts/update-dbus.md`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Another transaction is under way, or RAUC is busy.
    Busy,
    /// An option or argument makes no sense.
    Usage,
    /// The caller may not give orders.
    Denied,
    /// Not allowed in this phase.
    NotNow,
    /// The file has no bundle structure at all, or only a part of one.
    NotABundle,
    /// A bundle that was cut off.
    Truncated,
    /// The signature or manifest is larger than RAUC reads.
    Oversized,
    /// The signature does not lead to a certificate in the keyring.
    Signature,
    /// The signer's certificate is not valid yet by this device's clock.
    NotYetValid,
    /// The signer's certificate has expired.
    Expired,
    /// A plain-format bundle: its payload is not protected while it is written.
    PlainFormat,
    /// The payload does not match its hashes.
    Corrupt,
    /// Signed for another board.
    WrongBoard,
    /// The manifest is not one of an OS release (no version, wrong images, hooks).
    BadManifest,
    /// Older than the signed floor allows.
    BelowFloor,
    /// This release failed on this device before.
    KnownBad,
    /// This release is the one that runs.
    AlreadyRunning,
    /// An image is larger than its partition.
    TooLarge,
    /// No such file or URL.
    NotFound,
    /// The server wants credentials.
    Unauthorized,
    /// The server cannot be reached.
    Unreachable,
    /// The server does not serve byte ranges.
    NoRanges,
    /// The server answered the first question with less than it announced, or with nothing: the file is empty, or
    /// whatever stands between cut the answer off.
    Incomplete,
    /// The download broke off in the middle.
    ReadFailed,
    /// The medium that it was read from is gone.
    Removed,
    /// Others could change the bundle while it is read.
    Unsafe,
    /// No space left where RAUC or this service keeps its state.
    NoSpace,
    /// RAUC failed for a reason of its own.
    Installer,
    /// Nothing was written for a long time.
    Stalled,
    /// Power was cut or the installer was stopped in the middle.
    Interrupted,
    /// Taken back by `cancel`.
    Cancelled,
    /// The trial ended badly and the old release came back.
    FellBack,
    /// The device's own state cannot be read or written.
    State,
    /// There is nothing to install.
    NothingNew,
    /// The repository has it, but not for this device, or not yet.
    NotOffered,
    /// The repository no longer offers what was about to be installed, or offers something newer.
    Withdrawn,
    /// No way leads from what runs here to the release, or none is left.
    NoWay,
    /// The repository's signed metadata cannot be trusted.
    Untrusted,
}

impl Kind {
    /// Exit code of a command that ends so: 1 failed, 2 usage, 3 refused, 4 busy, 5 verification failed.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Busy => 4,
            Self::Usage => 2,
            Self::NotABundle
            | Self::Truncated
            | Self::Oversized
            | Self::Signature
            | Self::NotYetValid
            | Self::Expired
            | Self::PlainFormat
            | Self::Corrupt
            | Self::Untrusted => 5,
            Self::Denied
            | Self::NotNow
            | Self::WrongBoard
            | Self::BadManifest
            | Self::BelowFloor
            | Self::KnownBad
            | Self::AlreadyRunning
            | Self::TooLarge
            | Self::NothingNew
            | Self::NotOffered
            | Self::Withdrawn => 3,
            Self::NotFound
            | Self::Unauthorized
            | Self::Unreachable
            | Self::NoRanges
            | Self::Incomplete
            | Self::ReadFailed
            | Self::Removed
            | Self::Unsafe
            | Self::NoSpace
            | Self::Installer
            | Self::Stalled
            | Self::Interrupted
            | Self::Cancelled
            | Self::FellBack
            | Self::State
            | Self::NoWay => 1,
        }
    }

    /// Whether the same request may succeed later without anybody's help.
    #[must_use]
    pub fn is_transient(self) -> bool {
        matches!(
            self,
            Self::Unreachable
                | Self::Incomplete
                | Self::ReadFailed
                | Self::Stalled
                | Self::Interrupted
                | Self::Busy
        )
    }

    /// Whether another way to the same bundle may do what this one did not.
    #[must_use]
    pub fn is_of_the_way(self) -> bool {
        matches!(
            self,
            Self::NotABundle
                | Self::Truncated
                | Self::Oversized
                | Self::Corrupt
                | Self::NotFound
                | Self::Unauthorized
                | Self::NoRanges
                | Self::ReadFailed
                | Self::NoSpace
        )
    }
}

/// One refusal or failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// For programs.
    pub kind: Kind,
    /// For people, one line.
    pub message: String,
    /// Where it came from, outermost first; the last one is the first cause.
    #[serde(default)]
    pub chain: Vec<String>,
    /// What to do next.
    #[serde(default)]
    pub hint: Option<String>,
}

impl Failure {
    /// A failure without a chain or hint.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), chain: Vec::new(), hint: None }
    }

    /// Adds what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds a cause below the ones that are there.
    #[must_use]
    pub fn because(mut self, cause: impl Into<String>) -> Self {
        self.chain.push(cause.into());
        self
    }

    /// A failure with an error and all its sources as the chain.
    pub fn from_error(kind: Kind, message: impl Into<String>, error: &dyn std::error::Error) -> Self {
        let mut failure = Self::new(kind, message);
        let mut next = Some(error);
        while let Some(e) = next {
            failure.chain.push(e.to_string());
            next = e.source();
        }
        failure
    }
}

/// Marks in RAUC's texts, most telling first: the first that occurs decides.
/// Source: RAUC 1.13 `src/{bundle,signature,nbd,install,update_handler,service}.c`.
const MARKS: &[(&str, Kind)] = &[
    ("lready processing a different method", Kind::Busy),
    ("Bundle format 'plain' not", Kind::PlainFormat),
    ("Refusing to install plain bundle", Kind::PlainFormat),
    ("certificate is not yet valid", Kind::NotYetValid),
    ("certificate has expired", Kind::Expired),
    ("CRL has expired", Kind::Expired),
    ("signature verification failed", Kind::Signature),
    ("Failed to verify X509 cert", Kind::Signature),
    ("Failed to decrypt", Kind::Signature),
    ("Encrypted bundle detected", Kind::Signature),
    ("No keyring file or directory", Kind::Signature),
    ("failed to load CA file", Kind::Signature),
    ("Compatible mismatch", Kind::WrongBoard),
    ("Version mismatch", Kind::BelowFloor),
    ("exceeds 64KiB", Kind::Oversized),
    ("exceeds max-bundle-signature-size", Kind::Oversized),
    ("not a regular file", Kind::NotFound),
    ("Failed to open bundle for reading", Kind::NotFound),
    ("Failed to query bundle file info", Kind::NotFound),
    ("range requests not supported", Kind::NoRanges),
    // No byte of it exists: the file is empty. Servers say so with 416, or answer with nothing at all.
    ("HTTP error code 416", Kind::NotABundle),
    ("incomplete HTTP response", Kind::Incomplete),
    ("HTTP error code 403", Kind::Unauthorized),
    ("HTTP error code 410", Kind::NotFound),
    ("unauthorized: ", Kind::Unauthorized),
    ("not found: ", Kind::NotFound),
    ("server not responding", Kind::Unreachable),
    ("server did not send bundle size", Kind::NoRanges),
    ("failed to configure streaming", Kind::Unreachable),
    ("failed to read data from remote server", Kind::ReadFailed),
    ("unsafe bundle", Kind::Unsafe),
    ("unsafe filesystem", Kind::Unsafe),
    ("unknown filesystem", Kind::Unsafe),
    ("exclusive bundle access", Kind::Unsafe),
    ("take ownership of bundle", Kind::Unsafe),
    ("is too small for image", Kind::TooLarge),
    ("does not fit to slot size", Kind::TooLarge),
    ("No space left on device", Kind::NoSpace),
    ("payload is corrupted", Kind::Corrupt),
    ("no valid CMS", Kind::Corrupt),
    ("failed to parse signature", Kind::Corrupt),
    ("Invalid bundle format", Kind::NotABundle),
    ("Failed to load manifest", Kind::BadManifest),
    ("No installable image found", Kind::BadManifest),
    ("No target slot for class", Kind::BadManifest),
    ("Unsupported image", Kind::BadManifest),
    ("not found in bundle", Kind::BadManifest),
    ("in bundle manifest", Kind::BadManifest),
];

/// Turns RAUC's words about `source` into a typed failure that keeps them as its chain.
#[must_use]
pub fn classify(source: &str, rauc: &str) -> Failure {
    let remote = is_remote(source);
    let rauc = rauc.trim();
    let mut kind =
        MARKS.iter().find(|(mark, _)| rauc.contains(mark)).map_or(Kind::Installer, |(_, kind)| *kind);
    // The kernel reports a payload block that does not match its hash, and a broken download, as the same EIO.
    if kind == Kind::Installer && rauc.contains("Input/output error") {
        kind = if remote { Kind::ReadFailed } else { Kind::Corrupt };
    }
    if kind == Kind::Corrupt
        && remote
        && rauc.contains("Failed mounting bundle")
        && rauc.contains("output error")
    {
        kind = Kind::ReadFailed;
    }
    let (message, hint) = words(kind, source);
    let chain = rauc.split(": ").map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect();
    Failure { kind, message, chain, hint: hint.map(str::to_owned) }
}

/// Whether RAUC streams this source instead of opening a file.
#[must_use]
pub fn is_remote(source: &str) -> bool {
    let lower = source.get(..8).unwrap_or(source).to_ascii_lowercase();
    lower.starts_with("http://") || lower.starts_with("https://")
}

fn words(kind: Kind, source: &str) -> (String, Option<&'static str>) {
    match kind {
        Kind::Busy => (
            "RAUC is busy with another operation".into(),
            Some("wait for it to end, or see `rustiot update status`"),
        ),
        Kind::NotABundle => (
            format!("{source} is not a complete RAUC bundle: it was cut off, or it is something else"),
            Some("compare its size and checksum with the original and copy it again"),
        ),
        Kind::Truncated => (
            format!("the bundle {source} was cut off: its end with the signature is missing"),
            Some("compare its size with the original and copy it again"),
        ),
        Kind::Oversized => (
            format!("the signature block that {source} claims is larger than any real one (64 KiB)"),
            Some("the end of the file is not that of a bundle; build it again or copy it again"),
        ),
        Kind::Signature => (
            format!("the signature of {source} is not one that this device trusts"),
            Some(
                "sign it with a key whose CA is in the image's keyring, with a certificate for code signing \
                 (`rustiot keys`)",
            ),
        ),
        Kind::NotYetValid => (
            format!("the certificate that signed {source} is not valid yet by this device's clock"),
            Some(
                "check the device's clock and time servers: `timedatectl`; it is accepted once the time is right",
            ),
        ),
        Kind::Expired => (
            format!("the certificate that signed {source} has expired"),
            Some("sign the bundle again with a valid certificate: `rauc resign`"),
        ),
        Kind::PlainFormat => (
            format!("{source} is a bundle of RAUC's plain format, which is not accepted"),
            Some("build it with `format=verity` in the [bundle] section of its manifest"),
        ),
        Kind::Corrupt => (
            format!("{source} is damaged: its payload or signature is not what was signed"),
            Some("copy the bundle again; if it happens twice the storage it lies on is failing"),
        ),
        Kind::WrongBoard => {
            (format!("{source} is a release for another board"), Some("use this board's bundle"))
        }
        Kind::BelowFloor => (
            format!("{source} is older than the oldest release this device may run"),
            Some("install a newer release; the floor only ever rises"),
        ),
        Kind::BadManifest => (
            format!("{source} is a bundle, but not one of a RustIoT OS release"),
            Some("an OS bundle has a version and exactly the images root and boot, no hooks"),
        ),
        Kind::NotFound => (format!("there is no bundle at {source}"), Some("check the path or the URL")),
        Kind::Unauthorized => (format!("the server refuses to hand out {source} without credentials"), None),
        Kind::Unreachable => (
            format!("the server of {source} cannot be reached"),
            Some("check the network (`rustiot health`), the name and the port"),
        ),
        Kind::NoRanges => (
            format!("the server of {source} does not serve parts of files (HTTP range requests)"),
            Some("use a web server that does (nginx, caddy, any CDN), or copy the file to the device"),
        ),
        Kind::Incomplete => (
            format!("the server answered for {source}, but with nothing, or with less than it announced"),
            Some("look whether the file on the server is empty or still being uploaded"),
        ),
        Kind::ReadFailed => {
            (format!("the download of {source} broke off"), Some("it is tried again by itself"))
        }
        Kind::Unsafe => (
            format!("other programs could change {source} while it is read"),
            Some("put it on a local disk, owned by root, with no program holding it open"),
        ),
        Kind::TooLarge => (
            format!("an image in {source} does not fit into its partition"),
            Some("the release was built for another disk layout"),
        ),
        Kind::NoSpace => ("no space left for RAUC's own state".into(), Some("see `df /state /run`")),
        _ => (format!("RAUC could not install {source}"), Some("see `journalctl -u rauc`")),
    }
}

/// Makes "cut off" out of "not a complete bundle" for a local file whose first bytes are those of a bundle.
///
/// `head` is the start of the file, if it could be read: a bundle begins with squashfs's magic.
#[must_use]
pub fn refine(failure: Failure, source: &str, head: Option<[u8; 4]>) -> Failure {
    if !matches!(failure.kind, Kind::NotABundle | Kind::Oversized) {
        return failure;
    }
    let (kind, message) = match head {
        Some(magic) if &magic == b"hsqs" && failure.kind == Kind::Oversized => return failure,
        Some(magic) if &magic == b"hsqs" => (Kind::Truncated, None),
        Some(_) => (Kind::NotABundle, Some(format!("{source} is not a RAUC bundle"))),
        None => return failure,
    };
    let (words, hint) = words(kind, source);
    Failure { kind, message: message.unwrap_or(words), hint: hint.map(str::to_owned), ..failure }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Texts as RAUC 1.13 sends them, for a file and for a URL.
    const FILE: &[(&str, Kind, u8)] = &[
        (
            "signature verification failed: Verify error: self-signed certificate in certificate chain",
            Kind::Signature,
            5,
        ),
        (
            "signature verification failed: Verify error: unable to get local issuer certificate",
            Kind::Signature,
            5,
        ),
        ("signature verification failed: Verify error: unsuitable certificate purpose", Kind::Signature, 5),
        ("signature verification failed: Verify error: certificate has expired", Kind::Expired, 5),
        ("signature verification failed: Verify error: certificate is not yet valid", Kind::NotYetValid, 5),
        ("Bundle format 'plain' not allowed", Kind::PlainFormat, 5),
        ("Bundle format 'plain' not supported in streaming mode", Kind::PlainFormat, 5),
        (
            "Invalid bundle format: Signature size (1234605616436508552) exceeds bundle size",
            Kind::NotABundle,
            5,
        ),
        ("Invalid bundle format: Signature size is 0", Kind::NotABundle, 5),
        ("Invalid bundle format: Signature size (70000) exceeds 64KiB", Kind::Oversized, 5),
        (
            "Invalid bundle format: Payload size (13) is not a multiple of 4KiB. See the FAQ",
            Kind::NotABundle,
            5,
        ),
        ("Invalid bundle format: failed to parse signature", Kind::Corrupt, 5),
        ("Invalid bundle format: Signature data is no valid CMS", Kind::Corrupt, 5),
        ("Failed mounting bundle: Failed to find free loop device", Kind::Installer, 1),
        (
            "Failed mounting bundle: Failed to open /dev/mapper/control: No such file or directory",
            Kind::Installer,
            1,
        ),
        ("Invalid bundle format: Bundle is not a regular file", Kind::NotFound, 1),
        (
            "Invalid bundle format: Failed to open bundle for reading: Error opening file /x: No such file or directory",
            Kind::NotFound,
            1,
        ),
        (
            "Compatible mismatch: Expected 'rustiot-a' but bundle manifest has 'rustiot-b'",
            Kind::WrongBoard,
            3,
        ),
        ("Version mismatch: Expected at least '2.0' but bundle manifest has '1.0'", Kind::BelowFloor, 3),
        ("Failed mounting bundle: mount failed: Input/output error", Kind::Corrupt, 5),
        ("bundle payload is corrupted", Kind::Corrupt, 5),
        (
            "Installation error: Failed updating slot root.1: Slot (1000 bytes) is too small for image (2000 bytes).",
            Kind::TooLarge,
            3,
        ),
        (
            "Installation error: Failed updating slot root.1: Failed to copy data: Input/output error",
            Kind::Corrupt,
            5,
        ),
        (
            "cannot check bundle payload without exclusive access: unsafe bundle permissions 0777",
            Kind::Unsafe,
            1,
        ),
        ("Already processing a different method", Kind::Busy, 4),
        ("already processing a different method", Kind::Busy, 4),
        ("Installation error: No installable image found", Kind::BadManifest, 3),
        ("something that no one foresaw", Kind::Installer, 1),
        ("", Kind::Installer, 1),
    ];

    const URL: &[(&str, Kind)] = &[
        ("x: failed to configure streaming: unexpected HTTP error code 416", Kind::NotABundle),
        (
            "Failed to stream bundle http://h/x: failed to configure streaming: incomplete HTTP response",
            Kind::Incomplete,
        ),
        ("x: failed to configure streaming: unexpected HTTP error code 403", Kind::Unauthorized),
        ("x: failed to configure streaming: unexpected HTTP error code 503", Kind::Unreachable),
        ("Failed to stream bundle http://h/x: not found: unexpected HTTP error code 404", Kind::NotFound),
        (
            "Failed to stream bundle http://h/x: unauthorized: unexpected HTTP error code 401",
            Kind::Unauthorized,
        ),
        (
            "Failed to stream bundle http://h/x: failed to configure streaming: server not responding",
            Kind::Unreachable,
        ),
        (
            "Failed to stream bundle http://h/x: failed to configure streaming: range requests not supported by server",
            Kind::NoRanges,
        ),
        (
            "Installation error: Failed updating slot root.1: Failed to copy data: Input/output error",
            Kind::ReadFailed,
        ),
        ("Failed mounting bundle: mount failed: Input/output error", Kind::ReadFailed),
    ];

    #[test]
    fn raucs_texts_become_kinds() {
        for (text, kind, code) in FILE {
            let failure = classify("/data/x.raucb", text);
            assert_eq!((failure.kind, failure.kind.exit_code()), (*kind, *code), "{text}");
        }
        for (text, kind) in URL {
            assert_eq!(classify("http://h/x", text).kind, *kind, "{text}");
        }
    }

    #[test]
    fn every_bad_bundle_has_its_own_message() {
        let mut seen = std::collections::HashMap::new();
        for (text, kind, _) in FILE {
            let failure = classify("/data/x.raucb", text);
            assert_eq!(
                *seen.entry(failure.message).or_insert(*kind),
                *kind,
                "two kinds share a message: {text}"
            );
        }
    }

    #[test]
    fn raucs_own_words_stay_in_the_chain() {
        let failure = classify("x", "Installation error: Failed updating slot root.1: odd thing");
        assert_eq!(failure.chain, ["Installation error", "Failed updating slot root.1", "odd thing"]);
    }

    #[test]
    fn a_cut_off_bundle_is_told_from_random_bytes_by_its_head() {
        let text = "Invalid bundle format: Signature size (9) exceeds bundle size";
        let of = |head| refine(classify("/x", text), "/x", head);
        assert_eq!(of(Some(*b"hsqs")).kind, Kind::Truncated);
        assert_eq!(of(Some(*b"\x7fELF")).message, "/x is not a RAUC bundle");
        assert_eq!(of(None).kind, Kind::NotABundle);
        let large =
            |head| refine(classify("/x", "Signature size (70000) exceeds 64KiB"), "/x", Some(head)).kind;
        assert_eq!((large(*b"hsqs"), large(*b"abcd")), (Kind::Oversized, Kind::NotABundle));
        let signature = classify("/x", "signature verification failed: x");
        assert_eq!(refine(signature.clone(), "/x", Some(*b"hsqs")), signature);
    }

    #[test]
    fn remote_sources() {
        for (source, remote) in
            [("http://h/x", true), ("HTTPS://h", true), ("/data/http://x", false), ("", false), ("ü", false)]
        {
            assert_eq!(is_remote(source), remote, "{source}");
        }
    }

    proptest! {
        #[test]
        fn whatever_rauc_says_its_words_stay_and_a_bad_signature_stays_bad(
            source in "(http://|/)?.{0,40}",
            parts in proptest::collection::vec(prop_oneof![
                proptest::sample::select(FILE).prop_map(|(text, ..)| text.to_owned()),
                proptest::sample::select(URL).prop_map(|(text, _)| text.to_owned()),
                ".{0,30}",
            ], 0..4),
            head: Option<[u8; 4]>,
        ) {
            let text = parts.join(": ");
            let failure = classify(&source, &text);
            prop_assert!(failure.chain.iter().all(|part| !part.is_empty() && text.contains(part)));
            prop_assert_eq!(failure.chain.is_empty(), text.trim().split(": ").all(|part| part.trim().is_empty()));
            if text.contains("signature verification failed") {
                prop_assert!(!failure.kind.is_of_the_way());
                prop_assert!(failure.kind == Kind::Busy || !failure.kind.is_transient());
            }
            for head in [head, Some(*b"hsqs")] {
                let refined = refine(failure.clone(), &source, head);
                prop_assert_eq!(refined.kind.exit_code(), failure.kind.exit_code());
                prop_assert_eq!(&refined.chain, &failure.chain);
                prop_assert_eq!(refine(refined.clone(), &source, head), refined);
            }
        }
    }
}
