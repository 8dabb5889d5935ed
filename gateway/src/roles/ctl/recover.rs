//! `gaios ctl recover`: the way back when more nodes have lost their disks than a cluster survives. It works on the data
//! directory of one node, which does not run; it shows what that holds, and with `--accept-loss` declares that this is what
//! there is.

use std::fmt::Write as _;
use std::path::PathBuf;

use replica::{Held, Survey};
use serde::Serialize;

use super::Failure;
use super::output::{Format, Table, print};

/// What an operator has to know before he decides.
const WORDS: &str = "\
Run this on every node that still has its directory, and choose the one that holds most of each group: a higher VOTED AT, and \
of those equal there, a higher WHOLE UP TO. Whatever clients were told had succeeded, and no node that comes back holds any \
more, is lost; on this node that is, of each group, what lies above WHOLE UP TO, and the slots whose values are lost.

Then, with `--accept-loss` on the chosen node only:
1. All nodes must come back, those that have lost their directories with empty ones: nobody leads before every voter has \
answered, and what they still hold is used.
2. Start the chosen node. It leads each group that has no leader, and the others take over what it holds. It does so once; a \
group that others lead is left alone.
";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The data directory of a node that does not run.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Only look: the same as without `--accept-loss`.
    #[arg(long, conflicts_with = "accept_loss")]
    dry_run: bool,
    /// Declare that what this directory holds is what there is. Without it nothing is changed.
    #[arg(long)]
    accept_loss: bool,
}

/// What was found and done, for programs.
#[derive(Debug, Serialize)]
struct Answer {
    cluster: String,
    node: u64,
    placed: bool,
    revoked: bool,
    /// It is declared to hold what there is.
    declared: bool,
    groups: Vec<Group>,
    damage: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Group {
    group: u64,
    committed: u64,
    whole_upto: u64,
    last: u64,
    /// Round and node of the highest leadership voted at above the snapshot; absent without such a vote.
    voted_at: Option<(u64, u32)>,
    promised: (u64, u32),
    snapshot: u64,
    lost_values: u64,
    /// What is wrong, in words.
    wrong: Vec<&'static str>,
}

pub(crate) fn run(args: &Args, format: Format) -> Result<(), Failure> {
    let survey = replica::survey(&args.data_dir)?;
    let mut answer = answer(&survey);
    if args.accept_loss {
        refuse_what_cannot_serve(&survey)?;
        replica::declare_survivor(&args.data_dir)?;
        answer.declared = true;
    }
    print(format, &answer, |answer| text(answer, args.accept_loss))
}

/// A directory from which no group could go on.
fn refuse_what_cannot_serve(survey: &Survey) -> Result<(), Failure> {
    if !survey.placed {
        return Err("this node has never had a place in its cluster: it holds nothing".into());
    }
    if survey.revoked {
        return Err(
            "this is an old copy of the node's directory: others have heard of a later incarnation of it"
                .into(),
        );
    }
    if let Some(group) = survey.groups.iter().find(|(_, held)| held.snapshot_lost).map(|(group, _)| group.0) {
        return Err(format!(
            "the snapshot of group {group} that the journal builds on is lost: there is no state"
        )
        .into());
    }
    Ok(())
}

fn answer(survey: &Survey) -> Answer {
    let group = |(group, held): (&consensus_core::GroupId, &Held)| {
        let holdings = &held.holdings;
        let mut wrong = Vec::new();
        if held.snapshot_lost {
            wrong.push("snapshot lost");
        }
        if holdings.faulty_from.is_some() {
            wrong.push("votes may be forgotten");
        }
        if holdings.promise_lost {
            wrong.push("a promise may be forgotten");
        }
        if holdings.lost_values > 0 {
            wrong.push("values lost");
        }
        let voted = holdings.ballot.round > 0;
        Group {
            group: group.0,
            committed: holdings.committed.0,
            whole_upto: holdings.whole_upto.0,
            last: holdings.last.0,
            voted_at: voted.then_some((holdings.ballot.round, holdings.ballot.node.0)),
            promised: (holdings.promised.round, holdings.promised.node.0),
            snapshot: held.snapshot.0,
            lost_values: holdings.lost_values,
            wrong,
        }
    };
    Answer {
        cluster: format!("{:016x}", survey.cluster),
        node: survey.node,
        placed: survey.placed,
        revoked: survey.revoked,
        declared: survey.survivor,
        groups: survey.groups.iter().map(group).collect(),
        damage: survey.damage.clone(),
    }
}

fn text(answer: &Answer, declared_now: bool) -> String {
    let mut text = format!("node {} of cluster {}\n\n", answer.node, answer.cluster);
    let mut table = Table::new(&[
        "GROUP",
        "VOTED AT",
        "WHOLE UP TO",
        "LAST",
        "COMMITTED",
        "SNAPSHOT",
        "VALUES LOST",
        "WRONG",
    ]);
    for group in &answer.groups {
        table.row(vec![
            group.group.to_string(),
            group.voted_at.map_or(String::new(), |(round, node)| format!("{round}.{node}")),
            group.whole_upto.to_string(),
            group.last.to_string(),
            group.committed.to_string(),
            group.snapshot.to_string(),
            group.lost_values.to_string(),
            group.wrong.join(", "),
        ]);
    }
    let _ = writeln!(text, "{table}");
    for damage in &answer.damage {
        let _ = writeln!(text, "damage: {damage}");
    }
    if declared_now {
        text.push_str(
            "This node is declared to hold what there is. Start it, and all others; see `/readyz` and the logs of all nodes.\n",
        );
    } else {
        text.push_str(WORDS);
        text.push_str("\nNothing was changed.\n");
    }
    text
}
