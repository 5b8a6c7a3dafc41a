//! Reading files: from memory, else the cache, else the swarm; and what will be read next ahead of time.
//!
//! Not the file system (names, attributes, handles of the kernel) and not the fetching itself. Invariants:
//! every byte that leaves was verified by this process; a chunk is fetched once, however many readers
//! wait for it; every read ends by its deadline; nothing that a reader waits for waits for the cache.

mod budget;
mod engine;
mod flights;
mod metrics;
mod prefetch;
mod readahead;
mod reader;
mod source;
mod writer;

pub use budget::MemoryBudget;
pub use engine::{ReadConfig, ReadEngine};
pub use metrics::ReadStats;
pub use reader::OpenFile;
pub use source::{ChunkSource, SentOrElse};

use std::time::Duration;

use swarm_proto::SegmentId;
use swarm_seeder::swarm::FetchError;

/// Why a read brought no bytes. The variant tells the caller what to show.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// Nothing answered in time.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// No live peer holds a segment of it.
    #[error("no live peer holds segment {0}")]
    NoHolder(SegmentId),
    /// Peers hold it, but none answered rightly; says what the last one did.
    #[error("{0}")]
    Failed(String),
    /// The mount is going away.
    #[error("the mount is stopping")]
    Stopping,
}

impl From<FetchError> for ReadError {
    fn from(error: FetchError) -> Self {
        match error {
            FetchError::NoHolder { segment, .. } => Self::NoHolder(segment.id),
            FetchError::AllFailed { .. } => Self::Failed(error.to_string()),
            FetchError::Stopping => Self::Stopping,
        }
    }
}

#[cfg(test)]
mod tests;
