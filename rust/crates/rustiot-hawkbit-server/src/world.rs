//! Targets, modules, actions and their lives: what the requests of devices and of the management do. Never opens a
//! socket; called by the router that [`HawkBit`] makes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// A target's side of it.
#[derive(Clone, Debug, Default)]
pub struct Target {
    /// By which it is known.
    pub token: String,
    /// What it says of itself.
    pub attributes: BTreeMap<String, String>,
    wants_attributes: bool,
}

/// A file of a module.
#[derive(Clone, Debug)]
struct Artifact {
    id: u64,
    name: String,
    bytes: Bytes,
    sha1: String,
    sha256: String,
}

#[derive(Clone, Debug, Default)]
struct Module {
    name: String,
    version: String,
    kind: String,
    artifacts: Vec<Artifact>,
}

/// One deployment to one target.
#[derive(Clone, Debug)]
pub struct Action {
    target: String,
    modules: Vec<u64>,
    kind: String,
    /// Seconds of the day (UTC) at which the window opens, and how long it is open.
    window: Option<(u64, u64)>,
    /// `running`, `canceling`, `canceled`, `finished`, `error`, `downloaded`, `wait_for_confirmation`.
    pub status: String,
    /// Not over yet.
    pub active: bool,
    /// Entries, oldest first: type and messages.
    pub entries: Vec<(String, Vec<String>)>,
}

impl Action {
    fn note(&mut self, kind: &str, messages: Vec<String>) {
        self.entries.push((kind.into(), messages));
    }

    fn end(&mut self, status: &str) {
        self.status = status.into();
        self.active = false;
    }

    /// The window opens at once, for an hour.
    pub fn open_now(&mut self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() % 86_400;
        self.window = Some((now, 3600));
    }

    fn window_open(&self) -> Option<bool> {
        let (start, length) = self.window?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() % 86_400;
        Some((now + 86_400 - start) % 86_400 < length)
    }
}

/// Something that goes wrong with a request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This code instead of an answer.
    Status(u16),
    /// The same with a `Retry-After` in seconds.
    Busy(u16, u64),
    /// These bytes with code 200.
    Body(Vec<u8>),
    /// Nothing at all for a long time.
    Silence,
}

/// All that the server knows, and what it does wrong.
#[derive(Debug, Default)]
pub struct World {
    configs: BTreeMap<String, Value>,
    /// By name.
    pub targets: BTreeMap<String, Target>,
    modules: BTreeMap<u64, Module>,
    sets: BTreeMap<u64, Vec<u64>>,
    /// By number.
    pub actions: BTreeMap<u64, Action>,
    next: u64,
    /// What goes wrong with the next requests whose `METHOD path` contains the text.
    pub faults: VecDeque<(String, Fault)>,
    /// Every DDI request: method and path.
    pub log: Vec<String>,
    /// Every feedback's body, in the order of their arrival, whether it was taken or not.
    pub feedback: Vec<Value>,
    /// Hashes of artifacts are wrong.
    pub lie: bool,
    /// Downloads without a range end after so many bytes.
    pub truncate: Option<usize>,
    /// The time between polls (`HH:MM:SS`) instead of the configured one.
    pub sleep: Option<String>,
}

/// The server; clones share one world.
#[derive(Clone, Debug, Default)]
pub struct HawkBit {
    world: Arc<Mutex<World>>,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn code(status: u16) -> Response {
    StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR).into_response()
}

fn answer(value: &Value) -> Response {
    ([("content-type", "application/hal+json")], value.to_string()).into_response()
}

impl HawkBit {
    /// Everything, to look at and to change.
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What became of an action so far; empty when there is none of that number.
    #[must_use]
    pub fn status(&self, action: u64) -> String {
        self.world().actions.get(&action).map(|action| action.status.clone()).unwrap_or_default()
    }

    /// The lines of all of an action's entries of one type, the newest entry first.
    #[must_use]
    pub fn messages(&self, action: u64, kind: &str) -> Vec<String> {
        let world = self.world();
        let entries = world.actions.get(&action).into_iter().flat_map(|action| action.entries.iter().rev());
        entries.filter(|(found, _)| found == kind).flat_map(|(_, messages)| messages.clone()).collect()
    }

