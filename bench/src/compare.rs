//! Several servers, one sitting: every case is run against each server in turn, so that they meet the same machine in
//! the same mood.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::endpoint::Endpoint;
use crate::plan::PATIENCE;
use crate::report::megabytes;
use crate::server::status;
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
        name: "idle-connections-1000",
        plan: Plan { workload: Workload::IdleConnections, connections: 1000, ..PUT_64 },
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

/// Runs the cases, each `rounds` times, against every target; runs in which other programs took more than
/// `disturbance_max` (0 to 1) of the machine are repeated, up to `3 * rounds` runs. A run that fails becomes a note in
/// its row. `progress` sees every report as it comes.
pub async fn compare(
    environment: Environment,
    cases: &[Case],
    targets: &[Target],
    rounds: usize,
    disturbance_max: f64,
    mut progress: impl FnMut(&str),
) -> Comparison {
    let mut systems = Vec::with_capacity(targets.len());
    for target in targets {
        let Target { label, endpoints, pids, .. } = target;
        // A comparison is worth having without the version.
        let version = match Endpoint::all_of(target).unwrap_or_default().first() {
            Some(endpoint) => status(endpoint).await.map(|status| status.version).unwrap_or_default(),
            None => String::new(),
        };
        let (label, endpoints, pids) = (label.clone(), endpoints.clone(), pids.clone());
        systems.push(System { label, version, endpoints, pids });
    }
    let mut rows = Vec::new();
    for case in cases {
        let mut of_case: Vec<Row> = targets.iter().map(|target| Row::new(case.name, &target.label)).collect();
        for round in 1..=3 * rounds {
            for (target, row) in targets.iter().zip(&mut of_case) {
                if row.is_settled(rounds, disturbance_max) {
                    continue;
                }
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
            row.shown = representative(&row.rounds, disturbance_max);
        }
        rows.append(&mut of_case);
    }
    Comparison { environment, systems, rows }
}

impl Row {
    fn new(case: &'static str, system: &str) -> Row {
        Row { case, system: system.to_owned(), rounds: Vec::new(), shown: None, failures: Vec::new() }
    }

    /// A run that failed once is expected to fail again, so it counts.
    fn is_settled(&self, rounds: usize, disturbance_max: f64) -> bool {
        let quiet = self.rounds.iter().filter(|round| disturbance(round) <= disturbance_max).count();
        quiet + self.failures.len() >= rounds
    }
}

fn disturbance(report: &Report) -> f64 {
    report.disturbance.unwrap_or(0.0)
}

/// Of the runs disturbed no more than `disturbance_max`, or else of the least disturbed one: the run with the median
/// CPU time per operation (median latency where no process is counted), so that the numbers of a row belong to one
/// run. Of runs which measure memory per connection, the one which grew most: later ones reuse what the first made the
/// server take.
fn representative(rounds: &[Report], disturbance_max: f64) -> Option<usize> {
    let all = 0..rounds.len();
    if rounds.iter().any(|round| round.rss_bytes_per_connection.is_some()) {
        return all.max_by_key(|index| rounds[*index].rss_bytes_per_connection);
    }
    let least = rounds.iter().map(disturbance).fold(f64::INFINITY, f64::min);
    let mut order: Vec<usize> =
        all.filter(|index| disturbance(&rounds[*index]) <= disturbance_max.max(least)).collect();
    let cost = |index: &usize| rounds[*index].cpu_us_per_op.unwrap_or(rounds[*index].latency.p50_us);
    order.sort_by(|a, b| cost(a).total_cmp(&cost(b)));
    order.get(order.len().saturating_sub(1) / 2).copied()
}

impl fmt::Display for Comparison {
    /// Markdown.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Environment { cpu, cores, kernel, load_average_1min, fdatasync_p50_us, floor_p50_us } =
            &self.environment;
        writeln!(
            out,
            "Machine: {cpu}, {cores} cores, Linux {kernel}; one fdatasync {fdatasync_p50_us:.0} µs, a bare chain of client, \
             gateway and three durable copies {floor_p50_us:.0} µs; load average before the run {load_average_1min}."
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
            "| case | server | ops/s | p50 ms | p99 ms | p99.9 ms | CPU-µs/op | all rounds |{ratio_heading} RSS MB \
             | others % | errors | remarks |"
        )?;
        writeln!(out, "|---|---|---:|---:|---:|---:|---:|---:|{ratio_rule}---:|---:|---:|---|")?;
        for row in &self.rows {
            self.write_row(row, out)?;
        }
        Ok(())
    }
}

