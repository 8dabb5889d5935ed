//! Every gRPC method etcd has, for metrics, and for telling an unsupported method from an unknown one.

use gateway_core::admission::Lane;

/// How requests and answers flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    Unary,
    ServerStream,
    BidiStream,
}

impl Flow {
    /// The value of the label `grpc_type`.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Flow::Unary => "unary",
            Flow::ServerStream => "server_stream",
            Flow::BidiStream => "bidi_stream",
        }
    }
}

/// Service, method, flow.
pub(crate) const METHODS: &[(&str, &str, Flow)] = &[
    ("etcdserverpb.KV", "Range", Flow::Unary),
    ("etcdserverpb.KV", "RangeStream", Flow::ServerStream),
    ("etcdserverpb.KV", "Put", Flow::Unary),
    ("etcdserverpb.KV", "DeleteRange", Flow::Unary),
    ("etcdserverpb.KV", "Txn", Flow::Unary),
    ("etcdserverpb.KV", "Compact", Flow::Unary),
    ("etcdserverpb.Watch", "Watch", Flow::BidiStream),
    ("etcdserverpb.Lease", "LeaseGrant", Flow::Unary),
    ("etcdserverpb.Lease", "LeaseRevoke", Flow::Unary),
    ("etcdserverpb.Lease", "LeaseKeepAlive", Flow::BidiStream),
    ("etcdserverpb.Lease", "LeaseTimeToLive", Flow::Unary),
    ("etcdserverpb.Lease", "LeaseLeases", Flow::Unary),
    ("etcdserverpb.Cluster", "MemberAdd", Flow::Unary),
    ("etcdserverpb.Cluster", "MemberRemove", Flow::Unary),
    ("etcdserverpb.Cluster", "MemberUpdate", Flow::Unary),
    ("etcdserverpb.Cluster", "MemberList", Flow::Unary),
    ("etcdserverpb.Cluster", "MemberPromote", Flow::Unary),
    ("etcdserverpb.Maintenance", "Alarm", Flow::Unary),
    ("etcdserverpb.Maintenance", "Status", Flow::Unary),
    ("etcdserverpb.Maintenance", "Defragment", Flow::Unary),
    ("etcdserverpb.Maintenance", "Hash", Flow::Unary),
    ("etcdserverpb.Maintenance", "HashKV", Flow::Unary),
    ("etcdserverpb.Maintenance", "Snapshot", Flow::ServerStream),
    ("etcdserverpb.Maintenance", "MoveLeader", Flow::Unary),
    ("etcdserverpb.Maintenance", "Downgrade", Flow::Unary),
    ("etcdserverpb.Auth", "AuthEnable", Flow::Unary),
    ("etcdserverpb.Auth", "AuthDisable", Flow::Unary),
    ("etcdserverpb.Auth", "AuthStatus", Flow::Unary),
    ("etcdserverpb.Auth", "Authenticate", Flow::Unary),
    ("etcdserverpb.Auth", "UserAdd", Flow::Unary),
    ("etcdserverpb.Auth", "UserGet", Flow::Unary),
    ("etcdserverpb.Auth", "UserList", Flow::Unary),
    ("etcdserverpb.Auth", "UserDelete", Flow::Unary),
    ("etcdserverpb.Auth", "UserChangePassword", Flow::Unary),
    ("etcdserverpb.Auth", "UserGrantRole", Flow::Unary),
    ("etcdserverpb.Auth", "UserRevokeRole", Flow::Unary),
    ("etcdserverpb.Auth", "RoleAdd", Flow::Unary),
    ("etcdserverpb.Auth", "RoleGet", Flow::Unary),
    ("etcdserverpb.Auth", "RoleList", Flow::Unary),
    ("etcdserverpb.Auth", "RoleDelete", Flow::Unary),
    ("etcdserverpb.Auth", "RoleGrantPermission", Flow::Unary),
    ("etcdserverpb.Auth", "RoleRevokePermission", Flow::Unary),
    ("v3electionpb.Election", "Campaign", Flow::Unary),
    ("v3electionpb.Election", "Proclaim", Flow::Unary),
    ("v3electionpb.Election", "Leader", Flow::Unary),
    ("v3electionpb.Election", "Observe", Flow::ServerStream),
    ("v3electionpb.Election", "Resign", Flow::Unary),
    ("v3lockpb.Lock", "Lock", Flow::Unary),
    ("v3lockpb.Lock", "Unlock", Flow::Unary),
    ("grpc.health.v1.Health", "Check", Flow::Unary),
    ("grpc.health.v1.Health", "List", Flow::Unary),
    ("grpc.health.v1.Health", "Watch", Flow::ServerStream),
];

/// Where requests of a method wait, if they are those of the keyspace that are held back when many do. A transaction may only
/// read; that shows when it has been read itself.
pub(crate) fn lane(method: usize) -> Option<Lane> {
    match METHODS[method] {
        ("etcdserverpb.KV", "Range" | "RangeStream", _) => Some(Lane::Read),
        ("etcdserverpb.KV", ..) => Some(Lane::Write),
        _ => None,
    }
}

/// The method of a request's path `/service/method`.
pub(crate) fn find(path: &str) -> Option<usize> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    METHODS.iter().position(|known| known.1 == method && known.0 == service)
}

/// What grpc-go says to a path that names no method of ours.
pub(crate) fn unknown(path: &str) -> String {
    match path.strip_prefix('/').and_then(|path| path.rsplit_once('/')) {
        None => format!("malformed method name: {path:?}"),
        Some((service, method)) if METHODS.iter().any(|known| known.0 == service) => {
            format!("unknown method {method} for service {service}")
        }
        Some((service, _)) => format!("unknown service {service}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_methods() {
        assert_eq!(METHODS[find("/etcdserverpb.KV/Put").unwrap()].1, "Put");
        assert_eq!(METHODS[find("/grpc.health.v1.Health/Watch").unwrap()].0, "grpc.health.v1.Health");
        assert_eq!(find("/etcdserverpb.KV/Nothing"), None);
        assert_eq!(unknown("/etcdserverpb.KV/Nothing"), "unknown method Nothing for service etcdserverpb.KV");
        assert_eq!(unknown("/a.B/C"), "unknown service a.B");
        assert_eq!(unknown("nothing"), "malformed method name: \"nothing\"");
    }

    #[test]
    fn every_method_of_the_descriptors_is_here() {
        let descriptors = String::from_utf8_lossy(api::FILE_DESCRIPTOR_SET);
        for (_, method, _) in METHODS {
            assert!(descriptors.contains(method), "{method}");
        }
    }
}
