//! **PURE.** Ranges of bytes and of chunks. Invariant: a range is half-open and `start <= end`.

use crate::id::SegmentId;

/// Length of a chunk: the unit of verification, of storage and of partial presence.
pub const CHUNK_BYTES: u32 = 16 * 1024;

/// A segment as everybody but its holder knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Segment {
    /// BLAKE3 of its bytes.
    pub id: SegmentId,
    /// Bytes, 1 to [`crate::MAX_SEGMENT_BYTES`].
    pub length: u32,
}

impl Segment {
    /// Chunks of the segment, the last one possibly shorter.
    pub const fn chunks(&self) -> u32 {
        chunks_of(self.length)
    }

    /// All its chunks.
    pub const fn all(&self) -> ChunkRange {
        ChunkRange { start: 0, end: self.chunks() }
    }

    /// The bytes of the segment that `chunks` are; what lies past the end is cut off.
    pub fn bytes_of(&self, chunks: ChunkRange) -> ByteRange {
        let length = u64::from(self.length);
        ByteRange {
            start: (u64::from(chunks.start) * u64::from(CHUNK_BYTES)).min(length),
            end: (u64::from(chunks.end) * u64::from(CHUNK_BYTES)).min(length),
        }
    }
}

/// Chunks of `length` bytes.
pub const fn chunks_of(length: u32) -> u32 {
    length.div_ceil(CHUNK_BYTES)
}

/// Half-open range of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ByteRange {
    /// First byte.
    pub start: u64,
    /// One past the last.
    pub end: u64,
}

impl ByteRange {
    /// From `start`, `length` bytes; saturates at `u64::MAX`.
    pub const fn at(start: u64, length: u64) -> Self {
        Self { start, end: start.saturating_add(length) }
    }

    /// Bytes in it.
    pub const fn len(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// No byte in it.
    pub const fn is_empty(&self) -> bool {
        self.end <= self.start
    }

    /// What both contain; empty if nothing.
    pub fn intersect(&self, other: Self) -> Self {
        let start = self.start.max(other.start);
        Self { start, end: self.end.min(other.end).max(start) }
    }

    /// The chunks that these bytes of a segment touch.
    ///
    /// Errors: `None` if the range lies beyond what a `u32` chunk index can say.
    pub fn chunks(&self) -> Option<ChunkRange> {
        let start = u32::try_from(self.start / u64::from(CHUNK_BYTES)).ok()?;
        let end = u32::try_from(self.end.div_ceil(u64::from(CHUNK_BYTES))).ok()?;
        Some(ChunkRange { start, end: end.max(start) })
    }
}

/// Half-open range of chunk indices in one segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChunkRange {
    /// First chunk.
    pub start: u32,
    /// One past the last.
    pub end: u32,
}

impl ChunkRange {
    /// From `start` to before `end`; empty if they cross.
    pub const fn new(start: u32, end: u32) -> Self {
        Self { start, end: if end < start { start } else { end } }
    }

    /// Chunks in it.
    pub const fn len(&self) -> u32 {
        self.end - self.start
    }

    /// No chunk in it.
    pub const fn is_empty(&self) -> bool {
        self.end <= self.start
    }

    /// The indices.
    pub fn iter(&self) -> std::ops::Range<u32> {
        self.start..self.end
    }

    /// Whether all of `other` lies in this range.
    pub const fn contains(&self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// What both contain; empty if nothing.
    pub fn intersect(&self, other: Self) -> Self {
        let start = self.start.max(other.start);
        Self::new(start, self.end.min(other.end))
    }

    /// Cut into runs of at most `most` chunks, in order.
    pub fn runs(self, most: u32) -> impl Iterator<Item = Self> {
        let step = most.max(1) as usize;
        (self.start..self.end)
            .step_by(step)
            .map(move |start| Self::new(start, self.end.min(start.saturating_add(most.max(1)))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn runs_cover_a_range_once_and_in_order(start in 0u32..500, len in 0u32..500, most in 1u32..80) {
            let range = ChunkRange::new(start, start + len);
            let runs: Vec<_> = range.runs(most).collect();
            prop_assert!(runs.iter().all(|run| !run.is_empty() && run.len() <= most));
            prop_assert_eq!(runs.into_iter().flat_map(|run| run.iter()).collect::<Vec<_>>(), range.iter().collect::<Vec<_>>());
        }

        #[test]
        fn the_chunks_of_bytes_are_the_fewest_that_cover_them(start in 0u64..1_000_000, len in 1u64..1_000_000) {
            let range = ByteRange::at(start, len);
            let chunks = range.chunks().unwrap();
            let size = u64::from(CHUNK_BYTES);
            prop_assert!(u64::from(chunks.start) * size <= start && start < u64::from(chunks.start + 1) * size);
            prop_assert!(u64::from(chunks.end - 1) * size < range.end && range.end <= u64::from(chunks.end) * size);
        }
    }
}
