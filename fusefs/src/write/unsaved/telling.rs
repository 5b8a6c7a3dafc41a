//! What the spool and its journal are told of a file under way, and what the next process makes of that.
//!
//! Not their formats: those are the spool's. Invariant: before a byte lies in the data file the journal says that there
//! are unsaved ones, over which base, and, of a block that lacks bytes of the base, which are the file's.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use swarm_proto::{ByteRange, InodeNumber};

use super::{Base, Inner, Unsaved};
use crate::write::pieces::Source;
use crate::write::spool::{Note, Since, Spool, SpoolFile, State};

/// What the journal tells of the unsaved bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// There are none.
    Nothing,
    /// There are some.
    Begun,
    /// Those that there were are being saved.
    Saving,
}

impl Unsaved {
    /// What an earlier process left, as its note tells.
    ///
    /// Shape: where the note does not know what was written, all that the data file holds was.
    pub fn resume(note: &Note, base: Base, spool: &Arc<Spool>, segment_bytes: u64) -> io::Result<Self> {
        let file = spool.reopen(note.number)?;
        let this = Self::new(
            InodeNumber(note.inode),
            note.swarm.clone(),
            note.path.clone(),
            base,
            spool.clone(),
            segment_bytes,
        );
        let size = note.since.as_ref().map_or(note.size, |since| since.size);
        let (changed, size) = match &note.changed {
            Some(changed) => (changed.clone(), note.size),
            None => (told_by(note, &file)?, size.max(file.file().metadata()?.len())),
        };
        {
            let mut inner = this.inner.lock();
            inner.stamp = 1;
            inner.pieces.resize(size, 1);
            for (start, length, in_spool) in changed {
                let range = ByteRange::at(start, length).intersect(ByteRange::at(0, size));
                match in_spool {
                    true => inner.pieces.write(range, 1),
                    false => inner.pieces.punch(range, 1),
                }
            }
            inner.modified_ns = Some(note.modified_ns);
            inner.changed_ns = Some(note.modified_ns);
            // What was written after that would have to be moved too, but is not part of this.
            inner.not_appended = (!note.appended || note.has_rest(spool.folder())).then_some(1);
            (inner.file, inner.told) = (Some(Arc::new(file)), Told::Begun);
        }
        Ok(this)
    }

    /// Tell the journal of a change that is no write, as far as there is a data file.
    pub(super) fn tell(&self, inner: &mut Inner, change: impl FnOnce(&SpoolFile)) {
        let Some(file) = inner.file.clone() else { return };
        if inner.told == Told::Nothing
            && let Err(error) = self.begun(inner, &file)
        {
            return tracing::warn!(%error, "write the journal of the spool");
        }
        if inner.told == Told::Saving {
            self.changed(inner, &file);
        }
        change(&file);
    }

    /// Tell the journal that there are unsaved bytes, or that there soon will be.
    pub(super) fn begun(&self, inner: &mut Inner, file: &SpoolFile) -> io::Result<()> {
        let note = self.blank(inner, file.number());
        inner.shared = note.since.as_ref().map(|since| since.shared_blocks(file.block_bytes())).unwrap_or_default();
        file.begun(note)?;
        inner.told = Told::Begun;
        Ok(())
    }

    /// Tell the journal that it changes again while it is being saved.
    pub(super) fn changed(&self, inner: &mut Inner, file: &SpoolFile) {
        let since = inner.since();
        inner.shared = since.shared_blocks(file.block_bytes());
        file.changed(since);
        inner.told = Told::Begun;
    }

    /// Tell the journal what is unsaved now, over which base.
    pub(super) fn tell_anew(&self, inner: &mut Inner) {
        let Some(file) = inner.file.clone() else { return };
        if !inner.pieces.is_dirty() && inner.passed.is_none() {
            inner.told = Told::Nothing;
            return file.saved();
        }
        if let Err(error) = self.begun(inner, &file) {
            // What it told before holds: there are unsaved bytes.
            tracing::warn!(%error, "write the journal of the spool");
        }
    }

    /// What a person or the next process is told of it.
    pub fn note(&self, state: State, error: Option<String>) -> Option<Note> {
        self.note_of(&self.locked(), state, error)
    }

    pub(super) fn note_of(&self, inner: &Inner, state: State, error: Option<String>) -> Option<Note> {
        let number = inner.file.as_ref()?.number();
        let changed = inner.pieces.changed().into_iter();
        let changed = changed.map(|(range, source)| (range.start, range.len(), source == Source::Spool)).collect();
        let blank = self.blank(inner, number);
        // Of what the kernel writes from now on nobody tells: only the print does.
        let (since, print) = match &inner.passed {
            Some(passed) => (blank.since.clone(), Some(passed.print)),
            None => (None, None),
        };
        Some(Note { changed: Some(changed), since, print, state, error, ..blank })
    }

