//! A run that fails, made smaller: without the kinds of faults that it fails without, and with as little time for the rest as
//! it fails in. Each trial is one run: 25 for the kinds of faults, and some ten for the time.

use super::profile::Fault;
use super::runner::run_caught;
use super::world::{RunOptions, RunReport};
use crate::cluster::TraceMode;

/// The time of faults is cut down to this, in milliseconds; a run before the first of them takes no longer.
const STEP_MS: u64 = 250;

/// Runs a seed that fails again and again, each time with less. Returns the smallest run found that violates the same invariant,
/// with its trace as `options` asks for it; the run itself if it does not fail.
#[must_use]
pub fn shrink(seed: u64, options: RunOptions) -> RunReport {
    let try_with = |options: RunOptions| run_caught(seed, options);
    let quiet = RunOptions { trace: TraceMode::Off, ..options };
    let first = try_with(quiet);
    let Some(violation) = first.violation else { return try_with(options) };
    let fails_with = |options: RunOptions| {
        let report = try_with(options);
        let same = |found: super::Violation| found.invariant == violation.invariant;
        report.violation.is_some_and(same).then_some(report.ended_ms)
    };

    let mut smallest = quiet;
    let mut ended_ms = first.ended_ms;
    for fault in Fault::ALL {
        let smaller = RunOptions { reduction: smallest.reduction.omit(fault), ..smallest };
        if let Some(ended) = fails_with(smaller) {
            (smallest, ended_ms) = (smaller, ended);
        }
    }
    // It fails with all the time that it took.
    let (mut too_short, mut enough) = (0, ended_ms + 1);
    while enough > too_short + STEP_MS {
        let middle = too_short.midpoint(enough);
        let smaller = RunOptions { reduction: smallest.reduction.heal_at(middle), ..smallest };
        if fails_with(smaller).is_some() {
            (smallest, enough) = (smaller, middle);
        } else {
            too_short = middle;
        }
    }
    try_with(RunOptions { trace: options.trace, ..smallest })
}
