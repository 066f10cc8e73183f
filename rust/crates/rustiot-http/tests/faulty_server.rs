//! The client against a server that misbehaves: every fault has its class.
#![cfg(test)]

use std::io::Write;
use std::time::Duration;

use rustiot_http::faulty::{Fault, Server, TlsFault, nobody};
use rustiot_http::{
    Class, Dates, Error, Fetched, Http, Ranged, RedirectRefusal, Settings, TlsFailure, Trust, Url, Validator,
};

fn http() -> Http {
    Http::new(&Settings { idle_timeout: Duration::from_millis(300), ..Settings::default() }).unwrap()
}

fn file() -> Vec<u8> {
    (0..100_000u32).map(|at| (at * 31 / 7) as u8).collect()
}

/// A range with everything known of the file from before.
async fn range(http: &Http, server: &Server, asked: std::ops::Range<u64>) -> Result<(bool, Vec<u8>), Error> {
    let known = Validator { etag: Some("\"1\"".into()), last_modified: None };
    let answer = http.get_range(&server.url(), asked, Some(100_000), &known).await?;
    let (whole, mut part) = match answer {
        Ranged::Part(part) => (false, part),
        Ranged::Whole(part) => (true, part),
    };
    let mut all = Vec::new();
    while let Some(chunk) = part.body.chunk().await? {
        all.extend_from_slice(&chunk);
    }
    Ok((whole, all))
}

#[tokio::test]
async fn ranges_and_what_may_be_wrong_with_them() {
    let (http, server) = (http(), Server::start(file()).await);
    assert_eq!(range(&http, &server, 10..5_000).await.unwrap(), (false, file()[10..5_000].to_vec()));
    assert_eq!(range(&http, &server, 99_990..100_000).await.unwrap().1.len(), 10);
    let head = server.requests().pop().unwrap().to_lowercase();
    assert!(head.contains("range: bytes=99990-99999") && head.contains("if-range: \"1\""), "{head}");
    assert!(head.contains("accept-encoding: identity") && head.contains("user-agent: rustiot/"), "{head}");
    type Check = fn(&Error) -> bool;
    let faults: Vec<(Fault, Check, Class)> = vec![
        (
            Fault::ResetAfter(1_000),
            |e| matches!(e, Error::Broken { .. } | Error::Truncated { .. }),
            Class::Network,
        ),
        (
            Fault::CloseAfter(1_000),
            |e| matches!(e, Error::Truncated { received: 1_000, expected: 4_990, .. }),
            Class::Network,
        ),
        (Fault::SilentAfter(1_000), |e| matches!(e, Error::Timeout { connected: true, .. }), Class::Network),
        (Fault::Silent, |e| matches!(e, Error::Timeout { connected: true, .. }), Class::Network),
        (Fault::HangUp, |e| matches!(e, Error::Broken { .. }), Class::Network),
        (Fault::WrongRange, |e| matches!(e, Error::Changed { .. }), Class::Content),
        (Fault::WrongTotal, |e| matches!(e, Error::Changed { .. }), Class::Content),
        (Fault::WrongLength, |e| matches!(e, Error::WrongRange { .. }), Class::Content),
        (Fault::Page, |e| matches!(e, Error::NotTheFile { .. }), Class::Content),
        (Fault::Compressed, |e| matches!(e, Error::NotTheFile { .. }), Class::Content),
        (
            Fault::RedirectLoop,
            |e| matches!(e, Error::Redirect { refusal: RedirectRefusal::TooMany, .. }),
            Class::Content,
        ),
        (
            Fault::RedirectTo("ftp://x/".into()),
            |e| matches!(e, Error::Redirect { refusal: RedirectRefusal::Scheme, .. }),
            Class::Content,
        ),
        (
            Fault::Status(503, Some(7)),
            |e| e.retry_after() == Some(Duration::from_secs(7)) && e.status().unwrap() == 503,
            Class::Server,
        ),
        (Fault::Status(429, None), |e| e.retry_after().is_none(), Class::Server),
        (Fault::Status(404, None), |e| e.status().unwrap() == 404, Class::Refused),
    ];
    for (fault, check, class) in faults {
        server.set(fault.clone());
        let error = range(&http, &server, 10..5_000).await.unwrap_err();
        assert!(check(&error) && error.class() == class, "{fault:?}: {error:?}");
    }
    server.set(Fault::NoRanges);
    assert_eq!(range(&http, &server, 10..5_000).await.unwrap(), (true, file()));
}

