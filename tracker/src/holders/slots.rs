//! **PURE.** The records of segments: 44 bytes each, in chunks that never move.
//!
//! Not an index: whoever keeps a slot number finds the record by it. Invariant: a record is either free
//! or names a segment with its holders; the first three holders stand in the record, more in a spill.

use crate::peers::PeerSlot;

/// A holder of one segment, in four bytes: who, whether only in part, whether it is doubted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HolderRef(u32);

const PARTIAL: u32 = 1;
const DOUBTED: u32 = 2;

impl HolderRef {
    pub(super) fn new(peer: PeerSlot, extent: Extent) -> Self {
        let partial = match extent {
            Extent::Whole => 0,
            Extent::Partial => PARTIAL,
        };
        Self(peer.number() << 2 | partial)
    }

    /// Who.
    pub fn peer(self) -> PeerSlot {
        PeerSlot::of_stored(self.0 >> 2)
    }

    /// Whether it holds only some chunks.
    pub fn is_partial(self) -> bool {
        self.0 & PARTIAL != 0
    }

    /// Whether somebody reported that it answered wrongly, since it last announced the segment.
    pub fn is_doubted(self) -> bool {
        self.0 & DOUBTED != 0
    }

    pub(super) fn doubted(self, doubt: Doubt) -> Self {
        match doubt {
            Doubt::Raised => Self(self.0 | DOUBTED),
            Doubt::Cleared => Self(self.0 & !DOUBTED),
        }
    }
}

/// How much of a segment a peer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// All chunks.
    Whole,
    /// Some chunks; it says which when asked.
    Partial,
}

/// Whether a holder is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doubt {
    /// It was reported.
    Raised,
    /// Time or an announce took the doubt away.
    Cleared,
}

const INLINE: usize = 3;
// Peer slots stay below 2^30 - 1, so no holder has one of these values.
const NONE: HolderRef = HolderRef(u32::MAX);
const SPILLED: HolderRef = HolderRef(u32::MAX - 1);
const FREE: HolderRef = HolderRef(u32::MAX - 2);
const NO_SLOT: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Record {
    id: [u8; 32],
    holders: [HolderRef; INLINE],
}

const CHUNK: usize = 512;

/// Records by slot number.
#[derive(Default)]
pub(super) struct Slots {
    chunks: Vec<Box<[Record]>>,
    used: u32,
    free_head: Option<u32>,
    spill: Vec<Vec<HolderRef>>,
    spill_free: Vec<u32>,
}

impl Slots {
    fn record(&self, slot: u32) -> &Record {
        &self.chunks[slot as usize / CHUNK][slot as usize % CHUNK]
    }

    fn record_mut(&mut self, slot: u32) -> &mut Record {
        &mut self.chunks[slot as usize / CHUNK][slot as usize % CHUNK]
    }

    pub(super) fn id(&self, slot: u32) -> &[u8; 32] {
        &self.record(slot).id
    }

    /// A slot for a segment without holders; `None` if this store is full (2^32 - 2 segments).
    pub(super) fn allocate(&mut self, id: [u8; 32]) -> Option<u32> {
        let record = Record { id, holders: [NONE; INLINE] };
        if let Some(slot) = self.free_head {
            let next = self.record(slot).holders[1].0;
            self.free_head = (next != NO_SLOT).then_some(next);
            *self.record_mut(slot) = record;
            return Some(slot);
        }
        let slot = self.used;
        self.used = slot.checked_add(1).filter(|used| *used < NO_SLOT)?;
        if slot as usize / CHUNK == self.chunks.len() {
            self.chunks.push(vec![Record { id: [0; 32], holders: [NONE; INLINE] }; CHUNK].into_boxed_slice());
        }
        *self.record_mut(slot) = record;
        Some(slot)
    }

    /// Give back a slot that has no holders any more.
    pub(super) fn release(&mut self, slot: u32) {
        let next = self.free_head.unwrap_or(NO_SLOT);
        self.record_mut(slot).holders = [FREE, HolderRef(next), NONE];
        self.free_head = Some(slot);
    }

    pub(super) fn holders(&self, slot: u32) -> &[HolderRef] {
        let record = self.record(slot);
        match record.holders[0] {
            SPILLED => &self.spill[record.holders[1].0 as usize],
            FREE => &[],
            _ => &record.holders[..record.inline_count()],
        }
    }

    /// Add a holder that is not there yet.
    pub(super) fn push(&mut self, slot: u32, holder: HolderRef) {
        let record = self.record(slot);
        if record.holders[0] == SPILLED {
            let at = record.holders[1].0 as usize;
            self.spill[at].push(holder);
            return;
        }
        let count = record.inline_count();
        if count < INLINE {
            self.record_mut(slot).holders[count] = holder;
            return;
        }
        let mut many = Vec::with_capacity(2 * INLINE);
        many.extend_from_slice(&record.holders);
        many.push(holder);
        let at = match self.spill_free.pop() {
            Some(at) => {
                self.spill[at as usize] = many;
                at
            }
            None => {
                self.spill.push(many);
                u32::try_from(self.spill.len() - 1).expect("there are fewer spills than slots, which are u32")
            }
        };
        self.record_mut(slot).holders = [SPILLED, HolderRef(at), NONE];
    }

    /// Remove the holder of `peer` if there is one; returns how many are left.
    pub(super) fn remove(&mut self, slot: u32, peer: PeerSlot) -> usize {
        let record = self.record_mut(slot);
        if record.holders[0] != SPILLED {
            let count = record.inline_count();
            let Some(at) = record.holders[..count].iter().position(|holder| holder.peer() == peer) else {
                return count;
            };
            record.holders[at] = record.holders[count - 1];
            record.holders[count - 1] = NONE;
            return count - 1;
        }
        let at = record.holders[1].0;
        let many = &mut self.spill[at as usize];
        if let Some(found) = many.iter().position(|holder| holder.peer() == peer) {
            many.swap_remove(found);
        }
        // One fewer than fits, so that a holder which comes and goes does not move the list each time.
        if many.len() < INLINE {
            let many = std::mem::take(many);
            self.spill_free.push(at);
            let mut holders = [NONE; INLINE];
            holders[..many.len()].copy_from_slice(&many);
            self.record_mut(slot).holders = holders;
            return many.len();
        }
        many.len()
    }

    /// Change the holder of `peer`, if there is one; whether it became another.
    pub(super) fn change(&mut self, slot: u32, peer: PeerSlot, to: impl Fn(HolderRef) -> HolderRef) -> bool {
        let record = self.record_mut(slot);
        let holders = match record.holders[0] {
            SPILLED => {
                let at = record.holders[1].0 as usize;
                &mut self.spill[at][..]
            }
            _ => {
                let count = record.inline_count();
                &mut record.holders[..count]
            }
        };
        let Some(holder) = holders.iter_mut().find(|holder| holder.peer() == peer) else { return false };
        let changed = to(*holder);
        std::mem::replace(holder, changed) != changed
    }

    /// Bytes on the heap.
    pub(super) fn memory_bytes(&self) -> usize {
        self.chunks.len() * CHUNK * size_of::<Record>()
            + self.chunks.capacity() * size_of::<Box<[Record]>>()
            + self.spill.iter().map(|many| many.capacity() * size_of::<HolderRef>()).sum::<usize>()
            + self.spill.capacity() * size_of::<Vec<HolderRef>>()
            + self.spill_free.capacity() * size_of::<u32>()
    }
}

impl Record {
    fn inline_count(&self) -> usize {
        self.holders.iter().position(|holder| *holder == NONE).unwrap_or(INLINE)
    }
}
