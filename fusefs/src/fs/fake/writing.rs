//! Writing over the fake catalog: segments in memory, sent when the test lets them.

use std::sync::atomic::Ordering;

use super::*;
use swarm_proto::ByteRange;
use swarm_seeder::swarm::upload::{Shortage, UploadError};

use crate::fs::Writer;
use crate::fs::open_files::Opened;
use crate::write::{Debts, Delivered, Outbox, Spool};

/// Takes what is sent, as the test wants it.
pub(crate) struct FakeOutbox {
    swarm: Arc<FakeSwarm>,
    segment_bytes: u64,
    /// Whoever sends waits while this is set.
    pub(crate) held: AtomicBool,
    /// Sends that began.
    pub(crate) sends: AtomicUsize,
    /// Sends fail.
    pub(crate) failing: AtomicBool,
    /// Sends fail from then on.
    pub(crate) fails_after: AtomicUsize,
    /// What was taken is lost before it is synced.
    pub(crate) loses: AtomicBool,
    /// The next sync is waited for in vain.
    pub(crate) hangs: AtomicBool,
    /// Segments that somebody stands for.
    pub(crate) taken: Mutex<Vec<SegmentId>>,
    /// Segments that were synced.
    pub(crate) synced: Mutex<Vec<SegmentId>>,
    /// Seeders that are up, of how many that there are, and replicas that are wanted.
    pub(crate) up: AtomicUsize,
    pub(crate) known: AtomicUsize,
    pub(crate) wanted: AtomicUsize,
    /// Replicas of each segment.
    pub(crate) copies: Mutex<HashMap<SegmentId, usize>>,
    /// Segments that were to be sent again.
    pub(crate) asked_again: AtomicUsize,
    /// When there was memory for the last of them.
    pub(crate) granted: Mutex<Option<Instant>>,
    /// Bytes that were sent again.
    pub(crate) again: Mutex<Vec<Bytes>>,
}

impl FakeOutbox {
    fn take(&self, file: &File, range: ByteRange) -> Result<Delivered, UploadError> {
        let mut bytes = vec![0; usize::try_from(range.len()).unwrap()];
        let read = std::os::unix::fs::FileExt::read_exact_at(file, &mut bytes, range.start);
        read.map_err(|error| UploadError::Read(Arc::new(error)))?;
        let mut extents = Vec::new();
        for part in bytes.chunks(usize::try_from(self.segment_bytes).unwrap()) {
            let segment = Segment {
                id: SegmentId::new(*blake3::hash(part).as_bytes()),
                length: u32::try_from(part.len()).unwrap(),
            };
            self.swarm.state.lock().segments.insert(segment.id, Bytes::copy_from_slice(part));
            self.taken.lock().push(segment.id);
            self.copies.lock().insert(segment.id, self.up.load(Ordering::SeqCst));
            extents.push(Extent::whole(segment));
        }
        Ok(Delivered { extents, sent_bytes: range.len(), lease: Box::new(()) })
    }

    /// How many stand for a segment.
    fn held(&self, id: &SegmentId) -> usize {
        let is_taken = self.taken.lock().contains(id);
        self.copies.lock().get(id).copied().filter(|_| is_taken).unwrap_or_default()
    }
}

impl Outbox for FakeOutbox {
    fn segment_bytes(&self) -> u64 {
        self.segment_bytes
    }

