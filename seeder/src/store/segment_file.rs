//! How one larger segment lies in its file: its bytes, then its chunk tree.
//!
//! Not which segments there are: that is the database's. Invariant: a file's length alone says the
//! length of its segment, so that a file whose record was lost can prove itself by its hash.

use std::io;
use std::path::PathBuf;

use bytes::Bytes;
use swarm_proto::tree::TreeBuilder;
use swarm_proto::{CHUNK_BYTES, ChunkRange, ChunkTree, MAX_SEGMENT_BYTES, Segment, SegmentId};

use super::disk::DiskFile;

/// Folders that the files are spread over: 256, named by the id's first byte. A TiB of 4 MiB segments
/// is then 1,024 files a folder, and all folders can be made once and synced once.
pub(super) const FOLDERS: u16 = 256;

/// Bytes read at a time by passes over a whole segment.
const PASS_CHUNKS: u32 = 64;

/// Name of a fan-out folder.
pub(super) fn folder_name(first_byte: u8) -> String {
    format!("{first_byte:02x}")
}

/// Where a segment's file lies below the segments folder.
pub(super) fn relative_path(id: &SegmentId) -> PathBuf {
    PathBuf::from(folder_name(id.as_bytes()[0])).join(id.to_string())
}

/// Bytes of the file of a segment.
pub(super) fn file_bytes(segment: Segment) -> u64 {
    u64::from(segment.length) + ChunkTree::wire_len(segment) as u64
}

/// The length of the segment whose file has `bytes` bytes; `None` if there is none.
pub(super) fn segment_length(bytes: u64) -> Option<u32> {
    let chunk = u64::from(CHUNK_BYTES);
    let with_value = chunk + 32;
    let length = match bytes {
        0 => return None,
        _ if bytes <= chunk => bytes,
        _ => bytes.checked_sub(32 * bytes.div_ceil(with_value))?,
    };
    let length = u32::try_from(length).ok().filter(|length| (1..=MAX_SEGMENT_BYTES).contains(length))?;
    (file_bytes(Segment { id: SegmentId::new([0; 32]), length }) == bytes).then_some(length)
}

/// Read a run of chunks; not verified.
pub(super) fn read_chunks(file: &dyn DiskFile, segment: Segment, chunks: ChunkRange) -> io::Result<Bytes> {
    let range = segment.bytes_of(chunks);
    let length = usize::try_from(range.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    file.read_at(range.start, length)
}

/// Write a run of chunks.
pub(super) fn write_chunks(file: &dyn DiskFile, segment: Segment, chunks: ChunkRange, bytes: Bytes) -> io::Result<()> {
    file.write_at(&[bytes], segment.bytes_of(chunks).start)
}

/// Read the tree at the tail; `None` if it does not fold to the id.
pub(super) fn read_tree(file: &dyn DiskFile, segment: Segment) -> io::Result<Option<ChunkTree>> {
    let values = match ChunkTree::wire_len(segment) {
        0 => Bytes::new(),
        length => match file.read_at(u64::from(segment.length), length) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        },
    };
    Ok(ChunkTree::verify(segment, values).ok())
}

/// Write the tree at the tail.
pub(super) fn write_tree(file: &dyn DiskFile, tree: &ChunkTree) -> io::Result<()> {
    match tree.values().is_empty() {
        true => Ok(()),
        false => file.write_at(std::slice::from_ref(tree.values()), u64::from(tree.segment().length)),
    }
}

/// The tree of the bytes as they lie there; `None` if they do not hash to the id.
pub(super) fn rebuild_tree(file: &dyn DiskFile, segment: Segment) -> io::Result<Option<ChunkTree>> {
    let mut builder = TreeBuilder::default();
    for run in segment.all().runs(PASS_CHUNKS) {
        match read_chunks(file, segment, run) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => builder.update(&other?),
        }
    }
    let tree = builder.finish();
    Ok((tree.segment() == segment).then_some(tree))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn segment(length: u32) -> Segment {
        Segment { id: SegmentId::new([0xab; 32]), length }
    }

    #[test]
    fn every_length_around_the_boundaries_is_known_by_its_file() {
        for chunks in [1, 2, 3, 255, 256, 257, 512, 513, 4095, 4096] {
            for length in [chunks * CHUNK_BYTES - 1, chunks * CHUNK_BYTES, chunks * CHUNK_BYTES + 1] {
                let want = (length <= MAX_SEGMENT_BYTES).then_some(length);
                assert_eq!(segment_length(file_bytes(segment(length))), want, "length {length}");
            }
        }
    }

    proptest! {
        #[test]
        fn a_file_length_says_the_segment_length(length in 1u32..=MAX_SEGMENT_BYTES) {
            prop_assert_eq!(segment_length(file_bytes(segment(length))), Some(length));
        }

        #[test]
        fn any_file_length_means_one_segment_length_or_none(bytes: u64) {
            for bytes in [bytes, bytes % (u64::from(MAX_SEGMENT_BYTES) + 200_000)] {
                if let Some(length) = segment_length(bytes) {
                    prop_assert_eq!(file_bytes(segment(length)), bytes);
                }
            }
        }
    }
}
