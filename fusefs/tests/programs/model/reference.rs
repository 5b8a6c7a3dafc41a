//! What must come of an operation. PURE.
//!
//! One tree of names, the same for both views; of a file's bytes, what is committed, what a view has unsaved, and
//! which version a view with open handles shows.

mod names;

use std::collections::BTreeMap;

use rustix::io::Errno;

use super::operation::{Access, Operation, Path, SLOTS, Slot, View};

type Index = usize;
type Result<T> = std::result::Result<T, Errno>;

/// The kernel may read files of so many bytes alone.
const PASSED_THROUGH: usize = 1024 * 1024;

/// What stands behind the two views.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Views {
    /// The same plain folder: all is shown at once.
    OneFolder,
    /// Two mounts: close-to-open.
    Mounts,
}

/// What an operation gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    Failed(Errno),
    Bytes(Vec<u8>),
    /// The version of the handle, or the newer one that its mount has opened since; nothing in between.
    EitherBytes(Vec<u8>, Vec<u8>),
    Names(Vec<String>),
    Target(String),
    /// Kind and mode; length and number of names, but of folders.
    Attributes {
        kind: &'static str,
        mode: u32,
        length: Option<usize>,
        links: Option<usize>,
    },
}

impl Outcome {
    /// Whether what was got is what this promises.
    pub(crate) fn allows(&self, got: &Self) -> bool {
        match (self, got) {
            (Self::EitherBytes(one, other), Self::Bytes(got)) => got == one || got == other,
            _ => self == got,
        }
    }
}

#[derive(Debug, Clone)]
enum Kind {
    Folder(BTreeMap<u8, Index>),
    File(Content),
    Link(String),
}

/// A file's bytes as each view has them.
#[derive(Debug, Clone, Default)]
struct Content {
    committed: Vec<u8>,
    /// Unsaved writes, of one view at a time.
    unsaved: Option<(View, Vec<u8>)>,
    /// The version that a view with open handles shows.
    shown: [Vec<u8>; 2],
}

#[derive(Debug, Clone)]
struct Inode {
    kind: Kind,
    mode: u32,
    links: usize,
}

#[derive(Debug, Clone)]
struct Handle {
    inode: Index,
    access: Access,
    /// The version it was opened with, if its mount has opened a newer one since, or if the kernel may read it alone.
    older: Option<Vec<u8>>,
}

/// The model.
#[derive(Debug, Clone)]
pub(crate) struct Reference {
    views: Views,
    inodes: Vec<Inode>,
    handles: [[Option<Handle>; SLOTS]; 2],
}

impl Reference {
    pub(crate) fn new(views: Views) -> Self {
        let root = Inode { kind: Kind::Folder(BTreeMap::new()), mode: 0o755, links: 1 };
        Self { views, inodes: vec![root], handles: Default::default() }
    }

    /// What comes of it; nothing, and nothing changes, if it is none of the operations that have one answer.
    pub(crate) fn apply(&mut self, operation: &Operation) -> Option<Outcome> {
        if !self.has_one_answer(operation) {
            return None;
        }
        Some(self.result(operation).unwrap_or_else(Outcome::Failed))
    }

    /// Every path that there is, and whether it is a folder.
    pub(crate) fn paths(&self) -> Vec<(Path, bool)> {
        let mut paths = Vec::new();
        let mut left = vec![(Vec::new(), 0)];
        while let Some((path, index)) = left.pop() {
            let Kind::Folder(names) = &self.inodes[index].kind else { continue };
            for (name, index) in names {
                let below = [path.as_slice(), &[*name]].concat();
                paths.push((Path(below.clone()), matches!(self.inodes[*index].kind, Kind::Folder(_))));
                left.push((below, *index));
            }
        }
        paths
    }

