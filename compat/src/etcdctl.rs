//! A script of `etcdctl` commands, run against two fresh servers: exit status and output compared.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::Command;

use crate::Problem;

/// How the output of a command is compared.
#[derive(Clone, Copy)]
enum Compare {
    /// Word by word, after the names below have been put for what each server calls differently.
    Text,
    /// As JSON, ids and terms aside.
    Json,
    /// As JSON, only which fields there are.
    JsonShape,
    /// The first lines of a table, which hold its titles.
    TableHead,
}

struct Line {
    args: &'static str,
    stdin: &'static str,
    compare: Compare,
    /// Ends the command after so many lines: it would go on for ever.
    lines: Option<usize>,
}

const fn text(args: &'static str) -> Line {
    Line { args, stdin: "", compare: Compare::Text, lines: None }
}

const fn json(args: &'static str) -> Line {
    Line { args, stdin: "", compare: Compare::Json, lines: None }
}

const fn shape(args: &'static str) -> Line {
    Line { args, stdin: "", compare: Compare::JsonShape, lines: None }
}

const fn table(args: &'static str) -> Line {
    Line { args, stdin: "", compare: Compare::TableHead, lines: None }
}

const fn watch(args: &'static str, lines: usize) -> Line {
    Line { args, stdin: "", compare: Compare::Text, lines: Some(lines) }
}

const fn piped(args: &'static str, stdin: &'static str) -> Line {
    Line { args, stdin, compare: Compare::Text, lines: None }
}

/// Words are split at spaces. `$L` stands for the lease that was granted last.
const SCRIPT: &[Line] = &[
    text("get nothing"),
    json("get nothing -w json"),
    text("put foo bar"),
    text("put foo baz --prev-kv"),
    text("put foo1 one"),
    text("put foo2 two"),
    piped("put from-stdin", "a value\nof two lines"),
    text("get foo"),
    text("get foo --print-value-only"),
    text("get foo --hex"),
    text("get --prefix foo"),
    text("get --prefix foo --limit 2"),
    text("get --prefix foo --keys-only"),
    text("get --prefix foo --count-only -w fields"),
    text("get foo foo2"),
    text("get --from-key foo1"),
    text("get --prefix foo --order DESCEND"),
    text("get --prefix foo --sort-by MODIFY --order DESCEND"),
    text("get --prefix foo --sort-by VALUE"),
    text("get foo --rev 2"),
    text("get foo --rev 99"),
    text("get foo --consistency s"),
    json("get --prefix foo -w json"),
    json("put foo3 three -w json --prev-kv"),
    json("del foo3 -w json --prev-kv"),
    text("put foo x --ignore-value"),
    text("put foo --ignore-value"),
    text("put none --ignore-value"),
    text("put foo y --lease 123abc"),
    text("get"),
    text("put"),
    text("del nothing"),
    text("del foo1 --prev-kv"),
    text("put a 1"),
    text("put b 2"),
    text("del a c"),
    text("put p/1 1"),
    text("put p/2 2"),
    text("del --prefix p/"),
    piped("txn", "mod(\"foo\") > \"0\"\n\nput foo seen\nget foo\n\nput foo unseen\n\n"),
    piped("txn", "value(\"foo\") = \"no\"\nver(\"foo\") > \"1\"\n\nput x 1\n\nget foo\nput y 2\ndel x\n\n"),
    piped("txn", "create(\"missing\") = \"0\"\n\nput dup 1\nput dup 2\n\n\n"),
    Line { compare: Compare::Json, ..piped("txn -w json", "ver(\"missing\") = \"0\"\n\nput t 1\n\n\n") },
    text("lease grant 600"),
    text("put leased v --lease=$L"),
    text("lease keep-alive $L --once"),
    text("lease timetolive $L --keys"),
    json("lease timetolive $L --keys -w json"),
    text("lease list"),
    json("lease list -w json"),
    json("get leased -w json"),
    text("lease revoke $L"),
    text("get leased"),
    text("lease revoke $L"),
    text("lease timetolive $L"),
    text("lease keep-alive $L --once"),
    json("lease grant 600 -w json"),
    watch("watch foo --rev 2 --prev-kv", 15),
    watch("watch --prefix p/ --rev 1", 12),
    watch("watch a c --rev 1", 10),
    text("compaction 8"),
    text("compaction 8"),
    text("compaction 999"),
    text("compaction 10 --physical"),
    text("get foo --rev 3"),
    text("watch foo --rev 3"),
    text("endpoint health"),
    shape("endpoint health -w json"),
    shape("endpoint status -w json"),
    table("endpoint status -w table"),
    shape("member list -w json"),
    table("member list -w table"),
    text("alarm list"),
    shape("version -w json"),
];

