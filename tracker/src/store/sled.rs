//! The embedded store: one sled tree. The only file that names `sled`.
//!
//! sled's `flush` survives a kill -9 but is no fsync, so there are two levels: a commit returns after the
//! flush; [`Store::sync`], and a task at most [`SYNC_EVERY`] later, fsync sled's files.
//!
//! Invariant: every value begins with the revision that wrote it (8 bytes, little-endian), and the
//! revision of the newest commit stands under [`REVISION_KEY`], written by the same batch.
//!
//! ```text
//! DIR/LOCK      held by the process that has it open
//! DIR/VERSION   "swarm-catalog 1\n"
//! DIR/sled/     sled's own files
//! ```

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use swarm_proto::Revision;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::history::{Follower, History};
use super::{
    Commit, EVENT_BUDGET, Event, KeyValue, Leadership, Outcome, Page, Store, StoreError, Versioned, event_weight,
};

const VERSION_TEXT: &str = "swarm-catalog 1\n";
/// Keys that begin with 0 are this engine's own.
const REVISION_KEY: &[u8] = b"\0revision";
const EPOCH_KEY: &[u8] = b"\0epoch";
/// Bytes of the revision before every value.
const STAMP_BYTES: usize = 8;
/// See [`super::MAX_VALUE_BYTES`].
const SEGMENT_BYTES: usize = 2 * 1024 * 1024;
const CACHE_BYTES: u64 = 64 * 1024 * 1024;
/// How much later than a commit a power cut can still undo it.
const SYNC_EVERY: Duration = Duration::from_millis(500);
/// Commits are refused below this, as sled does not recover from a full disk while it runs.
const SPARE_BYTES: u64 = 32 * 1024 * 1024;

/// The catalog in a folder.
pub struct SledStore {
    inner: Arc<Inner>,
}

struct Inner {
    folder: PathBuf,
    database: sled::Db,
    events: History<Event>,
    /// Held while a commit runs; holds why no more can be done, once one failed half-way.
    commits: Mutex<Option<StoreError>>,
    /// Newest revision that an fsync covers.
    synced: AtomicU64,
    /// Why none can cover more: the kernel reports lost pages once, and then takes them for written.
    lost: OnceLock<StoreError>,
    /// Keeps other processes out while this lives.
    _lock: File,
    /// Fields are dropped in their order: this tells that all above are gone.
    closed: DropGuard,
}

impl SledStore {
    /// Open the catalog in `folder`, made if there is none.
    ///
    /// Errors: [`StoreError::Locked`], [`StoreError::Foreign`], [`StoreError::Version`],
    /// [`StoreError::Corrupt`], or the disk's.
    /// Cost: reads sled's log; tens of milliseconds for a small catalog.
    pub async fn open(folder: &Path, tasks: &TaskTracker, stop: CancellationToken) -> Result<Self, StoreError> {
        let folder = folder.to_owned();
        let inner = Arc::new(blocking(move || Inner::open(folder)).await?);
        tasks.spawn(sync_behind(Arc::downgrade(&inner), stop));
        Ok(Self { inner })
    }

    /// Cancelled when nobody has the store any more and its folder is free.
    pub fn closed(&self) -> CancellationToken {
        self.inner.closed.token().clone()
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let inner = self.inner.clone();
        blocking(move || work(&inner)).await
    }
}

/// Run on a thread that may wait for the disk. sled panics on some damage: that is an error here.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => Err(StoreError::Corrupt("sled panicked, see the log".into())),
        Err(_) => Err(StoreError::Closed),
    }
}

async fn sync_behind(inner: Weak<Inner>, stop: CancellationToken) {
    let mut stopping = false;
    while !stopping {
        stopping = tokio::time::timeout(SYNC_EVERY, stop.cancelled()).await.is_ok();
        // Holds the store only while it works, so that a store that nobody has any more is closed.
        let Some(inner) = inner.upgrade() else { return };
        if inner.events.newest().0 == inner.synced.load(Ordering::Acquire) {
            continue;
        }
        if let Err(error) = blocking(move || inner.sync()).await {
            // It would fail ever after.
            return tracing::error!(%error, "sync the catalog");
        }
    }
}

