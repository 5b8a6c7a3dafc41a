//! How the kernel reads each handle, while versions come and handles go.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures::future::BoxFuture;
use swarm_proto::Manifest;

use super::*;
use crate::errno::Errno;
use crate::fs::node::Kind;

struct Whole(bool);

impl OpenContent for Whole {
    fn read(&self, _: u64, _: u32, _: Instant) -> BoxFuture<'_, Result<Bytes, Errno>> {
        Box::pin(async { Ok(Bytes::new()) })
    }
    fn complete_file(&self) -> Option<Arc<File>> {
        self.0.then(|| Arc::new(tempfile::tempfile().unwrap()))
    }
}

fn node(version: u64) -> Arc<Node> {
    Arc::new(Node { size: version * 100, version, ..crate::fs::fake::node(7, Kind::File) })
}

fn open(files: &OpenFiles, version: u64, whole: bool) -> Opened {
    let content = Version { digest: None, manifest: Arc::new(Manifest::default()) };
    files.open(node(version), content, Arc::new(Whole(whole)), || true, |_| Ok(Arc::new(version)))
}

fn backing(opened: &Opened) -> Option<u64> {
    match &opened.mode {
        Mode::Passthrough(backing) => backing.downcast_ref().copied(),
        _ => None,
    }
}

#[test]
fn a_whole_file_is_passed_through_with_one_backing_for_all_its_handles() {
    let files = OpenFiles::new(None, None);
    let first = open(&files, 1, true);
    let second = open(&files, 1, false);
    assert_eq!((backing(&first), backing(&second)), (Some(1), Some(1)));
}

#[test]
fn a_file_that_becomes_whole_while_its_pages_are_cached_is_not_passed_through() {
    let files = OpenFiles::new(None, None);
    let first = open(&files, 1, false);
    assert!(matches!(open(&files, 1, true).mode, Mode::Cached { .. }));
    files.release(first.handle);
    assert!(matches!(open(&files, 1, true).mode, Mode::Cached { .. }), "one handle is still open");
}

#[test]
fn a_newer_version_beside_a_passed_through_one_reads_through_the_daemon() {
    let files = OpenFiles::new(None, None);
    let old = open(&files, 1, true);
    let new = open(&files, 2, true);
    assert!(matches!(new.mode, Mode::Direct(_)));
    assert!(new.attributes_changed);
    files.release(old.handle);
    let another = open(&files, 2, true);
    assert!(matches!(another.mode, Mode::Direct(_)), "the kernel keeps the old backing for the handle that is left");
    files.release(new.handle);
    files.release(another.handle);
    assert_eq!(backing(&open(&files, 2, true)), Some(2));
}

#[test]
fn pages_are_kept_only_for_the_version_that_filled_them() {
    let files = OpenFiles::new(None, None);
    let keeps = |opened: &Opened| matches!(opened.mode, Mode::Cached { keep_pages: true });
    let first = open(&files, 1, false);
    assert!(!keeps(&first));
    files.release(first.handle);
    let second = open(&files, 1, false);
    assert!(keeps(&second));
    assert!(!keeps(&open(&files, 2, false)));
    assert!(keeps(&open(&files, 2, false)));
}

#[test]
fn an_older_handle_reads_the_newer_version_once_it_is_opened() {
    let files = OpenFiles::new(None, None);
    let old = open(&files, 1, false);
    assert!(matches!(files.reading(old.handle), Some(Reading::Content(_))));
    open(&files, 2, false);
    let Some(Reading::Renew { number, .. }) = files.reading(old.handle) else { panic!("must renew") };
    assert_eq!(number, 2);
    files.renew(old.handle, Arc::new(Whole(false)), number);
    assert!(matches!(files.reading(old.handle), Some(Reading::Content(_))));
}

#[test]
fn an_answer_that_came_late_does_not_bring_an_older_version_back() {
    let files = OpenFiles::new(None, None);
    open(&files, 2, false);
    let late = open(&files, 1, true);
    assert!(matches!(files.reading(late.handle), Some(Reading::Renew { number: 2, .. })));
    assert_eq!(files.opened(InodeNumber(7)).unwrap().0.version, 2);
}

#[test]
fn while_a_file_is_open_its_size_is_that_of_the_version_read() {
    let files = OpenFiles::new(None, None);
    let handle = open(&files, 1, false).handle;
    assert_eq!(files.as_seen(node(2)).size, 100);
    assert_eq!(files.release(handle).unwrap().version, 1);
    assert_eq!(files.as_seen(node(2)).size, 200);
}

