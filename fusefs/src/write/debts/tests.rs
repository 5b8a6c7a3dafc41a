//! What is owed to seeders is remembered over a restart, swarm by swarm, and bytes are kept only as long as it is.

use futures::FutureExt;

use super::*;
use crate::write::Spool;
use crate::write::spool::{Note, State};

const INODE: InodeNumber = InodeNumber(7);

fn debtor() -> Debtor {
    Debtor { swarm: "s".into(), inode: INODE, path: "/f".into() }
}

fn segment(bytes: &[u8]) -> Segment {
    Segment { id: SegmentId::new(*blake3::hash(bytes).as_bytes()), length: u32::try_from(bytes.len()).unwrap() }
}

fn note(number: u64) -> Note {
    Note {
        number,
        swarm: "s".into(),
        inode: INODE.0,
        path: "/f".into(),
        base_version: 1,
        base_manifest: None,
        size: 0,
        modified_ns: 0,
        appended: false,
        changed: None,
        since: None,
        print: None,
        state: State::Interrupted,
        error: None,
    }
}

fn read(debts: &Debts, part: &Part) -> Option<Bytes> {
    let kept = part.kept.unwrap();
    bytes_at(&debts.open_kept(kept).unwrap(), kept.offset, part.segment()).ok()
}

fn only(debts: &Debts) -> (Key, Debt) {
    let key = debts.due("s", &[])[0];
    (key, debts.get(key).unwrap())
}

#[test]
fn what_is_owed_is_there_after_a_restart_though_the_spool_has_let_it_go() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, _) = Spool::open(folder.path(), 0).unwrap();
    let at = folder.path().join("owed");
    let debts = Debts::open(&at, 0.0).unwrap();
    let file = spool.begin(note).unwrap();
    file.write(0, b"onetwo").unwrap();
    let lacking = |bytes: &[u8], offset| Lacking {
        segment: segment(bytes),
        at_risk: true,
        bytes: Some((Bearer::Spool(&file), offset)),
    };
    debts.add(debtor(), vec![lacking(b"one", 0), lacking(b"two", 3)], None);
    drop(file);
    drop(debts);
    let debts = Debts::open(&at, 0.0).unwrap();
    let (key, debt) = only(&debts);
    let read: Vec<Bytes> = debt.parts.iter().map(|part| read(&debts, part).unwrap()).collect();
    assert_eq!(read, ["one", "two"]);
    assert_eq!(debts.sum("s"), Sum { files: 1, bytes: 6 });
    debts.change(key, |parts| parts.truncate(1));
    assert!(at.join("1.data").exists(), "one part is left in it");
    debts.gone("s", INODE);
    assert!(debts.is_empty("s") && !at.join("1.data").exists());
    drop(debts);
    assert!(Debts::open(&at, 0.0).unwrap().is_empty("s"));
}

#[test]
fn bytes_that_were_written_over_are_none() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, _) = Spool::open(folder.path(), 0).unwrap();
    let debts = Debts::open(&folder.path().join("owed"), 0.0).unwrap();
    let file = spool.begin(note).unwrap();
    file.write(0, b"one").unwrap();
    debts.add(
        debtor(),
        vec![Lacking { segment: segment(b"one"), at_risk: true, bytes: Some((Bearer::Spool(&file), 0)) }],
        None,
    );
    let (_, debt) = only(&debts);
    file.write(0, b"ONE").unwrap();
    assert_eq!(read(&debts, &debt.parts[0]), None);
}

#[test]
fn a_disk_that_is_too_full_keeps_nothing_and_the_debt_is_remembered() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, _) = Spool::open(folder.path(), 0).unwrap();
    let at = folder.path().join("owed");
    let debts = Debts::open(&at, 1.1).unwrap();
    let file = spool.begin(note).unwrap();
    file.write(0, b"one").unwrap();
    debts.add(
        debtor(),
        vec![Lacking { segment: segment(b"one"), at_risk: true, bytes: Some((Bearer::Spool(&file), 0)) }],
        None,
    );
    drop(debts);
    let (_, debt) = only(&Debts::open(&at, 1.1).unwrap());
    assert_eq!(debt.parts[0].kept, None);
}

