//! The person's side of Swarmfs: the mount, and the tool that puts, gets and shows.
//!
//! A read goes `fuse` → `fs` → `read` → the cache or the swarm. A write goes
//! `fuse` → `fs` → `write`, and from there to the seeders when the file is closed. Only `fuse` knows the kernel's protocol.

pub mod cli;
pub mod errno;
pub mod fs;
pub mod fuse;
pub mod mount;
pub mod read;
pub mod up;
pub mod write;
