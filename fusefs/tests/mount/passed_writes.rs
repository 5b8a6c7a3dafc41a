//! Files that the kernel writes into the spool by itself (`--passthrough-writes`): what every handle reads meanwhile,
//! and what the swarm has afterwards.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use rustix::fs::{FallocateFlags, copy_file_range, fallocate};
use swarm_fusefs::mount::MountConfig;

use super::swarm::{Mounted, SEGMENT, Swarm, close, eventually, no_program_starts, noise, run};

const MIB: usize = 1024 * 1024;
const STALE: Option<i32> = Some(116);

fn passing<'s>(swarm: &'s Swarm, name: &str) -> Mounted<'s> {
    let config = swarm.config(&format!("{name}-cache"));
    swarm.mount_with(name, MountConfig { passthrough_writes: true, ..config })
}

/// Whether nothing can be tested here; it says why.
fn is_skipped(mounted: &Mounted<'_>) -> bool {
    let reason = mounted.mount.as_ref().unwrap().file_system().no_passed_writes();
    if let Some(reason) = &reason {
        eprintln!("skipped: {reason}");
    }
    reason.is_some()
}

fn passed(mounted: &Mounted<'_>) -> u64 {
    mounted.opens("passthrough-writing")
}

/// The kernel tells of a close a moment later; until then a file counts as open.
fn until_closed(mounted: &Mounted<'_>) {
    eventually("all is closed", || mounted.mount.as_ref().unwrap().file_system().open_handles() == 0);
}

fn to_write(path: &Path) -> File {
    OpenOptions::new().write(true).open(path).unwrap()
}

fn read_write(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

#[track_caller]
fn assert_everywhere(mounts: &[&Mounted<'_>], name: &str, bytes: &[u8]) {
    for mounted in mounts {
        let read = std::fs::read(mounted.path(name)).unwrap();
        assert_eq!(read.len(), bytes.len(), "length of {name}");
        let differs = read.iter().zip(bytes).position(|(a, b)| a != b);
        assert_eq!(differs, None, "first wrong byte of {name}");
    }
}

fn conflict_copies(mounted: &Mounted<'_>, name: &str) -> Vec<PathBuf> {
    let start = format!("{name}.conflict-");
    let entries = std::fs::read_dir(&mounted.folder).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(&start)).collect()
}

#[test]
fn what_the_kernel_wrote_is_read_everywhere_after_close() {
    let swarm = Swarm::new(2);
    let (one, two) = (passing(&swarm, "one"), swarm.mount("two"));
    if is_skipped(&one) {
        return;
    }
    for (round, length) in [0, 1, 5_000, SEGMENT, 3 * SEGMENT + 77].into_iter().enumerate() {
        let bytes = noise(round as u64, length);
        // Made, then emptied and written anew.
        for name in ["file".to_owned(), format!("new-{round}")] {
            let mut file = File::create(one.path(&name)).unwrap();
            bytes.chunks(MIB).for_each(|part| file.write_all(part).unwrap());
            close(file).unwrap();
            assert_everywhere(&[&two, &one], &name, &bytes);
            until_closed(&one);
        }
    }
    assert_eq!(passed(&one), 10);
    let daemon = one.mount.as_ref().unwrap().file_system().counters().written_bytes.get();
    assert_eq!(daemon, 0, "no byte came to the daemon");
    eventually("nothing is under way", || one.unsaved_files() == 0);
}

#[test]
fn other_handles_read_write_append_cut_and_punch_while_it_is_passed() {
    let swarm = Swarm::new(2);
    let (one, two) = (passing(&swarm, "one"), swarm.mount("two"));
    if is_skipped(&one) {
        return;
    }
    let mut model = noise(1, SEGMENT + 300_000);
    let first = File::create(one.path("file")).unwrap();
    let reader = File::open(one.path("file")).unwrap();
    let check = |model: &[u8]| {
        assert_eq!(reader.metadata().unwrap().len(), model.len() as u64);
        let mut read = vec![0; model.len()];
        reader.read_exact_at(&mut read, 0).unwrap();
        assert_eq!(read.iter().zip(model).position(|(a, b)| a != b), None);
    };
    first.write_all_at(&model, 0).unwrap();
    check(&model);
    let second = to_write(&one.path("file"));
    second.write_all_at(b"over", 1_000).unwrap();
    model[1_000..1_004].copy_from_slice(b"over");
    let mut third = OpenOptions::new().append(true).open(one.path("file")).unwrap();
    third.write_all(b"behind").unwrap();
    model.extend_from_slice(b"behind");
    check(&model);
    first.write_all_at(b"the kernel", 2_000).unwrap();
    model[2_000..2_010].copy_from_slice(b"the kernel");
    check(&model);
    first.sync_all().unwrap();
    assert_everywhere(&[&two], "file", &model);
    for length in [SEGMENT + 5, 100_000, 150_000] {
        first.set_len(length as u64).unwrap();
        model.resize(length, 0);
        check(&model);
    }
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&first, punch, 10_001, 20_000).unwrap();
    model[10_001..30_001].fill(0);
    fallocate(&second, FallocateFlags::ZERO_RANGE, 149_000, 3_000).unwrap();
    model[149_000..].fill(0);
    model.resize(152_000, 0);
    fallocate(&first, FallocateFlags::empty(), 152_000, 1_000).unwrap();
    model.resize(153_000, 0);
    check(&model);
    third.write_all(b"the end").unwrap();
    model.extend_from_slice(b"the end");
    check(&model);
    close(second).unwrap();
    assert_everywhere(&[&two], "file", &model);
    first.write_all_at(b"last", 0).unwrap();
    model[..4].copy_from_slice(b"last");
    close(first).unwrap();
    assert_everywhere(&[&two, &one], "file", &model);
    close(third).unwrap();
    check(&model);
    drop(reader);
    until_closed(&one);
    // By name, while it is passed.
    let mut again = File::create(one.path("file")).unwrap();
    again.write_all(&model).unwrap();
    nix::unistd::truncate(&one.path("file"), 77).unwrap();
    assert_everywhere(&[&two], "file", &model[..77]);
    close(again).unwrap();
    assert_eq!(passed(&one), 4, "those that joined as well");
    eventually("nothing is under way", || one.unsaved_files() == 0);
}

