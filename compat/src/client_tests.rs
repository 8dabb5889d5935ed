//! The tests of the `etcd-client` crate, unchanged, against a server.
//!
//! They connect to `localhost:2379`, which is written into them, so the server must listen there: in a network namespace of
//! its own where the machine allows one, else on that port if it is free.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::servers::{self, HOME, succeed};
use crate::{Problem, private};

const CRATE: &str = "etcd-client";
const VERSION: &str = "0.21.1";

/// Where the tests want the server.
const ADDRESS: &str = "127.0.0.1:2379";

/// Tests that must pass, by file.
const RUN: &[(&str, &[&str])] = &[
    (
        "client",
        &[
            "test_put",
            "test_get",
            "test_get_stream",
            "test_get_stream_chunked",
            "test_delete",
            "test_compact",
            "test_txn",
            "test_watch",
            "test_grant_revoke",
            "test_keep_alive",
            "test_time_to_live",
            "test_leases",
            "test_status",
            "test_remove_and_add_endpoint",
        ],
    ),
    ("namespace", &["test_namespace_kv"]),
];

/// Tests that are left out, and why.
const LEFT_OUT: &[(&str, &str)] = &[
    ("test_lock", "the Lock service is not served yet"),
    ("test_election", "the Election service is not served yet"),
    ("test_auth", "the Auth service is not served yet"),
    ("test_auth_refresh_token", "the Auth service is not served yet"),
    ("test_auth_refresh_token_once_for_concurrent_calls", "the Auth service is not served yet"),
    ("test_role", "the Auth service is not served yet"),
    ("test_user", "the Auth service is not served yet"),
    ("test_alarm", "alarms can be listed, but not set or cleared by a client yet"),
    ("test_defragment", "Maintenance.Defragment is not served yet"),
    ("test_hash", "Maintenance.Hash is not served yet"),
    ("test_hash_kv", "Maintenance.HashKV is not served yet"),
    ("test_snapshot", "Maintenance.Snapshot is not served yet"),
    ("test_cluster", "needs four etcd members; the crate itself leaves it out"),
    ("test_move_leader", "Maintenance.MoveLeader is not served yet"),
];

/// Starts a server for the tests, apart from the machine's own network if possible, and runs them.
pub(crate) async fn run_in_private_network(gaios: &Path) -> Result<usize, Problem> {
    // Compiling needs the network, so it comes first.
    prepare()?;
    if !private::is_possible(false) {
        println!("no network namespaces here: using {ADDRESS} of this machine");
        return run_here(gaios, false).await;
    }
    let arguments = ["client-tests-here", "--private-network", "--gaios"].map(AsRef::as_ref);
    let arguments: Vec<_> = arguments.into_iter().chain([gaios.as_os_str()]).collect();
    private::run_ourselves(false, &arguments)
}

/// Starts a server at the address, and runs the tests.
pub(crate) async fn run_here(gaios: &Path, private_network: bool) -> Result<usize, Problem> {
    if private_network {
        succeed(Command::new("ip").args(["link", "set", "lo", "up"]))?;
    } else if servers::is_taken(ADDRESS) {
        return Err(format!("the tests of {CRATE} need {ADDRESS}, where something else listens"));
    }
    let _server = servers::start_gaios(gaios, ADDRESS).await?;
    run()
}

/// Runs the tests against whatever listens at the address; the number of failed ones.
pub(crate) fn run() -> Result<usize, Problem> {
    let programs = prepare()?;
    println!("tests of {CRATE} {VERSION} that are left out:");
    for (test, reason) in LEFT_OUT {
        println!("  - {test}: {reason}");
    }
    let mut failures = 0;
    for (file, tests) in RUN {
        let program = programs.iter().find(|(name, _)| name == file).map(|(_, program)| program);
        let program = program.ok_or_else(|| format!("{CRATE} has no tests `{file}`"))?;
        check_listed(file, program)?;
        let mut command = Command::new(program);
        // One at a time: some of them compact, which others would notice.
        command.args(["--exact", "--test-threads=1", "--include-ignored"]).args(*tests);
        match command.status() {
            Ok(status) if status.success() => {}
            Ok(_) => failures += 1,
            Err(error) => return Err(format!("start {command:?}: {error}")),
        }
    }
    Ok(failures)
}

/// The test of processes under faults, with the clients of the crate; the number of failures.
pub(crate) fn run_cluster(gaios: &Path) -> Result<usize, Problem> {
    let home = std::path::absolute(Path::new(HOME)).map_err(|error| format!("{HOME}: {error}"))?;
    let gaios = std::path::absolute(gaios).map_err(|error| format!("{}: {error}", gaios.display()))?;
    let mut test = Command::new(cargo());
    test.args(["test", "--locked", "--manifest-path", "compat/cluster/Cargo.toml", "--", "--nocapture"])
        .env("CARGO_TARGET_DIR", home.join("client-tests-target"))
        .env("PROTOC", protoc()?)
        .env("GAIOS", gaios);
    match test.status() {
        Ok(status) if status.success() => Ok(0),
        Ok(_) => Ok(1),
        Err(error) => Err(format!("start {test:?}: {error}")),
    }
}

