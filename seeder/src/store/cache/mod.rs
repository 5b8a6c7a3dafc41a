//! The mount's cache: what it has read of the swarm, one sparse file for each version of a file.
//!
//! Not a replica: it is bounded, evicts the version used longest ago, and may vanish at any time. Still it
//! survives restarts, is served to peers chunk by chunk while incomplete, and is usable with no tracker,
//! since each version's manifest lies beside it.
//!
//! Invariants: no byte leaves it that this process did not verify against its chunk's tree, and the tree
//! against the segment's id; a bit is on disk only after its chunk was synced; used bytes stay within the
//! limit, whatever is asked of it.

mod bitmap;
mod disk;
mod entry;
mod file;
mod flush;
mod layout;
mod serve;
mod space;
mod store;

pub use entry::MissingRun;
pub use file::CacheFile;
pub use store::{CacheConfig, CacheStore};

#[cfg(test)]
mod tests;
