//! The tracker dies in the middle of a read, and comes back.

use std::fs::File;
use std::io::Read;
use std::time::Duration;

use crate::harness::data::list;
use crate::harness::process::binary;
use crate::harness::{MountOptions, Swarm, assert_same_file, assert_same_tree, eventually, write_random};

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
        assert_same_tree(&swarm.scratch(&name), &mount.path(&name));
    }
}

#[test]
fn a_catalog_that_was_lost_and_brought_back_is_shown_again_with_no_restart_of_anything() {
    let mut swarm = Swarm::start(2);
    let source = swarm.scratch("tree");
    for index in 0..20 {
        write_random(&source.join(format!("folder-{}/file-{index}", index % 3)), 30_000 * index, index);
    }
    // Whose number comes before those of the tree.
    swarm.put(&source.join("folder-0/file-3"), "/early", 2);
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
    let offline = swarm.mount_with(MountOptions { extra: vec!["--offline-ok".to_owned()], ..MountOptions::default() });
    assert_same_tree(&source, &offline.path("tree"));
    assert!(mount.path("later-9").exists());
    let held = ["later-5", "early"].map(|name| File::open(mount.path(name)).unwrap());
    swarm.tracker.kill();
    std::fs::remove_dir_all(swarm.tracker_data()).unwrap();
    swarm.tracker.start();
    eventually("the mount refuses another swarm's names", Duration::from_secs(20), || {
        let names = std::fs::read_dir(&mount.folder).and_then(|names| names.collect::<Result<Vec<_>, _>>());
        names.is_err_and(|error| error.raw_os_error() == Some(116))
    });
    eventually("the other one shows what it knew", Duration::from_secs(20), || {
        std::fs::read_dir(offline.path("tree")).is_ok_and(|names| names.count() == 3)
    });
    // Its seeders are no others', and nothing is placed on them or waits for them.
    let refused = swarm.try_cli(&["put", &source.join("folder-1/file-1").to_string_lossy(), "/lost"]);
    assert_eq!(refused.status.code(), Some(69), "{}", String::from_utf8_lossy(&refused.stderr));
    assert_eq!(swarm.peers().as_array().map(Vec::len), Some(0), "{}", swarm.peers());
    swarm.cli(&["catalog", "import", &export.to_string_lossy()]);
    eventually("the mount shows its swarm again", Duration::from_secs(20), || mount.path("tree/folder-1").exists());
    // Also the seeder that the export knows nothing of.
    swarm.wait_live(3);
    for mount in [&mount, &offline] {
        eventually("all is there", Duration::from_secs(20), || {
            let names = std::fs::read_dir(&mount.folder).and_then(|names| names.collect::<Result<Vec<_>, _>>());
            names.is_ok_and(|names| names.len() == 2)
        });
        assert_same_tree(&source, &mount.path("tree"));
    }
    // Their numbers are no other files' now.
    for (mut file, name) in held.iter().zip(["folder-1/file-1", "folder-0/file-3"]) {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        assert!(bytes == std::fs::read(source.join(name)).unwrap());
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
    assert_same_tree(&source, &mount.path("tree"));
}

#[test]
fn addresses_of_two_swarms_are_refused_by_all_programs() {
    let (one, other) = (Swarm::start(1), Swarm::start(0));
    let both = format!("{},{}", one.tracker_url, other.tracker_url.trim_start_matches("swarm://"));
    let folder = one.scratch("mounted");
    let mount = ["mount", both.as_str(), &folder.to_string_lossy()].map(str::to_owned).to_vec();
    for arguments in [vec!["-t".to_owned(), both.clone(), "ls".to_owned()], mount] {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let refused = one.try_cli(&arguments);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(78), "{arguments:?}: {said}");
        assert!(said.contains("replicas of one tracker"), "{said}");
    }
    let mut seeder = std::process::Command::new(binary("swarm-seeder"));
    let data = one.scratch("seeder");
    seeder.args(["--tracker", &both, "--listen", "127.0.0.1:0", "--admin-listen", "off", "--data"]).arg(&data);
    let ended = seeder.output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(!ended.status.success() && said.contains("replicas of one tracker"), "{said}");
    // It joined neither.
    for swarm in [&one, &other] {
        assert!(swarm.peers().as_array().unwrap().iter().all(|peer| peer["state"] == "live"), "{}", swarm.peers());
    }
}
