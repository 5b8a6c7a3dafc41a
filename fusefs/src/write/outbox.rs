//! The seam between files that are written and what sends their bytes to seeders.

use std::any::Any;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use swarm_proto::{ByteRange, Extent, PeerId, Segment, SegmentId, v1};
use swarm_seeder::swarm::upload::{Shortage, UploadError, Uploader, upload_range};

/// Segments of one commit whose holders it names; what came earlier, the seeders have announced long since.
const MOST_ACKNOWLEDGED: usize = 65_536;

/// A range of a file that enough seeders hold.
pub struct Delivered {
    /// Its bytes.
    pub extents: Vec<Extent>,
    /// Bytes that had to be sent.
    pub sent_bytes: u64,
    /// Has them kept until dropped: hold it until the commit was answered.
    pub lease: Box<dyn Any + Send + Sync>,
}

/// Sends bytes to seeders.
pub trait Outbox: Send + Sync + 'static {
    /// Length at which files are cut.
    fn segment_bytes(&self) -> u64;
    /// Have seeders hold a range of a file, at the close level.
    ///
    /// Errors: after a time without progress.
    fn send(&self, file: Arc<File>, range: ByteRange) -> BoxFuture<'_, Result<Delivered, UploadError>>;
    /// Raise what seeders hold of these to the fsync level; those that too few hold at it. Who takes longer than `wait`
    /// counts as one that lost them.
    fn sync(&self, ids: Vec<SegmentId>, wait: Duration) -> BoxFuture<'_, Vec<SegmentId>>;
    /// Who stands for which of these.
    fn acknowledged(&self, ids: &[SegmentId]) -> Vec<v1::Acknowledged>;
    /// The tracker does not believe that these are held.
    fn forget(&self, ids: &[SegmentId]);
    /// Those of which seeders hold fewer replicas than they should. Asks nobody.
    fn short(&self, ids: &[SegmentId]) -> Vec<(SegmentId, Shortage)>;
    /// What a segment of so many replicas lacks. Asks nobody.
    fn shortage(&self, replicas: usize) -> Shortage;
    /// The seeders that are up, in order.
    fn live(&self) -> BoxFuture<'_, Result<Vec<PeerId>, UploadError>>;
    /// Those that were up when somebody last asked. Asks nobody.
    fn live_lately(&self) -> Vec<PeerId>;
    /// Have as many seeders hold a segment as should; how many do. `bytes`: none, if they cannot be had.
    fn send_again<'a>(
        &'a self,
        segment: Segment,
        bytes: BoxFuture<'a, Option<Bytes>>,
    ) -> BoxFuture<'a, Result<usize, UploadError>>;
    /// Have seeders that hold these say so again.
    fn confirm(&self, segments: Vec<Segment>) -> BoxFuture<'_, Result<(), UploadError>>;
}

impl Outbox for Uploader {
    fn segment_bytes(&self) -> u64 {
        self.config().segment_bytes.into()
    }

    fn send(&self, file: Arc<File>, range: ByteRange) -> BoxFuture<'_, Result<Delivered, UploadError>> {
        async move {
            let (extents, leases, sent_bytes) = upload_range(self, &file, range).await?;
            Ok(Delivered { extents, sent_bytes, lease: Box::new(leases) })
        }
        .boxed()
    }

    fn sync(&self, ids: Vec<SegmentId>, wait: Duration) -> BoxFuture<'_, Vec<SegmentId>> {
        async move { Uploader::sync(self, &ids, wait).await }.boxed()
    }

    fn acknowledged(&self, ids: &[SegmentId]) -> Vec<v1::Acknowledged> {
        Uploader::acknowledged(self, ids, MOST_ACKNOWLEDGED)
    }

    fn forget(&self, ids: &[SegmentId]) {
        Uploader::forget(self, ids);
    }

    fn short(&self, ids: &[SegmentId]) -> Vec<(SegmentId, Shortage)> {
        Uploader::short(self, ids)
    }

    fn shortage(&self, replicas: usize) -> Shortage {
        Uploader::shortage(self, replicas)
    }

    fn live(&self) -> BoxFuture<'_, Result<Vec<PeerId>, UploadError>> {
        Uploader::live(self).boxed()
    }

    fn live_lately(&self) -> Vec<PeerId> {
        Uploader::live_lately(self)
    }

    fn send_again<'a>(
        &'a self,
        segment: Segment,
        bytes: BoxFuture<'a, Option<Bytes>>,
    ) -> BoxFuture<'a, Result<usize, UploadError>> {
        Uploader::send_again(self, segment, bytes).boxed()
    }

    fn confirm(&self, segments: Vec<Segment>) -> BoxFuture<'_, Result<(), UploadError>> {
        async move { Uploader::confirm(self, &segments).await }.boxed()
    }
}
