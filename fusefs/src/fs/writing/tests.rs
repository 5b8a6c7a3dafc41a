//! Files written over a swarm in memory, where a test says when each thing happens.

use std::sync::atomic::Ordering;

use super::*;
use crate::fs::fake::{Bench, FakeOutbox, ROOT};
use crate::fs::node::Kind;
use crate::write::spool::{Note, State};

/// Tasks of a mount in which nothing happens: one follows the changes.
const FOLLOWING: usize = 1;

async fn file(bench: &Bench, bytes: &[u8]) -> InodeNumber {
    let inode = bench.swarm.make(ROOT, "file", Kind::File);
    bench.swarm.write(inode, bytes);
    bench.fs.lookup(ROOT, Bytes::from("file")).await.unwrap();
    inode
}

fn write(bench: &Bench, inode: InodeNumber, offset: u64, bytes: &[u8]) {
    bench.fs.write(inode, At::Offset(offset), bytes, offset).unwrap();
}

/// What a handle of this mount reads.
async fn read(bench: &Bench, handle: u64) -> Bytes {
    bench.fs.read(handle, 0, 1 << 20).await.unwrap()
}

/// Wait until somebody sends, and is held.
async fn until_sent(bench: &Bench, outbox: &FakeOutbox, sends: usize) {
    bench.until("it is sent", |_| outbox.sends.load(Ordering::SeqCst) >= sends).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_comes_while_the_last_save_fails_keeps_its_bytes() {
    let (bench, outbox, _folder) = Bench::writing(1 << 20).await;
    let inode = file(&bench, b"base").await;
    let first = bench.fs.open_cached(inode, false).await.unwrap().handle;
    write(&bench, inode, 0, b"B");
    outbox.held.store(true, Ordering::SeqCst);
    outbox.failing.store(true, Ordering::SeqCst);
    bench.fs.release(first);
    until_sent(&bench, &outbox, 1).await;
    let second = bench.fs.open_cached(inode, false).await.unwrap().handle;
    write(&bench, inode, 1, b"A");
    outbox.held.store(false, Ordering::SeqCst);
    bench.until("the save gave up", |bench| bench.tasks.len() == FOLLOWING).await;
    assert_eq!(read(&bench, second).await, "BAse");
    outbox.failing.store(false, Ordering::SeqCst);
    bench.fs.flush(inode).await.unwrap();
    assert_eq!(bench.swarm.content(inode), "BAse");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_writes_any_more_and_cannot_be_saved_is_kept_and_not_shown() {
    let (bench, outbox, folder) = Bench::writing(1 << 20).await;
    let inode = file(&bench, b"base").await;
    let handle = bench.fs.open_cached(inode, false).await.unwrap().handle;
    write(&bench, inode, 0, b"B");
    outbox.failing.store(true, Ordering::SeqCst);
    bench.fs.flush(inode).await.unwrap_err();
    bench.fs.release(handle);
    bench.until("it is let go", |bench| bench.fs.unsaved_files() == 0).await;
    bench.until("it is kept", |_| folder.path().join("1.json").exists()).await;
    assert_eq!(std::fs::read(folder.path().join("1.data")).unwrap(), b"B");
    let handle = bench.fs.open_cached(inode, false).await.unwrap().handle;
    assert_eq!(read(&bench, handle).await, "base");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_close_could_not_save_is_listed_while_it_is_tried_again() {
    let (bench, outbox, folder) = Bench::writing(1 << 20).await;
    let listed = || {
        let notes = crate::write::spool::notes_in(folder.path()).unwrap();
        notes.into_iter().map(|note| (note.state, note.error.is_some())).collect::<Vec<_>>()
    };
    let inode = file(&bench, b"base").await;
    let handle = bench.fs.open_cached(inode, false).await.unwrap().handle;
    write(&bench, inode, 0, b"B");
    outbox.held.store(true, Ordering::SeqCst);
    let fs = bench.fs.clone();
    let closing = bench.tasks.spawn(async move { fs.flush(inode).await });
    until_sent(&bench, &outbox, 1).await;
    assert_eq!(listed(), [], "nothing failed yet");
    outbox.failing.store(true, Ordering::SeqCst);
    outbox.held.store(false, Ordering::SeqCst);
    closing.await.unwrap().unwrap_err();
    assert_eq!(listed(), [(State::Retrying, true)]);
    outbox.held.store(true, Ordering::SeqCst);
    bench.fs.release(handle);
    until_sent(&bench, &outbox, 2).await;
    assert_eq!(listed(), [(State::Retrying, true)], "while it is tried");
    outbox.failing.store(false, Ordering::SeqCst);
    outbox.held.store(false, Ordering::SeqCst);
    bench.until("it is saved", |bench| bench.fs.unsaved_files() == 0).await;
    assert_eq!((listed(), bench.swarm.content(inode)), (vec![], Bytes::from("Base")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_after_a_save_that_failed_is_not_saved_unasked() {
    let (bench, outbox, folder) = Bench::writing(1 << 20).await;
    let inode = file(&bench, &[b'-'; 20_000]).await;
    bench.fs.open_cached(inode, false).await.unwrap();
    write(&bench, inode, 0, &[b'a'; 4096]);
    outbox.held.store(true, Ordering::SeqCst);
    outbox.failing.store(true, Ordering::SeqCst);
    let fs = bench.fs.clone();
    let closing = bench.tasks.spawn(async move { fs.flush(inode).await });
    until_sent(&bench, &outbox, 1).await;
    write(&bench, inode, 8192, &[b'b'; 4096]);
    outbox.held.store(false, Ordering::SeqCst);
    closing.await.unwrap().unwrap_err();
    bench.fs.writing().unwrap().spool.abandon();
    let left = crate::write::spool::notes_in(folder.path()).unwrap().remove(0);
    assert_eq!((left.state, left.changed), (State::Saving, Some(vec![(0, 4096, true)])));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_elsewhere_while_an_append_is_saved_is_not_lost_with_the_race() {
    let (bench, outbox, _folder) = Bench::writing(1 << 20).await;
    let inode = file(&bench, b"base").await;
    bench.fs.open_cached(inode, false).await.unwrap();
    bench.fs.write(inode, At::End, b"+mine", 4).unwrap();
    outbox.held.store(true, Ordering::SeqCst);
    let fs = bench.fs.clone();
    let saving = bench.tasks.spawn(async move { fs.flush(inode).await });
    until_sent(&bench, &outbox, 1).await;
    bench.swarm.write(inode, b"somebody else's");
    write(&bench, inode, 0, b"B");
    outbox.held.store(false, Ordering::SeqCst);
    assert_eq!(saving.await.unwrap(), Err(Errno::STALE));
    assert_eq!(bench.swarm.content(inode), "somebody else's");
    let copy = bench.swarm.named(ROOT, |name| name.starts_with(b"file.conflict-")).expect("a conflict copy");
    assert_eq!(bench.swarm.content(copy), "Base+mine");
    assert!(!bench.fs.written(inode).unwrap().unsaved.is_dirty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_seeders_lost_before_a_conflict_copy_was_made_of_it_is_sent_again() {
    let (bench, outbox, _folder) = Bench::writing(1 << 20).await;
    let inode = file(&bench, b"base").await;
    bench.fs.open_cached(inode, false).await.unwrap();
    write(&bench, inode, 0, b"B");
    bench.swarm.write_silently(inode, b"somebody else's");
    bench.swarm.lose_segments.store(true, Ordering::SeqCst);
    assert_eq!(bench.fs.flush(inode).await, Err(Errno::STALE));
    let copy = bench.swarm.named(ROOT, |name| name.starts_with(b"file.conflict-desk-")).expect("a conflict copy");
    assert_eq!(bench.swarm.content(copy), "Base");
    assert_eq!(bench.swarm.content(inode), "somebody else's");
    assert_eq!(outbox.sends.load(Ordering::SeqCst), 4, "to save, as a copy, and both once more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_close_acknowledged_is_durable_after_fsync_through_any_handle() {
    for reopened in [false, true] {
        let (bench, outbox, _folder) = Bench::writing(1 << 20).await;
        let inode = file(&bench, b"base").await;
        let handle = bench.fs.open_cached(inode, false).await.unwrap().handle;
        write(&bench, inode, 0, b"B");
        bench.fs.flush(inode).await.unwrap();
        if reopened {
            bench.fs.release(handle);
            bench.fs.open(inode, 0, |_| panic!("nothing is complete in these tests")).await.unwrap();
        }
        assert!(outbox.synced.lock().is_empty());
        bench.swarm.levels.lock().clear();
        bench.fs.sync(inode).await.unwrap();
        assert_eq!(outbox.synced.lock().len(), 1, "the seeders have it");
        assert_eq!(*bench.swarm.levels.lock(), [AckLevel::Fsync], "the catalog has it");
        bench.fs.sync(inode).await.unwrap();
        assert_eq!(outbox.synced.lock().len(), 1, "once is enough");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fsync_says_that_nobody_keeps_what_was_acknowledged_or_that_the_catalog_does_not_answer() {
    let short = |writing| Writing { timeout: Duration::from_millis(500), ..writing };
    let (bench, outbox, _folder) = Bench::writing_with(1 << 20, short).await;
    let inode = file(&bench, b"base").await;
    bench.fs.open_cached(inode, false).await.unwrap();
    write(&bench, inode, 0, b"B");
    bench.fs.flush(inode).await.unwrap();
    outbox.loses.store(true, Ordering::SeqCst);
    assert_eq!(bench.fs.sync(inode).await, Err(Errno::IO));
    assert_eq!(bench.fs.sync(inode).await, Err(Errno::IO), "and goes on saying so");
    outbox.loses.store(false, Ordering::SeqCst);
    write(&bench, inode, 0, b"b");
    bench.fs.sync(inode).await.unwrap();
    bench.swarm.away.store(true, Ordering::SeqCst);
    assert!(bench.fs.sync(inode).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fsync_says_that_the_tracker_lost_what_a_close_had_committed() {
    let (bench, _, _folder) = Bench::writing(1 << 20).await;
    let inode = file(&bench, b"base").await;
    bench.fs.open_cached(inode, false).await.unwrap();
    write(&bench, inode, 0, b"B");
    bench.fs.flush(inode).await.unwrap();
    bench.swarm.lose_revisions(1);
    assert_eq!(bench.fs.sync(inode).await, Err(Errno::IO));
}

/// The spool of a mount that died, with one file over version `version` of `inode`.
fn left_in(folder: &tempfile::TempDir, (inode, base): (InodeNumber, Base), died: impl FnOnce(&Unsaved)) -> Note {
    let (spool, _) = Spool::open(folder.path(), 0).unwrap();
    let unsaved = Unsaved::new(inode, String::new(), "/file".into(), base, spool.clone(), 1 << 20);
    died(&unsaved);
    spool.abandon();
    std::mem::forget(unsaved);
    crate::write::spool::notes_in(folder.path()).unwrap().remove(0)
}

/// A file of a swarm, and its version as a mount that opens it knows it.
async fn file_and_base(bench: &Bench, bytes: &[u8]) -> (InodeNumber, Base) {
    let inode = file(bench, bytes).await;
    let (node, version) = bench.fs.current(inode).await.unwrap();
    (inode, base_of(&node, &version))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_after_the_save_that_a_crash_cut_short_is_listed_and_not_saved() {
    let (bench, _, folder) = Bench::writing(1 << 20).await;
    let (inode, base) = file_and_base(&bench, &[b'-'; 20_000]).await;
    let spool = bench.fs.writing().unwrap().spool.clone();
    spool.abandon();
    let note = left_in(&folder, (inode, base), |unsaved| {
        unsaved.write(At::Offset(0), &[b'a'; 4096], 1).unwrap();
        unsaved.tell_saving();
        unsaved.write(At::Offset(8192), &[b'b'; 4096], 2).unwrap();
    });
    note.write(folder.path()).unwrap();
    bench.fs.resume(bench.fs.writing().unwrap(), note).await;
    let want = |parts: [&[u8]; 3]| parts.concat();
    assert_eq!(bench.swarm.content(inode), want([&[b'a'; 4096], &[b'-'; 15_904], b""]));
    let left = spool.kept().unwrap().remove(0);
    assert_eq!((left.state, left.changed.clone()), (State::Interrupted, None));
    // Somebody wants it.
    bench.fs.resume(bench.fs.writing().unwrap(), Note { state: State::Saving, ..left }).await;
    let all = [vec![b'a'; 4096], vec![b'-'; 4096], vec![b'b'; 4096], vec![b'-'; 7712]].concat();
    assert_eq!(bench.swarm.content(inode), all);
    assert!(spool.kept().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_moved_behind_another_append_before_its_save_failed_is_noted_where_it_is() {
    let (bench, outbox, folder) = Bench::writing(1 << 20).await;
    let (inode, base) = file_and_base(&bench, b"base").await;
    bench.fs.writing().unwrap().spool.abandon();
    let note = left_in(&folder, (inode, base), |unsaved| {
        unsaved.write(At::End, b"+mine", 1).unwrap();
        unsaved.tell_saving();
    });
    note.write(folder.path()).unwrap();
    bench.swarm.write(inode, b"base+others");
    outbox.fails_after.store(1, Ordering::SeqCst);
    bench.fs.resume(bench.fs.writing().unwrap(), note).await;
    let left = bench.fs.writing().unwrap().spool.kept().unwrap().remove(0);
    assert_eq!((left.state, left.changed.clone()), (State::Failed, Some(vec![(11, 5, true)])));
    outbox.fails_after.store(usize::MAX, Ordering::SeqCst);
    bench.fs.resume(bench.fs.writing().unwrap(), Note { state: State::Saving, ..left }).await;
    assert_eq!(bench.swarm.content(inode), "base+others+mine");
    let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| !name.as_encoded_bytes().ends_with(b".data")), "nothing is left: {names:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_appended_after_the_save_that_a_crash_cut_short_is_kept_where_others_have_appended() {
    let (bench, _, folder) = Bench::writing(1 << 20).await;
    let (inode, base) = file_and_base(&bench, b"base").await;
    let (spool, version) = (bench.fs.writing().unwrap().spool.clone(), base.version);
    spool.abandon();
    let note = left_in(&folder, (inode, base), |unsaved| {
        unsaved.write(At::End, b"+mine", 1).unwrap();
        unsaved.tell_saving();
        unsaved.write(At::End, b"+later", 1).unwrap();
    });
    note.write(folder.path()).unwrap();
    bench.swarm.write(inode, b"base+others");
    bench.fs.resume(bench.fs.writing().unwrap(), note).await;
    assert_eq!(bench.swarm.content(inode), "base+others", "what was saved is in a conflict copy");
    let left = spool.kept().unwrap().remove(0);
    assert_eq!((left.state, left.base_version), (State::Interrupted, version));
    bench.fs.resume(bench.fs.writing().unwrap(), Note { state: State::Saving, ..left }).await;
    assert_eq!(bench.swarm.content(inode), "base+others+mine+later");
    assert!(spool.kept().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_small_overwrites_leave_few_extents_and_every_byte() {
    const BLOCK: usize = 4096;
    const BLOCKS: usize = 1024;
    let (bench, _, _folder) = Bench::writing(1 << 20).await;
    let mut model: Vec<u8> = (0..BLOCKS * BLOCK).map(|at| u8::try_from(at % 251).unwrap()).collect();
    let inode = file(&bench, &model).await;
    let handle = bench.fs.open_cached(inode, false).await.unwrap().handle;
    let mut most = 0;
    for round in 0..600_usize {
        let (at, byte) = (round * 389 % BLOCKS * BLOCK, u8::try_from(round % 256).unwrap());
        model[at..at + BLOCK].fill(byte);
        write(&bench, inode, at as u64, &[byte; BLOCK]);
        bench.fs.sync(inode).await.unwrap();
        most = most.max(bench.swarm.extents(inode).len());
    }
    // Of each of four windows, at most 16 extents and one joint more.
    assert!(most <= 4 * 18, "{most} extents");
    assert!(bench.swarm.content(inode) == model);
    let read = bench.fs.read(handle, 0, u32::try_from(model.len()).unwrap()).await.unwrap();
    assert!(read == model, "and so it is read here");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_save_that_cannot_read_what_it_would_join_goes_on_without() {
    let (bench, _, _folder) = Bench::writing(1 << 20).await;
    let inode = file(&bench, &vec![7; 1 << 20]).await;
    bench.swarm.stuck.store(true, Ordering::SeqCst);
    bench.fs.open_cached(inode, false).await.unwrap();
    for block in 0..40 {
        write(&bench, inode, block * 8192, &[1; 4096]);
    }
    bench.fs.sync(inode).await.unwrap();
    assert_eq!(bench.swarm.extents(inode).len(), 80);
    assert_eq!(bench.swarm.content(inode).iter().filter(|byte| **byte == 1).count(), 40 * 4096);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_unsaved_of_a_file_without_a_name_is_not_left_out_of_a_copy() {
    let (bench, _, _folder) = Bench::writing(1 << 20).await;
    let inode = file(&bench, b"base").await;
    bench.fs.open_cached(inode, false).await.unwrap();
    write(&bench, inode, 0, b"B");
    let never = |_: &File| Err(std::io::ErrorKind::Unsupported.into());
    let maker = Maker { uid: 0, gid: 0, mode: 0o644 };
    let to = bench.fs.create(ROOT, "to".into(), maker, Writer::Reads, never).await.unwrap().0;
    let to = to.node.unwrap().inode;
    bench.swarm.unname(inode);
    bench.until("the name is gone", |bench| bench.fs.attributes_known(inode).is_none()).await;
    assert_eq!(bench.fs.attributes(inode).await.unwrap().node.unwrap().links, 0);
    assert_eq!(bench.fs.copy_range((inode, 0), (to, 0), 4).await, Err(Errno::OPNOTSUPP), "the kernel copies the bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_to_a_file_without_a_name_is_read_through_its_other_handles_to_their_end() {
    let (bench, _, _folder) = Bench::writing(1 << 20).await;
    let inode = file(&bench, b"base").await;
    let reader = bench.fs.open(inode, 0, |_| panic!("nothing is complete in these tests")).await.unwrap().handle;
    let writers = [bench.fs.open_cached(inode, false).await, bench.fs.open_cached(inode, false).await];
    bench.swarm.unname(inode);
    bench.until("the name is gone", |bench| bench.fs.attributes_known(inode).is_none()).await;
    assert_eq!(bench.fs.attributes(inode).await.unwrap().node.unwrap().links, 0);
    for (writer, (at, shown)) in writers.into_iter().zip([(0_usize, "Base"), (4, "Base and more")]) {
        write(&bench, inode, at as u64, &shown.as_bytes()[at..]);
        bench.fs.flush(inode).await.unwrap();
        bench.fs.release(writer.unwrap().handle);
        bench.until("it is not tried to save it", |bench| bench.tasks.len() == FOLLOWING).await;
        assert_eq!(read(&bench, reader).await, shown);
    }
    bench.fs.release(reader);
    bench.until("it is let go", |bench| bench.fs.unsaved_files() == 0).await;
    assert_eq!(bench.swarm.content(inode), "base");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_writeback_a_close_waits_for_nothing_and_an_fsync_as_ever() {
    let (bench, outbox, _folder) = Bench::writing_with(1 << 20, |writing| writing.with_writeback(true)).await;
    let inode = file(&bench, b"base").await;
    let handle = bench.fs.open_cached(inode, false).await.unwrap().handle;
    write(&bench, inode, 0, b"B");
    outbox.held.store(true, Ordering::SeqCst);
    bench.fs.flush(inode).await.unwrap();
    bench.fs.release(handle);
    until_sent(&bench, &outbox, 1).await;
    assert_eq!(bench.swarm.content(inode), "base");
    outbox.held.store(false, Ordering::SeqCst);
    bench.until("it is saved", |bench| bench.fs.unsaved_files() == 0).await;
    assert_eq!(bench.swarm.content(inode), "Base");
    let _handle = bench.fs.open_cached(inode, false).await.unwrap().handle;
    write(&bench, inode, 0, b"C");
    bench.fs.sync(inode).await.unwrap();
    assert_eq!(bench.swarm.content(inode), "Case");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_writeback_the_next_close_says_once_that_a_save_failed() {
    let (bench, outbox, _folder) = Bench::writing_with(1 << 20, |writing| writing.with_writeback(true)).await;
    let inode = file(&bench, b"base").await;
    let _handle = bench.fs.open_cached(inode, false).await.unwrap().handle;
    write(&bench, inode, 0, b"B");
    outbox.failing.store(true, Ordering::SeqCst);
    bench.fs.flush(inode).await.unwrap();
    bench.until("the save failed", |bench| bench.tasks.len() == FOLLOWING).await;
    outbox.failing.store(false, Ordering::SeqCst);
    assert_eq!(bench.fs.flush(inode).await, Err(Errno::IO));
    bench.fs.flush(inode).await.unwrap();
    bench.until("it is saved", |bench| bench.swarm.content(inode) == "Base").await;
}
