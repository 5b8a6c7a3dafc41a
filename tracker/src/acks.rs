//! What a commit says of who keeps its segments: the seam between catalog and holders.

use swarm_proto::{PeerId, SegmentId};

/// Hears which seeder acknowledged which segments.
pub trait AckSink: Send + Sync + 'static {
    /// `peer` keeps `ids` whole. Called before the commit is answered, so that the next `locate` finds
    /// them; must not block.
    fn acknowledged(&self, peer: PeerId, ids: &[SegmentId]);

    /// Of each segment, whether a live seeder is known to hold it whole. A commit that names one that
    /// nobody holds, and that it carries no acknowledgement of, is refused; must not block.
    fn known(&self, ids: &[SegmentId]) -> Vec<bool>;
}

/// Nobody listens: for a catalog alone.
impl AckSink for () {
    fn acknowledged(&self, _: PeerId, _: &[SegmentId]) {}

    fn known(&self, ids: &[SegmentId]) -> Vec<bool> {
        vec![true; ids.len()]
    }
}
