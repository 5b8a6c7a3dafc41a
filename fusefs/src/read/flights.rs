//! Runs of chunks that are being fetched or wait in memory, of all open files together.
//!
//! Invariants: runs of one segment never overlap, so a chunk is fetched once; a run is fetched only while
//! somebody waits for it; a run leaves memory when it was read to its end or when room is needed, and then
//! it is in the cache, or nobody asked for it for a while.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use lru::LruCache;
use parking_lot::Mutex;
use swarm_proto::{ByteRange, ChunkRange, Segment, SegmentId};
use swarm_seeder::swarm::{Fetched, Urgency};
use tokio::sync::{oneshot, watch};

use super::ReadError;
use super::budget::Grant;

/// How long bytes that nobody read yet and that are nowhere else are kept when what is read ahead needs room.
const UNREAD_FOR: Duration = Duration::from_secs(10);
/// Runs looked at for one that can go.
const SEARCH: usize = 64;

/// What became of a run.
#[derive(Debug, Clone)]
pub(super) enum Outcome {
    Pending,
    /// Here, in memory.
    Landed(Arc<Fetched>),
    /// In the cache, copied from another version.
    InCache,
    Failed(ReadError),
}

/// One run of chunks of one segment.
pub(super) struct Run {
    pub(super) segment: Segment,
    pub(super) chunks: ChunkRange,
    pub(super) outcome: watch::Sender<Outcome>,
    /// Tells the fetching task that a reader waits, until when; taken by the first.
    promote: Mutex<Option<oneshot::Sender<Instant>>>,
    /// Bytes that readers took.
    served: AtomicU64,
    /// The cache has it, so memory need not.
    cached: AtomicBool,
    landed_at: Mutex<Option<Instant>>,
    _grant: Grant,
}

impl Run {
    pub(super) fn bytes(&self) -> ByteRange {
        self.segment.bytes_of(self.chunks)
    }

    /// A reader waits for what was only fetched ahead.
    pub(super) fn promote(&self, deadline: Instant) {
        if let Some(promote) = self.promote.lock().take() {
            let _ = promote.send(deadline);
        }
    }

    fn is_read(&self) -> bool {
        self.served.load(Ordering::Relaxed) >= self.bytes().len()
    }

    fn may_go(&self, now: Instant) -> bool {
        self.cached.load(Ordering::Relaxed)
            || self.served.load(Ordering::Relaxed) > 0
            || self.landed_at.lock().is_some_and(|at| now.saturating_duration_since(at) > UNREAD_FOR)
    }
}

/// Bytes of a segment within what was fetched: as they came if they lie in one piece.
pub(super) fn bytes_in(fetched: &Fetched, segment: Segment, range: ByteRange) -> Bytes {
    let at = |byte: u64| usize::try_from(byte).expect("a segment is below 64 MiB");
    let cut = |(chunks, bytes): &(ChunkRange, Bytes)| {
        let piece = segment.bytes_of(*chunks);
        let part = piece.intersect(range);
        (!part.is_empty()).then(|| bytes.slice(at(part.start - piece.start)..at(part.end - piece.start)))
    };
    let mut parts = fetched.pieces.iter().filter_map(cut);
    let Some(first) = parts.next() else { return Bytes::new() };
    if first.len() as u64 == range.len() {
        return first;
    }
    let mut all = BytesMut::with_capacity(at(range.len()));
    all.extend_from_slice(&first);
    parts.for_each(|part| all.extend_from_slice(&part));
    all.freeze()
}

/// Where some chunks are.
pub(super) enum Found {
    Run(Arc<Run>, watch::Receiver<Outcome>, ChunkRange),
    Absent(ChunkRange),
}

/// The table of runs.
pub(super) struct Flights {
    segments: HashMap<SegmentId, BTreeMap<u32, Arc<Run>>>,
    /// Landed runs with which the cache is done, the one used last first.
    settled: LruCache<(SegmentId, u32), Arc<Run>>,
}

impl Flights {
    pub(super) fn new() -> Self {
        Self { segments: HashMap::new(), settled: LruCache::unbounded() }
    }

    /// Where `chunks` of a segment are, in order.
    pub(super) fn find(&mut self, segment: Segment, chunks: ChunkRange) -> Vec<Found> {
        let mut found = Vec::new();
        let mut from = chunks.start;
        if let Some(runs) = self.segments.get(&segment.id) {
            let first = runs.range(..=chunks.start).next_back().map_or(chunks.start, |(start, _)| *start);
            for run in runs.range(first..chunks.end).map(|(_, run)| run) {
                let part = run.chunks.intersect(ChunkRange::new(from, chunks.end));
                if part.is_empty() || run.segment != segment {
                    continue;
                }
                if part.start > from {
                    found.push(Found::Absent(ChunkRange::new(from, part.start)));
                }
                found.push(Found::Run(run.clone(), run.outcome.subscribe(), part));
                from = part.end;
            }
        }
        if from < chunks.end {
            found.push(Found::Absent(ChunkRange::new(from, chunks.end)));
        }
        found
    }

