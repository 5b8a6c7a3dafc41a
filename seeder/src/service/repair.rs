//! Mends what rotted: chunks that a durable store dropped as corrupt are fetched again.
//!
//! Where the rot was found does not matter (a read, a scrub, an order of the tracker): the store drops
//! the bad chunks, its presence shrinks, and that is what is seen here. Invariant: a damaged segment is
//! being mended or has its next attempt on the list.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use prometheus::{IntCounter, Opts, Registry};
use swarm_proto::{PeerId, Presence, SegmentId};
use tokio::sync::broadcast::error::RecvError;

use crate::store::{ChunkStore, Damaged, ReplicaSink};
use crate::swarm::{Swarm, Urgency, Want};

/// Segments mended at once: repair must not crowd out readers.
const MOST_AT_ONCE: usize = 4;
/// Longest wait for one run.
const RUN_WAIT: Duration = Duration::from_secs(30);
/// Chunks fetched at once: 4 MiB.
const RUN_CHUNKS: u32 = 256;
/// First and longest pause after an attempt that failed.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Counts of repair.
pub(super) struct RepairCounters {
    mended: IntCounter,
    failed: IntCounter,
    bytes: IntCounter,
}

impl RepairCounters {
    pub(super) fn new(registry: &Registry, me: PeerId) -> Self {
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::with_opts(Opts::new(name, help).const_label("peer", me.to_string()));
            let counter = counter.expect("the names are valid");
            if let Err(error) = registry.register(Box::new(counter.clone())) {
                tracing::debug!(%error, "register a counter");
            }
            counter
        };
        Self {
            mended: counter("swarm_repair_segments_mended_total", "Segments that are whole again after a repair"),
            failed: counter("swarm_repair_attempts_failed_total", "Attempts to mend a segment that failed"),
            bytes: counter("swarm_repair_bytes_total", "Bytes of chunks fetched to mend segments"),
        }
    }
}

/// When a segment is tried next, and how long to wait after that.
struct Attempt {
    damaged: Damaged,
    at: Instant,
    pause: Duration,
}

/// Mend what was dropped as corrupt, for as long as the future is polled.
pub(super) async fn run<S: ChunkStore>(
    store: Arc<S>,
    sink: Arc<dyn ReplicaSink>,
    swarm: Arc<Swarm>,
    counters: RepairCounters,
) {
    let mut changes = store.changes();
    let mut waiting: HashMap<SegmentId, Attempt> = HashMap::new();
    let mut running: HashMap<SegmentId, Duration> = HashMap::new();
    let mut attempts = FuturesUnordered::new();
    let mut changes_end = false;
    note(sink.as_ref(), &mut waiting);
    loop {
        let now = Instant::now();
        while running.len() < MOST_AT_ONCE {
            let due = waiting.iter().filter(|(id, attempt)| attempt.at <= now && !running.contains_key(*id));
            let Some(id) = due.min_by_key(|(_, attempt)| attempt.at).map(|(id, _)| *id) else { break };
            let Some(Attempt { damaged, pause, .. }) = waiting.remove(&id) else { break };
            running.insert(id, pause);
            let (sink, swarm, counters) = (&sink, &swarm, &counters);
            attempts.push(async move { (id, mend(sink.as_ref(), swarm, counters, damaged).await) });
        }
        let next = waiting.iter().filter(|(id, _)| !running.contains_key(*id)).map(|(_, attempt)| attempt.at).min();
        let tick = async {
            match next {
                Some(at) if running.len() < MOST_AT_ONCE => tokio::time::sleep_until(at.into()).await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            () = tick => {}
            Some((id, mended)) = attempts.next() => {
                let pause = running.remove(&id).unwrap_or(PAUSES.0);
                note(sink.as_ref(), &mut waiting);
                match (mended, waiting.get_mut(&id)) {
                    (_, None) => {
                        counters.mended.inc();
                        tracing::info!(segment = %id, "mended a rotten segment");
                    }
                    (outcome, Some(attempt)) => {
                        counters.failed.inc();
                        let reason = outcome.err().unwrap_or_else(|| "more of it rotted meanwhile".to_owned());
                        tracing::warn!(segment = %id, reason, again_in = ?pause, "mend a rotten segment");
                        (attempt.at, attempt.pause) = (Instant::now() + pause, (pause * 2).min(PAUSES.1));
                    }
                }
            }
            change = changes.recv(), if !changes_end => match change {
                // Most changes are whole segments that came.
                Ok(id) if is_whole(store.as_ref(), &id) => {}
                Ok(_) | Err(RecvError::Lagged(_)) => note(sink.as_ref(), &mut waiting),
                Err(RecvError::Closed) => changes_end = true,
            },
        }
    }
}

fn is_whole<S: ChunkStore>(store: &S, id: &SegmentId) -> bool {
    store.held(id).is_some_and(|held| held.presence == Presence::Whole)
}

/// Bring the list in step with the store: what is damaged is on it, and nothing else.
fn note(sink: &dyn ReplicaSink, waiting: &mut HashMap<SegmentId, Attempt>) {
    let mut before = std::mem::take(waiting);
    for damaged in sink.damaged() {
        let known = before.remove(&damaged.segment.id);
        let (at, pause) = known.map_or((Instant::now(), PAUSES.0), |attempt| (attempt.at, attempt.pause));
        waiting.insert(damaged.segment.id, Attempt { damaged, at, pause });
    }
}

async fn mend(
    sink: &dyn ReplicaSink,
    swarm: &Swarm,
    counters: &RepairCounters,
    Damaged { segment, lost }: Damaged,
) -> Result<(), String> {
    for chunks in lost.into_iter().flat_map(|gap| gap.runs(RUN_CHUNKS)) {
        let want = Want { segment, chunks, urgency: Urgency::Ahead, deadline: Instant::now() + RUN_WAIT };
        let fetched = swarm.fetch(want).await.map_err(|error| error.to_string())?;
        for (run, bytes) in fetched.pieces {
            let length = bytes.len() as u64;
            sink.mend(fetched.tree.clone(), run, bytes).await.map_err(|error| error.to_string())?;
            counters.bytes.inc_by(length);
        }
    }
    Ok(())
}
