//! git: a clone, work in it, and whether it is still whole.

use std::path::Path;

use crate::harness::{assert_same_tree, rounds};
use crate::place::{Place, scratch};
use crate::program::{Program, program};
use crate::trees::source_tree;

/// git with nothing of the person's own settings.
fn git(folder: &Path, words: &[&str]) -> Program {
    program("git")
        .inside(folder)
        .args(words)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null")
        .env("GIT_AUTHOR_NAME", "A")
        .env("GIT_AUTHOR_EMAIL", "a@example.org")
        .env("GIT_COMMITTER_NAME", "A")
        .env("GIT_COMMITTER_EMAIL", "a@example.org")
}

#[track_caller]
fn assert_clean(folder: &Path) {
    let status = git(folder, &["status", "--porcelain"]).ok();
    assert!(status.out.is_empty(), "changed without reason: {}", status.says());
    git(folder, &["fsck", "--full", "--strict"]).ok();
}

#[test]
fn a_repository_is_cloned_worked_in_and_whole() {
    let mut place = Place::one();
    let scratch = scratch();
    let origin = scratch.path().join("origin");
    for part in 0..3 {
        source_tree(&origin.join(format!("tree-{part}")), rounds(700, 5_000), part);
        git(&origin, &["init", "--quiet", "--initial-branch=main", "."]).ok();
        git(&origin, &["add", "--all"]).ok();
        git(&origin, &["commit", "--quiet", "--message", &format!("part {part}")]).ok();
    }
    git(&origin, &["config", "receive.denyCurrentBranch", "updateInstead"]).ok();

    let url = format!("file://{}", origin.display());
    let cloned = git(place.folder(), &["clone", "--quiet", &url, "clone"]).ok();
    eprintln!("git clone took {:?}", cloned.took);
    let clone = place.path("clone");
    assert_clean(&clone);

    // Work: change, move, remove, on a branch, merge.
    git(&clone, &["checkout", "--quiet", "-b", "work"]).ok();
    for index in (0..200).step_by(5) {
        let path = clone.join(format!("tree-0/part-{}/module-{}/file-{index}.txt", index % 7, index / 7 % 23));
        std::fs::write(&path, format!("changed {index}\n")).unwrap();
    }
    git(&clone, &["mv", "tree-1", "moved"]).ok();
    git(&clone, &["rm", "-r", "--quiet", "tree-2/part-3"]).ok();
    git(&clone, &["commit", "--quiet", "--all", "--message", "work"]).ok();
    git(&clone, &["stash", "list"]).ok();
    git(&clone, &["checkout", "--quiet", "main"]).ok();
    assert!(clone.join("tree-1").exists() && !clone.join("moved").exists(), "the older tree is back");
    git(&clone, &["merge", "--quiet", "--no-ff", "--message", "merge", "work"]).ok();
    assert_clean(&clone);
    git(&clone, &["gc", "--quiet", "--prune=now"]).ok();
    assert_clean(&clone);

    // The same from the swarm, and back on the disk.
    place.remount();
    assert_clean(&clone);
    git(&clone, &["push", "--quiet", "origin", "main"]).ok();
    assert_clean(&origin);
    for name in ["tree-0", "moved", "tree-2"] {
        assert_same_tree(&origin.join(name), &clone.join(name));
    }
    place.end();
}
