//! **PURE.** Whose fault it is that bytes do not verify.
//!
//! The id of a segment says nothing of its length: that is the manifest's word, which anybody may write.
//! A publisher who lies about it must not get honest holders reported and banned.

use bytes::Bytes;
use swarm_proto::{CHUNK_BYTES, ChunkRange, ChunkTree, Segment};

/// Whether what came is right, but of a segment that has another length than the one wanted.
///
/// Shape: `tree` and `data` as the holder sent them for `chunks`.
/// Cost:  as much as verifying again; only on failure.
pub(super) fn is_of_another_length(wanted: Segment, chunks: ChunkRange, tree: &Bytes, data: &Bytes) -> bool {
    let value_bytes = blake3::OUT_LEN;
    let held = match tree.len() / value_bytes {
        // One chunk has no tree: its length is that of its bytes.
        0 => data.len() as u64,
        // Any length with so many chunks folds alike; if the last chunk came, it says which it is.
        count if tree.len().is_multiple_of(value_bytes) && count == chunks.end as usize => {
            u64::from(chunks.start) * u64::from(CHUNK_BYTES) + data.len() as u64
        }
        count => count as u64 * u64::from(CHUNK_BYTES),
    };
    let Ok(length) = u32::try_from(held) else { return false };
    let other = Segment { id: wanted.id, length };
    if length == wanted.length || length == 0 || !other.all().contains(chunks) {
        return false;
    }
    ChunkTree::verify(other, tree.clone()).is_ok_and(|tree| tree.check(chunks, data).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(length: usize) -> Bytes {
        (0..length).map(|at| (at / 100).to_le_bytes()[0]).collect::<Vec<_>>().into()
    }

    fn sent(data: &Bytes, chunks: ChunkRange) -> (ChunkTree, Bytes) {
        let tree = ChunkTree::build(data);
        let bytes = tree.segment().bytes_of(chunks);
        (tree, data.slice(usize::try_from(bytes.start).unwrap()..usize::try_from(bytes.end).unwrap()))
    }

    #[test]
    fn an_honest_holder_of_another_length_is_told_from_a_liar() {
        for (real, claimed) in [(100_000, 100_001), (100_000, 99_999), (100_000, 400_000), (100_000, 60_000), (9, 10)] {
            let all = data(real);
            let tree = ChunkTree::build(&all);
            let wanted = Segment { id: tree.segment().id, length: claimed };
            let chunks = ChunkRange::new(0, tree.segment().chunks().min(wanted.chunks()));
            let (tree, bytes) = sent(&all, chunks);
            assert!(is_of_another_length(wanted, chunks, tree.values(), &bytes), "{real} {claimed}");
            let mut wrong = bytes.to_vec();
            wrong[3] ^= 1;
            assert!(!is_of_another_length(wanted, chunks, tree.values(), &wrong.into()), "{real} {claimed}");
        }
    }

    #[test]
    fn a_liar_about_the_right_length_has_no_excuse() {
        let all = data(100_000);
        let chunks = ChunkRange::new(0, 7);
        let (tree, bytes) = sent(&all, chunks);
        let wanted = tree.segment();
        assert!(!is_of_another_length(wanted, chunks, tree.values(), &bytes.slice(..bytes.len() - 1)), "truncated");
        assert!(!is_of_another_length(wanted, chunks, &Bytes::new(), &bytes), "no tree");
        assert!(!is_of_another_length(wanted, chunks, &tree.values().slice(..64), &bytes), "half a tree");
        assert!(!is_of_another_length(wanted, chunks, tree.values(), &Bytes::new()), "no data");
    }
}
