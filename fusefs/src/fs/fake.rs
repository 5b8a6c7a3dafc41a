//! A catalog, bytes and holders in memory, for tests.

mod changing;
mod writing;

use std::collections::HashMap;
use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use parking_lot::Mutex;
use swarm_proto::{Extent, Fault, InodeNumber, Manifest, ManifestDigest, PeerId, Revision, Segment, SegmentId, v1};
use swarm_seeder::store::AckLevel;
use swarm_seeder::swarm::{Holder, Locator, Offence};
use swarm_seeder::tracker_client::TrackerError;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::catalog::{Answer, Catalog, Changed, Changes, Current, Entries, Leased};
use super::content::{Content, OpenContent, Version};
use super::invalidation::{Invalidation, Invalidations};
use super::node::{Kind, Node};
use super::{Access, FileSystem, FileSystemConfig, Writing};
use crate::errno::Errno;

pub(crate) use writing::FakeOutbox;

pub(crate) const ROOT: InodeNumber = InodeNumber(1);

/// A catalog whose content is [`FakeSwarm::bytes`] by manifest.
#[derive(Default)]
pub(crate) struct FakeSwarm {
    state: Mutex<State>,
    pub(crate) away: AtomicBool,
    pub(crate) questions: AtomicUsize,
    pub(crate) prefetched: Mutex<Vec<ManifestDigest>>,
    /// Leases are given.
    pub(crate) leases: AtomicBool,
    /// Files are complete in the cache.
    pub(crate) complete: AtomicBool,
    /// Until when the last read was to be answered.
    pub(crate) read_until: Arc<Mutex<Option<Instant>>>,
    /// Reads never end.
    pub(crate) stuck: AtomicBool,
    /// Reads panic.
    pub(crate) panics: AtomicBool,
    /// What the mount itself changes is pushed only by [`Self::push_echoes`].
    pub(crate) echoes_late: AtomicBool,
    /// Changes are made, and their answers lost.
    pub(crate) lose_answers: AtomicBool,
    /// Nobody holds any more what the next new file is made of.
    pub(crate) lose_segments: AtomicBool,
    /// How durable each change was asked to be.
    pub(crate) levels: Mutex<Vec<AckLevel>>,
}

#[derive(Default)]
struct State {
    revision: u64,
    next: u64,
    nodes: HashMap<u64, Node>,
    names: HashMap<(u64, Bytes), u64>,
    manifests: HashMap<ManifestDigest, Arc<Manifest>>,
    bytes: HashMap<ManifestDigest, Bytes>,
    segments: HashMap<SegmentId, Bytes>,
    held: Vec<v1::WatchReply>,
    watchers: Vec<futures::channel::mpsc::UnboundedSender<Result<v1::WatchReply, TrackerError>>>,
}

impl FakeSwarm {
    pub(crate) fn new() -> Arc<Self> {
        let this = Self::default();
        {
            let mut state = this.state.lock();
            state.next = 2;
            state.nodes.insert(1, node(1, Kind::Directory));
        }
        Arc::new(this)
    }

    /// Make a node and tell the watchers.
    pub(crate) fn make(&self, parent: InodeNumber, name: impl AsRef<[u8]>, kind: Kind) -> InodeNumber {
        let mut state = self.state.lock();
        let (inode, name) = (state.next, name.as_ref());
        state.next += 1;
        state.nodes.insert(inode, node(inode, kind));
        state.names.insert((parent.0, Bytes::copy_from_slice(name)), inode);
        state.changed(parent.0, name, false);
        InodeNumber(inode)
    }

    /// Give a file a content, and tell the watchers.
    pub(crate) fn write(&self, inode: InodeNumber, bytes: &[u8]) {
        self.write_silently(inode, bytes);
        self.state.lock().changed(inode.0, b"", true);
    }

