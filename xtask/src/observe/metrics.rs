//! `docs/metrics.md`: every metric of a running cluster, with the help that it brings.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use super::cluster::Cluster;
use super::process::get;
use super::write;
use crate::run::Failure;

const PAGE: &str = "docs/metrics.md";

const HEAD: &str = "\
# Metrics

Every process serves them on its admin port at `/metrics`, a gateway on its client port, too, as etcd does. This page is written
by `cargo xtask observe --write` from what a running cluster exports, and checked by `cargo xtask observe`. What is chosen and why
stands in [decision 15](decisions/0015-what-is-measured.md); dashboards and alerts are in `helm/gaios/`.

Times are in seconds, sizes in bytes. Labels have few values, all known beforehand, but for `group`, `peer` and `To` (groups and
nodes of the cluster) and `client_api_version` (64 at most).

";

/// Units that a name of ours may end with, and what a gauge may count.
const UNITS: &[&str] = &[
    "_seconds",
    "_bytes",
    "_requests",
    "_total",
    "_info",
    "_days",
    "_slot",
    "_revision",
    "_ready",
    "_linked",
];

/// A metric, as exported.
#[derive(Clone, Default)]
struct Metric {
    kind: String,
    help: String,
    labels: String,
    gateway: bool,
    node: bool,
}

/// Compares the page with what is exported; with `rewrite`, writes it.
pub(super) fn check(cluster: &Cluster, rewrite: bool) -> Result<(), Failure> {
    let mut metrics = BTreeMap::new();
    for admin in [cluster.gateway_admin, cluster.tls_gateway_admin] {
        collect(admin, &mut metrics, |metric| metric.gateway = true)?;
    }
    for admin in &cluster.replica_admins {
        collect(*admin, &mut metrics, |metric| metric.node = true)?;
    }
    let mut findings = Vec::new();
    for (name, metric) in &metrics {
        findings.extend(fault(name, metric).map(|fault| format!("{name}: {fault}")));
    }
    let page = fs::read_to_string(PAGE).unwrap_or_default();
    let on_page: BTreeMap<_, _> = page.lines().filter_map(row_name).collect();
    if rewrite {
        let mut rows: BTreeMap<_, _> =
            metrics.iter().map(|(name, metric)| (name.as_str(), row(name, metric))).collect();
        // A series may begin with the first event of its kind, which this cluster has not seen.
        for (name, row) in on_page {
            if in_sources(name)? {
                rows.entry(name).or_insert_with(|| row.to_owned());
            }
        }
        let head = "| metric | kind | labels | by | |\n| --- | --- | --- | --- | --- |\n";
        let rows: Vec<_> = rows.into_values().collect();
        write(Path::new(PAGE), &format!("{HEAD}{head}{}\n", rows.join("\n")))?;
    } else {
        for (name, metric) in &metrics {
            if on_page.get(name.as_str()).is_none_or(|on_page| *on_page != row(name, metric)) {
                findings.push(format!(
                    "{name}: {PAGE} does not have it as it is; run `cargo xtask observe --write`"
                ));
            }
        }
        for name in on_page.keys().filter(|name| !metrics.contains_key(**name)) {
            if !in_sources(name)? {
                findings.push(format!("{name}: stands in {PAGE} and nowhere else"));
            }
        }
    }
    for finding in &findings {
        eprintln!("observe: {finding}");
    }
    if findings.is_empty() {
        Ok(())
    } else {
        Err(Failure::new(format!("metrics: {} findings", findings.len())))
    }
}

fn collect(
    admin: SocketAddr,
    metrics: &mut BTreeMap<String, Metric>,
    mark: impl Fn(&mut Metric),
) -> Result<(), Failure> {
    let (_, text) = get(admin, "/metrics").ok_or_else(|| Failure::new(format!("no metrics of {admin}")))?;
    let mut name = String::new();
    for line in text.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("HELP"), Some(of), help) => {
                name = of.to_owned();
                let metric = metrics.entry(name.clone()).or_default();
                metric.help = help.unwrap_or_default().to_owned();
                mark(metric);
            }
            (Some("#"), Some("TYPE"), Some(_), Some(kind)) => {
                metrics.entry(name.clone()).or_default().kind = kind.to_owned();
            }
            _ => {
                let metric = metrics.entry(name.clone()).or_default();
                if metric.labels.is_empty() {
                    metric.labels = labels(line);
                }
            }
        }
    }
    Ok(())
}

/// The names of a sample's labels, without the bound of a bucket.
fn labels(sample: &str) -> String {
    let inside =
        sample.split_once('{').and_then(|(_, rest)| rest.rsplit_once('}')).map_or("", |(inside, _)| inside);
    let names = inside.split("\",").filter_map(|pair| pair.split_once('=')).map(|(name, _)| name);
    names.filter(|name| *name != "le").collect::<Vec<_>>().join(", ")
}

/// What is wrong with a metric of ours. Names of etcd's, of gRPC's and of the process are as they are.
fn fault(name: &str, metric: &Metric) -> Option<&'static str> {
    if metric.help.is_empty() {
        return Some("has no help");
    }
    if !name.starts_with("gaios_") {
        return None;
    }
    let ends = |units: &[&str]| units.iter().any(|unit| name.ends_with(unit));
    match metric.kind.as_str() {
        "counter" if !ends(&["_total"]) => Some("is a counter, so its name ends with _total"),
        "gauge" if ends(&["_total"]) => Some("is no counter, so its name does not end with _total"),
        "histogram" if !ends(UNITS) => Some("names no unit"),
        _ => None,
    }
}

fn row(name: &str, metric: &Metric) -> String {
    let by = match (metric.gateway, metric.node) {
        (true, true) => "both",
        (true, false) => "gateway",
        (false, _) => "node",
    };
    // The table's own sign must not come from a help.
    let help = metric.help.replace('|', "\\|");
    let labels = if metric.labels.is_empty() { "–" } else { &metric.labels };
    format!("| `{name}` | {} | {labels} | {by} | {help} |", metric.kind)
}

/// The name in a row of the page, and the row.
fn row_name(line: &str) -> Option<(&str, &str)> {
    let name = line.strip_prefix("| `")?.split_once('`')?.0;
    Some((name, line))
}

fn in_sources(name: &str) -> Result<bool, Failure> {
    let found = Command::new("git").args(["grep", "--quiet", "--fixed-strings", name, "--", "*.rs"]).status();
    found.map(|status| status.success()).map_err(|error| Failure::new(format!("start git grep: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_they_are() {
        let of = |kind: &str| Metric { kind: kind.to_owned(), help: "Some.".to_owned(), ..Metric::default() };
        assert_eq!(fault("gaios_x_total", &of("counter")), None);
        assert!(fault("gaios_x", &of("counter")).is_some());
        assert!(fault("gaios_x_total", &of("gauge")).is_some());
        assert!(fault("gaios_x", &of("histogram")).is_some());
        assert_eq!(fault("etcd_server_proposals_applied_total", &of("gauge")), None);
        assert!(fault("etcd_x", &Metric::default()).is_some());
    }

    #[test]
    fn labels_are_named_without_bounds() {
        assert_eq!(labels("a_bucket{group=\"1\",le=\"0.5\"} 3"), "group");
        assert_eq!(labels("a 3"), "");
    }
}
