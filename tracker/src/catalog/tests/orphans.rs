//! A file that has lost its last name lives as long as somebody has it open, and no longer.

use std::collections::HashSet;

use swarm_proto::ProcessId;
use swarm_proto::v1::{self, PeerKind};

use super::*;
use crate::namespace::plan::RenameMode;
use crate::peers::{Facts, Registry};
use crate::soft::Soft;

/// What is open, as a test says it.
#[derive(Default)]
struct Opens(Mutex<HashSet<InodeNumber>>);

impl Opens {
    fn open(&self, inode: InodeNumber) {
        self.0.lock().insert(inode);
    }

    fn close(&self, inode: InodeNumber) {
        self.0.lock().remove(&inode);
    }
}

impl OpenSource for Opens {
    fn are_open(&self, inodes: &[InodeNumber]) -> Vec<bool> {
        let open = self.0.lock();
        inodes.iter().map(|inode| open.contains(inode)).collect()
    }
}

async fn start(store: &Arc<dyn Store>, opens: &Arc<Opens>) -> Running {
    Running::knowing(store.clone(), hasty(), Arc::new(()), opens.clone()).await
}

async fn file_of(running: &Running, name: &str, content: u64) -> InodeNumber {
    running.one(publish(ROOT, name, &manifest(content, 1))).await.unwrap().unwrap().0
}

fn exists(running: &Running, inode: InodeNumber) -> bool {
    running.catalog.view().image.node(inode).is_some()
}

/// Wait until the task has surely looked at all orphans once more: a file that nobody has open is gone.
async fn looked(running: &Running) {
    let witness = file_of(running, "witness", 99).await;
    running.one(unlink(ROOT, "witness")).await.unwrap();
    eventually("the witness goes", async || !exists(running, witness)).await;
}

#[tokio::test]
async fn an_open_file_outlives_its_last_name_and_goes_when_it_is_closed() {
    let (store, opens): (Arc<dyn Store>, _) = (Arc::new(MemoryStore::new()), Arc::new(Opens::default()));
    let running = start(&store, &opens).await;
    let (unlinked, replaced) = (file_of(&running, "f", 1).await, file_of(&running, "g", 2).await);
    file_of(&running, "h", 3).await;
    for inode in [unlinked, replaced] {
        opens.open(inode);
    }
    let rename = Operation::Rename(at(ROOT, "h"), at(ROOT, "g"), RenameMode::Replace);
    running.run(vec![unlink(ROOT, "f"), Submitted::Plain(rename)]).await;
    looked(&running).await;
    {
        let view = running.catalog.view();
        for (inode, content) in [(unlinked, 1), (replaced, 2)] {
            let node = view.image.node(inode).unwrap();
            assert_eq!((node.links, node.content().unwrap().manifest), (0, Some(manifest(content, 1).digest())));
            assert!(view.image.is_live(&manifest(content, 1).digest()), "what it consists of stays too");
        }
        assert_eq!((view.image.counts().files, view.image.counts().logical_bytes), (1, 4096));
    }
    let mut watch = running.catalog.watch(running.catalog.revision());
    opens.close(unlinked);
    eventually("it goes", async || !exists(&running, unlinked)).await;
    let (_, changes) = watch.next().await.unwrap();
    assert!(changes.iter().any(|change| change.inode == unlinked && change.name.is_none()), "watchers hear of it");
    assert!(exists(&running, replaced));
    assert!(!running.catalog.view().image.is_live(&manifest(1, 1).digest()));
    opens.close(replaced);
    all_reclaimed(&running).await;
    let stored = rebuilt(&running.catalog).await;
    assert_eq!(running.catalog.view().image, stored);
}

#[tokio::test]
async fn what_a_mount_has_open_goes_when_the_mount_is_given_up() {
    let grace = Duration::from_millis(300);
    let soft = Arc::new(Soft::new(Registry::new(grace, grace)));
    let facts = Facts {
        id: PeerId::random(),
        kind: PeerKind::Mount,
        address: String::new(),
        zone: String::new(),
        host: "h".into(),
        capacity_bytes: 0,
        version: String::new(),
    };
    let (orders, _orders) = tokio::sync::mpsc::channel(1);
    let stream = soft.open(facts, ProcessId::random(), orders).unwrap();
    let running = Running::knowing(Arc::new(MemoryStore::new()), hasty(), Arc::new(()), soft.clone()).await;
    let (held, closed) = (file_of(&running, "held", 1).await, file_of(&running, "closed", 2).await);
    let open = v1::OpenFiles { all: true, opened: vec![held.0, closed.0], ..v1::OpenFiles::default() };
    soft.open_files(&stream, &open).unwrap();
    running.run(vec![unlink(ROOT, "held"), unlink(ROOT, "closed")]).await;
    soft.open_files(&stream, &v1::OpenFiles { closed: vec![closed.0], ..v1::OpenFiles::default() }).unwrap();
    eventually("what was closed goes", async || !exists(&running, closed)).await;
    looked(&running).await;
    assert!(exists(&running, held));
    let broken_at = std::time::Instant::now();
    soft.broken(&stream);
    eventually("what it had open goes", async || !exists(&running, held)).await;
    assert!(broken_at.elapsed() >= grace, "it might have come back");
}

