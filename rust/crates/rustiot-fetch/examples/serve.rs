//! Serves a bundle from a URL on loopback, through the cache in a directory: `serve URL DIRECTORY`. For trying the
//! proxy by hand, and for seeing what it adds to a binary.

use std::path::Path;

use rustiot_fetch::{Limits, Proxy, Way};
use rustiot_http::{Http, Settings, Url};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(url), Some(dir)) = (arguments.next(), arguments.next()) else {
        return Err("serve URL DIRECTORY".into());
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let way = Way::Plain { urls: vec![Url::parse(&url)?], len: None, sha256: None };
        let handle =
            Proxy::start(way, Limits::default(), Path::new(&dir), Http::new(&Settings::default())?).await?;
        println!("{}", handle.url());
        let mut progress = handle.progress();
        while progress.changed().await.is_ok() {
            println!("{:?}", *progress.borrow_and_update());
        }
        Ok(())
    })
}
