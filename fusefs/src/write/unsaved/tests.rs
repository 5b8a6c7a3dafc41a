//! What is written during a save stays unsaved, appends move behind others, and the next process goes on.

use futures::FutureExt;
use swarm_proto::{Extent, Segment, SegmentId};

use super::*;
use crate::write::spool::State;

fn base(version: u64, size: u64) -> Base {
    let holes = if size > 0 { vec![Extent::Hole { length: size }] } else { Vec::new() };
    Base { version, digest: None, manifest: Arc::new(Manifest::new(holes).unwrap()) }
}

fn unsaved(folder: &tempfile::TempDir, size: u64) -> Unsaved {
    let (spool, _) = Spool::open(folder.path(), 0).unwrap();
    Unsaved::new(InodeNumber(7), String::new(), "/a".into(), base(1, size), spool, 100)
}

fn sent() -> Early {
    async { None }.boxed().shared()
}

#[test]
fn what_is_written_while_it_is_saved_stays_unsaved() {
    let folder = tempfile::tempdir().unwrap();
    let file = unsaved(&folder, 10);
    assert!(file.begin_save().is_none());
    file.write(At::Offset(3), b"abc", 5).unwrap();
    let save = file.begin_save().unwrap();
    assert!(!save.appended);
    file.write(At::Offset(4), b"x", 6).unwrap();
    file.settle(save.stamp, base(2, 10));
    assert!(file.is_dirty());
    let save = file.begin_save().unwrap();
    assert_eq!(save.pieces.unsaved_in_spool(), [ByteRange::at(4, 1)]);
    file.settle(save.stamp, base(3, 10));
    assert!(!file.is_dirty());
    assert_eq!(file.shape().modified_ns, None);
    let plan = file.plan(ByteRange::at(0, 10));
    assert_eq!(plan.pieces[1], (ByteRange::at(3, 3), Source::Spool), "it is still read from here");
}

#[test]
fn appends_go_to_the_end_and_move_behind_what_others_appended() {
    let folder = tempfile::tempdir().unwrap();
    let file = unsaved(&folder, 10);
    file.write(At::End, b"abc", 5).unwrap();
    assert_eq!(file.write(At::End, b"def", 5).unwrap().range, ByteRange::at(13, 3));
    assert!(file.begin_save().unwrap().appended);
    assert_eq!(file.rebase(base(2, 30)).unwrap(), Rebased::Done);
    let save = file.begin_save().unwrap();
    assert_eq!(save.pieces.changed(), [(ByteRange::at(30, 6), Source::Spool)]);
    assert_eq!(&save.file.unwrap().read(ByteRange::at(30, 6)).unwrap()[..], b"abcdef");
    file.write(At::Offset(0), b"x", 6).unwrap();
    assert!(!file.begin_save().unwrap().appended);
    assert_eq!(file.rebase(base(3, 50)).unwrap(), Rebased::NotAppended);
    let changed = [(ByteRange::at(0, 1), Source::Spool), (ByteRange::at(30, 6), Source::Spool)];
    assert_eq!(file.begin_save().unwrap().pieces.changed(), changed, "nothing was moved");
}

#[test]
fn full_segments_are_sent_early_unless_they_are_written_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = unsaved(&folder, 0);
    assert!(file.write(At::Offset(0), &[1; 60], 0).unwrap().filled.is_empty());
    let Written { filled, stamp, .. } = file.write(At::Offset(60), &[1; 150], 0).unwrap();
    assert_eq!(filled, [ByteRange::at(0, 100), ByteRange::at(100, 100)]);
    filled.iter().for_each(|range| file.sends_early(*range, stamp, sent()));
    file.write(At::Offset(130), &[2; 1], 0).unwrap();
    assert_eq!(file.begin_save().unwrap().early.keys().collect::<Vec<_>>(), [&0]);
    file.resize(50, 0).unwrap();
    assert!(file.begin_save().unwrap().early.is_empty());
}

#[test]
fn a_clean_file_meets_a_newer_version_and_an_unsaved_one_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let file = unsaved(&folder, 10);
    assert!(file.meet(&base(2, 20)));
    assert_eq!(file.shape().size, 20);
    file.write(At::Offset(0), b"a", 0).unwrap();
    assert!(!file.meet(&base(3, 30)));
    let stamp = file.begin_save().unwrap().stamp;
    file.write(At::Offset(40), b"b", 0).unwrap();
    file.give_up(stamp, base(3, 30));
    let save = file.begin_save().unwrap();
    assert_eq!(save.pieces.unsaved_in_spool(), [ByteRange::at(40, 1)], "written after what was given up");
    file.give_up(save.stamp, base(4, 20));
    assert_eq!((file.shape().size, file.is_dirty()), (20, false));
}

