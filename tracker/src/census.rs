//! How well all segments are kept: counted over the whole catalog, and remembered.
//!
//! A count reads every manifest, so it is made at most once at a time, and no more than a twentieth of the
//! time is spent on it: one that took a second is good for twenty, one that took a millisecond for twenty
//! milliseconds. Nothing changed: it is good for ever.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use swarm_proto::Revision;
use swarm_proto::v1::PeerKind;
use tokio_util::task::TaskTracker;

use crate::catalog::Catalog;
use crate::holders::Survey;
use crate::peers::{PeerSlot, Snapshot, State};
use crate::policy::health::{Histogram, Replicas};
use crate::soft::Soft;
use crate::store::StoreError;

/// What a count costs is spread over so many times its duration.
const SPREAD: u32 = 20;

/// A count of all distinct segments.
#[derive(Debug, Clone, Default)]
pub struct Counted {
    /// By replicas.
    pub histogram: Histogram,
    /// Sum of their lengths.
    pub distinct_bytes: u64,
}

/// What a count depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Basis {
    revision: Revision,
    holders: u64,
    peers: u64,
}

struct Remembered {
    basis: Basis,
    counted: Arc<Counted>,
    at: Instant,
    took: Duration,
}

/// Counts, and remembers the last one.
pub struct Census {
    soft: Arc<Soft>,
    catalog: Arc<Catalog>,
    last: Mutex<Option<Remembered>>,
    counting: tokio::sync::Mutex<()>,
}

impl Census {
    /// Nothing is counted yet.
    pub fn new(soft: Arc<Soft>, catalog: Arc<Catalog>) -> Self {
        Self { soft, catalog, last: Mutex::default(), counting: tokio::sync::Mutex::default() }
    }

    /// The last count, however old; `None` before the first.
    pub fn last(&self) -> Option<Arc<Counted>> {
        self.last.lock().as_ref().map(|last| last.counted.clone())
    }

    /// Where the holders are.
    pub fn soft(&self) -> &Soft {
        &self.soft
    }

    /// Where the names are.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// The last count if it is still good, else a new one.
    ///
    /// Shape:  a caller that gives up does not stop the count: the next one finds it.
    /// Errors: the store's.
    pub async fn current(self: &Arc<Self>, tasks: &TaskTracker) -> Result<Arc<Counted>, StoreError> {
        if let Some(good) = self.good() {
            return Ok(good);
        }
        let census = self.clone();
        let count = tasks.spawn(async move {
            let _one = census.counting.lock().await;
            match census.good() {
                Some(good) => Ok(good),
                None => census.count().await,
            }
        });
        count.await.unwrap_or(Err(StoreError::Closed))
    }

    fn good(&self) -> Option<Arc<Counted>> {
        let last = self.last.lock();
        let last = last.as_ref()?;
        let good = last.at.elapsed() < last.took * SPREAD || last.basis == self.basis(&self.seeders());
        good.then(|| last.counted.clone())
    }

    async fn count(&self) -> Result<Arc<Counted>, StoreError> {
        let began = Instant::now();
        let seeders = self.seeders();
        let basis = self.basis(&seeders);
        let mut survey = Survey::new(&self.soft.holders);
        let mut counted = Counted::default();
        let mut each = |segment: swarm_proto::Segment| {
            let Some(holders) = survey.first(&segment.id) else { return };
            let mut replicas = Replicas::default();
            for holder in holders.iter().filter(|holder| !holder.is_partial()) {
                if let Some((state, draining)) = seeders.get(&holder.peer()) {
                    replicas.count(*state, *draining);
                }
            }
            counted.histogram.add(replicas);
            counted.distinct_bytes += u64::from(segment.length);
        };
        self.catalog.for_each_live_segment(&mut each).await?;
        let counted = Arc::new(counted);
        let at = Instant::now();
        let remembered = Remembered { basis, counted: counted.clone(), at, took: at - began };
        *self.last.lock() = Some(remembered);
        Ok(counted)
    }

    /// Seeders that are not dead, and whether they drain.
    fn seeders(&self) -> HashMap<PeerSlot, (State, bool)> {
        let all = self.soft.registry.snapshots(Instant::now());
        let counts = |known: &&Snapshot| known.facts.kind == PeerKind::Seeder && known.state != State::Dead;
        all.iter().filter(counts).map(|known| (known.slot, (known.state, known.draining))).collect()
    }

    fn basis(&self, seeders: &HashMap<PeerSlot, (State, bool)>) -> Basis {
        let mut sorted: Vec<_> = seeders.iter().collect();
        sorted.sort_unstable_by_key(|(slot, _)| **slot);
        let mut hasher = DefaultHasher::new();
        sorted.hash(&mut hasher);
        Basis { revision: self.catalog.revision(), holders: self.soft.holders.version(), peers: hasher.finish() }
    }
}
