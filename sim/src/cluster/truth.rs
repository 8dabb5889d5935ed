//! What really happened, as no node can know it: every record that reached a disk, every vote, every value chosen. The
//! invariants of the protocol are checked against this, not against what an engine believes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use consensus_core::message::{Accept, Accepted, Chosen, Prepare, Promise};
use gateway_core::Concern;
use keyspace::{
    ClockStart, Command, Effects, Error, KeyRange, Keyspace, LeaseEffect, LeaseId, LeaseSerial, Outcome,
    Proposal, Query, RangeReply, RangeRequest, Reply, RevisionEvents, SessionId, ShardSpan, Txn, TxnOp,
    TxnOpReply, TxnReply, WriteBounds,
};

use consensus_core::{
    Ballot, Config, NodeId, NodeSet, Record, RecordKind, RecordLabel, Slot, Value, VoteBallot,
};

use super::clock::{MILLI, SECOND, Time};
use super::commands::{Write, Written, is_rewritten, value_digest, value_of};
use super::maps::part;

/// An invariant that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Its name: I1 to I21, or what an assertion said.
    pub invariant: String,
    /// Who, where and what.
    pub detail: String,
}

pub(crate) type Check = Result<(), Violation>;

pub(crate) fn fail<T>(invariant: &str, detail: String) -> Result<T, Violation> {
    Err(Violation { invariant: invariant.to_owned(), detail })
}

/// What a client was told of a write.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Fate {
    /// What the state machine said.
    Outcome(Outcome),
    /// It has no effect and never will.
    Never,
    /// Nobody knows.
    Unknown,
}

/// A record without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fact {
    Promised(Ballot),
    /// The digest of the value; `None` when only the label is left.
    Vote(Slot, VoteBallot, Option<u64>),
    /// For the value of the vote before.
    Revote(Slot, VoteBallot),
    Chosen(Slot, Option<u64>),
    /// Whether the promise is certain comes last.
    Base(Slot, Ballot, bool),
    /// What was lost is made up for: by the promise alone, or up to this slot.
    Healed(Ballot, Option<Slot>),
    Faulty,
}

impl Fact {
    pub(crate) fn of(record: &Record) -> Fact {
        match record {
            Record::Promised { ballot } => Fact::Promised(*ballot),
            Record::Vote { slot, vote_ballot, value, commit: _ } => {
                Fact::Vote(*slot, *vote_ballot, value.as_ref().map(value_digest))
            }
            Record::Revote { slot, vote_ballot, commit: _ } => Fact::Revote(*slot, *vote_ballot),
            Record::Chosen { slot, value, commit: _ } => Fact::Chosen(*slot, Some(value_digest(value))),
            Record::Base { slot, promised, promise_lost, .. } => Fact::Base(*slot, *promised, !*promise_lost),
            Record::Healed { promised, relied_upto } => Fact::Healed(*promised, *relied_upto),
            Record::Survived { promised } => Fact::Healed(*promised, None),
            Record::Faulty { .. } => Fact::Faulty,
        }
    }

    pub(crate) fn of_label(label: &RecordLabel) -> Fact {
        match label.kind {
            RecordKind::Promised => Fact::Promised(label.vote_ballot.ballot),
            RecordKind::Vote => Fact::Vote(label.slot, label.vote_ballot, None),
            RecordKind::Revote => Fact::Revote(label.slot, label.vote_ballot),
            RecordKind::Chosen => Fact::Chosen(label.slot, None),
            RecordKind::Base => Fact::Base(label.slot, label.vote_ballot.ballot, false),
            RecordKind::Healed | RecordKind::Survived => Fact::Healed(label.vote_ballot.ballot, None),
            RecordKind::Faulty => Fact::Faulty,
        }
    }
}

/// One group's history.
#[derive(Debug)]
pub(crate) struct GroupTruth {
    group: usize,
    config: Arc<Config>,
    slots: Vec<SlotTruth>,
    /// The shards that it has.
    spans: Vec<ShardSpan>,
    /// The log as committed, applied to a state of its own.
    state: Keyspace,
    committed: Vec<u64>,
    digests: Vec<u64>,
    ballots: BTreeMap<Ballot, BallotTruth>,
    nodes: BTreeMap<usize, NodeTruth>,
    /// Commands that came through the log again, since that was asked last.
    repeated: u32,
    answers: BTreeMap<(u32, u32), Written>,
    /// What each command of a session was answered when it took effect.
    outcomes: BTreeMap<(SessionId, u64), Outcome>,
    /// Every revision made.
    events: Vec<RevisionEvents>,
    /// What the owners of the leases were told that live.
    promises: BTreeMap<LeaseId, Promised>,
    /// Writes that went through gateways and are over: the numbers that each was sent under, and what its client was told.
    ended: Vec<(Vec<(SessionId, u64)>, Fate)>,
    rejected: BTreeSet<(u32, u32, u32)>,
    in_log: BTreeSet<(u32, u32, u32)>,
}

/// Of a grant of a lease.
#[derive(Clone, Copy, Debug)]
struct Promised {
    serial: LeaseSerial,
    granted: Time,
    /// Until when it lives at least.
    until: Time,
}

#[derive(Debug, Default)]
struct SlotTruth {
    vote_ballots: Vec<VoteBallotTruth>,
    chosen: Option<(VoteBallot, u64)>,
}

