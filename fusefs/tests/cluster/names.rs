//! Names as Linux allows them, and names as it does not.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crate::harness::{Swarm, assert_same_tree};

#[test]
fn every_name_that_linux_allows_goes_round() {
    let mut swarm = Swarm::start(1);
    let source = swarm.scratch("odd");
    std::fs::create_dir_all(&source).unwrap();
    let longest = "n".repeat(255);
    let names: Vec<&[u8]> = vec![
        longest.as_bytes(),
        b"with space",
        b"new\nline",
        b"\xff\xfe not UTF-8",
        b"-dash",
        b"...",
        b"..x",
        b"*?[]{}'\"\\$`",
        "ünïcode – ✓ 🦀".as_bytes(),
        b"\x01\x7f\t",
        b"%2e%2e",
    ];
    for (index, name) in names.iter().enumerate() {
        std::fs::write(source.join(OsStr::from_bytes(name)), vec![7; index * 1000]).unwrap();
    }
    swarm.put(&source, "/odd", 1);
    let mount = swarm.mount();
    assert_eq!(assert_same_tree(&source, &mount.path("odd")), names.len());
    let fetched = swarm.scratch("fetched");
    swarm.cli(&["get", "/odd", &fetched.to_string_lossy()]);
    assert_same_tree(&source, &fetched);
    let listed = swarm.json(&["ls", "--json", "/odd"]);
    assert_eq!(listed["entries"].as_array().map(Vec::len), Some(names.len()), "{listed}");
    swarm.cli(&["rm", "-r", "/odd"]);
    assert!(!mount.path("odd").exists() || eventually_gone(&mount.path("odd")));
}

fn eventually_gone(path: &std::path::Path) -> bool {
    crate::harness::eventually("a removed name is gone from the mount", std::time::Duration::from_secs(5), || {
        !path.exists()
    });
    true
}

#[test]
fn a_name_of_256_bytes_is_refused_clearly() {
    let mut swarm = Swarm::start(1);
    let source = swarm.scratch("file");
    std::fs::write(&source, b"x").unwrap();
    let refused = swarm.try_cli(&["put", &source.to_string_lossy(), &format!("/{}", "n".repeat(256))]);
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr).to_lowercase();
    assert!(said.contains("255") || said.contains("too long"), "{said}");
    let mount = swarm.mount();
    let error = std::fs::metadata(mount.path(&"n".repeat(256))).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(36), "{error}");
    let error = std::fs::write(mount.path(&"n".repeat(256)), b"x").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(36), "{error}");
}
