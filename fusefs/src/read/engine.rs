//! The read engine: what all open files of a mount share.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus::Registry;
use swarm_proto::manifest::PartSource;
use swarm_proto::{ByteRange, ChunkRange, ChunkTree, MAX_RUN_CHUNKS, Manifest, ManifestDigest, Segment, SegmentId};
use swarm_seeder::store::ChunkStore;
use swarm_seeder::store::StoreError;
use swarm_seeder::store::cache::{CacheFile, CacheStore, MissingRun};
use swarm_seeder::swarm::{FetchError, Fetched, Urgency, Want};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::budget::MemoryBudget;
use super::flights::{Flights, Found, Outcome, Run};
use super::metrics::{Metrics, ReadStats};
use super::reader::OpenFile;
use super::source::ChunkSource;
use super::writer::{self, Job, Writer};
use super::{ReadError, prefetch};

/// Largest file of which all is verified again, once somebody opens it after a restart, so that the kernel
/// may read it by itself: a second or two of one core.
const VERIFY_WHOLE_UP_TO: u64 = 1 << 30;
/// Bytes verified between two looks at whether the mount is stopping.
const VERIFY_STEP: u64 = 16 << 20;
/// Longest that what is read ahead is waited for.
const AHEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Segments of a file that is opened whose holders are asked for at once.
const EXPECT_ON_OPEN: usize = 1024;
/// Lists of files to be fetched ahead that may wait.
const PREFETCH_QUEUE: usize = 16;

/// How reading behaves.
#[derive(Debug, Clone)]
pub struct ReadConfig {
    /// Most bytes fetched ahead of one stream of one handle.
    pub max_readahead: u64,
    /// Longest that anything is waited for.
    pub read_timeout: Duration,
    /// Most bytes that wait in memory; `None`: 256 MiB, or a quarter of what the process may use.
    pub memory: Option<u64>,
}

impl Default for ReadConfig {
    fn default() -> Self {
        Self { max_readahead: 64 << 20, read_timeout: Duration::from_secs(30), memory: None }
    }
}

/// Reads files for a mount.
pub struct ReadEngine {
    shared: Arc<Shared>,
    prefetch: mpsc::Sender<prefetch::List>,
    verifying: Arc<Mutex<HashSet<ManifestDigest>>>,
}

/// What the parts of the engine share.
pub(super) struct Shared {
    pub(super) cache: Arc<CacheStore>,
    pub(super) source: Arc<dyn ChunkSource>,
    pub(super) config: ReadConfig,
    pub(super) budget: Arc<MemoryBudget>,
    pub(super) metrics: Metrics,
    pub(super) flights: Mutex<Flights>,
    pub(super) tasks: TaskTracker,
    pub(super) stop: CancellationToken,
    writer: Writer,
}

impl ReadEngine {
    /// A reader of `cache` and `source`; its work, and making the cache durable, runs in `tasks` until `stop`.
    pub fn new(
        cache: Arc<CacheStore>,
        source: Arc<dyn ChunkSource>,
        config: ReadConfig,
        registry: &Registry,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let budget = MemoryBudget::new(config.memory.unwrap_or_else(MemoryBudget::default_limit));
        let (writer, jobs) = Writer::new(budget.limit());
        cache.start(&tasks, stop.clone());
        let shared = Arc::new(Shared {
            cache,
            source,
            config,
            budget,
            metrics: Metrics::new(registry),
            flights: Mutex::new(Flights::new()),
            tasks: tasks.clone(),
            stop: stop.clone(),
            writer,
        });
        tasks.spawn(writer::run(shared.clone(), jobs, tasks.clone(), stop));
        let (prefetch, lists) = mpsc::channel(PREFETCH_QUEUE);
        tasks.spawn(prefetch::run(shared.clone(), lists));
        Arc::new(Self { shared, prefetch, verifying: Arc::default() })
    }

    /// A handle to one version of a file, with a readahead of its own. Never waits.
    ///
    /// Errors: [`ReadError::Failed`] if `manifest` is not the one of `digest`.
    pub fn open(&self, digest: ManifestDigest, manifest: Arc<Manifest>) -> Result<Arc<OpenFile>, ReadError> {
        let file = self.shared.cache.file(digest, manifest).map_err(|error| ReadError::Failed(error.to_string()))?;
        if file.is_full() {
            self.verify_whole(&file);
        } else {
            let ids: Vec<_> = file.manifest().segments().take(EXPECT_ON_OPEN).map(|segment| segment.id).collect();
            self.shared.source.expect(&ids);
        }
        Ok(Arc::new(OpenFile::new(self.shared.clone(), file)))
    }

