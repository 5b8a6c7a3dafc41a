//! **PURE.** Which segments of committed files seeders hold too few replicas of, and where their bytes are kept.
//!
//! Invariants: a debt has at least one part; a kept file is counted once for each part that lies in it; what all seeders
//! hold never takes the place of what is at risk.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::{Deserialize, Serialize};
use swarm_proto::{InodeNumber, PeerId, Segment, SegmentId};

/// Number of a kept file; never used twice in one folder while it is there.
pub type KeptNumber = u64;

/// Segments that are remembered of those that are at risk, and as many of the others: about 20 MiB each, and 1 TiB of
/// large files. Of more, nothing is.
pub(super) const MOST_PARTS: usize = 262_144;

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
    /// Seeders that there are lack it; false: all have it, and a further one may join.
    #[serde(default = "at_risk")]
    pub at_risk: bool,
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

/// What an earlier mount did not tell.
fn at_risk() -> bool {
    true
}

impl Debt {
    pub(super) fn key(&self) -> Key {
        (InodeNumber(self.inode), self.number)
    }

    /// Whether something of it could be lost.
    pub(super) fn is_at_risk(&self) -> bool {
        self.parts.iter().any(|part| part.at_risk)
    }
}

/// How many parts there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Count {
    at_risk: usize,
    harmless: usize,
}

impl Count {
    fn of(debt: &Debt) -> Self {
        let at_risk = debt.parts.iter().filter(|part| part.at_risk).count();
        Self { at_risk, harmless: debt.parts.len() - at_risk }
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
    parts: Count,
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
        let count = Count::of(debt);
        self.parts.at_risk += count.at_risk;
        self.parts.harmless += count.harmless;
        debt.parts.iter().filter_map(|part| part.kept).for_each(|kept| *self.uses.entry(kept.file).or_insert(0) += 1);
    }

