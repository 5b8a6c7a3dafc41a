//! The whole swarm as real processes: trackers, seeders and mounts, killed, starved and lied to.
//!
//! `make test` runs these in their short form; `make soak` (`SWARM_SOAK=1`) runs the full rounds and,
//! as root, the shaped networks. Needs /dev/fuse.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says by panicking what is wrong")]
#![allow(missing_docs, reason = "a test's name is its sentence")]

mod cache;
mod full_disks;
mod harness;
mod killed_mounts;
mod killed_seeders;
mod killed_tracker;
mod killed_writers;
mod lacking;
mod liars;
mod local_reads;
mod many_sources;
mod names;
mod real_tree;
mod shaped;
mod tracker_away;