    /// Whether this name is there, and as what.
    pub(crate) fn kind_of(&self, path: &[u8]) -> Option<&'static str> {
        self.find(path).ok().map(|index| self.kind_name(index))
    }

    pub(crate) fn open_slots(&self, view: View) -> Vec<Slot> {
        (0..SLOTS).filter(|slot| self.handles[view][*slot].is_some()).collect()
    }

    /// Slots in use or not are as the operation needs them, and no two views have unsaved writes to one file.
    pub(crate) fn has_one_answer(&self, operation: &Operation) -> bool {
        match operation {
            Operation::Write { view, path, .. }
            | Operation::SetLength { view, path, .. }
            | Operation::Truncate { view, path } => self.may_write(*view, path),
            Operation::Open { view, slot, path, access } => {
                let free = self.handles[*view][*slot].is_none();
                free && (*access == Access::Read || self.may_write(*view, path))
            }
            Operation::HandleRead { view, slot } => self.handles[*view][*slot].is_some(),
            Operation::HandleWrite { view, slot, .. } | Operation::HandleSetLength { view, slot, .. } => {
                self.handles[*view][*slot].as_ref().is_some_and(|handle| handle.access == Access::Write)
            }
            Operation::HandleSync { view, slot } | Operation::HandleClose { view, slot } => {
                self.handles[*view][*slot].is_some()
            }
            _ => true,
        }
    }

    fn may_write(&self, view: View, path: &[u8]) -> bool {
        let Ok(index) = self.follow(path) else { return true };
        let writes = |handle: &Handle| handle.inode == index && handle.access == Access::Write;
        self.views == Views::OneFolder || !self.handles[1 - view].iter().flatten().any(writes)
    }

    fn result(&mut self, operation: &Operation) -> Result<Outcome> {
        match operation {
            Operation::Create { path, .. } => {
                self.add(path, Kind::File(Content::default()), 0o644)?;
            }
            Operation::MakeFolder { path, .. } => {
                self.add(path, Kind::Folder(BTreeMap::new()), 0o755)?;
            }
            Operation::Symlink { path, target, .. } => {
                self.add(path, Kind::Link(target.clone()), 0o777)?;
            }
            Operation::Write { view, path, offset, bytes } => {
                let index = self.opened(*view, path)?;
                self.edit(*view, index, |content| write(content, *offset, &bytes.make()));
                self.commit(*view, index);
            }
            Operation::SetLength { view, path, length } => {
                let index = self.opened(*view, path)?;
                self.edit(*view, index, |content| content.resize(*length, 0));
                self.commit(*view, index);
            }
            Operation::Truncate { view, path } => {
                let index = self.opened(*view, path)?;
                self.edit(*view, index, Vec::clear);
                self.commit(*view, index);
            }
            Operation::Read { view, path } => {
                let index = self.opened(*view, path)?;
                return self.bytes(*view, index);
            }
            Operation::Stat { view, path } => return Ok(self.attributes(*view, self.find(path)?)),
            Operation::List { path, .. } => return self.list(path),
            Operation::ReadLink { path, .. } => match &self.inodes[self.find(path)?].kind {
                Kind::Link(target) => return Ok(Outcome::Target(target.clone())),
                _ => return Err(Errno::INVAL),
            },
            Operation::Chmod { path, mode, .. } => {
                let index = self.follow(path)?;
                self.inodes[index].mode = *mode;
            }
            Operation::Rename { from, to, .. } => self.rename(from, to)?,
            Operation::Exchange { from, to, .. } => self.exchange(from, to)?,
            Operation::Link { from, to, .. } => self.link(from, to)?,
            Operation::Unlink { path, .. } => self.unlink(path)?,
            Operation::RemoveFolder { path, .. } => self.remove_folder(path)?,
            Operation::Open { view, slot, path, access } => {
                let inode = self.opened(*view, path)?;
                let older = self.passed_through(*view, inode, *access);
                self.handles[*view][*slot] = Some(Handle { inode, access: *access, older });
            }
            Operation::HandleRead { view, slot } => {
                let handle = self.handle(*view, *slot);
                return Ok(match (self.bytes(*view, handle.inode)?, &handle.older) {
                    (Outcome::Bytes(newer), Some(older)) => Outcome::EitherBytes(older.clone(), newer),
                    (bytes, _) => bytes,
                });
            }
            Operation::HandleWrite { view, slot, offset, bytes } => {
                let index = self.handle(*view, *slot).inode;
                self.edit(*view, index, |content| write(content, *offset, &bytes.make()));
            }
            Operation::HandleSetLength { view, slot, length } => {
                let index = self.handle(*view, *slot).inode;
                self.edit(*view, index, |content| content.resize(*length, 0));
            }
            Operation::HandleSync { view, slot } => self.commit(*view, self.handle(*view, *slot).inode),
            Operation::HandleClose { view, slot } => {
                let handle = self.handles[*view][*slot].take().expect("looked at before");
                // Who only read has nothing to save, whatever others on this mount have unsaved.
                if handle.access == Access::Write {
                    self.commit(*view, handle.inode);
                }
            }
        }
        Ok(Outcome::Done)
    }

    fn handle(&self, view: View, slot: Slot) -> &Handle {
        self.handles[view][slot].as_ref().expect("looked at before")
    }

    /// A file that a view opens; from now on the view shows its newest version.
    fn opened(&mut self, view: View, path: &[u8]) -> Result<Index> {
        let index = self.follow(path)?;
        match &mut self.inodes[index].kind {
            // Reading a folder fails when it is read, which is the same for who opens and reads.
            Kind::Folder(_) => return Err(Errno::ISDIR),
            Kind::Link(_) => unreachable!("followed"),
            Kind::File(content) => match &content.unsaved {
                Some((owner, _)) if *owner == view => {}
                _ if content.shown[view] == content.committed => {}
                _ => {
                    let older = std::mem::replace(&mut content.shown[view], content.committed.clone());
                    let handles = self.handles[view].iter_mut().flatten();
                    for handle in handles.filter(|handle| handle.inode == index && handle.older.is_none()) {
                        handle.older = Some(older.clone());
                    }
                }
            },
        }
        Ok(index)
    }

    fn file(&mut self, index: Index) -> &mut Content {
        match &mut self.inodes[index].kind {
            Kind::File(content) => content,
            _ => unreachable!("opened as a file"),
        }
    }

    fn edit(&mut self, view: View, index: Index, change: impl FnOnce(&mut Vec<u8>)) {
        let views = self.views;
        let content = self.file(index);
        // A writer's base is the version that its mount shows: nobody else may write while it is open.
        let (_, mut bytes) = content.unsaved.take().unwrap_or_else(|| (view, content.committed.clone()));
        change(&mut bytes);
        content.shown[view].clone_from(&bytes);
        content.unsaved = Some((view, bytes));
        if views == Views::OneFolder {
            self.commit(view, index);
            let content = self.file(index);
            content.shown = [content.committed.clone(), content.committed.clone()];
        }
    }

    fn commit(&mut self, view: View, index: Index) {
        let content = self.file(index);
        if let Some((_, bytes)) = content.unsaved.take_if(|(owner, _)| *owner == view) {
            content.committed = bytes;
        }
    }

    /// What a handle that is opened now may read for ever: a large file that is complete in the cache is read by the
    /// kernel alone, as SEMANTICS says.
    fn passed_through(&self, view: View, index: Index, access: Access) -> Option<Vec<u8>> {
        match &self.inodes[index].kind {
            Kind::File(content) if access == Access::Read && self.views == Views::Mounts => {
                Some(content.shown[view].clone()).filter(|bytes| bytes.len() >= PASSED_THROUGH)
            }
            _ => None,
        }
    }

    fn bytes(&self, view: View, index: Index) -> Result<Outcome> {
        match &self.inodes[index].kind {
            Kind::File(content) => Ok(Outcome::Bytes(content.shown[view].clone())),
            _ => Err(Errno::ISDIR),
        }
    }

    fn kind_name(&self, index: Index) -> &'static str {
        match self.inodes[index].kind {
            Kind::Folder(_) => "folder",
            Kind::File(_) => "file",
            Kind::Link(_) => "link",
        }
    }

    fn attributes(&self, view: View, index: Index) -> Outcome {
        let inode = &self.inodes[index];
        let length = match &inode.kind {
            Kind::Folder(_) => None,
            Kind::Link(target) => Some(target.len()),
            // A view with the file open shows the version that is open there.
            Kind::File(content) if self.handles[view].iter().flatten().any(|handle| handle.inode == index) => {
                Some(content.shown[view].len())
            }
            Kind::File(content) => Some(content.committed.len()),
        };
        let links = length.map(|_| inode.links);
        Outcome::Attributes { kind: self.kind_name(index), mode: inode.mode, length, links }
    }
}

fn write(content: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    if !bytes.is_empty() {
        let end = offset + bytes.len();
        content.resize(content.len().max(end), 0);
        content[offset..end].copy_from_slice(bytes);
    }
}
