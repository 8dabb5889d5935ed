//! A network of our own, on a machine that is shared: namespaces of the kernel, where it allows them.

use std::process::{Command, Stdio};

use crate::Problem;

/// `unshare` with a network of its own and, if wanted, mounts.
fn unshare(mounts: bool) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--net", "--map-root-user"]);
    if mounts {
        command.arg("--mount");
    }
    command
}

/// Whether there can be one here.
pub(crate) fn is_possible(mounts: bool) -> bool {
    let mut probe = unshare(mounts);
    probe.args(["ip", "link", "set", "lo", "up"]).stdout(Stdio::null()).stderr(Stdio::null());
    probe.status().is_ok_and(|status| status.success())
}

/// Runs this program again, in there; the number of failures that it tells of.
pub(crate) fn run_ourselves(mounts: bool, arguments: &[&std::ffi::OsStr]) -> Result<usize, Problem> {
    let ourselves = std::env::current_exe().map_err(|error| format!("find this program: {error}"))?;
    let mut inside = unshare(mounts);
    inside.arg(ourselves).args(arguments);
    match inside.status() {
        Ok(status) if status.success() => Ok(0),
        Ok(status) if status.code() == Some(1) => Ok(1),
        Ok(status) => Err(format!("{inside:?}: {status}")),
        Err(error) => Err(format!("start {inside:?}: {error}")),
    }
}
