//! What a data directory holds, for an operator who has lost more disks than the cluster survives, and the declaration that
//! one of them holds what there is ([`consensus_core::Durable::survive`]). Both for a node that does not run.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use consensus_core::{Durable, GroupId, Holdings, Record, Slot};
use group_core::decode_meta;
use journal::{Journal, RealDisk, Recovered, SnapshotId, SnapshotReader, Superblock};

use crate::start::StartError;

/// What a data directory holds.
#[derive(Debug)]
pub struct Survey {
    /// The cluster's number.
    pub cluster: u64,
    /// The node's number.
    pub node: u64,
    /// The node has no place in its cluster yet: it holds nothing.
    pub placed: bool,
    /// Others have heard of a later incarnation of this node than this directory knows of: it is an old copy.
    pub revoked: bool,
    /// It is declared to hold what there is.
    pub survivor: bool,
    /// What each group's replica holds.
    pub groups: BTreeMap<GroupId, Held>,
    /// What is wrong with the journal.
    pub damage: Vec<String>,
}

/// What a replica holds of its group.
#[derive(Debug)]
pub struct Held {
    /// In the journal and the snapshot together.
    pub holdings: Holdings,
    /// The slot of the newest snapshot that is whole.
    pub snapshot: Slot,
    /// The snapshot that the journal builds on is missing, so that this replica has no state.
    pub snapshot_lost: bool,
}

/// Why a directory cannot be looked at.
#[derive(Debug)]
pub enum RecoverError {
    /// There is nothing of a node.
    NoNode,
    /// It cannot be read.
    Unreadable(StartError),
}

impl fmt::Display for RecoverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecoverError::NoNode => f.write_str("this is not the data directory of a node"),
            RecoverError::Unreadable(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for RecoverError {}

impl<E: Into<StartError>> From<E> for RecoverError {
    fn from(error: E) -> RecoverError {
        RecoverError::Unreadable(error.into())
    }
}

/// Looks at the data directory of a node that does not run. Changes nothing.
///
/// # Errors
/// See [`RecoverError`].
pub fn survey(data_dir: &Path) -> Result<Survey, RecoverError> {
    let (disk, superblock) = open(data_dir)?;
    survey_disk(&disk, &superblock)
}

/// Declares that what this directory holds is what there is. The next start of the node uses that.
///
/// # Errors
/// See [`RecoverError`].
pub fn declare_survivor(data_dir: &Path) -> Result<(), RecoverError> {
    let (_disk, mut superblock) = open(data_dir)?;
    Ok(superblock.declare_survivor(true)?)
}

fn open(data_dir: &Path) -> Result<(RealDisk, Superblock<RealDisk>), RecoverError> {
    // To open a directory makes it.
    if !data_dir.is_dir() {
        return Err(RecoverError::NoNode);
    }
    let disk = RealDisk::open(data_dir)?;
    let superblock = Superblock::open(disk.clone())?.ok_or(RecoverError::NoNode)?;
    Ok((disk, superblock))
}

fn survey_disk(disk: &RealDisk, superblock: &Superblock<RealDisk>) -> Result<Survey, RecoverError> {
    let facts = superblock.facts();
    let identity = facts.identity;
    let mut groups: BTreeMap<GroupId, Durable> = BTreeMap::new();
    let mut unreadable = None;
    let options =
        journal::Options { identity, must_exist: facts.journal_made, ..journal::Options::default() };
    let report = Journal::read(disk, options, &mut |found| {
        if let Err(error) = replay(&mut groups, found) {
            unreadable = Some(error);
        }
    })?;
    if let Some(error) = unreadable {
        return Err(StartError::Record(error).into());
    }
    let mut snapshots: BTreeMap<GroupId, Slot> = BTreeMap::new();
    for SnapshotId { group, slot } in journal::Snapshot::list(disk)? {
        let Ok(reader) = SnapshotReader::open(disk, identity, SnapshotId { group, slot }) else { continue };
        let Ok(config) = decode_meta(reader.meta()) else { continue };
        groups.entry(GroupId(group)).or_default().snapshot(Slot(slot), config.into());
        snapshots
            .entry(GroupId(group))
            .and_modify(|newest| *newest = Slot(slot).max(*newest))
            .or_insert(Slot(slot));
    }
    let held = |(id, durable): (&GroupId, &Durable)| {
        let snapshot = snapshots.get(id).copied().unwrap_or_default();
        let held = Held { holdings: durable.holdings(), snapshot, snapshot_lost: snapshot < durable.base() };
        (*id, held)
    };
    Ok(Survey {
        cluster: identity.cluster,
        node: identity.node,
        placed: facts.placed,
        revoked: facts.revoked,
        survivor: facts.survivor,
        groups: groups.iter().map(held).collect(),
        damage: report.damage.iter().map(ToString::to_string).collect(),
    })
}

fn replay(
    groups: &mut BTreeMap<GroupId, Durable>,
    found: Recovered,
) -> Result<(), consensus_core::DecodeError> {
    match found {
        Recovered::Record { group, label, payload, .. } => {
            groups.entry(GroupId(group)).or_default().replay(Record::decode(&label, payload)?);
        }
        Recovered::PayloadLost { group, label, .. } => {
            groups.entry(GroupId(group)).or_default().damaged(&Record::decode_label(&label)?);
        }
        Recovered::Gap { .. } => groups.values_mut().for_each(Durable::lost_all),
    }
    Ok(())
}
