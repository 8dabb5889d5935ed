//! Golden transcripts: text files of commands with what happens, in the order in which it happens.
//!
//! A file is a sequence of blocks: comment lines (`#`), command lines (`> …`), and the output of these commands. The
//! output is compared; with `UPDATE_TRANSCRIPTS=1` it is rewritten, and the difference is read as a text diff.
//!
//! | command | effect |
//! | --- | --- |
//! | `nodes N [q1=A q2=B] [inflight=K] [retain=K]` | a cluster; must come first |
//! | `elect` | time passes until somebody leads and serves |
//! | `run MS` | time passes, and all that is due happens |
//! | `deliver [A->B] [Kind]` | messages on their way arrive now, no other time passes |
//! | `drop [A->B] [Kind]` | messages on their way are lost |
//! | `cut A->B`, `cut A-B`, `isolate A`, `heal` | links stop and start to carry messages |
//! | `disconnect A B` | both see their connection break, and make a new one |
//! | `propose A TEXT…` | one proposal per word |
//! | `read A`, `index-read A` | a read, under the lease if possible, or not |
//! | `lease A` | whether A holds the lease, and the read point |
//! | `timeout A` | A's next timer is due now |
//! | `stall A`, `persist A [N]`, `flow A` | A's disk stops, makes N writes durable, goes on |
//! | `fail-disk A` | a write of A fails |
//! | `crash A`, `start A` | the process ends, and begins again from its disk |
//! | `damage A payload S`, `damage A tail N`, `damage A from S`, `damage A only S` | while A is down, its disk loses things |
//! | `empty A`, `survive A` | while A is down, its directory is emptied, or declared to be all there is |
//! | `promised A R` | while A is down, its disk says that it has promised round R to node 9 |
//! | `forge A->B prepare R`, `… accept R S TEXT`, `… chosen S` | somebody speaks in the name of A; `chosen` claims a commit index |
//! | `pause A`, `resume A` | the process stands still; what arrives waits |
//! | `snapshot A`, `install A B` | A takes a snapshot; B gets it |
//! | `transfer A B` | A hands leadership to B |
//! | `retire A` | A is about to stop: it gives its leases back |
//! | `status [A]`, `flights` | what the nodes know; what is on its way |
//! | `messages on`, `messages off` | whether messages are shown when they leave |

mod harness;

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use consensus_core::message::{Accept, Chosen, Entries, Prepare};
use consensus_core::{Ballot, Config, Input, Message, NodeId, ReadMode, Record, Slot, Value};
use harness::{Cell, Cluster, Damage, Flight, Parcel, kind_of, show_ballot, show_message};

/// Runs the commands of one file.
struct Runner {
    cluster: Option<Cluster>,
    tag: u64,
}

impl Runner {
    fn cluster(&mut self) -> &mut Cluster {
        self.cluster.as_mut().expect("a transcript begins with `nodes`")
    }

