//! Disks fill up while files are written: at a seeder, at all of them, and below the spool (root: it mounts tmpfs).

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use crate::harness::data::{close, noise};
use crate::harness::process::{binary, force_unmount, free_port};
use crate::harness::{MountOptions, Swarm, eventually};

const MIB: usize = 1024 * 1024;
const NO_SPACE: Option<i32> = Some(28);

#[test]
fn a_log_that_cannot_be_written_ends_nothing() {
    let swarm = Swarm::start(0);
    let full = || OpenOptions::new().write(true).open("/dev/full").unwrap();
    let (port, address) = (free_port(), |port| format!("127.0.0.1:{port}"));
    let start = |program: &str, folder: &str, words: &[&str]| {
        let data = swarm.scratch(folder);
        let mut command = Command::new(binary(program));
        command.args(words).args(["--log", "debug", "--admin-listen", "off", "--data"]).arg(data);
        Background(command.stdout(full()).stderr(full()).spawn().unwrap())
    };
    let _tracker = start("swarm-tracker", "tracker", &["--listen", &address(port)]);
    let tracker = format!("swarm://{}", address(port));
    let _seeder = start("swarm-seeder", "seeder", &["--listen", &address(free_port()), "--tracker", &tracker]);
    std::fs::write(swarm.scratch("file"), b"text").unwrap();
    let file = swarm.scratch("file").to_string_lossy().into_owned();
    eventually("both serve", Duration::from_secs(30), || {
        swarm.try_cli(&["-t", &tracker, "put", &file, "/file"]).status.success()
    });
    assert_eq!(swarm.try_cli(&["-t", &tracker, "cat", "/file"]).stdout, b"text");
}

/// A process that ends with the test.
struct Background(Child);

impl Drop for Background {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A small disk; gone when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// None, and why, where this process may not mount.
    fn at(folder: PathBuf, megabytes: usize) -> Option<Self> {
        std::fs::create_dir_all(&folder).unwrap();
        let size = format!("size={megabytes}m");
        let made = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&folder).output().unwrap();
        if !made.status.success() {
            eprintln!(
                "skipped: small disks are tmpfs, and only root mounts: {}",
                String::from_utf8_lossy(&made.stderr)
            );
            return None;
        }
        Some(Self(folder))
    }

    fn resize(&self, megabytes: usize) {
        let size = format!("remount,size={megabytes}m");
        assert!(Command::new("mount").args(["-o", &size]).arg(&self.0).status().unwrap().success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        force_unmount(&self.0);
    }
}

fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    close(file)
}

fn notes_in(spool: &Path) -> usize {
    let entries = std::fs::read_dir(spool).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|extension| extension == "json")).count()
}

#[test]
fn one_full_seeder_is_gone_round() {
    let mut swarm = Swarm::start_with(0, &[], &[]);
    let Some(_disk) = SmallDisk::at(swarm.seeder_data(0), 24) else { return };
    // It believes that it has room.
    swarm.add_seeder(&["--capacity", "1GiB"]);
    swarm.add_seeder(&[]);
    swarm.add_seeder(&[]);
    swarm.wait_live(3);
    let (mount, second) = (swarm.mount(), swarm.mount());
    for index in 0..10 {
        write(&mount.path(&format!("{index}")), &noise(index, 8 * MIB))
            .unwrap_or_else(|error| panic!("{index}: {error}"));
    }
    for index in 0..10 {
        assert!(std::fs::read(second.path(&format!("{index}"))).unwrap() == noise(index, 8 * MIB), "file {index}");
    }
    assert_eq!(notes_in(&mount.cache.join("spool")), 0);
}

