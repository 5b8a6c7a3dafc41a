//! The queue of changes, and the one task that commits them.
//!
//! What waits is committed together: one flush for many requests. Each request is planned on what those
//! before it in the group leave, and is answered only after its group was committed and the image shows it.
//!
//! Invariants: a request that was answered is committed, and its answer with it; no lease on what it changed
//! is left then.

mod group;
mod prepare;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use swarm_proto::{Fault, InodeNumber, ManifestDigest, PeerId, RequestId, Revision, SegmentId};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(super) use group::condition_of;
pub(crate) use group::record_of;

use super::leases::Leases;
use super::manifests::{Manifests, Prepared};
use super::numbers::Numbers;
use super::refuse_unavailable;
use super::requests::Answers;
use super::state::State;
use crate::acks::AckSink;
use crate::namespace::plan::{At, IfExists, Operation, Ownership, SetId};
use crate::namespace::{Node, Refusal};
use crate::store::Store;

/// Most operations of one request.
pub const MAX_OPERATIONS: usize = 1024;
/// Operations after which a group takes no further request.
const GROUP_OPERATIONS: usize = 4096;
/// Requests that may wait.
const QUEUE: usize = 256;
/// How long a request may take in all.
const PATIENCE: Duration = Duration::from_secs(30);

/// Several operations, done in order, each for itself.
#[derive(Debug, Clone)]
pub struct Request {
    /// The same id again gets the first answer again.
    pub id: RequestId,
    /// BLAKE3 of the operations.
    pub fingerprint: [u8; 32],
    /// Whether the answer has all that was changed.
    pub others: Others,
    /// 1 to [`MAX_OPERATIONS`]; one that could not even be read is its refusal.
    pub operations: Vec<Result<Submitted, Refusal>>,
}

/// What an answer says of inodes that an operation changed besides the one that it was about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Others {
    /// Nothing.
    #[default]
    Omit,
    /// Each, as it was after that operation.
    Tell,
}

/// An operation as it was asked for.
#[derive(Debug, Clone)]
pub enum Submitted {
    /// One that names no content.
    Plain(Operation),
    /// A file and its content.
    Publish(Publish),
    /// A new content for a file that is open.
    Write(WriteFile),
}

/// See [`Operation::PublishFile`].
#[derive(Debug, Clone)]
pub struct Publish {
    /// Where.
    pub at: At,
    /// Whose.
    pub ownership: Ownership,
    /// Bytes.
    pub size: u64,
    /// Of what it consists.
    pub content: Content,
    /// What if it is there.
    pub if_exists: IfExists,
    /// Who acknowledged what.
    pub acknowledged: Acknowledged,
}

/// See [`Operation::WriteFile`].
#[derive(Debug, Clone)]
pub struct WriteFile {
    /// Which file.
    pub inode: InodeNumber,
    /// Only this version is replaced.
    pub base_version: u64,
    /// Bytes.
    pub size: u64,
    /// Of what it consists.
    pub content: Content,
    /// When it was written, by the writer's clock, as the two below.
    pub modified_ns: i64,
    /// Last change of anything.
    pub changed_ns: i64,
    /// If it is to change.
    pub accessed_ns: Option<i64>,
    /// As a write does.
    pub set_id: SetId,
    /// Who acknowledged what.
    pub acknowledged: Acknowledged,
}

/// Who acknowledged which segments.
pub type Acknowledged = Vec<(PeerId, Vec<SegmentId>)>;

/// Of what a published file consists.
#[derive(Debug, Clone)]
pub enum Content {
    /// Nothing.
    Empty,
    /// A manifest that comes along.
    Inline(Bytes),
    /// A manifest that was put before.
    Known(ManifestDigest),
}

/// What became of an operation: the inode that it made or changed, if any.
pub type Done = Result<Option<(InodeNumber, Node)>, Refusal>;

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mutated {
    /// At this revision it was done.
    pub revision: Revision,
    /// One for each operation, in order.
    pub results: Vec<Done>,
    /// For each operation what else it changed; empty if nobody asked, or if it was answered before.
    pub others: Vec<Vec<(InodeNumber, Node)>>,
}

