//! What came of a case, and whether the small client was hurt.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::probe::Sample;

/// What is normal again takes no longer.
pub(crate) const SLOW: Duration = Duration::from_millis(100);
/// The 99th percentile of the small client's latency under attack.
const P99_MS_MAX: f64 = 100.0;
/// From the end of the attack to the last request that was slow or failed.
const RECOVERY_S_MAX: f64 = 1.0;
/// What clients may make the gateway hold: its `limits.memory_budget`.
pub(crate) const MEMORY_BUDGET_MIB: u32 = 256;
/// What the gateway may have: its budget, and what it needs whatever clients do (the program, the links, what the
/// allocator has not given back).
pub(crate) const GATEWAY_BUDGET_MIB: f64 = MEMORY_BUDGET_MIB as f64 + 128.0;
/// What a node may have on top of what it had before the attack, and twice what the attack wrote (which is in its state and,
/// until followers have it, in its log).
pub(crate) const NODE_BUDGET_MIB: f64 = 512.0;

/// How requests went.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Latencies {
    /// How many ended.
    pub count: usize,
    /// How many of these failed, by what they were told.
    pub failures: BTreeMap<String, usize>,
    /// Half took no longer, in milliseconds.
    pub p50_ms: f64,
    /// 99 of 100 took no longer.
    pub p99_ms: f64,
    /// None took longer.
    pub max_ms: f64,
}

impl Latencies {
    pub(crate) fn of<'a>(samples: impl Iterator<Item = &'a Sample>) -> Latencies {
        let mut failures = BTreeMap::new();
        let mut times = Vec::new();
        for sample in samples {
            times.push(sample.took.as_secs_f64() * 1000.0);
            if let Some(why) = &sample.failed {
                *failures.entry(why.clone()).or_default() += 1;
            }
        }
        times.sort_by(f64::total_cmp);
        let at = |fraction: f64| {
            let rank = (times.len() as f64 * fraction).ceil() as usize;
            times.get(rank.saturating_sub(1)).copied().unwrap_or_default()
        };
        Latencies { count: times.len(), failures, p50_ms: at(0.5), p99_ms: at(0.99), max_ms: at(1.0) }
    }

    /// How many failed.
    pub fn failed(&self) -> usize {
        self.failures.values().sum()
    }
}

/// From `end` until the last request that was slow or failed was due, in seconds.
pub(crate) fn recovery_s(samples: &[Sample], end: Instant) -> f64 {
    let slow =
        samples.iter().filter(|sample| sample.due >= end && (sample.failed.is_some() || sample.took > SLOW));
    slow.map(|sample| (sample.due - end).as_secs_f64()).fold(0.0, f64::max)
}

/// What a process used.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Process {
    /// What it does.
    pub role: String,
    /// Resident memory before the attack, in MiB.
    pub before_mib: f64,
    /// The most from then on.
    pub peak_mib: f64,
    /// When all was over.
    pub after_mib: f64,
    /// What it may have, if there is a bound.
    pub budget_mib: Option<f64>,
    /// CPU time during the attack, in seconds.
    pub cpu_s: f64,
    /// Resident memory, twice a second from the beginning of the attack on.
    pub series_mib: Vec<f64>,
}

/// One case against one server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Name of the case.
    pub case: String,
    /// Name of the server.
    pub system: String,
    /// The small client before the attack.
    pub normal: Latencies,
    /// During the attack.
    pub attack: Latencies,
    /// How long the attack lasted, in seconds.
    pub attack_s: f64,
    /// See [`recovery_s`].
    pub recovery_s: f64,
    /// Rounds of leadership that passed.
    pub terms: u64,
    /// The server's processes.
    pub processes: Vec<Process>,
    /// Share (0 to 1) of the machine that other programs had.
    pub disturbance: f64,
    /// What the attacker saw.
    pub remark: String,
    /// What it saw that must not be.
    pub problem: Option<String>,
}

