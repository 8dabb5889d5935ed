//! What a request brings with it, whatever it asks for: who asks, until when, how urgently, and as a part of what.
//!
//! It is made by the door that takes the request, and handed down by reference. It costs no memory of its own: what is
//! the same for all requests of a connection is shared.

use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use ::http::HeaderMap;
use gateway_core::{Flow, Source};
use tls::{Certificate, Stream};
use tokio::time::Instant;

pub use gateway_core::{Deadline, Priority};

/// Connections of clients that ever were, for the numbers of their requests.
static CONNECTIONS: AtomicU64 = AtomicU64::new(0);
/// Requests of the gateway's own that ever were.
static OWN_REQUESTS: AtomicU64 = AtomicU64::new(0);

/// See the module.
#[derive(Clone, Debug)]
pub struct RequestContext {
    /// Who asks; `None` for the gateway itself.
    pub caller: Option<Arc<Identity>>,
    /// Its number.
    pub id: RequestId,
    /// When it has to be answered.
    pub deadline: Deadline,
    /// Which requests go first where not all can.
    pub priority: Priority,
    /// What it is a part of, if its caller says so.
    pub trace_parent: Option<TraceParent>,
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Where from, if that is known.
    pub address: Option<SocketAddr>,
    /// The common name of the certificate that was shown.
    pub common_name: Option<String>,
    /// What it may do.
    pub permissions: Permissions,
    /// A number that is the same for all connections of one user, as far as can be known, and says nothing else: nodes serve
    /// users in turn. 0 if nothing is known.
    pub user: u32,
}

/// What a caller may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permissions {
    /// Everything: there are no accounts.
    All,
}

/// A request, by a number that no other of this process has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId {
    /// The connection it came by; 0 for the gateway's own.
    pub connection: u64,
    /// Which of those.
    pub number: u64,
}

/// The header `traceparent` of W3C's Trace Context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// The whole.
    pub trace_id: u128,
    /// The part that asks.
    pub parent_id: u64,
    /// Bit 0: the caller records it.
    pub flags: u8,
}

/// The requests of one connection.
#[derive(Debug)]
pub(crate) struct Requests {
    caller: Arc<Identity>,
    connection: u64,
    last: AtomicU64,
}

impl Requests {
    pub(crate) fn new(caller: Identity) -> Requests {
        let connection = CONNECTIONS.fetch_add(1, Ordering::Relaxed) + 1;
        Requests { caller: Arc::new(caller), connection, last: AtomicU64::new(0) }
    }

    /// The context of the next one, which has these headers and may take so long.
    pub(crate) fn next(&self, headers: &HeaderMap, limit: Duration, priority: Priority) -> RequestContext {
        let timeout = headers.get("grpc-timeout").and_then(|value| timeout(value.as_bytes()));
        let trace_parent = headers.get("traceparent").and_then(|value| TraceParent::read(value.as_bytes()));
        RequestContext {
            caller: Some(Arc::clone(&self.caller)),
            id: self.next_id(),
            deadline: deadline(timeout, limit),
            priority,
            trace_parent,
        }
    }

    /// The context of the next one in a stream, whose headers count for all.
    pub(crate) fn next_in(&self, stream: &RequestContext, limit: Duration) -> RequestContext {
        let own = deadline(None, limit);
        let deadline = match stream.deadline {
            Deadline::Client(at) if at < own.at() => stream.deadline,
            Deadline::Client(_) | Deadline::Gateway(_) => own,
        };
        RequestContext { id: self.next_id(), deadline, ..stream.clone() }
    }

    fn next_id(&self) -> RequestId {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        RequestId { connection: self.connection, number }
    }
}

impl Identity {
    /// The client at the other end.
    pub(crate) fn of(address: SocketAddr, stream: &Stream) -> Identity {
        let certificate = stream.peer_certificate().and_then(|der| Certificate::parse(&der).ok());
        let common_name = certificate.and_then(|certificate| certificate.common_name);
        let user = user(address, common_name.as_deref());
        Identity { address: Some(address), common_name, permissions: Permissions::All, user }
    }
}

/// Whose connection this is: by its certificate, or else by where it comes from.
fn user(address: SocketAddr, common_name: Option<&str>) -> u32 {
    /// Nobody outside can choose what comes out.
    static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    let hash = match common_name {
        Some(name) => KEY.hash_one(name),
        None => KEY.hash_one(address.ip()),
    };
    (hash as u32).max(1)
}

impl RequestContext {
    /// Whose it is and how urgent, for whoever serves many in turn.
    pub(crate) fn flow(&self) -> Flow {
        let user = self.caller.as_ref().map_or(0, |caller| caller.user);
        let source = Source { user: user.into(), connection: self.id.connection };
        Flow { priority: self.priority, source }
    }

    /// Of a request that the gateway makes itself, which may take so long.
    pub fn own(limit: Duration, priority: Priority) -> RequestContext {
        let number = OWN_REQUESTS.fetch_add(1, Ordering::Relaxed) + 1;
        RequestContext {
            caller: None,
            id: RequestId { connection: 0, number },
            deadline: deadline(None, limit),
            priority,
            trace_parent: None,
        }
    }
}

/// The earlier one of the client's, if it has one, and the gateway's.
fn deadline(client: Option<Duration>, gateway: Duration) -> Deadline {
    let now = Instant::now().into_std();
    match client {
        Some(client) if client < gateway => Deadline::Client(now + client),
        Some(_) | None => Deadline::Gateway(now + gateway),
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.connection, self.number)
    }
}

