//! A mounted swarm as programs see it: real /dev/fuse, a tracker and seeders in this process.
//!
//! One file a family of calls. What needs a cluster of processes is in `tests/cluster`; what needs a swarm
//! that misbehaves on command is beside `src/fuse.rs`.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test that meets the unexpected fails")]

mod attributes;
mod coherence;
mod command;
mod lifecycle;
mod names;
mod passed_writes;
mod reading;
mod stores;
mod swarm;
mod tools;
mod two_writers;
mod writing;
