//! Where connections go, and how.

use std::io;

use http::Uri;
use http::uri::Authority;
use tokio::net::TcpStream;

use crate::{BenchError, Target};

/// What `http://HOST:PORT` and `https://HOST:PORT` say. Clones share the sessions of their TLS client.
#[derive(Debug, Clone)]
pub struct Endpoint {
    pub(crate) authority: Authority,
    port: u16,
    tls: Option<tls::Client>,
}

impl Endpoint {
    /// Reads a URL; `tls` is how `https` is spoken.
    pub(crate) fn parse(url: &str, tls: Option<&tls::Client>) -> Result<Endpoint, String> {
        let uri: Uri = url.parse().map_err(|error| format!("{url}: {error}"))?;
        let invalid = || format!("{url:?} is not http://HOST:PORT or https://HOST:PORT");
        let (authority, port) = uri.authority().zip(uri.port_u16()).ok_or_else(invalid)?;
        let tls = match uri.scheme_str() {
            Some("http") => None,
            Some("https") => Some(tls.cloned().ok_or_else(|| format!("{url}: https needs --cacert"))?),
            Some(_) | None => return Err(invalid()),
        };
        Ok(Endpoint { authority: authority.clone(), port, tls })
    }

    /// Those of a target, in its order.
    pub fn all_of(target: &Target) -> Result<Vec<Endpoint>, BenchError> {
        let tls = target.tls.as_ref().map(tls::Client::load).transpose();
        let tls = tls.map_err(|flaws| BenchError::Flags(vec![flaws.to_string()]))?;
        let parsed = target.endpoints.iter().map(|url| Endpoint::parse(url, tls.as_ref()));
        parsed.collect::<Result<_, _>>().map_err(|mistake| BenchError::Flags(vec![mistake]))
    }

    pub(crate) fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// `HOST:PORT`.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Connects, and shakes hands where TLS is spoken.
    pub async fn connect(&self) -> io::Result<tls::Stream> {
        // An IPv6 address stands in brackets.
        let host = self.authority.host().trim_start_matches('[').trim_end_matches(']');
        let stream = TcpStream::connect((host, self.port)).await?;
        stream.set_nodelay(true)?;
        match &self.tls {
            Some(tls) => tls.connect(host, stream).await.map_err(io::Error::other),
            None => Ok(stream.into()),
        }
    }
}