/// What the writer works with.
pub(super) struct Parts {
    pub(super) store: Arc<dyn Store>,
    pub(super) state: Arc<State>,
    pub(super) manifests: Arc<Manifests>,
    pub(super) numbers: Arc<Numbers>,
    pub(super) answers: Arc<Answers>,
    pub(super) leases: Arc<Leases>,
    pub(super) acks: Arc<dyn AckSink>,
    pub(super) tasks: TaskTracker,
}

/// A request in the queue.
struct Job {
    id: RequestId,
    fingerprint: [u8; 32],
    others: Others,
    operations: Vec<Result<Ready, Refusal>>,
    reply: oneshot::Sender<Result<Mutated, Refusal>>,
}

/// An operation that can be planned.
struct Ready {
    operation: Operation,
    manifest: Option<Arc<Prepared>>,
}

/// The way to the writer.
pub(super) struct WriterHandle {
    parts: Arc<Parts>,
    queue: mpsc::Sender<Job>,
    /// Held by whoever needs the catalog to stand still; the writer takes it for each group.
    pause: Arc<tokio::sync::Mutex<()>>,
}

/// Start the writer. It ends after `stop`, when what was queued is done.
pub(super) fn start(parts: Parts, tasks: &TaskTracker, stop: CancellationToken) -> WriterHandle {
    let (queue, jobs) = mpsc::channel(QUEUE);
    let parts = Arc::new(parts);
    let pause = Arc::new(tokio::sync::Mutex::new(()));
    tasks.spawn(run(parts.clone(), jobs, pause.clone(), stop));
    WriterHandle { parts, queue, pause }
}

impl WriterHandle {
    pub(super) async fn mutate(&self, request: Request) -> Result<Mutated, Refusal> {
        let done = tokio::time::timeout(PATIENCE, self.submit(request)).await;
        done.unwrap_or_else(|_| Err(refuse_unavailable("the catalog is too busy: send the same request again")))
    }

    async fn submit(&self, request: Request) -> Result<Mutated, Refusal> {
        if request.operations.is_empty() || request.operations.len() > MAX_OPERATIONS {
            let message = format!("{} operations, must be 1 to {MAX_OPERATIONS}", request.operations.len());
            return Err(Refusal::new(Fault::Invalid, message));
        }
        let operations = prepare::all(&self.parts, request.operations).await;
        let (reply, answer) = oneshot::channel();
        let job = Job { id: request.id, fingerprint: request.fingerprint, others: request.others, operations, reply };
        let closed = || refuse_unavailable("the catalog is being closed");
        self.queue.send(job).await.map_err(|_| closed())?;
        answer.await.unwrap_or_else(|_| Err(closed()))
    }

    /// What [`Self::pause`] takes.
    pub(super) fn pause_lock(&self) -> Arc<tokio::sync::Mutex<()>> {
        self.pause.clone()
    }

    /// Keep the catalog as it is until the guard is dropped.
    pub(super) async fn pause(&self) -> tokio::sync::OwnedMutexGuard<()> {
        self.pause.clone().lock_owned().await
    }
}

async fn run(
    parts: Arc<Parts>,
    mut jobs: mpsc::Receiver<Job>,
    pause: Arc<tokio::sync::Mutex<()>>,
    stop: CancellationToken,
) {
    loop {
        let first = tokio::select! {
            job = jobs.recv() => job,
            () = stop.cancelled(), if !jobs.is_closed() => {
                jobs.close();
                continue;
            }
        };
        let Some(first) = first else { return };
        let _running = pause.lock().await;
        let mut size = first.operations.len();
        let mut group = vec![first];
        while size < GROUP_OPERATIONS
            && let Ok(next) = jobs.try_recv()
        {
            size += next.operations.len();
            group.push(next);
        }
        group::commit(&parts, group).await;
    }
}
