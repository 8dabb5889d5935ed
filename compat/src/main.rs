//! The judge from outside: runs a real etcd and `gaios dev` side by side and compares what clients see.
//!
//! - `differ`: generated sequences through raw gRPC, answers compared ([`differ`]);
//! - `etcdctl`: a script of commands, outputs compared ([`etcdctl`]);
//! - `discovery`: etcdctl finds a gateway by DNS ([`discovery`]);
//! - `clients`: real clients whose calls are out of the ordinary ([`real_clients`]);
//! - `client-tests`: the tests of the `etcd-client` crate against one end ([`client_tests`]);
//! - `chart`: what the chart rendered, as processes ([`chart`]);
//! - `etcd`: installs etcd, and tells where it is;
//! - `all`: installs etcd, starts both, and runs everything.
//!
//! It knows nothing of how Gaios works: only the wire, the command line, and what is compared.

mod allowed;
mod call;
mod chart;
mod client_tests;
mod differ;
mod discovery;
mod etcdctl;
mod generate;
mod named;
mod private;
mod real_clients;
mod render;
mod rng;
mod servers;
mod side;
mod step;
mod watching;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// Compares an etcd v3 server with etcd.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Everything, against a real etcd 3.5.1 that is installed under target/.
    All(All),
    /// Installs etcd 3.5.1 under target/, and prints the path of its program.
    Etcd,
    /// Generated sequences, sent to two running servers.
    Differ(Differ),
    /// A script of etcdctl commands, run against two fresh servers.
    Etcdctl {
        /// URL of the server that is right.
        #[arg(long)]
        left: String,
        /// URL of the server that is judged.
        #[arg(long)]
        right: String,
        /// The program; without it, the one of etcd 3.5.1.
        #[arg(long)]
        etcdctl: Option<PathBuf>,
    },
    /// The chart in helm/gaios without Kubernetes: its pods as processes on loopback.
    Chart(chart::Flags),
    /// The tests of the etcd-client crate, against a server on 127.0.0.1:2379 that is running already.
    ClientTests,
    /// Starts a server on 127.0.0.1:2379 and runs `client-tests`; `all` does this in a network of its own.
    #[command(hide = true)]
    ClientTestsHere {
        #[arg(long)]
        gaios: PathBuf,
        #[arg(long)]
        private_network: bool,
    },
    /// `chart`, in a network and with mounts of its own.
    #[command(hide = true)]
    ChartHere {
        #[arg(long)]
        etcdctl: PathBuf,
        #[command(flatten)]
        flags: chart::Flags,
    },
    /// `discovery`, in a network and with mounts of its own.
    #[command(hide = true)]
    DiscoveryHere {
        #[arg(long)]
        gaios: PathBuf,
        #[arg(long)]
        etcdctl: PathBuf,
    },
}

#[derive(Args)]
struct All {
    /// The program that is judged.
    #[arg(long, default_value = "target/debug/gaios")]
    gaios: PathBuf,
    /// Generated steps.
    #[arg(long, default_value_t = 5000)]
    ops: u64,
    /// Determines them.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Differences after which the differential run ends.
    #[arg(long, default_value_t = 5)]
    most_differences: usize,
    /// Only these parts: etcdctl, etcdctl-tls, discovery, differ, client-tests, cluster, clients.
    #[arg(long, value_delimiter = ',', default_values = PARTS)]
    only: Vec<String>,
}

#[derive(Args)]
struct Differ {
    /// URL of the server that is right.
    #[arg(long)]
    left: String,
    /// URL of the server that is judged.
    #[arg(long)]
    right: String,
    /// Generated steps.
    #[arg(long, default_value_t = 5000)]
    ops: u64,
    /// Determines them.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// First sequence; with `--ops` of one sequence, the only one.
    #[arg(long, default_value_t = 0)]
    first_case: u64,
    /// Steps in a sequence.
    #[arg(long, default_value_t = 40)]
    length: usize,
    /// Leaves out the sequences written by hand.
    #[arg(long)]
    no_named: bool,
    /// Differences after which the run ends.
    #[arg(long, default_value_t = 5)]
    most_differences: usize,
}

