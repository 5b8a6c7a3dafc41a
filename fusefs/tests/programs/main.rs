//! What programs do to an ordinary folder, done to the mount: public suites, and tools that people use every day.
//!
//! Each test starts a swarm of real processes and works inside its mount. With `SWARM_TEST_FOLDER=/some/folder`
//! it works in that plain folder instead: whoever doubts a test runs it on a disk first. `make test` runs the
//! short forms, `make soak` (`SWARM_SOAK=1`) the full ones. Suites come from the package registries when a test
//! first needs them (`tools.rs`); what the mount is allowed to fail is read from `docs/SEMANTICS.md` (`listed.rs`).

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says by panicking what is wrong")]
#![allow(missing_docs, reason = "a test's name is its sentence")]
#![allow(dead_code, unused_imports, reason = "the harness is shared with the cluster tests")]

#[path = "../cluster/harness/mod.rs"]
mod harness;

mod cargo_build;
mod close_to_open;
mod fio;
mod fsx;
mod git;
mod listed;
mod model;
mod place;
mod posix;
mod program;
mod rsync;
mod sqlite;
mod stress;
mod tar;
mod tools;
mod trees;
mod worker;
