//! The tracker is away while files are written: stopped, as if the network were, or killed.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::harness::data::{close, noise};
use crate::harness::swarm::Mounted;
use crate::harness::{MountOptions, Swarm, eventually};

const MIB: usize = 1024 * 1024;
const IO: i32 = 5;
const TIMED_OUT: i32 = 110;
/// Every timeout below is shorter, and a close waits for several of them one after the other at worst.
const IN_TIME: Duration = Duration::from_secs(20);

fn mount_with(swarm: &mut Swarm, words: &[&str]) -> Mounted {
    let extra = words.iter().map(|word| (*word).to_owned()).collect();
    swarm.mount_with(MountOptions { extra, ..MountOptions::default() })
}

/// What it took to fail, and with what.
#[track_caller]
fn fails<T>(what: &str, does: impl FnOnce() -> std::io::Result<T>) -> i32 {
    let began = Instant::now();
    let Err(error) = does() else { panic!("{what} went well") };
    let took = began.elapsed();
    eprintln!("{what}: {error} after {took:?}");
    assert!(took < IN_TIME, "{what} took {took:?}");
    error.raw_os_error().unwrap_or_else(|| panic!("{what}: {error}"))
}

fn works_again(folder: &Path, second: &Path, name: &str) {
    eventually("writing goes on by itself", Duration::from_secs(30), || {
        let Ok(mut file) = File::create(folder.join(name)) else { return false };
        file.write_all(b"back").is_ok() && close(file).is_ok()
    });
    eventually("the other mount sees it", Duration::from_secs(30), || {
        std::fs::read(second.join(name)).is_ok_and(|bytes| bytes == b"back")
    });
}

fn goes_away_and_comes_back(leave: impl Fn(&mut Swarm), come_back: impl Fn(&mut Swarm)) {
    let mut swarm = Swarm::start(2);
    let second = swarm.mount();
    let mount = mount_with(&mut swarm, &["--write-timeout", "3s", "--metadata-timeout", "2s"]);
    let (before, name) = (noise(1, 2 * MIB), mount.path("file"));
    std::fs::write(&name, &before).unwrap();
    std::fs::write(mount.path("held"), b"held").unwrap();
    let file = OpenOptions::new().read(true).write(true).open(&name).unwrap();
    let held = OpenOptions::new().read(true).write(true).open(mount.path("held")).unwrap();
    leave(&mut swarm);

    let patch = noise(2, 6 * MIB);
    file.write_all_at(&patch, 1_000_000).unwrap();
    held.write_all_at(b"kept", 0).unwrap();
    let mut read = vec![0; patch.len()];
    file.read_exact_at(&mut read, 1_000_000).unwrap();
    assert!(read == patch, "what was written is read");
    for (what, error) in [
        ("fsync", fails("fsync", || held.sync_all())),
        ("close", fails("close", || close(file))),
        ("mkdir", fails("mkdir", || std::fs::create_dir(mount.path("folder")))),
        ("rename", fails("rename", || std::fs::rename(&name, mount.path("moved")))),
        ("unlink", fails("unlink", || std::fs::remove_file(&name))),
        ("create", fails("create", || File::create_new(mount.path("new")))),
        ("truncate", fails("truncate", || OpenOptions::new().write(true).truncate(true).open(&name).map(drop))),
    ] {
        let expected = [TIMED_OUT, IO];
        assert!(expected.contains(&error), "{what}: {error}");
        assert!(error == TIMED_OUT || ["fsync", "close"].contains(&what), "{what} is no input or output: {error}");
    }

    come_back(&mut swarm);
    works_again(&mount.folder, &second.folder, "again");
    // What was tried meanwhile may have been done all the same, but the handle that is open goes on.
    eventually("fsync goes on by itself", Duration::from_secs(30), || held.sync_all().is_ok());
    close(held).unwrap();
    assert_eq!(std::fs::read(second.path("held")).unwrap(), b"kept");
}

#[test]
fn a_tracker_that_stops_answering_costs_errors_in_time_and_no_bytes() {
    goes_away_and_comes_back(|swarm| swarm.tracker.signal("STOP"), |swarm| swarm.tracker.signal("CONT"));
}

#[test]
fn a_tracker_that_is_killed_costs_errors_in_time_and_no_bytes() {
    goes_away_and_comes_back(|swarm| swarm.tracker.kill(), |swarm| swarm.tracker.start());
}

#[test]
fn a_close_that_waits_ends_well_when_the_tracker_is_back_in_time() {
    let mut swarm = Swarm::start(2);
    let second = swarm.mount();
    let mount = mount_with(&mut swarm, &["--write-timeout", "40s", "--metadata-timeout", "2s"]);
    for round in 0..2 {
        let bytes = noise(10 + round, 5 * MIB);
        let mut file = File::create(mount.path("file")).unwrap();
        file.write_all(&bytes).unwrap();
        match round {
            0 => swarm.tracker.kill(),
            _ => swarm.tracker.signal("STOP"),
        }
        let journal = mount.cache.join("spool/journal");
        let closing = std::thread::spawn(move || close(file));
        eventually("the close is under way", Duration::from_secs(20), || {
            std::fs::read_to_string(&journal).is_ok_and(|text| text.contains("\"saving\":"))
        });
        match round {
            0 => swarm.tracker.start(),
            _ => swarm.tracker.signal("CONT"),
        }
        closing.join().unwrap().unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert!(std::fs::read(second.path("file")).unwrap() == bytes);
    }
}

#[test]
fn with_the_tracker_away_cached_names_and_files_are_readable_if_that_is_wanted() {
    let mut swarm = Swarm::start(2);
    let words = ["--offline-ok", "--write-timeout", "3s", "--metadata-timeout", "2s"];
    let mount = mount_with(&mut swarm, &words);
    let bytes = noise(20, 3 * MIB);
    std::fs::create_dir(mount.path("folder")).unwrap();
    std::fs::write(mount.path("folder/file"), &bytes).unwrap();
    let names = |folder: &Path| {
        let entries = std::fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name()));
        entries.collect::<std::io::Result<Vec<_>>>()
    };
    assert_eq!(names(&mount.path("folder")).unwrap().len(), 1);
    for round in 0..2 {
        // What was written is in the kernel's pages, of which it may let go at any time; then the seeders that took it are
        // asked, once, as the cache has it from then on.
        let file = File::open(mount.path("folder/file")).unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        drop(file);
        match round {
            0 => swarm.tracker.signal("STOP"),
            _ => swarm.tracker.kill(),
        }
        eventually("names show", Duration::from_secs(30), || {
            names(&mount.path("folder")).is_ok_and(|all| all.len() == 1)
        });
        eventually("files are read", Duration::from_secs(30), || {
            std::fs::read(mount.path("folder/file")).is_ok_and(|read| read == bytes)
        });
        assert_eq!(fails("create", || File::create_new(mount.path("folder/new"))), TIMED_OUT);
        match round {
            0 => swarm.tracker.signal("CONT"),
            _ => swarm.tracker.start(),
        }
        works_again(&mount.folder, &mount.folder, "again");
    }
}
