//! A load generator for any server that speaks etcd v3, and a runner that puts servers side by side.
//!
//! Every workload is a closed loop: a caller sends its next request when the last one is answered. So throughput and
//! latency belong together (callers = throughput × latency), and a slow server is not buried under a backlog. The
//! measure that survives a busy machine is CPU time of the server processes per operation.
//!
//! The generator shares the machine with what it measures. It runs on one thread unless told otherwise, prepares keys
//! and values beforehand, and reports its own CPU time beside the server's, never as part of it.

mod cluster;
mod compare;
mod connection;
mod endpoint;
mod error;
mod flags;
mod floor;
mod gaios;
mod histogram;
mod plan;
mod process;
mod recorder;
mod report;
mod server;
mod workload;

pub use cluster::{EtcdCluster, EtcdTls};
pub use compare::{CASES, Case, Comparison, Row, System, compare};
pub use connection::{Answer, Connection};
pub use endpoint::Endpoint;
pub use error::BenchError;
pub use flags::{Cli, Command, CompareFlags, RunFlags, TlsFlags};
pub use gaios::GaiosCluster;
pub use histogram::Histogram;
pub use plan::{Limit, Plan, Target, Workload};
pub use process::{CpuTime, MachineSample, ProcessSample, ProcessUse, parse_machine, parse_rss, parse_stat};
pub use report::{Environment, Latency, Report};
pub use workload::run;
