//! Fakes for tests: peers that lie, stall and vanish, and a tracker that knows what it is told.
//!
//! The peers are real gRPC servers on loopback, each on a runtime of its own, so that [`FakePeer::kill`]
//! is as sudden as `kill -9`. Never part of a program.

mod fake_peer;
mod fake_tracker;
mod reply;

pub use fake_peer::{Conduct, FakePeer, Served};
pub use fake_tracker::FakeTracker;

/// Bytes that look like nothing and are the same for the same seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}
