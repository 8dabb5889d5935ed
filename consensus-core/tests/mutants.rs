//! Broken rules that random faults on the small cluster show quickly. That every one is noticed is the business of the
//! simulation, which knows what is on each disk; here only what a client or an operator would notice counts.
#![cfg(feature = "mutants")]

mod harness;

use consensus_core::Mutant;
use harness::chaos;

/// How many seeds catch each of these.
const SEEDS: u64 = 1_500;

const SHOWN: [Mutant; 14] = [
    Mutant::AcceptedUngated,
    Mutant::OwnVoteUngated,
    Mutant::PhaseOneQuorumShort,
    Mutant::PhaseTwoQuorumShort,
    Mutant::GrantsIgnored,
    Mutant::GrantMissing,
    Mutant::LeaseUnbounded,
    Mutant::CommitOldBallot,
    Mutant::SelectFree,
    Mutant::PromiseUnchecked,
    Mutant::UptoSkipsHoles,
    Mutant::FaultyAsNoVote,
    Mutant::PhaseOneFromTooHigh,
    Mutant::ReadBeforeReady,
];

fn caught_at(mutant: Mutant, seeds: u64) -> Option<(u64, String)> {
    (0..seeds).find_map(|seed| {
        let run = std::panic::catch_unwind(|| chaos::run(seed, |cluster| cluster.mutate(Some(mutant))));
        let panic = run.err()?;
        let message = panic.downcast_ref::<String>().cloned();
        let message = message.or_else(|| panic.downcast_ref::<&str>().map(|message| (*message).to_owned()));
        Some((seed, message.unwrap_or_default().lines().next().unwrap_or_default().to_owned()))
    })
}

#[test]
fn mutants_are_caught_by_random_faults() {
    std::panic::set_hook(Box::new(|_| {}));
    let mut survivors = Vec::new();
    for mutant in SHOWN {
        match caught_at(mutant, SEEDS) {
            Some((seed, message)) => println!("{mutant:?}: caught by seed {seed}: {message}"),
            None => survivors.push(mutant),
        }
    }
    let _ = std::panic::take_hook();
    assert!(survivors.is_empty(), "not caught: {survivors:?}");
}
