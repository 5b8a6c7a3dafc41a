//! What a spool keeps over the death of its process, and what it does not; and that a full disk is noticed.

use super::*;

fn note(number: SpoolNumber) -> Note {
    Note {
        number,
        swarm: String::new(),
        inode: 7,
        path: "/a".to_owned(),
        base_version: 3,
        base_manifest: None,
        size: 0,
        modified_ns: 0,
        appended: false,
        changed: None,
        since: None,
        print: None,
        state: State::Failed,
        error: None,
    }
}

#[test]
fn what_a_dead_process_had_begun_is_found_and_what_was_done_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, left) = Spool::open(folder.path(), 0).unwrap();
    assert!(left.is_empty());
    let (begun, saving, done) = (spool.begin(note).unwrap(), spool.begin(note).unwrap(), spool.begin(note).unwrap());
    begun.write(3, b"abc").unwrap();
    saving.saving(Note { size: 9, ..note(saving.number()) });
    drop(done);
    std::mem::forget((begun, saving));
    assert!(is_used(folder.path()) && Spool::open(folder.path(), 0).is_err());
    spool.abandon();
    let cut_short = folder.path().join(journal::NAME);
    let mut text = std::fs::read(&cut_short).unwrap();
    text.extend_from_slice(b"{\"done\":1");
    std::fs::write(&cut_short, text).unwrap();
    for _ in 0..2 {
        let (again, left) = Spool::open(folder.path(), 0).unwrap();
        let kept = again.kept().unwrap();
        let states: Vec<_> = kept.iter().map(|note| (note.number, note.state, note.size)).collect();
        assert_eq!(states, [(1, State::Interrupted, 6), (2, State::Saving, 9)]);
        assert!(kept[0].modified_ns > 1_700_000_000_000_000_000, "when it was written last");
        assert!(left.is_empty() || left == kept, "the second time the notes tell of them");
        assert_eq!(&again.reopen(1).unwrap().read(ByteRange::at(3, 3)).unwrap()[..], b"abc");
        assert!(again.begin(note).unwrap().number() > 2);
        again.abandon();
    }
    let (last, _) = Spool::open(folder.path(), 0).unwrap();
    remove(folder.path(), 1).unwrap();
    last.reopen(2).unwrap().done();
    assert!(last.kept().unwrap().is_empty());
    let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "lock and journal: {names:?}");
}

#[test]
fn bytes_are_copied_to_other_offsets_and_what_is_copied_goes_unless_it_takes_over() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, _) = Spool::open(folder.path(), 0).unwrap();
    let file = Arc::new(spool.begin(note).unwrap());
    let bytes: Vec<u8> = (0..9 << 20).map(|at: u32| (at / 7).to_le_bytes()[0]).collect();
    file.write(100, &bytes).unwrap();
    let ranges = [(ByteRange::at(100, 50), 5_000), (ByteRange::at(200, 9 << 20), 6_000)];
    let moved = file.copy_moved(ranges.into_iter()).unwrap();
    assert_eq!(moved.read(ByteRange::at(4_999, 52)).unwrap(), [&[0], &bytes[..50], &[0]].concat());
    assert!(moved.read(ByteRange::at(6_000, (9 << 20) - 100)).unwrap()[..] == bytes[100..]);
    let data = |number| folder.path().join(format!("{number}.data")).exists();
    drop(moved);
    assert_eq!([data(1), data(2)], [true, false]);
    let moved = Arc::new(file.copy_moved(ranges.into_iter()).unwrap());
    file.give_way(&moved, note(1), note(moved.number())).unwrap();
    assert_eq!((file.latest().number(), moved.latest().number()), (3, 3));
    drop(file);
    assert_eq!([data(1), data(3)], [false, true]);
}

