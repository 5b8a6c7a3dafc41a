//! Short segments that were sent lately, so that whoever reads again what was written here need not fetch it.

use std::num::NonZeroUsize;

use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;
use swarm_proto::SegmentId;

/// What one of them takes beside its bytes, about: its place in the table.
const ENTRY_BYTES: usize = 256;

/// Short segments that were sent lately, those used longest ago forgotten first.
#[derive(Debug)]
pub(super) struct Recent {
    most_bytes: usize,
    longest: usize,
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    segments: LruCache<SegmentId, Bytes>,
    bytes: usize,
}

impl Recent {
    /// Room for `most_bytes` of segments no longer than `longest`.
    pub(super) fn new(most_bytes: usize, longest: usize) -> Self {
        let most = NonZeroUsize::new(most_bytes / ENTRY_BYTES).unwrap_or(NonZeroUsize::MIN);
        let segments = LruCache::new(most);
        Self { most_bytes, longest, kept: Mutex::new(Kept { segments, bytes: 0 }) }
    }

    /// Remember a segment, if it is a short one.
    pub(super) fn put(&self, id: SegmentId, bytes: &Bytes) {
        if bytes.len() > self.longest.min(self.most_bytes) {
            return;
        }
        let mut kept = self.kept.lock();
        kept.bytes += bytes.len() + ENTRY_BYTES;
        if let Some((_, gone)) = kept.segments.push(id, bytes.clone()) {
            kept.bytes -= gone.len() + ENTRY_BYTES;
        }
        while kept.bytes > self.most_bytes
            && let Some((_, gone)) = kept.segments.pop_lru()
        {
            kept.bytes -= gone.len() + ENTRY_BYTES;
        }
    }

    /// The bytes of a segment.
    pub(super) fn get(&self, id: &SegmentId) -> Option<Bytes> {
        self.kept.lock().segments.get(id).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(recent: &Recent, number: u8, length: usize) -> SegmentId {
        let id = SegmentId::new([number; 32]);
        recent.put(id, &Bytes::from(vec![number; length]));
        id
    }

    #[test]
    fn the_short_ones_used_last_are_kept_as_far_as_there_is_room() {
        let recent = Recent::new(10_000, 4_000);
        let long = put(&recent, 1, 4_001);
        let ids = [2, 3].map(|number| put(&recent, number, 4_000));
        assert_eq!(recent.get(&long), None);
        assert_eq!(ids.map(|id| recent.get(&id).map(|bytes| bytes.len())), [Some(4_000); 2]);
        recent.get(&ids[0]);
        let newer = put(&recent, 4, 4_000);
        assert_eq!([ids[0], ids[1], newer].map(|id| recent.get(&id).is_some()), [true, false, true]);
        for _ in 0..3 {
            put(&recent, 4, 4_000);
        }
        assert!(recent.get(&ids[0]).is_some(), "the same one again takes no more room");
    }
}