    /// The same, with the watchers told never: as if they were slow.
    pub(crate) fn write_silently(&self, inode: InodeNumber, bytes: &[u8]) {
        let id = SegmentId::new(*blake3::hash(bytes).as_bytes());
        let length = u32::try_from(bytes.len()).unwrap();
        let extents = if bytes.is_empty() { vec![] } else { vec![Extent::whole(Segment { id, length })] };
        self.state.lock().segments.insert(id, Bytes::copy_from_slice(bytes));
        self.commit(inode, Manifest::new(extents).unwrap(), bytes);
    }

    /// Give a file a hole, as long as what follows it.
    pub(crate) fn write_after_hole(&self, inode: InodeNumber, bytes: &[u8]) {
        let id = SegmentId::new(*blake3::hash(bytes).as_bytes());
        let length = u32::try_from(bytes.len()).unwrap();
        let hole = Extent::Hole { length: u64::from(length) };
        let manifest = Manifest::new(vec![hole, Extent::whole(Segment { id, length })]).unwrap();
        let whole = [vec![0; bytes.len()], bytes.to_vec()].concat();
        self.commit(inode, manifest, &whole);
        self.state.lock().changed(inode.0, b"", true);
    }

    fn commit(&self, inode: InodeNumber, manifest: Manifest, bytes: &[u8]) {
        let mut state = self.state.lock();
        let digest = manifest.digest();
        state.manifests.insert(digest, Arc::new(manifest));
        state.bytes.insert(digest, Bytes::copy_from_slice(bytes));
        state.revision += 1;
        let node = state.nodes.get_mut(&inode.0).unwrap();
        node.size = bytes.len() as u64;
        node.content = (!bytes.is_empty()).then_some(digest);
        node.version += 1;
        node.modified_ns += 1;
    }

    pub(crate) fn remove(&self, parent: InodeNumber, name: &str) {
        let mut state = self.state.lock();
        let inode = state.names.remove(&(parent.0, Bytes::copy_from_slice(name.as_bytes()))).unwrap();
        state.nodes.remove(&inode);
        state.changed(parent.0, name.as_bytes(), false);
    }

    /// The last changes are as if they had not been acknowledged.
    pub(crate) fn lose_revisions(&self, count: u64) {
        self.state.lock().revision -= count;
    }

    pub(crate) fn end_watches(&self) {
        self.state.lock().watchers.clear();
    }

    pub(crate) fn asked(&self) -> usize {
        self.questions.load(Ordering::SeqCst)
    }

    fn ask<T: Send + 'static>(&self, answer: impl FnOnce(&mut State) -> Result<T, TrackerError>) -> Answer<'_, T> {
        self.questions.fetch_add(1, Ordering::SeqCst);
        let answer = match self.away.load(Ordering::SeqCst) {
            true => Err(unreachable()),
            false => answer(&mut self.state.lock()),
        };
        async move { answer }.boxed()
    }
}

impl State {
    fn changed(&mut self, inode: u64, name: &[u8], content: bool) {
        self.revision += 1;
        let change = v1::Change { inode, name: Bytes::copy_from_slice(name), content };
        let reply = v1::WatchReply { revision: self.revision, changes: vec![change], reset: false };
        self.watchers.retain(|watcher| watcher.unbounded_send(Ok(reply.clone())).is_ok());
    }
}

fn unreachable() -> TrackerError {
    TrackerError::Unreachable { address: "here".into(), reason: "away".into(), waited: Duration::ZERO }
}

pub(crate) fn node(inode: u64, kind: Kind) -> Node {
    Node {
        inode: InodeNumber(inode),
        kind,
        mode: 0o644,
        uid: 0,
        gid: 0,
        size: 0,
        links: 1,
        modified_ns: 0,
        changed_ns: 0,
        created_ns: 0,
        content: None,
        target: Bytes::from_static(b"target"),
        version: 1,
        accessed_ns: 0,
        allocated: 0,
        device: 0,
        extended: Vec::new(),
    }
}

impl Catalog for FakeSwarm {
    fn newest(&self) -> Revision {
        Revision(self.state.lock().revision)
    }

