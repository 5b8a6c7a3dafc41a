//! With the real kernel, over a swarm in memory whose changes the tests make themselves.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use swarm_proto::InodeNumber;
use tokio::runtime::Runtime;

use super::{Runtimes, Session, SessionConfig};
use crate::errno::Errno;
use crate::fs::fake::{Bench, FakeSwarm, ROOT};
use crate::fs::node::Kind;
use crate::fs::{Access, FileSystem};
use crate::mount::unmount::{WhenBusy, unmount};

/// A mounted fake swarm; unmounted when dropped.
struct Mounted {
    bench: Option<Bench>,
    folder: tempfile::TempDir,
    session: Session,
    runtime: Runtime,
}

impl Mounted {
    fn new(offline_ok: bool) -> Self {
        Self::with(offline_ok, Access::ReadWrite)
    }

    fn with(offline_ok: bool, access: Access) -> Self {
        let runtime = Runtime::new().unwrap();
        let (mut bench, folder) = (runtime.block_on(Bench::with(offline_ok, access)), tempfile::tempdir().unwrap());
        let (_, empty) = std::sync::mpsc::channel();
        let forget = std::mem::replace(&mut bench.forgotten, empty);
        let config = SessionConfig {
            mountpoint: folder.path().to_owned(),
            source: "fake".into(),
            allow_other: false,
            xattr: true,
        };
        let runtimes = Runtimes { reading: runtime.handle().clone(), names: runtime.handle().clone() };
        let session = Session::mount(bench.fs.clone(), &config, forget, runtimes, bench.tasks.clone()).unwrap();
        Self { bench: Some(bench), folder, session, runtime }
    }

    fn swarm(&self) -> &Arc<FakeSwarm> {
        &self.bench.as_ref().unwrap().swarm
    }

    fn fs(&self) -> &Arc<FileSystem> {
        &self.bench.as_ref().unwrap().fs
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(name)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> InodeNumber {
        let inode = self.swarm().make(ROOT, name, Kind::File);
        self.swarm().write(inode, bytes);
        inode
    }

    fn reads(&self) -> u64 {
        self.fs().counters().reads.get()
    }

    fn opens(&self, mode: &str) -> u64 {
        self.fs().counters().opens.with_label_values(&[mode]).get()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let gone = unmount(self.folder.path(), WhenBusy::Detach);
        if !std::thread::panicking() {
            gone.unwrap();
            let ended = self.session.ended().clone();
            let waited = async { tokio::time::timeout(Duration::from_secs(10), ended.cancelled()).await };
            self.runtime.block_on(waited).expect("the session ends with the mount");
        }
        self.runtime.block_on(async { drop(self.bench.take()) });
    }
}

fn eventually(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(20), "not within 20 s: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn files_links_pipes_and_any_names_show() {
    let mounted = Mounted::new(false);
    mounted.file("file", b"content");
    let folder = mounted.swarm().make(ROOT, "folder", Kind::Directory);
    for (name, kind) in [("link", Kind::Symlink), ("pipe", Kind::Fifo), ("socket", Kind::Socket)] {
        mounted.swarm().make(folder, name, kind);
    }
    let odd: [&[u8]; 3] = [b"new\nline", b"\xff\xfe not UTF-8", &[b'x'; 255]];
    for name in odd {
        mounted.swarm().make(folder, name, Kind::File);
    }
    assert_eq!(std::fs::read(mounted.path("file")).unwrap(), b"content");
    let kind = |name: &str| std::fs::symlink_metadata(mounted.path("folder").join(name)).unwrap().file_type();
    assert!(kind("pipe").is_fifo() && kind("socket").is_socket() && kind("link").is_symlink());
    assert_eq!(std::fs::read_link(mounted.path("folder/link")).unwrap(), Path::new("target"));
    let mut names: Vec<_> = std::fs::read_dir(mounted.path("folder"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().as_bytes().to_vec())
        .collect();
    names.sort();
    let mut want: Vec<&[u8]> = vec![b"link", b"pipe", b"socket"];
    want.extend(odd);
    want.sort();
    assert_eq!(names, want);
    for name in odd {
        let path = mounted.path("folder").join(std::ffi::OsStr::from_bytes(name));
        assert_eq!(std::fs::metadata(path).unwrap().ino(), mounted.fs_inode(folder, name));
    }
    let long = std::fs::metadata(mounted.path("y".repeat(256))).unwrap_err();
    assert_eq!(long.raw_os_error(), Some(Errno::NAMETOOLONG.raw_os_error()));
    assert_eq!(std::fs::metadata(mounted.path("file/x")).unwrap_err().kind(), ErrorKind::NotADirectory);
}

impl Mounted {
    fn fs_inode(&self, parent: InodeNumber, name: &[u8]) -> u64 {
        self.fs().lookup_known(parent, name).unwrap().unwrap().node.unwrap().inode.0
    }
}

#[test]
fn a_read_only_mount_refuses_every_change_with_erofs_also_if_somebody_remounts_it() {
    let mounted = Mounted::with(false, Access::ReadOnly);
    mounted.file("file", b"content");
    let (file, new) = (mounted.path("file"), mounted.path("new"));
    let attempts: [(&str, std::io::Result<()>); 8] = [
        ("write", File::options().write(true).open(&file).map(drop)),
        ("create", File::create_new(&new).map(drop)),
        ("mkdir", std::fs::create_dir(&new)),
        ("unlink", std::fs::remove_file(&file)),
        ("rename", std::fs::rename(&file, &new)),
        ("link", std::fs::hard_link(&file, &new)),
        ("symlink", std::os::unix::fs::symlink("x", &new)),
        ("chmod", std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600))),
    ];
    for (what, outcome) in attempts {
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem, "{what}");
    }
    let set = rustix::fs::setxattr(&file, "user.x", b"1", rustix::fs::XattrFlags::empty());
    assert_eq!(set, Err(Errno::ROFS));
    rustix::mount::mount_remount(mounted.path(""), rustix::mount::MountFlags::empty(), "").unwrap();
    assert_eq!(std::fs::create_dir(&new).unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
}

