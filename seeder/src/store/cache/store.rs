//! All cached versions: finding them, the room they may take, and which one goes.
//!
//! Lock order: the store's state, then an entry's. Nothing slow touches the disk under the store's state:
//! an evicted version only loses its name there.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;
use swarm_proto::settings::ByteCount;
use swarm_proto::{ChunkRange, ChunkTree, Manifest, ManifestDigest, SegmentId};
use tokio::sync::broadcast;

use super::disk::{Files, Folder, failed};
use super::entry::{Entry, Level};
use super::file::CacheFile;
use super::flush::Dirty;
use super::layout::Slice;
use super::space::{Bounds, Disk};
use crate::store::{StoreError, Usage};

/// Cached files whose descriptors stay open although nobody uses them.
const IDLE_OPEN_FILES: usize = 128;
/// Trees of 4 MiB segments kept in memory: 8 KiB each.
const TREES_IN_MEMORY: usize = 1024;
/// Presence changes that a slow announcer may lag behind.
const CHANGES_KEPT: usize = 4096;
/// Extents of one version under which a segment is found: a file of zeros has the same one everywhere.
const PLACES_PER_FILE: usize = 4;
/// Segments that are counted whenever somebody asks,
const COUNT_UP_TO: usize = 4096;
/// and how long the count of more stays good.
const COUNT_LASTS: Duration = Duration::from_secs(10);
/// How long a look at the disk's free space stays good,
const DISK_LOOK_LASTS: Duration = Duration::from_secs(1);
/// and for how many bytes written.
const DISK_LOOK_BYTES: u64 = 64 << 20;
/// How long nothing is written after the disk refused.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(2);
/// What a write may take beside its bytes: its tree, and blocks begun in both files.
const WRITE_OVERHEAD: u64 = 32 * 1024;

/// Where the cache lies and how large it may be.
#[derive(Debug, Clone)]
pub struct CacheConfig {
    /// Its folder; made if there is none.
    pub dir: PathBuf,
    /// Most bytes on disk; 0: nothing is cached.
    pub size: ByteCount,
    /// Share of the disk that it leaves free, 0 to 1.
    pub free_space_ratio: f64,
    /// And at least so many bytes of it.
    pub spare_bytes: u64,
}

/// The mount's cache.
pub struct CacheStore {
    pub(super) me: Weak<CacheStore>,
    pub(super) folder: Folder,
    bounds: Bounds,
    pub(super) state: Mutex<State>,
    pub(super) dirty: Mutex<Dirty>,
    trees: Mutex<LruCache<SegmentId, ChunkTree>>,
    pub(super) changes: broadcast::Sender<SegmentId>,
}

pub(super) struct State {
    /// All versions, the one used last first.
    entries: LruCache<ManifestDigest, Arc<Entry>>,
    /// Extents of versions on disk that show a segment.
    index: HashMap<SegmentId, Vec<(Arc<Entry>, usize)>>,
    used: u64,
    /// Bytes that writes in progress may add.
    reserved: u64,
    disk: Disk,
    looked: Option<Instant>,
    written_since_look: u64,
    paused_until: Option<Instant>,
    idle_open: LruCache<ManifestDigest, Arc<Entry>>,
    /// Segments of which a chunk rotted and did not come again.
    rotten: HashSet<SegmentId>,
    /// When segments were counted, and how many there were.
    counted: Option<(Instant, u64)>,
}

/// Versions that were evicted, and files of theirs that have lost their names.
#[derive(Default)]
struct Gone {
    entries: Vec<Arc<Entry>>,
    retired: Vec<PathBuf>,
}

/// Room for a write; given back when dropped.
struct Reservation<'a> {
    store: &'a CacheStore,
    bytes: u64,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.store.state.lock().reserved -= self.bytes;
    }
}

