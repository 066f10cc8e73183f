//! The power goes at any instant of an update, of a first boot or of containers' lives, on a medium with a volatile write cache.

use crate::ctx::Ctx;
use crate::cuts::{Cut, Recording};
use crate::runner::{LabTest, Tag};
use anyhow::{Result, ensure};

pub(super) const TESTS: &[LabTest] = &[
    LabTest {
        name: "survives_power_cuts_at_any_instant_of_an_update",
        boards: &[],
        promise: "Wherever in an update the power goes, the device comes back healthy, wholly old or wholly new.",
        tags: &[Tag::QuickOnFirst],
        run: survives_power_cuts_at_any_instant_of_an_update,
    },
    LabTest {
        name: "a_first_boot_cut_at_each_step_finishes_at_the_next",
        boards: &[],
        promise: "Wherever in the first boot the power goes, the next one ends with all that a first boot makes.",
        tags: &[Tag::QuickOnFirst],
        run: a_first_boot_cut_at_each_step_finishes_at_the_next,
    },
    LabTest {
        name: "a_power_cut_leaves_no_torn_image_and_no_torn_container",
        boards: &[],
        promise: "Wherever in the lives of images, containers and volumes the power goes, whatever the engine shows then is whole, and all goes on without a person.",
        tags: &[],
        run: a_power_cut_leaves_no_torn_image_and_no_torn_container,
    },
];

/// Cuts of the containers' lives: of the full run and of the short one.
const CUTS_OF_CONTAINERS: usize = 50;
const CUTS_OF_CONTAINERS_OF_SHORT: usize = 3;
/// So many of them are followed through a whole start of the device; the others in a machine that runs.
const WHOLE_STARTS: usize = 4;
/// Cuts of one run; `rustiot lab power-cut` makes as many as one likes.
const CUTS: usize = 25;
/// In the short run one of so many is followed until the device is healthy: services take up what the cut left. The
/// others end when the root runs, where it is decided which release it is.
const HEALTHY_OF_SHORT: usize = 5;
/// Cuts of a first boot, spread over its flushes.
const STEPS: usize = 8;
/// The same in the short run.
const STEPS_OF_SHORT: usize = 4;
/// Fixed, so that a failure can be had again.
const SEED: u64 = 1;

fn survives_power_cuts_at_any_instant_of_an_update(ctx: &mut Ctx) -> Result<()> {
    let recording = Recording::of_update(ctx)?;
    let healthy = if ctx.short { HEALTHY_OF_SHORT } else { 1 };
    let mut instants = recording.instants(CUTS.saturating_sub(1), SEED);
    // Few instants lie after the commit, and on a busy machine chance may meet none of them: the last one does.
    instants.push((recording.len(), SEED));
    let cuts = recording.try_all(ctx, &instants, 1, healthy, &|_, _| {});
    let bad: Vec<&Cut> = cuts.iter().filter(|cut| cut.problem.is_some()).collect();
    ensure!(bad.is_empty(), "{} of {CUTS} cuts: {bad:?}", bad.len());
    let both = [crate::A.version, crate::B.version].map(|v| cuts.iter().any(|cut| cut.version == v));
    ensure!(both == [true; 2], "the cuts only ever met one release: old {}, new {}", both[0], both[1]);
    Ok(())
}

fn a_first_boot_cut_at_each_step_finishes_at_the_next(ctx: &mut Ctx) -> Result<()> {
    let recording = Recording::of_first_boot(ctx)?;
    let steps = if ctx.short { STEPS_OF_SHORT } else { STEPS };
    let instants = recording.before_flushes(steps, SEED);
    ensure!(instants.len() == steps, "only {} flushes", instants.len());
    let cuts = recording.try_all(ctx, &instants, 1, 1, &|_, _| {});
    let bad: Vec<&Cut> = cuts.iter().filter(|cut| cut.problem.is_some()).collect();
    ensure!(bad.is_empty(), "{} of {steps} cuts: {bad:?}", bad.len());
    Ok(())
}

fn a_power_cut_leaves_no_torn_image_and_no_torn_container(ctx: &mut Ctx) -> Result<()> {
    let recording = Recording::of_containers(ctx)?;
    let count = if ctx.short { CUTS_OF_CONTAINERS_OF_SHORT } else { CUTS_OF_CONTAINERS };
    let instants = recording.instants(count, SEED);
    // A whole start of the device takes most of a cut's time, and has tests of its own.
    let (whole, data) = instants.split_at(WHOLE_STARTS.min(count));
    let told = |number: usize, cut: &Cut| {
        let ended = cut.problem.as_deref().unwrap_or("whole");
        eprintln!("cut {number} of containers' lives, after {} writes: {ended}", cut.after_writes);
    };
    let mut cuts = recording.try_all(ctx, whole, 1, 1, &told);
    cuts.extend(recording.try_data(ctx, data, &told)?);
    let bad: Vec<&Cut> = cuts.iter().filter(|cut| cut.problem.is_some()).collect();
    ensure!(bad.is_empty(), "{} of {count} cuts: {bad:?}", bad.len());
    ctx.figures.note("cuts", u64::try_from(cuts.len()).unwrap_or(u64::MAX));
    ctx.figures.note("writes", u64::try_from(recording.len()).unwrap_or(u64::MAX));
    Ok(())
}
