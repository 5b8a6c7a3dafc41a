//! A tracker, seeders that keep in memory, and mounts, in this process.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{RwLock, RwLockReadGuard};
use prometheus::Registry;
use swarm_fusefs::mount::{Mount, MountConfig, MountError};
use swarm_proto::settings::Span;
use swarm_proto::v1::operation::Operation;
use swarm_proto::v1::{self, IfExists, Ownership};
use swarm_proto::{Extent, InodeNumber, Manifest, ManifestDigest, PeerId, Segment, SegmentId};
use swarm_seeder::peer::{Peer, PeerConfig, Sharing};
use swarm_seeder::store::memory::MemoryStore;
use swarm_seeder::store::{ChunkStore, Holding};
use swarm_seeder::swarm::{Swarm as Fetcher, SwarmConfig};
use swarm_seeder::tracker_client::{TrackerClient, TrackerClientConfig};
use swarm_tracker::config::AdminListen;
use swarm_tracker::{Tracker, TrackerConfig};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Length at which the tests cut files.
pub(crate) const SEGMENT: usize = 4 * 1024 * 1024;

pub(crate) struct Swarm {
    runtime: Runtime,
    tracker: Option<Tracker>,
    client: TrackerClient,
    seeders: Vec<Peer<MemoryStore>>,
    folder: TempDir,
    stop: CancellationToken,
}

/// A mount in this process; unmounted when dropped.
pub(crate) struct Mounted<'a> {
    pub(crate) mount: Option<Mount>,
    pub(crate) folder: PathBuf,
    swarm: &'a Swarm,
}

impl Swarm {
    pub(crate) fn new(seeders: usize) -> Self {
        let runtime = Runtime::new().unwrap();
        let stop = CancellationToken::new();
        let folder = tempfile::tempdir().unwrap();
        let config = TrackerConfig {
            listen: ([127, 0, 0, 1], 0).into(),
            data: Some(folder.path().join("tracker")),
            admin_listen: AdminListen::Off,
            ..TrackerConfig::default()
        };
        let tracker = runtime.block_on(Tracker::start(config)).unwrap();
        let client = {
            let _inside = runtime.enter();
            client(&tracker.address().to_string())
        };
        let seeders = (0..seeders).map(|_| runtime.block_on(seeder(&client, stop.clone()))).collect();
        Self { runtime, tracker: Some(tracker), client, seeders, folder, stop }
    }

    pub(crate) fn address(&self) -> String {
        format!("swarm://{}", self.client.address().endpoints()[0])
    }

    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// Stop the tracker, as if it had gone.
    pub(crate) fn stop_tracker(&mut self) {
        if let Some(tracker) = self.tracker.take() {
            self.runtime.block_on(tracker.stop());
        }
    }

    /// One more seeder.
    pub(crate) fn add_seeder(&mut self) {
        let seeder = self.runtime.block_on(seeder(&self.client, self.stop.clone()));
        self.seeders.push(seeder);
    }

    /// Bytes that each seeder keeps.
    pub(crate) fn kept_bytes(&self) -> Vec<u64> {
        self.seeders.iter().map(|seeder| seeder.store().usage().used_bytes).collect()
    }

    /// Drop everything that the seeders hold.
    pub(crate) fn lose_everything(&self, bytes: &[u8]) {
        for segment in bytes.chunks(SEGMENT) {
            let id = SegmentId::new(*blake3::hash(segment).as_bytes());
            self.seeders.iter().for_each(|seeder| seeder.store().remove(&id));
        }
    }

    fn mutate(&self, operation: Operation) -> Option<v1::Node> {
        self.runtime.block_on(self.client.mutate_one(operation)).unwrap()
    }

    pub(crate) fn inode(&self, path: &str) -> InodeNumber {
        let node = self.runtime.block_on(self.client.resolve(path.as_bytes())).unwrap();
        InodeNumber(node.unwrap_or_else(|| panic!("{path} is not there")).inode)
    }

    /// Extents of the newest version of a file.
    pub(crate) fn extents(&self, path: &str) -> usize {
        let node = self.runtime.block_on(self.client.resolve(path.as_bytes())).unwrap().unwrap();
        let digest = ManifestDigest::new(node.manifest_digest[..].try_into().unwrap());
        self.runtime.block_on(self.client.manifest(digest)).unwrap().extents().len()
    }

