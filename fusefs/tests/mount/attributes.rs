//! Extended attributes, devices, and what a folder hands down to what is made in it.

use std::fs::File;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, XattrFlags, getxattr, listxattr, makedev,
    removexattr, setxattr,
};
use rustix::io::Errno;
use swarm_fusefs::mount::MountConfig;

use super::swarm::{Mounted, Swarm, eventually, start};

fn with_attributes<'s>(swarm: &'s Swarm, name: &str) -> Mounted<'s> {
    swarm.mount_with(name, MountConfig { xattr: true, ..swarm.config(&format!("{name}-cache")) })
}

fn file(path: &Path) {
    rustix::fs::mknodat(CWD, path, FileType::RegularFile, Mode::from_raw_mode(0o644), 0).unwrap();
}

fn value(path: &Path, name: &str) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0; 16 * 1024];
    let length = getxattr(path, name, &mut value)?;
    value.truncate(length);
    Ok(value)
}

fn listed(path: &Path) -> Vec<String> {
    let mut names = vec![0; 64 * 1024];
    let length = listxattr(path, &mut names).unwrap();
    let names = String::from_utf8(names[..length].to_vec()).unwrap();
    names.split_terminator('\0').map(str::to_owned).collect()
}

#[test]
fn extended_attributes_are_stored_listed_and_removed() {
    let swarm = Swarm::new(0);
    let mounted = with_attributes(&swarm, "m");
    let (path, folder) = (mounted.path("file"), mounted.path("folder"));
    file(&path);
    std::fs::create_dir(&folder).unwrap();
    for path in [&path, &folder] {
        let set = |name: &str, value: &[u8], flags| setxattr(path, name, value, flags);
        assert_eq!(value(path, "user.a"), Err(Errno::NODATA));
        assert_eq!(set("user.a", b"1", XattrFlags::REPLACE), Err(Errno::NODATA));
        set("user.b", b"\0binary\xff", XattrFlags::CREATE).unwrap();
        set("user.a", b"1", XattrFlags::empty()).unwrap();
        assert_eq!(set("user.a", b"2", XattrFlags::CREATE), Err(Errno::EXIST));
        set("user.a", b"", XattrFlags::REPLACE).unwrap();
        assert_eq!(
            (value(path, "user.a").unwrap(), value(path, "user.b").unwrap()),
            (vec![], b"\0binary\xff".to_vec())
        );
        assert_eq!(listed(path), ["user.a", "user.b"]);
        assert_eq!(getxattr(path, "user.b", &mut [0; 3]), Err(Errno::RANGE));
        removexattr(path, "user.b").unwrap();
        assert_eq!(removexattr(path, "user.b"), Err(Errno::NODATA));
        assert_eq!(listed(path), ["user.a"]);
        assert_eq!(set("user.swarm.hash", b"x", XattrFlags::empty()), Err(Errno::PERM));
        assert_eq!(removexattr(path, "user.swarm.hash"), Ok(()));
        assert_eq!(set("trusted.x", b"x", XattrFlags::empty()), Err(Errno::OPNOTSUPP));
        assert_eq!(value(path, "trusted.x"), Err(Errno::NODATA));
    }
}

#[test]
fn extended_attributes_have_a_limit_together_and_none_for_each() {
    let swarm = Swarm::new(0);
    let mounted = with_attributes(&swarm, "m");
    let path = mounted.path("file");
    file(&path);
    let longest = format!("user.{}", "n".repeat(250));
    setxattr(&path, &longest, &[1; 4_000], XattrFlags::empty()).unwrap();
    setxattr(&path, "user.x", &[2; 3_900], XattrFlags::empty()).unwrap();
    assert_eq!(setxattr(&path, "user.y", &[3; 100], XattrFlags::empty()), Err(Errno::NOSPC));
    assert_eq!(setxattr(&path, "user.y", &[3; 9_000], XattrFlags::empty()), Err(Errno::NOSPC));
    assert_eq!(listed(&path).len(), 2);
    removexattr(&path, longest.as_str()).unwrap();
    setxattr(&path, "user.y", &[3; 4_000], XattrFlags::empty()).unwrap();
    assert_eq!(value(&path, "user.y").unwrap(), [3; 4_000]);
}

#[test]
fn another_mount_sees_attributes_within_a_second() {
    let swarm = Swarm::new(0);
    let (one, two) = (with_attributes(&swarm, "one"), with_attributes(&swarm, "two"));
    file(&one.path("file"));
    eventually("the file", || two.path("file").exists());
    assert_eq!(value(&two.path("file"), "user.a"), Err(Errno::NODATA));
    setxattr(one.path("file"), "user.a", b"1", XattrFlags::empty()).unwrap();
    eventually("its attribute", || value(&two.path("file"), "user.a").is_ok_and(|value| value == b"1"));
}

