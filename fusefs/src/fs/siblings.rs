//! **PURE.** Tells a walk over the files of one directory (tar, cp -r, grep -r) from single opens.
//!
//! Not which bytes are fetched. A walk follows the order of the listing or that of the inode numbers
//! (cp sorts by those), so both are followed. Where one directory was walked to its end, the next one is
//! taken for walked from its first file on. Invariant: no file is named twice in one walk.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;

use lru::LruCache;
use swarm_proto::InodeNumber;

use super::known::Listing;

/// Opens in order, after which it is a walk.
const WALK_AFTER: u32 = 2;
/// Files that an open may skip and still be the next one: folders, links, and files that were not wanted.
const MOST_SKIPPED: usize = 8;
/// Files ahead of the walk: at first, and at most.
const AHEAD: (usize, usize) = (16, 256);
/// Opens in order that are taken for granted in a directory after one that was walked to its end.
const HEAD_START: u32 = WALK_AFTER + 2;
/// Directories that are followed at once.
const DIRECTORIES: NonZeroUsize = NonZeroUsize::new(64).expect("not zero");

/// Follows the opens in all directories.
pub(super) struct Siblings {
    directories: LruCache<InodeNumber, Walked>,
}

struct Walked {
    listing: Arc<Listing>,
    /// Indices into the listing in the order of the inode numbers.
    by_inode: Vec<usize>,
    /// Of each inode: its place by name and by number.
    places: HashMap<InodeNumber, (usize, usize)>,
    by_name_walk: Walk,
    by_inode_walk: Walk,
}

/// One order.
#[derive(Default)]
struct Walk {
    last: Option<usize>,
    run: u32,
    /// Places below this one were named already.
    named: usize,
    /// It began in another directory.
    goes_on: bool,
}

impl Siblings {
    /// Nothing opened yet.
    pub(super) fn new() -> Self {
        Self { directories: LruCache::new(DIRECTORIES) }
    }

    /// A file was opened: its siblings that will be opened soon, in order. Empty unless it is a walk.
    pub(super) fn opened(&mut self, listing: &Arc<Listing>, inode: InodeNumber) -> Vec<usize> {
        let fresh = |walked: &Walked| Arc::ptr_eq(&walked.listing, listing);
        if !self.directories.peek(&listing.directory).is_some_and(fresh) {
            let goes_on = self.directories.iter().next().is_some_and(|(_, latest)| latest.was_walked());
            self.directories.put(listing.directory, Walked::new(listing.clone(), goes_on));
        }
        match self.directories.get_mut(&listing.directory) {
            Some(walked) => walked.opened(inode),
            None => Vec::new(),
        }
    }
}

impl Walked {
    /// `goes_on`: a walk has just ended in another directory.
    fn new(listing: Arc<Listing>, goes_on: bool) -> Self {
        let mut by_inode: Vec<usize> = (0..listing.entries.len()).collect();
        by_inode.sort_by_key(|index| listing.entries[*index].1.inode);
        let mut places = HashMap::with_capacity(by_inode.len());
        for (by_number, index) in by_inode.iter().enumerate() {
            places.insert(listing.entries[*index].1.inode, (*index, by_number));
        }
        let walk = || Walk { goes_on, ..Walk::default() };
        Self { listing, by_inode, places, by_name_walk: walk(), by_inode_walk: walk() }
    }

    /// Whether a walk came to the end of it.
    fn was_walked(&self) -> bool {
        let length = self.listing.entries.len();
        self.by_name_walk.ended(length) || self.by_inode_walk.ended(length)
    }

    fn opened(&mut self, inode: InodeNumber) -> Vec<usize> {
        let Some((by_name, by_number)) = self.places.get(&inode).copied() else { return Vec::new() };
        let length = self.listing.entries.len();
        let ahead_by_name = self.by_name_walk.at(by_name, length);
        let ahead_by_number = self.by_inode_walk.at(by_number, length);
        match self.by_name_walk.run >= self.by_inode_walk.run {
            true => ahead_by_name.collect(),
            false => ahead_by_number.map(|place| self.by_inode[place]).collect(),
        }
    }
}

impl Walk {
    fn ended(&self, length: usize) -> bool {
        self.run >= WALK_AFTER && self.last.is_some_and(|last| last + MOST_SKIPPED >= length)
    }

