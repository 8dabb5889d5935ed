//! The attacks. Each function fills what it needs, calls [`Stage::begin`], attacks, and returns what the attacker saw; what
//! it holds ends with it, and then the attack is over. An attacker that is refused, shed or cut off has failed, as it
//! should, and that is no error; it is one if what somebody may well ask for is not served.

mod answers;
mod connections;
mod leases;
mod links;
mod lists;
mod overload;
mod queries;
mod watches;

use std::pin::Pin;
use std::sync::Arc;

use serde::Serialize;

use crate::Problem;
use crate::stage::{Fill, Stage};

/// What an attacker saw, in a few words.
type Outcome = Result<String, Problem>;

type Attack = fn(Arc<Stage>) -> Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// Whether CI demands that nobody is hurt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Demand {
    /// It does.
    Held,
    /// It does not yet: the case is run and told of.
    Open,
}

/// An attack.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Its name on the command line and in `docs/limits.md`.
    pub name: &'static str,
    /// What the attacker does.
    pub attack_is: &'static str,
    /// Whether it speaks the link protocol, which only Gaios has.
    pub by_link: bool,
    /// Whether CI demands that nobody is hurt.
    pub demand: Demand,
    pub(crate) attack: Attack,
}

const fn case(name: &'static str, demand: Demand, attack: Attack, attack_is: &'static str) -> Case {
    Case { name, attack_is, by_link: false, demand, attack }
}

const fn by_link(name: &'static str, demand: Demand, attack: Attack, attack_is: &'static str) -> Case {
    Case { by_link: true, ..case(name, demand, attack, attack_is) }
}

use Demand::{Held, Open};

