//! The durable half: names and manifests.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::BoxStream;
use prost::Message;
use swarm_proto::manifest::{INLINE_BYTES, MAX_EXTENTS, PAGE_BYTES, digest_of};
use swarm_proto::v1::{self, Fault};
use swarm_proto::{InodeNumber, MAX_STREAMED_CHANGE_BYTES, Manifest, ManifestDigest, RequestId, Revision, fault};
use tonic::{Code, Response, Status, Streaming};

use super::{BULK_ATTEMPT, Shared, TrackerClient, TrackerError, catalog_client, refusal};
use crate::session::Talk;
use crate::store::AckLevel;

/// Longest silence of a stream of pages.
const PAGE_SILENCE: Duration = Duration::from_secs(10);
/// Largest encoded manifest that is taken from a tracker.
const MOST_MANIFEST_BYTES: usize = MAX_EXTENTS * 49 + 17;

/// Longest wait for one attempt of a single change: longer than any lease keeps an answer back and than most disks take
/// to sync, so short that another replica is asked while the caller still waits. The same request twice is one change.
const CHANGE_ATTEMPT: Duration = Duration::from_secs(4);

/// A lease that says it is longer is not believed: a walk would go on with old files.
const LONGEST_LEASE: Duration = Duration::from_secs(1);

/// What the stream of changes carries.
pub(super) struct Changes;

impl Talk for Changes {
    type Key = Bytes;
    type Request = v1::MutateRequest;
    type Message = v1::MutateAnswer;
    type Answer = Result<v1::MutateReply, Status>;

    fn read(message: v1::MutateAnswer) -> (Bytes, Self::Answer) {
        let answer = match (message.fault(), message.reply) {
            (Fault::Unspecified, Some(reply)) => Ok(reply),
            (fault, _) => Err(fault::to_status(fault, message.message)),
        };
        (message.request_id, answer)
    }
}

/// How a change gets to the tracker.
enum Way {
    /// By itself: it may be large and take long.
    Call,
    /// Over a stream of single changes, if there is one.
    Stream,
}

/// How new an answer must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Currency {
    /// Not older than what this client has seen.
    Seen,
    /// The newest there is: what `open` needs for close-to-open.
    Newest,
}

/// An inode, and its manifest if it was asked for and is small.
#[derive(Debug, Clone)]
pub struct NodeWithManifest {
    /// The inode.
    pub node: v1::Node,
    /// The manifest of a file: empty for an empty file, none if it is large and must be asked for.
    pub manifest: Option<Arc<Manifest>>,
}

/// Several inodes, and how long an open of them need not ask again.
#[derive(Debug, Clone)]
pub struct Leased {
    /// For each inode asked for, in order; none if it is gone.
    pub nodes: Vec<Option<NodeWithManifest>>,
    /// Until then no change of what these files contain is acknowledged to anybody; none: there is no lease.
    pub until: Option<Instant>,
}

/// Why one operation of a mutation was refused.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Why, for programs.
    pub fault: Fault,
    /// Why, for people.
    pub message: String,
}

/// What one operation changed.
#[derive(Debug, Clone)]
pub struct Changed {
    /// At this revision it was done, or refused.
    pub revision: Revision,
    /// Why it was refused, if it was.
    pub refused: Option<Refusal>,
    /// The inode made or changed, as it then was. The inode as it is, if a write of its content was refused as stale.
    pub node: Option<v1::Node>,
    /// All others that it changed, as they then were. Empty in an answer that was given again.
    pub others: Vec<v1::Node>,
}

/// What became of one operation: the inode made or changed, if it is not gone.
pub type Outcome = Result<Option<v1::Node>, Refusal>;

impl TrackerClient {
    /// One name in one directory; none if there is no such name.
    pub async fn lookup(&self, parent: InodeNumber, name: &[u8]) -> Result<Option<v1::Node>, TrackerError> {
        let request = (parent.0, Bytes::copy_from_slice(name));
        let ask = |line, (parent, name)| async move {
            let request = v1::LookupRequest { parent, name, min_revision: self.newest_revision().0 };
            catalog_client(line).lookup(request).await
        };
        let reply = self.ask(request, ask).await;
        self.maybe_node(reply)
    }

    /// A whole path from the root, links not followed; none if there is no such path.
    pub async fn resolve(&self, path: &[u8]) -> Result<Option<v1::Node>, TrackerError> {
        let ask = |line, path| async move {
            let request = v1::ResolveRequest { path, min_revision: self.newest_revision().0 };
            catalog_client(line).resolve(request).await
        };
        let reply = self.ask(Bytes::copy_from_slice(path), ask).await;
        self.maybe_node(reply)
    }

