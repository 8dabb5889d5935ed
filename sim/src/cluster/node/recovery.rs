//! What a process finds on its disk, through the real code, and begins with.

use std::collections::{BTreeMap, VecDeque};

use consensus_core::{Durable, GroupId, Liveness, LivenessOutput, Options, Record, Timing};
use group_core::{Broken, LogPositions, Replica, Settings, Start, Stateless};
use journal::{DamageKind, Identity, Journal, Recovered, SimDisk, Superblock};
use keyspace::{ClusterVersion, Limits};

use super::task::Task;
use super::{Node, Process};
use crate::cluster::clock::Time;
use crate::cluster::coverage::Mark;
use crate::cluster::env::{Env, trace};
use crate::cluster::truth::{Fact, id};

/// Small, so that a snapshot has several.
const SLICE_BYTES: usize = 400;
/// Two keys are enough.
const LARGE_ANSWER_BYTES: usize = 100;

impl Node {
    pub(super) fn recover(
        &mut self,
        env: &mut Env,
        mut superblock: Superblock<SimDisk>,
    ) -> Result<Process, journal::Error> {
        let index = self.index;
        let incarnation = superblock.facts().incarnation;
        if !self.incarnations.insert(incarnation) {
            env.fail("I8", format!("node {}: a second incarnation has number {incarnation}", index + 1));
        }
        let identity = superblock.facts().identity;

        let options = journal_options(env, identity, superblock.facts().journal_made);
        let mut found = Vec::new();
        let (mut journal, report) =
            Journal::open(self.disk.clone(), options, &mut |recovered| found.push(recovered))?;
        if !superblock.facts().journal_made {
            superblock.journal_made()?;
        }
        self.mark_report(env, &report);
        self.check_recovered(env, &found, journal.head());

        let mut recovering = BTreeMap::new();
        for (group, config) in env.profile.groups.iter().enumerate() {
            if config.voters.contains(id(index)) {
                recovering
                    .insert(group as u64, (Durable::bootstrap(config.clone()), LogPositions::default()));
            }
        }
        for group in 0..env.truths.len() {
            env.truths[group].restarted(index);
        }
        for recovered in found {
            self.replay(env, &mut recovering, recovered);
        }
        if superblock.facts().returned {
            let groups = recovering.values_mut().map(|(durable, _)| durable);
            groups.filter(|durable| durable.is_newborn()).for_each(Durable::lost_all);
        }

        let now = self.now(env);
        let peers = (0..env.profile.nodes).filter(|peer| *peer != index).map(id);
        let support = env.support_of(index, self.starts);
        let timing = Timing { support, ..env.profile.timing };
        let mut liveness = Liveness::new(id(index), peers, incarnation, timing, now);
        liveness.remember(self.former_support, now);
        let known = env.known_to(index, self.starts);
        let mut snapshots = self.load_snapshots(env, known, identity)?;
        let mut stateless = BTreeMap::new();
        let mut tasks: Vec<Option<Box<Task>>> = (0..env.profile.groups.len()).map(|_| None).collect();
        for (group, (mut durable, mut positions)) in recovering {
            let mut newest = None;
            if let Some((slot, config, state)) = snapshots.remove(&group) {
                durable.snapshot(slot, config);
                env.truths[group as usize].snapshot_durable(index, slot);
                newest = Some((slot, state));
            }
            if let Some(floor) = positions.floor() {
                journal.set_floor(group, floor);
                self.log.floors.insert(group, floor);
            }
            let group = group as usize;
            let options = self.options(env, group, incarnation);
            let start = Start { options, durable, snapshot: newest, positions };
            if let Some(base) = start.lacks_state() {
                if !self.snapshots_lost {
                    let detail = format!("node {} group {group}: no snapshot for {base:?}", index + 1);
                    env.fail("recovery", detail);
                }
                stateless.insert(group, Stateless::new(self.settings(env, known, group), start, base, now));
                continue;
            }
            let replica = Replica::new(self.settings(env, known, group), start, now);
            tasks[group] = Some(begin_task(env, index, group, replica));
        }
        Ok(Process {
            start: self.starts,
            incarnation,
            support,
            known,
            liveness,
            liveness_out: LivenessOutput::default(),
            journal,
            identity,
            roll: superblock.facts().roll.clone(),
            tasks,
            stateless,
            handed: VecDeque::new(),
            facts: VecDeque::new(),
            busy: false,
            full: false,
            retrying: false,
            fenced: false,
            syncs: 0,
            syncs_seen: 0,
            stall_disk: 0,
            cut_at_flush: false,
            tick_at: Time::MAX,
            paused: false,
            backlog: VecDeque::new(),
            hand_overs: 0,
            parted: BTreeMap::new(),
        })
    }

    fn options(&self, env: &Env, group: usize, incarnation: u64) -> Options {
        let of_group = GroupId(group as u64);
        Options {
            timing: env.profile.timing,
            retain_slots: env.profile.retain_slots,
            inflight_slots_max: env.profile.inflight_slots,
            queue_bytes_max: env.profile.queue_bytes,
            #[cfg(feature = "mutants")]
            mutant: crate::cluster::Mutant::of_engine(env.mutant),
            ..Options::new(of_group, id(self.index), env.seed_for(self.index, group, incarnation))
        }
    }

