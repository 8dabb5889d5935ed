//! Tasks of the workspace: `cargo xtask help` lists them. This program starts other programs; what they do is not here,
//! so that it compiles in a moment.

mod assertions;
mod circles;
mod deny;
mod helm;
mod observe;
mod run;
mod structure;
mod third_party;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs};

use helm::Generated;
use run::{Failure, Steps, build_programs, cargo, program};

const HELP: &str = "\
cargo xtask TASK

  ci [--without-tests]   everything that must hold before a change lands; changes nothing
  fix                    what can be put right by a program: formatting, generated pages
  docs                   write docs/configuration.md, what of it is in the chart's schema, docs/structure.md and the dashboards

The parts of `ci`, each also alone:
  fmt       formatting
  clippy    lints, all targets, no warnings
  tidy      house rules which the compiler cannot see
  deny      licences, sources and bans of dependencies; advisories where their database can be had
  third-party            changed copies of others' code are what was published, and our patch
  rustdoc   the documentation builds, no warnings
  sim [-- ARGS]          the simulation, optimised; without ARGS, as many seeds as CI runs
  mutants                the rules of consensus broken one by one: simulation, model and tests must notice each
  helm [--write]         the chart: lint, renders, types of Kubernetes; `--write` takes over renders and the README
  observe [--write]      alerts, dashboards and the status page against Prometheus, a browser and a running cluster; with
                         --write, docs/metrics.md and the pictures in docs/images are written
  abuse [-- ARGS]        hostile clients against three nodes and a gateway: fails if a small well-behaved client is hurt
  compat [-- ARGS]       etcd 3.5.1 against `gaios dev`: differential run, etcdctl script, tests of the etcd-client crate

  abuse --docs           the same against etcd 3.5.1, too; writes docs/limits.md
";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    if let Err(error) = env::set_current_dir(root()) {
        eprintln!("xtask: cannot enter {}: {error}", root().display());
        return ExitCode::FAILURE;
    }
    let result = match args.as_slice() {
        ["ci"] => ci(Tests::Run),
        ["ci", "--without-tests"] => ci(Tests::AlreadyRun),
        ["fix"] => fix(),
        ["docs"] => docs(),
        ["fmt"] => fmt(),
        ["clippy"] => clippy(),
        ["tidy"] => tidy::run(),
        ["deny"] => deny::run(),
        ["third-party"] => third_party::run(),
        ["rustdoc"] => rustdoc(),
        ["sim"] => sim(&[]),
        ["sim", "--", rest @ ..] => sim(rest),
        ["mutants"] => mutants(),
        ["helm"] => helm::run(Generated::Check),
        ["helm", "--write"] => helm::run(Generated::Write),
        ["observe"] => observe::run(observe::Mode::Check),
        ["observe", "--write"] => observe::run(observe::Mode::Write),
        ["abuse"] => abuse(&[]),
        ["abuse", "--docs"] => abuse_docs(),
        ["abuse", "--", rest @ ..] => abuse(rest),
        ["compat"] => compat(&[]),
        ["compat", "--", rest @ ..] => compat(rest),
        [] | ["help" | "-h" | "--help"] => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprint!("xtask: no such task: {}\n\n{HELP}", args.join(" "));
            return ExitCode::FAILURE;
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("xtask: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// The folder of the workspace.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask/ has a parent").to_owned()
}

/// Whether `ci` has to run the tests itself.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tests {
    Run,
    AlreadyRun,
}

fn ci(tests: Tests) -> Result<(), Failure> {
    let mut steps = Steps::new("ci");
    steps.step("fmt", fmt);
    steps.step("tidy", tidy::run);
    steps.step("clippy", clippy);
    if tests == Tests::Run {
        steps.step("tests", || cargo(&["test", "--workspace", "--locked"]).run());
    }
    steps.step("rustdoc", rustdoc);
    steps.step("deny", deny::run);
    steps.step("third-party", third_party::run);
    steps.step("sim", || sim(&[]));
    steps.step("mutants", mutants);
    steps.step("helm", || helm::run(Generated::Check));
    steps.step("observe", || observe::run(observe::Mode::Check));
    steps.step("abuse", || abuse(&[]));
    steps.step("compat", || compat(&[]));
    steps.finish()
}