    fn send(&self, file: Arc<File>, range: ByteRange) -> BoxFuture<'_, Result<Delivered, UploadError>> {
        async move {
            let number = self.sends.fetch_add(1, Ordering::SeqCst);
            while self.held.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            match self.failing.load(Ordering::SeqCst) || number >= self.fails_after.load(Ordering::SeqCst) {
                true => Err(UploadError::NoSeeder),
                false => self.take(&file, range),
            }
        }
        .boxed()
    }

    fn sync(&self, ids: Vec<SegmentId>, wait: Duration) -> BoxFuture<'_, Vec<SegmentId>> {
        if self.hangs.swap(false, Ordering::SeqCst) {
            self.forget(&ids);
            return tokio::time::sleep(wait).map(|()| ids).boxed();
        }
        let taken = self.taken.lock().clone();
        let missing = match self.loses.load(Ordering::SeqCst) {
            true => {
                self.forget(&ids);
                ids
            }
            false => {
                let (synced, missing) = ids.into_iter().partition(|id| taken.contains(id));
                self.synced.lock().extend::<Vec<_>>(synced);
                missing
            }
        };
        async move { missing }.boxed()
    }

    fn acknowledged(&self, ids: &[SegmentId]) -> Vec<v1::Acknowledged> {
        let taken = self.taken.lock();
        let ids: Vec<SegmentId> = ids.iter().filter(|id| taken.contains(id)).copied().collect();
        vec![v1::Acknowledged { peer_id: PeerId::new([7; 16]).to_wire(), segment_ids: SegmentId::pack(&ids) }]
    }

    fn forget(&self, ids: &[SegmentId]) {
        self.taken.lock().retain(|id| !ids.contains(id));
    }

    fn short(&self, ids: &[SegmentId]) -> Vec<(SegmentId, Shortage)> {
        let short = ids.iter().map(|id| (*id, self.shortage(self.held(id))));
        short.filter(|(_, shortage)| *shortage != Shortage::None).collect()
    }

    fn shortage(&self, replicas: usize) -> Shortage {
        match replicas {
            _ if replicas >= self.wanted.load(Ordering::SeqCst) => Shortage::None,
            _ if replicas >= self.known.load(Ordering::SeqCst) => Shortage::OfSeeders,
            _ => Shortage::OfReplicas,
        }
    }

    fn live(&self) -> BoxFuture<'_, Result<Vec<PeerId>, UploadError>> {
        std::future::ready(Ok(self.live_lately())).boxed()
    }

    fn live_lately(&self) -> Vec<PeerId> {
        let up = u8::try_from(self.up.load(Ordering::SeqCst)).unwrap();
        (1..=up).map(|number| PeerId::new([number; 16])).collect()
    }

    fn send_again<'a>(
        &'a self,
        segment: Segment,
        bytes: BoxFuture<'a, Option<Bytes>>,
    ) -> BoxFuture<'a, Result<usize, UploadError>> {
        async move {
            self.asked_again.fetch_add(1, Ordering::SeqCst);
            let (up, copies) = (self.up.load(Ordering::SeqCst), self.held(&segment.id));
            // As the uploader: nothing is read for nobody.
            if copies >= up.min(self.wanted.load(Ordering::SeqCst)) {
                return Ok(copies);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
            *self.granted.lock() = Some(Instant::now());
            let missing = || UploadError::Read(Arc::new(std::io::ErrorKind::NotFound.into()));
            let bytes = bytes.await.ok_or_else(missing)?;
            if self.failing.load(Ordering::SeqCst) {
                return Err(UploadError::NoSeeder);
            }
            assert_eq!(blake3::hash(&bytes).as_bytes(), segment.id.as_bytes());
            self.again.lock().push(bytes);
            self.taken.lock().push(segment.id);
            self.copies.lock().insert(segment.id, up);
            Ok(up)
        }
        .boxed()
    }

    fn confirm(&self, _: Vec<Segment>) -> BoxFuture<'_, Result<(), UploadError>> {
        std::future::ready(Ok(())).boxed()
    }
}

impl State {
    /// As the tracker does: only over the version that it is based on.
    pub(super) fn write_file(&mut self, write: v1::WriteFile, late: bool) -> Changed {
        let Some(node) = self.nodes.get(&write.inode) else { return self.conclude(Err(Fault::Stale), late) };
        if node.version != write.base_version {
            let node = Some(node.clone());
            return Changed { node, ..self.conclude(Err(Fault::Stale), late) };
        }
        match write.content {
            Some(v1::write_file::Content::Manifest(encoded)) => self.fill(write.inode, &encoded),
            _ => self.fill(write.inode, &Manifest::default().encode()),
        }
        self.nodes.get_mut(&write.inode).unwrap().modified_ns = write.modified_ns;
        self.conclude(Ok((Some(write.inode), vec![], vec![])), late)
    }