/// "lowest–highest".
fn range(values: impl Iterator<Item = f64>) -> String {
    let (mut lowest, mut highest) = (f64::INFINITY, f64::NEG_INFINITY);
    for value in values {
        (lowest, highest) = (lowest.min(value), highest.max(value));
    }
    if lowest > highest { String::new() } else { format!("{lowest:.1}–{highest:.1}") }
}

impl Comparison {
    fn write_row(&self, row: &Row, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Row { case, system, rounds, shown, failures } = row;
        let ratio_wanted = self.systems.len() > 1;
        let Some(report) = shown.and_then(|index| rounds.get(index)) else {
            let why = failures.first().map_or("", String::as_str);
            let ratio = if ratio_wanted { " |" } else { "" };
            return writeln!(out, "| {case} | {system} | | | | | | |{ratio} | | | failed: {why} |");
        };
        let ms = |us: f64| format!("{:.2}", us / 1000.0);
        let cpu = |value: Option<f64>| value.map_or(String::new(), |cpu| format!("{cpu:.1}"));
        let all = range(rounds.iter().filter_map(|round| round.cpu_us_per_op));
        write!(
            out,
            "| {case} | {system} | {:.0} | {} | {} | {} | {} | {} |",
            report.ops_per_second,
            ms(report.latency.p50_us),
            ms(report.latency.p99_us),
            ms(report.latency.p999_us),
            cpu(report.cpu_us_per_op),
            all,
        )?;
        if ratio_wanted {
            let ratio = self.cpu_of_first(case).zip(report.cpu_us_per_op).map(|(first, own)| own / first);
            write!(out, " {} |", ratio.map_or(String::new(), |ratio| format!("{ratio:.2}")))?;
        }
        let rss = report.rss_bytes().map_or(String::new(), |bytes| format!("{:.0}", megabytes(bytes)));
        let others = report.disturbance.map_or(String::new(), |share| format!("{:.0}", share * 100.0));
        write!(out, " {rss} | {others} | {} |", report.errors)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recorder::{Opening, Recorder};

    /// A report of nothing, but for the numbers the choice depends on.
    fn report(cpu_us_per_op: f64, disturbance: f64) -> Report {
        let window = Opening::now(&[]).unwrap().close().unwrap();
        let target = Target { label: "test".to_owned(), endpoints: Vec::new(), pids: Vec::new(), tls: None };
        let report = Report::new(&PUT_64, &target, &Recorder::new(PUT_64.limit), window, 0);
        Report { cpu_us_per_op: Some(cpu_us_per_op), disturbance: Some(disturbance), ..report }
    }

    fn shown(rounds: &[(f64, f64)]) -> Option<usize> {
        let rounds: Vec<Report> =
            rounds.iter().map(|(cpu, disturbance)| report(*cpu, *disturbance)).collect();
        representative(&rounds, 0.1)
    }

    #[test]
    fn the_median_of_the_quiet_runs_is_shown() {
        assert_eq!(shown(&[]), None);
        assert_eq!(shown(&[(5.0, 0.0)]), Some(0));
        assert_eq!(shown(&[(9.0, 0.0), (5.0, 0.1), (7.0, 0.05)]), Some(2));
        assert_eq!(shown(&[(9.0, 0.0), (1.0, 0.5), (7.0, 0.05), (2.0, 0.4)]), Some(2));
    }

    #[test]
    fn without_a_quiet_run_the_least_disturbed_is_shown() {
        assert_eq!(shown(&[(9.0, 0.6), (5.0, 0.3), (7.0, 0.4)]), Some(1));
    }

    #[test]
    fn disturbed_runs_are_repeated_and_failed_ones_are_not() {
        let mut row = Row::new("put", "test");
        row.rounds = vec![report(1.0, 0.0), report(1.0, 0.2)];
        assert!(!row.is_settled(2, 0.1));
        row.failures.push("down".to_owned());
        assert!(row.is_settled(2, 0.1));
    }

    #[test]
    fn a_range_is_its_ends() {
        assert_eq!(range([3.0, 1.25, 2.0].into_iter()), "1.2–3.0");
        assert_eq!(range(std::iter::empty()), "");
    }

    #[test]
    fn case_names_differ() {
        let mut names: Vec<&str> = CASES.iter().map(|case| case.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CASES.len());
    }
}
