//! The door for clients.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use ring::digest;
use rustls::crypto::{CryptoProvider, ring as with_ring};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::{Connection, ServerConfig, ServerConnection, SupportedProtocolVersion, version};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::error::{HandshakeError, Why};
use crate::files::{Authorities, FileKind, Fingerprint, Flaw, Flaws, Snapshot, Source};
use crate::follow::{Built, Followed, Status};
use crate::stream::Stream;
use crate::tickets::{KeyRing, ROTATE_AFTER, Tickets};

/// From the connection to the end of the handshake.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes under way. Each holds at most 64 KiB that the other side has sent: 64 MiB in all. A connection that says
/// nothing is none.
const HANDSHAKES_MAX: usize = 1024;
/// What clients of etcd speak.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Whether clients show certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// They are not asked.
    Off,
    /// They may; one that is shown must be good.
    Optional,
    /// They have to.
    Required,
}

/// The oldest version of TLS that clients may speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MinVersion {
    /// 1.2.
    Tls12,
    /// 1.3.
    Tls13,
}

/// Where the material of a door for clients lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFiles {
    /// Its certificate, and what links that with its CA.
    pub certificate: PathBuf,
    /// The key of the certificate.
    pub key: PathBuf,
    /// CAs of clients.
    pub client_authorities: Option<PathBuf>,
    /// The ring of keys of session tickets. Without it, a process makes its own.
    pub ticket_keys: Option<PathBuf>,
}

/// How a door for clients is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerOptions {
    /// Its material.
    pub files: ServerFiles,
    /// Needs CAs of clients, unless it is off.
    pub client_auth: ClientAuth,
    /// The oldest version.
    pub min_version: MinVersion,
}

/// The door for clients.
#[derive(Debug)]
pub struct Server {
    followed: Arc<Followed<ServerConfig>>,
    own_ring: Arc<Mutex<OwnRing>>,
    under_way: Semaphore,
    counts: Counts,
}

/// The ring of a process that was given none.
#[derive(Debug)]
struct OwnRing {
    ring: KeyRing,
    rotated: SystemTime,
}

#[derive(Debug, Default)]
struct Counts {
    full: AtomicU64,
    resumed: AtomicU64,
    failed: [AtomicU64; Why::ALL.len()],
}

impl Server {
    /// Loads the files.
    ///
    /// # Errors
    /// All that is wrong with them.
    pub fn load(options: ServerOptions) -> Result<Server, Flaws> {
        let ServerOptions { files, client_auth, min_version } = options;
        let mut source = vec![(FileKind::Certificate, files.certificate), (FileKind::Key, files.key)];
        source.extend(files.client_authorities.map(|path| (FileKind::Authorities, path)));
        source.extend(files.ticket_keys.map(|path| (FileKind::TicketKeys, path)));
        let own_ring = Arc::new(Mutex::new(OwnRing { ring: KeyRing::random(), rotated: SystemTime::now() }));
        let ring = Arc::clone(&own_ring);
        let provider = Arc::new(with_ring::default_provider());
        let followed = Followed::load("client", Source(source), move |snapshot, now| {
            build(&provider, snapshot, client_auth, min_version, &ring.lock().ring, now)
        })?;
        Ok(Server {
            followed: Arc::new(followed),
            own_ring,
            under_way: Semaphore::new(HANDSHAKES_MAX),
            counts: Counts::default(),
        })
    }

    /// Shakes hands with a client.
    ///
    /// # Errors
    /// Why it came to nothing; counted here.
    pub async fn accept(&self, socket: TcpStream) -> Result<Stream, HandshakeError> {
        let shaking = async {
            // Memory is for those who have said something.
            socket.readable().await?;
            let _under_way = self.under_way.acquire().await.expect("the semaphore is never closed");
            let connection = Connection::from(ServerConnection::new(self.followed.current())?);
            Stream::from(socket).handshake(connection).await
        };
        let shaken = match tokio::time::timeout(HANDSHAKE_TIMEOUT, shaking).await {
            Ok(shaken) => shaken,
            Err(_) => Err(HandshakeError::new(Why::Timeout, "the handshake took too long")),
        };
        let count = match &shaken {
            Ok(stream) if stream.is_resumed() => &self.counts.resumed,
            Ok(_) => &self.counts.full,
            Err(error) => &self.counts.failed[error.why as usize],
        };
        count.fetch_add(1, Ordering::Relaxed);
        shaken
    }

    /// Reads the files, and takes over what changed; `false`: nothing did. Connections stay as they are.
    ///
    /// # Errors
    /// What is wrong with them; the door goes on with what it had.
    pub fn reload(&self) -> Result<bool, Flaws> {
        self.followed.reload()
    }

    /// Follows the files for ever.
    pub async fn follow(&self) {
        self.followed.follow(|| self.rotate(SystemTime::now())).await;
    }

