//! Everything that changes names and attributes, as programs do it.

use std::ffi::OsStr;
use std::fs::Metadata;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, RenameFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use swarm_fusefs::mount::MountConfig;

use super::swarm::{Mounted, Swarm, eventually};

fn at(path: &Path) -> Metadata {
    path.symlink_metadata().unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn errno<T: std::fmt::Debug>(outcome: std::io::Result<T>) -> Errno {
    Errno::from_io_error(&outcome.unwrap_err()).expect("an error of the kernel")
}

fn file(path: &Path) -> rustix::io::Result<()> {
    rustix::fs::mknodat(CWD, path, FileType::RegularFile, Mode::from_raw_mode(0o644), 0)
}

fn names(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = names.map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    names
}

fn nanoseconds(metadata: &Metadata) -> i64 {
    metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec()
}

/// Does something in a folder, and checks that its time of change and its links show that at once.
#[track_caller]
fn changes(folder: &Path, gained_folders: i64, work: impl FnOnce()) {
    let before = at(folder);
    work();
    let after = at(folder);
    assert!(nanoseconds(&after) > nanoseconds(&before), "the time of its last change");
    assert_eq!(after.nlink().cast_signed() - before.nlink().cast_signed(), gained_folders, "its links");
}

fn mounted(swarm: &Swarm) -> Mounted<'_> {
    swarm.make_folder("/folder");
    swarm.mount("m")
}

#[test]
fn folders_are_made_and_removed() {
    let swarm = Swarm::new(0);
    let mounted = mounted(&swarm);
    let folder = mounted.path("folder");
    let new = folder.join("new");
    assert!(!new.exists());
    let began = SystemTime::now() - Duration::from_secs(1);
    changes(&folder, 1, || std::fs::create_dir(&new).unwrap());
    let made = at(&new);
    assert!(made.is_dir() && made.nlink() == 2 && made.modified().unwrap() > began);
    assert_eq!(made.uid(), rustix::process::getuid().as_raw());
    assert_eq!(names(&folder), ["new"]);
    assert_eq!(errno(std::fs::create_dir(&new)), Errno::EXIST);
    assert_eq!(errno(std::fs::create_dir(folder.join("none/x"))), Errno::NOENT);
    assert_eq!(errno(std::fs::create_dir(folder.join("x".repeat(256)))), Errno::NAMETOOLONG);
    std::fs::create_dir(new.join("below")).unwrap();
    assert_eq!(errno(std::fs::remove_dir(&new)), Errno::NOTEMPTY);
    assert_eq!(errno(std::fs::remove_file(&new)), Errno::ISDIR);
    changes(&new, -1, || std::fs::remove_dir(new.join("below")).unwrap());
    changes(&folder, -1, || std::fs::remove_dir(&new).unwrap());
    assert!(!new.exists());
    assert_eq!(names(&folder), [""; 0]);
    assert_eq!(errno(std::fs::remove_dir(&new)), Errno::NOENT);
}

#[test]
fn files_pipes_sockets_and_links_are_made_and_removed() {
    let swarm = Swarm::new(0);
    let mounted = mounted(&swarm);
    let folder = mounted.path("folder");
    let paths = ["a file", "fifo", "socket", "symlink"].map(|name| folder.join(name));
    let [empty, fifo, socket, symlink] = &paths;
    changes(&folder, 0, || file(empty).unwrap());
    changes(&folder, 0, || rustix::fs::mknodat(CWD, fifo, FileType::Fifo, Mode::RWXU, 0).unwrap());
    changes(&folder, 0, || drop(std::os::unix::net::UnixListener::bind(socket).unwrap()));
    changes(&folder, 0, || std::os::unix::fs::symlink("../there", symlink).unwrap());
    let mode = |path| at(path).mode() & 0o7777;
    assert!(at(empty).is_file() && at(empty).len() == 0 && at(empty).nlink() == 1);
    assert_eq!(std::fs::read(empty).unwrap(), b"");
    assert!(at(fifo).file_type().is_fifo() && mode(fifo) == 0o700);
    assert!(at(socket).file_type().is_socket());
    assert_eq!(std::fs::read_link(symlink).unwrap(), Path::new("../there"));
    assert_eq!(mode(symlink), 0o777);
    assert_eq!(names(&folder), ["a file", "fifo", "socket", "symlink"]);
    assert_eq!(file(fifo), Err(Errno::EXIST));
    assert_eq!(errno(std::os::unix::fs::symlink("x", empty)), Errno::EXIST);
    assert_eq!(errno(std::fs::remove_dir(empty)), Errno::NOTDIR);
    assert_eq!(file(&empty.join("below")), Err(Errno::NOTDIR));
    for path in &paths {
        changes(&folder, 0, || std::fs::remove_file(path).unwrap());
        assert_eq!(errno(std::fs::remove_file(path)), Errno::NOENT);
    }
    assert_eq!(names(&folder), [""; 0]);
}

