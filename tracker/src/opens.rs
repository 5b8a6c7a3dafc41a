//! Which files somebody has open: the seam between mounts and the catalog, which keeps a file that has lost its last name
//! until nobody has it open.

use swarm_proto::InodeNumber;

/// Knows what mounts have open.
pub trait OpenSource: Send + Sync + 'static {
    /// Of each inode, whether a mount that is not given up has it open, or may have; must not block.
    fn are_open(&self, inodes: &[InodeNumber]) -> Vec<bool>;
}

/// Nobody opens anything: for a catalog alone.
impl OpenSource for () {
    fn are_open(&self, inodes: &[InodeNumber]) -> Vec<bool> {
        vec![false; inodes.len()]
    }
}
