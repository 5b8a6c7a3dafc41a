//! Answers that read: Fetch and Have.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use swarm_proto::{ChunkRange, ChunkSet, ChunkTree, MAX_RUN_CHUNKS, Presence, SegmentId, convert, v1};
use tonic::Status;

use super::Chunks;
use super::admission::Asker;
use super::gate::{Busy, Pass};
use super::listener::Remote;
use crate::store::{ChunkStore, StoreError};

/// Longest wait for the store to read one run; a disk that needs longer is no use to the asker.
pub(super) const READ_WAIT: Duration = Duration::from_secs(10);

/// How long the answers of a batch that are ready wait for one that is not.
const STRAGGLER_WAIT: Duration = Duration::from_millis(250);

/// Most segments that one Have, Touch or Locate may name.
pub(crate) const MOST_IDS: usize = 4_096;

/// Most fetches of one FetchMany.
pub(crate) const MOST_FETCHES: usize = 64;

/// What a fetch is answered with, and the room it takes.
pub(crate) enum Answer {
    /// All chunks that were asked for.
    Chunks { tree: Bytes, data: Bytes, pass: Arc<Pass> },
    /// Some of them are not here; these are.
    Lacks(v1::Presence),
}

impl From<Answer> for v1::FetchReply {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Chunks { tree, data, pass } => Self { tree, data: pass.attach(data), held: None },
            Answer::Lacks(held) => Self { held: Some(held), ..Self::default() },
        }
    }
}

/// A fetch of what is here.
pub(super) struct Ready {
    pub(super) id: SegmentId,
    pub(super) chunks: ChunkRange,
    with_tree: bool,
    pub(super) asker: Asker,
    /// Of its answer.
    pub(super) bytes: u64,
}

/// One answer of several.
pub(crate) fn outcome(answer: Result<Answer, Status>) -> v1::FetchOutcome {
    match answer {
        Ok(answer) => v1::FetchOutcome { reply: Some(answer.into()), ..v1::FetchOutcome::default() },
        Err(status) => failed(&status),
    }
}

/// The answer that an error is.
pub(super) fn failed(status: &Status) -> v1::FetchOutcome {
    let code = u32::try_from(i32::from(status.code())).unwrap_or_default();
    v1::FetchOutcome { reply: None, code, message: status.message().to_owned() }
}

impl<S: ChunkStore> Chunks<S> {
    /// Several small fetches; they are read at the same time, and take one pass, as one run of their length does:
    /// one that waited for room that another of them holds would wait for nothing.
    ///
    /// Errors: each for itself; those that take much longer than the others are [`too_slow`].
    pub(crate) async fn fetch_each(
        &self,
        request: v1::FetchManyRequest,
        from: Option<&Remote>,
    ) -> Result<Vec<Result<Answer, Status>>, Status> {
        convert::within("fetches", request.fetches.len() as u64, 1, MOST_FETCHES as u64)?;
        let chunks: u64 = request.fetches.iter().map(|fetch| u64::from(fetch.chunk_count)).sum();
        convert::within("chunks of all fetches", chunks, 1, u64::from(MAX_RUN_CHUNKS))?;
        let prepared: Vec<_> = request.fetches.iter().map(|fetch| self.prepare(fetch, from)).collect();
        let ready = || prepared.iter().flatten().filter_map(|fetch| fetch.as_ref().ok());
        let pass = match ready().next() {
            Some(first) => Some(self.pass(first.asker, ready().map(|fetch| fetch.bytes).sum(), from).await?),
            None => None,
        };
        let mut answers: Vec<Option<Result<Answer, Status>>> = prepared.iter().map(|_| None).collect();
        let mut reads = FuturesUnordered::new();
        for (index, fetch) in prepared.into_iter().enumerate() {
            match (fetch, &pass) {
                (Ok(Ok(ready)), Some(pass)) => {
                    let pass = Arc::clone(pass);
                    reads.push(async move { (index, self.read(ready, pass).await) });
                }
                (Ok(Err(held)), _) => answers[index] = Some(Ok(Answer::Lacks(held))),
                (Ok(Ok(_)), None) => {}
                (Err(status), _) => answers[index] = Some(Err(status)),
            }
        }
        let mut patience = READ_WAIT;
        while let Ok(Some((index, answer))) = tokio::time::timeout(patience, reads.next()).await {
            answers[index] = Some(answer);
            patience = STRAGGLER_WAIT;
        }
        Ok(answers.into_iter().map(|answer| answer.unwrap_or_else(|| Err(too_slow()))).collect())
    }