    fn command(&mut self, line: &str) -> Vec<String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (verb, rest) = words.split_first().expect("a command");
        if *verb == "nodes" {
            self.nodes(rest);
            return Vec::new();
        }
        self.cluster().lines.clear();
        match *verb {
            "elect" => self.elect(),
            "run" => {
                let duration = Duration::from_millis(number(rest[0]));
                self.cluster().run(duration);
            }
            "deliver" => self.deliver(rest),
            "drop" => {
                for flight in self.select(rest) {
                    let line = format!("lost: {}", show_flight(&flight));
                    self.cluster().lines.push(line);
                }
            }
            "cut" => match rest[0].split_once("->") {
                Some((a, b)) => {
                    self.cluster().cut.insert((node(a), node(b)));
                }
                None => {
                    let (a, b) = rest[0].split_once('-').expect("A->B or A-B");
                    self.cluster().cut.insert((node(a), node(b)));
                    self.cluster().cut.insert((node(b), node(a)));
                }
            },
            "isolate" => self.cluster().isolate(node(rest[0])),
            "heal" => self.cluster().heal(),
            "disconnect" => self.cluster().disconnect(node(rest[0]), node(rest[1])),
            "propose" => {
                for text in &rest[1..] {
                    self.tag += 1;
                    let tag = self.tag;
                    self.cluster().propose(node(rest[0]), tag, text);
                }
            }
            "read" | "index-read" => {
                self.tag += 1;
                let tag = self.tag;
                let mode = if *verb == "read" { ReadMode::Lease } else { ReadMode::Index };
                self.cluster().read(node(rest[0]), tag, mode);
            }
            "lease" => {
                let line = match self.cluster().lease_read(node(rest[0])) {
                    Some(slot) => format!("{}: reads at {} under its lease", rest[0], slot.0),
                    None => format!("{}: holds no lease", rest[0]),
                };
                self.cluster().lines.push(line);
            }
            "timeout" => self.cluster().timeout(node(rest[0])),
            "stall" => self.cluster().node(node(rest[0])).disk_stalled = true,
            "persist" => {
                let count = rest.get(1).map_or(usize::MAX, |count| number(count) as usize);
                self.cluster().persist_some(node(rest[0]), count);
                self.cluster().work(node(rest[0]));
            }
            "flow" => {
                self.cluster().node(node(rest[0])).disk_stalled = false;
                self.cluster().work(node(rest[0]));
            }
            "fail-disk" => self.cluster().step(node(rest[0]), Input::PersistFailed),
            "crash" => self.quietly(|cluster| cluster.crash(node(rest[0]))),
            "start" => self.quietly(|cluster| cluster.start(node(rest[0]))),
            "damage" => {
                let damage = match rest[1] {
                    "payload" => Damage::Payload(consensus_core::Slot(number(rest[2]))),
                    "tail" => Damage::Tail(number(rest[2]) as usize),
                    "from" => Damage::Lost(consensus_core::Slot(number(rest[2]))),
                    "only" => Damage::Only(consensus_core::Slot(number(rest[2]))),
                    what => panic!("damage of {what}"),
                };
                self.cluster().node(node(rest[0])).damage.push(damage);
            }
            "empty" => self.cluster().empty(node(rest[0])),
            "survive" => self.cluster().node(node(rest[0])).survives = true,
            "promised" => {
                let ballot = Ballot { round: number(rest[1]), node: NodeId(9) };
                self.cluster().node(node(rest[0])).disk.push(Cell::Whole(Record::Promised { ballot }));
            }
            "forge" => self.forge(rest),
            "pause" => self.cluster().pause(node(rest[0])),
            "resume" => self.cluster().resume(node(rest[0])),
            "snapshot" => self.cluster().snapshot(node(rest[0])),
            "install" => self.cluster().hand_over_snapshot(node(rest[0]), node(rest[1])),
            "transfer" => self.cluster().step(node(rest[0]), Input::Transfer { to: node(rest[1]) }),
            "retire" => self.cluster().retire(node(rest[0])),
            "status" => self.status(rest),
            "flights" => {
                let flights =
                    self.cluster().network.iter().filter(|flight| is_group(flight)).map(show_flight);
                let flights: Vec<String> = flights.collect();
                self.cluster().lines.extend(flights);
            }
            "messages" => self.cluster().trace_messages = rest[0] == "on",
            _ => panic!("no command {verb}"),
        }
        std::mem::take(&mut self.cluster().lines)
    }

    fn nodes(&mut self, words: &[&str]) {
        let mut config = Config::majority((1..=number(words[0]) as u32).map(NodeId));
        for word in &words[1..] {
            let (key, value) = word.split_once('=').expect("key=value");
            match key {
                "q1" => config.q1 = number(value) as u8,
                "q2" => config.q2 = number(value) as u8,
                _ => panic!("no setting {key}"),
            }
        }
        config.check().expect("quorums that meet");
        self.cluster = Some(Cluster::with(config, |options| options.retain_slots = 2));
    }

    fn elect(&mut self) {
        let cluster = self.cluster();
        let end = cluster.now.after(Duration::from_secs(60));
        let done = cluster.run_until(end, |cluster| cluster.leader().is_some());
        assert!(done, "nobody leads: {:#?}", cluster.lines);
    }

    /// Messages on their way that fit the words, taken off the network.
    fn select(&mut self, words: &[&str]) -> Vec<Flight> {
        let link = words.iter().find_map(|word| word.split_once("->"));
        let kind = words.iter().find(|word| !word.contains("->"));
        let fits = |flight: &Flight| {
            let on_link = link.is_none_or(|(a, b)| flight.from == node(a) && flight.to == node(b));
            match &flight.parcel {
                Parcel::Group(message) => on_link && kind.is_none_or(|kind| kind_of(message) == *kind),
                Parcel::Liveness(_) => false,
            }
        };
        let flights = std::mem::take(&mut self.cluster().network);
        let (chosen, rest): (Vec<Flight>, Vec<Flight>) = flights.into_iter().partition(fits);
        self.cluster().network = rest.into();
        chosen
    }

    fn deliver(&mut self, words: &[&str]) {
        for flight in self.select(words) {
            let line = format!("arrives: {}", show_flight(&flight));
            self.cluster().lines.push(line);
            self.cluster().deliver(flight);
        }
    }

    fn forge(&mut self, words: &[&str]) {
        let (from, to) = words[0].split_once("->").expect("A->B");
        let (from, to) = (node(from), node(to));
        let ballot = || Ballot { round: number(words[2]), node: from };
        let message = match words[1] {
            "prepare" => Message::Prepare(Prepare { ballot: ballot(), from: Slot(1), config_epoch: 1 }),
            "accept" => {
                let command = Bytes::copy_from_slice(words[4].as_bytes());
                let value = Value::Batch([command].into_iter().collect());
                let entries = [(Slot(number(words[3])), value)].into_iter().collect();
                Message::Accept(Accept { ballot: ballot(), commit: Slot(0), entries })
            }
            "chosen" => Message::Chosen(Chosen { commit: Slot(number(words[2])), entries: Entries::new() }),
            what => panic!("a forged {what}"),
        };
        self.cluster().step(to, Input::Message { from, message });
    }

    /// Without the harness's own remarks.
    fn quietly(&mut self, act: impl FnOnce(&mut Cluster)) {
        act(self.cluster());
        self.cluster().lines.retain(|line| !line.starts_with('['));
    }

    fn status(&mut self, words: &[&str]) {
        let cluster = self.cluster();
        let wanted = words.first().map(|word| node(word));
        for node in cluster.nodes.values() {
            if wanted.is_some_and(|wanted| wanted != node.id) {
                continue;
            }
            let mut line = format!("{}: ", node.id.0);
            match node.engine.as_ref().map(|engine| engine.status()) {
                None => line.push_str("down"),
                Some(status) => {
                    let role = format!("{:?}", status.role).to_lowercase();
                    let leader = status.leader.map_or("nobody".into(), |leader| leader.0.to_string());
                    write!(line, "{role} at {}, led by {leader}", show_ballot(status.ballot))
                        .expect("a string");
                    write!(line, ", commit {}", status.commit.0).expect("a string");
                    if status.max_voted > status.commit {
                        write!(line, ", voted to {}", status.max_voted.0).expect("a string");
                    }
                    if let Some(from) = status.faulty_from {
                        write!(line, ", faulty from {}", from.0).expect("a string");
                    }
                    if status.promise_lost {
                        line.push_str(", promise lost");
                    }
                    if status.lost_payloads > 0 {
                        write!(line, ", {} values lost", status.lost_payloads).expect("a string");
                    }
                    if status.fenced {
                        line.push_str(", fenced");
                    }
                }
            }
            cluster.lines.push(line);
        }
    }
}

