//! What each subcommand runs. A role is composed here and nowhere else.

pub mod admin;
pub mod dev;
pub mod gateway;
pub mod replica;

use std::error::Error;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use config::{Config, Log, LogFormat};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

/// A failure to start or run, in words for the operator.
pub type Failure = Box<dyn Error + Send + Sync>;

/// `gaios check`.
pub fn check(file: &Path) -> Result<(), Failure> {
    let role = match Config::load(file)? {
        Config::Replica(_) => "replica",
        Config::Gateway(_) => "gateway",
    };
    println!("{}: a valid {role} configuration", file.display());
    Ok(())
}

fn runtime() -> Result<Runtime, Failure> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

fn start_log(log: &Log) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(log.level.as_str()));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match log.format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.json().init(),
    }
}

fn bind(address: SocketAddr, field: &str) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::AddrInUse => format!("; something else listens there: choose another {field}"),
            io::ErrorKind::AddrNotAvailable => format!("; {field} must be an address of this machine"),
            _ => String::new(),
        };
        format!("cannot listen on {address}: {error}{hint}").into()
    })
}

/// Returns at the first SIGINT or SIGTERM. A second one ends the process at once.
async fn stop_signal() -> Result<(), Failure> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping; a second signal ends the process at once");
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        std::process::exit(1);
    });
    Ok(())
}
