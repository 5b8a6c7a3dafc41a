//! **PURE.** A manifest: the immutable, ordered list of extents that makes one version of a file.
//!
//! Invariants: extents are non-empty; an extent lies within its segment; lengths sum to the file's size
//! without overflow. Its digest is the BLAKE3 of the byte layout below, not of protobuf, so it means the
//! same to every program and every version.
//!
//! ```text
//! "SWMF" version:u8=1 size:u64 count:u32 then `count` extents, all little-endian:
//!   hole  0:u8 length:u64
//!   data  1:u8 length:u64 segment id:[u8;32] segment length:u32 offset in segment:u32
//! ```

use bytes::{Buf, Bytes};

use crate::MAX_SEGMENT_BYTES;
use crate::id::{ManifestDigest, SegmentId};
use crate::range::{ByteRange, ChunkRange, Segment};

const MAGIC: &[u8; 4] = b"SWMF";
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 4 + 1 + 8 + 4;
const HOLE_BYTES: usize = 1 + 8;
const DATA_BYTES: usize = HOLE_BYTES + SegmentId::LENGTH + 4 + 4;

/// Most extents of one manifest: 32 TiB in segments of 4 MiB.
pub const MAX_EXTENTS: usize = 8 * 1024 * 1024;
/// Largest size of a file: what `off_t` can say.
pub const MAX_FILE_BYTES: u64 = i64::MAX as u64;
/// Bytes of a page in which a manifest is stored and sent.
pub const PAGE_BYTES: usize = 256 * 1024;
/// Largest manifest that travels within another message.
pub const INLINE_BYTES: usize = 64 * 1024;

/// Why bytes are not a manifest, or a range not of one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// The bytes are not a manifest.
    #[error("not a manifest: {0}")]
    Malformed(&'static str),
    /// Written by a newer program.
    #[error("a manifest of version {0}, this program reads version {VERSION}: update it")]
    Version(u8),
    /// A range that ends beyond the file.
    #[error("byte {end} lies beyond the file's {size}")]
    PastEnd {
        /// End asked for.
        end: u64,
        /// Size of the file.
        size: u64,
    },
}

/// A stretch of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Zeros that are stored nowhere.
    Hole {
        /// Bytes, at least 1.
        length: u64,
    },
    /// Part or all of a segment.
    Data {
        /// The segment.
        segment: Segment,
        /// First byte of it.
        offset_in_segment: u32,
        /// Bytes of it, at least 1.
        length: u32,
    },
}

impl Extent {
    /// Bytes of the file.
    pub const fn length(&self) -> u64 {
        match self {
            Self::Hole { length } => *length,
            Self::Data { length, .. } => *length as u64,
        }
    }

    /// All of a segment.
    pub const fn whole(segment: Segment) -> Self {
        Self::Data { segment, offset_in_segment: 0, length: segment.length }
    }
}

/// A part of a file that a range touches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Index of its extent in the manifest.
    pub extent: usize,
    /// The bytes of the file.
    pub in_file: ByteRange,
    /// Where they come from.
    pub source: PartSource,
}

/// Where the bytes of a [`Part`] come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartSource {
    /// Zeros.
    Hole,
    /// These bytes of this segment.
    Segment {
        /// The segment.
        segment: Segment,
        /// The bytes of it; as many as `in_file`.
        in_segment: ByteRange,
        /// The chunks that cover them.
        chunks: ChunkRange,
    },
}

/// One version of a file.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Manifest {
    extents: Vec<Extent>,
    /// Offset in the file of each extent.
    starts: Vec<u64>,
    size: u64,
}

impl Manifest {
    /// From extents in file order.
    ///
    /// Errors: [`ManifestError::Malformed`] if an invariant of this module does not hold.
    pub fn new(extents: Vec<Extent>) -> Result<Self, ManifestError> {
        if extents.len() > MAX_EXTENTS {
            return Err(ManifestError::Malformed("too many extents"));
        }
        let mut starts = Vec::with_capacity(extents.len());
        let mut size = 0u64;
        for extent in &extents {
            if extent.length() == 0 {
                return Err(ManifestError::Malformed("an empty extent"));
            }
            if let Extent::Data { segment, offset_in_segment, length } = extent {
                if segment.length == 0 || segment.length > MAX_SEGMENT_BYTES {
                    return Err(ManifestError::Malformed("a segment of an impossible length"));
                }
                if u64::from(*offset_in_segment) + u64::from(*length) > u64::from(segment.length) {
                    return Err(ManifestError::Malformed("an extent past the end of its segment"));
                }
            }
            starts.push(size);
            size = size
                .checked_add(extent.length())
                .filter(|size| *size <= MAX_FILE_BYTES)
                .ok_or(ManifestError::Malformed("larger than a file can be"))?;
        }
        Ok(Self { extents, starts, size })
    }

