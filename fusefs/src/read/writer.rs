//! Writing what was fetched to the cache, behind the reader's back.
//!
//! Invariant: a run is settled exactly once, written or not; what waits to be written is bounded, and a
//! disk slower than the swarm costs cached bytes, never a reader's time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use swarm_seeder::store::cache::CacheFile;
use swarm_seeder::swarm::Fetched;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::engine::Shared;
use super::flights::Run;

/// Jobs that go to the blocking pool together.
const BATCH: usize = 256;
/// Fewer bytes than this wait a moment for others: a hop to the pool costs more than a small write.
const ENOUGH: u64 = 4 << 20;
/// That moment.
const LINGER: Duration = Duration::from_millis(3);

/// One run to be written.
pub(super) struct Job {
    pub(super) file: Arc<CacheFile>,
    pub(super) extent: usize,
    pub(super) run: Arc<Run>,
    pub(super) fetched: Arc<Fetched>,
}

/// The way to the writer.
pub(super) struct Writer {
    jobs: mpsc::UnboundedSender<Job>,
    waiting: Arc<AtomicU64>,
    most: u64,
}

impl Writer {
    /// With at most `most` bytes waiting; the other end is given to [`run`].
    pub(super) fn new(most: u64) -> (Self, Queue) {
        let (jobs, queue) = mpsc::unbounded_channel();
        let waiting = Arc::new(AtomicU64::new(0));
        (Self { jobs, waiting: waiting.clone(), most }, Queue { jobs: queue, waiting })
    }

    /// Hand a run over; gives it back if too much waits already.
    pub(super) fn push(&self, job: Job) -> Result<(), Job> {
        let bytes = job.run.bytes().len();
        if self.waiting.load(Ordering::Relaxed) + bytes > self.most {
            return Err(job);
        }
        self.waiting.fetch_add(bytes, Ordering::Relaxed);
        self.jobs.send(job).map_err(|error| error.0)
    }
}

/// Runs that wait to be written.
pub(super) struct Queue {
    jobs: mpsc::UnboundedReceiver<Job>,
    waiting: Arc<AtomicU64>,
}

/// Write what comes until `stop`, then what is left.
pub(super) async fn run(shared: Arc<Shared>, mut queue: Queue, tasks: TaskTracker, stop: CancellationToken) {
    loop {
        let mut batch = Vec::new();
        tokio::select! {
            biased;
            got = queue.jobs.recv_many(&mut batch, BATCH) => if got == 0 { break },
            () = stop.cancelled() => {
                queue.jobs.close();
                continue;
            }
        }
        if queue.waiting.load(Ordering::Relaxed) < ENOUGH && !stop.is_cancelled() {
            tokio::time::sleep(LINGER).await;
            while batch.len() < BATCH
                && let Ok(job) = queue.jobs.try_recv()
            {
                batch.push(job);
            }
        }
        let shared = shared.clone();
        let waiting = queue.waiting.clone();
        let write = move || {
            for job in batch {
                let bytes = job.run.bytes().len();
                let cached = write_one(&job);
                shared.flights.lock().settle(&job.run, cached);
                waiting.fetch_sub(bytes, Ordering::Relaxed);
                match cached {
                    true => shared.metrics.written_bytes.inc_by(bytes),
                    false => shared.metrics.uncached_bytes.inc_by(bytes),
                }
            }
        };
        if tasks.spawn_blocking(write).await.is_err() {
            tracing::error!("writing to the cache panicked; those bytes are not cached");
        }
    }
    // The cache flushes itself when it stops, but that may have been before these last writes.
    let cache = shared.cache.clone();
    let _ = tasks.spawn_blocking(move || cache.flush()).await;
}

fn write_one(job: &Job) -> bool {
    job.fetched.pieces.iter().all(|(chunks, bytes)| {
        let written = job.file.write(job.extent, &job.fetched.tree, *chunks, bytes);
        if let Err(error) = &written {
            tracing::trace!(%error, "write to the cache");
        }
        written.is_ok()
    })
}