#[test]
fn what_others_make_change_and_remove_shows() {
    let mounted = Mounted::new(false);
    assert!(!mounted.path("new").exists());
    let inode = mounted.file("new", b"one");
    eventually("the new name shows", || mounted.path("new").exists());
    eventually("its size shows", || mounted.path("new").metadata().unwrap().len() == 3);
    mounted.swarm().write(inode, b"second");
    eventually("its new size shows", || mounted.path("new").metadata().unwrap().len() == 6);
    assert_eq!(std::fs::read(mounted.path("new")).unwrap(), b"second");
    mounted.swarm().remove(ROOT, "new");
    eventually("it is gone", || !mounted.path("new").exists());
}

#[test]
fn names_and_attributes_are_asked_for_once_while_changes_are_pushed() {
    let mounted = Mounted::new(false);
    mounted.file("file", b"content");
    mounted.path("file").metadata().unwrap();
    assert!(!mounted.path("none").exists());
    let before = mounted.swarm().asked();
    for _ in 0..100 {
        mounted.path("file").metadata().unwrap();
        assert!(!mounted.path("none").exists());
    }
    assert_eq!(mounted.swarm().asked(), before);
}

#[test]
fn ten_thousand_entries_with_attributes_are_one_question_beside_that_for_the_folder() {
    let mounted = Mounted::new(false);
    let folder = mounted.swarm().make(ROOT, "folder", Kind::Directory);
    for index in 0..10_000 {
        mounted.swarm().make(folder, format!("{index:05}"), Kind::File);
    }
    let list = || {
        let mut count = 0;
        for entry in std::fs::read_dir(mounted.path("folder")).unwrap() {
            let entry = entry.unwrap();
            count += usize::from(entry.metadata().unwrap().is_file());
        }
        count
    };
    // The changes that made the folder are pushed beside this: wait until they are all seen.
    eventually("all changes are seen", || {
        let before = mounted.swarm().asked();
        list() == 10_000 && mounted.swarm().asked() == before
    });
    let before = mounted.swarm().asked();
    mounted.swarm().make(folder, "last", Kind::File);
    eventually("the last name shows", || list() == 10_001);
    // One for the folder itself, one for all its entries with their attributes.
    let asked = mounted.swarm().asked() - before;
    assert!((1..=2).contains(&asked), "{asked} questions");
    assert_eq!(list(), 10_001);
    assert_eq!(mounted.swarm().asked() - before, asked);
}

