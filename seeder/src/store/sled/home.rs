//! The store's folder: whose it is, which version wrote it, and that only one process uses it.
//!
//! Not its contents. Invariant: a [`Home`] exists only while this process holds the folder's lock, and
//! every reason why a folder is refused says what to do about it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use swarm_proto::PeerId;

use crate::store::disk::{Disk, replace_file};
use crate::store::segment_file::{FOLDERS, folder_name, relative_path};
use crate::store::{StoreError, failed};

const LOCK_FILE: &str = "LOCK";
const VERSION_FILE: &str = "VERSION";
/// First word of the version file.
const MARK: &str = "swarm-seeder-store";
/// How long to wait for whoever has the folder: a process on its way out, or one of our own children
/// between fork and exec, to which the lock belongs too.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// The layout that this program writes.
pub(super) const VERSION: u32 = 2;

/// Brings a store of one version to the next.
type Migration = fn(&Home) -> Result<(), StoreError>;
/// The migration at index `v - 1` leads from version `v` to `v + 1`.
///
/// 1 → 2: nothing to do; a program that knows only 1 would not see what journals have.
const MIGRATIONS: [Migration; VERSION as usize - 1] = [|_| Ok(())];

/// The folder of an open store.
pub(super) struct Home {
    dir: PathBuf,
    /// The peer that the folder was made for; the database says the same, but may be lost.
    pub(super) peer: PeerId,
    /// Held as long as this exists.
    _lock: File,
}

impl Home {
    /// Lock the folder, made if it is not there, and see that it is a store.
    ///
    /// Errors: [`StoreError::Unusable`] says what to do.
    pub(super) fn open(dir: &Path, disk: &Arc<dyn Disk>) -> Result<Self, StoreError> {
        std::fs::create_dir_all(dir).map_err(|error| unusable(dir, "create the folder", &error))?;
        let names = std::fs::read_dir(dir).and_then(|entries| {
            entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect::<io::Result<Vec<_>>>()
        });
        let names = names.map_err(|error| unusable(dir, "read the folder", &error))?;
        // A crash while the folder was being made leaves these and nothing else.
        let is_new = names.iter().all(|name| [LOCK_FILE, "VERSION.new"].contains(&name.as_str()));
        if !is_new && !names.iter().any(|name| name == VERSION_FILE) {
            return Err(StoreError::Unusable(format!(
                "{} is not a seeder's store (it has files, but no {VERSION_FILE}): name a new or an empty folder",
                dir.display()
            )));
        }
        let lock = lock(dir)?;
        let (version, peer) = match is_new {
            true => (VERSION, create(dir, disk)?),
            false => read_version(dir)?,
        };
        let home = Self { dir: dir.to_owned(), peer, _lock: lock };
        home.migrate(version, disk)?;
        home.create_folders(disk.as_ref()).map_err(|error| unusable(dir, "create the store's folders", &error))?;
        Ok(home)
    }

    /// The folder itself.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The database's folder.
    pub(super) fn database(&self) -> PathBuf {
        self.dir.join("db")
    }

    /// The folder of the segments' fan-out folders.
    pub(super) fn segments(&self) -> PathBuf {
        self.dir.join("segments")
    }

    /// The folder of files that are being written.
    pub(super) fn temp(&self) -> PathBuf {
        self.dir.join("tmp")
    }

    /// A segment's file.
    pub(super) fn segment_file(&self, id: &swarm_proto::SegmentId) -> PathBuf {
        self.segments().join(relative_path(id))
    }

    fn migrate(&self, version: u32, disk: &Arc<dyn Disk>) -> Result<(), StoreError> {
        for (migration, from) in MIGRATIONS.iter().zip(1..).skip(version.saturating_sub(1) as usize) {
            tracing::info!(dir = %self.dir.display(), from, "bring the store to the next version");
            migration(self)?;
            write_version(&self.dir, from + 1, self.peer, disk)?;
        }
        Ok(())
    }

