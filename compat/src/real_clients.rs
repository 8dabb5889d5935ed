//! Clients that the HTTP/2 library under a server may refuse, each the real one: see docs/decisions/0012-authority.md.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Problem;
use crate::servers::{HOME, succeed};

/// Programs in Go under `compat/clients`, one for each version of clientv3 that calls in its own way.
const GO_CLIENTS: [&str; 2] = ["go35", "go34"];
/// The C core of gRPC, with its bindings for Python.
const GRPCIO: &str = "grpcio==1.76.0";

/// Calls the server at `url` with each. Returns how many failed.
pub(crate) fn run(url: &str) -> Result<usize, Problem> {
    let mut failures = 0;
    for name in GO_CLIENTS {
        let program = build_go(name)?;
        failures += judge(name, Command::new(program).arg(url));
    }
    let packages = install_grpcio()?;
    let address = url.strip_prefix("http://").unwrap_or(url);
    let mut python = Command::new("python3");
    python.arg("compat/clients/grpc_core.py").arg(address).env("PYTHONPATH", packages);
    failures += judge("grpc_core.py", &mut python);
    Ok(failures)
}

fn judge(name: &str, command: &mut Command) -> usize {
    let passed = succeed(command);
    println!("{name}: {}", passed.as_ref().err().map_or("passed", |problem| problem));
    usize::from(passed.is_err())
}

/// Modules come from Go's proxy, as their checksums in the tree say.
fn build_go(name: &str) -> Result<PathBuf, Problem> {
    let failed = |error| format!("{HOME}: {error}");
    let home =
        fs::canonicalize(HOME).or_else(|_| fs::create_dir_all(HOME).and_then(|()| fs::canonicalize(HOME)));
    let program = home.map_err(failed)?.join(name);
    let mut go = Command::new("go");
    go.args(["build", "-mod=readonly", "-o"]).arg(&program).arg(".");
    go.current_dir(Path::new("compat/clients").join(name));
    succeed(&mut go)?;
    Ok(program)
}

fn install_grpcio() -> Result<PathBuf, Problem> {
    let packages = Path::new(HOME).join("grpcio");
    if packages.join("grpc/__init__.py").exists() {
        return Ok(packages);
    }
    println!("installing {GRPCIO} into {}", packages.display());
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"]);
    pip.arg(&packages).arg(GRPCIO).env("PIP_ROOT_USER_ACTION", "ignore");
    succeed(&mut pip)?;
    Ok(packages)
}
