//! **PURE.** Every row that is ever written to the seeder's database, with its key and value layout.
//!
//! Invariant: a row that was changed at rest does not decode; numbers in keys are big-endian, so that
//! rows lie in the order of their numbers, and little-endian in values.

use std::num::NonZeroU64;

use swarm_proto::presence::ChunkSet;
use swarm_proto::range::chunks_of;
use swarm_proto::{MAX_SEGMENT_BYTES, Presence, SegmentId};

const SETTING: u8 = b'm';
const SEGMENT: u8 = b's';
const CHUNK: u8 = b'c';
const GARBAGE: u8 = b'g';
/// Chunk index under which an inline segment's tree lies: after all its chunks.
const TREE_INDEX: u32 = u32::MAX;

/// One row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Row {
    /// What the store knows of itself. Lifetime: the store's. Key: `m`, one byte. Value: by setting.
    Setting(Setting),
    /// What is held of a segment. Lifetime: from its acknowledgement until it is dropped. Key: `s`, id.
    /// Value: [`Record`], then 8 bytes of the BLAKE3 of key and record.
    Segment(SegmentId),
    /// A chunk of an inline segment. Lifetime: its segment's record's. Key: `c`, number of the segment,
    /// index of the chunk, so that what is written together lies together. Value: the bytes.
    Chunk {
        /// [`Place::Inline`] of the record.
        number: u64,
        /// Index in the segment.
        chunk: u32,
    },
    /// The chunk tree of an inline segment of more than one chunk; its key sorts after its chunks.
    /// Lifetime: as they. Value: the chaining values.
    Tree {
        /// [`Place::Inline`] of the record.
        number: u64,
    },
    /// Inline chunks that no record names any more. Lifetime: until they are removed, at the latest when
    /// the store is opened next. Key: `g`, number. Value: empty.
    Garbage {
        /// What [`Place::Inline`] of the record was.
        number: u64,
    },
}

/// What the store knows of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Setting {
    /// 16 bytes: this peer, over all its restarts.
    Peer,
    /// 16 bytes: the swarm it belongs to; absent until it joined one.
    Swarm,
    /// 8 bytes: local sequence numbers and touch stamps from here on were never given out.
    Next,
    /// 8 bytes: bytes written under a number below this one are on the disk and need no check.
    Settled,
}

impl Row {
    /// The key.
    pub(super) fn key(self) -> Vec<u8> {
        match self {
            Self::Setting(setting) => vec![SETTING, setting.code()],
            Self::Segment(id) => [&[SEGMENT], id.as_bytes().as_slice()].concat(),
            Self::Chunk { number, chunk } => chunk_key(number, chunk),
            Self::Tree { number } => chunk_key(number, TREE_INDEX),
            Self::Garbage { number } => [&[GARBAGE], number.to_be_bytes().as_slice()].concat(),
        }
    }

    /// The row of a key; `None` if no row has such a key.
    pub(super) fn parse(key: &[u8]) -> Option<Self> {
        let (kind, rest) = key.split_first()?;
        match *kind {
            SETTING => match rest {
                [code] => Setting::parse(*code).map(Self::Setting),
                _ => None,
            },
            SEGMENT => SegmentId::try_from(rest).ok().map(Self::Segment),
            CHUNK => {
                let (number, chunk) = rest.split_first_chunk::<8>()?;
                let number = u64::from_be_bytes(*number);
                match u32::from_be_bytes(chunk.try_into().ok()?) {
                    TREE_INDEX => Some(Self::Tree { number }),
                    chunk => Some(Self::Chunk { number, chunk }),
                }
            }
            GARBAGE => Some(Self::Garbage { number: u64::from_be_bytes(rest.try_into().ok()?) }),
            _ => None,
        }
    }
}

/// Keys from the first to before the last of a kind of row.
pub(super) struct Keys {
    /// First key.
    pub(super) start: Vec<u8>,
    /// One past the last.
    pub(super) end: Vec<u8>,
}

impl Keys {
    /// All segment rows.
    pub(super) fn segments() -> Self {
        Self { start: vec![SEGMENT], end: vec![SEGMENT + 1] }
    }

    /// All garbage rows.
    pub(super) fn garbage() -> Self {
        Self { start: vec![GARBAGE], end: vec![GARBAGE + 1] }
    }

