//! Three regions, each with a node and a gateway: where the group is led, and what goes on when a part of a region is gone.

use crate::processes::{Cluster, Setup, wait_for};
use crate::stops::Callers;

const REGIONS: [&str; 3] = ["eu", "us", "ap"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_of_a_region_goes_on_with_the_next() {
    let setup = Setup {
        node: Some(&|index| format!(", region: {}", REGIONS[index])),
        cluster: "  groups:\n    - {id: 1, voters: [1, 2, 3], leader_regions: [eu, us]}\n",
        gateway: Some(&|index| format!("region: {}\n", REGIONS[index])),
        ..Setup::default()
    };
    let mut cluster = Cluster::start_as(3, 3, &setup);
    let endpoints = cluster.endpoints();
    let near = Callers::start(&endpoints[..1], 4, true).await;
    let anywhere = Callers::start(&endpoints, 4, true).await;
    let led_from_home = |cluster: &Cluster| {
        wait_for("the group is led from its first region", || (cluster.leader() == 0).then_some(()));
    };
    led_from_home(&cluster);

    // Its nodes are gone: its gateways go on with another region's.
    cluster.replicas[0].kill();
    near.each_answered().await;
    assert_ne!(cluster.leader(), 0);

    // They are back, and stay: the group is led there again.
    cluster.replicas[0].start();
    cluster.replicas[0].wait_until_ready();
    led_from_home(&cluster);
    near.each_answered().await;
    assert_eq!(near.lost(), 0, "{}", cluster.logs());
    near.finish().await;

    // Its gateways are gone: who knows several goes on with another region's.
    cluster.gateways[0].kill();
    anywhere.each_answered().await;
    assert_eq!(anywhere.lost(), 0, "{}", cluster.logs());
    anywhere.finish().await;
}