    /// Its data file, made if there is none.
    pub fn file(&self) -> io::Result<Arc<SpoolFile>> {
        self.file_of(&mut self.inner.lock())
    }

    pub(super) fn file_of(&self, inner: &mut Inner) -> io::Result<Arc<SpoolFile>> {
        if let Some(file) = &inner.file {
            return Ok(file.clone());
        }
        let file = Arc::new(self.spool.begin(|number| self.blank(inner, number))?);
        (inner.file, inner.told) = (Some(file.clone()), Told::Begun);
        Ok(file)
    }

    /// Its data file, if there is one.
    pub fn data_file(&self) -> Option<Arc<SpoolFile>> {
        self.inner.lock().file.clone()
    }

    /// The data file, for whoever keeps it for a person.
    pub fn take_file(&self) -> Option<Arc<SpoolFile>> {
        let mut inner = self.inner.lock();
        inner.told = Told::Nothing;
        inner.file.take()
    }

    fn blank(&self, inner: &Inner, number: u64) -> Note {
        Note {
            number,
            swarm: self.swarm.clone(),
            inode: self.inode.0,
            path: inner.path.clone(),
            base_version: inner.base.version,
            base_manifest: inner.base.digest.map(|digest| digest.to_string()),
            size: inner.pieces.size(),
            modified_ns: inner.modified_ns.unwrap_or_default(),
            appended: inner.not_appended.is_none(),
            changed: None,
            since: Some(inner.since()),
            print: inner.print_if_saved(),
            state: State::Interrupted,
            error: None,
        }
    }
}

impl Inner {
    /// What the data file does not tell of it.
    pub(super) fn since(&self) -> Since {
        if self.whole {
            return Since { size: self.pieces.size(), holes: vec![(0, u64::MAX)], parts: Vec::new() };
        }
        let ends = |range: ByteRange| (range.start, range.end);
        let holes = self.pieces.changed().into_iter().filter(|(_, source)| *source == Source::Hole);
        let block = self.file.as_ref().map(|file| file.block_bytes());
        let parts = block.map(|block| self.pieces.all_beside_base(block)).unwrap_or_default();
        let mut since =
            Since { size: self.pieces.size(), holes: holes.map(|(range, _)| ends(range)).collect(), parts: Vec::new() };
        parts.into_iter().for_each(|part| since.part(part.start, part.len()));
        // What the base has behind the end is not the file's, also if that is written to.
        since.resize(self.pieces.size());
        since
    }

    /// Before bytes are written: tell the journal where, if a block of theirs lacks bytes of the base.
    pub(super) fn tell_shared(&mut self, range: ByteRange, file: &SpoolFile) {
        let block = file.block_bytes();
        for part in self.pieces.beside_base(range, block, &self.shared) {
            self.shared.insert(part.start / block);
            file.wrote(part);
        }
    }

    /// Take a range that the pieces do not have in the spool out of the data file, and with it blocks that have nothing else.
    pub(super) fn forget(&self, file: &SpoolFile, range: ByteRange) {
        if range.is_empty() {
            return;
        }
        file.forget(range);
        let block = file.block_bytes();
        for number in BTreeSet::from([range.start / block, (range.end - 1) / block]) {
            let whole = ByteRange::at(number * block, block);
            if !self.pieces.over(whole).any(|(_, source)| source == Source::Spool) {
                file.forget(whole);
            }
        }
    }
}

/// What changed as far as the data file and its note tell: start, length, and whether the bytes are in the spool.
fn told_by(note: &Note, file: &SpoolFile) -> io::Result<Vec<(u64, u64, bool)>> {
    let holes = note.since.iter().flat_map(|since| &since.holes).map(|(start, end)| (*start, end - start, false));
    let block = file.block_bytes();
    let shared = note.since.as_ref().map(|since| since.shared_blocks(block)).unwrap_or_default();
    let parts = note.since.iter().flat_map(|since| &since.parts).map(|(start, end)| (*start, end - start, true));
    let written = file.stretches()?.into_iter().flat_map(|range| without(range, &shared, block));
    // Behind the holes: what was written into them since is there.
    Ok(holes.chain(written.map(|range| (range.start, range.len(), true))).chain(parts).collect())
}

/// What of a range lies in none of these blocks.
fn without(range: ByteRange, blocks: &BTreeSet<u64>, block: u64) -> Vec<ByteRange> {
    let mut left = Vec::new();
    let mut at = range.start;
    for shared in blocks.range(range.start / block..range.end.div_ceil(block)) {
        left.push(ByteRange { start: at, end: (shared * block).max(at) });
        at = ((shared + 1) * block).min(range.end);
    }
    left.push(ByteRange { start: at, end: range.end });
    left.retain(|range| !range.is_empty());
    left
}