    /// These files will be read soon, in this order: fetch them as far as there is room. Never waits.
    pub fn prefetch(&self, files: Vec<(ManifestDigest, Arc<Manifest>)>) {
        if self.prefetch.try_send(files).is_err() {
            tracing::debug!("too much is being fetched ahead already");
        }
    }

    /// Bytes of a version that are in the cache.
    pub fn cached_bytes(&self, digest: &ManifestDigest) -> u64 {
        self.shared.cache.cached_file(digest).map_or(0, |file| file.cached_bytes())
    }

    /// The manifest of a version that is cached, for when no tracker answers.
    pub fn cached_manifest(&self, digest: &ManifestDigest) -> Option<Arc<Manifest>> {
        self.shared.cache.manifest(digest)
    }

    /// What was done so far.
    pub fn stats(&self) -> ReadStats {
        self.shared.metrics.stats(self.shared.budget.used())
    }

    /// Hash all of a file that was cached before a restart, so that the next one who opens it may have the
    /// kernel read it.
    fn verify_whole(&self, file: &Arc<CacheFile>) {
        let size = file.manifest().size();
        if file.is_verified() || size > VERIFY_WHOLE_UP_TO || !self.verifying.lock().insert(file.digest()) {
            return;
        }
        let (file, verifying, stop) = (file.clone(), self.verifying.clone(), self.shared.stop.clone());
        self.shared.tasks.spawn_blocking(move || {
            let mut steps = (0..size).step_by(usize::try_from(VERIFY_STEP).expect("16 MiB fits"));
            let good = |start| file.verify(ByteRange::at(start, VERIFY_STEP)).is_ok();
            let _ = steps.all(|start| !stop.is_cancelled() && good(start));
            verifying.lock().remove(&file.digest());
        });
    }
}

/// What a run that is to be fetched is for.
#[derive(Clone, Copy)]
pub(super) struct Purpose {
    pub(super) extent: usize,
    pub(super) segment: Segment,
    pub(super) urgency: Urgency,
    pub(super) deadline: Instant,
}

impl Shared {
    /// Enter a run and begin to fetch it; `None` if it is only read ahead and there is no room.
    pub(super) fn start(
        self: &Arc<Self>,
        flights: &mut Flights,
        file: &Arc<CacheFile>,
        chunks: ChunkRange,
        purpose: Purpose,
    ) -> Option<(Arc<Run>, watch::Receiver<Outcome>)> {
        let bytes = purpose.segment.bytes_of(chunks).len();
        while !self.budget.has_room(bytes) && flights.forget_one(purpose.urgency) {}
        if purpose.urgency == Urgency::Ahead && !self.budget.has_room(bytes) {
            return None;
        }
        let grant = self.budget.take(bytes);
        self.metrics.started(purpose.urgency);
        self.metrics.waiting_bytes.set(i64::try_from(self.budget.used()).unwrap_or(i64::MAX));
        let (run, receiver, promoted) = flights.start(purpose.segment, chunks, purpose.urgency, grant);
        let (shared, file, started) = (self.clone(), file.clone(), run.clone());
        self.tasks.spawn(async move { shared.fly(file, started, purpose, promoted).await });
        Some((run, receiver))
    }

