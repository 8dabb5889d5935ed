//! The door for clients, against the library's own client.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, RootCertStore, SupportedProtocolVersion, version,
};
use tls::make::{Authority, Pair, Use, Validity};
use tls::{ClientAuth, KeyRing, MinVersion, Server, ServerFiles, ServerOptions, Stream, Why};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{Folder, authority, sockets};

/// A client that trusts `authority`, or whomever.
pub(crate) fn client(
    authority: Option<&Authority>,
    own: Option<&Pair>,
    versions: &[&'static SupportedProtocolVersion],
    protocols: &[&[u8]],
) -> Arc<ClientConfig> {
    let provider = Arc::new(default_provider());
    let mut roots = RootCertStore::empty();
    if let Some(authority) = authority {
        roots.add(CertificateDer::from_pem_slice(authority.certificate().as_bytes()).unwrap()).unwrap();
    }
    let builder =
        ClientConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(versions).unwrap();
    let builder = match authority {
        Some(_) => {
            let verifier =
                WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
            builder.with_webpki_verifier(verifier)
        }
        None => builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyServer)),
    };
    let mut config = match own {
        Some(own) => builder
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(own.certificate.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap(),
            )
            .unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(config)
}

#[derive(Debug)]
struct AnyServer;

impl rustls::client::danger::ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Connects, says a word, and hears what comes back before the end: also a ticket, if there is one.
pub(crate) async fn connect(
    config: Arc<ClientConfig>,
    socket: TcpStream,
) -> std::io::Result<ClientConnection> {
    let socket = socket.into_std()?;
    socket.set_nonblocking(false)?;
    let connecting = move || {
        let mut socket = socket;
        let mut connection =
            ClientConnection::new(config, ServerName::try_from("localhost").unwrap()).unwrap();
        std::io::Write::write_all(&mut rustls::Stream::new(&mut connection, &mut socket), b"hello")?;
        connection.send_close_notify();
        let mut stream = rustls::Stream::new(&mut connection, &mut socket);
        std::io::Read::read_to_end(&mut stream, &mut Vec::new())?;
        Ok(connection)
    };
    tokio::task::spawn_blocking(connecting).await.unwrap()
}

struct Door {
    folder: Folder,
    ca: Authority,
    clients: Authority,
    server: Server,
}

impl Door {
    fn new(client_auth: ClientAuth, min_version: MinVersion) -> Door {
        Door::with_ring(authority("servers"), authority("clients"), client_auth, min_version, None)
    }

    fn with_ring(
        ca: Authority,
        clients: Authority,
        client_auth: ClientAuth,
        min_version: MinVersion,
        ring: Option<&KeyRing>,
    ) -> Door {
        let folder = Folder::new();
        let purpose = Use::Server(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]);
        folder.write_pair("s", &ca.issue("server", &purpose, Validity::days(10)).unwrap());
        folder.write("clients.crt", clients.certificate());
        if let Some(ring) = ring {
            folder.write("tickets", &ring.to_text());
        }
        let options = ServerOptions {
            files: ServerFiles {
                certificate: folder.path("s.crt"),
                key: folder.path("s.key"),
                client_authorities: (client_auth != ClientAuth::Off).then(|| folder.path("clients.crt")),
                ticket_keys: ring.map(|_| folder.path("tickets")),
            },
            client_auth,
            min_version,
        };
        let server = Server::load(options).unwrap();
        Door { folder, ca, clients, server }
    }

    fn client(
        &self,
        own: Option<&Pair>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Arc<ClientConfig> {
        client(Some(&self.ca), own, versions, &[b"h2", b"http/1.1"])
    }

    fn certificate(&self) -> Pair {
        self.clients.issue("client", &Use::Client, Validity::days(1)).unwrap()
    }

    /// Lets a client in, or not: how, and what it speaks.
    async fn let_in(&self, config: &Arc<ClientConfig>) -> Result<(HandshakeKind, Option<Vec<u8>>), Why> {
        let (connected, accepted) = sockets().await;
        let accept = async {
            let stream = self.server.accept(accepted).await?;
            let protocol = stream.protocol();
            echo(stream).await;
            Ok(protocol)
        };
        let (connected, accepted) = tokio::join!(connect(Arc::clone(config), connected), accept);
        match accepted {
            Ok(protocol) => Ok((connected.unwrap().handshake_kind().unwrap(), protocol)),
            Err(tls::HandshakeError { why, .. }) => {
                connected.unwrap_err();
                Err(why)
            }
        }
    }
}

async fn echo(mut stream: Stream) {
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).await.unwrap();
    stream.write_all(&heard).await.unwrap();
    stream.shutdown().await.unwrap();
}

const FULL: Result<HandshakeKind, Why> = Ok(HandshakeKind::Full);
const RESUMED: Result<HandshakeKind, Why> = Ok(HandshakeKind::Resumed);

impl Door {
    async fn kind(&self, config: &Arc<ClientConfig>) -> Result<HandshakeKind, Why> {
        Ok(self.let_in(config).await?.0)
    }
}