    /// Both APIs.
    pub fn router(&self) -> Router {
        let server = self.clone();
        Router::new().fallback(move |method: Method, uri: Uri, headers: HeaderMap, body: Bytes| {
            let server = server.clone();
            async move { server.serve(&method, &uri, &headers, body).await }
        })
    }

    async fn serve(&self, method: &Method, uri: &Uri, headers: &HeaderMap, body: Bytes) -> Response {
        let path: Vec<String> = uri.path().split('/').skip(1).map(decode).collect();
        let parts: Vec<&str> = path.iter().map(String::as_str).collect();
        if let ["rest", "v1", rest @ ..] = parts.as_slice() {
            return self.world().manage(method, rest, uri.query().unwrap_or_default(), headers, &body);
        }
        let [_tenant, "controller", "v1", target, rest @ ..] = parts.as_slice() else { return code(404) };
        let fault = {
            let mut world = self.world();
            let line = format!("{method} {}", rest.join("/"));
            world.log.push(line.clone());
            let at = world.faults.iter().position(|(text, _)| line.contains(text.as_str()));
            at.and_then(|at| world.faults.remove(at))
        };
        match fault.map(|(_, fault)| fault) {
            Some(Fault::Status(status)) => return code(status),
            Some(Fault::Busy(status, seconds)) => {
                let mut response = code(status);
                response.headers_mut().insert("retry-after", seconds.into());
                return response;
            }
            Some(Fault::Body(bytes)) => return bytes.into_response(),
            Some(Fault::Silence) => std::future::pending::<()>().await,
            None => {}
        }
        let mut world = self.world();
        if !world.authentic(target, headers) {
            return code(401);
        }
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let base = format!(
            "{}://{}{}",
            header("x-forwarded-proto").unwrap_or("http"),
            header("host").unwrap_or("localhost"),
            format_args!("/DEFAULT/controller/v1/{target}")
        );
        world.device(method, target, rest, &base, headers, &body)
    }
}

fn decode(part: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = part.bytes();
    while let Some(byte) = bytes.next() {
        let pair = if byte == b'%' { bytes.next().zip(bytes.next()) } else { None };
        out.push(match pair {
            Some((high, low)) => {
                u8::from_str_radix(&String::from_utf8_lossy(&[high, low]), 16).unwrap_or(b'?')
            }
            None => byte,
        });
    }
    String::from_utf8_lossy(&out).into_owned()
}

impl World {
    fn id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn config(&self, key: &str) -> &Value {
        self.configs.get(key).unwrap_or(&Value::Null)
    }

    /// A setting of the tenant, by hawkBit's own name.
    pub fn set_config(&mut self, key: &str, value: Value) {
        self.configs.insert(key.into(), value);
    }

    fn authentic(&mut self, name: &str, headers: &HeaderMap) -> bool {
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let on = |world: &Self, key: &str| *world.config(key) == true;
        let authorization = header("authorization");
        let authority = self.config("authentication.header.authority").as_str().unwrap_or("-").to_owned();
        let by_token = on(self, "authentication.targettoken.enabled")
            && self
                .targets
                .get(name)
                .is_some_and(|target| authorization == format!("TargetToken {}", target.token));
        let gateway = self.config("authentication.gatewaytoken.key").as_str().unwrap_or_default();
        let by_gateway = on(self, "authentication.gatewaytoken.enabled")
            && authorization == format!("GatewayToken {gateway}");
        let by_header = on(self, "authentication.header.enabled")
            && header("x-controller-id") == name
            && (0..3).any(|at| header(&format!("x-authority-{at}")) == authority);
        let good = by_token || by_gateway || by_header;
        if good {
            self.targets
                .entry(name.into())
                .or_insert_with(|| Target { wants_attributes: true, ..Target::default() });
        }
        good
    }

