//! **PURE.** Leases on what files contain: until one ends, no change of that content is answered.
//!
//! A mount that walks a folder asks for many files at once and then opens them without a question. An open
//! must show what was acknowledged before it began, so a change of a leased file is acknowledged only when
//! the lease has ended. Nothing is recalled and nobody renews: whoever gave one waits at most [`TERM`].
//!
//! A change that waits holds what it wrote, its folder too, for as long: if a file that was removed is made anew
//! under its name, who made it is not answered before the old one is no longer opened.
//!
//! Invariants: a lease never ends later than [`TERM`] after it was given; memory is bounded, of leases by
//! [`MOST`], of what is held by the changes of one term; a process that has just begun honours what the one
//! before it may have given.

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
    leased: Ends,
    /// Inodes that a change wrote whose answer waits for a lease: a change of those could hide the first one.
    held: Ends,
    /// Until then any inode may be leased.
    unknown_until: Instant,
}

impl Leases {
    /// Those of an earlier process, which nobody knows.
    pub fn new(now: Instant) -> Self {
        let inner = Inner { leased: Ends::default(), held: Ends::default(), unknown_until: now + TERM };
        Self { inner: Mutex::new(inner) }
    }

    /// Give one on each of these. False: there are too many already, and none was given.
    pub fn give(&self, inodes: &[InodeNumber], now: Instant) -> bool {
        let mut inner = self.inner.lock();
        inner.leased.forget_ended(now);
        if inner.leased.order.len() + inodes.len() > MOST {
            return false;
        }
        for inode in inodes {
            inner.leased.enter(*inode, now + TERM);
        }
        true
    }

    /// When a change may be answered that gives files of `changed` another content or removes them, and writes all
    /// inodes of `written`; none: now. Changes of those inodes that come after it wait as long.
    pub fn hold(&self, changed: &[InodeNumber], written: &[InodeNumber], now: Instant) -> Option<Instant> {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        inner.leased.forget_ended(now);
        inner.held.forget_ended(now);
        let unknown = (!changed.is_empty()).then_some(inner.unknown_until);
        let ends = [inner.leased.last_of(changed), inner.held.last_of(written), unknown];
        let end = ends.into_iter().flatten().max().filter(|end| *end > now)?;
        for inode in written {
            inner.held.enter(*inode, end);
        }
        Some(end)
    }

    /// When the last lease of all ends; none if there is none.
    pub fn end_of_all(&self, now: Instant) -> Option<Instant> {
        let inner = self.inner.lock();
        inner.leased.latest.into_iter().chain([inner.unknown_until]).max().filter(|end| *end > now)
    }
}

/// When something ends, for each inode.
#[derive(Default)]
struct Ends {
    ends: HashMap<InodeNumber, Instant>,
    /// In the order in which they were entered, which is nearly that in which they end.
    order: VecDeque<(Instant, InodeNumber)>,
    latest: Option<Instant>,
}

impl Ends {
    /// Never earlier than was said before.
    fn enter(&mut self, inode: InodeNumber, end: Instant) {
        let known = self.ends.entry(inode).or_insert(end);
        *known = end.max(*known);
        self.order.push_back((end, inode));
        self.latest = self.latest.max(Some(end));
    }

    fn last_of(&self, inodes: &[InodeNumber]) -> Option<Instant> {
        inodes.iter().filter_map(|inode| self.ends.get(inode).copied()).max()
    }

    fn forget_ended(&mut self, now: Instant) {
        while let Some((end, inode)) = self.order.front().copied()
            && end <= now
        {
            self.order.pop_front();
            // It may have been entered again since.
            if self.ends.get(&inode).is_some_and(|end| *end <= now) {
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
        assert_eq!(leases.hold(&[A, B], &[], now), Some(now + TERM));
        assert_eq!(leases.hold(&[B], &[], now), None);
        let later = now + TERM / 2;
        assert!(leases.give(&[A], later));
        // One that asked the clock before, and came after.
        assert!(leases.give(&[A], now));
        assert_eq!(leases.hold(&[A], &[], now + TERM), Some(later + TERM));
        assert_eq!(leases.end_of_all(now + TERM), Some(later + TERM));
        assert_eq!(leases.hold(&[A], &[], later + TERM), None);
        assert_eq!(leases.end_of_all(later + TERM), None);
    }

    #[test]
    fn a_process_that_has_just_begun_takes_every_inode_for_leased() {
        let begun = Instant::now();
        let leases = Leases::new(begun);
        assert_eq!(leases.hold(&[A], &[], begun), Some(begun + TERM));
        assert_eq!(leases.hold(&[], &[B], begun), None);
        assert_eq!(leases.hold(&[A], &[], begun + TERM), None);
    }

    #[test]
    fn there_are_never_more_than_so_many_and_what_has_ended_makes_room() {
        let (leases, now) = settled();
        let many: Vec<InodeNumber> = (0..MOST as u64).map(InodeNumber).collect();
        assert!(leases.give(&many, now));
        assert!(!leases.give(&[A], now));
        assert!(leases.give(&[A], now + TERM));
        assert_eq!(leases.inner.lock().leased.ends.len(), 1);
    }

    #[test]
    fn what_follows_a_change_that_waits_waits_as_long() {
        let (leases, now) = settled();
        let (folder, made) = (InodeNumber(1), InodeNumber(9));
        leases.give(&[A], now);
        let end = now + TERM;
        // A is removed, something is made under its name, and that is given another content.
        assert_eq!(leases.hold(&[A], &[A, folder], now), Some(end));
        assert_eq!(leases.hold(&[], &[made, folder], now), Some(end));
        assert_eq!(leases.hold(&[made], &[made], now), Some(end));
        assert_eq!(leases.hold(&[B], &[B, InodeNumber(2)], now), None);
        assert_eq!(leases.hold(&[], &[folder], end), None);
        assert!(leases.inner.lock().held.ends.is_empty());
    }
}
