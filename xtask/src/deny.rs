//! `cargo deny`, installed under `target/tools`.

use std::path::Path;

use crate::run::{Failure, cargo};

/// What `deny.toml` is written for. Built without optimisation: it takes a minute on two cores, and runs a second.
const VERSION: &str = "0.20.2";

pub(crate) fn run() -> Result<(), Failure> {
    install()?;
    cargo(&["deny", "--all-features", "check", "--hide-inclusion-graph", "licenses", "bans", "sources"])
        .with_tools()
        .run()?;

    // The advisory database is a git repository, which a machine behind a package mirror cannot reach. That must be seen,
    // and must not look like a finding.
    if let Err(failure) = cargo(&["deny", "fetch", "db"]).with_tools().output() {
        eprintln!("deny: ADVISORIES WERE NOT CHECKED: their database could not be fetched");
        eprintln!("deny: {}", failure.to_string().lines().last().unwrap_or_default());
        return Ok(());
    }
    cargo(&["deny", "--all-features", "check", "--hide-inclusion-graph", "advisories"]).with_tools().run()
}

fn install() -> Result<(), Failure> {
    let installed = cargo(&["deny", "--version"]).with_tools().output();
    if installed.is_ok_and(|version| version.trim().ends_with(VERSION)) {
        return Ok(());
    }
    let build = "target/tools/build";
    let args = ["install", "cargo-deny", "--version", VERSION, "--locked", "--debug", "--force"];
    cargo(&[&args[..], &["--root", "target/tools", "--target-dir", build]].concat()).run()?;
    // Hundreds of megabytes that are of no further use.
    if Path::new(build).exists() {
        std::fs::remove_dir_all(build).map_err(|error| Failure::new(format!("remove {build}: {error}")))?;
    }
    Ok(())
}
