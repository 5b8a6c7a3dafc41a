//! The seam between the file system and the tracker: what the mount asks of the catalog.
//!
//! [`TrackerClient`] is it; the tests have one in memory.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use swarm_proto::{Fault, InodeNumber, Manifest, ManifestDigest, Revision, v1};
use swarm_seeder::store::AckLevel;
use swarm_seeder::tracker_client::{Currency, NodeWithManifest, Refusal, TrackerClient, TrackerError};

use super::node::{Node, NodeError};

/// What a question to the catalog comes to.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, TrackerError>>;
/// Names and inodes of a directory, in the order of their names' bytes.
pub type Entries = Vec<(Bytes, Node)>;
/// Changes as they are pushed; ends when the tracker goes.
pub type Changes = BoxStream<'static, Result<v1::WatchReply, TrackerError>>;

/// An inode and its manifest, if that is small.
pub type Current = (Node, Option<Arc<Manifest>>);

/// Inodes that will be opened soon.
pub struct Leased {
    /// Those that there are, in the order asked for.
    pub files: Vec<Current>,
    /// No change of what they contain is acknowledged to anybody before; none: it may be at any moment.
    pub until: Option<Instant>,
}

/// What a change of the catalog came to.
#[derive(Debug, Clone)]
pub struct Changed {
    /// At this revision it was done, or refused.
    pub revision: Revision,
    /// Why it was refused, if it was.
    pub refused: Option<Refusal>,
    /// The inode made or changed, as it then was; the inode as it is, where a write was refused as stale.
    pub node: Option<Node>,
    /// Other inodes that were changed, as they then were; some may be missing.
    pub others: Vec<Node>,
}

/// The catalog as the mount needs it.
pub trait Catalog: Send + Sync + 'static {
    /// No answer that is still to come is from before this revision.
    fn newest(&self) -> Revision;
    /// Never answer from before `revision` again.
    fn saw(&self, revision: Revision);
    /// The catalog is another than the one that was seen, and `revision` its newest.
    fn went_back(&self, revision: Revision);
    /// Whether another swarm's tracker was met since this was last asked: what is answered next may be from an older
    /// copy of the catalog.
    fn take_strayed(&self) -> bool;
    /// One name in one directory; none if there is no such name.
    fn lookup(&self, parent: InodeNumber, name: Bytes) -> Answer<'_, Option<Node>>;
    /// A whole path from the root, links not followed; none if there is no such path.
    fn resolve(&self, path: Bytes) -> Answer<'_, Option<Node>>;
    /// One inode; none if it is gone.
    fn node(&self, inode: InodeNumber) -> Answer<'_, Option<Node>>;
    /// One inode as it is now, and its manifest if that is small, with the revision that this is of; none if it is gone.
    fn current(&self, inode: InodeNumber) -> Answer<'_, Option<(Current, Revision)>>;
    /// Inodes that will be opened soon, in that order, as they are now.
    fn lease(&self, inodes: Vec<InodeNumber>) -> Answer<'_, Leased>;
    /// All entries of a directory.
    fn read_dir(&self, inode: InodeNumber) -> Answer<'_, Entries>;
    /// A manifest of any size.
    fn manifest(&self, digest: ManifestDigest) -> Answer<'_, Arc<Manifest>>;
    /// What changes after `revision`. Answered once the tracker listens.
    fn watch(&self, after: Revision) -> Answer<'_, Changes>;
    /// Change one thing; what it changed, as it then was.
    fn change(&self, level: AckLevel, operation: v1::operation::Operation) -> Answer<'_, Changed>;
    /// Make a manifest known before it is named, if it is large; what an operation carries of it.
    fn offer_manifest(&self, manifest: Arc<Manifest>) -> Answer<'_, v1::write_file::Content>;
    /// Capacity of the swarm.
    fn stat_fs(&self) -> Answer<'_, v1::StatFsReply>;
}

impl Catalog for TrackerClient {
    fn newest(&self) -> Revision {
        self.newest_revision()
    }

