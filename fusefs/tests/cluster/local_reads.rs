//! A mount beside its seeders reads their files itself; all that is promised of reads holds as over the network.

use std::time::Duration;

use crate::harness::swarm::drop_caches;
use crate::harness::{MountOptions, Swarm, assert_same_file, eventually, read_in_steps, write_random};

const MIB: u64 = 1024 * 1024;

fn beside(extra: &[&str]) -> MountOptions {
    let extra = extra.iter().map(|word| (*word).to_owned()).collect();
    MountOptions { local_reads: true, extra, ..MountOptions::default() }
}

#[test]
fn a_file_is_read_from_the_files_of_all_its_holders() {
    let mut swarm = Swarm::start(4);
    let source = swarm.scratch("large");
    write_random(&source, 256 * MIB, 21);
    swarm.put(&source, "/large", 4);
    let mount = swarm.mount_with(beside(&[]));
    assert_same_file(&source, &mount.path("large"));
    let served = swarm.served_bytes();
    let all: f64 = served.iter().sum();
    let shares: Vec<f64> = served.iter().map(|bytes| 100.0 * bytes / all).collect();
    eprintln!("shares of the four seeders: {shares:.1?} %");
    assert!(shares.iter().all(|share| (15.0..=35.0).contains(share)), "shares {shares:.1?} %");
    let lent: f64 = swarm.seeders.iter().map(|seeder| seeder.metrics().sum("swarm_peer_lent_bytes_total")).sum();
    assert!(lent == all, "{lent} of {all} bytes were lent");
    let metrics = mount.daemon.metrics();
    let (local, received) =
        (metrics.sum("swarm_fetch_local_bytes_total"), metrics.sum("swarm_fetch_received_bytes_total"));
    assert!(local >= (256 * MIB) as f64 && local == received, "{local} of {received} bytes were read here");
}

#[test]
fn a_reader_does_not_notice_that_a_seeder_whose_files_it_reads_is_killed() {
    let mut swarm = Swarm::start(3);
    let source = swarm.scratch("large");
    write_random(&source, 256 * MIB, 22);
    swarm.put(&source, "/large", 2);
    let mount = swarm.mount_with(beside(&["--max-readahead", "8MiB", "--download-limit", "200MiB"]));
    let seeders = &mut swarm.seeders;
    let longest = read_in_steps(&mount.path("large"), &source, |done| match done {
        40 => seeders[0].kill(),
        120 => seeders[0].start(),
        130 => seeders[1].signal("STOP"),
        _ => {}
    });
    swarm.seeders[1].signal("CONT");
    assert!(mount.daemon.metrics().sum("swarm_fetch_local_bytes_total") > 100.0 * MIB as f64, "hardly any was lent");
    eprintln!("the longest wait for one MiB was {longest:?}");
}

#[test]
fn with_all_gone_a_read_fails_in_time_and_works_again_when_they_are_back() {
    let mut swarm = Swarm::start(2);
    let source = swarm.scratch("file");
    write_random(&source, 8 * MIB, 23);
    swarm.put(&source, "/file", 2);
    let mount = swarm.mount_with(beside(&["--read-timeout", "3s"]));
    swarm.seeders.iter_mut().for_each(|seeder| seeder.kill());
    let error = std::fs::read(mount.path("file")).expect_err("nobody has it");
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    swarm.seeders.iter_mut().for_each(|seeder| seeder.start());
    eventually("reads work again with no remount", Duration::from_secs(20), || {
        std::fs::read(mount.path("file")).is_ok_and(|bytes| bytes == std::fs::read(&source).unwrap())
    });
    let local = mount.daemon.metrics().sum("swarm_fetch_local_bytes_total");
    assert!(local > 0.0, "they lend again");
}

#[test]
fn a_seeder_behind_another_address_is_read_over_the_network() {
    // Whoever stands there may shape, count or change what passes: it is not gone around.
    let mut swarm = Swarm::start(0);
    let port = crate::harness::process::free_port();
    let listen = format!("127.0.0.1:{port}");
    swarm.add_seeder(&["--listen", &listen, "--advertise", &format!("localhost:{port}")]);
    swarm.wait_live(1);
    let source = swarm.scratch("file");
    write_random(&source, 8 * MIB, 24);
    swarm.put(&source, "/file", 1);
    drop_caches();
    let mount = swarm.mount_with(beside(&[]));
    assert_same_file(&source, &mount.path("file"));
    let metrics = mount.daemon.metrics();
    assert_eq!(metrics.sum("swarm_fetch_local_bytes_total"), 0.0);
    assert!(metrics.sum("swarm_fetch_received_bytes_total") > (8 * MIB) as f64);
}