impl Report {
    /// In what the server failed; nothing if nobody was hurt.
    pub fn findings(&self) -> Vec<String> {
        let mut findings: Vec<String> = self.problem.iter().cloned().collect();
        if self.attack.count == 0 {
            findings.push("nothing was measured".to_owned());
        }
        if self.attack.failed() > 0 {
            findings.push(format!("{} of {} requests failed", self.attack.failed(), self.attack.count));
        }
        if self.attack.p99_ms > P99_MS_MAX {
            findings.push(format!("p99 {:.0} ms", self.attack.p99_ms));
        }
        if self.recovery_s >= RECOVERY_S_MAX {
            findings.push(format!("hurt for another {:.1} s", self.recovery_s));
        }
        if self.terms > 0 {
            findings.push(format!("{} new terms", self.terms));
        }
        for process in &self.processes {
            if let Some(budget) = process.budget_mib.filter(|budget| process.peak_mib > *budget) {
                findings.push(format!("{}: {:.0} of {budget:.0} MiB", process.role, process.peak_mib));
            }
        }
        findings
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let told = |of: &Latencies| {
            format!(
                "{}/{} failed, p50 {:.1} p99 {:.1} max {:.0} ms",
                of.failed(),
                of.count,
                of.p50_ms,
                of.p99_ms,
                of.max_ms
            )
        };
        writeln!(out, "  normal: {}", told(&self.normal))?;
        writeln!(
            out,
            "  attack: {} in {:.1} s; recovery {:.1} s; {} new terms; others had {:.0} %",
            told(&self.attack),
            self.attack_s,
            self.recovery_s,
            self.terms,
            self.disturbance * 100.0
        )?;
        for (why, count) in self.attack.failures.iter().take(5) {
            writeln!(out, "    {count} × {why}")?;
        }
        let processes = self.processes.iter().map(|process| {
            let budget = process.budget_mib.map_or(String::new(), |budget| format!(" of {budget:.0}"));
            let Process { role, before_mib, peak_mib, after_mib, cpu_s, .. } = process;
            format!("{role} {before_mib:.0} → {peak_mib:.0}{budget} → {after_mib:.0} MiB, {cpu_s:.1} s CPU")
        });
        write!(out, "  {}\n  {}", processes.collect::<Vec<_>>().join("; "), self.remark)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(due: Instant, took_ms: u64, failed: Option<&str>) -> Sample {
        Sample { due, took: Duration::from_millis(took_ms), failed: failed.map(str::to_owned), term: 1 }
    }

    fn report(attack: Latencies) -> Report {
        Report {
            case: "case".to_owned(),
            system: "gaios".to_owned(),
            normal: Latencies::default(),
            attack,
            attack_s: 1.0,
            recovery_s: 0.0,
            terms: 0,
            processes: Vec::new(),
            disturbance: 0.0,
            remark: String::new(),
            problem: None,
        }
    }

    #[test]
    fn percentiles_are_those_of_the_samples() {
        let now = Instant::now();
        let samples: Vec<_> = (1..=100).map(|ms| sample(now, ms, (ms > 98).then_some("late"))).collect();
        let latencies = Latencies::of(samples.iter());
        let rounded = [latencies.p50_ms, latencies.p99_ms, latencies.max_ms].map(f64::round);
        assert_eq!((latencies.count, latencies.failed(), rounded), (100, 2, [50.0, 99.0, 100.0]));
        assert_eq!(Latencies::of([].into_iter()).max_ms, 0.0);
    }

    #[test]
    fn recovery_lasts_to_the_last_slow_request() {
        let end = Instant::now();
        let after = |ms| end + Duration::from_millis(ms);
        let slow_before = sample(end - Duration::from_secs(1), 5000, None);
        assert_eq!(recovery_s(&[slow_before.clone(), sample(after(20), 3, None)], end), 0.0);
        let samples = [
            slow_before,
            sample(after(500), 101, None),
            sample(after(700), 3, Some("no")),
            sample(after(900), 9, None),
        ];
        assert_eq!(recovery_s(&samples, end), 0.7);
    }

    #[test]
    fn whoever_is_hurt_is_found() {
        let fine = Latencies { count: 100, p99_ms: 99.0, ..Latencies::default() };
        assert_eq!(report(fine.clone()).findings(), Vec::<String>::new());
        let failed = Latencies { failures: BTreeMap::from([("no".to_owned(), 1)]), ..fine.clone() };
        let process = |peak_mib| Process {
            role: "gateway".to_owned(),
            before_mib: 10.0,
            peak_mib,
            after_mib: 10.0,
            budget_mib: Some(512.0),
            cpu_s: 1.0,
            series_mib: Vec::new(),
        };
        let hurt = [
            report(Latencies::default()),
            report(failed),
            report(Latencies { p99_ms: 101.0, ..fine.clone() }),
            Report { recovery_s: 1.0, ..report(fine.clone()) },
            Report { terms: 1, ..report(fine.clone()) },
            Report { problem: Some("not served".to_owned()), ..report(fine.clone()) },
            Report { processes: vec![process(512.0), process(513.0)], ..report(fine) },
        ];
        for report in hurt {
            assert_eq!(report.findings().len(), 1, "{report}");
        }
    }
}
