//! The embedded store: a sled tree, and journals of what it does not have yet.
//!
//! A commit is one write to a journal and an entry in a table in memory; a task takes the table to sled, many
//! commits at once. Two levels: a commit survives a kill -9 when it returns; [`Store::sync`], and a task that calls
//! it, make it survive a power cut.
//!
//! Invariant: each commit that returned is in the database or in a journal that is there; a journal goes once
//! the database has synced all of it. A table is written under the `commits` lock only.
//!
//! * `journal`: the file format
//! * `table`: commits in memory, and reading several sources as one
//! * `database`: the sled tree
//! * `folder`: LOCK and VERSION
//!
//! ```text
//! DIR/LOCK        held by the process that has it open
//! DIR/VERSION     "swarm-catalog 2\n"
//! DIR/journal-N   commits that sled may not have
//! DIR/sled/       sled's own files
//! ```

mod database;
mod folder;
mod journal;
mod table;

#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::ops::{Bound, ControlFlow};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use parking_lot::{Mutex, RwLock};
use swarm_proto::Revision;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use self::database::Database;
use self::journal::{Committed, Journal};
use self::table::{Found, Merged, Source, Table};
use super::history::{Follower, History};
use super::{
    Commit, EVENT_BUDGET, Event, KeyValue, Leadership, Outcome, Page, Store, StoreError, Versioned, event_weight,
};

/// How much later than a commit a power cut can still undo it.
const SYNC_EVERY: Duration = Duration::from_millis(500);
/// How often the table is taken to sled: what came and went between never gets there.
const SETTLE_EVERY: Duration = Duration::from_secs(5);
/// Who commits nothing for so long has ended, for now; and how often that is looked for.
const QUIET: Duration = Duration::from_millis(500);
const QUIET_LOOKS: u32 = 20;
/// It is taken at once above this.
const SETTLE_BYTES: usize = 16 * 1024 * 1024;
/// Above this, commits wait for that.
const MOST_UNSETTLED: usize = 64 * 1024 * 1024;
/// Commits are refused below this, as sled does not recover from a full disk while it runs.
const SPARE_BYTES: u64 = 32 * 1024 * 1024;

/// The catalog in a folder.
pub struct SledStore {
    inner: Arc<Inner>,
}

struct Inner {
    folder: PathBuf,
    database: Database,
    tables: RwLock<Tables>,
    events: History<Event>,
    /// Held while a commit runs.
    commits: Mutex<Commits>,
    /// Held while a table is taken to sled.
    settling: Mutex<()>,
    /// There is much to take to sled.
    much: Arc<Notify>,
    /// Held while journals are synced: who comes meanwhile finds it done, or `lost`, and never hears of a file what the
    /// kernel says once it has told another that pages are lost.
    syncing: Mutex<()>,
    /// Newest revision that survives a power cut.
    synced: AtomicU64,
    /// Why none can any more: the kernel reports lost pages once, and then takes them for written.
    lost: OnceLock<StoreError>,
    /// Keeps other processes out while this lives.
    _lock: File,
    /// Fields are dropped in their order: this tells that all above are gone.
    closed: DropGuard,
}

/// What sled does not have yet.
#[derive(Default)]
struct Tables {
    /// Takes commits.
    active: Table,
    /// Older; on its way to sled.
    frozen: Arc<Table>,
}

struct Commits {
    journal: Journal,
    number: u64,
    /// The journal of the frozen table.
    before: Option<Arc<File>>,
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
        tasks.spawn(sync_behind(Arc::downgrade(&inner), stop.clone()));
        tasks.spawn(settle_behind(Arc::downgrade(&inner), inner.much.clone(), stop));
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

/// Run on a thread that may wait for the disk.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(|| guarded(work)).await.unwrap_or(Err(StoreError::Closed))
}

/// sled panics on some damage: that is an error here.
fn guarded<T>(work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    let panicked = || StoreError::Corrupt("sled panicked, see the log".into());
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(panicked()))
}

