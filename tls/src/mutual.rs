//! Both ends of links: each side shows a certificate of the cluster's CA, which says who it is.
//!
//! No name of a host is looked at: nodes move. What counts is the CA and the one `gaios://` URI of a certificate. Sessions
//! are never resumed, so that every link was let in by the CAs of its day.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, ring as with_ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::{
    CertificateError, ClientConfig, ClientConnection, Connection, DigitallySignedStruct, DistinguishedName,
    OtherError, RootCertStore, ServerConfig, ServerConnection, SignatureScheme, version,
};
use tokio::time::timeout;

use crate::certificate::member;
use crate::error::{HandshakeError, Why};
use crate::files::{Authorities, FileKind, Flaw, Flaws, Own, Snapshot, Source};
use crate::follow::{Built, Followed, Status};
use crate::identity::{Identity, Role};
use crate::server::{HANDSHAKE_TIMEOUT, note};
use crate::stream::Stream;

/// Where the material of links lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkFiles {
    /// The certificate, and what links it with its CA.
    pub certificate: PathBuf,
    /// The key of the certificate.
    pub key: PathBuf,
    /// CAs of the cluster.
    pub authorities: PathBuf,
}

/// Whose links they are: its certificate must say so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A node, by its id.
    Node(u32),
    /// A gateway. Those of a region may share a certificate, so any name will do.
    Gateway,
}

/// Both ends of the links of one process.
#[derive(Debug)]
pub struct Mutual {
    cluster: String,
    followed: Arc<Followed<Material>>,
}

#[derive(Debug)]
struct Material {
    identity: Identity,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl Mutual {
    /// Loads the files of `holder` in `cluster`.
    ///
    /// # Errors
    /// All that is wrong with them.
    pub fn load(files: LinkFiles, cluster: &str, holder: Holder) -> Result<Mutual, Flaws> {
        let source = Source(vec![
            (FileKind::Certificate, files.certificate),
            (FileKind::Key, files.key),
            (FileKind::Authorities, files.authorities),
        ]);
        let provider = Arc::new(with_ring::default_provider());
        let name = cluster.to_owned();
        let build = move |snapshot: &Snapshot, now| build(&provider, snapshot, &name, &holder, now);
        let followed = Followed::load("link", source, build)?;
        Ok(Mutual { cluster: cluster.to_owned(), followed: Arc::new(followed) })
    }

    /// Who this process is, as its certificate says.
    pub fn identity(&self) -> Identity {
        self.followed.current().identity.clone()
    }

    /// Shakes hands with who has connected here, and says who that is.
    ///
    /// # Errors
    /// Why it came to nothing.
    pub async fn accept(&self, stream: impl Into<Stream>) -> Result<(Stream, Identity), HandshakeError> {
        let server = Arc::clone(&self.followed.current().server);
        self.shake(stream.into(), ServerConnection::new(server)?.into()).await
    }

    /// Shakes hands with whom this process has connected to, and says who that is. Over a stream that is TLS already, this
    /// is a session within the other.
    ///
    /// # Errors
    /// Why it came to nothing. That the other side refuses our certificate shows at the first read.
    pub async fn connect(&self, stream: impl Into<Stream>) -> Result<(Stream, Identity), HandshakeError> {
        let client = Arc::clone(&self.followed.current().client);
        let name = ServerName::try_from("link.gaios.invalid").expect("a DNS name by its letters");
        self.shake(stream.into(), ClientConnection::new(client, name)?.into()).await
    }

    async fn shake(
        &self,
        stream: Stream,
        connection: Connection,
    ) -> Result<(Stream, Identity), HandshakeError> {
        let stream = match timeout(HANDSHAKE_TIMEOUT, stream.handshake(connection)).await {
            Ok(shaken) => shaken?,
            Err(_) => return Err(HandshakeError::new(Why::Timeout, "the handshake took too long")),
        };
        let certificate = stream.peer_certificate().ok_or_else(|| {
            HandshakeError::new(Why::NoCertificate, "the other side has shown no certificate")
        })?;
        let identity = member(&certificate, &self.cluster)
            .map_err(|error| HandshakeError::new(Why::NoIdentity, error.to_string()))?;
        Ok((stream, identity))
    }

    /// Reads the files, and takes over what changed; `false`: nothing did. Links stay as they are.
    ///
    /// # Errors
    /// What is wrong with them; links go on with what they had.
    pub fn reload(&self) -> Result<bool, Flaws> {
        self.followed.reload()
    }

    /// Follows the files for ever.
    pub async fn follow(&self) {
        self.followed.follow(|| {}).await;
    }

    /// How its certificates are.
    pub fn status(&self) -> Status {
        self.followed.status()
    }
}

fn build(
    provider: &Arc<CryptoProvider>,
    snapshot: &Snapshot,
    cluster: &str,
    holder: &Holder,
    now: SystemTime,
) -> Result<Built<Material>, Flaws> {
    let mut flaws = Vec::new();
    let own = note(snapshot.own(provider, now), &mut flaws);
    let authorities = note(snapshot.authorities(now).map_err(|flaw| vec![flaw]), &mut flaws);
    let identity = own.as_ref().and_then(|own| {
        let identified = identify(own, cluster, holder);
        note(identified.map_err(|what| vec![snapshot.flaw(FileKind::Certificate, what)]), &mut flaws)
    });
    let (Some(own), Some(authorities), Some(identity), true) = (own, authorities, identity, flaws.is_empty())
    else {
        return Err(Flaws(flaws));
    };
    let verifier = Arc::new(Verifier::new(provider, cluster, Arc::clone(&authorities.roots)));
    check_chain(snapshot, &verifier, &own, now).map_err(|flaw| Flaws(vec![flaw]))?;
    let Own { certified, leaf, expires } = own;
    let Authorities { expire, .. } = authorities;
    let resolver = Arc::new(SingleCertAndKey::from(certified));

    // Both ends are ours, so the newest version it is.
    let mut server = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&version::TLS13])
        .expect("ring knows the version")
        .with_client_cert_verifier(Arc::clone(&verifier) as Arc<dyn ClientCertVerifier>)
        .with_cert_resolver(Arc::clone(&resolver) as _);
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    let mut client = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&version::TLS13])
        .expect("ring knows the version")
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(resolver);
    client.resumption = Resumption::disabled();
    client.enable_sni = false;
    Ok(Built {
        material: Material { identity, server: Arc::new(server), client: Arc::new(client) },
        holder: leaf.holder(),
        certificate_expires: expires,
        authorities_expire: Some(expire),
    })
}

