//! The uploader: takes hashed segments, batches them, and says who holds them.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use swarm_proto::v1::chunks_client::ChunksClient;
use swarm_proto::{ChunkTree, PeerId, Segment, SegmentId, v1};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::transport::Channel;

use super::lately::Lately;
use super::ledger::Ledger;
use super::links::{Links, Trouble};
use super::recent::Recent;
use super::{KnownSeeder, Placer, SeederState, UploadConfig, UploadError};
use crate::swarm::{Holder, PeerAddress};
use crate::tracker_client::innermost;

/// Unit in which [`Room`] is counted, so that a semaphore of `u32` permits can bound any memory.
const ROOM_UNIT_BYTES: u64 = 1024;
/// How long a small batch waits for company. A store call costs about as much.
const LINGER: Duration = Duration::from_millis(2);
/// A batch of so many bytes waits for nothing.
const BATCH_BYTES: u64 = 16 << 20;
/// Most segments of one batch: what one store call may carry.
pub(super) const BATCH_SEGMENTS: usize = 1_024;
/// Batches on their way at a time. While all are, segments gather, so that batches grow under load.
const BATCHES: usize = 8;
/// Blocking reads of sources at a time: enough to keep a disk's queue full.
const READERS: usize = 16;
/// How long the list of seeders is believed.
const SEEDERS_AGE: Duration = Duration::from_secs(2);
/// Longest wait for a sync where nobody is in a hurry: a seeder may have gigabytes to write out.
pub const LONGEST_SYNC: Duration = Duration::from_secs(120);
/// Longest wait for a touch.
pub(super) const TOUCH: Duration = Duration::from_secs(10);
/// Most segments of one touch.
pub(super) const TOUCH_SEGMENTS: usize = 4_096;

/// A segment with its bytes, in memory.
#[derive(Debug)]
pub struct Piece {
    /// The segment.
    pub segment: Segment,
    /// Its bytes.
    pub bytes: Bytes,
}

impl Piece {
    /// Hash bytes.
    ///
    /// Shape: 1 to [`swarm_proto::MAX_SEGMENT_BYTES`] bytes.
    /// Cost:  one BLAKE3 pass: call it where blocking is allowed.
    pub fn new(bytes: Bytes) -> Self {
        Self { segment: ChunkTree::build(&bytes).segment(), bytes }
    }
}

/// Memory that was granted to bytes on their way; given back when dropped.
#[derive(Debug)]
pub struct Room {
    _permit: OwnedSemaphorePermit,
}

/// A segment that seeders hold.
#[derive(Debug)]
pub struct Placed {
    /// The segment.
    pub segment: Segment,
    /// Whether its bytes were sent; false: enough seeders had it.
    pub sent: bool,
    /// Seeders that stand for it.
    pub replicas: usize,
    /// Has it kept until dropped: hold it until the commit was answered.
    pub lease: Lease,
}

/// While it lives, the seeders' promise to keep a segment is renewed.
pub struct Lease {
    ledger: Arc<Mutex<Ledger>>,
    id: SegmentId,
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "lease of {:?}", self.id)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.ledger.lock().release(self.id);
    }
}

/// What an uploader did so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UploadStats {
    /// Bytes that were sent, each counted once however many seeders got it.
    pub sent_bytes: u64,
    /// Segments that were sent.
    pub sent_segments: u64,
    /// Bytes that the swarm had.
    pub skipped_bytes: u64,
    /// Segments that the swarm had.
    pub skipped_segments: u64,
    /// Replicas of the segment with the fewest; 0 if nothing was placed.
    pub fewest_replicas: u64,
}

