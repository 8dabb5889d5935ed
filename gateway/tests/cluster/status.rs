//! What a gateway tells of the others.

use gateway::status::{ClusterStatus, Status};
use sim::model;

use crate::client::Client;
use crate::processes::{Cluster, Process, Setup, wait_for};

fn status(process: &Process) -> Option<ClusterStatus> {
    let (_, text) = process.get("/debug/status")?;
    match serde_json::from_str(&text).unwrap() {
        Status::Cluster(status) => Some(status),
        Status::Node(_) => panic!("a gateway tells of the cluster: {text}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_tells_what_another_one_does() {
    let place = |index| format!("region: r{index}\n");
    let cluster = Cluster::start_as(1, 2, &Setup { gateway: Some(&place), ..Setup::default() });
    let [near, far] = &cluster.gateways[..] else { unreachable!("there are two") };
    let mut client = Client::connect(&[format!("http://{}", far.listen)]).await.unwrap();
    let put = model::PutRequest { key: b"k".to_vec(), value: b"v".to_vec(), ..Default::default() };
    // It says so with its probes, some seconds apart.
    while !status(near).is_some_and(|status| {
        let other = &status.gateways[1];
        other.rates.is_some_and(|rates| rates.requests_per_second > 0.0)
    }) {
        client.put(put.clone()).await.expect("all are up");
    }
    let told = wait_for("a status", || status(near));
    let other = &told.gateways[1];
    assert_eq!((other.name.as_str(), other.region.as_deref()), ("gateway-2", Some("r1")));
    assert_eq!(other.version.as_deref(), Some(env!("CARGO_PKG_VERSION")));
    assert_eq!(other.connections, Some(1), "operators are no clients");
    assert!(other.uptime_seconds.is_some(), "{other:?}");
    assert_eq!((told.gateways[0].region.as_deref(), told.gateways[0].connections), (Some("r0"), Some(0)));
}
