//! Files written through one mount: what every handle reads meanwhile, and what the swarm has afterwards.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use rustix::fs::{AtFlags, CWD, FallocateFlags, Timespec, Timestamps, copy_file_range, fallocate};
use rustix::io::Errno;
use swarm_fusefs::mount::MountConfig;

use super::swarm::{Mounted, SEGMENT, Swarm, close, eventually, noise, run};

const MIB: usize = 1024 * 1024;

fn read_write(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

fn new_file(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create_new(true).open(path).unwrap()
}

/// All of an open file, whatever its position.
fn content(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// Where data lies in a file: offsets, end excluded.
fn data(file: &File) -> Vec<(u64, u64)> {
    let (size, mut at, mut found) = (file.metadata().unwrap().len(), 0, Vec::new());
    while at < size {
        match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) {
            Err(Errno::NXIO) => break,
            start => {
                let start = start.unwrap();
                at = rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(start)).unwrap();
                found.push((start, at));
            }
        }
    }
    found
}

/// The second mount shows the file as `bytes`, having read it from the seeders.
#[track_caller]
fn assert_everywhere(mounts: &[&Mounted<'_>], name: &str, bytes: &[u8]) {
    for mounted in mounts {
        let read = std::fs::read(mounted.path(name)).unwrap();
        assert_eq!(read.len(), bytes.len(), "length of {name}");
        let differs = read.iter().zip(bytes).position(|(a, b)| a != b);
        assert_eq!(differs, None, "first wrong byte of {name}");
    }
}

#[test]
fn what_is_written_is_read_at_once_here_and_after_close_everywhere() {
    let swarm = Swarm::new(2);
    let (one, two) = (swarm.mount("one"), swarm.mount("two"));
    let bytes = noise(1, 9 * MIB + 77);
    let mut writer = new_file(&one.path("file"));
    let reader = File::open(one.path("file")).unwrap();
    for (index, part) in bytes.chunks(MIB).enumerate() {
        writer.write_all(part).unwrap();
        let mut read = vec![0; part.len()];
        reader.read_exact_at(&mut read, (index * MIB) as u64).unwrap();
        assert!(read == part, "the other handle reads MiB {index}");
        assert_eq!(one.path("file").metadata().unwrap().len(), (index * MIB + part.len()) as u64);
    }
    assert_eq!(std::fs::read(two.path("file")).unwrap(), b"", "nobody else sees what is not saved");
    close(writer).unwrap();
    assert!(content(&reader) == bytes);
    assert_everywhere(&[&one, &two], "file", &bytes);
}

#[test]
fn a_file_is_changed_in_the_middle_appended_to_cut_and_stretched() {
    let swarm = Swarm::new(2);
    let (one, two) = (swarm.mount("one"), swarm.mount("two"));
    let mut model = noise(2, 2 * SEGMENT + 5_000);
    std::fs::write(one.path("file"), &model).unwrap();
    assert_everywhere(&[&one, &two], "file", &model);
    // Over the border of two segments, over the end, behind the end.
    for (round, offset) in [SEGMENT - 100, model.len() - 50, model.len() + 300_000, 0].into_iter().enumerate() {
        let patch = noise(50 + round as u64, 70_001);
        let file = read_write(&one.path("file"));
        file.write_all_at(&patch, offset as u64).unwrap();
        model.resize(model.len().max(offset + patch.len()), 0);
        model[offset..offset + patch.len()].copy_from_slice(&patch);
        assert!(content(&file) == model, "before it is closed, round {round}");
        close(file).unwrap();
        assert_everywhere(&[&one, &two], "file", &model);
    }
    for length in [model.len() - 1, SEGMENT + 1, 3 * SEGMENT, 100, 0, 5_000] {
        // By name, then through a handle, with something written on either side of the cut.
        rustix_truncate(&one.path("file"), length as u64);
        model.resize(length, 0);
        assert_everywhere(&[&one, &two], "file", &model);
        let file = read_write(&one.path("file"));
        file.write_all_at(b"before", 10).unwrap();
        file.set_len(8).unwrap();
        file.set_len(40_000).unwrap();
        file.write_all_at(b"behind", 39_998).unwrap();
        model.resize(model.len().max(16), 0);
        model[10..16].copy_from_slice(b"before");
        model.truncate(8);
        model.resize(39_998, 0);
        model.extend_from_slice(b"behind");
        assert!(content(&file) == model);
        close(file).unwrap();
        assert_everywhere(&[&one, &two], "file", &model);
    }
}

fn rustix_truncate(path: &Path, length: u64) {
    let done = run(Command::new("truncate").arg(format!("--size={length}")).arg(path)).unwrap();
    assert!(done.status.success());
}

#[test]
fn a_cut_to_the_size_that_a_file_has_changes_its_time_everywhere() {
    let swarm = Swarm::new(1);
    let passing = MountConfig { passthrough_writes: true, ..swarm.config("passing-cache") };
    let (one, two, passing) = (swarm.mount("one"), swarm.mount("two"), swarm.mount_with("passing", passing));
    type Cut = (&'static str, &'static [u8], fn(&Path));
    let cuts: [Cut; 5] = [
        ("an empty one", b"", |path| nix::unistd::truncate(path, 0).unwrap()),
        ("by name", b"ab", |path| nix::unistd::truncate(path, 2).unwrap()),
        ("by handle", b"ab", |path| {
            let file = read_write(path);
            file.set_len(2).unwrap();
            close(file).unwrap();
        }),
        ("opened to write", b"", |path| close(File::create(path).unwrap()).unwrap()),
        ("opened to read and write", b"", |path| {
            close(OpenOptions::new().read(true).write(true).truncate(true).open(path).unwrap()).unwrap();
        }),
    ];
    for (mount, at) in [("one", &one), ("passing", &passing)] {
        for (how, bytes, cut) in cuts {
            let name = format!("{how} at {mount}");
            let path = at.path(&name);
            std::fs::write(&path, bytes).unwrap();
            let long_ago = Timespec { tv_sec: 1_000, tv_nsec: 0 };
            let times = Timestamps { last_access: long_ago, last_modification: long_ago };
            rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty()).unwrap();
            assert_eq!(path.metadata().unwrap().mtime(), 1_000);
            cut(&path);
            let is = path.metadata().unwrap();
            assert!(is.mtime() > 1_000 && is.ctime() >= is.mtime(), "{name}");
            eventually(&name, || two.path(&name).metadata().is_ok_and(|there| there.mtime() == is.mtime()));
            assert_everywhere(&[at, &two], &name, bytes);
        }
    }
}

