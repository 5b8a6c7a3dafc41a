//! Mounts, seeders and the tracker die while files are written; nothing acknowledged is lost, and nothing is mixed.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::harness::data::{close, noise};
use crate::harness::swarm::{Mounted, drop_caches};
use crate::harness::{MountOptions, Swarm, eventually, rounds};

const WRITERS: usize = 4;
const FILES: usize = 6;
const MIB: usize = 1024 * 1024;

/// All that writers tried to write and what of it was acknowledged, by file.
type History = BTreeMap<String, Versions>;

#[derive(Default)]
struct Versions {
    tried: Vec<usize>,
    /// The last one; 0: none.
    acknowledged: usize,
    how: Vec<String>,
    failed: Vec<String>,
}

/// What version `version` of a file is: it says of itself what it is, in every byte.
fn content_of(name: &str, version: usize) -> Vec<u8> {
    let seed = blake3::hash(format!("{name} {version}").as_bytes());
    let seed = u64::from_le_bytes(seed.as_bytes()[..8].try_into().unwrap());
    // Small ones, some of a few segments; of every version another length.
    let mut rng = SmallRng::seed_from_u64(seed);
    let length = match rng.random_range(0..10) {
        0 => rng.random_range(5 * MIB..9 * MIB),
        1..4 => rng.random_range(200_000..MIB),
        _ => rng.random_range(1..60_000),
    };
    noise(seed, length)
}

/// One version, in one of the ways in which programs replace what is in a file.
fn write_version(folder: &Path, name: &str, bytes: &[u8], way: usize) -> std::io::Result<()> {
    let path = folder.join(name);
    match way {
        // As shells do.
        0 => {
            let mut file = File::create(&path)?;
            file.write_all(bytes)?;
            close(file)
        }
        // As careful programs do.
        1 => {
            let fresh = folder.join(format!("{name}.new"));
            let mut file = File::create(&fresh)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            close(file)?;
            std::fs::rename(fresh, path)
        }
        // In place, durable before it is closed.
        _ => {
            let file = OpenOptions::new().write(true).create(true).truncate(true).open(&path)?;
            for (index, part) in bytes.chunks(300_000).enumerate() {
                file.write_all_at(part, index as u64 * 300_000)?;
            }
            file.sync_all()
        }
    }
}

/// A process that writes files until it is told to stop, and says of each what became of it.
///
/// Shape: a process of its own, since a program that is started by one that has files open closes them once more: the
///        tracker would be saving files before it is there.
struct Writer {
    child: Child,
    history: JoinHandle<History>,
}

const FOLDER: &str = "SWARM_TEST_WRITER_FOLDER";
const NUMBER: &str = "SWARM_TEST_WRITER_NUMBER";
const ROUND: &str = "SWARM_TEST_WRITER_ROUND";
const SAYS: &str = "writer says: ";

impl Writer {
    /// `history` has what it and those before it of its number wrote.
    fn start(folder: &Path, number: usize, round: usize, mut history: History, count: &Arc<AtomicUsize>) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["killed_writers::writes_until_its_input_ends", "--exact", "--ignored", "--nocapture"])
            .env(FOLDER, folder)
            .env(NUMBER, number.to_string())
            .env(ROUND, round.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (told, count) = (BufReader::new(child.stdout.take().unwrap()), count.clone());
        let history = std::thread::spawn(move || {
            for line in told.lines() {
                let line = line.unwrap();
                let Some((_, said)) = line.split_once(SAYS) else { continue };
                let words: Vec<&str> = said.splitn(4, ' ').collect();
                let [name, version, way, outcome] = words[..] else { panic!("a writer said {said:?}") };
                let versions = history.entry(name.to_owned()).or_default();
                versions.how.push(format!("{version} way {way} {outcome}"));
                let version = version.parse().unwrap();
                match outcome {
                    "begins" => versions.tried.push(version),
                    "acknowledged" => {
                        versions.acknowledged = version;
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    error => versions.failed.push(error.to_owned()),
                }
            }
            history
        });
        Self { child, history }
    }

    /// Let it finish what it is at.
    fn stop(mut self) -> History {
        drop(self.child.stdin.take());
        let history = self.history.join().unwrap();
        assert!(self.child.wait().unwrap().success());
        history
    }
}

