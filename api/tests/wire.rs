//! The facts of etcd's wire format which are most easily got wrong, and what our build does to them.

use api::{FILE_DESCRIPTOR_SET, etcdserverpb as pb, mvccpb};
use bytes::Bytes;
use prost::Message;
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet};

fn files() -> Vec<FileDescriptorProto> {
    FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).expect("the build script wrote it").file
}

/// (package, messages from the outermost in, field, number).
const FIELDS: &[(&str, &str, &str, i32)] = &[
    // Gaps in the numbering.
    ("etcdserverpb", "WatchResponse", "fragment", 7),
    ("etcdserverpb", "WatchResponse", "events", 11),
    ("etcdserverpb", "Compare", "range_end", 64),
    // Order of declaration differs from what one expects.
    ("etcdserverpb", "WatchCreateRequest", "filters", 5),
    ("etcdserverpb", "WatchCreateRequest", "prev_kv", 6),
    ("etcdserverpb", "WatchCreateRequest", "watch_id", 7),
    ("etcdserverpb", "WatchCreateRequest", "fragment", 8),
    ("etcdserverpb", "LeaseGrantRequest", "TTL", 1),
    ("etcdserverpb", "LeaseGrantRequest", "ID", 2),
    ("etcdserverpb", "LeaseGrantResponse", "ID", 2),
    ("etcdserverpb", "LeaseGrantResponse", "TTL", 3),
    ("etcdserverpb", "LeaseKeepAliveResponse", "ID", 2),
    ("etcdserverpb", "LeaseKeepAliveResponse", "TTL", 3),
    ("etcdserverpb", "LeaseCheckpoint", "remaining_TTL", 2),
    ("etcdserverpb", "LeaseTimeToLiveResponse", "TTL", 3),
    ("etcdserverpb", "LeaseTimeToLiveResponse", "grantedTTL", 4),
    ("etcdserverpb", "LeaseTimeToLiveResponse", "keys", 5),
    ("mvccpb", "KeyValue", "create_revision", 2),
    ("mvccpb", "KeyValue", "mod_revision", 3),
    ("mvccpb", "KeyValue", "version", 4),
    ("mvccpb", "KeyValue", "value", 5),
    ("mvccpb", "KeyValue", "lease", 6),
    ("mvccpb", "Event", "prev_kv", 3),
    ("etcdserverpb", "ResponseHeader", "revision", 3),
    ("etcdserverpb", "ResponseHeader", "raft_term", 4),
    ("etcdserverpb", "RangeRequest", "serializable", 7),
    ("etcdserverpb", "RangeRequest", "min_mod_revision", 10),
    ("etcdserverpb", "RangeRequest", "max_mod_revision", 11),
    ("etcdserverpb", "RangeRequest", "min_create_revision", 12),
    ("etcdserverpb", "RangeRequest", "max_create_revision", 13),
    ("etcdserverpb", "RangeResponse", "more", 3),
    ("etcdserverpb", "RangeResponse", "count", 4),
    ("etcdserverpb", "RangeStreamResponse", "range_response", 1),
    ("etcdserverpb", "PutRequest", "lease", 3),
    ("etcdserverpb", "PutRequest", "ignore_value", 5),
    ("etcdserverpb", "PutRequest", "ignore_lease", 6),
    ("etcdserverpb", "DeleteRangeResponse", "deleted", 2),
    ("etcdserverpb", "DeleteRangeResponse", "prev_kvs", 3),
    ("etcdserverpb", "RequestOp", "request_txn", 4),
    ("etcdserverpb", "ResponseOp", "response_txn", 4),
    ("etcdserverpb", "Compare", "key", 3),
    ("etcdserverpb", "Compare", "value", 7),
    ("etcdserverpb", "Compare", "lease", 8),
    ("etcdserverpb", "HashKVResponse", "hash_revision", 4),
    ("etcdserverpb", "SnapshotResponse", "blob", 3),
    ("etcdserverpb", "SnapshotResponse", "version", 4),
    ("etcdserverpb", "Member", "peerURLs", 3),
    ("etcdserverpb", "Member", "clientURLs", 4),
    ("etcdserverpb", "Member", "isLearner", 5),
    ("etcdserverpb", "MemberListRequest", "linearizable", 1),
    ("etcdserverpb", "StatusResponse", "dbSize", 3),
    ("etcdserverpb", "StatusResponse", "leader", 4),
    ("etcdserverpb", "StatusResponse", "raftAppliedIndex", 7),
    ("etcdserverpb", "StatusResponse", "errors", 8),
    ("etcdserverpb", "StatusResponse", "dbSizeInUse", 9),
    ("etcdserverpb", "StatusResponse", "isLearner", 10),
    ("etcdserverpb", "StatusResponse", "storageVersion", 11),
    ("etcdserverpb", "StatusResponse", "dbSizeQuota", 12),
    ("etcdserverpb", "StatusResponse", "downgradeInfo", 13),
    ("etcdserverpb", "AuthUserAddRequest", "hashedPassword", 4),
    ("etcdserverpb", "AuthUserChangePasswordRequest", "hashedPassword", 3),
    ("etcdserverpb", "AuthUserGrantRoleRequest", "user", 1),
    ("etcdserverpb", "AuthUserRevokeRoleRequest", "name", 1),
    ("etcdserverpb", "AuthStatusResponse", "authRevision", 3),
    ("authpb", "User", "options", 4),
    ("authpb", "Permission", "permType", 1),
    ("authpb", "Role", "keyPermission", 2),
    ("v3electionpb", "CampaignRequest", "lease", 2),
    ("v3electionpb", "CampaignRequest", "value", 3),
    ("v3electionpb", "LeaderKey", "rev", 3),
    ("v3electionpb", "LeaderKey", "lease", 4),
    ("v3lockpb", "LockResponse", "key", 2),
    ("grpc.health.v1", "HealthCheckRequest", "service", 1),
    ("grpc.health.v1", "HealthCheckResponse", "status", 1),
    ("grpc.health.v1", "HealthListResponse", "statuses", 1),
];

