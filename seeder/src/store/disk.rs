//! The seam between the durable store and the disk's folders and files.
//!
//! Not a database and not a format: it only names what the store does to a file system, so that a
//! simulation can lose, tear and fail each step. Invariant: whatever of the store's correctness depends
//! on order (write, rename, sync) goes through here.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use crate::aligned;

#[cfg(any(test, feature = "testing"))]
pub mod sim;

/// Most pieces in one vectored write; Linux takes 1,024.
const MOST_PIECES: usize = 1024;

/// What one folder entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FolderEntry {
    /// Its name, if it is UTF-8; the store writes no others.
    pub name: String,
    /// Bytes of a file.
    pub length: u64,
    /// A folder.
    pub is_folder: bool,
}

/// Room of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSpace {
    /// Bytes in all.
    pub total: u64,
    /// Bytes that this process may still write.
    pub free: u64,
}

/// What tells a file that was changed from one that was not.
#[derive(Debug, Clone, Copy)]
pub struct Stamp {
    /// Its number.
    pub inode: u64,
    /// Its bytes.
    pub length: u64,
    /// When anything of it was changed last, nanoseconds since 1970.
    pub changed_ns: i128,
    /// How long ago that was, by the same clock.
    pub unchanged_for: Duration,
}

impl PartialEq for Stamp {
    fn eq(&self, other: &Self) -> bool {
        (self.inode, self.length, self.changed_ns) == (other.inode, other.length, other.changed_ns)
    }
}

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// To read.
    Read,
    /// To read and to write in place; made if it is not there.
    Mend,
}

/// A file system as the store needs it. All calls block.
pub trait Disk: Send + Sync + 'static {
    /// A new file. Errors: `AlreadyExists`.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// A file that is there.
    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn DiskFile>>;
    /// Give a file another name, in place of whatever had it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Remove a file.
    fn unlink(&self, path: &Path) -> io::Result<()>;
    /// Make a folder; no error if it is there.
    fn create_folder(&self, path: &Path) -> io::Result<()>;
    /// Make the names of a folder survive a power cut.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;
    /// What a folder holds, in no order.
    fn list(&self, path: &Path) -> io::Result<Vec<FolderEntry>>;
    /// How much room there is.
    fn space(&self, path: &Path) -> io::Result<DiskSpace>;
}

/// An open file of a [`Disk`].
pub trait DiskFile: Send + Sync {
    /// Bytes.
    fn length(&self) -> io::Result<u64>;
    /// Take room for `bytes` without changing the length. Errors: `StorageFull`.
    fn reserve(&self, bytes: u64) -> io::Result<()>;
    /// Write all pieces one after the other.
    fn write_at(&self, pieces: &[Bytes], offset: u64) -> io::Result<()>;
    /// Exactly `length` bytes. Errors: `UnexpectedEof` if the file is shorter.
    fn read_at(&self, offset: u64, length: usize) -> io::Result<Bytes>;
    /// By which a change since then will be known; none if this disk cannot say.
    fn stamp(&self) -> io::Result<Option<Stamp>>;
    /// The file itself, to be given to another process; none if this disk has no such thing.
    fn into_descriptor(self: Box<Self>) -> Option<OwnedFd> {
        None
    }
    /// Make the bytes and the length survive a power cut (fdatasync).
    fn sync(&self) -> io::Result<()>;
}

/// Whether an error says that the disk or a quota is full.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
}

