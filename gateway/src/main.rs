//! The binary `gaios`.

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use gateway::{Gateway, GatewayOptions};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// A coordination service for any etcd v3 client.
#[derive(Parser)]
#[command(name = "gaios", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a gateway in front of nodes that run.
    Gateway {
        /// Where clients connect.
        #[arg(long, default_value = "127.0.0.1:2379")]
        listen: SocketAddr,
        /// Where operators' tools connect.
        #[arg(long)]
        admin_listen: Option<SocketAddr>,
        /// Addresses of nodes.
        #[arg(long = "node", required = true)]
        nodes: Vec<String>,
        /// Unique in the region.
        #[arg(long, default_value = "gateway")]
        name: String,
    },
    /// Print the version.
    Version,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")))
        .with_writer(std::io::stderr)
        .init();
    let done = match arguments.command {
        Command::Gateway { listen, admin_listen, nodes, name } => {
            let mut options = GatewayOptions::new(name, listen, nodes);
            options.admin_listen = admin_listen;
            run_gateway(options)
        }
        Command::Version => {
            println!("gaios {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gaios: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs until a signal asks for the end.
#[tokio::main]
async fn run_gateway(options: GatewayOptions) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let gateway = Gateway::start(options).await?;
    tokio::select! {
        _ = terminate.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    gateway.shutdown().await;
    Ok(())
}
