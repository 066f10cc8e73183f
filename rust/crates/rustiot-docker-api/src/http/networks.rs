//! Networks.

use hyper::StatusCode;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;

use super::answer::{self, Answer};
use super::route::Call;
use crate::filters::Filters;
use crate::types::{CreateNetwork, EndpointSettings};
use crate::{Error, select};

pub async fn list(call: &Call) -> Answer {
    let filters = Filters::parse(call.query.get("filters"), select::NETWORKS)?;
    answer::ok(&select::networks(call.engine.list_networks().await?, &filters)?)
}

pub async fn inspect(call: &Call, id: &str) -> Answer {
    answer::ok(&call.engine.inspect_network(id).await?)
}

pub async fn create(mut call: Call) -> Answer {
    let request: CreateNetwork = call.json().await?;
    if request.name.trim().is_empty() {
        return Err(Error::Invalid("network name cannot be empty".to_owned()));
    }
    if request.ingress || request.config_only {
        return Err(Error::Unsupported(
            "ingress and config-only networks are not supported by this engine".to_owned(),
        ));
    }
    if !request.scope.is_empty() && request.scope != "local" {
        return Err(Error::Unsupported(format!(
            "networks of scope {} are not supported by this engine",
            request.scope
        )));
    }
    let created = call.to_end(async |engine| engine.create_network(request).await).await?;
    let warning = created.warnings.join("; ");
    answer::json(StatusCode::CREATED, &json!({ "Id": created.id, "Warning": warning }))
}

pub async fn remove(call: &Call, id: &str) -> Answer {
    let id = id.to_owned();
    call.to_end(async move |engine| engine.remove_network(&id).await).await?;
    answer::empty(StatusCode::NO_CONTENT)
}

pub async fn prune(call: &Call) -> Answer {
    let which =
        select::prune_networks(&Filters::parse(call.query.get("filters"), select::PRUNE)?, Timestamp::now())?;
    let pruned = call.to_end(async move |engine| engine.prune_networks(which).await).await?;
    answer::ok(&json!({ "NetworksDeleted": pruned.deleted }))
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Membership {
    container: String,
    endpoint_config: EndpointSettings,
    force: bool,
}

async fn membership(call: &mut Call) -> Result<Membership, Error> {
    let membership: Membership = call.json().await?;
    if membership.container.is_empty() {
        return Err(Error::Invalid("a container is needed".to_owned()));
    }
    Ok(membership)
}

pub async fn connect(mut call: Call, id: &str) -> Answer {
    let (id, m) = (id.to_owned(), membership(&mut call).await?);
    call.to_end(async move |engine| engine.connect_network(&id, &m.container, m.endpoint_config).await)
        .await?;
    answer::empty(StatusCode::OK)
}

pub async fn disconnect(mut call: Call, id: &str) -> Answer {
    let (id, m) = (id.to_owned(), membership(&mut call).await?);
    call.to_end(async move |engine| engine.disconnect_network(&id, &m.container, m.force).await).await?;
    answer::empty(StatusCode::OK)
}
