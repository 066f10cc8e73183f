//! What a client is made of: whom it trusts, which proxy it uses, how long it waits in silence.
//!
//! Reads the files with extra authorities and the client's certificate; opens no connection. Called by whoever starts
//! a service.

use std::error::Error as StdError;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{ACCEPT_ENCODING, HeaderMap, HeaderValue};
use reqwest::{NoProxy, Url, redirect};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::Verifier;

use crate::client::Http;
use crate::dates::{Dates, Doubting};
use crate::error::{DnsFailure, RedirectRefusal};

/// Largest file with certificates that is read.
const PEM_MAX: u64 = 4 << 20;

/// How a client behaves. The default fits a device on a bad link.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `User-Agent`.
    pub user_agent: String,
    /// Whose certificates are believed.
    pub trust: Trust,
    /// By which time certificates are judged. Where the client shows one of its own, or believes anybody, by the clock.
    pub dates: Dates,
    /// The certificate that the client shows, where a server wants one.
    pub identity: Option<Identity>,
    /// Where requests go through. The environment (`http_proxy` …) is not looked at.
    pub proxy: Proxy,
    /// Longest time until a connection stands, TLS included.
    pub connect_timeout: Duration,
    /// Longest silence: until the answer begins, and between two pieces of it. Fewer than 1024 bytes in as long a wait
    /// are as good as silence, so that a server that drips cannot hold anybody. A transfer as a whole is not bounded.
    pub idle_timeout: Duration,
    /// Most redirects that are followed. From https to http none is.
    pub redirects: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            user_agent: concat!("rustiot/", env!("CARGO_PKG_VERSION")).to_owned(),
            trust: Trust::System,
            dates: Dates::Clock,
            identity: None,
            proxy: Proxy::default(),
            connect_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(60),
            redirects: 5,
        }
    }
}

/// Whose certificates are believed.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Trust {
    /// The system's authorities (`/etc/ssl/certs`; `SSL_CERT_FILE` is honoured). None there is no error: then every
    /// https request fails as [`crate::TlsFailure::UnknownAuthority`].
    #[default]
    System,
    /// The system's, and those in these PEM files.
    SystemAnd(Vec<PathBuf>),
    /// Only those in these PEM files.
    Only(Vec<PathBuf>),
    /// Anybody's: for a laboratory.
    Anybody,
}

/// A certificate with its key, in PEM.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Identity {
    /// The certificate and its chain.
    pub certificate: PathBuf,
    /// The private key, PKCS#8.
    pub key: PathBuf,
}

/// Proxies by scheme of the target.
#[derive(Clone, Default, Eq, PartialEq)]
pub struct Proxy {
    /// For `http://`.
    pub http: Option<Url>,
    /// For `https://` (tunnelled by CONNECT).
    pub https: Option<Url>,
    /// What goes around the proxy: host names (with all below them), addresses, networks as `10.0.0.0/8`, `*`.
    pub no_proxy: Vec<String>,
    /// User and password; those in a proxy's URL work as well.
    pub credentials: Option<(String, String)>,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let host = |url: &Option<Url>| url.as_ref().and_then(Url::host_str).map(str::to_owned);
        f.debug_struct("Proxy")
            .field("http", &host(&self.http))
            .field("https", &host(&self.https))
            .field("no_proxy", &self.no_proxy)
            .field("credentials", &self.credentials.as_ref().map(|_| "…"))
            .finish()
    }
}

