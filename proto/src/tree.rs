//! **PURE.** The chunk tree: what makes 16 KiB of a segment verifiable by itself.
//!
//! Invariant: a [`ChunkTree`] that exists folds to the id of the segment it was made for.

use blake3::Hasher;
use blake3::hazmat::{ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};
use bytes::Bytes;

use crate::id::SegmentId;
use crate::range::{CHUNK_BYTES, ChunkRange, Segment};

/// Bytes of one chaining value.
const VALUE_BYTES: usize = 32;

/// Why bytes or a tree are not what they claim to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// The tree has the wrong length for its segment.
    #[error("a tree of {got} bytes, where the segment needs {want}")]
    TreeLength {
        /// 32 bytes a chunk; 0 for a segment of a single chunk.
        want: usize,
        /// What came.
        got: usize,
    },
    /// The tree does not fold to the segment's id.
    #[error("the tree does not fold to the segment's id")]
    TreeMismatch,
    /// The data has the wrong length for its chunks.
    #[error("{got} bytes, where the chunks have {want}")]
    DataLength {
        /// Bytes of the chunks.
        want: u64,
        /// What came.
        got: u64,
    },
    /// A chunk does not hash to its chaining value.
    #[error("chunk {chunk} does not verify")]
    ChunkMismatch {
        /// Its index in the segment.
        chunk: u32,
    },
}

/// The verified chaining values of a segment's chunks, in order.
///
/// Source: bao's outboard with 16 KiB groups.
#[derive(Clone, PartialEq, Eq)]
pub struct ChunkTree {
    segment: Segment,
    values: Bytes,
}

impl ChunkTree {
    /// The tree of bytes that we have.
    ///
    /// Shape: `bytes` is the whole segment, 1 to [`crate::MAX_SEGMENT_BYTES`].
    /// Cost:  one BLAKE3 pass.
    pub fn build(bytes: &[u8]) -> Self {
        let mut builder = TreeBuilder::default();
        builder.update(bytes);
        builder.finish()
    }

    /// A tree that somebody sent.
    ///
    /// Errors: [`TreeError::TreeLength`], [`TreeError::TreeMismatch`].
    /// Cost:   O(chunks) merges.
    pub fn verify(segment: Segment, values: Bytes) -> Result<Self, TreeError> {
        let want = Self::wire_len(segment);
        if values.len() != want {
            return Err(TreeError::TreeLength { want, got: values.len() });
        }
        if want > 0 && fold(&values, u64::from(segment.length)) != segment.id {
            return Err(TreeError::TreeMismatch);
        }
        Ok(Self { segment, values })
    }

    /// Bytes of a segment's tree on the wire and on disk; 0 for a single chunk, whose hash is the id.
    pub const fn wire_len(segment: Segment) -> usize {
        match segment.chunks() {
            0 | 1 => 0,
            chunks => chunks as usize * VALUE_BYTES,
        }
    }

    /// The segment it belongs to.
    pub fn segment(&self) -> Segment {
        self.segment
    }

    /// The chaining values as the wire and the disk carry them.
    pub fn values(&self) -> &Bytes {
        &self.values
    }

    /// Verify a run of chunks.
    ///
    /// Shape:  `data` is exactly the bytes of `chunks`.
    /// Errors: [`TreeError::DataLength`]; [`TreeError::ChunkMismatch`] names the first bad chunk.
    /// Cost:   one BLAKE3 pass over `data`.
    pub fn check(&self, chunks: ChunkRange, data: &[u8]) -> Result<(), TreeError> {
        let range = self.segment.bytes_of(chunks);
        if range.len() != data.len() as u64 || !self.segment.all().contains(chunks) {
            return Err(TreeError::DataLength { want: range.len(), got: data.len() as u64 });
        }
        if self.values.is_empty() {
            return match blake3::hash(data).as_bytes() == self.segment.id.as_bytes() {
                true => Ok(()),
                false => Err(TreeError::ChunkMismatch { chunk: 0 }),
            };
        }
        let values = &self.values[chunks.start as usize * VALUE_BYTES..chunks.end as usize * VALUE_BYTES];
        let pieces = data.chunks(CHUNK_BYTES as usize).zip(values.chunks_exact(VALUE_BYTES));
        for (chunk, (bytes, value)) in chunks.iter().zip(pieces) {
            if chaining_value(chunk, bytes) != value {
                return Err(TreeError::ChunkMismatch { chunk });
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for ChunkTree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "tree of {:?}, {} chunks", self.segment.id, self.segment.chunks())
    }
}

/// Builds the tree and the id of a segment whose bytes come in pieces.
///
/// Invariant: all chunks but the one being filled are in `values`.
#[derive(Default)]
pub struct TreeBuilder {
    values: Vec<u8>,
    chunk: Option<Hasher>,
    length: u64,
}

impl TreeBuilder {
    /// More bytes of the segment.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let filled = self.length % u64::from(CHUNK_BYTES);
            if filled == 0 {
                self.seal();
            }
            let room = usize::try_from(u64::from(CHUNK_BYTES) - filled).expect("at most one chunk");
            let (now, rest) = bytes.split_at(room.min(bytes.len()));
            let start = self.length - filled;
            self.chunk
                .get_or_insert_with(|| {
                    let mut hasher = Hasher::new();
                    hasher.set_input_offset(start);
                    hasher
                })
                .update(now);
            self.length += now.len() as u64;
            bytes = rest;
        }
    }

    /// Bytes so far.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The tree of all bytes given; an empty one has the id of no bytes and no segment is like it.
    pub fn finish(mut self) -> ChunkTree {
        let length = u32::try_from(self.length).unwrap_or(u32::MAX);
        if self.length <= u64::from(CHUNK_BYTES) {
            let hash = self.chunk.take().unwrap_or_default().finalize();
            let segment = Segment { id: SegmentId::new(*hash.as_bytes()), length };
            return ChunkTree { segment, values: Bytes::new() };
        }
        self.seal();
        let id = fold(&self.values, self.length);
        ChunkTree { segment: Segment { id, length }, values: Bytes::from(self.values) }
    }

    fn seal(&mut self) {
        if let Some(hasher) = self.chunk.take() {
            self.values.extend_from_slice(&hasher.finalize_non_root());
        }
    }
}

