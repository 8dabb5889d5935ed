//! What is not compared, and why. A difference that is not explained here fails the run.

/// One thing that may differ between two ends which both behave as etcd.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowed {
    pub(crate) what: &'static str,
    pub(crate) reason: &'static str,
}

/// The whole list. Each entry is applied where a comment names it.
pub(crate) const ALLOWED: &[Allowed] = &[
    Allowed {
        what: "cluster_id, member_id, raft_term in headers: only whether they are set",
        reason: "each cluster has its own",
    },
    Allowed {
        what: "revisions: compared as the distance from the revision at which the sequence began",
        reason: "the two ends have been used differently before",
    },
    Allowed {
        what: "lease ids chosen by the server: compared by the order of grants",
        reason: "they are random",
    },
    Allowed {
        what: "remaining time of a lease, while within 5 s below what was granted",
        reason: "the two ends are asked at different moments",
    },
    Allowed {
        what: "order of LeaseLeases and of the keys in LeaseTimeToLive",
        reason: "by expiry time, and by a Go map: neither is determined",
    },
    Allowed {
        what: "order of keys that are equal by the sort target, and which of them a limit cuts off",
        reason: "etcd sorts with an unstable sort",
    },
    Allowed {
        what: "how watch events are spread over responses, beyond one revision being in one response",
        reason: "depends on whether a watcher was caught up when the write came",
    },
    Allowed {
        what: "a DELETE event at exactly the compacted revision, for watches opened after the compaction",
        reason: "compaction keeps such a tombstone from etcd 3.5.16 and 3.6 on, not before",
    },
    Allowed {
        what: "everything about a watch that began in the past and had told nothing when a compaction came",
        reason: "it is cancelled if it had not caught up yet, which takes etcd up to 100 ms",
    },
    Allowed {
        what: "manual progress answers while watches are behind, absent, or begin in the future; \
               they are asked for when all have caught up",
        reason: "etcd before 3.5.8 answers at once, possibly overtaking events; later ones stay silent",
    },
    Allowed {
        what: "watches with a negative start revision are not generated; one is among the named sequences",
        reason: "etcd from 3.6.6 on refuses them; before, they are created, and cancelled once something was compacted",
    },
    Allowed {
        what: "unknown sort targets are not sent, and unknown orders only in a named sequence",
        reason: "etcd 3.5.1 panics at the one and ignores the other; later ones answer `invalid sort option`",
    },
    Allowed {
        what: "serializable reads: asked again for up to 2 s until they agree",
        reason: "they may be answered by a replica that is behind, of which the one member of the left end has none",
    },
    Allowed {
        what: "which operation's mistake a transaction reports: left a put's, right a range's",
        reason: "etcd 3.5 checks all puts and then all ranges; from 3.6 on, in the order of the operations",
    },
    Allowed {
        what: "ignore_value and ignore_lease are not sent in transactions that also delete up to the end of all keys",
        reason: "deleting first what is then to be kept crashes etcd",
    },
    Allowed {
        what: "`lease` in answers with keys_only",
        reason: "0 from etcd 3.7 on, which answers from the index; the key's lease before",
    },
    Allowed {
        what: "member names, ids and URLs, and all numbers of Status: only whether they are set",
        reason: "each cluster has its own",
    },
];