#[test]
fn an_open_sees_what_was_committed_before_it_and_an_open_file_keeps_its_version_until_then() {
    let mounted = Mounted::new(false);
    let inode = mounted.file("file", b"the first content");
    let old = File::open(mounted.path("file")).unwrap();
    let read = |file: &File, offset: u64| {
        let mut buffer = [0; 100];
        let length = file.read_at(&mut buffer, offset).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    assert_eq!(read(&old, 0), "the first content");
    // Nothing is pushed: only the open itself can find out.
    mounted.swarm().write_silently(inode, b"a second content, which is longer");
    assert_eq!(read(&old, 0), "the first content");
    let new = File::open(mounted.path("file")).unwrap();
    assert_eq!(read(&new, 0), "a second content, which is longer");
    assert_eq!(read(&new, 18), "which is longer");
    assert_eq!(new.metadata().unwrap().len(), 33);
    assert_eq!(read(&old, 0), "a second content, which is longer");
    mounted.swarm().write_silently(inode, b"short");
    let newest = File::open(mounted.path("file")).unwrap();
    assert_eq!(read(&newest, 0), "short");
    assert_eq!(newest.metadata().unwrap().len(), 5);
    assert_eq!(mounted.opens("cached"), 3);
}

#[test]
fn pages_outlive_the_handle_as_long_as_nothing_changes() {
    let mounted = Mounted::new(false);
    let inode = mounted.file("file", &[7; 100_000]);
    assert_eq!(std::fs::read(mounted.path("file")).unwrap(), [7; 100_000]);
    assert!(mounted.reads() > 0);
    // The changes that made the file are pushed beside this, and the first of them drops its pages.
    eventually("all changes are seen, and pages are kept", || {
        let before = mounted.reads();
        assert_eq!(std::fs::read(mounted.path("file")).unwrap(), [7; 100_000]);
        mounted.reads() == before
    });
    mounted.swarm().write_silently(inode, &[8; 100_000]);
    assert_eq!(std::fs::read(mounted.path("file")).unwrap(), [8; 100_000]);
}

#[test]
fn a_complete_file_is_read_by_the_kernel_alone() {
    let mounted = Mounted::new(false);
    let inode = mounted.file("file", &[7; 2_000_000]);
    mounted.swarm().complete.store(true, Ordering::SeqCst);
    let first = File::open(mounted.path("file")).unwrap();
    if let Some(reason) = mounted.fs().no_passthrough() {
        eprintln!("skipped: the kernel does not pass reads through here: {reason}");
        return;
    }
    assert_eq!(std::fs::read(mounted.path("file")).unwrap(), [7; 2_000_000]);
    assert_eq!((mounted.reads(), mounted.opens("passthrough")), (0, 2));
    // A newer version beside it comes from the daemon; the older handle stays with its own.
    mounted.swarm().write(inode, &[8; 1_500_000]);
    assert_eq!(std::fs::read(mounted.path("file")).unwrap(), [8; 1_500_000]);
    assert_eq!(mounted.opens("direct"), 1);
    let mut old = Vec::new();
    (&first).read_to_end(&mut old).unwrap();
    assert_eq!(old, [7; 2_000_000]);
    drop(first);
    eventually("the file is closed", || mounted.fs().open_handles() == 0);
    let before = mounted.reads();
    assert_eq!(std::fs::read(mounted.path("file")).unwrap(), [8; 1_500_000]);
    assert_eq!((mounted.reads(), mounted.opens("passthrough")), (before, 3));
}

#[test]
fn seeks_find_holes_and_attributes_tell_of_the_swarm() {
    let mounted = Mounted::new(false);
    let inode = mounted.swarm().make(ROOT, "file", Kind::File);
    mounted.swarm().write_after_hole(inode, &[1; 8192]);
    let file = File::open(mounted.path("file")).unwrap();
    let seek = |whence| rustix::fs::seek(&file, whence);
    assert_eq!(seek(rustix::fs::SeekFrom::Data(0)), Ok(8192));
    assert_eq!(seek(rustix::fs::SeekFrom::Hole(0)), Ok(0));
    assert_eq!(seek(rustix::fs::SeekFrom::Hole(9000)), Ok(16384));
    assert_eq!(seek(rustix::fs::SeekFrom::Data(16384)), Err(Errno::NXIO));
    (&file).seek(SeekFrom::Start(0)).unwrap();
    let mut bytes = Vec::new();
    (&file).read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, [vec![0; 8192], vec![1; 8192]].concat());

    mounted.file("plain", b"content");
    let path = mounted.path("plain");
    let mut value = [0; 4096];
    let length = rustix::fs::getxattr(&path, "user.swarm.hash", &mut value).unwrap();
    assert_eq!(value[..length], *blake3::hash(b"content").to_hex().as_bytes());
    assert_eq!(rustix::fs::listxattr(&path, &mut value), Ok(0), "a copy would take it along");
    assert_eq!(rustix::fs::getxattr(&path, "user.swarm.hash", &mut [0; 3]), Err(Errno::RANGE));
    assert_eq!(rustix::fs::getxattr(&path, "user.none", &mut value), Err(Errno::NODATA));
    let statfs = rustix::fs::statvfs(&path).unwrap();
    assert_eq!((statfs.f_blocks * statfs.f_frsize, statfs.f_bavail * statfs.f_frsize), (1 << 30, 1 << 29));
}

