//! A disk that crashes and fails at a chosen step, for tests.
//!
//! Lies over a real folder and counts every step that changes it. At the crash it keeps two images: what
//! kill -9 leaves (all that was done) and what a power cut leaves (what was synced, and of the rest what
//! the dice say). Not a model of one file system: names and bytes survive independently, as POSIX allows.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{Access, Disk, DiskFile, DiskSpace, FolderEntry, RealDisk, Stamp};

/// Unit in which unsynced bytes survive or not.
const PAGE: usize = 4096;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Nothing.
    None,
    /// Everything stops at this half-step: 2k is before step k, 2k + 1 after it; a write before which it
    /// stops may be half done.
    CrashAt(u64),
    /// Step k fails with this error number, once; the process goes on.
    FailAt(u64, i32),
}

/// A tree of files: path below the root to content; folders end in `/`.
pub type Image = HashMap<PathBuf, Vec<u8>>;

/// What a crash left.
#[derive(Debug, Clone, Default)]
pub struct Crash {
    /// After kill -9.
    pub kill: Image,
    synced: Synced,
}

/// What is surely on the disk.
#[derive(Debug, Clone, Default)]
struct Synced {
    /// By inode.
    bytes: HashMap<u64, Vec<u8>>,
    /// Which inode has which name; of folders that were synced.
    names: HashMap<PathBuf, HashMap<String, u64>>,
    /// Inode of each path at the crash.
    inodes: HashMap<PathBuf, u64>,
}

impl Crash {
    /// One of the states that a power cut may leave.
    ///
    /// Files of `database` (which writes them behind our back) keep their names.
    pub fn power_cut(&self, seed: u64, database: &Path) -> Image {
        let mut dice = StdRng::seed_from_u64(seed);
        let mut image: Image = self.kill.iter().filter(|(_, content)| content.is_empty()).map(own).collect();
        let mut live: Vec<_> = self.synced.inodes.iter().collect();
        live.sort();
        let by_inode: HashMap<u64, &PathBuf> = live.iter().map(|(path, inode)| (**inode, *path)).collect();
        for (path, inode) in live {
            let (folder, name) = split(path);
            let is_named = self.synced.names.get(folder).and_then(|names| names.get(name)) == Some(inode);
            if is_named || path.starts_with(database) || dice.random() {
                image.insert(path.clone(), self.content(*inode, &self.kill[path], &mut dice));
            }
        }
        // A name that was synced and changed since may still be the old one.
        let mut folders: Vec<_> = self.synced.names.iter().collect();
        folders.sort_by_key(|(folder, _)| folder.as_path());
        for (folder, names) in folders {
            for (name, inode) in names {
                let path = folder.join(name);
                if self.synced.inodes.get(&path) != Some(inode) && !path.starts_with(database) && dice.random() {
                    let live = by_inode.get(inode).map_or(&[][..], |path| &self.kill[*path]);
                    image.insert(path, self.content(*inode, live, &mut dice));
                }
            }
        }
        image
    }

    fn content(&self, inode: u64, live: &[u8], dice: &mut StdRng) -> Vec<u8> {
        let synced = self.synced.bytes.get(&inode).map_or(&[][..], Vec::as_slice);
        match dice.random_range(0..3) {
            0 => synced.to_vec(),
            1 => live.to_vec(),
            _ => {
                let mut mixed = live.to_vec();
                for (at, page) in mixed.chunks_mut(PAGE).enumerate() {
                    if dice.random() {
                        let old = synced.get(at * PAGE..).unwrap_or_default();
                        let length = old.len().min(page.len());
                        page[..length].copy_from_slice(&old[..length]);
                        page[length..].fill(0);
                    }
                }
                mixed
            }
        }
    }
}

fn own((path, content): (&PathBuf, &Vec<u8>)) -> (PathBuf, Vec<u8>) {
    (path.clone(), content.clone())
}