/// The machine's own file systems.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Box::new(file))
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true);
        if access == Access::Mend {
            options.write(true).create(true).truncate(false).mode(0o600);
        }
        Ok(Box::new(options.open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        match std::fs::create_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn list(&self, path: &Path) -> io::Result<Vec<FolderEntry>> {
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(path)? {
            let entry = entry?;
            let meta = match entry.metadata() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            if let Ok(name) = entry.file_name().into_string() {
                entries.push(FolderEntry { name, length: meta.len(), is_folder: meta.is_dir() });
            }
        }
        Ok(entries)
    }

    fn space(&self, path: &Path) -> io::Result<DiskSpace> {
        let stat = rustix::fs::statvfs(path)?;
        Ok(DiskSpace {
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
            free: stat.f_bavail.saturating_mul(stat.f_frsize),
        })
    }
}

impl DiskFile for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn reserve(&self, bytes: u64) -> io::Result<()> {
        match fallocate(self, FallocateFlags::KEEP_SIZE, 0, bytes) {
            // Not every file system can; then the room is found out while writing.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            other => Ok(other?),
        }
    }

    fn write_at(&self, pieces: &[Bytes], mut offset: u64) -> io::Result<()> {
        for pieces in pieces.chunks(MOST_PIECES) {
            let mut slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
            let mut slices = slices.as_mut_slice();
            IoSlice::advance_slices(&mut slices, 0);
            while !slices.is_empty() {
                match rustix::io::pwritev(self, slices, offset) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(wrote) => {
                        offset += wrote as u64;
                        IoSlice::advance_slices(&mut slices, wrote);
                    }
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    fn read_at(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        aligned::read_exact_at(self, offset, length)
    }

    fn stamp(&self) -> io::Result<Option<Stamp>> {
        let meta = self.metadata()?;
        let changed_ns = i128::from(meta.ctime()) * 1_000_000_000 + i128::from(meta.ctime_nsec());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let age = i128::try_from(now.as_nanos()).unwrap_or(i128::MAX) - changed_ns;
        // A change that is still to come was made by a clock that was set back since.
        let unchanged_for = Duration::from_nanos(u64::try_from(age).unwrap_or(0));
        Ok(Some(Stamp { inode: meta.ino(), length: meta.len(), changed_ns, unchanged_for }))
    }

    fn into_descriptor(self: Box<Self>) -> Option<OwnedFd> {
        Some((*self).into())
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

/// Replace a small file so that a crash leaves the old or the new one, durably.
pub fn replace_file(disk: &dyn Disk, path: &Path, bytes: Bytes) -> io::Result<()> {
    let temp = path.with_extension("new");
    match disk.unlink(&temp) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = disk.create(&temp)?;
    file.write_at(&[bytes], 0)?;
    file.sync()?;
    disk.rename(&temp, path)?;
    match path.parent() {
        Some(folder) => disk.sync_folder(folder),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_written_in_order_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let file = RealDisk.create(&dir.path().join("f")).unwrap();
        file.reserve(1 << 20).unwrap();
        assert_eq!(file.length().unwrap(), 0, "a reservation is not content");
        let large = Bytes::from((0..200_000u32).map(|i| (i % 251) as u8).collect::<Vec<u8>>());
        file.write_at(std::slice::from_ref(&large), 0).unwrap();
        assert_eq!(file.read_at(77, 100_000).unwrap(), large[77..100_077]);
        assert_eq!(file.read_at(1, 200_000).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let file = RealDisk.create(&dir.path().join("g")).unwrap();
        let pieces: Vec<Bytes> = (0..3000u32).map(|i| Bytes::from(i.to_le_bytes().to_vec())).collect();
        file.write_at(&pieces, 5).unwrap();
        assert_eq!(file.read_at(5, 12_000).unwrap(), pieces.concat());
        assert_eq!(file.read_at(5, 12_001).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_stamp_is_another_after_a_change_and_the_same_without_one() {
        let dir = tempfile::tempdir().unwrap();
        let file = RealDisk.create(&dir.path().join("f")).unwrap();
        file.write_at(&[Bytes::from_static(b"bytes")], 0).unwrap();
        let before = file.stamp().unwrap().unwrap();
        assert_eq!(file.read_at(0, 5).unwrap(), "bytes");
        assert_eq!(file.stamp().unwrap().unwrap(), before);
        // Longer than any step of the clock by which files are stamped.
        std::thread::sleep(Duration::from_millis(30));
        file.write_at(&[Bytes::from_static(b"B")], 0).unwrap();
        assert_ne!(file.stamp().unwrap().unwrap(), before);
    }

    #[test]
    fn a_replaced_file_has_the_new_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("VERSION");
        replace_file(&RealDisk, &path, Bytes::from_static(b"one")).unwrap();
        replace_file(&RealDisk, &path, Bytes::from_static(b"two")).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(RealDisk.list(dir.path()).unwrap().len(), 1);
    }
}
