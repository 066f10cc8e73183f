//! The disk image: what is flashed once. A GPT by `conf/layout.toml`, both boot slots by request, a `config` partition
//! that a PC can read; `state` and `data` are left to the device's first boot.

use crate::boot::fat;
use crate::cache::write;
use crate::context::{Context, Progress, step};
use crate::error::{At, Error, content, output_file};
use crate::fit;
use crate::image::Image;
use crate::toolbox::Toolbox;
use rustiot_board::{Board, Content, Layout, Partition, Size, SlotName};
use rustiot_scratch::Scratch;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

/// Room for the backup table at the end.
const GPT_TAIL: u64 = 1 << 20;
const SECTOR: u64 = 512;
/// Files are copied in pieces of this size; a piece of zeros stays a hole.
const PIECE: usize = 1 << 16;

/// How to make a disk image.
#[derive(Clone, Debug, Default)]
pub struct DiskRequest {
    /// Text of `rustiot.toml` on the `config` partition; the commented default when absent.
    pub config: Option<String>,
    /// Write the release into slot B too: a second copy from the first day, for a longer time to flash.
    pub both_slots: bool,
}

/// A partition's place on the medium, bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// The partition.
    pub partition: &'a Partition,
    /// Its first byte.
    pub start: u64,
}

/// Where the partitions of `image`'s board lie, and how large the image is, bytes.
pub fn places(layout: &Layout, loader: rustiot_board::LoaderKind) -> (Vec<Place<'_>>, u64) {
    let align = layout.alignment.bytes();
    let mut start = align;
    let mut places = Vec::new();
    for partition in layout.for_loader(loader) {
        places.push(Place { partition, start });
        start = start.saturating_add(partition.size.bytes()).next_multiple_of(align);
    }
    (places, start.saturating_add(GPT_TAIL))
}

/// Writes the disk image of `image` to `out` (a sparse file), replacing what is there.
///
/// # Errors
/// A part does not fit its partition, the medium would be too small, or a file cannot be written.
pub fn disk(
    ctx: &Context,
    toolbox: &Toolbox,
    image: &Image,
    request: &DiskRequest,
    out: &Path,
    progress: &dyn Progress,
) -> Result<(), Error> {
    step(progress, &format!("disk image {} ({})", image.version, image.board.name), || {
        create(ctx, toolbox, image, request, out)
    })
}

fn create(
    ctx: &Context,
    toolbox: &Toolbox,
    image: &Image,
    request: &DiskRequest,
    out: &Path,
) -> Result<(), Error> {
    output_file(out)?;
    let (places, total) = places(&image.layout, image.board.boot.loader);
    if total > image.board.storage.min_medium.bytes() {
        return Err(Error::TooLarge {
            what: "the disk image".into(),
            size: Size::from_bytes(total),
            limit_name: "the smallest medium".into(),
            limit: image.board.storage.min_medium,
            remedy: format!(
                "shrink partitions in conf/layout.toml or raise storage.min_medium in conf/boards/{}.toml",
                image.board.name
            ),
        });
    }
    let parent = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).at("create", parent)?;
    let work = Scratch::new(parent, ".rustiot-disk")?;
    let dir = work.path().canonicalize().at("find", work.path())?;
    let toolbox = toolbox.clone().with_path(&dir);
    let raw = dir.join("disk.img");
    File::create(&raw).and_then(|f| f.set_len(total)).at("create", &raw)?;
    table(&toolbox, &image.layout, &places, &dir, &raw)?;
    for place in &places {
        let p = place.partition;
        let source = match (p.content, p.slot) {
            (Content::Boot, Some(slot)) if slot == SlotName::A || request.both_slots => image.boot.clone(),
            (Content::Root, Some(slot)) if slot == SlotName::A || request.both_slots => image.root.clone(),
            (Content::Config, _) => {
                let path = dir.join("config.img");
                config(ctx, &toolbox, request, p.size.bytes(), &dir, &path)?;
                path
            }
            (Content::UbootEnv, _) => {
                let path = dir.join("uboot-env.img");
                write(&path, fit::selector_partition(&image.board, p.size.bytes())?)?;
                path
            }
            _ => continue,
        };
        place_file(&source, &raw, place)?;
    }
    lint(&raw, &image.layout, image.board.boot.loader)?;
    publish(&raw, out)
}

