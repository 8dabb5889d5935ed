//! `chart`: the chart run without Kubernetes. What `helm template` rendered is made into processes on loopback, each pod with an
//! address of its own and the ports, configuration, environment and volumes that its manifest says; then a cluster must come
//! up, serve `etcdctl`, be replaced pod by pod in the order that Kubernetes keeps while callers go on, and be scraped.
//!
//! - [`manifest`]: what was rendered;
//! - [`pod`]: a pod as a process;
//! - [`regions`]: the pods of all releases, what Services know of them, and their replacement;
//! - [`callers`]: the load.

mod callers;
mod manifest;
mod pod;
mod regions;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;

use crate::{Problem, servers};
use callers::{Callers, Endpoints};
use pod::Programs;
use regions::Regions;

/// Long enough that callers have seen the cluster at rest, before and after.
const AT_REST: Duration = Duration::from_secs(1);

#[derive(Args)]
pub(crate) struct Flags {
    /// The program that the image holds.
    #[arg(long, default_value = "target/debug/gaios")]
    gaios: PathBuf,
    /// Callers.
    #[arg(long, default_value_t = 64)]
    callers: usize,
    /// Renders of the chart, decoded: the releases of one cluster, each in a Kubernetes cluster of its own.
    #[arg(required = true)]
    releases: Vec<PathBuf>,
}

/// Runs the whole; the result is how many things went wrong.
pub(crate) async fn run(flags: &Flags) -> Result<usize, Problem> {
    let programs = Programs { gaios: flags.gaios.clone(), etcdctl: servers::install_etcd()?.etcdctl };
    let endpoints = Endpoints::default();
    let mut regions = Regions::load(&flags.releases, programs, endpoints.clone())?;
    let begun = Instant::now();
    regions.start().await?;
    println!(
        "{}: {} pods ready after {:.1} s",
        regions.title(),
        regions.pods(),
        begun.elapsed().as_secs_f64()
    );
    regions.run_tests().await?;
    println!("{}: its tests pass", regions.title());
    println!("{}: {} pods scraped", regions.title(), regions.scrape().await?);

    let callers = Callers::start(flags.callers, &endpoints);
    tokio::time::sleep(AT_REST).await;
    let quiet = callers.seen();
    regions.replace_all().await?;
    tokio::time::sleep(AT_REST).await;
    let seen = callers.finish().await?;
    println!(
        "{}: every pod replaced under {} callers: {} requests, {} failed, {} tries again; longest gap {:.0} ms \
         ({:.0} at rest), longest request {:.0} ms",
        regions.title(),
        flags.callers,
        seen.done,
        seen.failed.len(),
        seen.tried_again,
        seen.gap.as_secs_f64() * 1e3,
        quiet.gap.as_secs_f64() * 1e3,
        seen.longest.as_secs_f64() * 1e3,
    );
    for failure in seen.failed.iter().take(10) {
        println!("  {failure}");
    }
    println!("{}: {} pods scraped", regions.title(), regions.scrape().await?);
    regions.stop().await?;
    Ok(seen.failed.len())
}
