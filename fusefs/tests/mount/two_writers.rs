//! Two mounts that write, replace and delete the same files.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::swarm::{Mounted, Swarm, close, eventually, no_program_starts, noise};

const STALE: Option<i32> = Some(116);

fn read_write(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

fn content(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// Conflict copies of a file, as a mount lists them.
fn conflict_copies(mounted: &Mounted<'_>, name: &str) -> Vec<PathBuf> {
    let start = format!("{name}.conflict-");
    let entries = std::fs::read_dir(&mounted.folder).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<PathBuf> =
        entries.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(&start)).collect();
    found.sort();
    found
}

#[test]
fn of_two_writers_one_wins_and_the_other_finds_its_bytes_in_a_conflict_copy() {
    let _quiet = no_program_starts();
    let swarm = Swarm::new(2);
    let (one, two) = (swarm.mount("one"), swarm.mount("two"));
    let base = noise(1, 5_000_000);
    std::fs::write(one.path("file"), &base).unwrap();
    let (winner, loser) = (read_write(&one.path("file")), read_write(&two.path("file")));
    winner.write_all_at(b"the winner's", 100).unwrap();
    loser.write_all_at(b"the loser's", 4_500_000).unwrap();
    loser.set_len(4_800_000).unwrap();
    close(winner).unwrap();
    let lost = close(loser).unwrap_err();
    assert_eq!(lost.raw_os_error(), STALE, "{lost}");

    let mut won = base.clone();
    won[100..112].copy_from_slice(b"the winner's");
    let mut copied = base[..4_800_000].to_vec();
    copied[4_500_000..4_500_011].copy_from_slice(b"the loser's");
    eventually("the other mount lists the copy", || conflict_copies(&one, "file").len() == 1);
    for mounted in [&one, &two] {
        assert!(std::fs::read(mounted.path("file")).unwrap() == won);
        let copies = conflict_copies(mounted, "file");
        assert_eq!(copies.len(), 1, "{copies:?}");
        assert!(std::fs::read(&copies[0]).unwrap() == copied);
        // NAME.conflict-HOST-MILLISECONDS
        let name = copies[0].file_name().unwrap().to_str().unwrap();
        let (host, stamp) = name.strip_prefix("file.conflict-").unwrap().rsplit_once('-').unwrap();
        assert!(!host.is_empty());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
        assert!(stamp.parse::<u64>().unwrap().abs_diff(now) < 120_000, "{name}");
    }
    // Whoever lost goes on from what won.
    let file = read_write(&two.path("file"));
    file.write_all_at(b"again", 0).unwrap();
    close(file).unwrap();
    won[..5].copy_from_slice(b"again");
    assert!(std::fs::read(one.path("file")).unwrap() == won);
    eventually("nothing is left under way", || two.unsaved_files() == 0);
}

#[test]
fn the_loser_of_a_race_may_be_told_by_fsync_and_go_on_with_the_handle() {
    let _quiet = no_program_starts();
    let swarm = Swarm::new(1);
    let (one, two) = (swarm.mount("one"), swarm.mount("two"));
    std::fs::write(one.path("file"), b"base").unwrap();
    let loser = read_write(&two.path("file"));
    loser.write_all_at(b"LOSE", 0).unwrap();
    std::fs::write(one.path("file"), b"the winner").unwrap();
    assert_eq!(loser.sync_all().unwrap_err().raw_os_error(), STALE);
    // The kernel is told of the new size while fsync is answered.
    eventually("the handle shows the winner's", || content(&loser) == b"the winner");
    loser.write_all_at(b"THE", 0).unwrap();
    close(loser).unwrap();
    assert_eq!(std::fs::read(one.path("file")).unwrap(), b"THE winner");
    let copies = conflict_copies(&two, "file");
    assert_eq!(copies.len(), 1, "{copies:?}");
    assert_eq!(std::fs::read(&copies[0]).unwrap(), b"LOSE");
}

#[test]
fn attributes_that_change_elsewhere_lose_no_race() {
    let swarm = Swarm::new(1);
    let (one, two) = (swarm.mount("one"), swarm.mount("two"));
    std::fs::write(one.path("file"), b"base").unwrap();
    let writer = read_write(&one.path("file"));
    writer.write_all_at(b"text", 0).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(two.path("file"), mode).unwrap();
    std::fs::rename(two.path("file"), two.path("moved")).unwrap();
    close(writer).unwrap();
    eventually("the name moved", || one.path("moved").exists());
    for mounted in [&one, &two] {
        assert_eq!(std::fs::read(mounted.path("moved")).unwrap(), b"text");
        assert_eq!(mounted.path("moved").metadata().unwrap().mode() & 0o777, 0o600);
        assert!(conflict_copies(mounted, "file").is_empty() && conflict_copies(mounted, "moved").is_empty());
    }
}

#[test]
fn appends_of_two_machines_lose_nothing_and_mix_nothing() {
    const THREADS: usize = 2;
    const ROUNDS: usize = 40;
    let swarm = Swarm::new(2);
    let (one, two) = (swarm.mount("one"), swarm.mount("two"));
    std::fs::write(one.path("log"), b"").unwrap();
    eventually("both have it", || two.path("log").exists());
    let line = |who: &str, thread: usize, round: usize| {
        format!("{who} {thread} {round} {}\n", "ab".repeat(1 + (thread * 313 + round * 1_237) % 9_000))
    };
    std::thread::scope(|scope| {
        for (who, mounted) in [("one", &one), ("two", &two)] {
            for thread in 0..THREADS {
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        let mut file = OpenOptions::new().append(true).open(mounted.path("log")).unwrap();
                        file.write_all(line(who, thread, round).as_bytes()).unwrap();
                        close(file).unwrap_or_else(|error| panic!("{who} {thread} {round}: {error}"));
                    }
                });
            }
        }
    });
    let text = std::fs::read_to_string(one.path("log")).unwrap();
    assert_eq!(text, std::fs::read_to_string(two.path("log")).unwrap());
    for who in ["one", "two"] {
        for thread in 0..THREADS {
            let start = format!("{who} {thread} ");
            let rounds = text.split_inclusive('\n').filter(|line| line.starts_with(&start));
            let expected: Vec<String> = (0..ROUNDS).map(|round| line(who, thread, round)).collect();
            let found: Vec<&str> = rounds.collect();
            assert_eq!(found.len(), ROUNDS, "lines of {start}");
            assert!(found == expected, "lines of {start} are mixed or out of order");
        }
    }
    assert_eq!(text.lines().count(), 2 * THREADS * ROUNDS, "nothing else is there");
    assert!(conflict_copies(&one, "log").is_empty());
}

