//! **PURE.** Which segments of committed files seeders hold too few replicas of, and where their bytes are kept.
//!
//! Invariants: a debt has at least one part; a kept file is counted once for each part that lies in it.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::{Deserialize, Serialize};
use swarm_proto::{InodeNumber, PeerId, Segment, SegmentId};

/// Number of a kept file; never used twice in one folder while it is there.
pub type KeptNumber = u64;

/// Which debt: the inode that it is of, and a number.
pub type Key = (InodeNumber, u64);

/// What seeders lack of what one save committed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Debt {
    /// Its number.
    pub number: u64,
    /// The swarm, as 32 hex digits.
    pub swarm: String,
    /// The inode.
    pub inode: u64,
    /// Where it was, for people, as far as it is known.
    pub path: String,
    /// The segments.
    pub parts: Vec<Part>,
}

/// A segment that is lacking.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Its id, as 64 hex digits.
    #[serde(with = "hex")]
    pub segment: SegmentId,
    /// Its length.
    pub length: u32,
    /// Where its bytes are kept; none: only in the swarm.
    pub kept: Option<Kept>,
}

/// Where bytes are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// In which file.
    pub file: KeptNumber,
    /// Where in it.
    pub offset: u64,
}

impl Debt {
    pub(super) fn key(&self) -> Key {
        (InodeNumber(self.inode), self.number)
    }
}

impl Part {
    /// The segment.
    pub fn segment(&self) -> Segment {
        Segment { id: self.segment, length: self.length }
    }
}

struct Entry {
    debt: Debt,
    /// Seeders that were up when all of them had been tried; none: some may be left to try.
    tried: Option<Vec<PeerId>>,
    /// When it was last tried or looked at, among all.
    turn: u64,
}

/// See the module.
#[derive(Default)]
pub(super) struct Book {
    debts: BTreeMap<Key, Entry>,
    uses: HashMap<KeptNumber, usize>,
    parts: usize,
    turn: u64,
}

/// What a change of a debt came to.
pub(super) enum Change {
    /// Nothing is changed.
    None,
    /// It is this now.
    Now(Debt),
    /// It is gone.
    Gone,
}

impl Book {
    /// One more. `tried`: all of these were tried already.
    pub(super) fn add(&mut self, debt: Debt, tried: Option<Vec<PeerId>>) {
        if debt.parts.is_empty() {
            return;
        }
        self.remove(debt.key());
        self.count(&debt);
        self.turn += 1;
        self.debts.insert(debt.key(), Entry { debt, tried, turn: self.turn });
    }

    fn count(&mut self, debt: &Debt) {
        self.parts += debt.parts.len();
        debt.parts.iter().filter_map(|part| part.kept).for_each(|kept| *self.uses.entry(kept.file).or_insert(0) += 1);
    }

    fn discount(&mut self, debt: &Debt) -> Vec<KeptNumber> {
        self.parts -= debt.parts.len();
        let mut free = Vec::new();
        for kept in debt.parts.iter().filter_map(|part| part.kept) {
            let uses = self.uses.entry(kept.file).or_insert(1);
            *uses -= 1;
            if *uses == 0 {
                self.uses.remove(&kept.file);
                free.push(kept.file);
            }
        }
        free
    }

    /// Forget one; kept files that nobody needs any more.
    pub(super) fn remove(&mut self, key: Key) -> Vec<KeptNumber> {
        let entry = self.debts.remove(&key);
        entry.map(|entry| self.discount(&entry.debt)).unwrap_or_default()
    }

    /// Change what one lacks; and kept files that nobody needs any more.
    pub(super) fn change(&mut self, key: Key, change: impl FnOnce(&mut Vec<Part>)) -> (Change, Vec<KeptNumber>) {
        let Some(entry) = self.debts.get_mut(&key) else { return (Change::None, Vec::new()) };
        let before = entry.debt.clone();
        change(&mut entry.debt.parts);
        let now = entry.debt.clone();
        if now == before {
            return (Change::None, Vec::new());
        }
        // Counted first: what it still needs is never free in between.
        self.count(&now);
        let free = self.discount(&before);
        if now.parts.is_empty() {
            self.debts.remove(&key);
            return (Change::Gone, free);
        }
        (Change::Now(now), free)
    }

    /// One of them.
    pub(super) fn get(&self, key: Key) -> Option<&Debt> {
        self.debts.get(&key).map(|entry| &entry.debt)
    }

