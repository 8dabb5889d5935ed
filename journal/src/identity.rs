//! Whose files these are.

use std::fmt;

/// Whose journal this is. Written into every segment and mixed into every checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster: u64,
    /// The node.
    pub node: u64,
    /// A random number drawn once when the node's superblock is made, and told to nobody: it keeps bytes chosen by
    /// a client from ever passing as a batch when recovery searches damaged ground.
    pub salt: u64,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {} of cluster {:016x}", self.node, self.cluster)
    }
}
