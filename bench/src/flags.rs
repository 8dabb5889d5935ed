//! The command line, in two stages: what was written, and the checked values the code uses. All mistakes are told at
//! once.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::compare::{CASES, Case};
use crate::plan::PATIENCE;
use crate::{BenchError, EtcdTls, Limit, Plan, Target, Workload};

/// Measures servers that speak etcd v3.
#[derive(Debug, Parser)]
#[command(name = "gaios-bench", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Threads of the load generator. One is enough below some 40 000 requests a second, and disturbs least.
    #[arg(long, default_value_t = 1, global = true)]
    pub threads: usize,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Measure one workload against a running server.
    Run(RunFlags),
    /// Measure a list of workloads against several servers in turn, in one sitting.
    Compare(CompareFlags),
}

/// Flags of `run`.
#[derive(Debug, Args)]
pub struct RunFlags {
    /// What the callers do.
    #[arg(value_enum)]
    pub workload: Workload,
    /// Comma-separated; connections are spread over them.
    #[arg(long, value_delimiter = ',', default_value = "http://127.0.0.1:2379")]
    pub endpoints: Vec<String>,
    /// Requests in flight at any moment.
    #[arg(long, default_value_t = 64)]
    pub callers: usize,
    /// HTTP/2 connections [default: 16, or fewer if there are fewer callers; 1000 for idle-connections]
    #[arg(long)]
    pub connections: Option<usize>,
    /// Bytes of every value.
    #[arg(long, default_value_t = 256)]
    pub value_size: usize,
    /// Different keys.
    #[arg(long, default_value_t = 10_000)]
    pub keys: usize,
    /// Watches: of the one key for the workload watch, of a key each for idle-watches.
    #[arg(long, default_value_t = 1000)]
    pub watchers: usize,
    /// How many of them share a stream; Go clients put all of theirs on one.
    #[arg(long, default_value_t = 1)]
    pub watches_per_stream: usize,
    /// Length of the measured window [default: 10]
    #[arg(long, conflicts_with = "ops")]
    pub seconds: Option<f64>,
    /// Measure this many operations, however long they take.
    #[arg(long)]
    pub ops: Option<u64>,
    /// Seconds of load before the measured window.
    #[arg(long, default_value_t = 2.0)]
    pub warmup: f64,
    /// Comma-separated ids of the server's processes, whose CPU time and memory are counted.
    #[arg(long, value_delimiter = ',')]
    pub pids: Vec<u32>,
    /// How endpoints that begin with https are spoken to.
    #[command(flatten)]
    pub tls: TlsFlags,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
    /// Name of the server in the report.
    #[arg(long, default_value = "server")]
    pub label: String,
}

/// Flags of `compare`.
#[derive(Debug, Args)]
pub struct CompareFlags {
    /// Path of an etcd binary: three members of it are started on loopback, and stopped at the end.
    #[arg(long)]
    pub etcd: Option<PathBuf>,
    /// Certificate of the members that --etcd starts, for 127.0.0.1; they then speak TLS to clients.
    #[arg(long, requires_all = ["etcd", "etcd_key", "cacert"])]
    pub etcd_cert: Option<PathBuf>,
    /// The key of --etcd-cert.
    #[arg(long, requires = "etcd_cert")]
    pub etcd_key: Option<PathBuf>,
    /// How endpoints that begin with https are spoken to.
    #[command(flatten)]
    pub tls: TlsFlags,
    /// A running server, as LABEL=ENDPOINT,…@PID,… (may be repeated).
    #[arg(long = "system", value_name = "LABEL=ENDPOINT,…@PID,…")]
    pub systems: Vec<String>,
    /// Comma-separated names of the cases to run [default: all]
    #[arg(long, value_delimiter = ',')]
    pub cases: Vec<String>,
    /// Length of each measured window.
    #[arg(long, default_value_t = 10.0)]
    pub seconds: f64,
    /// Seconds of load before each measured window.
    #[arg(long, default_value_t = 2.0)]
    pub warmup: f64,
    /// How often each case is run; the table shows the run with the median CPU time of those not disturbed.
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// Share (0 to 1) of the machine's CPU time that other programs may take; a run that was disturbed more is
    /// repeated, up to three times as often as --rounds says.
    #[arg(long, default_value_t = 1.0)]
    pub disturbance_max: f64,
    /// Where the started servers keep their data [default: the system's directory for temporary files]
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    /// Write everything measured, as JSON, to this file.
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Write the table to this file too.
    #[arg(long)]
    pub markdown: Option<PathBuf>,
}

