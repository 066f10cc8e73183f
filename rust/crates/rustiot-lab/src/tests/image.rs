//! What is built, before it runs anywhere.

use crate::ctx::Ctx;
use crate::fixtures::B;
use crate::runner::{LabTest, Tag};
use anyhow::Result;
use rustiot_image::Silent;

pub(super) const TESTS: &[LabTest] = &[LabTest {
    name: "the_same_inputs_give_the_same_image",
    boards: &[],
    promise: "Root, verity tree, initramfs and boot image built twice from the same packages and programs are the same bytes.",
    tags: &[Tag::QuickOnFirst],
    run: the_same_inputs_give_the_same_image,
}];

fn the_same_inputs_give_the_same_image(ctx: &mut Ctx) -> Result<()> {
    let request = ctx.fixtures.request(ctx.lab, ctx.board, &B)?;
    let image = ctx.fixtures.image(ctx.lab, ctx.board, &B)?;
    Ok(rustiot_image::verify(&ctx.lab.context, &ctx.lab.toolbox, &request, &image, &Silent)?)
}
