//! One cached version of a file: which of its chunks are here, and moving them to and from its two files.
//!
//! Not the room it may take nor who may remove it: that is the store's. Invariants: a chunk is *verified*
//! only if it is *present*; verified means that this process hashed it, before it was written or after it
//! was read again. Once the file was handed to the kernel (*sealed*), nothing writes to it any more; if somebody does,
//! by a map of it, nothing of it is here.

mod sealed;

use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use bytes::Bytes;
use parking_lot::Mutex;
use swarm_proto::manifest::PartSource;
use swarm_proto::{ByteRange, CHUNK_BYTES, ChunkRange, ChunkTree, MAX_RUN_CHUNKS, Manifest, ManifestDigest, Segment};

use super::bitmap::{Bitmap, PAGE_BYTES};
use super::disk::{Files, Folder, Found, failed, read_at, read_at_once};
use super::layout::{Layout, Slice};
use crate::store::StoreError;

/// Chunks of a file that are not in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MissingRun {
    /// Index of the extent in the manifest.
    pub extent: usize,
    /// Its segment.
    pub segment: Segment,
    /// The chunks, non-empty.
    pub chunks: ChunkRange,
    /// The bytes of the file that they show.
    pub in_file: ByteRange,
}

/// How much of an extent's segment one file has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    Nothing,
    Some,
    Whole,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// No file of it was made yet.
    Unwritten,
    OnDisk,
    /// Its files were removed; handles that are open read on.
    Gone,
}

struct State {
    present: Bitmap,
    verified: Bitmap,
    /// Pages of `present` that the disk does not have.
    dirty: BTreeSet<u64>,
    /// Trees that this process wrote or read and found right, by their offset.
    good_trees: HashSet<u64>,
    stage: Stage,
    /// When the data was last written, as it was handed to the kernel.
    sealed: Option<SystemTime>,
}

pub(super) struct Entry {
    pub(super) digest: ManifestDigest,
    pub(super) manifest: Arc<Manifest>,
    layout: Layout,
    state: Mutex<State>,
    files: Mutex<Option<Arc<Files>>>,
    read_only: Mutex<Weak<File>>,
    /// Held by the one who writes chunks.
    pub(super) writing: Mutex<()>,
    /// Who uses it now; changed only under the store's lock, and not evicted unless 0.
    pub(super) pins: AtomicU64,
    /// Bytes on disk as the store last counted them; changed only under the store's lock.
    pub(super) bytes: AtomicU64,
}

impl Entry {
    pub(super) fn new(digest: ManifestDigest, manifest: Arc<Manifest>, encoded_bytes: u64) -> Self {
        let layout = Layout::of(&manifest, encoded_bytes);
        let present = Bitmap::empty(layout.bits());
        Self::with(digest, manifest, layout, present, Stage::Unwritten, 0)
    }

    pub(super) fn found(found: Found) -> Self {
        Self::with(found.digest, Arc::new(found.manifest), found.layout, found.present, Stage::OnDisk, found.bytes)
    }

    fn with(
        digest: ManifestDigest,
        manifest: Arc<Manifest>,
        layout: Layout,
        present: Bitmap,
        stage: Stage,
        bytes: u64,
    ) -> Self {
        let verified = Bitmap::empty(layout.bits());
        let state =
            State { present, verified, dirty: BTreeSet::new(), good_trees: HashSet::new(), stage, sealed: None };
        Self {
            digest,
            manifest,
            layout,
            state: Mutex::new(state),
            files: Mutex::new(None),
            read_only: Mutex::new(Weak::new()),
            writing: Mutex::new(()),
            pins: AtomicU64::new(0),
            bytes: AtomicU64::new(bytes),
        }
    }

    pub(super) fn slice(&self, extent: usize) -> Option<Slice> {
        Slice::of(&self.manifest, extent)
    }

    pub(super) fn is_on_disk(&self) -> bool {
        self.state.lock().stage == Stage::OnDisk
    }

