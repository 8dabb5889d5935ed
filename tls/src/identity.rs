//! Who a certificate says its holder is, within a cluster.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// What a member of a cluster may be, as its certificate says in a URI of its subject alternative names:
/// `gaios://CLUSTER/node/ID` or `gaios://CLUSTER/gateway/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Name of the cluster.
    pub cluster: String,
    /// What it may be in the cluster.
    pub role: Role,
}

/// What the holder of a certificate may be.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The node with this id: it may speak the peer protocol, as itself.
    Node(u32),
    /// A gateway: it may ask what gateways ask.
    Gateway(String),
}

/// Why a URI is not an identity.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("`{0}` is not gaios://CLUSTER/node/ID or gaios://CLUSTER/gateway/NAME")]
pub struct IdentityError(String);

pub(crate) const SCHEME: &str = "gaios://";

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(uri: &str) -> Result<Self, Self::Err> {
        let error = || IdentityError(uri.chars().take(256).collect());
        let parts: Vec<&str> = uri.strip_prefix(SCHEME).ok_or_else(error)?.split('/').collect();
        let [cluster, kind, who] = parts[..] else { return Err(error()) };
        if !is_name(cluster) || !is_name(who) {
            return Err(error());
        }
        let role = match kind {
            "node" => {
                // One way to write each id: no sign, no leading zero.
                let id = who.parse().map_err(|_| error())?;
                if id == 0 || who != u32::to_string(&id) {
                    return Err(error());
                }
                Role::Node(id)
            }
            "gateway" => Role::Gateway(who.to_owned()),
            _ => return Err(error()),
        };
        Ok(Identity { cluster: cluster.to_owned(), role })
    }
}

/// The letters of names in configurations, so that no name needs escapes in a URI.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.role {
            Role::Node(id) => write!(f, "{SCHEME}{}/node/{id}", self.cluster),
            Role::Gateway(name) => write!(f, "{SCHEME}{}/gateway/{name}", self.cluster),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_written_in_one_way() {
        for uri in ["gaios://prod/node/2", "gaios://prod-1.eu/gateway/gw_7", "gaios://x/node/65535"] {
            let identity: Identity = uri.parse().expect(uri);
            assert_eq!(identity.to_string(), uri);
        }
        for uri in [
            "",
            "gaios://",
            "gaios://prod",
            "gaios://prod/node",
            "gaios://prod/node/",
            "gaios://prod/node/0",
            "gaios://prod/node/02",
            "gaios://prod/node/+2",
            "gaios://prod/node/4294967296",
            "gaios://prod/node/2/",
            "gaios:///node/2",
            "gaios://prod/client/2",
            "gaios://prod/gateway/a b",
            "gaios://prod/gateway/a%20b",
            "GAIOS://prod/node/2",
            "https://prod/node/2",
        ] {
            assert!(uri.parse::<Identity>().is_err(), "{uri}");
        }
    }
}
