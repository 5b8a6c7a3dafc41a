//! Bytes of the spool that go to other offsets: into another file, so that a kill in between finds one that is whole.
//!
//! Invariant: at each moment one file, and one place, tells the next process of the bytes: the journal of the old one, or the
//! journal of the new one, in which they all are then.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use swarm_proto::ByteRange;

use super::journal::Event;
use super::{Note, SpoolFile, note};

impl SpoolFile {
    /// Another file with these bytes at other offsets; each range with where it begins there. It goes when it is dropped,
    /// and with this process, unless it [`takes over`](Self::give_way).
    ///
    /// Errors: `StorageFull` if there is no room for both.
    pub fn copy_moved(&self, ranges: impl Iterator<Item = (ByteRange, u64)>) -> io::Result<SpoolFile> {
        const STEP: u64 = 4 << 20;
        let copy = self.spool.fresh()?;
        self.spool.journal.tell(Event::Spare(copy.number))?;
        for (from, to) in ranges {
            let mut done = 0;
            while done < from.len() {
                let length = STEP.min(from.len() - done);
                copy.check_room(length)?;
                copy.write(to + done, &self.read(ByteRange::at(from.start + done, length))?)?;
                done += length;
            }
        }
        Ok(copy)
    }

    /// From now on another file has what is unsaved of this one, as `note` tells; this one goes when nobody reads it.
    ///
    /// Shape: what a note of its own told of it, `before` tells the journal first.
    pub fn give_way(&self, other: &Arc<SpoolFile>, before: Note, note: Note) -> io::Result<()> {
        if self.noted.load(Ordering::Relaxed) {
            self.spool.journal.tell(Event::Saving(before))?;
            note::remove_note(&self.spool.folder, self.number)?;
            self.noted.store(false, Ordering::Relaxed);
        }
        self.spool.journal.tell(Event::Moved(self.number, note))?;
        other.kept.store(self.kept.swap(false, Ordering::Relaxed), Ordering::Relaxed);
        // It is asked for by those who hold this one.
        let _ = self.successor.set(other.clone());
        Ok(())
    }

    /// The file that has its bytes now: itself, or one that it gave way to.
    pub fn latest(self: &Arc<Self>) -> Arc<Self> {
        let mut latest = self;
        while let Some(next) = latest.successor.get() {
            latest = next;
        }
        latest.clone()
    }
}