#[test]
fn devices_are_stored_and_cannot_be_opened() {
    let swarm = Swarm::new(0);
    let mounted = swarm.mount("m");
    let (null, disk) = (mounted.path("null"), mounted.path("disk"));
    rustix::fs::mknodat(CWD, &null, FileType::CharacterDevice, Mode::RWXU, makedev(1, 3)).unwrap();
    rustix::fs::mknodat(CWD, &disk, FileType::BlockDevice, Mode::RUSR, makedev(259, 70_000)).unwrap();
    let at = |path: &Path| path.metadata().unwrap();
    assert!(at(&null).file_type().is_char_device() && at(&disk).file_type().is_block_device());
    assert_eq!((at(&null).rdev(), at(&disk).rdev()), (makedev(1, 3), makedev(259, 70_000)));
    assert_eq!(at(&null).mode() & 0o7777, 0o700);
    assert_eq!(Errno::from_io_error(&std::fs::read(&null).unwrap_err()), Some(Errno::ACCESS), "nodev");
}

#[test]
fn a_folder_with_the_set_group_id_bit_hands_its_group_down() {
    let swarm = Swarm::new(0);
    let mounted = swarm.mount("m");
    let folder = mounted.path("folder");
    std::fs::create_dir(&folder).unwrap();
    rustix::fs::chown(&folder, None, Some(Gid::from_raw(4_321))).unwrap();
    std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o2775)).unwrap();
    file(&folder.join("file"));
    std::fs::create_dir(folder.join("below")).unwrap();
    let at = |name: &str| folder.join(name).metadata().unwrap();
    assert_eq!((at("file").gid(), at("below").gid()), (4_321, 4_321));
    assert_eq!((at("file").mode() & 0o7000, at("below").mode() & 0o7000), (0, 0o2000));
}

/// A program of a user who is nobody.
fn as_nobody(program: &[&str], out: std::process::Stdio) {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).args(program);
    assert!(start(command.stdout(out)).unwrap().wait().unwrap().success());
}

/// Write to an open file as that user.
fn write_as_nobody(file: &File) {
    as_nobody(&["head", "--bytes=4096", "/dev/zero"], file.try_clone().unwrap().into());
}

#[test]
fn a_write_by_another_user_takes_the_set_id_bits_away_whatever_the_handle() {
    let swarm = Swarm::new(1);
    let config = |name| MountConfig { allow_other: true, ..swarm.config(name) };
    let mounted = swarm.mount_with("m", config("m-cache"));
    let passing = swarm.mount_with("passing", MountConfig { passthrough_writes: true, ..config("passing-cache") });
    let flags = [OFlags::empty(), OFlags::APPEND, OFlags::DIRECT, OFlags::SYNC, OFlags::APPEND | OFlags::DIRECT];
    let modes = [(0o4757, 0o757), (0o6777, 0o777), (0o2757, 0o757), (0o2747, 0o2747), (0o644, 0o644)];
    for (index, flags) in flags.into_iter().enumerate() {
        for (before, after) in modes {
            for (name, mount) in [("m", &mounted), ("passing", &passing)] {
                let path = mount.path(format!("{index}-{before:o}-{name}"));
                let opened = rustix::fs::open(&path, flags | OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).unwrap();
                let opened = File::from(opened);
                let is = || path.metadata().unwrap().mode() & 0o7777;
                std::fs::set_permissions(&path, PermissionsExt::from_mode(before)).unwrap();
                rustix::io::write(&opened, &[1; 4096]).unwrap();
                assert_eq!(is(), before, "root wrote with {flags:?}");
                write_as_nobody(&opened);
                assert_eq!(is(), after, "{before:o} with {flags:?} on {name}");
                assert!(path.metadata().unwrap().len() >= 4096);
                if before & 0o2 == 0 {
                    continue;
                }
                drop(opened);
                std::fs::set_permissions(&path, PermissionsExt::from_mode(before)).unwrap();
                as_nobody(&["sh", "-c", ": > \"$0\"", path.to_str().unwrap()], std::process::Stdio::null());
                assert_eq!((is(), path.metadata().unwrap().len()), (after, 0), "{before:o} truncated on {name}");
            }
        }
    }
}

#[test]
fn the_time_of_access_is_as_it_was_set() {
    let swarm = Swarm::new(0);
    let mounted = swarm.mount("m");
    let path = mounted.path("file");
    file(&path);
    let accessed = Timespec { tv_sec: 1_500_000_000, tv_nsec: 7 };
    let times = Timestamps { last_access: accessed, last_modification: Timespec { tv_sec: 5, tv_nsec: 0 } };
    rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty()).unwrap();
    let at = path.metadata().unwrap();
    assert_eq!((at.atime(), at.atime_nsec(), at.mtime()), (1_500_000_000, 7, 5));
    std::fs::read(&path).unwrap();
    assert_eq!(path.metadata().unwrap().accessed().unwrap(), UNIX_EPOCH + Duration::new(1_500_000_000, 7));
}
