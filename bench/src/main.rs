//! The command line of the load generator. Results go to stdout, progress and errors to stderr.

use std::error::Error;
use std::process::ExitCode;
use std::{env, fs};

use bench::{Cli, Command, CompareFlags, Environment, EtcdCluster, RunFlags};
use clap::Parser;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = runtime(cli.threads).and_then(|runtime| {
        runtime.block_on(async {
            let mut terminate = signal(SignalKind::terminate())?;
            // Leaving through here drops, and so stops, every server that was started.
            tokio::select! {
                outcome = carry_out(cli.command) => outcome,
                _ = tokio::signal::ctrl_c() => Err("interrupted".into()),
                _ = terminate.recv() => Err("terminated".into()),
            }
        })
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gaios-bench: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                eprintln!("  caused by: {error}");
                cause = error.source();
            }
            ExitCode::FAILURE
        }
    }
}

type Outcome<T> = Result<T, Box<dyn Error>>;

/// One thread needs no hand-over between threads, so it costs least per request.
fn runtime(threads: usize) -> Outcome<Runtime> {
    let mut builder = if threads > 1 { Builder::new_multi_thread() } else { Builder::new_current_thread() };
    if threads > 1 {
        builder.worker_threads(threads);
    }
    Ok(builder.enable_all().build()?)
}

async fn carry_out(command: Command) -> Outcome<()> {
    match command {
        Command::Run(flags) => run(&flags).await,
        Command::Compare(flags) => compare(&flags).await,
    }
}

async fn run(flags: &RunFlags) -> Outcome<()> {
    let (plan, target) = flags.plan()?;
    let report = bench::run(&plan, &target).await?;
    if flags.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{report}");
    }
    if report.ops == 0 {
        return Err("no operation succeeded".into());
    }
    Ok(())
}

async fn compare(flags: &CompareFlags) -> Outcome<()> {
    let (cases, mut targets) = flags.checked()?;
    let data_dir = flags.data_dir.clone().unwrap_or_else(env::temp_dir);
    let probed = data_dir.clone();
    let environment = tokio::task::spawn_blocking(move || Environment::probe(&probed)).await??;
    let etcd = match &flags.etcd {
        Some(binary) => Some(EtcdCluster::start(binary, &data_dir, flags.etcd_tls().as_ref()).await?),
        None => None,
    };
    if let Some(etcd) = &etcd {
        // First, since the others are told as a ratio to it.
        targets.insert(0, etcd.target().await?);
    }
    let progress = |text: &str| eprintln!("{text}\n");
    let comparison =
        bench::compare(environment, &cases, &targets, flags.rounds, flags.disturbance_max, progress).await;
    print!("{comparison}");
    if let Some(path) = &flags.markdown {
        fs::write(path, comparison.to_string())?;
    }
    if let Some(path) = &flags.json {
        fs::write(path, serde_json::to_string_pretty(&comparison)?)?;
    }
    Ok(())
}
