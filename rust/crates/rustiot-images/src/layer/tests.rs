//! Layers from good and bad archives; what the kernel makes of them, where it can be asked.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64};

use proptest::prelude::*;
use tar::{Builder, EntryType, Header};

use super::*;
use crate::digest::Digest;
use crate::limits::Limits;

fn limits() -> Limits {
    Limits { reserve_bytes: 0, reserve_inodes: 0, ..Limits::default() }
}

fn take_in(archive: &[u8], limits: &Limits) -> (Result<Imported, LayerError>, File) {
    let file = tempfile::tempfile().unwrap();
    let (consumed, cancelled) = (AtomicU64::new(archive.len() as u64), AtomicBool::new(false));
    let watch = Watch { consumed: &consumed, cancelled: &cancelled, progress: &|_| {} };
    (import(archive, &file, limits, &watch), file)
}

fn refused(archive: &[u8]) -> String {
    let error = take_in(archive, &limits()).0.unwrap_err();
    let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    format!("{error}: {source}")
}

fn header(kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
    header.set_uid(1000);
    header.set_gid(100);
    header.set_mtime(1_700_000_000);
    header
}

/// An entry with its name as it is, however bad.
fn raw(builder: &mut Builder<Vec<u8>>, name: &[u8], kind: EntryType, link: &[u8], data: &[u8]) {
    let mut header = header(kind, data.len() as u64);
    let bytes = header.as_mut_bytes();
    bytes[..name.len()].copy_from_slice(name);
    bytes[157..157 + link.len()].copy_from_slice(link);
    header.set_cksum();
    builder.append(&header, data).unwrap();
}

fn archive(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (name, kind, content) in entries {
        match kind {
            EntryType::Symlink | EntryType::Link => {
                raw(&mut builder, name.as_bytes(), *kind, content.as_bytes(), b"")
            }
            kind => raw(&mut builder, name.as_bytes(), *kind, b"", content.as_bytes()),
        }
    }
    builder.into_inner().unwrap()
}

use EntryType::{Directory as D, Link as H, Regular as F, Symlink as S};

/// Whether this machine can mount; says so when not.
fn can_mount() -> bool {
    let root = nix::unistd::geteuid().is_root();
    let erofs = fs::read_to_string("/proc/filesystems").is_ok_and(|known| known.contains("erofs"));
    if !(root && erofs) {
        eprintln!("skipped: the kernel is not asked: it takes root and a kernel with erofs");
    }
    root && erofs
}

struct Mounted(tempfile::TempDir);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = crate::mount::unmount(&self.0.path().join("at"));
    }
}

fn mounted(archive: &[u8]) -> Mounted {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("layer");
    let file = File::create_new(&path).unwrap();
    let (consumed, cancelled) = (AtomicU64::new(archive.len() as u64), AtomicBool::new(false));
    let watch = Watch { consumed: &consumed, cancelled: &cancelled, progress: &|_| {} };
    let imported = import(archive, &file, &limits(), &watch).unwrap();
    assert_eq!(imported.diff_id, Digest::of(archive));
    fs::create_dir(dir.path().join("at")).unwrap();
    crate::mount::layer(&path, &dir.path().join("at")).unwrap();
    Mounted(dir)
}

impl Mounted {
    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join("at").join(name)
    }
}

