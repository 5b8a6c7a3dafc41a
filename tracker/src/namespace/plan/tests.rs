//! The rules that the model does not reach: limits, odd input, times, and what a plan relies on.

use super::*;
use crate::namespace::model::empty_image;
use crate::namespace::{Image, MAX_LINKS};

const ROOT: InodeNumber = InodeNumber::ROOT;
const OWNER: Ownership = Ownership { mode: 0o644, uid: 5, gid: 6, modified_ns: 50, inherit: Inherit::Nothing };

struct World {
    image: Image,
    fresh: Fresh,
    now_ns: i64,
}

impl World {
    fn new() -> Self {
        Self { image: empty_image(), fresh: Fresh::new(2..1000), now_ns: 100 }
    }

    fn plan(&mut self, operation: &Operation) -> Result<Planned, Refusal> {
        plan(&Draft::new(&self.image), operation, self.now_ns, &mut self.fresh)
    }

    fn run(&mut self, operation: Operation) -> Result<InodeNumber, Fault> {
        let planned = self.plan(&operation).map_err(|refusal| refusal.fault)?;
        for write in planned.writes {
            self.image.apply(write, &mut Vec::new());
        }
        self.image.check().expect("the image fits together");
        Ok(planned.node.map_or(InodeNumber(0), |(inode, _)| inode))
    }

    fn node(&self, inode: InodeNumber) -> &Node {
        self.image.node(inode).expect("it exists")
    }
}

fn at(parent: InodeNumber, name: &str) -> At {
    At { parent, name: Name::new(name.as_bytes()).expect("a good name") }
}

fn directory(parent: InodeNumber, name: &str) -> Operation {
    Operation::MakeDirectory(at(parent, name), OWNER)
}

/// A content of so many bytes, half of which are holes.
fn content(digest: u8, size: u64) -> NewContent {
    NewContent { size, manifest: (size > 0).then(|| described(digest, size)) }
}

fn described(digest: u8, size: u64) -> Described {
    Described { digest: ManifestDigest::new([digest; 32]), file_bytes: size, data_bytes: size / 2 }
}

fn publish(name: &str, size: u64, if_exists: IfExists) -> Operation {
    Operation::PublishFile(at(ROOT, name), OWNER, content(9, size), if_exists)
}

#[test]
fn names_have_1_to_255_bytes_without_slash_and_nul() {
    let fault = |name: &[u8]| Name::new(name).err().map(|refusal| refusal.fault);
    assert_eq!(fault(&[b'x'; 255]), None);
    assert_eq!(fault(&[b'x'; 256]), Some(Fault::NameTooLong));
    assert_eq!(fault(b"\xff\n\x01 ..."), None, "neither UTF-8 nor printable is asked for");
    for bad in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0"] {
        assert_eq!(fault(bad), Some(Fault::Invalid), "{}", bad.escape_ascii());
    }
}

#[test]
fn unknown_inodes_are_stale_and_files_are_no_directories() {
    let mut world = World::new();
    let file = world.run(publish("f", 0, IfExists::Fail)).unwrap();
    assert_eq!(world.run(directory(InodeNumber(99), "d")), Err(Fault::Stale));
    assert_eq!(world.run(directory(file, "d")), Err(Fault::NotDirectory));
    assert_eq!(world.run(Operation::SetAttributes(InodeNumber(99), Attributes::default())), Err(Fault::Stale));
    assert_eq!(world.run(Operation::Link(InodeNumber(99), at(ROOT, "l"))), Err(Fault::Stale));
    let below = Operation::Rename(at(ROOT, "f"), at(file, "x"), RenameMode::Replace);
    assert_eq!(world.run(below), Err(Fault::NotDirectory));
}

#[test]
fn a_symlinks_target_is_kept_as_given_within_its_limits() {
    let mut world = World::new();
    let link = |target: Vec<u8>| Operation::MakeSymlink(at(ROOT, "l"), OWNER, target.into());
    assert_eq!(world.run(link(vec![])), Err(Fault::NotFound));
    assert_eq!(world.run(link(vec![b'x'; 4096])), Err(Fault::NameTooLong));
    assert_eq!(world.run(link(b"a\0b".to_vec())), Err(Fault::Invalid));
    let inode = world.run(link(vec![0xff; 4095])).unwrap();
    assert_eq!(world.node(inode).body, Body::Symlink { target: vec![0xff; 4095].into() });
    assert_eq!(world.node(inode).size(), 4095);
}