/// How endpoints that begin with https are spoken to.
#[derive(Debug, Clone, Args)]
pub struct TlsFlags {
    /// CAs of the servers.
    #[arg(long)]
    pub cacert: Option<PathBuf>,
    /// The generator's certificate.
    #[arg(long, requires_all = ["key", "cacert"])]
    pub cert: Option<PathBuf>,
    /// The key of --cert.
    #[arg(long, requires = "cert")]
    pub key: Option<PathBuf>,
    /// Never go on with an earlier session: every handshake is a full one.
    #[arg(long, requires = "cacert")]
    pub full_handshakes: bool,
    /// Speak TLS 1.2, not 1.3.
    #[arg(long, requires = "cacert")]
    pub tls12: bool,
}

impl TlsFlags {
    fn options(&self) -> Option<tls::ClientOptions> {
        let mut options = tls::ClientOptions::new(self.cacert.as_ref()?);
        options.own = self.cert.clone().zip(self.key.clone());
        options.resume = !self.full_handshakes;
        options.tls12 = self.tls12;
        Some(options)
    }
}

/// Above this the generator itself would need more memory and ports than a test machine has.
const CALLERS_MAX: usize = 100_000;
const KEYS_MAX: usize = 10_000_000;
/// etcd refuses requests above 1.5 MiB; this leaves room for the rest of the request.
const VALUE_SIZE_MAX: usize = 1 << 20;
const SECONDS_MAX: f64 = 3600.0;

impl RunFlags {
    /// The checked values.
    pub fn plan(&self) -> Result<(Plan, Target), BenchError> {
        let mut mistakes = Mistakes::default();
        mistakes.range("--callers", self.callers, 1, CALLERS_MAX);
        mistakes.range("--watchers", self.watchers, 1, CALLERS_MAX);
        mistakes.range("--keys", self.keys, 1, KEYS_MAX);
        mistakes.range("--value-size", self.value_size, 0, VALUE_SIZE_MAX);
        mistakes.range("--watches-per-stream", self.watches_per_stream, 1, self.watchers);
        let warmup = mistakes.seconds("--warmup", self.warmup, 0.0);
        let limit = match self.ops {
            Some(0) => mistakes.add("--ops must be at least 1", Limit::Operations(1)),
            Some(ops) => Limit::Operations(ops),
            None => Limit::Time(mistakes.seconds("--seconds", self.seconds.unwrap_or(10.0), 0.001)),
        };
        let (shared_by, connections_default) = match self.workload {
            Workload::Watch | Workload::IdleWatches => ("--watchers divided by --watches-per-stream", 16),
            Workload::IdleConnections => ("", 1000),
            Workload::Put
            | Workload::Get
            | Workload::SerializableGet
            | Workload::CompareAndPut
            | Workload::ConnectPutClose
            | Workload::Lease
            | Workload::LeaseKeepAlive => ("--callers", 16),
        };
        let connections_max = match self.workload {
            Workload::Watch | Workload::IdleWatches => self.watchers.div_ceil(self.watches_per_stream.max(1)),
            Workload::IdleConnections => CALLERS_MAX,
            Workload::Put
            | Workload::Get
            | Workload::SerializableGet
            | Workload::CompareAndPut
            | Workload::ConnectPutClose
            | Workload::Lease
            | Workload::LeaseKeepAlive => self.callers,
        };
        let connections = self.connections.unwrap_or(connections_default.min(connections_max));
        if connections > connections_max && !shared_by.is_empty() {
            mistakes.add(&format!("--connections {connections} is more than {shared_by}"), ());
        }
        mistakes.range("--connections", connections, 1, CALLERS_MAX);
        let tls = self.tls.options();
        let endpoints = mistakes.endpoints("--endpoints", &self.endpoints, tls.is_some());
        mistakes.done()?;
        let plan = Plan {
            workload: self.workload,
            callers: self.callers,
            connections,
            value_size: self.value_size,
            keys: self.keys,
            watchers: self.watchers,
            watches_per_stream: self.watches_per_stream,
            warmup,
            limit,
            patience: PATIENCE,
        };
        Ok((plan, Target { label: self.label.clone(), endpoints, pids: self.pids.clone(), tls }))
    }
}

