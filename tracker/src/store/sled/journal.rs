//! Commits in the order in which they came, in a file that is only ever appended to.
//!
//! One `write` makes a commit survive a kill -9, one fdatasync a power cut. The database needs a wait for the
//! disk for the first and an fsync of all its files for the second: it gets the commits later, many at once.
//!
//! ```text
//! journal-N   "swarm-journal 1\n", then records:
//!             bytes of the body (u32) · first 8 bytes of the body's BLAKE3 · body
//! body        revision (u64), then for each write: bytes of the key (u32) · key ·
//!             bytes of the value (u32; 0xffff_ffff: removed) · value
//! ```
//! Numbers are little-endian. Invariant: the revisions of one journal are contiguous.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use swarm_proto::Revision;

use crate::store::Write;

const MAGIC: &[u8] = b"swarm-journal 1\n";
const PREFIX: &str = "journal-";
const HEAD_BYTES: usize = 12;
const REMOVED: u32 = u32::MAX;

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
        self.record.resize(HEAD_BYTES, 0);
        self.record.extend_from_slice(&revision.0.to_le_bytes());
        for write in writes {
            self.add_part(&write.key)?;
            match &write.value {
                Some(value) => self.add_part(value)?,
                None => self.record.extend_from_slice(&REMOVED.to_le_bytes()),
            }
        }
        let (head, body) = self.record.split_at_mut(HEAD_BYTES);
        head[..4].copy_from_slice(&length_of(body)?);
        head[4..].copy_from_slice(&sum_of(body));
        if let Err(error) = self.file.write_all_at(&self.record, self.length) {
            // Whatever stays behind the length is no record, and the next one overwrites it.
            let _ = self.file.set_len(self.length);
            return Err(error);
        }
        self.length += self.record.len() as u64;
        Ok(())
    }

    fn add_part(&mut self, part: &[u8]) -> io::Result<()> {
        self.record.extend_from_slice(&length_of(part)?);
        self.record.extend_from_slice(part);
        Ok(())
    }

    /// The file, to sync it without keeping others from writing.
    pub(super) fn file(&self) -> Arc<File> {
        self.file.clone()
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

fn length_of(part: &[u8]) -> io::Result<[u8; 4]> {
    match u32::try_from(part.len()) {
        Ok(length) if length != REMOVED => Ok(length.to_le_bytes()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "more than 4 GiB in one commit")),
    }
}

fn sum_of(body: &[u8]) -> [u8; 8] {
    let mut sum = [0; 8];
    sum.copy_from_slice(&blake3::hash(body).as_bytes()[..8]);
    sum
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

/// Every whole commit of a journal in order, and the bytes after the last one, of which a crash leaves some.
///
/// Cost: the file in memory; it is as large as what the database lags behind.
pub(super) fn read(path: &Path) -> io::Result<(Vec<(Revision, Vec<Write>)>, usize)> {
    let mut rest = Bytes::from(fs::read(path)?);
    let mut commits = Vec::new();
    if !rest.starts_with(MAGIC) {
        return Ok((commits, rest.len()));
    }
    rest.advance(MAGIC.len());
    while let Some((revision, writes, length)) = first_record(&rest) {
        commits.push((revision, writes));
        rest.advance(length);
    }
    Ok((commits, rest.len()))
}

fn first_record(bytes: &Bytes) -> Option<(Revision, Vec<Write>, usize)> {
    let length = u32::from_le_bytes(*bytes.first_chunk()?) as usize;
    let end = HEAD_BYTES.checked_add(length)?;
    let mut body = (bytes.len() >= end).then(|| bytes.slice(HEAD_BYTES..end))?;
    if bytes[4..HEAD_BYTES] != sum_of(&body) {
        return None;
    }
    let revision = Revision(body.try_get_u64_le().ok()?);
    let mut writes = Vec::new();
    while body.has_remaining() {
        let key = part(&mut body)??;
        writes.push(Write { key, value: part(&mut body)? });
    }
    Some((revision, writes, end))
}

/// None: cut off. Some(None): removed.
fn part(body: &mut Bytes) -> Option<Option<Bytes>> {
    match body.try_get_u32_le().ok()? {
        REMOVED => Some(None),
        length => (body.len() >= length as usize).then(|| Some(body.split_to(length as usize))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writes(n: u8) -> Vec<Write> {
        let value = (n % 3 > 0).then(|| Bytes::from(vec![n; usize::from(n)]));
        vec![Write { key: Bytes::from(vec![n]), value }, Write { key: Bytes::new(), value: Some(Bytes::new()) }]
    }

    #[test]
    fn what_was_appended_is_read_and_every_cut_ends_at_a_whole_record() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::create(folder.path(), 7).unwrap();
        let mut ends = vec![journal.length];
        for n in 1..=9 {
            journal.append(Revision(n.into()), &writes(n)).unwrap();
            ends.push(journal.length);
        }
        let (number, path) = list(folder.path()).unwrap().remove(0);
        assert_eq!(number, 7);
        let whole = fs::read(&path).unwrap();
        for length in 0..=whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let (seen, rest) = read(&path).unwrap();
            let want = ends.iter().filter(|end| **end <= length as u64).count().saturating_sub(1);
            assert_eq!(seen.len(), want, "{length}");
            assert!(seen.iter().zip(1..).all(|((revision, got), n)| revision.0 == u64::from(n) && *got == writes(n)));
            assert_eq!(rest == 0, ends.contains(&(length as u64)) || length == 0);
        }
    }

    #[test]
    fn a_flipped_bit_ends_the_journal_before_its_record() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::create(folder.path(), 0).unwrap();
        (1..=4).for_each(|n| journal.append(Revision(n.into()), &writes(n)).unwrap());
        let whole = fs::read(journal.path()).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            fs::write(journal.path(), bytes).unwrap();
            let (seen, _) = read(journal.path()).unwrap();
            assert!(seen.len() < 4 && seen.iter().zip(1..).all(|((_, got), n)| *got == writes(n)), "{at}");
        }
    }
}
