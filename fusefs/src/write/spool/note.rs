//! What is known of a file of the spool: whose bytes they are, and what they make of it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Print, SpoolNumber, journal};

/// What became of an unsaved file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The mount died while it was being saved: the next one goes on.
    Saving,
    /// Saving it failed, and it is the mount's still: it tries again when the file is closed for the last time, and goes on
    /// if it dies. Not in the files of the spool: there it is [`Self::Saving`], and why it failed.
    Retrying,
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
    /// What was done since, where that is known; in a state of "saving", since it began to be saved.
    pub since: Option<Since>,
    /// How the data file looked when all that it has was saved, or was being saved; told only where the kernel may write to
    /// it by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub print: Option<Print>,
    /// What became of it.
    pub state: State,
    /// Why it could not be saved.
    pub error: Option<String>,
}

/// What was done to a file besides writing to it, which its data file tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Since {
    /// Bytes of the file, if no data lies behind.
    pub size: u64,
    /// Stretches that are zeros where there is no data: start and end, in order, none touching another.
    pub holes: Vec<(u64, u64)>,
    /// What was written, where that shares a block of the data file with bytes of the base, which are not there; as `holes`.
    #[serde(default)]
    pub parts: Vec<(u64, u64)>,
}

impl Since {
    /// The file is cut, or stretched.
    pub fn resize(&mut self, size: u64) {
        // What lay behind is gone, also if it is stretched again; how far that went, nobody told.
        self.size = size;
        join(&mut self.holes, size, u64::MAX);
    }

    /// Zeros were made there.
    pub(super) fn punch(&mut self, start: u64, length: u64) {
        join(&mut self.holes, start, start.saturating_add(length));
    }

    /// Bytes were written there.
    pub fn part(&mut self, start: u64, length: u64) {
        join(&mut self.parts, start, start.saturating_add(length));
    }

    /// Blocks of the data file of which only [`Self::parts`] says what is in them.
    pub fn shared_blocks(&self, block: u64) -> BTreeSet<u64> {
        let edges = self.parts.iter().flat_map(|(start, end)| [*start, *end]);
        edges.filter(|edge| edge % block != 0).map(|edge| edge / block).collect()
    }
}

/// One stretch more, made one with those that it touches.
fn join(stretches: &mut Vec<(u64, u64)>, start: u64, end: u64) {
    let first = stretches.partition_point(|one| one.1 < start);
    let last = stretches.partition_point(|one| one.0 <= end);
    let touched = &stretches[first..last];
    let joined = touched.iter().fold((start, end), |all, one| (all.0.min(one.0), all.1.max(one.1)));
    stretches.splice(first..last, [joined]);
}

impl Note {
    /// Whether nobody wrote to the data file since its print was taken.
    pub fn is_as_printed(&self, folder: &Path) -> bool {
        let Some(print) = self.print else { return false };
        let found = File::open(data_path(folder, self.number)).and_then(|file| Print::of(&file));
        found.is_ok_and(|(found, _)| found == print)
    }

    /// Whether the data file has what was written after that of which the saving had begun.
    pub fn has_rest(&self, folder: &Path) -> bool {
        self.changed.is_some() && self.since.is_some() && !self.is_as_printed(folder)
    }

    /// Of what was only begun, the data file tells how long it got and when it was written last.
    fn told_by_data(self, folder: &Path) -> Self {
        let Ok(data) = std::fs::metadata(data_path(folder, self.number)) else { return self };
        if self.changed.is_some() {
            return self;
        }
        let size = self.since.as_ref().map_or(self.size, |since| since.size).max(data.len());
        let modified_ns = data.mtime().saturating_mul(1_000_000_000).saturating_add(data.mtime_nsec());
        Self { size, modified_ns, ..self }
    }

    /// Write it beside the data.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        let path = path_of(folder, self.number);
        let fresh = path.with_extension("json.new");
        std::fs::write(&fresh, serde_json::to_vec_pretty(self)?)?;
        std::fs::rename(fresh, path)
    }
}

pub(super) fn data_path(folder: &Path, number: SpoolNumber) -> PathBuf {
    folder.join(format!("{number}.data"))
}

