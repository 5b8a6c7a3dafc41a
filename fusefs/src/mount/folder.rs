//! The folder that is mounted over, before and after.

use std::io;
use std::path::{Path, PathBuf};

use super::table::{self, MountEntry};
use super::unmount::{self, UnmountError};

/// What the kernel reads ahead of a sequential reader; its own default is 128 KiB, and requests are no
/// longer than this.
const READ_AHEAD_KIB: &str = "1024";

/// Why a folder cannot be mounted over.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// One of ours is there already.
    #[error("{}: {source} is mounted there already", folder.display(), source = entry.source)]
    Mounted {
        /// The folder.
        folder: PathBuf,
        /// What is there.
        entry: MountEntry,
    },
    /// Not a folder.
    #[error("{}: not a folder", .0.display())]
    NotFolder(PathBuf),
    /// It has something in it, which would be hidden.
    #[error("{}: the folder is not empty, and what is in it would be hidden", .0.display())]
    NotEmpty(PathBuf),
    /// A dead mount is there and cannot be cleared.
    #[error(transparent)]
    Dead(#[from] UnmountError),
    /// It cannot be looked at or made.
    #[error("{}: {source}", folder.display())]
    Io {
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A folder ready to be mounted over.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) path: PathBuf,
    /// It was made for this.
    pub(super) made: bool,
    /// A dead mount was cleared from it.
    pub(super) cleared: bool,
}

/// Clear a dead mount, make the folder if it is absent, and see that it can be mounted over. Blocks.
pub(super) fn prepare(folder: &Path, nonempty: bool) -> Result<Prepared, FolderError> {
    let wrong = |source: io::Error| FolderError::Io { folder: folder.to_owned(), source };
    let wanted = std::path::absolute(folder).map_err(wrong)?;
    let mut made = false;
    if let Some(parent) = wanted.parent()
        && !parent.exists()
    {
        std::fs::create_dir_all(parent).map_err(wrong)?;
    }
    let path = table::absolute(&wanted).map_err(wrong)?;
    let cleared = unmount::clear_dead(&path)?;
    if let Some(entry) = table::at(&path).map_err(wrong)?.filter(MountEntry::is_ours) {
        return Err(FolderError::Mounted { folder: path, entry });
    }
    match std::fs::create_dir(&path) {
        Ok(()) => made = true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(wrong(error)),
    }
    // Now it exists, so a link may be followed to where it will be mounted.
    let path = path.canonicalize().map_err(wrong)?;
    if !path.is_dir() {
        return Err(FolderError::NotFolder(path));
    }
    if !nonempty && std::fs::read_dir(&path).map_err(wrong)?.next().is_some() {
        return Err(FolderError::NotEmpty(path));
    }
    Ok(Prepared { path, made, cleared })
}

/// Let the kernel read ahead in requests of full size, where this process may say so.
pub(super) fn raise_readahead(device: &str) {
    let setting = Path::new("/sys/class/bdi").join(device).join("read_ahead_kb");
    if let Err(error) = std::fs::write(&setting, READ_AHEAD_KIB) {
        tracing::debug!(%error, setting = %setting.display(), "raise the kernel's readahead");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_absent_is_made_and_one_that_is_not_empty_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let new = folder.path().join("a/b");
        let prepared = prepare(&new, false).unwrap();
        assert!(prepared.made && !prepared.cleared && new.is_dir());
        assert!(!prepare(&new, false).unwrap().made);
        let error = prepare(folder.path(), false).unwrap_err();
        assert!(matches!(error, FolderError::NotEmpty(_)), "{error}");
        assert!(prepare(folder.path(), true).is_ok());
        std::fs::write(folder.path().join("file"), "").unwrap();
        assert!(matches!(prepare(&folder.path().join("file"), false), Err(FolderError::NotFolder(_))));
    }
}
