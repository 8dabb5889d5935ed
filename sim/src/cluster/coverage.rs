//! What happened in a run. A fault that never occurs is not tested, so a suite of many seeds fails when one of these
//! stays at zero.

macro_rules! marks {
    ($($(#[doc = $doc:literal])+ $name:ident),+ $(,)?) => {
        /// An event worth counting.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Mark {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Mark {
            /// All of them.
            pub const ALL: &'static [Mark] = &[$(Mark::$name),+];

            /// Its name.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Mark::$name => stringify!($name),)+
                }
            }
        }
    };
}

marks! {
    /// A node came to lead a group.
    Election,
    /// A voter refused a pre-vote.
    PreVoteDenied,
    /// A candidate or leader was told of a higher promise.
    Nacked,
    /// A leader stepped down by itself.
    Resigned,
    /// A promise travelled in more than one part.
    PromiseInParts,
    /// A read was served under the leader lease.
    LeaseRead,
    /// A read was served under the leader lease while another member had promised a higher ballot.
    LeaseReadDuringLeaderChange,
    /// A turn left committed entries to the next.
    AppliedLater,
    /// A watcher was shown events.
    WatchTold,
    /// A watcher was shown a part of a revision.
    WatchInParts,
    /// A watcher that had been shown a part of a revision went on at another node.
    WatchMovedInside,
    /// A watch that was in step fell behind, for want of credit, beside one that did not.
    WatchStarved,
    /// A watcher went on at another node.
    WatchMoved,
    /// A watermark said how far a watch in step is.
    WatchWatermark,
    /// A watch ended, as what it was to show next was compacted.
    WatchCompacted,
    /// A gateway's process was killed.
    GatewayKilled,
    /// A gateway reached a node.
    GatewayLinked,
    /// A gateway dialled a node over another.
    RelayDialled,
    /// A gateway reached a node over another.
    RelayUsed,
    /// A gateway gave a node up that said nothing.
    NodeSilent,
    /// A gateway took back what it had asked of a leader that fell silent, since there was another.
    CallsTakenBack,
    /// A gateway had a session opened.
    SessionOpened,
    /// A write of a gateway was answered though it had taken effect before it was sent: from its session.
    AnsweredFromSession,
    /// A write took another number, since its session was gone.
    NumberChanged,
    /// A request was refused, since too many waited for a leader.
    TooManyWait,
    /// A write was refused, since it would have read or answered too much.
    WriteBounded,
    /// A request through a gateway took too long.
    CallTimedOut,
    /// A client gave up a request.
    CallGivenUp,
    /// A node dropped a request that its gateway had taken back.
    RequestCancelled,
    /// A client of a gateway read at the leader.
    ReadByGateway,
    /// A client of a gateway read at the nearest replica.
    ReadAtNearest,
    /// A client of a gateway read a list page by page.
    ListPaged,
    /// A client of a gateway read a range as a stream of several chunks.
    RangeStreamed,
    /// A gateway was sent an answer in parts.
    AnsweredInParts,
    /// A gateway took in a newer shard map.
    MapChanged,
    /// A gateway's feed went on at another replica.
    FeedMoved,
    /// A client's stream was shown events.
    ListenerTold,
    /// A client went on with its watches at another gateway.
    ListenerMoved,
    /// A watch ended, as what it was to show next was compacted.
    ListenerCompacted,
    /// A client asked how far it had been told everything, and was answered.
    ProgressAnswered,
    /// A watch was told so unasked.
    ProgressNotified,
    /// The cluster version rose, since the last node that was older had been replaced.
    Upgraded,
    /// A lease was renewed.
    LeaseKept,
    /// Only the log could tell what became of a lease that was to be renewed, and the others were not held up.
    RenewalUndecided,
    /// A leader had leases removed that had come to their end.
    LeaseExpired,
    /// A request was refused where its keys are not: its client went by an old map, or it is for several shards.
    WrongShard,
    /// A gateway's request was refused so.
    RefusedAsWrongShard,
    /// It was answered after the gateway had seen a newer map.
    AnsweredByNewerMap,
    /// It was answered by another group than was asked at first.
    AnsweredByOtherGroup,
    /// A gateway refused a request for several shards.
    RequestSpansShards,
    /// A gateway's feed was sent a part of a revision.
    FeedInParts,
    /// A gateway's feed that had been sent a part of a revision was ended by its replica, and went on elsewhere.
    FeedMovedInside,
    /// A gateway's feed was refused where its keys are not.
    FeedRefusedAsWrongShard,
    /// It was opened after the gateway had seen a newer map.
    FeedOpenedByNewerMap,
    /// A gateway refused a watch of several shards.
    WatchSpansShards,
    /// A group began with more than one shard.
    SeveralShards,
    /// Several groups carried a domain.
    DomainOfSeveralGroups,
    /// A write was refused, since too many disks were full.
    RefusedForDisks,
    /// A leader could make nothing durable, since too many disks were full.
    DisksFull,
    /// A read was served after a round of read-index.
    IndexRead,
    /// A leader confirmed its leadership for reads.
    ReadIndexRound,
    /// A slot was committed with a vote of a node in quarantine.
    QuarantineCommit,
    /// A slot that enough members had voted for waited for a lease holder.
    HolderWait,
    /// A state reached the log's end by an own snapshot.
    SnapshotTaken,
    /// A peer's snapshot was installed.
    SnapshotInstalled,
    /// A replica that had lost its snapshot began with a peer's.
    BegunWithAPeersSnapshot,
    /// The hand-over of a snapshot broke.
    SnapshotBroken,
    /// A node took its place among the first.
    Founded,
    /// A node that had lost its whole disk took its place again.
    Returned,
    /// A newcomer waited for somebody's answer.
    NewcomerWaited,
    /// Recovery discarded an unfinished batch.
    TornTail,
    /// Recovery found payloads lost.
    PayloadLost,
    /// Recovery found records lost with their labels.
    DescriptorLost,
    /// Recovery used the second copy of a descriptor.
    DescriptorRepaired,
    /// A value that a disk had lost came back.
    PayloadRepaired,
    /// A replica made up for everything its disk may have forgotten.
    Healed,
    /// A replica could not be sure of its promise after a restart.
    PromiseLost,
    /// A value that may have been chosen was on no disk any more.
    ValueLostEverywhere,
    /// Leadership was handed over.
    TransferDone,
    /// A node stopped in order: it gave its leases back, and a leader handed over.
    Retired,
    /// A leadership transfer did not come about.
    TransferAborted,
    /// A leader sent a value again.
    Retransmission,
    /// A command that had taken effect came through the log again and was dropped.
    DuplicateDropped,
    /// A new leader proposed a value that it found in an older ballot.
    ValueAdopted,
    /// A member got committed values that it had asked for.
    CaughtUpByFetch,
    /// A proposal was refused because too many waited.
    Overloaded,
    /// A process was killed; its machine went on.
    ProcessKilled,
    /// A machine lost power.
    PowerCut,
    /// All machines lost power at once.
    AllPowerCut,
    /// A process was stopped and went on later.
    ProcessPaused,
    /// A group's thread stopped between reading the clock and the step.
    StallBeforeStep,
    /// A group's thread stopped between the step and carrying out what it said.
    StallBeforeSend,
    /// A sync took more than a second.
    DiskStalled,
    /// A sync failed and fenced the node.
    Fenced,
    /// The disk had no room for the next segment.
    DiskFull,
    /// The network was cut in two.
    PartitionSymmetric,
    /// One side heard the other, which did not hear it.
    PartitionAsymmetric,
    /// Two sides met in one node only.
    PartitionBridge,
    /// A node received and could not send.
    PartitionReceiveOnly,
    /// Two nodes did not hear each other.
    PartitionLink,
    /// A link held its messages back.
    LinkClogged,
    /// A message arrived twice.
    MessageDuplicated,
    /// A message arrived after the restart of its sender.
    MessageFromFormerIncarnation,
    /// A leader was stopped past its leases and half cut off.
    Deposed,
    /// All but a cut-off leader restarted.
    FollowersRestarted,
    /// Power went out while a batch was on its way to the disk.
    PowerCutDuringSync,
    /// A journal segment was used again.
    SegmentRecycled,
}