    /// One inode by number; none if it is gone.
    pub async fn node(&self, inode: InodeNumber, currency: Currency) -> Result<Option<v1::Node>, TrackerError> {
        let reply = self.get_node(inode, currency, false).await;
        self.maybe_node(reply)
    }

    /// One inode and, if small, its manifest, in one round trip, and the revision as of which that is so; none if it is
    /// gone.
    pub async fn node_with_manifest(
        &self,
        inode: InodeNumber,
        currency: Currency,
    ) -> Result<Option<(NodeWithManifest, Revision)>, TrackerError> {
        let reply = match self.get_node(inode, currency, true).await {
            Err(TrackerError::Refused { fault: Fault::NotFound, .. }) => return Ok(None),
            other => other?,
        };
        let revision = Revision(reply.revision);
        self.saw(revision);
        let node = reply.node.ok_or_else(|| self.nonsense("no inode"))?;
        Ok(Some((self.with_manifest(node, &reply.manifest)?, revision)))
    }

    /// Inodes that will be opened soon, in that order, with a lease on what they contain.
    pub async fn lease(&self, inodes: &[InodeNumber]) -> Result<Leased, TrackerError> {
        let ask = |line, inodes| async move {
            let request = v1::LeaseNodesRequest { inodes, min_revision: self.newest_revision().0 };
            catalog_client(line).lease_nodes(request).await
        };
        // Before it is asked: the tracker counts from later, so that it never ends a lease before we do.
        let asked = Instant::now();
        let reply = self.ask(inodes.iter().map(|inode| inode.0).collect(), ask).await?;
        self.saw(Revision(reply.revision));
        if reply.nodes.len() != inodes.len() {
            return Err(self.nonsense("leases"));
        }
        let term = Duration::from_millis(reply.lease_ms.into()).min(LONGEST_LEASE);
        let found =
            |leased: v1::LeasedNode| leased.node.map(|node| self.with_manifest(node, &leased.manifest)).transpose();
        Ok(Leased {
            nodes: reply.nodes.into_iter().map(found).collect::<Result<_, _>>()?,
            until: (!term.is_zero()).then(|| asked + term),
        })
    }

    fn with_manifest(&self, node: v1::Node, encoded: &Bytes) -> Result<NodeWithManifest, TrackerError> {
        let manifest = match (node.manifest_digest.is_empty(), encoded.is_empty()) {
            (true, _) => Some(Arc::new(Manifest::default())),
            (false, true) => None,
            (false, false) => Some(self.read_manifest(&node.manifest_digest, encoded)?),
        };
        Ok(NodeWithManifest { node, manifest })
    }

    async fn get_node(
        &self,
        inode: InodeNumber,
        currency: Currency,
        with_manifest: bool,
    ) -> Result<v1::NodeReply, TrackerError> {
        let ask = |line, inode| async move {
            let request = v1::GetNodeRequest {
                inode,
                min_revision: self.newest_revision().0,
                current: currency == Currency::Newest,
                with_manifest,
            };
            catalog_client(line).get_node(request).await
        };
        self.ask(inode.0, ask).await
    }

    /// All entries of a directory in the order of their names' bytes.
    pub async fn read_dir(&self, inode: InodeNumber) -> Result<Vec<v1::Entry>, TrackerError> {
        let ask = |line, inode| async move {
            let min_revision = self.newest_revision().0;
            let request = v1::ReadDirRequest { inode, after: Bytes::new(), min_revision, limit: 0 };
            catalog_client(line).read_dir(request).await
        };
        let mut pages = self.ask(inode.0, ask).await?;
        let mut entries = Vec::new();
        while let Some(page) = self.next(&mut pages).await? {
            self.saw(Revision(page.revision));
            entries.extend(page.entries);
        }
        Ok(entries)
    }

    /// A manifest of any size, verified against its digest.
    pub async fn manifest(&self, digest: ManifestDigest) -> Result<Arc<Manifest>, TrackerError> {
        let request = v1::GetManifestRequest { digest: digest.to_wire() };
        let mut pages =
            self.ask(request, |line, request| async move { catalog_client(line).get_manifest(request).await }).await?;
        let mut encoded = BytesMut::new();
        while let Some(page) = self.next(&mut pages).await? {
            encoded.extend_from_slice(&page.data);
            if encoded.len() > MOST_MANIFEST_BYTES {
                return Err(self.nonsense("a manifest without end"));
            }
        }
        self.read_manifest(digest.as_bytes(), &encoded)
    }

