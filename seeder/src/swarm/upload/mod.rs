//! Sending segments to seeders: cut, hash, skip what the swarm has, place, store. Not here: the commit
//! that names them, which is the caller's (`put`, or a mount's flush).
//!
//! Invariant: a segment counts as placed only by the word of a seeder that holds it whole, and only as
//! long as that seeder promised to keep it.

mod cut;
mod deliver;
mod file;
mod lately;
mod ledger;
mod links;
mod placer;
mod recent;
mod shortage;
mod store_call;
mod uploader;

pub use file::{Uploaded, upload_file, upload_range, upload_stream};
pub use shortage::Shortage;
pub use uploader::{LONGEST_SYNC, Lease, Piece, Placed, Room, UploadStats, Uploader};

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use swarm_proto::{DEFAULT_SEGMENT_BYTES, PeerId, Segment, SegmentId};

use super::PeerAddress;
use crate::store::AckLevel;
use crate::tracker_client::TrackerError;

/// How an [`Uploader`] works.
#[derive(Debug, Clone)]
pub struct UploadConfig {
    /// Length at which files are cut, 1 to [`swarm_proto::MAX_SEGMENT_BYTES`].
    pub segment_bytes: u32,
    /// Seeders that each segment goes to, as far as there are so many.
    pub replicas: u32,
    /// Seeders that must hold a segment before it counts as placed; fewer where fewer are up.
    pub min_replicas: u32,
    /// What a seeder must reach before it acknowledges a segment.
    pub level: AckLevel,
    /// Segments that are sent together and no longer than this are sent unasked, to each seeder by itself: to ask first
    /// who has them, or to wait for one seeder after the other, costs more than to send them. 0: all are asked for.
    pub unasked_bytes: u64,
    /// Raise a seeder to the fsync level in the background whenever it took so many bytes; none: only
    /// when [`Uploader::sync`] is called. Spreads the disks' work over a long upload.
    pub sync_every_bytes: Option<u64>,
    /// Bytes that are read and not yet placed.
    pub in_flight_bytes: u64,
    /// How long seeders are asked to keep what no manifest names yet; renewed while it is needed.
    pub keep: Duration,
    /// How long without any progress before an upload gives up.
    pub patience: Duration,
    /// Bytes of short segments, as `unasked_bytes` has it, that are remembered; 0: none.
    pub recent_bytes: usize,
}

impl Default for UploadConfig {
    fn default() -> Self {
        Self {
            segment_bytes: DEFAULT_SEGMENT_BYTES,
            replicas: 3,
            min_replicas: 2,
            level: AckLevel::Close,
            unasked_bytes: 0,
            sync_every_bytes: None,
            in_flight_bytes: 64 << 20,
            keep: Duration::from_secs(3_600),
            patience: Duration::from_secs(60),
            recent_bytes: 0,
        }
    }
}

/// Why an upload failed. The variant tells the caller what to do next.
#[derive(Debug, Clone, thiserror::Error)]
pub enum UploadError {
    /// No seeder is up: start one.
    #[error("no seeder is up, so nothing can be stored")]
    NoSeeder,
    /// Every seeder is full: add one.
    #[error("the seeders are full: segment {segment} has {got} of {need} replicas", segment = .segment.id)]
    Full {
        /// The segment that found no room.
        segment: Segment,
        /// Replicas that were acknowledged.
        got: usize,
        /// Replicas that were needed.
        need: usize,
    },
    /// Seeders failed, and too few took their place in time.
    #[error("segment {segment} reached {got} of {need} seeders; the last failure: {last}", segment = .segment.id)]
    TooFew {
        /// The segment.
        segment: Segment,
        /// Replicas that were acknowledged.
        got: usize,
        /// Replicas that were needed.
        need: usize,
        /// What the last seeder that failed did.
        last: String,
    },
    /// The tracker could not be asked where to put them.
    #[error(transparent)]
    Tracker(#[from] TrackerError),
    /// The source cannot be read.
    #[error("{0}")]
    Read(Arc<std::io::Error>),
    /// The source changed again and again while it was read.
    #[error("it changes while it is being read")]
    Changing,
    /// The upload is larger than a file can be.
    #[error("{0}")]
    TooLarge(swarm_proto::ManifestError),
    /// The process is being stopped.
    #[error("the upload is being stopped")]
    Stopping,
}

/// Where an uploader learns who has what and who shall take what: the tracker, or a fake.
pub trait Placer: Send + Sync + 'static {
    /// Peers that may hold each segment whole, in the order asked.
    fn holders(&self, ids: Vec<SegmentId>) -> BoxFuture<'_, Result<Vec<Vec<PeerAddress>>, TrackerError>>;

    /// Seeders that should take each segment, in the order asked; fewer than `replicas` if there are no
    /// more with room.
    fn place(
        &self,
        segments: Vec<Segment>,
        replicas: u32,
        exclude: Vec<PeerId>,
    ) -> BoxFuture<'_, Result<Vec<Vec<PeerAddress>>, TrackerError>>;

    /// All seeders of the swarm.
    fn seeders(&self) -> BoxFuture<'_, Result<Vec<KnownSeeder>, TrackerError>>;
}

/// Whether a seeder is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeederState {
    /// It is.
    Live,
    /// It was until a moment ago.
    Stale,
    /// It has been away for longer, and may come back.
    Away,
}

/// A seeder of the swarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownSeeder {
    /// Who.
    pub id: PeerId,
    /// Whether it is up.
    pub state: SeederState,
    /// Bytes that it could still take.
    pub free_bytes: u64,
}

#[cfg(test)]
mod tests;