    pub(super) fn is_gone(&self) -> bool {
        self.state.lock().stage == Stage::Gone
    }

    pub(super) fn is_pinned(&self) -> bool {
        self.pins.load(Ordering::Relaxed) > 0
    }

    /// Its files were or are about to be removed.
    pub(super) fn mark_gone(&self) {
        let mut state = self.state.lock();
        state.stage = Stage::Gone;
        state.dirty.clear();
    }

    // What is here.

    pub(super) fn level(&self, extent: usize) -> Level {
        let Some(slice) = self.slice(extent) else { return Level::Nothing };
        let bits = self.layout.bits_of(extent, &slice, slice.chunks);
        let all = bits.end - bits.start;
        match self.state.lock().present.count_in(bits) {
            0 => Level::Nothing,
            count if count == all && slice.chunks == slice.segment.all() => Level::Whole,
            _ => Level::Some,
        }
    }

    pub(super) fn has(&self, extent: usize, chunk: u32) -> bool {
        self.slice(extent).is_some_and(|slice| {
            let bits = self.layout.bits_of(extent, &slice, ChunkRange::new(chunk, chunk + 1));
            !bits.is_empty() && self.state.lock().present.contains_all(bits)
        })
    }

    /// The chunks of an extent that are here, up to the first that is not.
    pub(super) fn run_from(&self, extent: usize, chunks: ChunkRange) -> ChunkRange {
        let Some(slice) = self.slice(extent) else { return ChunkRange::new(chunks.start, chunks.start) };
        if !slice.chunks.iter().contains(&chunks.start) {
            return ChunkRange::new(chunks.start, chunks.start);
        }
        let bits = self.layout.bits_of(extent, &slice, chunks);
        let gaps = self.state.lock().present.gaps(bits.clone());
        let end = gaps.first().map_or(bits.end, |gap| gap.start);
        self.layout.chunks_of(extent, &slice, bits.start..end)
    }

    /// The chunks of an extent that are here.
    pub(super) fn present_runs(&self, extent: usize) -> Vec<ChunkRange> {
        let Some(slice) = self.slice(extent) else { return Vec::new() };
        let bits = self.layout.bits_of(extent, &slice, slice.chunks);
        let gaps = self.state.lock().present.gaps(bits.clone());
        let mut runs = Vec::new();
        let mut start = bits.start;
        for gap in gaps.into_iter().chain(std::iter::once(bits.end..bits.end)) {
            if gap.start > start {
                runs.push(self.layout.chunks_of(extent, &slice, start..gap.start));
            }
            start = gap.end;
        }
        runs
    }

    /// The chunks of an extent that are not here.
    pub(super) fn absent(&self, extent: usize, chunks: ChunkRange) -> Vec<ChunkRange> {
        let Some(slice) = self.slice(extent) else { return Vec::new() };
        let gaps = self.state.lock().present.gaps(self.layout.bits_of(extent, &slice, chunks));
        gaps.into_iter().map(|gap| self.layout.chunks_of(extent, &slice, gap)).collect()
    }

    /// What of `range` is not here, in file order; what lies past the end of the file is left out.
    pub(super) fn missing(&self, range: ByteRange) -> Vec<MissingRun> {
        let mut missing = Vec::new();
        self.each_part(range, |extent, slice, chunks| {
            let bits = self.layout.bits_of(extent, &slice, chunks);
            for gap in self.state.lock().present.gaps(bits) {
                let chunks = self.layout.chunks_of(extent, &slice, gap);
                let in_file = slice.in_file(slice.segment.bytes_of(chunks));
                missing.push(MissingRun { extent, segment: slice.segment, chunks, in_file });
            }
        });
        missing
    }

    fn each_part(&self, range: ByteRange, mut each: impl FnMut(usize, Slice, ChunkRange)) {
        let range = range.intersect(ByteRange::at(0, self.manifest.size()));
        let Ok(parts) = self.manifest.parts(range) else { return };
        for part in parts {
            if let (PartSource::Segment { chunks, .. }, Some(slice)) = (part.source, self.slice(part.extent)) {
                each(part.extent, slice, chunks);
            }
        }
    }