#[test]
fn a_pipe_and_a_socket_carry_bytes() {
    use std::io::{Read, Write};
    let swarm = Swarm::new(0);
    let mounted = swarm.mount("m");
    let (fifo, socket) = (mounted.path("fifo"), mounted.path("s"));
    rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::RWXU, 0).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| std::fs::File::options().write(true).open(&fifo).unwrap().write_all(b"through").unwrap());
        assert_eq!(std::fs::read(&fifo).unwrap(), b"through");
    });
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let mut caller = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    listener.accept().unwrap().0.write_all(b"hello").unwrap();
    let mut text = String::new();
    caller.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
}

#[test]
fn names_are_moved_replaced_and_swapped() {
    let swarm = Swarm::new(1);
    let mounted = mounted(&swarm);
    let folder = mounted.path("folder");
    let path = |name: &str| folder.join(name);
    for name in ["one", "two"] {
        std::fs::create_dir(path(name)).unwrap();
        file(&path(name).join("file")).unwrap();
    }
    let (from, to) = (path("one/file"), path("two/file"));
    let (moved, replaced) = (at(&from).ino(), at(&to).ino());
    let rename = |from: &Path, to: &Path, flags| rustix::fs::renameat_with(CWD, from, CWD, to, flags);
    assert_eq!(rename(&from, &to, RenameFlags::NOREPLACE), Err(Errno::EXIST));
    assert_eq!(rename(&from, &path("none"), RenameFlags::EXCHANGE), Err(Errno::NOENT));
    assert_eq!(rename(&from, &path("x"), RenameFlags::WHITEOUT), Err(Errno::INVAL));

    rename(&from, &to, RenameFlags::EXCHANGE).unwrap();
    assert_eq!((at(&from).ino(), at(&to).ino()), (replaced, moved));
    rename(&from, &to, RenameFlags::EXCHANGE).unwrap();
    changes(&path("one"), 0, || std::fs::rename(&from, &to).unwrap());
    assert!(!from.exists() && at(&to).ino() == moved);
    assert_eq!((names(&path("one")), names(&path("two"))), (vec![], vec!["file".to_owned()]));
    assert_eq!(errno(std::fs::rename(&from, &to)), Errno::NOENT);

    // A folder with something in it is not replaced, an empty one is.
    assert_eq!(errno(std::fs::rename(path("one"), path("two"))), Errno::NOTEMPTY);
    assert_eq!(errno(std::fs::rename(&to, path("one"))), Errno::ISDIR);
    assert_eq!(errno(std::fs::rename(path("one"), &to)), Errno::NOTDIR);
    assert_eq!(errno(std::fs::rename(path("two"), path("two/file/x"))), Errno::NOTDIR);
    assert_eq!(errno(std::fs::rename(&folder, path("two/x"))), Errno::INVAL);
    changes(&folder, -1, || std::fs::rename(path("two"), path("one")).unwrap());
    assert_eq!(at(&path("one/file")).ino(), moved);

    // Into another folder: both count their subfolders anew.
    std::fs::create_dir(path("other")).unwrap();
    changes(&path("other"), 1, || changes(&folder, -1, || std::fs::rename(path("one"), path("other/one")).unwrap()));
    rename(&path("other/one/file"), &path("new"), RenameFlags::NOREPLACE).unwrap();
    assert_eq!(names(&folder), ["new", "other"]);
    assert_eq!(at(&path("new")).ino(), moved);
}

