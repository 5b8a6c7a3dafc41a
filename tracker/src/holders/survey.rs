//! Going through many segments, each once, however often it is named.
//!
//! Invariant: what it costs is a bit for a segment that somebody holds; only those that nobody holds are
//! remembered by their ids.

use std::collections::HashSet;

use roaring::RoaringBitmap;
use swarm_proto::SegmentId;

use super::{HolderRef, Holders, SHARDS};

/// Segments already seen.
pub struct Survey<'a> {
    holders: &'a Holders,
    seen: Vec<RoaringBitmap>,
    unheld: HashSet<SegmentId>,
    found: Vec<HolderRef>,
}

impl<'a> Survey<'a> {
    /// None yet.
    pub fn new(holders: &'a Holders) -> Self {
        Self { holders, seen: vec![RoaringBitmap::new(); SHARDS], unheld: HashSet::new(), found: Vec::new() }
    }

    /// The holders of `id`, in no order, if it was not seen before.
    ///
    /// Shape: a segment whose last holder goes while the survey runs may be seen twice, or another that
    ///        took its place not at all: the next survey is right.
    pub fn first(&mut self, id: &SegmentId) -> Option<&[HolderRef]> {
        self.found.clear();
        let hash = self.holders.hash(id.as_bytes());
        let number = Holders::shard_of(hash);
        let slot = {
            let shard = self.holders.shards[number].read();
            let slot = shard.find(hash, id.as_bytes());
            if let Some(slot) = slot {
                self.found.extend_from_slice(shard.holders_of(slot));
            }
            slot
        };
        let new = match slot {
            Some(slot) => self.seen[number].insert(slot),
            None => self.unheld.insert(*id),
        };
        new.then_some(&self.found[..])
    }
}
