//! The kernel's calls to a tree in memory, each answered at once.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use parking_lot::Mutex;

use super::TTL;
use super::tree::{Content, Maker, Tree};

/// Flag of open(2).
const TRUNCATE: i32 = 0o1_000;

/// Everything behind one lock: nothing is done under it but to copy what is asked for.
#[derive(Default)]
pub(super) struct Writable {
    tree: Mutex<Tree>,
    listings: Mutex<Listings>,
}

/// Folders that are open, as they were when they were opened.
#[derive(Default)]
struct Listings {
    open: HashMap<u64, Arc<Vec<(OsString, FileAttr)>>>,
    last: u64,
}

fn maker(request: &Request, mode: u32) -> Maker {
    Maker { mode, uid: request.uid(), gid: request.gid() }
}

fn entry(found: Result<FileAttr, Errno>, reply: ReplyEntry) {
    match found {
        Ok(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
        Err(error) => reply.error(error),
    }
}

fn empty(done: Result<(), Errno>, reply: ReplyEmpty) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).expect("64 bits")
}

impl Writable {
    fn listing(&self, handle: FileHandle) -> Arc<Vec<(OsString, FileAttr)>> {
        self.listings.lock().open.get(&handle.0).cloned().unwrap_or_default()
    }

    fn list(&self, inode: u64) -> Result<Vec<(OsString, FileAttr)>, Errno> {
        let mut tree = self.tree.lock();
        let names: Vec<_> = tree.folder(inode)?.iter().map(|(name, inode)| (name.clone(), *inode)).collect();
        names.into_iter().map(|(name, inode)| Ok((name, tree.attributes(inode)?))).collect()
    }
}

impl Filesystem for Writable {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let wanted = InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_ATOMIC_O_TRUNC;
        let _ = config.add_capabilities(wanted);
        let _ = config.set_max_background(64);
        let _ = config.set_max_write(256 << 10);
        let _ = config.set_max_readahead(1 << 20);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let mut tree = self.tree.lock();
        let found = match tree.find(parent.0, name) {
            Ok(inode) => tree.attributes(inode),
            // Inode 0: there is no such name, and the kernel may remember that.
            Err(Errno::ENOENT) => tree.attributes(INodeNo::ROOT.0).map(|root| FileAttr { ino: INodeNo(0), ..root }),
            Err(error) => Err(error),
        };
        entry(found, reply);
    }

    fn forget(&self, _: &Request, inode: INodeNo, _: u64) {
        self.tree.lock().forget(inode.0);
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.tree.lock().attributes(inode.0) {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(error) => reply.error(error),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        inode: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        length: Option<u64>,
        accessed: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut tree = self.tree.lock();
        let mut set = || {
            if let Some(length) = length {
                tree.resize(inode.0, size(length))?;
            }
            let node = tree.node(inode.0)?;
            let now = SystemTime::now();
            let at = |time: TimeOrNow| match time {
                TimeOrNow::SpecificTime(time) => time,
                TimeOrNow::Now => now,
            };
            let own = &mut node.attributes;
            own.perm = mode.map_or(own.perm, |mode| u16::try_from(mode & 0o7_777).expect("twelve bits"));
            own.uid = uid.unwrap_or(own.uid);
            own.gid = gid.unwrap_or(own.gid);
            own.atime = accessed.map_or(own.atime, at);
            own.mtime = modified.map_or(own.mtime, at);
            own.ctime = now;
            Ok(node.attributes())
        };
        match set() {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(error) => reply.error(error),
        }
    }

    fn readlink(&self, _: &Request, inode: INodeNo, reply: ReplyData) {
        match self.tree.lock().link_target(inode.0) {
            Ok(target) => reply.data(target.as_os_str().as_bytes()),
            Err(error) => reply.error(error),
        }
    }

    fn mkdir(&self, who: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        let folder = Content::Folder(BTreeMap::new());
        entry(self.tree.lock().make(parent.0, name, folder, maker(who, mode)), reply);
    }

    fn mknod(&self, who: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, _: u32, reply: ReplyEntry) {
        entry(self.tree.lock().make(parent.0, name, Content::File(Vec::new()), maker(who, mode)), reply);
    }

    fn symlink(&self, who: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        entry(self.tree.lock().make(parent.0, name, Content::Symlink(target.to_owned()), maker(who, 0o777)), reply);
    }

    fn link(&self, _: &Request, inode: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        entry(self.tree.lock().link(inode.0, parent.0, name), reply);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(self.tree.lock().remove(parent.0, name), reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(self.tree.lock().remove(parent.0, name), reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        // Programs that ask for more than a plain rename do without where it is refused.
        match flags.is_empty() {
            true => empty(self.tree.lock().rename((parent.0, name), (new_parent.0, new_name)), reply),
            false => reply.error(Errno::EINVAL),
        }
    }

    fn create(&self, who: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, _: i32, reply: ReplyCreate) {
        match self.tree.lock().make(parent.0, name, Content::File(Vec::new()), maker(who, mode)) {
            Ok(made) => reply.created(&TTL, &made, Generation(0), FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE),
            Err(error) => reply.error(error),
        }
    }

    fn open(&self, _: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let cut = match flags.0 & TRUNCATE != 0 {
            true => self.tree.lock().resize(inode.0, 0),
            false => Ok(()),
        };
        match cut {
            Ok(()) => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE),
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.tree.lock().file(inode.0) {
            Ok(bytes) => {
                let start = size(offset).min(bytes.len());
                let end = size(offset.saturating_add(length.into())).min(bytes.len());
                reply.data(&bytes[start..end]);
            }
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.tree.lock().write(inode.0, size(offset), data) {
            Ok(()) => reply.written(u32::try_from(data.len()).expect("at most a request's bytes")),
            Err(error) => reply.error(error),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn opendir(&self, _: &Request, inode: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.list(inode.0) {
            Ok(listing) => {
                let mut listings = self.listings.lock();
                listings.last += 1;
                let handle = listings.last;
                listings.open.insert(handle, Arc::new(listing));
                reply.opened(FileHandle(handle), FopenFlags::empty());
            }
            Err(error) => reply.error(error),
        }
    }

    fn readdir(&self, _: &Request, _: INodeNo, handle: FileHandle, cursor: u64, mut reply: ReplyDirectory) {
        for (at, (name, attributes)) in self.listing(handle).iter().enumerate().skip(size(cursor)) {
            if reply.add(attributes.ino, at as u64 + 1, attributes.kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(&self, _: &Request, _: INodeNo, handle: FileHandle, cursor: u64, mut reply: ReplyDirectoryPlus) {
        for (at, (name, attributes)) in self.listing(handle).iter().enumerate().skip(size(cursor)) {
            if reply.add(attributes.ino, at as u64 + 1, name, &TTL, attributes, Generation(0)) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.listings.lock().open.remove(&handle.0);
        reply.ok();
    }
}