#[test]
fn a_sparse_file_that_the_kernel_wrote_stays_sparse() {
    let swarm = Swarm::new(1);
    let (one, two) = (passing(&swarm, "one"), swarm.mount("two"));
    if is_skipped(&one) {
        return;
    }
    let (block, far) = (noise(4, 256 * 1024), 1_u64 << 40);
    let file = File::create(one.path("sparse")).unwrap();
    file.write_all_at(&block, 1 << 30).unwrap();
    file.write_all_at(&block, far).unwrap();
    file.set_len(far + (1 << 30)).unwrap();
    let blocks = file.metadata().unwrap().blocks() * 512;
    assert!((2 * 262_144..2 * 262_144 + 65_536).contains(&blocks), "{blocks}");
    let data = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(0)).unwrap();
    assert_eq!(
        (data, rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(data)).unwrap()),
        (1 << 30, (1 << 30) + 262_144)
    );
    close(file).unwrap();
    assert_eq!(passed(&one), 1);
    assert_eq!(swarm.kept_bytes(), [262_144], "both blocks are alike, and holes are nothing");
    for mounted in [&two, &one] {
        let file = File::open(mounted.path("sparse")).unwrap();
        assert_eq!(
            (file.metadata().unwrap().len(), file.metadata().unwrap().blocks() * 512),
            (far + (1 << 30), 524_288)
        );
        let mut read = vec![1; 300_000];
        file.read_exact_at(&mut read, far - 100).unwrap();
        assert!(read[..100].iter().all(|byte| *byte == 0) && read[100..262_244] == block);
    }
}

#[test]
fn times_that_were_set_go_with_the_file_until_it_is_written_again() {
    let swarm = Swarm::new(1);
    let (one, two) = (passing(&swarm, "one"), swarm.mount("two"));
    if is_skipped(&one) {
        return;
    }
    let then = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_234_567_890_123_456_789);
    let mut file = File::create(one.path("file")).unwrap();
    file.write_all(b"text").unwrap();
    file.set_modified(then).unwrap();
    assert_eq!(one.path("file").metadata().unwrap().modified().unwrap(), then);
    file.sync_all().unwrap();
    assert_eq!(two.path("file").metadata().unwrap().modified().unwrap(), then);
    file.write_all(b"more").unwrap();
    assert!(one.path("file").metadata().unwrap().modified().unwrap() > then);
    file.set_modified(then).unwrap();
    close(file).unwrap();
    eventually("it shows", || two.path("file").metadata().unwrap().len() == 8);
    assert_eq!(two.path("file").metadata().unwrap().modified().unwrap(), then);
}