/// Every test there is must be in one of the two lists, so that a new version of the crate is looked at.
fn check_listed(file: &str, program: &Path) -> Result<(), Problem> {
    let output = Command::new(program)
        .args(["--list", "--format", "terse"])
        .output()
        .map_err(|error| format!("start {}: {error}", program.display()))?;
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    let there: Vec<&str> = listed.lines().filter_map(|line| line.strip_suffix(": test")).collect();
    let run = RUN.iter().filter(|(name, _)| *name == file).flat_map(|(_, tests)| tests.iter().copied());
    let known: Vec<&str> = run.clone().chain(LEFT_OUT.iter().map(|(name, _)| *name)).collect();
    if let Some(unknown) = there.iter().find(|test| !known.contains(test)) {
        return Err(format!(
            "{CRATE}: the test {unknown} of {file} is neither run nor left out with a reason"
        ));
    }
    match run.clone().find(|test| !there.contains(test)) {
        Some(missing) => Err(format!("{CRATE}: {file} has no test {missing}")),
        None => Ok(()),
    }
}

/// Gets the crate's source by way of cargo, compiles its tests, and gives the test programs by file.
fn prepare() -> Result<Vec<(String, PathBuf)>, Problem> {
    let home = std::path::absolute(Path::new(HOME)).map_err(|error| format!("{HOME}: {error}"))?;
    let source = home.join(format!("{CRATE}-{VERSION}"));
    if !source.join("Cargo.toml").exists() {
        fetch(&home, &source)?;
    }
    let mut build = Command::new(cargo());
    build.args([
        "test",
        "--no-run",
        "--tests",
        "--message-format",
        "json-render-diagnostics",
        "--manifest-path",
    ]);
    build
        .arg(source.join("Cargo.toml"))
        .env("CARGO_TARGET_DIR", home.join("client-tests-target"))
        .env("PROTOC", protoc()?);
    let output =
        build.stderr(Stdio::inherit()).output().map_err(|error| format!("start {build:?}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{build:?}: {}", output.status));
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let programs = messages.lines().filter_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let name = message["target"]["name"].as_str()?.to_owned();
        let is_test = message["target"]["kind"].as_array()?.iter().any(|kind| kind == "test");
        let program = PathBuf::from(message["executable"].as_str()?);
        is_test.then_some((name, program))
    });
    Ok(programs.collect())
}

/// The stand-in for `protoc` beside this program.
fn protoc() -> Result<PathBuf, Problem> {
    let protoc = std::env::current_exe()
        .map_err(|error| format!("find this program: {error}"))?
        .with_file_name("protoc");
    if protoc.exists() {
        Ok(protoc)
    } else {
        Err(format!("{} is missing: cargo build --package compat", protoc.display()))
    }
}

/// Copies the crate out of cargo's registry, as a package outside our workspace.
fn fetch(home: &Path, source: &Path) -> Result<(), Problem> {
    let asking = home.join("fetch");
    let failed = |path: &Path| {
        let path = path.display().to_string();
        move |error: std::io::Error| format!("{path}: {error}")
    };
    fs::create_dir_all(asking.join("src")).map_err(failed(&asking))?;
    let manifest = format!(
        "[package]\nname = \"fetch\"\nedition = \"2024\"\n[workspace]\n[dependencies]\n{CRATE} = \"={VERSION}\"\n"
    );
    fs::write(asking.join("Cargo.toml"), manifest).map_err(failed(&asking))?;
    fs::write(asking.join("src/lib.rs"), "").map_err(failed(&asking))?;
    let mut metadata = Command::new(cargo());
    metadata.args(["metadata", "--format-version", "1", "--manifest-path"]).arg(asking.join("Cargo.toml"));
    let output =
        metadata.stderr(Stdio::inherit()).output().map_err(|error| format!("start {metadata:?}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{metadata:?}: {}", output.status));
    }
    let metadata: Value =
        serde_json::from_slice(&output.stdout).map_err(|error| format!("cargo metadata: {error}"))?;
    let package =
        metadata["packages"].as_array().and_then(|all| all.iter().find(|package| package["name"] == CRATE));
    let manifest = package
        .and_then(|package| package["manifest_path"].as_str())
        .ok_or("cargo metadata: no such crate")?;
    let original = Path::new(manifest).parent().ok_or("cargo metadata: a manifest without a folder")?;
    copy(original, source)?;
    let manifest = source.join("Cargo.toml");
    let mut text = fs::read_to_string(&manifest).map_err(failed(&manifest))?;
    text.push_str("\n[workspace]\n");
    fs::write(&manifest, text).map_err(failed(&manifest))
}

fn copy(from: &Path, to: &Path) -> Result<(), Problem> {
    let failed = |error: std::io::Error| format!("copy {}: {error}", from.display());
    fs::create_dir_all(to).map_err(failed)?;
    for entry in fs::read_dir(from).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let target = to.join(entry.file_name());
        if entry.file_type().map_err(failed)?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target).map_err(failed)?;
        }
    }
    Ok(())
}

fn cargo() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}
