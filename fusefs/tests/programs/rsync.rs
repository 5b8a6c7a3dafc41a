//! rsync, both ways, and again after changes.

use std::path::Path;

use crate::harness::{rounds, write_random};
use crate::place::{Place, scratch};
use crate::program::program;
use crate::trees::{age, assert_same_tree_and_attributes, odd_tree};

fn rsync(words: &[&str], from: &Path, to: &Path) -> String {
    let from = format!("{}/", from.display());
    let ended = program("rsync")
        .args(&["--archive", "--hard-links", "--checksum", "--itemize-changes"])
        .args(words)
        .arg(from)
        .arg(to)
        .ok();
    eprintln!("rsync {words:?} took {:?}", ended.took);
    ended.text()
}

#[test]
fn a_tree_is_copied_in_and_out_and_brought_up_to_date() {
    let mut place = Place::one();
    let scratch = scratch();
    let (source, inside, back) = (scratch.path().join("source"), place.path("tree"), scratch.path().join("back"));
    odd_tree(&source, rounds(1_000, 10_000));
    age(&source, 1);
    rsync(&[], &source, &inside);
    assert_same_tree_and_attributes(&source, &inside);
    assert_eq!(rsync(&["--dry-run"], &source, &inside), "", "rsync finds a difference after it copied");

    // Changed, made, removed and renamed; whole files, and in place.
    for (way, seed) in [("--whole-file", 1), ("--inplace", 2)] {
        write_random(&source.join("kinds/large"), (7 << 20) + seed, seed);
        std::fs::write(source.join(format!("many/000/new-{seed}")), "new").unwrap();
        std::fs::remove_dir_all(source.join(format!("many/00{seed}"))).unwrap();
        std::fs::rename(source.join("links/other"), source.join("links/renamed")).unwrap();
        age(&source, 2 * seed);
        rsync(&["--delete", way], &source, &inside);
        std::fs::rename(source.join("links/renamed"), source.join("links/other")).unwrap();
        age(&source, 2 * seed + 1);
        write_random(&source.join("kinds/large"), (7 << 20) + 5 * seed, seed);
        rsync(&["--delete", "--no-whole-file"], &source, &inside);
        assert_same_tree_and_attributes(&source, &inside);
    }

    place.remount();
    rsync(&["--sparse"], &inside, &back);
    assert_same_tree_and_attributes(&source, &back);
    assert_eq!(rsync(&["--dry-run", "--delete"], &inside, &source), "", "what came back differs");
    place.end();
}