#[test]
fn a_read_that_nobody_answers_ends_in_an_error() {
    let mounted = Mounted::new(false);
    mounted.file("file", b"content");
    mounted.swarm().stuck.store(true, Ordering::SeqCst);
    let began = Instant::now();
    let error = std::fs::read(mounted.path("file")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::IO.raw_os_error()), "{error}");
    assert!(began.elapsed() >= Duration::from_secs(5), "only after its time");
}

#[test]
fn an_operation_that_panics_ends_in_an_error_and_the_others_go_on() {
    let mounted = Mounted::new(false);
    mounted.file("good", b"bytes");
    mounted.file("bad", b"bytes");
    mounted.swarm().panics.store(true, Ordering::SeqCst);
    let bad = File::open(mounted.path("bad")).unwrap();
    mounted.swarm().panics.store(false, Ordering::SeqCst);
    // More often than the kernel's requests have threads.
    for _ in 0..8 {
        let error = bad.read_at(&mut [0; 5], 0).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::IO.raw_os_error()));
    }
    assert_eq!(std::fs::read(mounted.path("good")).unwrap(), b"bytes");
}

#[test]
fn with_the_tracker_away_open_files_go_on_and_names_fail() {
    let mounted = Mounted::new(false);
    mounted.file("file", &[7; 300_000]);
    let file = File::open(mounted.path("file")).unwrap();
    mounted.swarm().away.store(true, Ordering::SeqCst);
    mounted.swarm().end_watches();
    eventually("names fail", || std::fs::metadata(mounted.path("file")).is_err());
    let mut bytes = Vec::new();
    (&file).read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, [7; 300_000]);
    mounted.swarm().away.store(false, Ordering::SeqCst);
    eventually("names work again", || std::fs::metadata(mounted.path("file")).is_ok());
}

#[test]
fn a_folder_in_use_is_named_with_its_user_and_may_be_detached() {
    let mounted = Mounted::new(false);
    mounted.file("file", b"content");
    let file = File::open(mounted.path("file")).unwrap();
    let refused = unmount(mounted.folder.path(), WhenBusy::Refuse).unwrap_err().to_string();
    assert!(refused.contains("is in use by") && refused.contains(&format!("({})", std::process::id())), "{refused}");
    drop(file);
}