#[test]
fn the_kernel_sees_what_the_archive_says() {
    if !can_mount() {
        return;
    }
    let long = "n".repeat(200);
    let deep = format!("{}/{}/{}", "d".repeat(150), "e".repeat(150), long);
    let big: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    let mut builder = Builder::new(Vec::new());
    let mut root = header(D, 0);
    root.set_mode(0o1777);
    builder.append_data(&mut root, "./", &b""[..]).unwrap();
    builder.append_data(&mut header(F, 5), "usr/bin/tool", &b"hello"[..]).unwrap();
    let mut suid = header(F, big.len() as u64);
    suid.set_mode(0o4755);
    builder.append_data(&mut suid, "usr/bin/big", &big[..]).unwrap();
    builder.append_data(&mut header(F, 4), &deep, &b"deep"[..]).unwrap();
    builder.append_link(&mut header(S, 0), "bin", "usr/bin").unwrap();
    builder.append_link(&mut header(S, 0), "far", "x/".repeat(700)).unwrap();
    raw(&mut builder, b"bin/through-the-link", F, b"", b"inside");
    raw(&mut builder, b"same", H, b"usr/bin/tool", b"");
    raw(&mut builder, b"empty", F, b"", b"");
    raw(&mut builder, b"pipe", EntryType::Fifo, b"", b"");
    raw(&mut builder, b"null", EntryType::Char, b"", b"");
    // A capability with a newline in it, and attributes that a layer may not bring.
    let capability = b"\x01\x00\x00\x02\n\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    builder
        .append_pax_extensions([
            ("SCHILY.xattr.security.capability", &capability[..]),
            ("SCHILY.xattr.trusted.overlay.redirect", &b"/etc"[..]),
            ("SCHILY.xattr.user.overlay.opaque", &b"y"[..]),
            ("SCHILY.xattr.user.note", &b"hi"[..]),
            ("mtime", &b"1700000001.25"[..]),
        ])
        .unwrap();
    raw(&mut builder, b"capable", F, b"", b"c");
    for n in 0..2000 {
        raw(&mut builder, format!("many/file-{n:04}").as_bytes(), F, b"", n.to_string().as_bytes());
    }
    let archive = builder.into_inner().unwrap();
    let at = mounted(&archive);
    assert_eq!(fs::metadata(at.path("")).unwrap().permissions().mode() & 0o7777, 0o1777);
    assert_eq!(fs::read(at.path("usr/bin/tool")).unwrap(), b"hello");
    assert_eq!(fs::read(at.path("bin/big")).unwrap(), big);
    let meta = fs::metadata(at.path("usr/bin/big")).unwrap();
    assert_eq!(
        (meta.mode() & 0o7777, meta.uid(), meta.gid(), meta.mtime()),
        (0o4755, 1000, 100, 1_700_000_000)
    );
    assert_eq!(fs::read(at.path(&deep)).unwrap(), b"deep");
    assert_eq!(fs::read_link(at.path("bin")).unwrap(), Path::new("usr/bin"));
    assert_eq!(fs::read_link(at.path("far")).unwrap().as_os_str().len(), 1400);
    assert_eq!(fs::read(at.path("usr/bin/through-the-link")).unwrap(), b"inside");
    let (one, other) =
        (fs::metadata(at.path("same")).unwrap(), fs::metadata(at.path("usr/bin/tool")).unwrap());
    assert_eq!((one.ino(), one.nlink()), (other.ino(), 2));
    assert_eq!(fs::metadata(at.path("empty")).unwrap().len(), 0);
    assert!(fs::symlink_metadata(at.path("pipe")).unwrap().file_type().is_fifo());
    assert!(!at.path("null").exists(), "device nodes are left out");
    let meta = fs::metadata(at.path("capable")).unwrap();
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (1_700_000_001, 250_000_000));
    let listed = std::process::Command::new("getfattr")
        .args(["-d", "-m", "-", "--absolute-names"])
        .arg(at.path("capable"))
        .output();
    match listed {
        Ok(listed) => {
            let text = String::from_utf8_lossy(&listed.stdout).into_owned();
            assert!(text.contains("security.capability") && text.contains("user.note=\"hi\""), "{text}");
            assert!(!text.contains("overlay"), "{text}");
        }
        Err(_) => eprintln!("skipped: extended attributes are not looked at: no getfattr here"),
    }
    assert_eq!(fs::read_dir(at.path("many")).unwrap().count(), 2000);
    for n in (0..2000).step_by(97) {
        assert_eq!(fs::read_to_string(at.path(&format!("many/file-{n:04}"))).unwrap(), n.to_string());
        assert!(!at.path(&format!("many/file-{n:04}x")).exists());
    }
}