    /// Bytes of the file that are here.
    pub(super) fn cached_bytes(&self) -> u64 {
        let state = self.state.lock();
        if state.present.is_full() {
            return self.manifest.size();
        }
        if state.present.count() == 0 {
            return 0;
        }
        let extents = 0..self.manifest.extents().len();
        let shown = extents.filter_map(|extent| {
            let slice = self.slice(extent)?;
            let bits = self.layout.bits_of(extent, &slice, slice.chunks);
            let all = slice.in_segment.len();
            let absent: u64 = (state.present.gaps(bits).into_iter())
                .map(|gap| slice.in_file(slice.segment.bytes_of(self.layout.chunks_of(extent, &slice, gap))).len())
                .sum();
            Some(all - absent)
        });
        shown.sum()
    }

    /// Every chunk was verified by this process and lies in the file.
    pub(super) fn is_verified(&self) -> bool {
        let state = self.state.lock();
        state.stage == Stage::OnDisk && state.verified.is_full()
    }

    /// Every chunk is here, verified or not.
    pub(super) fn is_full(&self) -> bool {
        self.state.lock().present.is_full()
    }

    // Its files.

    pub(super) fn files(&self, folder: &Folder) -> Result<Arc<Files>, StoreError> {
        let mut files = self.files.lock();
        if let Some(files) = &*files {
            return Ok(files.clone());
        }
        if !self.is_on_disk() {
            return Err(failed("open a cached file")(io::ErrorKind::NotFound.into()));
        }
        let opened = Arc::new(folder.open_files(&self.digest).map_err(failed("open a cached file"))?);
        *files = Some(opened.clone());
        Ok(opened)
    }

    /// The files, made if there are none yet; the flag says that they were.
    ///
    /// Errors: [`StoreError::Full`] if they were removed, since what is not on disk takes no chunks.
    pub(super) fn create(&self, folder: &Folder) -> Result<(Arc<Files>, bool), StoreError> {
        if self.is_gone() {
            return Err(StoreError::Full);
        }
        if self.is_on_disk() {
            return Ok((self.files(folder)?, false));
        }
        let mut files = self.files.lock();
        let encoded = self.manifest.encode();
        let made = folder.create_files(&self.digest, self.manifest.size(), &encoded);
        let made = Arc::new(made.map_err(failed("make a cached file"))?);
        *files = Some(made.clone());
        self.state.lock().stage = Stage::OnDisk;
        Ok((made, true))
    }

    /// Bytes that making the files would take: those of the manifest.
    pub(super) fn bytes_to_create(&self) -> u64 {
        match self.is_on_disk() {
            true => 0,
            false => self.layout.bits_at,
        }
    }

    pub(super) fn close_files(&self) {
        *self.files.lock() = None;
    }

    // Moving chunks.

    /// The runs of `chunks` that this process did not verify yet.
    pub(super) fn unverified(&self, extent: usize, slice: &Slice, chunks: ChunkRange) -> Vec<ChunkRange> {
        let bits = self.layout.bits_of(extent, slice, chunks);
        let gaps = self.state.lock().verified.gaps(bits);
        gaps.into_iter().map(|gap| self.layout.chunks_of(extent, slice, gap)).collect()
    }