    /// A target with a token, and targets' tokens are taken.
    pub fn knows(&mut self, name: &str, token: &str) {
        self.set_config("authentication.targettoken.enabled", true.into());
        self.add_target(name, token);
    }

    /// A target with a token.
    pub fn add_target(&mut self, name: &str, token: &str) {
        let target = Target { token: token.into(), wants_attributes: true, ..Target::default() };
        self.targets.insert(name.into(), target);
    }

    /// A distribution of one bundle; returns its id.
    pub fn add_bundle(&mut self, version: &str, bytes: &[u8]) -> u64 {
        let module = self.id();
        let made =
            Module { name: "system".into(), version: version.into(), kind: "os".into(), artifacts: vec![] };
        self.modules.insert(module, made);
        self.add_artifact(module, "os.raucb", Bytes::copy_from_slice(bytes));
        let set = self.id();
        self.sets.insert(set, vec![module]);
        set
    }

    fn add_artifact(&mut self, module: u64, name: &str, bytes: Bytes) -> Option<u64> {
        let id = self.id();
        let artifact = Artifact {
            id,
            name: name.into(),
            sha1: hex(&Sha1::digest(&bytes)),
            sha256: hex(&Sha256::digest(&bytes)),
            bytes,
        };
        self.modules.get_mut(&module)?.artifacts.push(artifact);
        Some(id)
    }

    /// Assigns a distribution; older actions of the target are cancelled, as hawkBit does by default.
    pub fn assign(&mut self, target: &str, set: u64, kind: &str, window: Option<(u64, u64)>) -> u64 {
        for action in self.actions.values_mut().filter(|action| action.active && action.target == target) {
            action.status = "canceling".into();
            action.note("canceling", vec!["obsolete".into()]);
        }
        let id = self.id();
        let waits = *self.config("user.confirmation.flow.enabled") == true;
        let status = if waits { "wait_for_confirmation" } else { "running" };
        let modules = self.sets.get(&set).cloned().unwrap_or_default();
        let mut action = Action {
            target: target.into(),
            modules,
            kind: kind.into(),
            window,
            status: status.into(),
            active: true,
            entries: Vec::new(),
        };
        action.note(status, vec!["Assignment initiated".into()]);
        self.actions.insert(id, action);
        id
    }

    /// Wishes an action stopped, as a user of hawkBit does.
    pub fn cancel(&mut self, action: u64, force: bool) -> u16 {
        let Some(action) = self.actions.get_mut(&action) else { return 404 };
        let canceling = action.status == "canceling";
        match (action.active, force, canceling) {
            (true, false, false) => {
                action.status = "canceling".into();
                action.note("canceling", vec!["cancel requested".into()]);
                204
            }
            (true, true, true) => {
                action.end("canceled");
                action.note("canceled", vec!["force quit".into()]);
                204
            }
            _ => 405,
        }
    }