fn is_group(flight: &Flight) -> bool {
    matches!(flight.parcel, Parcel::Group(_))
}

fn show_flight(flight: &Flight) -> String {
    match &flight.parcel {
        Parcel::Group(message) => format!("{} -> {} {}", flight.from.0, flight.to.0, show_message(message)),
        Parcel::Liveness(_) => format!("{} -> {} heartbeat", flight.from.0, flight.to.0),
    }
}

/// A number, or a power of two as `2^K`, or one less as `2^K-1`.
fn number(word: &str) -> u64 {
    if let Some(power) = word.strip_prefix("2^") {
        let (power, less) = power.strip_suffix("-1").map_or((power, 0), |power| (power, 1));
        return (1 << number(power)) - less;
    }
    word.parse().unwrap_or_else(|_| panic!("{word} is no number"))
}

fn node(word: &str) -> NodeId {
    NodeId(number(word) as u32)
}

/// The text with its outputs as they are.
fn rerun(text: &str) -> String {
    let mut runner = Runner { cluster: None, tag: 0 };
    let mut result = String::new();
    let mut output = Vec::new();
    let mut in_output = false;
    for line in text.lines() {
        if let Some(command) = line.strip_prefix("> ") {
            if in_output {
                flush(&mut result, &mut output);
            }
            in_output = true;
            writeln!(result, "{line}").expect("a string");
            output.extend(runner.command(command));
        } else if line.starts_with('#') {
            flush(&mut result, &mut output);
            in_output = false;
            writeln!(result, "{line}").expect("a string");
        } else if line.is_empty() && in_output {
            flush(&mut result, &mut output);
            in_output = false;
            result.push('\n');
        } else if line.is_empty() {
            result.push('\n');
        }
    }
    flush(&mut result, &mut output);
    result
}

fn flush(result: &mut String, output: &mut Vec<String>) {
    for line in output.drain(..) {
        writeln!(result, "  {line}").expect("a string");
    }
}

#[test]
fn transcripts_are_as_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let update = std::env::var_os("UPDATE_TRANSCRIPTS").is_some();
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 12);
    let mut wrong = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let Ok(actual) = std::panic::catch_unwind(|| rerun(&text)) else {
            wrong.push(format!("{name} does not run"));
            continue;
        };
        if actual == text {
            continue;
        }
        if update {
            std::fs::write(&file, actual).unwrap();
        } else {
            let differs = text.lines().zip(actual.lines()).enumerate().find(|(_, (a, b))| a != b);
            wrong.push(format!("{name}: {differs:?}"));
        }
    }
    assert!(wrong.is_empty(), "run with UPDATE_TRANSCRIPTS=1 and read the diff: {wrong:#?}");
}
