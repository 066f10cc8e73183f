//! Images.

use hyper::StatusCode;
use hyper::header::HeaderName;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::answer::{self, Answer};
use super::body::Body;
use super::route::Call;
use crate::filters::Filters;
use crate::types::{Progress, PullRequest};
use crate::{Error, auth, select};

pub async fn list(call: &Call) -> Answer {
    let filters = Filters::parse(call.query.get("filters"), select::IMAGES)?;
    let rows = call.engine.list_images(call.query.is("shared-size")).await?;
    answer::ok(&select::images(rows, &filters, Timestamp::now())?)
}

pub async fn inspect(call: &Call, name: &str) -> Answer {
    answer::ok(&call.engine.inspect_image(name).await?)
}

pub async fn history(call: &Call, name: &str) -> Answer {
    answer::ok(&call.engine.image_history(name).await?)
}

/// `name:tag` or `name@digest` taken apart; the colon of a registry's port is none of a tag.
fn split(reference: &str) -> (String, Option<String>) {
    if let Some((name, digest)) = reference.split_once('@') {
        // With a tag and a digest, the digest says all.
        return (split(name).0, Some(digest.to_owned()));
    }
    match reference.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name.to_owned(), Some(tag.to_owned())),
        _ => (reference.to_owned(), None),
    }
}

pub async fn pull(call: &Call) -> Answer {
    let Some(image) = call.query.get("fromImage") else {
        return Err(match call.query.get("fromSrc") {
            Some(_) => Error::Unsupported(
                "importing a file system as an image is not supported by this engine: make an image on the workstation and use docker load".to_owned(),
            ),
            None => Error::Invalid("fromImage is needed".to_owned()),
        });
    };
    let (image, mut tag) = split(image);
    if let Some(own) = call.query.get("tag") {
        tag = Some(own.to_owned());
    }
    let auth = match call.headers.get(HeaderName::from_static("x-registry-auth")) {
        Some(value) => auth::registry_auth(value.as_bytes())?,
        None => None,
    };
    let request = PullRequest { image, tag, platform: call.query.get("platform").map(str::to_owned), auth };
    answer::progress(call.engine.pull(request).await?, line).await
}

pub async fn load(mut call: Call) -> Answer {
    let archive = call.reader();
    let items = call.engine.load(archive, call.query.is("quiet")).await?;
    answer::progress(items, line).await
}

/// Docker's `jsonmessage`.
fn line(item: &Progress) -> Value {
    match item {
        Progress::Status { id: None, status } => json!({ "status": status }),
        Progress::Status { id: Some(id), status } => {
            json!({ "status": status, "progressDetail": {}, "id": id })
        }
        Progress::Transfer { id, status, current, total } => {
            let mut detail = json!({ "current": current });
            if *total > 0 {
                super::system::merge(&mut detail, json!({ "total": total }));
            }
            json!({ "status": status, "progressDetail": detail, "id": id })
        }
        Progress::Stream(text) => json!({ "stream": text }),
    }
}

pub async fn save(call: &Call, names: Vec<String>) -> Answer {
    if names.is_empty() {
        return Err(Error::Invalid("names of images are needed".to_owned()));
    }
    let tar = call.engine.save(names).await?;
    Ok(answer::typed(StatusCode::OK, "application/x-tar", Body::reader(tar)))
}

pub async fn tag(call: &Call, name: &str) -> Answer {
    let Some(repository) = call.query.get("repo") else {
        return Err(Error::Invalid("repo is needed".to_owned()));
    };
    let (name, repository) = (name.to_owned(), repository.to_owned());
    let tag = call.query.get("tag").unwrap_or("latest").to_owned();
    call.to_end(async move |engine| engine.tag_image(&name, &repository, &tag).await).await?;
    answer::empty(StatusCode::CREATED)
}

pub async fn remove(call: &Call, name: &str) -> Answer {
    let (name, force, no_prune) = (name.to_owned(), call.query.is("force"), call.query.is("noprune"));
    let removed = call.to_end(async move |engine| engine.remove_image(&name, force, no_prune).await).await?;
    answer::ok(&removed)
}

pub async fn prune(call: &Call) -> Answer {
    let which =
        select::prune_images(&Filters::parse(call.query.get("filters"), select::PRUNE)?, Timestamp::now())?;
    answer::ok(&call.to_end(async move |engine| engine.prune_images(which).await).await?)
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn references_are_split_at_tags_and_digests_only() {
        for (text, name, tag) in [
            ("busybox", "busybox", None),
            ("busybox:1.36", "busybox", Some("1.36")),
            ("registry.example:5000/a/b", "registry.example:5000/a/b", None),
            ("registry.example:5000/a/b:c", "registry.example:5000/a/b", Some("c")),
            ("a/b@sha256:00", "a/b", Some("sha256:00")),
            ("a/b:c@sha256:00", "a/b", Some("sha256:00")),
        ] {
            assert_eq!(split(text), (name.to_owned(), tag.map(str::to_owned)), "{text}");
        }
    }
}
