//! Many seeds on several threads, and what is told of a failure.

use std::cell::RefCell;
use std::fmt;
use std::ops::Range;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::thread;

use super::coverage::Coverage;
use super::env::TraceMode;
use super::truth::Violation;
use super::world::{RunOptions, RunReport, run_into};

/// Lines of the trace that are shown of a failing seed.
const LINES_SHOWN: usize = 120;

thread_local! {
    /// While a seed runs: what an assertion said.
    static CAUGHT: RefCell<Option<String>> = const { RefCell::new(None) };
    static CATCHING: RefCell<bool> = const { RefCell::new(false) };
}

static HOOK: Once = Once::new();

/// Findings that are not resolved yet: seeds that fail, each with the invariant that it violates. A suite leaves them
/// out, so that it tells of anything new; a test holds that each still fails as noted, so that none stays listed when
/// its cause is gone.
#[must_use]
pub fn open_seeds() -> Vec<(u64, &'static str)> {
    let lines = include_str!("../../corpus/open.txt").lines().map(str::trim);
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .filter_map(|line| {
            let (seed, note) = line.split_once(' ')?;
            Some((seed.parse().ok()?, note.split_whitespace().next()?))
        })
        .collect()
}

/// Runs one seed; a failed assertion of the engine or the journal becomes a violation.
#[must_use]
pub fn run_caught(seed: u64, options: RunOptions) -> RunReport {
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !CATCHING.with(|catching| *catching.borrow()) {
                before(info);
                return;
            }
            let what = info.payload_as_str().unwrap_or("an assertion failed");
            let at = info.location().map(ToString::to_string).unwrap_or_default();
            CAUGHT.with(|caught| *caught.borrow_mut() = Some(format!("{what}\n{at}")));
        }));
    });
    CATCHING.with(|catching| *catching.borrow_mut() = true);
    let mut world = None;
    let result = panic::catch_unwind(AssertUnwindSafe(|| run_into(seed, options, &mut world)));
    CATCHING.with(|catching| *catching.borrow_mut() = false);
    match (result, world) {
        (Ok(report), _) => report,
        (Err(_), Some(mut world)) => {
            let said = CAUGHT.with(|caught| caught.borrow_mut().take()).unwrap_or_default();
            let mut lines = said.lines();
            let invariant = lines.next().unwrap_or_default().to_owned();
            let detail = lines.collect::<Vec<_>>().join(" ");
            RunReport { violation: Some(Violation { invariant, detail }), ..world.report(seed) }
        }
        (Err(panic), None) => panic::resume_unwind(panic),
    }
}

/// Which seeds to run, and how.
#[derive(Clone, Debug)]
pub struct Suite {
    /// The seeds.
    pub seeds: Range<u64>,
    /// How many run at a time.
    pub threads: usize,
    /// Stop at the first that fails.
    pub stop_at_failure: bool,
    /// How each is run.
    pub options: RunOptions,
}

/// What came of a suite.
#[derive(Clone, Debug, Default)]
pub struct SuiteReport {
    /// Seeds that ran.
    pub runs: u64,
    /// Events of all of them.
    pub events: u64,
    /// Operations answered in all of them.
    pub answered: u64,
    /// What happened in all of them.
    pub coverage: Coverage,
    /// Those that failed, by seed, each with the end of its trace.
    pub failures: Vec<RunReport>,
}

impl Suite {
    /// Runs the seeds but for the [`open_seeds`]. A seed that fails is run again to keep the end of its trace.
    #[must_use]
    pub fn run(&self) -> SuiteReport {
        let open = open_seeds();
        let next = AtomicU64::new(self.seeds.start);
        let stop = AtomicBool::new(false);
        let total = Mutex::new(SuiteReport::default());
        thread::scope(|scope| {
            for _ in 0..self.threads.max(1) {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= self.seeds.end {
                            return;
                        }
                        if open.iter().any(|(open, _)| *open == seed) {
                            continue;
                        }
                        let mut report = run_caught(seed, self.options);
                        if report.violation.is_some() {
                            if self.stop_at_failure {
                                stop.store(true, Ordering::Relaxed);
                            }
                            let mut options = self.options;
                            options.trace = TraceMode::Last(LINES_SHOWN);
                            report = run_caught(seed, options);
                        }
                        let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
                        total.runs += 1;
                        total.events += report.events;
                        total.answered += report.answered;
                        total.coverage.add(&report.coverage);
                        if report.violation.is_some() {
                            total.failures.push(report);
                        }
                    }
                });
            }
        });
        let mut total = total.into_inner().unwrap_or_else(PoisonError::into_inner);
        total.failures.sort_by_key(|report| report.seed);
        total
    }
}

impl fmt::Display for RunReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "seed {}: hash {:016x}, {} events, {} operations answered",
            self.seed, self.hash, self.events, self.answered
        )?;
        writeln!(f, "{}", self.profile)?;
        for line in &self.trace {
            writeln!(f, "{line}")?;
        }
        match &self.violation {
            None => write!(f, "ok"),
            Some(violation) => {
                writeln!(f, "VIOLATION of {}", violation.invariant)?;
                writeln!(f, "  {}", violation.detail)?;
                write!(
                    f,
                    "replay with the whole trace: cargo run -p sim --bin sim -- --seed {}{} --trace",
                    self.seed, self.options
                )
            }
        }
    }
}