    /// Several manifests in as few calls as possible, in the order asked; none for one that is unknown.
    pub async fn manifests(&self, digests: &[ManifestDigest]) -> Result<Vec<Option<Arc<Manifest>>>, TrackerError> {
        let mut all = Vec::with_capacity(digests.len());
        for some in digests.chunks(1_024) {
            let request = v1::GetManifestsRequest { digests: ManifestDigest::pack(some) };
            let reply = self
                .ask_bulk(request, |line, request| async move { catalog_client(line).get_manifests(request).await })
                .await?;
            if reply.manifests.len() != some.len() {
                return Err(self.nonsense("manifests"));
            }
            for (digest, encoded) in some.iter().zip(&reply.manifests) {
                all.push(match encoded.is_empty() {
                    false => Some(self.read_manifest(digest.as_bytes(), encoded)?),
                    true => match self.manifest(*digest).await {
                        Ok(manifest) => Some(manifest),
                        Err(TrackerError::Refused { fault: Fault::NotFound, .. }) => None,
                        Err(error) => return Err(error),
                    },
                });
            }
        }
        Ok(all)
    }

    /// Make a manifest known before a mutation names it; returns what [`v1::PublishFile`] carries.
    pub async fn offer_manifest(&self, manifest: &Manifest) -> Result<v1::publish_file::Content, TrackerError> {
        let encoded = manifest.encode();
        if encoded.len() <= INLINE_BYTES {
            return Ok(v1::publish_file::Content::Manifest(encoded));
        }
        let digest = digest_of(&encoded);
        let pages: Vec<v1::ManifestPage> = (0..encoded.len())
            .step_by(PAGE_BYTES)
            .map(|start| v1::ManifestPage {
                digest: if start == 0 { digest.to_wire() } else { Bytes::new() },
                data: encoded.slice(start..encoded.len().min(start + PAGE_BYTES)),
            })
            .collect();
        self.ask_bulk(pages, |line, pages| async move {
            catalog_client(line).put_manifest(futures::stream::iter(pages)).await
        })
        .await?;
        Ok(v1::publish_file::Content::ManifestDigest(digest.to_wire()))
    }

    /// Change the catalog; one outcome for each operation, in order. Safe against lost answers, and against
    /// kill -9 of the tracker once it answered.
    pub async fn mutate(&self, operations: Vec<v1::operation::Operation>) -> Result<Vec<Outcome>, TrackerError> {
        self.mutate_at(AckLevel::Close, operations).await
    }

    /// [`Self::mutate`], answered when the changes survive what `level` says.
    pub async fn mutate_at(
        &self,
        level: AckLevel,
        operations: Vec<v1::operation::Operation>,
    ) -> Result<Vec<Outcome>, TrackerError> {
        let reply = self.send_mutation(level, operations, false, Way::Call).await?;
        let outcome = |result: v1::OperationResult| match result.fault() {
            Fault::Unspecified => Ok(result.node),
            fault => Err(Refusal { fault, message: result.message }),
        };
        Ok(reply.results.into_iter().map(outcome).collect())
    }

    /// Change one thing, and learn all that it changed. Waits as long as for an answer about a name.
    pub async fn change(&self, level: AckLevel, operation: v1::operation::Operation) -> Result<Changed, TrackerError> {
        let mut reply = self.send_mutation(level, vec![operation], true, Way::Stream).await?;
        let result = reply.results.pop().ok_or_else(|| self.nonsense("no result"))?;
        let refused = match result.fault() {
            Fault::Unspecified => None,
            fault => Some(Refusal { fault, message: result.message }),
        };
        Ok(Changed { revision: Revision(reply.revision), refused, node: result.node, others: result.others })
    }

    async fn send_mutation(
        &self,
        level: AckLevel,
        operations: Vec<v1::operation::Operation>,
        with_others: bool,
        way: Way,
    ) -> Result<v1::MutateReply, TrackerError> {
        let count = operations.len();
        let request = v1::MutateRequest {
            request_id: RequestId::random().to_wire(),
            operations: operations.into_iter().map(|operation| v1::Operation { operation: Some(operation) }).collect(),
            durable: level == AckLevel::Fsync,
            with_others,
        };
        let reply = match way {
            Way::Call => {
                let ask = |line, request| async move { catalog_client(line).mutate(request).await };
                self.ask_within(BULK_ATTEMPT, request, ask).await?
            }
            Way::Stream => self.ask_in_turn(CHANGE_ATTEMPT, |index| self.stream_or_call(index, &request)).await?,
        };
        self.saw(Revision(reply.revision));
        match reply.results.len() == count {
            true => Ok(reply),
            false => Err(self.nonsense("results")),
        }
    }

