//! **PURE.** Reads the byte layout of a manifest as it comes, in pieces of any size.
//!
//! A manifest may be 400 MB; this one holds at most an extent of it. It accepts exactly what
//! [`Manifest::decode`](swarm_proto::Manifest::decode) accepts.

use swarm_proto::manifest::{MAX_EXTENTS, MAX_FILE_BYTES};
use swarm_proto::{Extent, MAX_SEGMENT_BYTES, Manifest, ManifestError, Segment, SegmentId};

const HEADER_BYTES: usize = 17;
const HOLE_BYTES: usize = 9;
const DATA_BYTES: usize = HOLE_BYTES + SegmentId::LENGTH + 8;
/// Longest layout there is.
pub const MAX_LAYOUT_BYTES: u64 = (HEADER_BYTES + MAX_EXTENTS * DATA_BYTES) as u64;

/// See the module.
#[derive(Default)]
pub struct LayoutReader {
    /// Begins an extent, or the header.
    pending: Vec<u8>,
    /// What the header says; None before it came.
    promised: Option<Promised>,
    extents: u32,
    sizes: Sizes,
}

/// How large a file is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sizes {
    /// All its bytes.
    pub file_bytes: u64,
    /// Those that are not holes.
    pub data_bytes: u64,
}

impl Sizes {
    /// Of the file that a manifest describes.
    pub fn of(manifest: &Manifest) -> Self {
        let data = manifest.extents().iter().filter(|extent| matches!(extent, Extent::Data { .. }));
        Self { file_bytes: manifest.size(), data_bytes: data.map(Extent::length).sum() }
    }
}

#[derive(Clone, Copy)]
struct Promised {
    size: u64,
    extents: u32,
}

impl LayoutReader {
    /// More bytes; each segment that they complete goes to `each`.
    ///
    /// Errors: [`ManifestError`]; the reader is then of no more use.
    pub fn push(&mut self, mut bytes: &[u8], each: &mut dyn FnMut(Segment)) -> Result<(), ManifestError> {
        while !bytes.is_empty() {
            let need = self.need()?;
            let (taken, rest) = bytes.split_at((need - self.pending.len()).min(bytes.len()));
            self.pending.extend_from_slice(taken);
            bytes = rest;
            // A hole needs no more than its first 9 bytes, which `need` says once the first is there.
            if self.pending.len() == self.need()? {
                self.item(each)?;
                self.pending.clear();
            }
        }
        Ok(())
    }

    /// All bytes came.
    pub fn finish(self) -> Result<Sizes, ManifestError> {
        match self.promised {
            Some(promised) if promised.extents == self.extents && self.pending.is_empty() => match promised.size {
                size if size == self.sizes.file_bytes => Ok(self.sizes),
                _ => Err(ManifestError::Malformed("its extents do not sum to its size")),
            },
            _ => Err(ManifestError::Malformed("it ends too early")),
        }
    }

    /// Bytes of the item that `pending` begins, as far as it can be told.
    fn need(&self) -> Result<usize, ManifestError> {
        let Some(promised) = self.promised else { return Ok(HEADER_BYTES) };
        if self.extents == promised.extents {
            return Err(ManifestError::Malformed("bytes after its end"));
        }
        match self.pending.first() {
            None => Ok(1),
            Some(0) => Ok(HOLE_BYTES),
            Some(1) => Ok(DATA_BYTES),
            Some(_) => Err(ManifestError::Malformed("an extent of an unknown kind")),
        }
    }

