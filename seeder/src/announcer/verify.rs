//! Carries out orders to verify: somebody says that a segment is wrong here.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;
use swarm_proto::SegmentId;
use tokio::sync::mpsc;

use crate::store::ChunkStore;

/// Longest wait for one segment to be read again.
const VERIFY_WAIT: Duration = Duration::from_secs(60);
/// A segment that was verified so recently is not read again: many readers report the same one.
const AGAIN_AFTER: Duration = Duration::from_secs(2);
/// Segments whose last verification is remembered.
const MOST_REMEMBERED: NonZeroUsize = NonZeroUsize::new(1_024).expect("1,024 is not zero");

/// Verify what is ordered, one segment after the other, so that false reports cost little of the disk.
pub(super) async fn run<S: ChunkStore>(store: Arc<S>, mut orders: mpsc::Receiver<SegmentId>) {
    let mut verified: LruCache<SegmentId, Instant> = LruCache::new(MOST_REMEMBERED);
    while let Some(id) = orders.recv().await {
        if verified.get(&id).is_some_and(|at| at.elapsed() < AGAIN_AFTER) {
            continue;
        }
        match tokio::time::timeout(VERIFY_WAIT, store.reverify(id)).await {
            // What was dropped the store has logged.
            Ok(Ok(bad)) => tracing::info!(segment = %id, bad_chunks = bad.len(), "verified a segment on order"),
            Ok(Err(error)) => tracing::warn!(segment = %id, %error, "verify a segment on order"),
            Err(_) => tracing::warn!(segment = %id, "verifying a segment on order took too long"),
        }
        verified.put(id, Instant::now());
    }
}
