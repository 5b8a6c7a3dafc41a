//! Another base below what is unsaved: somebody else saved the file, or this mount's version went elsewhere.
//!
//! Not the decision which of them wins. Invariant: afterwards the data file holds no byte that the pieces do not have
//! there, so that it tells the next process what is unsaved.

use std::io;
use std::sync::Arc;

use swarm_proto::ByteRange;

use super::telling::Told;
use super::{Base, Inner, Unsaved};
use crate::write::pieces::{Pieces, Source, Stamp};
use crate::write::spool::State;

/// Whether what is unsaved was put behind another base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rebased {
    /// It was.
    Done,
    /// It was not: not all of it was appended.
    NotAppended,
}

impl Unsaved {
    /// The base is another now, and nothing of this mount differs from it.
    ///
    /// Shape: false: something is unsaved, and nothing was done.
    pub fn meet(&self, base: &Base) -> bool {
        let mut inner = self.locked();
        if inner.is_dirty() {
            return false;
        }
        // An answer may be older than what was saved since it was asked for.
        if inner.base.version < base.version {
            self.outdate(&mut inner, base);
        }
        true
    }

    /// The base was replaced on purpose: what is unsaved lies over the new one.
    pub fn replaced(&self, base: Base) {
        let mut inner = self.locked();
        let pieces = inner.pieces.over_base(base.manifest.size());
        inner.stand_on(base, pieces);
        inner.clear_spool();
        self.tell_anew(&mut inner);
    }

    /// What was unsaved at `stamp` is given up, as another file has it: this one is `base`, with what was written since.
    pub fn give_up(&self, stamp: Stamp, base: Base) {
        let mut inner = self.locked();
        inner.pieces.settle(stamp);
        if inner.passed.is_some() {
            // The kernel goes on with the data file: what it writes is not over the other version, and never replaces it.
            inner.timed = inner.timed.filter(|at| *at > stamp);
            self.outdate(&mut inner, &base);
            inner.early.clear();
            return self.tell_anew(&mut inner);
        }
        if !inner.pieces.is_dirty() {
            return inner.restart(base);
        }
        let pieces = inner.pieces.over_base(base.manifest.size());
        inner.stand_on(base, pieces);
        inner.early.clear();
        inner.clear_spool();
        self.tell_anew(&mut inner);
    }

    /// All that is unsaved is given up; whoever calls this has kept it elsewhere.
    pub fn give_all_up(&self) {
        let mut inner = self.locked();
        let base = inner.base.clone();
        inner.restart(base);
    }

    /// Put what was appended behind another base; nothing is done if something else was written meanwhile.
    ///
    /// Errors: of the spool's disk; nothing is done then.
    pub fn rebase(&self, base: Base) -> io::Result<Rebased> {
        let mut inner = self.locked();
        if !inner.is_appended() {
            return Ok(Rebased::NotAppended);
        }
        let (old, new) = (inner.base.manifest.size(), base.manifest.size());
        inner.stamp += 1;
        let pieces = inner.pieces.moved(old, new, inner.stamp);
        let Some(file) = inner.file.clone() else {
            inner.stand_on(base, pieces);
            inner.early.clear();
            inner.moves += 1;
            return Ok(Rebased::Done);
        };
        // Not within the file: a kill in between would leave it with bytes of which nobody tells where they are.
        let in_spool = pieces.over(ByteRange::at(0, pieces.size())).filter(|(_, source)| *source == Source::Spool);
        let moved =
            file.copy_moved(in_spool.map(|(to, _)| (ByteRange::at(to.start - new + old, to.len()), to.start)))?;
        moved.stretch(pieces.size())?;
        let moved = Arc::new(moved);
        let before = self.note_of(&inner, State::Saving, inner.trouble.clone());
        let was = (inner.base.clone(), inner.pieces.clone(), inner.whole);
        inner.stand_on(base, pieces);
        inner.file = Some(moved.clone());
        // Whoever calls this saves it, and goes on with all of it.
        let told = self.note_of(&inner, State::Saving, inner.trouble.clone()).zip(before);
        let told = told.ok_or(io::ErrorKind::NotFound.into());
        let told = told.and_then(|(note, before)| file.give_way(&moved, before, note));
        if let Err(error) = told {
            inner.stand_on(was.0, was.1);
            (inner.whole, inner.file) = (was.2, Some(file));
            return Err(error);
        }
        inner.told = Told::Saving;
        inner.early.clear();
        inner.moves += 1;
        Ok(Rebased::Done)
    }
}

impl Inner {
    /// All that is unsaved was appended.
    pub(super) fn is_appended(&self) -> bool {
        self.passed.is_none() && self.not_appended.is_none() && self.pieces.is_append_to(self.base.manifest.size())
    }

    /// Have these pieces over another base.
    pub(super) fn stand_on(&mut self, base: Base, pieces: Pieces) {
        (self.base, self.pieces, self.allocated) = (base, pieces, None);
        self.whole = false;
    }

    pub(super) fn restart(&mut self, base: Base) {
        let pieces = Pieces::new(base.manifest.size());
        self.stand_on(base, pieces);
        (self.file, self.told, self.trouble) = (None, Told::Nothing, None);
        self.passed = None;
        self.moves += 1;
        (self.modified_ns, self.changed_ns, self.accessed_ns) = (None, None, None);
        (self.not_appended, self.timed) = (None, None);
        self.shared.clear();
        self.early.clear();
    }

    /// Take out of the data file what the pieces do not have there, so that it tells what is unsaved.
    pub(super) fn clear_spool(&mut self) {
        self.moves += 1;
        let Some(file) = &self.file else { return };
        let size = self.pieces.size();
        let is_longer = file.file().metadata().is_ok_and(|found| found.len() > size);
        if is_longer && let Err(error) = file.cut(size) {
            tracing::warn!(%error, "cut a file of the spool");
        }
        let others = self.pieces.over(ByteRange::at(0, size)).filter(|(_, source)| *source != Source::Spool);
        others.for_each(|(range, _)| self.forget(file, range));
    }
}

#[cfg(test)]
mod tests;