#[test]
fn a_handle_reads_one_version_until_a_newer_one_is_opened_on_its_mount() {
    let swarm = Swarm::new(1);
    let (one, two) = (swarm.mount("one"), swarm.mount("two"));
    let (first, second) = (noise(11, 3_000_000), noise(12, 2_500_000));
    std::fs::write(one.path("file"), &first).unwrap();
    let held = File::open(two.path("file")).unwrap();
    let mut start = [0; 10];
    held.read_exact_at(&mut start, 0).unwrap();
    std::fs::write(one.path("file"), &second).unwrap();
    // Once the mount knows of the next name, it has been told of all before it.
    std::fs::write(one.path("later"), b"").unwrap();
    eventually("the other mount was told", || two.path("later").exists());
    assert!(content(&held) == first, "as long as nobody here opens it, it is the version that was opened");
    let newer = File::open(two.path("file")).unwrap();
    assert!(content(&newer) == second);
    assert!(content(&held) == second, "all handles of a mount read the newest that was opened there");
}

#[test]
fn a_file_that_is_replaced_while_it_is_open_stays_as_it_was_for_those_who_hold_it() {
    let swarm = Swarm::new(1);
    let (one, two) = (swarm.mount("one"), swarm.mount("two"));
    let old = noise(21, 6_000_000);
    std::fs::write(one.path("file"), &old).unwrap();
    eventually("it shows", || two.path("file").exists());
    for (replacer, other) in [(&one, &two), (&two, &one)] {
        std::fs::write(one.path("file"), &old).unwrap();
        let held: Vec<File> = [&one, &two].map(|mounted| File::open(mounted.path("file")).unwrap()).into();
        std::fs::write(replacer.path("new"), b"new").unwrap();
        std::fs::rename(replacer.path("new"), replacer.path("file")).unwrap();
        assert_eq!(std::fs::read(replacer.path("file")).unwrap(), b"new");
        eventually("the name shows the new one", || {
            std::fs::read(other.path("file")).is_ok_and(|bytes| bytes == b"new")
        });
        for held in held {
            assert!(content(&held) == old);
            assert_eq!(held.metadata().unwrap().nlink(), 0);
        }
    }
}