fn chaining_value(chunk: u32, bytes: &[u8]) -> ChainingValue {
    Hasher::new().set_input_offset(u64::from(chunk) * u64::from(CHUNK_BYTES)).update(bytes).finalize_non_root()
}

/// Fold the values of at least two chunks to the id of a segment of `length` bytes.
fn fold(values: &[u8], length: u64) -> SegmentId {
    let (left, right) = children(values, length);
    SegmentId::new(*merge_subtrees_root(&left, &right, Mode::Hash).as_bytes())
}

fn children(values: &[u8], length: u64) -> (ChainingValue, ChainingValue) {
    let left = left_subtree_len(length);
    let left_chunks = usize::try_from(left / u64::from(CHUNK_BYTES)).expect("a segment has at most 2^18 chunks");
    let (left_values, right_values) = values.split_at(left_chunks * VALUE_BYTES);
    (subtree(left_values, left), subtree(right_values, length - left))
}

fn subtree(values: &[u8], length: u64) -> ChainingValue {
    if length <= u64::from(CHUNK_BYTES) {
        return values.try_into().expect("callers split at multiples of a value, down to one chunk");
    }
    let (left, right) = children(values, length);
    merge_subtrees_non_root(&left, &right, Mode::Hash)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(length: usize) -> Vec<u8> {
        (0..length).map(|i| (i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()[7]).collect()
    }

    #[test]
    fn folds_to_the_plain_hash_at_every_boundary() {
        let chunk = CHUNK_BYTES as usize;
        let mut lengths: Vec<usize> = vec![1, 2, 1023, 1024, 1025];
        for chunks in [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 63, 64, 65, 127, 128, 255, 256, 257] {
            lengths.extend([chunks * chunk - 1025, chunks * chunk - 1, chunks * chunk, chunks * chunk + 1]);
        }
        for length in lengths {
            let data = bytes(length);
            let tree = ChunkTree::build(&data);
            assert_eq!(tree.segment().id.as_bytes(), blake3::hash(&data).as_bytes(), "length {length}");
            assert_eq!(tree.segment().length as usize, length);
            let again = ChunkTree::verify(tree.segment(), tree.values().clone()).expect("own tree verifies");
            again.check(tree.segment().all(), &data).expect("own bytes verify");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn folds_to_the_plain_hash_for_any_length_and_any_pieces(length in 1usize..400_000, piece in 1usize..50_000) {
            let data = bytes(length);
            let mut builder = TreeBuilder::default();
            data.chunks(piece).for_each(|part| builder.update(part));
            let tree = builder.finish();
            prop_assert_eq!(tree.segment().id, SegmentId::new(*blake3::hash(&data).as_bytes()));
            prop_assert_eq!(&tree, &ChunkTree::build(&data));
        }

        #[test]
        fn one_flipped_bit_is_found_and_named(length in 1usize..200_000, at: prop::sample::Index, bit in 0u8..8) {
            let mut data = bytes(length);
            let tree = ChunkTree::build(&data);
            let at = at.index(length);
            data[at] ^= 1 << bit;
            let chunk = u32::try_from(at / CHUNK_BYTES as usize).unwrap();
            prop_assert_eq!(tree.check(tree.segment().all(), &data), Err(TreeError::ChunkMismatch { chunk }));
        }

        #[test]
        fn a_wrong_tree_is_refused(length in 16_385usize..200_000, at: prop::sample::Index) {
            let tree = ChunkTree::build(&bytes(length));
            let mut values = tree.values().to_vec();
            let at = at.index(values.len());
            values[at] ^= 1;
            prop_assert_eq!(ChunkTree::verify(tree.segment(), values.into()), Err(TreeError::TreeMismatch));
        }

        #[test]
        fn no_range_or_length_panics(length in 1usize..100_000, start: u32, end: u32, data in prop::collection::vec(any::<u8>(), 0..100)) {
            let tree = ChunkTree::build(&bytes(length));
            let _ = tree.check(ChunkRange::new(start, end), &data);
        }
    }
}
