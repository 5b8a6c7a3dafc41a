//! The file in which a mount says how it is: in its root, found by its name alone, in no listing.
//!
//! Not of the swarm: each mount has its own, and it takes the place of a file of that name.

use std::time::{SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileHandle, FileType, INodeNo};

/// Its name.
pub(crate) const NAME: &str = ".swarmfs-status";
/// Numbers that the catalog never comes to.
pub(super) const INODE: INodeNo = INodeNo(u64::MAX - 1);
pub(super) const HANDLE: FileHandle = FileHandle(u64::MAX);

/// Its attributes. The length is unknown until it is read, as those of `/proc`.
pub(super) fn attributes() -> FileAttr {
    let now = SystemTime::now();
    FileAttr {
        ino: INODE,
        kind: FileType::RegularFile,
        perm: 0o444,
        nlink: 1,
        mtime: now,
        ctime: now,
        crtime: UNIX_EPOCH,
        ..super::convert::absent()
    }
}

/// What a read of it gives.
pub(super) fn part(text: &str, offset: u64, size: u32) -> &[u8] {
    let from = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
    let length = usize::try_from(size).unwrap_or(usize::MAX).min(text.len() - from);
    &text.as_bytes()[from..from + length]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_where_it_ends() {
        assert_eq!(part("status", 0, 100), b"status");
        assert_eq!(part("status", 2, 3), b"atu");
        assert_eq!(part("status", 6, 10), b"");
        assert_eq!(part("status", u64::MAX, u32::MAX), b"");
    }
}
