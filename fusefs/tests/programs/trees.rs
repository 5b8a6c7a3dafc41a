//! Trees to move through a mount, the same for the same seed, and comparing all that an inode has.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustix::fs::{AtFlags, CWD, FileType, Timespec, Timestamps, mknodat, utimensat};

use crate::harness::data::list;
use crate::harness::{assert_same_tree, write_random};

/// A tree like a program's source: small texts in nested folders, some of them executable, some links.
pub(crate) fn source_tree(folder: &Path, files: usize, seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    for index in 0..files {
        let below = folder.join(format!("part-{}/module-{}", index % 7, index / 7 % 23));
        std::fs::create_dir_all(&below).unwrap();
        let path = below.join(format!("file-{index}.txt"));
        let lines = rng.random_range(1..80);
        let text: String = (0..lines).map(|line| format!("{line}: {:x}\n", rng.random::<u64>())).collect();
        std::fs::write(&path, text).unwrap();
        if index % 50 == 0 {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
            symlink(format!("file-{index}.txt"), below.join(format!("link-{index}"))).unwrap();
        }
    }
}

/// Everything that a tree may have: see the body.
pub(crate) fn odd_tree(folder: &Path, files: usize) {
    // Many small files.
    for index in 0..files {
        let below = folder.join(format!("many/{:03}", index / 100));
        if index % 100 == 0 {
            std::fs::create_dir_all(&below).unwrap();
        }
        std::fs::write(below.join(format!("{index}")), index.to_string().repeat(index % 40)).unwrap();
    }
    // Long and odd names.
    let names = folder.join("names");
    std::fs::create_dir_all(&names).unwrap();
    let long = |byte: u8| OsString::from_vec(vec![byte; 255]);
    let odd: [&[u8]; 8] = [
        b"new\nline",
        b"not\xff\xfeUTF-8",
        b" leading",
        b"trailing ",
        b"-rf",
        b"back\\slash",
        b"\x01\x7f",
        "für ✓".as_bytes(),
    ];
    for name in odd.iter().map(|name| OsString::from_vec(name.to_vec())).chain([long(b'n'), long(0xfe)]) {
        std::fs::write(names.join(&name), name.as_encoded_bytes()).unwrap();
        symlink(
            &name,
            names.join({
                let mut link = b"to ".to_vec();
                link.extend(&name.as_encoded_bytes()[..name.len().min(200)]);
                OsString::from_vec(link)
            }),
        )
        .unwrap();
    }
    let mut deep = names.clone();
    for level in 0..30 {
        deep.push(format!("level-{level}-{}", "x".repeat(60)));
    }
    std::fs::create_dir_all(&deep).unwrap();
    std::fs::write(deep.join("bottom"), "deep").unwrap();
    // Links: of several names, in other folders, to folders, to nothing, long.
    let links = folder.join("links");
    std::fs::create_dir_all(links.join("other")).unwrap();
    std::fs::write(links.join("first"), "one content").unwrap();
    std::fs::hard_link(links.join("first"), links.join("second")).unwrap();
    std::fs::hard_link(links.join("first"), links.join("other/third")).unwrap();
    symlink("other", links.join("to-folder")).unwrap();
    symlink("no/such/thing", links.join("dangling")).unwrap();
    symlink("/".repeat(2_000), links.join("long")).unwrap();
    std::fs::hard_link(links.join("dangling"), links.join("dangling-too")).unwrap();
    // Modes, a pipe, sizes and holes.
    let kinds = folder.join("kinds");
    std::fs::create_dir_all(&kinds).unwrap();
    for mode in [0o000, 0o400, 0o644, 0o777, 0o1644, 0o2755, 0o4755] {
        let path = kinds.join(format!("mode-{mode:04o}"));
        std::fs::write(&path, "mode").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
    }
    std::fs::create_dir(kinds.join("sticky")).unwrap();
    std::fs::set_permissions(kinds.join("sticky"), PermissionsExt::from_mode(0o1777)).unwrap();
    mknodat(CWD, kinds.join("pipe"), FileType::Fifo, 0o640.into(), 0).unwrap();
    write_random(&kinds.join("large"), (9 << 20) + 12_345, 5);
    std::fs::write(kinds.join("empty"), "").unwrap();
    let sparse = File::create(kinds.join("sparse")).unwrap();
    sparse.write_all_at(b"middle", 70 << 20).unwrap();
    sparse.set_len(100 << 20).unwrap();
}

/// Give all but files times of long ago, all different: of those, rsync takes times within one second for the same.
pub(crate) fn age(folder: &Path, days: u64) {
    for (index, name) in (0..).zip(list(folder)) {
        let path = folder.join(name);
        if !path.symlink_metadata().unwrap().is_file() {
            let past = Timespec { tv_sec: 1_600_000_000 + days.cast_signed() * 86_400 + index, tv_nsec: 123_456_789 };
            let times = Timestamps { last_access: past, last_modification: past };
            utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        }
    }
}

/// Names, kinds, targets, modes and bytes are the same, and so are times, owners and which names are one file.
#[track_caller]
pub(crate) fn assert_same_tree_and_attributes(a: &Path, b: &Path) -> usize {
    // A pipe would be opened; it is compared by its attributes.
    let names = list(a);
    let mut inodes = BTreeMap::new();
    for name in &names {
        let (left, right) = (a.join(name).symlink_metadata().unwrap(), b.join(name).symlink_metadata());
        let right = right.unwrap_or_else(|error| panic!("{} is missing in {}: {error}", name.display(), b.display()));
        let of = |meta: &std::fs::Metadata| {
            let links = if meta.is_dir() { 0 } else { meta.nlink() };
            let times = (meta.mtime(), meta.mtime_nsec());
            (meta.mode(), meta.uid(), meta.gid(), meta.rdev(), links, times)
        };
        assert_eq!(of(&left), of(&right), "mode, owners, device, links, time of {}", name.display());
        let other = *inodes.entry(left.ino()).or_insert(right.ino());
        assert_eq!(other, right.ino(), "{} is another file than its other names are", name.display());
    }
    assert_same_tree(a, b)
}