#[derive(Debug)]
struct VoteBallotTruth {
    vote_ballot: VoteBallot,
    value: u64,
    /// Members whose vote is durable, as bits.
    durable: u32,
    /// Those of them whose disk still has the value.
    held: u32,
}

#[derive(Debug)]
struct BallotTruth {
    incarnation: u64,
    from: Slot,
    /// Members whose promise arrived whole, as bits: all, and those that declared forgotten votes.
    promised: u32,
    faulty: u32,
    /// Parts of promises that arrived, by member.
    parts: BTreeMap<usize, BTreeSet<u32>>,
    /// Its node has come to lead with it.
    elected: bool,
    /// Its node has lost its disk since, and with it what it knew of this. If it was not elected, it never will be: whoever
    /// promised this, and has lost that too, is bound by it no more.
    forgotten: bool,
}

/// What one node has written, and what of it is durable. Damage takes nothing away from this: what a node forgets,
/// it must know that it has forgotten.
#[derive(Debug, Default)]
struct NodeTruth {
    staged_promise: Ballot,
    staged_votes: BTreeMap<Slot, VoteBallot>,
    durable_promise: Ballot,
    /// All that it has promised.
    promises: BTreeSet<Ballot>,
    durable_votes: BTreeMap<Slot, VoteBallot>,
    /// When it made up for what it had lost: the ballot it had promised, and how far its leader had proposed.
    healed: Option<(Ballot, Slot)>,
    durable_chosen: BTreeMap<Slot, u64>,
    /// The newest durable base or snapshot.
    base: Slot,
    /// The parts of a promise that is being sent.
    sending: Vec<(Slot, VoteBallot)>,
    /// `upto` of an Accepted that was checked, and its ballot.
    accepted: (Ballot, Slot),
}

impl GroupTruth {
    pub(crate) fn new(
        group: usize,
        config: Arc<Config>,
        spans: Vec<ShardSpan>,
        bounds: WriteBounds,
    ) -> GroupTruth {
        let options = keyspace::Options { shards: spans.clone(), ..keyspace::Options::default() };
        let mut state = Keyspace::new(options);
        state.set_write_bounds(bounds);
        let nodes = config.voters.iter().map(|node| (index(node), NodeTruth::default())).collect();
        GroupTruth {
            group,
            config,
            slots: Vec::new(),
            state,
            spans,
            committed: Vec::new(),
            digests: Vec::new(),
            ballots: BTreeMap::new(),
            nodes,
            repeated: 0,
            answers: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            events: Vec::new(),
            promises: BTreeMap::new(),
            ended: Vec::new(),
            rejected: BTreeSet::new(),
            in_log: BTreeSet::new(),
        }
    }

    pub(crate) fn config(&self) -> &Arc<Config> {
        &self.config
    }

    /// The last slot that any node has committed.
    pub(crate) fn commit(&self) -> Slot {
        Slot(self.committed.len() as u64)
    }

    /// A record was handed to the journal.
    pub(crate) fn staged(&mut self, node: usize, fact: Fact) -> Check {
        let group = self.group;
        let truth = self.nodes.entry(node).or_default();
        let who = || format!("group {group} node {}", node + 1);
        match fact {
            Fact::Revote(slot, vote_ballot) => {
                let before = truth.staged_votes.get(&slot).copied();
                let known =
                    self.slot(slot).vote_ballots.iter().find(|known| Some(known.vote_ballot) == before);
                return match known.map(|known| known.value) {
                    // A peer's snapshot has overtaken it, on its way from the engine to the journal.
                    None if self.nodes.get(&node).is_some_and(|truth| slot <= truth.base) => Ok(()),
                    Some(value) => self.staged(node, Fact::Vote(slot, vote_ballot, Some(value))),
                    None => {
                        fail("I2", format!("{}: votes again for {slot:?}, first at {vote_ballot:?}", who()))
                    }
                };
            }
            Fact::Promised(ballot) => {
                if ballot < truth.staged_promise {
                    return fail(
                        "I1",
                        format!("{}: promises {ballot:?} after {:?}", who(), truth.staged_promise),
                    );
                }
                truth.staged_promise = ballot;
            }
            // What is left of a vote is written again, so that it is not lost with the damaged record.
            Fact::Vote(slot, vote_ballot, None) => {
                // A node that has lost both its base and the snapshot goes by the votes before.
                let votes = self.slot(slot).vote_ballots.iter();
                let mut cast = votes.filter(|vote| vote.durable >> node & 1 == 1);
                if !cast.any(|vote| vote.vote_ballot >= vote_ballot) {
                    return fail(
                        "I2",
                        format!(
                            "{}: writes a vote at {vote_ballot:?} for {slot:?}, which it never cast",
                            who()
                        ),
                    );
                }
            }
            Fact::Vote(slot, vote_ballot, Some(value)) => {
                if vote_ballot.ballot < truth.staged_promise {
                    return fail(
                        "I1",
                        format!(
                            "{}: votes at {vote_ballot:?} for {slot:?}, having promised {:?}",
                            who(),
                            truth.staged_promise
                        ),
                    );
                }
                truth.staged_promise = vote_ballot.ballot;
                if let Some(before) = truth.staged_votes.insert(slot, vote_ballot)
                    && before > vote_ballot
                {
                    return fail(
                        "I2",
                        format!("{}: votes at {vote_ballot:?} for {slot:?} after {before:?}", who()),
                    );
                }
                self.proposed(slot, vote_ballot, value)?;
                if let Some((at, chosen)) = self.slot(slot).chosen
                    && vote_ballot > at
                    && value != chosen
                {
                    let what = "votes for another value than was chosen";
                    return fail(
                        "I4",
                        format!("{}: {what} for {slot:?}, at {vote_ballot:?}, at {at:?}", who()),
                    );
                }
            }
            Fact::Chosen(slot, Some(value)) => {
                self.is_committed(node, slot, value, "records as committed")?
            }
            Fact::Base(slot, promised, certain) => {
                if certain && promised < truth.durable_promise {
                    return fail(
                        "I1",
                        format!(
                            "{}: its base at {slot:?} says {promised:?}, promised was {:?}",
                            who(),
                            truth.durable_promise
                        ),
                    );
                }
            }
            Fact::Healed(promised, _) => {
                let ballots = &self.ballots;
                // One that nobody was asked to promise binds nobody, unless no promise is needed.
                let asks_nobody = self.config.q1 == 1;
                let living = |ballot: &&Ballot| {
                    ballots.get(ballot).map_or(asks_nobody, |known| known.elected || !known.forgotten)
                };
                let binding = truth.promises.iter().rev().find(living).copied().unwrap_or_default();
                if promised < binding {
                    return fail(
                        "I1",
                        format!(
                            "{}: believes to have promised {promised:?}, promised was {binding:?}",
                            who()
                        ),
                    );
                }
                truth.promises.retain(|ballot| *ballot <= promised);
                truth.durable_promise = truth.durable_promise.min(promised);
                truth.staged_promise = promised;
            }
            Fact::Chosen(_, None) | Fact::Faulty => {}
        }
        Ok(())
    }

