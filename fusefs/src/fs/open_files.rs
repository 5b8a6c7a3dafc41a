//! The files that are open, and what the kernel may do with their pages.
//!
//! Invariants:
//! * while any handle of an inode is open, the kernel has at most one backing file for it, and either
//!   passes reads through to that or caches pages, never both (it would refuse with EIO);
//! * all handles of an inode read the newest version that was opened on this mount, except those that
//!   the kernel passes through, which stay with theirs;
//! * an open keeps the pages that the kernel has only if they are of the very version it opens;
//! * a version that somebody has stored into, by a map of it, is passed through to nobody who opens it after that.

mod stores;

use std::any::Any;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;
use swarm_proto::InodeNumber;

use super::content::{OpenContent, Version};
use super::node::Node;
use stores::Whole;

/// Inodes of whose pages the version is remembered; for others an open drops them.
const PAGES_REMEMBERED: NonZeroUsize = NonZeroUsize::new(64 * 1024).expect("not zero");

/// What the kernel holds of a backing file; it ends when this is dropped.
pub type Backing = Arc<dyn Any + Send + Sync>;

/// How the kernel reads through a handle.
#[derive(Clone)]
pub enum Mode {
    /// Through its page cache.
    Cached {
        /// The pages that it has are of this version.
        keep_pages: bool,
    },
    /// From the backing file, with no daemon in the way; to it, by a handle that writes.
    Passthrough(Backing),
    /// Each read and write comes to the daemon, because the inode's backing file, which the kernel must be named all
    /// the same, is an older version or a file of the spool. A map of such a handle shows that older version: the kernel maps
    /// nothing else while another handle is passed through.
    Direct(Backing),
}

/// An open file.
pub struct Opened {
    /// Its handle.
    pub handle: u64,
    /// What the kernel may do.
    pub mode: Mode,
    /// Attributes that the kernel has are of another version.
    pub attributes_changed: bool,
    /// It was opened to write to it.
    pub to_write: bool,
}

/// What to read through a handle.
pub enum Reading {
    /// This.
    Content(Arc<dyn OpenContent>),
    /// A newer version was opened since: open that and [`OpenFiles::renew`].
    Renew {
        /// Which.
        version: Version,
        /// Its number.
        number: u64,
    },
}

struct OpenInode {
    node: Arc<Node>,
    version: Version,
    handles: usize,
    cached: usize,
    passthrough: Option<Passthrough>,
}

struct Passthrough {
    backing: Backing,
    of: Backed,
    /// Where it is a file of the cache.
    whole: Option<Whole>,
    /// Of both kinds: the kernel keeps the backing file until the last one is closed.
    handles: usize,
}

struct Handle {
    inode: InodeNumber,
    content: Arc<dyn OpenContent>,
    version: u64,
    how: How,
    /// It was open while somebody stored into a file of the cache by a map, and not read by the kernel itself.
    may_have_stored: bool,
}

/// What a backing file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backed {
    /// All of this version.
    Version(u64),
    /// What is being written.
    Spool,
}

enum How {
    Cached,
    Passthrough,
    Direct,
}

/// All open files of a mount.
pub struct OpenFiles {
    inner: Mutex<Inner>,
}

struct Inner {
    inodes: HashMap<InodeNumber, OpenInode>,
    handles: HashMap<u64, Handle>,
    next_handle: u64,
    pages: LruCache<InodeNumber, u64>,
    /// Why the kernel may not pass reads through; none while it may.
    no_passthrough: Option<String>,
    /// Why it may not pass writes through; none while it may.
    no_passed_writes: Option<String>,
}

impl OpenFiles {
    /// None open. `no_passthrough`, `no_passed_writes`: why the kernel may not read cache files, and write files of the
    /// spool, by itself, if it may not.
    pub fn new(no_passthrough: Option<String>, no_passed_writes: Option<String>) -> Self {
        Self {
            inner: Mutex::new(Inner {
                inodes: HashMap::new(),
                handles: HashMap::new(),
                next_handle: 1,
                pages: LruCache::new(PAGES_REMEMBERED),
                no_passthrough,
                no_passed_writes,
            }),
        }
    }

    /// Open a file at the version that is current.
    ///
    /// Shape: `back` gives a complete cache file to the kernel; if it refuses, pages are cached, and it is
    ///        not asked again. `joins`: whether a file of the spool that the kernel has is what is opened.
    pub fn open(
        &self,
        node: Arc<Node>,
        version: Version,
        content: Arc<dyn OpenContent>,
        joins: impl FnOnce() -> bool,
        back: impl FnOnce(&File) -> io::Result<Backing>,
    ) -> Opened {
        self.open_for(Backed::Version(node.version), node, version, content.clone(), joins, || {
            let file = content.complete_file()?;
            let whole = Whole::new(file.clone());
            Some(back(&file).map(|backing| (backing, Some(whole))))
        })
    }

