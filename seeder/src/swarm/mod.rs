//! Fetching chunks from many peers at once. Not keeping them: `swarm` and `store` do not know each other.
//!
//! Invariant: no byte leaves [`Swarm::fetch`] that was not verified against its segment's tree, and the
//! tree against the segment's id.

mod blame;
mod borrow;
mod bucket;
mod config;
mod engine;
mod fetcher;
mod in_flight;
mod link;
mod locations;
mod meter;
mod metrics;
mod picker;
mod progress;
mod scoreboard;
#[cfg(test)]
mod simulation;
mod stats;
pub mod upload;

pub use config::{BanRules, SwarmConfig};
pub use fetcher::Swarm;
pub use stats::{PeerStats, Standing, SwarmStats};

use std::time::Instant;

use bytes::Bytes;
use futures::future::BoxFuture;
use swarm_proto::{ChunkRange, ChunkTree, PeerId, Segment, SegmentId};

/// How much a caller waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// A reader waits.
    Reader,
    /// Read ahead; served after readers.
    Ahead,
}

/// A run of chunks of one segment that somebody needs.
#[derive(Debug, Clone, Copy)]
pub struct Want {
    /// The segment.
    pub segment: Segment,
    /// The chunks; any number, non-empty, within the segment.
    pub chunks: ChunkRange,
    /// Who waits.
    pub urgency: Urgency,
    /// When to give up.
    pub deadline: Instant,
}

/// Verified chunks.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// The segment's verified tree.
    pub tree: ChunkTree,
    /// Consecutive runs that together are exactly the chunks wanted; each as it came, not copied.
    pub pieces: Vec<(ChunkRange, Bytes)>,
}

/// Why chunks could not be fetched.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FetchError {
    /// No live peer holds it, up to the deadline.
    #[error("no live peer holds chunks {first} to {last} of segment {segment}", first = .chunks.start, last = .chunks.end.saturating_sub(1), segment = .segment.id)]
    NoHolder {
        /// The segment.
        segment: Segment,
        /// The chunks that were not found.
        chunks: ChunkRange,
    },
    /// Holders were known but none answered rightly before the deadline; says what the last one did.
    #[error("all {holders} holders of segment {segment} failed; the last one: {last}", segment = .segment.id)]
    AllFailed {
        /// The segment.
        segment: Segment,
        /// How many were tried.
        holders: usize,
        /// What the last one did.
        last: String,
    },
    /// The swarm is being closed.
    #[error("this peer is stopping")]
    Stopping,
}

/// A peer that may hold a segment.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Holder {
    /// Who.
    pub peer: PeerAddress,
    /// Whether only in part.
    pub partial: bool,
}

/// A peer as one needs to know it to talk to it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PeerAddress {
    /// Who.
    pub id: PeerId,
    /// host:port.
    pub address: String,
    /// Failure domain; empty: the default one.
    pub zone: String,
    /// The machine.
    pub host: String,
}

/// What a holder did wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offence {
    /// It said that it lacks the segment.
    Missing(SegmentId),
    /// Its bytes or its tree did not verify.
    Corrupt(SegmentId),
    /// No answer, or too slow.
    Unreachable,
}

/// Where the fetcher learns who holds what: the tracker, or a fake.
pub trait Locator: Send + Sync + 'static {
    /// Holders of each segment, best first, in the order asked; at most 4,096 segments.
    ///
    /// Errors: in words, if nobody could be asked; the fetcher goes on with what it knows.
    fn locate(&self, ids: Vec<SegmentId>) -> BoxFuture<'_, Result<Vec<Vec<Holder>>, String>>;

    /// Holders of each of these that were known last, for while nobody can be asked. Asks nobody.
    fn remembered(&self, _ids: &[SegmentId]) -> Vec<(SegmentId, Vec<Holder>)> {
        Vec::new()
    }

    /// Tell that a holder answered wrongly; never waits.
    fn report(&self, peer: PeerId, offence: Offence);
}