#[test]
fn open_truncates_if_told_and_refuses_to_make_what_is_there() {
    let swarm = Swarm::new(1);
    let (one, two) = (swarm.mount("one"), swarm.mount("two"));
    std::fs::write(one.path("file"), noise(3, 100_000)).unwrap();
    let exists = OpenOptions::new().write(true).create_new(true).open(one.path("file")).unwrap_err();
    assert_eq!(exists.kind(), ErrorKind::AlreadyExists);
    // Made at the other mount a moment ago.
    std::fs::write(two.path("new"), b"x").unwrap();
    let exists = OpenOptions::new().write(true).create_new(true).open(one.path("new")).unwrap_err();
    assert_eq!(exists.kind(), ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read(one.path("file")).unwrap(), noise(3, 100_000));
    let held = File::open(one.path("file")).unwrap();
    let file = File::create(one.path("file")).unwrap();
    assert_eq!(held.metadata().unwrap().len(), 0, "all handles of this mount see the cut");
    assert_eq!(std::fs::read(two.path("file")).unwrap().len(), 100_000, "nobody else does, before it is closed");
    close(file).unwrap();
    assert_everywhere(&[&one, &two], "file", b"");
    std::fs::write(one.path("file"), b"short").unwrap();
    assert_everywhere(&[&one, &two], "file", b"short");
}

