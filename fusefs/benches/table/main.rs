//! The speed table: `make bench` measures it and writes `docs/BENCHMARKS.md`.
//!
//! Everything runs as real processes on this machine, and every row stands beside its references,
//! measured in turn in the same run: these machines are noisy, so ratios are what counts.
//! `BENCH_ONLY=word` runs the rows whose names contain the word and writes no file; `BENCH_ROUNDS=n`
//! sets the rounds; `BENCH_SHRINK=n` divides the bytes and files of the rows that write by n, to see
//! that they run, and writes no file either.

#![allow(clippy::expect_used, reason = "a benchmark that cannot run says so by panicking")]
#![allow(missing_docs, reason = "not a library")]
#![allow(dead_code, unused_imports, reason = "the harness is shared with the cluster tests")]

mod contest;
mod costs;
mod git;
#[path = "../../tests/cluster/harness/mod.rs"]
#[allow(clippy::unwrap_used, reason = "it is the harness of tests")]
mod harness;
mod many_files;
mod measure;
mod memory_fs;
mod metadata;
mod mounts;
mod publishing;
mod reading;
mod report;
mod sshfs;
mod tracker;
mod writing;

use report::Report;

fn main() {
    // `cargo bench` passes --bench; there is nothing else to say.
    assert!(rustix::process::geteuid().is_root(), "make bench drops caches and mounts: run it as root");
    let mut report = Report::new();
    tracker::run(&mut report);
    reading::run(&mut report);
    publishing::run(&mut report);
    writing::run(&mut report);
    many_files::run(&mut report);
    metadata::run(&mut report);
    git::run(&mut report);
    report.finish();
}
