//! What a commit says of who keeps its segments: the seam between catalog and holders.

use swarm_proto::{PeerId, SegmentId};

/// Hears which seeder acknowledged which segments.
pub trait AckSink: Send + Sync + 'static {
    /// `peer` keeps `ids` whole. Called before the commit is answered, so that the next `locate` finds
    /// them; must not block.
    fn acknowledged(&self, peer: PeerId, ids: &[SegmentId]);
}

/// Nobody listens: for a catalog alone.
impl AckSink for () {
    fn acknowledged(&self, _: PeerId, _: &[SegmentId]) {}
}
