//! A store that is gone with its process: for tests, and for a swarm that is.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use parking_lot::Mutex;
use swarm_proto::Revision;
use tokio_util::sync::CancellationToken;

use super::history::{Follower, History};
use super::{
    Commit, EVENT_BUDGET, Event, KeyValue, Leadership, Outcome, Page, Store, StoreError, Versioned, event_weight,
};

/// Keys and values in memory.
pub struct MemoryStore {
    state: Mutex<State>,
    events: History<Event>,
}

#[derive(Default)]
struct State {
    keys: BTreeMap<Bytes, Versioned>,
    epoch: u64,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self { state: Mutex::default(), events: History::new(Revision(0), EVENT_BUDGET) }
    }
}

impl MemoryStore {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    fn commit_now(&self, commit: Commit) -> Outcome {
        let mut state = self.state.lock();
        let holds = |condition: &super::Condition| {
            condition.holds(state.keys.get(condition.key()).map(|versioned| versioned.revision))
        };
        if !commit.conditions.iter().all(holds) {
            return Outcome::Conflict;
        }
        let revision = Revision(self.events.newest().0 + 1);
        for write in &commit.writes {
            match &write.value {
                Some(value) => {
                    state.keys.insert(write.key.clone(), Versioned { value: value.clone(), revision });
                }
                None => {
                    state.keys.remove(&write.key);
                }
            }
        }
        let weight = event_weight(&commit.writes);
        self.events.push(revision, commit.writes, weight);
        Outcome::Committed(revision)
    }

    fn page(&self, prefix: &Bytes, after: &Bytes, limit: usize) -> Page {
        let state = self.state.lock();
        let from = match after.is_empty() {
            true => Bound::Included(prefix.clone()),
            false => Bound::Excluded(after.clone()),
        };
        let mut within = state
            .keys
            .range((from, Bound::Unbounded))
            .skip_while(|(key, _)| *key < prefix)
            .take_while(|(key, _)| key.starts_with(prefix));
        let entries = within
            .by_ref()
            .take(limit)
            .map(|(key, versioned)| KeyValue { key: key.clone(), versioned: versioned.clone() })
            .collect();
        Page { entries, more: within.next().is_some() }
    }
}

impl Store for MemoryStore {
    fn revision(&self) -> BoxFuture<'_, Result<Revision, StoreError>> {
        ready(Ok(self.events.newest())).boxed()
    }

    fn get(&self, key: Bytes) -> BoxFuture<'_, Result<Option<Versioned>, StoreError>> {
        ready(Ok(self.state.lock().keys.get(&key).cloned())).boxed()
    }

    fn scan(&self, prefix: Bytes, after: Bytes, limit: usize) -> BoxFuture<'_, Result<Page, StoreError>> {
        ready(Ok(self.page(&prefix, &after, limit))).boxed()
    }

    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Outcome, StoreError>> {
        ready(Ok(self.commit_now(commit))).boxed()
    }

    fn watch(&self, after: Revision) -> Follower<Event> {
        self.events.follow(after)
    }

    fn lead(&self) -> BoxFuture<'_, Result<Leadership, StoreError>> {
        let mut state = self.state.lock();
        state.epoch += 1;
        ready(Ok(Leadership { epoch: state.epoch, lost: CancellationToken::new() })).boxed()
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn sync(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        ready(Ok(())).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn memory_conforms() {
        super::super::conformance::run(&mut || Box::pin(async { std::sync::Arc::new(MemoryStore::new()) as _ })).await;
    }
}
