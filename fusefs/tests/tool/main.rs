//! The person's tool as a process, against a swarm that runs in the test's own process.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod copying;
mod failing;
mod harness;
mod showing;
mod staying;
