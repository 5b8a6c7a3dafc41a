//! The database by itself: rows that lie in a table and a journal before sled has them.

use super::*;
use crate::store::disk::sim::{Crash, SimDisk, Trouble, restore};
use crate::store::sled::database::Database;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const CACHE_BYTES: u64 = 16 << 20;

/// What rows should have.
type Want = Vec<(u32, Option<Vec<u8>>)>;

fn row(chunk: u32) -> Row {
    Row::Chunk { number: 1, chunk }
}

fn value(chunk: u32, round: u32) -> Vec<u8> {
    format!("{chunk} in round {round} ").repeat(20).into_bytes()
}

/// Below a folder, as in a store.
fn open_rows(dir: &Path, disk: Arc<dyn Disk>) -> Database {
    match Database::open(&dir.join("db"), CACHE_BYTES, disk) {
        Ok(database) => database,
        Err(error) => panic!("{error:?}"),
    }
}

/// Two rows of a round, one over what an earlier round put there, and one removed.
fn write_round(database: &Database, round: u32) {
    database.put(row(round), &value(round, round));
    database.apply(vec![(row(100), Some(value(100, round))), (row(200 + round), Some(Vec::new()))]);
    if let Some(before) = round.checked_sub(1) {
        database.apply(vec![(row(200 + before), None)]);
    }
}

/// What there is after some rounds.
fn after(rounds: u32) -> Want {
    let put = (0..20).map(|chunk| (chunk, (chunk < rounds).then(|| value(chunk, chunk))));
    let marks = (0..20).map(|round| (200 + round, (round + 1 == rounds).then(Vec::new)));
    put.chain([(100, rounds.checked_sub(1).map(|last| value(100, last)))]).chain(marks).collect()
}

fn assert_has(database: &Database, want: &Want, what: &str) {
    for (chunk, want) in want {
        assert_eq!(database.get(row(*chunk)).unwrap(), *want, "{what}: row {chunk}");
        let mut bytes = b"before ".to_vec();
        assert_eq!(database.append(row(*chunk), &mut bytes).unwrap(), want.is_some(), "{what}: row {chunk}");
        assert_eq!(bytes, [b"before ", want.as_deref().unwrap_or_default()].concat(), "{what}: row {chunk}");
    }
}

fn journals(dir: &Path) -> Vec<(u64, std::path::PathBuf)> {
    super::super::journal::list(&RealDisk, &dir.join("db")).unwrap()
}

