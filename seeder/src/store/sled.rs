//! The durable store: records and small segments in sled, larger segments in a file each.
//!
//! Not the mount's cache: nothing is evicted. Invariant: what was acknowledged at the close level
//! survives kill -9 of this process, at the fsync level a power cut; and no byte leaves that did not
//! verify when it was read.
//!
//! `home` owns the folder, `database` is the door to sled, `schema` says what is in it, `index` mirrors
//! the records. `writer` takes bytes, `commit` makes records of them, `settle` makes the disk follow,
//! `read` gives bytes out and mends, `recovery` puts right what a crash left.

use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use parking_lot::Mutex;
use swarm_proto::{ChunkRange, ChunkTree, PeerId, Segment, SegmentId, SwarmId};
use tokio::sync::{broadcast, oneshot};

mod commit;
mod core;
mod database;
mod home;
mod index;
mod journal;
mod lane;
mod proofs;
mod read;
mod recovery;
mod room;
mod schema;
mod settle;
#[cfg(test)]
mod tests;
mod turn;
mod writer;

pub use self::core::StoreConfig;

use self::commit::{Change, Staged};
use self::core::{Core, Numbers, TreeCache, closed};
use self::lane::lane;
use self::proofs::Proofs;
use self::schema::{Row, Setting};
use self::settle::{Chore, RaiseJob, Unsettled};
use self::turn::Turn;
use self::writer::{Hashed, SledWriter, Sync};
use super::disk::{Disk, RealDisk};
use super::{
    AckLevel, ChunkStore, Damaged, Held, Holding, Loan, ReplicaSink, SegmentWriter, StoreError, Usage, failed,
};

/// Largest free-space floor that nobody asked for.
const MOST_FLOOR_BYTES: u64 = 1 << 30;
/// How far the thread that gives rows to sled stands back: what it does can wait, and whoever asks the seeder cannot.
const TAKES_NICE: i32 = 10;
/// Small segments that are hashed and taken on the caller's thread, which serves others too.
const FEW: usize = 4;

/// The durable store of a seeder.
///
/// Dropping it waits for the disk to follow and unlocks its folder (once the last writer that it gave
/// out is dropped); [`Self::close`] does the same without blocking an async thread.
pub struct SledStore {
    core: Arc<Core>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    this: Weak<Self>,
}

impl SledStore {
    /// Open the store in a folder, or make one; verifies what a crash left unproved. Blocks.
    ///
    /// Errors: [`StoreError::Unusable`] says what is wrong with the folder and what to do.
    /// Cost:   reads the database's log (about 1.5 s a GiB of it when cold), lists the files, and hashes
    ///         what was written in the second before a crash.
    pub fn open(config: StoreConfig) -> Result<Arc<Self>, StoreError> {
        Self::open_on(config, Arc::new(RealDisk))
    }

