//! **PURE.** What changed lately, to judge answers that were on their way meanwhile.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use swarm_proto::{InodeNumber, Revision};

/// Changes that are remembered.
pub(super) const CHANGES_REMEMBERED: usize = 16 * 1024;

/// The newest change of each thing that changed lately.
#[derive(Default)]
pub(super) struct RecentChanges {
    newest: HashMap<(InodeNumber, Bytes), Revision>,
    order: VecDeque<(Revision, InodeNumber, Bytes)>,
    /// Changes up to this revision are forgotten.
    floor: Revision,
}

impl RecentChanges {
    /// An inode changed (the name is empty), or a name of a directory did. A change of ours is noted when it is
    /// answered and when it is pushed, in either order.
    pub(super) fn note(&mut self, revision: Revision, inode: InodeNumber, name: Bytes) {
        let newest = self.newest.entry((inode, name.clone())).or_default();
        if *newest >= revision && *newest != Revision::default() {
            return;
        }
        *newest = revision;
        self.order.push_back((revision, inode, name));
        if self.order.len() > CHANGES_REMEMBERED
            && let Some((revision, inode, name)) = self.order.pop_front()
        {
            self.floor = self.floor.max(revision);
            let key = (inode, name);
            if self.newest.get(&key) == Some(&revision) {
                self.newest.remove(&key);
            }
        }
    }

    /// Whether an answer from this revision may be from before a change.
    pub(super) fn may_be_missed(&self, answered_from: Revision, inode: InodeNumber, name: &[u8]) -> bool {
        let changed = self.newest.get(&(inode, Bytes::copy_from_slice(name)));
        changed.map_or(answered_from < self.floor, |changed| *changed > answered_from)
    }
}
