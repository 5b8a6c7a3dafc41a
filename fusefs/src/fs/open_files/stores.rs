//! Stores that go into a file of the cache, because the kernel reads it by itself.
//!
//! While it does so it maps nothing else for the other handles of the inode either, and the daemon sees nothing of what is
//! stored into such a map; only the time of the file's last write tells. The kernel sets that before a page can be stored
//! into by a map for the first time, but not again for the same map: so a handle that was open then may have stored since.

use std::fs::File;
use std::sync::Arc;
use std::time::SystemTime;

use swarm_proto::InodeNumber;

use super::{How, Inner, OpenFiles};

/// A file of the cache that the kernel reads by itself.
pub(super) struct Whole {
    file: Arc<File>,
    /// When it was last written, as far as was looked.
    modified: Option<SystemTime>,
    /// It was, since the kernel has it.
    stored_to: bool,
    /// Whether nobody was told of that yet.
    untold: bool,
}

impl Whole {
    pub(super) fn new(file: Arc<File>) -> Self {
        let modified = modified(&file);
        Self { file, modified, stored_to: false, untold: false }
    }

    /// Whether it was written since this was asked last.
    fn was_stored_to_again(&mut self) -> bool {
        let modified = modified(&self.file);
        let again = modified != self.modified;
        self.modified = modified;
        self.untold |= again && !self.stored_to;
        self.stored_to |= again;
        again
    }
}

fn modified(file: &File) -> Option<SystemTime> {
    file.metadata().ok()?.modified().ok()
}

impl OpenFiles {
    /// Whether what was stored by a map of this handle may be in the cache's file instead.
    pub fn may_have_stored(&self, handle: u64) -> bool {
        let mut inner = self.inner.lock();
        let Some(inode) = inner.handles.get(&handle).map(|open| open.inode) else { return false };
        inner.look_for_stores(inode);
        inner.handles.get(&handle).is_some_and(|open| open.may_have_stored)
    }

    /// Whether somebody stored into the cache's file of an inode, and this was not asked since.
    pub fn take_untold_stores(&self, inode: InodeNumber) -> bool {
        let mut inner = self.inner.lock();
        inner.look_for_stores(inode);
        let whole = inner.inodes.get_mut(&inode).and_then(|entry| entry.passthrough.as_mut()?.whole.as_mut());
        whole.is_some_and(|whole| std::mem::take(&mut whole.untold))
    }
}

impl Inner {
    /// Whether the file of the cache that the kernel reads for this inode was stored to.
    ///
    /// Cost: one fstat(2) if there is one; all handles are looked through if it was stored to anew.
    pub(super) fn look_for_stores(&mut self, inode: InodeNumber) -> bool {
        let whole = self.inodes.get_mut(&inode).and_then(|entry| entry.passthrough.as_mut()?.whole.as_mut());
        let Some(whole) = whole else { return false };
        let stored_to_again = whole.was_stored_to_again();
        let stored_to = whole.stored_to;
        if stored_to_again {
            let others = |open: &&mut super::Handle| open.inode == inode && matches!(open.how, How::Direct);
            self.handles.values_mut().filter(others).for_each(|open| open.may_have_stored = true);
        }
        stored_to
    }
}
