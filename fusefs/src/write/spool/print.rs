//! What tells that somebody wrote to a data file while nobody here was told, and whether it can be trusted.
//!
//! Invariant: where [`are_exact`] holds, two prints of a file are equal only if no write to it began between them.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::{SeekFrom, fstatfs, seek};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// Writes of the probe: far more than are done between two ticks of a clock that is not exact.
const WRITES: u64 = 64;

/// File systems whose `lseek` waits for a write that is under way: ext4, btrfs, tmpfs. That of xfs does not.
const WAITING: [u64; 3] = [0xEF53, 0x9123_683E, 0x0102_1994];

/// How a data file looks from outside.
///
/// Not its change time: that moves also when the file gets another name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Print {
    /// Bytes.
    pub size: u64,
    /// When it was written, nanoseconds since 1970.
    pub modified_ns: i64,
}

impl Print {
    /// That of a file, and the bytes of it that are no holes.
    pub fn of(file: &File) -> io::Result<(Self, u64)> {
        let found = file.metadata()?;
        let modified_ns = found.mtime().saturating_mul(1_000_000_000).saturating_add(found.mtime_nsec());
        Ok((Self { size: found.len(), modified_ns }, found.blocks().saturating_mul(512)))
    }
}

/// Wait until the writes that are under way have put their bytes into the file.
///
/// Cost: blocks as long as they take; one of them may wait for a page of this very mount.
pub(super) fn wait_for_writes(file: &File) -> io::Result<()> {
    match seek(file, SeekFrom::Data(0)) {
        Ok(_) | Err(Errno::NXIO) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Whether the prints of a file tell of every write to it; `file` is written to for that.
///
/// Errors: why they do not.
pub(super) fn are_exact(file: &File) -> Result<(), String> {
    let unknown = |error: io::Error| format!("the spool's file system does not say what it is: {error}");
    let kind = fstatfs(file).map_err(|error| unknown(error.into()))?.f_type;
    if !WAITING.iter().any(|known| u64::try_from(kind).is_ok_and(|kind| kind == *known)) {
        return Err("the spool lies on a file system that is not ext4, btrfs or tmpfs".to_owned());
    }
    let mut before = Print::of(file).map_err(unknown)?.0.modified_ns;
    for _ in 0..WRITES {
        file.write_all_at(b".", 0).map_err(unknown)?;
        let now = Print::of(file).map_err(unknown)?.0.modified_ns;
        if now == before {
            return Err(
                "the times of files are not exact here (Linux before 6.13, or ext4 with small inodes)".to_owned()
            );
        }
        before = now;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_print_changes_with_each_write_and_not_with_a_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let file = File::create_new(&path).unwrap();
        if let Err(reason) = are_exact(&file) {
            return eprintln!("skipped: {reason}");
        }
        let (before, _) = Print::of(&file).unwrap();
        std::fs::hard_link(&path, folder.path().join("link")).unwrap();
        assert_eq!(Print::of(&file).unwrap().0, before);
        file.write_all_at(b"x", 0).unwrap();
        assert_ne!(Print::of(&file).unwrap().0, before);
        wait_for_writes(&file).unwrap();
    }

    #[test]
    fn a_write_whose_time_was_seen_is_all_there_after_the_waiting() {
        const BYTES: usize = 32 << 20;
        let file = tempfile::tempfile().unwrap();
        if let Err(reason) = are_exact(&file) {
            return eprintln!("skipped: {reason}");
        }
        for round in 1..=8 {
            let (before, _) = Print::of(&file).unwrap();
            std::thread::scope(|scope| {
                let writer = scope.spawn(|| file.write_at(&vec![round; BYTES], 0).unwrap());
                while Print::of(&file).unwrap().0.modified_ns == before.modified_ns {
                    std::hint::spin_loop();
                }
                wait_for_writes(&file).unwrap();
                let mut read = vec![0; BYTES];
                file.read_exact_at(&mut read, 0).unwrap();
                assert!(read.iter().all(|byte| *byte == round), "round {round}");
                assert_eq!(writer.join().unwrap(), BYTES);
            });
        }
    }
}
