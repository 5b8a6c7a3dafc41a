//! A file that is not written any more: it is saved, or kept for a person, and then forgotten.
//!
//! Invariant: a file is forgotten only while nobody writes it, and only when nothing of it is unsaved, its bytes are kept
//! elsewhere, or it has no name and nobody has it open.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use swarm_proto::InodeNumber;
use swarm_seeder::store::AckLevel;

use super::save::Saved;
use super::{FileSystem, Invalidation, Open, Written};
use crate::errno::{self, Errno};
use crate::write::spool::State;

impl Open {
    /// This one, not what has come in its place since.
    fn forget(&mut self, written: &Arc<Written>) {
        let inode = written.unsaved.inode();
        if self.files.get(&inode).is_some_and(|found| Arc::ptr_eq(found, written)) {
            self.files.remove(&inode);
        }
    }
}

impl FileSystem {
    /// After a handle that writes was closed: what mmap(2) wrote since is saved, then the file is let go.
    pub(in crate::fs) fn leave(self: &Arc<Self>, handle: u64, inode: InodeNumber) {
        let Some(writing) = &self.writing else { return };
        if writing.open.lock().handles.remove(&handle).is_none() {
            return;
        }
        if let Some(written) = writing.find(inode) {
            self.part(written);
        }
    }

    /// One fewer writes it: the last one has it saved and let go.
    pub(super) fn part(self: &Arc<Self>, written: Arc<Written>) {
        if written.unsaved.leave() == 0 && !self.let_go(&written, Saved::Here) {
            self.save_and_let_go(written);
        }
    }

    pub(super) fn save_and_let_go(self: &Arc<Self>, written: Arc<Written>) {
        let this = self.clone();
        self.tasks.spawn(async move {
            loop {
                match this.save(&written, AckLevel::Close).await {
                    Ok(saved) if this.let_go(&written, saved) => return,
                    // Changed since that save began.
                    Ok(_) => {}
                    Err(error) => return this.keep(&written, error).await,
                }
            }
        });
    }

    /// Forget a file that nobody writes any more; false: it is to be saved first.
    pub(super) fn let_go(&self, written: &Arc<Written>, saved: Saved) -> bool {
        let Some(writing) = &self.writing else { return true };
        let mut open = writing.open.lock();
        if written.unsaved.writers() > 0 {
            return true;
        }
        let (nameless, is_dirty) = (saved == Saved::Nameless, written.unsaved.is_dirty());
        written.nameless.store(nameless, Ordering::Relaxed);
        // While the kernel has its data file, whoever opens it anew goes on with that. And who only reads what has no
        // name reads what was written to it last.
        let is_needed = written.unsaved.is_passed() || is_dirty && self.open.opened(written.unsaved.inode()).is_some();
        let done = nameless || !is_dirty;
        if done && !is_needed {
            open.forget(written);
        }
        done
    }

    /// The last handle of a file is closed, and the kernel has nothing of it any more.
    pub(in crate::fs) fn leave_last(self: &Arc<Self>, inode: InodeNumber) {
        let Some(written) = self.written(inode) else { return };
        if written.unsaved.is_passed() {
            self.end_passing(written);
        } else if written.nameless.load(Ordering::Relaxed) {
            self.let_go(&written, Saved::Nameless);
        }
    }

    /// Forget a file whatever of it is unsaved; false: somebody writes it again.
    fn give_up_on(&self, written: &Arc<Written>) -> bool {
        let Some(writing) = &self.writing else { return false };
        let mut open = writing.open.lock();
        let nobody = written.unsaved.writers() == 0;
        if nobody {
            open.forget(written);
        }
        nobody
    }

    /// What could not be saved waits for a person, and the file is again as the swarm has it.
    async fn keep(&self, written: &Arc<Written>, error: Errno) {
        let unsaved = &written.unsaved;
        let _turn = unsaved.saving.lock().await;
        if !self.give_up_on(written) {
            return tracing::warn!(%error, inode = %unsaved.inode(), "a file could not be saved: its writer will try again");
        }
        unsaved.end_passing();
        if !unsaved.is_dirty() {
            // A conflict copy has it, or somebody else saved it.
            return;
        }
        let note = match self.is_ending() {
            // Cut off: the next mount goes on with it.
            true => unsaved.note(State::Saving, None),
            false => unsaved.note(State::Failed, Some(errno::words(error))),
        };
        match (note, unsaved.take_file()) {
            (Some(note), Some(file)) => match file.keep(&note) {
                Ok(()) => tracing::error!(
                    path = note.path,
                    number = note.number,
                    folder = %self.writing.as_ref().map(|w| w.spool.folder().display().to_string()).unwrap_or_default(),
                    %error,
                    "a file could not be saved: its bytes are kept, `swarmfs spool` lists, retries and discards them"
                ),
                Err(failed) => tracing::error!(%error, %failed, "a file could not be saved, nor a note of it be kept"),
            },
            _ => tracing::error!(%error, inode = %unsaved.inode(), "a change of size could not be saved"),
        }
        unsaved.give_all_up();
        self.invalidations.send([Invalidation::Content(unsaved.inode()), Invalidation::Attributes(unsaved.inode())]);
    }
}
