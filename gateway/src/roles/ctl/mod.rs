//! `gaios ctl`: what operators ask of a cluster that runs, by the admin port of one of its processes, or do to the data
//! directory of a node that does not. Each subcommand has a file of its own. Data goes to standard output, and every table
//! can be had as JSON.

mod certs;
mod client;
mod leader;
mod output;
mod recover;
mod secrets;
mod status;

use super::Failure;
use client::Admin;
use output::Format;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The admin port to ask, a gateway's or a node's.
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "GAIOS_ADMIN",
        default_value = "http://127.0.0.1:2378"
    )]
    admin: String,
    /// How the answer is written.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Show gateways, nodes and groups, and what needs a look.
    Status(status::Args),
    /// Show and say who leads the groups.
    Leader(leader::Args),
    /// Look at what the data directory of a stopped node holds, and declare that this is what there is.
    Recover(recover::Args),
    /// Make and renew certificates. Asks nobody, unless they are to be kept in Secrets of Kubernetes.
    Certs(certs::Args),
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    match &args.command {
        Command::Recover(recover) => recover::run(recover, args.output),
        Command::Status(status) => block_on(status::run(status, &Admin::new(&args.admin)?, args.output)),
        Command::Leader(leader) => block_on(leader::run(leader, &Admin::new(&args.admin)?, args.output)),
        Command::Certs(certs) => certs::run(certs, args.output),
    }
}

/// Runs a command to its end, on this thread.
fn block_on(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(command)
}
