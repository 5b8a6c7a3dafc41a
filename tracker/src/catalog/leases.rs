//! **PURE.** Leases on what files contain: until one ends, no change of that content is answered.
//!
//! A mount that walks a folder asks for many files at once and then opens them without a question. An open
//! must show what was acknowledged before it began, so a change of a leased file is acknowledged only when
//! the lease has ended. Nothing is recalled and nobody renews: whoever gave one waits at most [`TERM`].
//!
//! Invariants: a lease never ends later than [`TERM`] after it was given; memory is bounded by
//! [`MOST`]; a process that has just begun honours what the one before it may have given.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use swarm_proto::InodeNumber;

/// How long a lease lasts: long enough to open some hundred small files, short enough that a writer does
/// not notice.
pub const TERM: Duration = Duration::from_millis(200);
/// Leases at a time; further ones are not given.
const MOST: usize = 256 * 1024;

/// All leases that were given.
pub struct Leases {
    inner: Mutex<Inner>,
}

struct Inner {
    ends: HashMap<InodeNumber, Instant>,
    /// In the order in which they end.
    order: VecDeque<(Instant, InodeNumber)>,
    /// Until then any inode may be leased.
    unknown_until: Instant,
}

impl Leases {
    /// Those of an earlier process, which nobody knows.
    pub fn new(now: Instant) -> Self {
        let inner = Inner { ends: HashMap::new(), order: VecDeque::new(), unknown_until: now + TERM };
        Self { inner: Mutex::new(inner) }
    }

    /// Give one on each of these. False: there are too many already, and none was given.
    pub fn give(&self, inodes: &[InodeNumber], now: Instant) -> bool {
        let mut inner = self.inner.lock();
        inner.end(now);
        if inner.order.len() + inodes.len() > MOST {
            return false;
        }
        for inode in inodes {
            inner.ends.insert(*inode, now + TERM);
            inner.order.push_back((now + TERM, *inode));
        }
        true
    }

    /// When the last lease on any of these ends; none if there is none.
    pub fn end_of(&self, inodes: &[InodeNumber], now: Instant) -> Option<Instant> {
        if inodes.is_empty() {
            return None;
        }
        let mut inner = self.inner.lock();
        inner.end(now);
        let known = inodes.iter().filter_map(|inode| inner.ends.get(inode).copied());
        known.chain([inner.unknown_until]).max().filter(|end| *end > now)
    }

    /// When the last lease of all ends; none if there is none.
    pub fn end_of_all(&self, now: Instant) -> Option<Instant> {
        let inner = self.inner.lock();
        let newest = inner.order.back().map(|(end, _)| *end);
        newest.into_iter().chain([inner.unknown_until]).max().filter(|end| *end > now)
    }
}

impl Inner {
    /// Forget those that have ended.
    fn end(&mut self, now: Instant) {
        while let Some((end, inode)) = self.order.front().copied().filter(|(end, _)| *end <= now) {
            self.order.pop_front();
            // It may have been given again since.
            if self.ends.get(&inode) == Some(&end) {
                self.ends.remove(&inode);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: InodeNumber = InodeNumber(7);
    const B: InodeNumber = InodeNumber(8);

    /// Leases of a process that began long ago.
    fn settled() -> (Leases, Instant) {
        let begun = Instant::now();
        (Leases::new(begun), begun + TERM)
    }

    #[test]
    fn a_lease_lasts_its_term_from_when_it_was_given_last() {
        let (leases, now) = settled();
        assert!(leases.give(&[A], now));
        assert_eq!(leases.end_of(&[A, B], now), Some(now + TERM));
        assert_eq!(leases.end_of(&[B], now), None);
        let later = now + TERM / 2;
        assert!(leases.give(&[A], later));
        assert_eq!(leases.end_of(&[A], now + TERM), Some(later + TERM));
        assert_eq!(leases.end_of_all(now + TERM), Some(later + TERM));
        assert_eq!(leases.end_of(&[A], later + TERM), None);
        assert_eq!(leases.end_of_all(later + TERM), None);
    }

    #[test]
    fn a_process_that_has_just_begun_takes_every_inode_for_leased() {
        let begun = Instant::now();
        let leases = Leases::new(begun);
        assert_eq!(leases.end_of(&[A], begun), Some(begun + TERM));
        assert_eq!(leases.end_of(&[], begun), None);
        assert_eq!(leases.end_of(&[A], begun + TERM), None);
    }

    #[test]
    fn there_are_never_more_than_so_many_and_what_has_ended_makes_room() {
        let (leases, now) = settled();
        let many: Vec<InodeNumber> = (0..MOST as u64).map(InodeNumber).collect();
        assert!(leases.give(&many, now));
        assert!(!leases.give(&[A], now));
        assert!(leases.give(&[A], now + TERM));
        assert_eq!(leases.inner.lock().ends.len(), 1);
    }
}
