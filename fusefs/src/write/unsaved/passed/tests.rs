//! What is made of a data file that somebody else writes, looked at in every moment of a save.

use std::os::unix::fs::FileExt;

use futures::FutureExt;
use swarm_proto::{Extent, InodeNumber, Manifest};

use super::*;
use crate::write::Spool;
use crate::write::pieces::Source;
use crate::write::spool::notes_in;
use crate::write::unsaved::At;

const SEGMENT: u64 = 100;

fn base(version: u64, size: u64) -> Base {
    let holes = if size > 0 { vec![Extent::Hole { length: size }] } else { Vec::new() };
    Base { version, digest: None, manifest: Arc::new(Manifest::new(holes).unwrap()) }
}

/// A file that is passed, and what the kernel has of it; none, with a word why, where that cannot be.
fn passed(folder: &tempfile::TempDir, size: u64) -> Option<(Unsaved, File, Arc<Spool>)> {
    let (spool, _) = Spool::open(folder.path(), 0).unwrap();
    if let Err(reason) = spool.tells_of_writes() {
        eprintln!("skipped: {reason}");
        return None;
    }
    let file = Unsaved::new(InodeNumber(7), String::new(), "/a".into(), base(1, size), spool.clone(), SEGMENT);
    file.enter();
    match file.pass(0, File::try_clone) {
        Pass::Done(kernel) => Some((file, kernel, spool)),
        Pass::NotNow | Pass::Refused(_) => panic!("it is clean"),
    }
}

/// Save it as a mount does; what of the data file is sent.
fn save(file: &Unsaved, version: u64) -> Option<Vec<ByteRange>> {
    if let Some(file) = file.waits() {
        file.wait_for_writes().unwrap();
    }
    let save = file.begin_save()?;
    file.tell_saving();
    file.settle(save.stamp, base(version, save.pieces.size()));
    Some(save.to_send())
}

#[test]
fn whatever_the_kernel_writes_makes_all_of_it_unsaved() {
    let folder = tempfile::tempdir().unwrap();
    let Some((file, kernel, _spool)) = passed(&folder, 0) else { return };
    assert!(!file.is_dirty() && save(&file, 2).is_none());
    kernel.write_all_at(b"0123456789", 0).unwrap();
    assert_eq!((file.is_dirty(), file.shape().size), (true, 10));
    assert_eq!(save(&file, 2), Some(vec![ByteRange::at(0, 10)]));
    assert!(!file.is_dirty() && save(&file, 3).is_none());
    // Of the same size, in the same tick of the clock.
    for version in 3..50 {
        kernel.write_all_at(b"x", 4).unwrap();
        assert_eq!(save(&file, version), Some(vec![ByteRange::at(0, 10)]));
        assert!(!file.is_dirty());
    }
    file.write(At::End, b"ab", 0).unwrap();
    file.resize(15, 0).unwrap();
    file.punch(ByteRange::at(0, 3), 0).unwrap();
    let plan = file.plan(ByteRange::at(0, 100));
    assert_eq!(plan.pieces, [(ByteRange::at(0, 15), Source::Spool)]);
    assert_eq!(&plan.file.unwrap().read(ByteRange::at(0, 15)).unwrap()[..], b"\0\0\x003x56789ab\0\0\0");
}

#[test]
fn what_is_written_from_the_waiting_of_a_save_to_its_end_stays_unsaved() {
    let folder = tempfile::tempdir().unwrap();
    let Some((file, kernel, _spool)) = passed(&folder, 0) else { return };
    let write = |at| kernel.write_all_at(b"x", at).unwrap();
    // Longer or not, seen by somebody else or not, before or after the save begins.
    for (round, (at, is_seen, is_late)) in
        [(0, false, false), (9, true, false), (0, true, true), (20, false, true)].into_iter().enumerate()
    {
        write(5);
        file.waits().unwrap().wait_for_writes().unwrap();
        let begin = || file.begin_save().unwrap();
        let early = (!is_late).then(|| write(at));
        if is_seen && early.is_some() {
            file.shape();
        }
        let save = begin();
        if is_late {
            write(at);
            file.shape();
        }
        file.settle(save.stamp, base(round as u64 + 2, save.pieces.size()));
        assert!(file.is_dirty(), "round {round}");
        self::save(&file, round as u64 + 3).unwrap();
        assert!(!file.is_dirty(), "round {round}");
    }
}

#[test]
fn what_may_be_mapped_is_unsaved_at_each_save() {
    let folder = tempfile::tempdir().unwrap();
    let Some((file, kernel, _spool)) = passed(&folder, 0) else { return };
    kernel.write_all_at(b"x", 0).unwrap();
    file.may_be_mapped();
    for version in 2..5 {
        assert_eq!(save(&file, version), Some(vec![ByteRange::at(0, 1)]));
    }
    assert!(!file.is_dirty());
    file.end_passing();
    assert!(file.is_dirty(), "once more at the end");
}

