//! The sled engine: the conformance suite, and what only a disk can do.

use super::*;
use crate::store::{Condition, Write};

async fn open(folder: &Path) -> Result<SledStore, StoreError> {
    SledStore::open(folder, &TaskTracker::new(), CancellationToken::new()).await
}

fn put(key: &str, value: &str) -> Commit {
    let (key, value) = (Bytes::copy_from_slice(key.as_bytes()), Bytes::copy_from_slice(value.as_bytes()));
    Commit { conditions: Vec::new(), writes: vec![Write { key, value: Some(value) }] }
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => copy_tree(&entry.path(), &to.join(entry.file_name())),
            false => drop(fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

#[tokio::test]
async fn sled_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let mut stores = 0;
    crate::store::conformance::run(&mut || {
        stores += 1;
        let path = folder.path().join(stores.to_string());
        Box::pin(async move { Arc::new(open(&path).await.unwrap()) as _ })
    })
    .await;
}

#[tokio::test]
async fn a_second_process_is_told_that_the_folder_is_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path()).await.unwrap();
    assert!(matches!(open(folder.path()).await, Err(StoreError::Locked(_))));
    drop(first);
}

#[tokio::test]
async fn another_format_and_a_foreign_folder_are_refused_and_untouched() {
    let newer = tempfile::tempdir().unwrap();
    fs::write(newer.path().join("VERSION"), "swarm-catalog 2\n").unwrap();
    let refused = open(newer.path()).await.err().unwrap();
    assert!(matches!(&refused, StoreError::Version { found, .. } if found == "swarm-catalog 2"), "{refused}");
    let foreign = tempfile::tempdir().unwrap();
    fs::write(foreign.path().join("thesis.tex"), "x").unwrap();
    assert!(matches!(open(foreign.path()).await, Err(StoreError::Foreign(_))));
    assert!(!foreign.path().join("sled").exists() && !newer.path().join("sled").exists());
}

#[tokio::test]
async fn a_first_start_that_was_killed_can_be_started_again() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("VERSION.new"), "swarm-ca").unwrap();
    fs::write(folder.path().join("LOCK"), "").unwrap();
    assert!(open(folder.path()).await.is_ok());
}

#[tokio::test]
async fn revisions_values_and_epochs_go_on_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (revision, epoch) = {
        let store = open(folder.path()).await.unwrap();
        store.commit(put("a", "1")).await.unwrap();
        store.commit(put("b", "2")).await.unwrap();
        (store.revision().await.unwrap(), store.lead().await.unwrap().epoch)
    };
    // The task that syncs holds the store for up to a period after it was dropped.
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    let store = loop {
        match open(folder.path()).await {
            Ok(store) => break store,
            Err(StoreError::Locked(_)) if std::time::Instant::now() < deadline => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(store.revision().await.unwrap(), revision);
    assert!(store.lead().await.unwrap().epoch > epoch);
    let since = Condition::UnchangedSince("a".into(), Revision(revision.0 - 1));
    let commit = Commit { conditions: vec![since], ..put("c", "3") };
    assert_eq!(store.commit(commit).await.unwrap(), Outcome::Committed(Revision(revision.0 + 1)));
}

#[tokio::test]
async fn every_acknowledged_commit_is_in_the_files_at_any_moment() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder.path().join("live")).await.unwrap();
    for round in 0..20 {
        for n in 0..5 {
            let pairs = (0..50).map(|k| put(&format!("{round}/{n}/{k}"), &"v".repeat(k * 20)).writes.remove(0));
            let commit = Commit { conditions: Vec::new(), writes: pairs.collect() };
            store.commit(commit).await.unwrap();
        }
        // What a kill -9 leaves is what the files hold now: nothing is closed or flushed for the copy.
        let copy = folder.path().join(format!("copy {round}"));
        copy_tree(&folder.path().join("live"), &copy);
        let survived = open(&copy).await.unwrap();
        assert_eq!(survived.revision().await.unwrap(), store.revision().await.unwrap());
        let page = survived.scan(Bytes::new(), Bytes::new(), usize::MAX).await.unwrap();
        assert_eq!(page.entries.len(), (round + 1) * 250);
    }
}

#[tokio::test]
async fn noise_in_the_files_is_an_error_and_no_panic() {
    let folder = tempfile::tempdir().unwrap();
    let live = folder.path().join("live");
    let store = open(&live).await.unwrap();
    for n in 0..100 {
        store.commit(put(&format!("key {n}"), &"value".repeat(50))).await.unwrap();
    }
    let log = fs::read(live.join("sled/db")).unwrap();
    for at in (0..log.len().min(60_000)).step_by(1_999) {
        let copy = folder.path().join(format!("copy {at}"));
        copy_tree(&live, &copy);
        let mut bytes = log.clone();
        bytes[at] ^= 0x40;
        fs::write(copy.join("sled/db"), bytes).unwrap();
        if let Ok(store) = open(&copy).await {
            drop(store.scan(Bytes::new(), Bytes::new(), usize::MAX).await);
        }
        fs::remove_dir_all(&copy).unwrap();
    }
}

#[tokio::test]
async fn a_disk_that_once_lost_something_is_not_believed_again() {
    let parent = tempfile::tempdir().unwrap();
    let (folder, away) = (parent.path().join("catalog"), parent.path().join("away"));
    let store = open(&folder).await.unwrap();
    store.commit(put("a", "1")).await.unwrap();
    store.sync().await.unwrap();
    store.commit(put("b", "2")).await.unwrap();
    std::fs::rename(&folder, &away).unwrap();
    assert!(store.sync().await.is_err());
    std::fs::rename(&away, &folder).unwrap();
    let error = store.sync().await.unwrap_err();
    assert!(error.to_string().contains("good disk"), "{error}");
}
