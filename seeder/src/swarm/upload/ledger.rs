//! **PURE.** What seeders have acknowledged of segments that are being uploaded.
//!
//! Invariants: a seeder stands for a segment at most once, and every acknowledgement has a number larger
//! than all before it, so that "everything up to number n is synced" says which ones are. All that a seeder stands for
//! and has not synced was acknowledged by one run of it: what an earlier one had not synced, a power cut may have undone.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use swarm_proto::{PeerId, Segment, SegmentId};

/// Entries kept that nobody uses, so that equal segments are not asked for again: about 10 MiB.
const MOST_UNUSED: usize = 65_536;

/// Which run of a seeder answered; none: it does not say.
pub(super) type Process = Option<NonZeroU64>;

#[derive(Debug, Clone, Copy)]
struct Ack {
    peer: PeerId,
    number: u64,
}

#[derive(Debug)]
struct Entry {
    acks: Vec<Ack>,
    users: u32,
    renewed: Instant,
}

#[derive(Debug, Default)]
struct Seeder {
    /// Acknowledgements up to this number are at the fsync level.
    synced: u64,
    /// Bytes acknowledged since the last sync began.
    unsynced_bytes: u64,
    /// Which run answered last.
    process: Process,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    entries: HashMap<SegmentId, Entry>,
    unused: VecDeque<SegmentId>,
    seeders: HashMap<PeerId, Seeder>,
    number: u64,
}

impl Ledger {
    /// `peer`, in this run of it, holds `segment` and keeps it from `now` on.
    pub(super) fn acknowledge(
        &mut self,
        segment: Segment,
        (peer, process): (PeerId, Process),
        now: Instant,
        new_bytes: bool,
    ) {
        self.hear_of(peer, process);
        self.number += 1;
        let ack = Ack { peer, number: self.number };
        let entry = self.entries.entry(segment.id).or_insert_with(|| {
            self.unused.push_back(segment.id);
            Entry { acks: Vec::new(), users: 0, renewed: now }
        });
        match entry.acks.iter_mut().find(|known| known.peer == peer) {
            Some(known) => *known = ack,
            None => entry.acks.push(ack),
        }
        let seeder = self.seeders.entry(peer).or_default();
        seeder.unsynced_bytes += if new_bytes { u64::from(segment.length) } else { 0 };
        self.evict();
    }

    /// Who stands for a segment; nobody if the last word is older than `most_age`.
    pub(super) fn holders(&self, id: &SegmentId, now: Instant, most_age: Duration) -> Vec<PeerId> {
        let fresh = |entry: &&Entry| now.saturating_duration_since(entry.renewed) <= most_age;
        let entry = self.entries.get(id).filter(fresh);
        entry.map(|entry| entry.acks.iter().map(|ack| ack.peer).collect()).unwrap_or_default()
    }

    /// Somebody needs the segment until [`Self::release`].
    pub(super) fn retain(&mut self, id: SegmentId, now: Instant) {
        self.entries.entry(id).or_insert_with(|| Entry { acks: Vec::new(), users: 0, renewed: now }).users += 1;
    }