    /// Fetch what `range` of a file lacks, ahead of its reader; each run's receiver is given to `keep`, and
    /// a run of which nobody keeps one is withdrawn. Returns how far there was room.
    pub(super) fn start_ahead(
        self: &Arc<Self>,
        file: &Arc<CacheFile>,
        range: ByteRange,
        mut keep: impl FnMut(watch::Receiver<Outcome>),
    ) -> u64 {
        let Ok(parts) = file.manifest().parts(range) else { return range.end };
        let deadline = Instant::now() + self.config.read_timeout.min(AHEAD_TIMEOUT);
        let mut expected: Vec<SegmentId> = Vec::new();
        let mut reached = range.end;
        let mut flights = self.flights.lock();
        'parts: for part in parts {
            let PartSource::Segment { segment, chunks, .. } = part.source else { continue };
            for found in flights.find(segment, chunks) {
                let Found::Absent(absent) = found else { continue };
                for run in file.absent(part.extent, absent).into_iter().flat_map(aligned) {
                    if expected.last() != Some(&segment.id) {
                        expected.push(segment.id);
                    }
                    let purpose = Purpose { extent: part.extent, segment, urgency: Urgency::Ahead, deadline };
                    match self.start(&mut flights, file, run, purpose) {
                        Some((_, receiver)) => keep(receiver),
                        None => {
                            reached = part.in_file.start;
                            break 'parts;
                        }
                    }
                }
            }
        }
        drop(flights);
        self.source.expect(&expected);
        reached
    }

    async fn fly(
        self: Arc<Self>,
        file: Arc<CacheFile>,
        run: Arc<Run>,
        purpose: Purpose,
        promoted: Option<oneshot::Receiver<Instant>>,
    ) {
        let outcome = tokio::select! {
            outcome = self.bring(&file, &run, purpose, promoted) => outcome,
            () = self.abandoned(&run) => {
                self.metrics.withdrawn.inc();
                return;
            }
            () = self.stop.cancelled() => Outcome::Failed(ReadError::Stopping),
        };
        let bytes = run.bytes().len();
        if matches!(outcome, Outcome::Landed(_)) {
            self.metrics.fetched_bytes.inc_by(bytes);
            self.writer.room(bytes).await;
        }
        self.flights.lock().finish(&run, outcome.clone());
        let Outcome::Landed(fetched) = outcome else { return };
        if let Err(job) = self.writer.push(Job { file, extent: purpose.extent, run, fetched }) {
            self.metrics.uncached_bytes.inc_by(bytes);
            self.flights.lock().settle(&job.run, false);
        }
    }

    /// Until nobody waits for a run, and it was taken out.
    async fn abandoned(&self, run: &Arc<Run>) {
        loop {
            run.outcome.closed().await;
            if self.flights.lock().abandon(run) {
                return;
            }
        }
    }

    async fn bring(
        self: &Arc<Self>,
        file: &Arc<CacheFile>,
        run: &Arc<Run>,
        purpose: Purpose,
        promoted: Option<oneshot::Receiver<Instant>>,
    ) -> Outcome {
        let in_file = ByteRange::at(0, 0);
        let missing = MissingRun { extent: purpose.extent, segment: run.segment, chunks: run.chunks, in_file };
        if file.can_adopt(&missing) {
            let adopting = file.clone();
            if self.tasks.spawn_blocking(move || adopting.adopt(&missing)).await.unwrap_or(false) {
                self.metrics.adopted_bytes.inc_by(run.bytes().len());
                return Outcome::InCache;
            }
        }
        self.offer_tree(run.segment).await;
        let want = |urgency, deadline| Want { segment: run.segment, chunks: run.chunks, urgency, deadline };
        let first = self.source.clone().fetch(want(purpose.urgency, purpose.deadline));
        let fetched = match promoted {
            None => first.await,
            Some(promoted) => self.fetch_promotable(first, promoted, |deadline| want(Urgency::Reader, deadline)).await,
        };
        match fetched {
            Ok(fetched) => Outcome::Landed(Arc::new(fetched)),
            Err(error) => Outcome::Failed(error.into()),
        }
    }

    /// What is fetched ahead is fetched for a reader from the moment that one waits for it. The swarm moves
    /// the chunks of both wants once.
    async fn fetch_promotable(
        &self,
        mut ahead: impl Future<Output = Result<Fetched, FetchError>> + Unpin,
        promoted: oneshot::Receiver<Instant>,
        want: impl FnOnce(Instant) -> Want,
    ) -> Result<Fetched, FetchError> {
        let deadline = tokio::select! {
            fetched = &mut ahead => return fetched,
            Ok(deadline) = promoted => deadline,
        };
        let mut reader = self.source.clone().fetch(want(deadline));
        tokio::select! {
            fetched = &mut reader => fetched,
            Ok(fetched) = &mut ahead => Ok(fetched),
        }
    }

    /// A tree that lies in the cache need not be fetched again.
    async fn offer_tree(&self, segment: Segment) {
        let wanted = ChunkTree::wire_len(segment) > 0 && !self.source.knows_tree(&segment.id);
        if wanted
            && self.cache.held(&segment.id).is_some()
            && let Ok(tree) = ChunkStore::tree(&*self.cache, segment.id).await
        {
            self.source.remember_tree(tree);
        }
    }

    /// Bytes of a file that are in the cache.
    pub(super) async fn read_cached(
        &self,
        file: &Arc<CacheFile>,
        range: ByteRange,
    ) -> Result<bytes::Bytes, StoreError> {
        /// Above this, clearing a buffer costs more than a hop to another thread.
        const AT_ONCE: u64 = 256 * 1024;
        if range.len() <= AT_ONCE
            && let Some(bytes) = file.read_at_once(range)
        {
            return Ok(bytes);
        }
        let file = file.clone();
        let read = self.tasks.spawn_blocking(move || file.read(range)).await;
        read.unwrap_or_else(|error| Err(StoreError::Unusable(error.to_string())))
    }
}

/// Cut at multiples of the longest run, so that one request of the kernel maps to one run.
pub(super) fn aligned(chunks: ChunkRange) -> impl Iterator<Item = ChunkRange> {
    let first = chunks.start / MAX_RUN_CHUNKS;
    let last = chunks.end.div_ceil(MAX_RUN_CHUNKS);
    (first..last).map(move |run| ChunkRange::new(run * MAX_RUN_CHUNKS, (run + 1) * MAX_RUN_CHUNKS).intersect(chunks))
}
