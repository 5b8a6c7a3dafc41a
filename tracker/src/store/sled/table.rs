//! Commits that the database does not have yet: the newest write of each key. PURE.

use std::collections::BTreeMap;
use std::collections::btree_map::Range;
use std::ops::Bound;

use bytes::Bytes;
use swarm_proto::Revision;

use crate::store::{StoreError, Versioned, Write};

/// What a key has: its value, or None if it was removed.
pub(super) type Found = Option<Versioned>;

/// See the module.
#[derive(Default)]
pub(super) struct Table {
    written: BTreeMap<Bytes, (Revision, Option<Bytes>)>,
    bytes: usize,
    newest: Revision,
}

impl Table {
    /// Take the writes of a commit that is newer than all before it.
    pub(super) fn absorb(&mut self, revision: Revision, writes: &[Write]) {
        self.newest = revision;
        for write in writes {
            self.bytes += write.key.len() + write.value.as_ref().map_or(0, Bytes::len);
            self.written.insert(write.key.clone(), (revision, write.value.clone()));
        }
    }

    /// What the key has, if it was written here.
    pub(super) fn get(&self, key: &[u8]) -> Option<Found> {
        self.written.get(key).map(found)
    }

    /// What was written here, from a key on.
    pub(super) fn from<'a>(&'a self, from: Bound<&[u8]>) -> impl Iterator<Item = (Bytes, Found)> + use<'a> {
        let range: Range<'a, Bytes, _> = self.written.range::<[u8], _>((from, Bound::Unbounded));
        range.map(|(key, written)| (key.clone(), found(written)))
    }

    /// All of it, in the order of the keys.
    pub(super) fn all(&self) -> impl Iterator<Item = (&Bytes, Revision, Option<&Bytes>)> {
        self.written.iter().map(|(key, (revision, value))| (key, *revision, value.as_ref()))
    }

    /// Bytes that were written, also those that were overwritten since.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Revision of the newest commit here.
    pub(super) fn newest(&self) -> Revision {
        self.newest
    }

    /// Nothing was committed.
    pub(super) fn is_empty(&self) -> bool {
        self.newest == Revision::default()
    }
}

fn found((revision, value): &(Revision, Option<Bytes>)) -> Found {
    value.as_ref().map(|value| Versioned { value: value.clone(), revision: *revision })
}

/// One of several sources of keys in their order.
pub(super) type Source<'a> = Box<dyn Iterator<Item = Result<(Bytes, Found), StoreError>> + 'a>;

/// Several sources as one: of a key that is in several, the first source has the newest.
pub(super) struct Merged<'a> {
    sources: Vec<std::iter::Peekable<Source<'a>>>,
}

impl<'a> Merged<'a> {
    /// Newest source first.
    pub(super) fn new(sources: impl IntoIterator<Item = Source<'a>>) -> Self {
        Self { sources: sources.into_iter().map(Iterator::peekable).collect() }
    }
}

impl Iterator for Merged<'_> {
    type Item = Result<(Bytes, Found), StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut least: Option<Bytes> = None;
        for source in &mut self.sources {
            match source.peek() {
                Some(Ok((key, _))) if least.as_ref().is_none_or(|least| key < least) => least = Some(key.clone()),
                Some(Err(_)) => return source.next(),
                _ => {}
            }
        }
        let least = least?;
        let mut newest = None;
        for source in &mut self.sources {
            let same = source.next_if(|next| next.as_ref().is_ok_and(|(key, _)| *key == least));
            newest = newest.or(same);
        }
        newest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(revision: u64, writes: &[(&'static str, Option<&'static str>)]) -> Table {
        let mut table = Table::default();
        let writes: Vec<Write> =
            writes.iter().map(|(key, value)| Write { key: Bytes::from(*key), value: value.map(Bytes::from) }).collect();
        table.absorb(Revision(revision), &writes);
        table
    }

    #[test]
    fn the_newest_source_wins_and_the_order_is_kept() {
        let new = table(2, &[("b", None), ("d", Some("2"))]);
        let old = table(1, &[("a", Some("1")), ("b", Some("1")), ("c", Some("1")), ("d", Some("1"))]);
        let sources = [&new, &old].map(|table| Box::new(table.from(Bound::Unbounded).map(Ok)) as Source<'_>);
        let merged: Vec<_> = Merged::new(sources).map(|next| next.expect("no source fails")).collect();
        let seen: Vec<_> =
            merged.iter().map(|(key, found)| (&key[..], found.as_ref().map(|found| found.revision.0))).collect();
        assert_eq!(seen, [(&b"a"[..], Some(1)), (b"b", None), (b"c", Some(1)), (b"d", Some(2))]);
    }

    #[test]
    fn a_failing_source_is_not_passed_over() {
        let good = table(1, &[("a", Some("1"))]);
        let bad: Source<'_> = Box::new(std::iter::once(Err(StoreError::Closed)));
        let mut merged = Merged::new([Box::new(good.from(Bound::Unbounded).map(Ok)) as Source<'_>, bad]);
        assert!(matches!(merged.next(), Some(Err(StoreError::Closed))));
    }
}