#[test]
fn a_sparse_file_stays_sparse() {
    let swarm = Swarm::new(1);
    let (one, two) = (swarm.mount("one"), swarm.mount("two"));
    let (block, far) = (noise(4, 64 * 1024), 10_u64 << 40);
    let file = new_file(&one.path("sparse"));
    file.write_all_at(&block, 1 << 30).unwrap();
    file.write_all_at(&block, far).unwrap();
    file.set_len(far + (1 << 30)).unwrap();
    let expected = vec![(1 << 30, (1 << 30) + 65_536), (far, far + 65_536)];
    assert_eq!(data(&file), expected, "before it is closed");
    assert_eq!(file.metadata().unwrap().blocks() * 512, 2 * 65_536);
    close(file).unwrap();
    assert_eq!(swarm.kept_bytes(), [65_536], "both blocks are alike, and holes are nothing");
    for mounted in [&one, &two] {
        let file = File::open(mounted.path("sparse")).unwrap();
        assert_eq!(file.metadata().unwrap().len(), far + (1 << 30));
        assert_eq!(file.metadata().unwrap().blocks() * 512, 2 * 65_536);
        assert_eq!(data(&file), expected);
        let mut read = vec![1; 3 * 65_536];
        file.read_exact_at(&mut read, far - 65_536).unwrap();
        assert!(read[..65_536].iter().all(|byte| *byte == 0) && read[65_536..131_072] == block);
        assert!(read[131_072..].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn fallocate_stretches_punches_and_zeroes() {
    let swarm = Swarm::new(1);
    let (one, two) = (swarm.mount("one"), swarm.mount("two"));
    let mut model = noise(5, SEGMENT + MIB);
    std::fs::write(one.path("file"), &model).unwrap();
    let file = read_write(&one.path("file"));
    let size = || file.metadata().unwrap().len();
    fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 64 << 20).unwrap();
    assert_eq!(size(), model.len() as u64);
    fallocate(&file, FallocateFlags::empty(), 0, 1000).unwrap();
    assert_eq!(size(), model.len() as u64, "it lies within the file already");
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    // Over a border of two segments, and over the end.
    for (start, end) in [(SEGMENT - 300_001, SEGMENT + 1), (model.len() - 5, model.len() + 5_000)] {
        fallocate(&file, punch, start as u64, (end - start) as u64).unwrap();
        let end = end.min(model.len());
        model[start..end].fill(0);
        assert!(content(&file) == model);
    }
    fallocate(&file, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, 10, 10).unwrap();
    model[10..20].fill(0);
    let end = model.len();
    fallocate(&file, FallocateFlags::ZERO_RANGE, end as u64 - 100, 200).unwrap();
    model[end - 100..].fill(0);
    model.resize(end + 100, 0);
    fallocate(&file, FallocateFlags::empty(), end as u64, 10_000).unwrap();
    model.resize(end + 10_000, 0);
    assert!(content(&file) == model);
    let refused = fallocate(&file, FallocateFlags::COLLAPSE_RANGE, 0, 4096);
    assert_eq!(refused, Err(Errno::OPNOTSUPP));
    let holes = vec![(0, 10), (20, (SEGMENT - 300_001) as u64), ((SEGMENT + 1) as u64, end as u64 - 100)];
    assert_eq!(data(&file), holes);
    close(file).unwrap();
    assert_everywhere(&[&one, &two], "file", &model);
    assert_eq!(data(&File::open(two.path("file")).unwrap()), holes);
}

#[test]
fn what_is_written_by_a_map_is_saved_by_msync_and_after_close() {
    let swarm = Swarm::new(1);
    let (one, two) = (swarm.mount("one"), swarm.mount("two"));
    let mut model = noise(6, 300_000);
    std::fs::write(one.path("file"), &model).unwrap();
    // Maps cannot be made in safe Rust.
    let script = "\
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
view = mmap.mmap(fd, 0)
assert bytes(view) == open(sys.argv[1], 'rb').read()
view[1000:1005] = b'first'
view.flush()
assert os.pread(fd, 5, 1000) == b'first'
os.fsync(fd)
assert open(sys.argv[2], 'rb').read()[1000:1005] == b'first'
view[250000:250006] = b'second'
os.close(fd)
view[299990:299996] = b'closed'
view.close()
";
    let run = run(Command::new("python3").args(["-c", script]).arg(one.path("file")).arg(two.path("file")));
    let ended = match run {
        Err(error) => return eprintln!("skipped: maps are made by python3, which does not start: {error}"),
        Ok(ended) => ended,
    };
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    model[1000..1005].copy_from_slice(b"first");
    model[250_000..250_006].copy_from_slice(b"second");
    model[299_990..299_996].copy_from_slice(b"closed");
    eventually("what was written after close is saved", || std::fs::read(two.path("file")).unwrap() == model);
    assert_everywhere(&[&one, &two], "file", &model);
}

#[test]
fn a_copied_range_names_the_same_segments() {
    let swarm = Swarm::new(2);
    let (one, two) = (swarm.mount("one"), swarm.mount("two"));
    let source = noise(7, 2 * SEGMENT + 12_345);
    std::fs::write(one.path("source"), &source).unwrap();
    std::fs::write(one.path("target"), b"0123456789").unwrap();
    let kept = swarm.kept_bytes();
    let (from, to) = (File::open(one.path("source")).unwrap(), read_write(&one.path("target")));
    let copy = |from: &File, at: usize, to: &File, target: usize, length: usize| {
        let (mut at, mut target, mut left) = (at as u64, target as u64, length);
        while left > 0 {
            match copy_file_range(from, Some(&mut at), to, Some(&mut target), left).unwrap() {
                0 => break,
                copied => left -= copied,
            }
        }
        length - left
    };
    assert_eq!(copy(&from, 100, &to, 5, SEGMENT + 1), SEGMENT + 1);
    let mut model = b"01234".to_vec();
    model.extend_from_slice(&source[100..][..SEGMENT + 1]);
    assert!(content(&to) == model);
    // Behind the end, and more than there is.
    assert_eq!(copy(&from, source.len() - 1000, &to, 2 * SEGMENT, 5000), 1000);
    model.resize(2 * SEGMENT, 0);
    model.extend_from_slice(&source[source.len() - 1000..]);
    assert!(content(&to) == model);
    close(to).unwrap();
    assert_eq!(swarm.kept_bytes(), kept, "no byte was stored");
    assert_everywhere(&[&one, &two], "target", &model);
    // What was written a moment ago is copied too, onto itself as well.
    let file = read_write(&one.path("target"));
    file.write_all_at(b"unsaved", 7).unwrap();
    assert_eq!(copy(&file, 0, &file, 1_000_000, 50_000), 50_000);
    model[7..14].copy_from_slice(b"unsaved");
    model.copy_within(..50_000, 1_000_000);
    assert!(content(&file) == model);
    close(file).unwrap();
    assert_everywhere(&[&one, &two], "target", &model);
}

#[test]
fn two_handles_of_one_mount_write_one_file() {
    let swarm = Swarm::new(1);
    let (one, two) = (swarm.mount("one"), swarm.mount("two"));
    let (first, second) = (new_file(&one.path("file")), read_write(&one.path("file")));
    first.write_all_at(&[1; 5000], 0).unwrap();
    second.write_all_at(&[2; 5000], 2500).unwrap();
    first.write_all_at(&[3; 10], 7400).unwrap();
    let mut model = [[1; 2500].as_slice(), &[2; 5000]].concat();
    model[7400..7410].fill(3);
    assert!(content(&first) == model && content(&second) == model);
    close(first).unwrap();
    assert_everywhere(&[&one, &two], "file", &model);
    second.write_all_at(&[4; 10], 0).unwrap();
    model[..10].fill(4);
    close(second).unwrap();
    assert_everywhere(&[&one, &two], "file", &model);
    eventually("nothing is left under way", || one.unsaved_files() == 0);
}

#[test]
fn appending_threads_of_one_mount_lose_nothing() {
    let swarm = Swarm::new(1);
    let (one, two) = (swarm.mount("one"), swarm.mount("two"));
    File::create(one.path("log")).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let one = &one;
            scope.spawn(move || {
                let mut kept = OpenOptions::new().append(true).open(one.path("log")).unwrap();
                for round in 0..50 {
                    let line = format!("{thread} {round} {}\n", "x".repeat(thread * 17 + round));
                    if round % 2 == 0 {
                        kept.write_all(line.as_bytes()).unwrap();
                    } else {
                        let mut file = OpenOptions::new().append(true).open(one.path("log")).unwrap();
                        file.write_all(line.as_bytes()).unwrap();
                        close(file).unwrap();
                    }
                }
                close(kept).unwrap();
            });
        }
    });
    let text = std::fs::read_to_string(two.path("log")).unwrap();
    for thread in 0..4 {
        let mine: Vec<&str> = text.lines().filter(|line| line.starts_with(&format!("{thread} "))).collect();
        let expected: Vec<String> =
            (0..50).map(|round| format!("{thread} {round} {}", "x".repeat(thread * 17 + round))).collect();
        assert_eq!(mine, expected, "lines of thread {thread}");
    }
    assert_eq!(text.lines().count(), 200);
}

