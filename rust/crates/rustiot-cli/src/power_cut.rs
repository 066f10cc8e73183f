//! `lab power-cut`: one recorded update, any number of cuts. Says for each what became of the
//! device; a cut that ends badly can be had again by its seed.

use crate::fail::{Done, Fail, Why};
use anyhow::{Context as _, anyhow};
use rustiot_image::{Context, Plain};
use rustiot_lab::cuts::{Cut, Recording};
use rustiot_lab::{Ctx, Fixtures, Lab};
use serde_json::json;
use std::time::Instant;

/// Makes `runs` cuts at instants that `seed` chooses.
pub fn run(context: &Context, board: &str, runs: usize, seed: u64, json: bool) -> Done {
    let board = rustiot_image::board(context, board)?;
    let lab = Lab::open(context.clone(), &Plain)?;
    let fixtures = Fixtures::new(true);
    let ctx = Ctx::new(&lab, &board, &fixtures)?;
    let began = Instant::now();
    let recording =
        Recording::of_update(&ctx).context("the update that is to be cut failed without a cut")?;
    eprintln!("recorded an update of {} writes in {:.0} s", recording.len(), began.elapsed().as_secs_f64());
    let instants = recording.instants(runs, seed);
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let cuts = recording.try_all(&ctx, &instants, workers, 1, &|n, cut| {
        let Cut { after_writes, slot, version, problem, .. } = cut;
        let end = problem.as_deref().unwrap_or("ok");
        eprintln!("{n:>4} of {runs}: after {after_writes} writes: slot {slot}, release {version}: {end}");
    });
    let bad = cuts.iter().filter(|cut| cut.problem.is_some()).count();
    if json {
        let writes = recording.len();
        println!(
            "{}",
            json!({"board": board.name, "seed": seed, "writes": writes, "bad": bad, "cuts": cuts})
        );
    } else {
        println!("{} cuts, {bad} bad", cuts.len());
    }
    match bad {
        0 => Ok(()),
        _ => Err(Fail::new(Why::Failed, anyhow!("{bad} of {runs} cuts left a device that is not well"))),
    }
}
