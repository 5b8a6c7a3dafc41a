//! The files on this machine in which unsaved bytes lie, and the journal that tells of them.
//!
//! ```text
//! FOLDER/LOCK      held by the mount that uses it
//! FOLDER/journal   a line of JSON for each event: a file is begun, being saved, done
//! FOLDER/N.data    the bytes of file N, at their own offsets
//! FOLDER/N.json    what is left of file N, which could not be saved: one Note
//! FOLDER/owed/     what is saved and seeders lack: see `debts`
//! ```
//!
//! Invariants: a data file is removed only when what it held is saved or was given up by a person; the journal names
//! every data file before it gets its first byte; a line that was cut short by a crash is no line.

mod journal;
mod moving;
mod note;
mod print;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use rustix::fs::{FallocateFlags, FlockOperation, SeekFrom, fallocate, flock, fstatvfs, seek};
use rustix::io::Errno;
use swarm_proto::ByteRange;

pub use journal::Event;
use journal::Journal;
pub use note::{Note, Since, State};
pub use print::Print;

/// Name of the file that is locked while a mount uses the folder.
const LOCK: &str = "LOCK";

/// Room is asked for in such pieces, not for each write.
const ROOM_AT_ONCE: u64 = 64 << 20;

/// Pages of the kernel: no block counts for less.
const LEAST_BLOCK: u64 = 4096;

/// Whether a folder is a spool.
pub fn is_spool(folder: &Path) -> bool {
    folder.join(journal::NAME).is_file()
}

/// Whether a mount uses a spool now.
pub fn is_used(folder: &Path) -> bool {
    File::open(folder.join(LOCK)).is_ok_and(|lock| flock(&lock, FlockOperation::NonBlockingLockShared).is_err())
}

/// What is left in a spool and waits for a person or a mount; also what a mount that is gone has not noted yet, and what
/// one that is there could not save and tries again.
pub fn notes_in(folder: &Path) -> io::Result<Vec<Note>> {
    // First: what is noted meanwhile is not left out then.
    let others = if is_used(folder) { note::retried_in(folder)? } else { note::left_in(folder)? };
    let mut notes = note::all(folder)?;
    let noted: Vec<SpoolNumber> = notes.iter().map(|note| note.number).collect();
    notes.extend(others.into_iter().filter(|note| !noted.contains(&note.number)));
    Ok(notes)
}

/// The same, and what a mount that is there is saving for the first time: nobody else may touch that.
pub fn unsaved_in(folder: &Path) -> io::Result<Vec<Note>> {
    let saving = if is_used(folder) { note::first_saves_in(folder)? } else { Vec::new() };
    let mut notes = notes_in(folder)?;
    let noted: Vec<SpoolNumber> = notes.iter().map(|note| note.number).collect();
    notes.extend(saving.into_iter().filter(|note| !noted.contains(&note.number)));
    Ok(notes)
}

/// What lies in a spool and cannot be listed, in words: notes that cannot be read, bytes that no note tells of or that
/// are gone.
pub fn damage_in(folder: &Path, listed: &[Note]) -> io::Result<Vec<String>> {
    let mut damage: Vec<String> = note::unreadable(folder)?
        .into_iter()
        .map(|(path, error)| format!("{}: a note that cannot be read, of unsaved bytes: {error}", path.display()))
        .collect();
    let strays = note::strays(folder)?.into_iter();
    damage.extend(strays.map(|path| format!("{}: unsaved bytes, and no note of whose they are", path.display())));
    // Both go when it is saved, the note last.
    let is_bare = |number| !has_bytes(folder, number) && note::path_of(folder, number).exists();
    let bare = listed.iter().filter(|note| is_bare(note.number));
    damage.extend(bare.map(|note| format!("{}: its bytes are gone from {}", note.path, folder.display())));
    Ok(damage)
}

/// Whether there is something of this number that cannot be listed, as its note is damaged or gone.
pub fn is_damaged(folder: &Path, number: SpoolNumber) -> io::Result<bool> {
    let (note, data) = (note::path_of(folder, number), note::data_path(folder, number));
    let is_unreadable = note::unreadable(folder)?.iter().any(|(path, _)| *path == note);
    Ok(is_unreadable || note::strays(folder)?.contains(&data))
}

