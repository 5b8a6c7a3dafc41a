//! **PURE.** One bit for each chunk of a file, in pages that exist only once a bit of them is set.
//!
//! Not [`swarm_proto::ChunkSet`], which counts the chunks of one segment: a file has as many as a disk.
//! Invariant: `count` is the number of bits set, and no bit at or past `length` is.

use std::ops::Range;

const WORDS: usize = 64;
/// Bits of one page: 64 MiB of a file.
const PAGE_BITS: u64 = WORDS as u64 * 64;
/// Bytes of one page on disk.
pub(super) const PAGE_BYTES: usize = WORDS * 8;

/// A set of bit indices below a fixed length.
pub(super) struct Bitmap {
    pages: Vec<Option<Box<[u64; WORDS]>>>,
    length: u64,
    count: u64,
}

/// A word that a range touches, with the bits of it that lie in the range.
struct Touched {
    page: usize,
    word: usize,
    mask: u64,
    /// Index of the word's lowest bit.
    base: u64,
}

fn touched(range: Range<u64>) -> impl Iterator<Item = Touched> {
    let words = match range.is_empty() {
        true => 0..0,
        false => range.start / 64..range.end.div_ceil(64),
    };
    words.map(move |index| {
        let base = index * 64;
        let low = range.start.saturating_sub(base);
        let high = (range.end - base).min(64);
        let mask = (u64::MAX << low) & (u64::MAX >> (64 - high));
        Touched { page: small(index / WORDS as u64), word: small(index % WORDS as u64), mask, base }
    })
}

fn small(index: u64) -> usize {
    usize::try_from(index).expect("a bitmap that fits in memory has indices that do")
}

impl Bitmap {
    /// None of `length` bits.
    pub(super) fn empty(length: u64) -> Self {
        let mut pages = Vec::new();
        pages.resize_with(small(length.div_ceil(PAGE_BITS)), || None);
        Self { pages, length, count: 0 }
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn is_full(&self) -> bool {
        self.count == self.length
    }

    /// The page that holds a bit.
    pub(super) fn page_of(bit: u64) -> u64 {
        bit / PAGE_BITS
    }

    fn word(&self, at: &Touched) -> u64 {
        self.pages.get(at.page).and_then(Option::as_ref).map_or(0, |page| page[at.word])
    }

    pub(super) fn contains_all(&self, range: Range<u64>) -> bool {
        touched(range).all(|at| self.word(&at) & at.mask == at.mask)
    }

    pub(super) fn count_in(&self, range: Range<u64>) -> u64 {
        touched(range).map(|at| u64::from((self.word(&at) & at.mask).count_ones())).sum()
    }

    /// Set a range; what lies past the length is left out.
    pub(super) fn insert(&mut self, range: Range<u64>) {
        for at in touched(range.start..range.end.min(self.length)) {
            let word = &mut self.pages[at.page].get_or_insert_with(|| Box::new([0; WORDS]))[at.word];
            self.count += u64::from((at.mask & !*word).count_ones());
            *word |= at.mask;
        }
    }

    pub(super) fn remove(&mut self, range: Range<u64>) {
        for at in touched(range.start..range.end.min(self.length)) {
            if let Some(page) = &mut self.pages[at.page] {
                let word = &mut page[at.word];
                self.count -= u64::from((at.mask & *word).count_ones());
                *word &= !at.mask;
            }
        }
    }

    /// The maximal runs of `range` that are not set, in order.
    pub(super) fn gaps(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut gaps: Vec<Range<u64>> = Vec::new();
        for at in touched(range.start..range.end.min(self.length)) {
            let mut absent = !self.word(&at) & at.mask;
            while absent != 0 {
                let first = absent.trailing_zeros();
                let run = (absent >> first).trailing_ones();
                let start = at.base + u64::from(first);
                let end = start + u64::from(run);
                match gaps.last_mut() {
                    Some(gap) if gap.end == start => gap.end = end,
                    _ => gaps.push(start..end),
                }
                absent &= u64::MAX.checked_shl(first + run).unwrap_or(0);
            }
        }
        gaps
    }

    /// Bytes of all pages on disk.
    pub(super) fn disk_bytes(length: u64) -> u64 {
        length.div_ceil(64) * 8
    }

    /// A page as the disk carries it: lowest bit of the first byte first, the last page cut at a whole word.
    pub(super) fn page(&self, index: u64) -> Vec<u8> {
        let start = index * PAGE_BITS;
        let words = small(self.length.saturating_sub(start).div_ceil(64)).min(WORDS);
        match self.pages.get(small(index)).and_then(Option::as_ref) {
            Some(page) => page[..words].iter().flat_map(|word| word.to_le_bytes()).collect(),
            None => vec![0; words * 8],
        }
    }

    /// From the bytes of all pages; missing bytes are zero, bits past `length` are dropped.
    pub(super) fn from_disk(length: u64, bytes: &[u8]) -> Self {
        let mut map = Self::empty(length);
        for (index, bytes) in bytes.chunks(8).enumerate() {
            let base = index as u64 * 64;
            if base >= length {
                break;
            }
            let mut padded = [0; 8];
            padded[..bytes.len()].copy_from_slice(bytes);
            let valid = u64::MAX >> (64 - (length - base).min(64));
            let word = u64::from_le_bytes(padded) & valid;
            if word != 0 {
                let page = map.pages[index / WORDS].get_or_insert_with(|| Box::new([0; WORDS]));
                page[index % WORDS] = word;
                map.count += u64::from(word.count_ones());
            }
        }
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn behaves_as_a_plain_set(length in 0u64..9_000, steps in prop::collection::vec((any::<bool>(), 0u64..9_100, 0u64..600), 0..20), from in 0u64..9_000, len in 0u64..900) {
            let mut map = Bitmap::empty(length);
            let mut model = BTreeSet::new();
            for (put, start, len) in steps {
                if put {
                    map.insert(start..start + len);
                    model.extend((start..start + len).filter(|bit| *bit < length));
                } else {
                    map.remove(start..start + len);
                    model.retain(|bit| !(start..start + len).contains(bit));
                }
                prop_assert_eq!(map.count(), model.len() as u64);
            }
            let probe = from.min(length)..(from + len).min(length);
            let gaps: Vec<u64> = map.gaps(probe.clone()).into_iter().flatten().collect();
            prop_assert_eq!(&gaps, &probe.clone().filter(|bit| !model.contains(bit)).collect::<Vec<_>>());
            prop_assert_eq!(map.contains_all(probe.clone()), gaps.is_empty());
            prop_assert_eq!(map.count_in(probe.clone()), (probe.end - probe.start) - gaps.len() as u64);
            let mut disk = Vec::new();
            for page in 0..length.div_ceil(PAGE_BITS) {
                disk.extend(map.page(page));
            }
            prop_assert_eq!(disk.len() as u64, Bitmap::disk_bytes(length));
            let again = Bitmap::from_disk(length, &disk);
            prop_assert_eq!(again.count(), map.count());
            prop_assert!((0..length).all(|bit| again.contains_all(bit..bit + 1) == model.contains(&bit)));
        }

        #[test]
        fn any_bytes_are_read(length in 0u64..5_000, bytes: Vec<u8>) {
            let map = Bitmap::from_disk(length, &bytes);
            prop_assert!(map.count() <= length);
            prop_assert!(!map.contains_all(length..length + 1));
        }
    }
}