    pub(crate) async fn fetch_run(&self, request: v1::FetchRequest, from: Option<&Remote>) -> Result<Answer, Status> {
        match self.prepare(&request, from)? {
            Err(held) => Ok(Answer::Lacks(held)),
            Ok(ready) => {
                let pass = self.pass(ready.asker, ready.bytes, from).await?;
                self.read(ready, pass).await
            }
        }
    }

    /// Check a fetch against what is here; if that is not all of it, what there is.
    pub(super) fn prepare(
        &self,
        request: &v1::FetchRequest,
        from: Option<&Remote>,
    ) -> Result<Result<Ready, v1::Presence>, Status> {
        let id = convert::segment_id("segment_id", &request.segment_id)?;
        let chunks = convert::fetch_range(request)?;
        let asker = match request.peer_id.is_empty() {
            true => Asker::Anonymous(from.map(|remote| remote.address.ip())),
            false => Asker::Peer(convert::peer_id("peer_id", &request.peer_id)?),
        };
        let Some(held) = self.store.held(&id) else { return Ok(Err(nothing())) };
        if !held.segment.all().contains(chunks) {
            let message = format!("chunks {chunks:?} lie past the segment's {}", held.segment.chunks());
            return Err(Status::invalid_argument(message));
        }
        if !held.presence.has(chunks) {
            return Ok(Err(v1::Presence::from(&held.presence)));
        }
        let tree_bytes = if request.with_tree { ChunkTree::wire_len(held.segment) as u64 } else { 0 };
        let bytes = held.segment.bytes_of(chunks).len() + tree_bytes;
        Ok(Ok(Ready { id, chunks, with_tree: request.with_tree, asker, bytes }))
    }

    pub(super) async fn pass(&self, asker: Asker, bytes: u64, from: Option<&Remote>) -> Result<Arc<Pass>, Status> {
        let link = from.map(|remote| Arc::clone(&remote.link));
        let pass = self.gate.pass(asker, bytes, link).await;
        pass.map(Arc::new).map_err(|Busy| Status::resource_exhausted("this peer is busy: ask another, or later"))
    }

    async fn read(&self, ready: Ready, pass: Arc<Pass>) -> Result<Answer, Status> {
        let read = async {
            let data = self.store.read(ready.id, ready.chunks).await?;
            Ok((self.tree_bytes(&ready).await?, data))
        };
        match tokio::time::timeout(READ_WAIT, read).await {
            Ok(Ok((tree, data))) => {
                self.count_served(data.len() as u64, tree.len() as u64);
                Ok(Answer::Chunks { tree, data, pass })
            }
            Ok(Err(error)) => self.lacks(ready.id, error).map(Answer::Lacks),
            Err(_) => Err(Status::unavailable("the disk is too slow: ask another")),
        }
    }

    /// The tree, if it was asked for.
    pub(super) async fn tree_bytes(&self, ready: &Ready) -> Result<Bytes, StoreError> {
        match ready.with_tree {
            true => Ok(self.store.tree(ready.id).await?.values().clone()),
            false => Ok(Bytes::new()),
        }
    }

    pub(super) fn count_served(&self, data_bytes: u64, tree_bytes: u64) {
        self.counters.served_bytes.inc_by(data_bytes);
        self.counters.served_tree_bytes.inc_by(tree_bytes);
    }

    /// What is left after a read failed: a presence if the store only lacks chunks, else an error.
    pub(super) fn lacks(&self, id: SegmentId, error: StoreError) -> Result<v1::Presence, Status> {
        match error {
            StoreError::Missing(_) | StoreError::Partial(_) | StoreError::Corrupt { .. } => {
                Ok(self.store.held(&id).map_or_else(nothing, |held| v1::Presence::from(&held.presence)))
            }
            error => {
                tracing::warn!(segment = %id, %error, "read chunks to serve them");
                Err(Status::unavailable("the store failed: ask another"))
            }
        }
    }

    pub(crate) fn have_all(&self, request: &v1::HaveRequest) -> Result<v1::HaveReply, Status> {
        let ids = convert::segment_ids("segment_ids", &request.segment_ids, MOST_IDS)?;
        let of = |id: &SegmentId| self.store.held(id).map_or_else(nothing, |held| v1::Presence::from(&held.presence));
        Ok(v1::HaveReply { presences: ids.iter().map(of).collect() })
    }
}

/// What a fetch is told if the others of its batch were read long ago: no word against this peer.
fn too_slow() -> Status {
    Status::resource_exhausted("the disk is slow here: ask another, or later")
}

fn nothing() -> v1::Presence {
    v1::Presence::from(&Presence::Partial(ChunkSet::empty(0)))
}
