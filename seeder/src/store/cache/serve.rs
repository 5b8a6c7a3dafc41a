//! The cache as a peer's store: what it has of each segment, and its bytes, verified on every serve.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use swarm_proto::{ChunkRange, ChunkSet, ChunkTree, Presence, Segment, SegmentId};
use tokio::sync::broadcast;

use super::disk::failed;
use super::entry::{Entry, Level};
use super::store::CacheStore;
use crate::store::{ChunkStore, Held, Holding, StoreError, Usage};

impl ChunkStore for CacheStore {
    fn holding(&self) -> Holding {
        Holding::Cached
    }

    fn held(&self, id: &SegmentId) -> Option<Held> {
        union(&self.places(id))
    }

    async fn tree(&self, id: SegmentId) -> Result<ChunkTree, StoreError> {
        self.blocking(move |store| store.tree_blocking(id)).await
    }

    async fn read(&self, id: SegmentId, chunks: ChunkRange) -> Result<Bytes, StoreError> {
        self.blocking(move |store| store.read_blocking(id, chunks)).await
    }

    async fn reverify(&self, id: SegmentId) -> Result<Vec<u32>, StoreError> {
        self.blocking(move |store| store.reverify_blocking(id)).await
    }

    fn inventory(&self) -> Vec<(SegmentId, bool)> {
        let held = |id: SegmentId| {
            let levels = self.places(&id).iter().map(|(entry, extent)| entry.level(*extent)).collect::<Vec<_>>();
            if levels.contains(&Level::Whole) {
                return Some((id, true));
            }
            // Two places in part may be one whole.
            match levels.iter().filter(|level| **level == Level::Some).count() {
                0 => None,
                1 => Some((id, false)),
                _ => self.held(&id).map(|held| (id, held.presence == Presence::Whole)),
            }
        };
        self.ids().into_iter().filter_map(held).collect()
    }

    fn changes(&self) -> broadcast::Receiver<SegmentId> {
        self.changes.subscribe()
    }

    fn usage(&self) -> Usage {
        CacheStore::usage(self)
    }
}

fn union(places: &[(Arc<Entry>, usize)]) -> Option<Held> {
    let mut held: Option<(Segment, ChunkSet)> = None;
    for (entry, extent) in places {
        let Some(slice) = entry.slice(*extent) else { continue };
        if entry.level(*extent) == Level::Whole {
            return Some(Held { segment: slice.segment, presence: Presence::Whole });
        }
        let (segment, set) = held.get_or_insert_with(|| (slice.segment, ChunkSet::empty(slice.segment.chunks())));
        if *segment == slice.segment {
            entry.present_runs(*extent).into_iter().for_each(|run| set.insert(run));
        }
    }
    let (segment, set) = held.filter(|(_, set)| !set.is_empty())?;
    let presence = match set.is_full() {
        true => Presence::Whole,
        false => Presence::Partial(set),
    };
    Some(Held { segment, presence })
}

impl CacheStore {
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&CacheStore) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = self.me.upgrade().expect("a store in use is alive");
        let done = tokio::task::spawn_blocking(move || work(&store)).await;
        done.unwrap_or_else(|error| Err(failed("read the cache")(std::io::Error::other(error))))
    }

    /// Why chunks that were here a moment ago are not: rot outranks absence.
    fn absent(&self, id: SegmentId, rotten: Option<StoreError>) -> StoreError {
        rotten.unwrap_or_else(|| match self.held(&id) {
            Some(_) => StoreError::Partial(id),
            None => StoreError::Missing(id),
        })
    }

    fn tree_blocking(&self, id: SegmentId) -> Result<ChunkTree, StoreError> {
        let mut rotten = None;
        for (entry, extent) in self.places(&id) {
            if entry.level(extent) == Level::Nothing {
                continue;
            }
            let (Some(file), Some(slice)) = (self.pin_entry(&entry), entry.slice(extent)) else { continue };
            match file.entry.files(&self.folder).and_then(|files| self.tree_of(&entry, &files, extent, &slice)) {
                Ok(tree) => return Ok(tree),
                Err(error) => rotten = Some(error),
            }
        }
        Err(self.absent(id, rotten))
    }

    fn read_blocking(&self, id: SegmentId, chunks: ChunkRange) -> Result<Bytes, StoreError> {
        let held = self.held(&id).ok_or(StoreError::Missing(id))?;
        if chunks.is_empty() || !held.segment.all().contains(chunks) {
            return Err(StoreError::Partial(id));
        }
        let places = self.places(&id);
        let mut rotten = None;
        let mut pieces: Vec<Bytes> = Vec::new();
        let mut from = chunks.start;
        while from < chunks.end {
            let rest = ChunkRange::new(from, chunks.end);
            let longest = places
                .iter()
                .filter(|(entry, extent)| entry.slice(*extent).is_some_and(|slice| slice.segment == held.segment))
                .map(|(entry, extent)| (entry.run_from(*extent, rest), entry, *extent))
                .max_by_key(|(run, ..)| run.len());
            let Some((run, entry, extent)) = longest.filter(|(run, ..)| !run.is_empty()) else {
                return Err(self.absent(id, rotten));
            };
            let Some(file) = self.pin_entry(entry) else { return Err(self.absent(id, rotten)) };
            match self.read_place(&file.entry, extent, run) {
                Ok((_, bytes)) => {
                    pieces.push(bytes);
                    from = run.end;
                }
                // What was bad is dropped, so the next round sees other places.
                Err(error @ (StoreError::Corrupt { .. } | StoreError::Io { .. })) => rotten = Some(error),
                Err(error) => return Err(error),
            }
        }
        if let [piece] = pieces.as_slice() {
            return Ok(piece.clone());
        }
        let mut all = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
        pieces.iter().for_each(|piece| all.extend_from_slice(piece));
        Ok(all.freeze())
    }

    fn reverify_blocking(&self, id: SegmentId) -> Result<Vec<u32>, StoreError> {
        let places = self.places(&id);
        if union(&places).is_none() {
            return Err(StoreError::Missing(id));
        }
        let mut bad = Vec::new();
        for (entry, extent) in places {
            let (Some(file), Some(slice)) = (self.pin_entry(&entry), entry.slice(extent)) else { continue };
            let runs = entry.present_runs(extent);
            if runs.is_empty() {
                continue;
            }
            let files = file.entry.files(&self.folder)?;
            let Ok(tree) = self.tree_of(&entry, &files, extent, &slice) else {
                bad.extend(runs.iter().flat_map(ChunkRange::iter));
                continue;
            };
            for run in runs {
                let dropped = entry.verify(&files, &tree, extent, &slice, run)?;
                if !dropped.is_empty() {
                    self.rotted(&entry, id);
                    bad.extend(dropped);
                }
            }
        }
        bad.sort_unstable();
        bad.dedup();
        Ok(bad)
    }
}