    fn parent_and_name<'p>(&self, path: &'p [u8]) -> (u64, &'p [u8]) {
        let cut = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        let parent = String::from_utf8(path[..cut].to_vec()).unwrap();
        (self.inode(&parent).0, &path[cut..][usize::from(path[cut] == b'/')..])
    }

    pub(crate) fn make_folder(&self, path: &str) {
        let (parent, name) = self.parent_and_name(path.as_bytes());
        let name = Bytes::copy_from_slice(name);
        self.mutate(Operation::MakeDirectory(v1::MakeDirectory { parent, name, ownership: owner(0o755) }));
    }

    pub(crate) fn make_link(&self, path: &str, target: &str) {
        let (parent, name) = self.parent_and_name(path.as_bytes());
        let (name, target) = (Bytes::copy_from_slice(name), Bytes::copy_from_slice(target.as_bytes()));
        self.mutate(Operation::MakeSymlink(v1::MakeSymlink { parent, name, ownership: owner(0o777), target }));
    }

    pub(crate) fn remove(&self, path: &str) {
        let (parent, name) = self.parent_and_name(path.as_bytes());
        self.mutate(Operation::Unlink(v1::Unlink { parent, name: Bytes::copy_from_slice(name) }));
    }

    pub(crate) fn remove_folder(&self, path: &str) {
        let (parent, name) = self.parent_and_name(path.as_bytes());
        let name = Bytes::copy_from_slice(name);
        self.mutate(Operation::RemoveDirectory(v1::RemoveDirectory { parent, name }));
    }

    pub(crate) fn rename(&self, from: &str, to: &str) {
        let ((parent, name), (new_parent, new_name)) =
            (self.parent_and_name(from.as_bytes()), self.parent_and_name(to.as_bytes()));
        let (name, new_name) = (Bytes::copy_from_slice(name), Bytes::copy_from_slice(new_name));
        self.mutate(Operation::Rename(v1::Rename { parent, name, new_parent, new_name, mode: 0 }));
    }

    /// Give a file this content, at all seeders.
    pub(crate) fn publish(&self, path: impl AsRef<[u8]>, bytes: &[u8]) {
        let mut extents = Vec::new();
        for part in bytes.chunks(SEGMENT) {
            let mut segment = None;
            for seeder in &self.seeders {
                segment = Some(seeder.store().put(part));
            }
            extents.push(Extent::whole(segment.expect("a seeder")));
        }
        self.publish_extents(path, extents);
    }

    pub(crate) fn publish_extents(&self, path: impl AsRef<[u8]>, extents: Vec<Extent>) {
        let manifest = Manifest::new(extents).unwrap();
        let segments: Vec<SegmentId> = manifest.segments().map(|segment: Segment| segment.id).collect();
        let acknowledged = self
            .seeders
            .iter()
            .map(|seeder| v1::Acknowledged { peer_id: seeder.id().to_wire(), segment_ids: SegmentId::pack(&segments) });
        let content = self.runtime.block_on(self.client.offer_manifest(&manifest)).unwrap();
        let (parent, name) = self.parent_and_name(path.as_ref());
        self.mutate(Operation::PublishFile(v1::PublishFile {
            parent,
            name: Bytes::copy_from_slice(name),
            ownership: owner(0o644),
            size: manifest.size(),
            if_exists: IfExists::Replace.into(),
            base_version: 0,
            acknowledged: acknowledged.collect(),
            content: Some(content),
        }));
    }

    pub(crate) fn config(&self, cache: &str) -> MountConfig {
        MountConfig {
            tracker: self.address(),
            cache_dir: Some(self.folder(cache)),
            listen: ([127, 0, 0, 1], 0).into(),
            ..MountConfig::default()
        }
    }

    /// For a tracker that goes away. One that is there may take longer to answer: a disk that syncs for others keeps
    /// it for more than a second.
    pub(crate) fn impatient(&self, cache: &str) -> MountConfig {
        let (read_timeout, metadata_timeout) = (Span(Duration::from_secs(10)), Span(Duration::from_secs(2)));
        MountConfig { read_timeout, metadata_timeout, ..self.config(cache) }
    }

    pub(crate) fn mount(&self, name: &str) -> Mounted<'_> {
        self.mount_with(name, self.config(&format!("{name}-cache")))
    }

    pub(crate) fn mount_with(&self, name: &str, config: MountConfig) -> Mounted<'_> {
        self.try_mount(name, config).unwrap_or_else(|error| panic!("mount {name}: {error}"))
    }

    pub(crate) fn try_mount(&self, name: &str, config: MountConfig) -> Result<Mounted<'_>, MountError> {
        let folder = self.folder(name);
        let mount = self.runtime.block_on(Mount::start(config, &folder, false))?;
        Ok(Mounted { mount: Some(mount), folder, swarm: self })
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        self.stop.cancel();
        self.stop_tracker();
    }
}

