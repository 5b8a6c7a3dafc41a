//! One file is really read from all its holders at once, and no more of it than was asked for.

use std::os::unix::fs::FileExt;

use crate::harness::swarm::drop_caches;
use crate::harness::{Swarm, assert_same_file, rounds, write_random};

#[test]
fn four_equal_seeders_each_serve_their_share() {
    let mut swarm = Swarm::start(4);
    let source = swarm.scratch("large");
    write_random(&source, rounds(512, 2048) as u64 * 1024 * 1024, 4);
    swarm.put(&source, "/large", 4);
    let before = swarm.served_bytes();
    let mount = swarm.mount();
    assert_same_file(&source, &mount.path("large"));
    let served: Vec<f64> = swarm.served_bytes().iter().zip(before).map(|(after, before)| after - before).collect();
    let all: f64 = served.iter().sum();
    let shares: Vec<f64> = served.iter().map(|bytes| 100.0 * bytes / all).collect();
    eprintln!("shares of the four seeders: {shares:.1?} %");
    assert!(shares.iter().all(|share| (15.0..=35.0).contains(share)), "shares {shares:.1?} %");
}

#[test]
fn a_cold_read_of_4_kib_moves_one_chunk_and_its_tree() {
    let mut swarm = Swarm::start(2);
    let source = swarm.scratch("large");
    write_random(&source, (2 << 30) + 1, 7);
    swarm.put(&source, "/large", 1);
    let mount = swarm.mount();
    drop_caches();
    let before: f64 = swarm.served_bytes().iter().sum();
    let fetched_before = mount.daemon.metrics().sum("swarm_fetch_received_bytes_total");
    let offset = (1 << 30) + 8_192;
    let mut got = vec![0; 4096];
    std::fs::File::open(mount.path("large")).unwrap().read_exact_at(&mut got, offset).unwrap();
    let mut want = vec![0; 4096];
    std::fs::File::open(&source).unwrap().read_exact_at(&mut want, offset).unwrap();
    assert_eq!(got, want);
    let moved = swarm.served_bytes().iter().sum::<f64>() - before;
    let fetched = mount.daemon.metrics().sum("swarm_fetch_received_bytes_total") - fetched_before;
    eprintln!("a cold read of 4 KiB moved {moved} bytes of payload (the mount counts {fetched})");
    assert!((16_384.0..=32_768.0).contains(&moved), "{moved} bytes moved");
    assert!(fetched <= 32_768.0, "{fetched} bytes fetched");
}