/// Whether the bytes of a file are there.
pub fn has_bytes(folder: &Path, number: SpoolNumber) -> bool {
    note::data_path(folder, number).exists()
}

/// Give up what is left of a file.
pub fn remove(folder: &Path, number: SpoolNumber) -> io::Result<()> {
    note::remove(folder, number)
}

/// Number of a file of the spool; never used twice in one folder.
pub type SpoolNumber = u64;

/// A folder for unsaved bytes, used by one mount at a time: the lock of its cache guards it.
pub struct Spool {
    folder: PathBuf,
    journal: Journal,
    /// Locked while a mount uses the folder.
    _lock: File,
    next: AtomicU64,
    /// Bytes of the disk that are left free.
    floor: u64,
    /// Who makes room on the disk if he can.
    makes_room: OnceLock<MakesRoom>,
}

/// Asked for so many bytes.
type MakesRoom = Box<dyn Fn(u64) + Send + Sync>;

/// One file's unsaved bytes; gone when dropped, unless they are kept.
pub struct SpoolFile {
    number: SpoolNumber,
    file: Arc<File>,
    spool: Arc<Spool>,
    kept: AtomicBool,
    /// A note of its own may tell of it.
    noted: AtomicBool,
    /// Which has its bytes now.
    successor: OnceLock<Arc<SpoolFile>>,
    block_bytes: u64,
}

impl Spool {
    /// Open the folder, made if there is none; and what an earlier process left in it.
    ///
    /// Shape: `floor`: bytes of its disk that are never used.
    pub fn open(folder: &Path, floor: u64) -> io::Result<(Arc<Self>, Vec<Note>)> {
        std::fs::create_dir_all(folder)?;
        let lock = File::create(folder.join(LOCK))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, "another mount uses it"));
        }
        let had_journal = is_spool(folder);
        let left = note::left_in(folder)?;
        for note in &left {
            // From now on a note tells of it: the journal begins anew.
            note.write(folder)?;
        }
        for (path, is_stray) in note::without_note(folder)? {
            match had_journal && !is_stray {
                // The journal tells that all of it is saved, or it was not given a byte yet.
                true => std::fs::remove_file(path)?,
                false => tracing::warn!(path = %path.display(), "unsaved bytes, and no note of whose they are: kept"),
            }
        }
        let journal = Journal::begin(&folder.join(journal::NAME))?;
        let most = note::all(folder)?.iter().map(|note| note.number).max().unwrap_or(0);
        let (folder, next) = (folder.to_owned(), AtomicU64::new(most + 1));
        let spool = Self { folder, journal, _lock: lock, next, floor, makes_room: OnceLock::new() };
        Ok((Arc::new(spool), left))
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What could not be saved and waits for a person.
    pub fn kept(&self) -> io::Result<Vec<Note>> {
        note::all(&self.folder)
    }

    /// Begin a file. `note` tells what it belongs to.
    pub fn begin(self: &Arc<Self>, note: impl FnOnce(SpoolNumber) -> Note) -> io::Result<SpoolFile> {
        let file = self.fresh()?;
        file.begun(note(file.number))?;
        Ok(file)
    }

    /// A file of which the journal is not told yet.
    fn fresh(self: &Arc<Self>) -> io::Result<SpoolFile> {
        let (number, file) = loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            match OpenOptions::new().read(true).write(true).create_new(true).open(self.data_path(number)) {
                Ok(file) => break (number, file),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        };
        SpoolFile::new(number, file, self.clone(), false)
    }

    /// A file for bytes that are somewhere else too; gone when it is closed.
    ///
    /// Errors: `StorageFull` if `bytes` more would leave the disk less than its floor.
    pub fn scratch(&self, bytes: u64) -> io::Result<Arc<File>> {
        let path = self.data_path(self.next.fetch_add(1, Ordering::Relaxed));
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        // If this process dies in between, the next mount finds a file that no journal tells of.
        std::fs::remove_file(path)?;
        self.check_room(&file, bytes)?;
        Ok(Arc::new(file))
    }

    /// Who is asked to make room on the disk before anything is refused.
    pub fn ask_for_room(&self, makes_room: impl Fn(u64) + Send + Sync + 'static) {
        // Whoever assembles the mount says it once.
        drop(self.makes_room.set(Box::new(makes_room)));
    }

    fn check_room(&self, file: &File, bytes: u64) -> io::Result<()> {
        let lacking = self.lacking(file, bytes)?;
        if let (1.., Some(makes_room)) = (lacking, self.makes_room.get()) {
            makes_room(lacking.max(ROOM_AT_ONCE));
            return self.refuse(self.lacking(file, bytes)?);
        }
        self.refuse(lacking)
    }

    fn refuse(&self, lacking: u64) -> io::Result<()> {
        match lacking {
            0 => Ok(()),
            _ => Err(io::ErrorKind::StorageFull.into()),
        }
    }

    /// What the disk lacks to take so many bytes more.
    fn lacking(&self, file: &File, bytes: u64) -> io::Result<u64> {
        let disk = fstatvfs(file)?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        Ok(self.floor.saturating_add(bytes).saturating_sub(free))
    }

    /// Whether it can be seen of a data file that the kernel wrote to it by itself.
    ///
    /// Errors: why not.
    pub fn tells_of_writes(&self) -> Result<(), String> {
        let file = self.scratch(0).map_err(|error| format!("the spool has no room: {error}"))?;
        print::are_exact(&file)
    }

    /// Open what is left of a file.
    pub fn reopen(self: &Arc<Self>, number: SpoolNumber) -> io::Result<SpoolFile> {
        let file = OpenOptions::new().read(true).write(true).open(self.data_path(number))?;
        SpoolFile::new(number, file, self.clone(), true)
    }

    /// As if its process had died: the lock goes, the files stay.
    #[cfg(test)]
    pub(crate) fn abandon(&self) {
        flock(&self._lock, FlockOperation::Unlock).expect("it is locked");
    }

    fn data_path(&self, number: SpoolNumber) -> PathBuf {
        self.folder.join(format!("{number}.data"))
    }
}

