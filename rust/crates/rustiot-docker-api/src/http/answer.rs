//! Answers: JSON, nothing, an error as Docker writes it.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;

use super::body::Body;
use crate::Error;
use crate::types::Items;

/// An answer or why there is none.
pub type Answer = Result<Response<Body>, Error>;

/// A JSON answer.
pub fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    let mut bytes =
        serde_json::to_vec(value).map_err(|error| Error::failed("cannot write the answer", error))?;
    bytes.push(b'\n');
    Ok(typed(status, "application/json", Body::Full(Bytes::from(bytes))))
}

/// 200 with JSON.
pub fn ok(value: &impl Serialize) -> Answer {
    json(StatusCode::OK, value)
}

/// An answer of one media type.
pub fn typed(status: StatusCode, media: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media));
    response
}

/// A status and nothing else.
pub fn empty(status: StatusCode) -> Answer {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    Ok(response)
}

/// An error as Docker writes it.
pub fn error(error: &Error) -> Response<Body> {
    let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if status == StatusCode::NOT_MODIFIED {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = status;
        return response;
    }
    json(status, &Message { message: error.to_string() }).unwrap_or_else(|_| {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = status;
        response
    })
}

#[derive(Serialize)]
struct Message {
    message: String,
}

/// Adds a header; a value that cannot be one is left out.
pub fn header(response: &mut Response<Body>, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

/// A stream of JSON lines. If its first item is there soon and an error, the answer is that error with its status, as
/// with Docker; what goes wrong later is a line of its own.
pub async fn progress<T: Send + 'static>(
    mut items: Items<T>,
    line: impl Fn(&T) -> serde_json::Value + Send + 'static,
) -> Answer {
    // A registry that does not answer must not keep the client without a header for ever.
    let first = tokio::time::timeout(Duration::from_secs(60), items.next()).await;
    let first = match first {
        Ok(Some(Err(error))) => return Err(error),
        Ok(Some(Ok(item))) => Some(item),
        Ok(None) => None,
        Err(_) => None,
    };
    let rest = items;
    let head = futures_util::stream::iter(first.map(Ok));
    let lines = lines(head.chain(rest), line);
    Ok(typed(StatusCode::OK, "application/json", Body::Stream(lines.boxed())))
}

/// JSON lines of items; an error becomes a last line.
pub fn lines<T: 'static>(
    items: impl Stream<Item = Result<T, Error>> + Send,
    line: impl Fn(&T) -> serde_json::Value + Send,
) -> impl Stream<Item = std::io::Result<Bytes>> + Send {
    items.map(move |item| {
        let value = match item {
            Ok(item) => line(&item),
            Err(error) => {
                let text = error.to_string();
                serde_json::json!({ "errorDetail": { "message": text }, "error": text })
            }
        };
        let mut text = value.to_string();
        text.push_str("\r\n");
        Ok(Bytes::from(text))
    })
}
