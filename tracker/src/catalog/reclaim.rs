//! The task that lets go of files that have lost their last name and that nobody has open.
//!
//! One replica does it: the one that leads. Many files go in one commit, which is like any other: it stands only if they
//! are still as they were, and watchers hear of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use swarm_proto::InodeNumber;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::orphans::Orphans;
use super::state::State;
use super::writer::{condition_of, record_of};
use crate::namespace::plan;
use crate::opens::OpenSource;
use crate::store::schema::Key;
use crate::store::{Commit, Condition, Outcome, Store, StoreError};

/// Files that go in one commit; other changes come in between.
const AT_ONCE: usize = 1024;
const RETRY_EVERY: Duration = Duration::from_secs(1);

/// The orphans that wait, and whoever waits for them.
pub(super) struct Waiting {
    orphans: Mutex<Orphans>,
    found: Notify,
}

impl Waiting {
    pub(super) fn new(grace: Duration) -> Self {
        Self { orphans: Mutex::new(Orphans::new(grace)), found: Notify::new() }
    }

    /// These are orphans; never waits.
    pub(super) fn found(&self, inodes: impl IntoIterator<Item = InodeNumber>) {
        let mut orphans = self.orphans.lock();
        inodes.into_iter().for_each(|inode| orphans.found(inode, now()));
        drop(orphans);
        self.found.notify_one();
    }

    /// Return once one is due.
    async fn due(&self) {
        loop {
            let due = self.orphans.lock().due();
            match due {
                Some(due) if due <= now() => return,
                // What is found later is due later.
                Some(due) => tokio::time::sleep_until(due.into()).await,
                None => self.found.notified().await,
            }
        }
    }
}

/// By the clock that sleeping goes by.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// What the task works with.
pub(super) struct Reclaim {
    pub(super) store: Arc<dyn Store>,
    pub(super) state: Arc<State>,
    pub(super) opens: Arc<dyn OpenSource>,
    /// The writer's: it takes it for each group.
    pub(super) pause: Arc<tokio::sync::Mutex<()>>,
}

impl Reclaim {
    /// Go on until `stop`.
    pub(super) async fn run(self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let done = stop.run_until_cancelled(self.store.lead()).await;
            match done {
                Some(Ok(leadership)) => self.lead(&leadership.lost, &stop).await,
                Some(Err(error)) => {
                    tracing::error!(%error, "wait for leading");
                    stop.run_until_cancelled(tokio::time::sleep(RETRY_EVERY)).await;
                }
                None => {}
            }
        }
    }

    async fn lead(&self, lost: &CancellationToken, stop: &CancellationToken) {
        let waiting = self.state.orphans();
        loop {
            tokio::select! {
                () = waiting.due() => {}
                () = lost.cancelled() => return,
                () = stop.cancelled() => return,
            }
            if let Err(error) = self.some(waiting).await {
                tracing::error!(%error, "let go of files without names");
                stop.run_until_cancelled(tokio::time::sleep(RETRY_EVERY)).await;
            }
        }
    }

    /// Some of those that are due.
    async fn some(&self, waiting: &Waiting) -> Result<(), StoreError> {
        let due = waiting.orphans.lock().take_due(now(), AT_ONCE);
        let open = self.opens.are_open(&due);
        let (open, closed): (Vec<_>, Vec<_>) = due.into_iter().zip(open).partition(|(_, open)| *open);
        let closed: Vec<InodeNumber> = closed.into_iter().map(|(inode, _)| inode).collect();
        let done = self.let_go(&closed).await;
        let stay = if let Ok(Outcome::Committed(_)) = done { &[] } else { &closed[..] };
        let mut orphans = waiting.orphans.lock();
        for inode in open.iter().map(|(inode, _)| inode).chain(stay) {
            orphans.look_again(*inode, now());
        }
        drop(orphans);
        done.map(drop)
    }

    async fn let_go(&self, inodes: &[InodeNumber]) -> Result<Outcome, StoreError> {
        let _still = self.pause.lock().await;
        let commit = {
            let view = self.state.view();
            let drafted = plan::reclaim(&view.image, inodes);
            let (tree, seen) = (view.swarm.tree, view.revision);
            let conditions = drafted.relied.into_iter().map(|relied| condition_of(tree, relied, seen));
            let live = Condition::UnchangedSince(Key::Swarm.encode(), seen);
            Commit {
                conditions: conditions.chain([live]).collect(),
                writes: drafted.writes.into_iter().map(|write| record_of(tree, write)).collect(),
            }
        };
        if commit.writes.is_empty() {
            return Ok(Outcome::Committed(self.state.view().revision));
        }
        let files = commit.writes.len();
        let outcome = self.store.commit(commit).await?;
        match outcome {
            Outcome::Committed(revision) => {
                tracing::debug!(files, "let go of files without names");
                self.state.reached(revision).await;
            }
            // Somebody else was faster: see what they did before the next look.
            Outcome::Conflict => self.state.reached(self.store.revision().await?).await,
        }
        Ok(outcome)
    }
}
