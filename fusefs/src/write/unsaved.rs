//! One file under way: what was written to it on this mount, over the version that was opened.
//!
//! Not here: reading the base, sending and committing. Every call is short and local.
//! Invariants: a byte is entered into the pieces after it lies in the spool; what is saved is settled only for the
//! stamp that the save began with.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::sync::Arc;

use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use swarm_proto::{ByteRange, Extent, InodeNumber, Manifest, ManifestDigest};

use super::outbox::Delivered;
use super::pieces::{Pieces, Sent, Source, Stamp};
use super::spool::{Note, Since, Spool, SpoolFile, State};

/// Segments sent early that were then written again, after which no more are.
const WASTED_MOST: u32 = 4;

/// A segment that is sent before anybody asked for the file to be saved; none if that failed.
pub type Early = Shared<BoxFuture<'static, Option<Arc<Delivered>>>>;

/// The version that a file under way is based on.
#[derive(Debug, Clone)]
pub struct Base {
    /// Its number.
    pub version: u64,
    /// Digest of its manifest; none: it is empty.
    pub digest: Option<ManifestDigest>,
    /// What it is made of.
    pub manifest: Arc<Manifest>,
}

/// What a process of this mount is shown of a file under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Bytes.
    pub size: u64,
    /// Bytes that are no holes.
    pub allocated: u64,
    /// Nanoseconds since 1970; none: as the base has it.
    pub modified_ns: Option<i64>,
    /// As `modified_ns`.
    pub changed_ns: Option<i64>,
    /// As `modified_ns`.
    pub accessed_ns: Option<i64>,
}

/// Where a write goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// There.
    Offset(u64),
    /// The end of the file, wherever that is.
    End,
}

/// A write that was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Where.
    pub range: ByteRange,
    /// Segments that it filled, which may be sent now.
    pub filled: Vec<ByteRange>,
    /// Which change of the file it was.
    pub stamp: Stamp,
}

/// Where the bytes of a range were at one moment.
pub struct Plan {
    /// In order.
    pub pieces: Vec<(ByteRange, Source)>,
    /// For those that are there.
    pub base: Base,
    /// For those that are there.
    pub file: Option<Arc<SpoolFile>>,
    moves: u64,
}

/// Whether what is unsaved was put behind another base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rebased {
    /// It was.
    Done,
    /// It was not: not all of it was appended.
    NotAppended,
}

/// All that a save needs, as of the moment that it began.
pub struct Save {
    /// Settle this when it is done.
    pub stamp: Stamp,
    /// What is replaced.
    pub base: Base,
    /// The file.
    pub pieces: Pieces,
    /// Its bytes.
    pub file: Option<Arc<SpoolFile>>,
    /// When it was written.
    pub modified_ns: i64,
    /// When it was changed.
    pub changed_ns: i64,
    /// If somebody said so.
    pub accessed_ns: Option<i64>,
    /// All that is unsaved was appended.
    pub appended: bool,
    /// What was sent already, by where it begins.
    pub early: BTreeMap<u64, Early>,
    /// What is sent as one segment each, whatever it was made of.
    pub joined: Option<Joined>,
}

/// Stretches of a file that were read for a save, to be sent whole.
pub struct Joined {
    /// Has their bytes, at their own offsets.
    pub file: Arc<File>,
    /// In order, none touching a hole.
    pub runs: Vec<ByteRange>,
}

impl Save {
    /// Where the bytes of a range are, as of the moment that it began.
    pub fn plan(&self, range: ByteRange) -> Plan {
        let pieces = self.pieces.over(range).collect();
        Plan { pieces, base: self.base.clone(), file: self.file.clone(), moves: 0 }
    }

    /// What of the spool is to be sent, in order.
    pub fn to_send(&self) -> Vec<ByteRange> {
        let mut left = self.pieces.clone();
        // What is joined is sent from elsewhere.
        self.runs().iter().for_each(|run| left.punch(*run, self.stamp));
        left.unsaved_in_spool()
    }

    /// What is sent as one segment each, in order.
    pub fn runs(&self) -> &[ByteRange] {
        self.joined.as_ref().map_or(&[], |joined| &joined.runs)
    }

    /// The extents of the file, as [`Pieces::extents`] has them.
    pub fn extents(&self, sent: &Sent) -> Option<Vec<Extent>> {
        let mut pieces = self.pieces.clone();
        self.runs().iter().for_each(|run| pieces.write(*run, self.stamp));
        pieces.extents(&self.base.manifest, sent)
    }
}