    fn saw(&self, _: Revision) {}

    fn went_back(&self, _: Revision) {}

    fn take_strayed(&self) -> bool {
        false
    }

    fn lookup(&self, parent: InodeNumber, name: Bytes) -> Answer<'_, Option<Node>> {
        self.ask(|state| Ok(state.names.get(&(parent.0, name)).map(|inode| state.nodes[inode].clone())))
    }

    fn resolve(&self, _: Bytes) -> Answer<'_, Option<Node>> {
        self.node(ROOT)
    }

    fn node(&self, inode: InodeNumber) -> Answer<'_, Option<Node>> {
        self.ask(|state| Ok(state.nodes.get(&inode.0).cloned()))
    }

    fn current(&self, inode: InodeNumber) -> Answer<'_, Option<(Current, Revision)>> {
        self.ask(|state| Ok(state.nodes.get(&inode.0).cloned().map(|node| ((node, None), Revision(state.revision)))))
    }

    fn read_dir(&self, inode: InodeNumber) -> Answer<'_, Entries> {
        self.ask(|state| {
            let names = state.names.iter().filter(|((parent, _), _)| *parent == inode.0);
            Ok(names.map(|((_, name), inode)| (name.clone(), state.nodes[inode].clone())).collect())
        })
    }

    fn manifest(&self, digest: ManifestDigest) -> Answer<'_, Arc<Manifest>> {
        self.ask(|state| {
            let unknown = TrackerError::Refused { fault: Fault::NotFound, message: "no such manifest".into() };
            state.manifests.get(&digest).cloned().ok_or(unknown)
        })
    }

    fn lease(&self, inodes: Vec<InodeNumber>) -> Answer<'_, Leased> {
        let until = self.leases.load(Ordering::SeqCst).then(|| Instant::now() + Duration::from_secs(3_600));
        self.ask(move |state| {
            let file = |inode: &InodeNumber| {
                let node = state.nodes.get(&inode.0)?.clone();
                let manifest = node.content.and_then(|digest| state.manifests.get(&digest).cloned());
                Some((node, manifest))
            };
            Ok(Leased { files: inodes.iter().filter_map(file).collect(), until })
        })
    }

    fn watch(&self, _: Revision) -> Answer<'_, Changes> {
        self.ask(|state| {
            let (sender, receiver) = futures::channel::mpsc::unbounded();
            state.watchers.push(sender);
            Ok(receiver.boxed())
        })
    }

    fn change(&self, level: AckLevel, operation: v1::operation::Operation) -> Answer<'_, Changed> {
        self.levels.lock().push(level);
        self.carry_out(operation)
    }

    fn offer_manifest(&self, manifest: Arc<Manifest>) -> Answer<'_, v1::write_file::Content> {
        self.ask(move |_| Ok(v1::write_file::Content::Manifest(manifest.encode())))
    }

    fn stat_fs(&self) -> Answer<'_, v1::StatFsReply> {
        self.ask(|_| {
            Ok(v1::StatFsReply { capacity_bytes: 1 << 30, free_bytes: 1 << 29, inodes: 7, ..Default::default() })
        })
    }
}

struct FakeContent {
    bytes: Bytes,
    complete: bool,
    stuck: bool,
    panics: bool,
    until: Arc<Mutex<Option<Instant>>>,
}

impl OpenContent for FakeContent {
    fn read(&self, offset: u64, length: u32, deadline: Instant) -> BoxFuture<'_, Result<Bytes, Errno>> {
        assert!(!self.panics, "as a test wants it");
        *self.until.lock() = Some(deadline);
        if self.stuck {
            return futures::future::pending().boxed();
        }
        let start = usize::try_from(offset).unwrap().min(self.bytes.len());
        let end = (start + length as usize).min(self.bytes.len());
        let bytes = self.bytes.slice(start..end);
        async move { Ok(bytes) }.boxed()
    }

    fn complete_file(&self) -> Option<Arc<File>> {
        self.complete.then(|| {
            let mut file = tempfile::tempfile().unwrap();
            std::io::Write::write_all(&mut file, &self.bytes).unwrap();
            Arc::new(file)
        })
    }
}

