//! The client of an admin port: JSON over HTTP/1.1, one connection for each question, bounded in time and size.

use std::time::Duration;

use bytes::Bytes;
use gateway::admin::CTL_HEADER;
use http::header::{CONTENT_TYPE, HOST};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Failure;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// From the question to the last byte of its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The largest answer that is read: a cluster of a thousand groups has some hundred kilobytes.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// An admin port.
#[derive(Debug)]
pub(crate) struct Admin {
    /// `host:port`.
    authority: String,
}

impl Admin {
    /// From `http://host:port`.
    pub(crate) fn new(url: &str) -> Result<Admin, Failure> {
        let wrong = || format!("--admin {url}: write it as http://host:port");
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let plain =
            uri.scheme_str() == Some("http") && matches!(uri.path(), "" | "/") && uri.query().is_none();
        let authority = uri.authority().filter(|authority| plain && authority.port().is_some());
        Ok(Admin { authority: authority.ok_or_else(wrong)?.to_string() })
    }

    /// Asks, and changes nothing.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.ask(Method::GET, path, Bytes::new()).await
    }

    /// Wants something changed.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        wanted: &impl Serialize,
    ) -> Result<T, Failure> {
        self.ask(Method::POST, path, serde_json::to_vec(wanted)?.into()).await
    }

    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> Result<T, Failure> {
        let answer = timeout(ANSWER_TIMEOUT, self.exchange(method, path, body)).await;
        let (status, body) = answer.map_err(|_| self.failed("no answer in time"))??;
        if status != StatusCode::OK {
            return Err(self.failed(&reason(status, &body)));
        }
        serde_json::from_slice(&body).map_err(|error| {
            self.failed(&format!("an answer of another kind: is it an admin port of gaios? {error}"))
        })
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), Failure> {
        let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(&self.authority)).await;
        let stream = connected
            .map_err(|_| self.failed("no connection in time"))?
            .map_err(|error| self.failed(&error.to_string()))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let moving = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &self.authority)
            .header(CONTENT_TYPE, "application/json")
            .header(CTL_HEADER, "1")
            .body(Full::new(body))?;
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await?.to_bytes();
        moving.abort();
        Ok((status, body))
    }

    fn failed(&self, why: &str) -> Failure {
        format!("http://{}: {why}", self.authority).into()
    }
}

/// Why a request was refused, in the words of the answer.
fn reason(status: StatusCode, body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Refused {
        error: String,
    }
    match serde_json::from_slice::<Refused>(body) {
        Ok(refused) => refused.error,
        Err(_) => format!("answered {status}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_admin_port_is_a_plain_url_with_a_port() {
        assert_eq!(Admin::new("http://[::1]:2378/").unwrap().authority, "[::1]:2378");
        for wrong in ["https://a:1", "http://a", "a:1", "http://a:1/debug", ""] {
            assert!(Admin::new(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_refusal_is_told_in_its_own_words() {
        assert_eq!(reason(StatusCode::FORBIDDEN, br#"{"error":"not here"}"#), "not here");
        assert_eq!(reason(StatusCode::NOT_FOUND, b"404"), "answered 404 Not Found");
    }
}
