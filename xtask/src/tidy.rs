//! House rules that the compiler and clippy cannot see.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::assertions;
use crate::circles::Sources;
use crate::run::{Failure, cargo};
use crate::structure;

/// Crates that decide and do nothing: no async runtime may come into their dependency tree.
const PURE: &[&str] = &[
    "consensus-core",
    "keyspace",
    "shard-map",
    "gateway-core",
    "group-core",
    "backoff",
    "fair-queue",
    "journal",
    "config",
    "sim",
];

/// Crates whose own `clippy.toml` bans clocks, randomness, sockets and unordered maps.
const BANNED_BY_CLIPPY: &[&str] =
    &["consensus-core", "keyspace", "shard-map", "gateway-core", "group-core", "fair-queue"];

/// Which of our crates a crate may depend on (tests aside). A new arrow is a change of the architecture: change
/// docs/architecture.md with it.
const ARROWS: &[(&str, &[&str])] = &[
    ("abuse", &["api", "bench"]),
    ("api", &[]),
    ("backoff", &[]),
    ("bench", &["api", "tls"]),
    ("compat", &["api", "test-dns", "test-kubernetes", "tls"]),
    ("config", &[]),
    ("consensus-core", &[]),
    ("discovery", &[]),
    ("fair-queue", &[]),
    (
        "gateway",
        &[
            "api",
            "backoff",
            "config",
            "consensus-core",
            "discovery",
            "gateway-core",
            "keyspace",
            "replica",
            "shard-map",
            "tls",
        ],
    ),
    ("gateway-core", &["api", "backoff", "fair-queue", "keyspace", "shard-map"]),
    ("group-core", &["api", "consensus-core", "fair-queue", "journal", "keyspace"]),
    ("journal", &[]),
    ("keyspace", &["shard-map"]),
    ("planet", &[]),
    (
        "replica",
        &[
            "api",
            "backoff",
            "config",
            "consensus-core",
            "discovery",
            "group-core",
            "journal",
            "keyspace",
            "shard-map",
            "tls",
        ],
    ),
    ("shard-map", &[]),
    ("sim", &["api", "consensus-core", "gateway-core", "group-core", "journal", "keyspace", "shard-map"]),
    ("test-dns", &[]),
    ("test-kubernetes", &["tls"]),
    ("tls", &[]),
    ("xtask", &["config"]),
];

/// What only some places of a crate know.
struct Known {
    /// Of which folder.
    within: &'static str,
    /// These words.
    words: &'static [&'static str],
    /// Only there.
    by: &'static [&'static str],
    finding: &'static str,
}

const KNOWN: &[Known] = &[
    Known {
        within: "gateway/src/",
        words: &["etcdserverpb", "mvccpb", "\"etcdserver: ", "\"mvcc: "],
        // The names of methods are metrics, too.
        by: &["gateway/src/door/", "gateway/src/methods.rs"],
        finding: "etcd's messages and texts are for `gateway/src/door` alone",
    },
    Known {
        within: "gateway/src/",
        words: &["response::Kind", "response::{"],
        by: &["gateway/src/link/", "gateway/src/carrier/asks.rs"],
        finding: "answers of nodes are sorted in `gateway/src/link/ask.rs` and read in `carrier/asks.rs`",
    },
];

pub(crate) fn run() -> Result<(), Failure> {
    let mut findings = Vec::new();
    let mut asserted: BTreeMap<String, assertions::Count> = BTreeMap::new();
    let crates = read_files(|path, bytes| {
        check_file(path, bytes, &mut findings);
        if let (Some((krate, file)), Ok(text)) = (path.split_once('/'), std::str::from_utf8(bytes)) {
            asserted.entry(krate.to_owned()).or_default().add(file, text);
        }
    })?;
    for (name, sources) in &crates {
        let circles = sources.circles();
        findings.extend(circles.iter().map(|circle| format!("{name}: modules need each other: {circle}")));
    }
    for name in assertions::CRATES {
        let finding = asserted.get(*name).and_then(assertions::Count::finding);
        findings.extend(finding.map(|finding| format!("{name}: {finding}")));
    }
    check_crates(&mut findings)?;
    match structure::page(&crates, &dependencies()?) {
        Ok(page) if fs::read_to_string(structure::PAGE).is_ok_and(|written| written == page) => {}
        Ok(_) => findings.push(format!("{}: not up to date: run `cargo xtask docs`", structure::PAGE)),
        Err(finding) => findings.push(finding),
    }
    if findings.is_empty() {
        return Ok(());
    }
    for finding in &findings {
        eprintln!("tidy: {finding}");
    }
    Err(Failure::new(format!("tidy: {} findings", findings.len())))
}