#[test]
fn the_next_process_goes_on_where_this_one_died() {
    let folder = tempfile::tempdir().unwrap();
    let file = unsaved(&folder, 10);
    file.write(At::Offset(20), b"abc", 9).unwrap();
    file.punch(ByteRange::at(0, 5), 9).unwrap();
    let note = file.note(State::Saving, None).unwrap();
    file.tell_saving();
    let want = file.begin_save().unwrap().pieces.changed();
    file.spool.abandon();
    std::mem::forget(file);
    let (spool, left) = Spool::open(folder.path(), 0).unwrap();
    assert_eq!(left, [note]);
    let again = Unsaved::resume(&left[0], base(1, 10), &spool, 100).unwrap();
    let save = again.begin_save().unwrap();
    assert_eq!((save.pieces.changed(), save.modified_ns, save.appended), (want, 9, false));
    let data = Segment { id: SegmentId::new([1; 32]), length: 3 };
    let mut sent = crate::write::pieces::Sent::default();
    sent.add(20, [Extent::whole(data)]);
    let extents = save.pieces.extents(&save.base.manifest, &sent).unwrap();
    assert_eq!(extents, [Extent::Hole { length: 20 }, Extent::whole(data)]);
}

#[test]
fn what_was_saved_is_not_left_behind_and_what_was_written_since_is() {
    let folder = tempfile::tempdir().unwrap();
    let (saved, changed) = (unsaved(&folder, 10), tempfile::tempdir().unwrap());
    saved.write(At::Offset(3), b"abc", 9).unwrap();
    saved.settle(saved.begin_save().unwrap().stamp, base(2, 10));
    saved.spool.abandon();
    std::mem::forget(saved);
    let (_, left) = Spool::open(folder.path(), 0).unwrap();
    assert!(left.is_empty() && !folder.path().join("1.data").exists(), "{left:?}");
    let file = unsaved(&changed, 10);
    file.write(At::Offset(3), b"abc", 9).unwrap();
    let save = file.begin_save().unwrap();
    file.tell_saving();
    file.settle(save.stamp, base(2, 10));
    file.write(At::Offset(0), b"x", 10).unwrap();
    file.spool.abandon();
    std::mem::forget(file);
    let (_, left) = Spool::open(changed.path(), 0).unwrap();
    assert_eq!((left[0].state, left[0].base_version), (State::Interrupted, 2));
}

/// What the next process would save of a file whose process dies now.
fn resumed(folder: &tempfile::TempDir, file: Unsaved, base: Base) -> (State, Pieces) {
    file.spool.abandon();
    std::mem::forget(file);
    let (spool, left) = Spool::open(folder.path(), 0).unwrap();
    assert_eq!((left.len(), left[0].base_version), (1, base.version));
    let again = Unsaved::resume(&left[0], base, &spool, 100).unwrap();
    (left[0].state, again.begin_save().unwrap().pieces)
}

#[test]
fn sizes_and_holes_of_what_nobody_asked_to_save_are_not_forgotten() {
    const KIB: u64 = 1024;
    let folder = tempfile::tempdir().unwrap();
    let file = unsaved(&folder, 100 * KIB);
    file.write(At::Offset(8 * KIB), &[1; 4096], 0).unwrap();
    file.punch(ByteRange::at(40 * KIB, 4 * KIB), 0).unwrap();
    file.resize(60 * KIB, 0).unwrap();
    file.resize(80 * KIB, 0).unwrap();
    file.write(At::Offset(64 * KIB), &[2; 4096], 0).unwrap();
    let want = file.begin_save().unwrap().pieces;
    let (state, pieces) = resumed(&folder, file, base(1, 100 * KIB));
    assert_eq!((state, pieces.size(), pieces.changed()), (State::Interrupted, want.size(), want.changed()));
}