impl CompareFlags {
    /// How the members that --etcd starts speak TLS, if they do.
    pub fn etcd_tls(&self) -> Option<EtcdTls> {
        let (certificate, key) = self.etcd_cert.clone().zip(self.etcd_key.clone())?;
        Some(EtcdTls { certificate, key, client: self.tls.options()? })
    }

    /// The checked values: the cases, with times filled in, and the running systems.
    pub fn checked(&self) -> Result<(Vec<Case>, Vec<Target>), BenchError> {
        let mut mistakes = Mistakes::default();
        let warmup = mistakes.seconds("--warmup", self.warmup, 0.0);
        let limit = Limit::Time(mistakes.seconds("--seconds", self.seconds, 0.001));
        mistakes.range("--rounds", self.rounds, 1, 100);
        if !(0.0..=1.0).contains(&self.disturbance_max) {
            mistakes.add(&format!("--disturbance-max must be 0 to 1, not {}", self.disturbance_max), ());
        }
        for name in &self.cases {
            if CASES.iter().all(|case| case.name != *name) {
                let known: Vec<&str> = CASES.iter().map(|case| case.name).collect();
                mistakes.add(&format!("--cases: {name} is not one of {}", known.join(", ")), ());
            }
        }
        let mut systems: Vec<Target> = Vec::new();
        for text in &self.systems {
            match parse_system(text) {
                Some((label, endpoints, pids)) => {
                    let tls = self.tls.options();
                    let endpoints = mistakes.endpoints("--system", &endpoints, tls.is_some());
                    systems.push(Target { label, endpoints, pids, tls });
                }
                None => mistakes.add(&format!("--system {text} is not LABEL=ENDPOINT,…@PID,…"), ()),
            }
        }
        if self.etcd.is_none() && self.systems.is_empty() {
            mistakes.add("nothing to measure: give --etcd, --system or both", ());
        }
        mistakes.done()?;
        let wanted = |case: &&Case| self.cases.is_empty() || self.cases.iter().any(|name| name == case.name);
        let timed = |case: &Case| {
            let mut case = case.clone();
            (case.plan.warmup, case.plan.limit) = (warmup, limit);
            case
        };
        Ok((CASES.iter().filter(wanted).map(timed).collect(), systems))
    }
}

fn parse_system(text: &str) -> Option<(String, Vec<String>, Vec<u32>)> {
    let (label, rest) = text.split_once('=')?;
    let (endpoints, pids) = match rest.split_once('@') {
        Some((endpoints, pids)) => {
            (endpoints, pids.split(',').map(|pid| pid.parse().ok()).collect::<Option<_>>()?)
        }
        None => (rest, Vec::new()),
    };
    let endpoints: Vec<String> = endpoints.split(',').map(str::to_owned).collect();
    (!label.is_empty()).then(|| (label.to_owned(), endpoints, pids))
}

/// Collects everything that is wrong.
#[derive(Default)]
struct Mistakes(Vec<String>);

impl Mistakes {
    fn add<T>(&mut self, text: &str, instead: T) -> T {
        self.0.push(text.to_owned());
        instead
    }

    fn range(&mut self, flag: &str, value: usize, min: usize, max: usize) {
        // Another flag's mistake may leave an empty range, and is told by that flag.
        if min <= max && !(min..=max).contains(&value) {
            self.0.push(format!("{flag} must be {min} to {max}, not {value}"));
        }
    }

    fn seconds(&mut self, flag: &str, value: f64, min: f64) -> Duration {
        if (min..=SECONDS_MAX).contains(&value) {
            return Duration::from_secs_f64(value);
        }
        self.add(&format!("{flag} must be {min} to {SECONDS_MAX} seconds, not {value}"), Duration::ZERO)
    }

    /// `host:port` means plain HTTP/2.
    fn endpoints(&mut self, flag: &str, written: &[String], tls: bool) -> Vec<String> {
        let mut endpoints = Vec::new();
        for text in written {
            let text = text.trim();
            let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
            let parsed = url.parse::<tonic::transport::Uri>();
            match parsed {
                Ok(uri) if uri.scheme_str() == Some("https") && !tls => {
                    self.add(&format!("{flag}: {text}: https needs --cacert"), ());
                }
                Ok(uri)
                    if ["http", "https"].contains(&uri.scheme_str().unwrap_or(""))
                        && uri.port().is_some() =>
                {
                    endpoints.push(url)
                }
                Ok(_) | Err(_) => {
                    self.add(&format!("{flag}: {text:?} is not http://HOST:PORT or https://HOST:PORT"), ())
                }
            }
        }
        endpoints
    }