#[test]
fn field_numbers_are_etcds() {
    let files = files();
    let message = |package: &str, name: &str| -> &DescriptorProto {
        let all = files.iter().filter(|f| f.package() == package).flat_map(|f| &f.message_type);
        all.into_iter().find(|m| m.name() == name).unwrap_or_else(|| panic!("no message {package}.{name}"))
    };
    for (package, name, field, number) in FIELDS {
        let found = message(package, name).field.iter().find(|f| f.name() == *field).map(|f| f.number());
        assert_eq!(found, Some(*number), "{package}.{name}.{field}");
    }
}

#[test]
fn enum_values_are_etcds() {
    let table: &[(&str, &[(&str, i32)])] = &[
        ("SortTarget", &[("KEY", 0), ("VERSION", 1), ("CREATE", 2), ("MOD", 3), ("VALUE", 4)]),
        ("SortOrder", &[("NONE", 0), ("ASCEND", 1), ("DESCEND", 2)]),
        ("CompareResult", &[("EQUAL", 0), ("GREATER", 1), ("LESS", 2), ("NOT_EQUAL", 3)]),
        ("CompareTarget", &[("VERSION", 0), ("CREATE", 1), ("MOD", 2), ("VALUE", 3), ("LEASE", 4)]),
        ("FilterType", &[("NOPUT", 0), ("NODELETE", 1)]),
        ("EventType", &[("PUT", 0), ("DELETE", 1)]),
        ("AlarmType", &[("NONE", 0), ("NOSPACE", 1), ("CORRUPT", 2)]),
        ("AlarmAction", &[("GET", 0), ("ACTIVATE", 1), ("DEACTIVATE", 2)]),
        ("DowngradeAction", &[("VALIDATE", 0), ("ENABLE", 1), ("CANCEL", 2)]),
        ("Type", &[("READ", 0), ("WRITE", 1), ("READWRITE", 2)]),
        ("ServingStatus", &[("UNKNOWN", 0), ("SERVING", 1), ("NOT_SERVING", 2), ("SERVICE_UNKNOWN", 3)]),
    ];
    let files = files();
    let nested = files.iter().flat_map(|f| &f.message_type).flat_map(|m| &m.enum_type);
    let enums: Vec<&EnumDescriptorProto> = files.iter().flat_map(|f| &f.enum_type).chain(nested).collect();
    for (name, values) in table {
        let found = enums.iter().find(|e| e.name() == *name).unwrap_or_else(|| panic!("no enum {name}"));
        let found: Vec<(&str, i32)> = found.value.iter().map(|v| (v.name(), v.number())).collect();
        assert_eq!(found, *values, "{name}");
    }
}