/// Sends segments to seeders; clones share it.
#[derive(Clone)]
pub struct Uploader {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) placer: Arc<dyn Placer>,
    pub(super) config: UploadConfig,
    pub(super) ledger: Arc<Mutex<Ledger>>,
    pub(super) links: Links,
    pub(super) tasks: TaskTracker,
    pub(super) stop: CancellationToken,
    /// Blocking reads at a time.
    pub(super) readers: Semaphore,
    room: Arc<Semaphore>,
    room_units: u32,
    queue: mpsc::UnboundedSender<Job>,
    waiting: Mutex<HashMap<SegmentId, Vec<Waiter>>>,
    seeders: tokio::sync::Mutex<Option<(Instant, Arc<[KnownSeeder]>)>>,
    /// What was heard of them last.
    pub(super) lately: Mutex<Lately>,
    /// Who was named last for a short batch, and for which question.
    pub(super) placed: Mutex<Option<LastPlaced>>,
    recent: Recent,
    sent_bytes: AtomicU64,
    sent_segments: AtomicU64,
    skipped_bytes: AtomicU64,
    skipped_segments: AtomicU64,
    fewest_replicas: AtomicU64,
}

/// When, for whom to leave out and how many replicas, and who.
type LastPlaced = (Instant, (Vec<PeerId>, u32), Vec<PeerAddress>);

/// Somebody who waits for a segment to be placed.
type Waiter = oneshot::Sender<Result<Placed, UploadError>>;

/// A segment to be placed. Whoever waits for it stands in `Inner::waiting`.
pub(super) struct Job {
    pub(super) segment: Segment,
    pub(super) bytes: Bytes,
    pub(super) _room: Room,
}

