//! The HTTP client of this service, as the owner's configuration wants it: through which proxy, around which hosts.
//!
//! Made anew for each job, so that a changed configuration counts and nothing of it stays in memory in between.

use std::path::Path;

use rustiot_config::{ProxySettings, Settings};
use rustiot_http::{Dates, Http, Proxy, Url};

use crate::daemon::ReleaseFile;
use crate::failure::{Failure, Kind};
use crate::hawkbit::Access;
use crate::repository::SYNCHRONISED;

/// A client by the settings in force.
///
/// # Errors
/// [`Kind::State`]: the proxy's address or the authorities' files are of no use.
pub(crate) fn client() -> Result<Http, Failure> {
    build(&Settings::load_effective().unwrap_or_default().proxy, None)
}

/// The same for what is not signed by itself: certificates are judged by the clock, whatever it is worth.
///
/// # Errors
/// As [`client`].
pub(crate) fn client_by_the_clock() -> Result<Http, Failure> {
    build_with(&Settings::load_effective().unwrap_or_default().proxy, None, Dates::Clock)
}

/// The same for a file at these addresses: what lies on hawkBit's own server is fetched as hawkBit's device.
///
/// # Errors
/// [`Kind::State`]: as [`client`], and where the credentials cannot be read.
pub(crate) fn client_for(urls: &[Url]) -> Result<Http, Failure> {
    client_of(&Settings::load_effective().unwrap_or_default(), urls)
}

pub(crate) fn client_of(settings: &Settings, urls: &[Url]) -> Result<Http, Failure> {
    let server = crate::hawkbit::server(&settings.update.hawkbit);
    if !server.is_some_and(|server| urls.iter().any(|url| url.origin() == server.origin())) {
        return build(&settings.proxy, None);
    }
    let access = Access::of(&settings.update.hawkbit)?;
    let http = build(&settings.proxy, Some(&access))?;
    match access.auth.header() {
        Some(value) => http
            .with_authorization(&access.url, &value)
            .map_err(|e| Failure::from_error(Kind::State, "hawkBit's token cannot be sent", &e)),
        None => Ok(http),
    }
}

/// A client through this proxy; for hawkBit's server, with the certificates that go with it.
///
/// # Errors
/// [`Kind::State`]: as [`client`].
pub(crate) fn build(proxies: &ProxySettings, access: Option<&Access>) -> Result<Http, Failure> {
    build_with(proxies, access, if access.is_some() { Dates::Clock } else { dates() })
}

fn build_with(proxies: &ProxySettings, access: Option<&Access>, dates: Dates) -> Result<Http, Failure> {
    let (trust, identity) =
        access.map(|access| (access.trust.clone(), access.identity.clone())).unwrap_or_default();
    let settings = rustiot_http::Settings {
        proxy: proxy(proxies),
        dates,
        trust,
        identity,
        ..rustiot_http::Settings::default()
    };
    Http::new(&settings).map_err(|e| Failure::from_error(Kind::State, "cannot make an HTTP client", &e))
}

/// What certificates are judged by. Metadata, deltas and bundles are signed by themselves; until the clock is set, the
/// build of this image is all that is known of the time. A token of hawkBit's is only shown by the clock.
fn dates() -> Dates {
    dates_by(Path::new(SYNCHRONISED), Path::new(crate::daemon::RELEASE))
}

fn dates_by(synchronised: &Path, release: &Path) -> Dates {
    if synchronised.exists() {
        return Dates::Clock;
    }
    let release = std::fs::read(release).ok();
    let built = release.and_then(|text| serde_json::from_slice::<ReleaseFile>(&text).ok());
    Dates::After(built.map_or(0, |release| release.build_epoch))
}

fn proxy(settings: &ProxySettings) -> Proxy {
    let url =
        |url: &Option<rustiot_config::scalar::Url>| -> Option<Url> { url.as_ref()?.as_str().parse().ok() };
    let mut no_proxy: Vec<String> = settings.no_proxy.iter().map(ToString::to_string).collect();
    // What this service serves to itself never goes out, whatever the owner left out of the list.
    no_proxy.push("127.0.0.1".into());
    Proxy { http: url(&settings.http), https: url(&settings.https), no_proxy, ..Proxy::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn until_the_clock_is_set_certificates_are_judged_by_the_date_of_the_release() {
        let dir = tempfile::tempdir().unwrap();
        let (synchronised, release) = (dir.path().join("synchronized"), dir.path().join("release.json"));
        assert_eq!(dates_by(&synchronised, &release), Dates::After(0), "an image that does not say");
        for date in [1_750_000_000, 1_795_737_600] {
            let text = format!(r#"{{"version":"1.0.0","compatible":"x","floor":null,"build_epoch":{date}}}"#);
            rustiot_durable::atomic_write(&release, text.as_bytes()).unwrap();
            assert_eq!(dates_by(&synchronised, &release), Dates::After(date));
        }
        rustiot_durable::atomic_write(&synchronised, b"").unwrap();
        assert_eq!(dates_by(&synchronised, &release), Dates::Clock);
    }
}
