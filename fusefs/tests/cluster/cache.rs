//! The mount's cache: passthrough, restarts, limits and rot.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use crate::harness::data::list;
use crate::harness::swarm::drop_caches;
use crate::harness::{MountOptions, Swarm, assert_same_file, eventually, write_random};

const MIB: u64 = 1024 * 1024;
const FUSE_READS: &str = "swarmfs_fuse_reads_total";
const FETCHED: &str = "swarm_fetch_received_bytes_total";

/// Bytes that a folder takes on disk.
fn disk_bytes(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let size = |name: &std::path::PathBuf| folder.join(name).symlink_metadata().map_or(0, |meta| meta.blocks() * 512);
    list(folder).iter().map(size).sum()
}

#[test]
fn a_cached_file_is_read_with_the_daemon_idle() {
    let mut swarm = Swarm::start(2);
    let source = swarm.scratch("file");
    write_random(&source, 64 * MIB + 333, 1);
    swarm.put(&source, "/file", 2);
    let mount = swarm.mount();
    let path = mount.path("file");
    assert_same_file(&source, &path);
    // The last of it is written to the cache just after the reader has it.
    eventually("a read that the daemon does not see", Duration::from_secs(20), || {
        drop_caches();
        let before = mount.daemon.metrics().sum(FUSE_READS);
        assert_same_file(&source, &path);
        mount.daemon.metrics().sum(FUSE_READS) == before
    });
}

#[test]
fn the_cache_survives_a_restart_and_needs_no_seeder() {
    let mut swarm = Swarm::start(2);
    let source = swarm.scratch("file");
    write_random(&source, 40 * MIB + 1, 2);
    swarm.put(&source, "/file", 2);
    let mut mount = swarm.mount();
    // A cache that is behind is passed over: its disk may be busy with something else.
    eventually("all of it is in the cache", Duration::from_secs(60), || {
        drop_caches();
        let before = mount.daemon.metrics().sum(FETCHED);
        assert_same_file(&source, &mount.path("file"));
        mount.daemon.metrics().sum(FETCHED) == before
    });
    mount.stop();
    swarm.seeders.iter_mut().for_each(|seeder| seeder.kill());
    drop_caches();
    mount.restart();
    assert_same_file(&source, &mount.path("file"));
    assert_eq!(mount.daemon.metrics().sum(FETCHED), 0.0);
}

#[test]
fn a_killed_mount_leaves_a_cache_that_serves_only_right_bytes() {
    let mut swarm = Swarm::start(2);
    let source = swarm.scratch("file");
    write_random(&source, 100 * MIB, 3);
    swarm.put(&source, "/file", 2);
    let mut mount = swarm.mount();
    for round in 0..3 {
        let path = mount.path("file");
        let reader = std::thread::spawn(move || drop(std::fs::read(path)));
        eventually("something is fetched", Duration::from_secs(20), || {
            mount.daemon.metrics().sum(FETCHED) > 10e6 || round > 0
        });
        mount.kill();
        reader.join().unwrap();
        drop_caches();
        mount.restart();
    }
    assert_same_file(&source, &mount.path("file"));
}

#[test]
fn the_cache_keeps_its_limit_under_ten_times_its_size() {
    let mut swarm = Swarm::start(2);
    let source = swarm.scratch("tree");
    for index in 0..40 {
        write_random(&source.join(format!("{index:02}")), 8 * MIB, index);
    }
    swarm.put(&source, "/tree", 1);
    let limit = 32 * MIB;
    let extra = ["--cache-size", "32MiB"].map(String::from).to_vec();
    let mount = swarm.mount_with(MountOptions { extra, ..MountOptions::default() });
    let mut most = 0;
    for index in 0..40 {
        let name = format!("{index:02}");
        assert_same_file(&source.join(&name), &mount.path("tree").join(&name));
        most = most.max(disk_bytes(&mount.cache));
    }
    eprintln!("the cache of 32 MiB took at most {:.1} MiB on disk", most as f64 / MIB as f64);
    // Bitmaps, trees and manifests lie beside the data.
    assert!(most <= limit + limit / 8 + 8 * MIB, "{most} bytes on disk");
    // One file that is larger than the whole cache.
    let large = swarm.scratch("larger");
    write_random(&large, 100 * MIB, 77);
    swarm.put(&large, "/larger", 1);
    assert_same_file(&large, &mount.path("larger"));
    eventually("the cache within its limit again", Duration::from_secs(20), || {
        disk_bytes(&mount.cache) <= limit + limit / 8 + 8 * MIB
    });
}

#[test]
fn a_byte_flipped_in_a_cache_file_while_the_mount_is_down_is_never_served() {
    let mut swarm = Swarm::start(2);
    let source = swarm.scratch("file");
    write_random(&source, 10 * MIB + 17, 4);
    swarm.put(&source, "/file", 2);
    let mut mount = swarm.mount();
    // A cache that is behind is passed over: its disk may be busy with something else.
    eventually("all of it is in the cache", Duration::from_secs(60), || {
        drop_caches();
        let before = mount.daemon.metrics().sum(FETCHED);
        assert_same_file(&source, &mount.path("file"));
        mount.daemon.metrics().sum(FETCHED) == before
    });
    mount.stop();
    // Flip bytes in every file of the cache but its lock: data, bitmap, tree and manifest.
    let mut flipped = 0;
    for name in list(&mount.cache) {
        let path = mount.cache.join(&name);
        let length = path.metadata().unwrap().len();
        if !path.is_file() || length < 16 || name.to_string_lossy().to_lowercase().contains("version") {
            continue;
        }
        let file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
        for offset in [length / 3, length / 2, length - 1] {
            let mut byte = [0];
            file.read_exact_at(&mut byte, offset).unwrap();
            file.write_all_at(&[byte[0] ^ 0x20], offset).unwrap();
            flipped += 1;
        }
    }
    assert!(flipped >= 3, "nothing to flip in {}", mount.cache.display());
    drop_caches();
    mount.restart();
    assert_same_file(&source, &mount.path("file"));
}

#[test]
fn what_a_mount_has_cached_it_serves_when_the_seeders_are_gone() {
    let mut swarm = Swarm::start(1);
    let source = swarm.scratch("file");
    write_random(&source, 24 * MIB + 5, 6);
    swarm.put(&source, "/file", 1);
    let first = swarm.mount();
    assert_same_file(&source, &first.path("file"));
    let second = swarm.mount();
    // The second mount knows the file; then its only seeder goes.
    assert_eq!(std::fs::metadata(second.path("file")).unwrap().len(), 24 * MIB + 5);
    eventually("the tracker knows all that the first mount has", Duration::from_secs(20), || {
        let peers = swarm.peers();
        let mut mounts = peers.as_array().unwrap().iter().filter(|peer| peer["kind"] == "mount");
        mounts.any(|mount| mount["segments"].as_u64() == Some(7))
    });
    swarm.seeders[0].kill();
    assert_same_file(&source, &second.path("file"));
    let served = first.daemon.metrics().sum(crate::harness::swarm::SERVED_BYTES);
    assert!(served >= (24 * MIB) as f64, "the first mount served {served} bytes");
}
