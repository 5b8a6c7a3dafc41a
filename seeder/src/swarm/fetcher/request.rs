//! One request: ask, check all that came, and say what it means. Nothing unverified leaves this file.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use swarm_proto::{ChunkRange, ChunkTree, Presence, Segment, TreeError, v1};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::super::blame::is_of_another_length;
use super::super::engine::{Assignment, Failure};
use super::super::in_flight::RequestId;
use super::super::link::Link;
use super::super::progress::Progress;
use super::{Swarm, now};

impl Swarm {
    /// One request, from its sending to what its answer means.
    pub(super) async fn request(&self, assignment: Assignment, link: Result<Link, String>, progress: Arc<Progress>) {
        let id = assignment.id;
        let deadline = Instant::from_std(assignment.deadline);
        let answered = match link {
            Ok(link) => tokio::time::timeout_at(deadline, self.ask(&assignment, &link, &progress)).await,
            Err(words) => Ok(Err(Failure::Unreachable(words))),
        };
        let outcome = answered.unwrap_or(Err(Failure::TooSlow));
        let taken = match outcome {
            Ok(reply) => self.take(&assignment, reply, progress.latency()),
            Err(failure) => Err(failure),
        };
        if let Err(failure) = taken {
            self.with_engine(|engine, actions| {
                tracing::debug!(peer = %engine.address(assignment.peer).address, ?failure, "fetch");
                engine.failed(id, &failure, now(), actions);
            });
        }
        self.state.lock().forget(id);
    }

    async fn ask(
        &self,
        assignment: &Assignment,
        link: &Link,
        progress: &Arc<Progress>,
    ) -> Result<v1::FetchReply, Failure> {
        let segment = assignment.segment;
        // One chunk has no tree to send. Whoever sends one has a longer segment of that id, and proves it.
        let is_single = segment.chunks() == 1;
        let request = v1::FetchRequest {
            segment_id: segment.id.to_wire(),
            first_chunk: assignment.chunks.start,
            chunk_count: assignment.chunks.len(),
            with_tree: assignment.with_tree || is_single,
            peer_id: self.config.me.to_wire(),
        };
        let tree_bytes = if assignment.with_tree { ChunkTree::wire_len(segment) as u64 } else { 0 };
        let most_bytes = segment.bytes_of(assignment.chunks).len() + tree_bytes;
        // A little more than any request, so that it is the request that ends.
        let longest = self.config.request_timeout + Duration::from_secs(1);
        // Others wait for it too, so it does not end with this request.
        let spawn = |work| {
            self.spawn(move |_| async move { drop(tokio::time::timeout(longest, work).await) });
        };
        let reply =
            link.fetch(segment, request, progress, most_bytes, spawn).await.map_err(|status| meaning(&status))?;
        match &reply.held {
            Some(held) => match held.read(segment.chunks()) {
                Presence::Partial(set) if set.is_empty() => Err(Failure::Missing),
                held => Err(Failure::Held(held)),
            },
            None => Ok(reply),
        }
    }

    /// Check what came, and whatever it proves; nothing unverified goes farther.
    fn take(&self, assignment: &Assignment, reply: v1::FetchReply, latency: Option<Duration>) -> Result<(), Failure> {
        let id = assignment.id;
        let (segment, data) = (assignment.segment, &reply.data);
        let failure = |error, tree: &Bytes| blame(error, segment, assignment.chunks, tree, data);
        let tree = match (&assignment.tree, assignment.with_tree) {
            (Some(tree), _) => tree.clone(),
            (None, true) => {
                let tree =
                    ChunkTree::verify(segment, compact(&reply.tree)).map_err(|error| failure(error, &reply.tree))?;
                let waited = self.state.lock().engine.tree_came(&tree);
                for parked in waited {
                    self.settle(parked.request, &tree, parked.chunks, &parked.data, None);
                }
                tree
            }
            (None, false) => {
                let parked = self.with_engine(|engine, actions| engine.park(id, &reply.data, latency, now(), actions));
                match parked {
                    Some(tree) => tree,
                    None => return Ok(()),
                }
            }
        };
        let sent = if reply.tree.is_empty() { tree.values() } else { &reply.tree };
        tree.check(assignment.chunks, &reply.data).map_err(|error| failure(error, sent))?;
        self.with_engine(|engine, actions| engine.delivered(id, &reply.data, latency, now(), actions));
        Ok(())
    }

    /// Bytes that waited for their tree.
    fn settle(&self, id: RequestId, tree: &ChunkTree, chunks: ChunkRange, data: &Bytes, latency: Option<Duration>) {
        let checked = tree.check(chunks, data);
        self.with_engine(|engine, actions| match checked {
            Ok(()) => engine.delivered(id, data, latency, now(), actions),
            Err(error) => {
                let failure = blame(error, tree.segment(), chunks, tree.values(), data);
                engine.failed(id, &failure, now(), actions);
            }
        });
    }
}

fn blame(error: TreeError, segment: Segment, chunks: ChunkRange, tree: &Bytes, data: &Bytes) -> Failure {
    match is_of_another_length(segment, chunks, tree, data) {
        true => Failure::Refused("the segment has another length than the manifest says".to_owned()),
        false => Failure::Corrupt(error.to_string()),
    }
}

/// A tree of its own, not a slice that keeps a whole reply in memory.
fn compact(tree: &Bytes) -> Bytes {
    Bytes::copy_from_slice(tree)
}

/// What a peer's refusal means.
fn meaning(status: &Status) -> Failure {
    match status.code() {
        Code::NotFound | Code::DataLoss => Failure::Missing,
        // It has a segment of that id that is shorter: the manifest's fault, not its.
        Code::InvalidArgument => Failure::Refused(status.message().to_owned()),
        Code::ResourceExhausted => Failure::Busy,
        // Ours, of a reply that is longer than it may be.
        Code::OutOfRange => Failure::Corrupt(status.message().to_owned()),
        Code::DeadlineExceeded => Failure::TooSlow,
        _ => Failure::Unreachable(status.message().to_owned()),
    }
}