    /// The reverse of [`Self::retain`].
    pub(super) fn release(&mut self, id: SegmentId) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.users = entry.users.saturating_sub(1);
            if entry.users == 0 {
                self.unused.push_back(id);
                self.evict();
            }
        }
    }

    fn evict(&mut self) {
        while self.unused.len() > MOST_UNUSED {
            let Some(id) = self.unused.pop_front() else { return };
            if self.entries.get(&id).is_some_and(|entry| entry.users == 0) {
                self.entries.remove(&id);
            }
        }
    }

    /// What is needed and was not renewed for `age`, by seeder.
    pub(super) fn due(&self, now: Instant, age: Duration) -> Vec<(PeerId, Vec<SegmentId>)> {
        let mut due: BTreeMap<PeerId, Vec<SegmentId>> = BTreeMap::new();
        for (id, entry) in &self.entries {
            if entry.users > 0 && now.saturating_duration_since(entry.renewed) >= age {
                entry.acks.iter().for_each(|ack| due.entry(ack.peer).or_default().push(*id));
            }
        }
        due.into_iter().collect()
    }

    /// `peer` keeps these from `now` on.
    pub(super) fn renewed(&mut self, ids: &[SegmentId], now: Instant) {
        for id in ids {
            if let Some(entry) = self.entries.get_mut(id) {
                entry.renewed = now;
            }
        }
    }

    /// `peer` does not hold the segment any more.
    pub(super) fn lost(&mut self, peer: PeerId, id: &SegmentId) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.acks.retain(|ack| ack.peer != peer);
        }
    }

    /// Seeders whose word for any of `ids` is not at the fsync level yet.
    pub(super) fn unsynced<'a>(&self, ids: impl IntoIterator<Item = &'a SegmentId>) -> HashSet<PeerId> {
        let acks = ids.into_iter().filter_map(|id| self.entries.get(id)).flat_map(|entry| &entry.acks);
        acks.filter(|ack| self.seeders.get(&ack.peer).is_none_or(|seeder| seeder.synced < ack.number))
            .map(|ack| ack.peer)
            .collect()
    }

    /// A sync of `peer` begins; what it covers if it succeeds.
    pub(super) fn sync_begins(&mut self, peer: PeerId) -> u64 {
        self.seeders.entry(peer).or_default().unsynced_bytes = 0;
        self.number
    }

    /// It succeeded. False: in another run than it was that acknowledged what it covers, which counts no more.
    pub(super) fn synced(&mut self, (peer, process): (PeerId, Process), covers: u64) -> bool {
        if self.hear_of(peer, process) {
            return false;
        }
        let seeder = self.seeders.entry(peer).or_default();
        seeder.synced = seeder.synced.max(covers);
        true
    }

    /// A seeder answered in this run of it; whether the last answer was of another one.
    fn hear_of(&mut self, peer: PeerId, process: Process) -> bool {
        let Some(now) = process else { return false };
        let before = self.seeders.entry(peer).or_default().process.replace(now);
        let is_another = before.is_some_and(|before| before != now);
        if is_another {
            self.sync_failed(peer);
        }
        is_another
    }

    /// It failed: the word of `peer` for what was not synced is worth nothing.
    pub(super) fn sync_failed(&mut self, peer: PeerId) {
        let synced = self.seeders.get(&peer).map(|seeder| seeder.synced).unwrap_or_default();
        for entry in self.entries.values_mut() {
            entry.acks.retain(|ack| ack.peer != peer || ack.number <= synced);
        }
    }

    /// Seeders that took at least `bytes` since their last sync.
    pub(super) fn wants_sync(&self, bytes: u64) -> Vec<PeerId> {
        let full = self.seeders.iter().filter(|(_, seeder)| seeder.unsynced_bytes >= bytes);
        full.map(|(peer, _)| *peer).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(n: u8) -> Segment {
        Segment { id: SegmentId::new([n; 32]), length: 10 }
    }
    fn peer(n: u8) -> PeerId {
        PeerId::new([n; 16])
    }
    /// A seeder that does not say which run it is.
    fn some(n: u8) -> (PeerId, Process) {
        (peer(n), None)
    }
    const HOUR: Duration = Duration::from_secs(3_600);

    #[test]
    fn a_seeder_stands_for_a_segment_once() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        for _ in 0..2 {
            ledger.acknowledge(segment(1), some(1), now, true);
        }
        ledger.acknowledge(segment(1), some(2), now, true);
        assert_eq!(ledger.holders(&segment(1).id, now, HOUR), [peer(1), peer(2)]);
        assert!(ledger.holders(&segment(1).id, now + 2 * HOUR, HOUR).is_empty(), "an old word counts for nothing");
        ledger.lost(peer(1), &segment(1).id);
        assert_eq!(ledger.holders(&segment(1).id, now, HOUR), [peer(2)]);
    }

    #[test]
    fn a_sync_covers_what_came_before_it_and_no_more() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        ledger.acknowledge(segment(1), some(1), now, true);
        let covers = ledger.sync_begins(peer(1));
        ledger.acknowledge(segment(2), some(1), now, true);
        assert!(ledger.synced(some(1), covers));
        assert!(ledger.unsynced([&segment(1).id]).is_empty());
        assert!(ledger.unsynced([&segment(1).id, &segment(2).id]).contains(&peer(1)));
        ledger.sync_failed(peer(1));
        assert_eq!(ledger.holders(&segment(1).id, now, HOUR), [peer(1)]);
        assert!(ledger.holders(&segment(2).id, now, HOUR).is_empty());
    }

    #[test]
    fn a_sync_answers_for_what_the_same_run_of_a_seeder_acknowledged_and_no_other() {
        let runs = [1, 2].map(|n| (peer(1), NonZeroU64::new(n)));
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        let holders = |ledger: &Ledger| [1, 2, 3].map(|n| ledger.holders(&segment(n).id, now, HOUR).len());
        ledger.acknowledge(segment(1), runs[0], now, true);
        let covers = ledger.sync_begins(peer(1));
        assert!(ledger.synced(runs[0], covers));
        ledger.acknowledge(segment(2), runs[0], now, true);
        ledger.acknowledge(segment(2), some(2), now, true);
        let covers = ledger.sync_begins(peer(1));
        assert!(!ledger.synced(runs[1], covers), "it was restarted since");
        assert_eq!(holders(&ledger), [1, 1, 0], "what was synced stays, and what others have");
        ledger.acknowledge(segment(2), runs[1], now, false);
        let covers = ledger.sync_begins(peer(1));
        assert!(ledger.synced(runs[1], covers));
        assert_eq!((holders(&ledger), ledger.unsynced([&segment(2).id])), ([1, 2, 0], HashSet::from([peer(2)])));
        ledger.acknowledge(segment(3), runs[1], now, true);
        ledger.acknowledge(segment(1), runs[0], now, true);
        assert_eq!(holders(&ledger), [1, 2, 0], "an acknowledgement says it too");
    }

    #[test]
    fn only_what_is_needed_is_renewed() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        ledger.acknowledge(segment(1), some(1), now, true);
        ledger.acknowledge(segment(2), some(1), now, true);
        ledger.retain(segment(1).id, now);
        assert!(ledger.due(now, HOUR).is_empty());
        assert_eq!(ledger.due(now + HOUR, HOUR), [(peer(1), vec![segment(1).id])]);
        ledger.renewed(&[segment(1).id], now + HOUR);
        assert!(ledger.due(now + HOUR, HOUR).is_empty());
        ledger.release(segment(1).id);
        assert!(ledger.due(now + 9 * HOUR, HOUR).is_empty());
    }

    #[test]
    fn what_nobody_uses_is_forgotten_and_what_somebody_uses_is_not() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        let id = |n: usize| {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&n.to_le_bytes());
            Segment { id: SegmentId::new(bytes), length: 1 }
        };
        ledger.acknowledge(id(0), some(1), now, true);
        ledger.retain(id(0).id, now);
        for n in 1..=MOST_UNUSED + 10 {
            ledger.acknowledge(id(n), some(1), now, true);
        }
        assert_eq!(ledger.holders(&id(0).id, now, HOUR), [peer(1)]);
        assert!(ledger.holders(&id(1).id, now, HOUR).is_empty());
        assert!(ledger.entries.len() <= MOST_UNUSED + 1);
    }

    #[test]
    fn many_bytes_want_a_sync() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        ledger.acknowledge(segment(1), some(1), now, true);
        ledger.acknowledge(segment(2), some(2), now, false);
        assert_eq!(ledger.wants_sync(10), [peer(1)]);
        ledger.sync_begins(peer(1));
        assert!(ledger.wants_sync(10).is_empty());
    }
}
