//! What a process has used, from `/proc`.

use std::fs;
use std::iter::Sum;
use std::time::Duration;

use serde::Serialize;

use crate::BenchError;

/// CPU time in microseconds; the kernel tells it in clock ticks, usually of 10 ms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct CpuTime {
    /// In the process's own code.
    pub user_us: u64,
    /// In the kernel on its behalf.
    pub system_us: u64,
}

impl CpuTime {
    /// User and system time together.
    pub fn total_us(self) -> u64 {
        self.user_us + self.system_us
    }
}

impl Sum for CpuTime {
    fn sum<I: Iterator<Item = CpuTime>>(iter: I) -> CpuTime {
        iter.fold(CpuTime::default(), |a, b| CpuTime {
            user_us: a.user_us + b.user_us,
            system_us: a.system_us + b.system_us,
        })
    }
}

/// A process at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessSample {
    /// Process id.
    pub pid: u32,
    /// The kernel's name for it, 15 bytes at most.
    pub name: String,
    /// CPU time of all its threads since it started, ended threads included; child processes are not.
    pub cpu: CpuTime,
    /// Resident set size in bytes.
    pub rss_bytes: u64,
    /// When it started, in ticks since boot: tells a process from a later one with the same id.
    started_ticks: u64,
}

impl ProcessSample {
    /// Reads one process.
    pub fn read(pid: u32) -> Result<ProcessSample, BenchError> {
        let fail = |what: String| BenchError::Process { pid, what };
        let file = |name: &str| {
            let path = format!("/proc/{pid}/{name}");
            fs::read_to_string(&path).map_err(|error| fail(format!("read {path}: {error}")))
        };
        let ticks_per_second = rustix::param::clock_ticks_per_second();
        let stat = file("stat")?;
        let stat = parse_stat(&stat).ok_or_else(|| fail("cannot read its stat line".to_owned()))?;
        // A process which has ended but was not waited for has no VmRSS line.
        let rss_bytes = parse_rss(&file("status")?).ok_or_else(|| fail("has ended".to_owned()))?;
        let micros = |ticks: u64| ticks.saturating_mul(1_000_000) / ticks_per_second.max(1);
        Ok(ProcessSample {
            pid,
            name: stat.name.to_owned(),
            cpu: CpuTime { user_us: micros(stat.user_ticks), system_us: micros(stat.system_ticks) },
            rss_bytes,
            started_ticks: stat.started_ticks,
        })
    }

    /// Reads several processes.
    pub fn read_all(pids: &[u32]) -> Result<Vec<ProcessSample>, BenchError> {
        pids.iter().copied().map(ProcessSample::read).collect()
    }
}

/// The fields of `/proc/PID/stat` we need; their order is told in proc_pid_stat(5).
#[derive(Debug, PartialEq, Eq)]
pub struct Stat<'a> {
    /// Field 2, without its parentheses.
    pub name: &'a str,
    /// Field 14.
    pub user_ticks: u64,
    /// Field 15.
    pub system_ticks: u64,
    /// Field 22.
    pub started_ticks: u64,
}

/// Parses the text of `/proc/PID/stat`.
pub fn parse_stat(text: &str) -> Option<Stat<'_>> {
    // The name may hold blanks and parentheses, so only the last closing one ends it.
    let (head, tail) = text.rsplit_once(')')?;
    let (_, name) = head.split_once('(')?;
    let field = |number: usize| tail.split_ascii_whitespace().nth(number - 3)?.parse().ok();
    Some(Stat { name, user_ticks: field(14)?, system_ticks: field(15)?, started_ticks: field(22)? })
}

/// Finds the resident set size, in bytes, in the text of `/proc/PID/status`.
pub fn parse_rss(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    kib.checked_mul(1024)
}

/// CPU time the machine could not give to anything else, since it started, in ticks: that of all processes, and what
/// the host of a virtual machine took. Interrupts are left out, since our own network traffic causes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineSample(u64);

impl MachineSample {
    /// Reads `/proc/stat`.
    pub fn read() -> Result<MachineSample, BenchError> {
        let text = fs::read_to_string("/proc/stat").map_err(BenchError::io("read /proc/stat"))?;
        parse_machine(&text).ok_or_else(|| BenchError::Server("cannot read /proc/stat".to_owned()))
    }

    /// The share (0 to 1) of all cores which went to neither the servers nor this load generator since `self`.
    pub fn share_of_others(self, later: MachineSample, elapsed: Duration, known: CpuTime) -> f64 {
        let ticks = later.0.saturating_sub(self.0);
        let taken_us = ticks.saturating_mul(1_000_000) / rustix::param::clock_ticks_per_second().max(1);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let available_us = elapsed.as_micros() as f64 * cores as f64;
        (taken_us.saturating_sub(known.total_us()) as f64 / available_us.max(1.0)).min(1.0)
    }
}

/// Parses the text of `/proc/stat`; the order of its columns is told in proc_stat(5).
pub fn parse_machine(text: &str) -> Option<MachineSample> {
    let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let columns: Vec<u64> = line.split_ascii_whitespace().map(|c| c.parse().ok()).collect::<Option<_>>()?;
    let column = |index: usize| columns.get(index).copied();
    let (user, nice, system, steal) = (column(0)?, column(1)?, column(2)?, column(7)?);
    Some(MachineSample(user + nice + system + steal))
}

