//! Hostile and rotten peers waste time, never a byte.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::harness::data::list;
use crate::harness::liar::{Liar, Lie};
use crate::harness::process::free_port;
use crate::harness::swarm::drop_caches;
use crate::harness::{MountOptions, Swarm, assert_same_file, eventually, write_random};

const MIB: u64 = 1024 * 1024;

/// Two honest seeders and one behind a liar, all with the same file.
fn swarm_with_a_liar() -> (Swarm, Liar, PathBuf) {
    let mut swarm = Swarm::start(2);
    let listen = format!("127.0.0.1:{}", free_port());
    let liar = Liar::before(&listen);
    swarm.add_seeder(&["--listen", &listen, "--advertise", &liar.address.to_string()]);
    swarm.wait_live(3);
    let source = swarm.scratch("file");
    write_random(&source, 64 * MIB + 4321, 1);
    swarm.put(&source, "/file", 3);
    (swarm, liar, source)
}

#[test]
fn no_lie_ever_yields_a_wrong_byte() {
    let (mut swarm, liar, source) = swarm_with_a_liar();
    for lie in Lie::ALL {
        liar.tell(lie);
        let told = liar.lies_told();
        // The liar stands in the way also of who would read the files behind it.
        let mut mount = swarm.mount_with(MountOptions { local_reads: true, ..MountOptions::default() });
        assert_same_file(&source, &mount.path("file"));
        let told = liar.lies_told() - told;
        eprintln!("{lie:?}: told {told} times, every byte right");
        assert!(told > 0, "{lie:?}: the liar was never asked");
        mount.stop();
    }
}

#[test]
fn a_liar_that_goes_on_is_reported_and_banned() {
    let (mut swarm, liar, source) = swarm_with_a_liar();
    liar.tell(Lie::WrongBytes);
    let mount = swarm.mount();
    assert_same_file(&source, &mount.path("file"));
    let metrics = mount.daemon.metrics();
    assert!(metrics.sum("swarm_fetch_corrupt_total") >= 3.0);
    assert_eq!(metrics.sum("swarm_fetch_banned_peers"), 1.0);
    let told = liar.lies_told();
    // Of its 17 segments the liar is asked for a few before it is banned, and for none after.
    let again = swarm.scratch("again");
    write_random(&again, 32 * MIB, 2);
    swarm.put(&again, "/again", 3);
    assert_same_file(&again, &mount.path("again"));
    assert_eq!(liar.lies_told(), told, "a banned peer was asked again");
    eventually("the reports are seen", Duration::from_secs(10), || {
        swarm.peers().as_array().unwrap().iter().any(|peer| peer["corrupt_reports"].as_u64() > Some(0))
    });
    // What it said of itself the tracker had verified: the seeder behind it is honest, so nothing is lost.
    let status = swarm.status();
    assert_eq!(status["segments"]["missing"], 0, "{status}");
}

/// The largest file of a seeder's store that is a segment file.
fn a_segment_file(folder: &Path) -> PathBuf {
    let length = |name: &PathBuf| folder.join(name).metadata().map_or(0, |meta| meta.len());
    let segments = list(folder).into_iter().filter(|name| (4 * MIB..=5 * MIB).contains(&length(name)));
    let name = segments.max_by_key(|name| name.to_string_lossy().len()).expect("a segment file");
    folder.join(name)
}

#[test]
fn what_no_holder_has_right_is_said_to_be_corrupt() {
    let swarm = Swarm::start(1);
    let source = swarm.scratch("file");
    write_random(&source, 4 * MIB, 2);
    swarm.put(&source, "/file", 1);
    let rotten = a_segment_file(&swarm.seeder_data(0));
    let file = std::fs::File::options().write(true).read(true).open(rotten).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 1_000_000).unwrap();
    file.write_all_at(&[!byte[0]], 1_000_000).unwrap();
    let to = swarm.scratch("got");
    // Also when it is known there, and no longer found.
    for _ in 0..2 {
        let got = swarm.try_cli(&["get", "--read-timeout", "3s", "/file", &to.to_string_lossy()]);
        let said = String::from_utf8_lossy(&got.stderr);
        assert_eq!(got.status.code(), Some(65), "{said}");
        assert!(!to.exists() && said.contains("/file") && said.contains("verify"), "{said}");
    }
    eventually("it is counted", Duration::from_secs(20), || swarm.status()["segments"]["corrupt"] == 1);
}

#[test]
fn one_rotten_chunk_at_an_honest_seeder_bans_nobody_and_is_repaired_there() {
    let mut swarm = Swarm::start(2);
    let source = swarm.scratch("file");
    write_random(&source, 32 * MIB, 1);
    swarm.put(&source, "/file", 2);
    let rotten = a_segment_file(&swarm.seeder_data(0));
    let right = std::fs::read(&rotten).unwrap();
    let file = std::fs::File::options().write(true).open(&rotten).unwrap();
    let mut byte = [right[1_000_000]];
    byte[0] ^= 0xFF;
    file.write_all_at(&byte, 1_000_000).unwrap();
    drop_caches();
    for local_reads in [true, false, true, false] {
        let mut mount = swarm.mount_with(MountOptions { local_reads, ..MountOptions::default() });
        assert_same_file(&source, &mount.path("file"));
        assert_eq!(mount.daemon.metrics().sum("swarm_fetch_banned_peers"), 0.0);
        mount.stop();
    }
    eventually("the rotten chunk is repaired", Duration::from_secs(30), || {
        let mut mount = swarm.mount();
        assert_same_file(&source, &mount.path("file"));
        mount.stop();
        let status = swarm.status();
        status["segments"]["corrupt"] == 0
            && status["segments"]["under_replicated"] == 0
            && std::fs::read(&rotten).is_ok_and(|bytes| bytes == right)
    });
    // The repaired seeder alone serves all of it.
    swarm.seeders[1].kill();
    drop_caches();
    let mount = swarm.mount();
    assert_same_file(&source, &mount.path("file"));
}
