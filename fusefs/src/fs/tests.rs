//! The file system over a swarm in memory, without a kernel.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;

use super::fake::{Bench, ROOT};
use super::invalidation::Invalidation;
use super::node::Kind;
use super::open_files::{Backing, Mode};
use super::*;

const HOUR: Duration = Duration::from_secs(3_600);

fn no_backing(_: &std::fs::File) -> std::io::Result<Backing> {
    panic!("nothing is complete in these tests")
}

async fn open(bench: &Bench, inode: InodeNumber) -> (u64, bool) {
    let opened = bench.fs.open(inode, 0, no_backing).await.unwrap();
    (opened.handle, matches!(opened.mode, Mode::Cached { keep_pages: true }))
}

async fn read(bench: &Bench, inode: InodeNumber) -> Bytes {
    let (handle, _) = open(bench, inode).await;
    bench.fs.read(handle, 0, 100).await.unwrap()
}

#[tokio::test]
async fn a_name_is_asked_for_once_also_if_it_does_not_exist() {
    let bench = Bench::new(false).await;
    bench.swarm.make(ROOT, "a", Kind::File);
    for name in ["a", "none"] {
        let found = bench.fs.lookup(ROOT, Bytes::from(name)).await.unwrap();
        assert_eq!((found.node.is_some(), found.keep), (name == "a", HOUR));
        let again = bench.fs.lookup_known(ROOT, name.as_bytes()).unwrap().unwrap();
        assert_eq!((again.node.is_some(), again.keep), (name == "a", HOUR));
    }
}

#[tokio::test]
async fn a_name_that_somebody_makes_shows_and_the_kernel_forgets_that_it_was_absent() {
    let bench = Bench::new(false).await;
    assert!(bench.fs.lookup(ROOT, Bytes::from("new")).await.unwrap().node.is_none());
    bench.swarm.make(ROOT, "new", Kind::File);
    bench.until_forgotten(&Invalidation::Name(ROOT, "new".into())).await;
    assert!(bench.fs.lookup_known(ROOT, b"new").is_none());
    assert!(bench.fs.lookup(ROOT, Bytes::from("new")).await.unwrap().node.is_some());
}

#[tokio::test]
async fn a_directory_is_one_question_with_all_its_attributes() {
    let bench = Bench::new(false).await;
    for index in 0..500 {
        bench.swarm.make(ROOT, format!("{index:03}"), Kind::File);
    }
    let before = bench.swarm.asked();
    let handle = bench.fs.open_directory(ROOT);
    let page = bench.fs.page_at(handle, 0).await.unwrap();
    let mut seen = Vec::new();
    for (_, entry) in page.entries() {
        if let Entry::Named(name, node) = entry {
            let (node, keep) = bench.fs.entry_now(ROOT, name, node);
            assert_eq!(keep, HOUR);
            assert!(bench.fs.attributes_known(node.inode).is_some());
            assert!(bench.fs.lookup_known(ROOT, name).unwrap().unwrap().node.is_some());
            seen.push(name.to_vec());
        }
    }
    assert_eq!(seen.len(), 500);
    assert!(seen.is_sorted());
    assert!(bench.fs.lookup_known(ROOT, b"absent").unwrap().unwrap().node.is_none());
    assert_eq!(bench.swarm.asked() - before, 1);
}

#[tokio::test]
async fn cursors_stay_good_while_names_come_and_go() {
    let bench = Bench::new(false).await;
    for index in 0..100 {
        bench.swarm.make(ROOT, format!("{index:03}"), Kind::File);
    }
    let handle = bench.fs.open_directory(ROOT);
    let mut cursor = 0;
    let mut names = Vec::new();
    loop {
        let page = match bench.fs.page_known(handle, cursor) {
            Some(page) => page,
            None => bench.fs.page_at(handle, cursor).await.unwrap(),
        };
        let some: Vec<_> = page.entries().take(7).map(|(next, entry)| (next, name_of(&entry))).collect();
        let Some((next, _)) = some.last() else { break };
        cursor = *next;
        names.extend(some.into_iter().map(|(_, name)| name));
        bench.swarm.make(ROOT, format!("0{:02}x", names.len()), Kind::File);
    }
    let mut want = vec![".".to_owned(), "..".to_owned()];
    want.extend((0..100).map(|index| format!("{index:03}")));
    assert_eq!(names, want);
}

fn name_of(entry: &Entry<'_>) -> String {
    match entry {
        Entry::Itself => ".".into(),
        Entry::Parent => "..".into(),
        Entry::Named(name, _) => String::from_utf8_lossy(name).into_owned(),
    }
}

