//! A store in memory, for tests of what stands on stores. Nothing survives it.
//!
//! Invariant: the same as every store's; bytes made bad by [`MemoryStore::rot`] are found when read.

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use swarm_proto::{CHUNK_BYTES, ChunkRange, ChunkSet, ChunkTree, MAX_SEGMENT_BYTES, Presence, Segment, SegmentId};
use tokio::sync::broadcast;

use super::{AckLevel, ChunkStore, Damaged, Held, Holding, ReplicaSink, SegmentWriter, StoreError, Usage};

const CHANGES: usize = 1024;

/// A store of plain maps.
pub struct MemoryStore {
    holding: Holding,
    capacity: u64,
    entries: Mutex<HashMap<SegmentId, Entry>>,
    changes: broadcast::Sender<SegmentId>,
    this: Weak<Self>,
}

struct Entry {
    tree: ChunkTree,
    bytes: Vec<u8>,
    good: ChunkSet,
    /// Chunks that were dropped as corrupt, not those that never were here.
    is_damaged: bool,
    touched: u64,
}

impl Entry {
    fn segment(&self) -> Segment {
        self.tree.segment()
    }

    fn presence(&self) -> Presence {
        if self.good.is_full() { Presence::Whole } else { Presence::Partial(self.good.clone()) }
    }

    fn slice(&self, chunks: ChunkRange) -> &[u8] {
        let range = self.segment().bytes_of(chunks);
        let at = |byte: u64| usize::try_from(byte).expect("a segment fits in memory");
        &self.bytes[at(range.start)..at(range.end)]
    }

    fn drop_bad(&mut self, chunks: ChunkRange) -> Vec<u32> {
        let one = |chunk| ChunkRange::new(chunk, chunk + 1);
        let is_bad =
            |chunk: &u32| self.good.contains(*chunk) && self.tree.check(one(*chunk), self.slice(one(*chunk))).is_err();
        let bad: Vec<u32> = chunks.iter().filter(is_bad).collect();
        bad.iter().for_each(|chunk| self.good.remove(one(*chunk)));
        self.is_damaged |= !bad.is_empty();
        bad
    }
}

impl MemoryStore {
    /// An empty one; a capacity of 0 is none.
    pub fn new(holding: Holding, capacity: u64) -> Arc<Self> {
        let changes = broadcast::channel(CHANGES).0;
        Arc::new_cyclic(|this| Self { holding, capacity, entries: Mutex::default(), changes, this: this.clone() })
    }

    /// Hold a whole segment.
    pub fn put(&self, bytes: &[u8]) -> Segment {
        let chunks = ChunkTree::build(bytes).segment().all();
        self.put_chunks(bytes, &[chunks])
    }

    /// Hold some chunks of a segment, beside those held already.
    pub fn put_chunks(&self, bytes: &[u8], chunks: &[ChunkRange]) -> Segment {
        let tree = ChunkTree::build(bytes);
        let segment = tree.segment();
        {
            let mut entries = self.entries.lock();
            let entry = entries.entry(segment.id).or_insert_with(|| Entry {
                good: ChunkSet::empty(segment.chunks()),
                bytes: bytes.to_vec(),
                is_damaged: false,
                touched: 0,
                tree,
            });
            chunks.iter().for_each(|run| entry.good.insert(*run));
        }
        self.changed(segment.id);
        segment
    }

    /// Drop a segment.
    pub fn remove(&self, id: &SegmentId) {
        self.entries.lock().remove(id);
        self.changed(*id);
    }

    /// Flip a bit of a chunk at rest.
    pub fn rot(&self, id: &SegmentId, chunk: u32) {
        if let Some(entry) = self.entries.lock().get_mut(id) {
            entry.bytes[chunk as usize * CHUNK_BYTES as usize] ^= 1;
        }
    }

    fn changed(&self, id: SegmentId) {
        // An error says that nobody listens.
        let _ = self.changes.send(id);
    }

    fn used(&self) -> u64 {
        self.entries.lock().values().map(|entry| entry.bytes.len() as u64).sum()
    }

