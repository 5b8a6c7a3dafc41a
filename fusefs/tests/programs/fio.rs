//! fio: writers whose every block says what it should be, read back also from the swarm.

use std::time::Duration;

use crate::harness::only_in_soak;
use crate::place::{Place, scratch};
use crate::program::program;

/// Writers of each kind at a time; each has a file of its own.
const JOBS: &str = "4";

/// Name, and what fio is told of how it writes.
const WRITERS: [(&str, &[&str]); 5] = [
    ("sequential", &["--rw=write", "--bs=1m", "--size=256m"]),
    ("sequential-odd", &["--rw=write", "--bs=37k", "--size=62900k"]),
    ("random", &["--rw=randwrite", "--bs=4k", "--size=64m", "--fsync=1024"]),
    ("random-sizes", &["--rw=randwrite", "--bsrange=4k-256k", "--size=64m"]),
    ("random-mmap", &["--rw=randwrite", "--bs=4k", "--size=64m", "--ioengine=mmap"]),
];

#[test]
fn what_four_writers_wrote_is_there() {
    if only_in_soak("fio, 4 jobs of each kind") {
        return;
    }
    let mut place = Place::one();
    for (name, words) in WRITERS {
        let written = fio(&place, name, words, &["--do_verify=1"]);
        place.remount();
        let read = fio(&place, name, words, &["--verify_only"]);
        eprintln!("fio {name}: written and verified in {written:?}, verified after a remount in {read:?}");
        for entry in std::fs::read_dir(place.folder()).unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
        }
    }
    place.end();
}

fn fio(place: &Place, name: &str, words: &[&str], step: &[&str]) -> Duration {
    // fio leaves its state where it runs.
    let scratch = scratch();
    let run = program("fio")
        .args(&["--name", name, "--numjobs", JOBS, "--group_reporting"])
        .args(&["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--randseed=7", "--fallocate=none"])
        .arg(format!("--directory={}", place.folder().display()))
        .args(words)
        .args(step)
        .inside(scratch.path())
        .within(Duration::from_secs(1_800))
        .run();
    assert!(run.status.success() && !run.text().contains("verify: bad"), "{}", run.says());
    run.took
}