fn split(path: &Path) -> (&Path, &str) {
    (path.parent().unwrap_or(Path::new("")), path.file_name().and_then(|name| name.to_str()).unwrap_or_default())
}

/// Write an image to a folder.
pub fn restore(image: &Image, root: &Path) -> io::Result<()> {
    std::fs::create_dir_all(root)?;
    for path in image.keys().filter(|path| is_folder(path)) {
        std::fs::create_dir_all(root.join(path))?;
    }
    for (path, content) in image.iter().filter(|(path, _)| !is_folder(path)) {
        std::fs::write(root.join(path), content)?;
    }
    Ok(())
}

fn is_folder(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().ends_with(b"/")
}

/// The disk.
#[derive(Clone)]
pub struct SimDisk {
    shared: Arc<Shared>,
}

struct Shared {
    root: PathBuf,
    state: Mutex<State>,
}

struct State {
    step: u64,
    trouble: Trouble,
    synced: Synced,
    crash: Option<Arc<Crash>>,
    free: Option<u64>,
}

impl SimDisk {
    /// Over a folder; nothing goes wrong yet.
    pub fn new(root: &Path) -> Self {
        let state = State { step: 0, trouble: Trouble::None, synced: Synced::default(), crash: None, free: None };
        Self { shared: Arc::new(Shared { root: root.to_owned(), state: Mutex::new(state) }) }
    }

    /// Count from 0 again, all that is there being safe, and have this go wrong.
    pub fn arm(&self, trouble: Trouble) -> io::Result<()> {
        let (kill, inodes) = read_image(&self.shared.root)?;
        let mut state = self.shared.state.lock();
        state.synced = Synced::default();
        for (path, inode) in inodes {
            let (folder, name) = split(&path);
            state.synced.names.entry(folder.to_owned()).or_default().insert(name.to_owned(), inode);
            state.synced.bytes.insert(inode, kill.get(&path).cloned().unwrap_or_default());
        }
        state.step = 0;
        state.trouble = trouble;
        Ok(())
    }

    /// Steps so far.
    pub fn steps(&self) -> u64 {
        self.shared.state.lock().step
    }

    /// What the crash left, once it has happened.
    pub fn crash(&self) -> Option<Arc<Crash>> {
        self.shared.state.lock().crash.clone()
    }

    /// Crash now, if it has not yet.
    pub fn crash_now(&self) -> io::Result<Arc<Crash>> {
        self.shared.stop(&mut self.shared.state.lock())
    }

    /// What the disk says is free.
    pub fn set_free(&self, free: u64) {
        self.shared.state.lock().free = Some(free);
    }
}

impl Shared {
    /// Take a step that changes the disk. `half` is what may be done of it when the crash comes.
    fn step<T>(&self, half: impl FnOnce(), work: impl FnOnce(&mut Synced) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.state.lock();
        let step = state.step;
        state.step += 1;
        if state.crash.is_some() {
            return Err(gone());
        }
        match state.trouble {
            Trouble::FailAt(at, error) if at == step => return Err(io::Error::from_raw_os_error(error)),
            Trouble::CrashAt(at) if at == 2 * step => {
                half();
                self.stop(&mut state)?;
                return Err(gone());
            }
            _ => {}
        }
        let result = work(&mut state.synced);
        if state.trouble == Trouble::CrashAt(2 * step + 1) {
            self.stop(&mut state)?;
            return Err(gone());
        }
        result
    }

    fn look<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let has_crashed = self.state.lock().crash.is_some();
        if has_crashed { Err(gone()) } else { work() }
    }

    fn stop(&self, state: &mut State) -> io::Result<Arc<Crash>> {
        if let Some(crash) = &state.crash {
            return Ok(crash.clone());
        }
        let (kill, inodes) = read_image(&self.root)?;
        let crash = Arc::new(Crash { kill, synced: Synced { inodes, ..state.synced.clone() } });
        state.crash = Some(crash.clone());
        Ok(crash)
    }

    fn relative<'a>(&self, path: &'a Path) -> &'a Path {
        path.strip_prefix(&self.root).unwrap_or(path)
    }
}