#[test]
fn a_writer_never_loses_a_race_to_those_who_open_its_file_on_the_same_mount() {
    let swarm = Swarm::new(1);
    let one = swarm.mount("one");
    std::fs::write(one.path("file"), [0; 1000]).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    drop(read_write(&one.path("file")));
                }
            });
        }
        let file = read_write(&one.path("file"));
        let failed = (1..=150_u32).find_map(|round| {
            file.write_all_at(&[round as u8; 1000], 0).unwrap();
            if let Err(error) = file.sync_all() {
                return Some(format!("fsync {round}: {error}"));
            }
            (content(&file) != [round as u8; 1000]).then(|| format!("round {round} is not what is read"))
        });
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(failed, None);
    });
}

#[test]
fn a_file_outlives_a_rename_over_it_and_its_name() {
    let swarm = Swarm::new(1);
    let one = swarm.mount("one");
    for round in 0..2 {
        std::fs::write(one.path("old"), b"the old one").unwrap();
        let held = read_write(&one.path("old"));
        held.write_all_at(b"THE", 0).unwrap();
        match round {
            0 => {
                std::fs::write(one.path("new"), b"another").unwrap();
                std::fs::rename(one.path("new"), one.path("old")).unwrap();
                assert_eq!(std::fs::read(one.path("old")).unwrap(), b"another");
            }
            _ => {
                std::fs::remove_file(one.path("old")).unwrap();
                assert!(!one.path("old").exists());
            }
        }
        assert_eq!(content(&held), b"THE old one");
        held.write_all_at(b" and more", 11).unwrap();
        held.set_len(15).unwrap();
        held.sync_all().unwrap();
        let mut file = held.try_clone().unwrap();
        file.seek(SeekFrom::Start(4)).unwrap();
        let mut rest = String::new();
        file.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "old one and");
        assert_eq!(held.metadata().unwrap().nlink(), 0);
        drop(file);
        close(held).unwrap();
        if round == 0 {
            assert_eq!(std::fs::read(one.path("old")).unwrap(), b"another");
        }
        eventually("nothing is left under way", || one.unsaved_files() == 0);
    }
    let left = |extension: &str| {
        let spool = std::fs::read_dir(swarm.folder("one-cache").join("spool")).unwrap();
        spool.filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|found| found == extension)).count()
    };
    eventually("the spool is empty", || left("data") == 0 && left("json") == 0);
}