#[test]
fn bytes_of_the_base_that_share_a_block_with_what_was_written_are_not_taken_for_zeros() {
    let folder = tempfile::tempdir().unwrap();
    let file = unsaved(&folder, 50_000);
    let write = |start, length| drop(file.write(At::Offset(start), &vec![1; length], 0).unwrap());
    write(20, 3);
    write(5_000, 10_000);
    file.tell_saving();
    file.settle(file.begin_save().unwrap().stamp, base(2, 50_000));
    let in_spool = |pieces: &Pieces| {
        let mut all: Vec<ByteRange> = Vec::new();
        for (range, _) in pieces.over(ByteRange::at(0, pieces.size())).filter(|(_, source)| *source == Source::Spool) {
            match all.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => all.push(range),
            }
        }
        all
    };
    for (start, length) in [(30_000, 100), (30_100, 6_000), (23, 4_073), (8_000, 1), (49_990, 500), (45_056, 4_096)] {
        write(start, length);
    }
    let want = in_spool(&file.begin_save().unwrap().pieces);
    let (_, pieces) = resumed(&folder, file, base(2, 50_000));
    // What was saved lies there too, and is what the base has.
    assert_eq!(in_spool(&pieces), want);
}

#[test]
fn what_is_cut_or_punched_after_a_save_is_told() {
    for punched in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let file = unsaved(&folder, 50_000);
        file.write(At::Offset(0), &[1; 8192], 0).unwrap();
        file.tell_saving();
        file.settle(file.begin_save().unwrap().stamp, base(2, 50_000));
        match punched {
            true => file.punch(ByteRange::at(4096, 4096), 0).unwrap(),
            false => file.resize(4096, 0).unwrap(),
        }
        let (state, pieces) = resumed(&folder, file, base(2, 50_000));
        let holes = if punched { vec![(ByteRange::at(4096, 4096), Source::Hole)] } else { Vec::new() };
        let written = vec![(ByteRange::at(0, 4096), Source::Spool)];
        assert_eq!((state, pieces.changed()), (State::Interrupted, [written, holes].concat()));
        assert_eq!(pieces.size(), if punched { 50_000 } else { 4096 });
    }
}

#[test]
fn what_lies_in_the_spool_is_what_is_unsaved_after_another_base_came() {
    let folder = tempfile::tempdir().unwrap();
    let file = unsaved(&folder, 100_000);
    file.write(At::Offset(0), &[1; 8192], 0).unwrap();
    let stamp = file.begin_save().unwrap().stamp;
    file.write(At::Offset(40_960), &[2; 4096], 0).unwrap();
    file.give_up(stamp, base(5, 90_000));
    let (_, pieces) = resumed(&folder, file, base(5, 90_000));
    assert_eq!((pieces.size(), pieces.changed()), (90_000, vec![(ByteRange::at(40_960, 4096), Source::Spool)]));
}

/// Every other one a hole.
fn base_of_extents(version: u64, count: u64, length: u32) -> Base {
    let of = |number: u64| match number % 2 {
        0 => Extent::whole(Segment { id: SegmentId::new([1; 32]), length }),
        _ => Extent::Hole { length: length.into() },
    };
    Base { version, digest: None, manifest: Arc::new(Manifest::new((0..count).map(of).collect()).unwrap()) }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
    #[test]
    fn what_is_no_hole_is_counted_as_it_changes(
        steps in proptest::collection::vec((0u8..5, 0u64..400, 1u64..90), 1..40),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let file = unsaved(&folder, 0);
        file.meet(&base_of_extents(2, 6, 50));
        for (what, start, length) in steps {
            match what {
                0 => drop(file.write(At::Offset(start), &vec![1; usize::try_from(length).unwrap()], 0).unwrap()),
                1 => file.punch(ByteRange::at(start, length), 0).unwrap(),
                2 => file.resize(start, 0).unwrap(),
                3 => file.replaced(base_of_extents(3, 7, 40)),
                _ => drop(file.write(At::End, &[1; 30], 0).unwrap()),
            }
            let all = ByteRange::at(0, u64::MAX);
            let base = file.base().manifest;
            let counted = file.inner.lock().pieces.allocated(all, &base);
            proptest::prop_assert_eq!(file.shape().allocated, counted);
        }
    }
}

#[test]
fn a_look_at_a_file_of_very_many_extents_does_not_go_through_them() {
    const EXTENTS: u64 = 262_144;
    let folder = tempfile::tempdir().unwrap();
    let file = unsaved(&folder, 0);
    file.meet(&base_of_extents(2, EXTENTS, 4 << 20));
    let began = std::time::Instant::now();
    for round in 0..2_000 {
        file.write(At::Offset(round * (512 << 20) + 5), &[1; 10], 0).unwrap();
        assert!(file.is_dirty() && file.shape().size == EXTENTS << 22);
    }
    // To go through them takes several milliseconds a time.
    assert!(began.elapsed() < std::time::Duration::from_secs(3), "{:?}", began.elapsed());
}

