//! What a planned release consists of, fetched when a person asks for it: the service itself never does.
//!
//! Runs in the process of who asks, with that one's rights; what comes is held to the length and the hash that the signed
//! index named. Called by `rustiot update plan --details`.

use rustiot_http::{Http, Url};
use rustiot_repository::Digest;
use rustiot_repository::details::{Details, MAX_DETAILS};

use crate::failure::{Failure, Kind};
use crate::plan::DetailsFile;

/// Fetches and reads it.
///
/// # Errors
/// It is nowhere, or not the file that the index named.
pub async fn details(file: &DetailsFile) -> Result<Details, Failure> {
    details_by(&crate::web::client()?, file).await
}

async fn details_by(http: &Http, file: &DetailsFile) -> Result<Details, Failure> {
    let limit = u64::try_from(MAX_DETAILS).unwrap_or(u64::MAX);
    let mut first = None;
    for address in &file.urls {
        let Ok(url) = address.parse::<Url>() else { continue };
        let bytes = match read(http, &url, file.len.min(limit)).await {
            Ok(bytes) => bytes,
            Err(failure) => {
                first.get_or_insert(failure);
                continue;
            }
        };
        if u64::try_from(bytes.len()).ok() != Some(file.len) || Digest::of(&bytes).to_string() != file.sha256
        {
            let what = format!("{address} is not the file that the index names");
            first.get_or_insert(Failure::new(Kind::Corrupt, what));
            continue;
        }
        return Details::parse(&bytes).map_err(|why| {
            Failure::new(Kind::Corrupt, format!("{address} cannot be read: {why}"))
                .hint("publish the release again with `rustiot publish`")
        });
    }
    Err(first.unwrap_or_else(|| Failure::new(Kind::NotFound, "there is no address of the package list")))
}

async fn read(http: &Http, url: &Url, limit: u64) -> Result<Vec<u8>, Failure> {
    if url.scheme() != "file" {
        let read = http.get_bytes(url, limit).await;
        return read.map_err(|e| Failure::from_error(Kind::Unreachable, format!("cannot fetch {url}"), &e));
    }
    let failed = |e: &std::io::Error| Failure::from_error(Kind::NotFound, format!("cannot read {url}"), e);
    let path = url.to_file_path().map_err(|()| failed(&std::io::ErrorKind::InvalidInput.into()))?;
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| std::io::Read::read_to_end(&mut std::io::Read::take(file, limit), &mut bytes))
        .map_err(|e| failed(&e))?;
    Ok(bytes)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests write files")]
mod tests {
    use super::*;
    use rustiot_http::faulty::{Fault, Server};

    fn written() -> Vec<u8> {
        let sbom = rustiot_repository::File { name: "s".into(), len: 1, sha256: Digest([1; 32]) };
        let details = Details { format: 1, sbom, packages: Vec::new(), differences: Vec::new() };
        serde_json::to_vec(&details).unwrap()
    }

    fn named(bytes: &[u8], urls: Vec<String>) -> DetailsFile {
        DetailsFile { urls, len: bytes.len() as u64, sha256: Digest::of(bytes).to_string() }
    }

    #[tokio::test]
    async fn it_comes_from_a_server_or_a_directory_and_nothing_else_is_taken_for_it() {
        let http = Http::new(&rustiot_http::Settings::default()).unwrap();
        let bytes = written();
        let server = Server::start(bytes.clone()).await;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("details.json");
        std::fs::write(&path, &bytes).unwrap();
        let local = Url::from_file_path(&path).unwrap().to_string();
        let nobody = rustiot_http::faulty::nobody().await.to_string();
        for urls in
            [vec![server.url().to_string()], vec![local], vec![nobody.clone(), server.url().to_string()]]
        {
            assert!(details_by(&http, &named(&bytes, urls)).await.is_ok());
        }
        let kind = |urls| {
            let (http, file) = (http.clone(), named(&bytes, urls));
            async move { details_by(&http, &file).await.unwrap_err().kind }
        };
        assert_eq!(kind(vec![nobody]).await, Kind::Unreachable);
        assert_eq!(kind(vec![]).await, Kind::NotFound);
        assert_eq!(kind(vec!["file:///nowhere/x".into()]).await, Kind::NotFound);
        server.set(Fault::Corrupt);
        assert_eq!(kind(vec![server.url().to_string()]).await, Kind::Corrupt);
    }
}
