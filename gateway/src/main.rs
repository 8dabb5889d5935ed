//! `gaios`: the one binary. It parses what it is told, builds the parts, runs them until a signal, and stops in order.

mod roles;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use mimalloc::MiMalloc;

/// Gives memory back to the system when a flood is over, which the C library's does not: docs/decisions/0026.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// A coordination service that speaks the etcd v3 API, built from many consensus groups behind a pool of gateways.
#[derive(Parser)]
#[command(name = "gaios", version, about, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Run everything in one process, on this machine: nodes, and a gateway in front of them.
    Dev(roles::dev::Args),
    /// Run a gateway: the stateless proxy that clients connect to.
    Gateway(roles::ConfigArgs),
    /// Run a node: it keeps replicas of the groups.
    Replica(roles::NodeConfigArgs),
    /// Check a configuration file, of any role, and report every mistake in it.
    Check(roles::NodeConfigArgs),
    /// Ask a cluster that runs, or change something in it.
    Ctl(roles::ctl::Args),
    /// Print what makes a shell complete the commands and flags of this program.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the version, and the etcd version that clients are told.
    Version,
}

fn main() -> ExitCode {
    let result = match Cli::parse().role {
        Role::Dev(args) => roles::dev::run(&args),
        Role::Gateway(args) => roles::gateway::run(&args.config, &args.given()),
        Role::Replica(args) => roles::replica::run(&args.file.config, &args.given()),
        Role::Check(args) => roles::check(&args.file.config, &args.given()),
        Role::Ctl(args) => roles::ctl::run(&args),
        Role::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "gaios", &mut script);
            std::io::stdout().write_all(&script).map_err(Into::into)
        }
        Role::Version => {
            println!(
                "gaios {} (etcd API {})",
                env!("CARGO_PKG_VERSION"),
                gateway::versions::ADVERTISED_VERSION
            );
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gaios: {error}");
            ExitCode::FAILURE
        }
    }
}