/// Beside [`settle_behind`], which may take long: a power cut undoes no more meanwhile.
async fn sync_behind(inner: Weak<Inner>, stop: CancellationToken) {
    while timeout(SYNC_EVERY, stop.cancelled()).await.is_err() {
        if work_behind(&inner, Inner::sync).await.is_break() {
            return;
        }
    }
}

async fn settle_behind(inner: Weak<Inner>, much: Arc<Notify>, stop: CancellationToken) {
    let mut stopping = false;
    while !stopping {
        tokio::select! {
            () = stop.cancelled() => stopping = true,
            () = much.notified() => {}
            () = settle_is_due(|| inner.upgrade().map(|inner| inner.events.newest())) => {}
        }
        if work_behind(&inner, Inner::settle).await.is_break() {
            return;
        }
    }
}

/// After a while, once nobody changes anything: it takes the processor from those who do. But it does not wait for ever.
async fn settle_is_due(newest: impl Fn() -> Option<Revision>) {
    sleep(SETTLE_EVERY).await;
    for _ in 0..QUIET_LOOKS {
        let before = newest();
        sleep(QUIET).await;
        if newest() == before {
            return;
        }
    }
}

/// Holds the store only while it works, so that a store that nobody has any more is closed. Whether to go on.
async fn work_behind(inner: &Weak<Inner>, work: fn(&Inner) -> Result<(), StoreError>) -> ControlFlow<()> {
    let Some(inner) = inner.upgrade() else { return ControlFlow::Break(()) };
    let working = inner.clone();
    match blocking(move || work(&working)).await {
        Ok(()) => {}
        Err(error) if inner.lost.get().is_some() => {
            tracing::error!(%error, "bring commits to the disk");
            return ControlFlow::Break(());
        }
        Err(error) => tracing::warn!(%error, "bring commits to the disk; tried again"),
    }
    ControlFlow::Continue(())
}

impl Inner {
    fn open(folder: PathBuf) -> Result<Self, StoreError> {
        let lock = folder::take(&folder)?;
        let database = Database::open(&folder)?;
        let number = take_journals(&folder, &database)?;
        let revision = database.revision()?;
        let journal = Journal::create(&folder, number).map_err(StoreError::io("begin a journal"))?;
        Ok(Self {
            folder,
            database,
            tables: RwLock::default(),
            events: History::new(revision, EVENT_BUDGET),
            commits: Mutex::new(Commits { journal, number, before: None }),
            settling: Mutex::new(()),
            much: Arc::default(),
            syncing: Mutex::new(()),
            synced: AtomicU64::new(revision.0),
            lost: OnceLock::new(),
            _lock: lock,
            closed: CancellationToken::new().drop_guard(),
        })
    }

    fn commit(&self, commit: Commit) -> Result<Outcome, StoreError> {
        let mut commits = self.commits.lock();
        self.still_good()?;
        for condition in &commit.conditions {
            if !condition.holds(self.get(condition.key())?.map(|versioned| versioned.revision)) {
                return Ok(Outcome::Conflict);
            }
        }
        let weight = event_weight(&commit.writes);
        self.check_space(weight as u64)?;
        let revision = Revision(self.events.newest().0 + 1);
        commits.journal.append(revision, &commit.writes).map_err(StoreError::io("write to the journal"))?;
        let unsettled = {
            let active = &mut self.tables.write().active;
            active.absorb(revision, &commit.writes);
            active.bytes()
        };
        self.events.push(revision, commit.writes, weight);
        if unsettled > SETTLE_BYTES {
            self.much.notify_one();
        }
        Ok(Outcome::Committed(revision))
    }

