//! What operators say about leaders, by `gaios ctl leader`, and what becomes of it.

use std::process::Command;

use crate::processes::{Cluster, Process, gaios, wait_for};

/// Runs `gaios ctl leader`; what it wrote, if it ended well.
fn ctl(gateway: &Process, args: &[&str]) -> Result<String, String> {
    let admin = format!("http://{}", gateway.admin());
    let ran =
        Command::new(gaios()).args(["ctl", "--admin", &admin, "-o", "json", "leader"]).args(args).output();
    let ran = ran.expect("the binary runs");
    if ran.status.success() {
        Ok(String::from_utf8_lossy(&ran.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&ran.stderr).into_owned())
    }
}

#[test]
fn operators_move_leaders_and_the_group_keeps_where_they_want_them() {
    let mut cluster = Cluster::start(3, 1);
    let leader = cluster.leader();
    let to = (leader + 1) % 3;
    let moved = ctl(&cluster.gateways[0], &["move", "--to", &(to + 1).to_string()]).unwrap();
    assert!(moved.contains(&format!("\"leader\": {}", to + 1)), "{moved}");
    assert_eq!(cluster.leader(), to);
    let refused = ctl(&cluster.gateways[0], &["move", "--to", "9"]).unwrap_err();
    assert!(refused.contains("node 9 is no voter of this group"), "{refused}");

    let set = ctl(&cluster.gateways[0], &["prefer", "--regions", "eu,us"]).unwrap();
    assert!(set.contains("\"configured\": false"), "{set}");
    // Another leader knows it, also one that had to start anew.
    for replica in &mut cluster.replicas {
        replica.kill();
    }
    for replica in &mut cluster.replicas {
        replica.start();
    }
    cluster.wait_until_ready();
    let shown = wait_for("the gateway finds the leader", || ctl(&cluster.gateways[0], &["show"]).ok());
    let shown: String = shown.split_whitespace().collect();
    assert!(shown.contains("\"regions\":[\"eu\",\"us\"]"), "{shown}");
    let none = ctl(&cluster.gateways[0], &["prefer", "--none"]).unwrap();
    assert!(none.split_whitespace().collect::<String>().contains("\"regions\":[]"), "{none}");
}
