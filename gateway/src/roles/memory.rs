//! How much memory there is for this process.

use std::fs;

/// Where nothing says how much there is.
const UNKNOWN_BYTES: u64 = 2 << 30;

/// A part, half of it say, of the memory that the container may use, or that the machine has, in bytes.
pub(crate) fn part(divisor: u64) -> usize {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let all = least(&text("/sys/fs/cgroup/memory.max"), &text("/proc/meminfo"));
    tracing::info!(bytes = all, "memory");
    usize::try_from(all / divisor).unwrap_or(usize::MAX)
}

/// Of what the container's group says (version 2 of cgroups) and what the kernel has.
fn least(group: &str, machine: &str) -> u64 {
    let group = group.trim().parse().ok();
    let total = machine.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB"));
    let machine = total.and_then(|kilobytes| kilobytes.trim().parse::<u64>().ok());
    [group, machine.map(|kilobytes| kilobytes.saturating_mul(1024))]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(UNKNOWN_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_containers_limit_counts_if_it_has_one() {
        let machine = "MemFree: 1 kB\nMemTotal:       24576 kB\n";
        assert_eq!(least("536870912\n", "MemTotal: 24576000 kB"), 536_870_912);
        assert_eq!(least("max\n", machine), 24_576 << 10);
        assert_eq!(least("9999999999\n", machine), 24_576 << 10);
        assert_eq!(least("", ""), UNKNOWN_BYTES);
    }
}
