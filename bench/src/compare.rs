//! Several servers, one sitting: every case is run against each server in turn, so that they meet the same machine in
//! the same mood.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::cluster::status;
use crate::plan::PATIENCE;
use crate::report::megabytes;
use crate::{Environment, Limit, Plan, Report, Target, Workload, run};

/// A named measurement.
#[derive(Debug, Clone)]
pub struct Case {
    /// Name on the command line and in the table.
    pub name: &'static str,
    /// What is measured.
    pub plan: Plan,
}

const PUT_64: Plan = Plan {
    workload: Workload::Put,
    callers: 64,
    connections: 16,
    value_size: 256,
    keys: 10_000,
    watchers: 1000,
    watches_per_stream: 1,
    warmup: Duration::from_secs(2),
    limit: Limit::Time(Duration::from_secs(10)),
    patience: PATIENCE,
};

/// Everything a comparison can run. Idle connections come first: a server that has had work reuses memory it kept, and
/// would show none for the connections.
pub const CASES: &[Case] = &[
    Case {
        name: "idle-connections-5000",
        plan: Plan { workload: Workload::IdleConnections, connections: 5000, ..PUT_64 },
    },
    Case { name: "put-64", plan: PUT_64 },
    Case { name: "put-512", plan: Plan { callers: 512, ..PUT_64 } },
    Case { name: "put-1", plan: Plan { callers: 1, connections: 1, ..PUT_64 } },
    Case { name: "get-64", plan: Plan { workload: Workload::Get, ..PUT_64 } },
    Case { name: "serializable-get-64", plan: Plan { workload: Workload::SerializableGet, ..PUT_64 } },
    Case { name: "compare-and-put-64", plan: Plan { workload: Workload::CompareAndPut, ..PUT_64 } },
    Case { name: "connect-put-close-64", plan: Plan { workload: Workload::ConnectPutClose, ..PUT_64 } },
    Case { name: "watch-1000", plan: Plan { workload: Workload::Watch, ..PUT_64 } },
    Case { name: "lease-64", plan: Plan { workload: Workload::Lease, ..PUT_64 } },
    Case { name: "lease-keep-alive-64", plan: Plan { workload: Workload::LeaseKeepAlive, ..PUT_64 } },
];

/// A server in the comparison.
#[derive(Debug, Clone, Serialize)]
pub struct System {
    /// Its name in the table.
    pub label: String,
    /// The version it claims; empty when it does not say.
    pub version: String,
    /// URLs.
    pub endpoints: Vec<String>,
    /// Processes counted.
    pub pids: Vec<u32>,
}

/// One case against one server.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Name of the case.
    pub case: &'static str,
    /// Name of the server.
    pub system: String,
    /// Every run that could be made.
    pub rounds: Vec<Report>,
    /// Index of the run the table shows; absent when none could be made.
    pub shown: Option<usize>,
    /// Why runs could not be made.
    pub failures: Vec<String>,
}

/// The result of a sitting.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// The machine.
    pub environment: Environment,
    /// The servers, in the order they were measured.
    pub systems: Vec<System>,
    /// Results, by case and then by server.
    pub rows: Vec<Row>,
}

/// Runs the cases, each `rounds` times, against every target. A run that fails becomes a note in its row. `progress`
/// sees every report as it comes.
pub async fn compare(
    environment: Environment,
    cases: &[Case],
    targets: &[Target],
    rounds: usize,
    mut progress: impl FnMut(&str),
) -> Comparison {
    let mut systems = Vec::with_capacity(targets.len());
    for Target { label, endpoints, pids } in targets {
        // A comparison is worth having without the version.
        let version = match endpoints.first() {
            Some(url) => status(url).await.map(|status| status.version).unwrap_or_default(),
            None => String::new(),
        };
        let (label, endpoints, pids) = (label.clone(), endpoints.clone(), pids.clone());
        systems.push(System { label, version, endpoints, pids });
    }
    let mut rows = Vec::new();
    for case in cases {
        let mut of_case: Vec<Row> = targets.iter().map(|target| Row::new(case.name, &target.label)).collect();
        for round in 1..=rounds {
            for (target, row) in targets.iter().zip(&mut of_case) {
                match run(&case.plan, target).await {
                    Ok(report) => {
                        progress(&format!("{}, round {round}\n{report}", case.name));
                        row.rounds.push(report);
                    }
                    Err(error) => {
                        progress(&format!("{}, round {round}\n{}: {error}", case.name, target.label));
                        row.failures.push(error.to_string());
                    }
                }
            }
        }
        for row in &mut of_case {
            row.shown = representative(&row.rounds);
        }
        rows.append(&mut of_case);
    }
    Comparison { environment, systems, rows }
}