    /// Enter a run that no other overlaps; the receiver is the first who waits for it.
    pub(super) fn start(
        &mut self,
        segment: Segment,
        chunks: ChunkRange,
        urgency: Urgency,
        grant: Grant,
    ) -> (Arc<Run>, watch::Receiver<Outcome>, Option<oneshot::Receiver<Instant>>) {
        let (outcome, receiver) = watch::channel(Outcome::Pending);
        let (promote, promoted) = match urgency {
            Urgency::Reader => (None, None),
            Urgency::Ahead => {
                let (sender, receiver) = oneshot::channel();
                (Some(sender), Some(receiver))
            }
        };
        let run = Arc::new(Run {
            segment,
            chunks,
            outcome,
            promote: Mutex::new(promote),
            served: AtomicU64::new(0),
            cached: AtomicBool::new(false),
            landed_at: Mutex::new(None),
            _grant: grant,
        });
        self.segments.entry(segment.id).or_default().insert(chunks.start, run.clone());
        (run, receiver, promoted)
    }

    /// Take out a run of which nobody waits any more; false if somebody came meanwhile.
    pub(super) fn abandon(&mut self, run: &Arc<Run>) -> bool {
        let alone = run.outcome.receiver_count() == 0;
        if alone {
            self.remove(run);
        }
        alone
    }

    /// The run is over; what landed stays, the rest leaves no trace.
    pub(super) fn finish(&mut self, run: &Arc<Run>, outcome: Outcome) {
        match outcome {
            Outcome::Landed(_) => *run.landed_at.lock() = Some(Instant::now()),
            _ => self.remove(run),
        }
        run.outcome.send_replace(outcome);
    }

    /// The cache has the run, or refused it: memory may forget it.
    pub(super) fn settle(&mut self, run: &Arc<Run>, cached: bool) {
        run.cached.store(cached, Ordering::Relaxed);
        match run.is_read() {
            true => self.remove(run),
            false => drop(self.settled.put((run.segment.id, run.chunks.start), run.clone())),
        }
    }

    /// A reader took bytes of a run.
    pub(super) fn served(&mut self, run: &Arc<Run>, bytes: u64) {
        run.served.fetch_add(bytes, Ordering::Relaxed);
        let key = (run.segment.id, run.chunks.start);
        let settled = self.settled.get(&key).is_some_and(|known| Arc::ptr_eq(known, run));
        if settled && run.is_read() {
            self.remove(run);
        }
    }

    /// Forget one settled run, used longest ago; false if none can go.
    pub(super) fn forget_one(&mut self, urgency: Urgency) -> bool {
        let now = Instant::now();
        let may_go = |run: &Arc<Run>| urgency == Urgency::Reader || run.may_go(now);
        let oldest = self.settled.iter().rev().take(SEARCH).map(|(_, run)| run).find(|run| may_go(run)).cloned();
        match oldest {
            Some(run) => {
                self.remove(&run);
                true
            }
            None => false,
        }
    }

    fn remove(&mut self, run: &Arc<Run>) {
        let key = (run.segment.id, run.chunks.start);
        if self.settled.peek(&key).is_some_and(|known| Arc::ptr_eq(known, run)) {
            self.settled.pop(&key);
        }
        if let Some(runs) = self.segments.get_mut(&key.0) {
            if runs.get(&key.1).is_some_and(|known| Arc::ptr_eq(known, run)) {
                runs.remove(&key.1);
            }
            if runs.is_empty() {
                self.segments.remove(&key.0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read::MemoryBudget;

    const SEGMENT: Segment = Segment { id: SegmentId::new([1; 32]), length: 4 << 20 };

    fn start(flights: &mut Flights, chunks: ChunkRange) -> (Arc<Run>, watch::Receiver<Outcome>) {
        let grant = MemoryBudget::new(1 << 30).take(SEGMENT.bytes_of(chunks).len());
        let (run, receiver, _) = flights.start(SEGMENT, chunks, Urgency::Ahead, grant);
        (run, receiver)
    }

    #[test]
    fn a_run_that_somebody_joined_at_the_last_moment_is_not_abandoned() {
        let mut flights = Flights::new();
        let (run, first) = start(&mut flights, ChunkRange::new(0, 64));
        drop(first);
        let joined = flights.find(SEGMENT, ChunkRange::new(10, 11));
        assert!(!flights.abandon(&run), "a reader waits for it");
        drop(joined);
        assert!(flights.abandon(&run));
        assert!(flights.segments.is_empty());
    }

    #[test]
    fn what_is_found_covers_what_was_asked_once_and_in_order() {
        let mut flights = Flights::new();
        let _kept: Vec<_> = [(4, 8), (8, 9), (20, 70)]
            .map(|(start_at, end)| start(&mut flights, ChunkRange::new(start_at, end)))
            .into();
        let found = flights.find(SEGMENT, ChunkRange::new(2, 30));
        let found: Vec<_> = (found.into_iter())
            .map(|found| match found {
                Found::Run(_, _, chunks) => (true, chunks.start, chunks.end),
                Found::Absent(chunks) => (false, chunks.start, chunks.end),
            })
            .collect();
        assert_eq!(found, [(false, 2, 4), (true, 4, 8), (true, 8, 9), (false, 9, 20), (true, 20, 30)]);
    }
}