    /// Size of the file.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The extents, in file order.
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Offset in the file of extent `index`; the file's size if there is none.
    pub fn start_of(&self, index: usize) -> u64 {
        self.starts.get(index).copied().unwrap_or(self.size)
    }

    /// The segments it names, in file order, with repetitions.
    pub fn segments(&self) -> impl Iterator<Item = Segment> + '_ {
        self.extents.iter().filter_map(|extent| match extent {
            Extent::Data { segment, .. } => Some(*segment),
            Extent::Hole { .. } => None,
        })
    }

    /// Parts that a range touches, in file order.
    ///
    /// Shape:  parts are non-empty and their `in_file` lengths sum to `range.len()`.
    /// Errors: [`ManifestError::PastEnd`] if `range.end` lies beyond the file.
    /// Cost:   O(log extents + parts).
    /// Source: HDFS `getBlockLocations`.
    pub fn parts(&self, range: ByteRange) -> Result<impl Iterator<Item = Part> + '_, ManifestError> {
        if range.end > self.size {
            return Err(ManifestError::PastEnd { end: range.end, size: self.size });
        }
        let first = self.starts.partition_point(|start| *start <= range.start).saturating_sub(1);
        let touched = (first..self.extents.len()).take_while(move |i| self.starts[*i] < range.end);
        Ok(touched.filter_map(move |index| self.part(index, range)))
    }

    fn part(&self, index: usize, range: ByteRange) -> Option<Part> {
        let start = self.starts[index];
        let in_file = ByteRange::at(start, self.extents[index].length()).intersect(range);
        if in_file.is_empty() {
            return None;
        }
        let source = match self.extents[index] {
            Extent::Hole { .. } => PartSource::Hole,
            Extent::Data { segment, offset_in_segment, .. } => {
                let in_segment = ByteRange::at(u64::from(offset_in_segment) + in_file.start - start, in_file.len());
                let chunks = in_segment.chunks().expect("an extent lies within its segment, below 64 MiB");
                PartSource::Segment { segment, in_segment, chunks }
            }
        };
        Some(Part { extent: index, in_file, source })
    }

    /// The byte layout that is stored, sent and hashed.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(HEADER_BYTES + self.extents.len() * DATA_BYTES);
        out.extend_from_slice(MAGIC);
        out.push(VERSION);
        out.extend_from_slice(&self.size.to_le_bytes());
        let count = u32::try_from(self.extents.len()).expect("new() bounds the extents");
        out.extend_from_slice(&count.to_le_bytes());
        for extent in &self.extents {
            out.push(u8::from(matches!(extent, Extent::Data { .. })));
            out.extend_from_slice(&extent.length().to_le_bytes());
            if let Extent::Data { segment, offset_in_segment, .. } = extent {
                out.extend_from_slice(segment.id.as_bytes());
                out.extend_from_slice(&segment.length.to_le_bytes());
                out.extend_from_slice(&offset_in_segment.to_le_bytes());
            }
        }
        out.into()
    }

    /// Read the layout of [`Self::encode`]; any bytes are an error or a valid manifest.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, ManifestError> {
        const SHORT: ManifestError = ManifestError::Malformed("it ends too early");
        if bytes.len() < HEADER_BYTES {
            return Err(SHORT);
        }
        if &bytes[..4] != MAGIC {
            return Err(ManifestError::Malformed("it does not begin with SWMF"));
        }
        bytes.advance(4);
        match bytes.get_u8() {
            VERSION => {}
            other => return Err(ManifestError::Version(other)),
        }
        let size = bytes.get_u64_le();
        let count = bytes.get_u32_le() as usize;
        if count > MAX_EXTENTS || count > bytes.len() / HOLE_BYTES {
            return Err(SHORT);
        }
        let mut extents = Vec::with_capacity(count);
        for _ in 0..count {
            if bytes.len() < HOLE_BYTES {
                return Err(SHORT);
            }
            let kind = bytes.get_u8();
            let length = bytes.get_u64_le();
            extents.push(match kind {
                0 => Extent::Hole { length },
                1 if bytes.len() < DATA_BYTES - HOLE_BYTES => return Err(SHORT),
                1 => {
                    let mut id = [0; SegmentId::LENGTH];
                    bytes.copy_to_slice(&mut id);
                    let segment = Segment { id: SegmentId::new(id), length: bytes.get_u32_le() };
                    let offset_in_segment = bytes.get_u32_le();
                    let length = u32::try_from(length)
                        .map_err(|_| ManifestError::Malformed("an extent past the end of its segment"))?;
                    Extent::Data { segment, offset_in_segment, length }
                }
                _ => return Err(ManifestError::Malformed("an extent of an unknown kind")),
            });
        }
        if !bytes.is_empty() {
            return Err(ManifestError::Malformed("bytes after its end"));
        }
        let manifest = Self::new(extents)?;
        match manifest.size == size {
            true => Ok(manifest),
            false => Err(ManifestError::Malformed("its extents do not sum to its size")),
        }
    }

    /// BLAKE3 of [`Self::encode`].
    pub fn digest(&self) -> ManifestDigest {
        digest_of(&self.encode())
    }
}

