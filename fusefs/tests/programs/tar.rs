//! tar: a tree of everything that a tree may have, in and out again.

use std::path::Path;

use crate::harness::rounds;
use crate::place::{Place, scratch};
use crate::program::program;
use crate::trees::{assert_same_tree_and_attributes, odd_tree};

#[test]
fn a_tree_of_links_odd_names_and_ten_thousand_files_goes_in_and_out() {
    let mut place = Place::one();
    let scratch = scratch();
    let (source, inside, back) = (scratch.path().join("source"), place.path("tree"), scratch.path().join("back"));
    let (into, out) = (scratch.path().join("into.tar"), place.path("out.tar"));
    odd_tree(&source, 10_000);
    pack(&source, &into);
    unpack(&into, &inside);
    assert_same_tree_and_attributes(&source, &inside);

    place.remount();
    // tar itself compares: names, modes, owners, times, links, bytes.
    program("tar").args(&["--compare", "--file"]).arg(&into).arg("-C").arg(&inside).ok();
    pack(&inside, &out);
    unpack(&out, &back);
    assert_same_tree_and_attributes(&source, &back);

    let began = std::time::Instant::now();
    std::fs::remove_dir_all(&inside).unwrap();
    eprintln!("removing the tree took {:?}", began.elapsed());
    assert!(!inside.exists());
    place.end();
}

fn pack(tree: &Path, archive: &Path) {
    let packed =
        program("tar").args(&["--create", "--sparse", "--format=posix", "--file"]).arg(archive).arg("-C").arg(tree);
    let packed = packed.arg(".").ok();
    eprintln!("packing took {:?}", packed.took);
}

fn unpack(archive: &Path, tree: &Path) {
    std::fs::create_dir(tree).unwrap();
    let words = ["--extract", "--preserve-permissions", "--file"];
    let unpacked = program("tar").args(&words).arg(archive).arg("-C").arg(tree).ok();
    eprintln!("unpacking took {:?}", unpacked.took);
}