impl Uploader {
    /// An uploader whose work runs in `tasks` until `stop`.
    pub fn new(placer: Arc<dyn Placer>, config: UploadConfig, tasks: &TaskTracker, stop: CancellationToken) -> Self {
        let units = (config.in_flight_bytes.max(u64::from(config.segment_bytes)) / ROOM_UNIT_BYTES).max(1);
        let room_units =
            u32::try_from(units).unwrap_or(u32::MAX).min(u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX));
        let recent = Recent::new(config.recent_bytes, usize::try_from(config.unasked_bytes).unwrap_or(usize::MAX));
        let (queue, jobs) = mpsc::unbounded_channel();
        let inner = Arc::new(Inner {
            placer,
            config,
            ledger: Arc::default(),
            links: Links::default(),
            tasks: tasks.clone(),
            stop,
            readers: Semaphore::new(READERS),
            room: Arc::new(Semaphore::new(room_units as usize)),
            room_units,
            queue,
            waiting: Mutex::default(),
            seeders: tokio::sync::Mutex::default(),
            lately: Mutex::default(),
            placed: Mutex::default(),
            recent,
            sent_bytes: AtomicU64::new(0),
            sent_segments: AtomicU64::new(0),
            skipped_bytes: AtomicU64::new(0),
            skipped_segments: AtomicU64::new(0),
            fewest_replicas: AtomicU64::new(u64::MAX),
        });
        tasks.spawn(batches(Arc::downgrade(&inner), jobs, inner.stop.clone()));
        tasks.spawn(renewals(Arc::downgrade(&inner), inner.stop.clone(), inner.config.keep));
        Self { inner }
    }

    /// How it works.
    pub fn config(&self) -> &UploadConfig {
        &self.inner.config
    }

    /// Wait until `bytes` may be read into memory.
    pub async fn room(&self, bytes: u64) -> Result<Room, UploadError> {
        let inner = &self.inner;
        let units = u32::try_from(bytes.div_ceil(ROOM_UNIT_BYTES)).unwrap_or(u32::MAX).clamp(1, inner.room_units);
        tokio::select! {
            permit = inner.room.clone().acquire_many_owned(units) => {
                permit.map(|permit| Room { _permit: permit }).map_err(|_| UploadError::Stopping)
            }
            () = inner.stop.cancelled() => Err(UploadError::Stopping),
        }
    }

    /// Have a segment held by enough seeders.
    ///
    /// Errors: [`UploadError`], after [`UploadConfig::patience`] without progress at the latest.
    /// Cost:   waits for the seeders. Dropping the future does not stop the sending.
    pub async fn place(&self, piece: Piece, room: Room) -> Result<Placed, UploadError> {
        let Piece { segment, bytes } = piece;
        self.inner.recent.put(segment.id, &bytes);
        let (waiter, placed) = oneshot::channel();
        let first = {
            let mut waiting = self.inner.waiting.lock();
            let waiters = waiting.entry(segment.id).or_default();
            waiters.push(waiter);
            waiters.len() == 1
        };
        // Of equal segments on their way at once, one is sent.
        let job = Job { segment, bytes, _room: room };
        if !first {
            drop(job);
        } else if self.inner.queue.send(job).is_err() {
            self.inner.finish(segment, Err(UploadError::Stopping));
        }
        placed.await.unwrap_or(Err(UploadError::Stopping))
    }

    /// Raise all that seeders acknowledged of these segments to the fsync level; returns those that too
    /// few seeders hold at it, to be placed again.
    ///
    /// Cost: `wait` at most for the seeders; one that takes longer counts as one that failed.
    pub async fn sync(&self, ids: &[SegmentId], wait: Duration) -> Vec<SegmentId> {
        let inner = &self.inner;
        let peers = inner.ledger.lock().unsynced(ids);
        futures::future::join_all(peers.into_iter().map(|peer| inner.sync_peer(peer, ids, wait))).await;
        let need = inner.need_now().await;
        let (ledger, now) = (inner.ledger.lock(), Instant::now());
        ids.iter().filter(|id| ledger.holders(id, now, inner.config.keep).len() < need).copied().collect()
    }

    /// Who stands for which of these segments, as a commit carries it.
    ///
    /// Shape: at most `most_ids` segment ids in all, of the last ones first: what came earlier, the
    ///        seeders have announced long since.
    pub fn acknowledged(&self, ids: &[SegmentId], most_ids: usize) -> Vec<v1::Acknowledged> {
        let (ledger, now) = (self.inner.ledger.lock(), Instant::now());
        let mut by_peer: HashMap<PeerId, Vec<SegmentId>> = HashMap::new();
        let mut count = 0;
        for id in ids.iter().rev() {
            for peer in ledger.holders(id, now, self.inner.config.keep) {
                by_peer.entry(peer).or_default().push(*id);
                count += 1;
            }
            if count >= most_ids {
                break;
            }
        }
        let entry = |(peer, ids): (PeerId, Vec<SegmentId>)| v1::Acknowledged {
            peer_id: peer.to_wire(),
            segment_ids: SegmentId::pack(&ids),
        };
        by_peer.into_iter().map(entry).collect()
    }

    /// Who took which of these segments from here, as far as that is remembered. Asks nobody.
    pub fn took(&self, ids: &[SegmentId]) -> Vec<(SegmentId, Vec<Holder>)> {
        let (ledger, now) = (self.inner.ledger.lock(), Instant::now());
        let holder = |peer: PeerId| Some(Holder { peer: self.inner.links.address(peer)?, partial: false });
        let holders = |id: &SegmentId| -> Vec<Holder> {
            ledger.holders(id, now, Duration::MAX).into_iter().filter_map(holder).collect()
        };
        let all = ids.iter().map(|id| (*id, holders(id)));
        all.filter(|(_, holders)| !holders.is_empty()).collect()
    }

    /// The tracker does not believe that these are held: forget it too, so that they are placed again.
    pub fn forget(&self, ids: &[SegmentId]) {
        let mut ledger = self.inner.ledger.lock();
        let now = Instant::now();
        for id in ids {
            for peer in ledger.holders(id, now, Duration::MAX) {
                ledger.lost(peer, id);
            }
        }
    }

    /// The bytes of a short segment that was sent lately.
    pub fn sent(&self, id: &SegmentId) -> Option<Bytes> {
        self.inner.recent.get(id)
    }

    /// What was done so far.
    pub fn stats(&self) -> UploadStats {
        let inner = &self.inner;
        let fewest = inner.fewest_replicas.load(Ordering::Relaxed);
        UploadStats {
            sent_bytes: inner.sent_bytes.load(Ordering::Relaxed),
            sent_segments: inner.sent_segments.load(Ordering::Relaxed),
            skipped_bytes: inner.skipped_bytes.load(Ordering::Relaxed),
            skipped_segments: inner.skipped_segments.load(Ordering::Relaxed),
            fewest_replicas: if fewest == u64::MAX { 0 } else { fewest },
        }
    }
}

