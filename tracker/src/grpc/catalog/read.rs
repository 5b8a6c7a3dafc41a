//! Names: one, a path, a directory, and what changes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, stream};
use prost::Message;
use swarm_proto::manifest::INLINE_BYTES;
use swarm_proto::{Fault, InodeNumber, Revision, convert as fields, fault, v1};
use tonic::Status;

use super::manifests::MOST_REPLY_BYTES;
use super::{Answers, convert, status_of};
use crate::catalog::state::{Changes, View};
use crate::catalog::{CATCH_UP, Catalog};
use crate::namespace::{Name, Node};
use crate::store::StoreError;
use crate::store::history::Follower;

/// Entries in a message: some 150 bytes each.
const PAGE_ENTRIES: usize = 1000;
/// Bytes after which a message takes no further entry: links and attributes may make one 12 KiB large.
const PAGE_BYTES: usize = 1024 * 1024;
/// A watcher is told of changes at most this much later than they are made.
const PACE: Duration = Duration::from_millis(4);
/// Most inodes of one call.
const MOST_LEASED: u64 = 1024;
/// Most bytes of them; the manifests come to that.
const MOST_LEASED_BYTES: usize = 2 * 1024 * 1024;

fn refused(fault: Fault, message: impl Into<String>) -> Status {
    fault::to_status(fault, message)
}

fn gone(inode: InodeNumber) -> Status {
    refused(Fault::Stale, format!("inode {inode} is gone"))
}

/// What `name` in `directory` is.
fn find(view: &View<'_>, directory: InodeNumber, name: &[u8]) -> Result<InodeNumber, Status> {
    let name = Name::new(name).map_err(status_of)?;
    match view.image.node(directory) {
        None => Err(gone(directory)),
        Some(node) if !node.is_directory() => {
            Err(refused(Fault::NotDirectory, format!("inode {directory} is not a directory")))
        }
        Some(_) => view
            .image
            .entry(directory, name.as_bytes())
            .ok_or_else(|| refused(Fault::NotFound, format!("{name:?} does not exist"))),
    }
}

fn answer(view: &View<'_>, inode: InodeNumber) -> Result<v1::NodeReply, Status> {
    let node = view.image.node(inode).ok_or_else(|| refused(Fault::Corrupt, format!("inode {inode} is lost")))?;
    Ok(v1::NodeReply { revision: view.revision.0, node: Some(convert::node(inode, node)), manifest: Bytes::new() })
}

pub(super) async fn lookup(catalog: &Catalog, request: v1::LookupRequest) -> Result<v1::NodeReply, Status> {
    let view = catalog.view_at(Revision(request.min_revision)).await.map_err(status_of)?;
    let inode = find(&view, InodeNumber(request.parent), &request.name)?;
    answer(&view, inode)
}

pub(super) async fn resolve(catalog: &Catalog, request: v1::ResolveRequest) -> Result<v1::NodeReply, Status> {
    let view = catalog.view_at(Revision(request.min_revision)).await.map_err(status_of)?;
    let mut inode = InodeNumber::ROOT;
    for name in request.path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
        inode = find(&view, inode, name)?;
    }
    answer(&view, inode)
}

pub(super) async fn get_node(catalog: &Catalog, request: v1::GetNodeRequest) -> Result<v1::NodeReply, Status> {
    let inode = InodeNumber(request.inode);
    let (mut reply, digest) = {
        let newest = match request.current {
            true => catalog.view_current().await.map_err(status_of)?.revision,
            false => Revision(0),
        };
        let view = catalog.view_at(newest.max(Revision(request.min_revision))).await.map_err(status_of)?;
        let Some(node) = view.image.node(inode) else {
            return Err(refused(Fault::NotFound, format!("inode {inode} does not exist")));
        };
        (answer(&view, inode)?, node.content().and_then(|content| content.manifest))
    };
    if let (true, Some(digest)) = (request.with_manifest, digest) {
        let manifest = catalog.manifests().whole(digest, INLINE_BYTES).await.map_err(status_of)?;
        reply.manifest = manifest.unwrap_or_default();
    }
    Ok(reply)
}

pub(super) async fn lease_nodes(
    catalog: &Catalog,
    request: v1::LeaseNodesRequest,
) -> Result<v1::LeaseNodesReply, Status> {
    fields::within("inodes", request.inodes.len() as u64, 0, MOST_LEASED)?;
    let inodes: Vec<InodeNumber> = request.inodes.into_iter().map(InodeNumber).collect();
    drop(catalog.view_at(Revision(request.min_revision)).await.map_err(status_of)?);
    let (revision, term, mut nodes, digests) = {
        let (view, term) = catalog.view_leased(&inodes).await.map_err(status_of)?;
        // What has lost its last name is not to be opened any more.
        let named = |inode: &InodeNumber| view.image.node(*inode).filter(|node| !node.is_orphan());
        let found = || inodes.iter().map(|inode| Some((*inode, named(inode)?)));
        let digest = |found: Option<(_, &Node)>| found?.1.content()?.manifest;
        let leased = |found: Option<(_, &_)>| v1::LeasedNode {
            node: found.map(|(inode, node)| convert::node(inode, node)),
            manifest: Bytes::new(),
        };
        let digests: Vec<_> = found().map(digest).collect();
        (view.revision, term, found().map(leased).collect::<Vec<_>>(), digests)
    };
    if nodes.iter().map(v1::LeasedNode::encoded_len).sum::<usize>() > MOST_LEASED_BYTES {
        return Err(Status::resource_exhausted("these inodes are too large for one reply: ask for fewer"));
    }
    let mut room = MOST_REPLY_BYTES;
    for (leased, digest) in nodes.iter_mut().zip(digests) {
        let Some(digest) = digest else { continue };
        let manifest = catalog.manifests().whole(digest, room.min(INLINE_BYTES)).await.map_err(status_of)?;
        leased.manifest = manifest.unwrap_or_default();
        room -= leased.manifest.len();
    }
    let lease_ms = u32::try_from(term.as_millis()).unwrap_or(0);
    Ok(v1::LeaseNodesReply { revision: revision.0, nodes, lease_ms })
}

