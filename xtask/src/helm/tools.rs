//! `helm`, and the program in helm/check, built by Go under `target/tools`. Both are of one Go module, so its `go.mod` says the
//! version of each, and they share what they compile. The first build takes some four minutes of two cores.

use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::run::{Failure, Run, program};

const MODULE: &str = "helm/check";
const BIN: &str = "target/tools/bin";
/// What the programs were built from.
const STAMP: &str = "target/tools/helm.stamp";

pub(crate) struct Tools {
    helm: PathBuf,
    check: PathBuf,
}

impl Tools {
    /// `helm COMMAND`.
    pub(crate) fn helm(&self, command: &str) -> Run {
        program(&self.helm).args(&[command])
    }

    /// A command of helm/check.
    pub(crate) fn check(&self, command: &str) -> Run {
        program(&self.check).args(&[command])
    }
}

pub(crate) fn install() -> Result<Tools, Failure> {
    let failed = |error: io::Error| Failure::new(format!("{BIN}: {error}"));
    let bin = std::path::absolute(BIN).map_err(failed)?;
    let tools = Tools { helm: bin.join("helm"), check: bin.join("gaios-chart-check") };
    let sources = sources()?;
    let built = tools.helm.exists() && tools.check.exists();
    if built && fs::read_to_string(STAMP).is_ok_and(|stamp| stamp == sources) {
        return Ok(tools);
    }
    fs::create_dir_all(&bin).map_err(failed)?;
    for (package, output) in [("helm.sh/helm/v3/cmd/helm", &tools.helm), (".", &tools.check)] {
        let output = output.display().to_string();
        let build = program("go").args(&["build", "-C", MODULE, "-mod=readonly", "-o", &output]);
        build.args(&[package]).env("CGO_ENABLED", "0").run()?;
    }
    // Only whoever can start them has them.
    tools.helm("version").output()?;
    fs::write(STAMP, sources).map_err(|error| Failure::new(format!("{STAMP}: {error}")))?;
    Ok(tools)
}

/// All that decides what is built.
fn sources() -> Result<String, Failure> {
    let failed = |error| Failure::new(format!("{MODULE}: {error}"));
    let mut files: Vec<PathBuf> = fs::read_dir(MODULE)
        .map_err(failed)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()
        .map_err(failed)?;
    files.sort();
    let wanted =
        |file: &Path| file.extension().is_some_and(|end| end == "go" || end == "mod" || end == "sum");
    let texts = files.iter().filter(|file| wanted(file)).map(fs::read_to_string);
    Ok(texts.collect::<Result<Vec<_>, _>>().map_err(failed)?.join("\0"))
}
