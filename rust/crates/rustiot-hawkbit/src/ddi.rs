//! The messages of hawkBit's Direct Device Integration API, read tolerantly and written strictly.
//!
//! Pure. Unknown keys are ignored, ids may be numbers, and a handling or window that is not known counts as "not now".
//! Of links only what says something is kept: an action's id. Addresses are made from the owner's configuration, so no
//! answer can send this device, or its token, elsewhere. Source of the format: hawkBit's DDI API, version 1.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

/// Longest answer that is read. A deployment of one bundle takes about 1.5 KB.
pub const MAX_ANSWER: usize = 1 << 20;
/// Longest text in a feedback, characters (hawkBit splits longer ones in its database).
pub const MAX_DETAIL: usize = 512;
/// Texts in one feedback that hawkBit accepts (`maxMessagesPerActionStatus`).
pub const MAX_DETAILS: usize = 50;
/// Longest value of an attribute, characters.
const MAX_ATTRIBUTE: usize = 128;

/// Why an answer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not JSON, or not of this shape.
    #[error("the answer is not what the DDI API describes")]
    Shape(#[source] serde_json::Error),
    /// The answer names an action by something that is no id.
    #[error("{0:?} is not the id of an action")]
    Id(String),
    /// Longer than [`MAX_ANSWER`].
    #[error("the answer has more than {MAX_ANSWER} bytes")]
    TooLong,
}

/// Id of an action (one deployment to one device). Safe to be a part of a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ActionId(String);

impl ActionId {
    /// Takes what hawkBit uses (a number) and what fits into a path segment.
    ///
    /// # Errors
    /// [`Error::Id`] for everything else.
    pub fn new(text: impl Into<String>) -> Result<Self, Error> {
        let text = text.into();
        let fits = (1..=64).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if fits { Ok(Self(text)) } else { Err(Error::Id(text)) }
    }

    /// The id as it stands in paths.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ActionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for ActionId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = match Value::deserialize(deserializer)? {
            Value::String(text) => text,
            Value::Number(number) => number.to_string(),
            other => return Err(serde::de::Error::custom(format!("{other} is no id"))),
        };
        Self::new(text).map_err(serde::de::Error::custom)
    }
}

/// What the server answers to a poll.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Base {
    /// Time to the next poll that the server wishes.
    pub sleep: Option<Duration>,
    /// A deployment waits to be fetched.
    pub deployment: Option<ActionId>,
    /// An action shall be stopped.
    pub cancel: Option<ActionId>,
    /// An action waits for consent.
    pub confirmation: Option<ActionId>,
    /// The server wants the device's attributes.
    pub wants_config: bool,
}