    /// A record is durable.
    pub(crate) fn durable(&mut self, node: usize, fact: Fact) -> Check {
        let truth = self.nodes.entry(node).or_default();
        match fact {
            Fact::Promised(ballot) | Fact::Healed(ballot, _) => {
                truth.promises.insert(ballot);
                truth.durable_promise = truth.durable_promise.max(ballot);
                if let Fact::Healed(_, Some(upto)) = fact {
                    truth.healed = Some((ballot, upto));
                }
            }
            Fact::Vote(slot, vote_ballot, value) => {
                truth.promises.insert(vote_ballot.ballot);
                truth.durable_promise = truth.durable_promise.max(vote_ballot.ballot);
                if slot > truth.base {
                    // A restart may find what nobody knew to be durable, so it need not be staged.
                    for votes in [&mut truth.durable_votes, &mut truth.staged_votes] {
                        let vote = votes.entry(slot).or_default();
                        *vote = (*vote).max(vote_ballot);
                    }
                }
                return self.voted(node, slot, vote_ballot, value.is_some());
            }
            Fact::Revote(slot, vote_ballot) => {
                // It holds the value as far as the vote before does.
                let earlier =
                    self.slot(slot).vote_ballots.iter().filter(|vote| vote.durable >> node & 1 == 1);
                let before =
                    earlier.filter(|vote| vote.vote_ballot < vote_ballot).max_by_key(|vote| vote.vote_ballot);
                let held = before.filter(|vote| vote.held >> node & 1 == 1).map(|vote| vote.value);
                return self.durable(node, Fact::Vote(slot, vote_ballot, held));
            }
            Fact::Chosen(slot, Some(value)) => {
                if slot > truth.base {
                    truth.durable_chosen.insert(slot, value);
                }
            }
            Fact::Base(slot, promised, _) => {
                truth.durable_promise = truth.durable_promise.max(promised);
                self.snapshot_durable(node, slot);
            }
            Fact::Chosen(_, None) | Fact::Faulty => {}
        }
        Ok(())
    }

    /// A snapshot of the state up to `slot` is durable.
    pub(crate) fn snapshot_durable(&mut self, node: usize, slot: Slot) {
        let truth = self.nodes.entry(node).or_default();
        if slot > truth.base {
            truth.base = slot;
            truth.durable_votes = truth.durable_votes.split_off(&slot.next());
            truth.durable_chosen = truth.durable_chosen.split_off(&slot.next());
            truth.staged_votes = truth.staged_votes.split_off(&slot.next());
        }
    }

    /// The node restarts: what was not durable was never said.
    pub(crate) fn restarted(&mut self, node: usize) {
        let truth = self.nodes.entry(node).or_default();
        truth.staged_promise = truth.durable_promise;
        truth.staged_votes.clone_from(&truth.durable_votes);
        truth.accepted = (Ballot::default(), Slot(0));
        let base = truth.base.0 as usize;
        for vote in self.slots.iter_mut().skip(base).flat_map(|slot| &mut slot.vote_ballots) {
            vote.held &= !(1 << node);
        }
    }

    /// The node has lost its whole disk.
    pub(crate) fn emptied(&mut self, node: usize) {
        let truth = self.nodes.entry(node).or_default();
        truth.base = Slot(0);
        truth.durable_chosen.clear();
        for (ballot, truth) in &mut self.ballots {
            truth.forgotten |= index(ballot.node) == node;
        }
    }

