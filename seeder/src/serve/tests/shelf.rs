//! A store in memory that fails when told to.

use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use swarm_proto::{ChunkRange, ChunkTree, Presence, Segment, SegmentId};
use tokio::sync::broadcast;

use crate::store::{AckLevel, ChunkStore, Held, Holding, Loan, ReplicaSink, SegmentWriter, StoreError, Usage};

/// Segments in memory; `trouble` makes the next writes fail.
#[derive(Default)]
pub(super) struct Shelf {
    pub(super) segments: Mutex<HashMap<SegmentId, (Bytes, ChunkTree, Presence)>>,
    pub(super) trouble: Mutex<Option<StoreError>>,
    pub(super) has_no_sink: bool,
    /// A read of these never ends.
    pub(super) stuck: Mutex<HashSet<SegmentId>>,
}

struct ShelfWriter {
    segment: Segment,
    bytes: Vec<u8>,
}

impl SegmentWriter for ShelfWriter {
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, Result<(), StoreError>> {
        self.bytes.extend_from_slice(&bytes);
        async { Ok(()) }.boxed()
    }
    fn into_any(self: Box<Self>) -> Box<dyn Any + Send> {
        self
    }
}

struct ShelfSink(Arc<Shelf>);

impl ReplicaSink for ShelfSink {
    fn begin(&self, segment: Segment) -> BoxFuture<'_, Result<Box<dyn SegmentWriter>, StoreError>> {
        let trouble = self.0.trouble.lock().clone();
        async move {
            match trouble {
                Some(error) => Err(error),
                None => Ok(Box::new(ShelfWriter { segment, bytes: Vec::new() }) as Box<dyn SegmentWriter>),
            }
        }
        .boxed()
    }
    fn commit(
        &self,
        writers: Vec<Box<dyn SegmentWriter>>,
        _: AckLevel,
        _: Duration,
    ) -> BoxFuture<'_, Vec<Result<(), StoreError>>> {
        let commit = |writer: Box<dyn SegmentWriter>| {
            let writer = writer.into_any().downcast::<ShelfWriter>().expect("our own");
            let tree = ChunkTree::build(&writer.bytes);
            if tree.segment() != writer.segment {
                return Err(StoreError::Mismatch(writer.segment.id));
            }
            let entry = (Bytes::from(writer.bytes), tree, Presence::Whole);
            self.0.segments.lock().insert(writer.segment.id, entry);
            Ok(())
        };
        async move {
            // As a disk would, it takes a moment.
            tokio::task::yield_now().await;
            writers.into_iter().map(commit).collect()
        }
        .boxed()
    }
    fn mend(&self, _: ChunkTree, _: ChunkRange, _: Bytes) -> BoxFuture<'_, Result<(), StoreError>> {
        async { Ok(()) }.boxed()
    }
    fn touch(&self, ids: Vec<SegmentId>, _: Duration) -> BoxFuture<'_, Result<Vec<u64>, StoreError>> {
        let segments = self.0.segments.lock();
        let stamps = ids.iter().map(|id| u64::from(segments.contains_key(id))).collect();
        async { Ok(stamps) }.boxed()
    }
    fn sync(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        async { Ok(()) }.boxed()
    }
}

/// A shelf that can hand out itself.
pub(super) struct Store(pub(super) Arc<Shelf>);

impl ChunkStore for Store {
    fn holding(&self) -> Holding {
        Holding::Replica
    }
    fn held(&self, id: &SegmentId) -> Option<Held> {
        let segments = self.0.segments.lock();
        let (_, tree, presence) = segments.get(id)?;
        Some(Held { segment: tree.segment(), presence: presence.clone() })
    }
    async fn tree(&self, id: SegmentId) -> Result<ChunkTree, StoreError> {
        self.0.segments.lock().get(&id).map(|(_, tree, _)| tree.clone()).ok_or(StoreError::Missing(id))
    }
    async fn read(&self, id: SegmentId, chunks: ChunkRange) -> Result<Bytes, StoreError> {
        if self.0.stuck.lock().contains(&id) {
            std::future::pending::<()>().await;
        }
        let segments = self.0.segments.lock();
        let (bytes, tree, presence) = segments.get(&id).ok_or(StoreError::Missing(id))?;
        if !presence.has(chunks) {
            return Err(StoreError::Partial(id));
        }
        let range = tree.segment().bytes_of(chunks);
        Ok(bytes.slice(usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()))
    }
    async fn lend(&self, id: SegmentId, chunks: ChunkRange) -> Result<Option<Loan>, StoreError> {
        let bytes = self.read(id, chunks).await?;
        if bytes.len() <= 65_536 {
            return Ok(None);
        }
        let mut file = tempfile::tempfile().expect("a folder for temporary files");
        file.write_all(b"before").and_then(|()| file.write_all(&bytes)).expect("room for a file");
        Ok(Some(Loan { file: file.into(), offset: 6 }))
    }
    async fn reverify(&self, _: SegmentId) -> Result<Vec<u32>, StoreError> {
        Ok(Vec::new())
    }
    fn inventory(&self) -> Vec<(SegmentId, bool)> {
        self.0.segments.lock().iter().map(|(id, (_, _, presence))| (*id, *presence == Presence::Whole)).collect()
    }
    fn changes(&self) -> broadcast::Receiver<SegmentId> {
        broadcast::channel(1).1
    }
    fn usage(&self) -> Usage {
        Usage::default()
    }
    fn sink(&self) -> Option<Arc<dyn ReplicaSink>> {
        (!self.0.has_no_sink).then(|| Arc::new(ShelfSink(Arc::clone(&self.0))) as Arc<dyn ReplicaSink>)
    }
}
