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

#[tokio::test(start_paused = true)]
async fn sled_is_given_the_table_once_nobody_commits_and_at_last_in_any_case() {
    // Somebody commits every tenth of a second for so long.
    for (busy_for, due_after) in [(0, 5_500), (4_000, 5_500), (8_000, 8_500), (60_000, 15_000)] {
        let began = tokio::time::Instant::now();
        settle_is_due(|| Some(Revision(u64::try_from(began.elapsed().as_millis().min(busy_for)).unwrap() / 100))).await;
        let waited = began.elapsed().as_millis();
        assert!((due_after..due_after + 100).contains(&waited), "busy for {busy_for} ms: due after {waited} ms");
    }
}

#[tokio::test]
async fn a_second_process_is_told_that_the_folder_is_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path()).await.unwrap();
    assert!(matches!(open(folder.path()).await, Err(StoreError::Locked(_))));
    drop(first);
}

#[test]
fn who_is_on_its_way_out_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    drop(open_alone(folder.path()));
    for file in ["LOCK", "sled/db"] {
        let held = File::open(folder.path().join(file)).unwrap();
        held.lock().unwrap();
        let path = folder.path().to_owned();
        let opening = std::thread::spawn(move || drop(open_alone(&path)));
        // Long enough to be refused.
        std::thread::sleep(Duration::from_millis(200));
        assert!(!opening.is_finished(), "{file} was not waited for");
        drop(held);
        opening.join().unwrap();
    }
}

#[tokio::test]
async fn another_format_and_a_foreign_folder_are_refused_and_untouched() {
    let newer = tempfile::tempdir().unwrap();
    fs::write(newer.path().join("VERSION"), "swarm-catalog 3\n").unwrap();
    let refused = open(newer.path()).await.err().unwrap();
    assert!(matches!(&refused, StoreError::Version { found, .. } if found == "swarm-catalog 3"), "{refused}");
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
    // Files are copied one after the other: nothing may settle between.
    let store = open_alone(&folder.path().join("live"));
    for round in 0..20 {
        for n in 0..5 {
            let pairs = (0..50).map(|k| put(&format!("{round}/{n}/{k}"), &"v".repeat(k * 20)).writes.remove(0));
            store.commit(Commit { conditions: Vec::new(), writes: pairs.collect() }).unwrap();
            if n == round % 7 {
                store.settle().unwrap();
            }
        }
        // What a kill -9 leaves is what the files hold now: nothing is closed or flushed for the copy.
        let copy = folder.path().join(format!("copy {round}"));
        copy_tree(&folder.path().join("live"), &copy);
        let survived = open(&copy).await.unwrap();
        assert_eq!(survived.revision().await.unwrap(), store.events.newest());
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
    let store = open_alone(&folder);
    store.commit(put("a", "1")).unwrap();
    store.settle().unwrap();
    store.commit(put("b", "2")).unwrap();
    fs::rename(folder.join("sled"), &away).unwrap();
    assert!(store.settle().is_err());
    fs::rename(&away, folder.join("sled")).unwrap();
    for error in [store.settle().unwrap_err(), store.sync().unwrap_err(), store.commit(put("c", "3")).unwrap_err()] {
        assert!(error.to_string().contains("sync the catalog"), "{error}");
    }
    assert_eq!(store.get(b"b").unwrap().unwrap().value, "2", "it still answers");
    drop(store);
    let again = open_alone(&folder);
    assert_eq!((again.events.newest(), again.get(b"b").unwrap().unwrap().revision), (Revision(2), Revision(2)));
}

/// A file that cannot be synced.
fn unsyncable() -> File {
    File::from(std::os::fd::OwnedFd::from(std::os::unix::net::UnixStream::pair().unwrap().0))
}

#[test]
fn a_sync_that_failed_for_one_is_known_to_the_other_before_it_asks() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(open_alone(folder.path()));
    store.commit(put("a", "1")).unwrap();
    let journal = store.begin_journal().unwrap().with_file(unsyncable());
    let asking = store.syncing.lock();
    let settling = std::thread::spawn({
        let store = store.clone();
        move || store.take_frozen(&journal).map(drop)
    });
    // It has to wait, however long that is.
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(10));
        assert!(!settling.is_finished() && store.lost.get().is_none(), "both ask at the same time");
    }
    drop(asking);
    assert!(settling.join().unwrap().is_err());
    // The kernel would say that all is well now.
    assert!(store.sync().is_err());
}

#[tokio::test]
async fn commits_are_synced_while_others_are_taken_to_sled() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await.unwrap();
    // A settle that does not end.
    let settling = store.inner.clone();
    let (begun, end) = (Arc::new(std::sync::Barrier::new(2)), Arc::new(std::sync::Barrier::new(2)));
    let held = tokio::task::spawn_blocking({
        let (begun, end) = (begun.clone(), end.clone());
        move || {
            let _settling = settling.settling.lock();
            begun.wait();
            end.wait();
        }
    });
    begun.wait();
    // It has stood for long enough that the task which settles waits for it, too.
    tokio::time::sleep(SETTLE_EVERY + SYNC_EVERY).await;
    let outcome = store.commit(put("a", "1")).await.unwrap();
    let synced = async {
        while store.inner.synced.load(Ordering::Acquire) < store.inner.events.newest().0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let synced = tokio::time::timeout(Duration::from_secs(10), synced).await;
    end.wait();
    held.await.unwrap();
    assert!(synced.is_ok() && outcome == Outcome::Committed(Revision(1)), "it waits for the settle");
}

