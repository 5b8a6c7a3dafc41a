//! Telling the kernel the size of a file before it is opened.
//!
//! An answer to `open` carries no attributes, and what reads by the kernel's own idea of the size alone (sendfile(2),
//! copy_file_range(2), a page fault of a map) never asks for them: within an older size it would find the end of the
//! file too early. To an answer of ESTALE the kernel looks the name up again, which tells it, and opens once more. A second
//! ESTALE would come to the program, so whoever got one is answered.

use std::num::NonZeroUsize;

use lru::LruCache;
use parking_lot::Mutex;
use swarm_proto::InodeNumber;

/// Opens at a time that are remembered to have been answered so.
const MOST: NonZeroUsize = NonZeroUsize::new(1_024).expect("not zero");

/// Who was answered ESTALE to an open, and is to come again.
pub(super) struct Retelling(Mutex<LruCache<(InodeNumber, u32), ()>>);

impl Default for Retelling {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(MOST)))
    }
}

impl Retelling {
    /// Whether to answer ESTALE to a thread that opens a file of which the kernel may believe that it has another size.
    ///
    /// Shape: 0 is a thread of which the kernel does not say which: it could not be told from others.
    pub(super) fn begin(&self, inode: InodeNumber, thread: u32) -> bool {
        thread != 0 && self.0.lock().put((inode, thread), ()).is_none()
    }

    /// A thread opens a file; this was its second try, if there was a first.
    pub(super) fn end(&self, inode: InodeNumber, thread: u32) {
        let mut begun = self.0.lock();
        if !begun.is_empty() {
            begun.pop(&(inode, thread));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_sent_back_once_for_an_open() {
        let retelling = Retelling::default();
        let (one, other) = (InodeNumber(1), InodeNumber(2));
        assert!(retelling.begin(one, 7));
        assert!(!retelling.begin(one, 7), "it is back");
        retelling.end(one, 7);
        assert!(retelling.begin(one, 8) && retelling.begin(other, 7) && retelling.begin(one, 7));
        assert!(!retelling.begin(one, 0));
    }
}
