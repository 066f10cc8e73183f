//! Valid inputs for the targets whose magic numbers and checksums no fuzzer guesses: `cargo run --example seeds` in
//! `rust/fuzz` puts them into `corpus/`, where `cargo fuzz run` looks. Each is shown to its parser first: a seed that is
//! refused would lead nowhere.

use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let groups = [
        gpts()?,
        grown()?,
        superblocks(),
        leases()?,
        logs()?,
        deltas()?,
        indexes()?,
        files()?,
        texts(),
        selectors()?,
        edits(),
        images()?,
    ];
    for (target, name, bytes) in groups.into_iter().flatten() {
        let dir = corpus.join(target);
        std::fs::create_dir_all(&dir)?;
        std::fs::write(dir.join(format!("seed-{name}")), bytes)?;
    }
    println!("{}", corpus.display());
    Ok(())
}

type Seed = (&'static str, String, Vec<u8>);

/// 64 sectors with both tables; one whose primary is gone.
fn gpts() -> Result<Vec<Seed>, Box<dyn Error>> {
    let mut seeds = Vec::new();
    for (name, used, entry_bytes) in [("one", 1u8, 128u32), ("full", 16, 128), ("wide", 3, 256)] {
        let mut disk = disk(used, entry_bytes);
        for part in ["", "-backup"] {
            let mut read = |offset: u64, length: usize| {
                Ok::<_, std::io::Error>(disk[offset as usize..offset as usize + length].to_vec())
            };
            let found = rustiot_init::gpt::partitions(&mut read, disk.len() as u64, 512)?;
            assert_eq!(found.len(), usize::from(used), "{name}{part}");
            seeds.push(("gpt", format!("{name}{part}"), disk.clone()));
            disk[512..520].fill(0);
        }
    }
    Ok(seeds)
}

fn disk(used: u8, entry_bytes: u32) -> Vec<u8> {
    let count = 2048 / entry_bytes.max(128);
    let mut table = vec![0; 2048];
    for (number, entry) in (1..=used).zip(table.chunks_mut(entry_bytes as usize)) {
        entry[..16].fill(0xaa);
        entry[16..32].fill(number);
        entry[32..40].copy_from_slice(&(33 + u64::from(number)).to_le_bytes());
        entry[40..48].copy_from_slice(&(40 + u64::from(number)).to_le_bytes());
    }
    let mut disk = vec![0; 64 * 512];
    for (lba, entries) in [(1u64, 2u64), (63, 59)] {
        let mut header = [0; 92];
        header[..8].copy_from_slice(b"EFI PART");
        header[12..16].copy_from_slice(&92u32.to_le_bytes());
        header[24..32].copy_from_slice(&lba.to_le_bytes());
        header[72..80].copy_from_slice(&entries.to_le_bytes());
        header[80..84].copy_from_slice(&count.to_le_bytes());
        header[84..88].copy_from_slice(&entry_bytes.to_le_bytes());
        header[88..92].copy_from_slice(&crc32fast::hash(&table).to_le_bytes());
        let crc = crc32fast::hash(&header);
        header[16..20].copy_from_slice(&crc.to_le_bytes());
        let (at, to) = (lba as usize * 512, entries as usize * 512);
        disk[at..at + 92].copy_from_slice(&header);
        disk[to..to + 2048].copy_from_slice(&table);
    }
    disk
}

/// As in `fuzz_targets/provision_gpt.rs`: tables with `state` and `data` for a medium of 2 MiB: both, the primary alone as on
/// one that is larger than the image, the backup alone.
fn grown() -> Result<Vec<Seed>, Box<dyn Error>> {
    use rustiot_provision::gpt::{Read, grow};
    struct Medium(Vec<u8>);
    impl Read for Medium {
        fn read(&self, offset: u64, length: usize) -> Option<Vec<u8>> {
            self.0.get(offset as usize..offset as usize + length).map(<[u8]>::to_vec)
        }
    }
    const SECTORS: usize = 128 + 255 * 16;
    let mut entries = vec![0; 512];
    for (number, (name, first, last)) in [("state", 40u64, 49u64), ("data", 50, 99)].into_iter().enumerate() {
        let entry = &mut entries[number * 128..][..128];
        entry[..32].fill(number as u8 + 1);
        entry[32..40].copy_from_slice(&first.to_le_bytes());
        entry[40..48].copy_from_slice(&last.to_le_bytes());
        for (at, unit) in name.encode_utf16().enumerate() {
            entry[56 + 2 * at..58 + 2 * at].copy_from_slice(&unit.to_le_bytes());
        }
    }
    let header = |lba: u64, other: u64, table: u64| {
        let mut header = vec![0; 512];
        header[..8].copy_from_slice(b"EFI PART");
        header[8..16].copy_from_slice(&[0, 0, 1, 0, 92, 0, 0, 0]);
        for (at, value) in [(24, lba), (32, other), (40, 3), (48, 120), (72, table)] {
            header[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        header[80..84].copy_from_slice(&4u32.to_le_bytes());
        header[84..88].copy_from_slice(&128u32.to_le_bytes());
        header[88..92].copy_from_slice(&crc32fast::hash(&entries).to_le_bytes());
        let crc = crc32fast::hash(&header[..92]);
        header[16..20].copy_from_slice(&crc.to_le_bytes());
        header
    };
    let last = SECTORS as u64 - 1;
    let front = [header(1, last, 2), entries.clone()].concat();
    let back = [entries.clone(), header(last, 1, last - 1)].concat();
    let gone = vec![0; 1024];
    let mut seeds = Vec::new();
    for (name, front, back) in [("whole", &front, &back), ("larger", &front, &gone), ("backup", &gone, &back)]
    {
        let mut disk = vec![0; SECTORS * 512];
        disk[512..1536].copy_from_slice(front);
        disk[SECTORS * 512 - 1024..].copy_from_slice(back);
        let plan = grow(&Medium(disk), SECTORS as u64 * 512, 512, "data")?;
        assert_eq!((plan.partition.length, plan.writes.is_empty()), ((4096 - 50) * 512, false), "{name}");
        seeds.push(("provision_gpt", name.to_owned(), [&[255, 0][..], front, back].concat()));
    }
    Ok(seeds)
}

/// A superblock in each state.
fn superblocks() -> Vec<Seed> {
    use rustiot_provision::superblock::{Found, look};
    let mut seeds = Vec::new();
    for (name, state, label) in [("clean", 1, "data"), ("errors", 3, "state"), ("unfinished", 1, "data-new")]
    {
        let mut bytes = vec![0; 2048];
        bytes[1080..1083].copy_from_slice(&[0x53, 0xef, state]);
        bytes[1144..1144 + label.len()].copy_from_slice(label.as_bytes());
        assert!(matches!(look(&bytes), Found::Ext4 { .. }), "{name}");
        seeds.push(("superblock", name.to_owned(), bytes));
    }
    seeds
}

/// A file of each form.
fn files() -> Result<Vec<Seed>, Box<dyn Error>> {
    let report: &[u8] =
        br#"{"slot": "a", "boot_id": "b", "reset": {"reason": "watchdog", "pstore_tail": ["x"]}}"#;
    rustiot_slots::parse_boot_report(report)?;
    let transaction =
        rustiot_update::Transaction::new(rustiot_update::Request::default(), 1_800_000_000, "boot");
    let id = b"0123456789abcdef0123456789abcdef\n";
    rustiot_init::identity::parse(id).ok_or("no machine id")?;
    let (uevent, size) =
        ("MAJOR=254\nMINOR=2\nDEVNAME=vda2\nDEVTYPE=partition\nPARTN=2\nPARTNAME=boot-a\n", "2048\n");
    rustiot_init::disk::parse_uevent(uevent, size).ok_or("no partition")?;
    let record = b"6,339,5140900,-;NET: Registered\n SUBSYSTEM=net\n";
    rustiot_init::rescue::kmsg_line(record).ok_or("no record")?;
    let seeds = [
        ("report", report.to_vec()),
        ("transaction", serde_json::to_vec(&transaction)?),
        ("machine-id", id.to_vec()),
        ("uevent", format!("{uevent}\0{size}").into_bytes()),
        ("kmsg", record.to_vec()),
    ];
    Ok(seeds.into_iter().map(|(name, bytes)| ("device_files", name.to_owned(), bytes)).collect())
}

/// RAUC's words for a file and a URL.
fn texts() -> Vec<Seed> {
    let texts = [
        ("file", "/x\0Invalid bundle format: Signature size (9) exceeds bundle size"),
        ("large", "/x\0Invalid bundle format: Signature size (70000) exceeds 64KiB"),
        ("signature", "/x\0signature verification failed: Verify error: certificate has expired"),
        ("url", "http://h/x\0Failed to stream bundle http://h/x: not found: unexpected HTTP error code 404"),
        ("read", "http://h/x\0Installation error: Failed to copy data: Input/output error"),
    ];
    texts.into_iter().map(|(name, text)| ("rauc_text", name.to_owned(), text.into())).collect()
}

/// A small FAT12 with `autoboot.txt` up to the file's bytes, and the text itself.
fn selectors() -> Result<Vec<Seed>, Box<dyn Error>> {
    let text = b"[all]\ntryboot_a_b=1\nboot_partition=3\n[tryboot]\nboot_partition=4\n";
    rustiot_loader::autoboot::Selection::parse(text).ok_or("the text selects nothing")?;
    let mut disk = vec![0; 4 * 512];
    // 512 bytes a sector, one a cluster, one reserved, one table of one sector, 16 entries, 40 sectors.
    disk[11..24].copy_from_slice(&[0, 2, 1, 1, 0, 1, 16, 0, 40, 0, 0xf8, 1, 0]);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk[1024..1036].copy_from_slice(b"AUTOBOOTTXT\x20");
    disk[1024 + 26] = 2;
    disk[1024 + 28] = text.len() as u8;
    disk[1536..1536 + text.len()].copy_from_slice(text);
    let mut read = |offset: u64, length: usize| Ok(disk[offset as usize..offset as usize + length].to_vec());
    rustiot_loader::autoboot::find(&mut read)?;
    Ok(vec![("autoboot", "fat12".into(), disk), ("autoboot", "text".into(), text.to_vec())])
}

/// As in `fuzz_targets/tuf.rs`: an edit of each file that changes nothing, and a word in the middle of each.
fn edits() -> Vec<Seed> {
    (0..10u8)
        .flat_map(|file| {
            [("nothing", vec![file, 0, 0, 0, 0]), ("word", vec![file, 60, 0, 4, 0, b'n', b'u', b'l', b'l'])]
                .map(|(name, edit)| ("tuf", format!("{name}-{file}"), edit))
        })
        .collect()
}

/// Talks of a server with the client of the target, a packet in each 600 bytes.
fn leases() -> Result<Vec<Seed>, Box<dyn Error>> {
    const OFFER: u8 = 2;
    const ACK: u8 = 5;
    const NAK: u8 = 6;
    let mut seeds = Vec::new();
    for (name, kinds, leased) in [
        ("lease", &[OFFER, ACK][..], true),
        ("renewed", &[OFFER, ACK, ACK], true),
        ("refused", &[OFFER, NAK, OFFER, ACK], true),
        ("withdrawn", &[OFFER, ACK, NAK], false),
    ] {
        let mut talk = Vec::new();
        let mut client = rustiot_init::dhcp::Client::new(MAC, XID);
        for (now, kind) in (0u64..).step_by(60_000).zip(kinds) {
            let mut packet = reply(*kind);
            packet.resize(600, 0);
            let _ = client.due(now);
            let _ = client.receive(now, &packet);
            talk.extend(packet);
        }
        assert_eq!(client.address().is_some(), leased, "{name}");
        seeds.push(("dhcp", name.to_owned(), talk));
    }
    Ok(seeds)
}

/// As in `fuzz_targets/dhcp.rs`.
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const XID: u32 = 0x5249_4f54;

fn reply(kind: u8) -> Vec<u8> {
    let mut out = vec![0; 236];
    out[0] = 2;
    out[4..8].copy_from_slice(&XID.to_be_bytes());
    out[16..20].copy_from_slice(&[10, 0, 2, 15]);
    out[28..34].copy_from_slice(&MAC);
    out.extend([99, 130, 83, 99]);
    // Kind, server, netmask, router, one that nobody asked for, lease time.
    out.extend([0, 53, 1, kind, 54, 4, 10, 0, 2, 2, 1, 4, 255, 255, 255, 0, 3, 4, 10, 0, 2, 2]);
    out.extend([12, 3, b'b', b'o', b'x', 51, 4, 0, 0, 14, 16, 255]);
    out
}

/// Logs as QEMU writes them: writes, forced ones, discards, flushes, marks; one that ends in the middle of a write.
fn logs() -> Result<Vec<Seed>, Box<dyn Error>> {
    const FLUSH: u64 = 1;
    const FUA: u64 = 2;
    const DISCARD: u64 = 4;
    const MARK: u64 = 8;
    let mut seeds = Vec::new();
    for size in [512u64, 1024] {
        let sector = |words: [u64; 4]| {
            let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            bytes.resize(size as usize, 0);
            bytes
        };
        let entries: [(u64, u64, u64, u64); 7] = [
            (0, 1, 0, size),
            (2, 1, FUA, size),
            (0, 0, FLUSH, 0),
            (1, 2, DISCARD, 0),
            (0, 0, MARK, 16),
            (3, 1, FLUSH, size),
            (0, 1, 0, size),
        ];
        let mut log = sector([0x006a_7366_7773_6872, 1, 7, size]);
        for (start, sectors, flags, data) in entries {
            log.extend(sector([start, sectors, flags, data]));
            let follows = data.next_multiple_of(size) as usize;
            log.extend((0..follows).map(|at| at as u8 | 1));
        }
        for (name, bytes, count) in [("whole", log.as_slice(), 6), ("cut", &log[..log.len() - 100], 5)] {
            let parsed = testbed::writelog::WriteLog::parse(&mut std::io::Cursor::new(bytes))?;
            assert_eq!(parsed.len(), count, "{name}-{size}");
            seeds.push(("write_log", format!("{name}-{size}"), bytes.to_vec()));
        }
    }
    Ok(seeds)
}

/// A delta between two small images, and one from nothing.
fn deltas() -> Result<Vec<Seed>, Box<dyn Error>> {
    let old: Vec<u8> = (0..40_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
    let mut new = old.clone();
    new[1000..1100].fill(9);
    new.splice(50_000..50_000, [3; 333]);
    let source = |bytes| vec![rustiot_delta::Source { name: "root", bytes }];
    let (old_program, new_program) = (program(0), program(32));
    let mut seeds = Vec::new();
    for (name, new, sources) in [
        ("from-old", &new, source(&old)),
        ("full", &new, vec![]),
        ("from-program", &new_program, source(&old_program)),
    ] {
        let mut delta = Vec::new();
        rustiot_delta::encode(new, &sources, &rustiot_delta::Options::default(), &mut delta, &|_| {})?;
        let opened = rustiot_delta::Delta::open(delta.as_slice())?;
        assert_eq!(opened.header().target_len, new.len() as u64, "{name}");
        seeds.push(("delta", name.to_owned(), delta));
    }
    Ok(seeds)
}

/// An ELF file whose only load is code that calls itself; so many bytes come in front of its second half.
fn program(more: usize) -> Vec<u8> {
    let mut file = vec![0u8; 4096];
    let start = |number: usize| 4096 + 48 * number + if number < 300 { 0 } else { more };
    for number in 0..600 {
        file.resize(start(number), 0x90);
        for call in 0..4 {
            let to = start((number * 7 + call * 131) % 600);
            let distance = to as i32 - file.len() as i32 - 5;
            file.push(0xe8);
            file.extend_from_slice(&distance.to_le_bytes());
        }
        file.extend_from_slice(&(number as u64 * 0x9e37_79b9_7f4a_7c15).to_le_bytes());
    }
    let len = file.len() as u64;
    file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    // ET_DYN, EM_X86_64, EV_CURRENT; one program header of 56 bytes behind the header's 64: PT_LOAD, read and execute.
    for (at, value) in [(16, 3u8), (18, 62), (20, 1), (32, 64), (52, 64), (54, 56), (56, 1), (64, 1), (68, 5)]
    {
        file[at] = value;
    }
    file[96..104].copy_from_slice(&len.to_le_bytes());
    file[104..112].copy_from_slice(&len.to_le_bytes());
    file
}

/// Releases with a full way and a delta.
fn indexes() -> Result<Vec<Seed>, Box<dyn Error>> {
    use rustiot_repository::index::{Content, FORMAT, Release};
    use rustiot_repository::{Digest, File, Index, Rollout, Source, Way, WayKind};
    let release = |version: &str, from: Option<&str>| -> Result<Release, Box<dyn Error>> {
        let way = |kind, name: &str, from: Option<&str>| Way {
            kind,
            file: File { name: name.into(), len: 700, sha256: Digest::of(name.as_bytes()) },
            from: from.map(|from| Digest::of(from.as_bytes())),
            from_root_hash: None,
            from_version: from.and_then(|from| from.parse().ok()),
            sources: from.map_or_else(Vec::new, |from| {
                vec![Source { name: "root".into(), len: 4096, sha256: Digest::of(from.as_bytes()) }]
            }),
        };
        let mut ways = vec![way(WayKind::Full, &format!("{version}.full.rdelta"), None)];
        ways.extend(from.map(|old| way(WayKind::Delta, &format!("{version}.from-{old}.rdelta"), Some(old))));
        Ok(Release {
            version: version.parse()?,
            manifest_hash: Digest::of(version.as_bytes()),
            root_hash: None,
            floor: None,
            build_epoch: 1_700_000_000,
            notes: "new".into(),
            details: None,
            bundle: Content { len: 5000, sha256: Digest::of(b"bundle") },
            images: vec![Source { name: "root".into(), len: 4096, sha256: Digest::of(version.as_bytes()) }],
            ways,
            rollout: Rollout::default(),
        })
    };
    let releases = vec![release("1.1.0", Some("1.0.0"))?, release("1.0.0", None)?];
    let index = Index { format: FORMAT, compatible: "rustiot-x".into(), published: 1_700_000_000, releases };
    let bytes = serde_json::to_vec(&index)?;
    Index::parse(&bytes)?;
    Ok(vec![("index", "two".to_owned(), bytes)])
}

/// Layers of every kind of entry, images of them in Docker's and in OCI form, their documents, their names.
fn images() -> Result<Vec<Seed>, Box<dyn Error>> {
    use rustiot_images::{Digest, Platform, Progress, Store, manifest};
    let mut layer = tar::Builder::new(Vec::new());
    let mut add = |name: &str, kind: tar::EntryType, link: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_size(content.len() as u64);
        header.set_device_major(1)?;
        header.set_device_minor(3)?;
        match link {
            "" => layer.append_data(&mut header, name, content),
            link => layer.append_link(&mut header, name, link),
        }
    };
    let long = format!("d/{}", "n".repeat(150));
    add("d/", tar::EntryType::Directory, "", b"")?;
    add("d/f", tar::EntryType::Regular, "", b"content")?;
    add(&long, tar::EntryType::Regular, "", &[7; 600])?;
    add("d/hard", tar::EntryType::Link, "d/f", b"")?;
    add("d/soft", tar::EntryType::Symlink, "../f", b"")?;
    add("d/null", tar::EntryType::Char, "", b"")?;
    add("d/fifo", tar::EntryType::Fifo, "", b"")?;
    add("d/.wh.gone", tar::EntryType::Regular, "", b"")?;
    add("e/.wh..wh..opq", tar::EntryType::Regular, "", b"")?;
    layer.append_pax_extensions([("SCHILY.xattr.user.k", &b"value"[..]), ("mtime", b"1700000000.5")])?;
    let mut header = tar::Header::new_gnu();
    header.set_size(4);
    layer.append_data(&mut header, "with", &b"pax!"[..])?;
    let layer = layer.into_inner()?;
    let host = Platform::host();
    let config = serde_json::json!({
        "architecture": host.architecture, "os": "linux", "config": {"Entrypoint": ["/a"], "Env": ["A=b"]},
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(&layer).to_string()]},
        "history": [{"created_by": "x"}],
    });
    let list = serde_json::json!([{"Config": "c", "Layers": ["l"], "RepoTags": ["a:b"]}]);
    let mut docker = tar::Builder::new(Vec::new());
    for (name, bytes) in
        [("l", &*layer), ("c", config.to_string().as_bytes()), ("manifest.json", list.to_string().as_bytes())]
    {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        docker.append_data(&mut header, name, bytes)?;
    }
    let docker = docker.into_inner()?;
    let dir = tempfile::tempdir()?;
    let (store, _) = Store::open(dir.path(), rustiot_images::Limits::default())?;
    let loaded = store.load(&mut docker.as_slice(), &host, &Progress::none())?;
    let id = &loaded.first().ok_or("no image")?.id;
    let mut saved = Vec::new();
    store.save(&["a:b".to_owned()], &mut saved)?;
    let document = serde_json::to_vec(&store.manifest(id).ok_or("no manifest")?)?;
    manifest::Document::parse(&document, "")?;
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": manifest::media::OCI_INDEX, "manifests": [{
            "mediaType": manifest::media::OCI_MANIFEST, "digest": Digest::of(&document).to_string(),
            "size": document.len(), "platform": {"architecture": host.architecture, "os": "linux"},
        }],
    });
    // The first byte says what the server called it, and how many layers there are.
    let said = |byte: u8, text: &[u8]| [&[byte], text].concat();
    Ok(vec![
        ("image_layer", "kinds".to_owned(), layer),
        ("image_archive", "docker".to_owned(), docker),
        ("image_archive", "saved".to_owned(), saved),
        ("image_manifest", "manifest".to_owned(), said(3, &document)),
        ("image_manifest", "index".to_owned(), said(2, index.to_string().as_bytes())),
        ("image_manifest", "config".to_owned(), said(1, config.to_string().as_bytes())),
        ("image_reference", "short".to_owned(), b"alpine".to_vec()),
        (
            "image_reference",
            "full".to_owned(),
            format!("r.example:5000/a/b:1@{}", Digest::of(b"")).into_bytes(),
        ),
    ])
}
