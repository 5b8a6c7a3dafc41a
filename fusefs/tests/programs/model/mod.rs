//! Random operations at two mounts against a small model of what is promised.
//!
//! `operation.rs` says what can be done, `reference.rs` what must come of it, `generate.rs` what is tried next,
//! `shrink.rs` how a failing history gets short: all pure. `apply.rs` does it to real folders and compares.
//!
//! Within a mount the promise is POSIX. Across mounts (DESIGN, "Promises"): an open sees what was closed or synced
//! before, at once; names and attributes show within a second; a handle reads one version, and once its mount has
//! opened a newer one either of the two. Two mounts with unsaved writes to one file are not generated: one of them loses, as is documented.

mod apply;
mod generate;
mod operation;
mod reference;
mod shrink;
mod tests;

use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use rand::SeedableRng;
use rand::rngs::SmallRng;

use self::apply::{Pages, Runner};
use self::operation::Operation;
use self::reference::{Reference, Views};
use crate::harness::rounds;
use crate::place::Place;

const SEEDS: [u64; 3] = [1, 2, 3];

/// Run a history in a folder of its own; how it failed, if it did.
fn run(place: &Place, pages: Pages, history: &[Operation]) -> Result<(), String> {
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    let name = format!("run-{}", RUNS.fetch_add(1, Ordering::Relaxed));
    let mut runner = Runner::new(place, &name, pages);
    let outcome = history.iter().enumerate().try_for_each(|(step, operation)| {
        runner.step(operation).map_err(|difference| format!("step {step}, {operation:?}: {difference}"))
    });
    drop(runner);
    std::fs::remove_dir_all(place.path(&name)).ok();
    outcome
}

fn views(place: &Place) -> Views {
    if place.is_mount() { Views::Mounts } else { Views::OneFolder }
}

/// All operations of a seed. They depend on the model alone, so a failing history can be had again.
fn history(seed: u64, steps: usize, views: Views) -> Vec<Operation> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut reference = Reference::new(views);
    let mut history = Vec::with_capacity(steps);
    while history.len() < steps {
        let operation = generate::next(&mut rng, &reference);
        if reference.apply(&operation).is_some() {
            history.push(operation);
        }
    }
    history
}

/// Set for a process that does one of these tests and nothing else.
const ALONE: &str = "SWARM_TEST_MODEL_ALONE";

#[test]
fn two_mounts_do_what_the_model_says() {
    alone("two_mounts_do_what_the_model_says", || {
        compare(Place::two(), Pages::Kept, &SEEDS, rounds(1_500, 10_000));
    });
}

#[test]
fn two_mounts_of_which_the_kernel_keeps_no_pages_do_what_the_model_says() {
    alone("two_mounts_of_which_the_kernel_keeps_no_pages_do_what_the_model_says", || {
        compare(Place::two(), Pages::Dropped, &SEEDS, rounds(1_000, 10_000));
    });
}

#[test]
fn two_mounts_in_which_the_kernel_writes_do_what_the_model_says() {
    alone("two_mounts_in_which_the_kernel_writes_do_what_the_model_says", || {
        compare(Place::passing(2), Pages::Kept, &SEEDS[..1], rounds(600, 10_000));
    });
}

/// Do a test in a process of its own. In this one other tests start programs; each start closes once more what is open
/// here, and so saves what the model says is unsaved.
fn alone(test: &str, body: impl FnOnce()) {
    if std::env::var_os(ALONE).is_some() {
        return body();
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    let ran = command.args([&format!("model::{test}"), "--exact", "--nocapture"]).env(ALONE, "1").output().unwrap();
    print!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "the process of {test} ended with {}; it says why above", ran.status);
}

#[track_caller]
fn compare(place: Place, pages: Pages, seeds: &[u64], steps: usize) {
    for seed in seeds {
        let began = std::time::Instant::now();
        let history = history(*seed, steps, views(&place));
        if let Err(difference) = run(&place, pages, &history) {
            eprintln!("seed {seed}: {difference}; looking for a shorter history");
            let (shortest, difference) =
                shrink::shortest(history, difference, |history| run(&place, pages, history).err());
            let lines: Vec<String> = shortest.iter().map(|operation| format!("  {operation:?}")).collect();
            panic!("seed {seed}: {difference}\nthe shortest history that fails:\n{}", lines.join("\n"));
        }
        eprintln!("seed {seed}: {steps} steps took {:?}", began.elapsed());
    }
    place.end();
}