    fn settings(&self, env: &Env, known: ClusterVersion, group: usize) -> Settings {
        Settings {
            group: GroupId(group as u64),
            node: id(self.index),
            voters: env.truths[group].config().voters.clone(),
            timing: env.profile.timing,
            limits: Limits::default(),
            shards: env.maps.spans(group).to_vec(),
            shard_map: env.maps.known_to(self.index, env.maps.domain_of(group)),
            snapshot_least_bytes: env.profile.snapshot_bytes as u64,
            snapshot_slice_bytes: SLICE_BYTES,
            large_answer_bytes: LARGE_ANSWER_BYTES,
            watch_part_bytes: env.profile.watch_part_bytes,
            regions: BTreeMap::new(),
            known,
            leader_regions: Vec::new(),
            queries: env.profile.queries,
            apply: env.profile.apply,
            broken: broken(env),
            write_bounds: env.profile.write_bounds,
            broken_state: broken_state(env),
        }
    }

    fn mark_report(&self, env: &mut Env, report: &journal::Report) {
        if report.torn_tail.is_some() {
            env.mark(Mark::TornTail);
        }
        for damage in &report.damage {
            trace!(env, "n{} journal: {damage}", self.index + 1);
            match damage.kind {
                DamageKind::PayloadLost { .. } => env.mark(Mark::PayloadLost),
                DamageKind::DescriptorLost { .. } | DamageKind::SegmentMissing { .. } => {
                    env.mark(Mark::DescriptorLost)
                }
                DamageKind::DescriptorRepaired { .. } => env.mark(Mark::DescriptorRepaired),
                DamageKind::HeaderDamaged | DamageKind::SegmentCut { .. } | DamageKind::Unreadable => {}
            }
        }
    }

    fn replay(
        &self,
        env: &mut Env,
        recovering: &mut BTreeMap<u64, (Durable, LogPositions)>,
        found: Recovered,
    ) {
        let index = self.index;
        match found {
            Recovered::Record { group, lsn, label, payload } => {
                let Some((durable, positions)) = recovering.get_mut(&group) else { return };
                match Record::decode(&label, payload) {
                    Ok(record) => {
                        let fact = Fact::of(&record);
                        positions.recovered(lsn, &record);
                        durable.replay(record);
                        let check = env.truths[group as usize].durable(index, fact);
                        env.note(check);
                    }
                    Err(error) => env.fail("codec", format!("node {}: record {lsn}: {error}", index + 1)),
                }
            }
            Recovered::PayloadLost { group, lsn, label } => {
                let Some((durable, positions)) = recovering.get_mut(&group) else { return };
                match Record::decode_label(&label) {
                    Ok(label) => {
                        positions.recovered_label(lsn, &label);
                        durable.damaged(&label);
                        let check = env.truths[group as usize].durable(index, Fact::of_label(&label));
                        env.note(check);
                    }
                    Err(error) => env.fail("codec", format!("node {}: label of {lsn}: {error}", index + 1)),
                }
            }
            Recovered::Gap { .. } => {
                for (durable, _) in recovering.values_mut() {
                    durable.lost_all();
                }
            }
        }
    }
}

/// A replica begins.
pub(super) fn begin_task(env: &mut Env, node: usize, group: usize, replica: Replica) -> Box<Task> {
    let status = replica.engine().status();
    if status.promise_lost {
        env.mark(Mark::PromiseLost);
    }
    let check = env.truths[group].check_promise(node, status.promised, status.promise_lost);
    env.note(check);
    let newest = replica.newest_snapshot();
    trace!(env, "n{} g{group} starts: {status:?}, snapshot {newest:?}", node + 1);
    Box::new(Task::new(group, replica))
}

pub(super) fn journal_options(env: &Env, identity: Identity, must_exist: bool) -> journal::Options {
    journal::Options {
        identity,
        segment_bytes: env.profile.segment_bytes,
        spare_segments_max: env.profile.spare_segments,
        must_exist,
        ..journal::Options::default()
    }
}

/// The rule of the state machine that is broken in this run.
fn broken_state(env: &Env) -> keyspace::Broken {
    #[cfg(feature = "mutants")]
    let broken = keyspace::Broken { mutant: crate::cluster::Mutant::of_state(env.mutant) };
    #[cfg(not(feature = "mutants"))]
    let broken = {
        let _ = env;
        keyspace::Broken::default()
    };
    broken
}

/// The rule of the group core that is broken in this run.
fn broken(env: &Env) -> Broken {
    #[cfg(feature = "mutants")]
    let broken = Broken { mutant: crate::cluster::Mutant::of_group(env.mutant) };
    #[cfg(not(feature = "mutants"))]
    let broken = {
        let _ = env;
        Broken::default()
    };
    broken
}