    fn commit_one(&self, writer: Box<dyn SegmentWriter>) -> Result<(), StoreError> {
        let writer = writer.into_any().downcast::<MemoryWriter>().map_err(|_| StoreError::Io {
            doing: "commit a segment",
            source: Arc::new(std::io::Error::other("another store made its writer")),
        })?;
        let segment = writer.segment;
        if ChunkTree::build(&writer.bytes).segment() != segment {
            return Err(StoreError::Mismatch(segment.id));
        }
        let is_whole = self.entries.lock().get(&segment.id).is_some_and(|entry| entry.good.is_full());
        if !is_whole {
            self.entries.lock().remove(&segment.id);
            self.put(&writer.bytes);
        }
        if let Some(entry) = self.entries.lock().get_mut(&segment.id) {
            entry.touched += 1;
        }
        Ok(())
    }
}

impl ChunkStore for MemoryStore {
    fn holding(&self) -> Holding {
        self.holding
    }

    fn held(&self, id: &SegmentId) -> Option<Held> {
        let entries = self.entries.lock();
        let entry = entries.get(id).filter(|entry| !entry.good.is_empty())?;
        Some(Held { segment: entry.segment(), presence: entry.presence() })
    }

    async fn tree(&self, id: SegmentId) -> Result<ChunkTree, StoreError> {
        let entries = self.entries.lock();
        let entry = entries.get(&id).filter(|entry| !entry.good.is_empty());
        entry.map(|entry| entry.tree.clone()).ok_or(StoreError::Missing(id))
    }

    async fn read(&self, id: SegmentId, chunks: ChunkRange) -> Result<Bytes, StoreError> {
        let bad = {
            let mut entries = self.entries.lock();
            let entry = entries.get_mut(&id).filter(|entry| !entry.good.is_empty()).ok_or(StoreError::Missing(id))?;
            if !entry.segment().all().contains(chunks) || !entry.good.contains_all(chunks) {
                return Err(StoreError::Partial(id));
            }
            let bad = entry.drop_bad(chunks);
            if bad.is_empty() {
                return Ok(Bytes::copy_from_slice(entry.slice(chunks)));
            }
            bad
        };
        self.changed(id);
        Err(StoreError::Corrupt { id, chunk: bad.first().copied().unwrap_or_default() })
    }

    async fn reverify(&self, id: SegmentId) -> Result<Vec<u32>, StoreError> {
        let bad = {
            let mut entries = self.entries.lock();
            let entry = entries.get_mut(&id).filter(|entry| !entry.good.is_empty()).ok_or(StoreError::Missing(id))?;
            entry.drop_bad(entry.segment().all())
        };
        if !bad.is_empty() {
            self.changed(id);
        }
        Ok(bad)
    }

    fn inventory(&self) -> Vec<(SegmentId, bool)> {
        let entries = self.entries.lock();
        let held = entries.iter().filter(|(_, entry)| !entry.good.is_empty());
        held.map(|(id, entry)| (*id, entry.good.is_full())).collect()
    }

    fn changes(&self) -> broadcast::Receiver<SegmentId> {
        self.changes.subscribe()
    }

    fn usage(&self) -> Usage {
        let used = self.used();
        let capacity = if self.capacity == 0 { u64::MAX } else { self.capacity };
        let corrupt = self.entries.lock().values().filter(|entry| entry.is_damaged && !entry.good.is_full()).count();
        Usage {
            capacity_bytes: self.capacity,
            used_bytes: used,
            free_bytes: capacity.saturating_sub(used),
            segments: self.inventory().len() as u64,
            corrupt_segments: corrupt as u64,
        }
    }

    fn sink(&self) -> Option<Arc<dyn ReplicaSink>> {
        match self.holding {
            Holding::Replica => self.this.upgrade().map(|store| store as Arc<dyn ReplicaSink>),
            Holding::Cached => None,
        }
    }
}

