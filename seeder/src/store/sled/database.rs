//! The door to sled: the only file that names it.
//!
//! Not the store: it knows rows, not segments. Rows go to a table in memory and to a journal; a checkpoint takes
//! the table to sled. Invariants: what [`Database::flush`] returned for survives kill -9, and what
//! [`Database::sync`] then returned for a power cut (sled's own flush is `pwrite` and `sync_file_range`, traced; so
//! its files are synced here by ourselves); sled has no row that a journal had first and may still lose.

use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ::sled::{Batch, Db, Mode};
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use super::journal::{self, Journal, Rows};
use super::schema::{Keys, Row};
use crate::store::disk::{Access, Disk, DiskFile};

/// A leaf holds up to 16 values, here of 16 KiB; one that exceeds a quarter of this becomes a blob file,
/// whose bytes the cache limit does not count.
const SLED_SEGMENT_BYTES: usize = 2 * 1024 * 1024;
/// How often sled rolls and cleans its log.
const SLED_MAINTENANCE_MS: u64 = 500;
/// How long to wait for a database that this process has just closed: its file stays locked until sled's
/// last thread has let go of its garbage, which took seconds on a machine with ten busy processes a core.
const CLOSING_PATIENCE: Duration = Duration::from_secs(30);

/// While nobody writes, a checkpoint is due above this many bytes in memory, or after so long: a burst of small files is
/// taken when it is over, and what lives shorter never.
const CHECKPOINT_BYTES: usize = 16 * 1024 * 1024;
const CHECKPOINT_EVERY: Duration = Duration::from_secs(10);
/// While somebody does, it waits, for it takes the disk and the processor from them; but for no more than this.
const PATIENT_BYTES: usize = 80 * 1024 * 1024;
const PATIENT_FOR: Duration = Duration::from_secs(30);
/// A flush makes one itself above this.
const MOST_IN_MEMORY: usize = 112 * 1024 * 1024;
/// Rows that sled takes at once.
const BATCH: usize = 256;

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
    tables: RwLock<Tables>,
    /// Locked before `tables`.
    journal: Mutex<Writing>,
    /// Held during a checkpoint. Locked before `syncing`.
    checkpoint: Mutex<Instant>,
    /// Held while a journal is synced: of two at once the kernel tells one alone that bytes were lost.
    syncing: Mutex<()>,
    /// Bytes in memory when somebody last asked whether a checkpoint is due.
    looked_at: AtomicUsize,
}

/// Rows that sled does not have yet.
#[derive(Default)]
struct Tables {
    active: Table,
    /// Older; on its way to sled.
    frozen: Arc<Table>,
}

#[derive(Default)]
struct Table {
    rows: BTreeMap<Bytes, Option<Bytes>>,
    bytes: usize,
}

impl Table {
    fn put(&mut self, key: Bytes, value: Option<Bytes>) {
        self.bytes += key.len() + value.as_ref().map_or(0, Bytes::len);
        self.rows.insert(key, value);
    }
}

struct Writing {
    journal: Journal,
    /// The journal of the frozen table.
    before: Option<Journal>,
    /// Rows since the last flush.
    unwritten: Rows,
}

impl Writing {
    fn journals(&mut self) -> impl Iterator<Item = &mut Journal> {
        self.before.iter_mut().chain([&mut self.journal])
    }
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
                Ok(Ok(db)) => return Self::with_journals(db, folder, disk).map_err(OpenError::Io),
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

    /// What a killed process left in journals goes to sled.
    fn with_journals(db: Db, folder: &Path, disk: Arc<dyn Disk>) -> io::Result<Self> {
        let found = journal::list(disk.as_ref(), folder)?;
        let number = found.last().map_or(0, |(number, _)| number + 1);
        for (_, path) in &found {
            for rows in journal::read(disk.as_ref(), path)? {
                take(&db, rows.iter().map(|(key, value)| (key, value)))?;
            }
        }
        if !found.is_empty() {
            guard(|| db.flush())?;
            sync_sled(disk.as_ref(), folder)?;
        }
        for (_, path) in &found {
            disk.unlink(path)?;
        }
        let journal = Journal::create(disk.as_ref(), folder, number)?;
        let writing = Writing { journal, before: None, unwritten: Vec::new() };
        let checkpoint = Mutex::new(Instant::now());
        Ok(Self {
            db,
            folder: folder.to_owned(),
            disk,
            tables: RwLock::default(),
            journal: Mutex::new(writing),
            checkpoint,
            syncing: Mutex::default(),
            looked_at: AtomicUsize::new(0),
        })
    }

