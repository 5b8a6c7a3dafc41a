//! **PURE.** Who may have how many bytes in flight, and in which order askers are served.
//!
//! Invariants: `in_flight` is the sum over all askers and never above the budget; an asker with nothing
//! in flight takes no memory; whoever comes new finds room, because nobody may hold more than an equal
//! share of the budget in which one more asker has a part.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

use swarm_proto::PeerId;

/// To whom bytes are accounted. A peer names itself: this is fairness among the honest; against the
/// others stands the budget as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Asker {
    /// As it calls itself.
    Peer(PeerId),
    /// It did not say: all of one machine together.
    Anonymous(Option<IpAddr>),
}

/// Bytes in flight, by asker.
#[derive(Debug)]
pub(crate) struct Admission {
    budget: u64,
    in_flight: u64,
    askers: HashMap<Asker, u64>,
}

impl Admission {
    pub(crate) fn new(budget: u64) -> Self {
        Self { budget, in_flight: 0, askers: HashMap::new() }
    }

    /// Take `bytes` for `asker` if the budget and its share allow; a first run is never too large for a
    /// share.
    pub(crate) fn admit(&mut self, asker: Asker, bytes: u64) -> bool {
        let mine = self.askers.get(&asker).copied().unwrap_or(0);
        let active = self.askers.len() as u64 + u64::from(mine == 0);
        let share = self.budget / (active + 1);
        let fits = self.in_flight.saturating_add(bytes) <= self.budget;
        if !fits || (mine > 0 && mine.saturating_add(bytes) > share) {
            return false;
        }
        if bytes > 0 {
            self.in_flight += bytes;
            *self.askers.entry(asker).or_default() += bytes;
        }
        true
    }

    /// Give back what [`Self::admit`] took.
    pub(crate) fn release(&mut self, asker: Asker, bytes: u64) {
        let Some(mine) = self.askers.get_mut(&asker) else { return };
        let bytes = bytes.min(*mine);
        *mine -= bytes;
        self.in_flight -= bytes;
        if *mine == 0 {
            self.askers.remove(&asker);
        }
    }

    #[cfg(test)]
    pub(crate) fn in_flight(&self) -> u64 {
        self.in_flight
    }
}

/// Items of many askers, taken in turn: one of each before a second of any.
#[derive(Debug)]
pub(crate) struct FairQueue<T> {
    turns: VecDeque<Asker>,
    items: HashMap<Asker, VecDeque<T>>,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self { turns: VecDeque::new(), items: HashMap::new() }
    }
}

impl<T> FairQueue<T> {
    pub(crate) fn push(&mut self, asker: Asker, item: T) {
        let items = self.items.entry(asker).or_default();
        if items.is_empty() {
            self.turns.push_back(asker);
        }
        items.push_back(item);
    }

    /// The oldest item of the asker whose turn it is.
    pub(crate) fn pop(&mut self) -> Option<T> {
        let asker = self.turns.pop_front()?;
        let items = self.items.get_mut(&asker)?;
        let item = items.pop_front();
        match items.is_empty() {
            true => drop(self.items.remove(&asker)),
            false => self.turns.push_back(asker),
        }
        item
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn asker(number: u8) -> Asker {
        Asker::Peer(PeerId::new([number; 16]))
    }

    #[test]
    fn one_asker_leaves_room_for_another() {
        let mut admission = Admission::new(100);
        while admission.admit(asker(1), 10) {}
        assert_eq!(admission.in_flight(), 50);
        assert!(admission.admit(asker(2), 10), "the second asker finds room while the first asks all it can");
        assert!(!admission.admit(asker(1), 10));
    }

    #[test]
    fn a_first_run_may_be_larger_than_a_share_but_not_than_the_budget() {
        let mut admission = Admission::new(100);
        assert!(!admission.admit(asker(1), 101));
        assert!(admission.admit(asker(1), 100));
        assert!(!admission.admit(asker(2), 1));
        admission.release(asker(1), 100);
        assert!(admission.admit(asker(2), 1));
    }

    #[test]
    fn askers_take_turns() {
        let mut queue = FairQueue::default();
        for item in 0..4 {
            queue.push(asker(1), (1, item));
        }
        queue.push(asker(2), (2, 0));
        queue.push(asker(3), (3, 0));
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order, [(1, 0), (2, 0), (3, 0), (1, 1), (1, 2), (1, 3)]);
        assert!(queue.items.is_empty() && queue.turns.is_empty());
    }

    proptest! {
        #[test]
        fn the_sum_is_right_and_within_the_budget(steps in prop::collection::vec((0u8..4, 0u64..60, any::<bool>()), 0..60)) {
            let mut admission = Admission::new(100);
            let mut held: Vec<(u8, u64)> = Vec::new();
            for (who, bytes, take) in steps {
                if take {
                    if admission.admit(asker(who), bytes) {
                        held.push((who, bytes));
                    }
                } else if let Some((who, bytes)) = held.pop() {
                    admission.release(asker(who), bytes);
                }
                prop_assert_eq!(admission.in_flight(), held.iter().map(|(_, bytes)| bytes).sum::<u64>());
                prop_assert!(admission.in_flight() <= 100);
            }
            for (who, bytes) in held {
                admission.release(asker(who), bytes);
            }
            prop_assert!(admission.askers.is_empty());
        }
    }
}
