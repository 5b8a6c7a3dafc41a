//! What seeders are still to be sent of files that are saved, and its bytes on this machine until then.
//!
//! ```text
//! FOLDER/journal   a line of JSON for each event: something is owed, it is paid
//! FOLDER/N.data    bytes that are owed: a file of the spool under another name, or a copy
//! ```
//!
//! Not the sending (`fs::writing::resend`). The lock of the spool guards the folder. It may have debts of several swarms,
//! one after the other mounted with one spool, whose inodes have equal numbers. Invariants: a file is removed only
//! when no debt needs it; nothing is taken from it unverified, since the file of the spool may be written on.

mod book;

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::fs::statvfs;
use serde::{Deserialize, Serialize};
use swarm_proto::{InodeNumber, PeerId, Segment, SegmentId};
use tokio::sync::Notify;

use self::book::{Book, Change};
use super::spool::{SpoolFile, SpoolNumber};

pub use self::book::{Debt, Kept, KeptNumber, Key, Part};

const JOURNAL: &str = "journal";
/// A journal up to this long is left as it is; a longer one begins anew once it is several times what is still so.
const LONG_BYTES: u64 = 1 << 20;
const TIMES: u64 = 4;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Event {
    /// This is owed; if its number was told before, it is this now.
    Owes(Debt),
    /// That inode's debt of that number is not owed any more.
    Paid(u64, u64),
}

/// Whose debt it is.
pub struct Debtor {
    /// The swarm.
    pub swarm: String,
    /// The file.
    pub inode: InodeNumber,
    /// Where it is, for people.
    pub path: String,
}

/// A segment that is lacking, and where its bytes are now.
pub struct Lacking<'a> {
    /// Which.
    pub segment: Segment,
    /// Seeders that there are lack it; false: all have it.
    pub at_risk: bool,
    /// Where its bytes are; none: they need not be kept.
    pub bytes: Option<(Bearer<'a>, u64)>,
}

/// What has bytes, at an offset.
#[derive(Clone, Copy)]
pub enum Bearer<'a> {
    /// A file of the spool.
    Spool(&'a SpoolFile),
    /// A file that has no name.
    Nameless(&'a File),
}

/// How much is owed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum {
    /// Files of which seeders lack something.
    pub files: u64,
    /// Bytes that they lack.
    pub bytes: u64,
}

/// See the module.
pub struct Debts {
    folder: PathBuf,
    free_share: f64,
    inner: Mutex<Inner>,
    more: Notify,
}

struct Inner {
    book: Book,
    journal: File,
    length: u64,
    long: u64,
    next_debt: u64,
    next_file: KeptNumber,
    /// Files of the spool that are kept, under which number.
    links: HashMap<SpoolNumber, KeptNumber>,
    /// Debts that the journal does not tell of.
    untold: HashSet<Key>,
}