    /// Open a file to write to it. It is passed through only if the first handle of its inode is.
    ///
    /// Shape: `joins` as [`Self::open`] has it. `pass` gives an empty file of the spool to the kernel, if it is time for
    ///        that; if it refuses, it is not asked again.
    pub fn open_to_write(
        &self,
        node: Arc<Node>,
        version: Version,
        content: Arc<dyn OpenContent>,
        joins: impl FnOnce() -> bool,
        pass: impl FnOnce() -> Option<io::Result<Backing>>,
    ) -> Opened {
        self.open_for(Backed::Spool, node, version, content, joins, || Some(pass()?.map(|backing| (backing, None))))
    }

    fn open_for(
        &self,
        wanted: Backed,
        node: Arc<Node>,
        version: Version,
        content: Arc<dyn OpenContent>,
        joins: impl FnOnce() -> bool,
        back: impl FnOnce() -> Option<io::Result<(Backing, Option<Whole>)>>,
    ) -> Opened {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let inode = node.inode;
        let stored_to = inner.look_for_stores(inode);
        let number = node.version;
        let entry = inner.inodes.entry(inode).or_insert_with(|| OpenInode {
            node: node.clone(),
            version: version.clone(),
            handles: 0,
            cached: 0,
            passthrough: None,
        });
        let attributes_changed = entry.handles > 0 && entry.node.version < number;
        if entry.node.version <= number {
            entry.node = node;
            entry.version = version;
        }
        // Where a newer version was opened meanwhile, the first read renews this handle.
        let newest = entry.node.version;
        let (forbidden, is_taken) = match wanted {
            Backed::Version(_) => (&mut inner.no_passthrough, entry.cached > 0),
            Backed::Spool => (&mut inner.no_passed_writes, entry.handles > 0),
        };
        let how = match &mut entry.passthrough {
            Some(_) if stored_to => How::Direct,
            Some(passthrough) if passthrough.of == wanted && wanted == Backed::Version(newest) => How::Passthrough,
            // The kernel's pages would not be those that it writes: splice(2) of a handle in direct mode reads them.
            Some(passthrough) if passthrough.of == Backed::Spool && joins() => How::Passthrough,
            Some(_) => How::Direct,
            None if is_taken || number != newest || forbidden.is_some() => How::Cached,
            None => match back() {
                None => How::Cached,
                Some(Ok((backing, whole))) => {
                    entry.passthrough = Some(Passthrough { backing, of: wanted, whole, handles: 0 });
                    How::Passthrough
                }
                Some(Err(error)) => {
                    let reason = why_refused(&error);
                    tracing::info!(reason, ?wanted, "the kernel reads or writes no files by itself");
                    *forbidden = Some(reason);
                    How::Cached
                }
            },
        };
        if matches!((&how, wanted), (How::Passthrough, Backed::Spool)) {
            // It drops them, and has no others before the last handle is closed.
            inner.pages.pop(&inode);
        }
        entry.handles += 1;
        let mode = match (&how, &mut entry.passthrough) {
            (How::Passthrough, Some(passthrough)) => {
                passthrough.handles += 1;
                Mode::Passthrough(passthrough.backing.clone())
            }
            (How::Direct, Some(passthrough)) => {
                passthrough.handles += 1;
                Mode::Direct(passthrough.backing.clone())
            }
            _ => {
                entry.cached += 1;
                Mode::Cached { keep_pages: inner.pages.put(inode, newest) == Some(newest) }
            }
        };
        let handle = inner.next_handle;
        inner.next_handle += 1;
        inner.handles.insert(handle, Handle { inode, content, version: number, how, may_have_stored: false });
        Opened { handle, mode, attributes_changed, to_write: wanted == Backed::Spool }
    }

    /// What to read through a handle; none if there is no such handle.
    pub fn reading(&self, handle: u64) -> Option<Reading> {
        let inner = self.inner.lock();
        let open = inner.handles.get(&handle)?;
        let entry = inner.inodes.get(&open.inode)?;
        Some(match open.version == entry.node.version {
            true => Reading::Content(open.content.clone()),
            false => Reading::Renew { version: entry.version.clone(), number: entry.node.version },
        })
    }

