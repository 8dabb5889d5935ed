//! From names to addresses: where an address of a configuration leads, now and after DNS has changed.
//!
//! An [`Address`] is `IP:port`, for which nobody is asked; `name:port`, with any number of A and AAAA records; or the name of
//! a service, `_gaios-replica._tcp.example`, whose SRV records name hosts and ports. What is known of a name, for how long,
//! and when it is worth asking again is decided by a pure part; [`Discovery`] asks, by hickory-resolver, keeps what came, and
//! tells in the log what changed and what cannot be resolved, once. An old answer is used for as long as there is no newer.
//!
//! What it is not: it knows nothing of nodes and keeps no connection. [`Discovery::connect`] makes one and gives it away.

mod address;
mod ask;
mod known;
mod service;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tracing::{info, warn};

pub use address::{Address, NoAddress};
use ask::Asker;
use known::Known;
pub use known::Trust;

/// Names that are remembered. A configuration or a shard map with more is resolved all the same, only more often.
const NAMES_MAX: usize = 4096;
/// For a new answer, while there is an old one.
const PATIENCE_WITH_AN_ANSWER: Duration = Duration::from_secs(1);
/// An address that has not answered for so long is not waited for before the next one is tried, too.
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(250);

/// Where an address leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// In the order in which to try them; none if nothing is known.
    pub addresses: Arc<[SocketAddr]>,
    /// When to look again; none if it never changes.
    pub until: Option<Instant>,
}

/// Resolves names, and remembers. A clone shares what the other knows.
#[derive(Clone, Debug)]
pub struct Discovery {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    asker: Asker,
    names: Mutex<BTreeMap<Address, Arc<Name>>>,
    questions: AtomicU64,
    failures: AtomicU64,
    changes: AtomicU64,
}

#[derive(Debug, Default)]
struct Name {
    known: Mutex<Known>,
    /// Held by whoever asks for it; others wait for the same answer.
    asking: tokio::sync::Mutex<()>,
}

impl Discovery {
    /// Asks the DNS server at that address, or those of the system's configuration (`/etc/resolv.conf`), which is read when
    /// the first name is resolved.
    #[must_use]
    pub fn new(dns_server: Option<SocketAddr>) -> Discovery {
        let shared = Shared {
            asker: Asker::new(dns_server),
            names: Mutex::default(),
            questions: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            changes: AtomicU64::new(0),
        };
        Discovery { shared: Arc::new(shared) }
    }

    /// Questions asked so far.
    #[must_use]
    pub fn questions(&self) -> u64 {
        self.shared.questions.load(Ordering::Relaxed)
    }

    /// Questions that were not answered, or with nothing.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.shared.failures.load(Ordering::Relaxed)
    }

    /// Answers with other addresses than were known of the name.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.shared.changes.load(Ordering::Relaxed)
    }

    /// The age of the oldest answer that is used although a question for a newer one has failed; none if there is none such.
    #[must_use]
    pub fn stale(&self) -> Option<Duration> {
        let now = Instant::now();
        self.shared.names.lock().values().filter_map(|name| name.known.lock().stale(now)).max()
    }

    /// Where the address leads. Asks only if what is known has expired, or is doubted and was not asked for a moment ago; else
    /// returns at once. An old answer is returned when a new one takes long; the question goes on. Must be called within a
    /// runtime.
    pub async fn lookup(&self, address: &Address, trust: Trust) -> Found {
        if let Address::Literal(address) = address {
            return Found { addresses: Arc::new([*address]), until: None };
        }
        let name = self.name(address);
        if name.known.lock().is_due(Instant::now(), trust) {
            let known = !name.known.lock().addresses().is_empty();
            let patience = if known { PATIENCE_WITH_AN_ANSWER } else { Duration::MAX };
            let asking = self.clone().ask(address.clone(), Arc::clone(&name), trust);
            // In a task of its own, since a caller who gives up would give up the answer for all.
            let asked = timeout(patience, tokio::spawn(asking)).await;
            if asked.is_err() {
                let addresses = name.known.lock().addresses();
                return Found { addresses, until: Some(Instant::now() + PATIENCE_WITH_AN_ANSWER) };
            }
        }
        let known = name.known.lock();
        Found { addresses: known.addresses(), until: known.due(trust) }
    }

    /// Connects with whoever is there. Of several addresses the next one is tried when the one before has failed, or takes
    /// long. If none is reached, those that a new question brings are.
    ///
    /// # Errors
    /// That of one of the addresses; a refusal only if all of them refuse.
    pub async fn connect(&self, address: &str) -> io::Result<TcpStream> {
        let address =
            Address::parse(address).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let found = self.lookup(&address, Trust::Trusted).await;
        let error = match connect_any(&found.addresses).await {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        let doubted = self.lookup(&address, Trust::Doubted).await;
        let new: Vec<_> =
            doubted.addresses.iter().filter(|new| !found.addresses.contains(new)).copied().collect();
        if new.is_empty() { Err(error) } else { connect_any(&new).await }
    }

    fn name(&self, address: &Address) -> Arc<Name> {
        let mut names = self.shared.names.lock();
        if names.len() >= NAMES_MAX && !names.contains_key(address) {
            names.retain(|_, name| Arc::strong_count(name) > 1);
        }
        Arc::clone(names.entry(address.clone()).or_default())
    }

    async fn ask(self, address: Address, name: Arc<Name>, trust: Trust) {
        let _one = name.asking.lock().await;
        if !name.known.lock().is_due(Instant::now(), trust) {
            // Somebody else has asked meanwhile.
            return;
        }
        self.shared.questions.fetch_add(1, Ordering::Relaxed);
        let answered = self.shared.asker.ask(&address).await;
        let mut known = name.known.lock();
        match answered {
            Ok((addresses, ttl)) => {
                let first = known.addresses().is_empty();
                let change = known.handle_answer(Instant::now(), addresses, ttl);
                self.shared.changes.fetch_add(u64::from(change.moved && !first), Ordering::Relaxed);
                if change.moved || change.recovered {
                    info!(name = %address, addresses = ?known.addresses(), "resolved");
                }
            }
            Err(error) => {
                self.shared.failures.fetch_add(1, Ordering::Relaxed);
                if known.handle_failure(Instant::now()) {
                    let used = known.addresses();
                    warn!(name = %address, error, ?used, "a name cannot be resolved: what was known of it stays in use");
                }
            }
        }
    }
}

async fn connect_any(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut error: Option<io::Error> = None;
    let mut rest = addresses.iter();
    let mut trying = FuturesUnordered::new();
    loop {
        if let Some(next) = rest.next() {
            trying.push(TcpStream::connect(*next));
        }
        let wait = async {
            match rest.len() {
                0 => std::future::pending().await,
                _ => tokio::time::sleep(NEXT_ADDRESS_AFTER).await,
            }
        };
        tokio::select! {
            biased;
            tried = trying.next() => match tried {
                Some(Ok(stream)) => return Ok(stream),
                // A refusal says that nobody lives there any more, which must not be said while another is only silent.
                Some(Err(failed)) => error = error.filter(|error| !is_refusal(error)).or(Some(failed)),
                None => {
                    let nowhere = || io::Error::new(io::ErrorKind::NotFound, "the name leads to no address");
                    return Err(error.unwrap_or_else(nowhere));
                }
            },
            () = wait => {}
        }
    }
}

fn is_refusal(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionRefused
}
