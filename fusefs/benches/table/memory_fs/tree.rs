//! **PURE** apart from the clock: names and files in memory.
//!
//! Invariant: an inode has as many links as names, and goes when it has none and the kernel forgets it.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use fuser::{Errno, FileAttr, FileType, INodeNo};

/// What there is; the root is always there.
pub(super) struct Tree {
    nodes: HashMap<u64, Node>,
    last: u64,
}

pub(super) struct Node {
    pub(super) attributes: FileAttr,
    pub(super) content: Content,
}

pub(super) enum Content {
    File(Vec<u8>),
    Folder(BTreeMap<OsString, u64>),
    Symlink(PathBuf),
}

/// Who makes something, and with which mode.
#[derive(Clone, Copy)]
pub(super) struct Maker {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Default for Tree {
    fn default() -> Self {
        let mut tree = Self { nodes: HashMap::new(), last: INodeNo::ROOT.0 };
        let root = node(INodeNo::ROOT.0, Content::Folder(BTreeMap::new()), Maker { mode: 0o755, uid: 0, gid: 0 });
        tree.nodes.insert(INodeNo::ROOT.0, root);
        tree
    }
}

impl Tree {
    pub(super) fn node(&mut self, inode: u64) -> Result<&mut Node, Errno> {
        self.nodes.get_mut(&inode).ok_or(Errno::ESTALE)
    }

    pub(super) fn attributes(&mut self, inode: u64) -> Result<FileAttr, Errno> {
        self.node(inode).map(|node| node.attributes())
    }

    pub(super) fn folder(&mut self, inode: u64) -> Result<&mut BTreeMap<OsString, u64>, Errno> {
        match &mut self.node(inode)?.content {
            Content::Folder(names) => Ok(names),
            _ => Err(Errno::ENOTDIR),
        }
    }

    pub(super) fn file(&mut self, inode: u64) -> Result<&mut Vec<u8>, Errno> {
        match &mut self.node(inode)?.content {
            Content::File(bytes) => Ok(bytes),
            _ => Err(Errno::EINVAL),
        }
    }

    pub(super) fn link_target(&mut self, inode: u64) -> Result<&Path, Errno> {
        match &self.node(inode)?.content {
            Content::Symlink(target) => Ok(target),
            _ => Err(Errno::EINVAL),
        }
    }

    pub(super) fn find(&mut self, parent: u64, name: &OsStr) -> Result<u64, Errno> {
        self.folder(parent)?.get(name).copied().ok_or(Errno::ENOENT)
    }

    pub(super) fn make(
        &mut self,
        parent: u64,
        name: &OsStr,
        content: Content,
        maker: Maker,
    ) -> Result<FileAttr, Errno> {
        let inode = self.last + 1;
        self.enter(parent, name, inode)?;
        self.last = inode;
        let made = node(inode, content, maker);
        let attributes = made.attributes();
        self.nodes.insert(inode, made);
        Ok(attributes)
    }

    pub(super) fn link(&mut self, inode: u64, parent: u64, name: &OsStr) -> Result<FileAttr, Errno> {
        self.enter(parent, name, inode)?;
        let node = self.node(inode)?;
        node.attributes.nlink += 1;
        node.attributes.ctime = SystemTime::now();
        Ok(node.attributes())
    }

    fn enter(&mut self, parent: u64, name: &OsStr, inode: u64) -> Result<(), Errno> {
        let names = self.folder(parent)?;
        if names.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        names.insert(name.to_owned(), inode);
        self.changed(parent)
    }

    fn changed(&mut self, folder: u64) -> Result<(), Errno> {
        let attributes = &mut self.node(folder)?.attributes;
        attributes.mtime = SystemTime::now();
        attributes.ctime = attributes.mtime;
        Ok(())
    }

    /// Take a name away, of a file or of a folder that is empty.
    pub(super) fn remove(&mut self, parent: u64, name: &OsStr) -> Result<(), Errno> {
        let inode = self.find(parent, name)?;
        self.let_go(inode)?;
        self.folder(parent)?.remove(name);
        self.changed(parent)
    }

    fn let_go(&mut self, inode: u64) -> Result<(), Errno> {
        let node = self.node(inode)?;
        if matches!(&node.content, Content::Folder(names) if !names.is_empty()) {
            return Err(Errno::ENOTEMPTY);
        }
        node.attributes.nlink -= 1;
        node.attributes.ctime = SystemTime::now();
        Ok(())
    }

    pub(super) fn rename(&mut self, from: (u64, &OsStr), to: (u64, &OsStr)) -> Result<(), Errno> {
        let inode = self.find(from.0, from.1)?;
        match self.find(to.0, to.1) {
            Ok(there) if there == inode => return Ok(()),
            Ok(there) => self.let_go(there)?,
            Err(_) => {}
        }
        self.folder(to.0)?.insert(to.1.to_owned(), inode);
        self.folder(from.0)?.remove(from.1);
        self.changed(from.0)?;
        self.changed(to.0)
    }

    pub(super) fn write(&mut self, inode: u64, offset: usize, data: &[u8]) -> Result<(), Errno> {
        let bytes = self.file(inode)?;
        let overlap = bytes.len().saturating_sub(offset).min(data.len());
        if offset > bytes.len() {
            bytes.resize(offset, 0);
        }
        bytes[offset..offset + overlap].copy_from_slice(&data[..overlap]);
        bytes.extend_from_slice(&data[overlap..]);
        self.changed(inode)
    }

    pub(super) fn resize(&mut self, inode: u64, size: usize) -> Result<(), Errno> {
        self.file(inode)?.resize(size, 0);
        self.changed(inode)
    }

    pub(super) fn forget(&mut self, inode: u64) {
        if self.nodes.get(&inode).is_some_and(|node| node.attributes.nlink == 0) {
            self.nodes.remove(&inode);
        }
    }
}

impl Node {
    pub(super) fn attributes(&self) -> FileAttr {
        let size = match &self.content {
            Content::File(bytes) => bytes.len() as u64,
            Content::Symlink(target) => target.as_os_str().len() as u64,
            Content::Folder(_) => 0,
        };
        FileAttr { size, blocks: size.div_ceil(512), ..self.attributes }
    }
}

fn node(inode: u64, content: Content, maker: Maker) -> Node {
    let now = SystemTime::now();
    let kind = match &content {
        Content::File(_) => FileType::RegularFile,
        Content::Folder(_) => FileType::Directory,
        Content::Symlink(_) => FileType::Symlink,
    };
    let attributes = FileAttr {
        ino: INodeNo(inode),
        size: 0,
        blocks: 0,
        atime: now,
        mtime: now,
        ctime: now,
        crtime: now,
        kind,
        perm: u16::try_from(maker.mode & 0o7_777).expect("twelve bits"),
        nlink: 1,
        uid: maker.uid,
        gid: maker.gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    };
    Node { attributes, content }
}
