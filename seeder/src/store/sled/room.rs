//! How much may still be written: the capacity, what is used, and what writers in progress will need.
//!
//! Not a quota of the file system's. Invariant: used and reserved together never exceed the capacity by
//! what was reserved here, and the disk keeps its floor free as far as this store decides.

use std::sync::Arc;

use parking_lot::Mutex;
use swarm_proto::Segment;

use super::schema::Place;
use crate::store::disk::DiskSpace;
use crate::store::segment_file::file_bytes;
use crate::store::{StoreError, Usage};

/// Bytes that sled takes for a byte of content: measured 1.8 with values of 16 KiB in key order.
const INLINE_FACTOR: u64 = 2;
/// Files take whole blocks.
const BLOCK_BYTES: u64 = 4096;
/// A record with its key, twice over.
const RECORD_BYTES: u64 = 256;

/// What a segment takes of the capacity.
pub(super) fn cost(segment: Segment, place: Place) -> u64 {
    match place {
        Place::File => file_bytes(segment).next_multiple_of(BLOCK_BYTES) + RECORD_BYTES,
        Place::Inline(_) => u64::from(segment.length) * INLINE_FACTOR + RECORD_BYTES,
    }
}

/// The account of one store.
pub(super) struct Room {
    capacity: u64,
    floor: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    used: u64,
    reserved: u64,
    /// As the disk said last.
    disk_free: u64,
}

impl Room {
    /// An account over `capacity` bytes, of which nothing is taken yet; 0: 90 % of what is free, and of
    /// `ours`, which is on the disk already.
    pub(super) fn new(capacity: u64, floor: u64, ours: u64, disk: DiskSpace) -> Arc<Self> {
        let capacity = match capacity {
            0 => disk.free.saturating_add(ours) / 10 * 9,
            given => given,
        };
        Arc::new(Self { capacity, floor, state: Mutex::new(State { used: 0, reserved: 0, disk_free: disk.free }) })
    }

    /// Set `bytes` aside for a writer. Errors: [`StoreError::Full`].
    pub(super) fn reserve(self: &Arc<Self>, bytes: u64) -> Result<Reservation, StoreError> {
        let mut state = self.state.lock();
        let taken = state.reserved.saturating_add(bytes);
        if state.used.saturating_add(taken) > self.capacity || self.floor.saturating_add(taken) > state.disk_free {
            return Err(StoreError::Full);
        }
        state.reserved = taken;
        Ok(Reservation { room: self.clone(), bytes })
    }

    /// What the disk says is free now.
    pub(super) fn disk_says(&self, free: u64) {
        self.state.lock().disk_free = free;
    }

    /// Room that a record takes from now on.
    pub(super) fn take(&self, bytes: u64) {
        let mut state = self.state.lock();
        state.used = state.used.saturating_add(bytes);
    }

    /// Room that a record no longer takes.
    pub(super) fn give_back(&self, bytes: u64) {
        let mut state = self.state.lock();
        state.used = state.used.saturating_sub(bytes);
    }

    /// How full it is; the counts of segments are left at 0.
    pub(super) fn usage(&self) -> Usage {
        let state = self.state.lock();
        let by_capacity = self.capacity.saturating_sub(state.used.saturating_add(state.reserved));
        let by_disk = state.disk_free.saturating_sub(self.floor.saturating_add(state.reserved));
        Usage {
            capacity_bytes: self.capacity,
            used_bytes: state.used,
            free_bytes: by_capacity.min(by_disk),
            ..Usage::default()
        }
    }
}

/// Room set aside for a writer; given back when it is dropped.
pub(super) struct Reservation {
    room: Arc<Room>,
    bytes: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut state = self.room.state.lock();
        state.reserved = state.reserved.saturating_sub(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(capacity: u64, floor: u64, used: u64, free: u64) -> Arc<Room> {
        Room::new(capacity, floor, used, DiskSpace { total: 1 << 40, free })
    }

    #[test]
    fn writers_in_progress_count_and_give_back_when_dropped() {
        let room = room(1000, 0, 0, 10_000);
        room.take(100);
        let first = room.reserve(600).unwrap();
        assert!(matches!(room.reserve(301), Err(StoreError::Full)));
        assert_eq!(room.usage().free_bytes, 300);
        drop(first);
        room.take(900);
        assert!(matches!(room.reserve(1), Err(StoreError::Full)));
        room.give_back(1);
        assert!(room.reserve(1).is_ok());
    }

    #[test]
    fn the_disk_keeps_its_floor_free() {
        let room = room(u64::MAX, 1000, 0, 1500);
        let taken = room.reserve(500).unwrap();
        assert!(matches!(room.reserve(1), Err(StoreError::Full)));
        assert_eq!(room.usage().free_bytes, 0);
        drop(taken);
        room.disk_says(999);
        assert!(matches!(room.reserve(0), Err(StoreError::Full)));
    }

    #[test]
    fn no_capacity_means_nine_tenths_of_what_is_free_and_ours() {
        assert_eq!(room(0, 0, 400, 600).usage().capacity_bytes, 900);
    }
}
