//! Serializable reads through one gateway, which spreads them over replica processes that are not equally far.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]
#![allow(unexpected_cfgs, reason = "the feature exists in `compat/cluster` only")]

#[path = "cluster/processes.rs"]
mod processes;

use api::etcdserverpb as pb;
use api::etcdserverpb::kv_client::KvClient;

/// As Go's transactions in memory do: one linearizable read, then serializable ones at its revision.
#[tokio::test]
async fn a_client_reads_what_it_has_seen_whichever_replica_answers() {
    let cluster = processes::Cluster::start(3, 1);
    let mut client = KvClient::connect(cluster.endpoints().remove(0)).await.unwrap();
    for round in 0..200 {
        let value = format!("{round}").into_bytes();
        let put = pb::PutRequest { key: b"a".to_vec().into(), value: value.into(), ..Default::default() };
        let revision = client.put(put).await.unwrap().into_inner().header.unwrap().revision;
        // Once for each replica, and once at the revision.
        for at in [0, 0, 0, revision] {
            let range = pb::RangeRequest {
                key: b"a".to_vec().into(),
                serializable: true,
                revision: at,
                ..Default::default()
            };
            let answer = client.range(range).await.unwrap().into_inner();
            assert_eq!(answer.kvs[0].mod_revision, revision, "round {round}");
        }
    }
}
