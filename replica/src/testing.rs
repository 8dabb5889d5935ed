//! What the crate's tests start nodes with.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use consensus_core::{GroupId, NodeId, Timing};
use discovery::Discovery;
use journal::{Identity, RealDisk, Superblock};
use shard_map::ShardMap;
use tls::make::{Authority, Pair, Use, Validity};
use tls::{LinkFiles, Mutual};

use crate::node::Node;
use crate::start::NodeOptions;

/// Longest time that anything may take to come about.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const CLUSTER: u64 = 0xca5e;

/// A node of the cluster `others` and itself, all of them voters of group 1, with its data in `dir`.
pub(crate) fn options(id: NodeId, others: &[(NodeId, String)], dir: &Path) -> NodeOptions {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut nodes = others.to_vec();
    nodes.push((id, listener.local_addr().unwrap().to_string()));
    one_of(nodes, id, listener, dir)
}

/// The directory of a node that has taken its place.
pub(crate) fn take_place(id: NodeId, dir: &Path) {
    let identity = Identity { cluster: CLUSTER, node: u64::from(id.0), salt: 1 };
    let mut superblock = Superblock::create(RealDisk::open(dir).unwrap(), identity, 1).unwrap();
    superblock.take_place(Vec::new(), None).unwrap();
}

/// One of these nodes, which are all voters of group 1.
pub(crate) fn one_of(
    nodes: Vec<(NodeId, String)>,
    id: NodeId,
    listener: TcpListener,
    dir: &Path,
) -> NodeOptions {
    let voters = nodes.iter().map(|(node, _)| *node).collect();
    let addresses = nodes.iter().map(|(node, address)| (shard_map::NodeId(node.0), address.clone()));
    let shard_map = ShardMap::single_group(shard_map::GroupId(1), addresses.collect()).unwrap();
    NodeOptions {
        id,
        name: format!("node-{}", id.0),
        cluster: CLUSTER,
        nodes,
        groups: vec![(GroupId(1), voters)],
        regions: BTreeMap::new(),
        leader_regions: BTreeMap::new(),
        listener,
        data_dir: dir.to_path_buf(),
        timing: Timing::default(),
        journal_segment_bytes: 1 << 20,
        snapshot_least_bytes: 1 << 20,
        snapshot_slice_bytes: 64 << 10,
        quota_bytes: 1 << 30,
        memory_max: 1 << 30,
        descriptors: 1024,
        insecure: false,
        tls: None,
        shard_map,
        region: String::new(),
        zone: String::new(),
        discovery: Discovery::new(None),
    }
}

/// The value of a metric, by its name and labels as they are written.
pub(crate) fn metric(node: &Node, line: &str) -> f64 {
    let families = node.health().metrics().gather();
    let text = prometheus::TextEncoder::new().encode_to_string(&families).unwrap();
    let value = text.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' ')?.parse().ok());
    value.unwrap_or_else(|| panic!("no {line} in\n{text}"))
}

/// The links of a member whose certificate `authority` has signed, and which trusts `trusted`.
pub(crate) fn links(
    uri: &str,
    holder: tls::Holder,
    authority: &Authority,
    validity: Validity,
    trusted: &[&Authority],
) -> Arc<Mutual> {
    let dir = tempfile::tempdir().unwrap();
    let purpose = Use::Member(uri.parse().unwrap());
    let Pair { certificate, key } = authority.issue(uri, &purpose, validity).unwrap();
    let bundle: String = trusted.iter().map(|authority| authority.certificate()).collect();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let files = LinkFiles {
        certificate: write("link.crt", &certificate),
        key: write("link.key", &key),
        authorities: write("ca.crt", &bundle),
    };
    Arc::new(Mutual::load(files, "harbour", holder).unwrap())
}
