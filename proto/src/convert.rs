//! Messages ⇄ our types. Every check of a field's range is made here, once, and names the field.

use bytes::Bytes;
use tonic::Status;

use crate::id::{IdError, ManifestDigest, PeerId, SegmentId};
use crate::presence::{ChunkSet, Presence};
use crate::range::{ChunkRange, Segment};
use crate::{MAX_RUN_CHUNKS, MAX_SEGMENT_BYTES, v1};

/// A field that is out of its range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// A required message is absent.
    #[error("{0} is missing")]
    Absent(&'static str),
    /// Not an id.
    #[error("{field}: {source}")]
    Id {
        /// The field.
        field: &'static str,
        /// Why.
        source: IdError,
    },
    /// A number, a count or a text that the field does not allow.
    #[error("{field} is {got}, must be {want}")]
    Range {
        /// The field.
        field: &'static str,
        /// What came.
        got: u64,
        /// What would do.
        want: String,
    },
}

impl From<ConvertError> for Status {
    fn from(error: ConvertError) -> Self {
        Status::invalid_argument(error.to_string())
    }
}

/// A number within `low..=high`, or an error that names the field.
pub fn within(field: &'static str, got: u64, low: u64, high: u64) -> Result<u64, ConvertError> {
    match (low..=high).contains(&got) {
        true => Ok(got),
        false => Err(ConvertError::Range { field, got, want: format!("{low} to {high}") }),
    }
}

/// A segment id from a message's field.
pub fn segment_id(field: &'static str, bytes: &[u8]) -> Result<SegmentId, ConvertError> {
    SegmentId::try_from(bytes).map_err(|source| ConvertError::Id { field, source })
}

/// A manifest digest from a message's field.
pub fn manifest_digest(field: &'static str, bytes: &[u8]) -> Result<ManifestDigest, ConvertError> {
    ManifestDigest::try_from(bytes).map_err(|source| ConvertError::Id { field, source })
}

/// A peer id from a message's field.
pub fn peer_id(field: &'static str, bytes: &[u8]) -> Result<PeerId, ConvertError> {
    PeerId::try_from(bytes).map_err(|source| ConvertError::Id { field, source })
}

/// Packed segment ids, at most `most`.
pub fn segment_ids(field: &'static str, packed: &[u8], most: usize) -> Result<Vec<SegmentId>, ConvertError> {
    let ids = SegmentId::unpack(packed).map_err(|source| ConvertError::Id { field, source })?;
    within(field, ids.len() as u64, 0, most as u64)?;
    Ok(ids.collect())
}

/// Packed peer ids, at most `most`.
pub fn peer_ids(field: &'static str, packed: &[u8], most: usize) -> Result<Vec<PeerId>, ConvertError> {
    let ids = PeerId::unpack(packed).map_err(|source| ConvertError::Id { field, source })?;
    within(field, ids.len() as u64, 0, most as u64)?;
    Ok(ids.collect())
}

impl TryFrom<&v1::Segment> for Segment {
    type Error = ConvertError;
    fn try_from(message: &v1::Segment) -> Result<Self, ConvertError> {
        within("segment.length", u64::from(message.length), 1, u64::from(MAX_SEGMENT_BYTES))?;
        Ok(Self { id: segment_id("segment.id", &message.id)?, length: message.length })
    }
}

impl From<Segment> for v1::Segment {
    fn from(segment: Segment) -> Self {
        Self { id: segment.id.to_wire(), length: segment.length }
    }
}

/// The chunks that a fetch asks for; whether they lie in the segment only its holder knows.
pub fn fetch_range(request: &v1::FetchRequest) -> Result<ChunkRange, ConvertError> {
    let count = within("chunk_count", u64::from(request.chunk_count), 1, u64::from(MAX_RUN_CHUNKS))?;
    let most = u64::from(crate::range::chunks_of(MAX_SEGMENT_BYTES));
    within("first_chunk + chunk_count", u64::from(request.first_chunk) + count, 1, most)?;
    Ok(ChunkRange::new(request.first_chunk, request.first_chunk + request.chunk_count))
}

impl From<&Presence> for v1::Presence {
    fn from(presence: &Presence) -> Self {
        match presence {
            Presence::Whole => Self { whole: true, bitmap: Bytes::new() },
            Presence::Partial(set) => Self { whole: false, bitmap: set.to_bitmap().into() },
        }
    }
}

impl v1::Presence {
    /// Read against the segment's number of chunks; bits past it are dropped.
    pub fn read(&self, chunks: u32) -> Presence {
        match self.whole {
            true => Presence::Whole,
            false => Presence::Partial(ChunkSet::from_bitmap(chunks, &self.bitmap)),
        }
    }
}
