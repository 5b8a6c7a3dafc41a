//! put, get and cat.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::harness::{Swarm, bytes, tree};

const SEGMENT: usize = 256 * 1024;
const CUT: &[&str] = &["--segment-size", "256KiB"];

fn put(swarm: &Swarm, arguments: &[&str]) -> String {
    swarm.run(&[&["put"], CUT, arguments].concat())
}

/// Everything that a copy can meet.
fn odd_tree(root: &Path) {
    fs::create_dir_all(root.join("empty folder")).unwrap();
    fs::create_dir_all(root.join("a/b/c")).unwrap();
    let sizes = [0, 1, 16_383, 16_384, 16_385, SEGMENT - 1, SEGMENT, SEGMENT + 1, 3 * SEGMENT + 5];
    for (seed, size) in sizes.into_iter().enumerate() {
        fs::write(root.join(format!("a/size-{size}")), bytes(size, seed as u64)).unwrap();
    }
    let names: [&[u8]; 7] = [b"with space", b"new\nline", b"\xff\xfe", b"-dash", b"...", b"*?\\\"'", "ü🦀".as_bytes()];
    for (seed, name) in names.into_iter().enumerate() {
        fs::write(root.join("a/b").join(OsStr::from_bytes(name)), bytes(100 + seed, 99)).unwrap();
    }
    fs::write(root.join("a/b").join("n".repeat(255)), b"long").unwrap();
    symlink("../../nowhere", root.join("a/b/link")).unwrap();
    symlink("/etc/passwd", root.join("absolute")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        root.join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    drop(std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap());
    fs::set_permissions(root.join("a/size-1"), fs::Permissions::from_mode(0o751)).unwrap();
    fs::set_permissions(root.join("a/b/c"), fs::Permissions::from_mode(0o500)).unwrap();
    let old = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    for path in ["a/size-0", "a/b", "empty folder"] {
        fs::File::open(root.join(path)).unwrap().set_modified(old).unwrap();
    }
}

#[test]
fn a_tree_comes_back_as_it_was_put_and_nothing_is_sent_twice() {
    let swarm = Swarm::start();
    let source = swarm.path("source");
    odd_tree(&source);
    let said = put(&swarm, &["source", "/copy"]);
    assert!(said.contains("; 2 replicas") && !said.contains(", 0B sent"), "{said}");
    let again = put(&swarm, &["source", "/again"]);
    assert!(again.contains(": 0B sent"), "{again}");
    for (path, to) in [("/copy", "back"), ("/again", "back2")] {
        swarm.run(&["get", path, to]);
        let (want, got) = (tree(&source), tree(&swarm.path(to)));
        assert_eq!(want.keys().collect::<Vec<_>>(), got.keys().collect::<Vec<_>>());
        for (path, want) in &want {
            assert_eq!(&got[path], want, "{path:?}");
        }
    }
    let said = swarm.run(&["get", "/copy/.", "back"]);
    assert!(said.contains(": 0B fetched"), "{said}");
}

#[test]
fn a_path_relates_to_its_target_as_in_cp() {
    let swarm = Swarm::start();
    fs::create_dir_all(swarm.path("d/e")).unwrap();
    fs::write(swarm.path("d/e/f"), b"f").unwrap();
    fs::write(swarm.path("g"), b"g").unwrap();
    put(&swarm, &["d", "/one"]);
    put(&swarm, &["d", "/one"]);
    put(&swarm, &["d/.", "/one"]);
    put(&swarm, &["g", "/one/h"]);
    put(&swarm, &["g", "d/e/", "/one/"]);
    let list = |path: &str| swarm.run(&["ls", path]).lines().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(list("/one"), ["d", "e", "g", "h"]);
    assert_eq!(list("/one/d"), ["e"]);
    swarm.fails(66, &["put", "g", "/absent/"]);
    swarm.fails(66, &["put", "g", "/absent/x"]);
    swarm.fails(66, &["put", "g", "d", "/absent"]);
    swarm.fails(1, &["put", "d", "/one/g"]);
    swarm.run(&["put", "-p", "g", "/absent/x/y"]);
    assert_eq!(swarm.run(&["cat", "/absent/x/y"]), "g");
    swarm.run(&["get", "/one", "new"]);
    swarm.run(&["get", "/one/d", "/one/h", "new"]);
    assert!(swarm.path("new/d/e/f").is_file() && swarm.path("new/h").is_file());
    swarm.fails(66, &["get", "/one/h", "missing/"]);
}

#[test]
fn an_existing_file_is_replaced_and_a_folder_is_not() {
    let swarm = Swarm::start();
    fs::write(swarm.path("f"), b"first").unwrap();
    put(&swarm, &["f", "/f"]);
    fs::write(swarm.path("f"), b"second").unwrap();
    put(&swarm, &["f", "/f"]);
    assert_eq!(swarm.run(&["cat", "/f"]), "second");
    fs::create_dir_all(swarm.path("tree")).unwrap();
    symlink("elsewhere", swarm.path("tree/l")).unwrap();
    fs::write(swarm.path("tree/x"), b"x").unwrap();
    put(&swarm, &["tree", "/tree"]);
    // What was a link becomes a file, and the other way round.
    fs::remove_file(swarm.path("tree/l")).unwrap();
    fs::remove_file(swarm.path("tree/x")).unwrap();
    fs::write(swarm.path("tree/l"), b"file").unwrap();
    symlink("target", swarm.path("tree/x")).unwrap();
    put(&swarm, &["tree/.", "/tree"]);
    assert_eq!(swarm.run(&["cat", "/tree/l"]), "file");
    let entries = swarm.json(&["ls", "--json", "/tree"]);
    assert_eq!(entries["entries"][1]["target"], "target");
    swarm.run(&["mkdir", "/folder", "/folder/f"]);
    swarm.fails(1, &["put", "f", "/folder"]);
}

#[test]
fn standard_input_goes_in_and_comes_out() {
    let swarm = Swarm::start();
    let content = bytes(3 * SEGMENT + 77, 1);
    swarm.feed(&[&["put"], CUT, &["-", "/stream"]].concat(), &content);
    assert!(swarm.try_run(&["cat", "/stream"]).stdout == content);
    assert!(swarm.try_run(&["get", "/stream", "-"]).stdout == content);
    swarm.feed(&["put", "-", "/nothing"], b"");
    assert_eq!(swarm.run(&["cat", "/nothing"]), "");
    swarm.fails(2, &["put", "-", "/"]);
    swarm.fails(2, &["put", "-", "x", "/y"]);
}

#[test]
fn a_broken_get_goes_on_with_what_is_lacking() {
    let swarm = Swarm::start();
    let content = bytes(8 * SEGMENT, 1);
    fs::write(swarm.path("f"), &content).unwrap();
    put(&swarm, &["f", "/f"]);
    // As an interrupted run leaves it: some segments, one of them rotten.
    let part = fs::File::create(swarm.path(".g.swarm-part")).unwrap();
    part.write_all_at(&content[..3 * SEGMENT], 0).unwrap();
    part.write_all_at(b"rot", 100).unwrap();
    part.write_all_at(&content[5 * SEGMENT..6 * SEGMENT], 5 * SEGMENT as u64).unwrap();
    let said = swarm.run(&["get", "/f", "g"]);
    assert!(said.contains("1.2MiB fetched") && said.contains("768KiB already here"), "{said}");
    assert!(fs::read(swarm.path("g")).unwrap() == content);
    assert!(!swarm.path(".g.swarm-part").exists());
}

#[test]
fn holes_stay_holes_on_both_ways() {
    let swarm = Swarm::start();
    let file = fs::File::create(swarm.path("sparse")).unwrap();
    file.set_len(200 << 20).unwrap();
    file.write_all_at(b"middle", 100 << 20).unwrap();
    put(&swarm, &["sparse", "/sparse"]);
    let stat = swarm.json(&["stat", "--json", "/sparse"]);
    assert!(stat["entries"][0]["content"]["bytes_holes"].as_u64() > Some(198 << 20), "{stat}");
    swarm.run(&["get", "/sparse", "back"]);
    let meta = fs::metadata(swarm.path("back")).unwrap();
    assert_eq!(meta.len(), 200 << 20);
    assert!(meta.blocks() * 512 < 4 << 20, "{} blocks", meta.blocks());
    assert!(fs::read(swarm.path("back")).unwrap() == fs::read(swarm.path("sparse")).unwrap());
}

#[test]
fn thousands_of_small_files_go_in_and_out() {
    let swarm = Swarm::start();
    for folder in 0..20 {
        fs::create_dir_all(swarm.path(&format!("many/{folder}"))).unwrap();
        for file in 0..100 {
            let content = bytes(1 + file * 37, folder * 100 + file as u64);
            fs::write(swarm.path(&format!("many/{folder}/{file}")), content).unwrap();
        }
    }
    let said = put(&swarm, &["many", "/"]);
    assert!(said.starts_with("2000 files"), "{said}");
    swarm.run(&["get", "/many", "back"]);
    assert_eq!(tree(&swarm.path("many")), tree(&swarm.path("back")));
    assert_eq!(swarm.json(&["status", "--json"])["files"], 2_000);
}
