//! The sled tree. The only file that names `sled`.
//!
//! Invariant: every value begins with the revision that wrote it (8 bytes, little-endian). All commits up to
//! the one under [`REVISION_KEY`] are here; of newer ones there may be some writes, which their journal
//! repeats.

use std::io;
use std::ops::Bound;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use swarm_proto::Revision;

use super::folder::sync_tree;
use super::table::{Found, Table};
use crate::store::{StoreError, Versioned};

/// Keys that begin with 0 are this engine's own.
const REVISION_KEY: &[u8] = b"\0revision";
const EPOCH_KEY: &[u8] = b"\0epoch";
/// Bytes of the revision before every value.
const STAMP_BYTES: usize = 8;
/// See [`crate::store::MAX_VALUE_BYTES`].
const SEGMENT_BYTES: usize = 2 * 1024 * 1024;
const CACHE_BYTES: u64 = 64 * 1024 * 1024;
/// How long to wait for threads of sled that have its files open after the database was dropped.
const CLOSING_PATIENCE: Duration = Duration::from_secs(30);
/// Writes of one batch: sled keeps its log's buffers in memory until a batch is whole.
const BATCH: usize = 1024;

/// See the module.
pub(super) struct Database {
    sled: sled::Db,
    folder: std::path::PathBuf,
}

impl Database {
    pub(super) fn open(folder: &Path) -> Result<Self, StoreError> {
        let folder = folder.join("sled");
        let config = sled::Config::new()
            .path(&folder)
            .mode(sled::Mode::HighThroughput)
            .segment_size(SEGMENT_BYTES)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(None);
        let give_up = Instant::now() + CLOSING_PATIENCE;
        let sled = loop {
            match config.open() {
                // The catalog's own lock is held by now: this is a database of this process on its way out.
                Err(sled::Error::Io(error)) if is_lock(&error) && Instant::now() < give_up => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                other => break other.map_err(|error| from_sled("open sled", error))?,
            }
        };
        Ok(Self { sled, folder })
    }

    /// All commits up to this one are here.
    pub(super) fn revision(&self) -> Result<Revision, StoreError> {
        self.counter(REVISION_KEY).map(Revision)
    }

    pub(super) fn get(&self, key: &[u8]) -> Result<Found, StoreError> {
        let found = self.sled.get(key).map_err(|error| from_sled("read the catalog", error))?;
        found.map(|stamped| unstamp(&stamped)).transpose()
    }

    /// The keys from one on, in order.
    pub(super) fn from<'a>(
        &'a self,
        from: Bound<&[u8]>,
    ) -> impl Iterator<Item = Result<(Bytes, Found), StoreError>> + use<'a> {
        let range = self.sled.range::<&[u8], _>((from, Bound::Unbounded));
        range.map(|found| {
            let (key, stamped) = found.map_err(|error| from_sled("read the catalog", error))?;
            let found = match key.first() {
                Some(0) => None,
                _ => Some(unstamp(&stamped)?),
            };
            Ok((Bytes::copy_from_slice(&key), found))
        })
    }

    /// Take the commits of a table. They survive a power cut when this returns; after an error they may be there
    /// in part.
    pub(super) fn take(&self, table: &Table) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        for (number, (key, revision, value)) in (1..).zip(table.all()) {
            match value {
                Some(value) => batch.insert(&key[..], stamp(revision, value)),
                None => batch.remove(&key[..]),
            }
            if number % BATCH == 0 {
                self.apply(std::mem::take(&mut batch))?;
            }
        }
        // Last: what comes before it is repeated if this is missing.
        self.apply(batch)?;
        let mut last = sled::Batch::default();
        last.insert(REVISION_KEY, &table.newest().0.to_le_bytes());
        self.apply(last)?;
        self.sync()
    }

    fn apply(&self, batch: sled::Batch) -> Result<(), StoreError> {
        self.sled.apply_batch(batch).map_err(|error| from_sled("write the catalog", error))
    }

    /// Make all that was written survive a power cut: sled's own flush does not.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        self.sled.flush().map_err(|error| from_sled("write the catalog", error))?;
        sync_tree(&self.folder).map_err(StoreError::io("sync the catalog's files"))
    }

    /// A number that was never returned before.
    pub(super) fn next_epoch(&self) -> Result<u64, StoreError> {
        let epoch = self.counter(EPOCH_KEY)? + 1;
        let written = self.sled.insert(EPOCH_KEY, &epoch.to_le_bytes()).and_then(|_| self.sled.flush());
        written.map_err(|error| from_sled("write the epoch", error))?;
        Ok(epoch)
    }

    fn counter(&self, key: &[u8]) -> Result<u64, StoreError> {
        match self.sled.get(key).map_err(|error| from_sled("read a counter", error))? {
            None => Ok(0),
            Some(bytes) => match <[u8; 8]>::try_from(&bytes[..]) {
                Ok(bytes) => Ok(u64::from_le_bytes(bytes)),
                Err(_) => Err(StoreError::Corrupt(format!("a counter of {} bytes", bytes.len()))),
            },
        }
    }
}

fn is_lock(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.to_string().contains("could not acquire lock")
}

fn stamp(revision: Revision, value: &[u8]) -> Vec<u8> {
    let mut stamped = Vec::with_capacity(STAMP_BYTES + value.len());
    stamped.extend_from_slice(&revision.0.to_le_bytes());
    stamped.extend_from_slice(value);
    stamped
}

fn unstamp(stamped: &[u8]) -> Result<Versioned, StoreError> {
    let (revision, value) = stamped
        .split_first_chunk::<STAMP_BYTES>()
        .ok_or_else(|| StoreError::Corrupt(format!("a value of {} bytes has no revision", stamped.len())))?;
    Ok(Versioned { value: Bytes::copy_from_slice(value), revision: Revision(u64::from_le_bytes(*revision)) })
}

fn from_sled(action: &'static str, error: sled::Error) -> StoreError {
    match error {
        sled::Error::Io(error) => StoreError::io(action)(error),
        other => StoreError::Corrupt(format!("{action}: {other}")),
    }
}
