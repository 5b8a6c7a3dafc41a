//! What is known of a file of the spool: whose bytes they are, and what they make of it.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{SpoolNumber, journal};

/// What became of an unsaved file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The mount died while it was being saved: the next one goes on.
    Saving,
    /// The mount died before anybody asked for it to be saved.
    Interrupted,
    /// It could not be saved.
    Failed,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// Its number: `N.data` has the bytes.
    pub number: SpoolNumber,
    /// The swarm, as 32 hex digits.
    pub swarm: String,
    /// The inode.
    pub inode: u64,
    /// Where it was, for people, as far as it is known.
    pub path: String,
    /// The version that was opened, and the digest of its manifest, as 64 hex digits, unless it was empty.
    pub base_version: u64,
    /// See `base_version`.
    pub base_manifest: Option<String>,
    /// Bytes of the file.
    pub size: u64,
    /// When it was written, nanoseconds since 1970.
    pub modified_ns: i64,
    /// All unsaved bytes were appended.
    pub appended: bool,
    /// Stretches that differ from the version that was opened: start, length, and whether the bytes are in the spool;
    /// they are zeros otherwise. None: not known; then all that the data file holds.
    pub changed: Option<Vec<(u64, u64, bool)>>,
    /// What became of it.
    pub state: State,
    /// Why it could not be saved.
    pub error: Option<String>,
}

impl Note {
    /// Write it beside the data.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        let path = path_of(folder, self.number);
        let fresh = path.with_extension("json.new");
        std::fs::write(&fresh, serde_json::to_vec_pretty(self)?)?;
        std::fs::rename(fresh, path)
    }
}

fn path_of(folder: &Path, number: SpoolNumber) -> PathBuf {
    folder.join(format!("{number}.json"))
}

/// Remove the data and the note of a file.
pub(super) fn remove(folder: &Path, number: SpoolNumber) -> io::Result<()> {
    for path in [folder.join(format!("{number}.data")), path_of(folder, number)] {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn numbered(folder: &Path, extension: &str) -> io::Result<Vec<(SpoolNumber, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let number = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
        if let (Some(number), true) = (number, path.extension().is_some_and(|found| found == extension)) {
            found.push((number, path));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// All notes of a folder; one that cannot be read is told of and left out.
pub(super) fn all(folder: &Path) -> io::Result<Vec<Note>> {
    let mut notes = Vec::new();
    for (_, path) in numbered(folder, "json")? {
        match std::fs::read(&path).and_then(|text| Ok(serde_json::from_slice::<Note>(&text)?)) {
            Ok(note) => notes.push(note),
            Err(error) => tracing::warn!(%error, path = %path.display(), "read a note of the spool"),
        }
    }
    Ok(notes)
}

/// What a process that died left behind and no note tells of yet, each with its data.
pub(super) fn left_in(folder: &Path) -> io::Result<Vec<Note>> {
    let text = match std::fs::read(folder.join(journal::NAME)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let has_data = |note: &Note| folder.join(format!("{}.data", note.number)).exists();
    Ok(journal::unfinished(&text).into_iter().filter(has_data).collect())
}

/// Data files without a note.
pub(super) fn strays(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let data = numbered(folder, "data")?;
    Ok(data.into_iter().filter(|(number, _)| !path_of(folder, *number).exists()).map(|(_, path)| path).collect())
}
