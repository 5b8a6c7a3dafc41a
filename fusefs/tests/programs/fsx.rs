//! fsx: random operations on one file, every read compared with what was written.

use std::fs::File;
use std::time::Duration;

use crate::harness::rounds;
use crate::place::{Place, scratch};
use crate::program::program;
use crate::tools::installed;

const VERSION: &str = "0.3.2";

/// Operations of every kind, those that reach the swarm now and then.
const WEIGHTS: &str = "
[weights]
read = 10
write = 10
mapread = 10
mapwrite = 10
truncate = 5
punch_hole = 5
copy_file_range = 2
posix_fallocate = 2
sendfile = 2
posix_fadvise = 1
close_open = 1
fsync = 1
fdatasync = 1
invalidate = 1
";

/// A file within one segment, and one of several with operations that cross from one to the next. Not of no bytes:
/// posix_fallocate(3) refuses those on every file system, and the suite takes that for a failure.
const SHAPES: [(&str, &str); 2] = [
    ("small", "flen = 262144\n[opsize]\nmin = 1\nmax = 65536\n"),
    ("large", "flen = 13000000\n[opsize]\nmin = 1\nmax = 900000\n"),
];

const SEEDS: [u64; 3] = [1, 20, 300];

#[test]
fn random_operations_on_a_file_make_no_difference() {
    let place = Place::one();
    for (shape, config) in SHAPES {
        // The larger file moves some forty times the bytes.
        let operations = if shape == "small" { rounds(600, 100_000) } else { rounds(100, 10_000) };
        for seed in SEEDS {
            exercise(&place, (shape, config), seed, operations);
        }
    }
    place.end();
}

#[test]
fn random_operations_make_no_difference_on_a_file_that_the_kernel_writes() {
    let place = Place::passing(1);
    for ((shape, config), operations) in SHAPES.into_iter().zip([rounds(400, 10_000), rounds(60, 1_000)]) {
        // The suite reads as well as it writes, and so joins a handle that only writes.
        let held = File::create(place.path(&format!("{shape}-1"))).unwrap();
        exercise(&place, (shape, config), 1, operations);
        drop(held);
    }
    place.end();
}

fn exercise(place: &Place, (shape, config): (&str, &str), seed: u64, operations: usize) {
    let suite = installed("fsx", VERSION);
    let scratch = scratch();
    let path = scratch.path().join(format!("{shape}.toml"));
    std::fs::write(&path, format!("{config}{WEIGHTS}")).unwrap();
    let file = place.path(&format!("{shape}-{seed}"));
    let run = program(&suite)
        .args(&["-N", &operations.to_string(), "-S", &seed.to_string(), "-f"])
        .arg(&path)
        .arg("-P")
        .arg(scratch.path())
        .arg(&file)
        .within(Duration::from_secs(rounds(300, 3_600) as u64))
        .run();
    let whole = run.status.success() && run.text().contains("A-OK");
    assert!(whole, "fsx {shape}, seed {seed}, of {operations} operations: {}", run.says());
    eprintln!("fsx {shape}, seed {seed}: {operations} operations took {:?}", run.took);
}