/// What `all` consists of.
const PARTS: [&str; 7] =
    ["etcdctl", "etcdctl-tls", "discovery", "differ", "client-tests", "cluster", "clients"];

/// Why a run could not be carried out, as opposed to what it found.
type Problem = String;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::All(all) => run_all(&all).await,
        Command::Etcd => servers::install_etcd().map(|etcd| {
            println!("{}", etcd.etcd.display());
            0
        }),
        Command::Differ(flags) => run_differ(&flags).await,
        Command::Etcdctl { left, right, etcdctl } => {
            let program = etcdctl.map_or_else(|| servers::install_etcd().map(|etcd| etcd.etcdctl), Ok);
            match program {
                Ok(program) => etcdctl::run(&program, &left, &right, None).await,
                Err(problem) => Err(problem),
            }
        }
        Command::Chart(flags) => chart::run_in_private_network(&flags),
        Command::ChartHere { etcdctl, flags } => chart::run_here(&flags, etcdctl).await,
        Command::ClientTests => client_tests::run(),
        Command::ClientTestsHere { gaios, private_network } => {
            client_tests::run_here(&gaios, private_network).await
        }
        Command::DiscoveryHere { gaios, etcdctl } => discovery::run_here(&gaios, &etcdctl).await,
    };
    match result {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failures) => {
            eprintln!("compat: {failures} differences or failures");
            ExitCode::FAILURE
        }
        Err(problem) => {
            eprintln!("compat: {problem}");
            ExitCode::FAILURE
        }
    }
}

async fn run_differ(flags: &Differ) -> Result<usize, Problem> {
    let options = differ::Options {
        left: flags.left.clone(),
        right: flags.right.clone(),
        ops: flags.ops,
        seed: flags.seed,
        first_case: flags.first_case,
        length: flags.length.max(2),
        most_differences: flags.most_differences,
        named: !flags.no_named,
    };
    differ::run(&options).await.map_err(|unreachable| unreachable.0)
}

async fn run_all(all: &All) -> Result<usize, Problem> {
    if let Some(unknown) = all.only.iter().find(|part| !PARTS.contains(&part.as_str())) {
        return Err(format!("--only {unknown}: the parts are {}", PARTS.join(", ")));
    }
    let wanted = |part: &str| all.only.iter().any(|only| only == part);
    let etcd = servers::install_etcd()?;
    let mut failures = 0;
    if wanted("etcdctl") {
        println!("== etcdctl");
        let left = servers::start_etcd(&etcd.etcd).await?;
        let right = servers::start_gaios(&all.gaios, "127.0.0.1:0").await?;
        failures += etcdctl::run(&etcd.etcdctl, left.url(), right.url(), None).await?;
    }
    if wanted("etcdctl-tls") {
        println!("== etcdctl-tls");
        let left = servers::start_etcd(&etcd.etcd).await?;
        let right = servers::start_gaios_with_tls(&all.gaios).await?;
        failures += etcdctl::run(&etcd.etcdctl, left.url(), right.url(), right.tls()).await?;
    }
    if wanted("discovery") {
        println!("== discovery");
        failures += discovery::run_in_private_network(&all.gaios, &etcd.etcdctl)?;
    }
    if wanted("differ") {
        println!("== differ");
        let left = servers::start_etcd(&etcd.etcd).await?;
        let right = servers::start_gaios(&all.gaios, "127.0.0.1:0").await?;
        let options = differ::Options {
            left: left.url().to_owned(),
            right: right.url().to_owned(),
            ops: all.ops,
            seed: all.seed,
            first_case: 0,
            length: 40,
            most_differences: all.most_differences,
            named: true,
        };
        failures += differ::run(&options).await.map_err(|unreachable| unreachable.0)?;
    }
    if wanted("client-tests") {
        println!("== client-tests");
        failures += client_tests::run_in_private_network(&all.gaios).await?;
    }
    if wanted("clients") {
        println!("== clients");
        let server = servers::start_gaios(&all.gaios, "127.0.0.1:0").await?;
        failures += real_clients::run(server.url())?;
    }
    if wanted("cluster") {
        println!("== cluster");
        failures += client_tests::run_cluster(&all.gaios)?;
    }
    Ok(failures)
}
