//! The wire: etcd v3's gRPC services, the health protocol and our own link protocol, generated at build time from the
//! `.proto` files in `proto/`.
//!
//! Modules are the protobuf packages; each holds the messages, and per service a `…_client` and a `…_server` module.
//! Every `bytes` field is a [`bytes::Bytes`], a slice of the buffer the message was decoded from: decoding copies no
//! key and no value, and a kept field keeps that buffer alive.
//!
//! This crate has no behaviour. What a field means is told in the `.proto` files, in a few words; etcd's documentation
//! has more.

/// A module for the generated code of one package; that code is neither documented nor formatted by us.
macro_rules! package {
    ($(#[$doc:meta])* $name:ident = $package:literal) => {
        $(#[$doc])*
        #[allow(missing_docs, unreachable_pub, clippy::all, clippy::wildcard_enum_match_arm, rustdoc::all)]
        pub mod $name {
            include!(concat!(env!("OUT_DIR"), "/", $package, ".rs"));
        }
    };
}

#[cfg(feature = "grpc")]
package! {
    /// Users, roles and permissions.
    authpb = "authpb"
}
#[cfg(feature = "grpc")]
package! {
    /// The services KV, Watch, Lease, Cluster, Maintenance and Auth, as of etcd 3.7.
    etcdserverpb = "etcdserverpb"
}
#[cfg(feature = "grpc")]
package! {
    /// Keys with their values and events.
    mvccpb = "mvccpb"
}
#[cfg(feature = "grpc")]
package! {
    /// The Election service.
    v3electionpb = "v3electionpb"
}
#[cfg(feature = "grpc")]
package! {
    /// The Lock service.
    v3lockpb = "v3lockpb"
}

/// Packages of gRPC itself. The nesting follows the package name, as generated references between packages do.
#[cfg(feature = "grpc")]
pub mod grpc {
    /// Health checking.
    pub mod health {
        package! {
            /// The Health service.
            v1 = "grpc.health.v1"
        }
    }
}

/// Packages of our own.
pub mod gaios {
    /// Between gateways and nodes.
    pub mod link {
        /// The newest version of the protocol, of which both sides speak the lower one. Since version 3, commands have
        /// envelopes and name their shards; since version 4, requests can be taken back, and what is large comes in parts.
        pub const VERSION: u32 = 4;
        /// The oldest version that is still spoken; who speaks an older one only is refused.
        pub const VERSION_LEAST: u32 = 4;
        /// The longest body of a `Hello`, in bytes: what a node reads of somebody whom it does not know yet.
        pub const HELLO_BYTES_MAX: usize = 4 << 10;
        /// The longest body of a `Welcome`, in bytes; the shard map takes most of it.
        pub const WELCOME_BYTES_MAX: usize = 64 << 10;
        /// The longest body of a `GatewayFrame`, in bytes: one request above the limit of a batch, and headers.
        pub const GATEWAY_FRAME_BYTES_MAX: usize = 64 << 20;
        /// The longest body of a `NodeFrame`, in bytes. Replies come in parts, and what else there is to say is gathered up to a
        /// megabyte; one event of a watch may follow that, with what was there before it: twice the longest request that can be
        /// configured. Readers take memory as announced.
        pub const NODE_FRAME_BYTES_MAX: usize = 40 << 20;
        /// The longest `reply`, in bytes, with all its parts. etcd answers with up to 2 GiB, most of which no client takes.
        pub const REPLY_BYTES_MAX: usize = 512 << 20;
        /// The most bytes of a reply in one `ReplyPart`: whatever is small waits for no more than one of them.
        pub const PART_BYTES_MAX: usize = 256 << 10;
        /// So many replies in parts may be under way on one link.
        pub const PARTED_REPLIES_MAX: usize = 8;
        /// The bytes of all replies in parts that are under way on one link, the longest excepted.
        pub const PARTED_BYTES_MAX: usize = 64 << 20;

        package! {
            /// The messages of the link protocol; their framing is told at the head of `link.proto`.
            v1 = "gaios.link.v1"
        }
    }
}

/// The descriptors of every file in `proto/`, as an encoded `google.protobuf.FileDescriptorSet`: for reflection and
/// the JSON mapping. Field names here are etcd's own, which in a few cases (`peerURLs`) differ from the Rust ones.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
