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

fn set(inode: InodeNumber, attributes: Attributes) -> Operation {
    Operation::SetAttributes(inode, attributes)
}

#[test]
fn a_directory_with_the_group_bit_gives_its_group_and_a_directory_the_bit_to_who_wants_it() {
    let mut world = World::new();
    let shared = world.run(directory(ROOT, "shared")).unwrap();
    let bits = Attributes { mode: Some(0o2775), gid: Some(99), ..Attributes::default() };
    world.run(set(shared, bits)).unwrap();
    let heir = Ownership { inherit: Inherit::Group, ..OWNER };
    let device = Device { kind: DeviceKind::Block, number: 7 };
    let made = |ownership: Ownership, prefix: &str| {
        let name = |name: &str| at(shared, &format!("{prefix} {name}"));
        [
            Operation::MakeDirectory(name("d"), ownership),
            Operation::PublishFile(name("f"), ownership, content(1, 4), IfExists::Fail),
            Operation::MakeSymlink(name("l"), ownership, "t".into()),
            Operation::MakeSpecial(name("s"), ownership, Special::Device(device)),
        ]
    };
    for (number, operation) in made(heir, "heir").into_iter().enumerate() {
        let inode = world.run(operation).unwrap();
        assert_eq!((world.node(inode).gid, world.node(inode).mode & 0o2000 != 0), (99, number == 0), "{number}");
    }
    for operation in made(OWNER, "as given") {
        let inode = world.run(operation).unwrap();
        assert_eq!((world.node(inode).gid, world.node(inode).mode), (6, 0o644));
    }
    let outside = world.run(Operation::MakeDirectory(at(ROOT, "outside"), heir)).unwrap();
    assert_eq!((world.node(outside).gid, world.node(outside).mode), (6, 0o644), "the root has no such bit");
}

#[test]
fn set_id_bits_are_taken_from_files_only_and_the_groups_only_where_it_executes() {
    let mut world = World::new();
    let file = world.run(publish("f", 0, IfExists::Fail)).unwrap();
    let folder = world.run(directory(ROOT, "d")).unwrap();
    let mut cleared = |inode, mode, attributes: Attributes| {
        world.run(set(inode, Attributes { mode: Some(mode), ..Attributes::default() })).unwrap();
        world.run(set(inode, Attributes { set_id: SetId::Clear, ..attributes })).unwrap();
        world.node(inode).mode
    };
    assert_eq!(cleared(file, 0o6755, Attributes::default()), 0o755);
    assert_eq!(cleared(file, 0o6745, Attributes::default()), 0o2745, "a mark for locks");
    assert_eq!(cleared(file, 0o1777, Attributes::default()), 0o1777);
    assert_eq!(cleared(folder, 0o6755, Attributes::default()), 0o6755);
    let mode = Attributes { mode: Some(0o4711), ..Attributes::default() };
    assert_eq!(cleared(file, 0o6755, mode), 0o4711, "the bits go before the mode comes");
    let owner = Attributes { uid: Some(3), ..Attributes::default() };
    world.run(set(file, owner)).unwrap();
    assert_eq!(world.node(file).mode, 0o4711, "a chown that does not ask for it leaves them");
}

#[test]
fn attributes_of_users_are_set_created_replaced_and_removed_as_asked() {
    let mut world = World::new();
    let file = world.run(publish("f", 0, IfExists::Fail)).unwrap();
    let name = ExtendedName::new(b"user.a").unwrap();
    let change = |inode, change| Operation::SetExtended(inode, name.clone(), change);
    assert_eq!(world.run(change(file, ExtendedChange::Replace("1".into()))), Err(Fault::NoAttribute));
    assert_eq!(world.run(change(file, ExtendedChange::Remove)), Err(Fault::NoAttribute));
    world.now_ns = 300;
    world.run(change(file, ExtendedChange::Create("2".into()))).unwrap();
    assert_eq!(world.node(file).changed_ns, 300);
    assert_eq!(world.run(change(file, ExtendedChange::Create("3".into()))), Err(Fault::Exists));
    world.run(change(file, ExtendedChange::Replace("4".into()))).unwrap();
    world.run(change(file, ExtendedChange::Set("5".into()))).unwrap();
    let all: Vec<_> = world.node(file).extended.iter().map(|(name, value)| (name.clone(), value.to_vec())).collect();
    assert_eq!(all, [(name.clone(), b"5".to_vec())]);
    let before = world.node(file).clone();
    assert_eq!(world.run(change(file, ExtendedChange::Set(vec![0; 8192].into()))), Err(Fault::NoSpace));
    assert_eq!(world.node(file), &before);
    world.run(change(file, ExtendedChange::Remove)).unwrap();
    assert!(world.node(file).extended.is_empty());
    world.run(change(ROOT, ExtendedChange::Set("5".into()))).unwrap();
    let fifo = world.run(Operation::MakeSpecial(at(ROOT, "p"), OWNER, Special::Fifo)).unwrap();
    let link = world.run(Operation::MakeSymlink(at(ROOT, "l"), OWNER, "t".into())).unwrap();
    for inode in [fifo, link] {
        assert_eq!(world.run(change(inode, ExtendedChange::Set("5".into()))), Err(Fault::Permission));
    }
    assert_eq!(world.run(change(InodeNumber(99), ExtendedChange::Remove)), Err(Fault::Stale));
}

