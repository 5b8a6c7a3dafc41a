//! The image in memory, and the task that keeps it up with the store.
//!
//! Invariant: a view at revision R is what the store held at R; `changes` ends at the view's revision.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use swarm_proto::{InodeNumber, ManifestDigest, Revision};
use tokio_util::sync::CancellationToken;

use super::load::Fact;
use super::manifests::Manifests;
use super::reclaim::Waiting;
use super::{CATCH_UP, load, refuse_unavailable};
use crate::namespace::{Change, Image, NameWrite, Refusal};
use crate::store::history::{Follower, History};
use crate::store::schema::{Settings, Swarm};
use crate::store::{Event, Store, StoreError, Write};

/// What one commit changed.
pub type Changes = Vec<Change>;

/// All names as of one revision; holds the lock that the next commit needs, so never across an await.
pub type View<'a> = RwLockReadGuard<'a, Seen>;

/// What a view shows.
pub struct Seen {
    /// All names.
    pub image: Image,
    /// Which swarm this is, and its live tree.
    pub swarm: Swarm,
    /// Its settings.
    pub settings: Settings,
    /// As of this revision.
    pub revision: Revision,
    /// The newest revision that changed a name or an inode.
    pub names_at: Revision,
}

/// See the module.
pub struct State {
    seen: RwLock<Seen>,
    changes: History<Changes>,
    orphans: Waiting,
    /// Where the image gets what the store has committed.
    source: Mutex<Source>,
    /// From then on nobody follows the store.
    stop: CancellationToken,
}

struct Source {
    events: Follower<Event>,
    /// The image cannot go on from these: all is to be read again. With the reason, if it is an error.
    broken: Option<Option<StoreError>>,
}

/// Newest changes that are kept for watchers, in units of one change.
const CHANGES_KEPT: usize = 256 * 1024;
const RETRY_EVERY: Duration = Duration::from_secs(1);

/// What an event takes away.
enum Loss {
    /// No file names this manifest any more.
    Manifest(ManifestDigest),
    /// This file has lost its last name, perhaps long ago.
    LastName(InodeNumber),
}

/// What to do after an event was looked at.
enum Next {
    Go,
    Reload,
}

impl State {
    pub(super) async fn load(
        store: &Arc<dyn Store>,
        orphan_grace: Duration,
        stop: CancellationToken,
    ) -> Result<Arc<Self>, StoreError> {
        let (seen, events) = load::load(&**store).await?;
        let changes = History::new(seen.revision, CHANGES_KEPT);
        let orphans = Waiting::new(orphan_grace);
        orphans.found(seen.image.orphans());
        let source = Mutex::new(Source { events, broken: None });
        Ok(Arc::new(Self { seen: RwLock::new(seen), changes, orphans, source, stop }))
    }

    /// All names, now.
    pub fn view(&self) -> View<'_> {
        self.seen.read()
    }

    /// All names at that revision or a newer one.
    pub async fn view_at(&self, revision: Revision) -> Result<View<'_>, Refusal> {
        if self.changes.newest() < revision
            && tokio::time::timeout(CATCH_UP, self.changes.reached(revision)).await.is_err()
        {
            let behind = format!("this replica is at revision {}, behind {revision}", self.changes.newest());
            return Err(refuse_unavailable(&behind));
        }
        Ok(self.seen.read())
    }

    /// Follow what changes.
    pub fn watch(&self, after: Revision) -> Follower<Changes> {
        self.changes.follow(after)
    }

    /// Return once the view is at that revision, or after a time that means that something is wrong.
    pub async fn reached(&self, revision: Revision) {
        self.reached_within(revision, CATCH_UP).await;
    }

    /// The same, where more than an event may have to be read.
    pub async fn reached_within(&self, revision: Revision, patience: Duration) {
        tokio::select! {
            biased;
            () = self.changes.reached(revision) => {}
            // What is written at the very end, as that a seeder left, nobody needs to see here.
            () = self.stop.cancelled() => {}
            () = tokio::time::sleep(patience) => {
                tracing::warn!(%revision, "the names in memory are behind the store");
            }
        }
    }

    pub(super) fn orphans(&self) -> &Waiting {
        &self.orphans
    }

    /// Bring the image up to what the store has told so far. What goes wrong is left to [`follow`].
    pub(super) fn absorb_waiting(&self, manifests: &Manifests) {
        let mut source = self.source.lock();
        while source.broken.is_none() {
            let next = match source.events.try_next() {
                Ok(Some((revision, event))) => self.absorb(revision, &event, manifests),
                Ok(None) => return,
                Err(error) => Err(error),
            };
            source.broken = match next {
                Ok(Next::Go) => None,
                Ok(Next::Reload) => Some(None),
                Err(error) => Some(Some(error)),
            };
        }
    }

    fn absorb(&self, revision: Revision, event: &[Write], manifests: &Manifests) -> Result<Next, StoreError> {
        let mut seen = self.seen.write();
        let (changes, next) = seen.apply(revision, event, |loss| match loss {
            Loss::Manifest(digest) => manifests.maybe_dead(digest),
            Loss::LastName(inode) => self.orphans.found([inode]),
        })?;
        drop(seen);
        if let Next::Go = next {
            let weight = 1 + changes.len();
            self.changes.push(revision, changes, weight);
        }
        Ok(next)
    }
}

