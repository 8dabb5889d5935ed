//! `gaios ctl certs`: certificates for people without a PKI. It writes into a folder, and asks nobody; in a pod of Kubernetes
//! it can keep them in Secrets.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use config::{Cluster, Config, Given, HostPort, Name};

use super::output::{self, Format, Table};
use super::secrets::{Api, Secret};
use super::{Failure, block_on};
use crate::roles::pki::{AUTHORITY, Done, Folder, Plan};

/// How many keys of session tickets stay. A ticket is of use for twelve hours, so as many as fit into that, and one.
const TICKET_KEYS: u8 = 3;

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
        #[arg(long, value_name = "N", default_value_t = TICKET_KEYS, value_parser = clap::value_parser!(u8).range(2..=16))]
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
    #[command(flatten)]
    kubernetes: KubernetesArgs,
}

/// Where certificates are kept instead of the folder.
#[derive(clap::Args)]
struct KubernetesArgs {
    /// Keep them in this Secret of the Kubernetes cluster that this pod is in. The folder is used on the way, and must be empty.
    #[arg(long, value_name = "NAME", requires = "authority_secret", value_parser = name)]
    secret: Option<Name>,
    /// The Secret of the CA, `ca.crt` and `ca.key`. One that is there signs.
    #[arg(long, value_name = "NAME", requires = "secret", value_parser = name)]
    authority_secret: Option<Name>,
    /// Put a new key before those of session tickets.
    #[arg(long, requires = "secret")]
    rotate_tickets: bool,
    /// The files of the pod's service account: `token`, `ca.crt` and `namespace`.
    #[arg(long, value_name = "DIR", default_value = "/var/run/secrets/kubernetes.io/serviceaccount")]
    service_account: PathBuf,
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
        Command::Make(make) => match (&make.kubernetes.secret, &make.kubernetes.authority_secret) {
            (Some(secret), Some(authority)) => {
                let (secret, authority) = (secret.as_str(), authority.as_str());
                block_on(make_in_secrets(&folder, make, secret, authority, format))
            }
            _ => show(format, &folder.make(&plan(make)?)?),
        },
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

/// Makes what is missing in two Secrets: one of the CA, which nobody else needs, and one of all that pods need.
///
/// A CA that pods do not trust yet is added to those that they do, and signs nothing before the next time: each pod is told of
/// both at its own pace.
async fn make_in_secrets(
    folder: &Folder,
    args: &MakeArgs,
    secret: &str,
    authority: &str,
    format: Format,
) -> Result<(), Failure> {
    let plan = plan(args)?;
    if !folder.files()?.is_empty() {
        return Err(format!(
            "the folder {} is not empty, and is only used on the way",
            folder.path("").display()
        )
        .into());
    }
    let api = Api::around_us(&args.kubernetes.service_account)?;
    let (mut secret, mut authority) = (api.read(secret).await?, api.read(authority).await?);
    if secret.exists() && !authority.exists() {
        return Err(format!(
            "the Secret {} is there, and {} with the key of its CA is not: bring it back, or remove both to begin anew",
            secret.name(),
            authority.name()
        )
        .into());
    }
    let ca_file = format!("{AUTHORITY}.crt");
    let mut held = secret.files();
    let trusted = held.remove(&ca_file).unwrap_or_default();
    for (name, text) in held.iter().chain(&authority.files()) {
        folder.put(name, text)?;
    }
    if let Some(new) = authority.files().get(&ca_file).filter(|new| !is_among(new, &trusted))
        && secret.exists()
    {
        eprintln!(
            "pods are told to trust the new CA in {}: run this again when all of them do",
            authority.name()
        );
        secret.set(&BTreeMap::from([(ca_file, both(new, &trusted))]));
        return api.write(&secret).await;
    }
    let done = folder.make(&plan)?;
    if args.kubernetes.rotate_tickets {
        folder.rotate_tickets(usize::from(TICKET_KEYS))?;
    }
    let (of_authority, mut rest): (BTreeMap<_, _>, BTreeMap<_, _>) =
        folder.files()?.into_iter().partition(|(name, _)| name.starts_with(&format!("{AUTHORITY}.")));
    let own = of_authority.get(&ca_file).map(String::as_str).unwrap_or_default();
    rest.insert(ca_file, if is_among(own, &trusted) { trusted } else { own.to_owned() });
    // The CA first: what it has signed is of no use without it.
    for (secret, files) in [(&mut authority, of_authority), (&mut secret, rest)] {
        keep(&api, secret, &files).await?;
    }
    show(format, &done)
}

async fn keep(api: &Api, secret: &mut Secret, files: &BTreeMap<String, String>) -> Result<(), Failure> {
    if secret.set(files) { api.write(secret).await } else { Ok(()) }
}

fn is_among(certificate: &str, all: &str) -> bool {
    all.contains(certificate.trim())
}

fn both(new: &str, old: &str) -> String {
    format!("{}\n{old}", new.trim_end())
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
