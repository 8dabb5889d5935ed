//! The differential run: the same sequences to two ends, and what they answer compared.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::allowed::ALLOWED;
use crate::call::Unreachable;
use crate::generate;
use crate::named;
use crate::side::{Outcome, Side};
use crate::step::{Op, Step, TxnStep};
use crate::watching::VIOLATION;

/// What to run.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) left: String,
    pub(crate) right: String,
    /// Generated steps; the sequences written by hand are not counted.
    pub(crate) ops: u64,
    pub(crate) seed: u64,
    /// The first sequence; for looking at one again.
    pub(crate) first_case: u64,
    /// Steps of a sequence.
    pub(crate) length: usize,
    /// After so many differences the run ends.
    pub(crate) most_differences: usize,
    /// Whether the sequences written by hand are run too.
    pub(crate) named: bool,
}

/// Two answers that are not the same.
struct Difference {
    step: usize,
    left: String,
    right: String,
}

impl Difference {
    /// The first line that differs, on each side, with its numbers left out: what makes two findings the same.
    fn signature(&self) -> String {
        let blank = |text: &str| text.replace(|c: char| c.is_ascii_digit(), "");
        let mut pairs = self.left.lines().zip(self.right.lines().chain(std::iter::repeat("(nothing)")));
        let first = pairs.find(|(left, right)| left != right);
        let (left, right) = first.unwrap_or(("(nothing)", self.right.lines().last().unwrap_or_default()));
        format!("left {} / right {}", blank(left), blank(right))
    }
}

struct Run {
    left: Side,
    right: Side,
    /// Steps by kind and by what was answered at the left end.
    covered: BTreeMap<(&'static str, String), u64>,
    /// How often each was seen, by the first lines that differ.
    differences: BTreeMap<String, usize>,
}

/// Runs; the number of differences.
pub(crate) async fn run(options: &Options) -> Result<usize, Unreachable> {
    println!(
        "left  {}\nright {}\nseed  {}, {} operations",
        options.left, options.right, options.seed, options.ops
    );
    println!("not compared:");
    for allowed in ALLOWED {
        println!("  - {}\n      because {}", allowed.what, allowed.reason);
    }
    let left = Side::connect(&options.left).await?;
    let right = Side::connect(&options.right).await?;
    let mut run = Run { left, right, covered: BTreeMap::new(), differences: BTreeMap::new() };
    let started = Instant::now();

    if options.named {
        if run.left.revision().await? == 1 && run.right.revision().await? == 1 {
            // Not to be minimised: nothing brings an end back to where it was never written to.
            if let Some(difference) = run.case(&named::fresh(), true).await? {
                run.report("a fresh store", &named::fresh(), &difference);
            }
        } else {
            println!("note: an end has been written to, so the sequence for fresh ones is left out");
        }
        for sequence in named::all() {
            run.judge(sequence.name, sequence.steps).await?;
        }
    }

    let (mut done, mut case) = (0, options.first_case);
    while done < options.ops && run.differences.len() < options.most_differences {
        let steps = generate::sequence(options.seed, case, options.length);
        let name = format!(
            "--seed {} --first-case {case} --ops {} --length {}",
            options.seed, options.length, options.length
        );
        done += u64::try_from(steps.len()).expect("a length is a u64");
        run.judge(&name, steps).await?;
        case += 1;
        if case.is_multiple_of(50) {
            println!(
                "{done} operations, {} differences, {:.0} s",
                run.differences.len(),
                started.elapsed().as_secs_f64()
            );
        }
    }

    println!("\nwhat was run, by the left end's answer:");
    for ((kind, verdict), count) in &run.covered {
        println!("{count:>8}  {kind:<18} {verdict}");
    }
    for (signature, count) in run.differences.iter().filter(|(_, count)| **count > 1) {
        println!("\n{count} times: {signature}");
    }
    println!(
        "\n{done} operations in {:.0} s, {} differences",
        started.elapsed().as_secs_f64(),
        run.differences.len()
    );
    Ok(run.differences.len())
}

impl Run {
    /// Runs a sequence, and reports it cut down if there is a difference.
    async fn judge(&mut self, name: &str, steps: Vec<Step>) -> Result<(), Unreachable> {
        let Some(difference) = self.case(&steps, false).await? else { return Ok(()) };
        if self.is_known(&difference) {
            return Ok(());
        }
        let (steps, difference) = self.minimise(steps, difference).await?;
        self.report(name, &steps, &difference);
        Ok(())
    }

    /// Runs a sequence from a clean state up to the first difference.
    async fn case(&mut self, steps: &[Step], fresh: bool) -> Result<Option<Difference>, Unreachable> {
        let (left, right) = tokio::join!(self.left.begin(fresh), self.right.begin(fresh));
        left?;
        right?;
        for (index, step) in steps.iter().enumerate() {
            let (left, right) = tokio::join!(self.left.run(step), self.right.run(step));
            let (left, mut right): (Outcome, Outcome) = (left?, right?);
            // Allowed: a serializable read that is behind.
            let deadline = Instant::now() + LAG_MAX;
            while may_lag(step) && !agree(step, &left.text, &right.text) && Instant::now() < deadline {
                tokio::time::sleep(LAG_POLL).await;
                right = self.right.run(step).await?;
            }
            *self.covered.entry((step.kind(), left.verdict)).or_default() += 1;
            if !agree(step, &left.text, &right.text) || left.text.contains(VIOLATION) {
                return Ok(Some(Difference { step: index, left: left.text, right: right.text }));
            }
        }
        Ok(None)
    }