impl Content for FakeSwarm {
    fn open(&self, version: &Version) -> Arc<dyn OpenContent> {
        let bytes = version.digest.map(|digest| self.state.lock().bytes[&digest].clone()).unwrap_or_default();
        let is = |flag: &AtomicBool| flag.load(Ordering::SeqCst);
        let (complete, stuck, panics) = (is(&self.complete), is(&self.stuck), is(&self.panics));
        Arc::new(FakeContent { bytes, complete, stuck, panics, until: self.read_until.clone() })
    }

    fn prefetch(&self, versions: Vec<Version>) {
        self.prefetched.lock().extend(versions.into_iter().filter_map(|version| version.digest));
    }

    fn cached_bytes(&self, _: &Version) -> u64 {
        5
    }

    fn cached_manifest(&self, _: &ManifestDigest) -> Option<Arc<Manifest>> {
        None
    }
}

impl Locator for FakeSwarm {
    fn locate(&self, ids: Vec<SegmentId>) -> BoxFuture<'_, Result<Vec<Vec<Holder>>, String>> {
        let peer = swarm_seeder::swarm::PeerAddress {
            id: PeerId::new([7; 16]),
            address: "h:1".into(),
            zone: String::new(),
            host: String::new(),
        };
        let holders = vec![Holder { peer, partial: false }];
        async move { Ok(vec![holders; ids.len()]) }.boxed()
    }

    fn report(&self, _: PeerId, _: Offence) {}
}

/// A file system over a fake swarm, following its changes.
pub(crate) struct Bench {
    pub(crate) swarm: Arc<FakeSwarm>,
    pub(crate) fs: Arc<FileSystem>,
    pub(crate) forgotten: mpsc::Receiver<Invalidation>,
    pub(crate) tasks: TaskTracker,
    stop: CancellationToken,
}

impl Bench {
    pub(crate) async fn new(offline_ok: bool) -> Self {
        Self::with(offline_ok, Access::ReadWrite).await
    }

    pub(crate) async fn with(offline_ok: bool, access: Access) -> Self {
        Self::over(FakeSwarm::new(), offline_ok, access, None).await
    }

    async fn over(swarm: Arc<FakeSwarm>, offline_ok: bool, access: Access, writing: Option<Writing>) -> Self {
        let (invalidations, forgotten) = Invalidations::new();
        let config = FileSystemConfig {
            root: ROOT,
            metadata_ttl: Duration::from_secs(3_600),
            metadata_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(5),
            offline_ok,
            access,
            no_passthrough: None,
            no_passed_writes: None,
        };
        let tasks = TaskTracker::new();
        let fs =
            FileSystem::new(config, swarm.clone(), swarm.clone(), swarm.clone(), writing, invalidations, tasks.clone());
        let fs = Arc::new(fs);
        let stop = CancellationToken::new();
        let (following, stopped) = (fs.clone(), stop.clone());
        tasks.spawn(async move { following.follow_changes(stopped).await });
        let bench = Self { swarm, fs, forgotten, tasks, stop };
        bench.until("changes are pushed", |bench| bench.fs.is_live()).await;
        bench
    }

    /// Wait until something holds.
    pub(crate) async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !holds(self) {
            assert!(began.elapsed() < Duration::from_secs(20), "not within 20 s: {what}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Wait until the kernel was told to forget something.
    pub(crate) async fn until_forgotten(&self, want: &Invalidation) {
        let seen = Mutex::new(Vec::new());
        self.until(&format!("{want:?} is forgotten"), |bench| {
            seen.lock().extend(bench.forgotten.try_iter());
            seen.lock().contains(want)
        })
        .await;
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.stop.cancel();
        self.tasks.close();
    }
}
