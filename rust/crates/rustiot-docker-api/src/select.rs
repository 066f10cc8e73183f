//! Which rows a list's or a prune's filters choose, and which events.
//!
//! Pure: rows come from the engine, filters from the request.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::Error;
use crate::engine::Which;
use crate::filters::{Filters, Patterns, path_match};
use crate::query::moment;
use crate::types::{ContainerSummary, Event, EventKind, ImageSummary, Network, Status, Volume};

/// Filters of `ps`.
pub const CONTAINERS: &[&str] = &[
    "ancestor", "before", "expose", "exited", "health", "id", "is-task", "label", "name", "network",
    "publish", "since", "status", "volume",
];
/// Filters of `images`.
pub const IMAGES: &[&str] = &["before", "dangling", "label", "label!", "reference", "since", "until"];
/// Filters of `network ls`.
pub const NETWORKS: &[&str] = &["dangling", "driver", "id", "label", "name", "scope", "type"];
/// Filters of `volume ls`.
pub const VOLUMES: &[&str] = &["dangling", "driver", "label", "name"];
/// Filters of prunes (`dangling` for images, `all` for volumes).
pub const PRUNE: &[&str] = &["all", "dangling", "label", "label!", "until"];
/// Filters of events.
pub const EVENTS: &[&str] = &[
    "config",
    "container",
    "daemon",
    "event",
    "image",
    "label",
    "network",
    "node",
    "plugin",
    "scope",
    "secret",
    "service",
    "type",
    "volume",
];

/// What `ps` shows, newest first. `ancestors`: ids that the images named by the filter `ancestor` have.
pub fn containers(
    mut rows: Vec<ContainerSummary>,
    filters: &Filters,
    all: bool,
    limit: Option<i64>,
    ancestors: &[String],
) -> Result<Vec<ContainerSummary>, Error> {
    for status in filters.get("status") {
        if !["created", "running", "paused", "restarting", "removing", "exited", "dead"]
            .contains(&status.as_str())
        {
            return Err(Error::Invalid(format!("invalid filter 'status={status}'")));
        }
    }
    for health in filters.get("health") {
        if !["starting", "healthy", "unhealthy", "none"].contains(&health.as_str()) {
            return Err(Error::Invalid(format!("invalid filter 'health={health}'")));
        }
    }
    let mut exited = Vec::new();
    for code in filters.get("exited") {
        exited.push(
            code.parse::<i32>().map_err(|_| Error::Invalid(format!("invalid filter 'exited={code}'")))?,
        );
    }
    let limit = limit.filter(|n| *n > 0);
    rows.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| b.id.cmp(&a.id)));
    let bound = |name: &str| -> Result<Option<Timestamp>, Error> {
        let Some(reference) = filters.get(name).first() else { return Ok(None) };
        let id = crate::lookup::find(rows.iter().map(|r| (r.id.as_str(), r.name.as_str())), reference)?
            .ok_or_else(|| Error::NoSuchContainer(reference.clone()))?;
        Ok(rows.iter().find(|r| r.id == id).map(|r| r.created))
    };
    let (before, since) = (bound("before")?, bound("since")?);
    // Any of these asks for containers that do not run, too.
    let all = all
        || limit.is_some()
        || ["status", "exited", "before", "since"].iter().any(|name| filters.has(name));
    let names = filters.patterns("name");
    let task = filters.flag("is-task")?.unwrap_or(false);
    rows.retain(|row| {
        let state = &row.state;
        (all || matches!(state.status, Status::Running | Status::Paused | Status::Restarting))
            && !task
            && filters.labels(&row.labels)
            && filters.any("id", |id| row.id.starts_with(id))
            && (names.accept(&row.name) || names.accept(&format!("/{}", row.name)))
            && filters.exact("status", state.status.as_str())
            && filters.exact("health", state.health.as_ref().map_or("none", |h| h.status.as_str()))
            && (exited.is_empty() || (state.status == Status::Exited && exited.contains(&state.exit_code)))
            && before.is_none_or(|time| row.created < time)
            && since.is_none_or(|time| row.created > time)
            && filters.any("ancestor", |name| {
                name == row.image
                    || row.image.rsplit_once(':').is_some_and(|(repository, _)| repository == name)
                    || ancestors.contains(&row.image_id)
            })
            && filters.any("network", |name| {
                row.networks
                    .iter()
                    .any(|(own, end)| own == name || (!name.is_empty() && end.network_id.starts_with(name)))
            })
            && filters
                .any("volume", |name| row.mounts.iter().any(|m| m.name == name || m.destination == name))
            && filters.any("publish", |ports| {
                row.ports.iter().any(|p| p.public_port.is_some_and(|n| port(ports, n, &p.protocol)))
            })
            && filters
                .any("expose", |ports| row.ports.iter().any(|p| port(ports, p.private_port, &p.protocol)))
    });
    if let Some(limit) = limit {
        rows.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    }
    Ok(rows)
}

