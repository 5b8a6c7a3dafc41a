//! A file under way that the kernel writes by itself: its data file is the file, and nobody here is told of a write.
//!
//! Not here: whether times tell of every write (`spool::print`), and what the kernel does. Invariants while a file is
//! passed: its data file has all of it and stays the same one; no piece is of the base; whoever looks at the pieces has
//! looked at the data file first.

use std::fs::File;
use std::io;
use std::sync::Arc;

use parking_lot::MutexGuard;
use rustix::fs::SeekFrom;
use swarm_proto::ByteRange;

use super::early::WASTED_MOST;
use super::{Base, Early, Inner, Unsaved};
use crate::write::spool::{Print, SpoolFile};

/// Segments that are given at a time to be sent early: 2.5 GiB a second, if they are looked for ten times in one.
const FILLED_MOST: usize = 64;

/// What is remembered of a file while it is passed.
pub(super) struct Passed {
    /// How the data file looked when the pieces were last told of it.
    pub(super) print: Print,
    /// How it looked before whoever saves it waited for the writes that were under way.
    waited: Option<Print>,
    /// A program may have mapped it to write to it, of which no time tells.
    mapped: bool,
    /// What another mount has saved since: what is written here from now on goes to a conflict copy.
    outdated: Option<Base>,
    /// Segments that end up to here were sent before anybody asked.
    sent: u64,
}

/// Whether a file became one that the kernel writes by itself.
pub enum Pass<T> {
    /// It did.
    Done(T),
    /// Not now: something of it is unsaved, or the spool has no room.
    NotNow,
    /// The kernel refused.
    Refused(io::Error),
}

impl Unsaved {
    /// All that the kernel wrote by itself is in the pieces of what this returns.
    pub(super) fn locked(&self) -> MutexGuard<'_, Inner> {
        let mut inner = self.inner.lock();
        inner.absorb();
        inner
    }

    /// Have the kernel write it by itself; it is empty then.
    ///
    /// Shape: `back` gives the data file to the kernel.
    pub fn pass<T>(&self, now_ns: i64, back: impl FnOnce(&File) -> io::Result<T>) -> Pass<T> {
        let mut inner = self.inner.lock();
        if inner.passed.is_some() || inner.is_dirty() {
            return Pass::NotNow;
        }
        let size = inner.pieces.size();
        if size > 0 {
            let stamp = inner.change(now_ns);
            inner.put(ByteRange::at(0, size), |pieces| pieces.resize(0, stamp));
        }
        // Before the note of its beginning: it says so.
        inner.whole = true;
        let file = match self.file_of(&mut inner).and_then(empty) {
            Ok(file) => file,
            Err(error) => {
                tracing::debug!(%error, "begin a file of the spool for the kernel to write");
                return Pass::NotNow;
            }
        };
        let backing = match back(file.file()) {
            Ok(backing) => backing,
            Err(error) => return Pass::Refused(error),
        };
        let Ok((print, _)) = file.print() else { return Pass::NotNow };
        inner.passed = Some(Passed { print, waited: None, mapped: false, outdated: None, sent: 0 });
        inner.moves += 1;
        if let Err(error) = self.begun(&mut inner, &file) {
            tracing::warn!(%error, "write the journal of the spool");
        }
        Pass::Done(backing)
    }

    /// Whether the kernel writes it by itself.
    pub fn is_passed(&self) -> bool {
        self.inner.lock().passed.is_some()
    }

    /// Whether the kernel writes it by itself, over the version that is current.
    pub fn is_passed_on(&self) -> bool {
        self.inner.lock().passed.as_ref().is_some_and(|passed| passed.outdated.is_none())
    }

    /// A handle that may be mapped to write has joined: from now on it may change at any time.
    pub fn may_be_mapped(&self) {
        if let Some(passed) = &mut self.inner.lock().passed {
            passed.mapped = true;
        }
    }

    /// Whether what this mount has of it is saved, and older than what another mount has saved since.
    pub fn is_outdated(&self) -> bool {
        let inner = self.locked();
        inner.passed.as_ref().is_some_and(|passed| passed.outdated.is_some()) && !inner.is_dirty()
    }

    /// The kernel has nothing of it any more.
    pub fn end_passing(&self) {
        let mut inner = self.locked();
        if inner.passed.as_ref().is_some_and(|passed| passed.mapped) {
            inner.change_all();
        }
        let Some(passed) = inner.passed.take() else { return };
        // Sent on trust.
        inner.early.clear();
        match (inner.is_dirty(), passed.outdated) {
            // The next writer goes on from what another mount has saved.
            (false, Some(base)) => inner.restart(base),
            (false, None) => self.tell_anew(&mut inner),
            (true, _) => {}
        }
    }

    /// The data file, if what is saved next has to wait for what others write to it now; see [`Self::begin_save`].
    pub fn waits(&self) -> Option<Arc<SpoolFile>> {
        let mut inner = self.locked();
        let is_dirty = inner.is_dirty();
        let passed = inner.passed.as_mut()?;
        passed.waited = Some(passed.print);
        (is_dirty || passed.mapped).then(|| inner.file.clone()).flatten()
    }

    /// Segments that the kernel has filled and seems to be done with, and what has their bytes. Blocks.
    ///
    /// Shape: each is given once; none that is a hole; more may be left.
    pub fn filled(&self) -> Option<(Arc<SpoolFile>, Vec<ByteRange>)> {
        let segment = self.segment_bytes;
        let (file, mut at, end) = {
            let inner = self.locked();
            let passed = inner.passed.as_ref().filter(|passed| passed.outdated.is_none())?;
            let file = inner.file.clone().filter(|_| inner.wasted < WASTED_MOST)?;
            // Of the last whole one too little lies behind it.
            (file, passed.sent, (inner.pieces.size() / segment).saturating_sub(1) * segment)
        };
        let mut windows = Vec::new();
        while at < end && windows.len() < FILLED_MOST {
            let Some(data) = file.next(SeekFrom::Data(at)).ok()? else { break };
            let window = ByteRange::at(data / segment * segment, segment);
            at = window.end.min(end);
            windows.extend((window.end <= end).then_some(window));
        }
        if let Some(passed) = &mut self.inner.lock().passed {
            passed.sent = at;
        }
        Some((file, windows))
    }

    /// A segment that is sent though it may change: it is held for whoever saves the file.
    pub fn sends_on_trust(&self, range: ByteRange, early: Early) {
        let mut inner = self.inner.lock();
        if inner.passed.is_some() {
            inner.early.insert(range.start, early);
        }
    }

    /// So many segments that were sent early are not of the file.
    pub fn was_wasted(&self, segments: u32) {
        self.inner.lock().wasted += segments;
    }

    /// Another mount has saved it; what nobody here writes begins anew.
    pub(super) fn outdate(&self, inner: &mut Inner, base: &Base) {
        match &mut inner.passed {
            Some(passed) => passed.outdated = Some(base.clone()),
            None => inner.restart(base.clone()),
        }
    }

    /// Somebody opens it to write at this version, and nobody else writes it: if it is outdated, the kernel's file is left
    /// to those who read it.
    pub fn leave_outdated(&self, base: &Base) {
        let mut inner = self.locked();
        if inner.passed.is_some() && inner.writers <= 1 && !inner.is_dirty() && inner.base.version < base.version {
            inner.restart(base.clone());
        }
    }

    /// The data file, while the kernel writes it by itself.
    pub fn passed_file(&self) -> Option<Arc<SpoolFile>> {
        let inner = self.inner.lock();
        inner.file.clone().filter(|_| inner.passed.is_some())
    }
}

