//! Where a file is cut, and where its holes are.
//!
//! Invariant: pieces are non-empty, in order, without gaps, and sum to the file's size; data pieces end
//! at the latest at multiples of the segment length, so equal files are cut alike, sparse or not.

use std::fs::File;
use std::io;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use swarm_proto::ByteRange;

/// Shorter holes are sent as zeros: an extent costs more than their compression would save.
const LEAST_HOLE_BYTES: u64 = 128 * 1024;

/// A stretch of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stretch {
    /// Zeros that are stored nowhere.
    Hole(u64),
    /// One segment's bytes.
    Data(ByteRange),
}

/// Cut `range` into pieces of at most `segment_bytes`, given where in it there is data.
///
/// Shape: `data` is ascending and does not overlap; what of it lies outside of `range` is ignored.
pub(super) fn cut(range: ByteRange, data: &[ByteRange], segment_bytes: u32) -> Vec<Stretch> {
    let segment = u64::from(segment_bytes.max(1));
    let mut stretches = Vec::new();
    let mut at = range.start;
    for piece in merge(range, data) {
        if piece.start > at {
            stretches.push(Stretch::Hole(piece.start - at));
        }
        at = piece.start;
        while at < piece.end {
            let end = piece.end.min((at / segment + 1) * segment);
            stretches.push(Stretch::Data(ByteRange { start: at, end }));
            at = end;
        }
    }
    if at < range.end {
        stretches.push(Stretch::Hole(range.end - at));
    }
    stretches
}

/// Data of `range`, with holes closed that are too short to matter.
fn merge(range: ByteRange, data: &[ByteRange]) -> Vec<ByteRange> {
    let mut merged: Vec<ByteRange> = Vec::new();
    let inside = data.iter().map(|piece| piece.intersect(range)).filter(|piece| !piece.is_empty());
    for piece in inside {
        let before = merged.last().map_or(range.start, |last| last.end);
        match (piece.start - before < LEAST_HOLE_BYTES, merged.last_mut()) {
            (true, Some(last)) => last.end = piece.end,
            (true, None) => merged.push(ByteRange { start: range.start, end: piece.end }),
            (false, _) => merged.push(piece),
        }
    }
    match merged.last_mut() {
        Some(last) if range.end - last.end < LEAST_HOLE_BYTES => last.end = range.end,
        None if !range.is_empty() && range.len() < LEAST_HOLE_BYTES => merged.push(range),
        _ => {}
    }
    merged
}

/// Where in a range of a file there is data; all of it where the file system cannot say.
pub(super) fn data_of(file: &File, range: ByteRange) -> io::Result<Vec<ByteRange>> {
    let mut data = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start.min(range.end),
            // No data from here on.
            Err(Errno::NXIO) => return Ok(data),
            Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::SPIPE) => return Ok(vec![range]),
            Err(error) => return Err(error.into()),
        };
        let end = match seek(file, SeekFrom::Hole(start)) {
            Ok(end) => end.min(range.end),
            Err(Errno::NXIO) => range.end,
            Err(error) => return Err(error.into()),
        };
        if end > start {
            data.push(ByteRange { start, end });
        }
        at = end.max(at + 1);
    }
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::{Seek, Write};

    const S: u32 = 1 << 20;

    fn span(start: u64, end: u64) -> ByteRange {
        ByteRange { start, end }
    }

    proptest! {
        #[test]
        fn pieces_are_the_file_in_order(size in 0u64..9_000_000, cuts in prop::collection::vec(0u64..9_000_000, 0..8), segment in 1u32 << 12..5 << 20) {
            let mut cuts = cuts;
            cuts.sort_unstable();
            let data: Vec<ByteRange> = cuts.chunks_exact(2).map(|pair| span(pair[0], pair[1])).collect();
            let mut at = 0;
            for stretch in cut(span(0, size), &data, segment) {
                match stretch {
                    Stretch::Hole(length) => {
                        prop_assert!(length > 0);
                        prop_assert!(data.iter().all(|piece| piece.intersect(ByteRange::at(at, length)).is_empty()));
                        at += length;
                    }
                    Stretch::Data(range) => {
                        prop_assert!(range.start == at && !range.is_empty() && range.len() <= u64::from(segment));
                        prop_assert_eq!(range.start / u64::from(segment), (range.end - 1) / u64::from(segment));
                        at = range.end;
                    }
                }
            }
            prop_assert_eq!(at, size);
        }
    }

    #[test]
    fn short_holes_are_data_and_long_ones_are_not() {
        let size = 3 * u64::from(S);
        let all = [
            Stretch::Data(span(0, 1 << 20)),
            Stretch::Data(span(1 << 20, 2 << 20)),
            Stretch::Data(span(2 << 20, size)),
        ];
        assert_eq!(cut(span(0, size), &[span(0, size)], S), all);
        assert_eq!(cut(span(0, size), &[span(4096, 2 << 20), span((2 << 20) + 8192, size - 1)], S), all);
        assert_eq!(
            cut(span(0, size), &[span(1 << 20, 2 << 20)], S),
            [Stretch::Hole(1 << 20), Stretch::Data(span(1 << 20, 2 << 20)), Stretch::Hole(1 << 20)]
        );
        assert_eq!(cut(span(0, size), &[], S), [Stretch::Hole(size)]);
        let (first, last) = (span(0, 1 << 20), span(2 << 20, size));
        assert_eq!(
            cut(span(0, size), &[first, last], S),
            [Stretch::Data(first), Stretch::Hole(1 << 20), Stretch::Data(last)]
        );
        assert_eq!(cut(span(0, 5), &[], S), [Stretch::Data(span(0, 5))]);
        assert_eq!(cut(span(0, 0), &[], S), []);
    }

    #[test]
    fn the_holes_of_a_real_file_are_found() {
        let mut file = tempfile::tempfile().unwrap();
        file.seek(io::SeekFrom::Start(8 << 20)).unwrap();
        file.write_all(&[1; 4096]).unwrap();
        file.set_len(16 << 20).unwrap();
        let data = data_of(&file, span(0, 16 << 20)).unwrap();
        assert!(data.iter().any(|piece| piece.start <= 8 << 20 && piece.end >= (8 << 20) + 4096), "{data:?}");
        let holes: u64 = cut(span(0, 16 << 20), &data, 4 << 20)
            .iter()
            .map(|stretch| if let Stretch::Hole(length) = stretch { *length } else { 0 })
            .sum();
        assert!(holes > 8 << 20, "this file system keeps no holes: {data:?}");
        // A piece of it costs no look at all that is before.
        file.seek(io::SeekFrom::Start(0)).unwrap();
        file.write_all(&[1; 4096]).unwrap();
        let within = span((8 << 20) + 100, (8 << 20) + 200);
        assert_eq!(data_of(&file, within).unwrap(), [within]);
    }
}
