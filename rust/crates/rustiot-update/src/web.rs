//! The HTTP client of this service, as the owner's configuration wants it: through which proxy, around which hosts.
//!
//! Made anew for each job, so that a changed configuration counts and nothing of it stays in memory in between.

use rustiot_config::Settings;
use rustiot_http::{Http, Proxy, Url};

use crate::failure::{Failure, Kind};

/// A client by the settings in force.
///
/// # Errors
/// [`Kind::State`]: the proxy's address or the authorities' files are of no use.
pub(crate) fn client() -> Result<Http, Failure> {
    let settings = Settings::load_effective().unwrap_or_default();
    Http::new(&rustiot_http::Settings { proxy: proxy(&settings), ..rustiot_http::Settings::default() })
        .map_err(|e| Failure::from_error(Kind::State, "cannot make an HTTP client", &e))
}

fn proxy(settings: &Settings) -> Proxy {
    let url =
        |url: &Option<rustiot_config::scalar::Url>| -> Option<Url> { url.as_ref()?.as_str().parse().ok() };
    let mut no_proxy: Vec<String> = settings.proxy.no_proxy.iter().map(ToString::to_string).collect();
    // What this service serves to itself never goes out, whatever the owner left out of the list.
    no_proxy.push("127.0.0.1".into());
    Proxy { http: url(&settings.proxy.http), https: url(&settings.proxy.https), no_proxy, ..Proxy::default() }
}