/// See the module.
pub struct Unsaved {
    inode: InodeNumber,
    swarm: String,
    segment_bytes: u64,
    spool: Arc<Spool>,
    inner: Mutex<Inner>,
    /// Held by whoever saves it.
    pub saving: tokio::sync::Mutex<()>,
}

struct Inner {
    base: Base,
    path: String,
    pieces: Pieces,
    /// Bytes that are no holes, once somebody asked.
    allocated: Option<u64>,
    file: Option<Arc<SpoolFile>>,
    stamp: Stamp,
    modified_ns: Option<i64>,
    changed_ns: Option<i64>,
    accessed_ns: Option<i64>,
    /// When somebody set times; none: they are saved.
    timed: Option<Stamp>,
    /// The last change that was not an append.
    not_appended: Option<Stamp>,
    early: BTreeMap<u64, Early>,
    wasted: u32,
    writers: usize,
    /// How often bytes of the spool moved to another offset or went.
    moves: u64,
    told: Told,
    /// Blocks of the data file of which the journal tells what is in them.
    shared: BTreeSet<u64>,
}

/// What the journal tells of the unsaved bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// There are none.
    Nothing,
    /// There are some.
    Begun,
    /// Those that there were are being saved.
    Saving,
}

impl Unsaved {
    /// A file of which nothing was written yet; `path` is for people.
    pub fn new(
        inode: InodeNumber,
        swarm: String,
        path: String,
        base: Base,
        spool: Arc<Spool>,
        segment_bytes: u64,
    ) -> Self {
        let pieces = Pieces::new(base.manifest.size());
        let inner = Inner {
            base,
            path,
            pieces,
            allocated: None,
            file: None,
            stamp: 0,
            modified_ns: None,
            changed_ns: None,
            accessed_ns: None,
            timed: None,
            not_appended: None,
            early: BTreeMap::new(),
            wasted: 0,
            writers: 0,
            moves: 0,
            told: Told::Nothing,
            shared: BTreeSet::new(),
        };
        let segment_bytes = segment_bytes.max(1);
        Self { inode, swarm, segment_bytes, spool, inner: Mutex::new(inner), saving: tokio::sync::Mutex::new(()) }
    }

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
            inner.not_appended = (!note.appended).then_some(1);
            (inner.file, inner.told) = (Some(Arc::new(file)), Told::Begun);
        }
        Ok(this)
    }

    /// Its inode.
    pub fn inode(&self) -> InodeNumber {
        self.inode
    }

    /// The version that it is based on.
    pub fn base(&self) -> Base {
        self.inner.lock().base.clone()
    }

    /// What a process of this mount is shown of it.
    ///
    /// Cost: O(extents) once for a base, then O(1).
    pub fn shape(&self) -> Shape {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let all = ByteRange::at(0, inner.pieces.size());
        Shape {
            size: inner.pieces.size(),
            allocated: *inner.allocated.get_or_insert_with(|| inner.pieces.allocated(all, &inner.base.manifest)),
            modified_ns: inner.modified_ns,
            changed_ns: inner.changed_ns,
            accessed_ns: inner.accessed_ns,
        }
    }

    /// Whether something is unsaved.
    pub fn is_dirty(&self) -> bool {
        self.inner.lock().is_dirty()
    }

    /// One more handle writes.
    pub fn enter(&self) {
        self.inner.lock().writers += 1;
    }

    /// One fewer; how many are left.
    pub fn leave(&self) -> usize {
        let mut inner = self.inner.lock();
        inner.writers = inner.writers.saturating_sub(1);
        inner.writers
    }

    /// Handles that write.
    pub fn writers(&self) -> usize {
        self.inner.lock().writers
    }

    /// Write bytes.
    ///
    /// Errors: the spool's disk; nothing is entered then.
    pub fn write(&self, at: At, bytes: &[u8], now_ns: i64) -> io::Result<Written> {
        // Held over the write: the end must stay where it is, and the bytes with it, until they are entered.
        let mut inner = self.inner.lock();
        let file = self.file_of(&mut inner)?;
        file.check_room(bytes.len() as u64)?;
        let start = match at {
            At::Offset(offset) => offset,
            At::End => inner.pieces.size(),
        };
        let range = ByteRange::at(start, bytes.len() as u64);
        match inner.told {
            Told::Nothing => self.begun(&mut inner, &file)?,
            Told::Saving => self.changed(&mut inner, &file),
            Told::Begun => {}
        }
        inner.tell_shared(range, &file);
        file.write(start, bytes)?;
        let stamp = inner.change(now_ns);
        if at != At::End {
            inner.not_appended = Some(stamp);
        }
        inner.put(range, |pieces| pieces.write(range, stamp));
        inner.forget_early(range, self.segment_bytes);
        Ok(Written { range, filled: inner.filled(range, self.segment_bytes), stamp })
    }

    /// Cut it or stretch it with a hole.
    pub fn resize(&self, size: u64, now_ns: i64) -> io::Result<()> {
        let mut inner = self.inner.lock();
        let old = inner.pieces.size();
        if size == old {
            return Ok(());
        }
        let stamp = inner.change(now_ns);
        inner.not_appended = Some(stamp);
        let between = ByteRange { start: size.min(old), end: old.max(size) };
        inner.put(between, |pieces| pieces.resize(size, stamp));
        inner.forget_early(between, self.segment_bytes);
        self.tell(&mut inner, |file| file.resized(size));
        let Some(file) = inner.file.clone().filter(|_| size < old) else { return Ok(()) };
        let cut = file.cut(size);
        inner.forget(&file, ByteRange { start: size, end: size.next_multiple_of(file.block_bytes()) });
        cut
    }

    /// Make zeros of a range; the size stays.
    pub fn punch(&self, range: ByteRange, now_ns: i64) {
        let mut inner = self.inner.lock();
        let range = range.intersect(ByteRange::at(0, inner.pieces.size()));
        if range.is_empty() {
            return;
        }
        let stamp = inner.change(now_ns);
        inner.not_appended = Some(stamp);
        inner.put(range, |pieces| pieces.punch(range, stamp));
        inner.forget_early(range, self.segment_bytes);
        self.tell(&mut inner, |file| file.punched(range));
        if let Some(file) = inner.file.clone() {
            inner.forget(&file, range);
        }
    }

    /// Tell the journal of a change that is no write, as far as there is a data file.
    fn tell(&self, inner: &mut Inner, change: impl FnOnce(&SpoolFile)) {
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
    fn begun(&self, inner: &mut Inner, file: &SpoolFile) -> io::Result<()> {
        let note = self.blank(inner, file.number());
        inner.shared = note.since.as_ref().map(|since| since.shared_blocks(file.block_bytes())).unwrap_or_default();
        file.begun(note)?;
        inner.told = Told::Begun;
        Ok(())
    }

    /// Tell the journal that it changes again while it is being saved.
    fn changed(&self, inner: &mut Inner, file: &SpoolFile) {
        let since = inner.since();
        inner.shared = since.shared_blocks(file.block_bytes());
        file.changed(since);
        inner.told = Told::Begun;
    }

    /// Times that a process has set; they go with the next save.
    ///
    /// Shape: false: nothing is unsaved, so that they have to be set at once.
    pub fn set_times(&self, modified_ns: Option<i64>, accessed_ns: Option<i64>, now_ns: i64) -> bool {
        let mut inner = self.inner.lock();
        if !inner.is_dirty() {
            return false;
        }
        // A save that goes on now has the older ones: they are one more change.
        inner.stamp += 1;
        inner.timed = Some(inner.stamp);
        inner.modified_ns = modified_ns.or(inner.modified_ns);
        inner.accessed_ns = accessed_ns.or(inner.accessed_ns);
        inner.changed_ns = Some(now_ns);
        true
    }

    /// Where the bytes of a range are, in order.
    pub fn plan(&self, range: ByteRange) -> Plan {
        let inner = self.inner.lock();
        Plan {
            pieces: inner.pieces.over(range).collect(),
            base: inner.base.clone(),
            file: inner.file.clone(),
            moves: inner.moves,
        }
    }

    /// Whether what a plan says still lies where it says.
    pub fn holds(&self, plan: &Plan) -> bool {
        self.inner.lock().moves == plan.moves
    }

    /// What was sent early is held no more: the next save sends it again.
    pub fn sends_anew(&self) {
        self.inner.lock().early.clear();
    }

    /// A segment that is sent as it was at `stamp`; forgotten if it was written since.
    pub fn sends_early(&self, range: ByteRange, stamp: Stamp, early: Early) {
        let mut inner = self.inner.lock();
        if inner.pieces.is_unsaved(range) && inner.pieces.is_as_at(range, stamp) {
            inner.early.insert(range.start, early);
        }
    }

    /// Begin to save it. None: nothing is unsaved.
    pub fn begin_save(&self) -> Option<Save> {
        let mut inner = self.inner.lock();
        if !inner.is_dirty() {
            return None;
        }
        let stamp = inner.stamp;
        inner.stamp += 1;
        Some(Save {
            stamp,
            base: inner.base.clone(),
            pieces: inner.pieces.clone(),
            file: inner.file.clone(),
            modified_ns: inner.modified_ns.unwrap_or_default(),
            changed_ns: inner.changed_ns.unwrap_or_default(),
            accessed_ns: inner.accessed_ns,
            appended: inner.is_appended(),
            early: inner.early.clone(),
            joined: None,
        })
    }

    /// What was unsaved at `stamp` is saved, and is the base from now on.
    pub fn settle(&self, stamp: Stamp, base: Base) {
        let mut inner = self.inner.lock();
        inner.pieces.settle(stamp);
        inner.base = base;
        inner.not_appended = inner.not_appended.filter(|at| *at > stamp);
        inner.timed = inner.timed.filter(|at| *at > stamp);
        inner.early.clear();
        if !inner.is_dirty() {
            (inner.modified_ns, inner.changed_ns, inner.accessed_ns) = (None, None, None);
        }
        self.tell_anew(&mut inner);
    }

    /// Whether nothing of a range was changed after `stamp`.
    pub fn is_as_at(&self, range: ByteRange, stamp: Stamp) -> bool {
        self.inner.lock().pieces.is_as_at(range, stamp)
    }

    /// The base has these in one: what of the spool is saved there is not needed any more.
    pub fn leave_to_base(&self, runs: &[ByteRange]) {
        let mut inner = self.inner.lock();
        let saved: Vec<ByteRange> = runs.iter().flat_map(|run| inner.pieces.leave_to_base(*run)).collect();
        inner.moves += 1;
        if let Some(file) = inner.file.clone() {
            saved.into_iter().for_each(|range| inner.forget(&file, range));
        }
        self.tell_anew(&mut inner);
    }

    /// Tell the journal that what is unsaved now is being saved: if this process dies, the next one goes on.
    pub fn tell_saving(&self) {
        let mut inner = self.inner.lock();
        if let (Some(file), Some(note)) = (inner.file.clone(), self.note_of(&inner, State::Saving, None)) {
            file.saving(note);
            inner.told = Told::Saving;
        }
    }

    /// Tell the journal what is unsaved now, over which base.
    fn tell_anew(&self, inner: &mut Inner) {
        let Some(file) = inner.file.clone() else { return };
        if !inner.pieces.is_dirty() {
            inner.told = Told::Nothing;
            return file.saved();
        }
        if let Err(error) = self.begun(inner, &file) {
            // What it told before holds: there are unsaved bytes.
            tracing::warn!(%error, "write the journal of the spool");
        }
    }

    /// The base is another now, and nothing of this mount differs from it.
    ///
    /// Shape: false: something is unsaved, and nothing was done.
    pub fn meet(&self, base: &Base) -> bool {
        let mut inner = self.inner.lock();
        if inner.is_dirty() {
            return false;
        }
        // An answer may be older than what was saved since it was asked for.
        if inner.base.version < base.version {
            inner.restart(base.clone());
        }
        true
    }

    /// The base was replaced on purpose: what is unsaved lies over the new one.
    pub fn replaced(&self, base: Base) {
        let mut inner = self.inner.lock();
        let pieces = inner.pieces.over_base(base.manifest.size());
        inner.stand_on(base, pieces);
        inner.clear_spool();
        self.tell_anew(&mut inner);
    }

    /// What was unsaved at `stamp` is given up, as another file has it: this one is `base`, with what was written since.
    pub fn give_up(&self, stamp: Stamp, base: Base) {
        let mut inner = self.inner.lock();
        inner.pieces.settle(stamp);
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
        let mut inner = self.inner.lock();
        let base = inner.base.clone();
        inner.restart(base);
    }

    /// Put what was appended behind another base; nothing is done if something else was written meanwhile.
    pub fn rebase(&self, base: Base) -> io::Result<Rebased> {
        let mut inner = self.inner.lock();
        if !inner.is_appended() {
            return Ok(Rebased::NotAppended);
        }
        let (old, new) = (inner.base.manifest.size(), base.manifest.size());
        let size = inner.pieces.size();
        if let Some(file) = &inner.file {
            file.stretch(size)?;
            file.shift(ByteRange { start: old, end: size.max(old) }, new)?;
        }
        inner.stamp += 1;
        let stamp = inner.stamp;
        let pieces = inner.pieces.moved(old, new, stamp);
        inner.stand_on(base, pieces);
        inner.early.clear();
        inner.clear_spool();
        self.tell_anew(&mut inner);
        Ok(Rebased::Done)
    }

    /// What a person or the next process is told of it.
    pub fn note(&self, state: State, error: Option<String>) -> Option<Note> {
        self.note_of(&self.inner.lock(), state, error)
    }

    fn note_of(&self, inner: &Inner, state: State, error: Option<String>) -> Option<Note> {
        let number = inner.file.as_ref()?.number();
        let changed = inner.pieces.changed().into_iter();
        let changed = changed.map(|(range, source)| (range.start, range.len(), source == Source::Spool)).collect();
        Some(Note { changed: Some(changed), since: None, state, error, ..self.blank(inner, number) })
    }

    /// Its data file, made if there is none.
    pub fn file(&self) -> io::Result<Arc<SpoolFile>> {
        self.file_of(&mut self.inner.lock())
    }

    fn file_of(&self, inner: &mut Inner) -> io::Result<Arc<SpoolFile>> {
        if let Some(file) = &inner.file {
            return Ok(file.clone());
        }
        let file = Arc::new(self.spool.begin(|number| self.blank(inner, number))?);
        (inner.file, inner.told) = (Some(file.clone()), Told::Begun);
        Ok(file)
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
            state: State::Interrupted,
            error: None,
        }
    }
}

