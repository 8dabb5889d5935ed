//! Large answers of real processes. Not with `etcd-client`, which takes messages of 4 MiB.

use sim::model;

use crate::client::Client;
use crate::processes::Cluster;

/// They come in parts, beside each other and what is small.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_answers_come_whole() {
    let cluster = Cluster::start(3, 1);
    let client = Client::connect(&cluster.endpoints()).await.unwrap();
    let key = |n: usize| format!("large-{n:02}").into_bytes();
    for n in 0..24 {
        let put = model::PutRequest { key: key(n), value: vec![n as u8; 1 << 20], ..Default::default() };
        while client.clone().put(put.clone()).await.is_none() {}
    }
    let mut reads = tokio::task::JoinSet::new();
    for limit in [0, 1, 3, 24, 7, 0, 20, 2] {
        for serializable in [false, true] {
            let (mut client, range) =
                (client.clone(), model::KeyRange { key: b"large-".to_vec(), range_end: b"large.".to_vec() });
            let request = model::RangeRequest { range, limit, serializable, ..Default::default() };
            reads.spawn(async move { (limit, client.range(request).await) });
        }
    }
    for (limit, read) in reads.join_all().await {
        let read = read.expect("it is answered");
        let shown = if limit == 0 { 24 } else { limit as usize };
        assert_eq!((read.kvs.len(), read.count), (shown, 24), "{}", cluster.logs());
        for (n, kv) in read.kvs.iter().enumerate() {
            assert!(kv.key == key(n) && kv.value.len() == 1 << 20, "{}", cluster.logs());
            assert!(kv.value.iter().all(|byte| *byte == n as u8), "{}", cluster.logs());
        }
    }
}