#[test]
fn with_all_seeders_full_close_and_fsync_say_so_keep_the_bytes_and_work_again_when_there_is_room() {
    let mut swarm = Swarm::start_with(0, &[], &[]);
    let disks: Vec<SmallDisk> = (0..2).map_while(|index| SmallDisk::at(swarm.seeder_data(index), 40)).collect();
    if disks.len() < 2 {
        return;
    }
    for _ in 0..2 {
        swarm.add_seeder(&["--capacity", "1GiB"]);
    }
    swarm.wait_live(2);
    let (mount, second) = (swarm.mount(), swarm.mount());
    let spool = mount.cache.join("spool");
    let name = |index: u64| format!("{index}");
    let mut saved = Vec::new();
    let mut began = Instant::now();
    let (refused, error) = (0..20_u64)
        .find_map(|index| match write(&mount.path(&name(index)), &noise(index, 6 * MIB)) {
            Ok(()) => {
                saved.push(index);
                began = Instant::now();
                None
            }
            Err(error) => Some((index, error)),
        })
        .expect("the disks are full some time");
    assert_eq!(error.raw_os_error(), NO_SPACE, "{error}");
    assert!(saved.len() >= 3, "{saved:?}");
    eprintln!("refused after {:?}", began.elapsed());
    eventually("the spool is kept, with a note", Duration::from_secs(60), || notes_in(&spool) == 1);
    let mut names = std::fs::read_dir(&spool).unwrap().map(|entry| entry.unwrap().path());
    let note = names.find(|path| path.extension().is_some_and(|found| found == "json")).unwrap();
    let kept = std::fs::read(note.with_extension("data")).unwrap();
    assert!(kept == noise(refused, 6 * MIB), "all of its bytes are there");

    // By fsync, with the file open: it stays unsaved, is read, and is saved when there is room.
    let mut held =
        OpenOptions::new().read(true).write(true).create(true).truncate(true).open(mount.path("held")).unwrap();
    held.write_all(&noise(100, 7 * MIB)).unwrap();
    let began = Instant::now();
    assert_eq!(held.sync_all().unwrap_err().raw_os_error(), NO_SPACE);
    eprintln!("refused after {:?}", began.elapsed());
    let mut read = vec![0; 7 * MIB];
    held.read_exact_at(&mut read, 0).unwrap();
    assert!(read == noise(100, 7 * MIB));
    for index in &saved {
        assert!(std::fs::read(second.path(&name(*index))).unwrap() == noise(*index, 6 * MIB), "file {index}");
    }
    disks.iter().for_each(|disk| disk.resize(200));
    let began = Instant::now();
    eventually("fsync works again", Duration::from_secs(90), || held.sync_all().is_ok());
    eprintln!("there is room again after {:?}", began.elapsed());
    close(held).unwrap();
    write(&mount.path("after"), &noise(101, 5 * MIB)).unwrap();
    assert!(std::fs::read(second.path("held")).unwrap() == noise(100, 7 * MIB));
    assert!(std::fs::read(second.path("after")).unwrap() == noise(101, 5 * MIB));
    assert!(kept == std::fs::read(note.with_extension("data")).unwrap(), "what is kept waits for a person");
}

#[test]
fn with_the_spools_disk_full_write_says_so_and_works_again_when_it_is_freed() {
    let mut swarm = Swarm::start(2);
    // The spool leaves 64 MiB free.
    let Some(disk) = SmallDisk::at(swarm.scratch("spool"), 90) else { return };
    let extra = vec!["--spool-dir".to_owned(), disk.0.to_string_lossy().into_owned()];
    let (mount, second) = (swarm.mount_with(MountOptions { extra, ..MountOptions::default() }), swarm.mount());
    let mut first = File::create(mount.path("first")).unwrap();
    let mut other = File::create(mount.path("other")).unwrap();
    other.write_all(&noise(2, MIB)).unwrap();
    let mut bytes = Vec::new();
    let error = (0..100)
        .find_map(|index| {
            let part = noise(1_000 + index, 256 * 1024);
            first.write_all(&part).err().or_else(|| {
                bytes.extend(part);
                None
            })
        })
        .expect("the disk is full some time");
    assert_eq!(error.raw_os_error(), NO_SPACE, "{error}");
    assert_eq!(other.write_all(&noise(3, MIB)).unwrap_err().raw_os_error(), NO_SPACE);
    // What was written is there, is read, and is saved.
    assert!(std::fs::read(mount.path("first")).unwrap() == bytes);
    close(first).unwrap();
    eventually("it works again", Duration::from_secs(20), || other.write_all(&noise(3, MIB)).is_ok());
    close(other).unwrap();
    assert!(std::fs::read(second.path("first")).unwrap() == bytes);
    assert!(std::fs::read(second.path("other")).unwrap() == [noise(2, MIB), noise(3, MIB)].concat());
    eventually("nothing is left", Duration::from_secs(20), || {
        let names = |folder: &Path| std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        let mut left = names(&disk.0).chain(names(&disk.0.join("owed")));
        left.all(|name| ["journal", "LOCK", "owed"].contains(&&*name.to_string_lossy()))
    });
}

#[test]
fn a_cache_that_has_filled_the_spools_disk_makes_room_for_what_is_written() {
    let mut swarm = Swarm::start(2);
    let Some(disk) = SmallDisk::at(swarm.scratch("cache"), 250) else { return };
    let other = swarm.mount();
    for index in 0..6 {
        write(&other.path(&format!("read-{index}")), &noise(index, 40 * MIB)).unwrap();
    }
    // Reads are over the network unless it is told otherwise, and so are cached.
    let mount = swarm.mount_with(MountOptions { cache: Some(disk.0.join("cache")), ..MountOptions::default() });
    for index in 0..6 {
        assert!(std::fs::read(mount.path(&format!("read-{index}"))).unwrap() == noise(index, 40 * MIB));
    }
    // Twice as much as the cache leaves free.
    let bytes = noise(100, 130 * MIB);
    write(&mount.path("written"), &bytes).unwrap();
    assert!(std::fs::read(other.path("written")).unwrap() == bytes);
}
