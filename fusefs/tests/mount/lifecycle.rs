//! Mounting and unmounting in one process, and what stands in the way of it.

use std::fs::File;
use std::os::unix::fs::MetadataExt;

use swarm_fusefs::mount::status;
use swarm_fusefs::mount::{FolderError, MountConfig, MountError, table};

use super::swarm::{Swarm, noise};

#[test]
fn a_folder_that_is_absent_is_made_and_stays_empty_after_the_unmount() {
    let swarm = Swarm::new(1);
    swarm.publish("/file", b"content");
    let mounted = swarm.mount("deep");
    let folder = mounted.folder.clone();
    assert!(mounted.mount.as_ref().unwrap().notes().iter().any(|note| note.contains("made the folder")));
    assert!(table::at(&folder).unwrap().unwrap().is_ours());
    mounted.unmount();
    assert!(table::at(&folder).unwrap().is_none());
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
}

#[test]
fn a_start_that_fails_leaves_nothing_behind() {
    let swarm = Swarm::new(1);
    let none = MountConfig { tracker: format!("{}/none", swarm.address()), ..swarm.config("cache") };
    let error = swarm.try_mount("m", none).err().unwrap();
    assert!(matches!(error, MountError::NoSuchFolder(_)), "{error}");
    assert!(!swarm.folder("m").exists());
    let nowhere = MountConfig { tracker: "127.0.0.1:1".to_owned(), ..swarm.config("cache") };
    let error = swarm.try_mount("m", nowhere).err().unwrap();
    assert!(matches!(error, MountError::Tracker(_)), "{error}");
    assert!(!swarm.folder("m").exists());
    // The cache's lock is free again.
    swarm.publish("/file", b"content");
    assert!(swarm.mount_with("m", swarm.config("cache")).path("file").exists());
}

#[test]
fn what_is_mounted_not_empty_or_in_use_is_refused() {
    let swarm = Swarm::new(1);
    let mounted = swarm.mount("m");
    let error = swarm.try_mount("m", swarm.config("other")).err().unwrap();
    assert!(matches!(error, MountError::Folder(FolderError::Mounted { .. })), "{error}");
    let error = swarm.try_mount("n", swarm.config("m-cache")).err().unwrap();
    assert!(matches!(error, MountError::Cache(_)), "{error}");
    drop(mounted);
    std::fs::create_dir(swarm.folder("full")).unwrap();
    std::fs::write(swarm.folder("full").join("file"), "mine").unwrap();
    let error = swarm.try_mount("full", swarm.config("other")).err().unwrap();
    assert!(matches!(error, MountError::Folder(FolderError::NotEmpty(_))), "{error}");
    let hidden = MountConfig { nonempty: true, ..swarm.config("other") };
    swarm.mount_with("full", hidden).unmount();
    assert_eq!(std::fs::read(swarm.folder("full").join("file")).unwrap(), b"mine");
}

#[test]
fn a_part_of_the_swarm_is_a_root_of_its_own() {
    let swarm = Swarm::new(1);
    swarm.make_folder("/a");
    swarm.make_folder("/a/b");
    swarm.publish("/a/b/file", b"content");
    swarm.publish("/a/b/c", b"1");
    let config = MountConfig { tracker: format!("{}/a/b", swarm.address()), ..swarm.config("cache") };
    let mounted = swarm.mount_with("m", config);
    assert_eq!(std::fs::read(mounted.path("file")).unwrap(), b"content");
    let mut names: Vec<_> =
        std::fs::read_dir(&mounted.folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["c", "file"]);
    assert_eq!(mounted.folder.metadata().unwrap().ino(), 1);
    swarm.publish("/a/b/new", b"2");
    super::swarm::eventually("changes of the root show", || mounted.path("new").exists());
}

#[test]
fn a_mount_in_use_ends_when_its_process_wants_to() {
    let swarm = Swarm::new(1);
    swarm.publish("/file", &noise(1, 100_000));
    let mounted = swarm.mount("m");
    let folder = mounted.folder.clone();
    let file = File::open(mounted.path("file")).unwrap();
    mounted.unmount();
    assert!(table::at(&folder).unwrap().is_none());
    drop(file);
}

#[test]
fn a_mount_says_what_it_is() {
    let swarm = Swarm::new(1);
    swarm.publish("/file", &noise(1, 100_000));
    let mounted = swarm.mount("m");
    std::fs::read(mounted.path("file")).unwrap();
    let status = status::of_mount(&mounted.folder).unwrap();
    assert_eq!((status.pid, status.source), (std::process::id(), swarm.address()));
    assert!(status.live && status.reads_total > 0 && status.read_bytes_total >= 100_000);
    assert_eq!(status.mountpoint, mounted.folder.canonicalize().unwrap().display().to_string());
    assert!(status.peer_address.is_some_and(|address| address.starts_with("127.0.0.1:")));
    assert!(status::of_mount(&swarm.folder("m-cache")).is_none());
}