#[test]
fn a_deleted_file_stays_readable_and_writable_where_it_is_open() {
    let swarm = Swarm::new(1);
    // Nothing is kept on disk: what is read comes from the seeders.
    let config = |name: &str| swarm_fusefs::mount::MountConfig {
        cache_size: swarm_proto::settings::ByteCount(0),
        ..swarm.config(&format!("{name}-cache"))
    };
    let (one, two) = (swarm.mount_with("one", config("one")), swarm.mount_with("two", config("two")));
    let bytes = noise(31, 9_000_000);
    for deleter in [&one, &two] {
        std::fs::write(one.path("file"), &bytes).unwrap();
        eventually("it shows", || two.path("file").metadata().is_ok_and(|found| found.len() == bytes.len() as u64));
        let reader = File::open(two.path("file")).unwrap();
        let writer = read_write(&one.path("file"));
        let mut start = [0; 100];
        reader.read_exact_at(&mut start, 0).unwrap();
        std::fs::remove_file(deleter.path("file")).unwrap();
        for mounted in [&one, &two] {
            eventually("the name is gone", || !mounted.path("file").exists());
        }
        assert!(content(&reader) == bytes);
        writer.write_all_at(b"written after its end", 50).unwrap();
        let mut read = [0; 21];
        writer.read_exact_at(&mut read, 50).unwrap();
        assert_eq!(&read, b"written after its end");
        writer.sync_all().unwrap();
        close(writer).unwrap();
        assert!(content(&reader) == bytes, "what is written to a file with no name goes with its last handle");
        for mounted in [&one, &two] {
            eventually("nothing is under way", || mounted.unsaved_files() == 0);
            assert!(!mounted.path("file").exists());
            assert!(conflict_copies(mounted, "file").is_empty());
        }
    }
}

#[test]
fn an_open_after_a_close_sees_it_whoever_wrote() {
    let swarm = Swarm::new(1);
    let (one, two) = (swarm.mount("one"), swarm.mount("two"));
    std::fs::write(one.path("file"), b"").unwrap();
    eventually("it shows", || two.path("file").exists());
    let mounts = [&one, &two];
    for round in 0..60_usize {
        let (writer, reader) = (mounts[round % 2], mounts[1 - round % 2]);
        let text = format!("{round} {}", "x".repeat(round * 911 % 40_000));
        let mut file = File::create(writer.path("file")).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        close(file).unwrap();
        assert_eq!(std::fs::read_to_string(reader.path("file")).unwrap(), text, "round {round}");
        std::thread::yield_now();
    }
    assert!(conflict_copies(&one, "file").is_empty());
    assert!(one.path("file").metadata().unwrap().modified().unwrap().elapsed().unwrap() < Duration::from_secs(60));
}