    /// Whether the kernel may have pages of this very version.
    pub fn has_pages(&self, inode: InodeNumber, version: u64) -> bool {
        self.inner.lock().pages.peek(&inode) == Some(&version)
    }

    /// The kernel was not told that it opened a file, and keeps pages of whatever version.
    pub fn forget_pages(&self, inode: InodeNumber) {
        self.inner.lock().pages.pop(&inode);
    }

    /// Which inode a handle is of.
    pub fn inode_of(&self, handle: u64) -> Option<InodeNumber> {
        Some(self.inner.lock().handles.get(&handle)?.inode)
    }

    /// This mount has saved a version of a file that it had open at `base`: all handles read it from now on, and what
    /// the kernel has of the file is of it.
    pub fn saved(&self, node: Arc<Node>, version: Version, base: u64) {
        let mut inner = self.inner.lock();
        let (inode, number) = (node.inode, node.version);
        if let Some(entry) = inner.inodes.get_mut(&inode)
            && entry.node.version < number
        {
            entry.node = node;
            entry.version = version;
        }
        if inner.pages.peek(&inode) == Some(&base) {
            inner.pages.put(inode, number);
        }
    }

    /// From now on the handle reads `content`, which is version `number`.
    pub fn renew(&self, handle: u64, content: Arc<dyn OpenContent>, number: u64) {
        if let Some(open) = self.inner.lock().handles.get_mut(&handle)
            && open.version < number
        {
            open.version = number;
            open.content = content;
        }
    }

    /// What is open of an inode: its attributes and content as the handles see them.
    pub fn opened(&self, inode: InodeNumber) -> Option<(Arc<Node>, Version)> {
        self.inner.lock().inodes.get(&inode).map(|entry| (entry.node.clone(), entry.version.clone()))
    }

    /// An inode as a process on this mount shall see it: while it is open, with the size and times of the
    /// version that is read, so that the kernel does not cut or stretch what it reads.
    pub fn as_seen(&self, node: Arc<Node>) -> Arc<Node> {
        match self.inner.lock().inodes.get(&node.inode) {
            Some(entry) if entry.node.version != node.version => {
                let opened = &entry.node;
                Arc::new(Node {
                    size: opened.size,
                    modified_ns: opened.modified_ns,
                    content: opened.content,
                    version: opened.version,
                    ..(*node).clone()
                })
            }
            _ => node,
        }
    }

    /// Close a handle; the inode and the version that was read if it was its last one.
    pub fn release(&self, handle: u64) -> Option<Arc<Node>> {
        let mut inner = self.inner.lock();
        let open = inner.handles.remove(&handle)?;
        let entry = inner.inodes.get_mut(&open.inode)?;
        entry.handles -= 1;
        match open.how {
            How::Cached => entry.cached -= 1,
            How::Direct | How::Passthrough => {
                if let Some(passthrough) = &mut entry.passthrough {
                    passthrough.handles -= 1;
                    if passthrough.handles == 0 {
                        entry.passthrough = None;
                    }
                }
            }
        }
        match entry.handles {
            0 => inner.inodes.remove(&open.inode).map(|entry| entry.node),
            _ => None,
        }
    }

    /// Handles that are open.
    pub fn count(&self) -> usize {
        self.inner.lock().handles.len()
    }

    /// The kernel may not read cache files by itself; the first reason stays.
    pub fn forbid_passthrough(&self, reason: &str) {
        let mut inner = self.inner.lock();
        inner.no_passthrough.get_or_insert_with(|| reason.to_owned());
        inner.no_passed_writes.get_or_insert_with(|| reason.to_owned());
    }

    /// Why the kernel does not write files of the spool by itself; none while it does.
    pub fn no_passed_writes(&self) -> Option<String> {
        self.inner.lock().no_passed_writes.clone()
    }

    /// Why the kernel does not read cache files by itself; none while it does.
    pub fn no_passthrough(&self) -> Option<String> {
        self.inner.lock().no_passthrough.clone()
    }
}

fn why_refused(error: &io::Error) -> String {
    match error.raw_os_error().map(crate::errno::Errno::from_raw_os_error) {
        Some(crate::errno::Errno::PERM) => "the kernel allows it only to root (CAP_SYS_ADMIN)".to_owned(),
        Some(crate::errno::Errno::LOOP) => "the folder lies on a stacked file system (overlayfs)".to_owned(),
        Some(crate::errno::Errno::OPNOTSUPP | crate::errno::Errno::NOTTY) => "the kernel cannot do it".to_owned(),
        _ => format!("the kernel refused a file: {error}"),
    }
}

#[cfg(test)]
mod tests;
