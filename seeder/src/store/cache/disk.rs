//! The cache's folder: who may use it, which files lie in it, and reading and writing them.
//!
//! ```text
//! LOCK                     held by the process that uses the folder
//! VERSION                  what wrote it
//! files/ab/<digest>.data   one version of a file, sparse
//! files/ab/<digest>.meta   its manifest, bits, trees and slack
//! ```
//! Invariant: a `.data` without a readable `.meta`, and the reverse, is swept when the folder is opened.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSliceMut, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use rustix::fs::{FlockOperation, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use rustix::io::ReadWriteFlags;
use swarm_proto::{Manifest, ManifestDigest, manifest};

use super::bitmap::Bitmap;
use super::layout::{HEADER_BYTES, Layout, MAGIC, VERSION};
use crate::store::StoreError;

const WRITTEN_BY: &str = "swarmfs cache 1\n";

/// An I/O failure as the store tells it.
pub(super) fn failed(doing: &'static str) -> impl Fn(io::Error) -> StoreError {
    move |source| StoreError::Io { doing, source: Arc::new(source) }
}

/// The folder, locked.
pub(super) struct Folder {
    root: PathBuf,
    /// Held while the folder is in use; the kernel lets go of it however the process ends.
    _lock: File,
}

/// The two files of one cached version, open.
pub(super) struct Files {
    pub(super) data: File,
    pub(super) meta: File,
}

/// What the folder has of a version.
pub(super) struct Found {
    pub(super) digest: ManifestDigest,
    pub(super) manifest: Manifest,
    pub(super) layout: Layout,
    pub(super) present: Bitmap,
    pub(super) bytes: u64,
    pub(super) used: SystemTime,
}

