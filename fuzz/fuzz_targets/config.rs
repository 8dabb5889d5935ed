//! Configuration files: any text is either a checked configuration or a list of mistakes that lie inside it.

#![no_main]

use config::{Config, Place};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Config::parse("file", text) {
        Ok(Config::Replica(replica)) => {
            assert!(replica.cluster.nodes.iter().any(|node| node.id == replica.node));
            assert!(replica.timing.heartbeat * 3 <= replica.timing.support.min(replica.timing.election));
            for group in replica.cluster.groups_or_default() {
                assert!(!group.voters.is_empty());
                assert!(
                    group.voters.iter().all(|voter| replica
                        .cluster
                        .nodes
                        .iter()
                        .any(|node| node.id == *voter))
                );
            }
            // What the code asks of a checked configuration must not fail.
            let _ = (replica.display_name(), replica.address().to_string(), replica.cluster.id());
        }
        Ok(Config::Gateway(gateway)) => {
            assert!(!gateway.advertise_client_urls.is_empty());
            assert!(gateway.members.iter().all(|members| members.iter().any(|member| member.name == gateway.name)));
        }
        Err(problems) => {
            assert!(!problems.list.is_empty());
            // A line may end with a newline, a carriage return, or both.
            let lines = text.chars().filter(|c| matches!(c, '\n' | '\r')).count() + 1;
            for problem in &problems.list {
                let Place { line, column } = problem.place;
                assert!((1..=lines + 1).contains(&line) && column >= 1, "{problem} of {lines} lines");
                assert!(!problem.message.is_empty());
            }
            let _ = problems.to_string();
        }
    }
});
