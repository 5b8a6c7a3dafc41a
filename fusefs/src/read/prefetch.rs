//! Fetching files that will be opened next: the siblings of those that a walk over a folder reads.
//!
//! Not the guess which those are. Invariant: what is fetched this way never has more than a quarter of the
//! memory budget under way, so that readers keep theirs.

use std::collections::VecDeque;
use std::sync::Arc;

use swarm_proto::{ByteRange, Manifest, ManifestDigest, SegmentId};
use tokio::sync::{mpsc, watch};

use super::engine::Shared;
use super::flights::Outcome;

/// Files in the order in which they will be read.
pub(super) type List = Vec<(ManifestDigest, Arc<Manifest>)>;

/// Share of the memory budget that may be under way.
const SHARE: u64 = 4;

/// Work on lists until the engine is dropped or stopped.
pub(super) async fn run(shared: Arc<Shared>, mut lists: mpsc::Receiver<List>) {
    loop {
        let list = tokio::select! {
            list = lists.recv() => list,
            () = shared.stop.cancelled() => None,
        };
        let Some(list) = list else { return };
        tokio::select! {
            () = fetch(&shared, list) => {}
            () = shared.stop.cancelled() => return,
        }
    }
}

async fn fetch(shared: &Arc<Shared>, list: List) {
    let files: Vec<_> = (list.into_iter())
        .filter_map(|(digest, manifest)| shared.cache.file(digest, manifest).ok())
        .filter(|file| !file.is_full())
        .collect();
    // All holders in one question.
    let ids: Vec<SegmentId> =
        files.iter().flat_map(|file| file.manifest().segments().map(|segment| segment.id)).collect();
    ids.chunks(4096).for_each(|ids| shared.source.expect(ids));
    let mut under_way: VecDeque<(u64, watch::Receiver<Outcome>)> = VecDeque::new();
    let mut bytes = 0;
    for file in files {
        let size = file.manifest().size();
        while bytes > 0 && bytes + size > shared.budget.limit() / SHARE {
            bytes -= finish_oldest(&mut under_way).await;
        }
        let mut left = size;
        let reached = shared.start_ahead(&file, ByteRange::at(0, size), |outcome| {
            // The first run stands for the file's bytes.
            under_way.push_back((std::mem::take(&mut left), outcome));
        });
        bytes += size - left;
        if reached < size {
            break;
        }
    }
    while !under_way.is_empty() {
        finish_oldest(&mut under_way).await;
    }
}

async fn finish_oldest(under_way: &mut VecDeque<(u64, watch::Receiver<Outcome>)>) -> u64 {
    let Some((bytes, mut outcome)) = under_way.pop_front() else { return 0 };
    // Every run ends by its deadline.
    let _ = outcome.wait_for(|outcome| !matches!(outcome, Outcome::Pending)).await;
    bytes
}
