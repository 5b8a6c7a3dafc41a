//! Between our words and the kernel's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, Generation, INodeNo};
use swarm_proto::InodeNumber;

use crate::errno::Errno;
use crate::fs::node::{Kind, Node};
use crate::fs::{Entry, Page, Whence};

/// Inode numbers are never used again, so one generation is enough.
pub(super) const GENERATION: Generation = Generation(0);
/// What `st_blksize` says: what the kernel reads at least. More would have stdio fetch more than is asked.
const BLOCK_BYTES: u32 = 4096;
/// What `st_blocks` counts in.
const STAT_BLOCK_BYTES: u64 = 512;

/// The kernel calls the root 1, whichever inode of the catalog it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Numbers {
    pub(super) root: InodeNumber,
}

impl Numbers {
    pub(super) fn to_catalog(self, number: INodeNo) -> InodeNumber {
        match number {
            INodeNo::ROOT => self.root,
            INodeNo(number) => InodeNumber(number),
        }
    }

    pub(super) fn to_kernel(self, inode: InodeNumber) -> INodeNo {
        match inode == self.root {
            true => INodeNo::ROOT,
            false => INodeNo(inode.0),
        }
    }

    /// Number and name of an entry.
    pub(super) fn entry<'a>(self, page: &Page, entry: &Entry<'a>) -> (INodeNo, &'a [u8]) {
        match entry {
            Entry::Itself => (self.to_kernel(page.directory), b"."),
            Entry::Parent => (self.to_kernel(page.parent), b".."),
            Entry::Named(name, node) => (self.to_kernel(node.inode), name),
        }
    }

    pub(super) fn attributes(self, node: &Node) -> FileAttr {
        FileAttr {
            ino: self.to_kernel(node.inode),
            size: node.size,
            blocks: node.allocated.div_ceil(STAT_BLOCK_BYTES),
            atime: time(node.accessed_ns),
            mtime: time(node.modified_ns),
            ctime: time(node.changed_ns),
            crtime: time(node.created_ns),
            kind: file_type(node.kind),
            perm: node.mode,
            nlink: node.links,
            uid: node.uid,
            gid: node.gid,
            rdev: u32::try_from(node.device).unwrap_or(0),
            blksize: BLOCK_BYTES,
            flags: 0,
        }
    }
}

/// Attributes of a directory of which the kernel takes only the number and the kind.
pub(super) fn directory(inode: INodeNo) -> FileAttr {
    FileAttr { ino: inode, kind: FileType::Directory, ..absent() }
}

/// Attributes of a name that does not exist: inode 0.
pub(super) fn absent() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

pub(super) const fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::CharacterDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
    }
}

pub(super) fn errno(error: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(error.raw_os_error())
}

/// The two seeks that reach a file system: SEEK_DATA is 3 and SEEK_HOLE 4 on Linux.
pub(super) const fn whence(number: i32) -> Option<Whence> {
    match number {
        3 => Some(Whence::Data),
        4 => Some(Whence::Hole),
        _ => None,
    }
}

fn time(nanoseconds: i64) -> SystemTime {
    let distance = Duration::from_nanos(nanoseconds.unsigned_abs());
    match nanoseconds >= 0 {
        true => UNIX_EPOCH + distance,
        false => UNIX_EPOCH - distance,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_are_times() {
        let before = time(-1_500_000_000);
        assert_eq!(UNIX_EPOCH.duration_since(before).unwrap(), Duration::from_millis(1_500));
        assert!(time(i64::MIN) < time(i64::MAX));
    }

    #[test]
    fn the_root_of_a_part_of_the_swarm_is_one_to_the_kernel() {
        let numbers = Numbers { root: InodeNumber(77) };
        assert_eq!(numbers.to_kernel(InodeNumber(77)), INodeNo::ROOT);
        assert_eq!(numbers.to_catalog(INodeNo::ROOT), InodeNumber(77));
        assert_eq!(numbers.to_catalog(numbers.to_kernel(InodeNumber(5))), InodeNumber(5));
    }
}
