//! Seeders that are away while files are saved, and come back, in memory.

use std::path::Path;
use std::sync::atomic::Ordering;

use super::*;
use crate::fs::fake::{Bench, FakeOutbox, ROOT};
use crate::fs::node::Kind;
use crate::write::debts::Sum;
use crate::write::unsaved::At;

/// Two replicas are wanted; of two seeders one is up.
async fn one_of_two_is_up(segment_bytes: u64) -> (Bench, Arc<FakeOutbox>, tempfile::TempDir) {
    let (bench, outbox, folder) = Bench::writing(segment_bytes).await;
    set(&outbox, 1, 2, 2);
    (bench, outbox, folder)
}

fn set(outbox: &FakeOutbox, up: usize, known: usize, wanted: usize) {
    outbox.up.store(up, Ordering::SeqCst);
    outbox.known.store(known, Ordering::SeqCst);
    outbox.wanted.store(wanted, Ordering::SeqCst);
}

/// Write a new version of a file and close it.
async fn save(bench: &Bench, inode: InodeNumber, bytes: &[u8]) {
    let handle = bench.fs.open_cached(inode, true).await.unwrap().handle;
    bench.fs.write(inode, At::Offset(0), bytes, 0).unwrap();
    bench.fs.flush(inode).await.unwrap();
    bench.fs.release(handle);
    bench.until("it is let go", |bench| bench.fs.unsaved_files() == 0).await;
}

async fn file(bench: &Bench, bytes: &[u8]) -> InodeNumber {
    let inode = bench.swarm.make(ROOT, "file", Kind::File);
    bench.fs.lookup(ROOT, Bytes::from("file")).await.unwrap();
    save(bench, inode, bytes).await;
    inode
}

async fn pay(bench: &Bench) -> bool {
    let writing = bench.fs.writing().unwrap();
    bench.fs.pay_some(writing, writing.debts.as_ref().unwrap()).await
}