impl Inner {
    /// Tell all who wait for a segment how it went: those that it was sent for, and those that came
    /// while it was sent.
    pub(super) fn finish(&self, segment: Segment, outcome: Result<(bool, usize), UploadError>) {
        let waiters = self.waiting.lock().remove(&segment.id).unwrap_or_default();
        let now = Instant::now();
        for (index, waiter) in waiters.into_iter().enumerate() {
            let placed = outcome.clone().map(|(sent, replicas)| {
                let sent = sent && index == 0;
                self.count(segment, sent, replicas);
                self.ledger.lock().retain(segment.id, now);
                let lease = Lease { ledger: self.ledger.clone(), id: segment.id };
                Placed { segment, sent, replicas, lease }
            });
            // Nobody waits any more: the lease is dropped with what was not sent.
            drop(waiter.send(placed));
        }
    }

    fn count(&self, segment: Segment, sent: bool, replicas: usize) {
        let (bytes, segments) = match sent {
            true => (&self.sent_bytes, &self.sent_segments),
            false => (&self.skipped_bytes, &self.skipped_segments),
        };
        bytes.fetch_add(u64::from(segment.length), Ordering::Relaxed);
        segments.fetch_add(1, Ordering::Relaxed);
        self.fewest_replicas.fetch_min(replicas as u64, Ordering::Relaxed);
    }

    /// The seeders that are up or were until a moment ago, from memory if that is young enough.
    pub(super) async fn seeders(&self) -> Result<Arc<[KnownSeeder]>, UploadError> {
        let mut known = self.seeders.lock().await;
        if let Some((at, seeders)) = &*known
            && at.elapsed() < SEEDERS_AGE
        {
            return Ok(seeders.clone());
        }
        let all = self.placer.seeders().await?;
        *self.lately.lock() = Lately::of(&all);
        let seeders: Arc<[KnownSeeder]> = all.into_iter().filter(|seeder| seeder.state != SeederState::Away).collect();
        *known = Some((Instant::now(), seeders.clone()));
        Ok(seeders)
    }

    /// Replicas that a segment needs, where `seeders` are up.
    pub(super) fn need(&self, seeders: usize) -> usize {
        (self.config.min_replicas as usize).min(seeders).max(1)
    }

    /// Replicas that are wanted of a segment, where `seeders` are up.
    pub(super) fn want(&self, seeders: usize) -> usize {
        (self.config.replicas as usize).min(seeders).max(self.need(seeders))
    }

    async fn need_now(&self) -> usize {
        match self.seeders().await {
            Ok(seeders) => self.need(seeders.len()),
            Err(_) => self.config.min_replicas.max(1) as usize,
        }
    }

    /// Have one seeder raise what it acknowledged to the fsync level within `wait`, unless that is so already.
    pub(super) async fn sync_peer(&self, peer: PeerId, ids: &[SegmentId], wait: Duration) {
        let Some((client, syncing)) = self.links.known(peer) else {
            return self.ledger.lock().sync_failed(peer);
        };
        let failed = tokio::select! {
            ended = tokio::time::timeout(wait, self.sync_in_turn(peer, ids, client, &syncing)) => match ended {
                Ok(Ok(())) => return,
                // What it answered. Where the connection broke, its new process may have it all.
                Ok(Err(status)) if std::error::Error::source(&status).is_none() => (Trouble::Stuck, innermost(&status)),
                Ok(Err(status)) => (Trouble::Failed, innermost(&status)),
                Err(_) => (Trouble::Stuck, format!("no answer within {wait:?}")),
            },
            () = self.stop.cancelled() => (Trouble::Failed, "stopping".to_owned()),
        };
        let (trouble, reason) = failed;
        tracing::warn!(%peer, reason, "sync a seeder");
        self.ledger.lock().sync_failed(peer);
        self.links.avoid(peer, trouble, Instant::now());
    }

