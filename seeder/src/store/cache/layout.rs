//! **PURE.** Where the chunks, trees and bits of one cached file lie on disk.
//!
//! Two files a manifest. `….data` is the file itself, sparse, byte for byte, so that the kernel can read it
//! with nobody in the way. `….meta` is all the rest:
//! ```text
//! "SWMC" version:u32 manifest bytes:u64 │ manifest │ bits │ trees │ slack
//! ```
//! A tree lies there once for each segment. An extent may begin or end inside a chunk: the whole of such an
//! *edge* chunk lies in slack as well, since only a whole chunk can be verified. Nothing here needs a
//! checksum: the manifest must hash to the file's name, a tree must fold to its segment's id, a chunk must
//! hash to its place in the tree, and a wrong bit is found when its chunk is first used.
//!
//! Invariant: bits, trees and slack of different extents never overlap, save that of one segment in one tree.

use std::collections::HashMap;
use std::ops::Range;

use swarm_proto::{ByteRange, CHUNK_BYTES, ChunkRange, ChunkTree, Extent, Manifest, Segment};

use super::bitmap::Bitmap;

/// First bytes of a meta file.
pub(super) const MAGIC: &[u8; 4] = b"SWMC";
/// Layout that this program writes.
pub(super) const VERSION: u32 = 1;
/// Bytes before the manifest.
pub(super) const HEADER_BYTES: usize = 16;

/// Where everything of one cached file lies.
pub(super) struct Layout {
    /// First bit of each extent, and one past the last bit.
    bit_bases: Vec<u64>,
    /// Offset of each extent's tree.
    trees: Vec<u64>,
    /// Offset of each edge chunk's slack.
    slack: HashMap<(usize, u32), u64>,
    /// Offset of the bits.
    pub(super) bits_at: u64,
}

/// An extent that has chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slice {
    pub(super) segment: Segment,
    /// Bytes of the segment that the file shows.
    pub(super) in_segment: ByteRange,
    /// Chunks that these touch.
    pub(super) chunks: ChunkRange,
    /// Where they begin in the file.
    pub(super) start_in_file: u64,
}

impl Slice {
    /// Extent `index` of a manifest, unless it is a hole or there is none.
    pub(super) fn of(manifest: &Manifest, index: usize) -> Option<Self> {
        match manifest.extents().get(index)? {
            Extent::Hole { .. } => None,
            Extent::Data { segment, offset_in_segment, length } => {
                let in_segment = ByteRange::at(u64::from(*offset_in_segment), u64::from(*length));
                let chunks = in_segment.chunks()?;
                Some(Self { segment: *segment, in_segment, chunks, start_in_file: manifest.start_of(index) })
            }
        }
    }

    /// The bytes of the file that bytes of the segment are; those not shown are cut off.
    pub(super) fn in_file(&self, bytes: ByteRange) -> ByteRange {
        let shown = bytes.intersect(self.in_segment);
        ByteRange::at((self.start_in_file + shown.start).saturating_sub(self.in_segment.start), shown.len())
    }

    /// Whether a chunk is shown only in part.
    fn is_edge(&self, chunk: u32) -> bool {
        let bytes = self.segment.bytes_of(ChunkRange::new(chunk, chunk + 1));
        bytes.intersect(self.in_segment) != bytes
    }

    /// The chunks of it that are edges: at most two.
    pub(super) fn edges(&self, within: ChunkRange) -> impl Iterator<Item = u32> + use<> {
        let slice = *self;
        let last = slice.chunks.end.saturating_sub(1);
        let both = [Some(slice.chunks.start), (last != slice.chunks.start).then_some(last)];
        both.into_iter().flatten().filter(move |chunk| within.iter().contains(chunk) && slice.is_edge(*chunk))
    }
}

impl Layout {
    /// Of a file with this manifest, whose encoding has `manifest_bytes`.
    pub(super) fn of(manifest: &Manifest, manifest_bytes: u64) -> Self {
        let slices = || (0..manifest.extents().len()).map(|index| Slice::of(manifest, index));
        let mut bit_bases = Vec::with_capacity(manifest.extents().len() + 1);
        let mut bits = 0;
        for slice in slices() {
            bit_bases.push(bits);
            bits += slice.map_or(0, |slice| u64::from(slice.chunks.len()));
        }
        bit_bases.push(bits);
        let bits_at = (HEADER_BYTES as u64 + manifest_bytes).next_multiple_of(8);
        let mut end = bits_at + Bitmap::disk_bytes(bits);
        let mut placed: HashMap<Segment, u64> = HashMap::new();
        let mut trees = Vec::with_capacity(manifest.extents().len());
        for slice in slices() {
            trees.push(slice.map_or(0, |slice| {
                *placed.entry(slice.segment).or_insert_with(|| {
                    let at = end;
                    end += ChunkTree::wire_len(slice.segment) as u64;
                    at
                })
            }));
        }
        let mut slack = HashMap::new();
        for (index, slice) in slices().enumerate().filter_map(|(index, slice)| Some((index, slice?))) {
            for chunk in slice.edges(slice.chunks) {
                slack.insert((index, chunk), end);
                end += u64::from(CHUNK_BYTES);
            }
        }
        Self { bit_bases, trees, slack, bits_at }
    }