    /// A slot above `applied` that may hold a chosen value which no disk has any more: so many voted that a quorum may
    /// have agreed, and all of them lost power before the value, and after its label, was on their disks. Nobody can
    /// tell this from the loss of an acknowledged write, so the group waits for an operator. `absent` are nodes that do
    /// not come back, or whose disk may have forgotten a vote; `without_values` are those of them whose disk has forgotten values, too.
    pub(crate) fn value_lost(&self, applied: Slot, absent: u32, without_values: u32) -> Option<Slot> {
        let voters = self.config.voters.iter().fold(0, |bits, voter| bits | 1 << index(voter));
        let open = (1..).zip(&self.slots).skip(applied.0 as usize);
        let mut lost = open.filter(|(_, slot)| {
            let highest = slot
                .vote_ballots
                .iter()
                .filter(|vote| vote.durable & voters != 0)
                .max_by_key(|vote| vote.vote_ballot);
            let voted = slot.vote_ballots.iter().fold(absent, |all, vote| all | vote.durable) & voters;
            highest.is_some_and(|vote| vote.held & !without_values == 0)
                && voted.count_ones() >= u32::from(self.config.q2)
        });
        lost.next().map(|(slot, _)| Slot(slot))
    }

    /// The engine says what it has promised.
    pub(crate) fn check_promise(&self, node: usize, promised: Ballot, promise_lost: bool) -> Check {
        let durable = self.nodes.get(&node).map_or(Ballot::default(), |truth| truth.durable_promise);
        if promised < durable && !promise_lost {
            return fail(
                "I1",
                format!(
                    "group {} node {}: goes by {promised:?}, promised was {durable:?}",
                    self.group,
                    node + 1
                ),
            );
        }
        Ok(())
    }

    /// A value was proposed or voted for at a ballot.
    fn proposed(&mut self, slot: Slot, vote_ballot: VoteBallot, value: u64) -> Check {
        let group = self.group;
        let truth = self.slot(slot);
        match truth.vote_ballots.iter().find(|known| known.vote_ballot == vote_ballot) {
            Some(known) if known.value != value => {
                fail("I3", format!("group {group} {slot:?}: two values at {vote_ballot:?}"))
            }
            Some(_) => Ok(()),
            None => {
                truth.vote_ballots.push(VoteBallotTruth { vote_ballot, value, durable: 0, held: 0 });
                Ok(())
            }
        }
    }

    fn voted(&mut self, node: usize, slot: Slot, vote_ballot: VoteBallot, held: bool) -> Check {
        let (group, q2) = (self.group, u32::from(self.config.q2));
        let voters = self.config.voters.iter().fold(0, |bits, voter| bits | 1 << index(voter));
        let truth = self.slot(slot);
        let Some(vote) = truth.vote_ballots.iter_mut().find(|known| known.vote_ballot == vote_ballot) else {
            return Ok(());
        };
        vote.durable |= 1 << node;
        if held {
            vote.held |= 1 << node;
        }
        if (vote.durable & voters).count_ones() < q2 {
            return Ok(());
        }
        match truth.chosen {
            Some((at, value)) if value != vote.value => fail(
                "I5",
                format!("group {group} {slot:?}: one value chosen at {at:?}, another at {vote_ballot:?}"),
            ),
            Some((at, _)) if at <= vote_ballot => Ok(()),
            Some(_) | None => {
                truth.chosen = Some((vote_ballot, vote.value));
                Ok(())
            }
        }
    }

    /// Whether some vote at an older ballot was for what `ballot` proposes.
    pub(crate) fn is_adopted(&self, slot: Slot, ballot: Ballot, value: &Value) -> bool {
        let digest = value_digest(value);
        let votes = self.slots.get(slot.0 as usize - 1).map_or(&[][..], |truth| &truth.vote_ballots);
        votes.iter().any(|vote| vote.vote_ballot.ballot < ballot && vote.value == digest)
    }

    /// Which nodes have a durable vote for the slot at its highest ballot.
    pub(crate) fn voters_of(&self, slot: Slot) -> u32 {
        let votes = self.slots.get(slot.0 as usize - 1).map_or(&[][..], |truth| &truth.vote_ballots);
        votes.iter().max_by_key(|vote| vote.vote_ballot).map_or(0, |vote| vote.durable)
    }

    /// A node takes a value for committed. True when it is the first to do so.
    pub(crate) fn commit_at(
        &mut self,
        now: Time,
        node: usize,
        slot: Slot,
        value: &Value,
    ) -> Result<bool, Violation> {
        let digest = value_digest(value);
        if slot <= self.commit() {
            self.is_committed(node, slot, digest, "commits")?;
            return Ok(false);
        }
        let who = format!("group {} node {}", self.group, node + 1);
        if slot != self.commit().next() {
            return fail(
                "I10",
                format!("{who}: commits {slot:?}, but nobody has committed {:?}", self.commit().next()),
            );
        }
        match self.slot(slot).chosen {
            Some((_, chosen)) if chosen == digest => {}
            Some((at, _)) => {
                return fail(
                    "I5",
                    format!("{who}: commits {slot:?} with another value than was chosen at {at:?}"),
                );
            }
            None => {
                return fail(
                    "I10",
                    format!("{who}: commits {slot:?}, for which no quorum has a durable vote at one ballot"),
                );
            }
        }
        self.committed.push(digest);
        let fates = self.apply(now, slot, value)?;
        self.digests.push(self.state.digest());
        for (write, repeated, outcome) in fates {
            self.repeated += u32::from(repeated);
            let attempt = (write.client, write.seq, write.attempt);
            // That it is in the log means nothing: it has no effect there.
            if let Err(Error::WrongShard) = outcome {
                continue;
            }
            self.in_log.insert(attempt);
            if self.rejected.contains(&attempt) {
                return fail(
                    "rejected means never",
                    format!("{who}: {slot:?} holds {write:?}, which was rejected"),
                );
            }
            // A later one of the client may have been applied, so that nobody waits for this one.
            let Ok(Reply::Put(put)) = outcome else { continue };
            let before = put.prev_kv.as_ref().map_or(0, |before| value_of(&before.value));
            let written = Written { revision: put.revision.0, before };
            let known = self.answers.insert((write.client, write.seq), written);
            if known.is_some_and(|known| !repeated || known != written) {
                return fail("I16", format!("{who}: {write:?} takes effect twice"));
            }
        }
        Ok(true)
    }