/// All cases, with what CI demands of each today.
pub const CASES: &[Case] = &[
    // Requests whose clients are gone, and many lists at once.
    case(
        "reset-lists",
        Open,
        |s| Box::pin(lists::reset(s, 300)),
        "300 lists of 30 MB, then RST_STREAM for each",
    ),
    case(
        "reset-lists-flood",
        Open,
        |s| Box::pin(lists::reset(s, 3000)),
        "3000 lists of 30 MB, then RST_STREAM for each",
    ),
    case(
        "abandoned-lists",
        Open,
        |s| Box::pin(lists::abandoned(s)),
        "30 clients list 30 MB again and again, and lose patience after 50 ms",
    ),
    case(
        "lost-connections",
        Open,
        |s| Box::pin(lists::lost_connections(s)),
        "connections that ask for 15 lists of 30 MB and close, 100 a second",
    ),
    case(
        "lists",
        Open,
        |s| Box::pin(lists::honest(s)),
        "20 clients list 60 MB of small keys again and again",
    ),
    // Requests that are dear.
    case(
        "sorted-txns",
        Open,
        |s| Box::pin(queries::sorted_txns(s)),
        "12 callers: a transaction of 128 sorted ranges over 50,000 keys",
    ),
    case(
        "count-txns",
        Held,
        |s| Box::pin(queries::count_txns(s)),
        "12 callers: a transaction of 128 counts of 50,000 keys",
    ),
    case(
        "sorted-ranges",
        Held,
        |s| Box::pin(queries::sorted_ranges(s)),
        "4 callers: one sorted range over 200,000 keys",
    ),
    case(
        "wide-txns",
        Open,
        |s| Box::pin(queries::wide_txns(s, queries::Kind::Read)),
        "4 callers: a transaction of 64 × 64 ranges over 10 MB, 41 GB in all",
    ),
    case(
        "wide-writes",
        Open,
        |s| Box::pin(queries::wide_txns(s, queries::Kind::Write)),
        "the same, with a put in it",
    ),
    // Watches.
    case(
        "watch-cancels",
        Held,
        |s| Box::pin(watches::cancels(s)),
        "50,000 watches on a stream, a progress request, then 868 KiB of cancels of unknown ids",
    ),
    case(
        "watch-progress",
        Held,
        |s| Box::pin(watches::progress(s)),
        "50,000 watches on a stream, then 500 progress requests",
    ),
    case(
        "wide-delete",
        Open,
        |s| Box::pin(watches::wide_delete(s)),
        "560 keys of 1 MB deleted at once under a watch with prev_kv",
    ),
    case(
        "overlapping-watches",
        Open,
        |s| Box::pin(watches::overlapping(s)),
        "30 keys of 1 MB deleted at once under 20 watches of different ranges with prev_kv",
    ),
    case(
        "lease-end",
        Open,
        |s| Box::pin(watches::lease_end(s)),
        "a lease with 200,000 keys ends under 20 watches",
    ),
    case(
        "unread-watches",
        Open,
        |s| Box::pin(watches::unread(s)),
        "200 watches that are not read, of keys that get 20 MB a second",
    ),
    // Large answers, and memory that comes back.
    case(
        "range-stream",
        Open,
        |s| Box::pin(answers::range_stream(s)),
        "RangeStream of 560 keys of 1 MB, by two clients",
    ),
    case(
        "memory-returns",
        Open,
        |s| Box::pin(answers::memory_returns(s)),
        "300 keys of 1 MB put, listed by 8 clients, deleted and compacted",
    ),
    // Memory of connections, streams and readers.
    case(
        "unread-lists",
        Open,
        |s| Box::pin(connections::unread_lists(s)),
        "300 lists of 30 MB that are not read",
    ),
    case(
        "unfinished-bodies",
        Open,
        |s| Box::pin(connections::unfinished_bodies(s)),
        "800 requests of 1.9 MB that lack the last byte",
    ),
    case(
        "open-streams",
        Open,
        |s| Box::pin(connections::open_streams(s)),
        "100,000 requests that consist of a head, on 20 connections",
    ),
    case(
        "stream-burst",
        Open,
        |s| Box::pin(connections::stream_burst(s)),
        "220,000 small gets at once on a connection, answers not read",
    ),
    case(
        "reset-streams",
        Open,
        |s| Box::pin(connections::reset_streams(s)),
        "streams opened and reset at once, as fast as can be",
    ),
    // More than can be served.
    case(
        "overload-2",
        Open,
        |s| Box::pin(overload::overload(s, 2.0)),
        "puts of 20 kB, open loop, at 2 times the peak",
    ),
    case(
        "overload-5",
        Open,
        |s| Box::pin(overload::overload(s, 5.0)),
        "puts of 20 kB, open loop, at 5 times the peak",
    ),
    case(
        "overload-10",
        Open,
        |s| Box::pin(overload::overload(s, 10.0)),
        "puts of 20 kB, open loop, at 10 times the peak",
    ),
    // Leases.
    case(
        "ending-leases",
        Open,
        |s| Box::pin(leases::ending(s)),
        "10 leases of 20,000 keys end, and 100 streams keep them alive meanwhile",
    ),
    // Strangers at a node's port.
    by_link(
        "half-hellos",
        Held,
        |s| Box::pin(links::half_hellos(s)),
        "500 connections that announce a hello and do not send it",
    ),
    by_link(
        "half-frames",
        Open,
        |s| Box::pin(links::half_frames(s)),
        "20 links that send half of a frame of 64 MiB",
    ),
    by_link(
        "endless-credit",
        Held,
        |s| Box::pin(links::endless_credit(s)),
        "4 links that watch 300 MB with endless credit and do not read",
    ),
];

/// Keys of 1 MB each.
fn megabytes(count: usize) -> Fill {
    Fill { prefix: HOSTILE, keys: count, value_bytes: 1_000_000, lease: 0 }
}

/// Keys with little in them.
fn small(count: usize) -> Fill {
    Fill { prefix: HOSTILE, keys: count, value_bytes: 16, lease: 0 }
}

/// What attackers call their keys.
const HOSTILE: &str = "hostile/";

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_differ() {
        assert_eq!(CASES.iter().map(|case| case.name).collect::<BTreeSet<_>>().len(), CASES.len());
    }

    #[test]
    fn every_case_is_told_of() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/limits.md");
        let page = std::fs::read_to_string(page).unwrap();
        for case in CASES {
            assert!(page.contains(&format!("| `{}` |", case.name)), "{} is not in docs/limits.md", case.name);
        }
    }
}