    fn saw(&self, revision: Revision) {
        TrackerClient::saw(self, revision);
    }

    fn went_back(&self, revision: Revision) {
        TrackerClient::went_back(self, revision);
    }

    fn take_strayed(&self) -> bool {
        TrackerClient::take_strayed(self)
    }

    fn lookup(&self, parent: InodeNumber, name: Bytes) -> Answer<'_, Option<Node>> {
        async move { self.lookup(parent, &name).await?.map(read).transpose() }.boxed()
    }

    fn resolve(&self, path: Bytes) -> Answer<'_, Option<Node>> {
        async move { self.resolve(&path).await?.map(read).transpose() }.boxed()
    }

    fn node(&self, inode: InodeNumber) -> Answer<'_, Option<Node>> {
        async move { self.node(inode, Currency::Seen).await?.map(read).transpose() }.boxed()
    }

    fn current(&self, inode: InodeNumber) -> Answer<'_, Option<(Current, Revision)>> {
        async move {
            let found = self.node_with_manifest(inode, Currency::Newest).await?;
            found.map(|(found, revision)| Ok((with_manifest(found)?, revision))).transpose()
        }
        .boxed()
    }

    fn lease(&self, inodes: Vec<InodeNumber>) -> Answer<'_, Leased> {
        async move {
            let leased = TrackerClient::lease(self, &inodes).await?;
            let files = leased.nodes.into_iter().flatten().map(with_manifest).collect::<Result<_, _>>()?;
            Ok(Leased { files, until: leased.until })
        }
        .boxed()
    }

    fn read_dir(&self, inode: InodeNumber) -> Answer<'_, Entries> {
        async move {
            let entries = self.read_dir(inode).await?;
            let entry = |entry: v1::Entry| {
                let node = entry.node.ok_or_else(|| nonsense("an entry without an inode"))?;
                Ok((entry.name, read(node)?))
            };
            entries.into_iter().map(entry).collect()
        }
        .boxed()
    }

    fn manifest(&self, digest: ManifestDigest) -> Answer<'_, Arc<Manifest>> {
        self.manifest(digest).boxed()
    }

    fn watch(&self, after: Revision) -> Answer<'_, Changes> {
        async move {
            let stream = self.watch(after).await?;
            let changes = stream.map(|reply| {
                reply.map_err(|status| TrackerError::Refused {
                    fault: Fault::Unavailable,
                    message: status.message().to_owned(),
                })
            });
            Ok(changes.boxed())
        }
        .boxed()
    }

    fn change(&self, level: AckLevel, operation: v1::operation::Operation) -> Answer<'_, Changed> {
        async move {
            let changed = TrackerClient::change(self, level, operation).await?;
            Ok(Changed {
                revision: changed.revision,
                refused: changed.refused,
                node: changed.node.map(read).transpose()?,
                others: changed.others.into_iter().map(read).collect::<Result<_, _>>()?,
            })
        }
        .boxed()
    }

    fn offer_manifest(&self, manifest: Arc<Manifest>) -> Answer<'_, v1::write_file::Content> {
        async move {
            use v1::publish_file::Content::{Manifest, ManifestDigest};
            Ok(match TrackerClient::offer_manifest(self, &manifest).await? {
                Manifest(encoded) => v1::write_file::Content::Manifest(encoded),
                ManifestDigest(digest) => v1::write_file::Content::ManifestDigest(digest),
            })
        }
        .boxed()
    }

    fn stat_fs(&self) -> Answer<'_, v1::StatFsReply> {
        self.stat_fs().boxed()
    }
}

fn read(node: v1::Node) -> Result<Node, TrackerError> {
    Node::try_from(node).map_err(|error: NodeError| nonsense(error))
}

fn with_manifest(found: NodeWithManifest) -> Result<Current, TrackerError> {
    Ok((read(found.node)?, found.manifest))
}

fn nonsense(what: impl std::fmt::Display) -> TrackerError {
    TrackerError::Refused { fault: Fault::Corrupt, message: what.to_string() }
}
