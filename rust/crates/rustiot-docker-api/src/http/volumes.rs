//! Volumes.

use hyper::StatusCode;
use jiff::Timestamp;
use serde_json::json;

use super::answer::{self, Answer};
use super::decode;
use super::route::Call;
use crate::filters::Filters;
use crate::select;
use crate::types::CreateVolume;

pub async fn list(call: &Call) -> Answer {
    let filters = Filters::parse(call.query.get("filters"), select::VOLUMES)?;
    let rows = select::volumes(call.engine.list_volumes().await?, &filters)?;
    answer::ok(&json!({ "Volumes": rows, "Warnings": [] }))
}

pub async fn inspect(call: &Call, name: &str) -> Answer {
    answer::ok(&call.engine.inspect_volume(name).await?)
}

pub async fn create(mut call: Call) -> Answer {
    let value = call.value().await?.unwrap_or_default();
    decode::refuse(&value, "", &["ClusterVolumeSpec"])?;
    let request: CreateVolume =
        if value.is_null() { CreateVolume::default() } else { decode::from_value(value)? };
    let volume = call.to_end(async |engine| engine.create_volume(request).await).await?;
    answer::json(StatusCode::CREATED, &volume)
}

pub async fn remove(call: &Call, name: &str) -> Answer {
    let (name, force) = (name.to_owned(), call.query.is("force"));
    call.to_end(async move |engine| engine.remove_volume(&name, force).await).await?;
    answer::empty(StatusCode::NO_CONTENT)
}

pub async fn prune(call: &Call) -> Answer {
    let which =
        select::prune_volumes(&Filters::parse(call.query.get("filters"), select::PRUNE)?, Timestamp::now())?;
    let pruned = call.to_end(async move |engine| engine.prune_volumes(which).await).await?;
    answer::ok(&json!({ "VolumesDeleted": pruned.deleted, "SpaceReclaimed": pruned.space_reclaimed }))
}