impl Inner {
    fn change(&mut self, now_ns: i64) -> Stamp {
        self.stamp += 1;
        (self.modified_ns, self.changed_ns) = (Some(now_ns), Some(now_ns));
        self.stamp
    }

    /// What the data file does not tell of it.
    fn since(&self) -> Since {
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
    fn tell_shared(&mut self, range: ByteRange, file: &SpoolFile) {
        let block = file.block_bytes();
        for part in self.pieces.beside_base(range, block, &self.shared) {
            self.shared.insert(part.start / block);
            file.wrote(part);
        }
    }

    /// All that is unsaved was appended.
    fn is_appended(&self) -> bool {
        self.not_appended.is_none() && self.pieces.is_append_to(self.base.manifest.size())
    }

    /// Change the pieces within a range and behind the end, and the figure that follows from them.
    fn put(&mut self, range: ByteRange, change: impl FnOnce(&mut Pieces)) {
        let base = &self.base.manifest;
        let before = self.pieces.allocated(range, base);
        change(&mut self.pieces);
        let after = self.pieces.allocated(range, base);
        self.allocated = self.allocated.map(|all| (all + after).saturating_sub(before));
    }

    /// Have these pieces over another base.
    fn stand_on(&mut self, base: Base, pieces: Pieces) {
        (self.base, self.pieces, self.allocated) = (base, pieces, None);
    }

    fn restart(&mut self, base: Base) {
        let pieces = Pieces::new(base.manifest.size());
        self.stand_on(base, pieces);
        (self.file, self.told) = (None, Told::Nothing);
        self.moves += 1;
        (self.modified_ns, self.changed_ns, self.accessed_ns) = (None, None, None);
        (self.not_appended, self.timed) = (None, None);
        self.shared.clear();
        self.early.clear();
    }

    fn is_dirty(&self) -> bool {
        self.pieces.is_dirty() || self.timed.is_some()
    }

    /// Take out of the data file what the pieces do not have there, so that it tells what is unsaved.
    fn clear_spool(&mut self) {
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

    /// Take a range that the pieces do not have in the spool out of the data file, and with it blocks that have nothing else.
    fn forget(&self, file: &SpoolFile, range: ByteRange) {
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

    /// Segments that were sent early and are no longer what the file has.
    fn forget_early(&mut self, range: ByteRange, segment_bytes: u64) {
        let first = range.start / segment_bytes * segment_bytes;
        let stale: Vec<u64> = self.early.range(first..range.end.max(first + 1)).map(|(start, _)| *start).collect();
        for start in stale {
            self.early.remove(&start);
            self.wasted += 1;
        }
    }

    /// Segments that end within a range that was just written and are wholly unsaved.
    fn filled(&self, range: ByteRange, segment_bytes: u64) -> Vec<ByteRange> {
        if self.wasted >= WASTED_MOST {
            return Vec::new();
        }
        let windows = range.start / segment_bytes..range.end / segment_bytes;
        let windows = windows.map(|window| ByteRange::at(window * segment_bytes, segment_bytes));
        windows.filter(|window| !self.early.contains_key(&window.start) && self.pieces.is_unsaved(*window)).collect()
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

#[cfg(test)]
mod tests;
