//! Commits many files at once: one sync of the seeders and one mutation for all that wait.
//!
//! Invariant: a file is committed only when enough seeders stand for each of its segments, at the level
//! asked for.

use std::collections::HashSet;

use swarm_proto::v1::PublishFile;
use swarm_proto::v1::operation::Operation;
use swarm_proto::{Fault, SegmentId};
use swarm_seeder::store::AckLevel;
use swarm_seeder::swarm::upload::{LONGEST_SYNC, Uploader};
use swarm_seeder::tracker_client::{Refusal, TrackerClient, TrackerError};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Most files of one mutation.
const MOST_FILES: usize = 1_000;
/// Most bytes of one mutation; a message may have 4 MiB.
const MOST_BYTES: usize = 3 << 20;
/// Most acknowledgements of one file: 2 MiB.
const MOST_ACKNOWLEDGED: usize = 65_536;

/// How a commit went.
#[derive(Debug)]
pub(crate) enum Committed {
    /// It is in the catalog.
    Done,
    /// Segments are not held any more: send them again.
    SendAgain,
    /// The catalog refused.
    Refused(Refusal),
    /// The tracker could not be asked.
    Failed(TrackerError),
    /// The process is being stopped.
    Stopping,
}

struct Waiting {
    publish: PublishFile,
    ids: Vec<SegmentId>,
    answer: oneshot::Sender<Committed>,
}

/// Gathers commits; clones share it.
#[derive(Clone)]
pub(crate) struct Committer {
    queue: mpsc::Sender<Waiting>,
}

impl Committer {
    /// A committer that works in `tasks` until `stop`.
    pub(crate) fn start(
        tracker: TrackerClient,
        uploader: Uploader,
        level: AckLevel,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let (queue, mut waiting) = mpsc::channel(MOST_FILES);
        tasks.spawn(async move {
            let mut batch = Vec::new();
            while waiting.recv_many(&mut batch, MOST_FILES).await > 0 {
                tokio::select! {
                    () = commit(&tracker, &uploader, level, std::mem::take(&mut batch)) => {}
                    () = stop.cancelled() => return,
                }
            }
        });
        Self { queue }
    }

    /// Commit a file whose segments are `ids`.
    pub(crate) async fn commit(&self, publish: PublishFile, ids: Vec<SegmentId>) -> Committed {
        let (answer, committed) = oneshot::channel();
        match self.queue.send(Waiting { publish, ids, answer }).await {
            Ok(()) => committed.await.unwrap_or(Committed::Stopping),
            Err(_) => Committed::Stopping,
        }
    }
}

async fn commit(tracker: &TrackerClient, uploader: &Uploader, level: AckLevel, batch: Vec<Waiting>) {
    let lacking: HashSet<SegmentId> = match level {
        AckLevel::Close => HashSet::new(),
        AckLevel::Fsync => {
            let ids: Vec<SegmentId> = batch.iter().flat_map(|waiting| waiting.ids.iter().copied()).collect();
            uploader.sync(&ids, LONGEST_SYNC).await.into_iter().collect()
        }
    };
    let (mut publishes, mut answers, mut bytes) = (Vec::new(), Vec::new(), 0);
    for Waiting { mut publish, ids, answer } in batch {
        if ids.iter().any(|id| lacking.contains(id)) {
            drop(answer.send(Committed::SendAgain));
            continue;
        }
        publish.acknowledged = uploader.acknowledged(&ids, MOST_ACKNOWLEDGED);
        let operation = Operation::PublishFile(publish);
        let size = operation.encoded_len();
        if bytes + size > MOST_BYTES && !publishes.is_empty() {
            mutate(tracker, level, std::mem::take(&mut publishes), std::mem::take(&mut answers)).await;
            bytes = 0;
        }
        bytes += size;
        publishes.push(operation);
        answers.push(answer);
    }
    if !publishes.is_empty() {
        mutate(tracker, level, publishes, answers).await;
    }
}

async fn mutate(
    tracker: &TrackerClient,
    level: AckLevel,
    operations: Vec<Operation>,
    answers: Vec<oneshot::Sender<Committed>>,
) {
    let outcomes = match tracker.mutate_at(level, operations).await {
        Ok(outcomes) => outcomes,
        Err(error) => {
            return answers.into_iter().for_each(|answer| drop(answer.send(Committed::Failed(error.clone()))));
        }
    };
    for (answer, outcome) in answers.into_iter().zip(outcomes) {
        let committed = match outcome {
            Ok(_) => Committed::Done,
            Err(Refusal { fault: Fault::SendAgain, .. }) => Committed::SendAgain,
            Err(refusal) => Committed::Refused(refusal),
        };
        drop(answer.send(committed));
    }
}
