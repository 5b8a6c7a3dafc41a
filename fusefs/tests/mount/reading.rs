//! Bytes: whole files, pieces, holes, many readers, the cache.

use std::fs::{File, Permissions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::process::Command;

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use swarm_proto::Extent;

use super::swarm::{SEGMENT, Swarm, eventually, no_program_starts, noise, start};

const CHUNK: usize = 16 * 1024;

#[test]
fn files_of_every_awkward_length_are_identical() {
    let swarm = Swarm::new(2);
    let lengths = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 2 * SEGMENT + 12_345];
    for length in lengths {
        swarm.publish(format!("/{length}"), &noise(length as u64, length));
    }
    let mounted = swarm.mount("m");
    for round in 0..2 {
        for length in lengths {
            let bytes = std::fs::read(mounted.path(length.to_string())).unwrap();
            assert!(bytes == noise(length as u64, length), "{length} bytes, round {round}");
        }
    }
}

#[test]
fn random_reads_of_any_length_are_right() {
    let swarm = Swarm::new(2);
    let bytes = noise(7, SEGMENT + 777_777);
    swarm.publish("/file", &bytes);
    let mounted = swarm.mount("m");
    let file = File::open(mounted.path("file")).unwrap();
    let places = noise(8, 4 * 200);
    for place in places.chunks(4) {
        let offset = u32::from_le_bytes(place.try_into().unwrap()) as usize % (bytes.len() + 10_000);
        let length = 1 + offset % 70_000;
        let mut got = vec![0; length];
        let count = file.read_at(&mut got, offset as u64).unwrap();
        let want = &bytes[offset.min(bytes.len())..(offset + length).min(bytes.len())];
        assert!(got[..count] == *want, "{length} bytes at {offset}");
    }
}

#[test]
fn holes_are_zeros_and_are_found_by_seeking() {
    let swarm = Swarm::new(1);
    let bytes = noise(9, 100_000);
    swarm.publish("/plain", &bytes);
    let segment = swarm_proto::ChunkTree::build(&bytes).segment();
    swarm.publish_extents("/sparse", vec![Extent::Hole { length: 1 << 30 }, Extent::whole(segment)]);
    let mounted = swarm.mount("m");
    let mut file = File::open(mounted.path("sparse")).unwrap();
    assert_eq!(rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(0)), Ok(1 << 30));
    let nowhere = [rustix::fs::SeekFrom::Data(u64::MAX), rustix::fs::SeekFrom::Hole(u64::MAX)];
    for nowhere in nowhere {
        assert_eq!(rustix::fs::seek(&file, nowhere), Err(Errno::NXIO), "as an offset it is -1");
    }
    file.seek(SeekFrom::Start((1 << 30) - 5)).unwrap();
    let mut tail = Vec::new();
    file.read_to_end(&mut tail).unwrap();
    assert!(tail[..5] == [0; 5] && tail[5..] == bytes);
}

#[test]
fn inodes_in_use_and_free_ones_are_all_that_there_are() {
    let swarm = Swarm::new(1);
    let mounted = swarm.mount("m");
    for index in 0..5 {
        std::fs::create_dir(mounted.path(format!("{index}"))).unwrap();
    }
    eventually("they are counted", || {
        let counted = rustix::fs::statvfs(&mounted.folder).unwrap();
        counted.f_files.checked_sub(counted.f_ffree) == Some(6) && counted.f_favail == counted.f_ffree
    });
}

#[test]
fn many_readers_of_many_files_at_once_get_what_is_theirs() {
    let swarm = Swarm::new(3);
    let files: Vec<Vec<u8>> = (0..12).map(|index| noise(index, 300_000 + 100_000 * index as usize)).collect();
    for (index, bytes) in files.iter().enumerate() {
        swarm.publish(format!("/{index}"), bytes);
    }
    let mounted = swarm.mount("m");
    std::thread::scope(|scope| {
        for reader in 0..8 {
            let (files, mounted) = (&files, &mounted);
            scope.spawn(move || {
                for step in 0..files.len() {
                    let index = (reader * 5 + step * 7) % files.len();
                    assert!(std::fs::read(mounted.path(index.to_string())).unwrap() == files[index]);
                }
            });
        }
    });
}

#[test]
fn a_cached_file_is_read_with_the_daemon_idle_also_after_a_restart() {
    let swarm = Swarm::new(1);
    let bytes = noise(3, SEGMENT + 5);
    swarm.publish("/file", &bytes);
    let mounted = swarm.mount("m");
    assert!(std::fs::read(mounted.path("file")).unwrap() == bytes);
    if let Some(reason) = mounted.mount.as_ref().unwrap().file_system().no_passthrough() {
        eprintln!("skipped: the kernel does not read cache files by itself here: {reason}");
        return;
    }
    let idle = |mounted: &super::swarm::Mounted<'_>| {
        let before = mounted.reads();
        assert!(std::fs::read(mounted.path("file")).unwrap() == bytes);
        mounted.reads() == before && mounted.opens("passthrough") > 0
    };
    eventually("reads pass the daemon by", || idle(&mounted));
    mounted.unmount();
    // Its bytes are nowhere but in the cache.
    swarm.lose_everything(&bytes);
    let again = swarm.mount("m");
    assert!(std::fs::read(again.path("file")).unwrap() == bytes);
    eventually("reads pass the daemon by after a restart", || idle(&again));
}

#[test]
fn what_nobody_holds_ends_in_an_error_and_comes_back() {
    let swarm = Swarm::new(1);
    let bytes = noise(4, 200_000);
    swarm.publish("/file", &bytes);
    swarm.lose_everything(&bytes);
    let config = swarm_fusefs::mount::MountConfig {
        read_timeout: swarm_proto::settings::Span(std::time::Duration::from_secs(2)),
        ..swarm.config("cache")
    };
    let mounted = swarm.mount_with("m", config);
    let error = std::fs::read(mounted.path("file")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    swarm.publish("/other", &bytes);
    eventually("it is read again, with no remount", || {
        std::fs::read(mounted.path("file")).is_ok_and(|got| got == bytes)
    });
}

#[test]
fn a_handle_that_only_reads_empties_a_file_but_not_under_a_program_that_runs() {
    let swarm = Swarm::new(2);
    let (one, two) = (swarm.mount("one"), swarm.mount("two"));
    let (program, bytes) = (one.path("program"), std::fs::read("/bin/sleep").unwrap());
    {
        // A child of another test would hold the handle that writes, and nothing runs while there is one.
        let _none = no_program_starts();
        std::fs::write(&program, &bytes).unwrap();
    }
    std::fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    let empty = || open(&program, OFlags::RDONLY | OFlags::TRUNC, Mode::empty());
    let mut child = start(Command::new(&program).arg("60")).unwrap();
    for _ in 0..10 {
        assert_eq!(empty().unwrap_err(), Errno::TXTBSY);
    }
    assert!(child.try_wait().unwrap().is_none(), "it goes on");
    assert!(std::fs::read(&program).unwrap() == bytes);
    child.kill().unwrap();
    child.wait().unwrap();

    eventually("the kernel has let go of the program", || empty().is_ok());
    assert_eq!(std::fs::read(&program).unwrap(), b"");
    assert_eq!(std::fs::read(two.path("program")).unwrap(), b"");
}
