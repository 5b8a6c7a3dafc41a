//! Which manifests no file names, and dropping them.

use std::time::{Duration, Instant};

use bytes::Bytes;
use swarm_proto::ManifestDigest;

use super::{Leftover, Manifests};
use crate::catalog::load::corrupt;
use crate::catalog::state::State;
use crate::store::schema::{Key, ManifestBody, Record, TreeNumber, prefix};
use crate::store::{Commit, Condition, Outcome, SCAN_PAGE, StoreError, Write};

impl Manifests {
    /// No file names it now, as far as the caller knows; never waits.
    pub(in crate::catalog) fn maybe_dead(&self, digest: ManifestDigest) {
        self.dead.lock().entry(digest).or_insert_with(Instant::now);
    }

    /// Somebody is about to name it: its grace begins anew.
    pub(in crate::catalog) fn used_again(&self, digest: ManifestDigest) {
        self.dead.lock().insert(digest, Instant::now());
    }

    /// Leave something to the sweep; never waits.
    pub(crate) fn leave(&self, leftover: Leftover) {
        self.leftovers.lock().push(leftover);
    }

    /// Drop what was left. Nobody imports meanwhile.
    pub(in crate::catalog) async fn drop_leftovers(&self, state: &State) -> Result<(), StoreError> {
        loop {
            let Some(leftover) = self.leftovers.lock().pop() else { return Ok(()) };
            match leftover {
                Leftover::Body(body) => self.drop_body(body, Key::Upload(body)).await?,
                Leftover::Tree(tree) if tree != state.view().swarm.tree => self.drop_tree(tree).await?,
                Leftover::Tree(_) => {}
            }
        }
    }

    /// Find what processes that were killed left unfinished.
    pub(in crate::catalog) async fn find_leftovers(&self) -> Result<(), StoreError> {
        let uploads = self.store.scan(prefix::UPLOADS, Bytes::new(), usize::MAX).await?;
        for entry in uploads.entries {
            let key = Key::decode(&entry.key).map_err(corrupt)?;
            if let Key::Upload(body) = key {
                self.leave(Leftover::Body(body));
            }
        }
        let imports = self.store.scan(prefix::IMPORTS, Bytes::new(), usize::MAX).await?;
        for entry in imports.entries {
            let key = Key::decode(&entry.key).map_err(corrupt)?;
            if let Key::Import(tree) = key {
                self.leave(Leftover::Tree(tree));
            }
        }
        Ok(())
    }

    /// Drop all names of a tree that is not live, and then the mark that says so.
    pub(crate) async fn drop_tree(&self, tree: TreeNumber) -> Result<(), StoreError> {
        self.drop_all(prefix::nodes(tree)).await?;
        self.drop_all(prefix::entries(tree)).await?;
        let mark = Write { key: Key::Import(tree).encode(), value: None };
        self.store.commit(Commit { conditions: Vec::new(), writes: vec![mark] }).await?;
        Ok(())
    }

    /// Drop every key of a prefix.
    pub(in crate::catalog) async fn drop_all(&self, prefix: Bytes) -> Result<(), StoreError> {
        loop {
            let page = self.store.scan(prefix.clone(), Bytes::new(), SCAN_PAGE).await?;
            let writes = page.entries.into_iter().map(|entry| Write { key: entry.key, value: None }).collect();
            self.store.commit(Commit { conditions: Vec::new(), writes }).await?;
            if !page.more {
                return Ok(());
            }
        }
    }

    /// Note every stored manifest that no file names: what a process that was stopped did not get to sweep.
    pub(in crate::catalog) async fn find_dead(&self, state: &State) -> Result<(), StoreError> {
        let mut after = Bytes::new();
        loop {
            let page = self.store.scan(prefix::MANIFESTS, after, SCAN_PAGE).await?;
            after = page.entries.last().map(|entry| entry.key.clone()).unwrap_or_default();
            for entry in &page.entries {
                if let Key::Manifest(digest) = Key::decode(&entry.key).map_err(corrupt)?
                    && !state.view().image.is_live(&digest)
                {
                    self.maybe_dead(digest);
                }
            }
            if !page.more {
                return Ok(());
            }
        }
    }

    /// Drop those that no file has named for `grace`.
    ///
    /// Shape: how many were dropped.
    pub(crate) async fn sweep(&self, state: &State, grace: Duration) -> Result<usize, StoreError> {
        let Ok(_alone) = self.keep.try_write() else { return Ok(0) };
        let due: Vec<ManifestDigest> = {
            let view = state.view();
            let mut dead = self.dead.lock();
            dead.retain(|digest, _| !view.image.is_live(digest));
            dead.iter().filter(|(_, since)| since.elapsed() >= grace).map(|(digest, _)| *digest).collect()
        };
        let mut dropped = 0;
        for digest in due {
            dropped += usize::from(self.drop_dead(state, digest).await?);
        }
        Ok(dropped)
    }

    /// The head goes first, unless it was written or named since; then its pages.
    pub(in crate::catalog) async fn drop_dead(
        &self,
        state: &State,
        digest: ManifestDigest,
    ) -> Result<bool, StoreError> {
        let key = Key::Manifest(digest);
        let found = self.store.get(key.encode()).await?;
        // Looked at after the head was read: whoever names it from now on changes its head or finds it gone.
        let live = state.view().image.is_live(&digest);
        let Some(found) = found.filter(|_| !live) else {
            self.dead.lock().remove(&digest);
            return Ok(false);
        };
        let head = Record::decode(&key, &found.value).map_err(corrupt)?;
        let mut writes = vec![Write { key: key.encode(), value: None }];
        let body = match head {
            Record::Manifest(head) => match head.body {
                ManifestBody::Pages(body) => Some(body),
                ManifestBody::Here(_) => None,
            },
            _ => None,
        };
        if let Some(body) = body {
            // A kill between here and the last page leaves the mark, and the next start goes on.
            writes.push(crate::catalog::put(Key::Upload(body), Record::Mark));
        }
        let conditions = vec![Condition::UnchangedSince(key.encode(), found.revision)];
        if self.store.commit(Commit { conditions, writes }).await? == Outcome::Conflict {
            return Ok(false);
        }
        self.dead.lock().remove(&digest);
        if let Some(body) = body {
            self.drop_body(body, Key::Upload(body)).await?;
        }
        Ok(true)
    }
}