#[test]
fn each_write_between_two_syncs_is_saved() {
    let swarm = Swarm::new(1);
    let (one, two) = (passing(&swarm, "one"), swarm.mount("two"));
    if is_skipped(&one) {
        return;
    }
    // The size and, but for a clock that tells every write, the time stay what they are.
    let file = File::create(one.path("file")).unwrap();
    for round in 0..200_u32 {
        file.write_all_at(&round.to_le_bytes(), 0).unwrap();
        file.sync_all().unwrap();
        let seen = std::fs::read(two.path("file")).unwrap();
        assert_eq!(seen, round.to_le_bytes(), "round {round}");
    }
}

#[test]
fn writers_beside_a_save_lose_nothing() {
    let swarm = Swarm::new(2);
    let (one, two) = (passing(&swarm, "one"), swarm.mount("two"));
    if is_skipped(&one) {
        return;
    }
    let file = File::create(one.path("file")).unwrap();
    let mut model = vec![0; 4 * 500_000];
    std::thread::scope(|scope| {
        for part in 0..3_usize {
            let file = &file;
            scope.spawn(move || {
                for round in 0..60_u64 {
                    file.write_all_at(&noise(round * 10 + part as u64, 500_000), (part * 500_000) as u64).unwrap();
                }
            });
        }
        for _ in 0..20 {
            file.sync_data().unwrap();
            one.path("file").metadata().unwrap();
        }
    });
    for part in 0..3 {
        model[part * 500_000..][..500_000].copy_from_slice(&noise(590 + part as u64, 500_000));
    }
    file.write_all_at(&[7; 500_000], 1_500_000).unwrap();
    model[1_500_000..].fill(7);
    close(file).unwrap();
    assert_everywhere(&[&two, &one], "file", &model);
}

#[test]
fn a_map_of_a_handle_that_joined_reads_and_writes_what_is_passed() {
    let swarm = Swarm::new(1);
    let (one, two) = (passing(&swarm, "one"), swarm.mount("two"));
    if is_skipped(&one) {
        return;
    }
    let script = "\
import mmap, os, sys, tempfile
out = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
os.write(out, b'-' * 90001)
seen = os.open(sys.argv[1], os.O_RDONLY)
def spliced():
    with tempfile.TemporaryFile() as copy:
        os.sendfile(copy.fileno(), seen, 0, 200000)
        copy.seek(0)
        return copy.read()
assert spliced() == b'-' * 90001
os.write(out, b'-' * 9999)
assert spliced() == b'-' * 100000
view = mmap.mmap(seen, 100000, prot=mmap.PROT_READ)
assert view[:] == b'-' * 100000
os.pwrite(out, b'kernel', 50000)
assert view[50000:50006] == b'kernel' and spliced()[50000:50006] == b'kernel'
both = os.open(sys.argv[1], os.O_RDWR)
mine = mmap.mmap(both, 100000)
mine[10:14] = b'maps'
assert os.pread(both, 4, 10) == b'maps' and view[10:14] == b'maps'
os.fsync(both)
assert open(sys.argv[2], 'rb').read()[8:16] == b'--maps--'
mine[20:24] = b'more'
os.fsync(out)
assert open(sys.argv[2], 'rb').read()[20:24] == b'more'
mine[30:34] = b'last'
os.close(out)
os.close(seen)
mine[40:44] = b'late'
os.close(both)
";
    let run = run(Command::new("python3").args(["-c", script]).arg(one.path("file")).arg(two.path("file")));
    let ended = match run {
        Err(error) => return eprintln!("skipped: maps are made by python3, which does not start: {error}"),
        Ok(ended) => ended,
    };
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let mut model = vec![b'-'; 100_000];
    for (at, word) in [(10, b"maps"), (20, b"more"), (30, b"last"), (40, b"late")] {
        model[at..at + 4].copy_from_slice(word);
    }
    model[50_000..50_006].copy_from_slice(b"kernel");
    assert_everywhere(&[&two, &one], "file", &model);
    assert_eq!(passed(&one), 2);
    eventually("nothing is under way", || one.unsaved_files() == 0);
}

