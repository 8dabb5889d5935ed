//! Running other programs, and telling what ran, for how long, and what failed.

use std::ffi::OsStr;
use std::fmt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Why a task failed; the details are already on the terminal.
#[derive(Debug)]
pub(crate) struct Failure(String);

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A command line to be run.
pub(crate) struct Run(Command);

/// `cargo ARGS`.
pub(crate) fn cargo(args: &[&str]) -> Run {
    // Under `cargo run` this is the cargo that runs us.
    program(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())).args(args)
}

/// Our programs, in `target/debug`. All with one call, since another choice of packages would compile their dependencies again
/// with other features.
pub(crate) fn build_programs() -> Result<(), Failure> {
    cargo(&["build", "--locked", "--workspace", "--bins"]).run()
}

/// Any other program.
pub(crate) fn program(program: impl AsRef<OsStr>) -> Run {
    Run(Command::new(program))
}

impl Run {
    pub(crate) fn args<T: AsRef<OsStr>>(mut self, args: &[T]) -> Self {
        self.0.args(args);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.0.env(name, value);
        self
    }

    /// Lets cargo find the subcommands that were installed under `target/tools` before any others.
    pub(crate) fn with_tools(mut self) -> Self {
        let ours = std::path::absolute("target/tools/bin").into_iter();
        let path = std::env::var_os("PATH").unwrap_or_default();
        if let Ok(path) = std::env::join_paths(ours.chain(std::env::split_paths(&path))) {
            self.0.env("PATH", path);
        }
        self
    }

    /// Runs it with our terminal.
    pub(crate) fn run(mut self) -> Result<(), Failure> {
        let shown = self.shown();
        eprintln!("+ {shown}");
        match self.0.status() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(Failure::new(format!("`{shown}`: {status}"))),
            Err(error) => Err(Failure::new(format!("start `{shown}`: {error}"))),
        }
    }

    /// Runs it and gives what it wrote to standard output; its standard error goes with the failure.
    pub(crate) fn output(mut self) -> Result<String, Failure> {
        let shown = self.shown();
        let output = self.0.output().map_err(|error| Failure::new(format!("start `{shown}`: {error}")))?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            return Err(Failure::new(format!("`{shown}`: {}\n{}", output.status, stderr.trim_end())));
        }
        String::from_utf8(output.stdout).map_err(|error| Failure::new(format!("`{shown}`: {error}")))
    }

    fn shown(&self) -> String {
        let program = Path::new(self.0.get_program()).file_name().unwrap_or_default();
        let words = std::iter::once(program).chain(self.0.get_args());
        words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }
}

/// Steps of a longer task. A failed one does not keep the others from running, so that one run tells everything.
pub(crate) struct Steps {
    task: &'static str,
    done: Vec<(&'static str, Duration, Result<(), Failure>)>,
}

impl Steps {
    pub(crate) fn new(task: &'static str) -> Self {
        Self { task, done: Vec::new() }
    }

    pub(crate) fn step(&mut self, name: &'static str, work: impl FnOnce() -> Result<(), Failure>) {
        eprintln!("== {}: {name}", self.task);
        let started = Instant::now();
        let result = work();
        let took = started.elapsed();
        match &result {
            Ok(()) => eprintln!("== {}: {name}: ok, {:.1} s", self.task, took.as_secs_f64()),
            Err(failure) => {
                eprintln!("== {}: {name}: FAILED, {:.1} s: {failure}", self.task, took.as_secs_f64())
            }
        }
        self.done.push((name, took, result));
    }

    /// The table of all steps; a failure if one of them was.
    pub(crate) fn finish(self) -> Result<(), Failure> {
        eprintln!();
        for (name, took, result) in &self.done {
            let verdict = if result.is_ok() { "ok" } else { "FAILED" };
            eprintln!("{name:<10} {verdict:<7} {:>7.1} s", took.as_secs_f64());
        }
        let failed: Vec<_> =
            self.done.iter().filter(|(_, _, result)| result.is_err()).map(|(name, ..)| *name).collect();
        if failed.is_empty() {
            return Ok(());
        }
        Err(Failure::new(format!("{} failed in: {}", self.task, failed.join(", "))))
    }
}
