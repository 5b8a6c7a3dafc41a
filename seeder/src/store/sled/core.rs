//! What all parts of the store share: the folder, the database, the index and the ways into the lanes.
//!
//! Holds state and small helpers, no policy: the rooms beside it do the work.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lru::LruCache;
use parking_lot::Mutex;
use swarm_proto::{ChunkTree, PeerId, SegmentId, SwarmId};
use tokio::sync::{Semaphore, broadcast};

use super::commit::Change;
use super::database::Database;
use super::home::Home;
use super::index::Index;
use super::lane::LaneSender;
use super::proofs::Proofs;
use super::room::Room;
use super::settle::{Chore, RaiseJob, Unsettled};
use super::turn::Turn;
use crate::store::disk::Disk;
use crate::store::{StoreError, failed};

/// Calls that may block in the disk at once.
const WORKERS: usize = 64;
/// Changes that a receiver may lag behind.
const CHANGES: usize = 16 * 1024;
/// Bytes of verified trees kept in memory: those of 8 GiB in segments of 4 MiB.
const TREE_CACHE_BYTES: usize = 16 * 1024 * 1024;

/// How a store is set up.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// Its folder; made if it is not there.
    pub dir: PathBuf,
    /// Bytes it may use; 0: 90 % of what is free on the disk when it is opened.
    pub capacity: u64,
    /// Segments up to this length lie in the database, larger ones in a file each.
    pub inline_up_to: u32,
    /// Bytes of the disk to leave free. Absent: 1 % of the disk, at most 1 GiB. Not 0 on a disk that can
    /// fill up: sled stops for good when it meets a full disk.
    pub free_floor: Option<u64>,
    /// Bytes of the database that it keeps in memory.
    pub cache_bytes: u64,
    /// How soon the disk follows an acknowledgement at the close level.
    pub settle_every: Duration,
}

impl StoreConfig {
    /// The defaults for a folder.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            capacity: 0,
            inline_up_to: 64 * 1024,
            free_floor: None,
            cache_bytes: 64 * 1024 * 1024,
            settle_every: Duration::from_millis(500),
        }
    }
}

/// The shared state.
pub(super) struct Core {
    pub(super) config: StoreConfig,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) database: Database,
    pub(super) index: Index,
    pub(super) room: Arc<Room>,
    pub(super) trees: TreeCache,
    pub(super) proofs: Proofs,
    pub(super) unsettled: Unsettled,
    pub(super) numbers: Numbers,
    pub(super) changes: broadcast::Sender<SegmentId>,
    pub(super) commits: LaneSender<Change>,
    pub(super) commit_turn: Turn,
    pub(super) raises: LaneSender<RaiseJob>,
    pub(super) chores: LaneSender<Chore>,
    pub(super) takes: LaneSender<()>,
    pub(super) workers: Arc<Semaphore>,
    pub(super) peer: PeerId,
    pub(super) swarm: Mutex<Option<SwarmId>>,
    /// Last, so that the folder is unlocked after all else is closed.
    pub(super) home: Home,
}

impl Core {
    /// Run what blocks, off the async threads.
    pub(super) async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Arc<Self>) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        let permit = self.workers.clone().acquire_owned().await.map_err(|_| closed())?;
        let core = self.clone();
        let job = tokio::task::spawn_blocking(move || {
            let result = work(&core);
            // Also where the caller has gone: the bound is on what really runs.
            drop(permit);
            result
        });
        job.await.map_err(|error| failed("run a worker of the store")(io::Error::other(error)))
    }

    /// Tell that the presence of a segment changed.
    pub(super) fn changed(&self, id: SegmentId) {
        // An error says that nobody listens.
        let _ = self.changes.send(id);
    }

    /// Ask the disk how much is free.
    pub(super) fn look_at_disk(&self) -> io::Result<()> {
        self.room.disk_says(self.disk.space(self.home.dir())?.free);
        Ok(())
    }
}

/// A permit for each call that blocks.
pub(super) fn workers() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(WORKERS))
}

/// Where changes are told.
pub(super) fn changes() -> broadcast::Sender<SegmentId> {
    broadcast::channel(CHANGES).0
}

/// The store is being closed.
pub(super) fn closed() -> StoreError {
    failed("reach the store")(io::Error::new(io::ErrorKind::BrokenPipe, "it is closed"))
}

/// Unix time in milliseconds.
pub(super) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// Gives out numbers that were never given out before: places, writes and touch stamps.
pub(super) struct Numbers(AtomicU64);

impl Numbers {
    /// From `next` on; never 0.
    pub(super) fn new(next: u64) -> Self {
        Self(AtomicU64::new(next.max(1)))
    }

    /// A new one.
    pub(super) fn take(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst)
    }

    /// The one that will be given out next.
    pub(super) fn next(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// Verified trees that were used lately, bounded by their bytes.
pub(super) struct TreeCache {
    inner: Mutex<(LruCache<SegmentId, ChunkTree>, usize)>,
}

impl Default for TreeCache {
    fn default() -> Self {
        Self { inner: Mutex::new((LruCache::unbounded(), 0)) }
    }
}

impl TreeCache {
    /// A tree that is kept.
    pub(super) fn get(&self, id: &SegmentId) -> Option<ChunkTree> {
        self.inner.lock().0.get(id).cloned()
    }

    /// Keep a tree; one of a single chunk is empty and not worth it.
    pub(super) fn put(&self, tree: ChunkTree) {
        let weight = |tree: &ChunkTree| tree.values().len() + 128;
        if tree.values().is_empty() {
            return;
        }
        let mut inner = self.inner.lock();
        let (cache, bytes) = &mut *inner;
        *bytes += weight(&tree);
        if let Some((_, old)) = cache.push(tree.segment().id, tree) {
            *bytes -= weight(&old);
        }
        while *bytes > TREE_CACHE_BYTES {
            match cache.pop_lru() {
                Some((_, old)) => *bytes -= weight(&old),
                None => break,
            }
        }
    }
}
