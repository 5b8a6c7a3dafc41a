//! The person's tool as a process, against a swarm that runs in the test's own process.

mod copying;
mod failing;
mod harness;
mod showing;
mod staying;
