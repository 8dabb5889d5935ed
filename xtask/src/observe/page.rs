//! The status page in a real browser.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use super::cluster::Cluster;
use crate::run::Failure;

/// Long enough for several answers; the browser's own time, which runs as fast as it can.
const BUDGET_MS: &str = "9000";

/// What makes the browser do nothing but show a page.
const QUIET: &[&str] = &[
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
];

/// The pages of a gateway and of a node, as the browser has them after it has run their script.
pub(super) fn check(dir: &Path, cluster: &Cluster) -> Result<(), Failure> {
    let seen = shown(dir, cluster.gateway_admin)?;
    contains(
        &seen,
        &[
            "harbour",
            "haven",
            "node 1",
            "node 2",
            "node 3",
            "All is well.",
            ">leader<",
            "3 of 3",
            "node-2",
            "eu-west / b",
            "gaios://observed/gateway/harbour",
            "gaios://observed/node/3",
            "364 days",
        ],
    )?;
    let seen = shown(dir, cluster.replica_admins[0])?;
    contains(&seen, &["node 1 · node-1", "Replicas", "All is well.", "harbour", "eu-west / a", "CA of links"])
}

/// Pictures in light and dark.
pub(super) fn pictures(dir: &Path, cluster: &Cluster, to: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(to).map_err(|error| Failure::new(format!("{}: {error}", to.display())))?;
    let page = url(cluster.gateway_admin);
    for (name, scheme) in [("light", "1"), ("dark", "0")] {
        let file = to.join(format!("status-{name}.png"));
        browse(
            dir,
            &[
                &format!("--screenshot={}", file.display()),
                &format!("--blink-settings=preferredColorScheme={scheme}"),
                "--window-size=1200,1320",
                // The curve needs some real time, of which the browser's runs ahead.
                "--virtual-time-budget=3000000",
                &page,
            ],
        )?;
    }
    Ok(())
}

/// The document after a while.
fn shown(dir: &Path, admin: SocketAddr) -> Result<String, Failure> {
    browse(dir, &["--dump-dom", &format!("--virtual-time-budget={BUDGET_MS}"), &url(admin)])
}

fn url(admin: SocketAddr) -> String {
    format!("http://{admin}/")
}

fn browse(dir: &Path, args: &[&str]) -> Result<String, Failure> {
    let output = Command::new("chromium")
        .args(QUIET)
        .arg(format!("--user-data-dir={}", dir.join("browser").display()))
        .args(args)
        .output()
        .map_err(|error| Failure::new(format!("start chromium: {error}")))?;
    if !output.status.success() {
        let told = String::from_utf8_lossy(&output.stderr);
        return Err(Failure::new(format!("chromium: {}\n{told}", output.status)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn contains(document: &str, texts: &[&str]) -> Result<(), Failure> {
    for text in texts {
        if !document.contains(text) {
            return Err(Failure::new(format!("the status page does not show {text:?}:\n{document}")));
        }
    }
    Ok(())
}
