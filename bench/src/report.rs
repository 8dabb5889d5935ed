//! Results, for people and for programs.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::floor::floor;
use crate::process::CpuTime;
use crate::recorder::{Recorder, Window};
use crate::{BenchError, Histogram, Plan, ProcessUse, Target, Workload};

/// Latencies in microseconds.
#[derive(Debug, Clone, Serialize)]
pub struct Latency {
    /// Average.
    pub mean_us: f64,
    /// Half of all operations took no longer.
    pub p50_us: f64,
    /// 99 % took no longer.
    pub p99_us: f64,
    /// 99.9 % took no longer.
    pub p999_us: f64,
    /// The slowest operation.
    pub max_us: f64,
}

impl Latency {
    fn of(histogram: &Histogram) -> Latency {
        let us = |value: Duration| value.as_nanos() as f64 / 1000.0;
        Latency {
            mean_us: us(histogram.mean()),
            p50_us: us(histogram.quantile(0.5)),
            p99_us: us(histogram.quantile(0.99)),
            p999_us: us(histogram.quantile(0.999)),
            max_us: us(histogram.max()),
        }
    }
}

/// One measurement.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Name of the server.
    pub label: String,
    /// What the callers did.
    pub workload: Workload,
    /// Requests in flight.
    pub callers: usize,
    /// Connections in use.
    pub connections: usize,
    /// Bytes of every value.
    pub value_size: usize,
    /// Different keys.
    pub keys: usize,
    /// Watches, for the workload watch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watchers: Option<usize>,
    /// Length of the measured window.
    pub seconds: f64,
    /// Operations that ended well; for the workload watch, events delivered.
    pub ops: u64,
    /// Rate of those.
    pub ops_per_second: f64,
    /// Transactions whose comparison failed; they count as operations.
    pub conflicts: u64,
    /// Operations that failed.
    pub errors: u64,
    /// The same by gRPC code.
    pub errors_by_code: BTreeMap<String, u64>,
    /// Text of the first error, be it before the window.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_error: Option<String>,
    /// Callers given up because their last request was never answered.
    pub unanswered: usize,
    /// Latency of the operations that ended well.
    pub latency: Latency,
    /// CPU time of all server processes per operation; absent without processes or operations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_us_per_op: Option<f64>,
    /// CPU time of this load generator per operation, which is part of no other number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generator_cpu_us_per_op: Option<f64>,
    /// Share (0 to 1) of the machine's CPU time that other programs took; absent without processes. Above a few
    /// hundredths the latencies, and less so the CPU times, tell as much of those programs as of the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disturbance: Option<f64>,
    /// Growth of all server processes divided by connections, for the workload idle-connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rss_bytes_per_connection: Option<i64>,
    /// The server processes one by one.
    pub processes: Vec<ProcessUse>,
}

impl Report {
    pub(crate) fn new(
        plan: &Plan,
        target: &Target,
        recorder: &Recorder,
        window: Window,
        unanswered: usize,
    ) -> Report {
        let ops = recorder.latencies().count();
        let seconds = window.elapsed.as_secs_f64();
        let per_op = |processes: &[ProcessUse]| {
            let cpu: CpuTime = processes.iter().map(|process| process.cpu).sum();
            (ops > 0 && !processes.is_empty()).then(|| cpu.total_us() as f64 / ops as f64)
        };
        let grown = |processes: &[ProcessUse]| -> i64 {
            processes.iter().map(|p| p.rss_after_bytes as i64 - p.rss_before_bytes as i64).sum()
        };
        let errors = recorder.errors();
        Report {
            label: target.label.clone(),
            workload: plan.workload,
            callers: plan.callers,
            connections: plan.connections,
            value_size: plan.value_size,
            keys: plan.keys,
            watchers: matches!(plan.workload, Workload::Watch | Workload::IdleWatches)
                .then_some(plan.watchers),
            seconds,
            ops,
            ops_per_second: ops as f64 / seconds,
            conflicts: recorder.conflicts(),
            errors: errors.by_code.values().sum(),
            errors_by_code: errors.by_code,
            first_error: errors.first,
            unanswered,
            latency: Latency::of(recorder.latencies()),
            cpu_us_per_op: per_op(&window.servers),
            generator_cpu_us_per_op: per_op(&window.generator),
            disturbance: window.others,
            rss_bytes_per_connection: (plan.workload == Workload::IdleConnections
                && !window.servers.is_empty())
            .then(|| grown(&window.servers) / plan.connections as i64),
            processes: window.servers,
        }
    }