#[test]
fn a_size_that_is_not_the_manifests_is_refused() {
    let mut world = World::new();
    for (size, manifest) in [(3, None), (0, Some(4)), (5, Some(4))] {
        let content = NewContent { size, manifest: manifest.map(|size| described(1, size)) };
        let operation = Operation::PublishFile(at(ROOT, "f"), OWNER, content, IfExists::Fail);
        assert_eq!(world.run(operation), Err(Fault::Invalid));
    }
    let empty = NewContent { size: 0, manifest: Some(described(1, 0)) };
    let operation = Operation::PublishFile(at(ROOT, "f"), OWNER, empty, IfExists::Fail);
    let inode = world.run(operation).unwrap();
    assert_eq!(world.node(inode).content().unwrap().manifest, None, "all empty files look alike");
}

#[test]
fn replacing_content_keeps_the_inode_and_its_owner_and_makes_a_new_version() {
    let mut world = World::new();
    let inode = world.run(publish("f", 10, IfExists::Fail)).unwrap();
    let before = world.node(inode).clone();
    let version = before.content().unwrap().version;
    world.now_ns = 200;
    let content = content(2, 20);
    let owner = Ownership { mode: 0, uid: 0, gid: 0, modified_ns: 77, inherit: Inherit::Nothing };
    let replace = |base| Operation::PublishFile(at(ROOT, "f"), owner, content, IfExists::ReplaceVersion(base));
    assert_eq!(world.run(replace(version + 1)), Err(Fault::Stale));
    assert_eq!(world.run(replace(version)), Ok(inode));
    let after = world.node(inode).clone();
    assert!(after.content().unwrap().version > version);
    assert_eq!((after.modified_ns, after.changed_ns, after.created_ns), (77, 200, 100));
    assert_eq!((after.mode, after.uid, after.gid), (before.mode, before.uid, before.gid));
    assert_eq!(world.run(replace(version)), Err(Fault::Stale), "the loser of a race is told");
}

#[test]
fn a_file_that_was_renamed_over_the_base_is_not_taken_for_it() {
    let mut world = World::new();
    let base = world.run(publish("f", 1, IfExists::Fail)).unwrap();
    let version = world.node(base).content().unwrap().version;
    world.run(publish("g", 1, IfExists::Fail)).unwrap();
    world.run(Operation::Rename(at(ROOT, "g"), at(ROOT, "f"), RenameMode::Replace)).unwrap();
    assert_eq!(world.run(publish("f", 2, IfExists::ReplaceVersion(version))), Err(Fault::Stale));
}

#[test]
fn links_are_limited() {
    let mut world = World::new();
    let file = world.run(publish("f", 0, IfExists::Fail)).unwrap();
    for inode in [file, ROOT] {
        let full = Node { links: MAX_LINKS, ..world.node(inode).clone() };
        world.image.apply(NameWrite::Node(inode, Some(full)), &mut Vec::new());
    }
    assert_eq!(world.run(Operation::Link(file, at(ROOT, "l"))), Err(Fault::TooManyLinks));
    assert_eq!(world.run(directory(ROOT, "d")), Err(Fault::TooManyLinks));
}

#[test]
fn times_change_as_posix_says() {
    let mut world = World::new();
    let inode = world.run(publish("f", 0, IfExists::Fail)).unwrap();
    assert_eq!((world.node(ROOT).modified_ns, world.node(ROOT).changed_ns), (100, 100));
    assert_eq!(world.node(inode).modified_ns, 50, "the publisher's clock");
    world.now_ns = 200;
    world.run(Operation::SetAttributes(inode, Attributes { mode: Some(0o7777), ..Attributes::default() })).unwrap();
    let node = world.node(inode).clone();
    assert_eq!((node.mode, node.modified_ns, node.changed_ns), (0o7777, 50, 200));
    assert_eq!(world.node(ROOT).changed_ns, 100, "a chmod is no change of the directory");
    world.now_ns = 300;
    world.run(Operation::Link(inode, at(ROOT, "g"))).unwrap();
    world.now_ns = 400;
    world.run(Operation::Unlink(at(ROOT, "f"))).unwrap();
    assert_eq!((world.node(inode).links, world.node(inode).changed_ns), (1, 400));
    assert_eq!(world.node(ROOT).modified_ns, 400);
}

