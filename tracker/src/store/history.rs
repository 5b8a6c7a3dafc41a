//! The newest of what happened, in order, for those who follow it.
//!
//! Invariant: what is kept is contiguous, ends at the newest revision and weighs at most its budget; a
//! follower gets every item after its revision, in order, or is told that some are gone.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use swarm_proto::Revision;
use tokio::sync::watch;

use super::StoreError;

/// Bounded history of items, one a revision.
pub struct History<T> {
    shared: Arc<Shared<T>>,
}

struct Shared<T> {
    kept: Mutex<Kept<T>>,
    newest: watch::Sender<Revision>,
    budget: usize,
}

struct Kept<T> {
    /// Everything after this revision is in `items`.
    floor: Revision,
    items: VecDeque<(Revision, usize, Arc<T>)>,
    weight: usize,
}

impl<T> Clone for History<T> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<T> History<T> {
    /// An empty one at `revision` that keeps items up to `budget`, in whatever unit their weights have.
    pub fn new(revision: Revision, budget: usize) -> Self {
        let kept = Mutex::new(Kept { floor: revision, items: VecDeque::new(), weight: 0 });
        Self { shared: Arc::new(Shared { kept, newest: watch::Sender::new(revision), budget }) }
    }

    /// The newest revision.
    pub fn newest(&self) -> Revision {
        *self.shared.newest.borrow()
    }

    /// Add what happened at `revision`, which is newer than all before it.
    pub fn push(&self, revision: Revision, item: T, weight: usize) {
        {
            let mut kept = self.shared.kept.lock();
            kept.items.push_back((revision, weight, Arc::new(item)));
            kept.weight += weight;
            while kept.weight > self.shared.budget {
                let Some((gone, weight, _)) = kept.items.pop_front() else { break };
                kept.floor = gone;
                kept.weight -= weight;
            }
        }
        self.shared.newest.send_replace(revision);
    }

    /// Forget everything: whoever follows is told that items are gone.
    pub fn reset(&self, revision: Revision) {
        {
            let mut kept = self.shared.kept.lock();
            *kept = Kept { floor: revision, items: VecDeque::new(), weight: 0 };
        }
        self.shared.newest.send_replace(revision);
    }

    /// Follow from after a revision.
    pub fn follow(&self, after: Revision) -> Follower<T> {
        Follower { shared: self.shared.clone(), newest: self.shared.newest.subscribe(), after }
    }

    /// Return once `revision` has happened. Never ends if it never does: give it a deadline.
    pub async fn reached(&self, revision: Revision) {
        let mut newest = self.shared.newest.subscribe();
        // The sender lives in `self`, so this ends only when the revision is there.
        drop(newest.wait_for(|newest| *newest >= revision).await);
    }
}

/// Reads a [`History`] from some revision on.
pub struct Follower<T> {
    shared: Arc<Shared<T>>,
    newest: watch::Receiver<Revision>,
    after: Revision,
}

impl<T> Follower<T> {
    /// The next item; waits for it.
    ///
    /// Errors: [`StoreError::TooOld`] if it is no longer kept; the follower is then of no more use.
    /// Cancel: safe.
    pub async fn next(&mut self) -> Result<(Revision, Arc<T>), StoreError> {
        loop {
            self.newest.borrow_and_update();
            if let Some(found) = self.try_next()? {
                return Ok(found);
            }
            // Cannot fail: `self.shared` keeps the sender alive.
            self.newest.changed().await.map_err(|_| StoreError::Closed)?;
        }
    }

    /// Tells when there may be a next item, while somebody else takes it.
    pub fn news(&self) -> News {
        News(self.newest.clone())
    }

    /// The next item if it is there.
    pub fn try_next(&mut self) -> Result<Option<(Revision, Arc<T>)>, StoreError> {
        let kept = self.shared.kept.lock();
        if self.after < kept.floor {
            return Err(StoreError::TooOld(self.after));
        }
        let at = kept.items.partition_point(|(revision, ..)| *revision <= self.after);
        let Some((revision, _, item)) = kept.items.get(at) else { return Ok(None) };
        self.after = *revision;
        Ok(Some((*revision, item.clone())))
    }
}

/// See [`Follower::news`].
pub struct News(watch::Receiver<Revision>);

impl News {
    /// Return once something has happened since this returned last; at once the first time. For ever if nothing can
    /// happen any more.
    pub async fn wait(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_follower_gets_everything_after_its_revision_in_order() {
        let history = History::new(Revision(4), 100);
        let mut early = history.follow(Revision(4));
        history.push(Revision(5), 'a', 1);
        history.push(Revision(7), 'b', 1);
        let mut late = history.follow(Revision(5));
        assert_eq!(early.next().await.map(|(r, c)| (r, *c)).ok(), Some((Revision(5), 'a')));
        assert_eq!(early.next().await.map(|(r, c)| (r, *c)).ok(), Some((Revision(7), 'b')));
        assert_eq!(late.next().await.map(|(r, c)| (r, *c)).ok(), Some((Revision(7), 'b')));
        assert!(late.try_next().is_ok_and(|none| none.is_none()));
    }

    #[tokio::test]
    async fn who_falls_behind_the_budget_is_told() {
        let history = History::new(Revision(0), 2);
        let mut slow = history.follow(Revision(0));
        (1..=3).for_each(|n| history.push(Revision(n), n, 1));
        assert!(matches!(slow.next().await, Err(StoreError::TooOld(Revision(0)))));
        assert!(history.follow(Revision(1)).next().await.is_ok());
        history.reset(Revision(3));
        assert!(matches!(history.follow(Revision(2)).next().await, Err(StoreError::TooOld(_))));
    }

    #[tokio::test]
    async fn a_waiting_follower_wakes() {
        let history = History::new(Revision(0), 10);
        let mut follower = history.follow(Revision(0));
        let (got, ()) = tokio::join!(follower.next(), async { history.push(Revision(1), "x", 1) });
        assert_eq!(*got.expect("it was pushed").1, "x");
        history.reached(Revision(1)).await;
    }
}
