//! Changes over a catalog in memory, whose echoes come when the test says so.

use std::sync::atomic::Ordering;

use super::*;
use crate::fs::fake::{Bench, ROOT};
use crate::fs::invalidation::Invalidation;
use crate::fs::{Entry, ExtendedMode};

const HOUR: Duration = Duration::from_secs(3_600);
const ME: Maker = Maker { uid: 7, gid: 8, mode: 0o40_755 };

fn name(name: &'static str) -> Bytes {
    Bytes::from(name)
}

/// Echoes come when the test has them pushed.
async fn bench() -> Bench {
    let bench = Bench::new(false).await;
    bench.swarm.echoes_late.store(true, Ordering::SeqCst);
    bench
}

fn known(bench: &Bench, parent: InodeNumber, name: &'static str) -> Option<InodeNumber> {
    let found = bench.fs.lookup_known(parent, name.as_bytes()).expect("it is known").unwrap();
    assert_eq!(found.keep, HOUR);
    found.node.map(|node| node.inode)
}

async fn listed(bench: &Bench, directory: InodeNumber) -> Vec<String> {
    let handle = bench.fs.open_directory(directory);
    let page = bench.fs.page_at(handle, 0).await.unwrap();
    let names = page.entries().filter_map(|(_, entry)| match entry {
        Entry::Named(name, _) => Some(String::from_utf8_lossy(name).into_owned()),
        _ => None,
    });
    names.collect()
}

fn links(bench: &Bench, inode: InodeNumber) -> u32 {
    bench.fs.attributes_known(inode).expect("known at once").node.unwrap().links
}