/// No command takes this long.
const TIMEOUT: Duration = Duration::from_secs(15);

/// One of the two servers.
struct End<'a> {
    etcdctl: &'a Path,
    url: &'a str,
    /// A folder with the CA of the server and a certificate of the client's.
    tls: Option<&'a Path>,
    /// Leases granted, newest last, as etcdctl writes them.
    leases: Vec<String>,
}

struct Said {
    status: String,
    stdout: String,
    stderr: String,
}

/// Runs the script; the number of commands whose output differs.
///
/// `tls` is a folder with `ca.crt`, `client.crt` and `client.key`, if the right end is spoken to with these.
pub(crate) async fn run(
    etcdctl: &Path,
    left: &str,
    right: &str,
    tls: Option<&Path>,
) -> Result<usize, Problem> {
    let mut left = End { etcdctl, url: left, tls: None, leases: Vec::new() };
    let mut right = End { etcdctl, url: right, tls, leases: Vec::new() };
    let mut differences = 0;
    for line in SCRIPT {
        let (said_left, said_right) = tokio::join!(left.run(line), right.run(line));
        let (said_left, said_right) = (left.normal(line, said_left?), right.normal(line, said_right?));
        if said_left != said_right {
            differences += 1;
            println!("DIFFERENCE in: etcdctl {}", line.args);
            said_left.lines().for_each(|line| println!("  left  {line}"));
            said_right.lines().for_each(|line| println!("  right {line}"));
        }
    }
    println!("{} etcdctl commands, {differences} differences", SCRIPT.len());
    Ok(differences)
}

