//! The other side of a door: what a client needs to come in. For tests, the bench and tools.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::Resumption;
use rustls::crypto::ring as with_ring;
use rustls::pki_types::ServerName;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, ClientConnection, Connection, SupportedProtocolVersion, version};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::error::{HandshakeError, Why};
use crate::files::{FileKind, Flaws, Source};
use crate::server::{HANDSHAKE_TIMEOUT, note};
use crate::stream::Stream;

/// How a client comes in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientOptions {
    /// CAs of servers.
    pub authorities: PathBuf,
    /// Its own certificate and the key of that.
    pub own: Option<(PathBuf, PathBuf)>,
    /// What it speaks, most wanted first.
    pub protocols: Vec<Vec<u8>>,
    /// Speak TLS 1.2, not 1.3.
    pub tls12: bool,
    /// Go on with earlier sessions.
    pub resume: bool,
}

impl ClientOptions {
    /// A client of gRPC that trusts the CAs in this file.
    pub fn new(authorities: impl Into<PathBuf>) -> ClientOptions {
        ClientOptions {
            authorities: authorities.into(),
            own: None,
            protocols: vec![b"h2".to_vec()],
            tls12: false,
            resume: true,
        }
    }
}

/// A client. Its clones share their sessions.
#[derive(Clone, Debug)]
pub struct Client(Arc<ClientConfig>);

impl Client {
    /// Loads the files.
    ///
    /// # Errors
    /// All that is wrong with them.
    pub fn load(options: &ClientOptions) -> Result<Client, Flaws> {
        let provider = Arc::new(with_ring::default_provider());
        let mut source = vec![(FileKind::Authorities, options.authorities.clone())];
        if let Some((certificate, key)) = &options.own {
            source.push((FileKind::Certificate, certificate.clone()));
            source.push((FileKind::Key, key.clone()));
        }
        let (snapshot, now) = (Source(source).read(), SystemTime::now());
        let mut flaws = Vec::new();
        let authorities = note(snapshot.authorities(now).map_err(|flaw| vec![flaw]), &mut flaws);
        let own = options.own.as_ref().and_then(|_| note(snapshot.own(&provider, now), &mut flaws));
        let (Some(authorities), true) = (authorities, flaws.is_empty()) else { return Err(Flaws(flaws)) };
        let version: &[&SupportedProtocolVersion] =
            if options.tls12 { &[&version::TLS12] } else { &[&version::TLS13] };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(version)
            .expect("ring knows both versions")
            .with_root_certificates(authorities.roots);
        let mut config = match own {
            Some(own) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own.certified))),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols.clone_from(&options.protocols);
        if !options.resume {
            config.resumption = Resumption::disabled();
        }
        Ok(Client(Arc::new(config)))
    }

    /// Shakes hands with the server of this name, which its certificate must say.
    ///
    /// # Errors
    /// Why it came to nothing.
    pub async fn connect(&self, name: &str, socket: TcpStream) -> Result<Stream, HandshakeError> {
        let name = ServerName::try_from(name.to_owned())
            .map_err(|_| HandshakeError::new(Why::Protocol, format!("`{name}` is no name of a server")))?;
        let connection = Connection::from(ClientConnection::new(Arc::clone(&self.0), name)?);
        match timeout(HANDSHAKE_TIMEOUT, Stream::from(socket).handshake(connection)).await {
            Ok(shaken) => shaken,
            Err(_) => Err(HandshakeError::new(Why::Timeout, "the handshake took too long")),
        }
    }
}