impl Inner {
    fn open(folder: PathBuf) -> Result<Self, StoreError> {
        fs::create_dir_all(&folder).map_err(StoreError::io("make the catalog's folder"))?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(folder.join("LOCK"))
            .map_err(StoreError::io("open LOCK"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::Locked(folder)),
            Err(TryLockError::Error(error)) => return Err(StoreError::io("lock LOCK")(error)),
        }
        check_version(&folder)?;
        let database = sled::Config::new()
            .path(folder.join("sled"))
            .mode(sled::Mode::HighThroughput)
            .segment_size(SEGMENT_BYTES)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(None)
            .open()
            .map_err(|error| from_sled("open sled", error))?;
        let revision = Revision(read_counter(&database, REVISION_KEY)?);
        let inner = Self {
            folder,
            database,
            events: History::new(revision, EVENT_BUDGET),
            commits: Mutex::new(None),
            synced: AtomicU64::new(revision.0),
            lost: OnceLock::new(),
            _lock: lock,
            closed: CancellationToken::new().drop_guard(),
        };
        // What a killed process left flushed but not synced is acknowledged: make it so before serving.
        inner.sync()?;
        Ok(inner)
    }

    fn commit(&self, commit: Commit) -> Result<Outcome, StoreError> {
        let mut failed = self.commits.lock();
        if let Some(error) = failed.as_ref() {
            return Err(error.clone());
        }
        for condition in &commit.conditions {
            if !condition.holds(self.get(condition.key())?.map(|versioned| versioned.revision)) {
                return Ok(Outcome::Conflict);
            }
        }
        let weight = event_weight(&commit.writes);
        self.check_space(weight as u64)?;
        let revision = Revision(self.events.newest().0 + 1);
        let mut batch = sled::Batch::default();
        for write in &commit.writes {
            match &write.value {
                Some(value) => batch.insert(&write.key[..], stamp(revision, value)),
                None => batch.remove(&write.key[..]),
            }
        }
        batch.insert(REVISION_KEY, &revision.0.to_le_bytes());
        let done = self.database.apply_batch(batch).and_then(|()| self.database.flush());
        if let Err(error) = done {
            let error = from_sled("write the catalog", error);
            *failed = Some(error.clone());
            return Err(error);
        }
        self.events.push(revision, commit.writes, weight);
        Ok(Outcome::Committed(revision))
    }

    fn check_space(&self, needed: u64) -> Result<(), StoreError> {
        let free =
            rustix::fs::statvfs(&self.folder).map_err(|error| StoreError::io("ask for free space")(error.into()))?;
        match free.f_bavail.saturating_mul(free.f_frsize) < SPARE_BYTES.saturating_add(needed.saturating_mul(4)) {
            true => Err(StoreError::Full),
            false => Ok(()),
        }
    }

    fn get(&self, key: &[u8]) -> Result<Option<Versioned>, StoreError> {
        let found = self.database.get(key).map_err(|error| from_sled("read the catalog", error))?;
        found.map(|stamped| unstamp(&stamped)).transpose()
    }

    fn page(&self, prefix: &[u8], after: &[u8], limit: usize) -> Result<Page, StoreError> {
        use std::ops::Bound;
        let mut page = Page::default();
        let from = match after < prefix {
            true => Bound::Included(prefix),
            false => Bound::Excluded(after),
        };
        for found in self.database.range::<&[u8], _>((from, Bound::Unbounded)) {
            let (key, stamped) = found.map_err(|error| from_sled("read the catalog", error))?;
            if !key.starts_with(prefix) {
                break;
            }
            if page.entries.len() == limit {
                page.more = true;
                break;
            }
            if key.first() == Some(&0) {
                continue;
            }
            page.entries.push(KeyValue { key: Bytes::copy_from_slice(&key), versioned: unstamp(&stamped)? });
        }
        Ok(page)
    }

    fn lead(&self) -> Result<Leadership, StoreError> {
        let _commits = self.commits.lock();
        let epoch = read_counter(&self.database, EPOCH_KEY)? + 1;
        let written = self.database.insert(EPOCH_KEY, &epoch.to_le_bytes()).and_then(|_| self.database.flush());
        written.map_err(|error| from_sled("write the epoch", error))?;
        Ok(Leadership { epoch, lost: CancellationToken::new() })
    }