impl Debts {
    /// Open the folder, made if there is none.
    ///
    /// Shape: `free_share`: share of its disk, 0 to 1, below which no bytes are kept.
    pub fn open(folder: &Path, free_share: f64) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let text = match std::fs::read(folder.join(JOURNAL)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            read => read?,
        };
        let mut book = Book::default();
        // The last line may have been cut short.
        for event in text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()) {
            match event {
                Event::Owes(debt) => book.add(debt, None),
                Event::Paid(inode, number) => drop(book.remove((InodeNumber(inode), number))),
            }
        }
        let next_debt = book.all().map(|debt| debt.number).max().unwrap_or(0) + 1;
        let kept = book.kept();
        let next_file = kept.iter().max().copied().unwrap_or(0) + 1;
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            let number = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
            if number.is_some_and(|number: KeptNumber| !kept.contains(&number)) {
                std::fs::remove_file(path)?;
            }
        }
        let (journal, length) = begin_journal(folder, &book, &HashSet::new())?;
        let inner = Inner {
            book,
            journal,
            length,
            long: LONG_BYTES.max(length * TIMES),
            next_debt,
            next_file,
            links: HashMap::new(),
            untold: HashSet::new(),
        };
        Ok(Self { folder: folder.to_owned(), free_share, inner: Mutex::new(inner), more: Notify::new() })
    }

    /// Remember what seeders lack of a version that was committed.
    ///
    /// Shape: `tried`: the seeders that are up all have it; none: one that is may lack it.
    /// Cost:  where bytes are to be kept, one more name for the file of the spool and one line of the journal.
    pub fn add(&self, debtor: Debtor, mut lacking: Vec<Lacking<'_>>, tried: Option<Vec<PeerId>>) {
        let mut inner = self.inner.lock();
        let at_risk = lacking.iter().filter(|one| one.at_risk).count();
        if at_risk > inner.book.room_at_risk() {
            let path = debtor.path;
            return tracing::warn!(
                path,
                "more is owed to seeders than is remembered: this file stays under-replicated"
            );
        }
        if lacking.len() - at_risk > inner.book.room_harmless() {
            tracing::debug!(path = debtor.path, "all seeders have more than is remembered for one that may join");
            lacking.retain(|one| one.at_risk);
        }
        let keeps = lacking.iter().any(|one| one.bytes.is_some());
        let has_room = keeps && self.has_room();
        if keeps && !has_room {
            tracing::warn!(
                path = debtor.path,
                "the disk of the spool is too full to keep what seeders lack: it is read from the swarm when it is sent"
            );
        }
        let mut parts = Vec::with_capacity(lacking.len());
        for Lacking { segment, at_risk, bytes } in lacking {
            let kept = bytes.filter(|_| has_room).and_then(|(bearer, offset)| {
                let kept = inner.keep(&self.folder, segment, bearer, offset);
                kept.inspect_err(|error| tracing::warn!(%error, "keep what seeders lack")).ok()
            });
            parts.push(Part { segment: segment.id, length: segment.length, at_risk, kept });
        }
        let number = inner.next_debt;
        inner.next_debt += 1;
        let Debtor { swarm, inode, path } = debtor;
        let debt = Debt { number, swarm, inode: inode.0, path, parts };
        if debt.parts.is_empty() {
            return;
        }
        // Of what all have, and of which others wait for another seeder too, there is nothing to do now.
        let is_news = debt.is_at_risk() || tried.is_none() || inner.book.of_swarm(&debt.swarm).next().is_none();
        inner.book.add(debt.clone(), tried);
        match debt.is_at_risk() {
            true => inner.tell(&self.folder, &Event::Owes(debt)),
            // All seeders have it: there is nothing that a crash could lose.
            false => drop(inner.untold.insert(debt.key())),
        }
        drop(inner);
        if is_news {
            self.more.notify_one();
        }
    }

    fn has_room(&self) -> bool {
        statvfs(&self.folder).is_ok_and(|disk| disk.f_bavail as f64 >= disk.f_blocks as f64 * self.free_share)
    }

    /// Another version of a file of a swarm is current: what is not in it is owed no more.
    pub fn replaced(&self, swarm: &str, inode: InodeNumber, is_in_it: impl Fn(&SegmentId) -> bool) {
        let keys = self.inner.lock().book.of(swarm, inode);
        keys.into_iter().for_each(|key| self.change(key, |parts| parts.retain(|part| is_in_it(&part.segment))));
    }

    /// A file of a swarm has no name any more.
    pub fn gone(&self, swarm: &str, inode: InodeNumber) {
        self.replaced(swarm, inode, |_| false);
    }

    /// Change what is owed.
    pub fn change(&self, key: Key, change: impl FnOnce(&mut Vec<Part>)) {
        let mut inner = self.inner.lock();
        let (change, free) = inner.book.change(key, change);
        match change {
            Change::None => {}
            Change::Now(_) if inner.untold.contains(&key) => {}
            Change::Now(debt) if debt.is_at_risk() => inner.tell(&self.folder, &Event::Owes(debt)),
            Change::Now(_) => {
                inner.untold.insert(key);
                inner.tell(&self.folder, &Event::Paid(key.0.0, key.1));
            }
            Change::Gone if inner.untold.remove(&key) => {}
            Change::Gone => inner.tell(&self.folder, &Event::Paid(key.0.0, key.1)),
        }
        for number in free {
            inner.links.retain(|_, kept| *kept != number);
            if let Err(error) = std::fs::remove_file(path_of(&self.folder, number)) {
                tracing::warn!(%error, number, "remove what seeders lacked");
            }
        }
    }

    /// One debt.
    pub fn get(&self, key: Key) -> Option<Debt> {
        self.inner.lock().book.get(key).cloned()
    }

    /// Those of a swarm for which a seeder is up that was not tried, what is at risk first.
    pub fn due(&self, swarm: &str, live: &[PeerId]) -> Vec<Key> {
        self.inner.lock().book.due(swarm, live)
    }

    /// Some of a swarm that keep bytes here.
    pub fn keeping(&self, swarm: &str, most: usize) -> Vec<Key> {
        self.inner.lock().book.keeping(swarm, most)
    }

    /// It was tried or looked at. `tried`: each of these that are up has it, or cannot be given it.
    pub fn looked_at(&self, key: Key, tried: Option<Vec<PeerId>>) {
        self.inner.lock().book.looked_at(key, tried);
    }

    /// What keeps bytes; whether they are still the segment's, [`bytes_at`] says.
    pub fn open_kept(&self, kept: Kept) -> io::Result<File> {
        File::open(path_of(&self.folder, kept.file))
    }

    /// How much of a swarm is owed.
    pub fn sum(&self, swarm: &str) -> Sum {
        let inner = self.inner.lock();
        let files: HashSet<u64> = inner.book.of_swarm(swarm).map(|debt| debt.inode).collect();
        let bytes = inner.book.of_swarm(swarm).flat_map(|debt| &debt.parts).map(|part| u64::from(part.length)).sum();
        Sum { files: files.len() as u64, bytes }
    }

    /// Whether nothing of a swarm is owed.
    pub fn is_empty(&self, swarm: &str) -> bool {
        self.inner.lock().book.of_swarm(swarm).next().is_none()
    }

    /// Wait until something more is owed.
    pub async fn more(&self) {
        self.more.notified().await;
    }
}

