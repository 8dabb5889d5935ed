//! `chart`: the chart run without Kubernetes. What `helm template` rendered is made into processes in a network of their own, each
//! pod with an address and the ports, configuration, environment and volumes that its manifest says; each release with a DNS
//! server that answers for its Services, and an API that has its Secrets. Then a cluster must come up over TLS, serve `etcdctl`,
//! which finds it by DNS, have its CA and all certificates replaced, and then each pod in the order that Kubernetes keeps, while
//! callers go on, and be scraped.
//!
//! - [`manifest`]: what was rendered;
//! - [`pod`]: a pod as a process;
//! - [`service`], [`dns`]: what Services are to whoever uses them;
//! - [`secrets`]: who makes certificates;
//! - [`regions`]: the pods of all releases, and their replacement;
//! - [`callers`]: the load.

mod callers;
mod dns;
mod manifest;
mod pod;
mod regions;
mod secrets;
mod service;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use clap::Args;

use crate::servers::{self, HOME, succeed};
use crate::{Problem, private};
use callers::{Callers, Clients, Seen};
use pod::Programs;
use regions::Regions;

/// Long enough that callers have seen the cluster at rest, before and after.
const AT_REST: Duration = Duration::from_secs(1);
/// All addresses of this network: those of pods, and those of Services.
const NETWORK: &str = "10.0.0.0/8";

#[derive(Args)]
pub(crate) struct Flags {
    /// The program that the image holds.
    #[arg(long, default_value = "target/debug/gaios")]
    gaios: PathBuf,
    /// Callers.
    #[arg(long, default_value_t = 64)]
    callers: usize,
    /// Leaves the folders of pods where they are, with their logs.
    #[arg(long)]
    keep: bool,
    /// Renders of the chart, decoded, with the notes of each beside it: the releases of one cluster, each in a Kubernetes cluster
    /// of its own.
    #[arg(required = true)]
    releases: Vec<PathBuf>,
}

/// Runs the whole; the result is how many things went wrong.
pub(crate) fn run_in_private_network(flags: &Flags) -> Result<usize, Problem> {
    let etcdctl = servers::install_etcd()?.etcdctl;
    if !private::is_possible(true) {
        println!("left out: no network and mounts of one's own here, which pods need");
        return Ok(0);
    }
    let callers = flags.callers.to_string();
    let mut arguments: Vec<&OsStr> = vec!["chart-here".as_ref(), "--etcdctl".as_ref(), etcdctl.as_ref()];
    arguments.extend([OsStr::new("--gaios"), flags.gaios.as_ref(), "--callers".as_ref(), callers.as_ref()]);
    arguments.extend(flags.keep.then_some(OsStr::new("--keep")));
    arguments.extend(flags.releases.iter().map(AsRef::<OsStr>::as_ref));
    private::run_ourselves(true, &arguments)
}

/// In a network and with mounts that nobody else sees.
pub(crate) async fn run_here(flags: &Flags, etcdctl: PathBuf) -> Result<usize, Problem> {
    succeed(Command::new("ip").args(["link", "set", "lo", "up"]))?;
    succeed(Command::new("ip").args(["route", "add", "local", NETWORK, "dev", "lo"]))?;
    let home = Path::new(HOME).join(format!("run/chart-{}", std::process::id()));
    fs::create_dir_all(&home).map_err(|error| format!("{}: {error}", home.display()))?;
    let home = std::path::absolute(&home).map_err(|error| format!("{}: {error}", home.display()))?;
    let programs = Programs { gaios: flags.gaios.clone(), etcdctl };
    let clients = Clients::default();
    let mut regions = Regions::load(&flags.releases, programs, clients.clone(), &home).await?;
    let begun = Instant::now();
    regions.start().await?;
    println!(
        "{}: {} pods ready after {:.1} s",
        regions.title(),
        regions.pods(),
        begun.elapsed().as_secs_f64()
    );
    look(&mut regions).await?;

    let callers = Callers::start(flags.callers, &clients);
    tokio::time::sleep(AT_REST).await;
    report(&regions, "at rest", &callers.turn());
    let steps = regions.rotate().await?;
    report(&regions, &format!("certificates replaced in {steps} steps"), &callers.turn());
    regions.replace_all().await?;
    tokio::time::sleep(AT_REST).await;
    report(&regions, "every pod replaced", &callers.turn());
    let seen = callers.finish().await?;
    report(&regions, "in all", &seen);
    for failure in seen.failed.iter().take(10) {
        println!("  {failure}");
    }
    look(&mut regions).await?;
    regions.stop().await?;
    if flags.keep {
        println!("{}: logs of pods are in {}", regions.title(), home.display());
    } else {
        fs::remove_dir_all(&home).map_err(|error| format!("{}: {error}", home.display()))?;
    }
    Ok(seen.failed.len())
}

/// What must be so at any time.
async fn look(regions: &mut Regions) -> Result<(), Problem> {
    regions.run_tests().await?;
    regions.check_status().await?;
    regions.check_members().await?;
    regions.check_urls().await?;
    println!(
        "{}: etcdctl finds it by DNS, every gateway knows who stands where, {} pods scraped",
        regions.title(),
        regions.scrape().await?
    );
    Ok(())
}

fn report(regions: &Regions, what: &str, seen: &Seen) {
    println!(
        "{}: {what}: {} requests, {} failed, {} tries again; longest gap {:.0} ms{}, longest request {:.0} ms",
        regions.title(),
        seen.done,
        seen.failed.len(),
        seen.tried_again,
        seen.gap.as_secs_f64() * 1e3,
        if seen.gap_at.is_empty() { String::new() } else { format!(" ({})", seen.gap_at) },
        seen.longest.as_secs_f64() * 1e3,
    );
}