    fn still_good(&self) -> Result<(), StoreError> {
        self.lost.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// What happened once stays.
    fn lose(&self, error: StoreError) -> StoreError {
        tracing::error!(%error, "the catalog takes no more changes: start the tracker again, on a good disk");
        self.lost.get_or_init(|| error).clone()
    }

    fn check_space(&self, needed: u64) -> Result<(), StoreError> {
        let free =
            rustix::fs::statvfs(&self.folder).map_err(|error| StoreError::io("ask for free space")(error.into()))?;
        let unsettled = self.tables.read().active.bytes() as u64;
        let needed = needed.saturating_add(unsettled).saturating_mul(4);
        match free.f_bavail.saturating_mul(free.f_frsize) < SPARE_BYTES.saturating_add(needed) {
            true => Err(StoreError::Full),
            false => Ok(()),
        }
    }

    fn get(&self, key: &[u8]) -> Result<Found, StoreError> {
        {
            let tables = self.tables.read();
            if let Some(found) = tables.active.get(key).or_else(|| tables.frozen.get(key)) {
                return Ok(found);
            }
        }
        // What was frozen when that was looked at is in sled by now, or was not of this key.
        self.database.get(key)
    }

    fn page(&self, prefix: &[u8], after: &[u8], limit: usize) -> Result<Page, StoreError> {
        let mut page = Page::default();
        let from = match after < prefix {
            true => Bound::Included(prefix),
            false => Bound::Excluded(after),
        };
        let tables = self.tables.read();
        let memory = [&tables.active, &*tables.frozen];
        let memory = memory.map(|table| Box::new(table.from(from).map(Ok)) as Source<'_>);
        for next in Merged::new(memory.into_iter().chain([Box::new(self.database.from(from)) as Source<'_>])) {
            let (key, found) = next?;
            if !key.starts_with(prefix) {
                break;
            }
            let Some(versioned) = found else { continue };
            if page.entries.len() == limit {
                page.more = true;
                break;
            }
            page.entries.push(KeyValue { key, versioned });
        }
        Ok(page)
    }

    fn lead(&self) -> Result<Leadership, StoreError> {
        let _commits = self.commits.lock();
        Ok(Leadership { epoch: self.database.next_epoch()?, lost: CancellationToken::new() })
    }

    /// Take what was committed to sled, so that its journal can go. It survives a power cut then.
    ///
    /// Errors: if sled fails, it takes nothing any more until the next start, which has the journals.
    fn settle(&self) -> Result<(), StoreError> {
        let _settling = self.settling.lock();
        self.still_good()?;
        if self.tables.read().active.is_empty() {
            return Ok(());
        }
        let old = self.begin_journal().map_err(StoreError::io("begin a journal"))?;
        let settled = guarded(|| self.take_frozen(&old)).map_err(|error| self.lose(error))?;
        self.synced.fetch_max(settled.0, Ordering::AcqRel);
        self.commits.lock().before = None;
        fs::remove_file(old.path()).map_err(StoreError::io("remove a journal"))
    }

    /// From here on commits go to a new journal and an empty table. Returns the journal of the frozen table.
    fn begin_journal(&self) -> std::io::Result<Journal> {
        let number = self.commits.lock().number + 1;
        let next = Journal::create(&self.folder, number)?;
        let mut commits = self.commits.lock();
        commits.number = number;
        let old = std::mem::replace(&mut commits.journal, next);
        commits.before = Some(old.file());
        let mut tables = self.tables.write();
        tables.frozen = Arc::new(std::mem::take(&mut tables.active));
        Ok(old)
    }

    fn take_frozen(&self, journal: &Journal) -> Result<Revision, StoreError> {
        // First: a journal that lost its end in a power cut must not be older than sled.
        {
            let _syncing = self.syncing.lock();
            self.still_good()?;
            self.sync_journal(&journal.file())?;
        }
        let frozen = self.tables.read().frozen.clone();
        self.database.take(&frozen)?;
        self.tables.write().frozen = Arc::default();
        Ok(frozen.newest())
    }

    /// Errors: once it failed, always.
    fn sync(&self) -> Result<(), StoreError> {
        let wanted = self.events.newest();
        let _syncing = self.syncing.lock();
        self.still_good()?;
        if self.synced.load(Ordering::Acquire) >= wanted.0 {
            return Ok(());
        }
        let (covers, files) = {
            let commits = self.commits.lock();
            (self.events.newest(), [commits.before.clone(), Some(commits.journal.file())])
        };
        for file in files.into_iter().flatten() {
            self.sync_journal(&file)?;
        }
        self.synced.fetch_max(covers.0, Ordering::AcqRel);
        Ok(())
    }

    /// Called with `syncing` held, after a look at `lost`.
    fn sync_journal(&self, journal: &File) -> Result<(), StoreError> {
        journal.sync_data().map_err(|error| self.lose(StoreError::io("sync the journal")(error)))
    }
}

/// What a killed process left in journals goes to sled before anything is served. Returns a number for the next.
fn take_journals(folder: &Path, database: &Database) -> Result<u64, StoreError> {
    let found = journal::list(folder).map_err(StoreError::io("list the catalog's folder"))?;
    let settled = database.revision()?;
    let mut table = Table::default();
    for (_, path) in &found {
        let (commits, rest) = journal::read(path).map_err(StoreError::io("read a journal"))?;
        if rest.bytes > 0 {
            tracing::warn!(path = %path.display(), bytes = rest.bytes, "left out what is no whole commit at the end");
        }
        if let Some(newer) = rest.newer {
            keep_damaged(path, newer)?;
        }
        // An older one was settled, only not removed.
        if commits.last().is_none_or(|(newest, _)| *newest < settled) {
            continue;
        }
        if !follows(&commits, settled.max(table.newest())) {
            keep_apart(path)?;
            continue;
        }
        commits.iter().for_each(|(revision, writes)| table.absorb(*revision, writes));
    }
    if !table.is_empty() {
        database.take(&table)?;
    }
    for (_, path) in &found {
        match fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(StoreError::io("remove a journal")(error));
            }
            _ => {}
        }
    }
    Ok(found.last().map_or(0, |(number, _)| number + 1))
}

/// Whether no commit is missing: neither within, nor between `newest` and the first.
fn follows(commits: &[Committed], newest: Revision) -> bool {
    let starts = commits.first().is_some_and(|(first, _)| first.0 <= newest.0.saturating_add(1));
    starts && commits.windows(2).all(|pair| pair[0].0.0.checked_add(1) == Some(pair[1].0.0))
}

/// Not torn at its end, but damaged before: whole commits behind the damage are left out, and kept for whoever can tell
/// what they were. The catalog is as it was before the first of them.
fn keep_damaged(path: &Path, newer: Revision) -> Result<(), StoreError> {
    let mut copy = path.as_os_str().to_owned();
    copy.push(".damaged");
    tracing::error!(
        path = %path.display(),
        %newer,
        "this journal is damaged: commits behind the damage are lost, it is copied to {}; is the disk failing?",
        Path::new(&copy).display()
    );
    fs::copy(path, copy).map(drop).map_err(StoreError::io("copy a damaged journal"))
}

/// What a power cut left of commits after one that it took: nobody was told that these are on the disk.
fn keep_apart(path: &Path) -> Result<(), StoreError> {
    let mut apart = path.as_os_str().to_owned();
    apart.push(".incomplete");
    tracing::error!(path = %path.display(), "commits before this journal are missing: it is renamed and left out");
    fs::rename(path, apart).map_err(StoreError::io("rename a journal"))
}

impl Store for SledStore {
    fn revision(&self) -> BoxFuture<'_, Result<Revision, StoreError>> {
        ready(Ok(self.inner.events.newest())).boxed()
    }

    /// On this thread: the tables are in memory, and what sled has not in its cache the kernel mostly has.
    fn get(&self, key: Bytes) -> BoxFuture<'_, Result<Option<Versioned>, StoreError>> {
        ready(guarded(|| self.inner.get(&key))).boxed()
    }

    fn scan(&self, prefix: Bytes, after: Bytes, limit: usize) -> BoxFuture<'_, Result<Page, StoreError>> {
        self.run(move |inner| inner.page(&prefix, &after, limit)).boxed()
    }

    /// On this thread: a journal's write only copies to the kernel.
    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Outcome, StoreError>> {
        async move {
            if self.inner.tables.read().active.bytes() > MOST_UNSETTLED {
                self.run(Inner::settle).await?;
            }
            guarded(|| self.inner.commit(commit))
        }
        .boxed()
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