/// Whiteouts and opaque directories are overlayfs's own, and only those that the format means.
#[test]
fn overlayfs_hides_what_the_upper_layer_hides() {
    if !can_mount() {
        return;
    }
    let lower = mounted(&archive(&[
        ("a/one", F, "1"),
        ("a/two", F, "2"),
        ("b/one", F, "1"),
        ("c/d/one", F, "1"),
        ("e", F, "lower"),
    ]));
    let upper = mounted(&archive(&[
        ("a/.wh.one", F, ""),
        ("b/.wh..wh..opq", F, ""),
        ("b/new", F, "n"),
        (".wh.c", F, ""),
        ("c/new", F, "n"),
        (".wh.e", F, ""),
        ("e", F, "upper"),
        (".wh..wh.plnk", F, ""),
    ]));
    let dir = tempfile::tempdir().unwrap();
    let options = format!("lowerdir={}:{}", upper.path("").display(), lower.path("").display());
    let none: Option<&str> = None;
    nix::mount::mount(
        Some("overlay"),
        dir.path(),
        Some("overlay"),
        nix::mount::MsFlags::MS_RDONLY,
        Some(&*options),
    )
    .unwrap();
    let _ = none;
    let list = |name: &str| {
        let mut names: Vec<String> = fs::read_dir(dir.path().join(name))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let seen = (list("a"), list("b"), list("c"), list(""), fs::read_to_string(dir.path().join("e")).unwrap());
    crate::mount::unmount(dir.path()).unwrap();
    assert_eq!(seen.0, ["two"]);
    assert_eq!(seen.1, ["new"]);
    assert_eq!(seen.2, ["new"]);
    assert_eq!(seen.3, ["a", "b", "c", "e"]);
    assert_eq!(seen.4, "upper");
}

#[test]
fn a_sparse_file_of_gnu_tar() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sparse");
    let file = File::create(&path).unwrap();
    use std::os::unix::fs::FileExt;
    file.set_len(10 << 20).unwrap();
    for n in 0..40_u64 {
        file.write_all_at(format!("piece {n}").as_bytes(), n * 250_000 / 4096 * 4096).unwrap();
    }
    drop(file);
    let out = dir.path().join("out.tar");
    let made = std::process::Command::new("tar")
        .args(["--format=gnu", "-S", "-cf"])
        .arg(&out)
        .arg("-C")
        .arg(dir.path())
        .arg("sparse")
        .status();
    if !made.is_ok_and(|status| status.success()) {
        eprintln!("skipped: no GNU tar here");
        return;
    }
    let archive = fs::read(&out).unwrap();
    if archive.len() > 4 << 20 {
        eprintln!("skipped: this file system has no holes");
        return;
    }
    let at = mounted(&archive);
    assert_eq!(fs::read(at.path("sparse")).unwrap(), fs::read(&path).unwrap());
}

#[test]
fn what_leads_out_or_around_is_refused() {
    for (entries, word) in [
        (&[("../evil", F, "x")][..], "leads out"),
        (&[("a/../../evil", F, "x")], "leads out"),
        (&[("hard", H, "../../etc/passwd")], "leads out"),
        (&[("hard", H, "/etc/passwd")], "does not have"),
        (&[("d", D, ""), ("hard", H, "d")], "hard link to a directory"),
        (&[("one", S, "two"), ("two", S, "one"), ("one/x", F, "")], "circle"),
        (&[("file", F, "x"), ("file/x", F, "")], "no directory"),
        (&[("a/.wh.", F, "")], "whiteout without a name"),
        (&[(".wh...", F, "")], "whiteout without a name"),
        (&[("link", S, "")], "nowhere"),
        (&[("./", F, "")], ""),
        (&[("x", EntryType::new(b'Z'), "")], "unknown type"),
    ] {
        if word.is_empty() {
            take_in(&archive(entries), &limits()).0.unwrap();
            continue;
        }
        let error = refused(&archive(entries));
        assert!(error.contains(word), "{entries:?}: {error}");
    }
    let mut builder = Builder::new(Vec::new());
    builder.append_pax_extensions([("path", &b"a\0b"[..])]).unwrap();
    raw(&mut builder, b"x", F, b"", b"");
    assert!(refused(&builder.into_inner().unwrap()).contains("zero byte"));
    let mut builder = Builder::new(Vec::new());
    builder.append_pax_extensions([("path", "n".repeat(256).as_bytes())]).unwrap();
    raw(&mut builder, b"x", F, b"", b"");
    assert!(refused(&builder.into_inner().unwrap()).contains("255"));
}

/// A link out of the image followed by an entry through it: the entry lands inside.
#[test]
fn links_are_followed_inside_only() {
    let entries =
        [("up", S, "../../../../etc"), ("up/passwd", F, "x"), ("abs", S, "/etc"), ("abs/shadow", F, "y")];
    let (imported, _) = take_in(&archive(&entries), &limits());
    // The root, two links, `etc` and two files.
    assert_eq!(imported.unwrap().entries, 6);
    if can_mount() {
        let at = mounted(&archive(&entries));
        assert_eq!(fs::read(at.path("etc/passwd")).unwrap(), b"x");
        assert_eq!(fs::read(at.path("etc/shadow")).unwrap(), b"y");
    }
}