fn write(base_version: u64, digest: u8, size: u64) -> FileWrite {
    let content = content(digest, size);
    let (modified_ns, changed_ns) = (70, 80);
    FileWrite { base_version, content, modified_ns, changed_ns, accessed_ns: None, set_id: SetId::Keep }
}

#[test]
fn a_write_takes_the_writers_times_and_never_turns_the_time_of_change_back() {
    let mut world = World::new();
    let inode = world.run(publish("f", 10, IfExists::Fail)).unwrap();
    assert_eq!((world.node(inode).accessed_ns, world.node(inode).changed_ns), (50, 100));
    world.run(set(inode, Attributes { mode: Some(0o4755), ..Attributes::default() })).unwrap();
    world.now_ns = 1_000;
    let version = world.node(inode).content().unwrap().version;
    world.run(Operation::WriteFile(inode, write(version, 2, 20))).unwrap();
    let node = world.node(inode).clone();
    assert_eq!((node.modified_ns, node.changed_ns, node.accessed_ns, node.mode), (70, 100, 50, 0o4755));
    let content = node.content().unwrap();
    assert!(content.version > version);
    assert_eq!((content.size, content.allocated, content.manifest), (20, 10, Some(ManifestDigest::new([2; 32]))));
    let later =
        FileWrite { changed_ns: 200, accessed_ns: Some(90), set_id: SetId::Clear, ..write(content.version, 3, 0) };
    world.run(Operation::WriteFile(inode, later)).unwrap();
    let node = world.node(inode);
    assert_eq!((node.changed_ns, node.accessed_ns, node.mode, node.size()), (200, 90, 0o755, 0));
}

#[test]
fn a_write_to_another_version_is_refused_with_what_is_there() {
    let mut world = World::new();
    let inode = world.run(publish("f", 10, IfExists::Fail)).unwrap();
    let there = world.node(inode).clone();
    let version = there.content().unwrap().version;
    let refusal = world.plan(&Operation::WriteFile(inode, write(version + 1, 2, 20))).unwrap_err();
    assert_eq!((refusal.fault, refusal.node), (Fault::Stale, Some(Box::new((inode, there)))));
    let gone = world.plan(&Operation::WriteFile(InodeNumber(99), write(1, 2, 20))).unwrap_err();
    assert_eq!((gone.fault, gone.node), (Fault::Stale, None));
    assert_eq!(world.run(Operation::WriteFile(ROOT, write(1, 2, 20))), Err(Fault::IsDirectory));
    let fifo = world.run(Operation::MakeSpecial(at(ROOT, "p"), OWNER, Special::Fifo)).unwrap();
    assert_eq!(world.run(Operation::WriteFile(fifo, write(1, 2, 20))), Err(Fault::Invalid));
    let lies = NewContent { size: 3, ..content(2, 20) };
    let lying = FileWrite { content: lies, ..write(version, 2, 20) };
    assert_eq!(world.run(Operation::WriteFile(inode, lying)), Err(Fault::Invalid));
}

#[test]
fn only_files_outlive_their_last_name() {
    let mut world = World::new();
    let device = Special::Device(Device { kind: DeviceKind::Character, number: 259 });
    let file = world.run(publish("file", 10, IfExists::Fail)).unwrap();
    let others = [
        world.run(Operation::MakeSpecial(at(ROOT, "device"), OWNER, device)).unwrap(),
        world.run(Operation::MakeSpecial(at(ROOT, "socket"), OWNER, Special::Socket)).unwrap(),
        world.run(Operation::MakeSymlink(at(ROOT, "link"), OWNER, "t".into())).unwrap(),
    ];
    for name in ["file", "device", "socket", "link"] {
        world.run(Operation::Unlink(at(ROOT, name))).unwrap();
    }
    assert!(others.iter().all(|inode| world.image.node(*inode).is_none()));
    assert!(world.node(file).is_orphan());
    assert_eq!(world.image.orphans().collect::<Vec<_>>(), [file]);
    assert_eq!(world.run(Operation::Link(file, at(ROOT, "again"))), Err(Fault::NotFound));
    assert_eq!(reclaim(&world.image, &[ROOT, file, InodeNumber(99), file]).writes, [NameWrite::Node(file, None)]);
    let named = world.run(publish("file", 10, IfExists::Fail)).unwrap();
    assert_eq!(reclaim(&world.image, &[named]).writes, []);
}