impl Mounted<'_> {
    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder.join(name)
    }

    /// Files that are open for writing or not saved yet.
    pub(crate) fn unsaved_files(&self) -> usize {
        self.mount.as_ref().unwrap().file_system().unsaved_files()
    }

    /// Reads that the daemon answered.
    pub(crate) fn reads(&self) -> u64 {
        self.mount.as_ref().unwrap().file_system().counters().reads.get()
    }

    pub(crate) fn opens(&self, mode: &str) -> u64 {
        self.mount.as_ref().unwrap().file_system().counters().opens.with_label_values(&[mode]).get()
    }

    /// Questions of one kind to the tracker.
    pub(crate) fn asked(&self, kind: &str) -> u64 {
        self.mount.as_ref().unwrap().file_system().counters().questions.with_label_values(&[kind]).get()
    }

    pub(crate) fn questions(&self) -> u64 {
        let families =
            prometheus::core::Collector::collect(&self.mount.as_ref().unwrap().file_system().counters().questions);
        families
            .iter()
            .flat_map(|family| family.get_metric())
            .map(|metric| metric.get_counter().get_value() as u64)
            .sum()
    }

    pub(crate) fn unmount(mut self) {
        let mount = self.mount.take().unwrap();
        self.swarm.block_on(mount.unmount()).unwrap();
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        if let Some(mount) = self.mount.take() {
            let gone = self.swarm.block_on(mount.unmount());
            if !std::thread::panicking() {
                gone.unwrap();
            }
        }
    }
}

fn owner(mode: u32) -> Option<Ownership> {
    Some(Ownership { mode, uid: 0, gid: 0, modified_ns: 1_700_000_000_000_000_000, inherit: false })
}

fn client(address: &str) -> TrackerClient {
    TrackerClient::new(TrackerClientConfig {
        address: address.parse().unwrap(),
        me: None,
        zone: String::new(),
        patience: Duration::from_secs(10),
    })
    .unwrap()
}

async fn seeder(client: &TrackerClient, stop: CancellationToken) -> Peer<MemoryStore> {
    let (id, registry, tasks) = (PeerId::random(), Registry::new(), TaskTracker::new());
    let fetcher =
        Fetcher::new(SwarmConfig::new(id, ""), Arc::new(client.clone()), &registry, tasks.clone(), stop.clone());
    let config = PeerConfig {
        id,
        sharing: Sharing::Serve { listen: ([127, 0, 0, 1], 0).into(), advertise: None, upload_limit: None },
        zone: String::new(),
        host: id.to_string(),
        binding: Arc::new(|_| Box::pin(std::future::ready(Ok(())))),
    };
    let store = MemoryStore::new(Holding::Replica, 0);
    // Each seeder has a client of its own, as each is a process of its own.
    let own = self::client(&client.address().endpoints()[0]);
    let peer = Peer::start(config, store, fetcher, own, &registry, &tasks, stop).await.unwrap();
    let mut announced = peer.announced();
    let told = announced.wait_for(|state| state.told == 1);
    tokio::time::timeout(Duration::from_secs(20), told).await.expect("announced in time").unwrap();
    peer
}

/// Bytes that no compression or deduplication makes fewer, the same for the same seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// close(2), and what it said: dropping a file does not tell.
pub(crate) fn close(file: File) -> std::io::Result<()> {
    nix::unistd::close(file).map_err(std::io::Error::from)
}

/// Held for writing while a program is started, since that closes once more what is open here, and so saves it; for
/// reading by whoever tells saved from unsaved.
static STARTS: RwLock<()> = RwLock::new(());

/// Until this is dropped, no test starts a program.
pub(crate) fn no_program_starts() -> RwLockReadGuard<'static, ()> {
    STARTS.read()
}

/// Start a program while nobody minds.
pub(crate) fn start(command: &mut Command) -> std::io::Result<Child> {
    let _alone = STARTS.write();
    command.spawn()
}

/// The same, and wait for what it says.
pub(crate) fn run(command: &mut Command) -> std::io::Result<Output> {
    start(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))?.wait_with_output()
}

#[track_caller]
pub(crate) fn eventually(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(30), "not within 30 s: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