    /// How its certificates are.
    pub fn status(&self) -> Status {
        self.followed.status()
    }

    /// Handshakes that were done in full.
    pub fn full_handshakes(&self) -> u64 {
        self.counts.full.load(Ordering::Relaxed)
    }

    /// Handshakes by a ticket.
    pub fn resumed_handshakes(&self) -> u64 {
        self.counts.resumed.load(Ordering::Relaxed)
    }

    /// Handshakes that came to nothing, by class.
    pub fn failed_handshakes(&self, why: Why) -> u64 {
        self.counts.failed[why as usize].load(Ordering::Relaxed)
    }

    /// Handshakes under way.
    pub fn pending_handshakes(&self) -> usize {
        HANDSHAKES_MAX - self.under_way.available_permits()
    }

    fn rotate(&self, now: SystemTime) {
        let mut own = self.own_ring.lock();
        if now.duration_since(own.rotated).unwrap_or_default() >= ROTATE_AFTER {
            *own = OwnRing { ring: own.ring.rotated(2), rotated: now };
            drop(own);
            self.followed.rebuild();
        }
    }
}

fn build(
    provider: &Arc<CryptoProvider>,
    snapshot: &Snapshot,
    client_auth: ClientAuth,
    min_version: MinVersion,
    own_ring: &KeyRing,
    now: SystemTime,
) -> Result<Built<ServerConfig>, Flaws> {
    let mut flaws = Vec::new();
    let own = note(snapshot.own(provider, now), &mut flaws);
    let authorities = match snapshot.has(FileKind::Authorities) {
        true => note(snapshot.authorities(now).map_err(|flaw| vec![flaw]), &mut flaws),
        false => None,
    };
    let ring = match snapshot.has(FileKind::TicketKeys) {
        true => note(ring(snapshot).map_err(|flaw| vec![flaw]), &mut flaws),
        false => Some(own_ring.clone()),
    };
    let (Some(own), Some(ring), true) = (own, ring, flaws.is_empty()) else { return Err(Flaws(flaws)) };
    let versions: &[&SupportedProtocolVersion] = match min_version {
        MinVersion::Tls12 => &[&version::TLS13, &version::TLS12],
        MinVersion::Tls13 => &[&version::TLS13],
    };
    let builder = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(versions)
        .expect("ring knows both versions");
    let asked = match client_auth {
        ClientAuth::Off => None,
        ClientAuth::Optional | ClientAuth::Required => Some(authorities.as_ref().ok_or_else(|| {
            Flaws(vec![
                snapshot
                    .flaw(FileKind::Certificate, "needs CAs of clients beside it, for their certificates"),
            ])
        })?),
    };
    let builder = match asked {
        None => builder.with_no_client_auth(),
        Some(authorities) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(
                Arc::clone(&authorities.roots),
                Arc::clone(provider),
            );
            let verifier = match client_auth {
                ClientAuth::Optional => verifier.allow_unauthenticated(),
                ClientAuth::Off | ClientAuth::Required => verifier,
            };
            builder.with_client_cert_verifier(
                verifier.build().expect("there is a CA, and there are no revocations"),
            )
        }
    };
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(own.certified)));
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    config.ticketer = Arc::new(Tickets::new(&ring, &rules(client_auth, asked)));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    // A client that comes back uses up one and gets one.
    config.send_tls13_tickets = 1;
    Ok(Built {
        material: config,
        holder: own.leaf.holder(),
        certificate_expires: own.expires,
        authorities_expire: authorities.map(|authorities| authorities.expire),
    })
}

/// What decides which clients get a ticket.
fn rules(client_auth: ClientAuth, authorities: Option<&Authorities>) -> Fingerprint {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(match client_auth {
        ClientAuth::Off => b"off",
        ClientAuth::Optional => b"optional",
        ClientAuth::Required => b"required",
    });
    if let Some(authorities) = authorities {
        context.update(&authorities.digest);
    }
    let mut fingerprint = [0; 32];
    fingerprint.copy_from_slice(context.finish().as_ref());
    fingerprint
}

fn ring(snapshot: &Snapshot) -> Result<KeyRing, Flaw> {
    let bytes = snapshot.bytes(FileKind::TicketKeys)?;
    let text = std::str::from_utf8(bytes).map_err(|_| snapshot.flaw(FileKind::TicketKeys, "is not text"))?;
    KeyRing::parse(text).map_err(|error| snapshot.flaw(FileKind::TicketKeys, error.to_string()))
}

/// The value, or `None` with its flaws among the others.
pub(crate) fn note<T>(made: Result<T, Vec<Flaw>>, flaws: &mut Vec<Flaw>) -> Option<T> {
    made.map_err(|found| flaws.extend(found)).ok()
}