#[test]
fn a_directory_cannot_be_moved_below_itself_however_deep() {
    let mut world = World::new();
    let top = world.run(directory(ROOT, "top")).unwrap();
    let mut deepest = top;
    for _ in 0..50 {
        deepest = world.run(directory(deepest, "d")).unwrap();
    }
    for mode in [RenameMode::Replace, RenameMode::NoReplace] {
        let into = Operation::Rename(at(ROOT, "top"), at(deepest, "x"), mode);
        assert_eq!(world.run(into), Err(Fault::Invalid));
    }
    world.run(directory(deepest, "x")).unwrap();
    let swap = Operation::Rename(at(deepest, "x"), at(ROOT, "top"), RenameMode::Exchange);
    assert_eq!(world.run(swap), Err(Fault::Invalid));
}

#[test]
fn moving_a_directory_relies_on_all_directories_above_its_new_place() {
    let mut world = World::new();
    let a = world.run(directory(ROOT, "a")).unwrap();
    let b = world.run(directory(a, "b")).unwrap();
    world.run(directory(ROOT, "moved")).unwrap();
    let planned = world.plan(&Operation::Rename(at(ROOT, "moved"), at(b, "x"), RenameMode::Replace)).unwrap();
    for inode in [ROOT, a, b] {
        assert!(planned.relied.contains(&Relied::Node(inode)), "{inode}");
    }
    assert!(planned.relied.contains(&Relied::NoEntry(b, Name::new(b"x").unwrap())));
}

#[test]
fn removing_a_directory_relies_on_what_a_new_entry_in_it_would_change() {
    let mut world = World::new();
    let directory_inode = world.run(directory(ROOT, "d")).unwrap();
    let removal = world.plan(&Operation::RemoveDirectory(at(ROOT, "d"))).unwrap();
    assert!(removal.relied.contains(&Relied::Node(directory_inode)));
    let entry = world.plan(&Operation::MakeDirectory(at(directory_inode, "x"), OWNER)).unwrap();
    assert!(entry.writes.iter().any(|write| matches!(write, NameWrite::Node(inode, _) if *inode == directory_inode)));
}

#[test]
fn without_fresh_numbers_nothing_is_made() {
    let mut world = World::new();
    world.fresh = Fresh::new(5..5);
    assert_eq!(world.run(directory(ROOT, "d")), Err(Fault::Unavailable));
}

#[test]
fn an_image_that_does_not_fit_together_is_told() {
    let node = |image: &mut Image, inode, node| {
        image.apply(NameWrite::Node(inode, node), &mut Vec::new());
    };
    let mut world = World::new();
    let file = world.run(publish("f", 0, IfExists::Fail)).unwrap();
    let made = world.run(directory(ROOT, "d")).unwrap();
    let good = world.image.clone();
    good.check().unwrap();
    let mut lost = good.clone();
    node(&mut lost, file, None);
    let mut loop_of_one = good.clone();
    loop_of_one.apply(NameWrite::Entry(ROOT, Name::new(b"d").unwrap(), None), &mut Vec::new());
    loop_of_one.apply(NameWrite::Entry(made, Name::new(b"d").unwrap(), Some(made)), &mut Vec::new());
    let looped = Node { links: 3, body: Body::Directory { parent: made }, ..good.node(made).unwrap().clone() };
    node(&mut loop_of_one, made, Some(looped));
    node(&mut loop_of_one, ROOT, Some(Node { links: 2, ..good.node(ROOT).unwrap().clone() }));
    let mut links = good.clone();
    node(&mut links, file, Some(Node { links: 2, ..good.node(file).unwrap().clone() }));
    for broken in [lost, loop_of_one, links, Image::default()] {
        assert!(broken.check().is_err());
    }
}