#[test]
fn an_emptied_file_has_nothing_of_its_base() {
    let folder = tempfile::tempdir().unwrap();
    let Some((file, kernel, _spool)) = passed(&folder, 1_000) else { return };
    assert_eq!((file.is_dirty(), file.shape().size), (true, 0));
    kernel.write_all_at(b"x", 9).unwrap();
    assert_eq!(file.plan(ByteRange::at(0, 100)).pieces, [(ByteRange::at(0, 10), Source::Spool)]);
    assert!(!file.begin_save().unwrap().appended);
}

#[test]
fn what_another_mount_saved_is_shown_and_never_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let Some((file, kernel, _spool)) = passed(&folder, 0) else { return };
    kernel.write_all_at(b"mine", 0).unwrap();
    assert!(!file.meet(&base(9, 50)), "unsaved bytes stay");
    save(&file, 2);
    assert!(file.meet(&base(9, 50)) && file.is_outdated());
    kernel.write_all_at(b"more", 0).unwrap();
    assert!(!file.is_outdated());
    let lost = file.begin_save().unwrap();
    assert_eq!((lost.base.version, lost.appended), (2, false));
    file.waits();
    let lost = file.begin_save().unwrap();
    file.give_up(lost.stamp, base(9, 50));
    assert!(file.is_outdated());
    // A writer that is alone with it begins anew.
    file.leave_outdated(&base(10, 60));
    assert_eq!((file.base().version, file.is_passed(), file.shape().size), (10, false, 60));
}

#[test]
fn the_end_leaves_a_file_like_any_other() {
    let folder = tempfile::tempdir().unwrap();
    let Some((file, kernel, _spool)) = passed(&folder, 0) else { return };
    kernel.write_all_at(b"0123456789", 0).unwrap();
    save(&file, 2);
    kernel.write_all_at(b"AB", 2).unwrap();
    file.sends_on_trust(ByteRange::at(0, SEGMENT), async { None }.boxed().shared());
    file.end_passing();
    assert!(file.is_dirty() && !file.is_passed());
    let begun = file.begin_save().unwrap();
    assert!(begun.early.is_empty() && begun.held.is_empty(), "what was sent on trust is not trusted");
    file.settle(begun.stamp, base(3, 10));
    file.write(At::Offset(4), b"x", 0).unwrap();
    assert_eq!(file.begin_save().unwrap().to_send(), [ByteRange::at(4, 1)]);
}

#[test]
fn whole_segments_are_given_once_to_be_sent_and_no_holes() {
    let folder = tempfile::tempdir().unwrap();
    let Some((file, kernel, _spool)) = passed(&folder, 0) else { return };
    let filled = || -> Vec<u64> { file.filled().unwrap().1.into_iter().map(|window| window.start / SEGMENT).collect() };
    kernel.write_all_at(&[1; 350], 0).unwrap();
    assert_eq!((filled(), filled()), (vec![0, 1], vec![]));
    kernel.write_all_at(&[1; 350], 1 << 40).unwrap();
    assert_eq!(filled().first(), Some(&2));
    while !filled().is_empty() {}
    file.sends_on_trust(ByteRange::at(0, SEGMENT), async { None }.boxed().shared());
    let begun = file.begin_save().unwrap();
    assert_eq!((begun.early.len(), begun.held.len()), (0, 1));
    assert_eq!(begun.to_send(), [ByteRange::at(0, (1 << 40) + 350)], "and all is looked at again");
    file.was_wasted(WASTED_MOST);
    assert!(file.filled().is_none());
}

#[test]
fn the_next_process_lists_only_what_was_written_after_the_last_save() {
    for is_written_since in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let Some((file, kernel, spool)) = passed(&folder, 0) else { return };
        kernel.write_all_at(b"saved", 0).unwrap();
        save(&file, 2).unwrap();
        if is_written_since {
            kernel.write_all_at(b"since", 0).unwrap();
        }
        std::mem::forget(file);
        spool.abandon();
        let (next, left) = Spool::open(folder.path(), 0).unwrap();
        assert_eq!(
            (left.len(), notes_in(folder.path()).unwrap().len()),
            [(0, 0), (1, 1)][usize::from(is_written_since)]
        );
        let entries = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
        let data = entries.filter(|path| path.extension().is_some_and(|found| found == "data")).count();
        assert_eq!(data, usize::from(is_written_since));
        for note in left {
            let again = Unsaved::resume(&note, base(2, 5), &next, SEGMENT).unwrap();
            assert_eq!(again.begin_save().unwrap().to_send(), [ByteRange::at(0, 5)]);
        }
    }
}