    fn device(
        &mut self,
        method: &Method,
        name: &str,
        path: &[&str],
        base: &str,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Response {
        let json = || serde_json::from_slice::<Value>(body).ok();
        let number = |text: &str| text.parse::<u64>().unwrap_or(0);
        match (method.as_str(), path) {
            ("GET", []) => answer(&self.base(name, base)),
            ("PUT", ["configData"]) => {
                let Some(data) = json().and_then(|body| body.get("data")?.as_object().cloned()) else {
                    return code(400);
                };
                let Some(target) = self.targets.get_mut(name) else { return code(404) };
                for (key, value) in data {
                    target.attributes.insert(key, value.as_str().unwrap_or_default().to_owned());
                }
                target.wants_attributes = false;
                code(200)
            }
            ("GET", [kind @ ("deploymentBase" | "confirmationBase" | "installedBase"), action]) => {
                let id = number(action);
                let (key, fits): (_, fn(&Action) -> bool) = match *kind {
                    "deploymentBase" => ("deployment", |a| {
                        !matches!(a.status.as_str(), "canceling" | "canceled" | "wait_for_confirmation")
                    }),
                    "confirmationBase" => ("confirmation", |a| a.status == "wait_for_confirmation"),
                    _ => ("deployment", |a| !a.active && a.status != "canceled"),
                };
                match self.actions.get(&id).filter(|action| action.target == name && fits(action)) {
                    Some(_) => {
                        let deployment = self.deployment(id, base);
                        self.retrieved(id);
                        answer(&json!({ "id": id.to_string(), key: deployment }))
                    }
                    None => code(404),
                }
            }
            ("GET", ["cancelAction", action]) => {
                let found = self.actions.get(&number(action)).filter(|a| a.target == name);
                match found.is_some_and(|a| matches!(a.status.as_str(), "canceling" | "canceled")) {
                    true => answer(&json!({ "id": action, "cancelAction": { "stopId": action } })),
                    false => code(404),
                }
            }
            ("GET", ["softwaremodules", module, "artifacts", file]) => {
                let module = number(module);
                let assigned = self.actions.values().any(|a| a.target == name && a.modules.contains(&module));
                let found = self.modules.get(&module).filter(|_| assigned);
                let artifact = found.and_then(|module| module.artifacts.iter().find(|a| a.name == *file));
                match artifact {
                    Some(artifact) => serve_range(&artifact.bytes, headers, self.truncate),
                    None => code(404),
                }
            }
            ("POST", [kind, action, "feedback"]) => {
                let Some(body) = json() else { return code(400) };
                self.feedback.push(body.clone());
                let Some(action) = self.actions.get_mut(&number(action)).filter(|a| a.target == name) else {
                    return code(404);
                };
                code(match *kind {
                    "deploymentBase" => deployment_feedback(action, &body),
                    "cancelAction" => cancel_feedback(action, &body),
                    "confirmationBase" => confirmation_feedback(action, &body),
                    _ => 404,
                })
            }
            _ => code(404),
        }
    }

    fn retrieved(&mut self, id: u64) {
        if let Some(action) = self.actions.get_mut(&id)
            && !action.entries.iter().any(|(kind, _)| kind == "retrieved")
        {
            action.note("retrieved", vec!["Target retrieved update action".into()]);
        }
    }

    fn base(&self, name: &str, base: &str) -> Value {
        let mut links = serde_json::Map::new();
        let mut link = |name: &str, path: String| {
            links.insert(name.into(), json!({ "href": format!("{base}/{path}") }));
        };
        if let Some((id, action)) = self.actions.iter().find(|(_, a)| a.active && a.target == name) {
            match action.status.as_str() {
                "wait_for_confirmation" => link("confirmationBase", format!("confirmationBase/{id}?c=1")),
                "canceling" => link("cancelAction", format!("cancelAction/{id}")),
                _ => {
                    let tag = if action.window_open() == Some(true) { 1249 } else { 1237 };
                    link("deploymentBase", format!("deploymentBase/{id}?c=-{tag}"));
                }
            }
        }
        let done = self.actions.iter().rev().find(|(_, a)| a.target == name && a.status == "finished");
        if let Some((id, _)) = done {
            link("installedBase", format!("installedBase/{id}"));
        }
        if self.targets.get(name).is_some_and(|target| target.wants_attributes) {
            link("configData", "configData".into());
        }
        let configured = self.config("pollingTime").as_str().unwrap_or("00:05:00").to_owned();
        let sleep = self.sleep.clone().unwrap_or(configured);
        json!({ "config": { "polling": { "sleep": sleep } }, "_links": links })
    }

    fn deployment(&self, id: u64, base: &str) -> Value {
        let Some(action) = self.actions.get(&id) else { return Value::Null };
        let download = if action.kind == "soft" { "attempt" } else { "forced" };
        let open = action.window_open();
        let update = if action.kind == "downloadonly" || open == Some(false) { "skip" } else { download };
        let modules = action.modules.iter().filter_map(|id| Some((id, self.modules.get(id)?)));
        let chunks: Vec<Value> = modules
            .map(|(id, module)| {
                let artifacts: Vec<Value> = module
                    .artifacts
                    .iter()
                    .map(|artifact| {
                        let href = format!("{base}/softwaremodules/{id}/artifacts/{}", artifact.name);
                        let lie = |hash: &str| if self.lie { "0".repeat(hash.len()) } else { hash.to_owned() };
                        json!({
                            "filename": artifact.name,
                            "hashes": { "sha1": lie(&artifact.sha1), "sha256": lie(&artifact.sha256) },
                            "size": artifact.bytes.len(),
                            "_links": { "download-http": { "href": href },
                                        "md5sum-http": { "href": format!("{href}.MD5SUM") } },
                        })
                    })
                    .collect();
                let part = if module.kind == "application" { "bApp" } else { &module.kind };
                json!({ "part": part, "version": module.version, "name": module.name, "artifacts": artifacts })
            })
            .collect();
        let mut deployment = json!({ "download": download, "update": update, "chunks": chunks });
        if let Some(open) = open {
            deployment["maintenanceWindow"] = if open { "available" } else { "unavailable" }.into();
        }
        deployment
    }

    /// The management API, as far as rauc-hawkbit-updater's suite uses it.
    fn manage(
        &mut self,
        method: &Method,
        path: &[&str],
        query: &str,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> Response {
        let json = || serde_json::from_slice::<Value>(body).unwrap_or_default();
        let number = |text: &str| text.parse::<u64>().unwrap_or(0);
        let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
        match (method.as_str(), path) {
            ("PUT", ["system", "configs", key]) => {
                self.configs.insert((*key).into(), json()["value"].clone());
                code(200)
            }
            ("GET", ["system", "configs", key]) => {
                answer(&json!({ "value": self.config(key), "global": false }))
            }
            ("POST", ["targets"]) => {
                let list = json().as_array().cloned().unwrap_or_default();
                for target in &list {
                    let mut token = text(target, "securityToken");
                    if token.is_empty() {
                        token = format!("token{:028}", self.id());
                    }
                    self.add_target(&text(target, "controllerId"), &token);
                }
                (StatusCode::CREATED, Value::Array(list).to_string()).into_response()
            }
            ("GET", ["targets", name]) => match self.targets.get(*name) {
                Some(target) => {
                    answer(&json!({ "controllerId": name, "name": name, "securityToken": target.token }))
                }
                None => code(404),
            },
            ("DELETE", ["targets", name]) => {
                self.actions.retain(|_, action| action.target != *name);
                code(self.targets.remove(*name).map_or(404, |_| 200))
            }
            ("GET", ["targets", name, "attributes"]) => match self.targets.get(*name) {
                Some(target) => answer(&json!(target.attributes)),
                None => code(404),
            },
            ("POST", ["softwaremodules"]) => {
                let made: Vec<Value> = json()
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(|module| {
                        let id = self.id();
                        let (name, version, kind) =
                            (text(module, "name"), text(module, "version"), text(module, "type"));
                        self.modules.insert(id, Module { name, version, kind, artifacts: vec![] });
                        json!({ "id": id })
                    })
                    .collect();
                (StatusCode::CREATED, Value::Array(made).to_string()).into_response()
            }
            ("POST", ["softwaremodules", module, "artifacts"]) => {
                let Some((name, bytes)) = multipart(headers, body) else { return code(400) };
                let taken = self
                    .modules
                    .get(&number(module))
                    .is_none_or(|m| m.artifacts.iter().any(|a| a.name == name));
                match self.add_artifact(number(module), &name, bytes).filter(|_| !taken) {
                    Some(id) => (StatusCode::CREATED, json!({ "id": id }).to_string()).into_response(),
                    None => code(409),
                }
            }
            ("DELETE", ["softwaremodules", module, "artifacts", artifact]) => {
                let Some(module) = self.modules.get_mut(&number(module)) else { return code(404) };
                let before = module.artifacts.len();
                module.artifacts.retain(|a| a.id != number(artifact));
                code(if module.artifacts.len() < before { 200 } else { 404 })
            }
            ("DELETE", ["softwaremodules", module]) => {
                // What was assigned once is only marked there, and may be deleted again.
                self.modules.remove(&number(module));
                code(if number(module) <= self.next { 200 } else { 404 })
            }
            ("POST", ["distributionsets"]) => {
                let made: Vec<Value> = json()
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(|set| {
                        let id = self.id();
                        let modules = set["modules"].as_array().into_iter().flatten();
                        self.sets.insert(id, modules.filter_map(|m| m["id"].as_u64()).collect());
                        json!({ "id": id })
                    })
                    .collect();
                (StatusCode::CREATED, Value::Array(made).to_string()).into_response()
            }
            ("DELETE", ["distributionsets", set]) => {
                code(self.sets.remove(&number(set)).map_or(404, |_| 200))
            }
            ("POST", ["distributionsets", set, "assignedTargets"]) => {
                let made: Vec<Value> = json()
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(|target| {
                        let kind = target["type"].as_str().unwrap_or("forced").to_owned();
                        let window = target.get("maintenanceWindow").and_then(window);
                        json!({ "id": self.assign(&text(target, "id"), number(set), &kind, window) })
                    })
                    .collect();
                answer(&json!({ "assignedActions": made, "assigned": made.len(), "total": made.len() }))
            }
            ("GET", ["targets", _, "actions", action]) => match self.actions.get(&number(action)) {
                Some(found) => {
                    let cancel = matches!(found.status.as_str(), "canceling" | "canceled");
                    let kind = if cancel { "cancel" } else { "update" };
                    answer(
                        &json!({ "id": number(action), "type": kind, "status": found.status, "active": found.active }),
                    )
                }
                None => code(404),
            },
            ("GET", ["targets", _, "actions", action, "status"]) => match self.actions.get(&number(action)) {
                Some(found) => {
                    let content: Vec<Value> = found
                        .entries
                        .iter()
                        .rev()
                        .take(50)
                        .map(|(kind, messages)| json!({ "type": kind, "messages": messages }))
                        .collect();
                    answer(&json!({ "content": content, "total": found.entries.len() }))
                }
                None => code(404),
            },
            ("DELETE", ["targets", _, "actions", action]) => {
                code(self.cancel(number(action), query.contains("force=true")))
            }
            _ => code(404),
        }
    }
}

/// `S M H ? month * year` with an offset and a length: when the window opens, and for how long.
fn window(value: &Value) -> Option<(u64, u64)> {
    let clock = |text: &str| -> Option<i64> {
        text.split(':').map(|part| part.parse::<i64>().ok()).try_fold(0, |sum, part| Some(sum * 60 + part?))
    };
    let schedule = value["schedule"].as_str()?;
    let mut parts = schedule.split(' ').map(|part| part.parse::<i64>().ok());
    let (second, minute, hour) = (parts.next()??, parts.next()??, parts.next()??);
    let zone = value["timezone"].as_str()?;
    let offset =
        clock(zone.trim_start_matches(['+', '-']))? * 60 * if zone.starts_with('-') { -1 } else { 1 };
    let start = (hour * 3600 + minute * 60 + second - offset).rem_euclid(86_400);
    Some((u64::try_from(start).ok()?, u64::try_from(clock(value["duration"].as_str()?)?).ok()?))
}

/// The one file of a form.
fn multipart(headers: &HeaderMap, body: &Bytes) -> Option<(String, Bytes)> {
    let kind = headers.get("content-type")?.to_str().ok()?;
    let boundary = format!("\r\n--{}", kind.split("boundary=").nth(1)?.trim_matches('"'));
    let find = |hay: &[u8], needle: &[u8]| hay.windows(needle.len()).position(|part| part == needle);
    let head_end = find(body, b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(body.get(..head_end)?).into_owned();
    let name = head.split("filename=\"").nth(1)?.split('"').next()?.to_owned();
    let content = body.slice(head_end + 4..);
    let end = find(&content, boundary.as_bytes())?;
    Some((name, content.slice(..end)))
}

fn serve_range(bytes: &Bytes, headers: &HeaderMap, truncate: Option<usize>) -> Response {
    let range =
        headers.get("range").and_then(|value| value.to_str().ok()?.strip_prefix("bytes=")?.split_once('-'));
    let total = bytes.len();
    let Some((from, to)) = range else {
        let Some(cut) = truncate else { return bytes.clone().into_response() };
        // The length of the whole, and a body that breaks off.
        let part = bytes.slice(..cut.min(total));
        let stream = futures_lite::stream::unfold(Some(part), |part| async {
            // The part must be on its way before the connection ends.
            let Some(part) = part else {
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                return Some((Err(std::io::Error::other("cut")), None));
            };
            Some((Ok(part), None))
        });
        let mut response = Body::from_stream(stream).into_response();
        response.headers_mut().insert("content-length", total.into());
        return response;
    };
    let from = from.parse::<usize>().unwrap_or(0);
    let to = to.parse::<usize>().unwrap_or(usize::MAX).min(total.saturating_sub(1));
    if from > to || from >= total {
        let mut response = code(416);
        content_range(&mut response, &format!("bytes */{total}"));
        return response;
    }
    let mut response = bytes.slice(from..=to).into_response();
    *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    content_range(&mut response, &format!("bytes {from}-{to}/{total}"));
    response
}

fn content_range(response: &mut Response, text: &str) {
    if let Ok(value) = text.parse() {
        response.headers_mut().insert("content-range", value);
    }
}

/// What every feedback must have: execution, result, messages.
fn read(body: &Value) -> Option<(String, String, Vec<String>)> {
    let status = body.get("status")?;
    let execution = status.get("execution")?.as_str()?;
    let finished = status.get("result")?.get("finished")?.as_str()?;
    let known =
        ["closed", "proceeding", "canceled", "scheduled", "rejected", "resumed", "downloaded", "download"];
    if !known.contains(&execution) || !["success", "failure", "none"].contains(&finished) {
        return None;
    }
    let details = status.get("details").and_then(Value::as_array).into_iter().flatten();
    let details: Vec<String> = details.filter_map(|line| Some(line.as_str()?.to_owned())).collect();
    (details.len() <= 50).then(|| (execution.to_owned(), finished.to_owned(), details))
}

fn deployment_feedback(action: &mut Action, body: &Value) -> u16 {
    if action.status == "wait_for_confirmation" {
        return 404;
    }
    if !action.active {
        return 410;
    }
    let Some((execution, finished, details)) = read(body) else { return 400 };
    match (execution.as_str(), finished.as_str()) {
        ("closed", "failure") => {
            action.end("error");
            action.note("error", details);
        }
        ("closed", _) => {
            action.end("finished");
            action.note("finished", details);
        }
        ("canceled", _) => {
            action.end("canceled");
            action.note("canceled", details);
        }
        ("rejected", _) => action.note("warning", details),
        ("downloaded", _) => {
            if action.kind == "downloadonly" {
                action.end("downloaded");
            }
            action.note("downloaded", details);
        }
        ("download", _) => action.note("download", details),
        _ => action.note("running", details),
    }
    200
}

fn cancel_feedback(action: &mut Action, body: &Value) -> u16 {
    if action.status != "canceling" {
        return 405;
    }
    let Some((execution, finished, details)) = read(body) else { return 400 };
    match (execution.as_str(), finished.as_str()) {
        ("rejected", _) | ("closed", "failure") => {
            action.status = "running".into();
            action.note("cancel_rejected", details);
        }
        ("closed", _) => {
            action.end("canceled");
            action.note("canceled", details);
        }
        _ => action.note("running", details),
    }
    200
}

fn confirmation_feedback(action: &mut Action, body: &Value) -> u16 {
    if !action.active {
        return 410;
    }
    if action.status != "wait_for_confirmation" {
        return 404;
    }
    match body["confirmation"].as_str() {
        Some("confirmed") => {
            action.status = "running".into();
            action.note("running", vec!["confirmed".into()]);
        }
        Some("denied") => action.note("wait_for_confirmation", vec!["denied".into()]),
        _ => return 400,
    }
    200
}