impl End<'_> {
    async fn run(&mut self, line: &Line) -> Result<Said, Problem> {
        let lease = self.leases.last().cloned().unwrap_or_default();
        let mut command = Command::new(self.etcdctl);
        command.env("ETCDCTL_API", "3").arg("--endpoints").arg(self.url);
        if let Some(tls) = self.tls {
            command.arg("--cacert").arg(tls.join("ca.crt"));
            command.arg("--cert").arg(tls.join("client.crt")).arg("--key").arg(tls.join("client.key"));
        }
        command.args(line.args.split(' ').map(|arg| arg.replace("$L", &lease)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let said = match tokio::time::timeout(TIMEOUT, talk(command, line)).await {
            Ok(said) => said.map_err(|error| format!("etcdctl {}: {error}", line.args))?,
            Err(_) => Said { status: "did not end".to_owned(), stdout: String::new(), stderr: String::new() },
        };
        if line.args.starts_with("lease grant") {
            let hex = match line.compare {
                Compare::Text => said.stdout.split(' ').nth(1).map(str::to_owned),
                Compare::Json | Compare::JsonShape | Compare::TableHead => None,
            };
            self.leases.extend(hex);
        }
        Ok(said)
    }

    /// What was said, without what may differ.
    fn normal(&self, line: &Line, said: Said) -> String {
        let stdout = match line.compare {
            Compare::Text => self.normal_text(&said.stdout),
            Compare::Json => said.stdout.lines().map(|line| self.normal_json(line, false)).collect(),
            Compare::JsonShape => said.stdout.lines().map(|line| self.normal_json(line, true)).collect(),
            Compare::TableHead => said.stdout.lines().skip(1).take(1).map(squeeze).collect(),
        };
        // The client library's own log, with times and addresses.
        let stderr = said.stderr.lines().filter(|line| !line.starts_with("{\"level\""));
        let stderr: String =
            stderr.map(|line| format!("stderr: {}\n", self.normal_text(line).trim_end())).collect();
        format!("{}\n{stdout}\n{stderr}", said.status)
    }

    fn normal_text(&self, text: &str) -> String {
        let (_, address) = self.url.split_once("://").unwrap_or(("", self.url));
        let mut normal = text.replace(self.url, "$URL").replace(address, "$URL");
        for (number, lease) in self.leases.iter().enumerate() {
            normal = normal.replace(lease, &format!("$L{number}"));
        }
        let lines = normal.lines().map(|line| {
            // "took = 1.2ms"
            let line = line
                .split_once("took = ")
                .map_or_else(|| line.to_owned(), |(head, _)| format!("{head}took = T"));
            // "remaining(599s)"
            let line = match line.split_once("remaining(") {
                Some((head, rest)) => {
                    format!("{head}remaining(T{}", rest.trim_start_matches(|c: char| c.is_ascii_digit()))
                }
                None => line,
            };
            let is_id =
                ["\"ClusterID\"", "\"MemberID\"", "\"RaftTerm\""].iter().any(|id| line.starts_with(id));
            if is_id { line.split(':').next().unwrap_or_default().to_owned() } else { line }
        });
        lines.map(|line| line + "\n").collect()
    }

    fn normal_json(&self, line: &str, shape: bool) -> String {
        match serde_json::from_str::<Value>(line) {
            Ok(mut value) => {
                self.normal_value(&mut value, shape);
                format!("{value}\n")
            }
            Err(_) => self.normal_text(line),
        }
    }

    fn normal_value(&self, value: &mut Value, shape: bool) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields.iter_mut() {
                    if ["cluster_id", "member_id", "raft_term"].contains(&name.as_str()) {
                        *value = Value::from("set");
                    } else if ["lease", "ID", "id"].contains(&name.as_str()) && value.is_number() {
                        *value = Value::from(self.lease_name(value));
                    } else if name == "ttl" && value.as_i64().is_some_and(|ttl| (590..=600).contains(&ttl)) {
                        *value = Value::from("fresh");
                    } else {
                        self.normal_value(value, shape);
                    }
                }
            }
            Value::Array(items) if shape => {
                items.truncate(1);
                items.iter_mut().for_each(|item| self.normal_value(item, shape));
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.normal_value(item, shape)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) if shape => {
                *value = Value::Null
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    /// JSON has leases as numbers, text as hexadecimal.
    fn lease_name(&self, id: &Value) -> String {
        // With leading zeros, as etcdctl writes them: one id in sixteen begins with one.
        let hex = format!("{:016x}", id.as_i64().unwrap_or_default());
        match self.leases.iter().position(|lease| *lease == hex) {
            Some(number) => format!("$L{number}"),
            None => "a new lease".to_owned(),
        }
    }
}

/// Runs of spaces and dashes as one.
fn squeeze(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

async fn talk(mut command: Command, line: &Line) -> std::io::Result<Said> {
    let mut child = command.spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A command that does not read it may have ended by now.
        let _ = stdin.write_all(line.stdin.as_bytes()).await;
    }
    let (mut stdout, mut stderr) = (String::new(), String::new());
    let (Some(mut out), Some(mut err)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(std::io::Error::other("no pipes"));
    };
    let Some(wanted) = line.lines else {
        let (read_out, read_err) =
            tokio::join!(out.read_to_string(&mut stdout), err.read_to_string(&mut stderr));
        read_out?;
        read_err?;
        let status = child.wait().await?.to_string();
        return Ok(Said { status, stdout, stderr });
    };
    let mut lines = BufReader::new(out).lines();
    for _ in 0..wanted {
        let Some(line) = lines.next_line().await? else { break };
        stdout.push_str(&line);
        stdout.push('\n');
    }
    child.kill().await?;
    Ok(Said { status: "stopped".to_owned(), stdout, stderr })
}