impl CacheStore {
    /// Open the cache and take in what it has from before.
    ///
    /// Errors: [`StoreError::Unusable`] says what is wrong with the folder and what to do.
    /// Cost:   blocks; reads every manifest and bitmap.
    pub fn open(config: CacheConfig) -> Result<Arc<Self>, StoreError> {
        let folder = Folder::open(&config.dir)?;
        let mut found = folder.scan()?;
        found.sort_by_key(|one| one.used);
        let mut state = State {
            entries: LruCache::unbounded(),
            index: HashMap::new(),
            used: 0,
            reserved: 0,
            disk: Disk { total: 0, free: 0, used_then: 0 },
            looked: None,
            written_since_look: 0,
            paused_until: None,
            idle_open: LruCache::unbounded(),
            rotten: HashSet::new(),
            counted: None,
        };
        for one in found {
            let entry = Arc::new(Entry::found(one));
            state.used += entry.bytes.load(Ordering::Relaxed);
            state.add_to_index(&entry);
            state.entries.put(entry.digest, entry);
        }
        let trees = LruCache::new(TREES_IN_MEMORY.try_into().expect("not zero"));
        let store = Arc::new_cyclic(|me| Self {
            me: me.clone(),
            folder,
            bounds: Bounds {
                size: config.size.0,
                free_space_ratio: config.free_space_ratio,
                spare_bytes: config.spare_bytes,
            },
            state: Mutex::new(state),
            dirty: Mutex::new(Dirty::default()),
            trees: Mutex::new(trees),
            changes: broadcast::channel(CHANGES_KEPT).0,
        });
        // The size may be smaller than the last time.
        let _ = store.reserve(0);
        Ok(store)
    }

    /// The version of a file with this manifest; not evicted until the handle is dropped.
    ///
    /// Errors: [`StoreError::Unusable`] if `manifest` is not the one of `digest`.
    pub fn file(&self, digest: ManifestDigest, manifest: Arc<Manifest>) -> Result<Arc<CacheFile>, StoreError> {
        if let Some(file) = self.cached_file(&digest) {
            return Ok(file);
        }
        let encoded = manifest.encode();
        if swarm_proto::manifest::digest_of(&encoded) != digest {
            return Err(StoreError::Unusable(format!("the manifest given is not {digest}")));
        }
        let made = Arc::new(Entry::new(digest, manifest, encoded.len() as u64));
        let mut state = self.state.lock();
        let entry = state.entries.get_or_insert(digest, || made).clone();
        Ok(self.pin(&mut state, entry))
    }

    /// A version that is cached, wholly or in part.
    pub fn cached_file(&self, digest: &ManifestDigest) -> Option<Arc<CacheFile>> {
        let file = {
            let mut state = self.state.lock();
            let entry = state.entries.get(digest)?.clone();
            self.pin(&mut state, entry)
        };
        if file.entry.is_on_disk() {
            self.dirty.lock().note_use(&file.entry, Instant::now());
        }
        Some(file)
    }

    /// The manifest of a cached version, with no tracker asked.
    pub fn manifest(&self, digest: &ManifestDigest) -> Option<Arc<Manifest>> {
        self.state.lock().entries.peek(digest).map(|entry| entry.manifest.clone())
    }

    fn pin(&self, state: &mut State, entry: Arc<Entry>) -> Arc<CacheFile> {
        entry.pins.fetch_add(1, Ordering::Relaxed);
        state.idle_open.pop(&entry.digest);
        let store = self.me.upgrade().expect("a store in use is alive");
        Arc::new(CacheFile { store, entry })
    }

    /// A handle to an entry that somebody found in the index.
    pub(super) fn pin_entry(&self, entry: &Arc<Entry>) -> Option<Arc<CacheFile>> {
        let mut state = self.state.lock();
        let known = state.entries.peek(&entry.digest).is_some_and(|known| Arc::ptr_eq(known, entry));
        known.then(|| self.pin(&mut state, entry.clone()))
    }

    pub(super) fn unpin(&self, entry: &Arc<Entry>) {
        let mut state = self.state.lock();
        if entry.pins.fetch_sub(1, Ordering::Relaxed) > 1 {
            return;
        }
        if !entry.is_on_disk() {
            entry.close_files();
            let known = state.entries.peek(&entry.digest).is_some_and(|known| Arc::ptr_eq(known, entry));
            if known {
                state.entries.pop(&entry.digest);
            }
            return;
        }
        state.idle_open.put(entry.digest, entry.clone());
        while state.idle_open.len() > IDLE_OPEN_FILES {
            if let Some((_, oldest)) = state.idle_open.pop_lru() {
                oldest.close_files();
            }
        }
    }

    /// Extents that show a segment.
    pub(super) fn places(&self, id: &SegmentId) -> Vec<(Arc<Entry>, usize)> {
        self.state.lock().index.get(id).cloned().unwrap_or_default()
    }

    pub(super) fn ids(&self) -> Vec<SegmentId> {
        self.state.lock().index.keys().copied().collect()
    }