/// Files with bytes that are owed.
fn kept(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder.join("owed")).unwrap();
    entries.filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|found| found == "data")).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_too_few_seeders_took_is_sent_to_the_next_one_from_this_machine() {
    let (bench, outbox, folder) = one_of_two_is_up(4).await;
    file(&bench, b"one two").await;
    assert_eq!((bench.fs.owed(), kept(folder.path())), (Sum { files: 1, bytes: 7 }, 1));
    assert!(!folder.path().join("1.data").exists(), "the spool has let it go");
    // Nobody who has it answers.
    bench.swarm.stuck.store(true, Ordering::SeqCst);
    assert!(!pay(&bench).await, "there is nobody to send it to");
    let before = outbox.asked_again.load(Ordering::SeqCst);
    assert!(!pay(&bench).await);
    assert_eq!(outbox.asked_again.load(Ordering::SeqCst), before, "and nobody else is tried");
    set(&outbox, 2, 2, 2);
    assert!(pay(&bench).await);
    let mut sent = outbox.again.lock().clone();
    sent.sort();
    assert_eq!(sent, ["one ", "two"]);
    assert_eq!((bench.fs.owed(), kept(folder.path())), (Sum::default(), 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_current_version_has_is_owed_no_more() {
    let (bench, outbox, folder) = one_of_two_is_up(4).await;
    let inode = file(&bench, b"one two").await;
    save(&bench, inode, b"one 2").await;
    assert_eq!((bench.fs.owed(), kept(folder.path())), (Sum { files: 1, bytes: 9 }, 2), "both versions have the first");
    // Elsewhere.
    bench.swarm.write(inode, b"another");
    pay(&bench).await;
    assert_eq!((bench.fs.owed(), kept(folder.path())), (Sum::default(), 0));
    save(&bench, inode, b"three").await;
    assert_eq!(kept(folder.path()), 1);
    bench.fs.unlink(ROOT, Bytes::from("file")).await.unwrap();
    pay(&bench).await;
    assert_eq!((bench.fs.owed(), kept(folder.path())), (Sum::default(), 0));
    assert_eq!(outbox.again.lock().len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_all_seeders_are_up_nothing_is_written_and_one_that_joins_is_sent_what_it_may_have() {
    let (bench, outbox, folder) = Bench::writing(4).await;
    set(&outbox, 2, 2, 3);
    file(&bench, b"one two").await;
    let journal = folder.path().join("owed/journal");
    assert_eq!((std::fs::metadata(&journal).unwrap().len(), kept(folder.path())), (0, 0));
    assert!(!pay(&bench).await);
    assert_eq!(outbox.again.lock().len(), 0);
    set(&outbox, 3, 3, 3);
    assert!(pay(&bench).await);
    assert_eq!(outbox.again.lock().len(), 2);
    assert_eq!(bench.fs.owed(), Sum::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_read_or_sent_when_a_seeder_goes_away() {
    let (bench, outbox, _folder) = one_of_two_is_up(4).await;
    set(&outbox, 2, 3, 3);
    file(&bench, b"one two").await;
    assert!(!pay(&bench).await, "there is nobody to send it to");
    let before = outbox.asked_again.load(Ordering::SeqCst);
    set(&outbox, 1, 3, 3);
    assert!(!pay(&bench).await);
    assert_eq!(outbox.asked_again.load(Ordering::SeqCst), before);
    assert_eq!(bench.fs.owed(), Sum { files: 1, bytes: 7 });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_debt_of_which_nothing_can_be_sent_is_soon_left_for_the_next_one() {
    let (bench, outbox, _folder) = one_of_two_is_up(4).await;
    let bytes: Vec<u8> = (0..100u32).flat_map(u32::to_be_bytes).collect();
    file(&bench, &bytes).await;
    set(&outbox, 2, 2, 2);
    outbox.failing.store(true, Ordering::SeqCst);
    assert!(!pay(&bench).await);
    let asked = outbox.asked_again.load(Ordering::SeqCst);
    assert!((1..=SEGMENTS_IN_VAIN_MOST + AT_ONCE).contains(&asked), "{asked} segments were tried");
    outbox.failing.store(false, Ordering::SeqCst);
    assert!(pay(&bench).await);
    assert_eq!((outbox.again.lock().len(), bench.fs.owed()), (100, Sum::default()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_kept_is_where_it_was_sent_from_though_the_file_had_it_elsewhere_before() {
    let (bench, outbox, folder) = one_of_two_is_up(4).await;
    set(&outbox, 2, 2, 2);
    let inode = file(&bench, b"sameelse").await;
    set(&outbox, 1, 2, 2);
    let handle = bench.fs.open_cached(inode, false).await.unwrap().handle;
    bench.fs.write(inode, At::Offset(4), b"same", 0).unwrap();
    bench.fs.flush(inode).await.unwrap();
    bench.fs.release(handle);
    assert_eq!((bench.fs.owed(), kept(folder.path())), (Sum { files: 1, bytes: 4 }, 1));
    // Nobody who has it answers.
    bench.swarm.stuck.store(true, Ordering::SeqCst);
    set(&outbox, 2, 2, 2);
    assert!(pay(&bench).await);
    assert_eq!(*outbox.again.lock(), ["same"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_time_to_read_a_segment_begins_when_there_is_memory_for_it() {
    let (bench, outbox, _folder) = Bench::writing(1 << 20).await;
    set(&outbox, 2, 2, 3);
    file(&bench, b"one two").await;
    set(&outbox, 3, 3, 3);
    assert!(pay(&bench).await);
    let (until, granted) = (bench.swarm.read_until.lock().unwrap(), outbox.granted.lock().unwrap());
    assert!(until >= granted + READ);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_is_tried_again_and_stays_owed() {
    let (bench, outbox, folder) = one_of_two_is_up(1 << 20).await;
    file(&bench, b"one two").await;
    set(&outbox, 2, 2, 2);
    outbox.failing.store(true, Ordering::SeqCst);
    assert!(!pay(&bench).await);
    assert_eq!(kept(folder.path()), 1);
    outbox.failing.store(false, Ordering::SeqCst);
    assert!(pay(&bench).await);
    assert_eq!(kept(folder.path()), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_fsync_sends_to_others_what_a_seeder_does_not_write_out_in_time() {
    for closed in [true, false] {
        let short = |writing| Writing { timeout: Duration::from_secs(2), ..writing };
        let (bench, outbox, _folder) = Bench::writing_with(1 << 20, short).await;
        let inode = bench.swarm.make(ROOT, "file", Kind::File);
        bench.fs.lookup(ROOT, Bytes::from("file")).await.unwrap();
        bench.fs.open_cached(inode, false).await.unwrap();
        bench.fs.write(inode, At::Offset(0), b"bytes", 0).unwrap();
        if closed {
            bench.fs.flush(inode).await.unwrap();
        }
        outbox.hangs.store(true, Ordering::SeqCst);
        let began = Instant::now();
        assert_eq!(bench.fs.sync(inode).await, Ok(()), "closed: {closed}");
        assert!(began.elapsed() < Duration::from_millis(1_900), "within the time that a save may take");
        assert_eq!(outbox.sends.load(Ordering::SeqCst) + outbox.again.lock().len(), 2, "it was sent to others");
        assert_eq!(outbox.synced.lock().len(), 1, "they have it durably");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_fsync_sends_again_what_a_seeder_lost_since_it_was_closed() {
    for reopened in [false, true] {
        let (bench, outbox, _folder) = Bench::writing(1 << 20).await;
        let inode = bench.swarm.make(ROOT, "file", Kind::File);
        bench.fs.lookup(ROOT, Bytes::from("file")).await.unwrap();
        let handle = bench.fs.open_cached(inode, false).await.unwrap().handle;
        bench.fs.write(inode, At::Offset(0), b"bytes", 0).unwrap();
        bench.fs.flush(inode).await.unwrap();
        if reopened {
            bench.fs.release(handle);
            bench.fs.open(inode, 0, |_| panic!("nothing is complete in these tests")).await.unwrap();
        }
        outbox.loses.store(true, Ordering::SeqCst);
        let fs = bench.fs.clone();
        let syncing = bench.tasks.spawn(async move { fs.sync(inode).await });
        bench.until("it is sent again", |_| !outbox.again.lock().is_empty()).await;
        outbox.loses.store(false, Ordering::SeqCst);
        assert_eq!(syncing.await.unwrap(), Ok(()));
        assert_eq!(outbox.again.lock()[0], "bytes");
        assert_eq!(outbox.synced.lock().len(), 1, "the seeders have it durably");
    }
}