    /// Write verified chunks, `bytes` being all of `chunks`; the caller holds `writing`.
    pub(super) fn put(
        &self,
        files: &Files,
        extent: usize,
        slice: &Slice,
        tree: &ChunkTree,
        chunks: ChunkRange,
        bytes: &[u8],
    ) -> io::Result<()> {
        let whole = slice.segment.bytes_of(chunks);
        let of = |range: ByteRange| {
            let at = |byte: u64| usize::try_from(byte - whole.start).expect("a run of a segment is below 64 MiB");
            &bytes[at(range.start)..at(range.end)]
        };
        let shown = whole.intersect(slice.in_segment);
        files.data.write_all_at(of(shown), slice.in_file(shown).start)?;
        for chunk in slice.edges(chunks) {
            if let Some(at) = self.layout.slack_at(extent, chunk) {
                files.meta.write_all_at(of(slice.segment.bytes_of(ChunkRange::new(chunk, chunk + 1))), at)?;
            }
        }
        let tree_at = self.layout.tree_at(extent);
        if !tree.values().is_empty() && !self.state.lock().good_trees.contains(&tree_at) {
            files.meta.write_all_at(tree.values(), tree_at)?;
            self.state.lock().good_trees.insert(tree_at);
        }
        self.mark(extent, slice, chunks);
        Ok(())
    }

    /// Chunks whose bytes another way brought into the file, verified, are here.
    fn mark(&self, extent: usize, slice: &Slice, chunks: ChunkRange) {
        let bits = self.layout.bits_of(extent, slice, chunks);
        let mut state = self.state.lock();
        state.present.insert(bits.clone());
        state.verified.insert(bits.clone());
        state.touch_pages(bits);
    }

    /// All bytes of some chunks of an extent, as they lie on disk.
    pub(super) fn chunk_bytes(
        &self,
        files: &Files,
        extent: usize,
        slice: &Slice,
        chunks: ChunkRange,
    ) -> io::Result<Vec<u8>> {
        let whole = slice.segment.bytes_of(chunks);
        let shown = whole.intersect(slice.in_segment);
        let at = |byte: u64| usize::try_from(byte - whole.start).expect("a run of a segment is below 64 MiB");
        if shown == whole {
            return read_at(&files.data, slice.in_file(whole).start, at(whole.end));
        }
        let mut bytes = vec![0; at(whole.end)];
        for chunk in slice.edges(chunks) {
            let edge = slice.segment.bytes_of(ChunkRange::new(chunk, chunk + 1));
            if let Some(slot) = self.layout.slack_at(extent, chunk) {
                files.meta.read_exact_at(&mut bytes[at(edge.start)..at(edge.end)], slot)?;
            }
        }
        files.data.read_exact_at(&mut bytes[at(shown.start)..at(shown.end)], slice.in_file(shown).start)?;
        Ok(bytes)
    }

    /// The tree that lies beside an extent, verified now.
    ///
    /// Errors: [`StoreError::Corrupt`] after dropping every chunk of the extent.
    pub(super) fn tree(&self, files: &Files, extent: usize, slice: &Slice) -> Result<ChunkTree, StoreError> {
        let at = self.layout.tree_at(extent);
        let values = match ChunkTree::wire_len(slice.segment) {
            0 => Vec::new(),
            length => read_at(&files.meta, at, length).unwrap_or_default(),
        };
        match ChunkTree::verify(slice.segment, values.into()) {
            Ok(tree) => {
                self.state.lock().good_trees.insert(at);
                Ok(tree)
            }
            Err(_) => {
                self.state.lock().good_trees.remove(&at);
                self.forget(extent, slice.chunks);
                Err(StoreError::Corrupt { id: slice.segment.id, chunk: slice.chunks.start })
            }
        }
    }

    /// Hash chunks that are here; those that do not verify are dropped and returned.
    pub(super) fn verify(
        &self,
        files: &Files,
        tree: &ChunkTree,
        extent: usize,
        slice: &Slice,
        chunks: ChunkRange,
    ) -> Result<Vec<u32>, StoreError> {
        let mut bad = Vec::new();
        for run in chunks.intersect(slice.chunks).runs(MAX_RUN_CHUNKS) {
            let bytes = self.chunk_bytes(files, extent, slice, run).map_err(failed("read a cached file"))?;
            if tree.check(run, &bytes).is_ok() {
                self.set_verified(extent, slice, run);
                continue;
            }
            for (chunk, bytes) in run.iter().zip(bytes.chunks(CHUNK_BYTES as usize)) {
                let one = ChunkRange::new(chunk, chunk + 1);
                match tree.check(one, bytes) {
                    Ok(()) => self.set_verified(extent, slice, one),
                    Err(_) => bad.extend(self.drop_if_bad(files, tree, extent, slice, one)?.then_some(chunk)),
                }
            }
        }
        Ok(bad)
    }