    /// Drops steps while there is still a difference: first halves, then ever smaller pieces, down to single steps.
    async fn minimise(
        &mut self,
        mut steps: Vec<Step>,
        mut difference: Difference,
    ) -> Result<(Vec<Step>, Difference), Unreachable> {
        // Enough for 40 steps; a difference that comes and goes must not keep us for ever.
        let mut trials_left = 150;
        steps.truncate(difference.step + 1);
        let mut piece = steps.len() / 2;
        while piece > 0 {
            let mut start = 0;
            // The last step is the one that differs.
            while start + 1 < steps.len() && trials_left > 0 {
                trials_left -= 1;
                let end = (start + piece).min(steps.len() - 1);
                let shorter: Vec<Step> = [&steps[..start], &steps[end..]].concat();
                match self.case(&shorter, false).await? {
                    Some(found) => {
                        steps = shorter;
                        steps.truncate(found.step + 1);
                        difference = found;
                    }
                    None => start = end,
                }
            }
            piece /= 2;
        }
        Ok((steps, difference))
    }

    /// Whether the same was reported before; counts it then.
    fn is_known(&mut self, difference: &Difference) -> bool {
        let known = self.differences.get_mut(&difference.signature());
        let is_known = known.is_some();
        known.into_iter().for_each(|count| *count += 1);
        is_known
    }

    fn report(&mut self, name: &str, steps: &[Step], difference: &Difference) {
        if self.is_known(difference) {
            return;
        }
        self.differences.insert(difference.signature(), 1);
        println!("\nDIFFERENCE {} in: {name}", self.differences.len());
        for (index, step) in steps.iter().enumerate().take(difference.step + 1) {
            println!("  {index:>3} {}", shown(step));
        }
        // Only the lines that differ, with what they have in common cut to a few.
        let (left, right): (Vec<&str>, Vec<&str>) =
            (difference.left.lines().collect(), difference.right.lines().collect());
        let common = left.iter().zip(&right).take_while(|(a, b)| a == b).count();
        for line in &left[common.saturating_sub(3)..common] {
            println!("        {line}");
        }
        left[common..].iter().take(20).for_each(|line| println!("  left  {line}"));
        right[common..].iter().take(20).for_each(|line| println!("  right {line}"));
    }
}

fn match_txn(step: &Step) -> Option<&TxnStep> {
    if let Step::Txn(txn) = step { Some(txn) } else { None }
}

/// How long a replica may be behind.
const LAG_MAX: Duration = Duration::from_secs(2);
const LAG_POLL: Duration = Duration::from_millis(20);

/// Whether any replica may answer `step`.
fn may_lag(step: &Step) -> bool {
    let (range, txn) = (matches!(step, Step::Range(range) if range.serializable), match_txn(step));
    let is_serializable = |op: &Op| matches!(op, Op::Range(range) if range.serializable);
    range || txn.is_some_and(|txn| txn.success.iter().chain(&txn.failure).all(is_serializable))
}

/// Whether two answers to `step` are the same, apart from what is allowed.
fn agree(step: &Step, left: &str, right: &str) -> bool {
    // Allowed: which operation's mistake is reported.
    const OF_PUTS: [&str; 2] =
        ["NotFound: etcdserver: requested lease not found\n", "InvalidArgument: etcdserver: key not found\n"];
    const OF_RANGES: [&str; 2] = [
        "OutOfRange: etcdserver: mvcc: required revision is a future revision\n",
        "OutOfRange: etcdserver: mvcc: required revision has been compacted\n",
    ];
    let is_txn = matches!(step, Step::Txn(_));
    left == right || (is_txn && OF_PUTS.contains(&left) && OF_RANGES.contains(&right))
}

/// A step without the options that are off, and cut where it becomes unreadable.
fn shown(step: &Step) -> String {
    const LONGEST: usize = 1500;
    let mut text = format!("{step:?}");
    for off in OFF {
        text = text.replace(off, "");
    }
    for (long, short) in
        [("Step {", " {"), (": Exactly(", ": ("), ("Range(Range ", "Range("), ("Put(Put ", "Put(")]
    {
        text = text.replace(long, short);
    }
    if text.chars().count() > LONGEST {
        text = text.chars().take(LONGEST).chain("…".chars()).collect();
    }
    text
}

const OFF: &[&str] = &[
    ", limit: 0",
    ", revision: Exactly(0)",
    ", order: 0",
    ", serializable: false",
    ", keys_only: false",
    ", count_only: false",
    ", min_mod: Exactly(0)",
    ", max_mod: Exactly(0)",
    ", min_create: Exactly(0)",
    ", max_create: Exactly(0)",
    ", lease: None",
    ", prev_kv: false",
    ", ignore_value: false",
    ", ignore_lease: false",
    ", end: b\"\"",
    ", filters: []",
    ", fragment: false",
    ", progress_notify: false",
    ", failure: []",
    "compares: [], ",
    ", physical: false",
];