#[test]
fn a_file_has_as_many_names_as_it_is_given() {
    let swarm = Swarm::new(1);
    let mounted = mounted(&swarm);
    swarm.publish("/folder/file", b"content");
    let path = |name: &str| mounted.path("folder").join(name);
    changes(&path(""), 0, || std::fs::hard_link(path("file"), path("link")).unwrap());
    assert_eq!((at(&path("file")).nlink(), at(&path("link")).ino()), (2, at(&path("file")).ino()));
    assert_eq!(std::fs::read(path("link")).unwrap(), b"content");
    assert_eq!(errno(std::fs::hard_link(path("file"), path("link"))), Errno::EXIST);
    assert_eq!(errno(std::fs::hard_link(path(""), mounted.path("x"))), Errno::PERM);
    // Two names of one file: nothing is renamed.
    std::fs::rename(path("file"), path("link")).unwrap();
    assert_eq!(names(&path("")), ["file", "link"]);
    std::fs::remove_file(path("file")).unwrap();
    assert_eq!(at(&path("link")).nlink(), 1);
    assert_eq!(std::fs::read(path("link")).unwrap(), b"content");
}

#[test]
fn modes_owners_and_times_are_set() {
    let swarm = Swarm::new(0);
    let mounted = mounted(&swarm);
    let path = mounted.path("folder/file");
    file(&path).unwrap();
    let mode = || at(&path).mode() & 0o7777;
    let chmod = |mode| std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
    for wanted in [0o600, 0o4755, 0o2755, 0o1644, 0o000, 0o644] {
        let before = at(&path);
        chmod(wanted);
        assert_eq!(mode(), wanted);
        assert!((at(&path).ctime(), at(&path).ctime_nsec()) > (before.ctime(), before.ctime_nsec()));
    }
    chmod(0o6755);
    rustix::fs::chown(&path, Some(Uid::from_raw(1_234)), Some(Gid::from_raw(5_678))).unwrap();
    assert_eq!((at(&path).uid(), at(&path).gid(), mode()), (1_234, 5_678, 0o755));
    rustix::fs::chown(&path, None, Some(Gid::from_raw(9))).unwrap();
    assert_eq!((at(&path).uid(), at(&path).gid()), (1_234, 9));

    let set = |accessed: Timespec, modified: Timespec| {
        let times = Timestamps { last_access: accessed, last_modification: modified };
        rustix::fs::utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    };
    let time = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
    set(time(1, 2), time(1_600_000_000, 123_456_789));
    assert_eq!((at(&path).mtime(), at(&path).mtime_nsec()), (1_600_000_000, 123_456_789));
    set(time(0, rustix::fs::UTIME_OMIT), time(-5, 250));
    assert_eq!((at(&path).mtime(), at(&path).mtime_nsec()), (-5, 250), "before 1970");
    let before = SystemTime::now();
    set(time(0, rustix::fs::UTIME_NOW), time(0, rustix::fs::UTIME_NOW));
    let after = at(&path).modified().unwrap();
    assert!(before <= after && after <= SystemTime::now());
    assert_eq!(errno(std::fs::set_permissions(mounted.path("none"), PermissionsExt::from_mode(0o600))), Errno::NOENT);
}

#[test]
fn names_are_bytes() {
    let swarm = Swarm::new(0);
    let mounted = mounted(&swarm);
    let odd: [&[u8]; 5] = [b"new\nline", b"\xff\xfe", b" ", "\u{e9}\u{1f980}".as_bytes(), &[b'y'; 255]];
    for name in odd {
        let path = mounted.path("folder").join(OsStr::from_bytes(name));
        file(&path).unwrap();
        let moved = path.with_file_name("moved");
        std::fs::rename(&path, &moved).unwrap();
        std::fs::rename(&moved, &path).unwrap();
        assert!(at(&path).is_file());
    }
    assert_eq!(std::fs::read_dir(mounted.path("folder")).unwrap().count(), odd.len());
}