/// Writes the page that shows who needs whom.
pub(crate) fn write_structure() -> Result<(), Failure> {
    let page = structure::page(&read_files(|_, _| {})?, &dependencies()?).map_err(Failure::new)?;
    fs::write(structure::PAGE, page)
        .map_err(|error| Failure::new(format!("write {}: {error}", structure::PAGE)))
}

/// Shows every file of ours, and keeps the sources of each crate.
fn read_files(mut look_at: impl FnMut(&str, &[u8])) -> Result<BTreeMap<String, Sources>, Failure> {
    let mut crates: BTreeMap<String, Sources> = BTreeMap::new();
    // Copies of others' code keep their form; `third_party.rs` says what may differ.
    for path in tracked_files()?.into_iter().filter(|path| !path.starts_with("third_party/")) {
        // A file removed and not yet committed is still listed.
        if let Ok(bytes) = fs::read(&path) {
            look_at(&path, &bytes);
            if let (Some((krate, file)), Ok(text)) = (path.split_once('/'), std::str::from_utf8(&bytes)) {
                crates.entry(krate.to_owned()).or_default().add(file, text);
            }
        }
    }
    Ok(crates)
}

/// Of each crate, which of ours it depends on, tests aside.
fn dependencies() -> Result<BTreeMap<String, BTreeSet<String>>, Failure> {
    let mut all = BTreeMap::new();
    for (name, _) in ARROWS {
        let path = format!("{name}/Cargo.toml");
        let manifest =
            fs::read_to_string(&path).map_err(|error| Failure::new(format!("read {path}: {error}")))?;
        let ours = normal_dependencies(&manifest).into_iter().filter(|name| is_ours(name));
        all.insert((*name).to_owned(), ours.map(str::to_owned).collect());
    }
    Ok(all)
}

fn is_ours(name: &str) -> bool {
    ARROWS.iter().any(|(ours, _)| *ours == name)
}

