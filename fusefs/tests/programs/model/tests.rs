//! The model itself: what it promises across mounts, and that a wrong file system would be found.

use super::operation::{Access, Bytes, Operation, Path};
use super::reference::{Outcome, Reference, Views};
use super::{history, shrink};

#[test]
fn a_history_is_the_same_for_the_same_seed_and_does_something() {
    let one = history(5, 3_000, Views::Mounts);
    assert_eq!(one, history(5, 3_000, Views::Mounts));
    let mut reference = Reference::new(Views::Mounts);
    let outcomes = one.iter().filter_map(|operation| reference.apply(operation)).collect::<Vec<_>>();
    let failed = outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Failed(_))).count();
    assert!(failed * 2 < outcomes.len(), "{failed} of {} operations fail", outcomes.len());
    assert!(failed * 20 > outcomes.len(), "only {failed} of {} operations fail", outcomes.len());
}

#[test]
fn what_the_model_gets_wrong_is_found_and_made_short() {
    // A file system that forgets what is appended through a handle after a rename.
    let history = history(7, 2_000, Views::OneFolder);
    let broken = |history: &[Operation]| {
        let renamed = history.iter().position(|operation| matches!(operation, Operation::Rename { .. }))?;
        let written = history.iter().rposition(|operation| matches!(operation, Operation::HandleWrite { .. }))?;
        (renamed < written).then(|| "forgotten".to_owned())
    };
    let (shortest, _) = shrink::shortest(history, String::new(), broken);
    assert_eq!(shortest.len(), 2, "{shortest:?}");
}

const FILE: &[u8] = b"a";

fn path() -> Path {
    Path(FILE.to_vec())
}

fn bytes(fill: u8) -> Bytes {
    Bytes { fill, length: 10 }
}

fn mounts_with_a_file() -> Reference {
    let mut reference = Reference::new(Views::Mounts);
    assert_eq!(reference.apply(&Operation::Create { view: 0, path: path() }), Some(Outcome::Done));
    reference
}

#[test]
fn unsaved_writes_show_in_their_own_mount_and_closed_ones_in_all() {
    let mut reference = mounts_with_a_file();
    let read = |reference: &mut Reference, view| reference.apply(&Operation::Read { view, path: path() });
    let open = Operation::Open { view: 0, slot: 0, path: path(), access: Access::Write };
    for operation in [open, Operation::HandleWrite { view: 0, slot: 0, offset: 0, bytes: bytes(9) }] {
        assert_eq!(reference.apply(&operation), Some(Outcome::Done));
    }
    assert_eq!(read(&mut reference, 0), Some(Outcome::Bytes(bytes(9).make())));
    let reader = Operation::Open { view: 0, slot: 1, path: path(), access: Access::Read };
    for operation in [reader, Operation::HandleClose { view: 0, slot: 1 }] {
        assert_eq!(reference.apply(&operation), Some(Outcome::Done));
        assert_eq!(read(&mut reference, 1), Some(Outcome::Bytes(Vec::new())));
    }
    assert_eq!(reference.apply(&Operation::HandleClose { view: 0, slot: 0 }), Some(Outcome::Done));
    assert_eq!(read(&mut reference, 1), Some(Outcome::Bytes(bytes(9).make())));
}

#[test]
fn a_handle_keeps_its_version_until_its_mount_opens_a_newer_one() {
    let mut reference = mounts_with_a_file();
    let open = |slot| Operation::Open { view: 1, slot, path: path(), access: Access::Read };
    let read = |slot| Operation::HandleRead { view: 1, slot };
    reference.apply(&open(0));
    reference.apply(&Operation::Write { view: 0, path: path(), offset: 0, bytes: bytes(7) });
    assert_eq!(reference.apply(&read(0)), Some(Outcome::Bytes(Vec::new())));
    reference.apply(&open(1));
    let either = reference.apply(&read(0)).expect("an answer");
    assert!(either.allows(&Outcome::Bytes(Vec::new())) && either.allows(&Outcome::Bytes(bytes(7).make())));
    assert!(!either.allows(&Outcome::Bytes(bytes(8).make())));
    assert_eq!(reference.apply(&read(1)), Some(Outcome::Bytes(bytes(7).make())));
}

#[test]
fn two_mounts_do_not_write_one_file_at_a_time() {
    let mut reference = mounts_with_a_file();
    reference.apply(&Operation::Open { view: 0, slot: 0, path: path(), access: Access::Write });
    assert_eq!(reference.apply(&Operation::Truncate { view: 1, path: path() }), None);
    reference.apply(&Operation::HandleClose { view: 0, slot: 0 });
    assert_eq!(reference.apply(&Operation::Truncate { view: 1, path: path() }), Some(Outcome::Done));
}