#[test]
fn what_all_seeders_have_is_remembered_without_a_write() {
    let folder = tempfile::tempdir().unwrap();
    let debts = Debts::open(folder.path(), 0.0).unwrap();
    debts.add(debtor(), vec![Lacking { segment: segment(b"one"), at_risk: false, bytes: None }], Some(Vec::new()));
    assert!(!debts.is_empty("s"));
    assert_eq!(std::fs::metadata(folder.path().join(JOURNAL)).unwrap().len(), 0);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn nobody_is_woken_by_more_of_what_waits_for_another_seeder() {
    let folder = tempfile::tempdir().unwrap();
    let debts = Debts::open(folder.path(), 0.0).unwrap();
    let add = |at_risk, tried| {
        debts.add(debtor(), vec![Lacking { segment: segment(b"one"), at_risk, bytes: None }], tried);
    };
    let is_woken = || debts.more().now_or_never().is_some();
    add(false, Some(Vec::new()));
    assert!(is_woken(), "the first one is waited for");
    add(false, Some(Vec::new()));
    assert!(!is_woken());
    add(false, None);
    assert!(is_woken(), "a seeder that is up may lack it");
    add(true, Some(Vec::new()));
    assert!(is_woken(), "it could be lost");
}

#[test]
fn a_line_that_was_cut_short_is_no_line() {
    let folder = tempfile::tempdir().unwrap();
    let debts = Debts::open(folder.path(), 0.0).unwrap();
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(b"one", 0).unwrap();
    let lacking =
        || vec![Lacking { segment: segment(b"one"), at_risk: true, bytes: Some((Bearer::Nameless(&file), 0)) }];
    debts.add(debtor(), lacking(), None);
    debts.add(debtor(), lacking(), None);
    drop(debts);
    let path = folder.path().join(JOURNAL);
    let length = std::fs::metadata(&path).unwrap().len();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(length - 9).unwrap();
    let debts = Debts::open(folder.path(), 0.0).unwrap();
    let (key, debt) = only(&debts);
    assert_eq!((key.1, debts.due("s", &[]).len()), (1, 1));
    assert_eq!(read(&debts, &debt.parts[0]).unwrap(), "one");
    assert!(!folder.path().join("2.data").exists());
}

#[test]
fn what_one_swarm_replaces_and_removes_is_owed_to_another_as_before() {
    let folder = tempfile::tempdir().unwrap();
    let debts = Debts::open(folder.path(), 0.0).unwrap();
    let lacking = || vec![Lacking { segment: segment(b"one"), at_risk: true, bytes: None }];
    debts.add(debtor(), lacking(), None);
    debts.replaced("another", INODE, |_| false);
    debts.gone("another", INODE);
    assert_eq!((debts.sum("s"), debts.sum("another")), (Sum { files: 1, bytes: 3 }, Sum::default()));
    assert!(debts.is_empty("another") && !debts.is_empty("s"));
    debts.add(Debtor { swarm: "another".into(), ..debtor() }, lacking(), None);
    debts.gone("s", INODE);
    assert!(debts.is_empty("s") && !debts.is_empty("another"));
}

#[test]
fn what_is_at_risk_is_remembered_however_much_all_seeders_have() {
    let folder = tempfile::tempdir().unwrap();
    let debts = Debts::open(folder.path(), 0.0).unwrap();
    let lacking = |at_risk| Lacking { segment: segment(b"one"), at_risk, bytes: None };
    debts.add(debtor(), (0..book::MOST_PARTS).map(|_| lacking(false)).collect(), Some(Vec::new()));
    debts.add(debtor(), vec![lacking(true), lacking(false)], None);
    let (key, debt) = only(&debts);
    assert_eq!((key.1, debt.parts.len()), (2, 1));
    debts.change(key, |parts| parts[0].at_risk = false);
    drop(debts);
    assert!(Debts::open(folder.path(), 0.0).unwrap().is_empty("s"), "only what is at risk is told to the next mount");
}
