//! ls, stat, status, peers, rm, mv, mkdir and the catalog's file.

use std::fs;

use crate::harness::{Swarm, bytes};

#[test]
fn json_says_what_is_there() {
    let swarm = Swarm::start();
    let content = bytes(300_000, 1);
    fs::write(swarm.path("f"), &content).unwrap();
    swarm.run(&["put", "--segment-size", "256KiB", "f", "/f"]);
    swarm.run(&["put", "f", "/whole"]);
    let stat = swarm.json(&["stat", "--json", "/f", "/whole"]);
    let (cut, whole) = (&stat["entries"][0], &stat["entries"][1]);
    assert_eq!((cut["kind"].as_str(), cut["size"].as_u64()), (Some("file"), Some(300_000)));
    let segments = cut["content"]["segments"].as_array().unwrap();
    assert_eq!(segments.len(), 2);
    assert!(segments.iter().all(|segment| segment["replicas"] == 2), "{cut}");
    assert_eq!(cut["content"]["peers"].as_object().map(|peers| !peers.is_empty()), Some(true));
    assert_eq!(whole["content"]["hash"].as_str(), Some(&blake3::hash(&content).to_string()[..]));
    let status = swarm.json(&["status", "--json"]);
    assert_eq!((status["files"].as_u64(), status["segments"]["missing"].as_u64()), (Some(2), Some(0)), "{status}");
    assert_eq!(status["seeders"]["live"], 3);
    let peers = swarm.json(&["peers", "--json"]);
    let peers = peers.as_array().unwrap();
    assert_eq!(peers.len(), 3);
    assert!(peers.iter().all(|peer| peer["kind"] == "seeder" && peer["state"] == "live"), "{peers:?}");
    assert!(swarm.run(&["status"]).contains("warning: all seeders run on 1 machine"));
}

#[test]
fn names_are_moved_made_and_removed() {
    let swarm = Swarm::start();
    fs::write(swarm.path("f"), b"f").unwrap();
    swarm.run(&["mkdir", "-p", "/a/b/c"]);
    swarm.run(&["put", "f", "/a/b/f"]);
    swarm.run(&["mv", "/a/b", "/moved"]);
    assert_eq!(swarm.run(&["cat", "/moved/f"]), "f");
    swarm.run(&["mv", "/moved/f", "/a"]);
    assert_eq!(swarm.run(&["ls", "/a"]), "f\n");
    swarm.fails(1, &["rm", "/moved"]);
    swarm.run(&["rm", "-r", "/moved", "/a"]);
    assert_eq!(swarm.run(&["ls", "/"]), "");
    swarm.run(&["rm", "-f", "/moved"]);
}

#[test]
fn a_folder_in_the_address_is_the_root_of_all_paths() {
    let swarm = Swarm::start();
    fs::write(swarm.path("f"), b"f").unwrap();
    swarm.run(&["mkdir", "-p", "/team/one"]);
    let inside = format!("{}/team/one", swarm.url());
    swarm.run(&["-t", &inside, "put", "f", "/"]);
    assert_eq!(swarm.run(&["cat", "/team/one/f"]), "f");
    // `..` ends at that folder.
    assert_eq!(swarm.run(&["-t", &inside, "cat", "/../../f"]), "f");
    swarm.fails(66, &["-t", &inside, "ls", "/team"]);
}

#[test]
fn links_on_the_way_are_followed_and_none_leads_out() {
    let swarm = Swarm::start();
    fs::create_dir_all(swarm.path("t/real")).unwrap();
    fs::write(swarm.path("t/real/f"), b"f").unwrap();
    std::os::unix::fs::symlink("real", swarm.path("t/link")).unwrap();
    std::os::unix::fs::symlink("/etc", swarm.path("t/out")).unwrap();
    std::os::unix::fs::symlink("loop", swarm.path("t/loop")).unwrap();
    swarm.run(&["put", "t", "/t"]);
    assert_eq!(swarm.run(&["cat", "/t/link/f"]), "f");
    assert_eq!(swarm.run(&["cat", "/t/link/../real/./f"]), "f");
    swarm.fails(66, &["cat", "/t/out/passwd"]);
    swarm.fails(1, &["cat", "/t/loop"]);
}

#[test]
fn the_catalog_is_saved_and_brought_back() {
    let swarm = Swarm::start();
    fs::write(swarm.path("f"), b"content").unwrap();
    swarm.run(&["put", "f", "/f"]);
    swarm.run(&["catalog", "export", "saved"]);
    let streamed = swarm.try_run(&["catalog", "export", "-"]);
    // What is no file stays what it is, as does a link.
    assert!(std::process::Command::new("mkfifo").arg(swarm.path("pipe")).status().unwrap().success());
    let pipe = swarm.path("pipe");
    let piped = std::thread::spawn(move || fs::read(pipe).unwrap());
    swarm.run(&["catalog", "export", "pipe"]);
    // Each says when it was made.
    assert_eq!(piped.join().unwrap().len(), streamed.stdout.len());
    std::os::unix::fs::symlink("saved", swarm.path("link")).unwrap();
    swarm.run(&["catalog", "export", "link"]);
    assert!(swarm.path("link").is_symlink() && !swarm.path("pipe").is_file());
    swarm.run(&["rm", "/f"]);
    swarm.run(&["put", "f", "/other"]);
    let said = swarm.fails(1, &["catalog", "import", "saved"]);
    assert!(said.contains("--replace"), "{said}");
    swarm.run(&["catalog", "import", "--replace", "saved"]);
    assert_eq!(swarm.run(&["ls", "/"]), "f\n");
    assert_eq!(swarm.run(&["cat", "/f"]), "content");
    swarm.run(&["rm", "/f"]);
    swarm.feed(&["catalog", "import", "--replace", "-"], &streamed.stdout);
    assert_eq!(swarm.run(&["cat", "/f"]), "content");
    fs::write(swarm.path("noise"), bytes(1_000, 1)).unwrap();
    swarm.fails(65, &["catalog", "import", "--replace", "noise"]);
    assert_eq!(swarm.run(&["cat", "/f"]), "content");
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let swarm = Swarm::start();
    fs::write(swarm.path("f"), bytes(8 << 20, 1)).unwrap();
    swarm.run(&["put", "f", "/f"]);
    let tool = env!("CARGO_BIN_EXE_swarmfs");
    let script = format!("{tool} cat /f | head -c 10 >/dev/null; test ${{PIPESTATUS[0]}} = 0");
    let status = std::process::Command::new("bash").args(["-c", &script]).env("SWARM_TRACKER", swarm.url()).status();
    assert!(status.unwrap().success());
}
