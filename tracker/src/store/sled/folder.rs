//! The catalog's folder: whose it is, in which format, and that it is on the disk.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::store::StoreError;

/// How long to wait for whoever has the folder: a process on its way out.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// Written by this program. Format 1 had no journals; it is opened, and is this one from then on.
const VERSION_TEXT: &str = "swarm-catalog 2\n";
const WITHOUT_JOURNALS: &str = "swarm-catalog 1\n";

/// Take the folder, made if there is none, until the file returned is closed.
///
/// Errors: [`StoreError::Locked`], [`StoreError::Foreign`], [`StoreError::Version`], or the disk's.
pub(super) fn take(folder: &Path) -> Result<File, StoreError> {
    fs::create_dir_all(folder).map_err(StoreError::io("make the catalog's folder"))?;
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(folder.join("LOCK"))
        .map_err(StoreError::io("open LOCK"))?;
    let give_up = Instant::now() + LOCK_PATIENCE;
    loop {
        match lock.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if Instant::now() < give_up => sleep(Duration::from_millis(20)),
            Err(TryLockError::WouldBlock) => return Err(StoreError::Locked(folder.to_owned())),
            Err(TryLockError::Error(error)) => return Err(StoreError::io("lock LOCK")(error)),
        }
    }
    check_version(folder)?;
    Ok(lock)
}

fn check_version(folder: &Path) -> Result<(), StoreError> {
    let path = folder.join("VERSION");
    match fs::read(&path) {
        Ok(found) if found == VERSION_TEXT.as_bytes() => return Ok(()),
        Ok(found) if found == WITHOUT_JOURNALS.as_bytes() => return write_version(folder),
        Ok(found) => {
            let found = String::from_utf8_lossy(&found).trim().chars().take(80).collect();
            return Err(StoreError::Version { path, found, known: VERSION_TEXT.trim_ascii_end() });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(StoreError::io("read VERSION")(error)),
    }
    let others = fs::read_dir(folder).map_err(StoreError::io("list the catalog's folder"))?;
    for other in others {
        let name = other.map_err(StoreError::io("list the catalog's folder"))?.file_name();
        // `VERSION.new` is what a first start leaves that was killed before the rename below.
        if name != "LOCK" && name != "VERSION.new" {
            return Err(StoreError::Foreign(folder.to_owned()));
        }
    }
    write_version(folder)
}

fn write_version(folder: &Path) -> Result<(), StoreError> {
    let new = folder.join("VERSION.new");
    let write = || {
        fs::write(&new, VERSION_TEXT)?;
        File::open(&new)?.sync_all()?;
        fs::rename(&new, folder.join("VERSION"))?;
        File::open(folder)?.sync_all()
    };
    write().map_err(StoreError::io("write VERSION"))
}

/// fsync every file below, and the folders that name them.
pub(super) fn sync_tree(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let synced = match entry.file_type()? {
            kind if kind.is_dir() => sync_tree(&entry.path()),
            kind if kind.is_file() => File::open(entry.path()).and_then(|file| file.sync_all()),
            _ => Ok(()),
        };
        match synced {
            // sled removes snapshots and blobs that it has replaced.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    File::open(folder)?.sync_all()
}