    /// Whether some other place than this extent has a chunk.
    pub(super) fn has_elsewhere(&self, entry: &Arc<Entry>, extent: usize, id: &SegmentId, chunk: u32) -> bool {
        let state = self.state.lock();
        state.index.get(id).is_some_and(|places| {
            let other = |place: &Entry, at: usize| !(std::ptr::eq(place, &**entry) && at == extent);
            places.iter().any(|(place, at)| other(place, *at) && place.has(*at, chunk))
        })
    }

    /// How full it is.
    pub fn usage(&self) -> Usage {
        let mut state = self.state.lock();
        let limit = self.limit(&mut state);
        Usage {
            capacity_bytes: self.bounds.size,
            used_bytes: state.used,
            free_bytes: limit.saturating_sub(state.used + state.reserved),
            segments: state.count_segments(),
            corrupt_segments: state.rotten.len() as u64,
        }
    }

    // Room.

    fn limit(&self, state: &mut State) -> u64 {
        let fresh = state.looked.is_some_and(|looked| looked.elapsed() < DISK_LOOK_LASTS);
        if !fresh || state.written_since_look > DISK_LOOK_BYTES {
            let (total, free) = self.folder.disk_space().unwrap_or((0, 0));
            state.disk = Disk { total, free, used_then: state.used };
            state.looked = Some(Instant::now());
            state.written_since_look = 0;
        }
        self.bounds.limit(state.disk)
    }