    /// The same on any disk.
    pub fn open_on(config: StoreConfig, disk: Arc<dyn Disk>) -> Result<Arc<Self>, StoreError> {
        let dir = config.dir.clone();
        Self::open_in(config, disk).map_err(|error| match error {
            // Somewhere below the folder: as when it was copied by root.
            StoreError::Io { doing, source } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                home::unusable(&dir, doing, &source)
            }
            other => other,
        })
    }

    fn open_in(config: StoreConfig, disk: Arc<dyn Disk>) -> Result<Arc<Self>, StoreError> {
        let home = home::Home::open(&config.dir, &disk)?;
        let database = recovery::open_database(&home, config.cache_bytes, &disk)?;
        let (peer, swarm) = identity(&database, home.peer)?;
        let found = recovery::read_records(&database)?;
        let space = disk.space(&config.dir).map_err(failed("ask the disk for its room"))?;
        let floor = config.free_floor.unwrap_or_else(|| (space.total / 100).min(MOST_FLOOR_BYTES));
        let ours = found.records.iter().map(|(id, record)| room::cost(record.segment(*id), record.place)).sum();
        let room = room::Room::new(config.capacity, floor, ours, space);
        let (commits, commit_end) = lane();
        let (raises, raise_end) = lane();
        let (chores, chore_end) = lane();
        let (takes, take_end) = lane();
        let settle_every = config.settle_every;
        let core = Arc::new(Core {
            config,
            disk,
            database,
            index: index::Index::default(),
            room,
            trees: TreeCache::default(),
            proofs: Proofs::new(),
            unsettled: Unsettled::default(),
            numbers: Numbers::new(found.next),
            changes: self::core::changes(),
            commits,
            commit_turn: Turn::default(),
            raises,
            chores,
            takes,
            workers: self::core::workers(),
            peer,
            swarm: Mutex::new(swarm),
            home,
        });
        recovery::recover(&core, found)?;
        let (a, b, c, d) = (core.clone(), core.clone(), core.clone(), core.clone());
        let store = Arc::new_cyclic(|this| Self { core, threads: Mutex::default(), this: this.clone() });
        let started = commit_end.start("store-commit", None, move |group| commit::commit(&a, group)).and_then(|one| {
            store.threads.lock().push(one);
            let two = raise_end.start("store-raise", None, move |group| settle::raise(&b, group))?;
            store.threads.lock().push(two);
            let three =
                chore_end.start("store-settle", Some(settle_every), move |group| settle::do_chores(&c, group))?;
            store.threads.lock().push(three);
            let mut is_humble = false;
            let take = move |_: Vec<()>| {
                if !std::mem::replace(&mut is_humble, true)
                    && let Err(error) = rustix::process::nice(TAKES_NICE)
                {
                    tracing::debug!(%error, "lower the priority of a thread");
                }
                settle::take_rows(&d);
            };
            let four = take_end.start("store-take", Some(settle_every), take)?;
            store.threads.lock().push(four);
            Ok(())
        });
        started.map_err(failed("start the store's threads"))?;
        Ok(store)
    }

    /// The peer whose store this is, over all its restarts.
    pub fn peer_id(&self) -> PeerId {
        self.core.peer
    }

    /// The swarm it belongs to, once it has joined one.
    pub fn swarm_id(&self) -> Option<SwarmId> {
        *self.core.swarm.lock()
    }

    /// Join a swarm, for good and durably.
    ///
    /// Errors: [`StoreError::Unusable`] if it belongs to another one.
    pub async fn bind_swarm(&self, swarm: SwarmId) -> Result<(), StoreError> {
        self.core.run(move |core| bind(core, swarm)).await?
    }

    /// Wait for the disk to follow, then end.
    pub async fn close(self: Arc<Self>) {
        // An error of the task is a panic of a lane, which was reported where it happened.
        let _ = tokio::task::spawn_blocking(move || self.end()).await;
    }

    fn end(&self) {
        let threads = std::mem::take(&mut *self.threads.lock());
        self.core.commit_turn.end();
        // In the order they were started: what one lane sends the next is done.
        let stops: [fn(&Core); 4] = [
            |core| core.commits.stop(),
            |core| core.raises.stop(),
            |core| core.chores.stop(),
            |core| core.takes.stop(),
        ];
        for (stop, thread) in stops.into_iter().zip(threads) {
            stop(&self.core);
            // An error is a panic of the lane, which was reported where it happened.
            let _ = thread.join();
        }
        if let Err(error) = settle::settle(&self.core, None) {
            tracing::error!(%error, "the disk did not follow at the end");
        }
        if let Err(error) = self.core.database.checkpoint() {
            tracing::warn!(%error, "rows stay in the journal until the next start");
        }
    }

    async fn commit_all(&self, writers: Vec<Box<dyn SegmentWriter>>, level: AckLevel, keep: Duration) -> Outcomes {
        let sync = if level == AckLevel::Fsync { Sync::Now } else { Sync::Later };
        let few = writers.len() <= FEW;
        let hashed = if few { Hashed::Here } else { Hashed::Elsewhere };
        let staging = writers.into_iter().map(|writer| async move {
            let writer = writer.into_any().downcast::<SledWriter>().map_err(|_| foreign())?;
            writer.stage(sync, hashed).await
        });
        let mut outcomes: Outcomes = Vec::new();
        let mut staged: Vec<Staged> = Vec::new();
        for outcome in join_all(staging).await {
            outcomes.push(outcome.map(|one| staged.push(one)));
        }
        let ids: Vec<SegmentId> = staged.iter().map(|one| one.segment.id).collect();
        if ids.is_empty() {
            return outcomes;
        }
        let (reply, answer) = oneshot::channel();
        let small = few && staged.iter().all(Staged::is_in_memory);
        let change = Change::Store { staged, keep, reply };
        let left = if small { commit::commit_here(&self.core, change) } else { Some(change) };
        // An error leaves the answer without its sender.
        left.into_iter().for_each(|change| drop(self.core.commits.send(change)));
        let mut answers = answer.await.unwrap_or_else(|_| vec![Err(closed()); ids.len()]);
        if level == AckLevel::Fsync && answers.iter().any(Result::is_ok) {
            let raised = self.raise(ids).await;
            answers.iter_mut().for_each(|answer| {
                if answer.is_ok() {
                    answer.clone_from(&raised);
                }
            });
        }
        let mut answers = answers.into_iter();
        for outcome in outcomes.iter_mut().filter(|outcome| outcome.is_ok()) {
            *outcome = answers.next().unwrap_or_else(|| Err(closed()));
        }
        outcomes
    }

    async fn raise(&self, ids: Vec<SegmentId>) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        self.core.raises.send(RaiseJob { ids, reply }).map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }
}

type Outcomes = Vec<Result<(), StoreError>>;

impl Drop for SledStore {
    fn drop(&mut self) {
        if !self.threads.get_mut().is_empty() {
            self.end();
        }
    }
}

impl ChunkStore for SledStore {
    fn holding(&self) -> Holding {
        Holding::Replica
    }