    /// Memory of all server processes at the end of the window, in bytes; absent without processes.
    pub fn rss_bytes(&self) -> Option<u64> {
        let bytes = self.processes.iter().map(|process| process.rss_after_bytes).sum();
        (!self.processes.is_empty()).then_some(bytes)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { label, workload, callers, connections, .. } = self;
        write!(out, "{label}: {workload}, {callers} callers, {connections} connections")?;
        if let Some(watchers) = self.watchers {
            write!(out, ", {watchers} watchers")?;
        }
        writeln!(out, ", {} B values, {} keys, {:.2} s", self.value_size, self.keys, self.seconds)?;
        writeln!(out, "  operations   {} ({:.0} per second)", self.ops, self.ops_per_second)?;
        if self.conflicts > 0 {
            writeln!(out, "  conflicts    {}", self.conflicts)?;
        }
        let Latency { mean_us, p50_us, p99_us, p999_us, max_us } = self.latency;
        writeln!(
            out,
            "  latency µs   mean {mean_us:.0}  p50 {p50_us:.0}  p99 {p99_us:.0}  p99.9 {p999_us:.0}  max {max_us:.0}"
        )?;
        if let Some(cpu) = self.cpu_us_per_op {
            writeln!(out, "  CPU µs/op    {cpu:.1}")?;
        }
        for process in &self.processes {
            let ProcessUse { pid, name, cpu, rss_before_bytes, rss_after_bytes } = process;
            let per_op = cpu.total_us() as f64 / self.ops.max(1) as f64;
            writeln!(
                out,
                "    {name} ({pid})  {per_op:.1}  user {} ms  system {} ms  RSS {:.1} to {:.1} MB",
                cpu.user_us / 1000,
                cpu.system_us / 1000,
                megabytes(*rss_before_bytes),
                megabytes(*rss_after_bytes),
            )?;
        }
        if let Some(bytes) = self.rss_bytes_per_connection {
            writeln!(out, "  RSS growth   {bytes} bytes per connection")?;
        }
        if let Some(cpu) = self.generator_cpu_us_per_op {
            writeln!(out, "  generator    {cpu:.1} CPU µs/op, not counted above")?;
        }
        if let Some(share) = self.disturbance {
            writeln!(out, "  others       {:.0} % of the machine's CPU time", share * 100.0)?;
        }
        if self.unanswered > 0 {
            writeln!(out, "  unanswered   {}", self.unanswered)?;
        }
        write!(out, "  errors       {}", self.errors)?;
        for (code, count) in &self.errors_by_code {
            write!(out, "  {code} {count}")?;
        }
        if let Some(first) = &self.first_error {
            write!(out, "  (first: {first})")?;
        }
        Ok(())
    }
}

pub(crate) fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// The machine, so that numbers are not compared across machines by mistake.
#[derive(Debug, Clone, Serialize)]
pub struct Environment {
    /// As the kernel names it.
    pub cpu: String,
    /// Cores this process may use.
    pub cores: usize,
    /// Version of the kernel.
    pub kernel: String,
    /// Processes that wanted to run in the last minute, before the measurements: above 0 the machine was not idle.
    pub load_average_1min: String,
    /// Median time in microseconds to append 512 bytes to a file in the data directory and `fdatasync` it.
    pub fdatasync_p50_us: f64,
    /// Median time in microseconds of one durable write through a bare chain of client, gateway, leader and two followers,
    /// all on this machine and with their copies in the data directory: what a put with one caller cannot be faster than.
    pub floor_p50_us: f64,
}

impl Environment {
    /// Looks at the machine, and at the disk below `data_dir`.
    pub fn probe(data_dir: &Path) -> Result<Environment, BenchError> {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpu_info = read("/proc/cpuinfo");
        let model = cpu_info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let version = read("/proc/sys/kernel/osrelease");
        let load = read("/proc/loadavg");
        Ok(Environment {
            cpu: model.map_or("unknown", |(_, name)| name).to_owned(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: version.trim().to_owned(),
            load_average_1min: load.split(' ').next().unwrap_or_default().to_owned(),
            fdatasync_p50_us: fdatasync_p50_us(data_dir).map_err(BenchError::io("probe the disk"))?,
            floor_p50_us: floor_p50_us(data_dir).map_err(BenchError::io("probe the machine"))?,
        })
    }
}

fn floor_p50_us(data_dir: &Path) -> std::io::Result<f64> {
    Ok(Latency::of(&floor(data_dir)?).p50_us)
}

fn fdatasync_p50_us(data_dir: &Path) -> std::io::Result<f64> {
    let mut file = tempfile::tempfile_in(data_dir)?;
    let histogram = Histogram::default();
    for _ in 0..300 {
        let started = Instant::now();
        file.write_all(&[1; 512])?;
        file.sync_data()?;
        histogram.record(started.elapsed());
    }
    Ok(Latency::of(&histogram).p50_us)
}