    /// Chunks and trees of one inline segment.
    pub(super) fn inline(number: u64) -> Self {
        let mut end = chunk_key(number, TREE_INDEX);
        end.push(0);
        Self { start: chunk_key(number, 0), end }
    }

    /// Chunks and trees of all inline segments from a number on.
    pub(super) fn inline_from(number: u64) -> Self {
        Self { start: chunk_key(number, 0), end: vec![CHUNK + 1] }
    }
}

fn chunk_key(number: u64, chunk: u32) -> Vec<u8> {
    [&[CHUNK], number.to_be_bytes().as_slice(), &chunk.to_be_bytes()].concat()
}

impl Setting {
    const fn code(self) -> u8 {
        match self {
            Self::Peer => b'p',
            Self::Swarm => b's',
            Self::Next => b'n',
            Self::Settled => b'd',
        }
    }

    fn parse(code: u8) -> Option<Self> {
        [Self::Peer, Self::Swarm, Self::Next, Self::Settled].into_iter().find(|setting| setting.code() == code)
    }
}

/// Where the chunks of a segment lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In a file of its own.
    File,
    /// In the database, under this number.
    Inline(NonZeroU64),
}

/// What is held of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    /// Bytes of the segment.
    pub(super) length: u32,
    /// Where its chunks lie.
    pub(super) place: Place,
    /// Sequence number under which bytes of it were written last. At or above [`Setting::Settled`] they
    /// may not be on the disk yet and are verified when the store is opened.
    pub(super) written: u64,
    /// Touch stamp; larger with every touch.
    pub(super) touched: u64,
    /// Unix time in milliseconds until which it is kept although nothing names it.
    pub(super) kept_until_ms: u64,
    /// The chunks that are good, if some were dropped as corrupt; boxed, as nearly all records are whole.
    pub(super) partial: Option<Box<ChunkSet>>,
}

const INLINE_FLAG: u8 = 1;
const PARTIAL_FLAG: u8 = 2;
/// flags, length, inline number, written, touched, kept until.
const FIXED_BYTES: usize = 1 + 4 + 8 + 8 + 8 + 8;
const CHECK_BYTES: usize = 8;

impl Record {
    /// All chunks are good.
    pub(super) fn is_whole(&self) -> bool {
        self.partial.is_none()
    }

    /// No chunk is good.
    pub(super) fn is_empty(&self) -> bool {
        self.partial.as_ref().is_some_and(|chunks| chunks.is_empty())
    }

    /// Which chunks are good.
    pub(super) fn presence(&self) -> Presence {
        match &self.partial {
            None => Presence::Whole,
            Some(chunks) => Presence::Partial(ChunkSet::clone(chunks)),
        }
    }

    /// The chunks that are good as a set of their own.
    pub(super) fn chunk_set(&self) -> ChunkSet {
        match &self.partial {
            None => ChunkSet::full(chunks_of(self.length)),
            Some(chunks) => ChunkSet::clone(chunks),
        }
    }

    /// Set which chunks are good.
    pub(super) fn set_chunks(&mut self, chunks: ChunkSet) {
        self.partial = (!chunks.is_full()).then(|| Box::new(chunks));
    }

    /// The value of the row of segment `id`.
    pub(super) fn encode(&self, id: &SegmentId) -> Vec<u8> {
        let (inline, number) = match self.place {
            Place::File => (0, 0),
            Place::Inline(number) => (INLINE_FLAG, number.get()),
        };
        let mut value = Vec::with_capacity(FIXED_BYTES + CHECK_BYTES);
        value.push(inline | if self.is_whole() { 0 } else { PARTIAL_FLAG });
        value.extend_from_slice(&self.length.to_le_bytes());
        for number in [number, self.written, self.touched, self.kept_until_ms] {
            value.extend_from_slice(&number.to_le_bytes());
        }
        if let Some(chunks) = &self.partial {
            value.extend_from_slice(&chunks.to_bitmap());
        }
        let check = check_of(id, &value);
        value.extend_from_slice(&check);
        value
    }