#[test]
#[ignore = "not a test: the process that `Writer` starts"]
fn writes_until_its_input_ends() {
    let (Some(folder), Ok(number)) = (std::env::var_os(FOLDER), std::env::var(NUMBER)) else { return };
    let round: usize = std::env::var(ROUND).unwrap().parse().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let told = stop.clone();
    std::thread::spawn(move || {
        std::io::stdin().read_to_end(&mut Vec::new()).ok();
        told.store(true, Ordering::Relaxed);
    });
    let mut rng = SmallRng::seed_from_u64(number.parse::<u64>().unwrap() + 100 * round as u64);
    // No version of an earlier round.
    let mut version = 1_000_000 * round;
    while !stop.load(Ordering::Relaxed) {
        let (name, way) = (format!("{number}-{}", rng.random_range(0..FILES)), rng.random_range(0..3));
        version += 1;
        println!("{SAYS}{name} {version} {way} begins");
        match write_version(Path::new(&folder), &name, &content_of(&name, version), way) {
            Ok(()) => println!("{SAYS}{name} {version} {way} acknowledged"),
            // With nothing mounted there this fails at once.
            Err(error) => println!("{SAYS}{name} {version} {way} {error}"),
        }
    }
}

/// A process that changes files and leaves them open, as nobody starts a program in it: that would close them once more.
struct Holder(Child);

impl Holder {
    /// It has written when this returns.
    fn start(folder: &Path) -> Self {
        Self::start_as(folder, "killed_writers::holds_what_it_wrote_open_until_its_input_ends")
    }

    fn start_as(folder: &Path, holds: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([holds, "--exact", "--ignored", "--nocapture"])
            .env(FOLDER, folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut told = BufReader::new(child.stdout.as_mut().unwrap()).lines();
        assert!(told.any(|line| line.unwrap().contains(SAYS)), "it ended without a word");
        Self(child)
    }

    fn stop(mut self) {
        drop(self.0.stdin.take());
        // That its output has no reader any more is no matter.
        self.0.wait().unwrap();
    }
}

#[test]
#[ignore = "not a test: the process that `Holder` starts"]
fn holds_what_it_wrote_open_until_its_input_ends() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let path = |name: &str| Path::new(&folder).join(name);
    let open = |name: &str| OpenOptions::new().read(true).write(true).open(path(name)).unwrap();
    let changed = open("changed");
    changed.write_all_at(b"never asked for", 1_000_000).unwrap();
    let synced = open("synced");
    synced.write_all_at(b"durable", 5).unwrap();
    synced.sync_all().unwrap();
    let both = open("synced-then-changed");
    both.write_all_at(b"durable", 5).unwrap();
    both.sync_all().unwrap();
    both.write_all_at(b"never asked for", 1_000_000).unwrap();
    let mut made = File::create(path("made")).unwrap();
    made.write_all(b"never asked for").unwrap();
    println!("{SAYS}written");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

/// Which version a file is; the panic says what happened to it, if it is none or one before the last acknowledged.
#[track_caller]
fn assert_is_a_version(folder: &Path, name: &str, versions: &Versions) {
    let told = || versions.how[versions.how.len().saturating_sub(8)..].join("; ");
    let read = match std::fs::read(folder.join(name)) {
        Ok(read) => read,
        Err(error) if versions.acknowledged == 0 && error.kind() == std::io::ErrorKind::NotFound => return,
        Err(error) => panic!("{name}: {error}; {}", told()),
    };
    // A file that was made and never acknowledged may be empty.
    if versions.acknowledged == 0 && read.is_empty() {
        return;
    }
    let found = versions.tried.iter().rev().find(|version| content_of(name, **version) == read);
    match found {
        Some(&version) if version >= versions.acknowledged => {}
        Some(version) => {
            panic!("{name} is version {version}, but {} was acknowledged; {}", versions.acknowledged, told())
        }
        None => panic!("{name} of {} bytes is no version of it; {}", read.len(), told()),
    }
}

/// At least so many seeders hold every segment of a file.
fn replicas_of(swarm: &Swarm, path: &str) -> u64 {
    let stat = swarm.json(&["stat", "--json", path]);
    let segments = stat["entries"][0]["content"]["segments"].as_array().cloned().unwrap_or_default();
    segments.iter().map(|segment| segment["replicas"].as_u64().unwrap()).min().unwrap_or(u64::MAX)
}

fn spool_notes(cache: &Path) -> Vec<serde_json::Value> {
    let entries = std::fs::read_dir(cache.join("spool")).into_iter().flatten();
    let paths = entries.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|x| x == "json"));
    paths.map(|path| serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()).collect()
}

