//! The rescue page: HTTP/1.0, read-only, two paths.
//!
//! Pure; parsing is total. Never changes anything, never serves a file. Called by [`crate::rescue`].

/// Most bytes of a request that are read.
pub const MAX_REQUEST: usize = 4096;

/// What was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// The status as text.
    Text,
    /// The status as JSON.
    Json,
    /// No such path.
    NotFound,
    /// Not GET or HEAD.
    NotAllowed,
    /// Not HTTP, or too long.
    Bad,
}

/// A parsed request line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// What was asked.
    pub request: Request,
    /// HEAD: the answer has no body.
    pub head: bool,
}

/// The request, or nothing while its header is incomplete. The header fields are not looked at.
#[must_use]
pub fn parse(bytes: &[u8]) -> Option<Parsed> {
    let bad = Parsed { request: Request::Bad, head: false };
    let complete = bytes.windows(4).any(|w| w == b"\r\n\r\n") || bytes.windows(2).any(|w| w == b"\n\n");
    if !complete {
        return (bytes.len() >= MAX_REQUEST).then_some(bad);
    }
    let line = bytes.split(|b| *b == b'\n').next().unwrap_or_default();
    let Ok(line) = std::str::from_utf8(line) else { return Some(bad) };
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let [method, target, version] = words.as_slice() else { return Some(bad) };
    if !version.starts_with("HTTP/1.") {
        return Some(bad);
    }
    let path = target.split('?').next().unwrap_or_default();
    let request = match (*method, path) {
        ("GET" | "HEAD", "/") => Request::Text,
        ("GET" | "HEAD", "/status.json") => Request::Json,
        ("GET" | "HEAD", _) => Request::NotFound,
        _ => Request::NotAllowed,
    };
    Some(Parsed { request, head: *method == "HEAD" })
}

/// The answer, with `body` for the two paths that exist.
#[must_use]
pub fn answer(parsed: Parsed, body: &str) -> Vec<u8> {
    let (status, kind, body) = match parsed.request {
        Request::Text => ("200 OK", "text/plain; charset=utf-8", body),
        Request::Json => ("200 OK", "application/json", body),
        Request::NotFound => ("404 Not Found", "text/plain", "only / and /status.json\n"),
        Request::NotAllowed => ("405 Method Not Allowed", "text/plain", "read-only: GET and HEAD\n"),
        Request::Bad => ("400 Bad Request", "text/plain", "bad request\n"),
    };
    let mut out = format!(
        "HTTP/1.0 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nX-Content-Type-Options: nosniff\r\n\
         Cache-Control: no-store\r\nAllow: GET, HEAD\r\nConnection: close\r\n\r\n",
        body.len()
    );
    if !parsed.head {
        out.push_str(body);
    }
    out.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(text: &str) -> Option<Request> {
        parse(text.as_bytes()).map(|p| p.request)
    }

    #[test]
    fn knows_two_paths_and_changes_nothing() {
        assert_eq!(request("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), Some(Request::Text));
        assert_eq!(request("GET /status.json?x=1 HTTP/1.0\n\n"), Some(Request::Json));
        assert_eq!(request("GET /../etc/shadow HTTP/1.0\r\n\r\n"), Some(Request::NotFound));
        assert_eq!(request("POST / HTTP/1.0\r\n\r\n"), Some(Request::NotAllowed));
        for bad in ["GET /\r\n\r\n", "\r\n\r\n", "GET / SPDY/9\r\n\r\n", "GET / x HTTP/1.0\r\n\r\n"] {
            assert_eq!(request(bad), Some(Request::Bad), "{bad:?}");
        }
        assert_eq!(request("GET / HTTP/1.0\r\nHost:"), None);
    }

    #[test]
    fn a_head_answer_has_the_length_and_no_body() {
        let parsed = parse(b"HEAD / HTTP/1.0\r\n\r\n").unwrap();
        let text = String::from_utf8(answer(parsed, "four")).unwrap();
        assert!(text.contains("Content-Length: 4\r\n") && text.ends_with("\r\n\r\n"));
        let get = String::from_utf8(answer(Parsed { head: false, ..parsed }, "four")).unwrap();
        assert!(get.ends_with("\r\n\r\nfour"));
    }

    #[test]
    fn a_header_without_an_end_is_refused() {
        assert_eq!(parse(&[b'x'; MAX_REQUEST]).unwrap().request, Request::Bad);
    }

    proptest! {
        #[test]
        fn requests_are_total(bytes: Vec<u8>, line in "(GET|HEAD|PUT)? ?/?[a-z./?]{0,20} ?(HTTP/1.[01])?\r\n\r\n") {
            for input in [bytes.as_slice(), line.as_bytes()] {
                if let Some(parsed) = parse(input) {
                    prop_assert!(answer(parsed, "").starts_with(b"HTTP/1.0 "));
                }
            }
        }
    }
}