#[test]
fn a_large_folder_is_filled_without_a_question_for_each_name_and_removed() {
    let swarm = Swarm::new(0);
    let mounted = mounted(&swarm);
    let folder = mounted.path("folder");
    names(&folder);
    let count = 2_000;
    let lookups = mounted.asked("lookup") + mounted.asked("read_dir");
    for index in 0..count {
        file(&folder.join(format!("{index:05}"))).unwrap();
        if index % 500 == 0 {
            assert_eq!(names(&folder).len(), index + 1);
        }
    }
    // Whether a name is free is known from the listing.
    let lookups = mounted.asked("lookup") + mounted.asked("read_dir") - lookups;
    assert!(lookups <= 10, "{lookups} questions");
    assert_eq!(names(&folder).len(), count);
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(!folder.exists());
}

#[test]
fn folders_that_are_made_and_removed_side_by_side_are_all_counted() {
    let swarm = Swarm::new(0);
    let mounted = mounted(&swarm);
    let folder = mounted.path("folder");
    let side_by_side = |work: &(dyn Fn(&Path) + Sync)| {
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let folder = &folder;
                scope.spawn(move || (0..40).for_each(|index| work(&folder.join(format!("{thread}-{index}")))));
            }
        });
    };
    side_by_side(&|path| std::fs::create_dir(path).unwrap());
    assert_eq!((at(&folder).nlink(), names(&folder).len()), (322, 320));
    side_by_side(&|path| std::fs::rename(path, path.with_extension("moved")).unwrap());
    assert_eq!((at(&folder).nlink(), names(&folder).len()), (322, 320));
    side_by_side(&|path| std::fs::remove_dir(path.with_extension("moved")).unwrap());
    assert_eq!((at(&folder).nlink(), names(&folder).len()), (2, 0));
}

#[test]
fn the_file_that_says_how_the_mount_is_cannot_be_changed() {
    let swarm = Swarm::new(0);
    let mounted = mounted(&swarm);
    let status = mounted.path(".swarmfs-status");
    let other = mounted.path("folder/other");
    assert_eq!(errno(std::fs::remove_file(&status)), Errno::PERM);
    assert_eq!(errno(std::fs::rename(&status, &other)), Errno::PERM);
    assert_eq!(errno(std::fs::hard_link(&status, &other)), Errno::PERM);
    assert_eq!(errno(std::fs::set_permissions(&status, PermissionsExt::from_mode(0o777))), Errno::PERM);
    file(&other).unwrap();
    assert_eq!(errno(std::fs::rename(&other, &status)), Errno::PERM);
    assert_eq!(errno(std::fs::create_dir(&status)), Errno::EXIST);
    file(&mounted.path("folder/.swarmfs-status")).unwrap();
    assert!(!std::fs::read(&status).unwrap().is_empty());
}

#[test]
fn two_mounts_see_each_others_names_within_a_second() {
    let swarm = Swarm::new(0);
    swarm.make_folder("/folder");
    let (one, two) = (swarm.mount("one"), swarm.mount("two"));
    let within_a_second = |what: &str, holds: &dyn Fn() -> bool| {
        let began = Instant::now();
        eventually(what, holds);
        assert!(began.elapsed() < Duration::from_secs(1), "{what} took {:?}", began.elapsed());
    };
    for (round, (here, there)) in [(&one, &two), (&two, &one)].into_iter().cycle().take(8).enumerate() {
        let name = |name: &str| format!("folder/{name}-{round}");
        let links = || at(&there.path("folder")).nlink();
        let (links_before, listed) = (links(), names(&there.path("folder")).len());
        assert!(!there.path(name("a")).exists() && !there.path(name("b")).exists());
        std::fs::create_dir(here.path(name("a"))).unwrap();
        within_a_second("a new folder", &|| there.path(name("a")).is_dir() && links() == links_before + 1);
        std::fs::rename(here.path(name("a")), here.path(name("b"))).unwrap();
        within_a_second("its new name", &|| !there.path(name("a")).exists() && there.path(name("b")).exists());
        within_a_second("both in the listing", &|| names(&there.path("folder")).len() == listed + 1);
        std::fs::set_permissions(here.path(name("b")), PermissionsExt::from_mode(0o711)).unwrap();
        within_a_second("its new mode", &|| at(&there.path(name("b"))).mode() & 0o7777 == 0o711);
        std::fs::remove_dir(here.path(name("b"))).unwrap();
        within_a_second("its end", &|| !there.path(name("b")).exists() && links() == links_before);
    }
}

