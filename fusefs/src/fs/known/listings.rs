//! **PURE.** Listings of directories, and what this mount changed in them since they were asked for.
//!
//! Invariant: a listing with its edits is the directory as far as it is known; the edits are put in when
//! somebody reads the whole, so that making a file in a directory costs the same however many it has.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use lru::LruCache;
use swarm_proto::InodeNumber;

use super::{DOUBTED, Listing};
use crate::fs::node::Node;

/// See the module.
pub(super) struct Listings {
    all: LruCache<InodeNumber, Kept>,
    /// Entries and edits of all of them together, and one for each.
    size: usize,
    most: usize,
}

struct Kept {
    listing: Arc<Listing>,
    edits: BTreeMap<Bytes, Option<Arc<Node>>>,
    epoch: u64,
    at: Instant,
}

impl Kept {
    fn size(&self) -> usize {
        1 + self.listing.entries.len() + self.edits.len()
    }

    fn put_edits_in(&mut self) {
        if self.edits.is_empty() {
            return;
        }
        let edits = std::mem::take(&mut self.edits);
        let old = self.listing.entries.iter().filter(|(name, _)| !edits.contains_key(name)).cloned();
        let new = edits.iter().filter_map(|(name, node)| Some((name.clone(), node.clone()?)));
        let mut entries: Vec<_> = old.chain(new).collect();
        // Two sorted runs: the sort finds them.
        entries.sort_by(|(left, _), (right, _)| left.cmp(right));
        self.listing = Arc::new(Listing { directory: self.listing.directory, entries });
    }
}

/// A listing, and since when and in which epoch it is known.
pub(super) type Found<T> = (T, u64, Instant);

impl Listings {
    /// None, of at most so many entries together.
    pub(super) fn new(most: usize) -> Self {
        Self { all: LruCache::unbounded(), size: 0, most }
    }

    /// Keep a listing, if it is not too large to be kept at all.
    pub(super) fn keep(&mut self, listing: Arc<Listing>, epoch: u64, at: Instant) {
        let directory = listing.directory;
        self.forget(directory);
        if listing.entries.len() <= self.most {
            let kept = Kept { listing, edits: BTreeMap::new(), epoch, at };
            self.size += kept.size();
            self.all.put(directory, kept);
            self.shrink();
        }
    }

    /// Forget one.
    pub(super) fn forget(&mut self, directory: InodeNumber) {
        if let Some(old) = self.all.pop(&directory) {
            self.size -= old.size();
        }
    }

    /// It was right once. What it says of a name.
    pub(super) fn doubt(&mut self, directory: InodeNumber, name: &[u8]) -> Option<InodeNumber> {
        let kept = self.all.peek_mut(&directory)?;
        kept.epoch = DOUBTED;
        kept.find(name).map(|node| node.inode)
    }

    /// A name became this, by a change of ours.
    pub(super) fn edit(&mut self, directory: InodeNumber, name: Bytes, node: Option<Arc<Node>>) {
        if let Some(kept) = self.all.peek_mut(&directory) {
            self.size += usize::from(kept.edits.insert(name, node).is_none());
            self.shrink();
        }
    }

    /// What it says of a name.
    pub(super) fn name(&mut self, directory: InodeNumber, name: &[u8]) -> Option<Found<Option<Arc<Node>>>> {
        let kept = self.all.get(&directory)?;
        Some((kept.find(name).cloned(), kept.epoch, kept.at))
    }

    /// The whole.
    pub(super) fn whole(&mut self, directory: InodeNumber) -> Option<Found<Arc<Listing>>> {
        let kept = self.all.get_mut(&directory)?;
        self.size -= kept.size();
        kept.put_edits_in();
        self.size += kept.size();
        Some((kept.listing.clone(), kept.epoch, kept.at))
    }

    /// The whole as it was asked for, without what this mount changed since: good enough to guess what is read next.
    pub(super) fn as_asked(&mut self, directory: InodeNumber) -> Option<Found<Arc<Listing>>> {
        let kept = self.all.get(&directory)?;
        Some((kept.listing.clone(), kept.epoch, kept.at))
    }

    fn shrink(&mut self) {
        while self.size > self.most {
            let Some((_, pushed_out)) = self.all.pop_lru() else { break };
            self.size -= pushed_out.size();
        }
    }
}

impl Kept {
    fn find(&self, name: &[u8]) -> Option<&Arc<Node>> {
        match self.edits.get(name) {
            Some(edit) => edit.as_ref(),
            None => self.listing.find(name).map(|index| &self.listing.entries[index].1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::fake::node;
    use crate::fs::node::Kind;

    const DIR: InodeNumber = InodeNumber(1);

    fn file(inode: u64) -> Arc<Node> {
        Arc::new(node(inode, Kind::File))
    }

    fn listing(names: &[&'static str]) -> Arc<Listing> {
        let entries = names.iter().zip(10..).map(|(name, inode)| (Bytes::from(*name), file(inode)));
        Arc::new(Listing { directory: DIR, entries: entries.collect() })
    }

    fn names(listings: &mut Listings) -> Vec<Bytes> {
        listings.whole(DIR).unwrap().0.entries.iter().map(|(name, _)| name.clone()).collect()
    }

    #[test]
    fn a_listing_shows_what_was_made_and_removed_in_it_in_the_order_of_names() {
        let mut listings = Listings::new(100);
        listings.keep(listing(&["a", "c", "e"]), 1, Instant::now());
        listings.edit(DIR, "d".into(), Some(file(20)));
        listings.edit(DIR, "c".into(), None);
        listings.edit(DIR, "a".into(), Some(file(21)));
        assert_eq!(listings.name(DIR, b"a").unwrap().0.unwrap().inode.0, 21);
        assert!(listings.name(DIR, b"c").unwrap().0.is_none());
        assert_eq!(listings.as_asked(DIR).unwrap().0.entries.len(), 3);
        assert_eq!(names(&mut listings), ["a", "d", "e"]);
        assert_eq!(listings.name(DIR, b"a").unwrap().0.unwrap().inode.0, 21);
        assert_eq!(listings.size, 4);
        listings.forget(DIR);
        assert_eq!(listings.size, 0);
    }

    #[test]
    fn what_is_too_much_is_forgotten() {
        let mut listings = Listings::new(4);
        listings.keep(listing(&["a", "b"]), 1, Instant::now());
        listings.edit(DIR, "c".into(), Some(file(20)));
        assert_eq!(listings.size, 4);
        listings.edit(DIR, "d".into(), None);
        assert!(listings.whole(DIR).is_none());
        assert_eq!(listings.size, 0);
    }
}