    fn item(&mut self, each: &mut dyn FnMut(Segment)) -> Result<(), ManifestError> {
        if self.promised.is_none() {
            let size = u64::from_le_bytes(self.field(5)?);
            let extents = u32::from_le_bytes(self.field(13)?);
            // The header is judged by the one that knows it: an empty manifest with the same first bytes.
            let mut empty = Manifest::default().encode().to_vec();
            empty[..5].copy_from_slice(&self.pending[..5]);
            Manifest::decode(&empty)?;
            if extents as usize > MAX_EXTENTS {
                return Err(ManifestError::Malformed("too many extents"));
            }
            self.promised = Some(Promised { size, extents });
            return Ok(());
        }
        if self.pending.len() < HOLE_BYTES {
            return Ok(());
        }
        let length = u64::from_le_bytes(self.field(1)?);
        if length == 0 {
            return Err(ManifestError::Malformed("an empty extent"));
        }
        if self.pending.len() == DATA_BYTES {
            let id = SegmentId::new(self.field(HOLE_BYTES)?);
            let segment = Segment { id, length: u32::from_le_bytes(self.field(41)?) };
            let offset = u64::from(u32::from_le_bytes(self.field(45)?));
            if segment.length == 0 || segment.length > MAX_SEGMENT_BYTES {
                return Err(ManifestError::Malformed("a segment of an impossible length"));
            }
            if offset.checked_add(length).is_none_or(|end| end > u64::from(segment.length)) {
                return Err(ManifestError::Malformed("an extent past the end of its segment"));
            }
            each(segment);
            self.sizes.data_bytes += length;
        }
        self.sizes.file_bytes = self
            .sizes
            .file_bytes
            .checked_add(length)
            .filter(|size| *size <= MAX_FILE_BYTES)
            .ok_or(ManifestError::Malformed("larger than a file can be"))?;
        self.extents += 1;
        Ok(())
    }

    fn field<const N: usize>(&self, at: usize) -> Result<[u8; N], ManifestError> {
        let bytes = self.pending.get(at..at + N).and_then(|bytes| bytes.try_into().ok());
        bytes.ok_or(ManifestError::Malformed("it ends too early"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn extent() -> impl Strategy<Value = Extent> {
        let data =
            (any::<[u8; 32]>(), 1u32..=MAX_SEGMENT_BYTES, any::<prop::sample::Index>()).prop_map(|(id, length, at)| {
                let segment = Segment { id: SegmentId::new(id), length };
                let offset_in_segment = u32::try_from(at.index(length as usize)).unwrap();
                Extent::Data { segment, offset_in_segment, length: length - offset_in_segment }
            });
        prop_oneof![data, (1u64..1 << 60).prop_map(|length| Extent::Hole { length })]
    }

    fn read(bytes: &[u8], piece: usize) -> Result<(Sizes, Vec<Segment>), ManifestError> {
        let mut reader = LayoutReader::default();
        let mut segments = Vec::new();
        for piece in bytes.chunks(piece) {
            reader.push(piece, &mut |segment| segments.push(segment))?;
        }
        Ok((reader.finish()?, segments))
    }

    fn agree(bytes: &[u8], piece: usize) {
        let whole = Manifest::decode(bytes);
        let pieces = read(bytes, piece);
        match (&whole, &pieces) {
            (Ok(manifest), Ok((sizes, segments))) => {
                assert_eq!((Sizes::of(manifest), manifest.segments().collect::<Vec<_>>()), (*sizes, segments.clone()));
            }
            (Err(_), Err(_)) => {}
            _ => panic!("whole {whole:?}, in pieces {pieces:?}"),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn it_accepts_exactly_what_the_decoder_accepts(
            extents in prop::collection::vec(extent(), 0..12), piece in 1usize..200,
            at: prop::sample::Index, byte: u8, cut: prop::sample::Index, more: Vec<u8>,
        ) {
            let Ok(manifest) = Manifest::new(extents) else { return Ok(()) };
            let good = manifest.encode().to_vec();
            prop_assert!(read(&good, piece).is_ok());
            agree(&good, piece);
            let mut changed = good.clone();
            changed[at.index(good.len())] = byte;
            agree(&changed, piece);
            agree(&good[..cut.index(good.len())], piece);
            agree(&[&good[..], &more[..]].concat(), piece);
            agree(&more, piece);
        }
    }
}
