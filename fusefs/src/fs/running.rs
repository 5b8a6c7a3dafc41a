//! The programs that run from files of the mount.
//!
//! The kernel itself refuses to open one for writing, but where a mount cuts a file as it opens it, it notices too late
//! that a handle which only reads is to cut one.

use std::collections::HashMap;

use parking_lot::Mutex;
use swarm_proto::InodeNumber;

/// Handles that the kernel holds while a program runs.
#[derive(Default)]
pub(super) struct Running(Mutex<HashMap<u64, InodeNumber>>);

impl Running {
    /// A program was started through this handle.
    pub(super) fn begin(&self, handle: u64, inode: InodeNumber) {
        self.0.lock().insert(handle, inode);
    }

    /// A handle was closed.
    pub(super) fn end(&self, handle: u64) {
        self.0.lock().remove(&handle);
    }

    /// Whether a program runs from this file.
    pub(super) fn has(&self, inode: InodeNumber) -> bool {
        self.0.lock().values().any(|run| *run == inode)
    }
}
