//! The order of a case: start a server, fill it, see what is normal, attack, see how soon it is normal again.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bench::{CpuTime, EtcdCluster, GaiosCluster, MachineSample, ProcessSample, Target};
use tokio::runtime::Runtime;

use crate::Problem;
use crate::cases::Case;
use crate::meter::{Meter, Reading};
use crate::probe::Probe;
use crate::report::{
    GATEWAY_BUDGET_MIB, Latencies, MEMORY_BUDGET_MIB, NODE_BUDGET_MIB, Process, Report, SLOW, recovery_s,
};
use crate::stage::{Begun, Stage};

/// For filling and attack together; what takes longer is not served.
const CASE_TIMEOUT: Duration = Duration::from_secs(120);
/// The small client is watched for so long after an attack, at least, and at most.
const RECOVERY_LEAST: Duration = Duration::from_millis(1300);
const RECOVERY_MOST: Duration = Duration::from_secs(30);
/// Nobody is hurt any more if nobody was for so long.
const QUIET: Duration = Duration::from_secs(1);
/// All processes together; a server that takes more is stopped, for the machine's sake.
const CEILING_BYTES: u64 = 6 << 30;
/// Of the attackers' threads: a tenth of the weight that others have.
const NICE: i32 = 10;
const ATTACKER_THREADS: usize = 2;
const MIB: f64 = (1 << 20) as f64;

/// What is attacked.
#[derive(Debug, Clone)]
pub enum System {
    /// Three nodes and a gateway of this `gaios`.
    Gaios(PathBuf),
    /// Three members of this `etcd`.
    Etcd(PathBuf),
}

/// A server under way.
struct Started {
    target: Target,
    nodes: Vec<SocketAddr>,
    /// Dropping it stops it.
    cluster: Cluster,
}

enum Cluster {
    Gaios(GaiosCluster),
    Etcd(EtcdCluster),
}

impl Cluster {
    /// How one of its processes ended, if one has.
    fn ended(&mut self) -> Option<Problem> {
        let ended = match self {
            Cluster::Gaios(cluster) => cluster.ended(),
            Cluster::Etcd(cluster) => cluster.ended(),
        };
        ended.map(|error| error.to_string())
    }
}

impl System {
    /// Name in reports.
    pub fn label(&self) -> &'static str {
        match self {
            System::Gaios(_) => "gaios",
            System::Etcd(_) => "etcd",
        }
    }
}

/// Runs cases, each against a server of its own.
pub struct Suite {
    /// Where servers have their data.
    pub data: PathBuf,
    /// Sizes are those of the cases, times this.
    pub scale: f64,
    /// Lines of the gateway's configuration in the place of those that bound its memory, beside the defaults.
    pub settings: String,
    attackers: Runtime,
}

impl Suite {
    /// A suite whose attackers have threads of their own.
    pub fn new(data: PathBuf, scale: f64, settings: String) -> Result<Suite, Problem> {
        let attackers = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(ATTACKER_THREADS)
            .enable_all()
            // Without it, the numbers are worse, and nothing else.
            .on_thread_start(|| {
                let _ = rustix::process::nice(NICE);
            })
            .build()
            .map_err(|error| format!("start the attackers: {error}"))?;
        Ok(Suite { data, scale, settings, attackers })
    }

    /// Runs one case.
    pub async fn run(&self, case: &Case, system: &System) -> Result<Report, Problem> {
        let Started { target, nodes, mut cluster } = self.start(system).await?;
        let mut endpoints = bench::Endpoint::all_of(&target).map_err(|error| error.to_string())?;
        let endpoint = endpoints.swap_remove(0);
        let probe = Probe::start(endpoint.clone())?;
        let meter = Meter::start(target.pids.clone(), CEILING_BYTES);
        let stage = Arc::new(Stage::new(endpoint, nodes, target.pids.clone(), self.scale));
        let machine = MachineSample::read();
        let own = ProcessSample::read(std::process::id()).map_err(|error| error.to_string())?;
        let started = Instant::now();

        let mut attack = self.attackers.spawn((case.attack)(Arc::clone(&stage)));
        let outcome = tokio::select! {
            ended = &mut attack => ended.unwrap_or_else(|error| Err(format!("the attacker: {error}"))),
            problem = meter.alarm() => Err(problem),
            () = tokio::time::sleep(CASE_TIMEOUT) => Err(format!("not over after {CASE_TIMEOUT:?}")),
        };
        attack.abort();
        let end = Instant::now();
        let Some(begun) = stage.begun() else {
            return Err(outcome.err().unwrap_or_else(|| "the attack did not begin".to_owned()));
        };
        // What an attack leaves behind may be too much, too.
        let recovered = tokio::select! {
            () = recovered(&probe, end) => Ok(()),
            problem = meter.alarm() => Err(cluster.ended().unwrap_or(problem)),
        };
        // Before the servers end, which would look like an attack that goes on.
        let samples = probe.finish()?;
        drop(cluster);
        let readings = meter.readings();
        let elapsed = started.elapsed();
        let others = match (machine, MachineSample::read(), ProcessSample::read(std::process::id())) {
            (Ok(before), Ok(after), Ok(own_after)) => {
                let own_us = own_after.cpu.total_us() - own.cpu.total_us();
                let known = CpuTime { user_us: own_us + used_us(&readings), system_us: 0 };
                before.share_of_others(after, elapsed, known)
            }
            _ => 0.0,
        };
        drop(meter);
        let (remark, problem) = match recovered.and(outcome) {
            Ok(remark) => (remark, None),
            Err(problem) => (String::new(), Some(problem)),
        };
        let between = |from: Instant, to: Instant| {
            Latencies::of(samples.iter().filter(move |sample| sample.due >= from && sample.due < to))
        };
        let term_at = |at: Instant| {
            let ended = samples.iter().filter(|sample| sample.due + sample.took <= at);
            ended.map(|sample| sample.term).max().unwrap_or_default()
        };
        Ok(Report {
            case: case.name.to_owned(),
            system: system.label().to_owned(),
            normal: between(begun.normal, begun.attack),
            attack: between(begun.attack, end),
            attack_s: (end - begun.attack).as_secs_f64(),
            recovery_s: recovery_s(&samples, end),
            terms: term_at(Instant::now()).saturating_sub(term_at(begun.attack)),
            processes: processes(&readings, system, begun, end, stage.written_bytes()),
            disturbance: others,
            remark,
            problem,
        })
    }

