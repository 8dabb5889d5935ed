//! Whether what is measured can be seen: alert rules are tested, every query of dashboards and alerts is asked of a real
//! Prometheus that scrapes a cluster under load, and the status page is looked at in a real browser.
//!
//! Prometheus and Chromium are Debian's, installed when they are missing.

mod cluster;
mod dashboards;
mod metrics;
mod page;
mod process;
mod prometheus;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::run::{Failure, build_programs};
use cluster::Cluster;
use dashboards::DASHBOARDS;
use prometheus::{Answer, Prometheus};

const RULES: &str = "helm/gaios/alerts/gaios.yaml";
const RULE_TESTS: &str = "helm/gaios/alerts/tests/gaios_test.yaml";
/// Where a dashboard's rates are taken over. The scrapes are a second apart, and what is rare must have happened twice.
const RATE_INTERVAL: &str = "15s";
/// A query that has no answer is asked again: some series begin with the first event of their kind.
const ANSWER_WITHIN: Duration = Duration::from_secs(45);

/// Whether pages and pictures are compared or written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Changes nothing but what it installs.
    Check,
    /// Writes `docs/metrics.md` and the pictures in `docs/images`.
    Write,
}

/// The whole check.
pub(crate) fn run(mode: Mode) -> Result<(), Failure> {
    install()?;
    check_dashboards_are_written()?;
    command("promtool", &["check", "rules", RULES])?;
    command("promtool", &["test", "rules", RULE_TESTS])?;
    build_programs()?;

    let dir = Scratch::new()?;
    let cluster = Cluster::start(&dir.0)?;
    let _load = cluster.load()?;
    let prometheus = Prometheus::start(&dir.0, &cluster.targets(), Path::new(RULES))?;
    page::check(&dir.0, &cluster)?;
    ask_everything(&prometheus)?;
    metrics::check(&cluster, mode == Mode::Write)?;
    if mode == Mode::Write {
        page::pictures(&dir.0, &cluster, Path::new("docs/images"))?;
    }
    Ok(())
}

/// Writes the dashboards.
pub(crate) fn write_dashboards() -> Result<(), Failure> {
    for dashboard in DASHBOARDS {
        write(&path(dashboard.name), &dashboard.json())?;
    }
    Ok(())
}

fn path(dashboard: &str) -> PathBuf {
    Path::new("helm/gaios/dashboards").join(format!("{dashboard}.json"))
}

fn check_dashboards_are_written() -> Result<(), Failure> {
    for dashboard in DASHBOARDS {
        let path = path(dashboard.name);
        if fs::read_to_string(&path).ok() != Some(dashboard.json()) {
            return Err(Failure::new(format!(
                "{} is not up to date: run `cargo xtask docs`",
                path.display()
            )));
        }
    }
    Ok(())
}

/// Asks until every query has data, or time is up.
fn ask_everything(prometheus: &Prometheus) -> Result<(), Failure> {
    let mut open = Vec::new();
    for dashboard in DASHBOARDS {
        for (panel, query) in dashboard.queries() {
            open.push((format!("{}: {panel}", dashboard.name), dashboard.resolved(query, RATE_INTERVAL)));
        }
    }
    for (alert, query) in prometheus.alerts()? {
        open.push((format!("alert {alert}"), without_bounds(&query)));
    }
    let asked = open.len();
    let begun = Instant::now();
    loop {
        let mut empty = Vec::new();
        for (name, query) in open {
            match prometheus.query(&query)? {
                Answer::Data => {}
                Answer::Empty => empty.push((name, query)),
            }
        }
        if empty.is_empty() {
            eprintln!("observe: {asked} queries of dashboards and alerts have data");
            return Ok(());
        }
        if begun.elapsed() > ANSWER_WITHIN {
            for (name, query) in &empty {
                eprintln!("observe: no data: {name}: {query}");
            }
            return Err(Failure::new(format!("{} of {asked} queries have no data", empty.len())));
        }
        open = empty;
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// An alert's expression without the comparisons with numbers, which a healthy cluster does not meet. What is left must
/// have data, or the alert looks at nothing.
fn without_bounds(expression: &str) -> String {
    let mut kept = Vec::new();
    let mut words = expression.split_whitespace().peekable();
    while let Some(word) = words.next() {
        let is_bound = matches!(word, "<" | ">" | "<=" | ">=" | "==" | "!=")
            && words.peek().is_some_and(|next| next.parse::<f64>().is_ok());
        if is_bound {
            words.next();
        } else {
            kept.push(word);
        }
    }
    kept.join(" ")
}

/// Debian's packages, if they are missing. A machine where they cannot be had fails the check.
fn install() -> Result<(), Failure> {
    let missing = |program: &&&str| Command::new(program).arg("--version").output().is_err();
    let wanted: &[&str] = &["prometheus", "promtool", "chromium"];
    if wanted.iter().filter(missing).count() == 0 {
        return Ok(());
    }
    command("apt-get", &["update", "--quiet"])?;
    command("apt-get", &["install", "--yes", "--quiet", "--no-install-recommends", "prometheus", "chromium"])
}

fn command(program: &str, args: &[&str]) -> Result<(), Failure> {
    eprintln!("+ {program} {}", args.join(" "));
    let status = Command::new(program).args(args).env("DEBIAN_FRONTEND", "noninteractive").status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Failure::new(format!("`{program} {}`: {status}", args.join(" ")))),
        Err(error) => Err(Failure::new(format!("start `{program}`: {error}"))),
    }
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let failed = |error| Failure::new(format!("write {}: {error}", path.display()));
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    fs::write(path, text).map_err(failed)
}

/// A folder that is gone afterwards.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Scratch, Failure> {
        let path = std::env::temp_dir().join(format!("gaios-observe-{}", std::process::id()));
        fs::create_dir_all(&path).map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_left_out() {
        assert_eq!(without_bounds("a{b=\"c\"} == 0"), "a{b=\"c\"}");
        assert_eq!(without_bounds("a / b > 0.01 and c < d"), "a / b and c < d");
    }

    #[test]
    fn dashboards_are_unlike() {
        let mut names: Vec<_> = DASHBOARDS.iter().map(|dashboard| dashboard.name).collect();
        names.dedup();
        assert_eq!(names.len(), DASHBOARDS.len());
        let node = DASHBOARDS.iter().find(|dashboard| dashboard.name == "gaios-node").unwrap();
        let resolved = node.resolved("a{instance=~\"$node\"}[$__rate_interval]", "15s");
        assert_eq!(resolved, "a{instance=~\".*\"}[15s]");
    }
}