fn kill_and_bring_back(swarm: &mut Swarm, mount: &mut Mounted, victim: usize, rng: &mut SmallRng) {
    match victim {
        0 => {
            mount.kill();
            mount.restart();
        }
        1 => {
            let seeder = rng.random_range(0..swarm.seeders.len());
            swarm.seeders[seeder].kill();
            swarm.seeders[seeder].start();
        }
        _ => {
            swarm.tracker.kill();
            swarm.tracker.start();
        }
    }
}

#[test]
#[ignore = "not a test: the process that `Holder` starts"]
fn holds_what_the_kernel_wrote_open_until_its_input_ends() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let make = |name: &str| File::create(Path::new(&folder).join(name)).unwrap();
    let _empty = make("empty");
    let (made, emptied) = (make("made"), make("emptied"));
    for file in [&made, &emptied] {
        file.write_all_at(b"never asked for", 5).unwrap();
    }
    let synced = make("synced");
    let both = make("synced-then-changed");
    for file in [&synced, &both] {
        file.write_all_at(&noise(2, MIB), 0).unwrap();
        file.sync_all().unwrap();
    }
    both.write_all_at(b"never asked for", 1_000).unwrap();
    println!("{SAYS}written");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

/// Have the kernel write by itself.
fn passing() -> MountOptions {
    MountOptions { extra: vec!["--passthrough-writes".to_owned()], ..MountOptions::default() }
}

/// Why the kernel does not write by itself in a mount that is told to have it so.
fn why_not_passing(mount: &Mounted) -> Option<String> {
    let status: serde_json::Value =
        serde_json::from_slice(&std::fs::read(mount.path(".swarmfs-status")).unwrap()).unwrap();
    status["no_passthrough_writes_because"].as_str().map(str::to_owned)
}

#[test]
fn nothing_acknowledged_is_lost_whatever_is_killed_while_files_are_written() {
    kill_while_files_are_written(MountOptions::default());
}

#[test]
fn nothing_acknowledged_is_lost_whatever_is_killed_while_the_kernel_writes_files() {
    kill_while_files_are_written(passing());
}

#[track_caller]
fn kill_while_files_are_written(options: MountOptions) {
    let mut swarm = Swarm::start(3);
    let mut mount = swarm.mount_with(options);
    // What is written while nothing is mounted there must not go into the folder below.
    let folder = mount.path("files");
    std::fs::create_dir(&folder).unwrap();
    let second = swarm.mount();
    eventually("the folder shows", Duration::from_secs(10), || second.path("files").exists());
    let count = Arc::new(AtomicUsize::new(0));
    let mut rng = SmallRng::seed_from_u64(77);
    let mut histories: Vec<History> = (0..WRITERS).map(|_| History::new()).collect();
    for round in 0..rounds(3, 100) {
        let start = |(number, history)| Writer::start(&folder, number, round + 1, history, &count);
        let writers: Vec<Writer> = histories.drain(..).enumerate().map(start).collect();
        let enough = count.load(Ordering::Relaxed) + rng.random_range(10..60);
        eventually("files are acknowledged", Duration::from_secs(90), || count.load(Ordering::Relaxed) >= enough);
        kill_and_bring_back(&mut swarm, &mut mount, round % 3, &mut rng);
        // At once: what is written from now on would hide what was lost.
        histories.extend(writers.into_iter().map(Writer::stop));
        for (name, versions) in histories.iter().flatten() {
            assert_is_a_version(&second.path("files"), name, versions);
        }
    }
    eprintln!("{} versions were acknowledged", count.load(Ordering::Relaxed));
    let files: Vec<(&String, &Versions)> = histories.iter().flatten().collect();
    let mut failures: BTreeMap<&String, usize> = BTreeMap::new();
    files.iter().flat_map(|(_, versions)| &versions.failed).for_each(|error| *failures.entry(error).or_default() += 1);
    eprintln!("others failed: {failures:?}");
    swarm.wait_live(3);
    drop_caches();
    for (name, versions) in &files {
        assert_is_a_version(&folder, name, versions);
    }
    // No killed mount left bytes of which nobody knows whose they are.
    let listed = swarm.try_cli(&["spool", "list", &mount.folder.to_string_lossy()]);
    assert!(listed.status.success() && listed.stderr.is_empty(), "{}", String::from_utf8_lossy(&listed.stderr));
    for (name, _) in files.iter().filter(|(_, versions)| versions.acknowledged > 0) {
        eventually("two seeders hold it", Duration::from_secs(60), || {
            replicas_of(&swarm, &format!("/files/{name}")) >= 2
        });
    }
    let status = swarm.status();
    assert_eq!(status["segments"]["missing"], 0, "{status}");
    assert_eq!(status["segments"]["corrupt"], 0, "{status}");
    // Any one seeder may be gone.
    let victim = rng.random_range(0..3);
    swarm.seeders[victim].kill();
    let extra = ["--cache-size", "0"].map(String::from).to_vec();
    let third = swarm.mount_with(MountOptions { extra, ..MountOptions::default() });
    for (name, versions) in &files {
        assert_is_a_version(&third.path("files"), name, versions);
    }
}