#[tokio::test]
async fn an_open_sees_what_was_written_before_it_although_no_change_was_pushed() {
    let bench = Bench::new(false).await;
    let inode = bench.swarm.make(ROOT, "file", Kind::File);
    bench.swarm.write(inode, b"one");
    bench.fs.lookup(ROOT, Bytes::from("file")).await.unwrap();
    let (old, _) = open(&bench, inode).await;
    assert_eq!(bench.fs.read(old, 0, 100).await.unwrap(), "one");
    bench.swarm.write_silently(inode, b"second");
    assert_eq!(bench.fs.read(old, 0, 100).await.unwrap(), "one", "a handle keeps its version");
    let (new, kept) = open(&bench, inode).await;
    assert!(!kept, "the pages are of the older version");
    assert_eq!(bench.fs.read(new, 0, 100).await.unwrap(), "second");
    assert_eq!(bench.fs.read(old, 3, 100).await.unwrap(), "ond", "until a newer one is opened");
    bench.until_forgotten(&Invalidation::Attributes(inode)).await;
}

#[tokio::test]
async fn pages_are_kept_from_one_open_to_the_next_if_nothing_changed() {
    let bench = Bench::new(false).await;
    let inode = bench.swarm.make(ROOT, "file", Kind::File);
    bench.swarm.write(inode, b"one");
    let (handle, kept) = open(&bench, inode).await;
    assert!(!kept);
    bench.fs.release(handle);
    assert!(open(&bench, inode).await.1);
    bench.swarm.write(inode, b"two");
    assert!(!open(&bench, inode).await.1);
}

#[tokio::test]
async fn while_it_is_open_a_file_has_the_size_that_is_read_and_afterwards_the_new_one() {
    let bench = Bench::new(false).await;
    let inode = bench.swarm.make(ROOT, "file", Kind::File);
    bench.swarm.write(inode, b"one");
    let (handle, _) = open(&bench, inode).await;
    bench.swarm.write(inode, b"second");
    bench.until_forgotten(&Invalidation::Attributes(inode)).await;
    let size = async || bench.fs.attributes(inode).await.unwrap().node.unwrap().size;
    assert_eq!(size().await, 3);
    bench.fs.release(handle);
    bench.until_forgotten(&Invalidation::Attributes(inode)).await;
    assert_eq!(size().await, 6);
}

#[tokio::test]
async fn a_file_that_is_gone_is_stale_unless_it_is_open() {
    let bench = Bench::new(false).await;
    let inode = bench.swarm.make(ROOT, "file", Kind::File);
    bench.swarm.write(inode, b"one");
    let (handle, _) = open(&bench, inode).await;
    bench.swarm.remove(ROOT, "file");
    bench.until_forgotten(&Invalidation::Name(ROOT, "file".into())).await;
    let node = bench.fs.attributes(inode).await.unwrap().node.unwrap();
    assert_eq!((node.size, node.links), (3, 0));
    assert_eq!(bench.fs.read(handle, 0, 10).await.unwrap(), "one");
    assert_eq!(bench.fs.open(inode, 0, no_backing).await.err(), Some(Errno::STALE));
    bench.fs.release(handle);
    assert_eq!(bench.fs.attributes(inode).await.err(), Some(Errno::STALE));
}

#[tokio::test]
async fn a_file_without_a_name_that_only_others_have_open_is_stale() {
    let bench = Bench::new(false).await;
    let inode = bench.swarm.make(ROOT, "file", Kind::File);
    bench.swarm.write(inode, b"one");
    bench.fs.lookup(ROOT, Bytes::from("file")).await.unwrap();
    assert_eq!(bench.fs.attributes(inode).await.unwrap().node.unwrap().links, 1);
    bench.swarm.unname(inode);
    bench.until("that is pushed", |bench| bench.fs.attributes_known(inode).is_none()).await;
    for _ in 0..2 {
        assert_eq!(bench.fs.attributes(inode).await.err(), Some(Errno::STALE));
        assert!(bench.fs.attributes_known(inode).is_none(), "it is asked for anew");
    }
}

#[tokio::test]
async fn without_pushed_changes_the_kernel_keeps_nothing_for_long() {
    let bench = Bench::new(false).await;
    bench.swarm.make(ROOT, "a", Kind::File);
    bench.fs.lookup(ROOT, Bytes::from("a")).await.unwrap();
    bench.swarm.away.store(true, Ordering::SeqCst);
    bench.swarm.end_watches();
    bench.until_forgotten(&Invalidation::Name(ROOT, "a".into())).await;
    bench.swarm.away.store(false, Ordering::SeqCst);
    let found = bench.fs.lookup(ROOT, Bytes::from("a")).await.unwrap();
    assert!(found.keep <= Duration::from_secs(1) || bench.fs.is_live());
    bench.until("changes are pushed again", |bench| bench.fs.is_live()).await;
    assert!(bench.fs.lookup_known(ROOT, b"a").is_none(), "something may have been missed");
}

