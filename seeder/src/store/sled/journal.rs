//! What was written to the database, ahead of it: a file that is only ever appended to.
//!
//! sled wakes a dozen threads and waits for the disk for each flush; one `write` here survives a kill -9 as well.
//! sled gets the rows later, many at once. Not the rows in memory: the database has them.
//!
//! `journal-N` beside sled's own files is "swarm-store-journal 1\n", then [`swarm_proto::journal`] records.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use swarm_proto::journal;

use crate::store::disk::{Access, Disk, DiskFile};

const MAGIC: &[u8] = b"swarm-store-journal 1\n";
const PREFIX: &str = "journal-";

/// Keys with their new values; None: removed.
pub(super) type Rows = Vec<(Bytes, Option<Bytes>)>;

/// A journal that is being written.
pub(super) struct Journal {
    path: PathBuf,
    number: u64,
    file: Arc<dyn DiskFile>,
    length: u64,
    /// It was not synced when it should have been: the kernel may have dropped some of it.
    pub(super) suspect: bool,
}

impl Journal {
    /// Begin one; its name survives a power cut when this returns.
    pub(super) fn create(disk: &dyn Disk, folder: &Path, number: u64) -> io::Result<Self> {
        let path = folder.join(format!("{PREFIX}{number}"));
        let file = disk.create(&path)?;
        let begun = file
            .write_at(&[Bytes::from_static(MAGIC)], 0)
            .and_then(|()| file.sync())
            .and_then(|()| disk.sync_folder(folder));
        if let Err(error) = begun {
            // Else the next attempt finds the name taken.
            let _ = disk.unlink(&path);
            return Err(error);
        }
        Ok(Self { path, number, file: file.into(), length: MAGIC.len() as u64, suspect: false })
    }

    /// Add rows that belong together. They survive a kill -9 when this returns; after an error they are not there.
    pub(super) fn append(&mut self, rows: &Rows) -> io::Result<()> {
        let mut record = Vec::new();
        journal::append(&mut record, 0, rows.iter().map(|(key, value)| (&key[..], value.as_deref())))?;
        let length = record.len() as u64;
        // After an error what is there is no record, and the next one overwrites it.
        self.file.write_at(&[record.into()], self.length)?;
        self.length += length;
        Ok(())
    }

    /// The file with its number, to sync it without keeping others from writing.
    pub(super) fn file(&self) -> (u64, Arc<dyn DiskFile>) {
        (self.number, self.file.clone())
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The N of its name.
    pub(super) fn number(&self) -> u64 {
        self.number
    }
}

/// The journals of a folder, oldest first, with their numbers.
pub(super) fn list(disk: &dyn Disk, folder: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let number = |name: &str| name.strip_prefix(PREFIX)?.parse().ok();
    let entries = disk.list(folder)?.into_iter();
    let mut found: Vec<(u64, PathBuf)> =
        entries.filter_map(|entry| Some((number(&entry.name)?, folder.join(entry.name)))).collect();
    found.sort_unstable();
    Ok(found)
}

/// Every whole record of a journal in order. What a crash left of another one is passed over.
pub(super) fn read(disk: &dyn Disk, path: &Path) -> io::Result<Vec<Rows>> {
    let file = disk.open(path, Access::Read)?;
    let length = usize::try_from(file.length()?).map_err(io::Error::other)?;
    let mut bytes = file.read_at(0, length)?;
    if !bytes.starts_with(MAGIC) {
        return Ok(Vec::new());
    }
    bytes.advance(MAGIC.len());
    let (records, rest) = journal::read(bytes);
    if rest > 0 {
        tracing::warn!(path = %path.display(), bytes = rest, "left out what is no whole record at the end");
    }
    Ok(records.into_iter().map(|record| record.writes).collect())
}