impl Mark {
    /// What a suite is for, in words. So many seeds as [`Mark::VITAL_SEEDS`] show all of it, or something has become rare that
    /// must not.
    pub const VITAL: [(Mark, &'static str); 11] = [
        (Mark::Election, "elections"),
        (Mark::WatchMoved, "moves of watches between nodes"),
        (Mark::FeedMoved, "moves of gateways' feeds"),
        (Mark::ListenerMoved, "moves of watches between gateways"),
        (Mark::AnsweredFromSession, "retried writes answered from a session"),
        (Mark::SnapshotInstalled, "snapshots installed"),
        (Mark::LeaseExpired, "leases expired"),
        (Mark::SeveralShards, "groups of several shards"),
        (Mark::AnsweredByNewerMap, "requests refused by the wrong shard and answered by the right one"),
        (Mark::FeedRefusedAsWrongShard, "feeds refused by the wrong shard"),
        (Mark::DiskFull, "disks filled"),
    ];

    /// See [`Mark::VITAL`].
    pub const VITAL_SEEDS: u64 = 300;
}

/// How often each [`Mark`] occurred.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coverage([u64; Mark::ALL.len()]);

impl Default for Coverage {
    fn default() -> Coverage {
        Coverage([0; Mark::ALL.len()])
    }
}

impl Coverage {
    pub(crate) fn mark(&mut self, mark: Mark) {
        self.0[mark as usize] += 1;
    }

    /// How often `mark` occurred.
    #[must_use]
    pub fn count(&self, mark: Mark) -> u64 {
        self.0[mark as usize]
    }

    /// Adds what happened in another run.
    pub fn add(&mut self, other: &Coverage) {
        for (sum, count) in self.0.iter_mut().zip(other.0) {
            *sum += count;
        }
    }

    /// What never happened.
    pub fn missing(&self) -> impl Iterator<Item = Mark> + '_ {
        Mark::ALL.iter().copied().filter(|mark| self.count(*mark) == 0)
    }
}
