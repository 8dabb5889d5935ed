//! Whole clusters of the real group core over the real journal, on a simulated network, simulated disks and
//! clocks, in virtual time. A seed decides everything: the cluster, the load, the faults and their moments. The same
//! seed gives the same run, event by event.
//!
//! ```text
//! world      one heap of events in true time; faults; the end: everything heals, and must then work
//!   clients    ask nodes, ask again elsewhere, and remember what they saw
//!   watchers   follow a range from node to node
//!   callers    ask gateways, and go on at another one
//!   listeners  watch through gateways, and go on where they were
//!   gateway    routes, sessions, retries, links, feeds, watchers                          (the real `gateway_core`)
//!   maps       of shards: how the keys of a domain came to lie where they are, and who knows how much of that
//!   connections  between gateways and nodes: in order while they last
//!   net        loss, duplication, reordering, partitions
//!   node       disk and clock; the process: superblock, journal, snapshot files, liveness       (the real ones)
//!     task       a group: engine, state machine, sessions, leases, snapshots            (the real `group_core::Replica`)
//!   truth      every record that ever reached a disk, and what follows from that: the invariants
//! ```
//!
//! What is checked, by the names that a failure carries:
//!
//! | name | what |
//! | --- | --- |
//! | I1 | promises only grow, across restarts and damage; nobody votes below its promise |
//! | I2 | a node's votes for a slot have growing ballots |
//! | I3 | at a classic ballot a slot has one value |
//! | I4 | above the ballot at which a value was chosen, nobody votes for another |
//! | I5 | one value is committed per slot, and it is the one that a quorum of disks holds |
//! | I7 | a leader has the promises of a phase-1 quorum |
//! | I8 | no ballot is used in two incarnations of a node |
//! | I9 | what a message claims is on its sender's disk when it leaves |
//! | I10 | commits come in order, without gaps, and never before a quorum of disks holds the value |
//! | I12 | nobody could read under its lease, at any time, without seeing everything committed by anybody (with I11) |
//! | I13 | a node that counts on support has it, in true time |
//! | I16 | a command takes effect once, and every answer to it is the same |
//! | I18 | a promise reports every vote that was ever synced, or declares that it may be forgotten |
//! | I20 | all replicas have the same state at the same slot |
//! | I21 | when all trouble has ended: one leader, everybody caught up, writes and lease reads work |
//! | rejected means never | what was refused does not enter the log |
//! | journal | everything synced comes back byte for byte or is reported as lost, nothing else comes back |
//! | recovery | a node can start from what a crash leaves |
//! | codec | what is decoded is what was encoded |
//! | timers | no timer is due again at once |
//! | reads | what is read is what was there at the revision that the answer says, and not before what was there already |
//! | shards | a command takes effect where its keys are and have been since the map that it went by, and is refused elsewhere |
//! | maps | a gateway follows the newest shard map that it has seen, and no older one |
//! | links | a gateway's links are what its dialler says they are |
//! | watch | a watcher is shown every change once, whole, in order, with what was there before, and nothing from the future |
//! | versions | nobody is sent what he does not know; in the end the newest version is in force |
//! | leases | no lease ends before the time that its owner was told; in the end all do |
//! | linearizable | what clients saw has an explanation, by the checker that knows nothing of slots |
//!
//! To these come the engine's own `check_invariants`, called after every step, and every assertion on the way.

mod callers;
mod clients;
mod clock;
mod commands;
mod coverage;
mod env;
mod events;
mod gateway;
mod listeners;
mod long_reads;
mod maps;
#[cfg(feature = "mutants")]
mod mutant;
mod net;
mod node;
mod profile;
mod reduction;
mod rng;
mod runner;
mod shrink;
mod truth;
mod watchers;
mod world;

pub use coverage::{Coverage, Mark};
pub use env::TraceMode;
#[cfg(feature = "mutants")]
pub use mutant::Mutant;
pub use reduction::Reduction;
pub use runner::{Suite, SuiteReport, open_seeds, run_caught};
pub use shrink::shrink;
pub use truth::Violation;
pub use world::{RunOptions, RunReport, run};