    fn discount(&mut self, debt: &Debt) -> Vec<KeptNumber> {
        let count = Count::of(debt);
        self.parts.at_risk -= count.at_risk;
        self.parts.harmless -= count.harmless;
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
        let harmless = self.parts.harmless - Count::of(&before).harmless + Count::of(&entry.debt).harmless;
        if harmless > MOST_PARTS {
            entry.debt.parts.retain(|part| part.at_risk);
        }
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

    /// All of a file of a swarm.
    pub(super) fn of(&self, swarm: &str, inode: InodeNumber) -> Vec<Key> {
        let of_inode = self.debts.range((inode, 0)..=(inode, u64::MAX));
        of_inode.filter(|(_, entry)| entry.debt.swarm == swarm).map(|(key, _)| *key).collect()
    }

    /// Those of a swarm for which a seeder is up that was not tried: what is at risk first, then the longest untried.
    pub(super) fn due(&self, swarm: &str, live: &[PeerId]) -> Vec<Key> {
        let is_untried = |tried: &Vec<PeerId>| live.iter().any(|peer| !tried.contains(peer));
        let is_due = |entry: &Entry| entry.debt.swarm == swarm && entry.tried.as_ref().is_none_or(is_untried);
        self.by_turn(is_due, usize::MAX)
    }

    /// Some of a swarm that keep bytes, those that were not looked at for the longest.
    pub(super) fn keeping(&self, swarm: &str, most: usize) -> Vec<Key> {
        let keeps = |entry: &Entry| entry.debt.parts.iter().any(|part| part.kept.is_some());
        self.by_turn(|entry| entry.debt.swarm == swarm && keeps(entry), most)
    }

    fn by_turn(&self, wanted: impl Fn(&Entry) -> bool, most: usize) -> Vec<Key> {
        let found = self.debts.iter().filter(|(_, entry)| wanted(entry));
        let mut found: Vec<(bool, u64, Key)> =
            found.map(|(key, entry)| (!entry.debt.is_at_risk(), entry.turn, *key)).collect();
        found.sort_unstable();
        found.into_iter().take(most).map(|(_, _, key)| key).collect()
    }

    /// It was tried or looked at. `tried`: all of these were tried.
    pub(super) fn looked_at(&mut self, key: Key, tried: Option<Vec<PeerId>>) {
        self.turn += 1;
        if let Some(entry) = self.debts.get_mut(&key) {
            entry.turn = self.turn;
            entry.tried = tried.or(entry.tried.take());
        }
    }

    /// All of a swarm.
    pub(super) fn of_swarm<'a>(&'a self, swarm: &'a str) -> impl Iterator<Item = &'a Debt> {
        self.all().filter(move |debt| debt.swarm == swarm)
    }

    /// All of them.
    pub(super) fn all(&self) -> impl Iterator<Item = &Debt> {
        self.debts.values().map(|entry| &entry.debt)
    }

    /// How many segments more may be at risk.
    pub(super) fn room_at_risk(&self) -> usize {
        MOST_PARTS.saturating_sub(self.parts.at_risk)
    }

    /// How many more may be held by all seeders.
    pub(super) fn room_harmless(&self) -> usize {
        MOST_PARTS.saturating_sub(self.parts.harmless)
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
            at_risk: true,
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
        assert_eq!((free, book.parts), (vec![5], Count { at_risk: 2, harmless: 0 }));
        assert!(book.kept().is_empty());
    }

    /// All seeders have it.
    fn harmless(number: u64, count: usize) -> Debt {
        let part = Part { at_risk: false, ..debt(number, &[(1, None)]).parts[0].clone() };
        Debt { parts: vec![part; count], ..debt(number, &[]) }
    }

    #[test]
    fn a_debt_is_due_when_a_seeder_is_up_that_was_not_tried() {
        let (mut book, a, b) = (Book::default(), PeerId::new([1; 16]), PeerId::new([2; 16]));
        book.add(debt(1, &[(1, None)]), None);
        book.add(debt(2, &[(1, Some(3))]), Some(vec![a]));
        assert_eq!(book.due("s", &[a]), [(INODE, 1)]);
        book.looked_at((INODE, 1), Some(vec![a]));
        assert!(book.due("s", &[a]).is_empty());
        assert_eq!(book.due("s", &[a, b]), [(INODE, 2), (INODE, 1)], "the longest untried first");
        assert_eq!(book.due("s", &[b]), [(INODE, 2), (INODE, 1)]);
        assert!(book.due("another", &[a, b]).is_empty());
        assert_eq!(book.keeping("s", 9), [(INODE, 2)]);
        book.looked_at((INODE, 1), Some(vec![a, b]));
        book.looked_at((INODE, 2), Some(vec![a, b]));
        assert!(book.due("s", &[b]).is_empty(), "one that went away is nobody to send it to");
    }

    #[test]
    fn what_is_at_risk_is_due_first() {
        let mut book = Book::default();
        book.add(harmless(1, 1), None);
        book.add(debt(2, &[(1, None)]), None);
        book.add(debt(3, &[(1, Some(3))]), None);
        assert_eq!(book.due("s", &[]), [(INODE, 2), (INODE, 3), (INODE, 1)]);
    }

    #[test]
    fn what_all_seeders_have_takes_no_room_of_what_is_at_risk() {
        let mut book = Book::default();
        book.add(harmless(1, MOST_PARTS), None);
        assert_eq!((book.room_at_risk(), book.room_harmless()), (MOST_PARTS, 0));
        book.add(debt(2, &[(1, Some(5)), (2, Some(5))]), None);
        let paid = |parts: &mut Vec<Part>| parts[0] = Part { at_risk: false, kept: None, ..parts[0].clone() };
        let (_, free) = book.change((INODE, 2), paid);
        assert_eq!((free, book.get((INODE, 2)).unwrap().parts.len()), (vec![], 1), "of those there are enough");
        let (change, free) = book.change((INODE, 2), paid);
        assert!(matches!(change, Change::Gone) && free == [5]);
        book.change((INODE, 1), |parts| parts.truncate(1));
        assert_eq!((book.parts, book.room_harmless()), (Count { at_risk: 0, harmless: 1 }, MOST_PARTS - 1));
    }

    #[test]
    fn debts_of_one_swarm_are_none_of_another() {
        let mut book = Book::default();
        book.add(debt(1, &[(1, None)]), None);
        book.add(Debt { swarm: "another".into(), ..debt(2, &[(1, None)]) }, None);
        assert_eq!((book.of("s", INODE), book.of("another", INODE)), (vec![(INODE, 1)], vec![(INODE, 2)]));
        assert_eq!(book.of_swarm("s").map(|debt| debt.number).collect::<Vec<_>>(), [1]);
    }
}