/// Where a listing stands.
struct Listing {
    catalog: Arc<Catalog>,
    directory: InodeNumber,
    after: Bytes,
    left: usize,
    /// The page was full.
    more: bool,
    page: Option<v1::ReadDirReply>,
}

pub(super) async fn read_dir(
    catalog: Arc<Catalog>,
    request: v1::ReadDirRequest,
) -> Result<Answers<v1::ReadDirReply>, Status> {
    let left = match request.limit {
        0 => usize::MAX,
        limit => limit as usize,
    };
    let directory = InodeNumber(request.inode);
    let mut listing =
        Listing { catalog: catalog.clone(), directory, after: request.after, left, more: false, page: None };
    {
        let view = catalog.view_at(Revision(request.min_revision)).await.map_err(status_of)?;
        match view.image.node(directory) {
            None => return Err(gone(directory)),
            Some(node) if !node.is_directory() => {
                return Err(refused(Fault::NotDirectory, format!("inode {directory} is not a directory")));
            }
            Some(_) => listing.fill(&view),
        }
    }
    Ok(stream::unfold(listing, |mut listing| async {
        let page = listing.page.take()?;
        if listing.more && listing.left > 0 {
            let catalog = listing.catalog.clone();
            listing.fill(&catalog.view());
            // What was left may be gone by now: no empty page comes last.
            listing.page = listing.page.take().filter(|page| !page.entries.is_empty());
        }
        Some((Ok(page), listing))
    })
    .boxed())
}

impl Listing {
    /// Make the next page ready.
    fn fill(&mut self, view: &View<'_>) {
        let after = Some(&self.after[..]).filter(|after| !after.is_empty());
        let (mut entries, mut bytes) = (Vec::new(), 0);
        self.more = false;
        for (name, inode) in view.image.list(self.directory, after) {
            if entries.len() == PAGE_ENTRIES.min(self.left) || bytes >= PAGE_BYTES {
                self.more = true;
                break;
            }
            let Some(node) = view.image.node(inode) else { continue };
            let node = Some(convert::node(inode, node));
            let entry = v1::Entry { name: Bytes::copy_from_slice(name.as_bytes()), node };
            bytes += entry.encoded_len();
            entries.push(entry);
        }
        self.left -= entries.len();
        if let Some(last) = entries.last() {
            self.after = last.name.clone();
        }
        self.page = Some(v1::ReadDirReply { revision: view.revision.0, entries });
    }
}

/// Where a watch stands.
enum Watch {
    Starting(Arc<Catalog>, Revision),
    /// And when a change was told last after a rest.
    Following(Arc<Catalog>, Follower<Changes>, Instant),
}

pub(super) fn watch(catalog: Arc<Catalog>, after: Revision) -> Answers<v1::WatchReply> {
    stream::unfold(Watch::Starting(catalog, after), |watch| async {
        match watch {
            Watch::Starting(catalog, after) => Some(start(catalog, after).await),
            Watch::Following(catalog, mut follower, mut rested) => {
                Some(match follow(&mut follower, &mut rested).await {
                    Ok(reply) => (reply, Watch::Following(catalog, follower, rested)),
                    Err(_) => start_anew(catalog),
                })
            }
        }
    })
    .map(Ok)
    .boxed()
}

/// The first reply comes at once, so that the client knows that nothing escapes it from here on.
async fn start(catalog: Arc<Catalog>, after: Revision) -> (v1::WatchReply, Watch) {
    // A client may have seen a newer revision elsewhere; one that this catalog does not reach is none of its own.
    drop(tokio::time::timeout(CATCH_UP, catalog.view_at(after)).await);
    let now = catalog.revision();
    let mut follower = catalog.watch(after);
    if after > now || follower.try_next().is_err() {
        return start_anew(catalog);
    }
    let follower = catalog.watch(after);
    (
        v1::WatchReply { revision: after.0, changes: Vec::new(), reset: false },
        Watch::Following(catalog, follower, a_rest_ago()),
    )
}

fn start_anew(catalog: Arc<Catalog>) -> (v1::WatchReply, Watch) {
    let now = catalog.revision();
    let follower = catalog.watch(now);
    (
        v1::WatchReply { revision: now.0, changes: Vec::new(), reset: true },
        Watch::Following(catalog, follower, a_rest_ago()),
    )
}

fn a_rest_ago() -> Instant {
    let now = Instant::now();
    now.checked_sub(PACE).unwrap_or(now)
}

/// What was changed at the next revision at which anything was, and nothing of others: a mount tells the echo of its own
/// changes by their revision.
///
/// Cost: after a change was told, the next ones come together, [`PACE`] later: a message by itself costs both ends
/// several times as much.
async fn follow(follower: &mut Follower<Changes>, rested: &mut Instant) -> Result<v1::WatchReply, StoreError> {
    loop {
        let (revision, changes) = match follower.try_next()? {
            Some(next) => next,
            None => {
                tokio::time::sleep_until((*rested + PACE).into()).await;
                let next = follower.next().await?;
                *rested = Instant::now();
                next
            }
        };
        if !changes.is_empty() {
            let changes = changes.iter().map(convert::change).collect();
            return Ok(v1::WatchReply { revision: revision.0, changes, reset: false });
        }
    }
}
