//! The requests of the DDI API, over `rustiot-http`.
//!
//! Every address is made from the owner's configuration. The token goes to that server only: an artifact that lies
//! elsewhere (a content network) is fetched without it. Never retries. Called by the driver and the shim.

use std::collections::BTreeMap;
use std::time::Duration;

use rustiot_http::{Http, Request, Url};
use serde_json::Value;

use crate::ddi::{self, ActionId, Base, Feedback, Order, Unsupported};
use crate::machine::Place;

/// How this device shows who it is. The token never appears in `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub enum Auth {
    /// The device's own token.
    TargetToken(String),
    /// The tenant's token.
    GatewayToken(String),
    /// The client certificate of the connection; a proxy in front of hawkBit checks it.
    Certificate,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::TargetToken(_) => "TargetToken(…)",
            Self::GatewayToken(_) => "GatewayToken(…)",
            Self::Certificate => "Certificate",
        })
    }
}

impl Auth {
    /// The value of the `Authorization` header.
    #[must_use]
    pub fn header(&self) -> Option<String> {
        match self {
            Self::TargetToken(token) => Some(format!("TargetToken {token}")),
            Self::GatewayToken(token) => Some(format!("GatewayToken {token}")),
            Self::Certificate => None,
        }
    }
}

/// Whom to ask, and as whom.
#[derive(Clone, Debug)]
pub struct Server {
    /// `https://hawkbit.example.com`, with a path if hawkBit lies below one.
    pub url: Url,
    /// Tenant, usually `DEFAULT`.
    pub tenant: String,
    /// This device's name at hawkBit.
    pub controller: String,
    /// How it shows who it is.
    pub auth: Auth,
    /// Longest time for one request and its answer.
    pub timeout: Duration,
}

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// On the way, or the server's refusal.
    #[error("hawkBit could not be asked")]
    Http(#[from] rustiot_http::Error),
    /// The whole took too long.
    #[error("hawkBit did not answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// An answer that cannot be used.
    #[error("hawkBit's answer cannot be used")]
    Answer(#[from] ddi::Error),
    /// The configured address cannot have paths below it.
    #[error("{0} is not the address of a server")]
    Address(Url),
}

impl Error {
    /// The server's code, where it answered with one that is no success.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Http(error) => error.status().map(|status| status.as_u16()),
            _ => None,
        }
    }

    /// Saying the same again will be refused again: the action is gone, or the server does not take such a message.
    #[must_use]
    pub fn final_for_a_report(&self) -> bool {
        matches!(self.status(), Some(400 | 404 | 405 | 410 | 413 | 415 | 422))
    }

    /// The chain as one line.
    #[must_use]
    pub fn line(&self) -> String {
        let mut text = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(error) = next {
            text.push_str(": ");
            text.push_str(&error.to_string());
            next = error.source();
        }
        text
    }
}

/// A client of one hawkBit.
#[derive(Clone, Debug)]
pub struct Client {
    http: Http,
    server: Server,
}

impl Client {
    /// With this way to the network.
    #[must_use]
    pub fn new(http: Http, server: Server) -> Self {
        Self { http, server }
    }

    /// Whom it asks.
    #[must_use]
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// The `Authorization` that belongs to `url`: none outside the configured server. For the shim, which downloads
    /// itself; on a device the update service does.
    #[must_use]
    pub fn authorization(&self, url: &Url) -> Option<String> {
        (url.origin() == self.server.url.origin()).then(|| self.server.auth.header())?
    }