    /// Bits in all.
    pub(super) fn bits(&self) -> u64 {
        self.bit_bases.last().copied().unwrap_or(0)
    }

    /// The bits of some chunks of an extent.
    pub(super) fn bits_of(&self, extent: usize, slice: &Slice, chunks: ChunkRange) -> Range<u64> {
        let chunks = chunks.intersect(slice.chunks);
        let base = self.bit_bases.get(extent).copied().unwrap_or(0);
        let start = base + u64::from(chunks.start.saturating_sub(slice.chunks.start));
        start..start + u64::from(chunks.len())
    }

    /// The chunks that bits of an extent are.
    pub(super) fn chunks_of(&self, extent: usize, slice: &Slice, bits: Range<u64>) -> ChunkRange {
        let base = self.bit_bases.get(extent).copied().unwrap_or(0);
        let chunk = |bit: u64| u32::try_from(bit - base).unwrap_or(u32::MAX).saturating_add(slice.chunks.start);
        ChunkRange::new(chunk(bits.start), chunk(bits.end)).intersect(slice.chunks)
    }

    /// Offset of an extent's tree in the meta file.
    pub(super) fn tree_at(&self, extent: usize) -> u64 {
        self.trees.get(extent).copied().unwrap_or(0)
    }

    /// Offset of an edge chunk's bytes in the meta file.
    pub(super) fn slack_at(&self, extent: usize, chunk: u32) -> Option<u64> {
        self.slack.get(&(extent, chunk)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use swarm_proto::SegmentId;

    fn extents() -> impl Strategy<Value = Vec<Extent>> {
        let data = (0u8..4, 1u32..200_000, any::<prop::sample::Index>(), any::<prop::sample::Index>()).prop_map(
            |(id, length, at, to)| {
                let length = length + u32::from(id) * 1_000;
                let offset_in_segment = u32::try_from(at.index(length as usize)).unwrap();
                let room = length - offset_in_segment;
                let segment = Segment { id: SegmentId::new([id; 32]), length };
                Extent::Data { segment, offset_in_segment, length: 1 + u32::try_from(to.index(room as usize)).unwrap() }
            },
        );
        prop::collection::vec(
            prop_oneof![4 => data, 1 => (1u64..90_000).prop_map(|length| Extent::Hole { length })],
            0..8,
        )
    }

    proptest! {
        #[test]
        fn nothing_overlaps_and_every_bit_has_one_chunk(extents in extents()) {
            // Ids repeat with other lengths here, as only a hostile tracker would have them.
            let manifest = Manifest::new(extents).unwrap();
            let layout = Layout::of(&manifest, 1_000);
            let mut next = 0;
            let mut slots = Vec::new();
            for index in 0..manifest.extents().len() {
                let Some(slice) = Slice::of(&manifest, index) else { continue };
                let bits = layout.bits_of(index, &slice, slice.chunks);
                prop_assert_eq!(bits.start, next);
                next = bits.end;
                prop_assert_eq!(layout.chunks_of(index, &slice, bits), slice.chunks);
                for chunk in slice.chunks.iter() {
                    let bytes = slice.segment.bytes_of(ChunkRange::new(chunk, chunk + 1));
                    let whole = slice.in_file(bytes).len() == bytes.len();
                    prop_assert_eq!(layout.slack_at(index, chunk).is_none(), whole);
                    slots.extend(layout.slack_at(index, chunk));
                }
            }
            prop_assert_eq!(next, layout.bits());
            slots.sort_unstable();
            prop_assert!(slots.windows(2).all(|pair| pair[0] + u64::from(CHUNK_BYTES) <= pair[1]));
            prop_assert!(slots.first().is_none_or(|first| *first >= layout.bits_at + Bitmap::disk_bytes(layout.bits())));
        }
    }
}