/// `80`, `80/udp`, `8000-8010/tcp`.
fn port(filter: &str, number: u16, protocol: &str) -> bool {
    let (range, wanted) = filter.split_once('/').unwrap_or((filter, "tcp"));
    let (low, high) = range.split_once('-').unwrap_or((range, range));
    wanted == protocol
        && matches!((low.parse::<u16>(), high.parse::<u16>()), (Ok(low), Ok(high)) if (low..=high).contains(&number))
}

/// What `images` shows, newest first.
pub fn images(
    mut rows: Vec<ImageSummary>,
    filters: &Filters,
    now: Timestamp,
) -> Result<Vec<ImageSummary>, Error> {
    let bound = |name: &str| -> Result<Option<Timestamp>, Error> {
        let Some(reference) = filters.get(name).first() else { return Ok(None) };
        rows.iter()
            .find(|r| {
                r.id == *reference
                    || r.id.strip_prefix("sha256:").is_some_and(|id| id.starts_with(reference.as_str()))
                    || r.repo_tags
                        .iter()
                        .any(|t| t == reference || t.strip_suffix(":latest") == Some(reference))
            })
            .map(|r| Some(r.created))
            .ok_or_else(|| Error::NoSuchImage(reference.clone()))
    };
    let (before, since) = (bound("before")?, bound("since")?);
    let until = until(filters, now)?;
    let dangling = filters.flag("dangling")?;
    rows.retain_mut(|row| {
        let keep = filters.labels(&row.labels)
            && before.is_none_or(|time| row.created < time)
            && since.is_none_or(|time| row.created > time)
            && until.is_none_or(|time| row.created < time)
            && dangling.is_none_or(|wanted| wanted == row.repo_tags.is_empty());
        if keep && filters.has("reference") {
            let fits = |name: &String| {
                let repository = name.split_once('@').map_or_else(
                    || name.rsplit_once(':').map_or(name.as_str(), |(repository, _)| repository),
                    |(repository, _)| repository,
                );
                filters.get("reference").iter().any(|p| path_match(p, name) || path_match(p, repository))
            };
            row.repo_tags.retain(fits);
            row.repo_digests.retain(fits);
            return !row.repo_tags.is_empty() || !row.repo_digests.is_empty();
        }
        keep
    });
    rows.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.id.cmp(&b.id)));
    Ok(rows)
}

/// What `network ls` shows.
pub fn networks(mut rows: Vec<Network>, filters: &Filters) -> Result<Vec<Network>, Error> {
    let dangling = filters.flag("dangling")?;
    for kind in filters.get("type") {
        if kind != "custom" && kind != "builtin" {
            return Err(Error::Invalid(format!("invalid filter: 'type'='{kind}'")));
        }
    }
    let (names, ids) = (filters.patterns("name"), filters.patterns("id"));
    rows.retain(|row| {
        let builtin = ["bridge", "host", "none"].contains(&row.name.as_str());
        names.accept(&row.name)
            && ids.accept(&row.id)
            && filters.labels(&row.labels)
            && filters.exact("driver", &row.driver)
            && filters.exact("scope", &row.scope)
            && filters.exact("type", if builtin { "builtin" } else { "custom" })
            && dangling.is_none_or(|wanted| wanted == (!builtin && row.containers.is_empty()))
    });
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(rows)
}

/// What `volume ls` shows.
pub fn volumes(mut rows: Vec<Volume>, filters: &Filters) -> Result<Vec<Volume>, Error> {
    let dangling = filters.flag("dangling")?;
    let names = filters.patterns("name");
    rows.retain(|row| {
        names.accept(&row.name)
            && filters.labels(&row.labels)
            && filters.exact("driver", &row.driver)
            && dangling.is_none_or(|wanted| wanted != row.in_use)
    });
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(rows)
}