impl Row {
    fn new(case: &'static str, system: &str) -> Row {
        Row { case, system: system.to_owned(), rounds: Vec::new(), shown: None, failures: Vec::new() }
    }
}

/// The run with the median CPU time per operation (median latency where no process is counted), so that the numbers of
/// a row belong to one run. Of runs which measure memory per connection, the one which grew most: later ones reuse
/// what the first made the server take.
fn representative(rounds: &[Report]) -> Option<usize> {
    let mut order: Vec<usize> = (0..rounds.len()).collect();
    if rounds.iter().any(|round| round.rss_bytes_per_connection.is_some()) {
        return order.into_iter().max_by_key(|index| rounds[*index].rss_bytes_per_connection);
    }
    let cost = |index: &usize| rounds[*index].cpu_us_per_op.unwrap_or(rounds[*index].latency.p50_us);
    order.sort_by(|a, b| cost(a).total_cmp(&cost(b)));
    order.get(order.len().saturating_sub(1) / 2).copied()
}

impl fmt::Display for Comparison {
    /// Markdown.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Environment { cpu, cores, kernel, load_average_1min, fdatasync_p50_us } = &self.environment;
        writeln!(
            out,
            "Machine: {cpu}, {cores} cores, Linux {kernel}; one fdatasync {fdatasync_p50_us:.0} µs; load average \
             before the run {load_average_1min}."
        )?;
        for System { label, version, endpoints, pids } in &self.systems {
            let version = if version.is_empty() { "(no version told)" } else { version };
            writeln!(out, "{label}: {version}, {} endpoints, {} processes.", endpoints.len(), pids.len())?;
        }
        writeln!(out)?;
        let ratio_heading = if self.systems.len() > 1 { " CPU ratio |" } else { "" };
        let ratio_rule = if self.systems.len() > 1 { "---:|" } else { "" };
        writeln!(
            out,
            "| case | server | ops/s | p50 ms | p99 ms | p99.9 ms | CPU-µs/op | of all rounds |{ratio_heading} RSS MB \
             | errors | remarks |"
        )?;
        writeln!(out, "|---|---|---:|---:|---:|---:|---:|---:|{ratio_rule}---:|---:|---|")?;
        for row in &self.rows {
            self.write_row(row, out)?;
        }
        Ok(())
    }
}

impl Comparison {
    fn write_row(&self, row: &Row, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Row { case, system, rounds, shown, failures } = row;
        let ratio_wanted = self.systems.len() > 1;
        let Some(report) = shown.and_then(|index| rounds.get(index)) else {
            let why = failures.first().map_or("", String::as_str);
            let ratio = if ratio_wanted { " |" } else { "" };
            return writeln!(out, "| {case} | {system} | | | | | | |{ratio} | | failed: {why} |");
        };
        let ms = |us: f64| format!("{:.2}", us / 1000.0);
        let cpu = |value: Option<f64>| value.map_or(String::new(), |cpu| format!("{cpu:.1}"));
        let all: Vec<String> = rounds.iter().map(|round| cpu(round.cpu_us_per_op)).collect();
        write!(
            out,
            "| {case} | {system} | {:.0} | {} | {} | {} | {} | {} |",
            report.ops_per_second,
            ms(report.latency.p50_us),
            ms(report.latency.p99_us),
            ms(report.latency.p999_us),
            cpu(report.cpu_us_per_op),
            all.join(", "),
        )?;
        if ratio_wanted {
            let ratio = self.cpu_of_first(case).zip(report.cpu_us_per_op).map(|(first, own)| own / first);
            write!(out, " {} |", ratio.map_or(String::new(), |ratio| format!("{ratio:.2}")))?;
        }
        let rss = report.rss_bytes().map_or(String::new(), |bytes| format!("{:.0}", megabytes(bytes)));
        write!(out, " {rss} | {} |", report.errors)?;
        let mut remarks = Vec::new();
        if let Some(bytes) = report.rss_bytes_per_connection {
            remarks.push(format!("{:.1} kB per connection", bytes as f64 / 1000.0));
        }
        if report.conflicts > 0 {
            remarks.push(format!("{} conflicts", report.conflicts));
        }
        if report.unanswered > 0 {
            remarks.push(format!("{} unanswered", report.unanswered));
        }
        if !failures.is_empty() {
            remarks.push(format!("{} rounds failed", failures.len()));
        }
        writeln!(out, " {} |", remarks.join("; "))
    }

    fn cpu_of_first(&self, case: &str) -> Option<f64> {
        let row = self.rows.iter().find(|row| row.case == case)?;
        row.rounds.get(row.shown?)?.cpu_us_per_op
    }
}