    async fn sync_in_turn(
        &self,
        peer: PeerId,
        ids: &[SegmentId],
        mut client: ChunksClient<Channel>,
        syncing: &tokio::sync::Mutex<()>,
    ) -> Result<(), Status> {
        let _one_at_a_time = syncing.lock().await;
        let covers = {
            let mut ledger = self.ledger.lock();
            if !ids.is_empty() && !ledger.unsynced(ids).contains(&peer) {
                return Ok(());
            }
            ledger.sync_begins(peer)
        };
        let reply = client.sync(v1::SyncRequest {}).await?.into_inner();
        if !self.ledger.lock().synced((peer, NonZeroU64::new(reply.process)), covers) {
            tracing::warn!(%peer, "sync a seeder: it was restarted since it took what it was to write out");
        }
        Ok(())
    }

    /// After new acknowledgements: have seeders that took much write it out meanwhile.
    pub(super) fn sync_behind(self: &Arc<Self>) {
        let Some(bytes) = self.config.sync_every_bytes else { return };
        for peer in self.ledger.lock().wants_sync(bytes) {
            let inner = self.clone();
            self.tasks.spawn(async move { inner.sync_peer(peer, &[], LONGEST_SYNC).await });
        }
    }
}

/// Gather segments into batches and send each on its way, until nobody can add any or `stop`.
async fn batches(inner: std::sync::Weak<Inner>, mut jobs: mpsc::UnboundedReceiver<Job>, stop: CancellationToken) {
    let on_their_way = Arc::new(Semaphore::new(BATCHES));
    loop {
        let first = tokio::select! {
            first = jobs.recv() => first,
            () = stop.cancelled() => None,
        };
        let Some(first) = first else { break };
        // Alone it waits for nothing: a file that is being closed is waited for.
        let alone = jobs.is_empty() && on_their_way.available_permits() == BATCHES;
        let Ok(permit) = on_their_way.clone().acquire_owned().await else { return };
        let mut bytes = u64::from(first.segment.length);
        let mut batch = vec![first];
        let linger = tokio::time::sleep(LINGER);
        tokio::pin!(linger);
        while !alone && batch.len() < BATCH_SEGMENTS && bytes < BATCH_BYTES {
            let next = tokio::select! {
                biased;
                next = jobs.recv() => next,
                () = &mut linger => break,
            };
            let Some(next) = next else { break };
            bytes += u64::from(next.segment.length);
            batch.push(next);
        }
        let Some(inner) = inner.upgrade() else { return };
        let tasks = inner.tasks.clone();
        let stop = stop.clone();
        tasks.spawn(async move {
            let _permit = permit;
            let segments: Vec<Segment> = batch.iter().map(|job| job.segment).collect();
            tokio::select! {
                // Answers for every segment. Whoever waits for one of them after that has come since, for
                // equal bytes of another file, and is another batch's to answer.
                () = inner.deliver(batch) => {}
                () = stop.cancelled() => {
                    segments.into_iter().for_each(|segment| inner.finish(segment, Err(UploadError::Stopping)));
                }
            }
        });
    }
    // Whoever waits for what is left, or adds to it, is told.
    jobs.close();
    while let Some(job) = jobs.recv().await {
        let Some(inner) = inner.upgrade() else { return };
        inner.finish(job.segment, Err(UploadError::Stopping));
    }
}

/// Renew the promises of what is not committed yet.
async fn renewals(inner: std::sync::Weak<Inner>, stop: CancellationToken, keep: Duration) {
    loop {
        tokio::select! {
            () = tokio::time::sleep((keep / 8).max(Duration::from_millis(20))) => {}
            () = stop.cancelled() => return,
        }
        let Some(inner) = inner.upgrade() else { return };
        let due = inner.ledger.lock().due(Instant::now(), keep / 3);
        for (peer, ids) in due {
            tokio::select! {
                () = inner.touch(peer, &ids) => {}
                () = stop.cancelled() => return,
            }
        }
    }
}