    fn at(&mut self, place: usize, length: usize) -> Range<usize> {
        match self.last {
            Some(last) if place == last => return 0..0,
            Some(last) if place > last && place - last <= MOST_SKIPPED => self.run += 1,
            None if self.goes_on && place <= MOST_SKIPPED => self.run = HEAD_START,
            _ => {
                self.run = 0;
                self.named = 0;
            }
        }
        self.last = Some(place);
        if self.run < WALK_AFTER {
            return 0..0;
        }
        let window = AHEAD.1.min(AHEAD.0 << (self.run - WALK_AFTER).min(8));
        let end = length.min(place + 1 + window);
        let start = self.named.max(place + 1);
        // In large steps: one question to the tracker names many files.
        if start >= end || (end - start < window / 2 && end < length) {
            return 0..0;
        }
        self.named = end;
        start..end
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::node::{Kind, Node};
    use bytes::Bytes;

    use crate::fs::fake::node;

    fn listing(inodes: impl IntoIterator<Item = u64>) -> Arc<Listing> {
        let entries = inodes.into_iter().enumerate().map(|(index, inode)| {
            let node = Node { size: 1, ..node(inode, Kind::File) };
            (Bytes::from(format!("{index:06}")), Arc::new(node))
        });
        Arc::new(Listing { directory: InodeNumber(1), entries: entries.collect() })
    }

    #[test]
    fn a_walk_in_the_order_of_names_names_every_later_file_once() {
        let listing = listing((0..1_000).rev().map(|number| 10 + number));
        let mut siblings = Siblings::new();
        let mut named = Vec::new();
        for (_, node) in &listing.entries {
            named.extend(siblings.opened(&listing, node.inode));
        }
        assert_eq!(named, (3..1_000).collect::<Vec<_>>());
    }

    #[test]
    fn a_walk_in_the_order_of_inode_numbers_is_followed_too() {
        // Names and numbers in unrelated orders.
        let inodes: Vec<u64> = (0..997u64).map(|index| 10 + index * 7 % 997).collect();
        let listing = listing(inodes.clone());
        let mut siblings = Siblings::new();
        let mut sorted = inodes.clone();
        sorted.sort_unstable();
        let mut named = Vec::new();
        for inode in &sorted {
            named.extend(siblings.opened(&listing, InodeNumber(*inode)));
        }
        let named: Vec<u64> = named.into_iter().map(|index| inodes[index]).collect();
        assert_eq!(named, sorted[3..]);
    }

    #[test]
    fn the_directory_after_one_that_was_walked_is_named_from_its_first_file_on() {
        let (first, second) = (listing(10..30), listing(1_000..1_100));
        let second = Arc::new(Listing { directory: InodeNumber(2), entries: second.entries.clone() });
        let mut siblings = Siblings::new();
        for (_, node) in &first.entries {
            siblings.opened(&first, node.inode);
        }
        assert_eq!(siblings.opened(&second, InodeNumber(1_000)), (1..65).collect::<Vec<_>>());
        assert_eq!(siblings.opened(&second, InodeNumber(1_001)), (65..100).collect::<Vec<_>>());
        // One that begins in the middle is none.
        let third = Arc::new(Listing { directory: InodeNumber(3), entries: second.entries.clone() });
        assert!(siblings.opened(&third, InodeNumber(1_050)).is_empty());
    }

    #[test]
    fn single_opens_name_nothing() {
        let listing = listing(10..1_010);
        let mut siblings = Siblings::new();
        for place in [500u64, 20, 900, 20, 20, 20, 400, 100] {
            assert!(siblings.opened(&listing, InodeNumber(10 + place)).is_empty());
        }
    }

    #[test]
    fn files_in_a_walk_are_named_long_before_they_are_opened() {
        let listing = listing(10..2_010);
        let mut siblings = Siblings::new();
        let mut named = 3;
        for place in 0..2_000usize {
            if let Some(last) = siblings.opened(&listing, InodeNumber(10 + place as u64)).last() {
                named = last + 1;
            }
            assert!(place < 600 || named == 2_000 || named - place > 100, "at {place} only {named} were named");
        }
    }
}
