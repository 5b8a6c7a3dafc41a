//! Seeders that were away while a mount saved files get what they lack when they are back.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::harness::data::{close, noise};
use crate::harness::swarm::{Mounted, drop_caches};
use crate::harness::{MountOptions, Swarm, eventually};

/// The mount looks who is up every half minute at most, and sends within seconds.
const SENT_AGAIN: Duration = Duration::from_secs(40);
const MIB: usize = 1024 * 1024;

/// Write a file and close it, which waits until the tracker has given up on whoever is away.
fn save(path: &Path, bytes: &[u8]) {
    let mut file = File::create(path).unwrap();
    file.write_all(bytes).unwrap();
    close(file).unwrap();
}

/// Replicas of the segment of a file that has the fewest.
fn replicas_of(swarm: &Swarm, path: &str) -> u64 {
    let stat = swarm.json(&["stat", "--json", path]);
    let segments = stat["entries"][0]["content"]["segments"].as_array().cloned().unwrap_or_default();
    segments.iter().map(|segment| segment["replicas"].as_u64().unwrap()).min().unwrap_or(u64::MAX)
}

/// Files in which bytes lie that are owed.
fn kept(mount: &Mounted) -> usize {
    let entries = std::fs::read_dir(mount.cache.join("spool/owed")).unwrap();
    entries.filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|found| found == "data")).count()
}

fn owed_files(mount: &Mounted) -> u64 {
    let text = std::fs::read(mount.path(".swarmfs-status")).unwrap();
    let status: serde_json::Value = serde_json::from_slice(&text).unwrap();
    status["owed_files"].as_u64().unwrap()
}

/// Both files, of which only the second seeder needs to be there, as another mount reads them that has nothing.
#[track_caller]
fn assert_second_has(swarm: &mut Swarm, large: &[u8], small: &[u8]) {
    for name in ["/large", "/small"] {
        eventually(&format!("{name} has two replicas"), SENT_AGAIN, || replicas_of(swarm, name) == 2);
    }
    swarm.seeders[0].kill();
    let extra = ["--cache-size", "0"].map(String::from).to_vec();
    let second = swarm.mount_with(MountOptions { extra, ..MountOptions::default() });
    assert!(std::fs::read(second.path("large")).unwrap() == large);
    assert!(std::fs::read(second.path("small")).unwrap() == small);
    assert_eq!(swarm.status()["segments"]["missing"], 0);
}

#[test]
fn a_seeder_that_comes_back_gets_what_was_saved_without_it() {
    let mut swarm = Swarm::start(2);
    let mount = swarm.mount();
    swarm.seeders[1].kill();
    let (large, small) = (noise(1, 9 * MIB), noise(2, 5_000));
    save(&mount.path("large"), &large);
    save(&mount.path("small"), &small);
    save(&mount.path("gone"), &noise(3, 5_000));
    assert_eq!((owed_files(&mount), kept(&mount)), (3, 3));
    std::fs::remove_file(mount.path("gone")).unwrap();
    eventually("what is removed is owed no more", Duration::from_secs(1), || kept(&mount) == 2);
    let began = Instant::now();
    swarm.seeders[1].start();
    eventually("nothing is owed", SENT_AGAIN, || owed_files(&mount) == 0 && kept(&mount) == 0);
    eprintln!("sent again {:?} after the seeder was started", began.elapsed());
    assert_second_has(&mut swarm, &large, &small);
}

#[test]
fn a_mount_that_was_killed_sends_what_seeders_lack_when_it_is_back_though_nobody_else_has_it() {
    let mut swarm = Swarm::start(2);
    let mut mount = swarm.mount();
    swarm.seeders[1].kill();
    let (large, small) = (noise(1, 9 * MIB), noise(2, 5_000));
    save(&mount.path("large"), &large);
    // Open when it dies.
    let open = File::create(mount.path("small")).unwrap();
    open.write_all_at(&small, 0).unwrap();
    open.sync_all().unwrap();
    mount.kill();
    drop(open);
    mount.restart();
    assert_eq!(owed_files(&mount), 2);
    mount.stop();
    // The only one that has them.
    swarm.seeders[0].kill();
    swarm.seeders[1].start();
    mount.restart();
    eventually("nothing is owed to the one that is up", SENT_AGAIN, || replicas_of(&swarm, "/small") == 1);
    eventually("all of it", SENT_AGAIN, || replicas_of(&swarm, "/large") == 1);
    drop_caches();
    assert!(std::fs::read(mount.path("large")).unwrap() == large);
    swarm.seeders[0].start();
    eventually("nothing is owed", SENT_AGAIN, || owed_files(&mount) == 0);
    assert_second_has(&mut swarm, &large, &small);
}

#[test]
fn a_seeder_that_joins_gets_what_was_saved_when_there_were_too_few() {
    let mut swarm = Swarm::start(1);
    let mount = swarm.mount();
    let (large, small) = (noise(1, 9 * MIB), noise(2, 5_000));
    save(&mount.path("large"), &large);
    save(&mount.path("small"), &small);
    swarm.add_seeder(&[]);
    eventually("nothing is owed", SENT_AGAIN, || owed_files(&mount) == 0);
    assert_second_has(&mut swarm, &large, &small);
}

#[test]
fn an_fsync_after_a_seeder_was_killed_sends_it_again_what_it_had_acknowledged() {
    let mut swarm = Swarm::start(2);
    let mount = swarm.mount();
    for (name, length, away) in [("late", 9 * MIB, 3), ("large", 9 * MIB, 0), ("small", 5_000, 0)] {
        let mut file = File::create(mount.path(name)).unwrap();
        file.write_all(&noise(length as u64, length)).unwrap();
        close(file.try_clone().unwrap()).unwrap();
        swarm.seeders[1].kill();
        let victim = &mut swarm.seeders[1];
        let back = move || {
            std::thread::sleep(Duration::from_secs(away));
            victim.start();
        };
        let began = Instant::now();
        std::thread::scope(|scope| {
            let back = scope.spawn(back);
            if away == 0 {
                back.join().unwrap();
            }
            file.sync_all().unwrap_or_else(|error| panic!("sync {name}: {error}"));
        });
        eprintln!("{name}: synced {:?} after the seeder was killed", began.elapsed());
        assert!(began.elapsed() < Duration::from_secs(60), "the write timeout");
        swarm.wait_live(2);
        eventually("both have it", SENT_AGAIN, || replicas_of(&swarm, &format!("/{name}")) == 2);
    }
    assert!(mount.daemon.log().contains("it is sent again"), "nothing was lost:\n{}", mount.daemon.log_tail());
}
