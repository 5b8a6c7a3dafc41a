//! The soft half: which peers hold which segments, in both directions.
//!
//! Everything is rebuilt from announces, nothing is durable, and an entry is a hint, never proof. Not
//! the peers themselves: [`crate::peers`] knows who a [`PeerSlot`] is and whether it lives.
//!
//! Invariant: readers and writers hold one shard for microseconds, and never two.

mod shard;
mod slots;
mod survey;
#[cfg(test)]
mod tests;

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};

use hashbrown::DefaultHashBuilder;
use parking_lot::RwLock;
use swarm_proto::SegmentId;

use self::shard::{Added, Shard};
pub use self::slots::{Doubt, Extent, HolderRef};
pub use self::survey::Survey;
use crate::peers::PeerSlot;

/// Shards: enough that the cores of one machine seldom meet in one, few enough that a peer's bookkeeping
/// in each (48 bytes) stays small.
const SHARDS: usize = 32;

/// Holdings removed under one hold of a shard.
const BATCH: usize = 2_048;

/// No slot is left for another segment: 4 billion a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this tracker can remember no more segments")]
pub struct HoldersFull;

/// Segment → peers and peer → segments.
///
/// Cost: at most 64 bytes a segment with three holders, both directions and the ids included.
pub struct Holders {
    shards: Box<[RwLock<Shard>]>,
    hasher: DefaultHashBuilder,
    version: AtomicU64,
}

impl Default for Holders {
    fn default() -> Self {
        Self::new()
    }
}

impl Holders {
    /// Nobody holds anything.
    pub fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| RwLock::new(Shard::default())).collect(),
            // Keyed at random in each process: ids that a hostile peer chose do not collide here.
            hasher: DefaultHashBuilder::default(),
            version: AtomicU64::new(0),
        }
    }

    fn hash(&self, id: &[u8; 32]) -> u64 {
        self.hasher.hash_one(id)
    }

    /// The shard of a hash, by bits that its table uses neither as position nor as tag.
    fn shard_of(hash: u64) -> usize {
        (hash >> 40) as usize % SHARDS
    }

    /// Append the holders of `id` to `into`, in no order.
    ///
    /// Cost: one shared lock, a probe and a copy.
    pub fn holders_into(&self, id: &[u8; 32], into: &mut Vec<HolderRef>) {
        let hash = self.hash(id);
        into.extend_from_slice(self.shards[Self::shard_of(hash)].read().holders(hash, id));
    }

    /// `peer` holds these segments.
    ///
    /// Shape:  takes back a doubt about them: the peer has looked again.
    /// Cost:   each shard is held once for all its ids.
    pub fn add(&self, peer: PeerSlot, extent: Extent, ids: &[SegmentId]) -> Result<(), HoldersFull> {
        let mut result = Ok(());
        let mut changed = false;
        self.by_shard(ids, |shard, batch| {
            let mut shard = shard.write();
            for (hash, id) in batch {
                match shard.add(*hash, id, (peer, extent), |id| self.hash(id)) {
                    Added::New | Added::Changed => changed = true,
                    Added::Same => {}
                    Added::Full => result = Err(HoldersFull),
                }
            }
        });
        self.touch(changed);
        result
    }

    /// `peer` no longer holds these segments.
    pub fn remove(&self, peer: PeerSlot, ids: &[SegmentId]) {
        let mut changed = false;
        self.by_shard(ids, |shard, batch| {
            let mut shard = shard.write();
            for (hash, id) in batch {
                changed |= shard.remove(*hash, id, peer, |id| self.hash(id));
            }
        });
        self.touch(changed);
    }

    /// A full inventory of `peer` begins: what [`Self::add`] names from here on stays.
    pub fn begin_inventory(&self, peer: PeerSlot) {
        for shard in &self.shards {
            shard.write().stage(peer);
        }
    }

    /// The inventory is complete: what it did not name is no longer held.
    pub fn end_inventory(&self, peer: PeerSlot) {
        let mut changed = false;
        for shard in &self.shards {
            loop {
                let (dropped, done) = shard.write().settle(peer, BATCH, |id| self.hash(id));
                changed |= dropped > 0;
                if done {
                    break;
                }
            }
        }
        self.touch(changed);
    }

    /// Forget all that `peer` holds.
    pub fn forget(&self, peer: PeerSlot) {
        self.begin_inventory(peer);
        self.end_inventory(peer);
    }

    /// Raise or clear a doubt about one holder; whether that changed anything.
    pub fn doubt(&self, peer: PeerSlot, id: &SegmentId, doubt: Doubt) -> bool {
        let hash = self.hash(id.as_bytes());
        self.shards[Self::shard_of(hash)].write().doubt(hash, id.as_bytes(), peer, doubt)
    }

    /// Segments that have a holder.
    pub fn segments(&self) -> u64 {
        self.shards.iter().map(|shard| shard.read().segments() as u64).sum()
    }

    /// Segments that `peer` holds, whole or in part.
    pub fn held_by(&self, peer: PeerSlot) -> u64 {
        self.shards.iter().map(|shard| shard.read().held_by(peer)).sum()
    }

    /// Increases whenever a holding is added, changed or removed.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Bytes on the heap, both directions and the ids included.
    pub fn memory_bytes(&self) -> usize {
        self.shards.iter().map(|shard| size_of::<RwLock<Shard>>() + shard.read().memory_bytes()).sum()
    }

    fn touch(&self, changed: bool) {
        if changed {
            self.version.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn by_shard(&self, ids: &[SegmentId], mut each: impl FnMut(&RwLock<Shard>, &[(u64, [u8; 32])])) {
        if let [id] = ids {
            let hash = self.hash(id.as_bytes());
            return each(&self.shards[Self::shard_of(hash)], &[(hash, *id.as_bytes())]);
        }
        let mut buckets: Vec<Vec<(u64, [u8; 32])>> = vec![Vec::new(); SHARDS];
        for bucket in &mut buckets {
            bucket.reserve(ids.len() / SHARDS + ids.len() / (2 * SHARDS));
        }
        for id in ids {
            let hash = self.hash(id.as_bytes());
            buckets[Self::shard_of(hash)].push((hash, *id.as_bytes()));
        }
        for (shard, bucket) in self.shards.iter().zip(&buckets) {
            if !bucket.is_empty() {
                each(shard, bucket);
            }
        }
    }
}