#[test]
fn what_was_not_saved_when_a_mount_died_is_listed_and_never_committed_unasked() {
    let mut swarm = Swarm::start(2);
    let mut mount = swarm.mount();
    let before = noise(1, 3 * MIB);
    for name in ["changed", "synced", "synced-then-changed"] {
        std::fs::write(mount.path(name), &before).unwrap();
    }
    let holder = Holder::start(&mount.folder);
    mount.kill();
    holder.stop();
    mount.restart();

    let mut durable = before.clone();
    durable[5..12].copy_from_slice(b"durable");
    let notes = spool_notes(&mount.cache);
    let states: HashMap<String, String> = notes
        .iter()
        .map(|note| {
            let name = Path::new(note["path"].as_str().unwrap()).file_name().unwrap().to_string_lossy().into_owned();
            (name, note["state"].as_str().unwrap().to_owned())
        })
        .collect();
    eprintln!("listed: {states:?}");
    for name in ["changed", "synced-then-changed", "made"] {
        assert_eq!(states.get(name).map(String::as_str), Some("interrupted"), "{name} in {states:?}");
    }
    let second = swarm.mount();
    for mount in [&mount, &second] {
        assert!(std::fs::read(mount.path("changed")).unwrap() == before);
        assert!(std::fs::read(mount.path("synced")).unwrap() == durable);
        assert!(std::fs::read(mount.path("synced-then-changed")).unwrap() == durable);
        assert_eq!(std::fs::read(mount.path("made")).unwrap(), b"");
    }
    assert_eq!(states.get("synced"), None, "nothing of it is unsaved");
    let data = |note: &serde_json::Value| mount.cache.join(format!("spool/{}.data", note["number"]));
    let made = notes.iter().find(|note| note["path"].as_str().unwrap().ends_with("made")).unwrap();
    assert_eq!(std::fs::read(data(made)).unwrap(), b"never asked for");
}