#[test]
fn methods_have_etcds_paths_and_streaming() {
    // (path, the client streams, the server streams); the path is what stands in an HTTP/2 request.
    let table: &[(&str, bool, bool)] = &[
        ("etcdserverpb.KV/Range", false, false),
        ("etcdserverpb.KV/RangeStream", false, true),
        ("etcdserverpb.KV/Compact", false, false),
        ("etcdserverpb.Watch/Watch", true, true),
        ("etcdserverpb.Lease/LeaseKeepAlive", true, true),
        ("etcdserverpb.Lease/LeaseTimeToLive", false, false),
        ("etcdserverpb.Cluster/MemberPromote", false, false),
        ("etcdserverpb.Maintenance/Snapshot", false, true),
        ("etcdserverpb.Maintenance/HashKV", false, false),
        ("etcdserverpb.Auth/UserChangePassword", false, false),
        ("etcdserverpb.Auth/RoleRevokePermission", false, false),
        ("v3electionpb.Election/Observe", false, true),
        ("v3lockpb.Lock/Unlock", false, false),
        ("grpc.health.v1.Health/Watch", false, true),
    ];
    let mut methods = Vec::new();
    for file in &files() {
        for service in &file.service {
            for method in &service.method {
                let path = format!("{}.{}/{}", file.package(), service.name(), method.name());
                methods.push((path, method.client_streaming(), method.server_streaming()));
            }
        }
    }
    for (path, client, server) in table {
        assert!(methods.contains(&((*path).to_owned(), *client, *server)), "{path}");
    }
    let etcd_method = |(path, _, _): &&(String, bool, bool)| path.starts_with("etcdserverpb.");
    assert_eq!(methods.iter().filter(etcd_method).count(), 6 + 1 + 5 + 5 + 8 + 17);
}

#[test]
fn decodes_bytes_made_by_hand() {
    // Field 64 needs a two-byte tag: 64 << 3 | 2 = 0x202, as a varint 0x82 0x04. Field 1 is the result NOT_EQUAL,
    // field 3 the key, field 8 the lease -1 as a ten-byte varint.
    let mut bytes = vec![0x08, 3, 0x1a, 1, b'k', 0x40];
    bytes.extend([0xff; 9]);
    bytes.extend([0x01, 0x82, 0x04, 1, b'z']);
    let compare = pb::Compare::decode(bytes.as_slice()).unwrap();
    assert_eq!(compare.result(), pb::compare::CompareResult::NotEqual);
    assert_eq!(compare.key, "k");
    assert_eq!(compare.range_end, "z");
    assert_eq!(compare.target_union, Some(pb::compare::TargetUnion::Lease(-1)));

    // Field 11 of a watch response: 11 << 3 | 2 = 0x5a; an event of type DELETE with a key.
    let response = pb::WatchResponse::decode([0x5a, 7, 0x08, 1, 0x12, 3, 0x0a, 1, b'k'].as_slice()).unwrap();
    assert_eq!(response.events.len(), 1);
    assert_eq!(response.events[0].r#type(), mvccpb::event::EventType::Delete);
    assert_eq!(response.events[0].kv.as_ref().unwrap().key, "k");
}

#[test]
fn fields_of_a_newer_peer_are_ignored() {
    let mut bytes = pb::PutRequest { key: "k".into(), ..Default::default() }.encode_to_vec();
    bytes.extend([0xfa, 0x01, 3, b'n', b'e', b'w']); // Field 31, three bytes.
    assert_eq!(pb::PutRequest::decode(bytes.as_slice()).unwrap().key, "k");
}

#[test]
fn renamed_fields_keep_their_number() {
    let member =
        pb::Member { peer_urls: vec!["a".into()], client_urls: vec!["b".into()], ..Default::default() };
    assert_eq!(member.encode_to_vec(), [0x1a, 1, b'a', 0x22, 1, b'b']);
}

#[test]
fn decoded_bytes_share_the_receive_buffer() {
    let value = vec![b'v'; 256];
    let put = pb::PutRequest { key: "k".into(), value: value.into(), ..Default::default() };
    let buffer = Bytes::from(put.encode_to_vec());
    let decoded = pb::PutRequest::decode(buffer.clone()).unwrap();
    assert!(buffer.as_ptr_range().contains(&decoded.value.as_ptr()), "the value was copied");
}

#[test]
fn nested_transactions_are_left_for_who_bounds_their_depth() {
    let mut inner = pb::TxnRequest::default();
    for _ in 0..200 {
        let nested = pb::request_op::Request::RequestTxn(inner.encode_to_vec().into());
        inner =
            pb::TxnRequest { success: vec![pb::RequestOp { request: Some(nested) }], ..Default::default() };
    }
    let decoded = pb::TxnRequest::decode(inner.encode_to_vec().as_slice()).unwrap();
    assert_eq!(decoded, inner);
}