#[tokio::test]
async fn clients_show_certificates_as_they_are_asked() {
    for (auth, without, with_another) in [
        (ClientAuth::Off, FULL, FULL),
        (ClientAuth::Optional, FULL, Err(Why::Untrusted)),
        (ClientAuth::Required, Err(Why::NoCertificate), Err(Why::Untrusted)),
    ] {
        let door = Door::new(auth, MinVersion::Tls12);
        let (good, another) =
            (door.certificate(), authority("clients").issue("x", &Use::Client, Validity::days(1)).unwrap());
        for versions in [&[&version::TLS13], &[&version::TLS12]] {
            assert_eq!(door.kind(&door.client(None, versions)).await, without, "{auth:?}");
            assert_eq!(door.kind(&door.client(Some(&good), versions)).await, FULL, "{auth:?}");
            assert_eq!(door.kind(&door.client(Some(&another), versions)).await, with_another, "{auth:?}");
        }
        let failed: u64 = Why::ALL.iter().map(|why| door.server.failed_handshakes(*why)).sum();
        assert_eq!(door.server.full_handshakes() + failed, 6);
        assert_eq!(door.server.pending_handshakes(), 0);
    }
}

#[tokio::test]
async fn versions_and_protocols_are_agreed_on() {
    let door = Door::new(ClientAuth::Off, MinVersion::Tls13);
    assert_eq!(door.kind(&door.client(None, &[&version::TLS13])).await, FULL);
    assert_eq!(door.kind(&door.client(None, &[&version::TLS12])).await, Err(Why::Protocol));
    let door = Door::new(ClientAuth::Off, MinVersion::Tls12);
    let speaks = async |protocols: &[&[u8]]| {
        let config = client(Some(&door.ca), None, rustls::ALL_VERSIONS, protocols);
        door.let_in(&config).await.map(|(_, protocol)| protocol.map(|name| String::from_utf8(name).unwrap()))
    };
    assert_eq!(speaks(&[b"http/1.1", b"h2"]).await, Ok(Some("h2".to_owned())));
    assert_eq!(speaks(&[b"http/1.1"]).await, Ok(Some("http/1.1".to_owned())));
    assert_eq!(speaks(&[]).await, Ok(None));
    assert_eq!(speaks(&[b"imap"]).await, Err(Why::Protocol));
}

#[tokio::test]
async fn plain_text_and_silence_come_to_nothing() {
    let door = Door::new(ClientAuth::Off, MinVersion::Tls12);
    let (mut connected, accepted) = sockets().await;
    connected.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert_eq!(door.server.accept(accepted).await.unwrap_err().why, Why::NotTls);
    let mut said = Vec::new();
    let _ = connected.read_to_end(&mut said).await;
    assert!(!said.starts_with(b"HTTP"), "{said:?}");
    assert_eq!(door.server.failed_handshakes(Why::NotTls), 1);
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_stops_half_way_is_given_up() {
    let door = Door::new(ClientAuth::Off, MinVersion::Tls12);
    for said in [&b""[..], b"\x16\x03\x01\x02\x00\x01"] {
        let (mut connected, accepted) = sockets().await;
        connected.write_all(said).await.unwrap();
        assert_eq!(door.server.accept(accepted).await.unwrap_err().why, Why::Timeout);
    }
}

#[tokio::test]
async fn sessions_are_resumed_at_any_gateway_with_the_same_ring() {
    for versions in [&[&version::TLS13], &[&version::TLS12]] {
        let ring = KeyRing::random();
        let (ca, clients) = (authority("servers"), authority("clients"));
        let again =
            |authority: &Authority| Authority::from_pem(authority.certificate(), &authority.key()).unwrap();
        let door = |ring: Option<&KeyRing>| {
            Door::with_ring(again(&ca), again(&clients), ClientAuth::Required, MinVersion::Tls12, ring)
        };
        let (one, two, alone) = (door(Some(&ring)), door(Some(&ring)), door(None));
        let certificate = one.certificate();
        let client = one.client(Some(&certificate), versions);
        assert_eq!(one.kind(&client).await, FULL);
        assert_eq!(two.kind(&client).await, RESUMED);
        assert_eq!(one.kind(&client).await, RESUMED);
        assert_eq!((one.server.full_handshakes(), one.server.resumed_handshakes()), (1, 1));
        assert_eq!(alone.kind(&client).await, FULL, "it has a ring of its own");
        assert_eq!(alone.kind(&client).await, RESUMED);

        // A new key takes nothing from the tickets of the old one, until it is gone.
        let client = one.client(Some(&certificate), versions);
        assert_eq!(one.kind(&client).await, FULL);
        let rotated = ring.rotated(2);
        for door in [&one, &two] {
            door.folder.write("tickets", &rotated.to_text());
            assert_eq!(door.server.reload(), Ok(true));
        }
        assert_eq!(two.kind(&client).await, RESUMED);
        for door in [&one, &two] {
            door.folder.write("tickets", &rotated.rotated(2).to_text());
            assert_eq!(door.server.reload(), Ok(true));
        }
        assert_eq!(one.kind(&client).await, RESUMED, "its last ticket was sealed with the middle key");
    }
}

#[tokio::test]
async fn a_ticket_does_not_outlive_the_ca_of_its_client() {
    for versions in [&[&version::TLS13], &[&version::TLS12]] {
        let door = Door::new(ClientAuth::Required, MinVersion::Tls12);
        let certificate = door.certificate();
        let client = door.client(Some(&certificate), versions);
        assert_eq!(door.kind(&client).await, FULL);
        assert_eq!(door.kind(&client).await, RESUMED);
        door.folder.write("clients.crt", authority("new").certificate());
        assert_eq!(door.server.reload(), Ok(true));
        assert_eq!(door.kind(&client).await, Err(Why::Untrusted));
    }
}