#[test]
fn a_segment_that_was_written_again_before_it_is_known_to_be_sent_is_not_taken_for_sent() {
    let folder = tempfile::tempdir().unwrap();
    let file = unsaved(&folder, 0);
    let Written { filled, stamp, .. } = file.write(At::Offset(0), &[1; 100], 0).unwrap();
    // Another thread, while the first one begins to send.
    file.write(At::Offset(50), b"x", 0).unwrap();
    file.sends_early(filled[0], stamp, sent());
    assert!(file.begin_save().unwrap().early.is_empty());
}

#[test]
fn times_that_are_set_while_a_save_goes_on_are_saved_by_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let file = unsaved(&folder, 10);
    file.write(At::Offset(0), b"a", 5).unwrap();
    let save = file.begin_save().unwrap();
    assert!(file.set_times(Some(77), None, 6));
    file.settle(save.stamp, base(2, 10));
    let next = file.begin_save().expect("the times are unsaved");
    assert_eq!((save.modified_ns, next.modified_ns, next.pieces.changed()), (5, 77, Vec::new()));
    file.settle(next.stamp, base(3, 10));
    assert!(!file.is_dirty() && !file.set_times(Some(78), None, 7));
}

/// All bytes, where the base has these.
fn bytes_of(plan: &Plan, base: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    for (range, source) in &plan.pieces {
        let (start, end) = (usize::try_from(range.start).unwrap(), usize::try_from(range.end).unwrap());
        match source {
            Source::Hole => all.resize(end, 0),
            Source::Base => all.extend_from_slice(&base[start..end]),
            Source::Spool => all.extend_from_slice(&plan.file.as_ref().unwrap().read(*range).unwrap()),
        }
    }
    all
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(96))]
    #[test]
    fn a_crash_at_any_moment_leaves_all_that_was_written(
        steps in proptest::collection::vec((0u8..8, 0u64..30_000, 1u64..9_000), 1..30),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let file = unsaved(&folder, 0);
        let mut bytes = vec![9; 20_000];
        let (mut saved, mut version) = (bytes.clone(), 2);
        file.meet(&base(version, 20_000));
        for (number, (what, start, length)) in (1..).zip(steps) {
            let at = usize::try_from(start).unwrap();
            let end = at + usize::try_from(length).unwrap();
            match what {
                0..4 => {
                    file.write(At::Offset(start), &vec![number; end - at], 0).unwrap();
                    bytes.resize(bytes.len().max(end), 0);
                    bytes[at..end].fill(number);
                }
                4 => {
                    file.punch(ByteRange::at(start, length), 0).unwrap();
                    let end = end.min(bytes.len());
                    bytes[at.min(end)..end].fill(0);
                }
                5 => {
                    file.resize(start, 0).unwrap();
                    bytes.resize(at, 0);
                }
                _ => {
                    let Some(save) = file.begin_save() else { continue };
                    file.tell_saving();
                    let (size, as_saved) = (save.pieces.size(), bytes.clone());
                    if what == 7 {
                        // While it is saved.
                        file.write(At::Offset(start), &[number; 100], 0).unwrap();
                        bytes.resize(bytes.len().max(at + 100), 0);
                        bytes[at..at + 100].fill(number);
                    }
                    (saved, version) = (as_saved, version + 1);
                    file.settle(save.stamp, base(version, size));
                }
            }
        }
        let dirty = file.is_dirty();
        let has_file = file.inner.lock().file.is_some();
        file.spool.abandon();
        std::mem::forget(file);
        let (spool, left) = Spool::open(folder.path(), 0).unwrap();
        proptest::prop_assert_eq!(left.len(), usize::from(dirty && has_file));
        if let Some(note) = left.first() {
            let again = Unsaved::resume(note, base(version, saved.len() as u64), &spool, 100).unwrap();
            let found = bytes_of(&again.plan(ByteRange::at(0, u64::MAX)), &saved);
            proptest::prop_assert_eq!(found.len(), bytes.len());
            let differs = found.iter().zip(&bytes).position(|(a, b)| a != b);
            proptest::prop_assert_eq!(differs, None);
        }
    }
}