    /// The value of a row.
    pub(super) fn get(&self, row: Row) -> io::Result<Option<Vec<u8>>> {
        let mut bytes = Vec::new();
        Ok(self.append(row, &mut bytes)?.then_some(bytes))
    }

    /// Append the value of a row to `bytes`; whether there is one.
    pub(super) fn append(&self, row: Row, bytes: &mut Vec<u8>) -> io::Result<bool> {
        let key = row.key();
        {
            let tables = self.tables.read();
            let newer = tables.active.rows.get(&key[..]).or_else(|| tables.frozen.rows.get(&key[..]));
            if let Some(value) = newer {
                bytes.extend_from_slice(value.as_deref().unwrap_or_default());
                return Ok(value.is_some());
            }
        }
        let value = guard(|| self.db.get(key))?;
        if let Some(value) = &value {
            bytes.extend_from_slice(value);
        }
        Ok(value.is_some())
    }

    /// Put a row that nothing names yet.
    pub(super) fn put(&self, row: Row, value: &[u8]) {
        self.write([(row.key().into(), Some(Bytes::copy_from_slice(value)))]);
    }

    /// Make all these changes or, after a crash, none.
    pub(super) fn apply(&self, writes: Writes) {
        self.write(writes.into_iter().map(|(row, value)| (row.key().into(), value.map(Bytes::from))));
    }

    /// Under the lock, so that the next flush has all of them.
    fn write(&self, rows: impl IntoIterator<Item = (Bytes, Option<Bytes>)>) {
        let mut writing = self.journal.lock();
        let mut tables = self.tables.write();
        for (key, value) in rows {
            writing.unwritten.push((key.clone(), value.clone()));
            tables.active.put(key, value);
        }
    }