    fn is_committed(&self, node: usize, slot: Slot, digest: u64, does: &str) -> Check {
        match self.committed.get((slot.0 as usize).wrapping_sub(1)) {
            Some(committed) if *committed == digest => Ok(()),
            Some(_) => fail(
                "I5",
                format!(
                    "group {} node {}: {does} another value for {slot:?} than was committed",
                    self.group,
                    node + 1
                ),
            ),
            None => fail(
                "I10",
                format!(
                    "group {} node {}: {does} {slot:?}, which nobody has committed",
                    self.group,
                    node + 1
                ),
            ),
        }
    }

    /// Applies what was committed; tells of each write whether it was answered before, and with what.
    fn apply(
        &mut self,
        now: Time,
        slot: Slot,
        value: &Value,
    ) -> Result<Vec<(Write, bool, Outcome)>, Violation> {
        let mut effects = Effects::new();
        let mut writes = Vec::new();
        match value {
            Value::Noop => self.state.skip(slot.0),
            Value::Batch(commands) => {
                for (index, command) in (0..).zip(commands.iter()) {
                    let proposal = Proposal::decode(command.clone()).expect("nothing else is proposed here");
                    writes.push((Write::of(&proposal.command), self.belongs(&proposal.command)));
                    // Before they did, an earlier leader's clock could end what a later one had renewed (seed 454343).
                    let by_clock = matches!(proposal.command, Command::ExpireLeases(..))
                        && self.state.clock() != ClockStart::NONE;
                    self.state.apply(slot.0, index, proposal, &mut effects);
                    self.follow_leases(now, by_clock, &effects.leases)?;
                    effects.leases.clear();
                }
            }
        }
        self.events.append(&mut effects.revisions);
        let mut fates = Vec::new();
        for (answer, (write, belongs)) in effects.replies.into_iter().zip(writes) {
            let is_refused = answer.outcome == Err(Error::WrongShard);
            if !answer.repeated && !is_of_session(&answer.outcome) && is_refused == belongs {
                let (session, seq) = (answer.session, answer.seq);
                let detail =
                    format!("{slot:?}: {session:?} {seq} belongs here: {belongs}, refused: {is_refused}");
                return fail("shards", detail);
            }
            if answer.session != SessionId::NONE && !is_of_session(&answer.outcome) {
                let known = self.outcomes.insert((answer.session, answer.seq), answer.outcome.clone());
                if known.is_some_and(|known| !answer.repeated || known != answer.outcome) {
                    let (session, seq) = (answer.session, answer.seq);
                    return fail("I16", format!("{slot:?}: {session:?} {seq} takes effect twice"));
                }
            }
            fates.extend(write.map(|write| (write, answer.repeated, answer.outcome)));
        }
        Ok(fates)
    }

    /// Whether a command is for this group: the shard that it names is here, and has had all its keys since that map.
    fn belongs(&self, command: &Command) -> bool {
        let Command::Write { route, op, .. } = command else { return true };
        let Concern::Keys(ranges) = Concern::of_op(op) else { return true };
        let span = route.and_then(|route| {
            self.spans.iter().find(|span| span.id == route.shard && span.since <= route.epoch)
        });
        span.is_some_and(|span| ranges.iter().all(|range| part(span, range).as_ref() == Some(range)))
    }

    /// No lease ends before its time, unless somebody revokes it.
    fn follow_leases(&mut self, now: Time, by_clock: bool, effects: &[LeaseEffect]) -> Check {
        for effect in effects {
            match *effect {
                LeaseEffect::Granted { grant, ttl_s } => {
                    let promised = Promised { serial: grant.serial, granted: now, until: now };
                    self.promises.insert(grant.id, promised);
                    self.promise(now, grant.id, ttl_s);
                }
                LeaseEffect::Revoked { id } => {
                    // One that has no number may end with the one before it, as etcd's may.
                    let promised =
                        self.promises.remove(&id).filter(|promised| promised.serial != LeaseSerial::NONE);
                    if let Some(Promised { until, .. }) =
                        promised.filter(|promised| by_clock && promised.until > now)
                    {
                        let left = (until - now) / MILLI;
                        let what = format!("group {}: {id:?} ends {left} ms too early", self.group);
                        return fail("leases", what);
                    }
                }
                LeaseEffect::Checkpointed { .. } | LeaseEffect::ClockStarted { .. } => {}
            }
        }
        Ok(())
    }

    /// Whoever owns this lease may count on it for `ttl_s` seconds from `from` on, as far as clocks agree. What was asked
    /// before it was granted was asked of an earlier one with its id, or says no more than the grant itself.
    pub(crate) fn promise(&mut self, from: Time, lease: LeaseId, ttl_s: i64) {
        let until = from + Time::try_from(ttl_s).unwrap_or(0) * (SECOND - 10 * MILLI);
        if let Some(known) = self.promises.get_mut(&lease).filter(|known| known.granted <= from) {
            known.until = known.until.max(until);
        }
    }