    /// Give a file the content of a manifest.
    pub(super) fn fill(&mut self, inode: u64, encoded: &[u8]) {
        let manifest = Manifest::decode(encoded).unwrap();
        let mut bytes = Vec::new();
        for extent in manifest.extents() {
            match *extent {
                Extent::Hole { length } => bytes.resize(bytes.len() + usize::try_from(length).unwrap(), 0),
                Extent::Data { segment, offset_in_segment, length } => {
                    let part = offset_in_segment as usize..(offset_in_segment + length) as usize;
                    bytes.extend_from_slice(&self.segments[&segment.id][part]);
                }
            }
        }
        let digest = manifest.digest();
        let node = self.nodes.get_mut(&inode).unwrap();
        node.size = manifest.size();
        node.content = (manifest.size() > 0).then_some(digest);
        node.version += 1;
        self.manifests.insert(digest, Arc::new(manifest));
        self.bytes.insert(digest, bytes.into());
    }
}

impl FakeSwarm {
    /// What a file is for those who open it now.
    pub(crate) fn content(&self, inode: InodeNumber) -> Bytes {
        let state = self.state.lock();
        state.nodes[&inode.0].content.map(|digest| state.bytes[&digest].clone()).unwrap_or_default()
    }

    /// An inode as it is for those who ask now.
    pub(crate) fn node_of(&self, inode: InodeNumber) -> Node {
        self.state.lock().nodes[&inode.0].clone()
    }

    /// The last name of a file goes; somebody has it open.
    pub(crate) fn unname(&self, inode: InodeNumber) {
        let mut state = self.state.lock();
        state.nodes.get_mut(&inode.0).unwrap().links = 0;
        state.changed(inode.0, b"", false);
    }

    /// What it is made of.
    pub(crate) fn extents(&self, inode: InodeNumber) -> Vec<Extent> {
        let state = self.state.lock();
        let digest = state.nodes[&inode.0].content;
        digest.map(|digest| state.manifests[&digest].extents().to_vec()).unwrap_or_default()
    }

    /// A file of a folder by its name.
    pub(crate) fn named(&self, parent: InodeNumber, holds: impl Fn(&[u8]) -> bool) -> Option<InodeNumber> {
        let state = self.state.lock();
        let found = state.names.iter().find(|((at, name), _)| *at == parent.0 && holds(name));
        found.map(|(_, inode)| InodeNumber(*inode))
    }
}

impl FileSystem {
    /// Open a file for writing through the kernel's cache.
    pub(crate) async fn open_cached(self: &Arc<Self>, inode: InodeNumber, truncate: bool) -> Result<Opened, Errno> {
        let never = |_: &File| Err(std::io::ErrorKind::Unsupported.into());
        self.open_to_write(inode, 0, truncate, Writer::Reads, never).await
    }
}

impl Bench {
    /// Over a swarm that can be written to, in segments of `segment_bytes`.
    pub(crate) async fn writing(segment_bytes: u64) -> (Self, Arc<FakeOutbox>, tempfile::TempDir) {
        Self::writing_with(segment_bytes, |writing| writing).await
    }

    pub(crate) async fn writing_with(
        segment_bytes: u64,
        change: impl FnOnce(Writing) -> Writing,
    ) -> (Self, Arc<FakeOutbox>, tempfile::TempDir) {
        let (swarm, folder) = (FakeSwarm::new(), tempfile::tempdir().unwrap());
        let outbox = Arc::new(FakeOutbox {
            swarm: swarm.clone(),
            segment_bytes,
            held: AtomicBool::default(),
            sends: AtomicUsize::default(),
            failing: AtomicBool::default(),
            fails_after: AtomicUsize::new(usize::MAX),
            loses: AtomicBool::default(),
            hangs: AtomicBool::default(),
            taken: Mutex::default(),
            synced: Mutex::default(),
            up: AtomicUsize::new(1),
            known: AtomicUsize::new(1),
            wanted: AtomicUsize::new(1),
            copies: Mutex::default(),
            asked_again: AtomicUsize::default(),
            granted: Mutex::default(),
            again: Mutex::default(),
        });
        let (spool, _) = Spool::open(folder.path(), 0).unwrap();
        let debts = Debts::open(&folder.path().join("owed"), 0.0).unwrap();
        let writing = Writing::new(outbox.clone(), spool, String::new(), Duration::from_secs(5)).with_debts(debts);
        let writing = writing.with_host("desk");
        let writing = change(writing);
        (Self::over(swarm, false, Access::ReadWrite, Some(writing)).await, outbox, folder)
    }
}
