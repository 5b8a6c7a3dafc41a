//! The catalog: the shell that joins the pure [`namespace`](crate::namespace) to a [`store`](crate::store).
//!
//! Reads are answered from an image of all names in memory. Changes go through one writer, which plans
//! them on that image and commits whatever is waiting in one group; the image is fed by the store's watch
//! and by nothing else, so a replica that shares its store needs no other path.
//!
//! Invariants: a change that was answered survives a kill -9; the image at revision R is what the store
//! held at R; a request id is answered once.
//!
//! * [`state`]: the image, the changes for watchers, and the task that follows the store
//! * [`writer`]: the queue of changes, and the group commit
//! * [`manifests`]: what files consist of: written, read, verified, swept
//! * [`leases`]: for a moment no change of some files is answered
//! * `orphans`, `reclaim`: files that have lost their last name stay until nobody has them open
//! * `requests`, `numbers`, `seeders`: answers that are kept, numbers that are leased, the registry

pub mod layout;
pub mod leases;
mod load;
pub mod manifests;
mod numbers;
mod orphans;
mod reclaim;
mod requests;
mod seeders;
pub mod state;
mod sweep;
pub mod writer;

#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use swarm_proto::{Fault, InodeNumber, PeerId, Revision, Segment, SwarmId};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::acks::AckSink;
use crate::namespace::{Counts, Refusal};
use crate::opens::OpenSource;
use crate::store::history::Follower;
use crate::store::schema::{Key, Record, SeederRecord, Settings};
use crate::store::{Commit, Leadership, Outcome, Store, StoreError, Write};

use leases::Leases;
use manifests::Manifests;
use numbers::Numbers;
use state::{Changes, State, View};
use writer::{Mutated, Request, WriterHandle};

/// How long a reader that has seen a newer revision waits for this replica to get there.
pub const CATCH_UP: Duration = Duration::from_millis(1500);

/// What the catalog must know of the seeders that are there.
pub trait CapacitySource: Send + Sync + 'static {
    /// Bytes at the swarm's replication factor, in all and still free.
    fn capacity(&self) -> Capacity;
    /// All that have joined; the last ones may not be registered yet.
    fn joined(&self) -> Vec<PeerId>;
}

/// See [`CapacitySource`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capacity {
    /// In all.
    pub capacity_bytes: u64,
    /// Still free.
    pub free_bytes: u64,
}

/// What may be chosen about a catalog.
#[derive(Debug, Clone)]
pub struct CatalogConfig {
    /// The swarm's settings; None: those that are stored, at first the defaults.
    pub settings: Option<Settings>,
    /// How long a manifest that no file names is kept.
    pub manifest_grace: Duration,
    /// How often those are looked for.
    pub sweep_every: Duration,
    /// How long an answer is kept for a retry.
    pub answers_kept: Duration,
    /// How long a file that has lost its last name is kept, from when this process first saw it so: by then every mount
    /// has said what it has open, also after a restart of the tracker.
    pub orphan_grace: Duration,
}

impl Default for CatalogConfig {
    fn default() -> Self {
        Self {
            settings: None,
            manifest_grace: Duration::from_secs(3600),
            sweep_every: Duration::from_secs(60),
            answers_kept: Duration::from_secs(600),
            orphan_grace: Duration::from_secs(10),
        }
    }
}

/// The catalog of one swarm.
pub struct Catalog {
    store: Arc<dyn Store>,
    state: Arc<State>,
    manifests: Arc<Manifests>,
    numbers: Arc<Numbers>,
    leases: Arc<Leases>,
    writer: WriterHandle,
    importing: Arc<tokio::sync::Mutex<()>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Catalog {
    /// Open the catalog in `store`, made if there is none, and start its tasks.
    ///
    /// Errors: the store's; [`StoreError::Corrupt`] if what it holds is no catalog.
    /// Cost:   reads all names.
    pub async fn open(
        store: Arc<dyn Store>,
        config: CatalogConfig,
        acks: Arc<dyn AckSink>,
        opens: Arc<dyn OpenSource>,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Result<Arc<Self>, StoreError> {
        load::make_if_absent(&*store).await?;
        let numbers = Arc::new(Numbers::new(store.clone()));
        let state = State::load(&store, config.orphan_grace, stop.clone()).await?;
        let manifests = Arc::new(Manifests::new(store.clone(), numbers.clone()));
        manifests.find_leftovers().await?;
        tasks.spawn(state::follow(state.clone(), store.clone(), manifests.clone(), stop.clone()));
        let answers = requests::Answers::load(store.clone(), config.answers_kept).await?;
        let leases = Arc::new(Leases::new(Instant::now()));
        let writer = writer::start(
            writer::Parts {
                store: store.clone(),
                state: state.clone(),
                manifests: manifests.clone(),
                numbers: numbers.clone(),
                answers: answers.clone(),
                leases: leases.clone(),
                acks,
                tasks: tasks.clone(),
            },
            tasks,
            stop.clone(),
        );
        let pause = writer.pause_lock();
        let reclaim = reclaim::Reclaim { store: store.clone(), state: state.clone(), opens, pause };
        tasks.spawn(reclaim.run(stop.clone()));
        let importing = Arc::default();
        let sweep =
            sweep::run(manifests.clone(), state.clone(), answers, config.clone(), Arc::clone(&importing), stop.clone());
        tasks.spawn(sweep);
        let catalog =
            Arc::new(Self { store, state, manifests, numbers, leases, writer, importing, tasks: tasks.clone(), stop });
        if let Some(settings) = config.settings
            && settings != catalog.settings()
        {
            catalog.set_settings(settings).await?;
        }
        Ok(catalog)
    }

    /// This swarm.
    pub fn swarm_id(&self) -> SwarmId {
        self.state.view().swarm.id
    }

    /// The newest revision that this replica answers from.
    pub fn revision(&self) -> Revision {
        self.state.view().revision
    }

    /// How many files and bytes there are.
    pub fn counts(&self) -> Counts {
        self.state.view().image.counts()
    }

    /// The swarm's settings.
    pub fn settings(&self) -> Settings {
        self.state.view().settings
    }

    /// Change the swarm's settings, durably.
    pub async fn set_settings(&self, settings: Settings) -> Result<(), StoreError> {
        let write = put(Key::Settings, Record::Settings(settings));
        self.commit_plain(vec![write]).await
    }

    /// All names, as of one revision. Let go before waiting for anything.
    pub fn view(&self) -> View<'_> {
        self.state.view()
    }

    /// All names, at `revision` or newer.
    ///
    /// Errors: [`Fault::Unavailable`] if this replica does not get there within [`CATCH_UP`].
    pub async fn view_at(&self, revision: Revision) -> Result<View<'_>, Refusal> {
        self.state.view_at(revision).await
    }