impl ReplicaSink for MemoryStore {
    fn begin(&self, segment: Segment) -> BoxFuture<'_, Result<Box<dyn SegmentWriter>, StoreError>> {
        async move {
            if !(1..=MAX_SEGMENT_BYTES).contains(&segment.length) {
                return Err(StoreError::Mismatch(segment.id));
            }
            let is_whole = self.held(&segment.id).is_some_and(|held| held.presence == Presence::Whole);
            if !is_whole && self.usage().free_bytes < u64::from(segment.length) {
                return Err(StoreError::Full);
            }
            let writer = MemoryWriter { segment, bytes: Vec::new() };
            Ok(Box::new(writer) as Box<dyn SegmentWriter>)
        }
        .boxed()
    }

    fn commit(
        &self,
        writers: Vec<Box<dyn SegmentWriter>>,
        _level: AckLevel,
        _keep: Duration,
    ) -> BoxFuture<'_, Vec<Result<(), StoreError>>> {
        async move { writers.into_iter().map(|writer| self.commit_one(writer)).collect() }.boxed()
    }

    fn mend(&self, tree: ChunkTree, chunks: ChunkRange, bytes: Bytes) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            let id = tree.segment().id;
            if tree.check(chunks, &bytes).is_err() {
                return Err(StoreError::Mismatch(id));
            }
            {
                let mut entries = self.entries.lock();
                let entry = entries.get_mut(&id).ok_or(StoreError::Missing(id))?;
                if entry.segment() != tree.segment() {
                    return Err(StoreError::Mismatch(id));
                }
                let start = chunks.start as usize * CHUNK_BYTES as usize;
                entry.bytes[start..start + bytes.len()].copy_from_slice(&bytes);
                entry.good.insert(chunks);
                entry.is_damaged &= !entry.good.is_full();
            }
            self.changed(id);
            Ok(())
        }
        .boxed()
    }

    fn touch(&self, ids: Vec<SegmentId>, _keep: Duration) -> BoxFuture<'_, Result<Vec<u64>, StoreError>> {
        async move {
            let mut entries = self.entries.lock();
            let touch = |id| match entries.get_mut(&id).filter(|entry| entry.good.is_full()) {
                None => 0,
                Some(entry) => {
                    entry.touched += 1;
                    entry.touched
                }
            };
            Ok(ids.into_iter().map(touch).collect())
        }
        .boxed()
    }

    fn sync(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        async { Ok(()) }.boxed()
    }

    fn damaged(&self) -> Vec<Damaged> {
        let entries = self.entries.lock();
        let damaged = entries.values().filter(|entry| entry.is_damaged && !entry.good.is_full());
        damaged
            .map(|entry| Damaged { segment: entry.segment(), lost: entry.good.gaps(entry.segment().all()) })
            .collect()
    }
}

struct MemoryWriter {
    segment: Segment,
    bytes: Vec<u8>,
}

impl SegmentWriter for MemoryWriter {
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            if self.bytes.len() + bytes.len() > self.segment.length as usize {
                return Err(StoreError::Mismatch(self.segment.id));
            }
            self.bytes.extend_from_slice(&bytes);
            Ok(())
        }
        .boxed()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any + Send> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::conformance::{self, Subject};

    struct Memory;

    impl Subject for Memory {
        type Store = MemoryStore;

        fn open(&self) -> BoxFuture<'_, Arc<MemoryStore>> {
            async { MemoryStore::new(Holding::Replica, 64 << 20) }.boxed()
        }

        fn put<'a>(&'a self, store: &'a Arc<MemoryStore>, bytes: Bytes) -> BoxFuture<'a, ()> {
            async move {
                store.put(&bytes);
            }
            .boxed()
        }

        fn rot(&self, store: &Arc<MemoryStore>, segment: Segment, chunk: u32) -> bool {
            store.rot(&segment.id, chunk);
            true
        }
    }

    #[tokio::test]
    async fn conforms() {
        conformance::chunk_store(&Memory).await;
        conformance::replica_sink(&Memory).await;
    }
}