    async fn start(&self, system: &System) -> Result<Started, Problem> {
        let failed = |error: bench::BenchError| {
            let cause = std::error::Error::source(&error).map_or(String::new(), |cause| format!(": {cause}"));
            format!("{error}{cause}")
        };
        match system {
            System::Gaios(binary) => {
                let limits = format!("limits: {{memory_budget: {MEMORY_BUDGET_MIB}MiB}}\n");
                let settings = if self.settings.is_empty() { &limits } else { &self.settings };
                let cluster = GaiosCluster::start(binary, &self.data, settings).await.map_err(failed)?;
                let (target, nodes) = (cluster.target(), cluster.node_addresses());
                Ok(Started { target, nodes, cluster: Cluster::Gaios(cluster) })
            }
            System::Etcd(binary) => {
                let cluster = EtcdCluster::start(binary, &self.data, None).await.map_err(failed)?;
                let target = cluster.target().await.map_err(failed)?;
                Ok(Started { target, nodes: Vec::new(), cluster: Cluster::Etcd(cluster) })
            }
        }
    }
}

/// Waits until nobody is hurt any more.
async fn recovered(probe: &Probe, end: Instant) {
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let since_end = end.elapsed();
        let hurt_until = Duration::from_secs_f64(recovery_s(&probe.samples(), end));
        let waits = probe.waits_since().is_some_and(|since| since.elapsed() > SLOW);
        let quiet = !waits && since_end.saturating_sub(hurt_until) > QUIET && since_end > RECOVERY_LEAST;
        if quiet || since_end > RECOVERY_MOST {
            return;
        }
    }
}

/// CPU time of all servers from the first reading to the last.
fn used_us(readings: &[Reading]) -> u64 {
    let total = |reading: Option<&Reading>| {
        reading.map_or(0, |(_, samples)| samples.iter().map(|sample| sample.cpu.total_us()).sum::<u64>())
    };
    total(readings.last()).saturating_sub(total(readings.first()))
}

fn processes(
    readings: &[Reading],
    system: &System,
    begun: Begun,
    end: Instant,
    written_bytes: u64,
) -> Vec<Process> {
    let first = readings.iter().rposition(|(at, _)| *at <= begun.attack).unwrap_or_default();
    let from = &readings[first..];
    let Some((_, before)) = from.first() else { return Vec::new() };
    let mib = |sample: &ProcessSample| sample.rss_bytes as f64 / MIB;
    let of_process = |index: usize| {
        let before = &before[index];
        let series = || from.iter().map(move |(_, samples)| mib(&samples[index]));
        let at_end = from.iter().rfind(|(at, _)| *at <= end).map_or(before, |(_, samples)| &samples[index]);
        let (role, budget_mib) = match (system, index) {
            (System::Gaios(_), 0) => ("gateway".to_owned(), Some(GATEWAY_BUDGET_MIB)),
            (System::Gaios(_), node) => {
                let written = 2.0 * written_bytes as f64 / MIB;
                (format!("node {node}"), Some(mib(before) + written + NODE_BUDGET_MIB))
            }
            (System::Etcd(_), 0) => ("leader".to_owned(), None),
            (System::Etcd(_), follower) => (format!("follower {follower}"), None),
        };
        Process {
            role,
            before_mib: mib(before),
            peak_mib: series().fold(0.0, f64::max),
            after_mib: series().next_back().unwrap_or_default(),
            budget_mib,
            cpu_s: at_end.cpu.total_us().saturating_sub(before.cpu.total_us()) as f64 / 1e6,
            series_mib: series().step_by(5).map(f64::round).collect(),
        }
    };
    (0..before.len()).map(of_process).collect()
}