    /// Rows of a range of keys, in order; keys that are no row of ours come as `None`.
    ///
    /// Cost: a checkpoint, if there is anything to take.
    pub(super) fn scan(&self, keys: Keys) -> impl Iterator<Item = io::Result<(Option<Row>, Bytes)>> + '_ {
        let taken = self.checkpoint().err().map(Err);
        let mut rows = self.db.range(keys.start..keys.end);
        let mut failed = false;
        let rows = std::iter::from_fn(move || {
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
        });
        taken.into_iter().chain(rows)
    }

    /// Remove the rows of a range of keys; needs no flush to be right, only to be done.
    pub(super) fn remove(&self, keys: Keys) -> io::Result<()> {
        let mut found: Vec<Bytes> = Vec::new();
        for key in self.db.range(keys.start.clone()..keys.end.clone()).keys() {
            found.push(Bytes::copy_from_slice(&guard(|| key)?));
        }
        {
            let tables = self.tables.read();
            let range = Bytes::from(keys.start)..Bytes::from(keys.end);
            for table in [&tables.active, &tables.frozen] {
                found.extend(table.rows.range(range.clone()).map(|(key, _)| key.clone()));
            }
        }
        self.write(found.into_iter().map(|key| (key, None)));
        Ok(())
    }

    /// Make all that was written survive kill -9 of this process.
    pub(super) fn flush(&self) -> io::Result<()> {
        {
            let mut writing = self.journal.lock();
            let Writing { journal, unwritten, .. } = &mut *writing;
            if !unwritten.is_empty() {
                // After an error they stay: among them may be rows of others, whose flush is still to come.
                journal.append(unwritten)?;
                unwritten.clear();
            }
        }
        let in_memory = self.tables.read().active.bytes;
        match in_memory > MOST_IN_MEMORY {
            true => self.checkpoint(),
            false => Ok(()),
        }
    }

    /// Make all that was flushed survive a power cut.
    pub(super) fn sync(&self) -> io::Result<()> {
        {
            let _syncing = self.syncing.lock();
            let files: Vec<_> = {
                let mut writing = self.journal.lock();
                let suspect = writing.journals().any(|journal| journal.suspect);
                writing.journals().filter(|_| !suspect).map(|journal| journal.file()).collect()
            };
            if !files.is_empty() {
                return files.into_iter().try_for_each(|file| self.sync_journal(file));
            }
        }
        self.checkpoint()
    }

    /// With `syncing` held.
    fn sync_journal(&self, (number, file): (u64, Arc<dyn DiskFile>)) -> io::Result<()> {
        file.sync().inspect_err(|_| {
            let mut writing = self.journal.lock();
            writing.journals().filter(|journal| journal.number() == number).for_each(|journal| journal.suspect = true);
        })
    }

    /// Whether a checkpoint is due, and the time for it. Asked at intervals, by one thread: nobody writes if nothing was
    /// written since.
    pub(super) fn wants_checkpoint(&self) -> bool {
        let bytes = self.tables.read().active.bytes;
        let is_quiet = self.looked_at.swap(bytes, Ordering::Relaxed) == bytes;
        let is_older = |than| self.checkpoint.try_lock().is_some_and(|last| last.elapsed() >= than);
        match bytes {
            0 => false,
            PATIENT_BYTES.. => true,
            _ if !is_quiet => is_older(PATIENT_FOR),
            CHECKPOINT_BYTES.. => true,
            _ => is_older(CHECKPOINT_EVERY),
        }
    }

    /// Whether a flush may have to make a checkpoint itself.
    pub(super) fn is_crowded(&self) -> bool {
        self.tables.read().active.bytes >= PATIENT_BYTES
    }

    /// Take all that was written to sled, so that it survives a power cut and its journal can go.
    ///
    /// Errors: nothing is lost; the next one tries again.
    pub(super) fn checkpoint(&self) -> io::Result<()> {
        let mut last = self.checkpoint.lock();
        self.take_frozen()?;
        let number = {
            let writing = self.journal.lock();
            if self.tables.read().active.rows.is_empty() && !writing.journal.suspect {
                return Ok(());
            }
            writing.journal.number() + 1
        };
        let next = Journal::create(self.disk.as_ref(), &self.folder, number)?;
        {
            let mut writing = self.journal.lock();
            writing.before = Some(std::mem::replace(&mut writing.journal, next));
            let mut tables = self.tables.write();
            tables.frozen = Arc::new(std::mem::take(&mut tables.active));
        }
        *last = Instant::now();
        self.take_frozen()
    }

    fn take_frozen(&self) -> io::Result<()> {
        let path = {
            let _syncing = self.syncing.lock();
            let (file, suspect, path) = {
                let writing = self.journal.lock();
                let Some(before) = &writing.before else { return Ok(()) };
                (before.file(), before.suspect, before.path().to_owned())
            };
            if !suspect {
                // First: a journal that lost its end in a power cut must not be older than sled.
                self.sync_journal(file)?;
            }
            path
        };
        let frozen = self.tables.read().frozen.clone();
        take(&self.db, &frozen.rows)?;
        guard(|| self.db.flush())?;
        sync_sled(self.disk.as_ref(), &self.folder)?;
        self.tables.write().frozen = Arc::default();
        // Before sled takes anything newer: the next start would put these rows over that.
        match self.disk.unlink(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.journal.lock().before = None;
        Ok(())
    }

    /// Make the names of its files survive a power cut; needed once after they were created.
    pub(super) fn sync_names(&self) -> io::Result<()> {
        sync_sled(self.disk.as_ref(), &self.folder)?;
        self.disk.sync_folder(&self.folder.join("blobs"))?;
        self.disk.sync_folder(&self.folder)
    }
}

/// Give rows to sled.
fn take<'a>(db: &Db, rows: impl IntoIterator<Item = (&'a Bytes, &'a Option<Bytes>)>) -> io::Result<()> {
    let mut rows = rows.into_iter().peekable();
    while rows.peek().is_some() {
        let mut batch = Batch::default();
        for (key, value) in rows.by_ref().take(BATCH) {
            match value {
                Some(value) => batch.insert(&key[..], &value[..]),
                None => batch.remove(&key[..]),
            }
        }
        guard(|| db.apply_batch(batch))?;
    }
    Ok(())
}

fn sync_sled(disk: &dyn Disk, folder: &Path) -> io::Result<()> {
    for name in ["db", "conf"] {
        disk.open(&folder.join(name), Access::Read)?.sync()?;
    }
    let blobs = folder.join("blobs");
    for entry in disk.list(&blobs)? {
        match disk.open(&blobs.join(entry.name), Access::Read) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?.sync()?,
        }
    }
    Ok(())
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