#[test]
fn only_handles_that_begin_a_file_and_cannot_be_mapped_are_passed() {
    let swarm = Swarm::new(1);
    let (one, plain) = (passing(&swarm, "one"), swarm.mount("plain"));
    if is_skipped(&one) {
        return;
    }
    std::fs::write(plain.path("elsewhere"), b"x").unwrap();
    assert_eq!(passed(&plain), 0, "not asked for");
    let handles = || one.mount.as_ref().unwrap().file_system().open_handles();
    let count = |opens: &dyn Fn() -> File| {
        let (before, open) = (passed(&one), handles());
        let file = opens();
        file.write_all_at(b"123", 0).unwrap();
        close(file).unwrap();
        let passed = passed(&one) - before;
        eventually("this handle is gone", || handles() == open);
        passed
    };
    let path = one.path("file");
    let options = OpenOptions::new;
    assert_eq!(count(&|| options().write(true).create(true).truncate(true).open(&path).unwrap()), 1);
    assert_eq!(count(&|| options().write(true).open(&path).unwrap()), 0, "it has bytes");
    assert_eq!(count(&|| options().read(true).write(true).truncate(true).open(&path).unwrap()), 0, "it may be mapped");
    let direct = |flags| options().write(true).truncate(true).custom_flags(flags).open(&path).unwrap();
    assert_eq!(count(&|| direct(0o4_010_000)), 0, "O_SYNC");
    let reader = File::open(&path).unwrap();
    assert_eq!(count(&|| File::create(&path).unwrap()), 0, "it is open");
    drop(reader);
    until_closed(&one);
    assert_eq!(count(&|| File::create(&path).unwrap()), 1);
    assert_everywhere(&[&plain, &one], "file", b"123");
}

#[test]
fn of_two_mounts_the_one_that_was_slower_finds_its_bytes_in_a_conflict_copy() {
    let _quiet = no_program_starts();
    let swarm = Swarm::new(1);
    let (one, two) = (passing(&swarm, "one"), swarm.mount("two"));
    if is_skipped(&one) {
        return;
    }
    let (base, won, lost) = (noise(1, 300_000), noise(2, 200_000), noise(3, 400_000));
    std::fs::write(one.path("file"), &base).unwrap();
    let mut loser = File::create(one.path("file")).unwrap();
    loser.write_all(&lost).unwrap();
    std::fs::write(two.path("file"), &won).unwrap();
    assert_eq!(loser.sync_all().unwrap_err().raw_os_error(), STALE);
    assert_everywhere(&[&two, &one], "file", &won);
    let copies = conflict_copies(&one, "file");
    assert_eq!(copies.len(), 1, "{copies:?}");
    assert!(std::fs::read(&copies[0]).unwrap() == lost);
    // What is written behind that is never put in the winner's place.
    loser.write_all(b"more").unwrap();
    assert_eq!(close(loser).unwrap_err().raw_os_error(), STALE);
    assert_everywhere(&[&two, &one], "file", &won);
    assert_eq!(conflict_copies(&two, "file").len(), 2);
    eventually("nothing is under way", || one.unsaved_files() == 0);
    std::fs::write(one.path("file"), b"again").unwrap();
    assert_everywhere(&[&two, &one], "file", b"again");
}

#[test]
fn an_open_beside_a_passed_handle_sees_what_another_mount_saved() {
    let _quiet = no_program_starts();
    let swarm = Swarm::new(1);
    let (one, two) = (passing(&swarm, "one"), swarm.mount("two"));
    if is_skipped(&one) {
        return;
    }
    let (first, second) = (noise(1, 300_000), noise(2, 200_000));
    let mut writer = File::create(one.path("file")).unwrap();
    writer.write_all(&first).unwrap();
    writer.sync_all().unwrap();
    let held = File::open(one.path("file")).unwrap();
    std::fs::write(two.path("file"), &second).unwrap();
    assert_everywhere(&[&one], "file", &second);
    let mut read = vec![0; second.len()];
    held.read_exact_at(&mut read, 0).unwrap();
    assert!(read == first[..second.len()], "what the kernel reads by itself stays what it is");
    assert_eq!(held.metadata().unwrap().len(), 200_000);
    let newer = File::open(one.path("file")).unwrap();
    newer.read_exact_at(&mut read, 0).unwrap();
    assert!(read == second);
    drop(newer);
    close(writer).unwrap();
    // Nobody writes it any more, though it is still open.
    let again = to_write(&one.path("file"));
    again.write_all_at(b"over", 5).unwrap();
    close(again).unwrap();
    let mut model = second;
    model[5..9].copy_from_slice(b"over");
    assert_everywhere(&[&two, &one], "file", &model);
    assert!(conflict_copies(&one, "file").is_empty());
    drop(held);
    eventually("nothing is under way", || one.unsaved_files() == 0);
}

