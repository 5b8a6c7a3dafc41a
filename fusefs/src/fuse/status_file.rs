//! The file in which a mount says how it is: in its root, found by its name alone, in no listing.
//!
//! Not of the swarm: each mount has its own, and it takes the place of a file of that name.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileHandle, FileType, INodeNo};
use parking_lot::Mutex;

/// Its name.
pub(crate) const NAME: &str = ".swarmfs-status";
/// A number that the catalog never comes to.
pub(super) const INODE: INodeNo = INodeNo(u64::MAX - 1);
/// Set in all its handles, and in none of other files.
const HANDLE_BIT: u64 = 1 << 63;

/// Those who have it open; each reads the text of the moment at which it was opened.
#[derive(Default)]
pub(super) struct StatusFile {
    open: Mutex<HashMap<u64, Arc<str>>>,
    next: AtomicU64,
}

impl StatusFile {
    pub(super) fn open(&self, text: String) -> FileHandle {
        let handle = self.next.fetch_add(1, Ordering::Relaxed) | HANDLE_BIT;
        self.open.lock().insert(handle, text.into());
        FileHandle(handle)
    }

    /// What a handle reads; none: it is a handle of another file.
    pub(super) fn text(&self, handle: FileHandle) -> Option<Arc<str>> {
        (handle.0 & HANDLE_BIT != 0).then(|| self.open.lock().get(&handle.0).cloned().unwrap_or_default())
    }

    pub(super) fn release(&self, handle: FileHandle) -> bool {
        self.open.lock().remove(&handle.0).is_some()
    }
}

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
    fn each_handle_reads_what_was_said_when_it_was_opened() {
        let file = StatusFile::default();
        let (one, two) = (file.open("one".to_owned()), file.open("two".to_owned()));
        assert_eq!((&*file.text(one).unwrap(), &*file.text(two).unwrap()), ("one", "two"));
        assert_eq!(file.text(FileHandle(7)), None);
        assert!(file.release(one) && !file.release(one));
    }

    #[test]
    fn it_ends_where_it_ends() {
        assert_eq!(part("status", 0, 100), b"status");
        assert_eq!(part("status", 2, 3), b"atu");
        assert_eq!(part("status", 6, 10), b"");
        assert_eq!(part("status", u64::MAX, u32::MAX), b"");
    }
}
