//! Real processes in a folder of their own, and what a test asks of them.
//!
//! Everything waits with a deadline and says what it waited for; whatever a test leaves running or
//! mounted is killed and unmounted when it is dropped.

pub(crate) mod data;
pub(crate) mod liar;
pub(crate) mod metrics;
pub(crate) mod process;
pub(crate) mod swarm;

pub(crate) use data::{assert_same_file, assert_same_tree, read_in_steps, write_random};
pub(crate) use swarm::{MountOptions, Swarm};

use std::time::{Duration, Instant};

/// Whether the full rounds are asked for.
pub(crate) fn soak() -> bool {
    std::env::var_os("SWARM_SOAK").is_some_and(|value| value != "0")
}

/// `full` rounds in a soak, else `short`.
pub(crate) fn rounds(short: usize, full: usize) -> usize {
    if soak() { full } else { short }
}

/// Says why and returns true if this is not a soak.
pub(crate) fn only_in_soak(what: &str) -> bool {
    if !soak() {
        eprintln!("skipped: {what} runs in `make soak` only (it measures time, or takes long)");
    }
    !soak()
}

/// Poll until `ready` says so.
#[track_caller]
pub(crate) fn eventually(what: &str, within: Duration, mut ready: impl FnMut() -> bool) {
    let began = Instant::now();
    while !ready() {
        assert!(began.elapsed() < within, "{what}: not within {within:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
