//! The cluster simulation as part of the tests: many seeds, seeds that failed once, and that a seed means one run.

use std::thread;

use sim::cluster::{Mark, RunOptions, RunReport, Suite, SuiteReport, open_seeds, run, run_caught};

/// Seeds that each test run goes through. CI runs more.
const SEEDS: u64 = 1_000;

fn threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

fn suite(seeds: u64, options: RunOptions) -> SuiteReport {
    Suite { seeds: 0..seeds, threads: threads(), stop_at_failure: true, options }.run()
}

fn expect_ok(failures: &[RunReport]) {
    if let Some(failure) = failures.first() {
        panic!("{failure}");
    }
}

#[test]
fn a_thousand_clusters_survive_their_faults_and_every_interesting_event_occurs() {
    let report = suite(SEEDS, RunOptions::default());
    expect_ok(&report.failures);
    let missing: Vec<&str> = report.coverage.missing().map(Mark::name).collect();
    assert!(missing.is_empty(), "never happened in {SEEDS} seeds: {missing:?}");
}

/// Nodes whose configuration differs, and is another after a restart: a lease lasts as long as who gives it says.
#[test]
fn nodes_that_differ_in_how_long_they_support_others_survive_their_faults_too() {
    expect_ok(&suite(SEEDS / 4, RunOptions { mixed_support: true, ..RunOptions::default() }).failures);
}

#[test]
fn seeds_that_failed_once_do_not_fail_again() {
    let corpus = include_str!("../corpus/seeds.txt");
    let lines = corpus.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    for line in lines {
        let seed = line.split_whitespace().next().expect("lines are not empty");
        let seed = seed.parse().unwrap_or_else(|_| panic!("not a seed: {line}"));
        let report = run_caught(seed, RunOptions::default());
        assert!(report.violation.is_none(), "{line}\n{report}");
    }
}

#[test]
fn open_findings_still_fail_as_noted() {
    for (seed, invariant) in open_seeds() {
        let report = run_caught(seed, RunOptions::default());
        let found = report.violation.map(|violation| violation.invariant);
        assert_eq!(found.as_deref(), Some(invariant), "seed {seed}: what was found has changed");
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 0..50 {
        let (first, second) = (run(seed, RunOptions::default()), run(seed, RunOptions::default()));
        assert_eq!((first.hash, first.events), (second.hash, second.events), "seed {seed}");
        assert_eq!(first.coverage, second.coverage, "seed {seed}");
    }
}

#[test]
fn different_seeds_give_different_runs() {
    let mut hashes: Vec<u64> = (0..20).map(|seed| run(seed, RunOptions::default()).hash).collect();
    hashes.sort_unstable();
    hashes.dedup();
    assert_eq!(hashes.len(), 20);
}

/// A run that fails is made smaller, and fails in the same way when what is left is asked for by flags.
#[cfg(feature = "mutants")]
#[test]
fn a_failing_run_is_shrunk_to_what_it_needs() {
    use sim::cluster::{Mutant, Reduction, TraceMode, shrink};

    let mutant = Mutant::all().find(|mutant| mutant.name() == "CommandSkipped");
    let options = RunOptions { mutant, ..RunOptions::default() };
    let failing = Suite { seeds: 0..100, threads: threads(), stop_at_failure: true, options }.run();
    let seed = failing.failures.first().expect("it is caught soon").seed;
    let whole = run_caught(seed, options);
    let small = shrink(seed, RunOptions { trace: TraceMode::Last(20), ..options });
    let invariant = |report: &RunReport| report.violation.clone().map(|violation| violation.invariant);
    assert_eq!(invariant(&small), invariant(&whole));
    assert!(small.ended_ms <= whole.ended_ms && !small.trace.is_empty());

    let flags = small.options.reduction.to_string();
    assert!(flags.contains("--without") && flags.contains("Kill"), "no fault is needed to see it:{flags}");
    let mut words = flags.split_whitespace();
    let mut reduction = Reduction::default();
    while let (Some(flag), Some(value)) = (words.next(), words.next()) {
        reduction = match flag {
            "--without" => reduction.without(value).expect("these are kinds of faults"),
            _ => reduction.heal_at(value.parse().expect("milliseconds")),
        };
    }
    let again = run_caught(seed, RunOptions { reduction, ..options });
    assert_eq!((again.hash, invariant(&again)), (small.hash, invariant(&small)));
}
