//! The tracker dies in the middle of a read, and comes back.

use std::fs::File;
use std::io::Read;
use std::time::Duration;

use crate::harness::data::list;
use crate::harness::{MountOptions, Swarm, assert_same_file, eventually, write_random};

const MIB: u64 = 1024 * 1024;

#[test]
fn a_read_in_progress_goes_on_and_after_a_restart_all_is_located_again() {
    let mut swarm = Swarm::start(3);
    let source = swarm.scratch("tree");
    write_random(&source.join("large"), 192 * MIB, 1);
    for index in 0..200 {
        write_random(&source.join(format!("small/{index:03}")), 1 + index * 331, index);
    }
    swarm.put(&source, "/tree", 2);
    let extra = ["--max-readahead", "8MiB", "--download-limit", "100MiB"].map(String::from).to_vec();
    let mount = swarm.mount_with(MountOptions { extra, ..MountOptions::default() });

    let mut file = File::open(mount.path("tree/large")).unwrap();
    let mut head = vec![0; 20 << 20];
    file.read_exact(&mut head).unwrap();
    swarm.tracker.kill();
    let mut rest = Vec::new();
    file.read_to_end(&mut rest).unwrap_or_else(|error| panic!("the read under way failed: {error}"));
    head.extend(rest);
    assert!(head == std::fs::read(source.join("large")).unwrap(), "wrong bytes");

    swarm.tracker.start();
    swarm.wait_live(3);
    eventually("all located again", Duration::from_secs(20), || {
        let status = swarm.status();
        status["segments"]["missing"] == 0 && status["segments"]["under_replicated"] == 0
    });
    let status = swarm.status();
    assert_eq!(status["files"], 201, "{status}");
    eventually("new reads work", Duration::from_secs(20), || std::fs::read(mount.path("tree/small/000")).is_ok());
    for name in list(&source.join("small")) {
        assert_same_file(&source.join("small").join(&name), &mount.path("tree/small").join(&name));
    }
}

#[test]
fn what_was_acknowledged_is_there_after_the_tracker_is_killed_during_puts() {
    let mut swarm = Swarm::start(2);
    for round in 0..5u64 {
        let source = swarm.scratch(&format!("tree-{round}"));
        for index in 0..50 {
            write_random(&source.join(format!("{index}")), 5_000 + index, round * 100 + index);
        }
        swarm.put(&source, &format!("/tree-{round}"), 2);
        swarm.tracker.kill();
        swarm.tracker.start();
        swarm.wait_live(2);
    }
    let mount = swarm.mount();
    for round in 0..5 {
        let name = format!("tree-{round}");
        crate::harness::assert_same_tree(&swarm.scratch(&name), &mount.path(&name));
    }
}

#[test]
fn a_catalog_that_was_lost_and_brought_back_is_shown_again_with_no_restart_of_anything() {
    let mut swarm = Swarm::start(2);
    let source = swarm.scratch("tree");
    for index in 0..20 {
        write_random(&source.join(format!("folder-{}/file-{index}", index % 3)), 30_000 * index, index);
    }
    swarm.put(&source, "/tree", 2);
    let export = swarm.scratch("catalog");
    swarm.cli(&["catalog", "export", &export.to_string_lossy()]);
    // The export is older than what the mount has seen.
    for index in 0..10 {
        swarm.put(&source.join("folder-1/file-1"), &format!("/later-{index}"), 2);
    }
    swarm.add_seeder(&[]);
    swarm.wait_live(3);
    let mount = swarm.mount();
    assert!(mount.path("later-9").exists());
    let held = File::open(mount.path("later-5")).unwrap();
    swarm.tracker.kill();
    std::fs::remove_dir_all(swarm.tracker_data()).unwrap();
    swarm.tracker.start();
    eventually("the mount refuses another swarm's names", Duration::from_secs(20), || {
        let names = std::fs::read_dir(&mount.folder).and_then(|names| names.collect::<Result<Vec<_>, _>>());
        names.is_err_and(|error| error.raw_os_error() == Some(116))
    });
    swarm.cli(&["catalog", "import", &export.to_string_lossy()]);
    eventually("the mount shows its swarm again", Duration::from_secs(20), || mount.path("tree/folder-1").exists());
    // Also the seeder that the export knows nothing of.
    swarm.wait_live(3);
    crate::harness::assert_same_tree(&source, &mount.path("tree"));
    assert!(!mount.path("later-9").exists());
    // Its number is no other file's now: its own bytes, or none.
    let mut bytes = Vec::new();
    match (&held).read_to_end(&mut bytes) {
        Ok(_) => assert!(bytes == std::fs::read(source.join("folder-1/file-1")).unwrap()),
        Err(error) => assert!([5, 116].contains(&error.raw_os_error().unwrap()), "{error}"),
    }
    swarm.put(&source.join("folder-1/file-1"), "/new", 2);
    eventually("changes are seen", Duration::from_secs(5), || mount.path("new").exists());
}

#[test]
fn an_exported_catalog_is_imported_into_an_empty_tracker() {
    let mut swarm = Swarm::start(2);
    let source = swarm.scratch("tree");
    for index in 0..20 {
        write_random(&source.join(format!("folder-{}/file-{index}", index % 3)), 10_000 * index, index);
    }
    swarm.put(&source, "/tree", 2);
    let file = swarm.scratch("catalog");
    swarm.cli(&["catalog", "export", &file.to_string_lossy()]);
    swarm.cli(&["rm", "-r", "/tree"]);
    let refused = swarm.try_cli(&["cat", "/tree/folder-1/file-1"]);
    assert_eq!(refused.status.code(), Some(66), "{}", String::from_utf8_lossy(&refused.stderr));
    swarm.cli(&["catalog", "import", "--replace", &file.to_string_lossy()]);
    let mount = swarm.mount();
    crate::harness::assert_same_tree(&source, &mount.path("tree"));
}
