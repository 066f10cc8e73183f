//! `image-delta`: deltas between two versions of a container image, as a layout that other tools copy to a registry. Thin
//! over the publisher of `rustiot-images`.

use crate::args::ImageDelta;
use crate::fail::{Done, Fail, Why};
use crate::repo::forward;
use rustiot_images::Platform;
use rustiot_images::publish::{Delta, PublishError, Published, Request, publish};
use serde_json::json;
use std::path::Path;
use std::sync::Mutex;

fn fail(error: PublishError) -> Fail {
    let why = match &error {
        PublishError::NoImage { .. }
        | PublishError::Manifest { .. }
        | PublishError::Request(_)
        | PublishError::NotALayout { .. } => Why::Usage,
        PublishError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Why::Usage,
        PublishError::Unnamed { .. } | PublishError::TooMany { .. } => Why::Refused,
        PublishError::Busy { .. } => Why::Busy,
        PublishError::Damaged { .. } | PublishError::Layer { .. } | PublishError::BadLayout { .. } => {
            Why::Verification
        }
        _ => Why::Failed,
    };
    Fail::new(why, error)
}

/// `rustiot image-delta`.
pub fn run(args: &ImageDelta) -> Done {
    let platform = args.platform.as_ref().map(|text| text.parse::<Platform>()).transpose();
    let platform = platform.map_err(|error| Fail::new(Why::Usage, error))?;
    let request = Request {
        old: &args.old,
        new: &args.new,
        manifest: args.manifest.as_deref(),
        platform,
        out: &args.out,
    };
    let last = Mutex::new((String::new(), 0));
    let progress = |what: &str, share: f32| {
        if let Ok(mut last) = last.lock()
            && let Some(line) = forward(&mut last, what, share)
        {
            eprintln!("{line}");
        }
    };
    let published = publish(&request, &progress).map_err(fail)?;
    if args.json.json {
        println!("{}", json!({"out": args.out, "images": published}));
    } else {
        for line in published.iter().flat_map(|image| lines(image, &args.out)) {
            println!("{line}");
        }
    }
    match published.iter().any(|image| image.artifact.is_some()) {
        true => Ok(()),
        false => Err(Fail::refused(why_nothing(&published, &args.out))),
    }
}

/// Why there is nothing to copy, and what became of the layout.
fn why_nothing(published: &[Published], out: &Path) -> String {
    let why = match published.iter().all(|image| image.layers.is_empty()) {
        true => "the old image has every layer of the new one",
        false => "no delta is smaller than its layer, so devices fetch the layers",
    };
    let left = match out.join("index.json").exists() {
        true => "offers what it offered before",
        false => "was not made into a layout",
    };
    format!("nothing to publish: {why}; {} {left}", out.display())
}

/// What became of an image, in lines.
fn lines(image: &Published, out: &Path) -> Vec<String> {
    let mut lines = vec![format!(
        "{}: {} → {} ({})",
        image.platform,
        image.from.0.short(),
        image.to.0.short(),
        image.subject
    )];
    if image.same > 0 {
        lines.push(format!("  in both images: {} of its layers", image.same));
    }
    lines.extend(
        image.layers.iter().map(|layer| format!("  layer {}: {}", layer.diff_id.short(), became(layer))),
    );
    if image.artifact.is_some() {
        let (dir, tag) = (out.display(), &image.tag);
        let others = match image.kept {
            0 => String::new(),
            kept => format!("; {kept} other entries of the list are kept"),
        };
        lines.push(match image.changed {
            true => format!("  in {dir}{others}"),
            false => format!("  in {dir}, as before{others}"),
        });
        lines.push("Next:".to_owned());
        lines.push(format!("  skopeo copy --all oci:{dir}:{tag} docker://REGISTRY/NAME:{tag}"));
    }
    lines
}

fn became(layer: &Delta) -> String {
    let whole = layer.layer_bytes;
    match (layer.offered, layer.delta_bytes) {
        (true, Some(bytes)) => {
            let times = whole as f64 / bytes.max(1) as f64;
            format!("{bytes} bytes for {whole} (1/{times:.1}), from {}", from(layer))
        }
        (_, Some(bytes)) => format!("not offered: a delta takes {bytes} bytes and the layer {whole}"),
        (_, None) => format!("not offered: the old image has nothing to make it from; {whole} bytes"),
    }
}

fn from(layer: &Delta) -> String {
    let names: Vec<String> = layer.sources.iter().map(rustiot_images::Digest::short).collect();
    names.join(" + ")
}
