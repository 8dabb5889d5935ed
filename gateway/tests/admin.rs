//! What operators see and ask, of a real cluster: `gaios ctl` and the admin ports.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use gateway::status::{ClusterStatus, Reach, Role, Status};

const GAIOS: &str = env!("CARGO_BIN_EXE_gaios");

/// `gaios dev` in a folder of its own, ready.
struct Dev {
    child: Child,
    admin: String,
    _dir: tempfile::TempDir,
}

impl Dev {
    fn start() -> Dev {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new(GAIOS)
            .args(["dev", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(dir.path().join("data"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut admin = None;
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            if let Some(url) = line.strip_prefix("status page on ") {
                admin = Some(url.trim_end_matches('/').to_owned());
            } else if line == "ready" {
                break;
            }
        }
        Dev { child, admin: admin.expect("it says where its admin port is"), _dir: dir }
    }

    /// What `gaios ctl` writes.
    fn ctl(&self, args: &[&str]) -> String {
        let output = Command::new(GAIOS).args(["ctl", "--admin", &self.admin]).args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn status(&self) -> ClusterStatus {
        let told = self.ctl(&["status", "-o", "json"]);
        match serde_json::from_str(&told).unwrap() {
            Status::Cluster(status) => status,
            Status::Node(_) => panic!("a gateway tells of the cluster: {told}"),
        }
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_status_of_a_cluster() {
    let dev = Dev::start();
    // Followers hear of the first leader a moment later than the gateway.
    let agreed = |status: &ClusterStatus| {
        let followers =
            status.groups[0].replicas.iter().filter(|replica| replica.role == Some(Role::Follower));
        followers.count() == 2 && status.findings.is_empty()
    };
    let mut status = dev.status();
    while !agreed(&status) {
        status = dev.status();
    }
    let ids: Vec<_> = status.nodes.iter().map(|node| node.id).collect();
    assert_eq!(ids, [1, 2, 3]);
    for node in &status.nodes {
        assert_eq!(node.reach, Some(Reach::Direct));
        let said = node.said.as_ref().unwrap();
        assert_eq!(said.version, env!("CARGO_PKG_VERSION"));
        assert!(said.peers.len() == 2 && said.peers.iter().all(|peer| peer.linked));
        assert_eq!(said.gateways.len(), 1);
    }
    let group = &status.groups[0];
    let leader = group.leader.unwrap();
    let leads = group.replicas.iter().find(|replica| replica.role == Some(Role::Leader)).unwrap();
    assert_eq!(leads.node, leader);
    assert_eq!(status.gateways.len(), 1);
    assert_eq!(status.gateways[0].linked_nodes, ids);

    let table = dev.ctl(&["status"]);
    assert!(table.contains("Nothing is wrong."), "{table}");
    for heading in ["GATEWAY", "NODE", "GROUP"] {
        assert!(table.lines().any(|line| line.starts_with(heading)), "{table}");
    }
}

#[test]
fn nobody_there_is_said_in_a_sentence() {
    // A port that was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{free}");
    let output = Command::new(GAIOS).args(["ctl", "--admin", &url, "status"]).output().unwrap();
    assert!(!output.status.success());
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.starts_with(&format!("gaios: {url}: ")), "{told}");
}

#[test]
fn completions_name_the_commands() {
    let output = Command::new(GAIOS).args(["completions", "bash"]).output().unwrap();
    let script = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success() && script.contains("completions") && script.contains("status"),
        "{script}"
    );
}