    fn create_folders(&self, disk: &dyn Disk) -> io::Result<()> {
        let made = disk.list(&self.dir)?;
        for folder in [self.segments(), self.temp()] {
            disk.create_folder(&folder)?;
        }
        let fans = disk.list(&self.segments())?;
        let mut is_complete = made.iter().any(|entry| entry.name == "tmp");
        for byte in (0..FOLDERS).filter_map(|number| u8::try_from(number).ok()) {
            let name = folder_name(byte);
            if !fans.iter().any(|entry| entry.name == name) {
                disk.create_folder(&self.segments().join(name))?;
                is_complete = false;
            }
        }
        if !is_complete {
            disk.sync_folder(&self.segments())?;
            disk.sync_folder(&self.dir)?;
        }
        Ok(())
    }
}

fn lock(dir: &Path) -> Result<File, StoreError> {
    let path = dir.join(LOCK_FILE);
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    let mut file = file.map_err(|error| unusable(dir, "write to the folder", &error))?;
    let give_up = Instant::now() + LOCK_PATIENCE;
    let mut is_locked = flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
    while !is_locked && Instant::now() < give_up {
        std::thread::sleep(Duration::from_millis(50));
        is_locked = flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
    }
    if !is_locked {
        let mut pid = String::new();
        let known = file.read_to_string(&mut pid).is_ok() && pid.trim().parse::<u32>().is_ok();
        let who = if known { format!("process {}", pid.trim()) } else { "another process".to_owned() };
        return Err(StoreError::Unusable(format!(
            "{} is in use by {who}: stop it, or name another folder; a store serves one process",
            dir.display()
        )));
    }
    let written = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
    written.map_err(|error| unusable(dir, "write to the folder", &error))?;
    Ok(file)
}

fn create(dir: &Path, disk: &Arc<dyn Disk>) -> Result<PeerId, StoreError> {
    let peer = PeerId::random();
    write_version(dir, VERSION, peer, disk)?;
    Ok(peer)
}

fn write_version(dir: &Path, version: u32, peer: PeerId, disk: &Arc<dyn Disk>) -> Result<(), StoreError> {
    let text = format!("{MARK} {version}\npeer {peer}\n");
    replace_file(disk.as_ref(), &dir.join(VERSION_FILE), text.into()).map_err(failed("write the version file"))
}

fn read_version(dir: &Path) -> Result<(u32, PeerId), StoreError> {
    let path = dir.join(VERSION_FILE);
    let mut bytes = Vec::new();
    let file = File::open(&path).map_err(|error| unusable(dir, "read its version file", &error))?;
    file.take(4096).read_to_end(&mut bytes).map_err(|error| unusable(dir, "read its version file", &error))?;
    let text = String::from_utf8_lossy(&bytes);
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    let Some(version) = value(MARK).and_then(|text| text.trim().parse::<u32>().ok()).filter(|version| *version > 0)
    else {
        return Err(StoreError::Unusable(format!(
            "{} is not the version file of a seeder's store: name another folder, or put the right file back",
            path.display()
        )));
    };
    if version > VERSION {
        return Err(StoreError::Unusable(format!(
            "{} was written by a newer program (store version {version}; this one knows up to {VERSION}): \
             install the newer program",
            dir.display()
        )));
    }
    let Some(peer) = value("peer").and_then(|text| text.trim().parse().ok()) else {
        return Err(StoreError::Unusable(format!(
            "{} does not name the store's peer: add the line `peer ` with 32 hex digits, any if the old ones are lost",
            path.display()
        )));
    };
    Ok((version, peer))
}

pub(super) fn unusable(dir: &Path, doing: &str, error: &io::Error) -> StoreError {
    let hint = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            let me = rustix::process::geteuid().as_raw();
            let owner = dir.ancestors().find_map(|folder| std::fs::metadata(folder).ok()).map(|meta| meta.uid());
            let owner = owner.map_or_else(|| "unknown".to_owned(), |uid| uid.to_string());
            format!(": this process runs as user {me}, the folder belongs to user {owner}; chown it, or name another")
        }
        io::ErrorKind::ReadOnlyFilesystem => ": the file system is mounted read-only".to_owned(),
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => ": name a folder, not a file".to_owned(),
        _ => String::new(),
    };
    StoreError::Unusable(format!("store {}: cannot {doing}: {error}{hint}", dir.display()))
}
