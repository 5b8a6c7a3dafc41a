//! **PURE.** What changed since it was last told, and how long to wait before trying again.
//!
//! Invariant: an id that changed is told at least once after its last change, and no more than once a
//! message.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use swarm_proto::{Presence, SegmentId, v1};

/// Ids of one message, as the tracker allows.
pub(super) const MOST_IDS: usize = 16_384;

/// How long a change may wait for others: half of the 100 ms that the tracker is promised, the rest is
/// for the way.
pub(super) const GATHER: Duration = Duration::from_millis(50);

/// First and longest pause between attempts to reach a tracker. The longest bounds how long after a
/// restart of the tracker a segment is found again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Ids that changed and are not told yet.
#[derive(Debug, Default)]
pub(super) struct Pending {
    ids: HashSet<SegmentId>,
    due: Option<Instant>,
}

impl Pending {
    pub(super) fn insert(&mut self, id: SegmentId, now: Instant) {
        self.ids.insert(id);
        let due = self.due.get_or_insert(now + GATHER);
        if self.ids.len() >= MOST_IDS {
            *due = now;
        }
    }

    /// When to tell; nothing to tell if none.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// All of it, told.
    pub(super) fn take(&mut self) -> Vec<SegmentId> {
        self.due = None;
        self.ids.drain().collect()
    }
}

/// How much of a segment is held, as an announce tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Whole,
    Partial,
    Lost,
}

impl State {
    pub(super) fn of(presence: Option<&Presence>) -> Self {
        match presence {
            Some(Presence::Whole) => Self::Whole,
            Some(Presence::Partial(set)) if !set.is_empty() => Self::Partial,
            Some(Presence::Partial(_)) | None => Self::Lost,
        }
    }
}

/// The messages that tell these changes.
pub(super) fn deltas(changes: &[(SegmentId, State)]) -> impl Iterator<Item = v1::Delta> + '_ {
    changes.chunks(MOST_IDS).map(|part| v1::Delta {
        whole_ids: pack(part, State::Whole),
        partial_ids: pack(part, State::Partial),
        lost_ids: pack(part, State::Lost),
    })
}

/// The messages that tell all that is held; at least one, the last one marked.
pub(super) fn inventory(held: &[(SegmentId, State)]) -> Vec<v1::Inventory> {
    let mut parts: Vec<v1::Inventory> = held
        .chunks(MOST_IDS)
        .map(|part| v1::Inventory {
            whole_ids: pack(part, State::Whole),
            partial_ids: pack(part, State::Partial),
            last: false,
        })
        .collect();
    match parts.last_mut() {
        Some(last) => last.last = true,
        None => parts.push(v1::Inventory { last: true, ..v1::Inventory::default() }),
    }
    parts
}

fn pack(changes: &[(SegmentId, State)], state: State) -> bytes::Bytes {
    SegmentId::pack(changes.iter().filter(|(_, of)| *of == state).map(|(id, _)| id))
}

/// Pauses between attempts: doubling, with jitter, so that a swarm does not return in step.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: PAUSES.0 }
    }
}

impl Backoff {
    /// The pause before the next attempt. Shape: `jitter` is in `0.0..1.0`; the pause is half to all of
    /// the step.
    pub(super) fn pause(&mut self, jitter: f64) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(PAUSES.1);
        step.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
    }

    /// It worked.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use swarm_proto::ChunkSet;

    fn id(number: usize) -> SegmentId {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        SegmentId::new(bytes)
    }

    #[test]
    fn changes_wait_for_each_other_but_not_longer_than_the_first_may() {
        let (mut pending, start) = (Pending::default(), Instant::now());
        assert_eq!(pending.due(), None);
        pending.insert(id(1), start);
        pending.insert(id(1), start + GATHER / 2);
        pending.insert(id(2), start + GATHER / 2);
        assert_eq!(pending.due(), Some(start + GATHER));
        assert_eq!(pending.take().len(), 2);
        assert_eq!(pending.due(), None);
    }

    #[test]
    fn a_full_message_does_not_wait() {
        let (mut pending, start) = (Pending::default(), Instant::now());
        (0..MOST_IDS).for_each(|number| pending.insert(id(number), start));
        assert_eq!(pending.due(), Some(start));
    }

    #[test]
    fn nothing_held_is_an_inventory_too() {
        assert_eq!(inventory(&[]), [v1::Inventory { last: true, ..v1::Inventory::default() }]);
    }

    #[test]
    fn an_empty_presence_is_a_loss() {
        assert_eq!(State::of(Some(&Presence::Partial(ChunkSet::empty(4)))), State::Lost);
        assert_eq!(State::of(None), State::Lost);
        assert_eq!(State::of(Some(&Presence::Whole)), State::Whole);
    }

    #[test]
    fn pauses_grow_to_the_longest_and_start_anew() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..12).map(|_| backoff.pause(1.0)).collect();
        assert!(pauses.is_sorted() && pauses[0] == PAUSES.0 && pauses[11] == PAUSES.1);
        assert_eq!(backoff.pause(0.0), PAUSES.1 / 2);
        backoff.reset();
        assert_eq!(backoff.pause(1.0), PAUSES.0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]
        #[test]
        fn every_id_is_told_once_in_its_state(count in 0usize..40_000) {
            let of = |number| [State::Whole, State::Partial, State::Lost][number % 3];
            let changes: Vec<_> = (0..count).map(|number| (id(number), of(number))).collect();
            let mut told = Vec::new();
            for delta in deltas(&changes) {
                let lists = [(delta.whole_ids, State::Whole), (delta.partial_ids, State::Partial), (delta.lost_ids, State::Lost)];
                let before = told.len();
                for (packed, state) in lists {
                    told.extend(SegmentId::unpack(&packed).unwrap().map(|id| (id, state)));
                }
                prop_assert!(told.len() - before <= MOST_IDS);
            }
            told.sort_by_key(|(id, _)| *id);
            let mut want = changes.clone();
            want.sort_by_key(|(id, _)| *id);
            prop_assert_eq!(told, want);
            let parts = inventory(&changes);
            prop_assert!(parts.iter().rev().skip(1).all(|part| !part.last) && parts.last().unwrap().last);
        }
    }
}