impl Seen {
    /// Apply one event; `lost` gets what may be of no use any more.
    fn apply(
        &mut self,
        revision: Revision,
        event: &[Write],
        mut lost: impl FnMut(Loss),
    ) -> Result<(Changes, Next), StoreError> {
        let mut changes = Vec::new();
        for write in event {
            match Fact::read(self.swarm.tree, &write.key, write.value.as_ref())? {
                Some(Fact::Name(name_write)) => {
                    self.names_at = revision;
                    if let NameWrite::Node(inode, Some(node)) = &name_write
                        && node.is_orphan()
                    {
                        lost(Loss::LastName(*inode));
                    }
                    if let Some(digest) = self.image.apply(name_write, &mut changes) {
                        lost(Loss::Manifest(digest));
                    }
                }
                Some(Fact::Swarm(swarm)) if swarm.tree != self.swarm.tree => return Ok((changes, Next::Reload)),
                Some(Fact::Swarm(swarm)) => self.swarm = swarm,
                Some(Fact::Settings(settings)) => self.settings = settings,
                Some(Fact::Manifest(digest)) if !self.image.is_live(&digest) => lost(Loss::Manifest(digest)),
                Some(Fact::Manifest(_)) | None => {}
            }
        }
        self.revision = revision;
        Ok((changes, Next::Go))
    }

    /// Apply what was written while the records were being read. Err with None: read again.
    pub(super) fn catch_up(&mut self, revision: Revision, event: &[Write]) -> Result<(), Option<StoreError>> {
        match self.apply(revision, event, |_| {})? {
            (_, Next::Go) => Ok(()),
            (_, Next::Reload) => Err(None),
        }
    }
}

/// Keep the image up with the store until `stop`.
pub(super) async fn follow(
    state: Arc<State>,
    store: Arc<dyn Store>,
    manifests: Arc<Manifests>,
    stop: CancellationToken,
) {
    loop {
        let mut news = state.source.lock().events.news();
        let broken = loop {
            state.absorb_waiting(&manifests);
            if let Some(why) = state.source.lock().broken.take() {
                break why;
            }
            tokio::select! {
                () = news.wait() => {}
                () = stop.cancelled() => return,
            }
        };
        if let Some(error) = broken {
            tracing::warn!(%error, "lost track of the catalog, reading all of it again");
        }
        loop {
            match load::load(&*store).await {
                Ok((seen, events)) => {
                    let revision = seen.revision;
                    state.orphans.found(seen.image.orphans());
                    let mut source = state.source.lock();
                    *state.seen.write() = seen;
                    state.changes.reset(revision);
                    *source = Source { events, broken: None };
                    break;
                }
                Err(error) => tracing::error!(%error, "read the catalog"),
            }
            if tokio::time::timeout(RETRY_EVERY, stop.cancelled()).await.is_ok() {
                return;
            }
        }
    }
}