/// What a process used between two moments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProcessUse {
    /// Process id.
    pub pid: u32,
    /// The kernel's name for it.
    pub name: String,
    /// CPU time spent.
    pub cpu: CpuTime,
    /// Resident set size before, in bytes.
    pub rss_before_bytes: u64,
    /// Resident set size after, in bytes.
    pub rss_after_bytes: u64,
}

impl ProcessUse {
    /// The difference of two samples of the same processes in the same order.
    pub fn between(before: &[ProcessSample], after: &[ProcessSample]) -> Result<Vec<ProcessUse>, BenchError> {
        before.iter().zip(after).map(|(before, after)| ProcessUse::of_one(before, after)).collect()
    }

    fn of_one(before: &ProcessSample, after: &ProcessSample) -> Result<ProcessUse, BenchError> {
        if (before.pid, before.started_ticks) != (after.pid, after.started_ticks) {
            return Err(BenchError::Process { pid: before.pid, what: "was replaced by another".to_owned() });
        }
        Ok(ProcessUse {
            pid: after.pid,
            name: after.name.clone(),
            cpu: CpuTime {
                user_us: after.cpu.user_us.saturating_sub(before.cpu.user_us),
                system_us: after.cpu.system_us.saturating_sub(before.cpu.system_us),
            },
            rss_before_bytes: before.rss_bytes,
            rss_after_bytes: after.rss_bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "4711 (a (b) c) S 1 4711 4711 0 -1 4194560 2318 0 3 0 1234 567 8 9 20 0 11 0 98765 \
                        11811160064 6021 18446744073709551615 1 1 0 0 0 0 0 0 2143420159 0 0 0 17 1 0 0 0 0 0\n";

    #[test]
    fn reads_a_stat_line_whose_name_has_parentheses() {
        let expected = Stat { name: "a (b) c", user_ticks: 1234, system_ticks: 567, started_ticks: 98765 };
        assert_eq!(parse_stat(STAT), Some(expected));
    }

    #[test]
    fn refuses_what_is_no_stat_line() {
        for text in ["", "4711 name S 1", "4711 (name) S 1 2 3", &STAT.replace("567", "-567")] {
            assert_eq!(parse_stat(text), None, "{text}");
        }
    }

    #[test]
    fn reads_the_resident_set() {
        let status = "Name:\tetcd\nVmPeak:\t 11534336 kB\nVmRSS:\t   24084 kB\nRssAnon:\t 9000 kB\n";
        assert_eq!(parse_rss(status), Some(24084 * 1024));
        for text in ["", "Name:\tetcd\n", "VmRSS:\t24084 MB\n", "VmRSS:\t99999999999999999999 kB\n"] {
            assert_eq!(parse_rss(text), None, "{text}");
        }
    }

    #[test]
    fn sums_what_the_machine_did() {
        let stat = "cpu  100 20 3000 77777 55 66 77 4 0 0\ncpu0 50 10 1500 1 1 1 1 1 0 0\nintr 1 2\n";
        let before = parse_machine(stat).unwrap();
        assert_eq!(before, MachineSample(3124));
        for text in ["", "cpu  1 2 3\n", "cpu0 1 2 3 4 5 6 7 8\n", "cpu  1 2 x 4 5 6 7 8\n"] {
            assert_eq!(parse_machine(text), None, "{text}");
        }
        let later = MachineSample(3124 + 100);
        let tick_us = 1_000_000 / rustix::param::clock_ticks_per_second();
        let known = CpuTime { user_us: 40 * tick_us, system_us: 10 * tick_us };
        let cores = std::thread::available_parallelism().unwrap().get() as f64;
        let elapsed = Duration::from_micros(100 * tick_us);
        assert!((before.share_of_others(later, elapsed, known) - 0.5 / cores).abs() < 1e-9);
        assert_eq!(later.share_of_others(before, elapsed, known), 0.0);
    }

    #[test]
    fn reads_itself() {
        let pid = std::process::id();
        let before = ProcessSample::read_all(&[pid]).unwrap();
        // Longer than the coarsest tick in use, so that the difference cannot be zero.
        let start = std::time::Instant::now();
        while start.elapsed().as_millis() < 50 {
            std::hint::spin_loop();
        }
        let after = ProcessSample::read_all(&[pid]).unwrap();
        let spent = ProcessUse::between(&before, &after).unwrap();
        assert_eq!(spent[0].pid, pid);
        assert!(spent[0].cpu.total_us() > 0);
        assert!(spent[0].rss_after_bytes > 100_000);
    }

    #[test]
    fn refuses_a_process_which_is_not_there_or_not_the_same() {
        // Above the largest id Linux gives.
        assert!(matches!(ProcessSample::read(1 << 23), Err(BenchError::Process { .. })));
        let before = ProcessSample::read(std::process::id()).unwrap();
        let mut after = before.clone();
        after.started_ticks += 1;
        assert!(ProcessUse::between(&[before], &[after]).is_err());
    }
}
