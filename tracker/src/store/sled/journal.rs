//! Commits in the order in which they came, in a file that is only ever appended to.
//!
//! One `write` makes a commit survive a kill -9, one fdatasync a power cut. The database needs a wait for the
//! disk for the first and an fsync of all its files for the second: it gets the commits later, many at once.
//!
//! `journal-N` is "swarm-journal 1\n", then [`swarm_proto::journal`] records, their revisions as stamps. Invariant:
//! the revisions of one journal are contiguous.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use swarm_proto::{Revision, journal};

use crate::store::Write;

const MAGIC: &[u8] = b"swarm-journal 1\n";
const PREFIX: &str = "journal-";

/// A commit as a journal has it.
pub(super) type Committed = (Revision, Vec<Write>);

/// A journal that is being written.
pub(super) struct Journal {
    path: PathBuf,
    file: Arc<File>,
    length: u64,
    record: Vec<u8>,
}

impl Journal {
    /// Begin one; its name survives a power cut when this returns.
    pub(super) fn create(folder: &Path, number: u64) -> io::Result<Self> {
        let path = folder.join(format!("{PREFIX}{number}"));
        // What is there was left by a start that did not come to write to it.
        let file = File::options().write(true).create(true).truncate(true).open(&path)?;
        file.write_all_at(MAGIC, 0)?;
        file.sync_all()?;
        File::open(folder)?.sync_all()?;
        Ok(Self { path, file: Arc::new(file), length: MAGIC.len() as u64, record: Vec::new() })
    }

    /// Add a commit. It survives a kill -9 when this returns; after an error it is not there.
    pub(super) fn append(&mut self, revision: Revision, writes: &[Write]) -> io::Result<()> {
        self.record.clear();
        let parts = writes.iter().map(|write| (&write.key[..], write.value.as_deref()));
        journal::append(&mut self.record, revision.0, parts)?;
        if let Err(error) = self.file.write_all_at(&self.record, self.length) {
            // Whatever stays behind the length is no record, and the next one overwrites it.
            let _ = self.file.set_len(self.length);
            return Err(error);
        }
        self.length += self.record.len() as u64;
        Ok(())
    }

    /// The file, to sync it without keeping others from writing.
    pub(super) fn file(&self) -> Arc<File> {
        self.file.clone()
    }

    /// The same on a file that the disk fails.
    #[cfg(test)]
    pub(super) fn with_file(self, file: File) -> Self {
        Self { file: Arc::new(file), ..self }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// The journals of a folder, oldest first, with their numbers.
pub(super) fn list(folder: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let number = entry.file_name().to_str().and_then(|name| name.strip_prefix(PREFIX)?.parse().ok());
        found.extend(number.map(|number| (number, entry.path())));
    }
    found.sort_unstable();
    Ok(found)
}

/// What comes after the last whole commit of a journal.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rest {
    /// How much; a crash leaves some.
    pub(super) bytes: usize,
    /// Revision of a whole commit in there: the journal is damaged.
    pub(super) newer: Option<Revision>,
}

/// Every whole commit of a journal in order, and what is after them.
///
/// Cost: the file in memory; it is as large as what the database lags behind.
pub(super) fn read(path: &Path) -> io::Result<(Vec<Committed>, Rest)> {
    let mut bytes = Bytes::from(fs::read(path)?);
    if !bytes.starts_with(MAGIC) {
        let newer = journal::behind_damage(&bytes, 0).map(Revision);
        return Ok((Vec::new(), Rest { bytes: bytes.len(), newer }));
    }
    bytes.advance(MAGIC.len());
    let (records, rest) = journal::read(bytes.clone());
    let newest = records.last().map_or(0, |record| record.stamp);
    let newer = journal::behind_damage(&bytes.slice(bytes.len() - rest..), newest).map(Revision);
    let commit = |record: journal::Record| {
        let writes = record.writes.into_iter().map(|(key, value)| Write { key, value });
        (Revision(record.stamp), writes.collect())
    };
    Ok((records.into_iter().map(commit).collect(), Rest { bytes: rest, newer }))
}
