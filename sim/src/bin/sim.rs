//! Runs seeds of the cluster simulation. See `--help`.

use std::process::ExitCode;
use std::time::Instant;

#[cfg(feature = "mutants")]
use sim::cluster::Mutant;
use sim::cluster::{Mark, Reduction, RunOptions, Suite, TraceMode, run_caught, shrink};

const HELP: &str = "\
cargo run -p sim --bin sim -- FLAGS

  --seeds N           how many seeds to run (default 1000)
  --from S            the first of them (default 0)
  --threads T         how many at a time (default: all cores)
  --require-coverage  fail if an interesting event never happened
  --coverage          say how often each event happened
  --keep-going        run on after a failure
  --seed S            run this seed alone
  --trace             with --seed: print every line of its trace
  --last N            with --seed: print the last N lines of its trace
  --shrink            with --seed: if it fails, find what it fails without, and print that run
  --without A,B       no faults of these kinds
  --heal-at MS        no faults after so many milliseconds
  --mixed-support     incarnations differ in how long they support others
  --mutant NAME       break this rule (needs --features mutants)
  --mutants           every mutant must be caught within --seeds seeds (needs --features mutants)
";

struct Flags {
    seeds: u64,
    from: u64,
    threads: usize,
    require_coverage: bool,
    coverage: bool,
    keep_going: bool,
    seed: Option<u64>,
    trace: TraceMode,
    shrink: bool,
    reduction: Reduction,
    mixed_support: bool,
    mutant: Option<String>,
    mutants: bool,
}

fn main() -> ExitCode {
    let flags = match Flags::parse() {
        Ok(Some(flags)) => flags,
        Ok(None) => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("sim: {error}\n\n{HELP}");
            return ExitCode::FAILURE;
        }
    };
    let options = match flags.options() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("sim: {error}");
            return ExitCode::FAILURE;
        }
    };
    let ok = if flags.mutants {
        kill_mutants(&flags)
    } else if let Some(seed) = flags.seed {
        let report = if flags.shrink { shrink(seed, options) } else { run_caught(seed, options) };
        println!("{report}");
        report.violation.is_none()
    } else {
        run_suite(&flags, options)
    };
    if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl Flags {
    fn parse() -> Result<Option<Flags>, String> {
        let mut flags = Flags {
            seeds: 1000,
            from: 0,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            require_coverage: false,
            coverage: false,
            keep_going: false,
            seed: None,
            trace: TraceMode::Off,
            shrink: false,
            reduction: Reduction::default(),
            mixed_support: false,
            mutant: None,
            mutants: false,
        };
        let mut args = std::env::args().skip(1);
        while let Some(flag) = args.next() {
            let mut value = || args.next().ok_or(format!("{flag} needs a value"));
            match flag.as_str() {
                "--seeds" => flags.seeds = number(&flag, &value()?)?,
                "--from" => flags.from = number(&flag, &value()?)?,
                "--threads" => flags.threads = number(&flag, &value()?)? as usize,
                "--require-coverage" => flags.require_coverage = true,
                "--coverage" => flags.coverage = true,
                "--keep-going" => flags.keep_going = true,
                "--seed" => flags.seed = Some(number(&flag, &value()?)?),
                "--trace" => flags.trace = TraceMode::All,
                "--last" => flags.trace = TraceMode::Last(number(&flag, &value()?)? as usize),
                "--shrink" => flags.shrink = true,
                "--without" => flags.reduction = flags.reduction.without(&value()?)?,
                "--heal-at" => flags.reduction = flags.reduction.heal_at(number(&flag, &value()?)?),
                "--mixed-support" => flags.mixed_support = true,
                "--mutant" => flags.mutant = Some(value()?),
                "--mutants" => flags.mutants = true,
                "--help" | "-h" => return Ok(None),
                _ => return Err(format!("no such flag: {flag}")),
            }
        }
        Ok(Some(flags))
    }

    #[cfg(feature = "mutants")]
    fn options(&self) -> Result<RunOptions, String> {
        let find = |name: &String| {
            Mutant::all().find(|mutant| mutant.name() == *name).ok_or(format!("no such mutant: {name}"))
        };
        let mutant = self.mutant.as_ref().map(find).transpose()?;
        Ok(RunOptions {
            trace: self.trace,
            mixed_support: self.mixed_support,
            reduction: self.reduction,
            mutant,
        })
    }

    #[cfg(not(feature = "mutants"))]
    fn options(&self) -> Result<RunOptions, String> {
        if self.mutant.is_some() || self.mutants {
            return Err("mutants are not built in: add --features mutants".to_owned());
        }
        Ok(RunOptions { trace: self.trace, mixed_support: self.mixed_support, reduction: self.reduction })
    }
}