/// Without the task that takes commits to sled.
fn open_alone(folder: &Path) -> Inner {
    Inner::open(folder.to_owned()).unwrap()
}

fn journals(folder: &Path) -> Vec<PathBuf> {
    journal::list(folder).unwrap().into_iter().map(|(_, path)| path).collect()
}

#[test]
fn a_format_without_journals_is_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let store = open_alone(folder.path());
    store.commit(put("a", "1")).unwrap();
    store.settle().unwrap();
    drop(store);
    journals(folder.path()).into_iter().for_each(|path| fs::remove_file(path).unwrap());
    fs::write(folder.path().join("VERSION"), "swarm-catalog 1\n").unwrap();
    assert_eq!(open_alone(folder.path()).get(b"a").unwrap().unwrap().value, "1");
    assert_eq!(fs::read_to_string(folder.path().join("VERSION")).unwrap(), "swarm-catalog 2\n");
}

#[test]
fn a_key_reads_alike_wherever_it_lies() {
    let folder = tempfile::tempdir().unwrap();
    let store = open_alone(folder.path());
    let keys = |store: &Inner| {
        let page = store.page(b"", b"", 9).unwrap();
        page.entries.into_iter().map(|entry| (entry.key, entry.versioned.revision.0)).collect::<Vec<_>>()
    };
    store.commit(put("settled", "1")).unwrap();
    store.commit(put("removed", "1")).unwrap();
    store.settle().unwrap();
    store.commit(put("frozen", "1")).unwrap();
    let removal = Write { key: "removed".into(), value: None };
    store.commit(Commit { conditions: Vec::new(), writes: vec![removal] }).unwrap();
    let old = store.begin_journal().unwrap();
    store.commit(put("active", "1")).unwrap();
    store.commit(put("settled", "2")).unwrap();
    let want = vec![(Bytes::from("active"), 5), (Bytes::from("frozen"), 3), (Bytes::from("settled"), 6)];
    assert_eq!(keys(&store), want);
    assert!(store.get(b"removed").unwrap().is_none());
    assert_eq!(journals(folder.path()).len(), 2);
    store.take_frozen(&old).unwrap();
    assert_eq!(keys(&store), want);
    drop(store);
    let again = open_alone(folder.path());
    assert_eq!((keys(&again), again.events.newest()), (want, Revision(6)));
    assert_eq!(journals(folder.path()).len(), 1);
}

#[test]
fn a_journal_that_was_settled_but_not_removed_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = open_alone(folder.path());
    store.commit(put("a", "old")).unwrap();
    let old = journals(folder.path()).remove(0);
    let kept = fs::read(&old).unwrap();
    store.settle().unwrap();
    store.commit(put("b", "1")).unwrap();
    store.commit(put("a", "new")).unwrap();
    store.settle().unwrap();
    store.commit(put("c", "1")).unwrap();
    drop(store);
    fs::write(&old, kept).unwrap();
    let again = open_alone(folder.path());
    assert_eq!((again.get(b"a").unwrap().unwrap().value, again.events.newest()), ("new".into(), Revision(4)));
}

#[test]
fn a_journal_that_is_damaged_in_the_middle_is_kept_beside() {
    let folder = tempfile::tempdir().unwrap();
    let store = open_alone(folder.path());
    for n in 0..9 {
        store.commit(put("a", &n.to_string())).unwrap();
    }
    drop(store);
    let journal = journals(folder.path()).remove(0);
    let mut bytes = fs::read(&journal).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&journal, &bytes).unwrap();
    let again = open_alone(folder.path());
    assert!(again.events.newest() < Revision(9) && again.events.newest() > Revision(2));
    let copy = folder.path().join(format!("{}.damaged", journal.file_name().unwrap().to_str().unwrap()));
    assert_eq!(fs::read(copy).unwrap(), bytes);
}

#[test]
fn a_journal_after_lost_commits_is_left_out_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let store = open_alone(folder.path());
    for n in 0..3 {
        store.commit(put("a", &n.to_string())).unwrap();
    }
    let _old = store.begin_journal().unwrap();
    store.commit(put("a", "later")).unwrap();
    drop(store);
    let first = journals(folder.path()).remove(0);
    let bytes = fs::read(&first).unwrap();
    fs::write(&first, &bytes[..bytes.len() - 1]).unwrap();
    let again = open_alone(folder.path());
    assert_eq!((again.get(b"a").unwrap().unwrap().value, again.events.newest()), ("1".into(), Revision(2)));
    assert!(folder.path().join("journal-1.incomplete").exists());
    drop(again);
    assert_eq!(open_alone(folder.path()).events.newest(), Revision(2), "a start later it is the same");
}

#[tokio::test]
async fn commits_wait_while_too_much_is_unsettled() {
    let folder = tempfile::tempdir().unwrap();
    // No task takes commits to sled: what does is the commit itself.
    let store = SledStore { inner: Arc::new(open_alone(folder.path())) };
    let value = "v".repeat(1024 * 1024);
    let unsettled = || store.inner.tables.read().active.bytes();
    let mut most = 0;
    for n in 0..2 * MOST_UNSETTLED / value.len() {
        store.commit(put(&format!("{}", n % 3), &value)).await.unwrap();
        most = most.max(unsettled());
    }
    assert!(most > MOST_UNSETTLED, "it was tried: {most}");
    assert!(most <= MOST_UNSETTLED + 2 * value.len(), "{most}");
    assert_eq!(journals(folder.path()).len(), 1);
}