fn fix() -> Result<(), Failure> {
    cargo(&["fmt", "--all"]).run()?;
    docs()
}

fn fmt() -> Result<(), Failure> {
    cargo(&["fmt", "--all", "--check"]).run()
}

fn clippy() -> Result<(), Failure> {
    cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]).run()?;
    // What is compiled only to break the rules on purpose.
    let broken =
        ["--package", "consensus-core", "--package", "keyspace", "--package", "sim", "--features", MUTANTS];
    cargo(&[&["clippy", "--all-targets", "--locked"], &broken[..], &["--", "-D", "warnings"]].concat()).run()
}

fn rustdoc() -> Result<(), Failure> {
    let command = cargo(&["doc", "--workspace", "--no-deps", "--document-private-items", "--locked"]);
    // The pages are for whoever works on this code, so private items are in them, and may be linked to.
    command.env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private_intra_doc_links").run()
}

/// Seeds of the simulation in one CI run. More than in `cargo test`, since here it is optimised.
const SIM_SEEDS_IN_CI: &str = "2000";

fn sim(args: &[&str]) -> Result<(), Failure> {
    let args = if args.is_empty() { &["--seeds", SIM_SEEDS_IN_CI, "--require-coverage"] } else { args };
    cargo(&[&["run", "--release", "--locked", "--package", "sim", "--bin", "sim", "--"], args].concat()).run()
}

/// The features with which a rule can be broken at run time.
const MUTANTS: &str = "consensus-core/mutants,keyspace/mutants,sim/mutants";
/// Seeds after which a mutant counts as not noticed. The slowest so far took 192.
const SEEDS_PER_MUTANT: &str = "2000";

/// Optimised, since some take a hundred runs to show.
fn mutants() -> Result<(), Failure> {
    let release = ["--release", "--locked", "--features", "mutants"];
    let simulation = ["--package", "sim", "--bin", "sim", "--", "--mutants", "--seeds", SEEDS_PER_MUTANT];
    cargo(&[&["run"], &release[..], &simulation[..]].concat()).run()?;
    let stories = ["--package", "keyspace", "--test", "shards", "mutants"];
    cargo(&[&["test"], &release[..], &stories[..]].concat()).run()?;
    let tests = ["--package", "consensus-core", "--test", "mutants", "--test", "model", "mutants"];
    cargo(&[&["test"], &release[..], &tests[..]].concat()).run()
}

fn compat(args: &[&str]) -> Result<(), Failure> {
    build_programs()?;
    program("target/debug/compat").args(if args.is_empty() { &["all"] } else { args }).run()
}

/// Against a `gaios` as it is shipped: what holds under attack is a matter of how fast it is.
fn abuse(args: &[&str]) -> Result<(), Failure> {
    build_programs()?;
    cargo(&["build", "--release", "--locked", "--package", "gateway", "--bin", "gaios"]).run()?;
    program("target/debug/gaios-abuse").args(args).run()
}

fn abuse_docs() -> Result<(), Failure> {
    build_programs()?;
    let etcd = program("target/debug/compat").args(&["etcd"]).output()?;
    abuse(&["--etcd", etcd.trim(), "--docs", "docs/limits.md"])
}

fn docs() -> Result<(), Failure> {
    let page = Path::new("docs/configuration.md");
    fs::write(page, config::reference())
        .map_err(|error| Failure::new(format!("write {}: {error}", page.display())))?;
    tidy::write_structure()?;
    helm::write_schema()?;
    observe::write_dashboards()
}