fn until(filters: &Filters, now: Timestamp) -> Result<Option<Timestamp>, Error> {
    match filters.get("until") {
        [] => Ok(None),
        [one] => {
            moment(one, now).map(Some).ok_or_else(|| Error::Invalid(format!("invalid filter 'until={one}'")))
        }
        _ => Err(Error::Invalid("more than one until filter specified".to_owned())),
    }
}

fn prune<T: 'static>(
    filters: &Filters,
    now: Timestamp,
    labels: fn(&T) -> &BTreeMap<String, String>,
    created: fn(&T) -> Option<Timestamp>,
    more: impl Fn(&T) -> bool + Send + Sync + 'static,
) -> Result<Which<T>, Error> {
    let until = until(filters, now)?;
    let filters = filters.clone();
    Ok(Box::new(move |row| {
        filters.labels(labels(row))
            && until.is_none_or(|until| created(row).is_some_and(|t| t < until))
            && more(row)
    }))
}

/// Containers that a prune may take.
pub fn prune_containers(filters: &Filters, now: Timestamp) -> Result<Which<ContainerSummary>, Error> {
    prune(filters, now, |r| &r.labels, |r| Some(r.created), |_| true)
}

/// Images that a prune may take: those without a name, unless `dangling=false`.
pub fn prune_images(filters: &Filters, now: Timestamp) -> Result<Which<ImageSummary>, Error> {
    let dangling = filters.flag("dangling")?.unwrap_or(true);
    prune(filters, now, |r| &r.labels, |r| Some(r.created), move |r| !dangling || r.repo_tags.is_empty())
}

/// Networks that a prune may take.
pub fn prune_networks(filters: &Filters, now: Timestamp) -> Result<Which<Network>, Error> {
    prune(filters, now, |r| &r.labels, |r| r.created, |_| true)
}

/// Volumes that a prune may take: those without a name of their own, unless `all`.
pub fn prune_volumes(filters: &Filters, now: Timestamp) -> Result<Which<Volume>, Error> {
    if filters.has("until") {
        return Err(Error::Invalid("The \"until\" filter is not supported for volumes".to_owned()));
    }
    let all = filters.flag("all")?.unwrap_or(false);
    prune(filters, now, |r| &r.labels, |r| r.created_at, move |r| all || r.anonymous)
}

/// Filters of an event stream, made ready once.
pub struct Events {
    filters: Filters,
    containers: Patterns,
}

impl Events {
    /// Of a request's filters.
    pub fn new(filters: Filters) -> Self {
        Self { containers: filters.patterns("container"), filters }
    }

    /// The event passes.
    pub fn accept(&self, event: &Event) -> bool {
        let filters = &self.filters;
        let name = event.attributes.get("name").map_or("", String::as_str);
        let of = |kind: EventKind, filter: &str| {
            !filters.has(filter)
                || (event.kind == kind
                    && filters.any(filter, |v| v == name || (!v.is_empty() && event.id.starts_with(v))))
        };
        filters.exact("type", event.kind.as_str())
            && filters.exact("scope", "local")
            && filters.any("event", |wanted| {
                event.action == wanted
                    || event
                        .action
                        .strip_prefix(wanted)
                        .is_some_and(|rest| rest.starts_with(": ") || rest == ":")
            })
            && filters.labels(&event.attributes)
            && (!filters.has("container")
                || (event.kind == EventKind::Container
                    && (self.containers.accept(name)
                        || filters.any("container", |v| !v.is_empty() && event.id.starts_with(v)))))
            && (!filters.has("image")
                || filters.any("image", |wanted| {
                    let image = match event.kind {
                        EventKind::Image => event.id.as_str(),
                        _ => event.attributes.get("image").map_or("", String::as_str),
                    };
                    let repository =
                        |text: &str| text.rsplit_once(':').map_or(text.to_owned(), |(r, _)| r.to_owned());
                    wanted == image
                        || wanted == name
                        || repository(image) == wanted
                        || repository(name) == wanted
                }))
            && of(EventKind::Network, "network")
            && of(EventKind::Volume, "volume")
            && of(EventKind::Daemon, "daemon")
            && !["config", "node", "plugin", "secret", "service"].iter().any(|name| filters.has(name))
    }
}