    fn done(self) -> Result<(), BenchError> {
        if self.0.is_empty() { Ok(()) } else { Err(BenchError::Flags(self.0)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(line: &str) -> Command {
        let words = std::iter::once("gaios-bench").chain(line.split_whitespace());
        Cli::try_parse_from(words).unwrap().command
    }

    fn plan(line: &str) -> Result<(Plan, Target), BenchError> {
        match flags(line) {
            Command::Run(flags) => flags.plan(),
            Command::Compare(_) => panic!("not a run"),
        }
    }

    fn compared(line: &str) -> Result<(Vec<Case>, Vec<Target>), BenchError> {
        match flags(line) {
            Command::Compare(flags) => flags.checked(),
            Command::Run(_) => panic!("not a comparison"),
        }
    }

    fn mistakes<T>(result: Result<T, BenchError>) -> Vec<String> {
        match result {
            Err(BenchError::Flags(mistakes)) => mistakes,
            Err(other) => panic!("{other}"),
            Ok(_) => Vec::new(),
        }
    }

    #[test]
    fn the_defaults_are_a_plan() {
        let (plan, target) = plan("run put").unwrap();
        assert_eq!((plan.callers, plan.connections, plan.value_size), (64, 16, 256));
        assert_eq!(plan.limit, Limit::Time(Duration::from_secs(10)));
        assert_eq!(target.endpoints, ["http://127.0.0.1:2379"]);
    }

    #[test]
    fn few_callers_share_few_connections() {
        assert_eq!(plan("run put --callers 3").unwrap().0.connections, 3);
        assert_eq!(plan("run watch --watchers 4 --watches-per-stream 2").unwrap().0.connections, 2);
        assert_eq!(plan("run idle-connections --callers 1").unwrap().0.connections, 1000);
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let line = "run put --callers 0 --connections 5 --keys 0 --warmup=-1 --ops 0 \
                    --endpoints https://a:1,b,http://c:2,d:3";
        let found = mistakes(plan(line));
        let expected = [
            "--callers must be 1 to 100000, not 0",
            "--keys must be 1 to 10000000, not 0",
            "--warmup must be 0 to 3600 seconds, not -1",
            "--ops must be at least 1",
            "--connections 5 is more than --callers",
            "--endpoints: https://a:1: https needs --cacert",
            "--endpoints: \"b\" is not http://HOST:PORT or https://HOST:PORT",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn times_must_be_numbers_in_range() {
        for value in ["NaN", "inf", "-0.5", "0", "3601"] {
            assert_eq!(mistakes(plan(&format!("run get --seconds={value}"))).len(), 1, "{value}");
        }
    }

    #[test]
    fn systems_are_label_endpoints_and_pids() {
        let (cases, systems) =
            compared("compare --system gaios=127.0.0.1:1,http://h:2@7,8 --system x=h:1").unwrap();
        assert_eq!(cases.len(), CASES.len());
        assert_eq!(systems[0].label, "gaios");
        assert_eq!(systems[0].endpoints, ["http://127.0.0.1:1", "http://h:2"]);
        assert_eq!(
            (systems[0].pids.as_slice(), systems[1].pids.as_slice()),
            ([7, 8].as_slice(), [].as_slice())
        );
        for text in ["gaios", "=h:1", "gaios=h", "gaios=h:1@", "gaios=h:1@x"] {
            assert_eq!(mistakes(compared(&format!("compare --system {text}"))).len(), 1, "{text}");
        }
    }

    #[test]
    fn cases_are_chosen_by_name() {
        let (cases, _) = compared("compare --etcd etcd --cases get-64,put-1 --seconds 3 --warmup 1").unwrap();
        assert_eq!(cases.iter().map(|case| case.name).collect::<Vec<_>>(), ["put-1", "get-64"]);
        assert!(cases.iter().all(|case| case.plan.limit == Limit::Time(Duration::from_secs(3))));
        assert_eq!(mistakes(compared("compare --cases nothing --disturbance-max 1.5")).len(), 3);
    }
}
