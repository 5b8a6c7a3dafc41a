//! The shell over real stores: groups, retries, restarts, replicas, manifests.

mod leases;
mod manifests;
mod orphans;
mod replicas;
mod requests;
mod restarts;
pub(crate) mod wandering;
mod writes;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use swarm_proto::{Extent, Fault, InodeNumber, Manifest, PeerId, RequestId, Revision, Segment, SegmentId};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::writer::{Content, Done, Mutated, Others, Publish, Request, Submitted};
use super::{Catalog, CatalogConfig};
use crate::acks::AckSink;
use crate::namespace::plan::{At, IfExists, Inherit, Operation, Ownership};
use crate::namespace::{Name, Node, Refusal};
use crate::opens::OpenSource;
use crate::store::{MemoryStore, SledStore, Store};

pub(crate) const ROOT: InodeNumber = InodeNumber::ROOT;
const OWNER: Ownership = Ownership { mode: 0o644, uid: 1, gid: 2, modified_ns: 3, inherit: Inherit::Nothing };

/// A catalog that runs, and how to stop it.
pub(crate) struct Running {
    pub(crate) catalog: Arc<Catalog>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Running {
    pub(crate) async fn on(store: Arc<dyn Store>) -> Self {
        Self::with(store, CatalogConfig::default(), Arc::new(())).await
    }

    pub(crate) async fn with(store: Arc<dyn Store>, config: CatalogConfig, acks: Arc<dyn AckSink>) -> Self {
        Self::knowing(store, config, acks, Arc::new(())).await
    }

    /// One that is told what is open.
    pub(crate) async fn knowing(
        store: Arc<dyn Store>,
        config: CatalogConfig,
        acks: Arc<dyn AckSink>,
        opens: Arc<dyn OpenSource>,
    ) -> Self {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let catalog = Catalog::open(store, config, acks, opens, &tasks, stop.clone()).await.unwrap();
        Self { catalog, tasks, stop }
    }

    pub(crate) async fn in_memory() -> Self {
        Self::on(Arc::new(MemoryStore::new())).await
    }

    /// One that keeps no file that has lost its last name for long.
    pub(crate) async fn hasty() -> Self {
        Self::with(Arc::new(MemoryStore::new()), hasty(), Arc::new(())).await
    }

    pub(crate) async fn in_folder(folder: &Path) -> Self {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let store = Arc::new(SledStore::open(folder, &tasks, stop.clone()).await.unwrap());
        let (config, acks, opens) = (CatalogConfig::default(), Arc::new(()), Arc::new(()));
        let catalog = Catalog::open(store, config, acks, opens, &tasks, stop.clone()).await.unwrap();
        Self { catalog, tasks, stop }
    }

    pub(crate) async fn close(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    pub(crate) async fn run(&self, operations: Vec<Submitted>) -> Mutated {
        self.catalog.mutate(request(operations)).await.unwrap()
    }

    pub(crate) async fn one(&self, operation: Submitted) -> Done {
        self.run(vec![operation]).await.results.remove(0)
    }

    pub(crate) async fn make(&self, parent: InodeNumber, name: &str) -> InodeNumber {
        self.one(directory(parent, name)).await.unwrap().unwrap().0
    }
}

/// Files without names are kept for a moment only.
pub(crate) fn hasty() -> CatalogConfig {
    CatalogConfig { orphan_grace: Duration::from_millis(20), ..CatalogConfig::default() }
}

/// All files that have lost their last name are gone.
pub(crate) async fn all_reclaimed(running: &Running) {
    eventually("files without names go", async || running.catalog.view().image.orphans().len() == 0).await;
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub(crate) fn request(operations: Vec<Submitted>) -> Request {
    let fingerprint = *blake3::hash(format!("{operations:?}").as_bytes()).as_bytes();
    let operations = operations.into_iter().map(Ok).collect();
    Request { id: RequestId::random(), fingerprint, others: Others::Omit, operations }
}

pub(crate) fn at(parent: InodeNumber, name: &str) -> At {
    At { parent, name: Name::new(name.as_bytes()).unwrap() }
}

pub(crate) fn directory(parent: InodeNumber, name: &str) -> Submitted {
    Submitted::Plain(Operation::MakeDirectory(at(parent, name), OWNER))
}

pub(crate) fn unlink(parent: InodeNumber, name: &str) -> Submitted {
    Submitted::Plain(Operation::Unlink(at(parent, name)))
}

pub(crate) fn segment(number: u64) -> Segment {
    Segment { id: SegmentId::new(*blake3::hash(&number.to_le_bytes()).as_bytes()), length: 4096 }
}

/// A file of so many segments, the first of which has this number.
pub(crate) fn manifest(first: u64, segments: u64) -> Manifest {
    Manifest::new((first..first + segments).map(|number| Extent::whole(segment(number))).collect()).unwrap()
}

pub(crate) fn file(parent: InodeNumber, name: &str, manifest: &Manifest) -> Publish {
    Publish {
        at: at(parent, name),
        ownership: OWNER,
        size: manifest.size(),
        content: Content::Inline(manifest.encode()),
        if_exists: IfExists::Replace,
        acknowledged: Vec::new(),
    }
}

pub(crate) fn publish(parent: InodeNumber, name: &str, manifest: &Manifest) -> Submitted {
    Submitted::Publish(file(parent, name, manifest))
}

pub(crate) fn fault(done: &Result<Option<(InodeNumber, Node)>, Refusal>) -> Option<Fault> {
    done.as_ref().err().map(|refusal| refusal.fault)
}

/// Poll until it is so.
pub(crate) async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !is_so().await {
        assert!(std::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The image that the store's records make, read anew.
pub(crate) async fn rebuilt(catalog: &Catalog) -> crate::namespace::Image {
    super::load::load(catalog.store()).await.unwrap().0.image
}

#[tokio::test]
async fn a_first_start_makes_a_root_and_a_swarm() {
    let running = Running::in_memory().await;
    let view = running.catalog.view();
    let root = view.image.node(ROOT).unwrap();
    assert!(root.is_directory() && root.links == 2);
    assert_eq!((view.image.counts().inodes, view.image.counts().directories), (1, 1));
}

#[tokio::test]
async fn what_was_answered_is_in_the_view_and_each_operation_is_for_itself() {
    let running = Running::in_memory().await;
    let before = running.catalog.revision();
    let operations = vec![
        directory(ROOT, "d"),
        directory(ROOT, "d"),
        directory(InodeNumber(2), "below"),
        unlink(ROOT, "none"),
        publish(ROOT, "f", &manifest(1, 3)),
        publish(ROOT, "e", &Manifest::default()),
    ];
    let mutated = running.run(operations).await;
    assert!(mutated.revision > before);
    let faults: Vec<_> = mutated.results.iter().map(fault).collect();
    assert_eq!(faults, [None, Some(Fault::Exists), None, Some(Fault::NotFound), None, None]);
    let view = running.catalog.view();
    assert!(view.revision >= mutated.revision);
    let file = view.image.entry(ROOT, b"f").unwrap();
    assert_eq!(mutated.results[4], Ok(Some((file, view.image.node(file).unwrap().clone()))));
    assert_eq!(view.image.node(file).unwrap().content().unwrap().manifest, Some(manifest(1, 3).digest()));
    let empty = view.image.node(view.image.entry(ROOT, b"e").unwrap()).unwrap().content().unwrap();
    assert_eq!((empty.size, empty.manifest), (0, None));
    assert_eq!(view.image.counts().logical_bytes, 3 * 4096);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whoever_got_an_answer_sees_what_it_says_on_every_thread() {
    let running = Arc::new(Running::in_memory().await);
    let many = (0..4).map(|who| {
        let running = running.clone();
        let tasks = TaskTracker::new();
        tasks.spawn(async move {
            for n in 0..300 {
                let name = format!("{who} {n}");
                let made = running.make(ROOT, &name).await;
                assert_eq!(running.catalog.view().image.entry(ROOT, name.as_bytes()), Some(made));
            }
        })
    });
    for done in futures::future::join_all(many).await {
        done.unwrap();
    }
}

#[tokio::test]
async fn what_waits_together_is_committed_together() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::in_folder(folder.path()).await;
    let before = running.catalog.revision();
    let many = (0..200).map(|n| running.catalog.mutate(request(vec![directory(ROOT, &n.to_string())])));
    let done = futures::future::join_all(many).await;
    assert!(done.iter().all(|mutated| mutated.as_ref().is_ok_and(|mutated| mutated.results[0].is_ok())));
    let commits = running.catalog.revision().0 - before.0;
    assert!(commits < 50, "{commits} commits for 200 requests");
    let stored = rebuilt(&running.catalog).await;
    assert_eq!(running.catalog.view().image, stored);
}

#[tokio::test]
async fn watchers_see_each_change_once_and_know_when_some_are_lost() {
    let running = Running::in_memory().await;
    let start = running.catalog.revision();
    let mut watch = running.catalog.watch(start);
    let made = running.make(ROOT, "d").await;
    running.run(vec![publish(ROOT, "f", &manifest(1, 1))]).await;
    let file = running.catalog.view().image.entry(ROOT, b"f").unwrap();
    let last = running.run(vec![unlink(ROOT, "f")]).await.revision;
    let mut lost = false;
    let (mut names, mut content, mut at) = (HashMap::<Vec<u8>, u32>::new(), 0, start);
    while at < last {
        let (revision, changes) = watch.next().await.unwrap();
        assert!(revision > at);
        at = revision;
        for change in changes.iter() {
            content += u32::from(change.content);
            lost |= at == last && change.name.is_none() && change.inode == file;
            if let Some(name) = &change.name {
                assert_eq!(change.inode, ROOT);
                *names.entry(name.as_bytes().to_vec()).or_default() += 1;
            }
        }
    }
    assert_eq!(names, HashMap::from([(b"d".to_vec(), 1), (b"f".to_vec(), 2)]));
    assert!(lost, "the file that lost its name changed");
    assert_eq!(content, 1, "made; without a name it is still what it was");
    assert!(running.catalog.view().image.node(made).is_some());
    assert!(start == Revision(0) || running.catalog.watch(Revision(0)).next().await.is_err());
}

#[tokio::test]
async fn a_reader_that_has_seen_more_waits_and_then_is_refused() {
    let running = Running::in_memory().await;
    let next = Revision(running.catalog.revision().0 + 1);
    let (seen, ()) = tokio::join!(
        async { running.catalog.view_at(next).await.map(|view| view.image.entry(ROOT, b"d").is_some()) },
        async {
            running.make(ROOT, "d").await;
        }
    );
    assert!(seen.is_ok());
    tokio::time::pause();
    let refused = running.catalog.view_at(Revision(u64::MAX)).await.err().unwrap();
    assert_eq!(refused.fault, Fault::Unavailable);
}

#[tokio::test]
async fn the_registry_keeps_seeders_until_they_are_removed() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let running = Running::on(store.clone()).await;
    let id = PeerId::random();
    let seeder = crate::store::schema::SeederRecord {
        host: "h".into(),
        zone: String::new(),
        address: "10.0.0.1:7000".into(),
        capacity_bytes: 5,
        draining: false,
        last_seen_ns: 9,
    };
    running.catalog.put_seeder(id, seeder.clone()).await.unwrap();
    let seeder = crate::store::schema::SeederRecord { draining: true, ..seeder };
    running.catalog.put_seeder(id, seeder.clone()).await.unwrap();
    running.close().await;
    let running = Running::on(store).await;
    assert_eq!(running.catalog.seeders().await.unwrap(), [(id, seeder)]);
    running.catalog.remove_seeder(id).await.unwrap();
    assert!(running.catalog.seeders().await.unwrap().is_empty());
}

/// Remembers what it was told; knows only that, and what it was given.
#[derive(Default)]
pub(crate) struct Ledger {
    told: Mutex<HashMap<SegmentId, PeerId>>,
}

impl AckSink for Ledger {
    fn acknowledged(&self, peer: PeerId, ids: &[SegmentId]) {
        self.told.lock().extend(ids.iter().map(|id| (*id, peer)));
    }

    fn known(&self, ids: &[SegmentId]) -> Vec<bool> {
        let told = self.told.lock();
        ids.iter().map(|id| told.contains_key(id)).collect()
    }
}

/// Acknowledgements that nobody enters: as from a peer that the tracker does not know.
struct Deaf;

impl AckSink for Deaf {
    fn acknowledged(&self, _: PeerId, _: &[SegmentId]) {}

    fn known(&self, ids: &[SegmentId]) -> Vec<bool> {
        vec![false; ids.len()]
    }
}

#[tokio::test]
async fn a_file_whose_segments_nobody_vouches_for_is_to_be_sent_again() {
    let (config, store) = (CatalogConfig::default(), Arc::new(MemoryStore::new()));
    let ledger = Arc::new(Ledger::default());
    let running = Running::with(store, config.clone(), ledger.clone()).await;
    let content = manifest(1, 3);
    let ids: Vec<SegmentId> = content.segments().map(|segment| segment.id).collect();
    assert_eq!(fault(&running.one(publish(ROOT, "f", &content)).await), Some(Fault::SendAgain));
    let peer = PeerId::random();
    let part = Publish { acknowledged: vec![(peer, ids[..2].to_vec())], ..file(ROOT, "f", &content) };
    assert_eq!(fault(&running.one(Submitted::Publish(part)).await), Some(Fault::SendAgain));
    assert!(running.catalog.view().image.entry(ROOT, b"f").is_none());
    let all = Publish { acknowledged: vec![(peer, ids.clone())], ..file(ROOT, "f", &content) };
    assert_eq!(fault(&running.one(Submitted::Publish(all.clone())).await), None);
    assert!(ids.iter().all(|id| ledger.told.lock().get(id) == Some(&peer)));
    assert_eq!(fault(&running.one(publish(ROOT, "copy", &content)).await), None, "now it is known");
    let deaf = Running::with(Arc::new(MemoryStore::new()), config, Arc::new(Deaf)).await;
    assert_eq!(fault(&deaf.one(Submitted::Publish(all)).await), None, "the request itself vouches");
}

#[tokio::test]
async fn a_settings_change_is_seen_at_once_and_kept() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let settings = crate::store::schema::Settings { replicas: 5, min_replicas: 1 };
    let running = Running::on(store.clone()).await;
    assert_ne!(running.catalog.settings(), settings);
    running.catalog.set_settings(settings).await.unwrap();
    assert_eq!(running.catalog.settings(), settings);
    running.close().await;
    assert_eq!(Running::on(store).await.catalog.settings(), settings);
}

pub(crate) fn noise(length: usize, seed: u64) -> Bytes {
    let mut out = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out.into()
}
