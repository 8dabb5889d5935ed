//! `docs/limits.md`.

use std::fmt::Write as _;

use crate::cases::{CASES, Demand};
use crate::report::{GATEWAY_BUDGET_MIB, MEMORY_BUDGET_MIB, NODE_BUDGET_MIB, Process, Report};

/// The page that tells of these reports; `machine` says where they are from, `configuration` is the text of
/// `docs/configuration.md`.
pub fn page(machine: &str, configuration: &str, reports: &[Report]) -> String {
    let mut page = format!(
        "# Limits\n\n\
         What clients may do to each other, case by case, and what etcd 3.5.1 does in the same case. Written by\n\
         `cargo xtask abuse --docs` from one run against both, on one machine; `cargo xtask abuse` repeats it for Gaios alone, as CI\n\
         does.\n\n\
         Each case begins with a fresh server: three nodes and a gateway, or three members of etcd, whose leader is attacked. A small\n\
         well-behaved client puts and gets a key every 20 ms and keeps a lease alive, on connections of its own, with a deadline of 2 s.\n\
         Nobody is hurt if none of its requests fails, the 99th percentile of its latency is at most 100 ms under attack, it is as\n\
         before within 1 s of the attack's end, no node had to be replaced as leader, the gateway, whose `limits.memory_budget` is\n\
         {MEMORY_BUDGET_MIB} MiB, had at most {GATEWAY_BUDGET_MIB} MiB of memory, and a node at most {NODE_BUDGET_MIB} MiB more than before (and twice\n\
         what the attack wrote). All run on one machine, the attackers' threads with a low priority.\n\n\
         {machine}\n\n"
    );
    page.push_str(HEAD);
    for case in CASES {
        let of = |system| reports.iter().find(|report| report.case == case.name && report.system == system);
        let _ = writeln!(
            page,
            "| `{}` | {} | {} | {} |",
            case.name,
            case.attack_is,
            cells(of("gaios")),
            cells(of("etcd"))
        );
    }
    page.push_str("\n## What CI does not demand yet\n\n");
    let open = CASES.iter().filter(|case| case.demand == Demand::Open);
    let open: Vec<_> = open.map(|case| format!("`{}`", case.name)).collect();
    let _ = writeln!(
        page,
        "{}",
        if open.is_empty() { "Nothing: all cases are held.".to_owned() } else { open.join(",\n") }
    );
    page.push_str(SETTINGS);
    for (name, what, default) in limits(configuration) {
        let _ = writeln!(page, "| `{name}` | {default} | {what} |");
    }
    page
}

const HEAD: &str = "\
## The cases

*hurt*: how many of the small client's requests failed; `p99`, `worst`: its latency under attack; `back`: seconds from the end of
the attack until it was as before; memory: the most of the process that is attacked, and of the largest other one.

| case | the attack | Gaios: hurt | p99 ms | worst ms | back s | gateway, node MiB | etcd: hurt | p99 ms | worst ms | back s | leader, follower MiB |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
";

const SETTINGS: &str = "
## Settings

What bounds clients, from [configuration.md](configuration.md), where it is told in full.

| setting | default | |
| --- | --- | --- |
";

/// The settings under `limits`: name, what it is, and default.
fn limits(configuration: &str) -> Vec<(&str, String, &str)> {
    let sections = configuration.split("\n### `").skip(1);
    let of_section = |section| {
        let (name, rest) = str::split_once(section, '`')?;
        let mut paragraphs = rest.trim().split("\n\n");
        let what = paragraphs.next()?.replace('\n', " ");
        let default = paragraphs.next()?.split(" · ").find_map(|part| part.strip_prefix("Default: "))?;
        name.starts_with("limits.").then_some((name, what, default))
    };
    let mut limits: Vec<_> = sections.filter_map(of_section).collect();
    limits.dedup();
    limits
}

fn cells(report: Option<&Report>) -> String {
    let Some(report) = report else { return " | | | |".to_owned() };
    let mut peaks = report.processes.iter().map(|process: &Process| process.peak_mib);
    let first = peaks.next().unwrap_or_default();
    let others = peaks.fold(0.0, f64::max);
    let failed = report.attack.failed();
    let hurt = match (&report.problem, report.terms) {
        (None, 0) => failed.to_string(),
        (None, terms) => format!("{failed}, {terms} new terms"),
        (Some(problem), _) => format!("{failed}; {}", problem.replace('|', "/")),
    };
    format!(
        "{hurt} | {:.0} | {:.0} | {:.1} | {first:.0}, {others:.0}",
        report.attack.p99_ms, report.attack.max_ms, report.recovery_s
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_those_of_the_configuration() {
        let text = "# Configuration\n\n### `limits`\n\nBounds.\n\nType: a section · Default: its own\n\n\
                    ### `limits.most`\n\nMost, whatever\nfor.\n\nType: a whole number · Default: `7` · Range: `1` to `9`\n\n\
                    ### `listen`\n\nWhere.\n\nType: an address · Default: `here`\n";
        assert_eq!(limits(text), [("limits.most", "Most, whatever for.".to_owned(), "`7`")]);
    }
}