impl Inner {
    /// Tell the pieces of what the kernel wrote.
    fn absorb(&mut self) {
        if let (Some(passed), Some(file)) = (&self.passed, &self.file)
            && let Ok((print, allocated)) = file.print()
            && print != passed.print
        {
            self.take(print, allocated);
        }
    }

    /// The data file looks like this now: all of it is as if written anew.
    fn take(&mut self, print: Print, allocated: u64) {
        let Some(passed) = &mut self.passed else { return };
        passed.print = print;
        passed.sent = passed.sent.min(print.size);
        let stamp = self.change(print.modified_ns);
        self.not_appended = Some(stamp);
        self.pieces.resize(print.size, stamp);
        self.pieces.write(ByteRange::at(0, print.size), stamp);
        self.allocated = Some(allocated);
    }

    /// This process has changed the data file of one that is passed.
    pub(super) fn took(&mut self) -> io::Result<()> {
        if let Some(file) = &self.file {
            let (print, allocated) = file.print()?;
            self.take(print, allocated);
        }
        Ok(())
    }

    /// All of it is as if written anew, when it was.
    fn change_all(&mut self) {
        let Some(print) = self.passed.as_ref().map(|passed| passed.print) else { return };
        let times = (self.modified_ns, self.changed_ns);
        let allocated = self.allocated.unwrap_or_default();
        self.take(print, allocated);
        self.modified_ns = times.0.or(self.modified_ns);
        self.changed_ns = times.1.or(self.changed_ns);
    }

    /// As [`Self::absorb`], for a save: what it begins with is all there, or will be saved once more.
    ///
    /// Shape: true: the pieces are to be changed once more behind the save.
    pub(super) fn absorb_to_save(&mut self) -> bool {
        let (Some(passed), Some(file)) = (&mut self.passed, &self.file) else { return false };
        let Ok((now, allocated)) = file.print() else { return false };
        let (print, mapped) = (passed.print, passed.mapped);
        let waited = passed.waited.take() == Some(print);
        match waited {
            // The bytes of the time that was seen before are there, and with them the size. What has a later time may
            // not be: the next look sees it.
            true if now.size != print.size => self.take(Print { size: now.size, ..print }, allocated),
            true => {}
            false if now != print => self.take(now, allocated),
            false => {}
        }
        if mapped {
            self.change_all();
        }
        !waited
    }

    /// What is being saved may lack bytes of a write that was seen.
    pub(super) fn change_behind(&mut self) {
        self.change_all();
    }

    /// How the data file looks if all that it has is saved.
    pub(super) fn print_if_saved(&self) -> Option<Print> {
        self.passed.as_ref().filter(|_| !self.is_dirty()).map(|passed| passed.print)
    }
}

/// A data file of which nothing is needed any more.
///
/// Not cut if it is empty: ext4 writes a file that was ever cut to nothing to the disk whenever it is closed.
fn empty(file: Arc<SpoolFile>) -> io::Result<Arc<SpoolFile>> {
    if file.print()?.0.size > 0 {
        file.cut(0)?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests;