/// A client could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A PEM file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A PEM file holds nothing of use.
    #[error("no usable {what} in {}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What was expected.
        what: &'static str,
        /// Why, where the parser says.
        #[source]
        source: Option<reqwest::Error>,
    },
    /// TLS cannot be set up.
    #[error("TLS cannot be set up")]
    Tls(#[source] rustls::Error),
    /// The proxy's URL is of no use.
    #[error("unusable proxy")]
    Proxy(#[source] reqwest::Error),
    /// Something else is wrong with the settings.
    #[error("unusable settings")]
    Settings(#[source] reqwest::Error),
}

impl Http {
    /// A client. Cheap to clone; all clones share connections.
    ///
    /// # Errors
    /// [`BuildError`]: files or proxies in the settings are of no use.
    pub fn new(settings: &Settings) -> Result<Http, BuildError> {
        match build(settings, &settings.trust) {
            // A system without authorities: plain HTTP must work all the same.
            Err(BuildError::Settings(_) | BuildError::Tls(_)) if settings.trust == Trust::System => {
                let settings = Settings { dates: Dates::Clock, ..settings.clone() };
                build(&settings, &Trust::Only(Vec::new()))
            }
            built => built,
        }
    }
}

fn build(settings: &Settings, trust: &Trust) -> Result<Http, BuildError> {
    let mut headers = HeaderMap::new();
    // Lengths and ranges are counted in bytes of the file itself.
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    let mut builder = reqwest::Client::builder()
        .user_agent(&settings.user_agent)
        .default_headers(headers)
        .connect_timeout(settings.connect_timeout)
        .read_timeout(settings.idle_timeout)
        .redirect(redirects(settings.redirects))
        .retry(reqwest::retry::never())
        .dns_resolver(SystemDns)
        .referer(false)
        .no_proxy();
    builder = match (settings.dates, trust) {
        (Dates::After(floor), trust) if settings.identity.is_none() && *trust != Trust::Anybody => {
            builder.tls_backend_preconfigured(doubting(trust, floor)?)
        }
        (_, Trust::System) => builder,
        (_, Trust::SystemAnd(files)) => builder.tls_certs_merge(certificates(files)?),
        (_, Trust::Only(files)) => builder.tls_certs_only(certificates(files)?),
        (_, Trust::Anybody) => builder.tls_danger_accept_invalid_certs(true),
    };
    if let Some(identity) = &settings.identity {
        let mut pem = read(&identity.key)?;
        pem.push(b'\n');
        pem.extend(read(&identity.certificate)?);
        builder = builder.identity(reqwest::Identity::from_pem(&pem).map_err(|source| BuildError::Pem {
            path: identity.certificate.clone(),
            what: "certificate with its key",
            source: Some(source),
        })?);
    }
    let proxy = &settings.proxy;
    let around = NoProxy::from_string(&proxy.no_proxy.join(","));
    let schemes =
        [proxy.http.clone().map(reqwest::Proxy::http), proxy.https.clone().map(reqwest::Proxy::https)];
    for made in schemes.into_iter().flatten() {
        let mut made = made.map_err(BuildError::Proxy)?.no_proxy(around.clone());
        if let Some((user, password)) = &proxy.credentials {
            made = made.basic_auth(user, password);
        }
        builder = builder.proxy(made);
    }
    Ok(Http::from_client(builder.build().map_err(BuildError::Settings)?, settings.idle_timeout))
}

/// TLS without a clock.
fn doubting(trust: &Trust, floor: u64) -> Result<ClientConfig, BuildError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let extra = |files: &[PathBuf]| -> Result<Vec<CertificateDer<'static>>, BuildError> {
        let mut all = Vec::new();
        for path in files {
            let bad = || BuildError::Pem { path: path.clone(), what: "certificate", source: None };
            let bytes = read(path)?;
            let found: Vec<_> =
                CertificateDer::pem_slice_iter(&bytes).collect::<Result<_, _>>().map_err(|_| bad())?;
            if found.is_empty() {
                return Err(bad());
            }
            all.extend(found);
        }
        Ok(all)
    };
    let by: Arc<dyn ServerCertVerifier> = match trust {
        Trust::Only(files) => {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(extra(files)?);
            let built =
                WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build();
            built.map_err(|error| BuildError::Tls(rustls::Error::General(error.to_string())))?
        }
        Trust::SystemAnd(files) => Arc::new(
            Verifier::new_with_extra_roots(extra(files)?, provider.clone()).map_err(BuildError::Tls)?,
        ),
        Trust::System | Trust::Anybody => Arc::new(Verifier::new(provider.clone()).map_err(BuildError::Tls)?),
    };
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(BuildError::Tls)?.dangerous();
    Ok(config.with_custom_certificate_verifier(Arc::new(Doubting::new(by, floor))).with_no_client_auth())
}

tokio::task_local! {
    /// Set around a request that is a POST: the policy below does not see the method.
    pub(crate) static IS_POST: bool;
}

fn redirects(most: usize) -> redirect::Policy {
    redirect::Policy::custom(move |attempt| {
        let is_post = IS_POST.try_with(|is_post| *is_post).unwrap_or(false);
        // Behind 303 is the answer to what was taken. These two mean another place, and make a GET of it all the same.
        let drops = is_post && matches!(attempt.status().as_u16(), 301 | 302);
        let from = attempt.previous().last().map(Url::scheme);
        let refusal = match (from, attempt.url().scheme()) {
            (Some("https"), "http") => Some(RedirectRefusal::ToPlainHttp),
            (_, "http" | "https") if drops => Some(RedirectRefusal::Drops),
            (_, "http" | "https") => (attempt.previous().len() > most).then_some(RedirectRefusal::TooMany),
            _ => Some(RedirectRefusal::Scheme),
        };
        match refusal {
            Some(refusal) => attempt.error(refusal),
            None => attempt.follow(),
        }
    })
}

fn read(path: &Path) -> Result<Vec<u8>, BuildError> {
    use std::io::Read;
    let failed = |source| BuildError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(PEM_MAX).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

fn certificates(files: &[PathBuf]) -> Result<Vec<reqwest::Certificate>, BuildError> {
    let mut all = Vec::new();
    for path in files {
        let bad = |source| BuildError::Pem { path: path.clone(), what: "certificate", source };
        let found =
            reqwest::Certificate::from_pem_bundle(&read(path)?).map_err(|source| bad(Some(source)))?;
        if found.is_empty() {
            return Err(bad(None));
        }
        all.extend(found);
    }
    Ok(all)
}

/// The system's resolver, with a failure that can be told from a refused connection.
struct SystemDns;

impl Resolve for SystemDns {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            // The port is put in by the connector.
            let found = tokio::net::lookup_host((name.as_str(), 0)).await;
            match found {
                Ok(addresses) => {
                    let addresses: Vec<_> = addresses.collect();
                    Ok(Box::new(addresses.into_iter()) as Addrs)
                }
                Err(source) => Err(Box::new(DnsFailure { source }) as Box<dyn StdError + Send + Sync>),
            }
        })
    }
}
