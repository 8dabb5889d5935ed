//! `gaios ctl certs`: certificates for people without a PKI. It asks nobody, and writes into a folder.

use std::path::{Path, PathBuf};
use std::time::Duration;

use config::{Cluster, Config, Given, HostPort, Name};

use super::Failure;
use super::output::{self, Format, Table};
use crate::roles::pki::{Done, Folder, Plan};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The folder of the certificates. Keep it where nobody else can read it: its CA's key makes anybody a member.
    #[arg(long, value_name = "DIR", default_value = "tls")]
    dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Make a CA and what it signs for a cluster. What is there and good is kept.
    Make(MakeArgs),
    /// Make those certificates anew that do not last.
    Renew {
        /// Those that are valid for fewer days.
        #[arg(long, value_name = "DAYS", default_value_t = 30)]
        within: u32,
        /// How many days the new ones are valid.
        #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = days)]
        days: u32,
    },
    /// Put a new key before those of session tickets. Gateways take it up within seconds.
    Tickets {
        /// How many keys stay. A ticket is of use for twelve hours, so as many as fit into that, and one.
        #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=16))]
        keep: u8,
    },
}

#[derive(clap::Args)]
struct MakeArgs {
    /// Configurations of the cluster's processes: names, ids and the hosts of URLs are taken from there.
    #[arg(long, value_name = "FILE")]
    config: Vec<PathBuf>,
    /// The cluster's name, `cluster.name` of its configurations.
    #[arg(long, value_name = "NAME", value_parser = name)]
    cluster: Option<Name>,
    /// Ids of nodes.
    #[arg(long, value_name = "ID,…", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=65535))]
    nodes: Vec<u32>,
    /// Names of gateways. Those of a region may share one.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', value_parser = name)]
    gateways: Vec<Name>,
    /// DNS names and addresses by which clients reach gateways.
    #[arg(long, value_name = "HOST,…", value_delimiter = ',')]
    names: Vec<String>,
    /// How many days the certificates are valid.
    #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = days)]
    days: u32,
    /// How many days a new CA is valid.
    #[arg(long, value_name = "DAYS", default_value_t = 3650, value_parser = days)]
    ca_days: u32,
}

/// A century is more than any key is good for.
fn days(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(days @ 1..=36_500) => Ok(days),
        Ok(_) | Err(_) => Err("is from 1 to 36500".to_owned()),
    }
}

fn name(text: &str) -> Result<Name, String> {
    Name::new(text)
}

pub(crate) fn run(args: &Args, format: Format) -> Result<(), Failure> {
    let folder = Folder::open(&args.dir)?;
    match &args.command {
        Command::Make(make) => show(format, &folder.make(&plan(make)?)?),
        Command::Renew { within, days } => {
            let within = Duration::from_secs(u64::from(*within) * 86_400);
            show(format, &folder.renew(within, *days)?)
        }
        Command::Tickets { keep } => {
            let keys = folder.rotate_tickets(usize::from(*keep))?;
            eprintln!("the ring has {keys} keys");
            Ok(())
        }
    }
}

fn show(format: Format, done: &Vec<Done>) -> Result<(), Failure> {
    output::print(format, done, |done| {
        let mut table = Table::new(&["FILE", "", "FOR", "DAYS LEFT"]);
        for Done { file, what, holder, days_left } in done {
            let days = days_left.map(|days| days.to_string()).unwrap_or_default();
            table.row(vec![file.display().to_string(), (*what).to_owned(), holder.clone(), days]);
        }
        table.to_string()
    })
}

fn plan(args: &MakeArgs) -> Result<Plan, Failure> {
    let mut plan = Plan {
        cluster: args.cluster.as_ref().map(Name::to_string).unwrap_or_default(),
        nodes: args.nodes.clone(),
        gateways: args.gateways.iter().map(Name::to_string).collect(),
        server_names: args.names.clone(),
        authority_days: args.ca_days,
        days: args.days,
    };
    for file in &args.config {
        add_config(&mut plan, file)?;
    }
    if plan.cluster.is_empty() {
        return Err(
            "which cluster? Say --cluster NAME, or --config FILE with one of its configurations".into()
        );
    }
    plan.nodes.sort_unstable();
    plan.nodes.dedup();
    dedup(&mut plan.gateways);
    dedup(&mut plan.server_names);
    Ok(plan)
}

fn add_config(plan: &mut Plan, file: &Path) -> Result<(), Failure> {
    // Its certificates need not be there: they are about to be made.
    match Config::load_with(file, &Given::default())? {
        Config::Replica(replica) => add_cluster(plan, &replica.cluster),
        Config::Gateway(gateway) => {
            add_cluster(plan, &gateway.cluster)?;
            let members = gateway.members.as_deref().unwrap_or_default();
            plan.gateways.push(gateway.name.to_string());
            plan.gateways.extend(members.iter().map(|member| member.name.to_string()));
            let urls =
                members.iter().flat_map(|member| &member.client_urls).chain(&gateway.advertise_client_urls);
            plan.server_names.extend(urls.map(|url| url.address()).map(HostPort::host).map(str::to_owned));
            Ok(())
        }
    }
}

fn add_cluster(plan: &mut Plan, cluster: &Cluster) -> Result<(), Failure> {
    let name = cluster.name.as_str();
    if plan.cluster.is_empty() {
        plan.cluster = name.to_owned();
    }
    if plan.cluster != name {
        return Err(format!("two clusters, `{}` and `{name}`: each has a CA of its own", plan.cluster).into());
    }
    plan.nodes.extend(cluster.nodes.iter().map(|node| node.id));
    Ok(())
}

/// Keeps the first of equal ones.
fn dedup(names: &mut Vec<String>) {
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
}