    fn held(&self, id: &SegmentId) -> Option<Held> {
        self.core.index.held(id)
    }

    async fn tree(&self, id: SegmentId) -> Result<ChunkTree, StoreError> {
        if let (Some(tree), Some(_)) = (self.core.trees.get(&id), self.held(&id)) {
            return Ok(tree);
        }
        self.core.run(move |core| core.tree(id)).await?
    }

    async fn read(&self, id: SegmentId, chunks: ChunkRange) -> Result<Bytes, StoreError> {
        self.core.run(move |core| core.read(id, chunks)).await?
    }

    async fn lend(&self, id: SegmentId, chunks: ChunkRange) -> Result<Option<Loan>, StoreError> {
        self.core.run(move |core| core.lend(id, chunks)).await?
    }

    async fn reverify(&self, id: SegmentId) -> Result<Vec<u32>, StoreError> {
        self.core.run(move |core| core.reverify(id)).await?
    }

    fn inventory(&self) -> Vec<(SegmentId, bool)> {
        self.core.index.inventory()
    }

    fn changes(&self) -> broadcast::Receiver<SegmentId> {
        self.core.changes.subscribe()
    }

    fn usage(&self) -> Usage {
        let counts = self.core.index.counts();
        Usage { segments: counts.held, corrupt_segments: counts.damaged, ..self.core.room.usage() }
    }

    fn sink(&self) -> Option<Arc<dyn ReplicaSink>> {
        self.this.upgrade().map(|store| store as Arc<dyn ReplicaSink>)
    }
}

impl ReplicaSink for SledStore {
    fn begin(&self, segment: Segment) -> BoxFuture<'_, Result<Box<dyn SegmentWriter>, StoreError>> {
        let begun = SledWriter::begin(self.core.clone(), segment);
        async { begun.await.map(|writer| Box::new(writer) as Box<dyn SegmentWriter>) }.boxed()
    }

    fn commit(
        &self,
        writers: Vec<Box<dyn SegmentWriter>>,
        level: AckLevel,
        keep: Duration,
    ) -> BoxFuture<'_, Vec<Result<(), StoreError>>> {
        self.commit_all(writers, level, keep).boxed()
    }

    fn mend(&self, tree: ChunkTree, chunks: ChunkRange, bytes: Bytes) -> BoxFuture<'_, Result<(), StoreError>> {
        read::mend(&self.core, tree, chunks, bytes).boxed()
    }

    fn touch(&self, ids: Vec<SegmentId>, keep: Duration) -> BoxFuture<'_, Result<Vec<u64>, StoreError>> {
        async move {
            let check = move |core: &Arc<Core>| {
                core.drop_vanished(&ids);
                ids
            };
            let ids = self.core.run(check).await?;
            let (reply, answer) = oneshot::channel();
            self.core.commits.send(Change::Touch { ids, keep, reply }).map_err(|_| closed())?;
            answer.await.map_err(|_| closed())?
        }
        .boxed()
    }

    fn sync(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            let (reply, answer) = oneshot::channel();
            self.core.chores.send(Chore::Sync(reply)).map_err(|_| closed())?;
            answer.await.map_err(|_| closed())?
        }
        .boxed()
    }

    fn damaged(&self) -> Vec<Damaged> {
        self.core.index.damaged()
    }
}

fn foreign() -> StoreError {
    failed("commit a segment")(std::io::Error::new(std::io::ErrorKind::InvalidInput, "another store made its writer"))
}

/// The peer and the swarm as the database knows them; a new or rebuilt one learns the peer from the folder.
fn identity(database: &database::Database, born: PeerId) -> Result<(PeerId, Option<SwarmId>), StoreError> {
    let get = |setting| database.get(Row::Setting(setting)).map_err(failed("read the settings"));
    let swarm = get(Setting::Swarm)?.and_then(|bytes| SwarmId::try_from(bytes.as_slice()).ok());
    if let Some(peer) = get(Setting::Peer)?.and_then(|bytes| PeerId::try_from(bytes.as_slice()).ok()) {
        return Ok((peer, swarm));
    }
    let put = || {
        database.put(Row::Setting(Setting::Peer), born.as_bytes());
        database.flush()?;
        database.sync()
    };
    put().map_err(failed("write the peer's id"))?;
    Ok((born, swarm))
}

fn bind(core: &Core, swarm: SwarmId) -> Result<(), StoreError> {
    let mut bound = core.swarm.lock();
    match *bound {
        Some(ours) if ours == swarm => Ok(()),
        Some(ours) => Err(StoreError::Unusable(format!(
            "{} belongs to swarm {ours}, not to {swarm}: name the tracker of its swarm, or another folder",
            core.home.dir().display()
        ))),
        None => {
            let put = || {
                core.database.put(Row::Setting(Setting::Swarm), swarm.as_bytes());
                core.database.flush()?;
                core.database.sync()
            };
            put().map_err(failed("write the swarm's id"))?;
            *bound = Some(swarm);
            Ok(())
        }
    }
}