    /// How many leases there are.
    pub(crate) fn leases(&self) -> usize {
        self.state.leases().count()
    }

    /// A command of a session was answered.
    pub(crate) fn answered_with(&self, session: SessionId, seq: u64, outcome: &Outcome) -> Check {
        let group = self.group;
        match self.outcomes.get(&(session, seq)) {
            Some(known) if known == outcome => Ok(()),
            known => fail(
                "I16",
                format!("group {group}: {session:?} {seq} is answered {outcome:?}, was {known:?}"),
            ),
        }
    }

    /// What a command of a session was answered when it took effect, if it has.
    pub(crate) fn effect_of(&self, session: SessionId, seq: u64) -> Option<&Outcome> {
        self.outcomes.get(&(session, seq)).filter(|outcome| **outcome != Err(Error::WrongShard))
    }

    /// A write that went through a gateway under these numbers is over.
    pub(crate) fn write_ended(&mut self, numbers: &[(SessionId, u64)], fate: Fate) -> Check {
        self.check_ended(numbers, &fate)?;
        if let Fate::Outcome(outcome) = &fate
            && !numbers.iter().any(|(session, seq)| self.effect_of(*session, *seq) == Some(outcome))
        {
            return fail("I16", format!("group {}: {numbers:?} are answered {outcome:?}", self.group));
        }
        self.ended.push((numbers.to_vec(), fate));
        Ok(())
    }

    /// Whatever came of those that were over since.
    pub(crate) fn check_all_ended(&self) -> Check {
        self.ended.iter().try_for_each(|(numbers, fate)| self.check_ended(numbers, fate))
    }

    fn check_ended(&self, numbers: &[(SessionId, u64)], fate: &Fate) -> Check {
        let effects = numbers.iter().filter(|(session, seq)| self.effect_of(*session, *seq).is_some());
        match (effects.count(), fate) {
            (0, _) | (1, Fate::Outcome(_) | Fate::Unknown) => Ok(()),
            (1, Fate::Never) => {
                let group = self.group;
                fail(
                    "rejected means never",
                    format!("group {group}: {numbers:?} took effect, and was refused"),
                )
            }
            (count, _) => fail("I16", format!("group {}: {numbers:?} took effect {count} times", self.group)),
        }
    }

