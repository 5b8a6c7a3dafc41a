//! Seeders die in the middle of reads and of writes; readers do not notice, and nothing acknowledged is
//! lost.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rand::Rng;

use crate::harness::process::binary;
use crate::harness::swarm::drop_caches;
use crate::harness::{
    MountOptions, Swarm, assert_same_file, eventually, only_in_soak, read_in_steps, rounds, soak, write_random,
};

const MIB: u64 = 1024 * 1024;

#[test]
fn a_reader_does_not_notice_that_a_seeder_is_killed() {
    for round in 0..rounds(1, 10) {
        let mut swarm = Swarm::start(3);
        let source = swarm.scratch("large");
        write_random(&source, rounds(256, 1024) as u64 * MIB, round as u64);
        swarm.put(&source, "/large", 2);
        // A small window and a limit, so that the read is still under way when the seeder dies.
        let extra = ["--max-readahead", "8MiB", "--download-limit", "200MiB"].map(String::from).to_vec();
        let mount = swarm.mount_with(MountOptions { extra, ..MountOptions::default() });
        let victim = round % 3;
        let seeders = &mut swarm.seeders;
        let longest = read_in_steps(&mount.path("large"), &source, |done| {
            if done == 40 {
                seeders[victim].kill();
            }
        });
        eprintln!("round {round}: the longest wait for one MiB was {longest:?}");
        if soak() {
            assert!(longest < Duration::from_secs(2), "a stall of {longest:?}");
        }
    }
}

#[test]
fn short_files_that_were_written_lately_are_read_with_no_seeder_left() {
    let mut swarm = Swarm::start(2);
    let mut mount = swarm.mount();
    let bytes = |number: u8| vec![number; 1_000 + 5_000 * usize::from(number)];
    for number in 0..10 {
        std::fs::write(mount.path(&format!("short-{number}")), bytes(number)).unwrap();
    }
    let names: Vec<_> = (0..10).map(|number| mount.path(&format!("short-{number}"))).collect();
    swarm.seeders.iter_mut().for_each(|seeder| seeder.kill());
    for (number, name) in (0..).zip(&names) {
        let file = std::fs::File::open(name).unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        assert_eq!(std::io::Read::bytes(file).collect::<Result<Vec<u8>, _>>().unwrap(), bytes(number));
    }
    swarm.seeders.iter_mut().for_each(|seeder| seeder.start());
    mount.stop();
}

#[test]
fn a_reader_does_not_notice_that_a_seeder_stops_answering() {
    let mut swarm = Swarm::start(3);
    let source = swarm.scratch("large");
    write_random(&source, 128 * MIB, 3);
    swarm.put(&source, "/large", 2);
    let extra = ["--max-readahead", "8MiB", "--download-limit", "100MiB"].map(String::from).to_vec();
    let mount = swarm.mount_with(MountOptions { extra, ..MountOptions::default() });
    let seeders = &mut swarm.seeders;
    let longest = read_in_steps(&mount.path("large"), &source, |done| {
        if done == 20 {
            seeders[1].signal("STOP");
        }
    });
    swarm.seeders[1].signal("CONT");
    eprintln!("the longest wait for one MiB was {longest:?}");
}

#[test]
fn with_all_holders_gone_a_read_fails_in_time_and_works_again_when_they_are_back() {
    let mut swarm = Swarm::start(2);
    let source = swarm.scratch("file");
    write_random(&source, 8 * MIB, 5);
    swarm.put(&source, "/file", 2);
    let extra = ["--read-timeout", "3s"].map(String::from).to_vec();
    let mount = swarm.mount_with(MountOptions { extra, ..MountOptions::default() });
    swarm.seeders.iter_mut().for_each(|seeder| seeder.kill());
    let began = Instant::now();
    let error = std::fs::read(mount.path("file")).expect_err("nobody has it");
    let waited = began.elapsed();
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    eprintln!("EIO after {waited:?} with a read timeout of 3 s");
    swarm.seeders.iter_mut().for_each(|seeder| seeder.start());
    eventually("reads work again with no remount", Duration::from_secs(20), || {
        std::fs::read(mount.path("file")).is_ok_and(|bytes| bytes == std::fs::read(&source).unwrap())
    });
}

#[test]
fn a_seeder_killed_during_put_loses_nothing_that_it_acknowledged() {
    let mut rng = rand::rng();
    let mut swarm = Swarm::start(2);
    let mut finished: Vec<(std::path::PathBuf, String)> = Vec::new();
    for round in 0..rounds(10, 50) {
        let source = swarm.scratch(&format!("file-{round}"));
        write_random(&source, 24 * MIB + rng.random_range(0..MIB), 1_000 + round as u64);
        let target = format!("/file-{round}");
        let mut put = Command::new(binary("swarmfs"))
            .args(["put", "--replicas", "2", &source.to_string_lossy(), &target])
            .env("SWARM_TRACKER", &swarm.tracker_url)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(rng.random_range(0..250)));
        let victim = round % 2;
        swarm.seeders[victim].kill();
        swarm.seeders[victim].start();
        if put.wait().unwrap().success() {
            finished.push((source, target));
        }
        swarm.wait_live(2);
        let status = swarm.status();
        assert_eq!(status["segments"]["missing"], 0, "round {round}: {status}");
        assert_eq!(status["segments"]["corrupt"], 0, "round {round}: {status}");
    }
    eprintln!("{} puts of {} were acknowledged", finished.len(), rounds(10, 50));
    drop_caches();
    for (source, target) in &finished {
        let copy = swarm.scratch("copy");
        swarm.cli(&["get", target, &copy.to_string_lossy()]);
        assert_same_file(source, &copy);
        std::fs::remove_file(copy).unwrap();
    }
    // Each seeder alone has all that it announces: stop the other and read everything again.
    for alone in 0..2 {
        swarm.seeders[1 - alone].kill();
        for (source, target) in &finished {
            let copy = swarm.scratch("copy");
            let held = swarm.try_cli(&["get", target, &copy.to_string_lossy()]);
            if held.status.success() {
                assert_same_file(source, &copy);
                std::fs::remove_file(copy).unwrap();
            }
        }
        swarm.seeders[1 - alone].start();
        swarm.wait_live(2);
    }
}

#[test]
fn no_stall_above_two_seconds_when_any_seeder_is_killed_under_full_speed() {
    if only_in_soak("the longest stall at full speed") {
        return;
    }
    for (victim, local_reads) in [(0, false), (1, false), (2, false), (0, true), (1, true), (2, true)] {
        let mut swarm = Swarm::start(3);
        let source = swarm.scratch("large");
        write_random(&source, 1024 * MIB, victim as u64);
        swarm.put(&source, "/large", 2);
        drop_caches();
        let mount = swarm.mount_with(MountOptions { local_reads, ..MountOptions::default() });
        let seeders = &mut swarm.seeders;
        let longest = read_in_steps(&mount.path("large"), &source, |done| {
            if done == 100 {
                seeders[victim].kill();
            }
        });
        let way = if local_reads { "reading its files" } else { "over the network" };
        eprintln!("seeder {victim} killed at full speed, {way}: the longest wait for one MiB was {longest:?}");
        assert!(longest < Duration::from_secs(2), "a stall of {longest:?}");
    }
}