impl SpoolFile {
    fn new(number: SpoolNumber, file: File, spool: Arc<Spool>, kept: bool) -> io::Result<Self> {
        let block_bytes = file.metadata()?.blksize().max(LEAST_BLOCK);
        let (kept, noted, successor) = (kept.into(), kept.into(), OnceLock::new());
        Ok(Self { number, file: Arc::new(file), spool, kept, noted, successor, block_bytes })
    }

    /// Its number.
    pub fn number(&self) -> SpoolNumber {
        self.number
    }

    /// Give it another name, under which it stays when this one goes.
    pub fn link(&self, path: &Path) -> io::Result<()> {
        std::fs::hard_link(self.spool.data_path(self.number), path)
    }

    /// The file itself.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Write bytes at their offset.
    ///
    /// Errors: `StorageFull` also if the disk would fall below its floor.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    /// Whether so many more bytes leave the disk its floor.
    pub fn check_room(&self, bytes: u64) -> io::Result<()> {
        self.spool.check_room(&self.file, bytes)
    }

    /// Bytes that were written; zeros where nothing was.
    pub fn read(&self, range: ByteRange) -> io::Result<Bytes> {
        let mut bytes = vec![0; usize::try_from(range.len()).map_err(io::Error::other)?];
        let mut at = 0;
        while at < bytes.len() {
            match self.file.read_at(&mut bytes[at..], range.start + at as u64) {
                Ok(0) => break,
                Ok(read) => at += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(bytes.into())
    }

    /// Where there is data.
    pub fn stretches(&self) -> io::Result<Vec<ByteRange>> {
        let size = self.file.metadata()?.len();
        let mut found = Vec::new();
        let mut at = 0;
        while at < size {
            let start = match seek(&*self.file, SeekFrom::Data(at)) {
                Ok(start) => start,
                Err(Errno::NXIO) => break,
                Err(error) => return Err(error.into()),
            };
            let end = seek(&*self.file, SeekFrom::Hole(start))?.min(size);
            found.push(ByteRange { start, end });
            at = end.max(start + 1);
        }
        Ok(found)
    }

    /// How it looks from outside, and its bytes that are no holes.
    pub fn print(&self) -> io::Result<(Print, u64)> {
        Print::of(&self.file)
    }

    /// Wait until what others write to it now is there. Blocks.
    pub fn wait_for_writes(&self) -> io::Result<()> {
        print::wait_for_writes(&self.file)
    }

    /// Make zeros of a range within it.
    pub fn zero(&self, range: ByteRange) -> io::Result<()> {
        const STEP: u64 = 1 << 20;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if range.is_empty() || fallocate(&*self.file, flags, range.start, range.len()).is_ok() {
            return Ok(());
        }
        let mut at = range.start;
        while at < range.end {
            let length = STEP.min(range.end - at);
            self.write(at, &vec![0; usize::try_from(length).map_err(io::Error::other)?])?;
            at += length;
        }
        Ok(())
    }

    /// The next data or hole from `offset` on, as lseek(2) has it; none: there is no more.
    pub fn next(&self, from: SeekFrom) -> io::Result<Option<u64>> {
        match seek(&*self.file, from) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::NXIO) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// At least so long, so that reading past what was written is no error.
    pub fn stretch(&self, size: u64) -> io::Result<()> {
        match self.file.metadata()?.len() < size {
            true => self.file.set_len(size),
            false => Ok(()),
        }
    }

    /// What lies behind `size` is no longer needed.
    pub fn cut(&self, size: u64) -> io::Result<()> {
        self.file.set_len(size)
    }

    /// What lies there is no longer needed: give its room back, where the file system can.
    pub fn forget(&self, range: ByteRange) {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if let Err(error) = fallocate(&*self.file, flags, range.start, range.len()) {
            tracing::debug!(%error, "give back room of the spool");
        }
    }

    /// It is about to get bytes that are not saved.
    pub fn begun(&self, note: Note) -> io::Result<()> {
        self.spool.journal.tell(Event::Begun(note))
    }

    /// All that it has is saved.
    pub fn saved(&self) {
        // If it is not told, the next mount finds that it is saved.
        self.tell(Event::Saved(self.number));
    }

    /// It is being saved: if this process dies, the next one goes on.
    pub fn saving(&self, note: Note) {
        self.tell(Event::Saving(note));
    }

    /// Saving it failed.
    pub fn failed(&self, why: &str) {
        self.tell(Event::Failed(self.number, why.to_owned()));
    }

    /// It is changed again, since it began to be saved; it was so before.
    pub fn changed(&self, before: Since) {
        self.tell(Event::Changed(self.number, before));
    }

    /// This is written in blocks that lack bytes of the base.
    pub fn wrote(&self, range: ByteRange) {
        self.tell(Event::Wrote(self.number, range.start, range.len()));
    }

    /// Bytes of its blocks: where one is data, so is all of it.
    pub fn block_bytes(&self) -> u64 {
        self.block_bytes
    }

    /// Its size was changed to this.
    pub fn resized(&self, size: u64) {
        self.tell(Event::Resized(self.number, size));
    }

    /// Zeros were made there.
    pub fn punched(&self, range: ByteRange) {
        self.tell(Event::Punched(self.number, range.start, range.len()));
    }

    /// What is not told, the next process does not know; this one goes on.
    fn tell(&self, event: Event) {
        if let Err(error) = self.spool.journal.tell(event) {
            tracing::warn!(%error, number = self.number, "write the journal of the spool");
        }
    }

    /// Keep it for a person, who is told by this note.
    pub fn keep(&self, note: &Note) -> io::Result<()> {
        // First: where the note cannot be written, the bytes stay all the same.
        self.kept.store(true, Ordering::Relaxed);
        self.noted.store(true, Ordering::Relaxed);
        note.write(&self.spool.folder)?;
        self.spool.journal.tell(Event::Done(self.number))
    }

    /// All of it is saved: it goes when it is dropped.
    pub fn done(&self) {
        self.kept.store(false, Ordering::Relaxed);
    }
}

impl Drop for SpoolFile {
    fn drop(&mut self) {
        if !self.kept.load(Ordering::Relaxed) {
            let gone = match self.noted.load(Ordering::Relaxed) {
                true => note::remove(&self.spool.folder, self.number),
                false => std::fs::remove_file(self.spool.data_path(self.number)),
            };
            if let Err(error) = gone.and_then(|()| self.spool.journal.tell(Event::Done(self.number))) {
                tracing::warn!(%error, number = self.number, "remove a file of the spool");
            }
        }
    }
}

#[cfg(test)]
mod tests;
