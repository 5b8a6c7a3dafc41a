//! One file under way: what was written to it on this mount, over the version that was opened.
//!
//! Not here: reading the base, sending and committing. Every call is short and local.
//! Invariants: a byte is entered into the pieces after it lies in the spool; what is saved is settled only for the
//! stamp that the save began with.
//!
//! * `early`: segments that are sent before a save
//! * `passed`: the kernel writes it by itself
//! * `save`: the save that is under way
//! * `rebase`: another base below what is unsaved
//! * `telling`: what the spool and its journal are told

mod early;
mod passed;
mod rebase;
mod save;
mod telling;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use swarm_proto::{ByteRange, InodeNumber, Manifest, ManifestDigest};

use self::passed::Passed;
use self::telling::Told;
use super::pieces::{Pieces, Source, Stamp};
use super::spool::{Spool, SpoolFile};

pub use self::early::Early;
pub use self::passed::Pass;
pub use self::rebase::Rebased;
pub use self::save::{Joined, Save};

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
    /// Why it could not be saved when that was last tried.
    trouble: Option<String>,
    /// Blocks of the data file of which the journal tells what is in them.
    shared: BTreeSet<u64>,
    /// None: every write comes to this process.
    passed: Option<Passed>,
    /// The data file tells all of it, the base nothing: the kernel has written it by itself.
    whole: bool,
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
            trouble: None,
            shared: BTreeSet::new(),
            passed: None,
            whole: false,
        };
        let segment_bytes = segment_bytes.max(1);
        Self { inode, swarm, segment_bytes, spool, inner: Mutex::new(inner), saving: tokio::sync::Mutex::new(()) }
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
        let mut inner = self.locked();
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
        self.locked().is_dirty()
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
        let mut inner = self.locked();
        let file = self.file_of(&mut inner)?;
        file.check_room(bytes.len() as u64)?;
        let start = match at {
            At::Offset(offset) => offset,
            At::End => inner.pieces.size(),
        };
        let range = ByteRange::at(start, bytes.len() as u64);
        if inner.passed.is_some() {
            file.write(start, bytes)?;
            inner.took()?;
            return Ok(Written { range, filled: Vec::new(), stamp: inner.stamp });
        }
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

    /// Cut it or stretch it with a hole. To the size that it has: only its times change.
    pub fn resize(&self, size: u64, now_ns: i64) -> io::Result<()> {
        let mut inner = self.locked();
        let old = inner.pieces.size();
        if size == old {
            inner.touch();
            (inner.modified_ns, inner.changed_ns) = (Some(now_ns), Some(now_ns));
            return Ok(());
        }
        if inner.passed.is_some() {
            // Both ways: the kernel takes the end of the data file for that of the file.
            self.file_of(&mut inner)?.cut(size)?;
            self.tell(&mut inner, |file| file.resized(size));
            return inner.took();
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
    ///
    /// Errors: the spool's disk, where the kernel writes it by itself.
    pub fn punch(&self, range: ByteRange, now_ns: i64) -> io::Result<()> {
        let mut inner = self.locked();
        let range = range.intersect(ByteRange::at(0, inner.pieces.size()));
        if range.is_empty() {
            return Ok(());
        }
        if inner.passed.is_some() {
            self.file_of(&mut inner)?.zero(range)?;
            return inner.took();
        }
        let stamp = inner.change(now_ns);
        inner.not_appended = Some(stamp);
        inner.put(range, |pieces| pieces.punch(range, stamp));
        inner.forget_early(range, self.segment_bytes);
        self.tell(&mut inner, |file| file.punched(range));
        if let Some(file) = inner.file.clone() {
            inner.forget(&file, range);
        }
        Ok(())
    }

    /// Times that a process has set; they go with the next save.
    ///
    /// Shape: false: nothing is unsaved, so that they have to be set at once.
    pub fn set_times(&self, modified_ns: Option<i64>, accessed_ns: Option<i64>, now_ns: i64) -> bool {
        let mut inner = self.locked();
        if !inner.is_dirty() {
            return false;
        }
        inner.touch();
        inner.modified_ns = modified_ns.or(inner.modified_ns);
        inner.accessed_ns = accessed_ns.or(inner.accessed_ns);
        inner.changed_ns = Some(now_ns);
        true
    }

    /// Where the bytes of a range are, in order.
    pub fn plan(&self, range: ByteRange) -> Plan {
        let inner = self.locked();
        Plan {
            pieces: inner.pieces.over(range).collect(),
            base: inner.base.clone(),
            file: inner.file.clone(),
            moves: inner.moves,
        }
    }

    /// Whether what a plan says still lies where it says.
    pub fn holds(&self, plan: &Plan) -> bool {
        self.locked().moves == plan.moves
    }
}

impl Inner {
    fn change(&mut self, now_ns: i64) -> Stamp {
        self.stamp += 1;
        (self.modified_ns, self.changed_ns) = (Some(now_ns), Some(now_ns));
        self.stamp
    }

    /// Times are set, to be saved. A save that goes on now has the older ones: they are one more change.
    fn touch(&mut self) {
        self.stamp += 1;
        self.timed = Some(self.stamp);
    }

    /// Change the pieces within a range and behind the end, and the figure that follows from them.
    fn put(&mut self, range: ByteRange, change: impl FnOnce(&mut Pieces)) {
        let base = &self.base.manifest;
        let before = self.pieces.allocated(range, base);
        change(&mut self.pieces);
        let after = self.pieces.allocated(range, base);
        self.allocated = self.allocated.map(|all| (all + after).saturating_sub(before));
    }

    fn is_dirty(&self) -> bool {
        self.pieces.is_dirty() || self.timed.is_some()
    }
}
