//! Keeping chunks. Not fetching them: `store` and `swarm` do not know each other.
//!
//! Invariant of every store: no byte leaves it that was not verified against its segment's tree, and the
//! tree against the segment's id, when it was read.

pub mod cache;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use swarm_proto::{ChunkRange, ChunkTree, Presence, Segment, SegmentId};
use tokio::sync::broadcast;

#[cfg(any(test, feature = "testing"))]
pub mod conformance;
pub mod disk;
#[cfg(any(test, feature = "testing"))]
pub mod memory;
mod segment_file;
pub mod sled;

pub use self::sled::{SledStore, StoreConfig};

/// What the segments of a store mean to the swarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holding {
    /// Durable; counts toward the replication factor.
    Replica,
    /// A cached copy; served, never counted, may vanish at any time.
    Cached,
}

/// What a store has of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The segment.
    pub segment: Segment,
    /// Which chunks of it.
    pub presence: Presence,
}

/// A segment with chunks that were dropped as corrupt and are not mended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damaged {
    /// The segment.
    pub segment: Segment,
    /// What it lacks, in order; may be all of it.
    pub lost: Vec<ChunkRange>,
}

/// How full a store is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes it may use; 0: whatever is free.
    pub capacity_bytes: u64,
    /// Bytes it uses.
    pub used_bytes: u64,
    /// Bytes it could still take.
    pub free_bytes: u64,
    /// Segments held, whole or in part.
    pub segments: u64,
    /// Segments with a chunk known to be bad, not repaired yet.
    pub corrupt_segments: u64,
}

/// Where bytes lie.
#[derive(Debug)]
pub struct Loan {
    /// A regular file, open for reading.
    pub file: OwnedFd,
    /// Where in it they begin.
    pub offset: u64,
}

/// How much an acknowledgement survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AckLevel {
    /// kill -9 of the process.
    Close,
    /// A power cut of the machine.
    Fsync,
}

/// Why a store did not do it. The variant tells the caller what to do next.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The store surely lacks it: ask elsewhere.
    #[error("segment {0:?} is not here")]
    Missing(SegmentId),
    /// The segment is here but these chunks are not (any more): ask elsewhere for them.
    #[error("some chunks of segment {0:?} are not here")]
    Partial(SegmentId),
    /// A chunk at rest was bad; the store has dropped it already: announce the loss, repair it.
    #[error("chunk {chunk} of segment {id:?} was corrupt on disk and is dropped")]
    Corrupt {
        /// The segment.
        id: SegmentId,
        /// The first bad chunk.
        chunk: u32,
    },
    /// The bytes given do not hash to the id given: the sender is wrong.
    #[error("the bytes given do not hash to segment {0:?}")]
    Mismatch(SegmentId),
    /// No room: place it elsewhere.
    #[error("the store is full")]
    Full,
    /// The disk or the database failed.
    #[error("{doing}: {source}")]
    Io {
        /// Present-tense verb and object.
        doing: &'static str,
        /// Why.
        source: Arc<std::io::Error>,
    },
    /// The folder is not a usable store; says what to do.
    #[error("{0}")]
    Unusable(String),
}

/// The error of an operation on the disk or the database; a full disk is [`StoreError::Full`].
fn failed(doing: &'static str) -> impl Fn(std::io::Error) -> StoreError {
    move |source| match disk::is_full(&source) {
        true => StoreError::Full,
        false => StoreError::Io { doing, source: Arc::new(source) },
    }
}

/// A store that serves chunks.
///
/// Implemented by the durable store ([`Holding::Replica`]), the mount's cache ([`Holding::Cached`]) and
/// the memory store of the tests; one conformance suite runs against all.
pub trait ChunkStore: Send + Sync + 'static {
    /// What its segments mean.
    fn holding(&self) -> Holding;

    /// What it has of a segment. From memory or an index, never from content; cheap.
    fn held(&self, id: &SegmentId) -> Option<Held>;

    /// The verified tree of a segment of which anything is held.
    fn tree(&self, id: SegmentId) -> impl Future<Output = Result<ChunkTree, StoreError>> + Send;

    /// Bytes of a run of chunks, verified now.
    ///
    /// Shape:  exactly the bytes of `chunks`.
    /// Errors: [`StoreError::Partial`] if not all are held; [`StoreError::Corrupt`] after dropping what
    ///         did not verify.
    fn read(&self, id: SegmentId, chunks: ChunkRange) -> impl Future<Output = Result<Bytes, StoreError>> + Send;

    /// The open file in which a run of chunks lies, for who reads it himself; none if it lies in no file of its own.
    ///
    /// Shape:  what lies there was verified, now or a short while ago, but may rot: its reader verifies it.
    /// Errors: as [`Self::read`].
    fn lend(&self, _: SegmentId, _: ChunkRange) -> impl Future<Output = Result<Option<Loan>, StoreError>> + Send {
        std::future::ready(Ok(None))
    }

    /// Read all of a segment again and drop every chunk that does not verify; returns those.
    fn reverify(&self, id: SegmentId) -> impl Future<Output = Result<Vec<u32>, StoreError>> + Send;

    /// Every segment of which anything is held, and whether all of it is.
    fn inventory(&self) -> Vec<(SegmentId, bool)>;

    /// Ids of segments whose presence changed; ask [`Self::held`] for the state. A receiver that lags
    /// takes [`Self::inventory`] again.
    fn changes(&self) -> broadcast::Receiver<SegmentId>;

    /// How full it is.
    fn usage(&self) -> Usage;

    /// The side that takes whole segments, if this store is durable.
    fn sink(&self) -> Option<Arc<dyn ReplicaSink>> {
        None
    }
}

/// A durable store's side that takes segments.
pub trait ReplicaSink: Send + Sync + 'static {
    /// Prepare to take one segment. Errors: [`StoreError::Full`].
    fn begin(&self, segment: Segment) -> BoxFuture<'_, Result<Box<dyn SegmentWriter>, StoreError>>;

    /// Make finished segments durable together, at `level`; outcomes in the same order.
    ///
    /// Cost: groups the syncs of all segments, and of concurrent calls.
    fn commit(
        &self,
        writers: Vec<Box<dyn SegmentWriter>>,
        level: AckLevel,
        keep: Duration,
    ) -> BoxFuture<'_, Vec<Result<(), StoreError>>>;

    /// Put verified chunks into a segment that is held in part (repair).
    fn mend(&self, tree: ChunkTree, chunks: ChunkRange, bytes: Bytes) -> BoxFuture<'_, Result<(), StoreError>>;

    /// The durable word that these are held whole and kept for `keep`: the touch stamp of each, 0 if it
    /// is not held whole.
    fn touch(&self, ids: Vec<SegmentId>, keep: Duration) -> BoxFuture<'_, Result<Vec<u64>, StoreError>>;

    /// Raise all that was acknowledged so far to [`AckLevel::Fsync`].
    fn sync(&self) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Segments with chunks that were dropped as corrupt: what to [`Self::mend`]. From memory.
    fn damaged(&self) -> Vec<Damaged> {
        Vec::new()
    }
}

/// Takes the bytes of one segment, in order. Dropping it without a commit leaves nothing behind.
pub trait SegmentWriter: Send + 'static {
    /// The next bytes. Errors: [`StoreError::Mismatch`] if there are more than the segment has.
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, Result<(), StoreError>>;

    /// For the store that made it.
    fn into_any(self: Box<Self>) -> Box<dyn std::any::Any + Send>;
}