#[test]
fn a_kernel_that_refuses_a_backing_file_is_not_asked_again() {
    let files = OpenFiles::new(None, None);
    let content = Version { digest: None, manifest: Arc::new(Manifest::default()) };
    let opened = files.open(node(1), content, Arc::new(Whole(true)), || true, |_| Err(io::Error::from_raw_os_error(1)));
    assert!(matches!(opened.mode, Mode::Cached { .. }));
    assert!(files.no_passthrough().unwrap().contains("root"));
    files.release(opened.handle);
    assert!(matches!(open(&files, 1, true).mode, Mode::Cached { .. }));
}

fn write(files: &OpenFiles, number: u64, joins: bool) -> Opened {
    let version = Version { digest: None, manifest: Arc::new(Manifest::default()) };
    let pass = || Some(Ok(Arc::new(9_u64) as Backing));
    files.open_to_write(node(number), version, Arc::new(Whole(false)), || joins, pass)
}

#[test]
fn handles_are_passed_to_write_if_the_first_one_is_and_if_it_is_what_they_open() {
    let files = OpenFiles::new(None, None);
    let reader = open(&files, 1, false);
    assert!(matches!(write(&files, 1, true).mode, Mode::Cached { .. }), "pages of it are cached");
    files.release(reader.handle);
    let files = OpenFiles::new(None, None);
    let first = write(&files, 1, true);
    let others = [write(&files, 1, true), open(&files, 1, true), open(&files, 2, true)];
    assert!(others.iter().chain([&first]).all(|opened| backing(opened) == Some(9)));
    files.release(first.handle);
    assert!(
        matches!(write(&files, 2, false).mode, Mode::Direct(_)),
        "the kernel keeps it for the handles that are left"
    );
}

struct At(PathBuf);

impl OpenContent for At {
    fn read(&self, _: u64, _: u32, _: Instant) -> BoxFuture<'_, Result<Bytes, Errno>> {
        Box::pin(async { Ok(Bytes::new()) })
    }
    fn complete_file(&self) -> Option<Arc<File>> {
        Some(Arc::new(File::open(&self.0).unwrap()))
    }
}

#[test]
fn who_was_there_when_a_passed_file_was_stored_to_may_have_done_it_and_nobody_joins_it_after_that() {
    let files = OpenFiles::new(None, None);
    let file = tempfile::NamedTempFile::new().unwrap();
    let store =
        |second: u64| file.as_file().set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(second)).unwrap();
    store(1);
    let read = || {
        let version = Version { digest: None, manifest: Arc::new(Manifest::default()) };
        let content = Arc::new(At(file.path().to_owned()));
        files.open(node(1), version, content, || false, |_| Ok(Arc::new(1_u64)))
    };
    let (reader, first) = (read(), write(&files, 1, false));
    assert!(!files.may_have_stored(first.handle) && !files.take_untold_stores(node(1).inode));
    store(2);
    let second = write(&files, 1, false);
    assert!(files.may_have_stored(first.handle) && !files.may_have_stored(second.handle));
    assert!(!files.may_have_stored(reader.handle), "it only reads");
    assert_eq!([1, 2].map(|_| files.take_untold_stores(node(1).inode)), [true, false]);
    let late = read();
    assert!(matches!(late.mode, Mode::Direct(_)), "the file has bytes that are not the version's");
    store(3);
    assert!(files.may_have_stored(first.handle) && files.may_have_stored(second.handle));
    [reader, first, second, late].iter().for_each(|opened| drop(files.release(opened.handle)));
    assert_eq!(backing(&read()), Some(1), "what the cache gives after that is a file that it trusts");
}

#[test]
fn a_kernel_that_refuses_a_file_of_the_spool_goes_on_reading_by_itself() {
    let files = OpenFiles::new(None, None);
    let version = || Version { digest: None, manifest: Arc::new(Manifest::default()) };
    let refuse = || Some(Err(io::Error::from_raw_os_error(40)));
    let opened = files.open_to_write(node(1), version(), Arc::new(Whole(false)), || true, refuse);
    assert!(matches!(opened.mode, Mode::Cached { .. }));
    assert!(files.no_passed_writes().unwrap().contains("stacked"));
    files.release(opened.handle);
    assert_eq!(backing(&open(&files, 1, true)), Some(1));
}