    /// Room for `bytes` more, evicting what was used longest ago and is not open.
    ///
    /// Errors: [`StoreError::Full`] if only open files are left: serve this from memory.
    fn reserve(&self, bytes: u64) -> Result<Reservation<'_>, StoreError> {
        let mut gone = Gone::default();
        let outcome = {
            let mut state = self.state.lock();
            let limit = self.limit(&mut state);
            let paused = state.paused_until.is_some_and(|until| Instant::now() < until);
            if bytes > limit || (paused && bytes > 0) {
                if state.used > limit {
                    while state.used > limit && self.evict_one(&mut state, &mut gone) {}
                }
                Err(StoreError::Full)
            } else {
                let mut evicted = true;
                while evicted && state.used + state.reserved + bytes > limit {
                    evicted = self.evict_one(&mut state, &mut gone);
                }
                match evicted {
                    true => {
                        state.reserved += bytes;
                        state.written_since_look += bytes;
                        Ok(Reservation { store: self, bytes })
                    }
                    false => Err(StoreError::Full),
                }
            }
        };
        self.finish_removal(gone);
        outcome
    }

    /// Give up so many bytes, or as many as nobody has open, for somebody who cannot fetch his again; how many went.
    pub fn make_room(&self, bytes: u64) -> u64 {
        let mut gone = Gone::default();
        let given = {
            let mut state = self.state.lock();
            let before = state.used;
            while before - state.used < bytes && self.evict_one(&mut state, &mut gone) {}
            before - state.used
        };
        self.finish_removal(gone);
        given
    }

    /// Remove the version used longest ago that nobody has open; false if there is none.
    fn evict_one(&self, state: &mut State, gone: &mut Gone) -> bool {
        let idle = |entry: &Arc<Entry>| !entry.is_pinned() && entry.is_on_disk();
        let Some(entry) = state.entries.iter().rev().map(|(_, entry)| entry).find(|entry| idle(entry)).cloned() else {
            return false;
        };
        self.remove(state, entry, gone);
        true
    }

    fn remove(&self, state: &mut State, entry: Arc<Entry>, gone: &mut Gone) {
        entry.mark_gone();
        state.entries.pop(&entry.digest);
        state.idle_open.pop(&entry.digest);
        state.remove_from_index(&entry);
        state.used = state.used.saturating_sub(entry.bytes.swap(0, Ordering::Relaxed));
        state.looked = None;
        if !entry.is_pinned() {
            entry.close_files();
        }
        gone.retired.extend(self.folder.retire(&entry.digest));
        gone.entries.push(entry);
    }

    /// What is left to do about evicted versions when no lock is held.
    fn finish_removal(&self, gone: Gone) {
        for path in gone.retired {
            if let Err(error) = std::fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "remove an evicted file");
            }
        }
        for entry in gone.entries {
            tracing::debug!(digest = %entry.digest, "evict");
            for segment in entry.manifest.segments() {
                let _ = self.changes.send(segment.id);
            }
        }
    }

    /// After chunks of an entry turned out to be bad.
    pub(super) fn rotted(&self, entry: &Arc<Entry>, id: SegmentId) {
        self.state.lock().rotten.insert(id);
        self.dropped(entry, id);
    }

    /// After chunks of an entry were dropped: tell it, persist it, and replace a file that cannot be mended.
    pub(super) fn dropped(&self, entry: &Arc<Entry>, id: SegmentId) {
        if entry.is_gone() {
            self.give_up(entry, "a cached file rotted while the kernel read it: replace it");
        } else {
            self.dirty.lock().note_write(entry, Instant::now());
        }
        let _ = self.changes.send(id);
    }

    pub(super) fn recount(&self, entry: &Entry, files: &Files) {
        let Ok(bytes) = files.allocated() else { return };
        let mut state = self.state.lock();
        if entry.is_on_disk() {
            let before = entry.bytes.swap(bytes, Ordering::Relaxed);
            state.used = (state.used + bytes).saturating_sub(before);
        }
    }

    // Chunks.

    /// Put verified chunks into a file; see [`CacheFile::write`].
    pub(super) fn write(
        &self,
        entry: &Arc<Entry>,
        extent: usize,
        slice: &Slice,
        tree: &ChunkTree,
        chunks: ChunkRange,
        bytes: &Bytes,
    ) -> Result<(), StoreError> {
        let whole = slice.segment.bytes_of(chunks);
        if tree.segment() != slice.segment || whole.len() != bytes.len() as u64 {
            return Err(StoreError::Mismatch(slice.segment.id));
        }
        let wanted = chunks.intersect(slice.chunks);
        let _writing = entry.writing.lock();
        let runs = entry.unverified(extent, slice, wanted);
        if runs.is_empty() {
            return Ok(());
        }
        let room = self.reserve(whole.len() + WRITE_OVERHEAD + entry.bytes_to_create())?;
        let before = entry.level(extent);
        let (files, made) = entry.create(&self.folder).map_err(|error| self.not_written(entry, error))?;
        let mut outcome = Ok(());
        for run in runs {
            let part = slice.segment.bytes_of(run);
            let at = |byte: u64| usize::try_from(byte - whole.start).expect("a run of a segment is below 64 MiB");
            let bytes = &bytes[at(part.start)..at(part.end)];
            outcome = entry.put(&files, extent, slice, tree, run, bytes).map_err(failed("write a cached file"));
            if outcome.is_err() {
                break;
            }
        }
        // Counted before the room is given back, or somebody else would take it in between.
        self.recount(entry, &files);
        drop(room);
        if made {
            self.state.lock().add_to_index(entry);
        }
        self.dirty.lock().note_write(entry, Instant::now());
        let after = entry.level(extent);
        if after == Level::Whole {
            self.state.lock().rotten.remove(&slice.segment.id);
        }
        if made || after != before {
            let _ = self.changes.send(slice.segment.id);
        }
        outcome.map_err(|error| self.not_written(entry, error))
    }

    /// The disk refused: write nothing for a while, so that reads do not pay for it again and again. Files
    /// that somebody removed are made anew for whoever opens the version next.
    fn not_written(&self, entry: &Arc<Entry>, error: StoreError) -> StoreError {
        if let StoreError::Io { doing, source } = &error {
            if source.kind() == std::io::ErrorKind::NotFound && entry.is_on_disk() {
                self.give_up(entry, "a cached file vanished from the disk: replace it");
                return error;
            }
            tracing::warn!(doing, error = %source, "the cache cannot be written; reads go on without it");
            let mut state = self.state.lock();
            state.paused_until = Some(Instant::now() + PAUSE_AFTER_FAILURE);
            state.looked = None;
        }
        error
    }

    /// Remove a version that cannot be used any more, although it may be open.
    pub(super) fn give_up(&self, entry: &Arc<Entry>, why: &'static str) {
        let mut gone = Gone::default();
        let mut state = self.state.lock();
        if state.entries.peek(&entry.digest).is_some_and(|known| Arc::ptr_eq(known, entry)) {
            tracing::warn!(digest = %entry.digest, "{why}");
            self.remove(&mut state, entry.clone(), &mut gone);
        }
        drop(state);
        self.finish_removal(gone);
    }

    /// Copy chunks that another place has into this one; returns whether all are there afterwards.
    pub(super) fn adopt(&self, entry: &Arc<Entry>, extent: usize, slice: &Slice, chunks: ChunkRange) -> bool {
        for (other, at) in self.places(&slice.segment.id) {
            if Arc::ptr_eq(&other, entry) && at == extent {
                continue;
            }
            let Some(other) = self.pin_entry(&other) else { continue };
            let mut from = chunks.start;
            while from < chunks.end {
                let run = other.entry.run_from(at, ChunkRange::new(from, chunks.end));
                let run = run.runs(swarm_proto::MAX_RUN_CHUNKS).next().unwrap_or(run);
                if !run.is_empty()
                    && let Ok((tree, bytes)) = self.read_place(&other.entry, at, run)
                    && self.write(entry, extent, slice, &tree, run, &bytes).is_err()
                {
                    return false;
                }
                from = run.end.max(from + 1);
            }
            if chunks.iter().all(|chunk| entry.has(extent, chunk)) {
                return true;
            }
        }
        false
    }

    /// Chunks of one place, verified now, with their tree.
    pub(super) fn read_place(
        &self,
        entry: &Arc<Entry>,
        extent: usize,
        chunks: ChunkRange,
    ) -> Result<(ChunkTree, Bytes), StoreError> {
        let slice =
            entry.slice(extent).ok_or_else(|| failed("read a cached file")(std::io::ErrorKind::NotFound.into()))?;
        let id = slice.segment.id;
        let unreadable = |error| {
            entry.forget(extent, chunks);
            self.dropped(entry, id);
            error
        };
        let files = entry.files(&self.folder).map_err(unreadable)?;
        let tree = self.tree_of(entry, &files, extent, &slice)?;
        let read = || entry.chunk_bytes(&files, extent, &slice, chunks).map_err(failed("read a cached file"));
        let mut bytes = read().map_err(unreadable)?;
        if tree.check(chunks, &bytes).is_err() {
            let bad = entry.verify(&files, &tree, extent, &slice, chunks).map_err(unreadable)?;
            if let Some(chunk) = bad.first() {
                self.rotted(entry, id);
                return Err(StoreError::Corrupt { id, chunk: *chunk });
            }
            // Somebody wrote it anew meanwhile.
            bytes = read().map_err(unreadable)?;
            if tree.check(chunks, &bytes).is_err() {
                return Err(unreadable(StoreError::Corrupt { id, chunk: chunks.start }));
            }
        }
        Ok((tree, bytes.into()))
    }

    /// The verified tree of an extent's segment, from memory or from beside the file.
    pub(super) fn tree_of(
        &self,
        entry: &Arc<Entry>,
        files: &Files,
        extent: usize,
        slice: &Slice,
    ) -> Result<ChunkTree, StoreError> {
        if let Some(tree) = self.trees.lock().get(&slice.segment.id)
            && tree.segment() == slice.segment
        {
            return Ok(tree.clone());
        }
        let tree = entry.tree(files, extent, slice).inspect_err(|_| self.rotted(entry, slice.segment.id))?;
        self.trees.lock().put(slice.segment.id, tree.clone());
        Ok(tree)
    }
}