/// A segment's bytes in a file.
///
/// Errors: `InvalidData` if others are there.
/// Cost:   reads and hashes them: call it where blocking is allowed.
pub fn bytes_at(file: &File, offset: u64, segment: Segment) -> io::Result<Bytes> {
    let mut bytes = vec![0; segment.length as usize];
    file.read_exact_at(&mut bytes, offset)?;
    match blake3::hash(&bytes).as_bytes() == segment.id.as_bytes() {
        true => Ok(bytes.into()),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, "it was written to since")),
    }
}

impl Inner {
    fn keep(&mut self, folder: &Path, segment: Segment, bearer: Bearer<'_>, offset: u64) -> io::Result<Kept> {
        if let Bearer::Spool(file) = bearer
            && let Some(known) = self.links.get(&file.number())
        {
            return Ok(Kept { file: *known, offset });
        }
        let number = self.next_file;
        self.next_file += 1;
        let path = path_of(folder, number);
        match bearer {
            Bearer::Spool(file) => {
                file.link(&path)?;
                self.links.insert(file.number(), number);
                Ok(Kept { file: number, offset })
            }
            Bearer::Nameless(file) => {
                std::fs::write(path, bytes_at(file, offset, segment)?)?;
                Ok(Kept { file: number, offset: 0 })
            }
        }
    }

    /// What is not told, the next process does not know; this one goes on.
    fn tell(&mut self, folder: &Path, event: &Event) {
        let told = line(event).and_then(|line| {
            let written = self.journal.write_all(&line);
            match &written {
                Ok(()) => self.length += line.len() as u64,
                Err(_) => self.journal.set_len(self.length)?,
            }
            written
        });
        if let Err(error) = told {
            tracing::warn!(%error, "write the journal of what is owed to seeders");
        }
        if self.length > self.long {
            match begin_journal(folder, &self.book, &self.untold) {
                Ok((journal, length)) => (self.journal, self.length) = (journal, length),
                Err(error) => tracing::warn!(%error, "begin the journal of what is owed anew: it goes on growing"),
            }
            self.long = LONG_BYTES.max(self.length * TIMES);
        }
    }
}

/// Write down only what is still so; the file, and how long it is.
fn begin_journal(folder: &Path, book: &Book, untold: &HashSet<Key>) -> io::Result<(File, u64)> {
    let mut text = Vec::new();
    for debt in book.all().filter(|debt| !untold.contains(&debt.key())) {
        text.extend(line(&Event::Owes(debt.clone()))?);
    }
    let fresh = folder.join("journal.new");
    let mut file = OpenOptions::new().append(true).create(true).open(&fresh)?;
    file.set_len(0)?;
    file.write_all(&text)?;
    std::fs::rename(fresh, folder.join(JOURNAL))?;
    Ok((file, text.len() as u64))
}

fn line(event: &Event) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    Ok(line)
}

fn path_of(folder: &Path, number: KeptNumber) -> PathBuf {
    folder.join(format!("{number}.data"))
}

#[cfg(test)]
mod tests;