    /// All names, at the newest revision of the store when this was called.
    pub async fn view_current(&self) -> Result<View<'_>, Refusal> {
        let newest = tokio::time::timeout(CATCH_UP, self.store.revision()).await;
        let newest = newest.map_err(|_| refuse_unavailable("the catalog's store does not answer"))?;
        self.state.view_at(newest.map_err(|error| refusal_of(&error))?).await
    }

    /// All names, and a lease on the content of these inodes for the time returned: until it is over, no
    /// change of them is answered. Zero: none is given, because others write to the store too or because
    /// there are too many.
    pub async fn view_leased(&self, inodes: &[InodeNumber]) -> Result<(View<'_>, Duration), Refusal> {
        let view = self.view_current().await?;
        // Under the view: a change that it does not show finds the lease when it is to be answered.
        let leased = !self.store.is_shared() && self.leases.give(inodes, Instant::now());
        Ok((view, if leased { leases::TERM } else { Duration::ZERO }))
    }

    /// What changes after a revision.
    pub fn watch(&self, after: Revision) -> Follower<Changes> {
        self.state.watch(after)
    }

    /// What files consist of.
    pub fn manifests(&self) -> &Arc<Manifests> {
        &self.manifests
    }

    /// Carry out a request, or give its first answer again.
    pub async fn mutate(&self, request: Request) -> Result<Mutated, Refusal> {
        self.writer.mutate(request).await
    }

    /// Every segment that a live manifest names; one that several files share comes several times.
    ///
    /// Errors: the store's; a manifest that does not verify is logged and left out.
    /// Cost:   reads all manifests.
    pub async fn for_each_live_segment(&self, f: &mut (dyn FnMut(Segment) + Send)) -> Result<(), StoreError> {
        self.manifests.for_each_live_segment(&self.state, f).await
    }

    /// Enter a seeder into the registry, or what is new of it.
    pub async fn put_seeder(&self, id: PeerId, seeder: SeederRecord) -> Result<(), StoreError> {
        self.commit_plain(vec![put(Key::Seeder(id), Record::Seeder(seeder))]).await
    }

    /// Take a seeder out of the registry.
    pub async fn remove_seeder(&self, id: PeerId) -> Result<(), StoreError> {
        self.commit_plain(vec![Write { key: Key::Seeder(id).encode(), value: None }]).await
    }

    /// All seeders that have ever announced.
    pub async fn seeders(&self) -> Result<Vec<(PeerId, SeederRecord)>, StoreError> {
        seeders::all(&*self.store).await
    }

    /// Wait until this replica leads.
    pub async fn lead(&self) -> Result<Leadership, StoreError> {
        self.store.lead().await
    }

    /// Return once everything answered so far survives a power cut.
    pub async fn sync(&self) -> Result<(), StoreError> {
        self.store.sync().await
    }

    pub(crate) fn store(&self) -> &dyn Store {
        &*self.store
    }

    pub(crate) fn state(&self) -> &Arc<State> {
        &self.state
    }

    pub(crate) fn numbers(&self) -> &Numbers {
        &self.numbers
    }

    pub(crate) fn leases(&self) -> &Leases {
        &self.leases
    }

    pub(crate) fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    pub(crate) fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Keep all names as they are until the guard is dropped.
    pub(crate) async fn pause(&self) -> tokio::sync::OwnedMutexGuard<()> {
        self.writer.pause().await
    }

    /// The right to import. Err: somebody has it.
    pub(crate) fn importing(&self) -> Result<tokio::sync::OwnedMutexGuard<()>, tokio::sync::TryLockError> {
        self.importing.clone().try_lock_owned()
    }

    async fn commit_plain(&self, writes: Vec<Write>) -> Result<(), StoreError> {
        match self.store.commit(Commit { conditions: Vec::new(), writes }).await? {
            Outcome::Committed(revision) => {
                self.state.reached(revision).await;
                Ok(())
            }
            Outcome::Conflict => Err(StoreError::Corrupt("a commit without conditions was refused".into())),
        }
    }
}

/// A record as a store's write.
pub(crate) fn put(key: Key, record: Record) -> Write {
    Write { key: key.encode(), value: Some(record.encode()) }
}

/// What a store's error means to a client.
pub(crate) fn refusal_of(error: &StoreError) -> Refusal {
    let fault = match error {
        StoreError::Full => Fault::NoSpace,
        StoreError::Corrupt(_) | StoreError::Version { .. } => Fault::Corrupt,
        _ => Fault::Unavailable,
    };
    Refusal::new(fault, error.to_string())
}

pub(crate) fn refuse_unavailable(message: &str) -> Refusal {
    Refusal::new(Fault::Unavailable, message)
}

/// The clock of changes: nanoseconds since 1970.
pub(crate) fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
