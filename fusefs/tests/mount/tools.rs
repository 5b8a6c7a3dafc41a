//! The tools that people use on a folder, as they are.

use std::path::Path;
use std::process::Command;

use super::swarm::{self, SEGMENT, Swarm, noise};

fn run(program: &str, arguments: &[&str], at: &Path) -> String {
    let output = swarm::run(Command::new(program).args(arguments).current_dir(at));
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{said}\n{complained}", output.status);
    assert!(complained.is_empty(), "{program} {arguments:?} complains: {complained}");
    said.into_owned()
}

/// A folder with a few hundred small files, some large ones, links, and odd names.
fn filled() -> Swarm {
    let swarm = Swarm::new(2);
    swarm.make_folder("/tree");
    swarm.make_folder("/tree/small");
    for index in 0..300u64 {
        let text = format!("line one of {index}\nneedle-{}\n", index % 50);
        swarm.publish(format!("/tree/small/{index:04}"), text.as_bytes());
    }
    swarm.publish("/tree/large", &noise(1, 2 * SEGMENT + 3));
    swarm.publish("/tree/empty", b"");
    swarm.publish(b"/tree/new\nline", b"odd");
    swarm.publish(b"/tree/\xff\xfe", b"not UTF-8");
    swarm.make_link("/tree/link", "small/0001");
    swarm.make_link("/tree/dangling", "nowhere");
    swarm
}

#[test]
fn copies_made_by_cp_tar_and_rsync_like_walks_are_identical() {
    let swarm = filled();
    let mounted = swarm.mount("m");
    let copies = swarm.folder("copies");
    std::fs::create_dir(&copies).unwrap();
    let tree = mounted.path("tree");
    run("cp", &["-r", "--no-dereference", "--preserve=mode", &tree.to_string_lossy(), "cp"], &copies);
    let archive = copies.join("tree.tar");
    run("tar", &["cf", &archive.to_string_lossy(), "."], &tree);
    std::fs::create_dir(copies.join("tar")).unwrap();
    run("tar", &["xf", &archive.to_string_lossy()], &copies.join("tar"));
    for copy in ["cp", "tar"] {
        run("diff", &["-r", "--no-dereference", &tree.to_string_lossy(), copy], &copies);
    }
    assert!(mounted.mount.as_ref().unwrap().file_system().counters().prefetched_files.get() > 100);
}

#[test]
fn find_grep_ls_and_du_see_everything_once() {
    let swarm = filled();
    let mounted = swarm.mount("m");
    let tree = mounted.path("tree");
    assert_eq!(run("find", &[".", "-type", "f", "-printf", "."], &tree).len(), 304);
    assert_eq!(run("find", &[".", "-type", "l", "-printf", "."], &tree).len(), 2);
    assert_eq!(run("grep", &["-rl", "needle-7$", "small"], &tree).lines().count(), 6);
    assert_eq!(run("ls", &["-lR", "small"], &tree).lines().filter(|line| line.starts_with("-rw-r--r--")).count(), 300);
    let bytes: u64 =
        run("du", &["-sb", "--apparent-size", "large"], &tree).split('\t').next().unwrap().parse().unwrap();
    assert_eq!(bytes, 2 * SEGMENT as u64 + 3);
    let sums = run("md5sum", &["large", "small/0000", "link", "small/0001"], &tree);
    let sums: Vec<&str> = sums.lines().map(|line| &line[..32]).collect();
    assert!(sums[2] == sums[3] && sums[0] != sums[1]);
}

#[test]
fn attributes_are_readable_with_getfattr() {
    let swarm = filled();
    let config = swarm_fusefs::mount::MountConfig { xattr: true, ..swarm.config("cache") };
    let mounted = swarm.mount_with("m", config);
    let tree = mounted.path("tree");
    let value = |name: &str, file: &str| run("getfattr", &["--only-values", "-n", name, file], &tree);
    let text = "line one of 1\nneedle-1\n";
    assert_eq!(value("user.swarm.hash", "small/0001"), blake3::hash(text.as_bytes()).to_string());
    assert_eq!(value("user.swarm.cached", "small/0001"), format!("0/{}", text.len()));
    std::fs::read(tree.join("small/0001")).unwrap();
    super::swarm::eventually("it is cached", || {
        value("user.swarm.cached", "small/0001") == format!("{0}/{0}", text.len())
    });
    assert_eq!(value("user.swarm.holders", "large").lines().count(), 2);
    assert!(!run("getfattr", &["-d", "small/0001"], &tree).contains("user.swarm"), "a copy would take it along");
    assert_eq!(run("getfattr", &["-d", "small"], &tree), "");
    run("rsync", &["-aX", "small/", "copied/"], &tree);
}

#[test]
fn a_mount_says_how_it_is_in_a_file_that_no_listing_shows() {
    let swarm = filled();
    let mounted = swarm.mount("m");
    let status: serde_json::Value =
        serde_json::from_slice(&std::fs::read(mounted.path(".swarmfs-status")).unwrap()).unwrap();
    assert_eq!(status["mountpoint"], mounted.path("").to_string_lossy().trim_end_matches('/'));
    assert_eq!(status["live"], true);
    assert_eq!(run("ls", &["-a"], &mounted.path("")), ".\n..\ntree\n");
    assert!(!mounted.path("tree/.swarmfs-status").exists());
    let mut value = [0; 100];
    let unasked = rustix::fs::getxattr(mounted.path("tree/large"), "user.swarm.hash", &mut value);
    assert_eq!(unasked, Err(rustix::io::Errno::OPNOTSUPP), "so that `ls -l` asks for none");
}