/// A copy as another process would find it: nothing is closed or flushed for that.
fn copy_of(dir: &Path) -> TempDir {
    let copy = folder();
    copy_tree(dir, copy.path());
    copy
}

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => copy_tree(&entry.path(), &to.join(entry.file_name())),
            false => drop(std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

fn assert_survived(crash: &Crash, want: &Want, what: &str) {
    let cuts = (0..4).map(|seed| (format!("{what}, power cut {seed}"), crash.power_cut(seed, Path::new("db"))));
    for (what, image) in cuts.chain([(format!("{what}, kill -9"), crash.kill.clone())]) {
        let dir = folder();
        restore(&image, dir.path()).unwrap();
        assert_has(&open_rows(dir.path(), Arc::new(RealDisk)), want, &what);
    }
}

#[test]
fn all_that_was_flushed_is_in_the_files_at_any_moment() {
    let dir = folder();
    let database = open_rows(dir.path(), Arc::new(RealDisk));
    for round in 0..12 {
        write_round(&database, round);
        database.flush().unwrap();
        let copy = copy_of(dir.path());
        let copied = open_rows(copy.path(), Arc::new(RealDisk));
        assert_has(&copied, &after(round + 1), &format!("round {round}"));
        // What was found in journals is in sled now, and needs them no more.
        assert_eq!(journals(copy.path()).len(), 1);
        if round % 4 == 2 {
            database.checkpoint().unwrap();
            assert_has(&database, &after(round + 1), "after a checkpoint");
        }
    }
}

#[test]
fn a_journal_counts_up_to_where_it_is_cut_or_changed() {
    let dir = folder();
    let database = open_rows(dir.path(), Arc::new(RealDisk));
    let path = journals(dir.path()).remove(0).1;
    let length = || usize::try_from(std::fs::metadata(&path).unwrap().len()).unwrap();
    let mut ends = vec![length()];
    for round in 0..5 {
        write_round(&database, round);
        database.flush().unwrap();
        ends.push(length());
    }
    let bytes = std::fs::read(&path).unwrap();
    let name = path.strip_prefix(dir.path()).unwrap();
    let assert_rounds = |journal: &[u8], rounds: usize, what: &str| {
        let copy = copy_of(dir.path());
        std::fs::write(copy.path().join(name), journal).unwrap();
        let database = open_rows(copy.path(), Arc::new(RealDisk));
        assert_has(&database, &after(u32::try_from(rounds).unwrap()), what);
        // And it goes on: what comes now is not put behind the damage.
        write_round(&database, 7);
        database.flush().unwrap();
        let again = copy_of(copy.path());
        assert_eq!(open_rows(again.path(), Arc::new(RealDisk)).get(row(7)).unwrap(), Some(value(7, 7)), "{what}");
    };
    for (rounds, end) in ends.iter().enumerate() {
        assert_rounds(&bytes[..*end], rounds, "cut behind a record");
        assert_rounds(&bytes[..end - 1], rounds.saturating_sub(1), "cut within a record");
        let mut flipped = bytes.clone();
        flipped[end - 1] ^= 4;
        assert_rounds(&flipped, rounds.saturating_sub(1), "changed");
    }
}

#[test]
fn a_sync_that_failed_is_made_up_for_by_a_checkpoint() {
    let dir = folder();
    let disk = SimDisk::new(dir.path());
    let database = open_rows(dir.path(), Arc::new(disk.clone()));
    write_round(&database, 0);
    database.flush().unwrap();
    disk.arm(Trouble::FailAt(0, EIO)).unwrap();
    assert_eq!(database.sync().unwrap_err().raw_os_error(), Some(EIO));
    // The kernel has told once, and dropped what it could not write. It takes the rest for written.
    let (number, path) = journals(dir.path()).remove(0);
    let length = std::fs::metadata(&path).unwrap().len();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&[0; 100], length - 100).unwrap();
    database.sync().unwrap();
    assert_survived(&disk.crash_now().unwrap(), &after(1), "after the second sync");
    assert!(journals(dir.path()).iter().all(|(found, _)| *found > number), "the journal that lost bytes is gone");
}

#[test]
fn a_write_that_failed_is_made_up_for_by_the_next_flush() {
    let dir = folder();
    let disk = SimDisk::new(dir.path());
    let database = open_rows(dir.path(), Arc::new(disk.clone()));
    write_round(&database, 0);
    disk.arm(Trouble::FailAt(0, ENOSPC)).unwrap();
    assert_eq!(database.flush().unwrap_err().raw_os_error(), Some(ENOSPC));
    // Whoever flushes next, perhaps only this, has all that was written before.
    write_round(&database, 1);
    database.flush().unwrap();
    database.sync().unwrap();
    assert_survived(&disk.crash_now().unwrap(), &after(2), "after the next flush");
}

/// A checkpoint of rows of which sled has older ones; every step of it is one of the disk.
fn checkpoint_with(trouble: Trouble) -> (TempDir, SimDisk, Database, std::io::Result<()>) {
    let dir = folder();
    let disk = SimDisk::new(dir.path());
    let database = open_rows(dir.path(), Arc::new(disk.clone()));
    for round in 0..2 {
        write_round(&database, round);
    }
    database.flush().unwrap();
    database.checkpoint().unwrap();
    write_round(&database, 2);
    database.flush().unwrap();
    disk.arm(trouble).unwrap();
    let outcome = database.checkpoint();
    (dir, disk, database, outcome)
}

#[test]
fn a_checkpoint_that_fails_half_way_loses_nothing_and_is_tried_again() {
    let (_dir, disk, database, outcome) = checkpoint_with(Trouble::None);
    outcome.unwrap();
    assert_has(&database, &after(3), "no trouble");
    let steps = disk.steps();
    assert!(steps > 6, "a journal is made, the other synced, then sled's files: {steps}");
    for step in 0..steps {
        let (dir, disk, database, outcome) = checkpoint_with(Trouble::FailAt(step, EIO));
        let what = format!("step {step} failed");
        assert_eq!(outcome.unwrap_err().raw_os_error(), Some(EIO), "{what}");
        assert_has(&database, &after(3), &what);
        write_round(&database, 3);
        database.flush().unwrap();
        assert_has(&database, &after(4), &what);
        let copy = copy_of(dir.path());
        assert_has(&open_rows(copy.path(), Arc::new(RealDisk)), &after(4), &format!("{what}, killed"));
        database.sync().unwrap();
        // The rows of both tables, as one: this is a checkpoint too.
        let rows: Vec<_> = database.scan(schema::Keys::inline(1)).map(|row| row.unwrap().0).collect();
        assert_eq!(rows, [0, 1, 2, 3, 100, 203].map(|chunk| Some(row(chunk))), "{what}");
        write_round(&database, 4);
        database.flush().unwrap();
        database.checkpoint().unwrap();
        assert_eq!(journals(dir.path()).len(), 1, "{what}");
        assert_has(&database, &after(5), &what);
        assert_survived(&disk.crash_now().unwrap(), &after(5), &what);
    }
}

