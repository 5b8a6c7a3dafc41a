//! What the kernel must forget, on its way to the thread that tells it.
//!
//! No reply ever waits for that thread: telling the kernel to forget a name takes the lock of its
//! directory, which a lookup that waits for our reply holds.

use std::sync::mpsc;

use bytes::Bytes;
use swarm_proto::InodeNumber;

/// Something that the kernel must forget.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Invalidation {
    /// A name in a directory, also that there is none.
    Name(InodeNumber, Bytes),
    /// The attributes of an inode. Its pages stay: `open` decides whether they are still good.
    Attributes(InodeNumber),
    /// Attributes and pages of an inode: its bytes are others than the kernel has.
    Content(InodeNumber),
}

/// Where invalidations go; clones share it.
#[derive(Clone)]
pub struct Invalidations(mpsc::Sender<Invalidation>);

impl Invalidations {
    /// The queue and its end, at which one thread tells the kernel.
    pub fn new() -> (Self, mpsc::Receiver<Invalidation>) {
        let (sender, receiver) = mpsc::channel();
        (Self(sender), receiver)
    }

    /// Have the kernel forget these; never waits.
    pub fn send(&self, all: impl IntoIterator<Item = Invalidation>) {
        for one in all {
            // The receiver is gone only when the mount is, and the kernel's caches with it.
            drop(self.0.send(one));
        }
    }
}