impl std::fmt::Debug for Manifest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "manifest of {} bytes in {} extents", self.size, self.extents.len())
    }
}

/// Digest of a manifest that is already encoded.
pub fn digest_of(encoded: &[u8]) -> ManifestDigest {
    ManifestDigest::new(*blake3::hash(encoded).as_bytes())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::cast_possible_truncation, reason = "the lengths of the tests are small")]

    use super::*;
    use proptest::prelude::*;

    /// One entry a byte of the file: the byte of the segment it comes from, or none for a hole.
    type Naive = Vec<Option<(SegmentId, u64)>>;

    fn extent() -> impl Strategy<Value = Extent> {
        let data = (any::<[u8; 32]>(), 1u32..60_000, 0.0..1.0f64, 0.0..1.0f64).prop_map(|(id, length, at, part)| {
            let offset_in_segment = (f64::from(length - 1) * at) as u32;
            let room = length - offset_in_segment;
            let segment = Segment { id: SegmentId::new(id), length };
            Extent::Data { segment, offset_in_segment, length: 1 + (f64::from(room - 1) * part) as u32 }
        });
        prop_oneof![3 => data, 1 => (1u64..50_000).prop_map(|length| Extent::Hole { length })]
    }

    fn naive(extents: &[Extent]) -> Naive {
        extents
            .iter()
            .flat_map(|extent| {
                let extent = *extent;
                (0..extent.length()).map(move |i| match extent {
                    Extent::Hole { .. } => None,
                    Extent::Data { segment, offset_in_segment, .. } => {
                        Some((segment.id, u64::from(offset_in_segment) + i))
                    }
                })
            })
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn parts_say_what_a_list_of_all_bytes_says(extents in prop::collection::vec(extent(), 0..12), a: prop::sample::Index, b: prop::sample::Index) {
            let model = naive(&extents);
            let manifest = Manifest::new(extents).unwrap();
            prop_assert_eq!(manifest.size(), model.len() as u64);
            let (a, b) = (a.index(model.len() + 1), b.index(model.len() + 1));
            let range = ByteRange { start: a.min(b) as u64, end: a.max(b) as u64 };
            let mut got: Naive = Vec::new();
            for part in manifest.parts(range).unwrap() {
                prop_assert!(!part.in_file.is_empty());
                prop_assert_eq!(part.in_file.start, range.start + got.len() as u64);
                match part.source {
                    PartSource::Hole => got.extend((0..part.in_file.len()).map(|_| None)),
                    PartSource::Segment { segment, in_segment, chunks } => {
                        prop_assert_eq!(in_segment.len(), part.in_file.len());
                        prop_assert!(segment.bytes_of(chunks).intersect(in_segment) == in_segment);
                        got.extend((in_segment.start..in_segment.end).map(|i| Some((segment.id, i))));
                    }
                }
            }
            prop_assert_eq!(&got[..], &model[range.start as usize..range.end as usize]);
        }

        #[test]
        fn layout_and_back(extents in prop::collection::vec(extent(), 0..20)) {
            let manifest = Manifest::new(extents).unwrap();
            prop_assert_eq!(Manifest::decode(&manifest.encode()).unwrap(), manifest);
        }

        #[test]
        fn no_bytes_panic(extents in prop::collection::vec(extent(), 0..6), at: prop::sample::Index, byte: u8, cut: prop::sample::Index, noise: Vec<u8>) {
            let _ = Manifest::decode(&noise);
            let mut bytes = Manifest::new(extents).unwrap().encode().to_vec();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = Manifest::decode(&bytes);
            let cut = cut.index(bytes.len());
            prop_assert!(Manifest::decode(&bytes[..cut]).is_err());
        }
    }

    #[test]
    fn a_count_that_promises_too_much_reserves_nothing() {
        let mut bytes = Manifest::default().encode().to_vec();
        bytes[13..17].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(Manifest::decode(&bytes).is_err());
    }
}