#[tokio::test]
async fn a_restart_keeps_files_without_names_until_mounts_had_their_time() {
    let (store, opens): (Arc<dyn Store>, _) = (Arc::new(MemoryStore::new()), Arc::new(Opens::default()));
    let running = Running::on(store.clone()).await;
    let (open, closed) = (file_of(&running, "open", 1).await, file_of(&running, "closed", 2).await);
    running.run(vec![unlink(ROOT, "open"), unlink(ROOT, "closed")]).await;
    running.close().await;
    let running = Running::on(store.clone()).await;
    assert!(exists(&running, open) && exists(&running, closed));
    running.close().await;
    opens.open(open);
    let running = start(&store, &opens).await;
    eventually("the one that nobody has open goes", async || !exists(&running, closed)).await;
    looked(&running).await;
    assert!(exists(&running, open));
}

#[tokio::test]
async fn none_goes_before_its_grace() {
    tokio::time::pause();
    let running = Running::in_memory().await;
    file_of(&running, "f", 1).await;
    let began = tokio::time::Instant::now();
    running.one(unlink(ROOT, "f")).await.unwrap();
    all_reclaimed(&running).await;
    let (kept, grace) = (began.elapsed(), CatalogConfig::default().orphan_grace);
    assert!(kept >= grace && kept < grace + Duration::from_secs(1), "{kept:?}");
}

#[tokio::test]
async fn many_go_in_few_commits() {
    let running = Running::hasty().await;
    for batch in 0..10 {
        let (made, gone): (Vec<_>, Vec<_>) = (batch * 500..batch * 500 + 500)
            .map(|n: u64| (publish(ROOT, &n.to_string(), &manifest(n, 1)), unlink(ROOT, &n.to_string())))
            .unzip();
        running.run(made).await;
        running.run(gone).await;
    }
    let before = running.catalog.revision().0;
    all_reclaimed(&running).await;
    assert!(running.catalog.revision().0 - before <= 20, "{} commits", running.catalog.revision().0 - before);
    assert_eq!(running.catalog.view().image.counts().inodes, 1);
}

#[tokio::test]
async fn replicas_of_one_store_reclaim_together_and_agree() {
    let store: Arc<dyn Store> = Arc::new(super::wandering::Wandering::default());
    let replicas = [
        Running::with(store.clone(), hasty(), Arc::new(())).await,
        Running::with(store.clone(), hasty(), Arc::new(())).await,
    ];
    for round in 0..30 {
        let name = round.to_string();
        let (one, other) = (&replicas[round % 2], &replicas[(round + 1) % 2]);
        file_of(one, &name, 1).await;
        drop(other.catalog.view_at(one.catalog.revision()).await.unwrap());
        other.one(unlink(ROOT, &name)).await.unwrap();
    }
    for replica in &replicas {
        all_reclaimed(replica).await;
        replica.catalog.view().image.check().unwrap();
    }
    let newest = store.revision().await.unwrap();
    let first = replicas[0].catalog.view_at(newest).await.unwrap().image.clone();
    assert_eq!(first, replicas[1].catalog.view_at(newest).await.unwrap().image.clone());
}

#[tokio::test]
async fn a_file_without_a_name_leaves_with_neither_an_export_nor_an_import() {
    let source = Running::in_memory().await;
    file_of(&source, "kept", 1).await;
    file_of(&source, "twin", 2).await;
    let gone = file_of(&source, "gone", 3).await;
    file_of(&source, "gone twin", 2).await;
    source.run(vec![unlink(ROOT, "gone"), unlink(ROOT, "gone twin")]).await;
    assert!(exists(&source, gone));
    let mut parts = source.catalog.export().await;
    let mut file = Vec::new();
    while let Some(part) = parts.recv().await {
        file.extend_from_slice(&part.unwrap());
    }
    let target = Running::in_memory().await;
    let lost = file_of(&target, "f", 9).await;
    target.one(unlink(ROOT, "f")).await.unwrap();
    let mut import = target.catalog.import(crate::export::Replace::Empty).await.expect("what has no name is nothing");
    import.push(&file).await.unwrap();
    let imported = import.finish(crate::export::Replace::Empty, &[]).await.unwrap();
    assert_eq!((imported.files, imported.manifests), (2, 2));
    assert_eq!(target.catalog.view().image.orphans().len(), 0);
    assert!(!exists(&target, lost), "the tree that it was of is gone");
}

#[tokio::test]
async fn a_file_without_a_name_gets_no_new_one_and_takes_attributes() {
    let running = Running::in_memory().await;
    let inode = file_of(&running, "f", 1).await;
    running.one(unlink(ROOT, "f")).await.unwrap();
    let link = Submitted::Plain(Operation::Link(inode, at(ROOT, "again")));
    assert_eq!(fault(&running.one(link).await), Some(Fault::NotFound));
    let attributes = crate::namespace::plan::Attributes { mode: Some(0o600), ..Default::default() };
    let changed = running.one(Submitted::Plain(Operation::SetAttributes(inode, attributes))).await.unwrap().unwrap();
    assert_eq!((changed.1.mode, changed.1.links), (0o600, 0));
}