impl State {
    fn add_to_index(&mut self, entry: &Arc<Entry>) {
        let mut seen: HashMap<SegmentId, usize> = HashMap::new();
        for extent in 0..entry.manifest.extents().len() {
            let Some(slice) = entry.slice(extent) else { continue };
            let times = seen.entry(slice.segment.id).or_default();
            *times += 1;
            if *times <= PLACES_PER_FILE {
                self.index.entry(slice.segment.id).or_default().push((entry.clone(), extent));
            }
        }
    }

    /// Segments of which anything is here. A large cache is counted now and then only.
    fn count_segments(&mut self) -> u64 {
        if let Some((at, count)) = self.counted
            && self.index.len() > COUNT_UP_TO
            && at.elapsed() < COUNT_LASTS
        {
            return count;
        }
        let here =
            |places: &&Vec<(Arc<Entry>, usize)>| places.iter().any(|(entry, at)| entry.level(*at) != Level::Nothing);
        let count = self.index.values().filter(here).count() as u64;
        self.counted = Some((Instant::now(), count));
        count
    }

    fn remove_from_index(&mut self, entry: &Arc<Entry>) {
        let distinct: HashSet<SegmentId> = entry.manifest.segments().map(|segment| segment.id).collect();
        for id in distinct {
            if let Some(places) = self.index.get_mut(&id) {
                places.retain(|(place, _)| !Arc::ptr_eq(place, entry));
                if places.is_empty() {
                    self.index.remove(&id);
                    self.rotten.remove(&id);
                }
            }
        }
    }
}
