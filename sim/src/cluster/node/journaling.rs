//! How records of groups come to the disk, together, and what follows when they are there, or there is no room.

use bytes::BytesMut;
use consensus_core::{PersistSeq, Record};
use journal::Lsn;

use super::written::Written;
use super::{Node, Process};
use crate::cluster::clock::MILLI;
use crate::cluster::coverage::Mark;
use crate::cluster::env::{Env, trace};
use crate::cluster::events::{Event, NodeEvent};
use crate::cluster::rng::digest;
use crate::cluster::truth::Fact;

impl Process {
    /// A group's records go to the journal. False when it takes none.
    pub(crate) fn hand_in(
        &mut self,
        node: &mut Node,
        env: &mut Env,
        group: usize,
        records: &mut Vec<(PersistSeq, Record)>,
    ) -> bool {
        let Some((last, _)) = records.last() else { return true };
        let ticket = *last;
        let mut label = Vec::new();
        let mut end = Lsn(0);
        for (_, record) in records.drain(..) {
            label.clear();
            record.label(&mut label);
            let mut payload = BytesMut::with_capacity(record.payload_len());
            record.payload(|piece| payload.extend_from_slice(piece));
            let payload = payload.freeze();
            let digest = digest(digest(group as u64, &label), &payload);
            match self.journal.append(group as u64, &label, &[payload]) {
                Ok(lsn) => end = lsn,
                Err(journal::Error::Fenced) => return false,
                Err(error) => {
                    env.fail("journal", format!("node {}: append: {error}", node.index + 1));
                    return false;
                }
            }
            let fact = Fact::of(&record);
            trace!(env, "n{} g{group} writes {end} {fact:?}", node.index + 1);
            let check = env.truths[group].staged(node.index, fact);
            env.note(check);
            self.facts.push_back((end, group, fact));
            node.log.records.insert(end, Written { group: group as u64, digest });
        }
        self.handed.push_back((group, ticket, end));
        self.flush(node, env);
        true
    }

    pub(super) fn flush(&mut self, node: &mut Node, env: &mut Env) {
        if self.busy || self.fenced || !self.journal.has_staged() {
            return;
        }
        match self.journal.flush() {
            Ok(_) => {
                self.busy = true;
                let stall = std::mem::take(&mut self.stall_disk);
                if stall > 0 && !env.healed {
                    env.mark(Mark::DiskStalled);
                }
                let latency =
                    if env.healed { MILLI } else { env.rng.around(env.profile.sync_latency) + stall };
                let at = env.now + latency;
                env.node_at(at, node.index, self.start, NodeEvent::Synced);
                if std::mem::take(&mut self.cut_at_flush) && !env.healed {
                    env.mark(Mark::PowerCutDuringSync);
                    let at = env.now + env.rng.below(latency);
                    let (index, start) = (node.index, self.start);
                    env.at(at, Event::Stop { node: index, start, power: true });
                    let down = env.rng.around(400 * MILLI);
                    env.at(at + down, Event::Start { node: index });
                }
            }
            Err(error) => self.on_journal_error(node, env, &error),
        }
    }

    fn on_journal_error(&mut self, node: &mut Node, env: &mut Env, error: &journal::Error) {
        trace!(env, "n{} journal: {error}", node.index + 1);
        if error.is_retryable() {
            self.look_for_room(node, env);
            return;
        }
        if self.fenced {
            return;
        }
        env.mark(Mark::Fenced);
        self.fenced = true;
        let at = env.now;
        env.node_at(at, node.index, self.start, NodeEvent::Fenced);
        // Somebody looks after it and starts it again.
        let at = env.now + env.rng.around(800 * MILLI);
        let power = env.rng.flip();
        env.at(at, Event::Stop { node: node.index, start: self.start, power });
        let node = node.index;
        env.at(at + 100 * MILLI, Event::Start { node });
    }

    pub(super) fn synced(&mut self, node: &mut Node, env: &mut Env) {
        self.busy = false;
        match self.journal.sync() {
            Ok(durable) => {
                self.syncs += 1;
                if durable > node.log.durable {
                    node.log.last_batch = Lsn(node.log.durable.0 + 1);
                }
                node.log.durable = durable;
                while let Some((_, group, fact)) = self.facts.pop_front_if(|(lsn, ..)| *lsn <= durable) {
                    let check = env.truths[group].durable(node.index, fact);
                    env.note(check);
                }
                let mut done: Vec<(usize, PersistSeq, Lsn)> = Vec::new();
                while let Some(handed) = self.handed.pop_front_if(|(.., lsn)| *lsn <= durable) {
                    done.push(handed);
                }
                self.flush(node, env);
                for (group, upto, lsn) in done {
                    if let Some(task) = &mut self.tasks[group]
                        && task.durable(self.incarnation, node, env, upto, lsn)
                        && !task.is_blocked()
                    {
                        self.turn(node, env, group);
                    }
                }
                self.maintain(node, env);
            }
            Err(error) => self.on_journal_error(node, env, &error),
        }
    }

    /// The work that a writer does when it has time.
    pub(super) fn maintain(&mut self, node: &mut Node, env: &mut Env) {
        for _ in 0..2 {
            let spares = self.journal.stats().spares;
            let more = self.journal.maintain();
            if self.journal.stats().spares > spares {
                env.mark(Mark::SegmentRecycled);
            }
            match more {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    self.on_journal_error(node, env, &error);
                    break;
                }
            }
        }
        self.look_for_room(node, env);
    }

    /// While the disk is full, it is looked at again and again.
    fn look_for_room(&mut self, node: &Node, env: &mut Env) {
        let full = self.journal.stats().full && !self.fenced;
        if full != self.full {
            env.tell_disk(node.index, full);
        }
        if full && !self.full {
            trace!(env, "n{} disk full", node.index + 1);
            env.mark(Mark::DiskFull);
        }
        self.full = full;
        if full && !self.retrying {
            self.retrying = true;
            let at = env.now + 100 * MILLI;
            env.node_at(at, node.index, self.start, NodeEvent::RetryFlush);
        }
    }

    pub(crate) fn set_floor(&mut self, node: &mut Node, group: usize, floor: Lsn) {
        self.journal.set_floor(group as u64, floor);
        node.log.floors.insert(group as u64, floor);
    }
}
