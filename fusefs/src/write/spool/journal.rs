//! Events of the spool, in order, each in one write, so that they survive the process.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::SpoolNumber;
use super::note::{Note, State};

pub(super) const NAME: &str = "journal";
/// A journal this long begins anew once nothing is open.
const LONG_BYTES: u64 = 1 << 20;

/// What happens to a file of the spool.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// It is about to get its first bytes that are not saved.
    Begun(Note),
    /// It is being saved.
    Saving(Note),
    /// All that it has is saved.
    Saved(SpoolNumber),
    /// It is gone, or a note of its own tells of it.
    Done(SpoolNumber),
}

pub(super) struct Journal {
    inner: Mutex<Inner>,
}

struct Inner {
    file: File,
    length: u64,
    /// Files with unsaved bytes.
    open: HashSet<SpoolNumber>,
}

impl Journal {
    /// Begin a new one.
    pub(super) fn begin(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        file.set_len(0)?;
        Ok(Self { inner: Mutex::new(Inner { file, length: 0, open: HashSet::new() }) })
    }

    pub(super) fn tell(&self, event: &Event) -> io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        let mut inner = self.inner.lock();
        inner.file.write_all(&line)?;
        inner.length += line.len() as u64;
        match event {
            Event::Begun(note) | Event::Saving(note) => {
                inner.open.insert(note.number);
            }
            Event::Saved(number) | Event::Done(number) => {
                inner.open.remove(number);
            }
        }
        if inner.open.is_empty() && inner.length > LONG_BYTES {
            inner.file.set_len(0)?;
            inner.length = 0;
        }
        Ok(())
    }
}

/// Files that were begun and are not done, as far as the journal tells.
pub(super) fn unfinished(text: &[u8]) -> Vec<Note> {
    let mut open = std::collections::BTreeMap::new();
    for line in text.split(|byte| *byte == b'\n') {
        // The last line may have been cut short.
        match serde_json::from_slice(line) {
            Ok(Event::Begun(note)) => drop(open.insert(note.number, Note { state: State::Interrupted, ..note })),
            Ok(Event::Saving(note)) => drop(open.insert(note.number, Note { state: State::Saving, ..note })),
            Ok(Event::Saved(number) | Event::Done(number)) => drop(open.remove(&number)),
            Err(_) => {}
        }
    }
    open.into_values().collect()
}