/// Slow loris: something comes often enough that it is never silence.
#[tokio::test]
async fn a_server_that_drips_is_as_good_as_silent_and_one_that_is_slow_is_not() {
    let patience = Duration::from_millis(300);
    let http = Http::new(&Settings { idle_timeout: patience, ..Settings::default() }).unwrap();
    let server = Server::start(file()).await;
    let each = Duration::from_millis(20);
    for fault in [Fault::Drip(1, each), Fault::Drip(10, each), Fault::DripHead(each)] {
        server.set(fault.clone());
        let began = std::time::Instant::now();
        let error = range(&http, &server, 10..5_000).await.unwrap_err();
        assert!(matches!(error, Error::Timeout { connected: true, .. }), "{fault:?}: {error:?}");
        assert!(began.elapsed() >= patience, "{fault:?}: given up after {:?}", began.elapsed());
    }
    // 200 bytes in 20 ms are far more than what counts as silence, and take far longer than the patience.
    server.set(Fault::Drip(200, each));
    let began = std::time::Instant::now();
    assert_eq!(range(&http, &server, 0..8_000).await.unwrap().1, file()[..8_000]);
    assert!(began.elapsed() >= 2 * patience);
    // Time in which nobody asks for more is not the server's.
    server.set(Fault::Drip(900, Duration::from_millis(5)));
    let Ranged::Part(mut part) =
        http.get_range(&server.url(), 0..9_000, None, &Validator::default()).await.unwrap()
    else {
        panic!()
    };
    while part.body.chunk().await.unwrap().is_some() {
        tokio::time::sleep(patience / 2).await;
    }
    assert_eq!(part.body.received(), 9_000);
}

#[tokio::test]
async fn a_range_that_is_not_the_one_asked_for_is_refused_without_knowing_the_length() {
    let (http, server) = (http(), Server::start(file()).await);
    server.set(Fault::WrongRange);
    let error = http.get_range(&server.url(), 0..10, None, &Validator::default()).await.unwrap_err();
    assert!(matches!(error, Error::WrongRange { .. }), "{error:?}");
    server.set(Fault::None);
    let error =
        http.get_range(&server.url(), 200_000..200_010, None, &Validator::default()).await.unwrap_err();
    assert!(matches!(error, Error::WrongRange { .. }), "{error:?}");
}