    /// Asks what there is to do.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn poll(&self) -> Result<Base, Error> {
        Ok(Base::parse(&self.get(&[]).await?)?)
    }

    /// Fetches a deployment.
    ///
    /// # Errors
    /// [`Error`]; the inner one when the device cannot carry it out.
    pub async fn deployment(&self, action: &ActionId) -> Result<Result<Order, Unsupported>, Error> {
        Ok(Order::parse(&self.get(&["deploymentBase", action.as_str()]).await?)?)
    }

    /// Fetches which action shall be stopped.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn cancellation(&self, action: &ActionId) -> Result<ActionId, Error> {
        Ok(ddi::parse_cancel(&self.get(&["cancelAction", action.as_str()]).await?)?)
    }

    /// Delivers a feedback.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn feedback(&self, place: Place, action: &ActionId, feedback: &Feedback) -> Result<(), Error> {
        let base = match place {
            Place::Deployment => "deploymentBase",
            Place::Cancel => "cancelAction",
        };
        self.post(&[base, action.as_str(), "feedback"], &feedback.body(action)).await
    }

    /// Gives or refuses consent.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn consent(&self, action: &ActionId, yes: bool) -> Result<(), Error> {
        let body = ddi::confirmation_body(yes, &[]);
        self.post(&["confirmationBase", action.as_str(), "feedback"], &body).await
    }

    /// Sends the device's attributes.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn config(&self, attributes: &BTreeMap<String, String>) -> Result<(), Error> {
        let url = self.resource(&["configData"])?;
        self.finish(self.http.put_json(&url, &ddi::config_body(attributes))).await.map(drop)
    }

    async fn get(&self, path: &[&str]) -> Result<Vec<u8>, Error> {
        let url = self.resource(path)?;
        self.finish(self.http.get(&url)).await
    }

    async fn post(&self, path: &[&str], body: &Value) -> Result<(), Error> {
        let url = self.resource(path)?;
        self.finish(self.http.post_json(&url, body)).await.map(drop)
    }

    async fn finish(&self, mut request: Request) -> Result<Vec<u8>, Error> {
        if let Some(value) = self.server.auth.header() {
            request = request.authorization(&value);
        }
        let limit = u64::try_from(ddi::MAX_ANSWER).unwrap_or(u64::MAX);
        let answer = async { request.header("accept", "application/json").send().await?.bytes(limit).await };
        match tokio::time::timeout(self.server.timeout, answer).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(Error::Timeout(self.server.timeout)),
        }
    }

    /// `…/TENANT/controller/v1/CONTROLLER/…`, each part escaped.
    fn resource(&self, path: &[&str]) -> Result<Url, Error> {
        let mut url = self.server.url.clone();
        url.set_query(None);
        url.set_fragment(None);
        {
            let mut parts = url.path_segments_mut().map_err(|()| Error::Address(self.server.url.clone()))?;
            parts.pop_if_empty();
            parts.extend([self.server.tenant.as_str(), "controller", "v1", self.server.controller.as_str()]);
            parts.extend(path);
        }
        Ok(url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(url: &str) -> Client {
        let server = Server {
            url: Url::parse(url).unwrap(),
            tenant: "DEFAULT".into(),
            controller: "a/b ?".into(),
            auth: Auth::TargetToken("secret".into()),
            timeout: Duration::from_secs(1),
        };
        Client::new(Http::new(&rustiot_http::Settings::default()).unwrap(), server)
    }

    #[test]
    fn addresses_are_made_of_the_configuration_and_escaped() {
        for (base, want) in [
            ("https://h", "https://h/DEFAULT/controller/v1/a%2Fb%20%3F/deploymentBase/1"),
            ("https://h:1/x/?q#f", "https://h:1/x/DEFAULT/controller/v1/a%2Fb%20%3F/deploymentBase/1"),
        ] {
            assert_eq!(client(base).resource(&["deploymentBase", "1"]).unwrap().as_str(), want);
        }
        assert!(matches!(client("mailto:x").resource(&[]), Err(Error::Address(_))));
    }

    #[test]
    fn the_token_stays_with_its_server() {
        let client = client("https://h");
        let header = |url: &str| client.authorization(&Url::parse(url).unwrap());
        assert_eq!(header("https://h:443/a").as_deref(), Some("TargetToken secret"));
        for elsewhere in ["http://h/a", "https://h:8443/a", "https://h.evil/a", "https://cdn/a"] {
            assert_eq!(header(elsewhere), None, "{elsewhere}");
        }
        assert!(!format!("{client:?}").contains("secret"));
    }
}
