//! A kill at any moment of a rebase leaves one file, whole, of which the journal tells.

use std::path::Path;

use swarm_proto::{Extent, InodeNumber, Manifest};

use super::*;
use crate::write::spool::{Note, Spool};
use crate::write::unsaved::At;

fn base(version: u64, size: u64) -> Base {
    let holes = if size > 0 { vec![Extent::Hole { length: size }] } else { Vec::new() };
    Base { version, digest: None, manifest: Arc::new(Manifest::new(holes).unwrap()) }
}

fn unsaved(folder: &Path) -> Unsaved {
    let (spool, _) = Spool::open(folder, 0).unwrap();
    Unsaved::new(InodeNumber(7), String::new(), "/a".into(), base(1, 10), spool, 100)
}

/// The folder as it is now, but for its journal.
fn killed(folder: &Path, journal: &[u8]) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    std::fs::write(copy.path().join("journal"), journal).unwrap();
    copy
}

/// Of a file that was left: its state, over which version, and what of it is unsaved.
type Found = (State, u64, Vec<(u64, String)>);

/// What the next process finds.
fn found(folder: &Path) -> Vec<Found> {
    let (spool, _) = Spool::open(folder, 0).unwrap();
    let again = |note: &Note| {
        let again = Unsaved::resume(note, base(note.base_version, note.base_version * 10), &spool, 100).unwrap();
        let save = again.begin_save().unwrap();
        let text = |range: ByteRange| {
            let bytes = save.file.as_ref().unwrap().read(range).unwrap();
            (range.start, String::from_utf8(bytes.to_vec()).unwrap())
        };
        (note.state, note.base_version, save.pieces.unsaved_in_spool().into_iter().map(text).collect())
    };
    spool.kept().unwrap().iter().map(again).collect()
}

fn journal(folder: &Path) -> Vec<u8> {
    std::fs::read(folder.join("journal")).unwrap()
}

#[test]
fn a_kill_at_any_moment_of_a_rebase_leaves_one_file_with_all_that_was_appended() {
    for second in [None, Some(b"def")] {
        let folder = tempfile::tempdir().unwrap();
        let file = unsaved(folder.path());
        file.write(At::End, b"abc", 5).unwrap();
        file.tell_saving();
        second.iter().for_each(|bytes| drop(file.write(At::End, *bytes, 6).unwrap()));
        // Whoever saves it holds the file, and with it its data.
        let save = file.begin_save().unwrap();
        let before = journal(folder.path());
        let unmoved = found(killed(folder.path(), &before).path());
        assert_eq!(file.rebase(base(2, 20)).unwrap(), Rebased::Done);
        let after = journal(folder.path());
        assert!(after.starts_with(&before) && after.len() > before.len());
        for told in before.len()..after.len() - 1 {
            assert_eq!(found(killed(folder.path(), &after[..told]).path()), unmoved, "as it was before");
        }
        let all = "abc".to_owned() + second.map_or("", |bytes| std::str::from_utf8(bytes).unwrap());
        let moved = vec![(State::Saving, 2, vec![(20, all)])];
        assert_eq!(found(killed(folder.path(), &after).path()), moved);
        drop(save);
        assert_eq!(found(killed(folder.path(), &journal(folder.path())).path()), moved, "the old one is gone");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3, "lock, journal, and one file");
    }
}

#[test]
fn a_kill_at_any_moment_of_a_rebase_of_what_is_left_leaves_one_file_too() {
    let folder = tempfile::tempdir().unwrap();
    let file = unsaved(folder.path());
    file.write(At::End, b"abc", 5).unwrap();
    file.tell_saving();
    file.spool.abandon();
    std::mem::forget(file);
    let (spool, left) = Spool::open(folder.path(), 0).unwrap();
    let noted = std::fs::read(folder.path().join("1.json")).unwrap();
    let again = Unsaved::resume(&left[0], base(1, 10), &spool, 100).unwrap();
    let held = again.file().unwrap();
    assert_eq!(again.rebase(base(2, 20)).unwrap(), Rebased::Done);
    let after = journal(folder.path());
    let told: Vec<_> = after.split_inclusive(|byte| *byte == b'\n').collect();
    let [spare, first, _] = told[..] else { panic!("three events") };
    let both = [spare, first].concat();
    let (unmoved, moved) = (vec![(State::Saving, 1, vec![(10, "abc".to_owned())])], vec![(20, "abc".to_owned())]);
    for (journal, is_noted) in [(spare, true), (&both, true), (&both, false)] {
        let folder = killed(folder.path(), journal);
        is_noted.then(|| std::fs::write(folder.path().join("1.json"), &noted).unwrap());
        assert_eq!(found(folder.path()), unmoved);
        assert!(!folder.path().join("2.data").exists(), "what it has is in the first");
    }
    assert_eq!(found(killed(folder.path(), &after).path()), [(State::Saving, 2, moved)]);
    // It stays when this process goes, until it is done.
    let latest = held.latest();
    drop((again, held));
    let data = || [1, 2].map(|number| folder.path().join(format!("{number}.data")).exists());
    assert_eq!(data(), [false, true]);
    latest.done();
    drop(latest);
    assert_eq!((data(), found(killed(folder.path(), &journal(folder.path())).path())), ([false; 2], vec![]));
}

#[test]
fn a_rebase_that_the_disk_refuses_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = unsaved(folder.path());
    file.write(At::End, b"abc", 5).unwrap();
    file.tell_saving();
    let (before, old) = (journal(folder.path()), file.note(State::Saving, None));
    // The next file of the spool cannot be made.
    std::fs::rename(folder.path(), folder.path().with_extension("away")).unwrap();
    assert!(file.rebase(base(2, 20)).is_err());
    std::fs::rename(folder.path().with_extension("away"), folder.path()).unwrap();
    assert_eq!((journal(folder.path()), file.note(State::Saving, None)), (before, old));
    assert_eq!(file.rebase(base(2, 20)).unwrap(), Rebased::Done);
}