#[derive(Deserialize)]
struct RawLink {
    #[serde(default)]
    href: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawLinks {
    deployment_base: Option<RawLink>,
    cancel_action: Option<RawLink>,
    confirmation_base: Option<RawLink>,
    config_data: Option<RawLink>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawPolling {
    sleep: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawConfig {
    polling: Option<RawPolling>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawBase {
    config: Option<RawConfig>,
    #[serde(rename = "_links")]
    links: Option<RawLinks>,
}

/// The id at the end of a link, before its query.
fn linked(link: Option<RawLink>) -> Result<Option<ActionId>, Error> {
    let Some(link) = link else { return Ok(None) };
    let path = link.href.split(['?', '#']).next().unwrap_or_default();
    ActionId::new(path.rsplit('/').next().unwrap_or_default()).map(Some)
}

/// `HH:MM:SS`; nothing when it is something else.
fn sleep(text: &str) -> Option<Duration> {
    let mut parts = text.trim().split(':').map(|part| part.parse::<u32>().ok());
    let (hours, minutes, seconds) = (parts.next()??, parts.next()??, parts.next()??);
    if parts.next().is_some() || minutes > 59 || seconds > 59 || hours > 24 * 366 {
        return None;
    }
    Some(Duration::from_secs(u64::from(hours) * 3600 + u64::from(minutes) * 60 + u64::from(seconds)))
}

fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Error> {
    if bytes.len() > MAX_ANSWER {
        return Err(Error::TooLong);
    }
    serde_json::from_slice(bytes).map_err(Error::Shape)
}

impl Base {
    /// Reads the answer to a poll.
    ///
    /// # Errors
    /// When it is not JSON of this shape, or a link has no id.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let raw: RawBase = parse(bytes)?;
        let links = raw.links.unwrap_or_default();
        let polling = raw.config.and_then(|config| config.polling).and_then(|polling| polling.sleep);
        Ok(Self {
            sleep: polling.as_deref().and_then(sleep),
            deployment: linked(links.deployment_base)?,
            cancel: linked(links.cancel_action)?,
            confirmation: linked(links.confirmation_base)?,
            wants_config: links.config_data.is_some(),
        })
    }
}

/// How eagerly a step is to be taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Handling {
    /// Soft: the device may choose the time.
    Attempt,
    /// At once.
    Forced,
    /// Not now. Also every word that is not known.
    #[default]
    #[serde(other)]
    Skip,
}

/// Whether the deployment's maintenance window is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Window {
    /// Open.
    Available,
    /// Closed. Also every word that is not known.
    #[serde(other)]
    Unavailable,
}

impl Window {
    /// hawkBit's word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Available => "available",
            Self::Unavailable => "unavailable",
        }
    }
}

/// Checksums of an artifact, lower-case hexadecimal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hashes {
    /// SHA-1; hawkBit always sends it.
    pub sha1: Option<String>,
    /// SHA-256; newer servers send it.
    pub sha256: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawArtifactLinks {
    download: Option<RawLink>,
    #[serde(rename = "download-http")]
    download_http: Option<RawLink>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawArtifact {
    hashes: Option<Hashes>,
    size: Option<u64>,
    #[serde(rename = "_links")]
    links: Option<RawArtifactLinks>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawChunk {
    name: Option<String>,
    version: Option<String>,
    encrypted: Option<bool>,
    artifacts: Option<Vec<RawArtifact>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawDeployment {
    download: Handling,
    update: Handling,
    maintenance_window: Option<Window>,
    chunks: Option<Vec<RawChunk>>,
}

#[derive(Deserialize)]
struct RawDeploymentBase {
    id: ActionId,
    // A confirmation has the same content under another name.
    #[serde(alias = "confirmation")]
    deployment: RawDeployment,
}

/// What a deployment asks this device to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The action.
    pub action: ActionId,
    /// Name of the software module.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Where the bundle is; checked by whoever fetches it.
    pub url: String,
    /// Its length in bytes.
    pub size: u64,
    /// Its checksums; at least one is there.
    pub hashes: Hashes,
    /// Whether to download.
    pub download: Handling,
    /// Whether to install.
    pub update: Handling,
    /// The maintenance window, if the deployment has one.
    pub window: Option<Window>,
}

/// A deployment that this device cannot carry out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unsupported {
    /// The action.
    pub action: ActionId,
    /// Why, a part of a sentence.
    pub why: String,
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Deployment {} unsupported: {}.", self.action, self.why)
    }
}

fn hex(text: Option<String>, bytes: usize) -> Option<String> {
    let text = text?.to_ascii_lowercase();
    (text.len() == bytes * 2 && text.bytes().all(|b| b.is_ascii_hexdigit())).then_some(text)
}

/// Exactly one of something.
fn only<T>(list: Option<Vec<T>>, name: &str) -> Result<T, String> {
    let mut list = list.unwrap_or_default();
    match (list.pop(), list.is_empty()) {
        (Some(one), true) => Ok(one),
        (Some(_), false) => Err(format!("cannot handle multiple {name}")),
        (None, _) => Err(format!("no {name}")),
    }
}