    /// The reverse of [`Self::encode`]; `None` if the value was changed at rest or belongs elsewhere.
    pub(super) fn decode(id: &SegmentId, value: &[u8]) -> Option<Self> {
        let (value, check) = value.split_last_chunk::<CHECK_BYTES>()?;
        if *check != check_of(id, value) {
            return None;
        }
        let (fixed, bitmap) = value.split_first_chunk::<FIXED_BYTES>()?;
        let (flags, rest) = fixed.split_first()?;
        let (length, numbers) = rest.split_first_chunk::<4>()?;
        let length = Some(u32::from_le_bytes(*length)).filter(|length| (1..=MAX_SEGMENT_BYTES).contains(length))?;
        let mut numbers = numbers.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes));
        let number = numbers.next()?;
        let place = match flags & INLINE_FLAG {
            0 => Place::File,
            _ => Place::Inline(NonZeroU64::new(number)?),
        };
        let mut record = Self {
            length,
            place,
            written: numbers.next()?,
            touched: numbers.next()?,
            kept_until_ms: numbers.next()?,
            partial: None,
        };
        if flags & PARTIAL_FLAG != 0 {
            record.set_chunks(ChunkSet::from_bitmap(chunks_of(length), bitmap));
        }
        Some(record)
    }
}

fn check_of(id: &SegmentId, value: &[u8]) -> [u8; CHECK_BYTES] {
    let hash = blake3::Hasher::new().update(id.as_bytes()).update(value).finalize();
    *hash.as_bytes().first_chunk().expect("a hash of 32 bytes has 8")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use swarm_proto::ChunkRange;

    fn record() -> impl Strategy<Value = Record> {
        let numbers = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>());
        (1..=MAX_SEGMENT_BYTES, numbers, any::<Option<(u32, u32)>>()).prop_map(|(length, numbers, lost)| {
            let place = NonZeroU64::new(numbers.0 % 3).map_or(Place::File, Place::Inline);
            let (written, touched, kept_until_ms) = (numbers.1, numbers.2, numbers.3);
            let mut record = Record { length, place, written, touched, kept_until_ms, partial: None };
            if let Some((start, len)) = lost {
                let mut chunks = record.chunk_set();
                let start = start % chunks.length();
                chunks.remove(ChunkRange::new(start, start + len % 100));
                record.set_chunks(chunks);
            }
            record
        })
    }

    proptest! {
        #[test]
        fn a_record_reads_back_as_written(id: [u8; 32], record in record()) {
            let id = SegmentId::new(id);
            prop_assert_eq!(Record::decode(&id, &record.encode(&id)), Some(record));
        }

        #[test]
        fn a_flipped_bit_or_another_id_is_noticed(id: [u8; 32], record in record(), at: prop::sample::Index, bit in 0u8..8) {
            let id = SegmentId::new(id);
            let mut value = record.encode(&id);
            let mut other = *id.as_bytes();
            other[at.index(32)] ^= 1 << bit;
            prop_assert_eq!(Record::decode(&SegmentId::new(other), &value), None);
            let at = at.index(value.len());
            value[at] ^= 1 << bit;
            prop_assert_eq!(Record::decode(&id, &value), None);
        }

        #[test]
        fn no_bytes_panic(id: [u8; 32], bytes: Vec<u8>) {
            let _ = Row::parse(&bytes);
            let _ = Record::decode(&SegmentId::new(id), &bytes);
        }

        #[test]
        fn keys_parse_back_and_sort_by_number_then_chunk(a: (u64, u32), b: (u64, u32), id: [u8; 32]) {
            let chunk = |(number, chunk): (u64, u32)| Row::Chunk { number, chunk: chunk.min(TREE_INDEX - 1) };
            let rows = [chunk(a), chunk(b), Row::Tree { number: a.0 }, Row::Garbage { number: b.0 },
                Row::Segment(SegmentId::new(id)), Row::Setting(Setting::Next)];
            for row in rows {
                prop_assert_eq!(Row::parse(&row.key()), Some(row));
            }
            prop_assert_eq!(chunk(a).key().cmp(&chunk(b).key()), a.cmp(&b));
            let keys = Keys::inline(a.0);
            for row in [chunk(a), Row::Tree { number: a.0 }] {
                prop_assert!((keys.start.clone()..keys.end.clone()).contains(&row.key()));
            }
            prop_assert_eq!((keys.start..keys.end).contains(&chunk(b).key()), a.0 == b.0);
        }
    }
}
