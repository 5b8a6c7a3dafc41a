//! Files that the kernel writes into the spool by itself, where a mount is told to have it so.
//!
//! Not here: what is made of what it wrote (`write::unsaved::passed`), and which handles of an inode may be passed beside
//! each other (`open_files`).

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio_util::sync::CancellationToken;

use super::{FileSystem, Saved, Writing, Written, now_ns};
use crate::fs::open_files::Backing;
use crate::write::Spool;
use crate::write::unsaved::Pass;

/// How often files that the kernel writes are looked at, for segments that may be sent before they are closed.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What a handle that writes may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writer {
    /// Only write, and find its bytes in no cache but the kernel's: it may be passed through.
    Plain,
    /// Read as well, and so be mapped.
    Reads,
    /// Write past the cache, or through to the disk.
    Uncached,
}

impl Writing {
    /// Where what is written lies.
    pub fn spool(&self) -> &Arc<Spool> {
        &self.spool
    }
}

impl Written {
    /// Whether the kernel writes it, and who opens it now is to see that.
    pub(in crate::fs) fn is_passed_on(&self) -> bool {
        self.unsaved.is_passed_on()
    }

    /// Have the kernel write it; none: not now.
    pub(super) fn pass(&self, back: impl FnOnce(&File) -> io::Result<Backing>) -> Option<io::Result<Backing>> {
        match self.unsaved.pass(now_ns(), back) {
            Pass::Done(backing) => Some(Ok(backing)),
            Pass::Refused(error) => Some(Err(error)),
            Pass::NotNow => None,
        }
    }
}

impl FileSystem {
    /// Why the kernel writes no files of the spool by itself; none while it does.
    pub fn no_passed_writes(&self) -> Option<String> {
        self.open.no_passed_writes()
    }

    /// The kernel has nothing of a file any more: what it wrote last is saved, if nobody here has it open.
    pub(super) fn end_passing(self: &Arc<Self>, written: Arc<Written>) {
        written.unsaved.end_passing();
        if written.unsaved.writers() == 0 && !self.let_go(&written, Saved::Here) {
            self.save_and_let_go(written);
        }
    }

    /// Send what the kernel has written and seems to be done with, until `stop`. One such task runs for a mount.
    pub async fn send_passed(self: Arc<Self>, stop: CancellationToken) {
        let Some(writing) = &self.writing else { return };
        while tokio::time::timeout(LOOK_EVERY, stop.cancelled()).await.is_err() {
            let files: Vec<Arc<Written>> = writing.open.lock().files.values().cloned().collect();
            for written in files.into_iter().filter(|written| written.unsaved.is_passed()) {
                self.send_filled(writing, written).await;
            }
        }
    }

    async fn send_filled(&self, writing: &Writing, written: Arc<Written>) {
        let looked = written.clone();
        let filled = tokio::task::spawn_blocking(move || looked.unsaved.filled()).await;
        let Some((file, windows)) = filled.ok().flatten() else { return };
        for window in windows {
            let (outbox, file) = (writing.outbox.clone(), file.clone());
            let sending = async move { outbox.send(file.file().clone(), window).await.ok().map(Arc::new) };
            let sending = self.tasks.spawn(sending);
            written.unsaved.sends_on_trust(window, async move { sending.await.ok().flatten() }.boxed().shared());
        }
    }
}
