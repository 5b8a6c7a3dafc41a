//! **PURE.** Files that have lost their last name, and from when on each may be reclaimed.
//!
//! Not which files those are, which the image knows: only when to look at each the next time. A look costs nothing where
//! nothing is due, however many files there are.
//!
//! Invariants: an orphan that was found is in exactly one queue until it is taken; it is first due a grace after this
//! process found it, so that mounts have told by then what they have open; both queues are in the order of time.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use swarm_proto::InodeNumber;

/// How often one that is open is looked at again: as often as the grace, within these.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// See the module.
pub(super) struct Orphans {
    grace: Duration,
    waiting: HashSet<InodeNumber>,
    new: VecDeque<(Instant, InodeNumber)>,
    open: VecDeque<(Instant, InodeNumber)>,
}

impl Orphans {
    /// None found yet.
    pub(super) fn new(grace: Duration) -> Self {
        Self { grace, waiting: HashSet::new(), new: VecDeque::new(), open: VecDeque::new() }
    }

    /// This one is an orphan; nothing happens if that is known.
    pub(super) fn found(&mut self, inode: InodeNumber, now: Instant) {
        if self.waiting.insert(inode) {
            self.new.push_back((now + self.grace, inode));
        }
    }

    /// When the next one is due.
    pub(super) fn due(&self) -> Option<Instant> {
        [&self.new, &self.open].into_iter().filter_map(|queue| queue.front()).map(|(due, _)| *due).min()
    }

    /// Take those that are due, at most so many.
    pub(super) fn take_due(&mut self, now: Instant, most: usize) -> Vec<InodeNumber> {
        let mut taken = Vec::new();
        for queue in [&mut self.new, &mut self.open] {
            while taken.len() < most
                && let Some((due, inode)) = queue.front().copied()
                && due <= now
            {
                queue.pop_front();
                self.waiting.remove(&inode);
                taken.push(inode);
            }
        }
        taken
    }

    /// One that was taken cannot go yet.
    pub(super) fn look_again(&mut self, inode: InodeNumber, now: Instant) {
        if self.waiting.insert(inode) {
            self.open.push_back((now + self.grace.clamp(LOOK_AGAIN.0, LOOK_AGAIN.1), inode));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(10);
    const A: InodeNumber = InodeNumber(7);
    const B: InodeNumber = InodeNumber(8);

    #[test]
    fn an_orphan_is_due_a_grace_after_it_was_found_and_only_once() {
        let (mut orphans, now) = (Orphans::new(GRACE), Instant::now());
        orphans.found(A, now);
        orphans.found(B, now + GRACE / 2);
        orphans.found(A, now + GRACE / 2);
        assert_eq!(orphans.take_due(now + GRACE - Duration::from_millis(1), 9), []);
        assert_eq!(orphans.take_due(now + GRACE, 9), [A]);
        assert_eq!(orphans.take_due(now + 2 * GRACE, 9), [B]);
        assert_eq!(orphans.take_due(now + 9 * GRACE, 9), []);
    }

    #[test]
    fn one_that_is_open_is_looked_at_again_a_little_later() {
        let (mut orphans, now) = (Orphans::new(GRACE), Instant::now());
        orphans.found(A, now);
        let first = now + GRACE;
        assert_eq!(orphans.take_due(first, 9), [A]);
        orphans.look_again(A, first);
        orphans.found(A, first);
        assert_eq!(orphans.take_due(first, 9), []);
        assert_eq!(orphans.due(), Some(first + LOOK_AGAIN.1));
        assert_eq!(orphans.take_due(first + LOOK_AGAIN.1, 9), [A]);
    }

    #[test]
    fn no_more_are_taken_than_asked_for() {
        let (mut orphans, now) = (Orphans::new(GRACE), Instant::now());
        (0..5).for_each(|number| orphans.found(InodeNumber(number), now));
        let later = now + GRACE;
        let taken: Vec<usize> = (0..3).map(|_| orphans.take_due(later, 2).len()).collect();
        assert_eq!(taken, [2, 2, 1]);
    }
}