fn identify(own: &Own, cluster: &str, holder: &Holder) -> Result<Identity, String> {
    let expected = match holder {
        Holder::Node(id) => format!("gaios://{cluster}/node/{id}"),
        Holder::Gateway => format!("gaios://{cluster}/gateway/NAME"),
    };
    let identity = own.leaf.identity().map_err(|error| format!("does not say `{expected}`: {error}"))?;
    let fits = identity.cluster == cluster
        && match (holder, &identity.role) {
            (Holder::Node(id), Role::Node(said)) => id == said,
            (Holder::Gateway, Role::Gateway(_)) => true,
            (Holder::Node(_), Role::Gateway(_)) | (Holder::Gateway, Role::Node(_)) => false,
        };
    if fits { Ok(identity) } else { Err(format!("says `{identity}`, and this is `{expected}`")) }
}

/// Whether others, who trust the same CAs, will take our certificate, for both ends of a link.
fn check_chain(snapshot: &Snapshot, verifier: &Verifier, own: &Own, now: SystemTime) -> Result<(), Flaw> {
    let now = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
    let flaw = |error: &rustls::Error, end: &str| {
        if let rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) = error {
            let what = "has no CA that has signed our own certificate, so no other member of the cluster would take it";
            snapshot.flaw(FileKind::Authorities, what)
        } else {
            snapshot.flaw(FileKind::Certificate, format!("cannot be used as a {end}: {error}"))
        }
    };
    let chain = &own.certified.cert;
    let (leaf, rest) = chain.split_first().expect("a chain that was loaded has a certificate");
    verifier.check_server(leaf, rest, now).map_err(|error| flaw(&error, "server"))?;
    verifier.clients.verify_client_cert(leaf, rest, now).map_err(|error| flaw(&error, "client"))?;
    Ok(())
}

/// Checks the other side's certificate: its chain as the library does, and who it says its holder is. Signatures are the
/// library's affair, for servers as for clients.
#[derive(Debug)]
struct Verifier {
    cluster: String,
    provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
}

impl Verifier {
    fn new(provider: &Arc<CryptoProvider>, cluster: &str, roots: Arc<RootCertStore>) -> Verifier {
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(provider))
            .build()
            .expect("there is a CA, and there are no revocations");
        Verifier { cluster: cluster.to_owned(), provider: Arc::clone(provider), roots, clients }
    }

    fn check_server(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let algorithms = self.provider.signature_verification_algorithms.all;
        let parsed = ParsedCertificate::try_from(certificate)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)
    }

    fn check_identity(&self, certificate: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        let refused = |error| rustls::Error::from(CertificateError::Other(OtherError(Arc::new(error))));
        member(certificate, &self.cluster).map(|_| ()).map_err(refused)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check_server(certificate, intermediates, now)?;
        self.check_identity(certificate)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.clients.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.clients.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.clients.supported_verify_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.clients.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.clients.verify_client_cert(certificate, intermediates, now)?;
        self.check_identity(certificate)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.clients.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.clients.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.clients.supported_verify_schemes()
    }
}