impl Order {
    /// Reads a deployment (or a confirmation, which has the same content): one software module with one artifact.
    ///
    /// # Errors
    /// The outer one when the answer is not of this shape, the inner one when this device cannot carry it out.
    pub fn parse(bytes: &[u8]) -> Result<Result<Self, Unsupported>, Error> {
        let RawDeploymentBase { id, deployment } = parse(bytes)?;
        Ok(Self::new(id.clone(), deployment).map_err(|why| Unsupported { action: id, why }))
    }

    fn new(action: ActionId, raw: RawDeployment) -> Result<Self, String> {
        let chunk = only(raw.chunks, "chunks")?;
        if chunk.encrypted == Some(true) {
            return Err("cannot handle encrypted modules".into());
        }
        let artifact = only(chunk.artifacts, "artifacts")?;
        let links = artifact.links.unwrap_or_default();
        let url = links
            .download
            .or(links.download_http)
            .map(|link| link.href)
            .filter(|href| !href.is_empty())
            .ok_or("the artifact has no download link")?;
        let hashes = artifact.hashes.unwrap_or_default();
        let hashes = Hashes { sha1: hex(hashes.sha1, 20), sha256: hex(hashes.sha256, 32) };
        if hashes == Hashes::default() {
            return Err("the artifact has no checksum".into());
        }
        Ok(Self {
            action,
            name: chunk.name.unwrap_or_default(),
            version: chunk.version.unwrap_or_default(),
            url,
            size: artifact.size.ok_or("the artifact has no size")?,
            hashes,
            download: raw.download,
            update: raw.update,
            window: raw.maintenance_window,
        })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawStop {
    stop_id: ActionId,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawCancel {
    cancel_action: RawStop,
}

/// Reads which action shall be stopped.
///
/// # Errors
/// When the answer is not of this shape.
pub fn parse_cancel(bytes: &[u8]) -> Result<ActionId, Error> {
    Ok(parse::<RawCancel>(bytes)?.cancel_action.stop_id)
}

/// How far the device is with an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Execution {
    /// At work.
    Proceeding,
    /// Downloaded, and nothing more is to be done for a download-only action.
    Downloaded,
    /// Ended.
    Closed,
    /// A cancellation is not carried out.
    Rejected,
}

/// The result that a feedback states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Finished {
    /// It worked.
    Success,
    /// It did not.
    Failure,
    /// Not known yet.
    None,
}

/// One feedback about an action.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Feedback {
    /// How far.
    pub execution: Execution,
    /// With what result.
    pub finished: Finished,
    /// Percent, where there is one.
    #[serde(default)]
    pub percent: Option<u8>,
    /// Texts for people, the most telling first.
    pub details: Vec<String>,
}

impl Feedback {
    /// The body. Without a time: hawkBit then takes its own, and a device's clock may be wrong.
    #[must_use]
    pub fn body(&self, action: &ActionId) -> Value {
        let mut result = json!({ "finished": self.finished });
        if let (Some(percent), Some(result)) = (self.percent, result.as_object_mut()) {
            result.insert("progress".into(), json!({ "cnt": percent.min(100), "of": 100 }));
        }
        let details: Vec<String> = self
            .details
            .iter()
            .map(|line| shorten(line, MAX_DETAIL))
            .filter(|line| !line.is_empty())
            .take(MAX_DETAILS)
            .collect();
        json!({
            "id": action,
            "status": { "execution": self.execution, "result": result, "details": details },
        })
    }
}

/// The body that gives or refuses consent.
#[must_use]
pub fn confirmation_body(confirmed: bool, details: &[String]) -> Value {
    let word = if confirmed { "confirmed" } else { "denied" };
    json!({ "confirmation": word, "details": details })
}

/// The body with the device's attributes. Merged on the server, so that what others have set stays.
#[must_use]
pub fn config_body(attributes: &BTreeMap<String, String>) -> Value {
    let data: BTreeMap<&str, String> =
        attributes.iter().map(|(key, value)| (key.as_str(), shorten(value, MAX_ATTRIBUTE))).collect();
    json!({ "mode": "merge", "data": data })
}