impl TraceParent {
    /// Reads the header, if it is well formed.
    fn read(value: &[u8]) -> Option<TraceParent> {
        // Later versions may add something behind another dash.
        let (known, added) = value.split_at_checked(55)?;
        let [v0, v1, b'-', rest @ ..] = known else { return None };
        let (trace_id, rest) = rest.split_at_checked(32)?;
        let [b'-', rest @ ..] = rest else { return None };
        let (parent_id, rest) = rest.split_at_checked(16)?;
        let [b'-', f0, f1] = rest else { return None };
        let version = hex(&[*v0, *v1])?;
        let is_whole = added.is_empty() || version > 0 && added[0] == b'-';
        let (trace_id, parent_id) = (hex(trace_id)?, hex(parent_id)? as u64);
        let flags = hex(&[*f0, *f1])? as u8;
        let is_valid = is_whole && version < 0xff && trace_id != 0 && parent_id != 0;
        is_valid.then_some(TraceParent { trace_id, parent_id, flags })
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.parent_id, self.flags)
    }
}

/// A number of at most 32 digits, all of them lower case, as the standard wants them.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |number, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(digit))
    })
}

/// The header `grpc-timeout`: at most eight digits and a unit. One that cannot be read is none.
fn timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0'));
    match unit {
        b'H' => Some(Duration::from_secs(number * 3600)),
        b'M' => Some(Duration::from_secs(number * 60)),
        b'S' => Some(Duration::from_secs(number)),
        b'm' => Some(Duration::from_millis(number)),
        b'u' => Some(Duration::from_micros(number)),
        b'n' => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_those_of_grpc() {
        let read = |text: &str| timeout(text.as_bytes()).map(|timeout| timeout.as_micros());
        assert_eq!(read("2H"), Some(7_200_000_000));
        assert_eq!(read("3M"), Some(180_000_000));
        assert_eq!(read("1S"), Some(1_000_000));
        assert_eq!(read("99999999m"), Some(99_999_999_000));
        assert_eq!(read("7u"), Some(7));
        assert_eq!(read("8000n"), Some(8));
        for malformed in ["", "S", "5", "5s", "-1S", "+1S", "1 S", "100000000S"] {
            assert_eq!(read(malformed), None, "{malformed:?}");
        }
    }

    #[test]
    fn trace_parents_are_those_of_w3c() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let read = |text: &str| TraceParent::read(text.as_bytes());
        let parent = read(text).unwrap();
        assert_eq!((parent.parent_id, parent.flags), (0x00f0_67aa_0ba9_02b7, 1));
        assert_eq!(parent.to_string(), text);
        let later = |more: &str| format!("cc{}{more}", &text[2..]);
        assert_eq!(read(&later("-what-is-to-come")), Some(parent));
        let malformed = [
            "",
            &text[1..],
            &format!("{text}-more"),
            &later(".more"),
            &format!("ff{}", &text[2..]),
            &text.to_uppercase(),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736x00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01",
        ];
        for malformed in malformed {
            assert_eq!(read(malformed), None, "{malformed:?}");
        }
    }

    #[test]
    fn connections_of_one_user_are_known_as_that() {
        let user = |address: &str, name| user(address.parse().unwrap(), name);
        let one = user("10.0.0.1:5000", None);
        assert_eq!(one, user("10.0.0.1:5001", None));
        assert_ne!(one, user("10.0.0.2:5000", None));
        assert_eq!(user("10.0.0.1:5000", Some("a")), user("10.0.0.2:5000", Some("a")));
        assert_ne!(user("10.0.0.1:5000", Some("a")), user("10.0.0.1:5000", Some("b")));
    }

    #[test]
    fn each_request_has_a_number_and_the_earlier_deadline() {
        let identity =
            || Identity { address: None, common_name: None, permissions: Permissions::All, user: 0 };
        let (one, other) = (Requests::new(identity()), Requests::new(identity()));
        let limit = Duration::from_secs(7);
        let with = |timeout: &'static str| {
            let headers = HeaderMap::from_iter([("grpc-timeout".parse().unwrap(), timeout.parse().unwrap())]);
            one.next(&headers, limit, Priority::Small).deadline
        };
        assert!(matches!(with("1S"), Deadline::Client(_)));
        assert!(matches!(with("8S"), Deadline::Gateway(_)));
        assert!(matches!(with("soon"), Deadline::Gateway(_)));
        let stream =
            RequestContext { deadline: with("1S"), ..RequestContext::own(limit, Priority::Liveness) };
        let renewal = one.next_in(&stream, limit);
        assert_eq!((renewal.deadline, renewal.priority), (stream.deadline, Priority::Liveness));
        assert!(matches!(one.next_in(&stream, Duration::ZERO).deadline, Deadline::Gateway(_)));
        let next = |requests: &Requests| requests.next(&HeaderMap::new(), limit, Priority::Large).id;
        let own = || RequestContext::own(limit, Priority::Small).id;
        let ids = std::collections::HashSet::from([next(&one), next(&one), next(&other), own(), own()]);
        assert_eq!(ids.len(), 5);
        assert!(Priority::Liveness < Priority::Small && Priority::Small < Priority::Large);
    }
}
