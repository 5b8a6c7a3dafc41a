//! sqlite: one writer, killed in the middle; the database stays whole.

use std::path::Path;
use std::time::Duration;

use crate::harness::rounds;
use crate::listed::listed;
use crate::place::Place;
use crate::program::{Ended, Program, program};

fn sqlite(database: &Path, script: &str) -> Program {
    program("sqlite3").args(&["-batch", "-bail"]).arg(database).input(script.as_bytes())
}

fn ask(database: &Path, script: &str) -> String {
    sqlite(database, script).ok().text().trim().to_owned()
}

/// Both sides of each account's book always sum to nothing.
const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS book (id INTEGER PRIMARY KEY, account INTEGER, amount INTEGER, \
     note BLOB); CREATE INDEX IF NOT EXISTS by_account ON book (account);";

fn transaction(index: usize) -> String {
    let account = index % 97;
    format!(
        "BEGIN IMMEDIATE; INSERT INTO book (account, amount, note) VALUES ({account}, {index}, randomblob(700)); \
         INSERT INTO book (account, amount, note) VALUES ({account}, -{index}, randomblob(3000)); \
         UPDATE book SET note = randomblob(900) WHERE id = {}; COMMIT;\n",
        index / 2
    )
}

#[track_caller]
fn assert_whole(database: &Path) {
    assert_eq!(ask(database, "PRAGMA integrity_check;"), "ok");
    assert_eq!(
        ask(database, "SELECT count(*) FROM (SELECT sum(amount) AS s FROM book GROUP BY account) WHERE s;"),
        "0"
    );
}

/// Write, read, kill the writer some times, and look after each.
fn work(place: &mut Place, mode: &str, transactions: usize) -> Result<(), String> {
    let database = place.path(&format!("{mode}.db"));
    let started = sqlite(&database, &format!("PRAGMA journal_mode = {mode};\n{SCHEMA}")).run();
    if !started.status.success() || started.text().trim() != mode {
        return Err(started.says());
    }
    let script: String = (1..=transactions).map(transaction).collect();
    let written = sqlite(&database, &script).run();
    if !written.status.success() {
        return Err(written.says());
    }
    eprintln!("sqlite, journal_mode = {mode}: {transactions} transactions took {:?}", written.took);
    assert_eq!(ask(&database, "SELECT count(*) FROM book;"), (2 * transactions).to_string());
    assert_whole(&database);

    let endless: String = (1..=50_000).map(transaction).collect();
    let mut killed = 0;
    for round in 0..rounds(5, 40) {
        let time = Duration::from_millis(50 + 37 * round as u64 % 400);
        killed += usize::from(sqlite(&database, &endless).killed_after(time));
        assert_whole(&database);
    }
    assert!(killed > 0, "the writer was never killed in the middle");
    ask(&database, "DELETE FROM book WHERE id % 3 = 0 AND account IS NULL; VACUUM;");
    place.remount();
    assert_whole(&database);
    Ok(())
}

#[test]
fn a_database_with_a_rollback_journal_stays_whole() {
    let mut place = Place::one();
    work(&mut place, "delete", rounds(150, 2_000)).unwrap_or_else(|error| panic!("{error}"));
    place.end();
}

#[test]
fn a_database_with_a_write_ahead_log_stays_whole_or_is_listed() {
    let mut place = Place::one();
    let listed = place.is_mount() && listed("Programs").contains_key("sqlite journal_mode=wal");
    match (work(&mut place, "wal", rounds(150, 2_000)), listed) {
        (Ok(()), false) | (Err(_), true) => {}
        (Ok(()), true) => panic!("it works: docs/SEMANTICS.md must not list «sqlite journal_mode=wal»"),
        (Err(error), false) => panic!("{error}"),
    }
    place.end();
}
