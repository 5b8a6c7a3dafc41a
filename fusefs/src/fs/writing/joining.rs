//! Reading what a save joins: stretches of a file that have become too many extents.
//!
//! Not here: which ones (`write::joining`). A save never fails because of this: what cannot be read in time is
//! committed as it is.

use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use futures::StreamExt;
use swarm_proto::ByteRange;

use super::{FileSystem, Writing, Written};
use crate::write::joining::crowded;
use crate::write::unsaved::{Joined, Save};

/// How long a save waits for what it joins.
const WITHIN: Duration = Duration::from_secs(5);
/// Stretches that are read at a time.
const AT_ONCE: usize = 4;

impl FileSystem {
    /// Have a save carry as one segment each what has become too many extents.
    pub(super) async fn join_crowded(&self, writing: &Writing, written: &Written, save: &mut Save) {
        let runs = crowded(&save.pieces, &save.base.manifest, writing.outbox.segment_bytes());
        if runs.is_empty() {
            return;
        }
        let file = match writing.spool.scratch(runs.iter().map(ByteRange::len).sum()) {
            Ok(file) => file,
            Err(error) => return tracing::debug!(%error, "join extents of a file: no room in the spool"),
        };
        let deadline = Instant::now() + WITHIN;
        let reads = runs.into_iter().map(|run| {
            let (plan, file, stamp) = (save.plan(run), file.clone(), save.stamp);
            async move {
                let read = self.read_plan(written, &plan, deadline);
                let bytes = tokio::time::timeout_at(deadline.into(), read).await.ok()?.ok()?;
                tokio::task::spawn_blocking(move || file.write_all_at(&bytes, run.start)).await.ok()?.ok()?;
                // What is being written now would be mixed: another save joins it.
                written.unsaved.is_as_at(run, stamp).then_some(run)
            }
        });
        let read: Vec<Option<ByteRange>> = futures::stream::iter(reads).buffer_unordered(AT_ONCE).collect().await;
        let mut runs: Vec<ByteRange> = read.into_iter().flatten().collect();
        runs.sort_unstable_by_key(|run| run.start);
        save.joined = Some(Joined { file, runs });
    }
}