    /// fsync every file of sled's, and the folders that name them.
    ///
    /// Errors: once it failed, always.
    fn sync(&self) -> Result<(), StoreError> {
        if let Some(error) = self.lost.get() {
            return Err(error.clone());
        }
        let covers = self.events.newest();
        sync_tree(&self.folder).map_err(|error| {
            let error = StoreError::io("sync the catalog's files: export the catalog and start on a good disk")(error);
            self.lost.get_or_init(|| error).clone()
        })?;
        self.synced.fetch_max(covers.0, Ordering::AcqRel);
        Ok(())
    }
}

fn check_version(folder: &Path) -> Result<(), StoreError> {
    let path = folder.join("VERSION");
    match fs::read(&path) {
        Ok(found) if found == VERSION_TEXT.as_bytes() => return Ok(()),
        Ok(found) => {
            let found = String::from_utf8_lossy(&found).trim().chars().take(80).collect();
            return Err(StoreError::Version { path, found, known: VERSION_TEXT.trim_ascii_end() });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(StoreError::io("read VERSION")(error)),
    }
    let others = fs::read_dir(folder).map_err(StoreError::io("list the catalog's folder"))?;
    for other in others {
        let name = other.map_err(StoreError::io("list the catalog's folder"))?.file_name();
        // `VERSION.new` is what a first start leaves that was killed before the rename below.
        if name != "LOCK" && name != "VERSION.new" {
            return Err(StoreError::Foreign(folder.to_owned()));
        }
    }
    let new = folder.join("VERSION.new");
    let write = || {
        fs::write(&new, VERSION_TEXT)?;
        File::open(&new)?.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(StoreError::io("write VERSION"))
}

fn sync_tree(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let synced = match entry.file_type()? {
            kind if kind.is_dir() => sync_tree(&entry.path()),
            kind if kind.is_file() => File::open(entry.path()).and_then(|file| file.sync_all()),
            _ => Ok(()),
        };
        match synced {
            // sled removes snapshots and blobs that it has replaced.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    File::open(folder)?.sync_all()
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

fn read_counter(database: &sled::Db, key: &[u8]) -> Result<u64, StoreError> {
    match database.get(key).map_err(|error| from_sled("read a counter", error))? {
        None => Ok(0),
        Some(bytes) => match <[u8; 8]>::try_from(&bytes[..]) {
            Ok(bytes) => Ok(u64::from_le_bytes(bytes)),
            Err(_) => Err(StoreError::Corrupt(format!("a counter of {} bytes", bytes.len()))),
        },
    }
}

fn from_sled(action: &'static str, error: sled::Error) -> StoreError {
    match error {
        sled::Error::Io(error) => StoreError::io(action)(error),
        other => StoreError::Corrupt(format!("{action}: {other}")),
    }
}

impl Store for SledStore {
    fn revision(&self) -> BoxFuture<'_, Result<Revision, StoreError>> {
        futures::future::ready(Ok(self.inner.events.newest())).boxed()
    }

    fn get(&self, key: Bytes) -> BoxFuture<'_, Result<Option<Versioned>, StoreError>> {
        self.run(move |inner| inner.get(&key)).boxed()
    }

    fn scan(&self, prefix: Bytes, after: Bytes, limit: usize) -> BoxFuture<'_, Result<Page, StoreError>> {
        self.run(move |inner| inner.page(&prefix, &after, limit)).boxed()
    }

    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Outcome, StoreError>> {
        self.run(move |inner| inner.commit(commit)).boxed()
    }

    fn watch(&self, after: Revision) -> Follower<Event> {
        self.inner.events.follow(after)
    }

    fn lead(&self) -> BoxFuture<'_, Result<Leadership, StoreError>> {
        self.run(Inner::lead).boxed()
    }

    fn is_shared(&self) -> bool {
        false
    }

    fn sync(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.run(Inner::sync).boxed()
    }
}

#[cfg(test)]
mod tests;