#[test]
fn bombs_and_broken_streams() {
    let good = archive(&[("a", F, "contents"), ("b", F, "more")]);
    for cut in (1..good.len() - 1024).filter(|cut| cut % 512 != 0 || *cut % 1024 == 0).step_by(37) {
        let (result, _) = take_in(&good[..cut], &limits());
        match result {
            // At the beginning of a header an archive may end, as Docker sees it; the digest decides then.
            Ok(imported) => assert_eq!((cut % 512, imported.diff_id), (0, Digest::of(&good[..cut]))),
            Err(error) => assert!(matches!(error, LayerError::Tar { .. }), "{cut}: {error:?}"),
        }
    }
    let behind = [&good[..], &archive(&[("c", F, "")])].concat();
    assert!(refused(&behind).contains("something behind its end"));
    let mut flipped = good.clone();
    flipped[0] ^= 1;
    assert!(refused(&flipped).contains("checksum"));
    let few = Limits { layer_entries: 2, ..limits() };
    assert!(matches!(take_in(&good, &few).0, Err(LayerError::TooLarge { what: "entries", .. })));
    let small = Limits { layer_size: 1024, ..limits() };
    assert!(matches!(take_in(&good, &small).0, Err(LayerError::TooLarge { .. })));
    let full = Limits { reserve_bytes: u64::MAX - (8 << 20), ..limits() };
    assert!(matches!(take_in(&good, &full).0, Err(LayerError::NoSpace { .. })));
    // Ten megabytes out of one byte.
    let zeros = archive(&[("z", F, &"0".repeat(10 << 20))]);
    let file = tempfile::tempfile().unwrap();
    let (consumed, cancelled) = (AtomicU64::new(1), AtomicBool::new(false));
    let watch = Watch { consumed: &consumed, cancelled: &cancelled, progress: &|_| {} };
    let tight = Limits { ratio_from: 1 << 20, ..limits() };
    assert!(matches!(
        import(&zeros[..], &file, &tight, &watch),
        Err(LayerError::TooLarge { limit: 200, .. })
    ));
    // An extended header of a gigabyte.
    let mut builder = Builder::new(Vec::new());
    let mut header = header(EntryType::XHeader, 1 << 30);
    header.set_cksum();
    builder.append(&header, &b""[..]).unwrap();
    assert!(refused(&builder.into_inner().unwrap()).contains("extended header"));
    let cancelled = AtomicBool::new(true);
    let watch = Watch { consumed: &consumed, cancelled: &cancelled, progress: &|_| {} };
    assert!(matches!(import(&good[..], &file, &limits(), &watch), Err(LayerError::Cancelled)));
}

#[test]
fn any_changed_byte_is_found() {
    use std::os::unix::fs::FileExt;
    let archive = archive(&[("a", F, "contents"), ("link", S, "a")]);
    let (imported, file) = take_in(&archive, &limits());
    let Imported { diff_id, size, .. } = imported.unwrap();
    assert_eq!(file.metadata().unwrap().len(), size);
    let end = file::full(&file, &diff_id).unwrap();
    let mut back = Vec::new();
    file::archive(&file, &end).read_to_end(&mut back).unwrap();
    assert_eq!(back, archive);
    for at in (0..size).step_by(61) {
        // The last bytes are padding of the end, the ones before the metadata padding of the archive.
        if at >= size - 4 || (4096 + archive.len() as u64..end.metadata.at).contains(&at) {
            continue;
        }
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 4], at).unwrap();
        assert!(file::full(&file, &diff_id).is_err(), "byte {at}");
        file.write_all_at(&byte, at).unwrap();
    }
    file::full(&file, &diff_id).unwrap();
    for length in [0, 50, 4096, size - 1] {
        file.set_len(length).unwrap();
        assert!(file::quick(&file, &diff_id).is_err());
    }
}

/// A directory tree as a test makes it, against what the kernel shows.
fn tree() -> impl Strategy<Value = BTreeMap<String, Vec<u8>>> {
    let name = "[a-zA-Z!~.][a-z0-9.-]{0,40}";
    let path = prop::collection::vec(name, 1..4)
        .prop_map(|parts| parts.iter().map(|part| format!("{part}_")).collect::<Vec<_>>().join("/"));
    prop::collection::btree_map(path, prop::collection::vec(any::<u8>(), 0..1500), 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_comes_back(tree in tree()) {
        let mut builder = Builder::new(Vec::new());
        let files: Vec<_> = tree.iter().filter(|(path, _)| !tree.keys().any(|other| other.starts_with(&format!("{path}/")))).collect();
        for (path, data) in &files {
            builder.append_data(&mut header(F, data.len() as u64), path, &data[..]).unwrap();
        }
        let archive = builder.into_inner().unwrap();
        if can_mount() {
            let at = mounted(&archive);
            for (path, data) in files {
                prop_assert_eq!(&fs::read(at.path(path)).unwrap(), data);
            }
        } else {
            take_in(&archive, &limits()).0.unwrap();
        }
    }
}

proptest! {
    #[test]
    fn garbage_is_an_error_and_no_panic(bytes: Vec<u8>, at in 0_usize..2048, byte: u8) {
        let _ = take_in(&bytes, &limits());
        let mut almost = archive(&[("a/b", F, "contents"), ("l", S, "a"), ("h", H, "a/b")]);
        almost[at % 2048] = byte;
        let _ = take_in(&almost, &limits());
        let _ = super::walk::records(&bytes, 0);
        let _ = file::End::decode(&bytes);
    }
}