    /// All of a file.
    pub(super) fn of(&self, inode: InodeNumber) -> Vec<Key> {
        self.debts.range((inode, 0)..=(inode, u64::MAX)).map(|(key, _)| *key).collect()
    }

    /// Those of a swarm for which other seeders are up than were tried, the longest untried first.
    pub(super) fn due(&self, swarm: &str, live: &[PeerId]) -> Vec<Key> {
        self.by_turn(|entry| entry.debt.swarm == swarm && entry.tried.as_deref() != Some(live), usize::MAX)
    }

    /// Some of a swarm that keep bytes, those that were not looked at for the longest.
    pub(super) fn keeping(&self, swarm: &str, most: usize) -> Vec<Key> {
        let keeps = |entry: &Entry| entry.debt.parts.iter().any(|part| part.kept.is_some());
        self.by_turn(|entry| entry.debt.swarm == swarm && keeps(entry), most)
    }

    fn by_turn(&self, wanted: impl Fn(&Entry) -> bool, most: usize) -> Vec<Key> {
        let mut found: Vec<(u64, Key)> =
            self.debts.iter().filter(|(_, entry)| wanted(entry)).map(|(key, entry)| (entry.turn, *key)).collect();
        found.sort_unstable();
        found.into_iter().take(most).map(|(_, key)| key).collect()
    }

    /// It was tried or looked at. `tried`: all of these were tried.
    pub(super) fn looked_at(&mut self, key: Key, tried: Option<Vec<PeerId>>) {
        self.turn += 1;
        if let Some(entry) = self.debts.get_mut(&key) {
            entry.turn = self.turn;
            entry.tried = tried.or(entry.tried.take());
        }
    }

    /// All of them.
    pub(super) fn all(&self) -> impl Iterator<Item = &Debt> {
        self.debts.values().map(|entry| &entry.debt)
    }

    /// Segments of all debts.
    pub(super) fn parts(&self) -> usize {
        self.parts
    }

    /// Files that are kept.
    pub(super) fn kept(&self) -> HashSet<KeptNumber> {
        self.uses.keys().copied().collect()
    }
}

/// An id as text.
mod hex {
    use serde::{Deserialize, Deserializer, Serializer};
    use swarm_proto::SegmentId;

    pub(super) fn serialize<S: Serializer>(id: &SegmentId, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(id)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SegmentId, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn debt(number: u64, parts: &[(u8, Option<u64>)]) -> Debt {
        let part = |(id, file): &(u8, Option<u64>)| Part {
            segment: SegmentId::new([*id; 32]),
            length: 10,
            kept: file.map(|file| Kept { file, offset: 0 }),
        };
        Debt { number, swarm: "s".into(), inode: 7, path: "/f".into(), parts: parts.iter().map(part).collect() }
    }

    const INODE: InodeNumber = InodeNumber(7);

    #[test]
    fn a_kept_file_is_free_once_no_part_lies_in_it() {
        let mut book = Book::default();
        book.add(debt(1, &[(1, Some(5)), (2, Some(5))]), None);
        book.add(debt(2, &[(3, Some(5)), (4, None)]), None);
        let (_, free) = book.change((INODE, 1), |parts| parts.truncate(1));
        assert!(free.is_empty());
        let (change, free) = book.change((INODE, 1), Vec::clear);
        assert!(matches!(change, Change::Gone) && free.is_empty() && book.get((INODE, 1)).is_none());
        let (_, free) = book.change((INODE, 2), |parts| parts.iter_mut().for_each(|part| part.kept = None));
        assert_eq!((free, book.parts()), (vec![5], 2));
        assert!(book.kept().is_empty());
    }

    #[test]
    fn a_debt_is_due_when_other_seeders_are_up_than_were_tried() {
        let (mut book, a, b) = (Book::default(), PeerId::new([1; 16]), PeerId::new([2; 16]));
        book.add(debt(1, &[(1, None)]), None);
        book.add(debt(2, &[(1, Some(3))]), Some(vec![a]));
        assert_eq!(book.due("s", &[a]), [(INODE, 1)]);
        book.looked_at((INODE, 1), Some(vec![a]));
        assert!(book.due("s", &[a]).is_empty());
        assert_eq!(book.due("s", &[a, b]), [(INODE, 2), (INODE, 1)], "the longest untried first");
        assert!(book.due("another", &[a, b]).is_empty());
        assert_eq!(book.keeping("s", 9), [(INODE, 2)]);
    }
}
