//! Strangers at a node's port.

use std::sync::Arc;
use std::time::Duration;

use api::etcdserverpb as pb;
use api::gaios::link::GATEWAY_FRAME_BYTES_MAX;
use api::gaios::link::v1 as wire;
use bytes::Bytes;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::{Outcome, megabytes};
use crate::Problem;
use crate::link::Link;
use crate::stage::Stage;

const HELD_FOR: Duration = Duration::from_secs(2);
/// The one group of a cluster that was not told otherwise.
const GROUP: u64 = 1;

async fn cluster_id(stage: &Stage) -> Result<u64, Problem> {
    let get = pb::RangeRequest { key: "hostile".into(), ..Default::default() };
    let answer = stage.kv().await?.range(get).await.map_err(|status| status.to_string())?;
    Ok(answer.into_inner().header.unwrap_or_default().cluster_id)
}

pub(super) async fn half_hellos(stage: Arc<Stage>) -> Outcome {
    stage.begin().await;
    let mut held = Vec::new();
    for index in 0..stage.sized(500) {
        let node = stage.nodes[index % stage.nodes.len()];
        // A node may turn it away.
        if let Ok(mut stream) = TcpStream::connect(node).await
            && stream.write_u32(4096).await.is_ok()
        {
            held.push(stream);
        }
    }
    sleep(HELD_FOR).await;
    Ok(format!("{} connections", held.len()))
}

pub(super) async fn half_frames(stage: Arc<Stage>) -> Outcome {
    const ANNOUNCED: u32 = GATEWAY_FRAME_BYTES_MAX as u32;
    let cluster_id = cluster_id(&stage).await?;
    stage.begin().await;
    let mut sending = JoinSet::new();
    for _ in 0..stage.sized(20) {
        let Ok(mut link) = Link::open(stage.nodes[0], cluster_id).await else { continue };
        sending.spawn(async move {
            let sent = link.send_half(ANNOUNCED, ANNOUNCED as usize / 2).await.is_ok();
            sleep(HELD_FOR).await;
            sent
        });
    }
    let sent = sending.join_all().await.into_iter().filter(|sent| *sent).count();
    Ok(format!("{sent} halves sent"))
}

pub(super) async fn endless_credit(stage: Arc<Stage>) -> Outcome {
    let cluster_id = cluster_id(&stage).await?;
    stage.fill(megabytes(stage.sized(300))).await?;
    stage.begin().await;
    let mut links = Vec::new();
    for node in stage.nodes.iter().cycle().take(4) {
        let Ok(mut link) = Link::open(*node, cluster_id).await else { continue };
        let all = Bytes::from_static(&[0]);
        let open = wire::WatchOpen {
            key: all.clone(),
            range_end: all,
            start_revision: 1,
            credit: u64::MAX,
            ..Default::default()
        };
        let requests = vec![wire::Request {
            id: 1,
            kind: Some(wire::request::Kind::WatchOpen(open)),
            ..Default::default()
        }];
        let frame = wire::GatewayFrame { groups: vec![wire::GroupRequests { group: GROUP, requests }] };
        if link.send(&frame).await.is_ok() {
            links.push(link);
        }
    }
    sleep(HELD_FOR).await;
    Ok(format!("{} links", links.len()))
}
