//! Events of the spool, in order, each in one write, so that they survive the process.
//!
//! Invariants: a line tells of one event; a line that was cut short is no line, and tears no other; what the journal is
//! long for it still tells of, but for a factor.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::SpoolNumber;
use super::note::{Note, Since, State};

pub(super) const NAME: &str = "journal";
/// A journal up to this long is left as it is.
const LONG_BYTES: u64 = 1 << 20;
/// A longer one begins anew once it is so many times as long as when it last did.
const TIMES: u64 = 4;

/// What happens to a file of the spool.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// It is about to get its first bytes that are not saved.
    Begun(Note),
    /// It is being saved.
    Saving(Note),
    /// Saving it failed, for this reason.
    Failed(SpoolNumber, String),
    /// It is changed again, since it began to be saved; it was so before.
    Changed(SpoolNumber, Since),
    /// This is written, start and length, in blocks of the data file that lack bytes of the base.
    Wrote(SpoolNumber, u64, u64),
    /// Its size was changed to this.
    Resized(SpoolNumber, u64),
    /// Zeros were made there: start and length.
    Punched(SpoolNumber, u64, u64),
    /// What it gets is somewhere else too.
    Spare(SpoolNumber),
    /// What the first has that is not saved is in another from now on, of which this is so.
    Moved(SpoolNumber, Note),
    /// All that it has is saved.
    Saved(SpoolNumber),
    /// It is gone, or a note of its own tells of it.
    Done(SpoolNumber),
}

pub(super) struct Journal {
    inner: Mutex<Inner>,
}

struct Inner {
    path: PathBuf,
    file: File,
    length: u64,
    /// It begins anew when it is longer than this.
    long: u64,
    told: Told,
}

/// The data files that there may be, as the events so far tell.
#[derive(Default)]
pub(super) struct Told {
    /// With unsaved bytes.
    pub(super) open: BTreeMap<SpoolNumber, Note>,
    /// With none: whoever reads one lost nothing if it goes.
    pub(super) spare: BTreeSet<SpoolNumber>,
}

/// A file that is appended to, as far as writing a line needs it.
trait Appended: Write {
    /// Cut it.
    fn cut(&mut self, length: u64) -> io::Result<()>;
}

impl Appended for File {
    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }
}

impl Journal {
    /// Begin a new one.
    pub(super) fn begin(path: &Path) -> io::Result<Self> {
        let file = empty(path)?;
        let inner = Inner { path: path.to_owned(), file, length: 0, long: LONG_BYTES, told: Told::default() };
        Ok(Self { inner: Mutex::new(inner) })
    }

    pub(super) fn tell(&self, event: Event) -> io::Result<()> {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let is_open = |number| inner.told.open.contains_key(number);
        match &event {
            // It tells of no such file.
            Event::Saved(number) if !is_open(number) => return Ok(()),
            Event::Done(number) if !is_open(number) && !inner.told.spare.contains(number) => return Ok(()),
            _ => {}
        }
        let line = line(&event)?;
        append(&mut inner.file, inner.length, &line)?;
        inner.length += line.len() as u64;
        inner.told.apply(event);
        if inner.length > inner.long {
            if let Err(error) = inner.begin_anew() {
                tracing::warn!(%error, "begin the journal of the spool anew: it goes on growing");
            }
            inner.long = LONG_BYTES.max(inner.length * TIMES);
        }
        Ok(())
    }
}

impl Inner {
    /// Write down only what is still so.
    fn begin_anew(&mut self) -> io::Result<()> {
        let mut text = Vec::new();
        for number in &self.told.spare {
            text.extend(line(&Event::Spare(*number))?);
        }
        for note in self.told.open.values() {
            text.extend(line(&match note.state {
                State::Saving | State::Retrying => Event::Saving(note.clone()),
                State::Interrupted | State::Failed => Event::Begun(note.clone()),
            })?);
        }
        let fresh = self.path.with_extension("new");
        let mut file = empty(&fresh)?;
        file.write_all(&text)?;
        std::fs::rename(fresh, &self.path)?;
        (self.file, self.length) = (file, text.len() as u64);
        Ok(())
    }
}

fn empty(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().append(true).create(true).open(path)?;
    file.set_len(0)?;
    Ok(file)
}

fn line(event: &Event) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    Ok(line)
}

/// Write a line behind the first `length` bytes; what of it is there if that fails is taken back.
fn append(file: &mut impl Appended, length: u64, line: &[u8]) -> io::Result<()> {
    let written = file.write_all(line);
    if written.is_err()
        && let Err(error) = file.cut(length)
    {
        tracing::warn!(%error, "cut the journal of the spool where a line could not be written");
    }
    written
}

impl Told {
    /// By the text of a journal.
    pub(super) fn by(text: &[u8]) -> Self {
        let mut told = Self::default();
        // The last line may have been cut short.
        let events = text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
        events.for_each(|event| told.apply(event));
        told
    }

    /// Whether it is told of this data file at all.
    pub(super) fn knows(&self, number: SpoolNumber) -> bool {
        self.open.contains_key(&number) || self.spare.contains(&number)
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Begun(note) => self.begin(Note { state: State::Interrupted, ..note }),
            Event::Saving(note) => self.begin(Note { state: State::Saving, ..note }),
            Event::Failed(number, why) => {
                if let Some(note) = self.open.get_mut(&number) {
                    note.error = Some(why);
                }
            }
            Event::Changed(number, before) => self.since(number, |since| *since = before),
            Event::Wrote(number, start, length) => self.since(number, |since| since.part(start, length)),
            Event::Resized(number, size) => self.since(number, |since| since.resize(size)),
            Event::Punched(number, start, length) => self.since(number, |since| since.punch(start, length)),
            Event::Spare(number) | Event::Saved(number) => self.spare(number),
            Event::Moved(number, note) => {
                self.spare(number);
                self.begin(note);
            }
            Event::Done(number) => {
                self.open.remove(&number);
                self.spare.remove(&number);
            }
        }
    }

    fn begin(&mut self, note: Note) {
        self.spare.remove(&note.number);
        self.open.insert(note.number, note);
    }

    fn spare(&mut self, number: SpoolNumber) {
        self.open.remove(&number);
        self.spare.insert(number);
    }

    fn since(&mut self, number: SpoolNumber, change: impl FnOnce(&mut Since)) {
        if let Some(note) = self.open.get_mut(&number) {
            change(note.since.get_or_insert_with(|| Since { size: note.size, holes: Vec::new(), parts: Vec::new() }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes so many bytes more.
    struct Narrow(Vec<u8>, usize);

    impl Write for Narrow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = bytes.len().min(self.1);
            if taken == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.0.extend_from_slice(&bytes[..taken]);
            self.1 -= taken;
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Appended for Narrow {
        fn cut(&mut self, length: u64) -> io::Result<()> {
            self.0.truncate(usize::try_from(length).unwrap());
            Ok(())
        }
    }

    #[test]
    fn a_line_that_is_written_in_part_tears_no_other() {
        let mut file = Narrow(Vec::new(), 12);
        append(&mut file, 0, b"first\n").unwrap();
        append(&mut file, 6, b"second\n").unwrap_err();
        file.1 = 100;
        append(&mut file, 6, b"third\n").unwrap();
        assert_eq!(file.0, b"first\nthird\n");
    }
}