fn number(flag: &str, value: &str) -> Result<u64, String> {
    value.parse().map_err(|_| format!("{flag} needs a number, not {value:?}"))
}

fn run_suite(flags: &Flags, options: RunOptions) -> bool {
    let started = Instant::now();
    let suite = Suite {
        seeds: flags.from..flags.from.saturating_add(flags.seeds),
        threads: flags.threads,
        stop_at_failure: !flags.keep_going,
        options,
    };
    let report = suite.run();
    for failure in &report.failures {
        println!("{failure}\n");
    }
    let took = started.elapsed();
    println!(
        "{} seeds, {} failed; {} events, {} operations answered, {:.1} s, {:.1} ms of a core per seed",
        report.runs,
        report.failures.len(),
        report.events,
        report.answered,
        took.as_secs_f64(),
        took.as_secs_f64() * 1000.0 * flags.threads as f64 / report.runs.max(1) as f64
    );
    let vital = Mark::VITAL.map(|(mark, what)| format!("{} {what}", report.coverage.count(mark)));
    println!("{}", vital.join(", "));
    if flags.coverage {
        for mark in Mark::ALL {
            println!("{:>12}  {}", report.coverage.count(*mark), mark.name());
        }
    }
    let unseen = Mark::VITAL.into_iter().filter(|(mark, _)| report.coverage.count(*mark) == 0);
    let unseen: Vec<&str> = unseen.map(|(_, what)| what).collect();
    if report.runs >= Mark::VITAL_SEEDS && !unseen.is_empty() {
        println!("not one of these in {} seeds: {}", report.runs, unseen.join(", "));
        return false;
    }
    let missing: Vec<&str> = report.coverage.missing().map(Mark::name).collect();
    if flags.require_coverage && !missing.is_empty() {
        println!("never happened: {}", missing.join(", "));
        return false;
    }
    report.failures.is_empty()
}

#[cfg(feature = "mutants")]
fn kill_mutants(flags: &Flags) -> bool {
    let mut survivors = Vec::new();
    for mutant in Mutant::all() {
        let name = mutant.name();
        let started = Instant::now();
        let suite = Suite {
            seeds: flags.from..flags.from.saturating_add(flags.seeds),
            threads: flags.threads,
            stop_at_failure: true,
            options: RunOptions { mutant: Some(mutant), ..RunOptions::default() },
        };
        let report = suite.run();
        let took = started.elapsed().as_secs_f64();
        match report.failures.first().and_then(|failure| Some((failure.seed, failure.violation.as_ref()?))) {
            Some((seed, violation)) => {
                println!(
                    "{name}: caught by {} with seed {seed}, {} seeds, {took:.1} s",
                    violation.invariant, report.runs
                );
            }
            None => {
                println!("{name}: SURVIVED {} seeds, {took:.1} s", report.runs);
                survivors.push(name);
            }
        }
    }
    if !survivors.is_empty() {
        println!("survived: {}", survivors.join(", "));
    }
    survivors.is_empty()
}

#[cfg(not(feature = "mutants"))]
fn kill_mutants(_: &Flags) -> bool {
    false
}
