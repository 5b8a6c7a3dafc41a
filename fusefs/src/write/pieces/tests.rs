//! What pieces say of each byte is what a plain list of all bytes says, whatever was written, saved or rebased.

use proptest::prelude::*;
use swarm_proto::{Segment, SegmentId};

use super::*;

/// What happens to a file.
#[derive(Debug, Clone)]
enum Step {
    Write(u64, u64),
    Punch(u64, u64),
    Resize(u64),
    /// All so far is saved.
    Save,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u64..300, 1u64..80).prop_map(|(at, length)| Step::Write(at, length)),
        1 => (0u64..300, 1u64..80).prop_map(|(at, length)| Step::Punch(at, length)),
        1 => (0u64..300).prop_map(Step::Resize),
        1 => Just(Step::Save),
    ]
}

/// A byte of the naive file: where it comes from, and whether it is unsaved.
type Byte = (Source, bool);

/// Extents that say of each byte which offset it was written at: a segment a save.
fn whole(number: u8, length: u64) -> Vec<Extent> {
    let segment = Segment { id: SegmentId::new([number; 32]), length: 1000 };
    match u32::try_from(length).unwrap() {
        0 => Vec::new(),
        length => vec![Extent::Data { segment, offset_in_segment: 0, length }],
    }
}

fn described(extents: &[Extent]) -> Vec<Option<(u8, u64)>> {
    let of = |extent: &Extent| match *extent {
        Extent::Hole { length } => (0..length).map(|_| None).collect::<Vec<_>>(),
        Extent::Data { segment, offset_in_segment, length } => {
            let bytes = u64::from(offset_in_segment)..u64::from(offset_in_segment + length);
            bytes.map(|at| Some((segment.id.as_bytes()[0], at))).collect()
        }
    };
    extents.iter().flat_map(of).collect()
}

proptest! {
    #[test]
    fn pieces_say_what_a_list_of_all_bytes_says(base in 0u64..200, steps in prop::collection::vec(step(), 1..40)) {
        let mut naive: Vec<Byte> = vec![(Source::Base, false); usize::try_from(base).unwrap()];
        let mut bytes: Vec<Option<(u8, u64)>> = (0..base).map(|at| Some((0, at))).collect();
        let mut pieces = Pieces::new(base);
        let mut manifest = Manifest::new(whole(0, base)).unwrap();
        let mut saves = 0u8;
        for (stamp, step) in (1..).zip(steps) {
            match step {
                Step::Write(at, length) => {
                    pieces.write(ByteRange::at(at, length), stamp);
                    let (at, end) = (usize::try_from(at).unwrap(), usize::try_from(at + length).unwrap());
                    naive.resize(naive.len().max(end), (Source::Hole, true));
                    naive[at..end].fill((Source::Spool, true));
                    bytes.resize(naive.len(), None);
                    (at..end).for_each(|at| bytes[at] = Some((saves + 1, at as u64)));
                }
                Step::Punch(at, length) => {
                    pieces.punch(ByteRange::at(at, length), stamp);
                    let end = naive.len().min(usize::try_from(at + length).unwrap());
                    let at = end.min(usize::try_from(at).unwrap());
                    naive[at..end].fill((Source::Hole, true));
                    bytes[at..end].fill(None);
                }
                Step::Resize(size) => {
                    pieces.resize(size, stamp);
                    naive.resize(usize::try_from(size).unwrap(), (Source::Hole, true));
                    bytes.resize(naive.len(), None);
                }
                Step::Save => {
                    saves += 1;
                    let mut sent = Sent::default();
                    sent.add(0, whole(saves, 500));
                    let extents = pieces.extents(&manifest, &sent).expect("all was sent");
                    prop_assert_eq!(described(&extents), bytes.clone());
                    manifest = Manifest::new(extents).unwrap();
                    pieces.settle(stamp);
                    prop_assert!(!pieces.is_dirty());
                    naive.iter_mut().for_each(|byte| byte.1 = false);
                }
            }
            prop_assert_eq!(pieces.size(), naive.len() as u64);
            let all = ByteRange::at(0, pieces.size());
            let sources: Vec<Source> = pieces.over(all).flat_map(|(range, source)| (0..range.len()).map(move |_| source)).collect();
            prop_assert_eq!(sources, naive.iter().map(|byte| byte.0).collect::<Vec<_>>());
            let unsaved = |at: u64| pieces.unsaved_in_spool().iter().any(|range| (range.start..range.end).contains(&at));
            for (at, byte) in (0..).zip(&naive) {
                prop_assert_eq!(unsaved(at), *byte == (Source::Spool, true));
            }
            let changed = pieces.starts.values().any(|piece| piece.unsaved.is_some());
            prop_assert_eq!(pieces.is_dirty(), changed || pieces.resized.is_some());
            let neighbours: Vec<_> = pieces.starts.values().collect();
            prop_assert!(neighbours.windows(2).all(|pair| pair[0] != pair[1]));
        }
    }
}

#[test]
fn what_changed_after_a_save_began_stays_unsaved() {
    let mut pieces = Pieces::new(100);
    pieces.write(ByteRange::at(10, 20), 1);
    pieces.write(ByteRange::at(20, 5), 2);
    pieces.settle(1);
    assert_eq!(pieces.unsaved_in_spool(), [ByteRange::at(20, 5)]);
    pieces.resize(50, 3);
    pieces.settle(2);
    assert!(pieces.is_dirty());
    pieces.settle(3);
    assert!(!pieces.is_dirty());
}

#[test]
fn an_append_leaves_the_base_alone() {
    let mut pieces = Pieces::new(100);
    pieces.write(ByteRange::at(100, 20), 1);
    assert!(pieces.is_append_to(100));
    assert!(!pieces.is_append_to(110));
    pieces.write(ByteRange::at(99, 1), 2);
    assert!(!pieces.is_append_to(100));
    let mut cut = Pieces::new(100);
    cut.resize(50, 1);
    assert!(!cut.is_append_to(100));
}

#[test]
fn extents_that_were_not_sent_are_missed() {
    let mut pieces = Pieces::new(0);
    pieces.write(ByteRange::at(0, 20), 1);
    let mut sent = Sent::default();
    sent.add(0, whole(1, 19));
    assert!(pieces.extents(&Manifest::default(), &sent).is_none());
    assert_eq!(pieces.allocated(ByteRange::at(0, 20), &Manifest::default()), 20);
}

#[test]
fn an_append_moves_behind_another_base() {
    let mut pieces = Pieces::new(100);
    pieces.write(ByteRange::at(100, 20), 1);
    pieces.write(ByteRange::at(150, 5), 2);
    let moved = pieces.moved(100, 300, 3);
    assert_eq!(
        moved.changed(),
        [
            (ByteRange::at(300, 20), Source::Spool),
            (ByteRange::at(320, 30), Source::Hole),
            (ByteRange::at(350, 5), Source::Spool)
        ]
    );
    assert!(moved.is_append_to(300));
    assert_eq!(moved.size(), 355);
}

#[test]
fn changes_lie_over_another_base() {
    let mut pieces = Pieces::new(100);
    pieces.write(ByteRange::at(10, 5), 1);
    pieces.settle(1);
    pieces.write(ByteRange::at(20, 5), 2);
    let over = pieces.over_base(200);
    assert_eq!(over.changed(), [(ByteRange::at(20, 5), Source::Spool)]);
    assert_eq!(over.size(), 200);
    pieces.resize(30, 3);
    assert_eq!(pieces.over_base(200).size(), 30);
}
