//! **PURE.** One segment that somebody waits for.

use std::collections::BTreeMap;

use bytes::Bytes;
use swarm_proto::{ChunkRange, ChunkSet, ChunkTree, Segment};

use super::{RequestId, WantId};

/// All that concerns one segment.
pub(super) struct Flight {
    pub(super) segment: Segment,
    pub(super) tree: Option<ChunkTree>,
    pub(super) wanted: ChunkSet,
    pub(super) held: ChunkSet,
    /// The held bytes: disjoint runs by their first chunk.
    pub(super) pieces: BTreeMap<u32, (ChunkRange, Bytes)>,
    pub(super) wants: Vec<WantId>,
    pub(super) requests: Vec<RequestId>,
}

impl Flight {
    pub(super) fn new(segment: Segment) -> Self {
        Self {
            segment,
            tree: ChunkTree::verify(segment, Bytes::new()).ok(),
            wanted: ChunkSet::empty(segment.chunks()),
            held: ChunkSet::empty(segment.chunks()),
            pieces: BTreeMap::new(),
            wants: Vec::new(),
            requests: Vec::new(),
        }
    }

    /// The held pieces of `chunks`, all of which are held.
    pub(super) fn cut(&self, chunks: ChunkRange) -> Vec<(ChunkRange, Bytes)> {
        let first = self.pieces.range(..=chunks.start).next_back().map_or(chunks.start, |(start, _)| *start);
        let mut cut = Vec::new();
        for (range, bytes) in self.pieces.range(first..chunks.end).map(|(_, piece)| piece) {
            let part = range.intersect(chunks);
            if part.is_empty() {
                continue;
            }
            let (all, part_bytes) = (self.segment.bytes_of(*range), self.segment.bytes_of(part));
            let within = usize_of(part_bytes.start - all.start)..usize_of(part_bytes.end - all.start);
            cut.push((part, bytes.slice(within)));
        }
        cut
    }
}

pub(super) fn one(chunk: u32) -> ChunkRange {
    ChunkRange::new(chunk, chunk + 1)
}

pub(super) fn usize_of(bytes: u64) -> usize {
    usize::try_from(bytes).expect("an offset in a segment of at most 64 MiB")
}

pub(super) fn first_run(range: ChunkRange, is_in: impl Fn(u32) -> bool) -> Option<ChunkRange> {
    let start = range.iter().find(|chunk| is_in(*chunk))?;
    let end = (start..range.end).find(|chunk| !is_in(*chunk)).unwrap_or(range.end);
    Some(ChunkRange::new(start, end))
}