#[test]
fn bytes_of_which_nobody_tells_are_kept_until_a_person_gives_them_up() {
    let folder = tempfile::tempdir().unwrap();
    let data = |number| folder.path().join(format!("{number}.data")).exists();
    let (spool, _) = Spool::open(folder.path(), 0).unwrap();
    let begin = |bytes: &[u8]| {
        let file = spool.begin(note).unwrap();
        file.write(0, bytes).unwrap();
        file
    };
    let (kept, saved, begun) = (begin(b"kept"), begin(b"saved"), begin(b"begun"));
    kept.keep(&note(kept.number())).unwrap();
    let (empty, spare) = (spool.fresh().unwrap(), begun.copy_moved([(ByteRange::at(0, 5), 0)].into_iter()).unwrap());
    saved.saved();
    std::fs::remove_file(folder.path().join("1.json")).unwrap();
    let damage = |notes: usize| {
        let listed = unsaved_in(folder.path()).unwrap();
        assert_eq!(listed.len(), notes);
        damage_in(folder.path(), &listed).unwrap()
    };
    let stray = damage(0);
    assert!(matches!(&stray[..], [only] if only.contains("1.data")), "also while it is used: {stray:?}");
    std::mem::forget((kept, saved, begun, empty, spare));
    spool.abandon();
    for _ in 0..2 {
        let (again, _) = Spool::open(folder.path(), 0).unwrap();
        assert_eq!([1, 2, 3, 4, 5].map(data), [true, false, true, false, false]);
        assert_eq!(damage(1), stray);
        again.abandon();
    }
    assert!(is_damaged(folder.path(), 1).unwrap() && !is_damaged(folder.path(), 3).unwrap());
    remove(folder.path(), 1).unwrap();
    assert!(damage(1).is_empty() && !is_damaged(folder.path(), 1).unwrap());
}

#[test]
fn a_journal_that_begins_anew_goes_on_telling_of_what_is_saved() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, _) = Spool::open(folder.path(), 0).unwrap();
    let saved = spool.begin(note).unwrap();
    saved.write(0, b"saved").unwrap();
    saved.saved();
    let other = spool.begin(note).unwrap();
    let length = || std::fs::metadata(folder.path().join(journal::NAME)).unwrap().len();
    let mut longest = 0;
    while length() >= longest {
        longest = length();
        other.saving(note(2));
    }
    assert!(damage_in(folder.path(), &[]).unwrap().is_empty());
    std::mem::forget((saved, other));
    spool.abandon();
    drop(Spool::open(folder.path(), 0).unwrap());
    assert!(!folder.path().join("1.data").exists());
}

#[test]
fn a_disk_below_its_floor_has_no_room() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, _) = Spool::open(folder.path(), u64::MAX).unwrap();
    let file = spool.begin(note).unwrap();
    assert_eq!(file.check_room(1).unwrap_err().kind(), io::ErrorKind::StorageFull);
}

#[test]
fn room_is_asked_for_once_before_a_write_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, _) = Spool::open(folder.path(), 0).unwrap();
    let file = spool.begin(note).unwrap();
    let asked = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let asks = asked.clone();
    spool.ask_for_room(move |bytes| asks.lock().push(bytes));
    file.check_room(1).unwrap();
    assert_eq!(*asked.lock(), [0_u64; 0]);
    let too_much = 1 << 60;
    assert_eq!(file.check_room(too_much).unwrap_err().kind(), io::ErrorKind::StorageFull);
    let asked = asked.lock();
    assert!(matches!(asked[..], [bytes] if bytes > too_much / 2 && bytes <= too_much), "{asked:?}");
}

#[test]
fn the_journal_stays_short_while_a_file_is_open_and_goes_on_telling_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, _) = Spool::open(folder.path(), 0).unwrap();
    let (open, saving, gone) = (spool.begin(note).unwrap(), spool.begin(note).unwrap(), spool.begin(note).unwrap());
    drop(gone);
    let long = Note { changed: Some((0..1_000).map(|at| (at * 10, 5, true)).collect()), ..note(saving.number()) };
    for round in 0..2_000 {
        saving.saving(long.clone());
        saving.saved();
        open.punched(ByteRange::at(round * 10, 5));
        let length = std::fs::metadata(folder.path().join(journal::NAME)).unwrap().len();
        assert!(length < 2 << 20, "{length} bytes after {round} saves");
    }
    saving.saving(long.clone());
    saving.changed(Since { size: 0, holes: Vec::new(), parts: Vec::new() });
    open.resized(7);
    std::mem::forget((open, saving));
    spool.abandon();
    let (_, left) = Spool::open(folder.path(), 0).unwrap();
    assert_eq!(
        left.iter().map(|note| (note.number, note.state)).collect::<Vec<_>>(),
        [(1, State::Interrupted), (2, State::Saving)]
    );
    assert_eq!(left[0].since, Some(Since { size: 7, holes: vec![(0, 5), (7, u64::MAX)], parts: Vec::new() }));
    assert_eq!(
        (&left[1].changed, &left[1].since),
        (&long.changed, &Some(Since { size: 0, holes: Vec::new(), parts: Vec::new() }))
    );
}
