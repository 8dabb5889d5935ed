//! Copies of other people's code with changes of ours: each is what was published, with a patch applied, and nothing else.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::run::{Failure, cargo, program};

/// The crate, and what of it is kept.
const NAME: &str = "h2";
const VERSION: &str = "0.4.20";
const KEPT: &[&str] = &["Cargo.toml", "LICENSE", "src"];

pub(crate) fn run() -> Result<(), Failure> {
    let place = format!("target/third-party/{NAME}");
    if Path::new(&place).exists() {
        fs::remove_dir_all(&place).map_err(|error| Failure::new(format!("remove {place}: {error}")))?;
    }
    let manifest = format!(
        "[workspace]\n[package]\nname = \"upstream\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\
         [dependencies]\n{NAME} = \"={VERSION}\"\n"
    );
    write(&format!("{place}/upstream/Cargo.toml"), &manifest)?;
    write(&format!("{place}/upstream/src/lib.rs"), "")?;
    let manifest = format!("{place}/upstream/Cargo.toml");
    let vendored = format!("{place}/vendored");
    // Its own words are a configuration for who wants to use what it fetched.
    cargo(&["vendor", "--quiet", "--versioned-dirs", "--manifest-path", &manifest, &vendored]).output()?;

    let (published, patched) = (format!("{vendored}/{NAME}-{VERSION}"), format!("{place}/patched"));
    fs::create_dir_all(&patched).map_err(|error| Failure::new(format!("make {patched}: {error}")))?;
    for kept in KEPT {
        program("cp").args(&["-r", &format!("{published}/{kept}"), &patched]).run()?;
    }
    let (patch, ours) = (format!("third_party/{NAME}.patch"), format!("third_party/{NAME}"));
    program("git").args(&["apply", "--directory", &patched, &patch]).run()?;
    let same = Command::new("git").args(["diff", "--no-index", "--exit-code", &patched, &ours]).status();
    if same.is_ok_and(|status| status.success()) {
        return Ok(());
    }
    Err(Failure::new(format!("{ours} is not {NAME} {VERSION} with {patch}")))
}

fn write(path: &str, text: &str) -> Result<(), Failure> {
    let path = Path::new(path);
    let written = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(path, text));
    written.map_err(|error| Failure::new(format!("write {}: {error}", path.display())))
}
