//! What every admin port has in common, a gateway's and a node's: who may do what, and what an answer looks like.
//!
//! GET is open to whoever reaches the port. What changes something is a POST; it is taken only from a client on this
//! machine, and only with the header `gaios-ctl: 1`. A web page cannot make a browser send that header here: the browser
//! asks first, and is told nothing that allows it.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body::Body;
use http_body_util::{BodyExt as _, Full, Limited};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::random::random;

/// The header that whatever changes something carries, with the value 1.
pub const CTL_HEADER: &str = "gaios-ctl";
/// The largest body that is read.
pub const BODY_BYTES_MAX: usize = 1 << 20;
/// How long a body may take to come.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// An answer in one piece.
pub type Answer = Response<Full<Bytes>>;

/// A request that may be looked at.
#[derive(Debug, PartialEq, Eq)]
pub enum Asked {
    /// It changes nothing.
    Get(Uri),
    /// It may change something: the caller may do that.
    Post(Uri, Bytes),
}

/// Lets a request in, with its body.
///
/// # Errors
/// The answer to one that may not come in.
pub async fn admit<B>(from: Option<SocketAddr>, request: Request<B>) -> Result<Asked, Answer>
where
    B: Body<Data = Bytes> + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (head, body) = request.into_parts();
    if head.method == Method::GET {
        return Ok(Asked::Get(head.uri));
    }
    if head.method != Method::POST {
        let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, POST"));
        return Err(refused);
    }
    // An IPv4 client of a socket for both kinds has a mapped address.
    if !from.is_some_and(|from| from.ip().to_canonical().is_loopback()) {
        return Err(failure(StatusCode::FORBIDDEN, "changes are taken from this machine only"));
    }
    if head.headers.get(CTL_HEADER).is_none_or(|value| value.as_bytes() != b"1") {
        return Err(failure(StatusCode::FORBIDDEN, "changes are taken with the header `gaios-ctl: 1` only"));
    }
    match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, BODY_BYTES_MAX).collect()).await {
        Ok(Ok(body)) => Ok(Asked::Post(head.uri, body.to_bytes())),
        Ok(Err(error)) => Err(failure(StatusCode::BAD_REQUEST, &error.to_string())),
        Err(_) => Err(failure(StatusCode::REQUEST_TIMEOUT, "the body did not come in time")),
    }
}

/// What a body says.
///
/// # Errors
/// Why it does not say that, for [`failure`].
pub fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

/// An answer as JSON.
pub fn json(value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(body) => respond(StatusCode::OK, "application/json", body.into()),
        Err(error) => failure(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

/// The status page: one document that asks `/debug/status` of the port it came from, and nothing of anybody else.
pub fn page() -> Answer {
    const PAGE: &str = include_str!("admin/page.html");
    let nonce: String = random::<16>().iter().map(|byte| format!("{byte:02x}")).collect();
    let mut answer =
        respond(StatusCode::OK, "text/html; charset=utf-8", PAGE.replace("NONCE", &nonce).into());
    let policy = format!(
        "default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'"
    );
    let headers = answer.headers_mut();
    headers
        .insert(CONTENT_SECURITY_POLICY, HeaderValue::try_from(policy).expect("hexadecimal digits are fine"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    answer
}

/// What went wrong, as JSON: `{"error": "…"}`.
pub fn failure(status: StatusCode, error: &str) -> Answer {
    let body = serde_json::json!({ "error": error }).to_string();
    respond(status, "application/json", body.into())
}

/// A line for people.
pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    respond(status, "text/plain; charset=utf-8", body.into())
}

/// Nothing is there.
pub fn not_found() -> Answer {
    text(StatusCode::NOT_FOUND, "404 page not found\n")
}

fn respond(status: StatusCode, content_type: &'static str, body: Bytes) -> Answer {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // It is of this moment.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: &str = "127.0.0.1:1000";

    async fn asked(method: &str, from: Option<&str>, header: &str, bytes: usize) -> Result<Asked, u16> {
        let request = Request::builder().method(method).uri("/x").header(CTL_HEADER, header);
        let request = request.body(Full::new(Bytes::from(vec![b'a'; bytes]))).unwrap();
        admit(from.map(|from| from.parse().unwrap()), request)
            .await
            .map_err(|answer| answer.status().as_u16())
    }

    #[tokio::test]
    async fn the_page_runs_nothing_but_what_it_brings() {
        let answer = page();
        let policy = answer.headers()["content-security-policy"].to_str().unwrap().to_owned();
        let nonce = policy.split("'nonce-").nth(1).unwrap().split('\'').next().unwrap().to_owned();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let body = std::str::from_utf8(&body).unwrap();
        assert_eq!(body.matches(&format!("nonce=\"{nonce}\"")).count(), 2);
        assert!(
            !body.contains("NONCE")
                && !body.contains("innerHTML")
                && !body.contains("http://www.w3.org/1999")
        );
    }

    #[tokio::test]
    async fn everybody_may_look() {
        assert_eq!(asked("GET", Some("192.0.2.1:7"), "0", 0).await, Ok(Asked::Get("/x".parse().unwrap())));
        assert_eq!(asked("PUT", Some(HERE), "1", 0).await, Err(405));
    }

    #[tokio::test]
    async fn changes_come_from_this_machine_with_the_header() {
        let let_in = Ok(Asked::Post("/x".parse().unwrap(), "aa".into()));
        assert_eq!(asked("POST", Some(HERE), "1", 2).await, let_in);
        assert_eq!(asked("POST", Some("[::1]:7"), "1", 2).await, let_in);
        assert_eq!(asked("POST", Some("[::ffff:127.0.0.1]:7"), "1", 2).await, let_in);
        assert_eq!(asked("POST", Some("192.0.2.1:7"), "1", 2).await, Err(403));
        assert_eq!(asked("POST", None, "1", 2).await, Err(403));
        assert_eq!(asked("POST", Some(HERE), "0", 2).await, Err(403));
        assert_eq!(asked("POST", Some(HERE), "1", BODY_BYTES_MAX + 1).await, Err(400));
    }
}