#[tokio::test]
async fn a_changed_file_is_noticed_by_name_and_by_length() {
    let (http, server) = (http(), Server::start(file()).await);
    let mut other = file();
    other[0] ^= 1;
    for (file, etag) in [(other, Some("\"2\"")), (vec![0; 99_999], Some("\"1\"")), (vec![0; 5], None)] {
        server.replace(file, etag);
        let error = range(&http, &server, 10..5_000).await.unwrap_err();
        assert!(matches!(error, Error::Changed { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn whole_files_are_bounded_and_conditional() {
    let (http, server) = (http(), Server::start(file()).await);
    assert_eq!(http.get_bytes(&server.url(), 100_000).await.unwrap(), file());
    let error = http.get_bytes(&server.url(), 99_999).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { limit: 99_999, .. }), "{error:?}");
    let Fetched::New { bytes, validator } =
        http.get_if_changed(&server.url(), &Validator::default(), 100_000).await.unwrap()
    else {
        panic!()
    };
    assert_eq!(bytes, file());
    assert_eq!(http.get_if_changed(&server.url(), &validator, 10).await.unwrap(), Fetched::NotModified);
    server.replace(b"new".to_vec(), Some("\"2\""));
    assert!(matches!(http.get_if_changed(&server.url(), &validator, 10).await.unwrap(), Fetched::New { .. }));
    let error = http.get(&server.url()).send().await.unwrap().json::<u32>(10).await.unwrap_err();
    assert!(matches!(error, Error::NotTheFile { .. }), "{error:?}");
    server.replace(b"42".to_vec(), None);
    assert_eq!(http.put_json(&server.url(), &[1]).send().await.unwrap().json::<u32>(10).await.unwrap(), 42);
    let head = server.requests().pop().unwrap().to_lowercase();
    assert!(head.starts_with("put /file") && head.contains("content-type: application/json"), "{head}");
    let bad = http.get(&server.url()).header("x", "a\nb").send().await.unwrap_err();
    assert_eq!(bad.class(), Class::Local);
    let secret = http.get(&server.url()).authorization("Bearer hunter2");
    assert!(!format!("{secret:?}").contains("hunter2"));
    secret.send().await.unwrap();
    assert!(server.requests().pop().unwrap().contains("Bearer hunter2"));
}

#[tokio::test]
async fn credentials_for_one_server_are_shown_to_no_other() {
    let (ours, other) = (Server::start(file()).await, Server::start(file()).await);
    let http = http().with_authorization(&ours.url(), "TargetToken hunter2").unwrap();
    assert!(!format!("{http:?}").contains("hunter2"));
    range(&http, &ours, 0..10).await.unwrap();
    range(&http, &other, 0..10).await.unwrap();
    assert!(ours.requests().pop().unwrap().contains("TargetToken hunter2"));
    assert!(!other.requests().pop().unwrap().contains("hunter2"));
    // Sent elsewhere by the server itself: another port is another server.
    ours.set(Fault::RedirectTo(other.url().to_string()));
    http.get(&ours.url()).send().await.unwrap();
    let (asked, led) = (ours.requests().pop().unwrap(), other.requests().pop().unwrap());
    assert!(asked.contains("hunter2") && !led.contains("hunter2"), "{led}");
    assert_eq!(http.with_authorization(&ours.url(), "a\nb").unwrap_err().class(), Class::Local);
}

#[tokio::test]
async fn nobody_there_and_no_such_name() {
    let http = http();
    let error = http.get(&nobody().await).send().await.unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error:?}");
    let name = Url::parse("http://user:hunter2@no-such-name.invalid/path?token=hunter2").unwrap();
    let error = http.get(&name).send().await.unwrap_err();
    assert!(matches!(error, Error::Dns { .. }), "{error:?}");
    let text = format!("{error} {error:?}");
    assert!(!text.contains("hunter2"), "{text}");
}

#[tokio::test]
async fn tls_faults_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ca.pem");
    let cases = [
        (TlsFault::None, None),
        (TlsFault::Expired, Some(TlsFailure::Expired)),
        (TlsFault::NotYetValid, Some(TlsFailure::NotYetValid)),
        (TlsFault::WrongName, Some(TlsFailure::WrongName)),
    ];
    for (fault, expected) in cases {
        let server = Server::start_tls(file(), fault).await;
        let mut pem = std::fs::File::create(&path).unwrap();
        pem.write_all(server.authority.as_ref().unwrap().as_bytes()).unwrap();
        for trust in [Trust::SystemAnd(vec![path.clone()]), Trust::Only(vec![path.clone()])] {
            let http = Http::new(&Settings { trust, ..Settings::default() }).unwrap();
            match (http.get_bytes(&server.url(), 100_000).await, expected) {
                (Ok(bytes), None) => assert_eq!(bytes, file()),
                (Err(Error::Tls { failure, .. }), Some(expected)) => assert_eq!(failure, expected),
                (other, _) => panic!("{fault:?}: {other:?}"),
            }
        }
        // Without a clock dates count from a time on that has passed for sure; all else is checked as always. The
        // certificates end in 2002, begin in 4000, and are valid from 1975 to 4096.
        for floor in [0, year(2001), year(2003), year(4001)] {
            for trust in [Trust::SystemAnd(vec![path.clone()]), Trust::Only(vec![path.clone()])] {
                let dates = Dates::After(floor);
                let http = Http::new(&Settings { trust, dates, ..Settings::default() }).unwrap();
                let expected = match fault {
                    TlsFault::WrongName => Some(TlsFailure::WrongName),
                    TlsFault::Expired if floor > year(2002) => Some(TlsFailure::Expired),
                    _ => None,
                };
                match (http.get_bytes(&server.url(), 100_000).await, expected) {
                    (Ok(bytes), None) => assert_eq!(bytes, file()),
                    (Err(Error::Tls { failure, .. }), Some(expected)) => assert_eq!(failure, expected),
                    (other, _) => panic!("{fault:?}, floor {floor}: {other:?}"),
                }
            }
        }
        let anybody = Http::new(&Settings { trust: Trust::Anybody, ..Settings::default() }).unwrap();
        assert_eq!(anybody.get_bytes(&server.url(), 100_000).await.unwrap(), file());
        if fault != TlsFault::None {
            continue;
        }
        let nobody = Http::new(&Settings { trust: Trust::Only(vec![]), ..Settings::default() }).unwrap();
        let error = nobody.get_bytes(&server.url(), 100_000).await.unwrap_err();
        assert!(matches!(error, Error::Tls { failure: TlsFailure::UnknownAuthority, .. }), "{error:?}");
        assert_eq!(error.class(), Class::Identity);
    }
    // No TLS there at all.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Url::parse(&format!("https://{}/", listener.local_addr().unwrap())).unwrap();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 No\r\n\r\n").await.unwrap();
        stream
    });
    let error = Http::new(&Settings::default()).unwrap().get_bytes(&url, 10).await.unwrap_err();
    assert!(matches!(error, Error::Tls { failure: TlsFailure::Handshake, .. }), "{error:?}");
    server.await.unwrap();
}

