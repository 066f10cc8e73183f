//! `bench pull`: what it costs a device to pull a new version of an image, whole and by a delta: bytes on the wire, the
//! engine's processor time and memory.
//!
//! The device is a machine of the lab, the registry Debian's, the client the stock one; the layers are the caller's. Keeps
//! nothing. Called by `main`.

use crate::args;
use crate::bench::{aligned, mb, row};
use crate::bench_delta::machine;
use crate::fail::{Done, Fail, Why};
use anyhow::{Context as _, Result, ensure};
use rustiot_image::{Context, Plain};
use rustiot_lab::containers::{Cost, Engine, Registry};
use rustiot_lab::{Ctx, Fixtures, Lab};
use serde_json::json;
use std::path::Path;
use std::time::Instant;

const BOARD: &str = "qemux86-64";

/// `rustiot bench pull`.
pub fn run(context: &Context, args: &args::BenchPull) -> Done {
    let [old, new] = [&args.old, &args.new].map(|path| archive(path));
    let (old, new) = (old?, new?);
    let lab = Lab::open(context.clone(), &Plain)?;
    let boards = Lab::boards(context)?;
    let board = boards.iter().find(|board| board.name == BOARD).context("there is no board for it")?;
    let fixtures = Fixtures::new(true);
    let ctx = Ctx::new(&lab, board, &fixtures)?;
    let device = ctx.healthy()?;
    let engine = Engine::of(&ctx, &device)?;
    let registry = Registry::empty(&ctx)?;
    registry.allow(&device)?;
    for (tag, layer) in [("1", &old), ("2", &new)] {
        registry.push(tag, std::slice::from_ref(layer))?;
    }
    let pulls = || -> Result<Vec<Cost>> {
        let pull = |_| -> Result<Cost> {
            let cost = engine.pull(&device, &registry, "2")?;
            ensure!(!cost.said.contains("Delta not used"), "a delta was not used: {}", cost.said);
            engine.ok(&["rmi", &registry.name("2")])?;
            Ok(cost)
        };
        (0..args.rounds).map(pull).collect()
    };
    engine.pull(&device, &registry, "1")?;
    eprintln!("  … pulls of the whole layer");
    let whole = pulls()?;
    eprintln!("  … the delta");
    let began = Instant::now();
    let published = registry.publish_deltas("1", "2")?;
    let made_s = began.elapsed().as_secs_f64();
    let made = published.layers.first().filter(|layer| layer.offered);
    let made = made.ok_or_else(|| Fail::refused("no delta is smaller than the layer"))?;
    eprintln!("  … pulls by the delta");
    let by_delta = pulls()?;

    if args.json.json {
        println!(
            "{}",
            json!({"unpacked_bytes": new.len(), "layer_bytes": made.layer_bytes, "delta_bytes": made.delta_bytes,
                "made_s": made_s, "whole": whole, "delta": by_delta})
        );
        return Ok(());
    }
    let table = [
        row(["", "bytes on the wire", "processor time", "took", "peak RSS of the engine", "before"]),
        cells("the layer", &whole),
        cells("the delta", &by_delta),
    ];
    println!(
        "{}\nA layer of {}, {} as the registry has it, and a delta of {}; median of {} pulls each. {BOARD} in QEMU; {}",
        aligned(&table),
        mb(new.len() as u64),
        mb(made.layer_bytes),
        mb(made.delta_bytes.unwrap_or_default()),
        args.rounds,
        machine()
    );
    Ok(())
}

/// A layer's archive, read whole.
fn archive(path: &Path) -> Result<Vec<u8>, Fail> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let bytes = bytes.map_err(|error| Fail::new(Why::Usage, error))?;
    // POSIX, pax(1), ustar: the magic of the first head.
    match bytes.get(257..262) {
        Some(b"ustar") => Ok(bytes),
        _ => Err(Fail::usage(format!("{} is no tar archive, or a compressed one", path.display()))),
    }
}

fn cells(what: &str, pulls: &[Cost]) -> Vec<String> {
    let median = |of: fn(&Cost) -> u64| {
        let mut all: Vec<u64> = pulls.iter().map(of).collect();
        all.sort_unstable();
        all.get(all.len() / 2).copied().unwrap_or_default()
    };
    vec![
        what.to_owned(),
        median(|cost| cost.wire).to_string(),
        format!("{} ms", median(|cost| cost.processor_ms)),
        format!("{} ms", median(|cost| cost.took_ms)),
        format!("{:.1} MB", median(|cost| cost.peak_kib << 10) as f64 / 1e6),
        format!("{:.1} MB", median(|cost| cost.before_kib << 10) as f64 / 1e6),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_the_median_of_each_column() {
        let cost = |wire, peak_kib| Cost {
            said: String::new(),
            wire,
            processor_ms: wire,
            took_ms: 7,
            peak_kib,
            before_kib: 1000,
        };
        let cells = cells("x", &[cost(3, 2000), cost(1, 9000), cost(2, 3000)]);
        assert_eq!(cells, ["x", "2", "2 ms", "7 ms", "3.1 MB", "1.0 MB"]);
    }

    #[test]
    fn what_is_no_archive_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("layer.tar");
        std::fs::write(&path, rustiot_lab::containers::layer(&[("a".to_owned(), vec![1; 600])]).unwrap())
            .unwrap();
        assert!(archive(&path).is_ok());
        std::fs::write(&path, [0x1f; 2000]).unwrap();
        assert!(archive(&path).is_err_and(|fail| fail.to_string().contains("no tar archive")));
        assert!(archive(&dir.path().join("none")).is_err());
    }
}
