//! Where the catalog is kept: one small key-value trait, and the engines behind it.
//!
//! A store is a set of keys with values, and a revision that grows by one with every commit. It knows
//! nothing of names or manifests: what the keys mean is written in [`schema`], all semantics above it.
//!
//! Invariant: a commit is wholly there or not at all, also after a kill -9 at any moment; once
//! [`Store::commit`] returned, it survives that kill.

#[cfg(test)]
mod conformance;
pub mod history;
mod memory;
pub mod schema;
mod sled;

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use swarm_proto::Revision;
use tokio_util::sync::CancellationToken;

use history::Follower;

pub use self::memory::MemoryStore;
pub use self::sled::SledStore;

/// Largest value that a store takes; larger things are cut by the caller.
///
/// Source: sled keeps a leaf of 16 values; above a quarter of its 2 MiB segment a leaf becomes a blob
/// file that its cache limit does not count.
pub const MAX_VALUE_BYTES: usize = 16 * 1024;

/// Why the store did not do it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Another process has it open.
    #[error("{path} is in use by another process: stop that one, or give this one another folder", path = .0.display())]
    Locked(PathBuf),
    /// The folder holds something else.
    #[error("{path} holds files but no catalog (no VERSION file): give an empty folder", path = .0.display())]
    Foreign(PathBuf),
    /// Written by a newer program.
    #[error("{path} was written in format {found:?}, this program knows {known:?}: update it", path = .path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: String,
        /// What this program writes.
        known: &'static str,
    },
    /// What was read cannot be right.
    #[error("the catalog's store is damaged: {0}")]
    Corrupt(String),
    /// No room on its disk; nothing was changed.
    #[error("the disk of the catalog is full")]
    Full,
    /// It cannot answer now. Whether a commit was done is unknown.
    #[error("the catalog's store fails: {action}: {source}")]
    Io {
        /// What it did.
        action: &'static str,
        /// Why not.
        source: Arc<std::io::Error>,
    },
    /// The events after that revision are no longer kept: read all again.
    #[error("the changes after revision {0} are no longer kept")]
    TooOld(Revision),
    /// It is being closed.
    #[error("the catalog is being closed")]
    Closed,
}

impl StoreError {
    /// An I/O error with what was being done.
    pub fn io(action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |error| match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Self::Full,
            _ => Self::Io { action, source: Arc::new(error) },
        }
    }
}

/// A value and the revision at which it was last written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    /// The value.
    pub value: Bytes,
    /// Revision of the commit that wrote it.
    pub revision: Revision,
}

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: Bytes,
    /// Its value and when that was written.
    pub versioned: Versioned,
}

/// Some of the keys of a prefix, in the order of their bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// The keys with their values.
    pub entries: Vec<KeyValue>,
    /// There are more after the last one.
    pub more: bool,
}

/// What must hold for a commit to be done.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Condition {
    /// The key does not exist.
    Absent(Bytes),
    /// The key exists.
    Present(Bytes),
    /// The key exists, and was last written at that revision or before it.
    UnchangedSince(Bytes, Revision),
}

impl Condition {
    /// The key it speaks of.
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Absent(key) | Self::Present(key) | Self::UnchangedSince(key, _) => key,
        }
    }

    /// Whether it holds for what the store has under its key: the revision of the last write, if any.
    pub fn holds(&self, found: Option<Revision>) -> bool {
        match (self, found) {
            (Self::Absent(_), found) => found.is_none(),
            (Self::Present(_), found) => found.is_some(),
            (Self::UnchangedSince(_, since), Some(written)) => written <= *since,
            (Self::UnchangedSince(..), None) => false,
        }
    }
}

/// One key that a commit writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// The key.
    pub key: Bytes,
    /// Its new value. None: it is removed.
    pub value: Option<Bytes>,
}

/// Writes that are done together, or not at all.
///
/// Shape: a key is written at most once; values are at most [`MAX_VALUE_BYTES`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Commit {
    /// All must hold.
    pub conditions: Vec<Condition>,
    /// What is written.
    pub writes: Vec<Write>,
}

/// What became of a commit that the store answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Done, at this revision; survives a kill -9.
    Committed(Revision),
    /// A condition did not hold: nothing was written.
    Conflict,
}

/// The writes of one commit, as watchers get them.
pub type Event = Vec<Write>;

/// The right to give orders.
#[derive(Debug, Clone)]
pub struct Leadership {
    /// Grows with every new leader, over all restarts.
    pub epoch: u64,
    /// Cancelled once it is lost. On a store with one process that is never.
    pub lost: CancellationToken,
}

/// A place for keys and values.
///
/// Not a snapshot store: a scan may see a commit that happens while it runs. Whoever needs one state
/// takes [`Store::revision`], scans, then applies the events after that revision: writes are absolute,
/// so the result is exact once the events seen reach the newest revision scanned.
pub trait Store: Send + Sync + 'static {
    /// Revision of the newest commit.
    fn revision(&self) -> BoxFuture<'_, Result<Revision, StoreError>>;

    /// One value.
    fn get(&self, key: Bytes) -> BoxFuture<'_, Result<Option<Versioned>, StoreError>>;

    /// Keys that begin with `prefix`, after the key `after` (empty: from the first), at most `limit`.
    fn scan(&self, prefix: Bytes, after: Bytes, limit: usize) -> BoxFuture<'_, Result<Page, StoreError>>;

    /// Write all or nothing. On return it survives a kill -9 of this process.
    ///
    /// Errors: after [`StoreError::Io`] it is unknown whether it was done; after any other it was not.
    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Outcome, StoreError>>;

    /// The commits after a revision, in order, none left out; [`StoreError::TooOld`] comes from the
    /// follower if they are no longer kept.
    fn watch(&self, after: Revision) -> Follower<Event>;

    /// Wait until this process leads.
    fn lead(&self) -> BoxFuture<'_, Result<Leadership, StoreError>>;

    /// Whether other processes may change it too.
    fn is_shared(&self) -> bool;

    /// Return once everything committed before survives a power cut.
    fn sync(&self) -> BoxFuture<'_, Result<(), StoreError>>;
}

/// Read a whole prefix, page by page.
pub async fn scan_all(
    store: &dyn Store,
    prefix: Bytes,
    mut each: impl FnMut(KeyValue) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut after = Bytes::new();
    loop {
        let page = store.scan(prefix.clone(), after, SCAN_PAGE).await?;
        after = page.entries.last().map(|entry| entry.key.clone()).unwrap_or_default();
        for entry in page.entries {
            each(entry)?;
        }
        if !page.more {
            return Ok(());
        }
    }
}

/// Keys a page of a scan: small enough that a page of the largest values stays below 16 MiB.
pub const SCAN_PAGE: usize = 1024;

/// Bytes of newest events that an engine keeps for its watchers.
const EVENT_BUDGET: usize = 32 * 1024 * 1024;

/// What an event costs of [`EVENT_BUDGET`].
fn event_weight(writes: &[Write]) -> usize {
    const EACH: usize = 128;
    EACH + writes.iter().map(|write| EACH + write.key.len() + write.value.as_ref().map_or(0, Bytes::len)).sum::<usize>()
}