#[test]
fn of_two_mounts_that_make_one_name_one_makes_it_and_both_see_it_at_once() {
    let swarm = Swarm::new(0);
    swarm.make_folder("/folder");
    let (one, two) = (swarm.mount("one"), swarm.mount("two"));
    for round in 0..50 {
        let name = format!("folder/{round}");
        let paths = [one.path(&name), two.path(&name)];
        let make = |path: &Path| {
            let made = std::fs::create_dir(path);
            // Whoever is refused looks at once, and finds it; the kernel hears of it from the daemon.
            eventually("it is there", || path.exists());
            made.is_ok()
        };
        let made = std::thread::scope(|scope| {
            let other = scope.spawn(|| make(&paths[1]));
            [make(&paths[0]), other.join().unwrap()]
        });
        assert_eq!(made.iter().filter(|made| **made).count(), 1, "round {round}");
        let remove = |path: &Path| std::fs::remove_dir(path).is_ok();
        let removed = std::thread::scope(|scope| {
            let other = scope.spawn(|| remove(&paths[1]));
            [remove(&paths[0]), other.join().unwrap()]
        });
        assert_eq!(removed.iter().filter(|removed| **removed).count(), 1, "round {round}");
        eventually("it is gone", || paths.iter().all(|path| !path.exists()));
    }
}

#[test]
fn what_somebody_removed_is_stale_only_until_it_is_looked_up_again() {
    let swarm = Swarm::new(1);
    let mounted = mounted(&swarm);
    let folder = mounted.path("folder/below");
    for round in 0..20 {
        swarm.make_folder("/folder/below");
        eventually("it is there", || folder.is_dir());
        swarm.remove_folder("/folder/below");
        // The parent is gone for the tracker, and perhaps not yet for this mount.
        let outcome = errno(std::fs::create_dir(folder.join("new")));
        assert!(matches!(outcome, Errno::NOENT | Errno::STALE), "round {round}: {outcome:?}");
        eventually("it is gone", || !folder.exists());
    }
}

#[test]
fn changes_without_a_tracker_fail_in_time() {
    let mut swarm = Swarm::new(0);
    swarm.make_folder("/folder");
    let folder = swarm.folder("m");
    let config = MountConfig { offline_ok: true, ..swarm.impatient("cache") };
    let mount = swarm.block_on(swarm_fusefs::mount::Mount::start(config, &folder, false)).unwrap();
    assert!(!folder.join("folder/new").exists());
    swarm.stop_tracker();
    let began = Instant::now();
    assert_eq!(errno(std::fs::create_dir(folder.join("folder/new"))), Errno::TIMEDOUT);
    assert_eq!(errno(std::fs::remove_dir(folder.join("folder"))), Errno::TIMEDOUT);
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}: two seconds each", began.elapsed());
    swarm.block_on(mount.unmount()).unwrap();
}

#[test]
fn a_read_only_mount_changes_nothing() {
    let swarm = Swarm::new(0);
    let mounted = swarm.mount_with("m", MountConfig { read_only: true, ..swarm.config("cache") });
    assert_eq!(errno(std::fs::create_dir(mounted.path("new"))), Errno::ROFS);
}

#[test]
fn a_folder_is_synced() {
    let swarm = Swarm::new(0);
    let mounted = mounted(&swarm);
    std::fs::create_dir(mounted.path("folder/new")).unwrap();
    let folder = std::fs::File::open(mounted.path("folder")).unwrap();
    folder.sync_all().unwrap();
    folder.sync_data().unwrap();
    assert!(mounted.path("folder/new").is_dir());
}
