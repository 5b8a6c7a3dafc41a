//! Numbers that are used once: inodes, versions, bodies of manifests. Leased from the store in blocks.
//!
//! Invariant: a number that was handed out is below the stored one, so it is never handed out again,
//! by any process; those of a block that were not used are lost.

use std::sync::Arc;

use swarm_proto::InodeNumber;
use tokio::sync::Mutex;

use super::load::corrupt;
use super::put;
use crate::namespace::Fresh;
use crate::store::schema::{Key, Record};
use crate::store::{Commit, Condition, Outcome, Store, StoreError};

/// Numbers leased at once: one commit for so many files.
const BLOCK: u64 = 65_536;

/// See the module.
pub(crate) struct Numbers {
    store: Arc<dyn Store>,
    block: Mutex<std::ops::Range<u64>>,
}

impl Numbers {
    /// Nothing leased yet.
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        Self { store, block: Mutex::new(0..0) }
    }

    /// So many numbers that nobody else gets, in one run.
    pub(crate) async fn take(&self, count: u64) -> Result<Fresh, StoreError> {
        let mut block = self.block.lock().await;
        if block.end - block.start < count {
            *block = self.lease(count.max(BLOCK)).await?;
        }
        let taken = block.start..block.start + count;
        block.start = taken.end;
        Ok(Fresh::new(taken))
    }

    /// Hand out none below `least` from now on.
    pub(crate) async fn skip_to(&self, least: u64) -> Result<(), StoreError> {
        let mut block = self.block.lock().await;
        if block.start < least {
            *block = self.lease_from(least, BLOCK).await?;
        }
        Ok(())
    }

    /// Give back what was not used of the newest run.
    pub(crate) async fn give_back(&self, left: Fresh) {
        let mut block = self.block.lock().await;
        let left = left.into_range();
        if left.end == block.start {
            block.start = left.start;
        }
    }

    async fn lease(&self, count: u64) -> Result<std::ops::Range<u64>, StoreError> {
        self.lease_from(0, count).await
    }

    async fn lease_from(&self, least: u64, count: u64) -> Result<std::ops::Range<u64>, StoreError> {
        let key = Key::Numbers;
        loop {
            let found = self.store.get(key.encode()).await?;
            let (start, condition) = match &found {
                None => (InodeNumber::ROOT.0 + 1, Condition::Absent(key.encode())),
                Some(versioned) => match Record::decode(&key, &versioned.value).map_err(corrupt)? {
                    Record::Numbers(next) => (next, Condition::UnchangedSince(key.encode(), versioned.revision)),
                    _ => return Err(StoreError::Corrupt("the numbers are something else".into())),
                },
            };
            let start = start.max(least);
            let end = start.checked_add(count).ok_or_else(|| StoreError::Corrupt("no numbers are left".into()))?;
            let commit = Commit { conditions: vec![condition], writes: vec![put(key.clone(), Record::Numbers(end))] };
            if let Outcome::Committed(_) = self.store.commit(commit).await? {
                return Ok(start..end);
            }
        }
    }
}