/// The first `most` characters, without control characters at the ends.
fn shorten(text: &str, most: usize) -> String {
    text.trim().chars().take(most).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DEPLOYMENT: &str = r#"{"id":"8","deployment":{"download":"forced","update":"attempt","maintenanceWindow":"available",
        "chunks":[{"part":"os","version":"1.0","name":"system","artifacts":[{"filename":"os.raucb","size":11,
        "hashes":{"sha1":"3dceccec02e7626184bdbba12b247b67ff04c363","md5":"x","sha256":null},
        "_links":{"download-http":{"href":"http://h/a"},"download":{"href":"https://h/a"}}}]}]},
        "actionHistory":{"status":"RUNNING","messages":[]}}"#;

    fn order(text: &str) -> Result<Order, String> {
        Order::parse(text.as_bytes()).unwrap().map_err(|unsupported| unsupported.to_string())
    }

    #[test]
    fn a_poll_without_anything_is_nothing_to_do() {
        assert_eq!(Base::parse(b"{}").unwrap(), Base::default());
        let base = Base::parse(br#"{"config":{"polling":{"sleep":"00:10:30"}},"_links":{}}"#).unwrap();
        assert_eq!(base, Base { sleep: Some(Duration::from_secs(630)), ..Base::default() });
    }

    #[test]
    fn links_become_ids() {
        let text = br#"{"config":{"polling":{"sleep":"soon"}},"unknown":1,"_links":{
            "deploymentBase":{"href":"https://elsewhere/T/controller/v1/c/deploymentBase/12?c=-213"},
            "cancelAction":{"href":"/cancelAction/11"},
            "confirmationBase":{"href":"https://h/confirmationBase/10?c=1#x"},
            "configData":{"href":"https://h/configData"},"installedBase":{"href":"https://h/installedBase/9"}}}"#;
        let base = Base::parse(text).unwrap();
        let id = |text: &str| Some(ActionId::new(text).unwrap());
        assert_eq!((base.deployment, base.cancel, base.confirmation), (id("12"), id("11"), id("10")));
        assert!(base.wants_config && base.sleep.is_none());
    }

    #[test]
    fn a_link_that_leads_nowhere_is_an_error() {
        for href in ["", "https://h/deploymentBase/", "https://h/..%2f..", "https://h/a b"] {
            let text = json!({ "_links": { "deploymentBase": { "href": href } } }).to_string();
            assert!(matches!(Base::parse(text.as_bytes()), Err(Error::Id(_))), "{href}");
        }
    }

    #[test]
    fn the_secure_link_and_the_known_checksum_are_taken() {
        let order = order(DEPLOYMENT).unwrap();
        assert_eq!(order.url, "https://h/a");
        assert_eq!((order.size, order.name.as_str(), order.version.as_str()), (11, "system", "1.0"));
        assert_eq!(order.hashes.sha1.as_deref(), Some("3dceccec02e7626184bdbba12b247b67ff04c363"));
        assert_eq!((order.download, order.update), (Handling::Forced, Handling::Attempt));
        assert_eq!(order.window, Some(Window::Available));
    }

    #[test]
    fn a_confirmation_is_read_like_a_deployment_and_ids_may_be_numbers() {
        let text =
            DEPLOYMENT.replace("\"deployment\":", "\"confirmation\":").replace("\"id\":\"8\"", "\"id\":8");
        assert_eq!(order(&text), order(DEPLOYMENT));
    }

    #[test]
    fn unknown_words_mean_not_now() {
        let text = DEPLOYMENT.replace("forced", "urgent").replace("\"available\"", "\"perhaps\"");
        let order = order(&text).unwrap();
        assert_eq!((order.download, order.window), (Handling::Skip, Some(Window::Unavailable)));
    }

    #[test]
    fn what_cannot_be_carried_out_says_why() {
        let chunk = r#"{"part":"a","version":"1","name":"n","artifacts":[]}"#;
        for (from, to, why) in [
            ("\"chunks\":[", format!("\"chunks\":[{chunk},"), "cannot handle multiple chunks"),
            ("\"artifacts\":[", "\"artifacts\":[{},".into(), "cannot handle multiple artifacts"),
            ("\"chunks\":", "\"chunk\":".into(), "no chunks"),
            ("\"artifacts\":", "\"artifact\":".into(), "no artifacts"),
            ("\"sha1\":\"3d", "\"sha1\":\"zz".into(), "the artifact has no checksum"),
            ("\"size\":11,", String::new(), "the artifact has no size"),
            ("\"_links\":", "\"_link\":".into(), "the artifact has no download link"),
            ("\"part\":", "\"encrypted\":true,\"part\":".into(), "cannot handle encrypted modules"),
        ] {
            let error = order(&DEPLOYMENT.replace(from, &to)).unwrap_err();
            assert_eq!(error, format!("Deployment 8 unsupported: {why}."));
        }
    }

    #[test]
    fn a_cancellation_names_an_action() {
        assert_eq!(parse_cancel(br#"{"id":"5","cancelAction":{"stopId":7}}"#).unwrap().as_str(), "7");
        assert!(parse_cancel(br#"{"cancelAction":{"stopId":"../x"}}"#).is_err());
        assert!(parse_cancel(b"{}").is_err());
    }

    #[test]
    fn a_feedback_has_hawkbits_shape_and_bounds() {
        let feedback = Feedback {
            execution: Execution::Proceeding,
            finished: Finished::None,
            percent: Some(250),
            details: vec!["x".repeat(600); 60],
        };
        let body = feedback.body(&ActionId::new("8").unwrap());
        assert_eq!(body["id"], "8");
        assert_eq!(body["status"]["execution"], "proceeding");
        assert_eq!(
            body["status"]["result"],
            json!({"finished": "none", "progress": {"cnt": 100, "of": 100}})
        );
        let details = body["status"]["details"].as_array().unwrap();
        assert_eq!((details.len(), details[0].as_str().unwrap().len()), (MAX_DETAILS, MAX_DETAIL));
        assert!(body.get("timestamp").is_none());
    }

    #[test]
    fn consent_and_attributes_have_hawkbits_shape() {
        assert_eq!(confirmation_body(false, &[]), json!({"confirmation": "denied", "details": []}));
        let attributes = BTreeMap::from([("serial".to_owned(), "é".repeat(200))]);
        let body = config_body(&attributes);
        assert_eq!(body["mode"], "merge");
        assert_eq!(body["data"]["serial"].as_str().unwrap().chars().count(), 128);
    }

    #[test]
    fn an_endless_answer_is_refused_before_it_is_parsed() {
        assert!(matches!(Base::parse(&vec![b' '; MAX_ANSWER + 1]), Err(Error::TooLong)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_answer_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Base::parse(&bytes);
            let _ = Order::parse(&bytes);
            let _ = parse_cancel(&bytes);
        }

        /// A deployment with a piece of it replaced by something else.
        #[test]
        fn damaged_deployments_never_panic(at in 0..DEPLOYMENT.len(), len in 0_usize..40, with in ".{0,20}") {
            let mut bytes = DEPLOYMENT.as_bytes().to_vec();
            let end = (at + len).min(bytes.len());
            bytes.splice(at..end, with.bytes());
            if let Ok(Ok(order)) = Order::parse(&bytes) {
                prop_assert!(!order.url.is_empty() && order.hashes != Hashes::default());
            }
        }

        #[test]
        fn ids_fit_into_a_path(text in ".{0,80}") {
            if let Ok(id) = ActionId::new(text) {
                prop_assert!(!id.as_str().contains(['/', '.', '%', '?', '#', ' ']));
            }
        }

        #[test]
        fn any_text_is_a_time_or_none(text in "[0-9:]{0,12}") {
            if let Some(time) = sleep(&text) {
                prop_assert!(time.as_secs() < 32_000_000);
            }
        }
    }
}
