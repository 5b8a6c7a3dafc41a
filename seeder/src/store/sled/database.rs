//! The door to sled: the only file that names it.
//!
//! Not the store: it knows rows, not segments. Invariant: what [`Database::flush`] returned for survives
//! kill -9, and what [`Database::sync`] then returned for a power cut (sled's own flush is `pwrite` and
//! `sync_file_range`, traced; so its files are synced here by ourselves).

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::sled::{Batch, Db, Mode};
use bytes::Bytes;

use super::schema::{Keys, Row};
use crate::store::disk::{Access, Disk};

/// A leaf holds up to 16 values, here of 16 KiB; one that exceeds a quarter of this becomes a blob file,
/// whose bytes the cache limit does not count.
const SLED_SEGMENT_BYTES: usize = 2 * 1024 * 1024;
/// How often sled rolls and cleans its log.
const SLED_MAINTENANCE_MS: u64 = 500;
/// How long to wait for a database that this process has just closed: its file stays locked until sled's
/// last thread has let go of its garbage, which took seconds on a machine with ten busy processes a core.
const CLOSING_PATIENCE: Duration = Duration::from_secs(30);

/// Why the database did not open.
#[derive(Debug)]
pub(super) enum OpenError {
    /// Its files are damaged; what they held is lost.
    Damaged(String),
    /// Anything else.
    Io(io::Error),
}

/// Rows to put, or to remove where the value is `None`.
pub(super) type Writes = Vec<(Row, Option<Vec<u8>>)>;

/// An open database.
pub(super) struct Database {
    db: Db,
    folder: PathBuf,
    disk: Arc<dyn Disk>,
}

impl Database {
    /// Open, or create.
    pub(super) fn open(folder: &Path, cache_bytes: u64, disk: Arc<dyn Disk>) -> Result<Self, OpenError> {
        let config = ::sled::Config::new()
            .path(folder)
            .cache_capacity(cache_bytes)
            .flush_every_ms(Some(SLED_MAINTENANCE_MS))
            .mode(Mode::LowSpace)
            .segment_size(SLED_SEGMENT_BYTES)
            .use_compression(false);
        let give_up = Instant::now() + CLOSING_PATIENCE;
        loop {
            let error = match catch_unwind(AssertUnwindSafe(|| config.open())) {
                Ok(Ok(db)) => return Ok(Self { db, folder: folder.to_owned(), disk }),
                Ok(Err(error)) => error,
                Err(_) => return Err(OpenError::Damaged("it panicked while opening".to_owned())),
            };
            match error {
                // Our own lock is held by now: this is an instance of this process on its way out.
                ::sled::Error::Io(error) if is_lock(&error) && Instant::now() < give_up => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                ::sled::Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
                    return Err(OpenError::Damaged(error.to_string()));
                }
                ::sled::Error::Io(error) => return Err(OpenError::Io(error)),
                // Another version's files are not damaged: never set them aside.
                ::sled::Error::Unsupported(why) => return Err(OpenError::Io(io::Error::other(why))),
                other => return Err(OpenError::Damaged(other.to_string())),
            }
        }
    }

    /// The value of a row.
    pub(super) fn get(&self, row: Row) -> io::Result<Option<Vec<u8>>> {
        guard(|| self.db.get(row.key())).map(|value| value.map(|value| value.to_vec()))
    }

    /// Append the value of a row to `bytes`; whether there is one.
    pub(super) fn append(&self, row: Row, bytes: &mut Vec<u8>) -> io::Result<bool> {
        let value = guard(|| self.db.get(row.key()))?;
        if let Some(value) = &value {
            bytes.extend_from_slice(value);
        }
        Ok(value.is_some())
    }

    /// Put a row that nothing names yet.
    pub(super) fn put(&self, row: Row, value: &[u8]) -> io::Result<()> {
        guard(|| self.db.insert(row.key(), value)).map(drop)
    }

    /// Make all these changes or, after a crash, none.
    pub(super) fn apply(&self, writes: Writes) -> io::Result<()> {
        let mut batch = Batch::default();
        for (row, value) in writes {
            match value {
                Some(value) => batch.insert(row.key(), value),
                None => batch.remove(row.key()),
            }
        }
        guard(|| self.db.apply_batch(batch))
    }

    /// Rows of a range of keys, in order; keys that are no row of ours come as `None`.
    pub(super) fn scan(&self, keys: Keys) -> impl Iterator<Item = io::Result<(Option<Row>, Bytes)>> + '_ {
        let mut rows = self.db.range(keys.start..keys.end);
        let mut failed = false;
        std::iter::from_fn(move || {
            if failed {
                return None;
            }
            match guard(|| rows.next().transpose()) {
                Ok(row) => row.map(|(key, value)| Ok((Row::parse(&key), Bytes::copy_from_slice(&value)))),
                Err(error) => {
                    failed = true;
                    Some(Err(error))
                }
            }
        })
    }

    /// Remove the rows of a range of keys; needs no flush to be right, only to be done.
    pub(super) fn remove(&self, keys: Keys) -> io::Result<()> {
        // Found first, then removed, so that no iterator walks over what changes under it.
        let found: Vec<_> = self.db.range(keys.start..keys.end).keys().collect();
        for key in found {
            let key = guard(|| key)?;
            guard(|| self.db.remove(&key))?;
        }
        Ok(())
    }

    /// Make all that was written survive kill -9 of this process.
    pub(super) fn flush(&self) -> io::Result<()> {
        guard(|| self.db.flush()).map(drop)
    }

    /// Make all that was flushed survive a power cut.
    pub(super) fn sync(&self) -> io::Result<()> {
        for name in ["db", "conf"] {
            self.disk.open(&self.folder.join(name), Access::Read)?.sync()?;
        }
        let blobs = self.folder.join("blobs");
        for entry in self.disk.list(&blobs)? {
            match self.disk.open(&blobs.join(entry.name), Access::Read) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?.sync()?,
            }
        }
        Ok(())
    }

    /// Make the names of its files survive a power cut; needed once after they were created.
    pub(super) fn sync_names(&self) -> io::Result<()> {
        self.sync()?;
        self.disk.sync_folder(&self.folder.join("blobs"))?;
        self.disk.sync_folder(&self.folder)
    }
}

fn is_lock(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.to_string().contains("could not acquire lock")
}

/// sled panics on some damage; bytes from the disk must not end the process.
fn guard<T>(work: impl FnOnce() -> ::sled::Result<T>) -> io::Result<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(io::Error::from),
        Err(_) => Err(io::Error::other("the database panicked")),
    }
}
