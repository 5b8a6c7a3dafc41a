//! A store in memory that lets others go first, before and after each call: as a slow one does.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures::FutureExt;
use futures::future::BoxFuture;

use super::*;
use crate::store::history::Follower;
use crate::store::{Commit, Event, Leadership, Outcome, Page, StoreError, Versioned};

#[derive(Default)]
pub(crate) struct Wandering(MemoryStore, Syncs);

/// What became of the syncs.
#[derive(Default)]
struct Syncs {
    done: AtomicUsize,
    fail: AtomicBool,
}

impl Wandering {
    /// How often it was synced.
    pub(crate) fn syncs(&self) -> usize {
        self.1.done.load(Ordering::SeqCst)
    }

    /// From now on the disk cannot be synced.
    pub(crate) fn fail_syncs(&self) {
        self.1.fail.store(true, Ordering::SeqCst);
    }
}

async fn wander<T>(call: impl Future<Output = T>) -> T {
    for _ in 0..rand::random_range(0..6) {
        tokio::task::yield_now().await;
    }
    let done = call.await;
    for _ in 0..rand::random_range(0..6) {
        tokio::task::yield_now().await;
    }
    done
}

impl Store for Wandering {
    fn revision(&self) -> BoxFuture<'_, Result<Revision, StoreError>> {
        wander(self.0.revision()).boxed()
    }

    fn get(&self, key: Bytes) -> BoxFuture<'_, Result<Option<Versioned>, StoreError>> {
        // The memory store answers when it is asked, so it is asked late.
        wander(async move { self.0.get(key).await }).boxed()
    }

    fn scan(&self, prefix: Bytes, after: Bytes, limit: usize) -> BoxFuture<'_, Result<Page, StoreError>> {
        wander(async move { self.0.scan(prefix, after, limit).await }).boxed()
    }

    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Outcome, StoreError>> {
        wander(async move { self.0.commit(commit).await }).boxed()
    }

    fn watch(&self, after: Revision) -> Follower<Event> {
        self.0.watch(after)
    }

    fn lead(&self) -> BoxFuture<'_, Result<Leadership, StoreError>> {
        self.0.lead()
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn sync(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        wander(async {
            if self.1.fail.load(Ordering::SeqCst) {
                return Err(StoreError::io("sync")(std::io::ErrorKind::Other.into()));
            }
            self.1.done.fetch_add(1, Ordering::SeqCst);
            self.0.sync().await
        })
        .boxed()
    }
}
