//! Every broken rule that random faults on the small cluster can show is shown. Those that need finer timing or real
//! disks are caught by the models and the simulation; the lists must cover all.
#![cfg(feature = "mutants")]

mod harness;

use consensus_core::Mutant;
use harness::chaos;

/// How many seeds catch what can be caught here.
const SEEDS: u64 = 3_000;

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
fn are_caught_by_random_faults() {
    let wanted = std::env::var("MUTANT").ok();
    let seeds =
        std::env::var("MUTANT_SEEDS").map_or(SEEDS, |seeds| seeds.parse().expect("a number of seeds"));
    std::panic::set_hook(Box::new(|_| {}));
    let mut lines = Vec::new();
    for mutant in Mutant::ALL {
        if wanted.as_ref().is_some_and(|name| *name != format!("{mutant:?}")) {
            continue;
        }
        match caught_at(mutant, seeds) {
            Some((seed, message)) => println!("{mutant:?}: caught by seed {seed}: {message}"),
            None => lines.push(format!("{mutant:?}")),
        }
    }
    let _ = std::panic::take_hook();
    assert!(lines.is_empty(), "not caught: {lines:?}");
}
