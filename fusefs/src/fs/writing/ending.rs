//! The end of a mount: what is being saved comes to its end, and what is not saved by then is the next mount's.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{FileSystem, Writing, Written};

/// How often it is looked whether all is saved.
const POLL: Duration = Duration::from_millis(20);

impl FileSystem {
    /// The kernel asks for nothing any more: wait for what is being saved. What fails from now on was cut off by the
    /// end of the mount, and the next one goes on with it.
    ///
    /// Cost: ends, as each save does: with its bytes at the seeders, or after a time without progress.
    pub async fn end_saves(&self) {
        self.ending.store(true, Ordering::Release);
        let is_saving = |written: &Written| {
            let unsaved = &written.unsaved;
            // Of what somebody still writes, nobody has asked for a save.
            unsaved.writers() == 0 && unsaved.is_dirty() && !written.nameless.load(Ordering::Relaxed)
        };
        let saves = |writing: &Writing| writing.open.lock().files.values().any(|written| is_saving(written));
        while self.writing.as_ref().is_some_and(saves) {
            tokio::time::sleep(POLL).await;
        }
    }

    pub(super) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }

    /// Say so if files were written, here or in an earlier mount with this spool, that are not saved.
    pub fn tell_of_unsaved(&self) {
        let Some(Writing { spool, .. }) = &self.writing else { return };
        let (folder, files) = (spool.folder().display(), spool.kept().map_or(0, |notes| notes.len()));
        if files > 0 {
            tracing::warn!(files, %folder, "some of what was written is not saved: `swarmfs spool list` shows it");
        }
    }
}
