//! **PURE.** Files that may be opened without a question, because the tracker acknowledges no change of
//! them before a moment that is still to come.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Instant;

use lru::LruCache;
use swarm_proto::InodeNumber;

use crate::fs::node::Node;

/// Files at a time: some walks.
const MOST: NonZeroUsize = NonZeroUsize::new(4 * 1024).expect("not zero");

/// See the module.
pub(super) struct Leases {
    files: LruCache<InodeNumber, (Arc<Node>, Instant)>,
}

impl Leases {
    pub(super) fn new() -> Self {
        Self { files: LruCache::new(MOST) }
    }

    pub(super) fn keep(&mut self, node: Arc<Node>, until: Instant) {
        self.files.put(node.inode, (node, until));
    }

    pub(super) fn find(&self, inode: InodeNumber, now: Instant) -> Option<Arc<Node>> {
        self.files.peek(&inode).filter(|(_, until)| now < *until).map(|(node, _)| node.clone())
    }

    pub(super) fn forget(&mut self, inode: InodeNumber) {
        self.files.pop(&inode);
    }

    /// A newer version of it is known.
    pub(super) fn forget_older(&mut self, than: &Node) {
        if self.files.peek(&than.inode).is_some_and(|(node, _)| node.version < than.version) {
            self.forget(than.inode);
        }
    }

    pub(super) fn forget_all(&mut self) {
        self.files.clear();
    }
}
