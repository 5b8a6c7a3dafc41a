//! Every file of a real tree is byte-identical by every way out, also after a restart of everything.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::data::list;
use crate::harness::{MountOptions, Swarm, assert_same_file, assert_same_tree, only_in_soak, write_random};

const CHUNK: u64 = 16 * 1024;
const SEGMENT: u64 = 4 * 1024 * 1024;

fn toolchain() -> PathBuf {
    let output = Command::new("rustc").args(["--print", "sysroot"]).output().unwrap();
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

/// Copy the part of the toolchain that a short run can afford: all of `lib`, and some thousands of small
/// files of the documentation.
fn copy_of_the_toolchain(target: &Path, small_files: usize) {
    std::fs::create_dir_all(target).unwrap();
    let copied = Command::new("cp").arg("-a").arg(toolchain().join("lib")).arg(target).status().unwrap();
    assert!(copied.success());
    let documents = toolchain().join("share");
    let mut left = small_files;
    for name in list(&documents) {
        let source = documents.join(&name);
        if left > 0 && source.is_file() {
            std::fs::create_dir_all(target.join("share").join(name.parent().unwrap())).unwrap();
            std::fs::copy(&source, target.join("share").join(&name)).unwrap();
            left -= 1;
        }
    }
}

fn edge_files(folder: &Path) {
    for (index, length) in
        [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 3 * SEGMENT + 5 * CHUNK + 7]
            .into_iter()
            .enumerate()
    {
        write_random(&folder.join(format!("edge-{length}")), length, index as u64);
    }
    // One file of more than 2 GiB: mostly a hole, with bytes at its start, its end and around 2 GiB.
    use std::os::unix::fs::FileExt;
    let large = std::fs::File::create(folder.join("sparse-3GiB")).unwrap();
    large.set_len(3 << 30).unwrap();
    for offset in [0, (2 << 30) - 5, (3 << 30) - 10] {
        large.write_all_at(b"0123456789", offset).unwrap();
    }
}

#[test]
fn a_real_tree_is_identical_through_the_mount_by_get_and_after_a_restart() {
    let mut swarm = Swarm::start(3);
    let source = swarm.scratch("tree");
    copy_of_the_toolchain(&source, 3_000);
    edge_files(&source);
    write_random(&source.join("large-2GiB"), (2 << 30) + 12_345, 99);
    std::os::unix::fs::symlink("lib", source.join("link-to-folder")).unwrap();
    std::os::unix::fs::symlink("no/such/thing", source.join("dangling")).unwrap();

    swarm.put(&source, "/tree", 2);
    let mut mount = swarm.mount();
    let files = assert_same_tree(&source, &mount.path("tree"));
    assert!(files > 3_000, "{files} files compared");

    let fetched = swarm.scratch("fetched");
    swarm.cli(&["get", "/tree", &fetched.to_string_lossy()]);
    assert_same_tree(&source, &fetched);
    std::fs::remove_dir_all(&fetched).unwrap();

    mount.stop();
    for seeder in &mut swarm.seeders {
        assert!(seeder.stop().success(), "{}", seeder.log_tail());
    }
    assert!(swarm.tracker.stop().success(), "{}", swarm.tracker.log_tail());
    swarm.tracker.start();
    swarm.seeders.iter_mut().for_each(|seeder| seeder.start());
    swarm.wait_live(3);
    let fresh = swarm.mount();
    for name in ["large-2GiB", "edge-1", "edge-16384", "edge-4194305", "sparse-3GiB"] {
        assert_same_file(&source.join(name), &fresh.path("tree").join(name));
    }
    assert_same_tree(&source.join("share"), &fresh.path("tree/share"));
    let status = swarm.status();
    assert_eq!(status["segments"]["missing"], 0, "{status}");
    assert_eq!(status["segments"]["under_replicated"], 0, "{status}");
}

#[test]
fn the_whole_toolchain_is_identical() {
    if only_in_soak("the whole toolchain") {
        return;
    }
    let mut swarm = Swarm::start(3);
    swarm.put(&toolchain(), "/toolchain", 2);
    let mount = swarm.mount();
    let files = assert_same_tree(&toolchain(), &mount.path("toolchain"));
    eprintln!("{files} files of the toolchain are identical through the mount");
}

#[test]
fn a_folder_of_the_swarm_is_mounted_by_itself() {
    let mut swarm = Swarm::start(1);
    let source = swarm.scratch("source");
    write_random(&source.join("inner/file"), 100_000, 1);
    swarm.put(&source, "/outer", 1);
    let url = format!("{}/outer/inner", swarm.tracker_url);
    let mount = swarm.mount_at(&url, MountOptions::default());
    assert_same_file(&source.join("inner/file"), &mount.path("file"));
}
