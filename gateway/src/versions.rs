//! What clients are told that they speak with.

/// The version of etcd whose behaviour this is: `Status.version`, `/version`, `etcd_server_version`. Clients ask for
/// features by it (Kubernetes wants 3.5.13 or above for progress requests).
pub const ADVERTISED_VERSION: &str = "3.6.8";
/// The cluster version, `major.minor.0`.
pub const ADVERTISED_CLUSTER_VERSION: &str = "3.6.0";
/// The version of the storage's layout, as of 3.6.
pub const ADVERTISED_STORAGE_VERSION: &str = "3.6.0";