#[tokio::test]
async fn a_name_that_was_asked_for_in_vain_is_not_asked_for_again_at_once() {
    let bench = Bench::new(false).await;
    bench.swarm.make(ROOT, "a", Kind::File);
    let asked = || bench.fs.counters().questions.with_label_values(&["lookup"]).get();
    bench.swarm.away.store(true, Ordering::SeqCst);
    // As the kernel does; on a machine that was busy meanwhile it may be another question.
    within_some_tries(|| async {
        let before = asked();
        for _ in 0..2 {
            assert_eq!(bench.fs.lookup(ROOT, Bytes::from("a")).await.err(), Some(Errno::TIMEDOUT));
        }
        asked() == before + 1
    })
    .await;
    bench.swarm.away.store(false, Ordering::SeqCst);
    bench.fs.lookup(ROOT, Bytes::from("b")).await.unwrap();
    within_some_tries(async || bench.fs.lookup(ROOT, Bytes::from("a")).await.is_ok_and(|found| found.node.is_some()))
        .await;
}

async fn within_some_tries<F: Future<Output = bool>>(is: impl Fn() -> F) {
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while !is().await {
        assert!(std::time::Instant::now() < deadline, "never");
        // Longer than the same question is answered alike.
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
}

#[tokio::test]
async fn with_the_tracker_away_names_fail_in_time_or_are_answered_as_known_last() {
    for offline_ok in [false, true] {
        let bench = Bench::new(offline_ok).await;
        let inode = bench.swarm.make(ROOT, "a", Kind::File);
        bench.swarm.write(inode, b"one");
        bench.fs.lookup(ROOT, Bytes::from("a")).await.unwrap();
        let (first, _) = open(&bench, inode).await;
        let directory = bench.fs.open_directory(ROOT);
        bench.fs.page_at(directory, 0).await.unwrap();
        bench.swarm.away.store(true, Ordering::SeqCst);
        bench.swarm.end_watches();
        bench.until("the stream is lost", |bench| !bench.fs.is_live()).await;

        let looked_up = bench.fs.lookup(ROOT, Bytes::from("a")).await.map(|found| found.node.is_some());
        let opened = bench.fs.open(inode, 0, no_backing).await.map(|opened| opened.handle);
        let listed = bench.fs.page_at(directory, 0).await.map(|page| page.remaining());
        match offline_ok {
            true => {
                assert_eq!((looked_up, listed), (Ok(true), Ok(3)));
                assert_eq!(bench.fs.read(opened.unwrap(), 0, 10).await.unwrap(), "one");
            }
            // A listing may still be believed for a second.
            false => assert_eq!((looked_up, opened), (Err(Errno::TIMEDOUT), Err(Errno::TIMEDOUT))),
        }
        assert_eq!(bench.fs.read(first, 0, 10).await.unwrap(), "one", "an open file goes on");
        let unknown = bench.fs.lookup(ROOT, Bytes::from("never seen")).await;
        assert!(unknown.is_err() || unknown.unwrap().node.is_none());
    }
}

#[tokio::test]
async fn a_walk_over_a_directory_has_manifests_and_bytes_before_they_are_opened() {
    let bench = Bench::new(false).await;
    let inodes = walk(&bench, |_| {}).await;
    bench.until("the next files are fetched", |bench| bench.swarm.prefetched.lock().len() >= 16).await;
    let before = bench.swarm.asked();
    open(&bench, inodes[5]).await;
    assert_eq!(bench.swarm.asked() - before, 1, "no lease, but the manifest is here already");
}

#[tokio::test]
async fn a_walk_fetches_no_bytes_of_files_that_the_kernel_has() {
    let bench = Bench::new(false).await;
    bench.swarm.leases.store(true, Ordering::SeqCst);
    let inodes = listed(&bench).await;
    for inode in inodes.iter().rev().step_by(2) {
        open(&bench, *inode).await;
    }
    for inode in &inodes[..3] {
        open(&bench, *inode).await;
    }
    bench.until("the next files are leased", |bench| inodes[3..19].iter().all(|file| bench.fs.is_leased(*file))).await;
    bench.until("some are fetched", |bench| !bench.swarm.prefetched.lock().is_empty()).await;
    let fetched = bench.swarm.prefetched.lock().clone();
    for (index, inode) in inodes.iter().enumerate().take(19).skip(3) {
        let digest = bench.fs.current(*inode).await.unwrap().1.digest.unwrap();
        assert_eq!(fetched.contains(&digest), index % 2 == 0, "file {index}");
    }
}

/// 40 files in a listed folder.
async fn listed(bench: &Bench) -> Vec<InodeNumber> {
    let inodes: Vec<InodeNumber> = (0..40)
        .map(|index| {
            let inode = bench.swarm.make(ROOT, format!("{index:02}"), Kind::File);
            bench.swarm.write(inode, format!("file {index}").as_bytes());
            inode
        })
        .collect();
    let directory = bench.fs.open_directory(ROOT);
    bench.fs.page_at(directory, 0).await.unwrap();
    inodes
}

/// The first three opens of a walk over them.
async fn walk(bench: &Bench, once_listed: impl FnOnce(&[InodeNumber])) -> Vec<InodeNumber> {
    let inodes = listed(bench).await;
    once_listed(&inodes);
    for inode in &inodes[..3] {
        open(bench, *inode).await;
    }
    inodes
}

/// The same, until the next sixteen are leased.
async fn walked(bench: &Bench, before_the_lease: impl FnOnce(&[InodeNumber])) -> Vec<InodeNumber> {
    bench.swarm.leases.store(true, Ordering::SeqCst);
    let inodes = walk(bench, before_the_lease).await;
    bench.until("the next files are leased", |bench| inodes[3..19].iter().all(|file| bench.fs.is_leased(*file))).await;
    inodes
}

#[tokio::test]
async fn a_leased_file_is_opened_without_a_question_until_it_is_known_to_have_changed() {
    let bench = Bench::new(false).await;
    let inodes = walked(&bench, |_| {}).await;
    let before = bench.swarm.asked();
    assert_eq!(read(&bench, inodes[4]).await, "file 4");
    assert_eq!(bench.swarm.asked(), before);
    // What is written within a lease is not acknowledged yet: the old bytes are right.
    bench.swarm.write_silently(inodes[5], b"new");
    assert_eq!(read(&bench, inodes[5]).await, "file 5");
    bench.swarm.write(inodes[6], b"new");
    bench.until("it is told", |bench| !bench.fs.is_leased(inodes[6])).await;
    assert_eq!(read(&bench, inodes[6]).await, "new");
    bench.swarm.end_watches();
    bench.until("all is in doubt", |bench| inodes.iter().all(|file| !bench.fs.is_leased(*file))).await;
    assert_eq!(read(&bench, inodes[5]).await, "new");
}

/// Remembers what the kernel was told to forget.
#[derive(Default)]
struct Told(Mutex<Vec<InodeNumber>>);

impl Kernel for Told {
    fn forget_attributes(&self, inode: InodeNumber) {
        self.0.lock().push(inode);
    }
}

#[tokio::test]
async fn the_kernel_hears_of_a_new_size_before_a_leased_file_is_read() {
    let bench = Bench::new(false).await;
    let kernel = Arc::new(Told::default());
    bench.fs.attach(kernel.clone());
    // Listed with its old size; the change is not pushed yet when the lease is given.
    let inodes = walked(&bench, |inodes| bench.swarm.write_silently(inodes[7], b"longer than before")).await;
    let before = bench.swarm.asked();
    assert_eq!(read(&bench, inodes[7]).await, "longer than before");
    assert_eq!(read(&bench, inodes[8]).await, "file 8");
    assert_eq!(bench.swarm.asked(), before);
    assert_eq!(*kernel.0.lock(), [inodes[7]]);
}

#[tokio::test]
async fn the_hash_of_a_file_of_one_segment_is_what_b3sum_prints() {
    let bench = Bench::new(false).await;
    let inode = bench.swarm.make(ROOT, "file", Kind::File);
    let value = async |name: &str| {
        let value = bench.fs.attribute(inode, name.as_bytes()).await;
        value.map(|value| String::from_utf8(value).unwrap())
    };
    assert_eq!(value("user.swarm.hash").await.unwrap(), blake3::hash(b"").to_string());
    bench.swarm.write(inode, b"content");
    bench.until_forgotten(&Invalidation::Attributes(inode)).await;
    assert_eq!(value("user.swarm.hash").await.unwrap(), blake3::hash(b"content").to_string());
    assert_eq!(value("user.swarm.cached").await.unwrap(), "5/7");
    let holders = value("user.swarm.holders").await.unwrap();
    assert!(holders.ends_with(" h:1 1/1\n"), "{holders}");
    assert_eq!(value("user.other").await, Err(Errno::NODATA));
    assert_eq!(bench.fs.attribute(ROOT, b"user.swarm.hash").await, Err(Errno::NODATA));
}