#[tokio::test]
async fn from_https_to_http_no_redirect_is_followed() {
    let (plain, server) = (Server::start(file()).await, Server::start_tls(file(), TlsFault::None).await);
    let http = Http::new(&Settings { trust: Trust::Anybody, ..Settings::default() }).unwrap();
    server.set(Fault::RedirectTo(plain.url().into()));
    let error = http.get_bytes(&server.url(), 100_000).await.unwrap_err();
    assert!(matches!(error, Error::Redirect { refusal: RedirectRefusal::ToPlainHttp, .. }), "{error:?}");
    assert!(plain.requests().is_empty());
    // The other way round, and from plain to plain.
    plain.set(Fault::RedirectTo(server.url().into()));
    server.set(Fault::None);
    assert_eq!(http.get_bytes(&plain.url(), 100_000).await.unwrap(), file());
}

#[tokio::test]
async fn what_is_posted_is_not_lost_by_a_redirect() {
    let (http, server, other) = (http(), Server::start(file()).await, Server::start(b"page".to_vec()).await);
    server.set(Fault::RedirectTo(other.url().into()));
    let error = http.post_json(&server.url(), &[1]).send().await.unwrap_err();
    assert!(matches!(error, Error::Redirect { refusal: RedirectRefusal::Drops, .. }), "{error:?}");
    assert!(error.to_string().ends_with("(307 and 308 keep it)"), "{error}");
    assert!(other.requests().is_empty(), "sent on as a GET");
    // What carries nothing, or stays what it is, goes on.
    assert_eq!(http.get_bytes(&server.url(), 10).await.unwrap(), b"page");
    http.put_json(&server.url(), &[2]).send().await.unwrap();
    assert_eq!(other.bodies(), [b"".to_vec(), b"[2]".to_vec()]);
}

#[tokio::test]
async fn a_proxy_gets_the_requests_and_the_password_except_for_those_around_it() {
    let (server, proxy) = (Server::start(file()).await, Server::start(b"by proxy".to_vec()).await);
    let mut settings = Settings::default();
    settings.proxy.http = Some(Url::parse(&format!("http://{}", proxy.url().authority())).unwrap());
    settings.proxy.credentials = Some(("user".into(), "hunter2".into()));
    assert!(!format!("{settings:?}").contains("hunter2"));
    let http = Http::new(&settings).unwrap();
    assert_eq!(http.get_bytes(&server.url(), 100_000).await.unwrap(), b"by proxy");
    let head = proxy.requests().pop().unwrap();
    assert!(head.starts_with(&format!("GET {} ", server.url())), "{head}");
    assert!(head.to_lowercase().contains("proxy-authorization: basic "), "{head}");
    settings.proxy.no_proxy = vec!["localhost".into(), "127.0.0.0/8".into()];
    let http = Http::new(&settings).unwrap();
    assert_eq!(http.get_bytes(&server.url(), 100_000).await.unwrap(), file());
}

/// About when a year begins, Unix seconds.
fn year(year: u64) -> u64 {
    (year - 1970) * 31_556_952 + 86_400
}