    async fn stream_or_call(&self, index: usize, request: &v1::MutateRequest) -> Result<v1::MutateReply, Status> {
        let Shared { sessions, meant, .. } = &*self.shared;
        // A stream is of one swarm from its beginning, and takes small messages only.
        if meant.is_bound() && request.encoded_len() <= MAX_STREAMED_CHANGE_BYTES {
            let mut client = catalog_client(self.line(index));
            let open = |requests| async move { client.mutate_stream(requests).await };
            let session = &sessions[index % sessions.len()];
            match session.ask(request.request_id.clone(), || request.clone(), open).await {
                // Perhaps streams have too much to do there. The call is the same request, and says what is wrong.
                Some(Ok(Err(status))) if status.code() == Code::Unavailable => {}
                Some(Ok(answer)) => return answer,
                _ => {}
            }
        }
        catalog_client(self.line(index)).mutate(request.clone()).await.map(Response::into_inner)
    }

    /// Change one thing.
    pub async fn mutate_one(&self, operation: v1::operation::Operation) -> Result<Option<v1::Node>, TrackerError> {
        let mut outcomes = self.mutate(vec![operation]).await?;
        let outcome = outcomes.pop().ok_or_else(|| self.nonsense("no result"))?;
        outcome.map_err(|refusal| TrackerError::Refused { fault: refusal.fault, message: refusal.message })
    }

    /// What changes after a revision. The stream ends when the tracker goes; begin again then.
    pub async fn watch(&self, after: Revision) -> Result<Streaming<v1::WatchReply>, TrackerError> {
        let request = v1::WatchRequest { after_revision: after.0 };
        self.ask(request, |line, request| async move { catalog_client(line).watch(request).await }).await
    }

    /// Capacity of the swarm.
    pub async fn stat_fs(&self) -> Result<v1::StatFsReply, TrackerError> {
        self.ask(v1::StatFsRequest {}, |line, request| async move { catalog_client(line).stat_fs(request).await }).await
    }

    /// The whole catalog as one portable file, in parts; an error ends it.
    pub async fn export(&self) -> Result<BoxStream<'static, Result<Bytes, TrackerError>>, TrackerError> {
        let parts = self
            .ask_bulk(v1::ExportRequest {}, |line, request| async move { catalog_client(line).export(request).await })
            .await?;
        let client = self.clone();
        Ok(Box::pin(futures::stream::unfold(Some(parts), move |parts| {
            let client = client.clone();
            async move {
                let mut parts = parts?;
                match client.next(&mut parts).await {
                    Ok(Some(part)) => Some((Ok(part.data), Some(parts))),
                    Ok(None) => None,
                    Err(error) => Some((Err(error), None)),
                }
            }
        })))
    }

    /// The reverse of [`Self::export`]. Never tried twice: the parts are gone once they are sent.
    pub async fn import(
        &self,
        parts: impl futures::Stream<Item = Bytes> + Send + 'static,
        replace: bool,
    ) -> Result<v1::ImportReply, TrackerError> {
        let first = futures::stream::once(async move { v1::CatalogPart { data: Bytes::new(), replace } });
        let parts = first.chain(parts.map(|data| v1::CatalogPart { data, replace: false }));
        self.agree().await?;
        let mut client = catalog_client(self.line(self.shared.preferred.load(Ordering::Relaxed)));
        let reply = client.import(parts).await.map_err(|status| self.stream_error(&status))?.into_inner();
        self.saw(Revision(reply.revision));
        Ok(reply)
    }

    fn read_manifest(&self, digest: &[u8], encoded: &[u8]) -> Result<Arc<Manifest>, TrackerError> {
        if digest_of(encoded).as_bytes() != digest {
            return Err(self.nonsense("a manifest that does not match its digest"));
        }
        Manifest::decode(encoded).map(Arc::new).map_err(|error| self.nonsense(error))
    }

    fn maybe_node(&self, reply: Result<v1::NodeReply, TrackerError>) -> Result<Option<v1::Node>, TrackerError> {
        match reply {
            Ok(reply) => {
                self.saw(Revision(reply.revision));
                reply.node.map(Some).ok_or_else(|| self.nonsense("no inode"))
            }
            Err(TrackerError::Refused { fault: Fault::NotFound, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn next<T>(&self, pages: &mut Streaming<T>) -> Result<Option<T>, TrackerError> {
        match tokio::time::timeout(PAGE_SILENCE, pages.message()).await {
            Ok(Ok(page)) => Ok(page),
            Ok(Err(status)) => Err(self.stream_error(&status)),
            Err(_) => Err(TrackerError::Unreachable {
                address: self.address().to_string(),
                reason: "it stopped in the middle of an answer".to_owned(),
                waited: PAGE_SILENCE,
            }),
        }
    }

    fn stream_error(&self, status: &tonic::Status) -> TrackerError {
        match super::is_absence(status) {
            true => TrackerError::Unreachable {
                address: self.address().to_string(),
                reason: super::innermost(status),
                waited: Duration::ZERO,
            },
            false => refusal(status),
        }
    }
}

#[cfg(test)]
mod tests;