    /// What was read is what was there at the revision that the answer says.
    pub(crate) fn check_read(&self, asked: &RangeRequest, reply: &RangeReply) -> Check {
        let (group, revision) = (self.group, reply.revision);
        if revision > self.state.resolved().revision() {
            return fail(
                "reads",
                format!("group {group}: {revision:?} is read, and nobody has committed it"),
            );
        }
        let range = &asked.range;
        let asked = RangeRequest { revision: revision.0, ..asked.clone() };
        match self.state.query(&Query::Range(asked)) {
            Ok(Reply::Range(right)) if (&right.kvs, right.count) != (&reply.kvs, reply.count) => {
                fail("reads", format!("group {group}: {range:?} at {revision:?} is {reply:?}, not {right:?}"))
            }
            Err(Error::WrongShard) => {
                fail("shards", format!("group {group}: {range:?} is read, and no shard here has all of it"))
            }
            // What it was is compacted.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// A transaction that only reads took the branch that it should have taken, and each of its ranges is what was there.
    pub(crate) fn check_read_txn(&self, asked: &Txn, reply: &TxnReply) -> Check {
        let (group, revision) = (self.group, reply.revision);
        for compare in &asked.compare {
            assert_eq!(compare, &is_rewritten(compare.range.clone()), "nothing else is compared");
            let range = RangeRequest { revision: revision.0, ..RangeRequest::new(compare.range.clone()) };
            if let Ok(Reply::Range(there)) = self.state.query(&Query::Range(range)) {
                let holds = !there.kvs.is_empty() && there.kvs.iter().all(|kv| kv.version > 1);
                if holds != reply.succeeded {
                    return fail(
                        "reads",
                        format!("group {group}: {compare:?} at {revision:?}: {reply:?}, not {there:?}"),
                    );
                }
            }
        }
        let branch = if reply.succeeded { &asked.success } else { &asked.failure };
        if branch.len() != reply.responses.len() {
            return fail("reads", format!("group {group}: {asked:?} is answered {reply:?}"));
        }
        for pair in branch.iter().zip(&reply.responses) {
            let (TxnOp::Range(asked), TxnOpReply::Range(range)) = pair else {
                return fail("reads", format!("group {group}: {asked:?} is answered {reply:?}"));
            };
            if range.revision != revision {
                return fail(
                    "reads",
                    format!("group {group}: {asked:?} is read at several revisions: {reply:?}"),
                );
            }
            self.check_read(asked, range)?;
        }
        Ok(())
    }

    /// The oldest revision that can be read.
    pub(crate) fn compacted(&self) -> i64 {
        self.state.compact_revision().0
    }

    /// Everything of a range that happened from revision `from` on up to `upto`.
    pub(crate) fn events(&self, range: &KeyRange, from: i64, upto: i64) -> Vec<RevisionEvents> {
        let first = self.events.partition_point(|events| events.revision.0 < from);
        let within = self.events[first..].iter().take_while(|events| events.revision.0 <= upto);
        let in_range = within.filter_map(|all| {
            let events: Vec<_> =
                all.events.iter().filter(|event| range.contains(&event.kv.key)).cloned().collect();
            (!events.is_empty()).then(|| RevisionEvents { revision: all.revision, events: events.into() })
        });
        in_range.collect()
    }

    /// How many commands were committed that had been before, since this was asked last.
    pub(crate) fn take_repeated(&mut self) -> u32 {
        std::mem::take(&mut self.repeated)
    }

    /// The newest revision that anybody has committed.
    pub(crate) fn revision(&self) -> i64 {
        self.state.resolved().revision().0
    }

    /// A node's state after applying everything up to `slot`.
    pub(crate) fn check_digest(&self, node: usize, slot: Slot, digest: u64) -> Check {
        let expected = match slot.0.checked_sub(1) {
            None => return Ok(()),
            Some(index) => self.digests.get(index as usize),
        };
        if expected != Some(&digest) {
            return fail("I20", format!("group {} node {}: another state at {slot:?}", self.group, node + 1));
        }
        Ok(())
    }

    /// A proposal was refused, which promises that it never enters the log.
    pub(crate) fn rejected(&mut self, node: usize, write: &Write) -> Check {
        let attempt = (write.client, write.seq, write.attempt);
        self.rejected.insert(attempt);
        if self.in_log.contains(&attempt) {
            return fail(
                "rejected means never",
                format!("group {} node {}: rejects {write:?}, which is committed", self.group, node + 1),
            );
        }
        Ok(())
    }

    /// A write was answered.
    pub(crate) fn answered(&self, node: usize, client: u32, seq: u32, written: Written) -> Check {
        if self.answers.get(&(client, seq)) != Some(&written) {
            return fail(
                "I16",
                format!(
                    "group {} node {}: answers client {client} seq {seq} with {written:?}",
                    self.group,
                    node + 1
                ),
            );
        }
        Ok(())
    }

    /// A candidate asks for promises.
    pub(crate) fn prepare_sent(&mut self, node: usize, incarnation: u64, prepare: &Prepare) -> Check {
        let who = format!("group {} node {}", self.group, node + 1);
        let ballot = prepare.ballot;
        if index(ballot.node) != node {
            return fail("I8", format!("{who}: runs for {ballot:?}"));
        }
        let durable = self.nodes.get(&node).map_or(Ballot::default(), |truth| truth.durable_promise);
        if durable < ballot {
            return fail(
                "I9",
                format!("{who}: asks for promises at {ballot:?}, its own durable promise is {durable:?}"),
            );
        }
        let known = self.ballots.entry(ballot).or_insert_with(|| BallotTruth {
            incarnation,
            from: prepare.from,
            promised: 0,
            faulty: 0,
            parts: BTreeMap::new(),
            elected: false,
            forgotten: false,
        });
        if known.incarnation != incarnation {
            return fail(
                "I8",
                format!(
                    "{who}: {ballot:?} was used in incarnation {} and again in incarnation {incarnation}",
                    known.incarnation
                ),
            );
        }
        known.from = known.from.min(prepare.from);
        Ok(())
    }

    /// A voter promises. Everything it has ever synced must be reported, or declared as possibly forgotten.
    pub(crate) fn promise_sent(&mut self, node: usize, promise: &Promise) -> Check {
        let who = format!("group {} node {}", self.group, node + 1);
        let from = self.ballots.get(&promise.ballot).map_or(Slot(0), |known| known.from);
        let truth = self.nodes.entry(node).or_default();
        if truth.durable_promise < promise.ballot {
            return fail(
                "I9",
                format!(
                    "{who}: promise for {:?} leaves, durable is {:?}",
                    promise.ballot, truth.durable_promise
                ),
            );
        }
        if promise.part == 0 {
            truth.sending.clear();
        }
        for (slot, vote) in &promise.votes {
            truth.sending.push((*slot, vote.vote_ballot));
            let durable = truth.durable_votes.get(slot).is_some_and(|durable| *durable >= vote.vote_ballot)
                || truth.durable_chosen.contains_key(slot)
                || *slot <= truth.base;
            if !durable {
                return fail(
                    "I9",
                    format!(
                        "{who}: promise for {:?} reports a vote for {slot:?} that is not durable",
                        promise.ballot
                    ),
                );
            }
        }
        if promise.part + 1 != promise.parts {
            return Ok(());
        }
        let reported: BTreeMap<Slot, VoteBallot> = truth.sending.iter().copied().collect();
        let forgotten = promise.faulty_from;
        for (slot, vote_ballot) in truth.durable_votes.range(from.max(promise.commit.next())..) {
            if vote_ballot.ballot >= promise.ballot {
                // Cast after the promise, which has waited since.
                continue;
            }
            // Nothing was chosen there below that ballot, or its phase 1 would have found it.
            if truth.healed.is_some_and(|(ballot, upto)| vote_ballot.ballot < ballot && *slot > upto) {
                continue;
            }
            let told = reported.get(slot).is_some_and(|told| told >= vote_ballot);
            if !told && forgotten.is_none_or(|faulty| faulty > *slot) {
                return fail(
                    "I18",
                    format!(
                        "{who}: promise for {:?} hides the vote for {slot:?} at {vote_ballot:?}",
                        promise.ballot
                    ),
                );
            }
        }
        Ok(())
    }

    /// A part of a promise reached its candidate.
    pub(crate) fn promise_arrived(&mut self, from: usize, promise: &Promise) {
        let Some(known) = self.ballots.get_mut(&promise.ballot) else { return };
        let parts = known.parts.entry(from).or_default();
        parts.insert(promise.part);
        if parts.len() as u64 >= u64::from(promise.parts) {
            known.promised |= 1 << from;
            if promise.faulty_from.is_some() {
                known.faulty |= 1 << from;
            } else {
                known.faulty &= !(1 << from);
            }
        }
    }

    /// A node takes itself for the leader.
    pub(crate) fn elected(&mut self, node: usize, ballot: Ballot) -> Check {
        let who = format!("group {} node {}", self.group, node + 1);
        let Some(known) = self.ballots.get_mut(&ballot) else {
            if self.config.q1 == 1 {
                return Ok(());
            }
            return fail("I7", format!("{who}: leads at {ballot:?} without having asked anybody"));
        };
        let own =
            u32::from(self.nodes.get(&node).is_some_and(|truth| truth.durable_promise >= ballot)) << node;
        let promised: NodeSet = bits(known.promised | own).map(id).collect();
        if !self.config.is_q1(&promised) {
            return fail("I7", format!("{who}: leads at {ballot:?} with promises of {promised} alone"));
        }
        known.elected = true;
        Ok(())
    }

    /// A member says how far it has voted at a ballot.
    pub(crate) fn accepted_sent(&mut self, node: usize, accepted: &Accepted) -> Check {
        let Accepted { ballot, upto, .. } = *accepted;
        let truth = self.nodes.entry(node).or_default();
        let checked = if truth.accepted.0 == ballot { truth.accepted.1 } else { Slot(0) };
        let mut slot = checked.max(truth.base).next();
        while slot <= upto {
            let truth = &self.nodes[&node];
            let vote = truth.durable_votes.get(&slot);
            let vote_ballots = self.slots.get(slot.0 as usize - 1).map_or(&[][..], |slot| &slot.vote_ballots);
            // It may have cast a higher vote since.
            let at = VoteBallot::classic(ballot);
            let at_ballot =
                vote_ballots.iter().any(|known| known.vote_ballot == at && known.durable >> node & 1 == 1);
            if !at_ballot {
                let held = truth.durable_chosen.get(&slot).copied().or_else(|| {
                    let vote_ballots =
                        self.slots.get(slot.0 as usize - 1).map_or(&[][..], |slot| &slot.vote_ballots);
                    vote_ballots
                        .iter()
                        .find(|known| Some(&known.vote_ballot) == vote)
                        .map(|known| known.value)
                });
                let committed = self.committed.get(slot.0 as usize - 1).copied();
                if held.is_none() || held != committed {
                    return fail(
                        "I9",
                        format!(
                            "group {} node {}: says it has accepted up to {upto:?} at {ballot:?}; for {slot:?} its \
                             disk has a vote at {vote:?}, and no committed value",
                            self.group,
                            node + 1
                        ),
                    );
                }
            }
            slot = slot.next();
        }
        if let Some(truth) = self.nodes.get_mut(&node) {
            truth.accepted = (ballot, upto.max(checked));
        }
        Ok(())
    }

    /// A leader proposes, and says what is committed.
    pub(crate) fn accept_sent(&mut self, node: usize, accept: &Accept) -> Check {
        self.commit_claimed(node, accept.commit)?;
        for (slot, value) in &accept.entries {
            let digest = value_digest(value);
            if *slot <= accept.commit {
                self.is_committed(node, *slot, digest, "sends as committed")?;
            } else {
                self.proposed(*slot, VoteBallot::classic(accept.ballot), digest)?;
            }
        }
        Ok(())
    }

    /// A member passes committed values on.
    pub(crate) fn chosen_sent(&self, node: usize, chosen: &Chosen) -> Check {
        self.commit_claimed(node, chosen.commit)?;
        chosen.entries.iter().try_for_each(|(slot, value)| {
            self.is_committed(node, *slot, value_digest(value), "sends as committed")
        })
    }

    /// A node says that everything up to `commit` is committed.
    pub(crate) fn commit_claimed(&self, node: usize, commit: Slot) -> Check {
        if commit > self.commit() {
            return fail(
                "I10",
                format!(
                    "group {} node {}: says that {commit:?} is committed, nobody has committed it",
                    self.group,
                    node + 1
                ),
            );
        }
        Ok(())
    }

    fn slot(&mut self, slot: Slot) -> &mut SlotTruth {
        let index = slot.0.saturating_sub(1) as usize;
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, SlotTruth::default);
        }
        &mut self.slots[index]
    }
}

/// The position of a node in the simulation's lists.
pub(crate) fn index(node: NodeId) -> usize {
    (node.0 as usize).saturating_sub(1)
}

/// The node at a position.
pub(crate) fn id(index: usize) -> NodeId {
    NodeId(index as u32 + 1)
}

pub(crate) fn bits(set: u32) -> impl Iterator<Item = usize> {
    (0..32).filter(move |bit| set >> bit & 1 == 1)
}

/// Whether the command was refused by its session, or before that, and had no effect.
fn is_of_session(outcome: &Outcome) -> bool {
    matches!(
        outcome,
        Err(Error::SessionExpired
            | Error::ResultForgotten
            | Error::SessionWindowExceeded
            | Error::RevisionPassed)
    )
}