#[test]
fn a_writer_that_comes_while_a_reader_still_holds_the_kernels_file_goes_on_with_it() {
    let swarm = Swarm::new(1);
    let (one, two) = (passing(&swarm, "one"), swarm.mount("two"));
    if is_skipped(&one) {
        return;
    }
    let mut model = noise(1, 200_000);
    let mut writer = File::create(one.path("file")).unwrap();
    writer.write_all(&model).unwrap();
    let reader = File::open(one.path("file")).unwrap();
    close(writer).unwrap();
    for open in [to_write, read_write] {
        let file = open(&one.path("file"));
        file.write_all_at(b"again", 70_000).unwrap();
        model[70_000..70_005].copy_from_slice(b"again");
        close(file).unwrap();
        assert_everywhere(&[&two, &one], "file", &model);
    }
    let file = File::create(one.path("file")).unwrap();
    assert_eq!(reader.metadata().unwrap().len(), 0);
    file.write_all_at(b"short", 0).unwrap();
    close(file).unwrap();
    assert_everywhere(&[&two, &one], "file", b"short");
    assert_eq!(passed(&one), 4);
    drop(reader);
    eventually("nothing is under way", || one.unsaved_files() == 0);
}

#[test]
fn copies_within_the_mount_are_the_same_and_send_nothing() {
    let swarm = Swarm::new(2);
    let (one, two) = (passing(&swarm, "one"), swarm.mount("two"));
    if is_skipped(&one) {
        return;
    }
    let source = noise(7, 2 * SEGMENT + 12_345);
    std::fs::write(one.path("source"), &source).unwrap();
    let kept = swarm.kept_bytes();
    // copy_file_range(2), as cp(1) does.
    assert_eq!(std::fs::copy(one.path("source"), one.path("copy")).unwrap(), source.len() as u64);
    assert_everywhere(&[&two, &one], "copy", &source);
    assert_eq!(swarm.kept_bytes(), kept, "no byte was stored");
    // Out of one that is passed.
    let mut from = File::create(one.path("from")).unwrap();
    from.write_all(&source).unwrap();
    let (reader, to) = (File::open(one.path("from")).unwrap(), read_write(&one.path("copy")));
    assert_eq!(copy_file_range(&reader, Some(&mut 5), &to, Some(&mut 0), 1_000_000).unwrap(), 1_000_000);
    close(to).unwrap();
    let mut model = source.clone();
    model[..1_000_000].copy_from_slice(&source[5..1_000_005]);
    assert_everywhere(&[&two, &one], "copy", &model);
}

#[test]
fn many_small_files_are_all_there_and_leave_nothing_in_the_spool() {
    let swarm = Swarm::new(2);
    let (one, two) = (passing(&swarm, "one"), swarm.mount("two"));
    if is_skipped(&one) {
        return;
    }
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let one = &one;
            scope.spawn(move || {
                for number in 0..100_u64 {
                    let name = one.path(format!("{thread}-{number}"));
                    std::fs::write(&name, noise(number, number as usize * 131)).unwrap();
                }
            });
        }
    });
    for thread in 0..4 {
        for number in 0..100_u64 {
            let bytes = noise(number, number as usize * 131);
            assert_everywhere(&[&two], &format!("{thread}-{number}"), &bytes);
        }
    }
    assert_eq!(passed(&one), 400);
    eventually("nothing is under way", || one.unsaved_files() == 0);
    let left = || {
        let spool = std::fs::read_dir(swarm.folder("one-cache").join("spool")).unwrap();
        spool.filter(|entry| entry.as_ref().unwrap().path().extension().is_some()).count()
    };
    eventually("the spool is empty", || left() == 0);
}