/// Push the echoes, and say what the kernel was told to forget by them.
async fn taken_back_by_echoes(bench: &Bench) -> Vec<Invalidation> {
    drop(bench.forgotten.try_iter().collect::<Vec<_>>());
    bench.swarm.push_echoes();
    // Something of somebody else, after them.
    bench.swarm.make(ROOT, "marker", Kind::File);
    let mut told = Vec::new();
    while !told.contains(&Invalidation::Name(ROOT, name("marker"))) {
        told.extend(bench.forgotten.recv_timeout(Duration::from_secs(20)));
        tokio::task::yield_now().await;
    }
    told.retain(|one| !matches!(one, Invalidation::Name(_, at) if at == "marker"));
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_made_is_known_at_once_and_its_echo_takes_nothing_back() {
    let bench = bench().await;
    bench.fs.attributes(ROOT).await.unwrap();
    assert!(bench.fs.lookup(ROOT, name("folder")).await.unwrap().node.is_none());
    let before = bench.swarm.asked();
    let folder = bench.fs.make_directory(ROOT, name("folder"), ME).await.unwrap();
    let node = folder.node.unwrap();
    assert_eq!((node.mode, node.uid, node.gid, folder.keep), (0o755, 7, 8, HOUR));
    let link = bench.fs.make_symlink(node.inode, name("link"), ME, name("there")).await.unwrap().node.unwrap();
    assert_eq!(link.target, "there");
    assert_eq!(known(&bench, ROOT, "folder"), Some(node.inode));
    assert_eq!(known(&bench, node.inode, "link"), Some(link.inode));
    assert_eq!(known(&bench, node.inode, "none"), None, "a new directory is known to be empty");
    assert_eq!(links(&bench, ROOT), 2, "the fake's root begins with one");
    assert_eq!(listed(&bench, node.inode).await, ["link"]);
    assert_eq!(bench.swarm.asked() - before, 2);
    let told = taken_back_by_echoes(&bench).await;
    assert_eq!(told, [Invalidation::Attributes(ROOT)], "by the marker");
    assert_eq!(known(&bench, ROOT, "folder"), Some(node.inode));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_echo_that_comes_before_the_answer_takes_nothing_back_either() {
    let bench = bench().await;
    bench.swarm.echoes_late.store(false, Ordering::SeqCst);
    bench.fs.attributes(ROOT).await.unwrap();
    for index in 0..50 {
        let at = Bytes::from(format!("{index}"));
        let made = bench.fs.make_file(ROOT, at.clone(), ME).await.unwrap().node.unwrap();
        assert_eq!(bench.fs.lookup_known(ROOT, &at).unwrap().unwrap().node.unwrap().inode, made.inode);
    }
    let told = taken_back_by_echoes(&bench).await;
    assert!(!told.iter().any(|one| matches!(one, Invalidation::Name(..))), "{told:?}");
}

#[tokio::test]
async fn listings_are_asked_for_once_and_show_what_was_made_and_removed_since() {
    let bench = bench().await;
    for old in ["b", "d"] {
        bench.swarm.make(ROOT, old, Kind::File);
    }
    bench.until("it is told", |bench| bench.fs.is_live()).await;
    listed(&bench, ROOT).await;
    let asked = || bench.fs.counters().questions.with_label_values(&["read_dir"]).get();
    let before = asked();
    for index in 0..100 {
        bench.fs.make_file(ROOT, Bytes::from(format!("c{index:02}")), ME).await.unwrap();
    }
    bench.fs.unlink(ROOT, name("b")).await.unwrap();
    let mut want: Vec<String> = (0..100).map(|index| format!("c{index:02}")).collect();
    want.push("d".into());
    assert_eq!(listed(&bench, ROOT).await, want);
    assert!(asked() - before <= 1, "at most once, if the names from before were pushed late");
    assert_eq!(known(&bench, ROOT, "b"), None);
}

#[tokio::test]
async fn what_was_removed_is_absent_at_once() {
    let bench = bench().await;
    let folder = bench.fs.make_directory(ROOT, name("folder"), ME).await.unwrap().node.unwrap().inode;
    bench.fs.make_special(folder, name("fifo"), ME, Special::Fifo).await.unwrap();
    assert_eq!(bench.fs.remove_directory(ROOT, name("folder")).await, Err(Errno::NOTEMPTY));
    assert_eq!(bench.fs.unlink(ROOT, name("folder")).await, Err(Errno::ISDIR));
    assert_eq!(bench.fs.remove_directory(folder, name("fifo")).await, Err(Errno::NOTDIR));
    bench.fs.unlink(folder, name("fifo")).await.unwrap();
    bench.fs.attributes(ROOT).await.unwrap();
    bench.fs.remove_directory(ROOT, name("folder")).await.unwrap();
    assert_eq!(known(&bench, ROOT, "folder"), None);
    assert_eq!(links(&bench, ROOT), 1);
    assert_eq!(bench.fs.unlink(ROOT, name("folder")).await, Err(Errno::NOENT));
    let made = bench.fs.make_file(folder, name("late"), ME).await;
    assert_eq!(made.err(), Some(Errno::STALE), "its directory is gone");
}

#[tokio::test]
async fn a_rename_moves_the_name_and_the_place_that_is_remembered() {
    let bench = bench().await;
    let folder = bench.fs.make_directory(ROOT, name("folder"), ME).await.unwrap().node.unwrap().inode;
    let one = bench.fs.make_file(ROOT, name("one"), ME).await.unwrap().node.unwrap().inode;
    let two = bench.fs.make_file(folder, name("two"), ME).await.unwrap().node.unwrap().inode;
    assert_eq!(bench.fs.path_of(two), "/folder/two");
    let refused = bench.fs.rename((ROOT, name("one")), (folder, name("two")), RenameMode::NoReplace).await;
    assert_eq!(refused, Err(Errno::EXIST));

    bench.fs.rename((ROOT, name("one")), (folder, name("two")), RenameMode::Exchange).await.unwrap();
    assert_eq!((known(&bench, ROOT, "one"), known(&bench, folder, "two")), (Some(two), Some(one)));
    assert_eq!((bench.fs.path_of(one), bench.fs.path_of(two)), ("/folder/two".into(), "/one".into()));

    bench.fs.rename((folder, name("two")), (ROOT, name("one")), RenameMode::Replace).await.unwrap();
    assert_eq!((known(&bench, ROOT, "one"), known(&bench, folder, "two")), (Some(one), None));
    assert_eq!(bench.fs.place_of(one), Some((ROOT, name("one"))));
    assert_eq!(listed(&bench, folder).await, [""; 0]);

    bench.fs.rename((ROOT, name("folder")), (ROOT, name("moved")), RenameMode::NoReplace).await.unwrap();
    bench.fs.rename((ROOT, name("one")), (folder, name("three")), RenameMode::Replace).await.unwrap();
    assert_eq!(bench.fs.path_of(one), "/moved/three");
    assert_eq!(bench.fs.path_of(InodeNumber(999)), "inode 999");
    let gone = bench.fs.rename((ROOT, name("one")), (ROOT, name("x")), RenameMode::Replace).await;
    assert_eq!(gone, Err(Errno::NOENT));
}

#[tokio::test]
async fn two_names_of_one_file_both_stay_when_one_is_renamed_to_the_other() {
    let bench = bench().await;
    let file = bench.fs.make_file(ROOT, name("a"), ME).await.unwrap().node.unwrap().inode;
    assert_eq!(bench.fs.link(file, 0, ROOT, name("b")).await.unwrap().node.unwrap().links, 2);
    bench.fs.rename((ROOT, name("a")), (ROOT, name("b")), RenameMode::Replace).await.unwrap();
    assert_eq!((known(&bench, ROOT, "a"), known(&bench, ROOT, "b")), (Some(file), Some(file)));
    bench.fs.unlink(ROOT, name("a")).await.unwrap();
    assert_eq!(links(&bench, file), 1);
    assert_eq!(bench.fs.link(file, 0, ROOT, name("b")).await.err(), Some(Errno::EXIST));
}

#[tokio::test]
async fn attributes_are_set_and_giving_a_file_away_takes_its_set_id_bits() {
    let bench = bench().await;
    let file = bench.fs.make_file(ROOT, name("a"), Maker { mode: 0o6755, ..ME }).await.unwrap().node.unwrap().inode;
    let set = async |new| bench.fs.set_attributes(file, new).await.unwrap().node.unwrap();
    let none = NewAttributes::default();
    assert_eq!(set(NewAttributes { mode: Some(0o106_711), ..none }).await.mode, 0o6711);
    assert_eq!(set(NewAttributes { uid: Some(9), mode: Some(0o6711), ..none }).await.mode, 0o6711);
    let given = set(NewAttributes { gid: Some(3), ..none }).await;
    assert_eq!((given.mode, given.uid, given.gid), (0o711, 9, 3));
    let before = now_ns();
    let touched = set(NewAttributes { accessed: Some(When::At(-5)), modified: Some(When::Now), ..none }).await;
    assert!(touched.accessed_ns == -5 && (before..=now_ns()).contains(&touched.modified_ns));
    let folder = bench.fs.make_directory(ROOT, name("d"), Maker { mode: 0o2755, ..ME }).await.unwrap().node.unwrap();
    let given = bench.fs.set_attributes(folder.inode, NewAttributes { uid: Some(1), ..none }).await.unwrap();
    assert_eq!(given.node.unwrap().mode, 0o2755, "a directory keeps them");
}

#[tokio::test]
async fn stored_attributes_stand_beside_those_of_the_swarm_which_nobody_sets() {
    let bench = bench().await;
    let file = bench.fs.make_file(ROOT, name("a"), ME).await.unwrap().node.unwrap().inode;
    let set = async |at, value, mode| bench.fs.set_extended(file, name(at), name(value), mode).await;
    assert_eq!(set("user.x", "1", ExtendedMode::Replace).await, Err(Errno::NODATA));
    assert_eq!(set("user.x", "1", ExtendedMode::Create).await, Ok(()));
    assert_eq!(set("user.x", "2", ExtendedMode::Create).await, Err(Errno::EXIST));
    assert_eq!(set("user.x", "2", ExtendedMode::Set).await, Ok(()));
    assert_eq!(set("user.swarm.hash", "2", ExtendedMode::Set).await, Err(Errno::PERM));
    assert_eq!(set("user.", "2", ExtendedMode::Set).await, Err(Errno::INVAL));
    assert_eq!(set("trusted.x", "2", ExtendedMode::Set).await, Err(Errno::OPNOTSUPP));
    let large = Bytes::from(vec![0; 8 * 1024]);
    assert_eq!(bench.fs.set_extended(file, name("user.y"), large, ExtendedMode::Set).await, Err(Errno::NOSPC));
    assert_eq!(bench.fs.attribute(file, b"user.x").await.unwrap(), b"2");
    let names = bench.fs.attribute_names_known(file).unwrap();
    assert_eq!(names, b"user.x\0");
    assert_eq!(bench.fs.remove_extended(file, name("user.x")).await, Ok(()));
    assert_eq!(bench.fs.remove_extended(file, name("user.x")).await, Err(Errno::NODATA));
    assert_eq!(bench.fs.attribute(file, b"user.x").await, Err(Errno::NODATA));
}

#[tokio::test]
async fn a_refusal_that_shows_that_what_is_known_is_old_makes_the_next_lookup_ask() {
    let bench = bench().await;
    assert!(bench.fs.lookup(ROOT, name("x")).await.unwrap().node.is_none());
    // Another mount makes it, and this one has not heard of it yet.
    let other = v1::MakeDirectory { parent: 1, name: name("x"), ownership: ownership(ME) };
    crate::fs::catalog::Catalog::change(&*bench.swarm, AckLevel::Close, Operation::MakeDirectory(other)).await.unwrap();
    assert_eq!(known(&bench, ROOT, "x"), None);
    assert_eq!(bench.fs.make_file(ROOT, name("x"), ME).await.err(), Some(Errno::EXIST));
    assert!(bench.fs.lookup_known(ROOT, b"x").is_none());
    bench.until_forgotten(&Invalidation::Name(ROOT, name("x"))).await;
    assert!(bench.fs.lookup(ROOT, name("x")).await.unwrap().node.is_some());
    let other = v1::RemoveDirectory { parent: 1, name: name("x") };
    crate::fs::catalog::Catalog::change(&*bench.swarm, AckLevel::Close, Operation::RemoveDirectory(other))
        .await
        .unwrap();
    assert_eq!(bench.fs.remove_directory(ROOT, name("x")).await, Err(Errno::NOENT));
    assert!(bench.fs.lookup(ROOT, name("x")).await.unwrap().node.is_none());
}

#[tokio::test]
async fn a_change_that_nobody_answers_fails_in_time_and_leaves_what_it_touched_in_doubt() {
    let bench = bench().await;
    assert!(bench.fs.lookup(ROOT, name("x")).await.unwrap().node.is_none());
    bench.swarm.lose_answers.store(true, Ordering::SeqCst);
    assert_eq!(bench.fs.make_file(ROOT, name("x"), ME).await.err(), Some(Errno::TIMEDOUT));
    assert!(bench.fs.lookup_known(ROOT, b"x").is_none());
    assert!(bench.fs.lookup(ROOT, name("x")).await.unwrap().node.is_some(), "it was made all the same");
    bench.swarm.lose_answers.store(false, Ordering::SeqCst);
    assert_eq!(bench.fs.make_file(ROOT, name("x"), ME).await.err(), Some(Errno::EXIST));
}

#[tokio::test]
async fn names_are_synced_without_changing_anything() {
    let bench = bench().await;
    let folder = bench.fs.make_directory(ROOT, name("folder"), ME).await.unwrap().node.unwrap();
    bench.fs.sync_names(folder.inode).await.unwrap();
    assert_eq!(bench.fs.attributes_known(folder.inode).unwrap().node.unwrap(), folder);
}

#[tokio::test]
async fn a_sync_of_names_says_once_that_the_tracker_lost_what_it_had_acknowledged() {
    let bench = bench().await;
    bench.fs.make_directory(ROOT, name("folder"), ME).await.unwrap();
    bench.fs.sync_names(ROOT).await.unwrap();
    bench.fs.make_directory(ROOT, name("lost"), ME).await.unwrap();
    bench.swarm.lose_revisions(1);
    assert_eq!(bench.fs.sync_names(ROOT).await, Err(Errno::IO));
    bench.fs.sync_names(ROOT).await.unwrap();
}

#[test]
fn times_are_nanoseconds_on_both_sides_of_1970() {
    assert_eq!(nanoseconds(UNIX_EPOCH + Duration::from_nanos(5)), 5);
    assert_eq!(nanoseconds(UNIX_EPOCH - Duration::from_nanos(5)), -5);
    assert_eq!(nanoseconds(UNIX_EPOCH + Duration::from_secs(1 << 40)), i64::MAX);
}