/// After how many rounds all rows were as they are now; none: they never were so together.
fn moment(database: &Database) -> Option<u32> {
    let is_after =
        |rounds: &u32| after(*rounds).into_iter().all(|(chunk, want)| database.get(row(chunk)).unwrap() == want);
    (0..20).find(is_after)
}

#[test]
fn a_crash_at_any_step_leaves_one_moment_and_none_before_what_was_flushed_or_synced() {
    for half in 0.. {
        let dir = folder();
        let disk = SimDisk::new(dir.path());
        let database = open_rows(dir.path(), Arc::new(disk.clone()));
        write_round(&database, 0);
        database.flush().unwrap();
        database.checkpoint().unwrap();
        disk.arm(Trouble::CrashAt(half)).unwrap();
        let (mut flushed, mut synced) = (1, 1);
        // Only what returned before the crash was promised to anybody.
        let promised = |outcome: std::io::Result<()>| outcome.is_ok() && disk.crash().is_none();
        for round in 1..8 {
            write_round(&database, round);
            if promised(database.flush()) {
                flushed = round + 1;
            }
            let outcome = match round {
                2 => database.sync(),
                4 | 6 => database.checkpoint(),
                _ => continue,
            };
            if promised(outcome) {
                synced = flushed;
            }
        }
        let Some(crash) = disk.crash() else {
            assert_eq!(half, 2 * disk.steps(), "no step is left out");
            break;
        };
        drop(database);
        let cuts = (0..6).map(|seed| (crash.power_cut(seed, Path::new("db")), synced));
        for (image, least) in cuts.chain([(crash.kill.clone(), flushed)]) {
            let dir = folder();
            restore(&image, dir.path()).unwrap();
            let found = moment(&open_rows(dir.path(), Arc::new(RealDisk)));
            assert!(found.is_some_and(|found| found >= least), "half-step {half}: {found:?}, not {least} or later");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_without_journals_is_taken_over() {
    let dir = folder();
    let store = open(dir.path()).await;
    let bytes = conformance::sample(1, 20_000);
    let segment = put(&store, &bytes, AckLevel::Fsync).await.unwrap();
    store.core.database.checkpoint().unwrap();
    let peer = store.peer_id();
    store.close().await;
    // As a program left it that knew of no journals.
    journals(dir.path()).into_iter().for_each(|(_, path)| std::fs::remove_file(path).unwrap());
    let path = dir.path().join("VERSION");
    std::fs::write(&path, format!("swarm-seeder-store 1\npeer {peer}\n")).unwrap();
    let store = open(dir.path()).await;
    assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("swarm-seeder-store 2\npeer {peer}\n"));
    assert!(store.read(segment.id, segment.all()).await.unwrap() == bytes);
    assert_sound(&store).await;
}

#[test]
fn what_is_in_memory_goes_to_sled_when_nobody_writes_or_when_it_is_much() {
    const MIB: usize = 1024 * 1024;
    let dir = folder();
    let database = open_rows(dir.path(), Arc::new(RealDisk));
    let mut number = 0;
    let mut write = |mib: usize| {
        for _ in 0..mib {
            number += 1;
            database.put(Row::Chunk { number, chunk: 0 }, &vec![7; MIB]);
        }
        database.flush().unwrap();
    };
    assert!(!database.wants_checkpoint(), "there is nothing");
    write(1);
    assert_eq!([1, 2].map(|_| database.wants_checkpoint()), [false; 2], "it is little, and new");
    write(20);
    assert_eq!([1, 2].map(|_| database.wants_checkpoint()), [false, true], "somebody wrote, and then nobody");
    write(20);
    assert!(!database.wants_checkpoint() && !database.is_crowded());
    write(40);
    assert!(database.wants_checkpoint() && database.is_crowded(), "whoever writes");
}