#[test]
fn what_the_kernel_wrote_and_nobody_saved_when_a_mount_died_is_listed_and_the_rest_is_not() {
    let mut swarm = Swarm::start(2);
    let mut mount = swarm.mount_with(passing());
    if let Some(reason) = why_not_passing(&mount) {
        return eprintln!("skipped: {reason}");
    }
    let before = noise(1, 3 * MIB);
    std::fs::write(mount.path("emptied"), &before).unwrap();
    let holder =
        Holder::start_as(&mount.folder, "killed_writers::holds_what_the_kernel_wrote_open_until_its_input_ends");
    mount.kill();
    holder.stop();
    mount.restart();
    let notes = spool_notes(&mount.cache);
    let mut listed: Vec<&str> = notes.iter().map(|note| note["path"].as_str().unwrap()).collect();
    listed.sort_unstable();
    assert_eq!(listed, ["/emptied", "/made", "/synced-then-changed"]);
    assert!(notes.iter().all(|note| note["state"] == "interrupted"), "{notes:?}");
    let second = swarm.mount();
    let durable = noise(2, MIB);
    for mount in [&mount, &second] {
        assert!(std::fs::read(mount.path("emptied")).unwrap() == before);
        assert_eq!(std::fs::read(mount.path("made")).unwrap(), b"");
        assert_eq!(std::fs::read(mount.path("empty")).unwrap(), b"");
        assert!(std::fs::read(mount.path("synced")).unwrap() == durable);
        assert!(std::fs::read(mount.path("synced-then-changed")).unwrap() == durable);
    }
    let folder = mount.folder.to_string_lossy().into_owned();
    swarm.cli(&["spool", "retry", &folder]);
    let mut changed = durable;
    changed[1_000..1_015].copy_from_slice(b"never asked for");
    for name in ["emptied", "made"] {
        assert_eq!(std::fs::read(second.path(name)).unwrap(), b"\0\0\0\0\0never asked for");
    }
    assert!(std::fs::read(second.path("synced-then-changed")).unwrap() == changed);
    let left = std::fs::read_dir(mount.cache.join("spool")).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn what_a_writeback_mount_closed_is_saved_by_its_next_process() {
    let mut swarm = Swarm::start(2);
    let mut mount = swarm.mount_with(MountOptions { extra: vec!["--writeback".to_owned()], ..Default::default() });
    let bytes = noise(4, 6 * MIB);
    swarm.seeders.iter().for_each(|seeder| seeder.signal("STOP"));
    let path: PathBuf = mount.path("file");
    let mut file = File::create(&path).unwrap();
    file.write_all(&bytes).unwrap();
    close(file).expect("it waits for no seeder");
    mount.kill();
    swarm.seeders.iter().for_each(|seeder| seeder.signal("CONT"));
    mount.restart();
    // Read before it is saved as well: the kernel is to forget what it saw.
    assert!(std::fs::read(&path).is_ok_and(|read| read.is_empty() || read == bytes));
    eventually("it is saved", Duration::from_secs(60), || std::fs::read(&path).is_ok_and(|read| read == bytes));
}

#[test]
fn a_file_whose_close_was_under_way_when_the_mount_died_is_saved_or_listed() {
    let mut swarm = Swarm::start(2);
    let mut mount = swarm.mount();
    let bytes = noise(3, 6 * MIB);
    swarm.seeders.iter().for_each(|seeder| seeder.signal("STOP"));
    let path: PathBuf = mount.path("file");
    let closing = {
        let (path, bytes) = (path.clone(), bytes.clone());
        std::thread::spawn(move || {
            let mut file = File::create(path)?;
            file.write_all(&bytes)?;
            close(file)
        })
    };
    let journal = mount.cache.join("spool/journal");
    eventually("the close is under way", Duration::from_secs(20), || {
        std::fs::read_to_string(&journal).is_ok_and(|text| text.contains("\"saving\":"))
    });
    mount.kill();
    closing.join().unwrap().expect_err("nobody acknowledged it");
    swarm.seeders.iter().for_each(|seeder| seeder.signal("CONT"));
    mount.restart();
    eventually("saved or listed", Duration::from_secs(30), || {
        let listed = spool_notes(&mount.cache).iter().any(|note| note["path"].as_str().unwrap().ends_with("file"));
        listed || std::fs::read(&path).is_ok_and(|read| read == bytes)
    });
}

#[test]
fn what_a_close_could_not_save_is_listed_at_once_and_saved_when_somebody_asks() {
    let mut swarm = Swarm::start(2);
    let extra = ["--write-timeout", "3s"].map(String::from).to_vec();
    let mount = swarm.mount_with(MountOptions { extra, ..MountOptions::default() });
    swarm.seeders.iter_mut().for_each(super::harness::process::Daemon::kill);
    let bytes = noise(5, 100_000);
    let mut file = File::create(mount.path("file")).unwrap();
    file.write_all(&bytes).unwrap();
    close(file).expect_err("nobody is there who could take it");
    let folder = mount.folder.to_string_lossy().into_owned();
    let states = |swarm: &Swarm| -> Vec<String> {
        let listed = swarm.json(&["spool", "list", "--json", &folder]);
        listed.as_array().unwrap().iter().map(|note| note["state"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(states(&swarm), ["retrying"]);
    assert!(!swarm.try_cli(&["spool", "discard", &folder, "1"]).status.success(), "it is the mount's");
    eventually("the mount gives up", Duration::from_secs(60), || states(&swarm) == ["failed"]);
    swarm.seeders.iter_mut().for_each(super::harness::process::Daemon::start);
    swarm.wait_live(2);
    swarm.cli(&["spool", "retry", &folder]);
    assert!(std::fs::read(mount.path("file")).unwrap() == bytes);
    assert!(states(&swarm).is_empty());
}