#[test]
fn four_kib_changed_in_a_large_file_send_no_more_than_64_kib() {
    let swarm = Swarm::new(2);
    let (one, two) = (swarm.mount("one"), swarm.mount("two"));
    let mut model = noise(8, 64 * MIB);
    std::fs::write(one.path("large"), &model).unwrap();
    let before = swarm.kept_bytes();
    let file = read_write(&one.path("large"));
    for (round, offset) in [30 * MIB + 5_000, 3, SEGMENT - 2_000].into_iter().enumerate() {
        let patch = noise(80 + round as u64, 4096);
        file.write_all_at(&patch, offset as u64).unwrap();
        file.sync_all().unwrap();
        model[offset..offset + 4096].copy_from_slice(&patch);
        for (now, before) in swarm.kept_bytes().iter().zip(&before) {
            let sent = now - before;
            assert!(sent <= (round as u64 + 1) * 64 * 1024, "{sent} bytes after {} changes", round + 1);
        }
    }
    close(file).unwrap();
    assert_everywhere(&[&one, &two], "large", &model);
}

#[test]
fn thousands_of_small_overwrites_leave_a_short_manifest() {
    const ROUNDS: u32 = 3_000;
    const WINDOWS: usize = 2;
    let swarm = Swarm::new(2);
    let (one, two) = (swarm.mount("one"), swarm.mount("two"));
    let mut model = noise(9, WINDOWS * SEGMENT);
    std::fs::write(one.path("file"), &model).unwrap();
    let file = read_write(&one.path("file"));
    let (mut random, mut most) = (7_u32, 0);
    for round in 0..ROUNDS {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let at = random as usize % (model.len() - 4096);
        let patch = noise(u64::from(round) + 1_000, 4096);
        file.write_all_at(&patch, at as u64).unwrap();
        model[at..at + 4096].copy_from_slice(&patch);
        file.sync_all().unwrap();
        if round % 100 == 99 {
            most = most.max(swarm.extents("/file"));
            assert!(content(&file) == model, "after {round} writes");
        }
    }
    // 64 extents of 64 KiB a window, and what one write more parts of its neighbours.
    assert!(most <= WINDOWS * 67, "{most} extents");
    close(file).unwrap();
    assert_everywhere(&[&one, &two], "file", &model);
}

#[test]
fn a_copy_of_a_file_without_a_name_has_what_was_written_to_it() {
    let swarm = Swarm::new(1);
    let one = swarm.mount("one");
    std::fs::write(one.path("file"), b"the base").unwrap();
    let (from, to) = (read_write(&one.path("file")), new_file(&one.path("copy")));
    std::fs::remove_file(one.path("file")).unwrap();
    from.write_all_at(b"THE", 0).unwrap();
    assert_eq!(copy_file_range(&from, Some(&mut 0), &to, Some(&mut 0), 8).unwrap(), 8);
    close(to).unwrap();
    assert_eq!(std::fs::read(one.path("copy")).unwrap(), b"THE base");
}
