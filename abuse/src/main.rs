//! The command line of the hostile suite. The verdict goes to stdout, progress and errors to stderr.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use abuse::{CASES, Case, Demand, Problem, Report, Suite, System, page};
use clap::{Parser, ValueEnum};

/// Attacks a server, and fails if a small well-behaved client is hurt.
#[derive(Debug, Parser)]
#[command(name = "gaios-abuse", version)]
struct Cli {
    /// The `gaios` that is attacked.
    #[arg(long, default_value = "target/release/gaios")]
    gaios: PathBuf,
    /// An `etcd` that is attacked beside it.
    #[arg(long)]
    etcd: Option<PathBuf>,
    /// Attack the etcd alone.
    #[arg(long, requires = "etcd")]
    etcd_only: bool,
    /// Only these cases, by name (may be repeated, or separated by commas).
    #[arg(long = "case", value_name = "NAME", value_delimiter = ',')]
    cases: Vec<String>,
    /// Sizes of the attacks are multiplied by this.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Tell the cases, and attack nobody.
    #[arg(long)]
    list: bool,
    /// How the verdict is told.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    /// Write docs/limits.md to this file.
    #[arg(long, value_name = "FILE")]
    docs: Option<PathBuf>,
    /// Reports that `-o json` told earlier, on the same machine, for the cases of --docs that are not run (may be repeated).
    #[arg(long, value_name = "FILE", requires = "docs")]
    earlier: Vec<PathBuf>,
    /// Run nothing.
    #[arg(long, requires = "earlier", conflicts_with = "cases")]
    no_run: bool,
    /// Lines of the gateway's configuration, in the place of `limits: {memory_budget: 256MiB}`.
    #[arg(long, default_value = "")]
    settings: String,
    /// Where servers have their data.
    #[arg(long, default_value = "target/abuse")]
    data_dir: PathBuf,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Output {
    #[default]
    Text,
    Json,
}

/// A case that failed is run again, so often at most, if other programs had more of the machine than this (0 to 1).
const DISTURBANCE_MAX: f64 = 0.1;
const ATTEMPTS: usize = 3;

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.list {
        for case in CASES {
            println!("{:<20} {:<5} {}", case.name, word(case.demand), case.attack_is);
        }
        return ExitCode::SUCCESS;
    }
    match run(&cli) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(problem) => {
            eprintln!("gaios-abuse: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<bool, Problem> {
    if !(cli.scale > 0.0 && cli.scale <= 100.0) {
        return Err("--scale must be above 0 and at most 100".to_owned());
    }
    let cases = if cli.no_run { Vec::new() } else { chosen(&cli.cases)? };
    let systems: Vec<System> = [System::Gaios(cli.gaios.clone())]
        .into_iter()
        .filter(|_| !cli.etcd_only)
        .chain(cli.etcd.clone().map(System::Etcd))
        .collect();
    std::fs::create_dir_all(&cli.data_dir).map_err(|error| format!("{}: {error}", cli.data_dir.display()))?;
    let suite = Suite::new(cli.data_dir.clone(), cli.scale, cli.settings.clone())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("start: {error}"))?;
    let (mut held, mut reports) = (true, Vec::new());
    for case in cases {
        for system in &systems {
            if case.by_link && matches!(system, System::Etcd(_)) {
                continue;
            }
            let begun = Instant::now();
            let report = runtime.block_on(until_quiet(&suite, case, system))?;
            let verdict = Verdict::of(case, system, &report);
            held &= verdict != Verdict::Failed;
            let name = format!("{} against {}", case.name, system.label());
            eprintln!("{name}: {}, {:.1} s", verdict.word(), begun.elapsed().as_secs_f64());
            eprintln!("{report}");
            for finding in report.findings() {
                eprintln!("  hurt: {finding}");
            }
            reports.push(report);
        }
    }
    match cli.output {
        Output::Text => print_verdicts(&reports),
        Output::Json => {
            println!("{}", serde_json::to_string_pretty(&reports).map_err(|error| error.to_string())?);
        }
    }
    if let Some(path) = &cli.docs {
        for earlier in &cli.earlier {
            reports.extend(read(earlier)?);
        }
        const CONFIGURATION: &str = "docs/configuration.md";
        let configuration = std::fs::read_to_string(CONFIGURATION);
        let configuration = configuration.map_err(|error| format!("{CONFIGURATION}: {error}"))?;
        let text = page(&machine(), &configuration, &reports);
        std::fs::write(path, text).map_err(|error| format!("write {}: {error}", path.display()))?;
    }
    Ok(held)
}

fn read(path: &Path) -> Result<Vec<Report>, Problem> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))
}

fn chosen(names: &[String]) -> Result<Vec<&'static Case>, Problem> {
    if names.is_empty() {
        return Ok(CASES.iter().collect());
    }
    let find = |name: &String| {
        let found = CASES.iter().find(|case| case.name == name.as_str());
        found.ok_or_else(|| format!("--case {name}: there is no such case; --list tells them"))
    };
    names.iter().map(find).collect()
}

/// Runs a case, again where somebody was hurt and other programs may be the cause.
async fn until_quiet(suite: &Suite, case: &Case, system: &System) -> Result<Report, Problem> {
    let mut attempt = 1;
    loop {
        let report = suite.run(case, system).await?;
        let disturbed = report.disturbance > DISTURBANCE_MAX && case.demand == Demand::Held;
        if attempt == ATTEMPTS || !disturbed || report.findings().is_empty() {
            return Ok(report);
        }
        eprintln!("{}: other programs had {:.0} %: again", case.name, report.disturbance * 100.0);
        attempt += 1;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Held,
    Failed,
    /// Somebody was hurt, in a case that does not demand yet that nobody is.
    Open,
    /// Nobody was, though it is not demanded.
    OpenHeld,
    /// Nothing is demanded of etcd.
    Beside,
}

impl Verdict {
    fn of(case: &Case, system: &System, report: &Report) -> Verdict {
        match (system, case.demand, report.findings().is_empty()) {
            (System::Etcd(_), _, _) => Verdict::Beside,
            (System::Gaios(_), Demand::Held, true) => Verdict::Held,
            (System::Gaios(_), Demand::Held, false) => Verdict::Failed,
            (System::Gaios(_), Demand::Open, true) => Verdict::OpenHeld,
            (System::Gaios(_), Demand::Open, false) => Verdict::Open,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Verdict::Held => "held",
            Verdict::Failed => "FAILED",
            Verdict::Open => "open",
            Verdict::OpenHeld => "open, but held",
            Verdict::Beside => "done",
        }
    }
}

fn word(demand: Demand) -> &'static str {
    match demand {
        Demand::Held => "held",
        Demand::Open => "open",
    }
}

fn print_verdicts(reports: &[Report]) {
    for report in reports {
        let findings = report.findings();
        let told = if findings.is_empty() { "nobody hurt".to_owned() } else { findings.join("; ") };
        println!("{:<20} {:<6} {told}", report.case, report.system);
    }
}

fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    format!("Machine: {}, {cores} cores.", model.trim_start_matches(['\t', ' ', ':']))
}
