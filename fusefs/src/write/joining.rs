//! **PURE.** Which stretches of a file to write anew as one segment each, because they are made of too many extents.
//!
//! Not here: reading and sending them. Only stretches that are written to are looked at: what nobody writes is left as
//! its publisher cut it.
//!
//! Invariant: a stretch lies within one window, and has no hole: a sparse file stays sparse.

use swarm_proto::{ByteRange, Manifest, SegmentId};

use super::pieces::{Pieces, Stretch};

/// Stretches that are joined in one save: with windows of 4 MiB, 64 MiB at most.
const MOST: usize = 16;
/// Extents that are left alone however short they are: to join a few at each save would write the same bytes every time.
const FEW: u64 = 8;
/// Extents shorter than this on average are too many: a window of 4 MiB has 64 of them.
const SHORT_BYTES: u64 = 64 * 1024;

/// Data without a hole, within one window.
#[derive(Debug, Clone, Copy)]
struct Run {
    range: ByteRange,
    /// Places where one extent ends and another begins.
    joints: u64,
    unsaved: bool,
}

impl Run {
    fn is_crowded(&self) -> bool {
        self.unsaved && self.joints >= FEW && self.range.len() / (self.joints + 1) < SHORT_BYTES
    }
}

/// Stretches to join in a save of `pieces` over `base`, in order.
///
/// Cost: O(pieces + extents of the windows that are written to).
pub fn crowded(pieces: &Pieces, base: &Manifest, window_bytes: u64) -> Vec<ByteRange> {
    let mut runs = Vec::new();
    let mut next = 0;
    for unsaved in pieces.unsaved_in_spool() {
        let windows = (unsaved.start / window_bytes).max(next)..unsaved.end.div_ceil(window_bytes);
        next = next.max(windows.end);
        for window in windows {
            let stretches = pieces.stretches(ByteRange::at(window * window_bytes, window_bytes), base);
            runs.extend(runs_of(&stretches).into_iter().filter(Run::is_crowded));
        }
    }
    runs.sort_by_key(|run| std::cmp::Reverse(run.joints));
    runs.truncate(MOST);
    let mut ranges: Vec<ByteRange> = runs.into_iter().map(|run| run.range).collect();
    ranges.sort_unstable_by_key(|range| range.start);
    ranges
}

fn runs_of(stretches: &[(ByteRange, Stretch)]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut follows: Option<(SegmentId, u64)> = None;
    for (range, stretch) in stretches {
        let begins = match *stretch {
            Stretch::Hole => {
                follows = None;
                continue;
            }
            Stretch::Base { segment, offset_in_segment } => Some((segment, u64::from(offset_in_segment))),
            Stretch::Unsaved => None,
        };
        let unsaved = *stretch == Stretch::Unsaved;
        match runs.last_mut() {
            Some(run) if run.range.end == range.start => {
                run.joints += u64::from(begins.is_none() || begins != follows);
                run.range.end = range.end;
                run.unsaved |= unsaved;
            }
            _ => runs.push(Run { range: *range, joints: 0, unsaved }),
        }
        follows = begins.map(|(segment, at)| (segment, at + range.len()));
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use swarm_proto::{Extent, Segment};

    const WINDOW: u64 = 4 << 20;
    const BLOCK: u64 = 4096;

    fn whole(count: u64) -> Manifest {
        let of = |number: u64| SegmentId::new([u8::try_from(number).unwrap(); 32]);
        let length = u32::try_from(WINDOW).unwrap();
        Manifest::new((0..count).map(|number| Extent::whole(Segment { id: of(number), length })).collect()).unwrap()
    }

    /// Blocks written with a gap behind each.
    fn scattered(pieces: &mut Pieces, start: u64, count: u64) {
        (0..count).for_each(|number| pieces.write(ByteRange::at(start + number * 2 * BLOCK, BLOCK), 1));
    }

    #[test]
    fn a_few_writes_are_left_and_many_in_one_window_are_joined() {
        let base = whole(3);
        let mut pieces = Pieces::new(base.size());
        scattered(&mut pieces, WINDOW + BLOCK, 31);
        assert_eq!(crowded(&pieces, &base, WINDOW), []);
        scattered(&mut pieces, WINDOW + BLOCK, 32);
        assert_eq!(crowded(&pieces, &base, WINDOW), [ByteRange::at(WINDOW, WINDOW)]);
        pieces.settle(1);
        assert_eq!(crowded(&pieces, &base, WINDOW), [], "nobody writes there, and the base has it in one");
    }

    #[test]
    fn what_is_saved_counts_as_the_base_has_it() {
        let small = |number: u8| Extent::whole(Segment { id: SegmentId::new([number; 32]), length: 100 });
        let base = Manifest::new((0..20).map(small).collect()).unwrap();
        let mut pieces = Pieces::new(2000);
        assert_eq!(crowded(&pieces, &base, WINDOW), []);
        pieces.write(ByteRange::at(2000, 10), 1);
        assert_eq!(crowded(&pieces, &base, WINDOW), [ByteRange::at(0, 2010)], "a log to which little is appended");
    }

    #[test]
    fn holes_stay_and_part_what_is_joined() {
        let base = Manifest::new(vec![Extent::Hole { length: 2 * WINDOW }]).unwrap();
        let mut pieces = Pieces::new(base.size());
        scattered(&mut pieces, 0, 400);
        assert_eq!(crowded(&pieces, &base, WINDOW), [], "each is alone between two holes");
        let data = Manifest::new(vec![Extent::Hole { length: 1000 }, whole(1).extents()[0]]).unwrap();
        let mut pieces = Pieces::new(data.size());
        scattered(&mut pieces, 1000, 400);
        assert_eq!(crowded(&pieces, &data, WINDOW), [ByteRange { start: 1000, end: WINDOW }]);
    }

    #[test]
    fn the_most_crowded_come_first_and_no_more_than_there_is_time_for() {
        let base = whole(40);
        let mut pieces = Pieces::new(base.size());
        for window in 0..40 {
            scattered(&mut pieces, window * WINDOW + BLOCK, 40 + window);
        }
        let want: Vec<ByteRange> = (24..40).map(|window| ByteRange::at(window * WINDOW, WINDOW)).collect();
        assert_eq!(crowded(&pieces, &base, WINDOW), want);
    }
}
