//! **PURE.** Which chunks were verified a short while ago, in files that nobody has touched since.
//!
//! Hashing costs a seeder as much as reading, and what many want is read many times. Invariants: a proof
//! holds for at most [`HOLDS_FOR`], and only for the very file, length and time of change that it was made
//! of; a file that changed just before it was looked at is not believed, as a second change might bear the
//! same time; memory is bounded by [`MOST`].

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::Mutex;
use swarm_proto::{ChunkRange, ChunkSet, Segment, SegmentId};

use crate::store::disk::Stamp;

/// So long a disk is trusted to give what it gave: rot is found within it and a reading later, and every
/// reader verifies what it gets.
const HOLDS_FOR: Duration = Duration::from_secs(600);
/// How old the last change must be: more than the steps of the clock by which files are stamped.
const SETTLED_FOR: Duration = Duration::from_secs(1);
/// Segments at a time, the latest used: a quarter of a TiB in segments of 4 MiB.
const MOST: NonZeroUsize = NonZeroUsize::new(64 * 1024).expect("not zero");

/// See the module.
pub(super) struct Proofs {
    segments: Mutex<LruCache<SegmentId, Proof>>,
}

struct Proof {
    stamp: Stamp,
    chunks: ChunkSet,
    until: Instant,
}

impl Proofs {
    pub(super) fn new() -> Self {
        Self { segments: Mutex::new(LruCache::new(MOST)) }
    }

    /// Whether these chunks of a file that is as `stamp` says need no hash.
    pub(super) fn hold(&self, segment: Segment, chunks: ChunkRange, stamp: Stamp, now: Instant) -> bool {
        let mut segments = self.segments.lock();
        let Some(proof) = segments.get(&segment.id) else { return false };
        if proof.stamp != stamp || proof.until <= now {
            segments.pop(&segment.id);
            return false;
        }
        proof.chunks.contains_all(chunks)
    }

    /// These chunks were read after the file was as `stamp` says, and verified.
    pub(super) fn enter(&self, segment: Segment, chunks: ChunkRange, stamp: Stamp, now: Instant) {
        if stamp.unchanged_for < SETTLED_FOR {
            return;
        }
        let mut segments = self.segments.lock();
        match segments.get_mut(&segment.id) {
            // The oldest of its chunks says how long it holds.
            Some(proof) if proof.stamp == stamp && now < proof.until => proof.chunks.insert(chunks),
            _ => {
                let mut proven = ChunkSet::empty(segment.chunks());
                proven.insert(chunks);
                segments.put(segment.id, Proof { stamp, chunks: proven, until: now + HOLDS_FOR });
            }
        }
    }

    /// What was said of a segment is in doubt.
    pub(super) fn forget(&self, id: &SegmentId) {
        self.segments.lock().pop(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: Segment = Segment { id: SegmentId::new([1; 32]), length: 4 << 20 };

    fn chunks(start: u32, end: u32) -> ChunkRange {
        ChunkRange::new(start, end)
    }

    fn stamp(changed_ns: i128) -> Stamp {
        Stamp { inode: 7, length: 5, changed_ns, unchanged_for: Duration::from_secs(60) }
    }

    #[test]
    fn what_was_verified_holds_until_its_time_is_over() {
        let (proofs, now) = (Proofs::new(), Instant::now());
        proofs.enter(SEGMENT, chunks(0, 64), stamp(1), now);
        proofs.enter(SEGMENT, chunks(100, 110), stamp(1), now + HOLDS_FOR / 2);
        for (range, holds) in [(chunks(3, 64), true), (chunks(100, 110), true), (chunks(60, 101), false)] {
            assert_eq!(proofs.hold(SEGMENT, range, stamp(1), now + HOLDS_FOR / 2), holds, "{range:?}");
        }
        assert!(!proofs.hold(SEGMENT, chunks(100, 110), stamp(1), now + HOLDS_FOR));
    }

    #[test]
    fn a_file_that_changed_or_is_another_proves_nothing() {
        let now = Instant::now();
        let others = [stamp(2), Stamp { inode: 8, ..stamp(1) }, Stamp { length: 6, ..stamp(1) }];
        for other in others {
            let proofs = Proofs::new();
            proofs.enter(SEGMENT, chunks(0, 64), stamp(1), now);
            assert!(!proofs.hold(SEGMENT, chunks(0, 1), other, now));
        }
        // Time goes by; that is no change.
        let later = Stamp { unchanged_for: Duration::from_secs(70), ..stamp(1) };
        let proofs = Proofs::new();
        proofs.enter(SEGMENT, chunks(0, 64), stamp(1), now);
        assert!(proofs.hold(SEGMENT, chunks(0, 1), later, now));
        proofs.forget(&SEGMENT.id);
        assert!(!proofs.hold(SEGMENT, chunks(0, 1), later, now));
    }

    #[test]
    fn a_file_that_has_just_changed_is_not_believed() {
        let (proofs, now) = (Proofs::new(), Instant::now());
        let fresh = Stamp { unchanged_for: Duration::from_millis(3), ..stamp(1) };
        proofs.enter(SEGMENT, chunks(0, 64), fresh, now);
        assert!(!proofs.hold(SEGMENT, chunks(0, 1), fresh, now));
    }
}