impl Folder {
    /// Take the folder; it is made if there is none.
    ///
    /// Errors: [`StoreError::Unusable`] says what to do.
    pub(super) fn open(root: &Path) -> Result<Self, StoreError> {
        let unusable = |why: String| StoreError::Unusable(format!("cache folder {}: {why}", root.display()));
        fs::create_dir_all(root).map_err(|error| unusable(format!("cannot be made: {error}")))?;
        let version_path = root.join("VERSION");
        match fs::read_to_string(&version_path) {
            Ok(text) if text == WRITTEN_BY => {}
            Ok(text) => {
                let text: String = text.trim().chars().take(80).collect();
                return Err(unusable(format!(
                    "it was written by another program ({text:?}); remove it or name another"
                )));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut entries = fs::read_dir(root).map_err(|error| unusable(error.to_string()))?;
                let foreign = entries.find_map(|entry| match entry.ok()?.file_name() {
                    name if name == "LOCK" || name == "VERSION.new" || name == "lost+found" => None,
                    name => Some(name),
                });
                if let Some(name) = foreign {
                    return Err(unusable(format!("it is not a cache and not empty ({name:?}); name another")));
                }
            }
            Err(error) => return Err(unusable(format!("its VERSION cannot be read: {error}"))),
        }
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(root.join("LOCK"))
            .map_err(|error| unusable(format!("its LOCK cannot be opened: {error}")))?;
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut owner = String::new();
            let _ = (&lock).take(20).read_to_string(&mut owner);
            return Err(unusable(format!("process {} uses it; a cache serves one mount", owner.trim())));
        }
        let claim = || {
            lock.set_len(0)?;
            (&lock).write_all(format!("{}\n", std::process::id()).as_bytes())?;
            if !version_path.exists() {
                fs::write(root.join("VERSION.new"), WRITTEN_BY)?;
                fs::rename(root.join("VERSION.new"), &version_path)?;
            }
            fs::create_dir_all(root.join("files"))
        };
        claim().map_err(|error| unusable(format!("cannot be written: {error}")))?;
        Ok(Self { root: root.to_owned(), _lock: lock })
    }

    fn path(&self, digest: &ManifestDigest, kind: &str) -> PathBuf {
        let name = digest.to_string();
        self.root.join("files").join(&name[..2]).join(format!("{name}.{kind}"))
    }

    /// Everything usable in the folder; the rest is removed.
    ///
    /// Cost: reads every manifest and every bitmap.
    pub(super) fn scan(&self) -> Result<Vec<Found>, StoreError> {
        let mut found = Vec::new();
        let shelves = fs::read_dir(self.root.join("files")).map_err(failed("list the cache folder"))?;
        for shelf in shelves.flatten() {
            let Ok(entries) = fs::read_dir(shelf.path()) else { continue };
            let mut orphans = Vec::new();
            for path in entries.flatten().map(|entry| entry.path()) {
                let digest = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
                match (digest, path.extension().and_then(|kind| kind.to_str())) {
                    (Some(digest), Some("meta")) => match self.load(&digest) {
                        Ok(one) => found.push(one),
                        Err(error) => {
                            tracing::warn!(%digest, %error, "drop a cached file that cannot be read");
                            self.remove(&digest);
                        }
                    },
                    (Some(digest), Some("data")) => orphans.push(digest),
                    (_, Some("gone")) => drop(fs::remove_file(path)),
                    _ => {}
                }
            }
            for digest in orphans {
                if !self.path(&digest, "meta").exists() {
                    self.remove(&digest);
                }
            }
        }
        Ok(found)
    }

    fn load(&self, digest: &ManifestDigest) -> io::Result<Found> {
        let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        let meta = File::open(self.path(digest, "meta"))?;
        let mut header = [0; HEADER_BYTES];
        meta.read_exact_at(&mut header, 0)?;
        let (magic, rest) = header.split_at(4);
        let (version, length) = rest.split_at(4);
        if magic != MAGIC || version != VERSION.to_le_bytes() {
            return Err(invalid("its header is not one".to_owned()));
        }
        let length = u64::from_le_bytes(length.try_into().expect("8 bytes of the header's 16 are left"));
        if length > meta.metadata()?.len() {
            return Err(invalid("it ends within its manifest".to_owned()));
        }
        let mut encoded = vec![0; usize::try_from(length).map_err(|_| invalid("its manifest is too long".to_owned()))?];
        meta.read_exact_at(&mut encoded, HEADER_BYTES as u64)?;
        if manifest::digest_of(&encoded) != *digest {
            return Err(invalid("its manifest is not the one of its name".to_owned()));
        }
        let manifest = Manifest::decode(&encoded).map_err(|error| invalid(error.to_string()))?;
        let layout = Layout::of(&manifest, length);
        let data = OpenOptions::new().read(true).write(true).open(self.path(digest, "data"))?;
        if data.metadata()?.len() != manifest.size() {
            return Err(invalid("its data has another length than its manifest".to_owned()));
        }
        let mut bits = Vec::new();
        let wanted = Bitmap::disk_bytes(layout.bits());
        let mut at = layout.bits_at;
        let end = layout.bits_at + wanted;
        let mut buffer = vec![0; 64 * 1024];
        while at < end {
            let most = usize::try_from(end - at).map_or(buffer.len(), |left| left.min(buffer.len()));
            let got = meta.read_at(&mut buffer[..most], at)?;
            if got == 0 {
                break;
            }
            bits.extend_from_slice(&buffer[..got]);
            at += got as u64;
        }
        let present = Bitmap::from_disk(layout.bits(), &bits);
        let meta_stat = meta.metadata()?;
        let bytes = (data.metadata()?.blocks() + meta_stat.blocks()) * 512;
        let used = meta_stat.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        Ok(Found { digest: *digest, manifest, layout, present, bytes, used })
    }

    /// The files of a version that is there.
    pub(super) fn open_files(&self, digest: &ManifestDigest) -> io::Result<Files> {
        let open = |kind| OpenOptions::new().read(true).write(true).open(self.path(digest, kind));
        Ok(Files { data: open("data")?, meta: open("meta")? })
    }

    /// The file itself, for the kernel to read.
    pub(super) fn open_data_read_only(&self, digest: &ManifestDigest) -> io::Result<File> {
        File::open(self.path(digest, "data"))
    }

    /// Make the files of a version that is not there.
    ///
    /// The manifest comes first: whatever a kill leaves then either loads or is swept.
    pub(super) fn create_files(&self, digest: &ManifestDigest, size: u64, encoded: &[u8]) -> io::Result<Files> {
        let create = |kind| -> io::Result<File> {
            let path = self.path(digest, kind);
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(true).mode(0o600);
            match options.open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    fs::create_dir_all(path.parent().expect("a path below the folder has a parent"))?;
                    options.open(&path)
                }
                other => other,
            }
        };
        let make = || {
            let data = create("data")?;
            data.set_len(size)?;
            let meta = create("meta")?;
            let mut head = Vec::with_capacity(encoded.len() + 16);
            head.extend_from_slice(MAGIC);
            head.extend_from_slice(&VERSION.to_le_bytes());
            head.extend_from_slice(&(encoded.len() as u64).to_le_bytes());
            head.extend_from_slice(encoded);
            meta.write_all_at(&head, 0)?;
            Ok(Files { data, meta })
        };
        make().inspect_err(|_| self.remove(digest))
    }

    /// Remove a version; what is open stays readable. The data goes last, since a meta alone is swept
    /// and data alone is too.
    pub(super) fn remove(&self, digest: &ManifestDigest) {
        for kind in ["meta", "data"] {
            match fs::remove_file(self.path(digest, kind)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(%digest, %error, "remove a cached file");
                }
                _ => {}
            }
        }
    }

    /// Take a version's name away at once; returns the file that is left to be unlinked, which takes
    /// longer the larger it is.
    pub(super) fn retire(&self, digest: &ManifestDigest) -> Option<PathBuf> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let _ = fs::remove_file(self.path(digest, "meta"));
        let retired = self.path(digest, &format!("{}.gone", COUNTER.fetch_add(1, Ordering::Relaxed)));
        match fs::rename(self.path(digest, "data"), &retired) {
            Ok(()) => Some(retired),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(%digest, %error, "retire a cached file");
                None
            }
        }
    }

    /// Remember that a version was used just now, over a restart.
    pub(super) fn touch(&self, digest: &ManifestDigest) -> io::Result<()> {
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        };
        rustix::fs::utimensat(rustix::fs::CWD, self.path(digest, "meta"), &times, rustix::fs::AtFlags::empty())?;
        Ok(())
    }

    /// Bytes of the disk, and of those the ones that a person may still use.
    pub(super) fn disk_space(&self) -> io::Result<(u64, u64)> {
        let stat = rustix::fs::statvfs(&self.root)?;
        Ok((stat.f_blocks.saturating_mul(stat.f_frsize), stat.f_bavail.saturating_mul(stat.f_frsize)))
    }

    /// Sync all of the disk that the folder lies on: cheaper than many files one by one.
    pub(super) fn sync_all(&self) -> io::Result<()> {
        rustix::fs::syncfs(File::open(&self.root)?)?;
        Ok(())
    }
}

impl Files {
    /// Bytes that both take on disk.
    pub(super) fn allocated(&self) -> io::Result<u64> {
        Ok((self.data.metadata()?.blocks() + self.meta.metadata()?.blocks()) * 512)
    }
}

/// Read exactly `length` bytes at `offset`, without clearing the buffer first.
pub(super) fn read_at(file: &File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut buffer = Vec::with_capacity(length);
    while buffer.len() < length {
        let at = offset + buffer.len() as u64;
        match rustix::io::pread(file, rustix::buffer::spare_capacity(&mut buffer), at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    buffer.truncate(length);
    Ok(buffer)
}

/// Read exactly `length` bytes if the kernel has them in memory; never waits for the disk.
pub(super) fn read_at_once(file: &File, offset: u64, length: usize) -> Option<Vec<u8>> {
    let mut buffer = vec![0; length];
    let got = rustix::io::preadv2(file, &mut [IoSliceMut::new(&mut buffer)], offset, ReadWriteFlags::NOWAIT).ok()?;
    (got == length).then_some(buffer)
}