fn gone() -> io::Error {
    io::Error::other("the machine has crashed")
}

fn read_image(root: &Path) -> io::Result<(Image, HashMap<PathBuf, u64>)> {
    let (mut image, mut inodes, mut folders) = (Image::new(), HashMap::new(), vec![PathBuf::new()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(root.join(&folder))? {
            let entry = entry?;
            let path = folder.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                image.insert(path.join(""), Vec::new());
                folders.push(path);
            } else if let (Ok(content), Ok(meta)) = (std::fs::read(entry.path()), entry.metadata()) {
                image.insert(path.clone(), content);
                inodes.insert(path, meta.ino());
            }
        }
    }
    Ok((image, inodes))
}

impl Disk for SimDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = self.shared.step(
            || {},
            |synced| {
                let file = RealDisk.create(path)?;
                // The number may have been another file's.
                synced.bytes.remove(&std::fs::metadata(path)?.ino());
                Ok(file)
            },
        )?;
        Ok(Box::new(SimFile { file, path: path.to_owned(), disk: self.shared.clone() }))
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn DiskFile>> {
        let file = self.shared.look(|| RealDisk.open(path, access))?;
        Ok(Box::new(SimFile { file, path: path.to_owned(), disk: self.shared.clone() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.shared.step(|| {}, |_| RealDisk.rename(from, to))
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.shared.step(|| {}, |_| RealDisk.unlink(path))
    }

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.shared.step(|| {}, |_| RealDisk.create_folder(path))
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.shared.step(
            || {},
            |synced| {
                let mut names = HashMap::new();
                for entry in std::fs::read_dir(path)? {
                    let entry = entry?;
                    if entry.file_type()?.is_file() {
                        names.insert(entry.file_name().to_string_lossy().into_owned(), entry.metadata()?.ino());
                    }
                }
                synced.names.insert(self.shared.relative(path).to_owned(), names);
                Ok(())
            },
        )
    }

    fn list(&self, path: &Path) -> io::Result<Vec<FolderEntry>> {
        self.shared.look(|| RealDisk.list(path))
    }

    fn space(&self, path: &Path) -> io::Result<DiskSpace> {
        let free = self.shared.state.lock().free;
        let space = self.shared.look(|| RealDisk.space(path))?;
        Ok(DiskSpace { free: free.unwrap_or(space.free), ..space })
    }
}

struct SimFile {
    file: Box<dyn DiskFile>,
    path: PathBuf,
    disk: Arc<Shared>,
}

impl DiskFile for SimFile {
    fn length(&self) -> io::Result<u64> {
        self.disk.look(|| self.file.length())
    }

    fn reserve(&self, bytes: u64) -> io::Result<()> {
        self.disk.step(|| {}, |_| self.file.reserve(bytes))
    }

    fn write_at(&self, pieces: &[Bytes], offset: u64) -> io::Result<()> {
        let half = || {
            let all = Bytes::from(pieces.concat());
            // What it says does not matter: this write will never be heard of.
            let _ = self.file.write_at(&[all.slice(..all.len() / 2)], offset);
        };
        self.disk.step(half, |_| self.file.write_at(pieces, offset))
    }

    fn read_at(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        self.disk.look(|| self.file.read_at(offset, length))
    }

    fn stamp(&self) -> io::Result<Option<Stamp>> {
        self.disk.look(|| self.file.stamp())
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.step(
            || {},
            |synced| {
                self.file.sync()?;
                let length = usize::try_from(self.file.length()?).map_err(io::Error::other)?;
                let bytes = self.file.read_at(0, length)?.to_vec();
                // Renamed since it was opened, perhaps; then its inode is found under no name we know, and
                // the store syncs before it renames.
                synced.bytes.insert(std::fs::metadata(&self.path)?.ino(), bytes);
                Ok(())
            },
        )
    }
}