fn tracked_files() -> Result<Vec<String>, Failure> {
    let output = Command::new("git")
        .args(["ls-files", "-z"])
        .output()
        .map_err(|error| Failure::new(format!("start git ls-files: {error}")))?;
    if !output.status.success() {
        return Err(Failure::new(format!("git ls-files: {}", output.status)));
    }
    let names =
        String::from_utf8(output.stdout).map_err(|error| Failure::new(format!("a file name: {error}")))?;
    Ok(names.split('\0').filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

fn check_file(path: &str, bytes: &[u8], findings: &mut Vec<String>) {
    const LARGEST: usize = 1 << 20;
    if bytes.len() > LARGEST {
        findings
            .push(format!("{path}: {} bytes; what is larger than {LARGEST} belongs elsewhere", bytes.len()));
    }
    let extension = Path::new(path).extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    if !matches!(extension, "rs" | "md" | "toml" | "yaml" | "proto" | "txt") || path == "LICENSE" {
        return;
    }
    let Ok(text) = std::str::from_utf8(bytes) else {
        findings.push(format!("{path}: not UTF-8"));
        return;
    };
    if !text.is_empty() && !text.ends_with('\n') {
        findings.push(format!("{path}: no newline at the end"));
    }
    for (number, line) in (1..).zip(text.lines()) {
        for message in line_findings(path, extension, line) {
            findings.push(format!("{path}:{number}: {message}"));
        }
    }
    if extension == "rs"
        && (path.ends_with("/lib.rs") || path.ends_with("/main.rs"))
        && !text.starts_with("//!")
    {
        findings.push(format!("{path}: begins without saying what the crate is (`//!`)"));
    }
}

fn line_findings(path: &str, extension: &str, line: &str) -> Vec<&'static str> {
    let mut found = Vec::new();
    // A golden transcript may hold any bytes.
    if line.ends_with([' ', '\t']) && !path.contains("/transcripts/") {
        found.push("white space at the end of the line");
    }
    if extension == "rs" {
        // In two halves, or this file would find itself.
        if line.contains(concat!("TO", "DO")) || line.contains(concat!("FIX", "ME")) {
            found.push("work left undone: do it, or open an issue");
        }
        if line.trim_start().starts_with(concat!("#[ign", "ore")) {
            found.push("a test that does not run proves nothing");
        }
        for known in KNOWN {
            let may_know = known.by.iter().any(|place| path.starts_with(place));
            if path.starts_with(known.within)
                && !may_know
                && known.words.iter().any(|word| line.contains(word))
            {
                found.push(known.finding);
            }
        }
        if !path.contains("/tests/") && line.contains(concat!("allow(cli", "ppy::unwrap_used")) {
            found.push("use `expect` with the reason why it cannot fail");
        }
    }
    if [concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/wo", "rk/")]
        .iter()
        .any(|place| line.contains(place))
    {
        found.push("a path of somebody's machine");
    }
    found
}

fn check_crates(findings: &mut Vec<String>) -> Result<(), Failure> {
    let manifest =
        fs::read_to_string("Cargo.toml").map_err(|error| Failure::new(format!("Cargo.toml: {error}")))?;
    for member in members(&manifest) {
        let path = format!("{member}/Cargo.toml");
        let text = fs::read_to_string(&path).map_err(|error| Failure::new(format!("{path}: {error}")))?;
        if !text.contains("[lints]\nworkspace = true") {
            findings.push(format!("{path}: does not take the workspace's lints"));
        }
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == member) else {
            findings
                .push(format!("{path}: has no row in xtask/src/tidy.rs, which says what it may depend on"));
            continue;
        };
        for dependency in normal_dependencies(&text) {
            if is_ours(dependency) && !allowed.contains(&dependency) {
                findings.push(format!("{path}: must not depend on `{dependency}`"));
            }
        }
    }
    for name in BANNED_BY_CLIPPY {
        if !Path::new(name).join("clippy.toml").exists() {
            findings.push(format!(
                "{name}/clippy.toml: missing; a pure crate bans clocks, randomness and IO with it"
            ));
        }
    }
    for name in PURE {
        let tree = cargo(&["tree", "--offline", "--package", name, "--edges", "normal", "--prefix", "none"])
            .output()?;
        for runtime in ["tokio", "tonic", "async-std", "smol"] {
            if tree.lines().any(|line| line.split(' ').next() == Some(runtime)) {
                findings.push(format!("{name}: depends on {runtime}"));
            }
        }
    }
    Ok(())
}

/// The names in the array `members`.
pub(crate) fn members(manifest: &str) -> Vec<&str> {
    let list = manifest.split_once("members = [").and_then(|(_, rest)| rest.split_once(']'));
    let list = list.map_or("", |(list, _)| list);
    list.split(',').map(|name| name.trim().trim_matches('"')).filter(|name| !name.is_empty()).collect()
}

/// What stands under `[dependencies]`.
fn normal_dependencies(manifest: &str) -> Vec<&str> {
    let mut section = "";
    let mut names = Vec::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            section = line;
        } else if section == "[dependencies]" {
            names.extend(
                line.split(['.', '=', ' ']).next().filter(|name| !name.is_empty() && !name.starts_with('#')),
            );
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_are_read() {
        assert_eq!(members("[workspace]\nmembers = [\n    \"a\",\n    \"b-c\",\n]\n"), ["a", "b-c"]);
        let manifest = "[package]\nname = \"x\"\n[dependencies]\n# why\napi.workspace = true\nbytes = \"1\"\n[dev-dependencies]\nsim = 1\n";
        assert_eq!(normal_dependencies(manifest), ["api", "bytes"]);
    }

    #[test]
    fn lines_are_judged() {
        let rust = |line: &str| line_findings("a/src/b.rs", "rs", line).len();
        assert_eq!(rust("let a = 1;"), 0);
        assert_eq!(rust("let a = 1; "), 1);
        assert_eq!(rust(concat!("// TO", "DO: later")), 1);
        assert_eq!(rust(concat!("    #[ign", "ore]")), 1);
        assert_eq!(rust(concat!("\"/ro", "ot/x\"")), 1);
        assert_eq!(line_findings("a/tests/transcripts/x.txt", "txt", "x ").len(), 0);
        let etcds = "use api::etcdserverpb as pb;";
        assert_eq!(line_findings("gateway/src/door/kv.rs", "rs", etcds).len(), 0);
        assert_eq!(line_findings("gateway/src/watch/log.rs", "rs", etcds).len(), 1);
        assert_eq!(rust(etcds), 0);
    }
}
