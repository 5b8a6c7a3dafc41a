//! A handle to one cached version; while it lives the version is not evicted.

use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;
use swarm_proto::{ByteRange, ChunkRange, ChunkTree, Manifest, ManifestDigest};

use super::disk::{Files, failed};
use super::entry::{Entry, MissingRun};
use super::store::CacheStore;
use crate::store::StoreError;

/// One version of a file in the cache, wholly, in part, or not yet.
///
/// Calls that touch the disk block: use them where that is allowed.
pub struct CacheFile {
    pub(super) store: Arc<CacheStore>,
    pub(super) entry: Arc<Entry>,
}

impl CacheFile {
    /// Which version.
    pub fn digest(&self) -> ManifestDigest {
        self.entry.digest
    }

    /// Its extents.
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.entry.manifest
    }

    /// What of `range` is not here, in file order; what lies past the end of the file is left out.
    ///
    /// Cost: memory only. A chunk from before a restart counts as here, although [`Self::read`] may
    ///       still find that it rotted.
    pub fn missing(&self, range: ByteRange) -> Vec<MissingRun> {
        self.entry.missing(range)
    }

    /// The chunks of an extent that are not here, as runs in order.
    ///
    /// Cost: memory only, as [`Self::missing`].
    pub fn absent(&self, extent: usize, chunks: ChunkRange) -> Vec<ChunkRange> {
        self.entry.absent(extent, chunks)
    }

    /// The bytes of the file at `range`.
    ///
    /// Shape:  exactly `range`, which lies within the file; holes are zeros.
    /// Errors: [`StoreError::Partial`] if not all is here; [`StoreError::Corrupt`] or [`StoreError::Io`]
    ///         after dropping what cannot be used, so that [`Self::missing`] names it.
    /// Cost:   blocks; one hash of each chunk whose first use this is.
    pub fn read(&self, range: ByteRange) -> Result<Bytes, StoreError> {
        if !self.entry.is_on_disk() && self.entry.parts(range).is_empty() {
            let zeros = usize::try_from(range.len()).map_err(|_| StoreError::Full)?;
            return Ok(vec![0; zeros].into());
        }
        let files = self.verified(range)?;
        let read = Entry::read_data(&files, range).map_err(failed("read a cached file"));
        let bytes = read.map_err(|error| self.drop_all(range, error))?;
        match self.entry.was_stored_to(&files) {
            true => Err(self.distrust(range)),
            false => Ok(bytes),
        }
    }

    /// Somebody stored into it: nothing of it is here any more, and the version is fetched anew.
    fn distrust(&self, range: ByteRange) -> StoreError {
        let why = "somebody stored into a cached file, by a map made while the kernel read it: replace it";
        self.entry.distrust();
        self.store.give_up(&self.entry, why);
        let part = self.entry.parts(range).into_iter().next();
        part.map_or(StoreError::Full, |(_, slice, chunks)| StoreError::Corrupt {
            id: slice.segment.id,
            chunk: chunks.start,
        })
    }

    /// Hash every chunk of `range` that this process did not hash yet, as [`Self::read`] does.
    pub fn verify(&self, range: ByteRange) -> Result<(), StoreError> {
        self.verified(range).map(drop)
    }

    fn verified(&self, range: ByteRange) -> Result<Arc<Files>, StoreError> {
        if let Some(absent) = self.entry.missing(range).first() {
            return Err(StoreError::Partial(absent.segment.id));
        }
        let files = self.entry.files(&self.store.folder).map_err(|error| self.drop_all(range, error))?;
        for (extent, slice, chunks) in self.entry.parts(range) {
            for run in self.entry.unverified(extent, &slice, chunks) {
                let tree = self.store.tree_of(&self.entry, &files, extent, &slice)?;
                let bad = self.entry.verify(&files, &tree, extent, &slice, run);
                let bad = bad.map_err(|error| self.drop_all(range, error))?;
                if let Some(chunk) = bad.first() {
                    self.store.rotted(&self.entry, slice.segment.id);
                    return Err(StoreError::Corrupt { id: slice.segment.id, chunk: *chunk });
                }
            }
        }
        Ok(files)
    }

    /// The disk failed at `range`: it is not here any more.
    fn drop_all(&self, range: ByteRange, error: StoreError) -> StoreError {
        for (extent, slice, chunks) in self.entry.parts(range) {
            self.entry.forget(extent, chunks);
            self.store.dropped(&self.entry, slice.segment.id);
        }
        error
    }

    /// The bytes of the file at `range`, if that needs neither hashing nor the disk.
    pub fn read_at_once(&self, range: ByteRange) -> Option<Bytes> {
        self.entry.read_at_once(range)
    }

    /// Put chunks of an extent's segment in, evicting what is needed.
    ///
    /// Shape:  `bytes` is exactly `chunks` and was verified against `tree`; chunks that the extent does
    ///         not show are left out, and so are those that are here already.
    /// Errors: [`StoreError::Full`]: no room, or the version was removed: go on without the cache.
    /// Cost:   blocks.
    pub fn write(&self, extent: usize, tree: &ChunkTree, chunks: ChunkRange, bytes: &Bytes) -> Result<(), StoreError> {
        let slice = self.entry.slice(extent).ok_or(StoreError::Mismatch(tree.segment().id))?;
        self.store.write(&self.entry, extent, &slice, tree, chunks, bytes)
    }

    /// Whether another cached version, or another extent of this one, has some of `run`. From memory.
    pub fn can_adopt(&self, run: &MissingRun) -> bool {
        self.store.has_elsewhere(&self.entry, run.extent, &run.segment.id, run.chunks.start)
    }

    /// Copy what other cached versions have of `run` into this one; true if nothing of it is missing then.
    ///
    /// Cost: blocks; each chunk is verified on the way.
    pub fn adopt(&self, run: &MissingRun) -> bool {
        match self.entry.slice(run.extent) {
            Some(slice) if slice.segment == run.segment => {
                self.store.adopt(&self.entry, run.extent, &slice, run.chunks.intersect(slice.chunks))
            }
            _ => false,
        }
    }

    /// The whole file, opened for reading, if every chunk of it was verified by this process.
    ///
    /// From then on nothing writes to it: it is replaced or unlinked. So the kernel may read it by itself.
    pub fn complete(&self) -> Option<Arc<File>> {
        let file = self.entry.seal(&self.store.folder);
        if file.is_none() && self.entry.is_verified() {
            let files = self.entry.files(&self.store.folder).ok();
            if files.is_some_and(|files| self.entry.was_stored_to(&files)) {
                self.distrust(ByteRange::at(0, 0));
            }
        }
        file
    }

    /// Whether every chunk is here, verified or not.
    pub fn is_full(&self) -> bool {
        self.entry.is_on_disk() && self.entry.is_full()
    }

    /// Whether [`Self::complete`] would answer now.
    pub fn is_verified(&self) -> bool {
        self.entry.is_verified()
    }

    /// Bytes of the file that are here; holes count once all the rest is.
    pub fn cached_bytes(&self) -> u64 {
        self.entry.cached_bytes()
    }
}

impl Drop for CacheFile {
    fn drop(&mut self) {
        self.store.unpin(&self.entry);
    }
}