pub(super) fn path_of(folder: &Path, number: SpoolNumber) -> PathBuf {
    folder.join(format!("{number}.json"))
}

/// Remove the data and the note of a file.
pub(super) fn remove(folder: &Path, number: SpoolNumber) -> io::Result<()> {
    for path in [data_path(folder, number), path_of(folder, number)] {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Remove the note of a file, not its data.
pub(super) fn remove_note(folder: &Path, number: SpoolNumber) -> io::Result<()> {
    std::fs::remove_file(path_of(folder, number))
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

/// What the journal of a folder tells; nothing if it has none.
fn told_in(folder: &Path) -> io::Result<journal::Told> {
    match std::fs::read(folder.join(journal::NAME)) {
        Ok(text) => Ok(journal::Told::by(&text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(journal::Told::default()),
        Err(error) => Err(error),
    }
}

/// What a process that died left behind and no note tells of yet, each with its data.
pub(super) fn left_in(folder: &Path) -> io::Result<Vec<Note>> {
    let has_data = |note: &Note| data_path(folder, note.number).exists();
    let is_saved = |note: &Note| note.state == State::Interrupted && note.is_as_printed(folder);
    let left = told_in(folder)?.open.into_values().filter(|note| has_data(note) && !is_saved(note));
    Ok(left.map(|note| note.told_by_data(folder)).collect())
}

/// What the mount that uses a folder could not save and tries again, as far as its journal tells.
pub(super) fn retried_in(folder: &Path) -> io::Result<Vec<Note>> {
    let left = left_in(folder)?.into_iter();
    let failed = left.filter(|note| note.state == State::Saving && note.error.is_some());
    Ok(failed.map(|note| Note { state: State::Retrying, ..note }).collect())
}

/// What the mount that uses a folder is saving for the first time, as far as its journal tells.
pub(super) fn first_saves_in(folder: &Path) -> io::Result<Vec<Note>> {
    let left = left_in(folder)?.into_iter();
    Ok(left.filter(|note| note.state == State::Saving && note.error.is_none()).collect())
}

/// Notes that cannot be read, each with what is wrong.
pub(super) fn unreadable(folder: &Path) -> io::Result<Vec<(PathBuf, io::Error)>> {
    let read = |path: &Path| std::fs::read(path).and_then(|text| Ok(serde_json::from_slice::<Note>(&text)?));
    let wrong = |path: PathBuf| match read(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Some((path, error)),
        _ => None,
    };
    Ok(numbered(folder, "json")?.into_iter().filter_map(|(_, path)| wrong(path)).collect())
}

/// Data files without a note, and whether their bytes may be nowhere else: neither the journal tells of them.
pub(super) fn without_note(folder: &Path) -> io::Result<Vec<(PathBuf, bool)>> {
    // First: what is begun meanwhile is told of before it gets its first byte.
    let data = numbered(folder, "data")?;
    let has_bytes = |path: &Path| path.metadata().is_ok_and(|data| data.len() > 0);
    let holding: Vec<_> = data.into_iter().map(|(number, path)| (number, has_bytes(&path), path)).collect();
    let told = told_in(folder)?;
    let bare = holding.into_iter().filter(|(number, ..)| !path_of(folder, *number).exists());
    Ok(bare.map(|(number, has_bytes, path)| (path, has_bytes && !told.knows(number))).collect())
}

/// Those of them of which nobody tells.
pub(super) fn strays(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let bare = without_note(folder)?.into_iter();
    // One that has gone since was saved.
    Ok(bare.filter(|(path, is_stray)| *is_stray && path.exists()).map(|(path, _)| path).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_that_touch_are_one() {
        let mut since = Since { size: 100, holes: Vec::new(), parts: Vec::new() };
        for (start, length) in [(10, 5), (30, 5), (50, 5), (15, 3), (29, 30), (5, 1)] {
            since.punch(start, length);
        }
        assert_eq!(since.holes, [(5, 6), (10, 18), (29, 59)]);
        since.resize(40);
        since.resize(70);
        assert_eq!((since.size, since.holes), (70, vec![(5, 6), (10, 18), (29, u64::MAX)]));
    }
}
