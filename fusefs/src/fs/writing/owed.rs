//! **PURE.** What was acknowledged at the close level, and is owed to whoever calls fsync(2) afterwards.
//!
//! Not here: what is older than [`FOLLOWED`]: the seeders' disks have it.
//!
//! Invariant: a segment is owed until it was synced at as many seeders as had acknowledged it, or they all had the time.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use swarm_proto::{Manifest, SegmentId, v1};

/// After this long the disks of the seeders have followed, many times over: they do within a second.
const FOLLOWED: Duration = Duration::from_secs(20);
/// Segments that are owed at a time; of more, the first are the oldest. Fewer than the uploader remembers.
const MOST: usize = 16_384;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Owed {
    /// At how many seeders, and since when.
    segments: HashMap<SegmentId, (usize, Instant)>,
    /// In the order of their times.
    order: VecDeque<(Instant, SegmentId)>,
}

impl Owed {
    /// These were acknowledged, and a commit at the close level names them.
    pub(super) fn add(&mut self, acknowledged: &[v1::Acknowledged], now: Instant) {
        for (id, count) in counted(acknowledged) {
            self.segments.insert(id, (count, now));
            self.order.push_back((now, id));
        }
        self.expire(now);
    }

    /// Those of a version that are owed.
    pub(super) fn of(&mut self, manifest: &Manifest, now: Instant) -> Vec<SegmentId> {
        self.expire(now);
        if self.segments.is_empty() {
            return Vec::new();
        }
        let mut ids: Vec<SegmentId> = manifest.segments().map(|segment| segment.id).collect();
        ids.retain(|id| self.segments.contains_key(id));
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// These were synced at those who stand for them now; those that some seeder took its word back for stay owed, and are
    /// returned.
    pub(super) fn settle(&mut self, ids: &[SegmentId], acknowledged: &[v1::Acknowledged]) -> Vec<SegmentId> {
        let now_at = counted(acknowledged);
        let is_lost = |id: &SegmentId| {
            let then = self.segments.get(id).map_or(0, |(count, _)| *count);
            now_at.get(id).copied().unwrap_or(0) < then
        };
        let (lost, synced): (Vec<SegmentId>, Vec<SegmentId>) = ids.iter().partition(|id| is_lost(id));
        for id in &synced {
            self.segments.remove(id);
        }
        lost
    }

    /// These are durable at as many seeders as are needed.
    pub(super) fn paid(&mut self, ids: &[SegmentId]) {
        for id in ids {
            self.segments.remove(id);
        }
    }

    fn expire(&mut self, now: Instant) {
        while let Some((at, id)) = self.order.front()
            && (now.saturating_duration_since(*at) > FOLLOWED || self.order.len() > MOST)
        {
            if self.segments.get(id).is_some_and(|(_, since)| since == at) {
                self.segments.remove(id);
            }
            self.order.pop_front();
        }
    }
}

/// How many stand for each segment.
fn counted(acknowledged: &[v1::Acknowledged]) -> HashMap<SegmentId, usize> {
    let mut counts = HashMap::new();
    for by_one in acknowledged {
        for id in SegmentId::unpack(&by_one.segment_ids).into_iter().flatten() {
            *counts.entry(id).or_insert(0) += 1;
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use swarm_proto::{Extent, Segment};

    fn id(number: u8) -> SegmentId {
        SegmentId::new([number; 32])
    }

    fn by(ids: &[SegmentId]) -> v1::Acknowledged {
        v1::Acknowledged { peer_id: Bytes::new(), segment_ids: SegmentId::pack(ids) }
    }

    fn manifest(numbers: &[u8]) -> Manifest {
        let extent = |number: &u8| Extent::whole(Segment { id: id(*number), length: 10 });
        Manifest::new(numbers.iter().map(extent).collect()).unwrap()
    }

    #[test]
    fn what_was_acknowledged_is_owed_until_it_is_synced_or_the_disks_have_followed() {
        let (mut owed, begin) = (Owed::default(), Instant::now());
        owed.add(&[by(&[id(1), id(2)]), by(&[id(1)])], begin);
        assert_eq!(owed.of(&manifest(&[1, 2, 1, 3]), begin), [id(1), id(2)]);
        assert_eq!(owed.settle(&[id(1), id(2)], &[by(&[id(1), id(2)])]), [id(1)], "one of two took its word back");
        assert_eq!(owed.of(&manifest(&[1, 2]), begin), [id(1)], "and goes on being asked for");
        owed.add(&[by(&[id(2)])], begin + FOLLOWED);
        let later = begin + FOLLOWED + Duration::from_millis(1);
        assert_eq!(owed.of(&manifest(&[1, 2]), later), [id(2)]);
        owed.add(&[by(&[id(2)])], later);
        assert_eq!(owed.of(&manifest(&[2]), begin + 2 * FOLLOWED), [id(2)], "the last time counts");
        (0..MOST).for_each(|_| owed.add(&[by(&[id(3)])], later));
        assert_eq!(owed.of(&manifest(&[2, 3]), later), [id(3)], "the oldest went");
    }
}
