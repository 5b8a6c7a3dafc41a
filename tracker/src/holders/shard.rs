//! **PURE.** One shard: the segments whose hash falls into it, in both directions.
//!
//! Invariant: a peer's bitmap contains a slot if and only if the slot's record names the peer; a slot is
//! in the index if and only if it has a holder.

use hashbrown::HashTable;
use roaring::RoaringBitmap;

use super::slots::{Doubt, Extent, HolderRef, Slots};
use crate::peers::PeerSlot;

/// What one peer holds of this shard.
#[derive(Default)]
struct Holdings {
    held: RoaringBitmap,
    /// What an inventory that is coming in has named so far.
    staged: Option<RoaringBitmap>,
}

/// Segments of one shard.
#[derive(Default)]
pub(super) struct Shard {
    index: HashTable<u32>,
    slots: Slots,
    peers: Vec<Holdings>,
}

/// What an addition did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Added {
    /// The peer did not hold it before.
    New,
    /// It did, differently.
    Changed,
    /// It did, just so.
    Same,
    /// No slot is left.
    Full,
}

impl Shard {
    /// The slot of a segment that somebody holds.
    pub(super) fn find(&self, hash: u64, id: &[u8; 32]) -> Option<u32> {
        self.index.find(hash, |slot| self.slots.id(*slot) == id).copied()
    }

    pub(super) fn segments(&self) -> usize {
        self.index.len()
    }

    pub(super) fn holders(&self, hash: u64, id: &[u8; 32]) -> &[HolderRef] {
        self.find(hash, id).map_or(&[], |slot| self.holders_of(slot))
    }

    pub(super) fn holders_of(&self, slot: u32) -> &[HolderRef] {
        self.slots.holders(slot)
    }

    pub(super) fn add(
        &mut self,
        hash: u64,
        id: &[u8; 32],
        holder: (PeerSlot, Extent),
        rehash: impl Fn(&[u8; 32]) -> u64,
    ) -> Added {
        let (peer, extent) = holder;
        let slot = match self.find(hash, id) {
            Some(slot) => slot,
            None => {
                let Some(slot) = self.slots.allocate(*id) else { return Added::Full };
                let slots = &self.slots;
                self.index.insert_unique(hash, slot, |slot| rehash(slots.id(*slot)));
                slot
            }
        };
        let at = peer.index();
        if at >= self.peers.len() {
            self.peers.resize_with(at + 1, Holdings::default);
        }
        let holdings = &mut self.peers[at];
        if let Some(staged) = &mut holdings.staged {
            staged.insert(slot);
        }
        let wanted = HolderRef::new(peer, extent);
        if holdings.held.insert(slot) {
            self.slots.push(slot, wanted);
            return Added::New;
        }
        match self.slots.change(slot, peer, |_| wanted) {
            true => Added::Changed,
            false => Added::Same,
        }
    }

    pub(super) fn remove(
        &mut self,
        hash: u64,
        id: &[u8; 32],
        peer: PeerSlot,
        rehash: impl Fn(&[u8; 32]) -> u64,
    ) -> bool {
        match self.find(hash, id) {
            Some(slot) => self.remove_slot(slot, peer, rehash),
            None => false,
        }
    }

    fn remove_slot(&mut self, slot: u32, peer: PeerSlot, rehash: impl Fn(&[u8; 32]) -> u64) -> bool {
        let Some(holdings) = self.peers.get_mut(peer.index()) else { return false };
        if let Some(staged) = &mut holdings.staged {
            staged.remove(slot);
        }
        if !holdings.held.remove(slot) {
            return false;
        }
        if self.slots.remove(slot, peer) == 0 {
            if let Ok(entry) = self.index.find_entry(rehash(self.slots.id(slot)), |found| *found == slot) {
                entry.remove();
            }
            self.slots.release(slot);
        }
        true
    }

    pub(super) fn doubt(&mut self, hash: u64, id: &[u8; 32], peer: PeerSlot, doubt: Doubt) -> bool {
        match self.find(hash, id) {
            Some(slot) => self.slots.change(slot, peer, |holder| holder.doubted(doubt)),
            None => false,
        }
    }

    /// From now on remember what is added for `peer`, until [`Self::settle`] drops the rest.
    pub(super) fn stage(&mut self, peer: PeerSlot) {
        let at = peer.index();
        if at >= self.peers.len() {
            self.peers.resize_with(at + 1, Holdings::default);
        }
        self.peers[at].staged = Some(RoaringBitmap::new());
    }

    /// Drop what was not added since [`Self::stage`], at most `most` now; returns how many were dropped
    /// and whether that was all.
    pub(super) fn settle(&mut self, peer: PeerSlot, most: usize, rehash: impl Fn(&[u8; 32]) -> u64) -> (usize, bool) {
        let Some(holdings) = self.peers.get_mut(peer.index()) else { return (0, true) };
        let Some(staged) = &holdings.staged else { return (0, true) };
        let mut gone = (&holdings.held - staged).into_iter();
        let batch: Vec<u32> = gone.by_ref().take(most).collect();
        let done = gone.next().is_none();
        for slot in &batch {
            self.remove_slot(*slot, peer, &rehash);
        }
        if done {
            let holdings = &mut self.peers[peer.index()];
            holdings.staged = None;
            // Packed runs: a peer that holds everything costs next to nothing.
            holdings.held.optimize();
        }
        (batch.len(), done)
    }

    pub(super) fn held_by(&self, peer: PeerSlot) -> u64 {
        self.peers.get(peer.index()).map_or(0, |holdings| holdings.held.len())
    }

    /// Bytes on the heap.
    pub(super) fn memory_bytes(&self) -> usize {
        let bitmaps: usize = self
            .peers
            .iter()
            .flat_map(|holdings| std::iter::once(&holdings.held).chain(&holdings.staged))
            .map(bitmap_bytes)
            .sum();
        self.index.allocation_size()
            + self.slots.memory_bytes()
            + self.peers.capacity() * size_of::<Holdings>()
            + bitmaps
    }
}

/// Bytes of a bitmap: its containers' contents, and 40 bytes of bookkeeping for each.
fn bitmap_bytes(bitmap: &RoaringBitmap) -> usize {
    let statistics = bitmap.statistics();
    // It counts an array's capacity as u32; the values are u16.
    let contents = statistics.n_bytes_array_containers / 2
        + statistics.n_bytes_bitset_containers
        + statistics.n_bytes_run_containers;
    usize::try_from(contents).unwrap_or(usize::MAX) + statistics.n_containers as usize * 40
}
