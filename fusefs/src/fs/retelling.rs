//! Telling the kernel what is new of a file before it is opened: its size, and what its names lead to.
//!
//! An answer to `open` carries no attributes, and what reads by the kernel's own idea of the size alone (sendfile(2),
//! copy_file_range(2), a page fault of a map) never asks for them: within an older size it would find the end of the
//! file too early. And a name that another mount replaced or removed a moment ago still leads to the file that it
//! named, which lives on where it is open, or has other names. To an answer of ESTALE the kernel looks the name up
//! again, which tells it, and opens once more. A second ESTALE would come to the program, so whoever got one is answered.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::Mutex;
use swarm_proto::InodeNumber;

use super::FileSystem;
use super::known::{Ticket, Trust};
use super::node::Node;
use super::open_files::Opened;
use crate::errno::Errno;

/// Opens at a time that are remembered to have been answered so.
const MOST: NonZeroUsize = NonZeroUsize::new(1_024).expect("not zero");

/// An open, and what was so before it.
pub(super) struct Opening {
    inode: InodeNumber,
    thread: u32,
    /// As the kernel was told of it last, as far as that is known.
    shown: Option<Arc<Node>>,
    ticket: Ticket,
}

impl FileSystem {
    /// A thread opens an inode; 0 if the kernel does not say which thread.
    pub(super) fn begin_open(&self, inode: InodeNumber, thread: u32) -> Opening {
        let shown = self.known.lock().node(inode, Instant::now()).map(|(node, _)| node);
        Opening { inode, thread, shown, ticket: self.ticket() }
    }

    /// Have the kernel forget what it was told of an inode, if it was opened as another.
    ///
    /// Before the caller goes on, so that it never reads the new bytes within the old size.
    ///
    /// Errors: [`Errno::STALE`] if the kernel is to look the name up again first.
    pub(super) fn end_open(
        self: &Arc<Self>,
        opening: Opening,
        opened: Opened,
        node: &Arc<Node>,
    ) -> Result<Opened, Errno> {
        let Opening { inode, thread, shown, ticket } = opening;
        let (untold, renamed) = {
            let mut known = self.known.lock();
            (known.take_untold(inode) || opened.attributes_changed, known.take_renamed(inode))
        };
        let changed = shown.is_none_or(|shown| shown != *node);
        if changed || untold {
            self.forget_attributes_now(inode);
        }
        let now = Instant::now();
        let is_older = |known: Option<(Arc<Node>, Trust)>| known.is_none_or(|(known, _)| known.version < node.version);
        if changed || renamed {
            // Whatever it is that changed, names of it may have: which lead to it is asked for anew.
            self.known.lock().ask_anew(inode);
        } else if untold && is_older(self.known.lock().node(inode, now)) {
            // It was opened by a lease, which the kernel is told nothing of: it is, when it asks now.
            self.learn(|known| known.learn_node(ticket, node.clone(), now));
        }
        if (changed || renamed || untold) && self.retelling.begin(inode, thread) {
            self.take_back(&opened);
            return Err(Errno::STALE);
        }
        self.retelling.end(inode, thread);
        Ok(opened)
    }
}

/// How long who was sent back may take to come again; who comes later has found something else in between.
const COMES_WITHIN: Duration = Duration::from_secs(60);

/// Who was answered ESTALE to an open, and when.
pub(super) struct Retelling(Mutex<LruCache<(InodeNumber, u32), Instant>>);

impl Default for Retelling {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(MOST)))
    }
}

impl Retelling {
    /// Whether to answer ESTALE to a thread that opens a file, or links to it, of which the kernel knows less than we do.
    ///
    /// Shape: 0 is a thread of which the kernel does not say which: it could not be told from others.
    pub(super) fn begin(&self, inode: InodeNumber, thread: u32) -> bool {
        let last = || self.0.lock().put((inode, thread), Instant::now());
        thread != 0 && last().is_none_or(|last| last.elapsed() > COMES_WITHIN)
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