#[test]
fn a_file_that_loses_its_name_is_written_and_read_on() {
    let swarm = Swarm::new(1);
    let one = passing(&swarm, "one");
    if is_skipped(&one) {
        return;
    }
    let mut file = File::create(one.path("file")).unwrap();
    file.write_all(b"before").unwrap();
    let reader = File::open(one.path("file")).unwrap();
    std::fs::remove_file(one.path("file")).unwrap();
    file.write_all(b" and after").unwrap();
    let mut read = [0; 16];
    reader.read_exact_at(&mut read, 0).unwrap();
    assert_eq!(&read, b"before and after");
    close(file).unwrap();
    drop(reader);
    eventually("nothing is under way", || one.unsaved_files() == 0);
}

/// What is done next through one of a few handles of one file, of which the first is passed.
fn random(swarm: &Swarm, one: &Mounted<'_>, two: &Mounted<'_>, seed: u64) {
    let mut state = seed;
    let mut next = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let name = format!("random-{seed}");
    let path = one.path(&name);
    let mut handles = vec![File::create(&path).unwrap()];
    let (mut model, mut saved) = (Vec::new(), Vec::new());
    for round in 0..400_u64 {
        let handle = next(handles.len());
        let at = next(model.len() + 100_000);
        let length = next(if round % 20 == 0 { 6 * MIB } else { 90_000 });
        let what = next(24);
        match what {
            0..8 => {
                let bytes = noise(seed * 1_000 + round, length);
                handles[handle].write_all_at(&bytes, at as u64).unwrap();
                if length > 0 {
                    model.resize(model.len().max(at + length), 0);
                    model[at..at + length].copy_from_slice(&bytes);
                }
            }
            8 | 9 => {
                let mut file = OpenOptions::new().append(true).open(&path).unwrap();
                file.write_all(&[7; 3_000]).unwrap();
                model.extend_from_slice(&[7; 3_000]);
                close(file).unwrap();
                saved.clone_from(&model);
            }
            10 | 11 => {
                let size = at.min(9 * MIB);
                handles[handle].set_len(size as u64).unwrap();
                model.resize(size, 0);
            }
            12 | 13 => {
                let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(&handles[handle], punch, at as u64, length as u64 + 1).unwrap();
                let end = (at + length + 1).min(model.len());
                model[at.min(end)..end].fill(0);
            }
            14 | 15 => {
                handles[handle].sync_all().unwrap();
                saved.clone_from(&model);
            }
            16 if handles.len() < 4 => handles.push(to_write(&path)),
            17 if handles.len() < 4 => handles.push(read_write(&path)),
            18 if handles.len() > 1 => {
                // The one that is passed as well.
                close(handles.swap_remove(handle)).unwrap();
                saved.clone_from(&model);
            }
            19 => {
                let read = std::fs::read(two.path(&name)).unwrap();
                assert!(read == saved, "the other mount, round {round} of {seed}");
            }
            20 if round % 3 == 0 => {
                handles.push(File::create(&path).unwrap());
                model.clear();
            }
            21 if round % 5 == 0 => {
                handles.drain(..).for_each(|file| close(file).unwrap());
                handles.push(File::create(&path).unwrap());
                saved.clone_from(&model);
                model.clear();
            }
            _ => {
                let read = std::fs::read(&path).unwrap();
                assert_eq!(read.len(), model.len(), "round {round} of {seed}");
                let differs = read.iter().zip(&model).position(|(a, b)| a != b);
                assert_eq!(differs, None, "first wrong byte in round {round} of {seed}");
                assert_eq!(path.metadata().unwrap().len(), model.len() as u64);
            }
        }
    }
    handles.into_iter().for_each(|file| close(file).unwrap());
    assert_everywhere(&[two, one], &name, &model);
    assert!(conflict_copies(one, &name).is_empty());
    swarm.remove(&format!("/{name}"));
}

#[test]
fn random_operations_through_several_handles_make_no_difference() {
    let _quiet = no_program_starts();
    let swarm = Swarm::new(2);
    let (one, two) = (passing(&swarm, "one"), swarm.mount("two"));
    if is_skipped(&one) {
        return;
    }
    for seed in 1..7 {
        random(&swarm, &one, &two, seed);
    }
    assert!(passed(&one) >= 6, "{}", passed(&one));
    eventually("nothing is under way", || one.unsaved_files() == 0);
}
