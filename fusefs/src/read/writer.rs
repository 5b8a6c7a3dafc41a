//! Writing what was fetched to the cache, behind the reader's back.
//!
//! Invariant: a run is settled exactly once, written or not; what waits to be written is bounded, and a
//! disk slower than the swarm costs a reader [`PATIENCE`] a run at most, and then cached bytes.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use swarm_seeder::store::cache::CacheFile;
use swarm_seeder::swarm::Fetched;
use tokio::sync::{Notify, mpsc};
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

/// How long a run waits for room in the queue before its reader gets it anyway and the cache does not: a disk
/// that lags a little shall not leave holes in the cache, one that lags for good shall not hold readers up.
const PATIENCE: Duration = Duration::from_millis(20);

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
    waiting: Arc<Waiting>,
    most: u64,
}

/// Bytes that wait to be written.
#[derive(Default)]
struct Waiting {
    bytes: AtomicU64,
    fewer: Notify,
}

impl Writer {
    /// With at most `most` bytes waiting; the other end is given to [`run`].
    pub(super) fn new(most: u64) -> (Self, Queue) {
        let (jobs, queue) = mpsc::unbounded_channel();
        let waiting = Arc::<Waiting>::default();
        (Self { jobs, waiting: waiting.clone(), most }, Queue { jobs: queue, waiting })
    }

    /// Hand a run over; gives it back if too much waits already.
    pub(super) fn push(&self, job: Job) -> Result<(), Job> {
        let bytes = job.run.bytes().len();
        if !self.has_room(bytes) {
            return Err(job);
        }
        self.waiting.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.jobs.send(job).map_err(|error| error.0)
    }

    /// Wait a moment for room for so many bytes.
    pub(super) async fn room(&self, bytes: u64) {
        let wait = async {
            loop {
                let mut fewer = pin!(self.waiting.fewer.notified());
                // Registered before the look, so that what is written in between is not missed.
                fewer.as_mut().enable();
                if self.has_room(bytes) {
                    return;
                }
                fewer.await;
            }
        };
        let _ = tokio::time::timeout(PATIENCE, wait).await;
    }

    fn has_room(&self, bytes: u64) -> bool {
        self.waiting.bytes.load(Ordering::Relaxed) + bytes <= self.most
    }
}

/// Runs that wait to be written.
pub(super) struct Queue {
    jobs: mpsc::UnboundedReceiver<Job>,
    waiting: Arc<Waiting>,
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
        if queue.waiting.bytes.load(Ordering::Relaxed) < ENOUGH && !stop.is_cancelled() {
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
                waiting.bytes.fetch_sub(bytes, Ordering::Relaxed);
                waiting.fewer.notify_waiters();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_run_waits_for_room_as_long_as_the_disk_lags_a_little() {
        let (writer, queue) = Writer::new(100);
        writer.room(100).await;
        queue.waiting.bytes.store(60, Ordering::Relaxed);
        let began = tokio::time::Instant::now();
        tokio::join!(writer.room(50), async {
            tokio::time::sleep(PATIENCE / 2).await;
            queue.waiting.bytes.store(50, Ordering::Relaxed);
            queue.waiting.fewer.notify_waiters();
        });
        assert_eq!(began.elapsed(), PATIENCE / 2);
        writer.room(60).await;
        assert_eq!(began.elapsed(), PATIENCE / 2 + PATIENCE, "and no longer");
    }
}