    /// Drop a chunk, unless somebody wrote it anew since it was found to be bad.
    fn drop_if_bad(
        &self,
        files: &Files,
        tree: &ChunkTree,
        extent: usize,
        slice: &Slice,
        chunk: ChunkRange,
    ) -> Result<bool, StoreError> {
        let _writing = self.writing.lock();
        let bytes = self.chunk_bytes(files, extent, slice, chunk).map_err(failed("read a cached file"))?;
        let bad = tree.check(chunk, &bytes).is_err();
        match bad {
            true => self.forget(extent, chunk),
            false => self.set_verified(extent, slice, chunk),
        }
        Ok(bad)
    }

    fn set_verified(&self, extent: usize, slice: &Slice, chunks: ChunkRange) {
        let bits = self.layout.bits_of(extent, slice, chunks);
        let mut state = self.state.lock();
        if state.present.contains_all(bits.clone()) {
            state.verified.insert(bits);
        }
    }

    /// The bytes at `range` of the file, if all are here, verified, and in the kernel's memory.
    pub(super) fn read_at_once(&self, range: ByteRange) -> Option<Bytes> {
        let mut ready = true;
        self.each_part(range, |extent, slice, chunks| {
            let bits = self.layout.bits_of(extent, &slice, chunks);
            ready &= self.state.lock().verified.contains_all(bits);
        });
        let length = usize::try_from(range.len()).ok().filter(|_| ready)?;
        let files = self.files.lock().clone()?;
        let bytes = read_at_once(&files.data, range.start, length)?;
        (!self.was_stored_to(&files)).then(|| bytes.into())
    }

    pub(super) fn read_data(files: &Files, range: ByteRange) -> io::Result<Bytes> {
        let length = usize::try_from(range.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        Ok(read_at(&files.data, range.start, length)?.into())
    }

    /// The extents that `range` touches, with the chunks of each.
    pub(super) fn parts(&self, range: ByteRange) -> Vec<(usize, Slice, ChunkRange)> {
        let mut parts = Vec::new();
        self.each_part(range, |extent, slice, chunks| parts.push((extent, slice, chunks)));
        parts
    }

    /// Chunks are not here any more. A file that the kernel reads by itself cannot be mended in place: it
    /// is gone, and the store removes it.
    pub(super) fn forget(&self, extent: usize, chunks: ChunkRange) {
        let Some(slice) = self.slice(extent) else { return };
        let bits = self.layout.bits_of(extent, &slice, chunks);
        let mut state = self.state.lock();
        state.present.remove(bits.clone());
        state.verified.remove(bits.clone());
        state.touch_pages(bits);
        if state.sealed.is_some() {
            state.stage = Stage::Gone;
        }
    }

    // Making bits durable.

    /// The pages that changed, with their offsets, as they are now; they count as clean from now on.
    ///
    /// The caller syncs the data before it writes them.
    pub(super) fn take_dirty(&self) -> Vec<(u64, Vec<u8>)> {
        let mut state = self.state.lock();
        if state.stage != Stage::OnDisk {
            return Vec::new();
        }
        let dirty = std::mem::take(&mut state.dirty);
        let at = |page: u64| self.layout.bits_at + page * PAGE_BYTES as u64;
        dirty.into_iter().map(|page| (at(page), state.present.page(page))).collect()
    }
}

impl State {
    fn touch_pages(&mut self, bits: Range<u64>) {
        if !bits.is_empty() {
            self.dirty.extend(Bitmap::page_of(bits.start)..=Bitmap::page_of(bits.end - 1));
        }
    }
}
