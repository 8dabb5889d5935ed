//! `gaios ctl leader`: who leads the groups, and where they are to be led. By the admin port of a gateway.

use std::fmt::Write as _;

use gateway::leading::{Leading, Want, Wanted};

use super::Failure;
use super::client::Admin;
use super::output::{Format, Table, print};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Show who leads a group, who else could, and in which regions it is to be led.
    Show {
        /// The group.
        #[arg(long, value_name = "ID", default_value_t = 1)]
        group: u64,
    },
    /// Hand leadership to a node. Where regions are preferred, it goes back to a better one after a while.
    Move {
        /// The group.
        #[arg(long, value_name = "ID", default_value_t = 1)]
        group: u64,
        /// The node that shall lead.
        #[arg(long, value_name = "NODE")]
        to: u32,
    },
    /// Set in which regions a group is to be led, the first of them that can. The group keeps it.
    Prefer {
        /// The group.
        #[arg(long, value_name = "ID", default_value_t = 1)]
        group: u64,
        /// The regions, the best first.
        #[arg(long, value_name = "NAMES", value_delimiter = ',', required_unless_present = "none")]
        regions: Vec<String>,
        /// Anywhere.
        #[arg(long, conflicts_with = "regions")]
        none: bool,
    },
}

impl Command {
    fn wanted(&self) -> Wanted {
        match self {
            Command::Show { group } => Wanted { group: *group, want: Want::Show },
            Command::Move { group, to } => Wanted { group: *group, want: Want::Move(*to) },
            Command::Prefer { group, regions, none: _ } => {
                Wanted { group: *group, want: Want::Prefer(regions.clone()) }
            }
        }
    }
}

pub(crate) async fn run(args: &Args, admin: &Admin, format: Format) -> Result<(), Failure> {
    let leading: Leading = admin.post("/ctl/leader", &args.command.wanted()).await?;
    print(format, &leading, table)?;
    match leading.refused {
        Some(why) => Err(why.into()),
        None => Ok(()),
    }
}

fn table(leading: &Leading) -> String {
    let mut text = String::new();
    let regions = match leading.regions.as_slice() {
        [] => "anywhere".to_owned(),
        regions => regions.join(", then "),
    };
    let by = if leading.configured { "by the configuration" } else { "as an operator has set" };
    let _ = writeln!(
        text,
        "group {} is led by node {}, and is to be led: {regions} ({by})\n",
        leading.group, leading.leader
    );
    let mut voters = Table::new(&["VOTER", "REGION", "ABLE", "BEHIND"]);
    for voter in &leading.voters {
        voters.row(vec![
            voter.node.to_string(),
            voter.region.clone().unwrap_or_default(),
            if voter.able { "yes" } else { "no" }.to_owned(),
            voter.behind.to_string(),
        ]);
    }
    let _ = write!(text, "{voters}");
    text
}
