//! **PURE.** Which chunks of a segment somebody has.
//!
//! Invariant: a [`ChunkSet`] never holds an index at or past its length.

use crate::range::ChunkRange;

/// A set of chunk indices below a fixed length, one bit each.
#[derive(Clone, PartialEq, Eq)]
pub struct ChunkSet {
    words: Vec<u64>,
    length: u32,
    count: u32,
}

impl ChunkSet {
    /// No chunk of `length`.
    pub fn empty(length: u32) -> Self {
        Self { words: vec![0; (length as usize).div_ceil(64)], length, count: 0 }
    }

    /// All chunks of `length`.
    pub fn full(length: u32) -> Self {
        let mut set = Self::empty(length);
        set.insert(ChunkRange::new(0, length));
        set
    }

    /// From a bitmap as the wire and the disk carry it (lowest bit of the first byte first); missing
    /// bytes are zero, bits past `length` are dropped.
    pub fn from_bitmap(length: u32, bitmap: &[u8]) -> Self {
        let mut set = Self::empty(length);
        for (word, bytes) in set.words.iter_mut().zip(bitmap.chunks(8)) {
            let mut padded = [0; 8];
            padded[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_le_bytes(padded);
        }
        if let (Some(last), spare @ 1..) = (set.words.last_mut(), length % 64) {
            *last &= (1 << spare) - 1;
        }
        set.count = set.words.iter().map(|word| word.count_ones()).sum();
        set
    }

    /// The reverse of [`Self::from_bitmap`]: `length / 8` bytes, rounded up.
    pub fn to_bitmap(&self) -> Vec<u8> {
        let mut bitmap: Vec<u8> = self.words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bitmap.truncate((self.length as usize).div_ceil(8));
        bitmap
    }

    /// Indices that could be in it.
    pub fn length(&self) -> u32 {
        self.length
    }

    /// Indices in it.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// All of them.
    pub fn is_full(&self) -> bool {
        self.count == self.length
    }

    /// None of them.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether `index` is in it; false past the length.
    pub fn contains(&self, index: u32) -> bool {
        self.words.get(index as usize / 64).is_some_and(|word| word >> (index % 64) & 1 == 1)
    }

    /// Whether every index of `range` is in it.
    pub fn contains_all(&self, range: ChunkRange) -> bool {
        range.iter().all(|index| self.contains(index))
    }

    /// Put `range` in; what lies past the length is left out.
    pub fn insert(&mut self, range: ChunkRange) {
        for index in range.start..range.end.min(self.length) {
            let word = &mut self.words[index as usize / 64];
            self.count += u32::from(*word >> (index % 64) & 1 == 0);
            *word |= 1 << (index % 64);
        }
    }

    /// Take `range` out.
    pub fn remove(&mut self, range: ChunkRange) {
        for index in range.start..range.end.min(self.length) {
            let word = &mut self.words[index as usize / 64];
            self.count -= u32::from(*word >> (index % 64) & 1 == 1);
            *word &= !(1 << (index % 64));
        }
    }

    /// The indices in it, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.length).filter(|index| self.contains(*index))
    }

    /// The maximal runs of `range` that are not in it, in order.
    pub fn gaps(&self, range: ChunkRange) -> Vec<ChunkRange> {
        let mut gaps: Vec<ChunkRange> = Vec::new();
        for index in range.start..range.end.min(self.length) {
            if self.contains(index) {
                continue;
            }
            match gaps.last_mut() {
                Some(gap) if gap.end == index => gap.end += 1,
                _ => gaps.push(ChunkRange::new(index, index + 1)),
            }
        }
        gaps
    }
}

impl std::fmt::Debug for ChunkSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} chunks", self.count, self.length)
    }
}

/// How much of a segment a peer has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Presence {
    /// All of it.
    Whole,
    /// These chunks.
    Partial(ChunkSet),
}

impl Presence {
    /// Whether all of `range` is there.
    pub fn has(&self, range: ChunkRange) -> bool {
        match self {
            Self::Whole => true,
            Self::Partial(set) => set.contains_all(range),
        }
    }

    /// Whether `chunk` is there.
    pub fn has_chunk(&self, chunk: u32) -> bool {
        match self {
            Self::Whole => true,
            Self::Partial(set) => set.contains(chunk),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn behaves_as_a_plain_set(length in 0u32..200, steps in prop::collection::vec((any::<bool>(), 0u32..220, 0u32..70), 0..20)) {
            let mut set = ChunkSet::empty(length);
            let mut model = BTreeSet::new();
            for (put, start, len) in steps {
                let range = ChunkRange::new(start, start + len);
                if put {
                    set.insert(range);
                    model.extend(range.iter().filter(|index| *index < length));
                } else {
                    set.remove(range);
                    model.retain(|index| !range.iter().contains(index));
                }
                prop_assert_eq!(set.iter().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
                prop_assert_eq!(set.count() as usize, model.len());
            }
            prop_assert_eq!(&ChunkSet::from_bitmap(length, &set.to_bitmap()), &set);
            let all = ChunkRange::new(0, length);
            let gaps: Vec<u32> = set.gaps(all).into_iter().flat_map(|gap| gap.iter()).collect();
            prop_assert_eq!(gaps, all.iter().filter(|index| !model.contains(index)).collect::<Vec<_>>());
        }

        #[test]
        fn any_bitmap_is_read(length in 0u32..200, bitmap: Vec<u8>) {
            prop_assert!(ChunkSet::from_bitmap(length, &bitmap).iter().all(|index| index < length));
        }
    }
}