/// Writes a disk with the partitions of `layout` to `out`; `contents` fills some of them by name. `work` is a scratch
/// directory that the toolbox sees.
pub(crate) fn write_partitions(
    toolbox: &Toolbox,
    board: &Board,
    layout: &Layout,
    contents: &[(&str, &Path)],
    work: &Path,
    out: &Path,
) -> Result<(), Error> {
    let (places, total) = places(layout, board.boot.loader);
    File::create(out).and_then(|f| f.set_len(total)).at("create", out)?;
    table(toolbox, layout, &places, work, out)?;
    for place in &places {
        if place.partition.content == Content::UbootEnv {
            let path = work.join("uboot-env.img");
            write(&path, fit::selector_partition(board, place.partition.size.bytes())?)?;
            place_file(&path, out, place)?;
        }
        for (_, source) in contents.iter().filter(|(name, _)| *name == place.partition.name) {
            place_file(source, out, place)?;
        }
    }
    Ok(())
}

fn table(
    toolbox: &Toolbox,
    layout: &Layout,
    places: &[Place<'_>],
    dir: &Path,
    raw: &Path,
) -> Result<(), Error> {
    let mut script =
        format!("label: gpt\nlabel-id: {}\nunit: sectors\nsector-size: {SECTOR}\n", layout.disk_guid);
    for place in places {
        let p = place.partition;
        script.push_str(&format!(
            "start={}, size={}, type={}, uuid={}, name=\"{}\"\n",
            place.start / SECTOR,
            p.size.bytes() / SECTOR,
            p.type_guid,
            p.guid,
            p.name
        ));
    }
    let file = dir.join("table");
    write(&file, script)?;
    let run = "exec sfdisk --quiet --no-reread --no-tell-kernel \"$1\" < \"$2\"";
    toolbox.run("sh", ["-c".as_ref(), run.as_ref(), "sh".as_ref(), raw.as_os_str(), file.as_os_str()])?;
    Ok(())
}

/// The FAT that people edit.
fn config(
    ctx: &Context,
    toolbox: &Toolbox,
    request: &DiskRequest,
    size: u64,
    dir: &Path,
    out: &Path,
) -> Result<(), Error> {
    let readme = ctx.conf("config/README.txt");
    let toml = match &request.config {
        Some(text) => {
            let path = dir.join("rustiot.toml");
            write(&path, text)?;
            path
        }
        None => ctx.conf("config/rustiot.toml"),
    };
    fat(toolbox, &[("rustiot.toml", &toml), ("README.txt", &readme)], "CONFIG", Some(size), out)
}

/// Copies `source` to its place; what is zero stays a hole.
fn place_file(source: &Path, raw: &Path, place: &Place<'_>) -> Result<(), Error> {
    let size = fs::metadata(source).at("read", source)?.len();
    let limit = place.partition.size;
    if size > limit.bytes() {
        return Err(Error::TooLarge {
            what: format!("what goes into `{}`", place.partition.name),
            size: Size::from_bytes(size),
            limit_name: "the partition".into(),
            limit,
            remedy:
                "raise its size in conf/layout.toml (devices in the field keep theirs) or shrink the content"
                    .into(),
        });
    }
    let mut from = File::open(source).at("read", source)?;
    let mut to = fs::OpenOptions::new().write(true).open(raw).at("write", raw)?;
    to.seek(SeekFrom::Start(place.start)).at("write", raw)?;
    let mut piece = vec![0; PIECE];
    loop {
        let n = from.read(&mut piece).at("read", source)?;
        let Some(data) = piece.get(..n).filter(|d| !d.is_empty()) else { return Ok(()) };
        if data.iter().all(|b| *b == 0) {
            to.seek(SeekFrom::Current(i64::try_from(n).unwrap_or(0))).at("write", raw)?;
        } else {
            to.write_all(data).at("write", raw)?;
        }
    }
}

/// The rule that a layout is checked for, on a finished image: each slot's boot and root content lies in partitions of
/// that slot only, and nothing that boots lies on a partition that both slots use.
///
/// # Errors
/// The first shared partition that holds a kernel, initramfs, device tree or root.
pub fn lint(image: &Path, layout: &Layout, loader: rustiot_board::LoaderKind) -> Result<(), Error> {
    /// What starts a file that boots: (offset, bytes, what it is).
    const MARKS: [(u64, &[u8], &str); 5] = [
        (0, b"\xd0\x0d\xfe\xed", "a FIT or device tree"),
        (56, b"ARM\x64", "an arm64 kernel"),
        (514, b"HdrS", "an x86 kernel"),
        (0, b"070701", "an initramfs"),
        (1024, b"\xe2\xe1\xf5\xe0", "an erofs root"),
    ];
    let mut file = File::open(image).at("read", image)?;
    let (places, _) = places(layout, loader);
    for place in places.iter().filter(|p| p.partition.slot.is_none()) {
        let mut bytes = vec![0; PIECE];
        let mut at = place.start;
        let end = place.start.saturating_add(place.partition.size.bytes());
        while at < end {
            file.seek(SeekFrom::Start(at)).at("read", image)?;
            let n = file.read(&mut bytes).at("read", image)?;
            if n == 0 {
                break;
            }
            // A file in a file system starts at a sector; so does one that lies raw.
            for sector in (0..n).step_by(512) {
                for (offset, mark, what) in MARKS {
                    let from = sector.saturating_add(usize::try_from(offset).unwrap_or(usize::MAX));
                    if bytes.get(from..from.saturating_add(mark.len())) == Some(mark) {
                        return Err(content(
                            image,
                            format!(
                                "`{}`, which both slots use, holds {what}: move it to the slots' own partitions",
                                place.partition.name
                            ),
                        ));
                    }
                }
            }
            at = at.saturating_add(n as u64);
        }
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "a build product: a build that is cut short starts over")]
fn publish(made: &Path, out: &Path) -> Result<(), Error> {
    fs::rename(made, out).at("write", out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustiot_board::LoaderKind;
    use std::path::PathBuf;

    fn layout() -> Layout {
        Layout::load(&PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../conf/layout.toml")).unwrap()
    }

    #[test]
    fn partitions_are_aligned_and_do_not_overlap() {
        let layout = layout();
        for loader in [LoaderKind::Uefi, LoaderKind::Uboot, LoaderKind::Tryboot] {
            let (places, total) = places(&layout, loader);
            let mut end = layout.alignment.bytes();
            for place in &places {
                assert!(place.start >= end && place.start.is_multiple_of(layout.alignment.bytes()));
                end = place.start + place.partition.size.bytes();
            }
            assert!(total >= end + GPT_TAIL && total.is_multiple_of(SECTOR));
        }
    }

    #[test]
    fn zeros_stay_a_hole_and_the_rest_arrives() {
        let dir = tempfile::tempdir().unwrap();
        let (source, raw) = (dir.path().join("source"), dir.path().join("raw"));
        let mut data = vec![0; 3 * PIECE + 17];
        data[PIECE + 5] = 1;
        data[3 * PIECE + 16] = 2;
        write(&source, &data).unwrap();
        let layout = layout();
        let place = Place { partition: layout.find(Content::Config, None).unwrap(), start: 4096 };
        File::create(&raw).unwrap().set_len(4096 + 4 * PIECE as u64).unwrap();
        place_file(&source, &raw, &place).unwrap();
        assert_eq!(fs::read(&raw).unwrap()[4096..4096 + data.len()], data);
    }

    #[test]
    fn what_does_not_fit_says_by_how_much_and_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        File::create(&source).unwrap().set_len(33 << 20).unwrap();
        let layout = layout();
        let place = Place { partition: layout.find(Content::Config, None).unwrap(), start: 0 };
        let error = place_file(&source, &dir.path().join("raw"), &place).unwrap_err().to_string();
        for wanted in ["`config`", "33 MiB", "32 MiB", "conf/layout.toml"] {
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn a_kernel_where_both_slots_use_it_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let raw = dir.path().join("raw");
        let layout = layout();
        let (places, total) = places(&layout, LoaderKind::Uefi);
        let file = File::create(&raw).unwrap();
        file.set_len(total).unwrap();
        lint(&raw, &layout, LoaderKind::Uefi).unwrap();
        let state = places.iter().find(|p| p.partition.name == "state").unwrap();
        for (offset, mark) in
            [(514, &b"HdrS"[..]), (512, b"\xd0\x0d\xfe\xed"), (56, b"ARM\x64"), (1024, b"\xe2\xe1\xf5\xe0")]
        {
            use std::os::unix::fs::FileExt;
            let at = state.start + 3 * PIECE as u64 + offset;
            file.write_all_at(mark, at).unwrap();
            let error = lint(&raw, &layout, LoaderKind::Uefi).unwrap_err().to_string();
            assert!(error.contains("`state`"), "{error}");
            file.write_all_at(&[0; 4], at).unwrap();
        }
        lint(&raw, &layout, LoaderKind::Uefi).unwrap();
    }
}
