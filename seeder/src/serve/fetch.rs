//! Answers that read: Fetch and Have.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use swarm_proto::{ChunkSet, ChunkTree, MAX_RUN_CHUNKS, Presence, SegmentId, convert, v1};
use tonic::Status;

use super::Chunks;
use super::admission::Asker;
use super::gate::{Busy, Pass};
use super::listener::Remote;
use crate::store::{ChunkStore, StoreError};

/// Longest wait for the store to read one run; a disk that needs longer is no use to the asker.
const READ_WAIT: Duration = Duration::from_secs(10);

/// Most segments that one Have, Touch or Locate may name.
pub(crate) const MOST_IDS: usize = 4_096;

/// Most fetches of one FetchMany.
pub(crate) const MOST_FETCHES: usize = 64;

/// What a fetch is answered with, and the room it takes.
pub(crate) enum Answer {
    /// All chunks that were asked for.
    Chunks { tree: Bytes, data: Bytes, pass: Pass },
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

/// One answer of several.
pub(crate) fn outcome(answer: Result<Answer, Status>) -> v1::FetchOutcome {
    match answer {
        Ok(answer) => v1::FetchOutcome { reply: Some(answer.into()), ..v1::FetchOutcome::default() },
        Err(status) => v1::FetchOutcome {
            reply: None,
            code: u32::try_from(i32::from(status.code())).unwrap_or_default(),
            message: status.message().to_owned(),
        },
    }
}

impl<S: ChunkStore> Chunks<S> {
    /// Several small fetches; they are read at the same time.
    pub(crate) async fn fetch_each(
        &self,
        request: v1::FetchManyRequest,
        from: Option<&Remote>,
    ) -> Result<Vec<Result<Answer, Status>>, Status> {
        convert::within("fetches", request.fetches.len() as u64, 1, MOST_FETCHES as u64)?;
        let chunks: u64 = request.fetches.iter().map(|fetch| u64::from(fetch.chunk_count)).sum();
        convert::within("chunks of all fetches", chunks, 1, u64::from(MAX_RUN_CHUNKS))?;
        Ok(join_all(request.fetches.into_iter().map(|fetch| self.fetch_run(fetch, from))).await)
    }

    pub(crate) async fn fetch_run(&self, request: v1::FetchRequest, from: Option<&Remote>) -> Result<Answer, Status> {
        let id = convert::segment_id("segment_id", &request.segment_id)?;
        let chunks = convert::fetch_range(&request)?;
        let asker = match request.peer_id.is_empty() {
            true => Asker::Anonymous(from.map(|remote| remote.address.ip())),
            false => Asker::Peer(convert::peer_id("peer_id", &request.peer_id)?),
        };
        let Some(held) = self.store.held(&id) else { return Ok(Answer::Lacks(nothing())) };
        if !held.segment.all().contains(chunks) {
            let message = format!("chunks {chunks:?} lie past the segment's {}", held.segment.chunks());
            return Err(Status::invalid_argument(message));
        }
        if !held.presence.has(chunks) {
            return Ok(Answer::Lacks(v1::Presence::from(&held.presence)));
        }
        let link = from.map(|remote| Arc::clone(&remote.link));
        let tree_bytes = if request.with_tree { ChunkTree::wire_len(held.segment) as u64 } else { 0 };
        let bytes = held.segment.bytes_of(chunks).len() + tree_bytes;
        let pass = self
            .gate
            .pass(asker, bytes, link)
            .await
            .map_err(|Busy| Status::resource_exhausted("this peer is busy: ask another, or later"))?;
        let read = async {
            let data = self.store.read(id, chunks).await?;
            let tree = match request.with_tree {
                true => self.store.tree(id).await?.values().clone(),
                false => Bytes::new(),
            };
            Ok((tree, data))
        };
        match tokio::time::timeout(READ_WAIT, read).await {
            Ok(Ok((tree, data))) => {
                self.counters.served_bytes.inc_by(data.len() as u64);
                self.counters.served_tree_bytes.inc_by(tree.len() as u64);
                Ok(Answer::Chunks { tree, data, pass })
            }
            Ok(Err(error)) => self.lacks(id, error).map(Answer::Lacks),
            Err(_) => Err(Status::unavailable("the disk is too slow: ask another")),
        }
    }

    /// What is left after a read failed: a presence if the store only lacks chunks, else an error.
    fn lacks(&self, id: SegmentId, error: StoreError) -> Result<v1::Presence, Status> {
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

fn nothing() -> v1::Presence {
    v1::Presence::from(&Presence::Partial(ChunkSet::empty(0)))
}
