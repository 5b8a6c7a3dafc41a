//! The kernel's protocol: decode, call `fs`, reply. This module alone knows `fuser`.
//!
//! What can be answered from memory is answered on the kernel's thread; everything else moves into a task
//! and has a deadline, so no call blocks these threads and every call ends.

mod changing;
mod convert;
mod session;
pub(crate) mod status_file;
mod writing;

pub use session::{Session, SessionConfig};

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use fuser::{
    BackingId, BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, FopenFlags, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    TimeOrNow, WriteFlags,
};
use tokio::runtime::Handle;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::errno::Errno;
use crate::fs::open_files::{Backing, Mode};
use crate::fs::{FileSystem, Found, Page, Whence};
use changing::{Removal, Wanted};
use convert::{GENERATION, Numbers, errno, file_type};

/// Requests of the kernel's readahead that wait for us at once.
const MAX_BACKGROUND: u16 = 64;
/// Longest request: more the kernel does not send. Its readahead for a reader of 128 KiB at a time, as `cat` is,
/// goes in multiples of this, so that no request lies across two of the runs in which we fetch: those would have
/// to be put together.
const MAX_REQUEST_BYTES: u32 = 256 * 1024;
/// How far the kernel reads ahead by itself.
const KERNEL_READAHEAD_BYTES: u32 = 1024 * 1024;
/// Given to a task beyond the deadline of what it does, so that its own error is the one that is seen.
const GRACE: Duration = Duration::from_millis(500);
/// Block in which `df` counts.
const CAPACITY_BLOCK: u64 = 64 * 1024;

/// The operations of one mount.
struct Operations {
    fs: Arc<FileSystem>,
    numbers: Numbers,
    runtimes: Runtimes,
    tasks: TaskTracker,
    /// Whether there are extended attributes.
    xattr: bool,
    status: status_file::StatusFile,
}

/// Where operations run.
#[derive(Debug, Clone)]
pub struct Runtimes {
    /// Reading, on all cores.
    pub reading: Handle,
    /// All else: a question to the tracker is no work, only a chain of tasks that wake each other, and each change of
    /// thread on the way costs as much as all of them. So it has one thread, as has the connection to the tracker.
    pub names: Handle,
}

impl Operations {
    /// Do `work` in a task, for at most `limit`, and `reply`.
    fn answer<T: Send + 'static>(
        &self,
        operation: &'static str,
        limit: Duration,
        work: impl Future<Output = Result<T, Errno>> + Send + 'static,
        reply: impl FnOnce(Result<T, fuser::Errno>) + Send + 'static,
    ) {
        self.tasks.spawn_on(self.concluded(operation, limit, work, reply), &self.runtimes.names);
    }

    /// The same, but here and now if it waits for nothing. A task costs two changes of thread, which is more
    /// than most reads of what is in memory; but what is begun here and goes on there costs three.
    fn answer_at_once<T: Send + 'static>(
        &self,
        runtime: &Handle,
        operation: &'static str,
        limit: Duration,
        work: impl Future<Output = Result<T, Errno>> + Send + 'static,
        reply: impl FnOnce(Result<T, fuser::Errno>) + Send + 'static,
    ) {
        Self::at_once(&self.tasks, runtime, self.concluded(operation, limit, work, reply));
    }

    fn at_once(tasks: &TaskTracker, runtime: &Handle, work: impl Future<Output = ()> + Send + 'static) {
        let mut work = Box::pin(work);
        // A task that panics ends alone; this thread has others to answer. The request gets EIO either way, from
        // its reply that is dropped.
        let begun = catch_unwind(AssertUnwindSafe(|| {
            let _within = runtime.enter();
            work.as_mut().poll(&mut Context::from_waker(Waker::noop()))
        }));
        match begun {
            Ok(Poll::Pending) => drop(tasks.spawn_on(work, runtime)),
            Ok(Poll::Ready(())) => {}
            Err(_) => tracing::error!("an operation panicked: this is a bug; it was answered with EIO"),
        }
    }

    /// `work` for at most `limit`, counted if it fails, and its `reply`.
    fn concluded<T: Send + 'static>(
        &self,
        operation: &'static str,
        limit: Duration,
        work: impl Future<Output = Result<T, Errno>> + Send + 'static,
        reply: impl FnOnce(Result<T, fuser::Errno>) + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static {
        let fs = self.fs.clone();
        async move { reply(limited(&fs, operation, limit, work).await) }
    }

    fn metadata_limit(&self) -> Duration {
        self.fs.config().metadata_timeout
    }

    fn entry(numbers: Numbers, found: Result<Found, fuser::Errno>, reply: ReplyEntry) {
        match found {
            Ok(Found { node: Some(node), keep }) => reply.entry(&keep, &numbers.attributes(&node), GENERATION),
            // Inode 0: there is no such name, and the kernel may remember that.
            Ok(Found { node: None, keep }) => reply.entry(&keep, &convert::absent(), GENERATION),
            Err(error) => reply.error(error),
        }
    }
}

impl Filesystem for Operations {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let wanted = InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_ATOMIC_O_TRUNC
            | InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP;
        for flag in wanted.iter() {
            // An older kernel lacks some: all of them only make things fast.
            let _ = config.add_capabilities(flag);
        }
        let _ = config.set_max_background(MAX_BACKGROUND);
        let _ = config.set_max_write(MAX_REQUEST_BYTES);
        if let Err(most) = config.set_max_readahead(KERNEL_READAHEAD_BYTES) {
            let _ = config.set_max_readahead(most);
        }
        match config.add_capabilities(InitFlags::FUSE_PASSTHROUGH) {
            Ok(()) => {
                let _ = config.set_max_stack_depth(1);
            }
            Err(_) => self.fs.forbid_passthrough("the kernel cannot do it (it is older than 6.9)"),
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent == INodeNo::ROOT && name == status_file::NAME {
            return reply.entry(&Duration::ZERO, &status_file::attributes(), GENERATION);
        }
        let (numbers, parent) = (self.numbers, self.numbers.to_catalog(parent));
        if let Some(found) = self.fs.lookup_known(parent, name.as_bytes()) {
            return Self::entry(numbers, found.map_err(errno), reply);
        }
        let (fs, name) = (self.fs.clone(), Bytes::copy_from_slice(name.as_bytes()));
        self.answer("lookup", self.metadata_limit(), async move { fs.lookup(parent, name).await }, move |found| {
            Self::entry(numbers, found, reply);
        });
    }

    // Nothing to do: inode numbers are those of the catalog, which are never used again, and what is
    // remembered of them is bounded by itself.
    fn forget(&self, _: &Request, _: INodeNo, _: u64) {}

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        if inode == status_file::INODE {
            return reply.attr(&Duration::ZERO, &status_file::attributes());
        }
        let (numbers, inode) = (self.numbers, self.numbers.to_catalog(inode));
        let answer = move |found: Result<Found, fuser::Errno>| match found {
            Ok(Found { node: Some(node), keep }) => reply.attr(&keep, &numbers.attributes(&node)),
            Ok(Found { node: None, .. }) => reply.error(fuser::Errno::ESTALE),
            Err(error) => reply.error(error),
        };
        match self.fs.attributes_known(inode) {
            Some(found) => answer(Ok(found)),
            None => {
                let fs = self.fs.clone();
                self.answer("getattr", self.metadata_limit(), async move { fs.attributes(inode).await }, answer);
            }
        }
    }

    fn readlink(&self, _: &Request, inode: INodeNo, reply: ReplyData) {
        let (fs, inode) = (self.fs.clone(), self.numbers.to_catalog(inode));
        self.answer(
            "readlink",
            self.metadata_limit(),
            async move { fs.link_target(inode).await },
            |target| match target {
                Ok(target) => reply.data(&target),
                Err(error) => reply.error(error),
            },
        );
    }

    fn open(&self, request: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.acc_mode() != OpenAccMode::O_RDONLY || writing::truncates(flags) {
            return self.open_to_write(request, inode, flags, reply);
        }
        if inode == status_file::INODE {
            let handle = self.status.open(self.fs.status_text());
            return reply.opened(handle, FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH);
        }
        let (fs, inode) = (self.fs.clone(), self.numbers.to_catalog(inode));
        let (leased, thread) = (fs.is_leased(inode), request.pid());
        // A file may need two questions: one for the inode, one for a large manifest.
        let limit = self.metadata_limit() * 2;
        let task = async move {
            let back = |file: &std::fs::File| Ok(Arc::new(reply.open_backing(file)?) as Backing);
            match timeout(limit + GRACE, fs.open(inode, thread, back)).await.unwrap_or(Err(Errno::TIMEDOUT)) {
                Err(error) => {
                    if error != Errno::STALE {
                        fs.counters().failures.with_label_values(&["open"]).inc();
                    }
                    reply.error(errno(error));
                }
                Ok(opened) => {
                    fs.count_open(&opened);
                    if writing::executes(flags) {
                        fs.runs(opened.handle);
                    }
                    let handle = FileHandle(opened.handle);
                    match opened.mode {
                        Mode::Cached { keep_pages } => {
                            let keep = if keep_pages { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::empty() };
                            reply.opened(handle, keep | FopenFlags::FOPEN_NOFLUSH);
                        }
                        Mode::Direct(backing) => {
                            let flags = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH;
                            reply.opened_passthrough(handle, flags, id_of(&backing));
                        }
                        Mode::Passthrough(backing) => {
                            let flags = writing::how_passed(flags.0) | FopenFlags::FOPEN_NOFLUSH;
                            reply.opened_passthrough(handle, flags, id_of(&backing));
                        }
                    }
                }
            }
        };
        match leased {
            true => Self::at_once(&self.tasks, &self.runtimes.names, task),
            false => drop(self.tasks.spawn_on(task, &self.runtimes.names)),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if let Some(text) = self.status.text(handle) {
            return reply.data(status_file::part(&text, offset, size));
        }
        let fs = self.fs.clone();
        let limit = fs.config().read_timeout;
        let work = async move { fs.read(handle.0, offset, size).await };
        self.answer_at_once(&self.runtimes.reading, "read", limit, work, |bytes| match bytes {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(error),
        });
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        if !self.status.release(handle) {
            let _within = self.runtimes.names.enter();
            self.fs.release(handle.0);
        }
        reply.ok();
    }

    fn flush(&self, _: &Request, inode: INodeNo, handle: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.flush_file(inode, handle, reply);
    }

    fn fsync(&self, _: &Request, inode: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        self.sync_file(inode, handle, reply);
    }

    fn opendir(&self, _: &Request, inode: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let handle = self.fs.open_directory(self.numbers.to_catalog(inode));
        reply.opened(FileHandle(handle), FopenFlags::empty());
    }

    fn readdir(&self, _: &Request, _: INodeNo, handle: FileHandle, cursor: u64, mut reply: ReplyDirectory) {
        let numbers = self.numbers;
        let answer = move |page: Result<Page, fuser::Errno>| match page {
            Ok(page) => {
                for (next, entry) in page.entries() {
                    let (inode, name) = numbers.entry(&page, &entry);
                    if reply.add(inode, next, file_type(entry.kind()), OsStr::from_bytes(name)) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(error),
        };
        self.page(handle, cursor, answer);
    }

    fn readdirplus(&self, _: &Request, _: INodeNo, handle: FileHandle, cursor: u64, mut reply: ReplyDirectoryPlus) {
        let (numbers, fs) = (self.numbers, self.fs.clone());
        let answer = move |page: Result<Page, fuser::Errno>| match page {
            Ok(page) => {
                for (next, entry) in page.entries() {
                    let (inode, name) = numbers.entry(&page, &entry);
                    let (attributes, keep) = match entry {
                        crate::fs::Entry::Named(name, listed) => {
                            let (node, keep) = fs.entry_now(page.directory, name, listed);
                            (numbers.attributes(&node), keep)
                        }
                        // The kernel takes only number and kind of these two.
                        _ => (convert::directory(inode), Duration::ZERO),
                    };
                    if reply.add(inode, next, OsStr::from_bytes(name), &keep, &attributes, GENERATION) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(error),
        };
        self.page(handle, cursor, answer);
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.fs.close_directory(handle.0);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, inode: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.sync_names(inode, reply);
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let fs = self.fs.clone();
        self.answer("statfs", self.metadata_limit(), async move { fs.capacity().await }, |capacity| match capacity {
            Ok(capacity) => {
                let blocks = capacity.capacity_bytes / CAPACITY_BLOCK;
                let free = capacity.free_bytes / CAPACITY_BLOCK;
                let block = u32::try_from(CAPACITY_BLOCK).expect("64 KiB");
                // Inode numbers do not run out: as many as anybody asks for are free, beside those in use.
                let free_inodes = u64::from(u32::MAX);
                let inodes = capacity.inodes.saturating_add(free_inodes);
                reply.statfs(blocks, free, free, inodes, free_inodes, block, 255, block);
            }
            Err(error) => reply.error(error),
        });
    }

    fn getxattr(&self, _: &Request, inode: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.get_extended(inode, name, size, reply);
    }

    fn listxattr(&self, _: &Request, inode: INodeNo, size: u32, reply: ReplyXattr) {
        self.list_extended(inode, size, reply);
    }

    fn setxattr(&self, _: &Request, inode: INodeNo, name: &OsStr, value: &[u8], flags: i32, _: u32, reply: ReplyEmpty) {
        self.set_extended(inode, name, value, flags, reply);
    }

    fn removexattr(&self, _: &Request, inode: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove_extended(inode, name, reply);
    }

    fn lseek(&self, _: &Request, inode: INodeNo, _: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let (fs, inode) = (self.fs.clone(), self.numbers.to_catalog(inode));
        let Some(whence) = convert::whence(whence) else { return reply.error(fuser::Errno::EINVAL) };
        // As behind the end: there is neither data nor a hole.
        let Ok(offset) = u64::try_from(offset) else { return reply.error(errno(Errno::NXIO)) };
        self.answer("lseek", self.metadata_limit(), async move { seek(&fs, inode, offset, whence).await }, |found| {
            match found {
                Ok(offset) => reply.offset(offset),
                Err(error) => reply.error(error),
            }
        });
    }

    fn setattr(
        &self,
        _: &Request,
        inode: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        accessed: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
        // The time of the last change of anything is the tracker's, and the others are not Linux's.
        _: Option<SystemTime>,
        handle: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.set_attributes(
            inode,
            Wanted { mode, uid, gid, size, by_handle: handle.is_some(), accessed, modified },
            reply,
        );
    }

    fn mknod(&self, who: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, device: u32, reply: ReplyEntry) {
        self.make_node(who, parent, name, mode, device, reply);
    }

    fn mkdir(&self, who: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        self.make_directory(who, parent, name, mode, reply);
    }

    fn symlink(&self, who: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        self.make_symlink(who, parent, name, target, reply);
    }

    fn link(&self, request: &Request, inode: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.make_link((inode, request.pid()), parent, name, reply);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove(Removal::Unlink, parent, name, reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove(Removal::RemoveDirectory, parent, name, reply);
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
        self.move_name((parent, name), (new_parent, new_name), flags, reply);
    }

    fn create(&self, who: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, flags: i32, reply: ReplyCreate) {
        self.create_file(who, parent, name, (mode, flags), reply);
    }

    fn write(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        how: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.write_bytes(inode, offset, data, how, flags, reply);
    }

    fn fallocate(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.allocate(inode, (offset, length), mode, reply);
    }

    fn copy_file_range(
        &self,
        _: &Request,
        from: INodeNo,
        _: FileHandle,
        from_offset: u64,
        to: INodeNo,
        _: FileHandle,
        to_offset: u64,
        length: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.copy_range((from, from_offset), (to, to_offset), length, reply);
    }
}

impl Operations {
    /// A page of a directory, at once or from a task.
    fn page(&self, handle: FileHandle, cursor: u64, answer: impl FnOnce(Result<Page, fuser::Errno>) + Send + 'static) {
        if let Some(page) = self.fs.page_known(handle.0, cursor) {
            return answer(Ok(page));
        }
        let fs = self.fs.clone();
        let work = async move { fs.page_at(handle.0, cursor).await };
        self.answer("readdir", self.metadata_limit(), work, answer);
    }
}

/// `work` for at most `limit`, counted if it fails.
async fn limited<T>(
    fs: &FileSystem,
    operation: &'static str,
    limit: Duration,
    work: impl Future<Output = Result<T, Errno>>,
) -> Result<T, fuser::Errno> {
    let outcome = timeout(limit + GRACE, work).await.unwrap_or(Err(Errno::TIMEDOUT));
    if let Err(error) = &outcome
        && !is_ordinary(*error)
    {
        fs.counters().failures.with_label_values(&[operation]).inc();
    }
    outcome.map_err(errno)
}

/// Whether an error says something of the names and files that are asked about, and not that something is wrong.
fn is_ordinary(error: Errno) -> bool {
    matches!(
        error,
        Errno::NOENT
            | Errno::NODATA
            | Errno::STALE
            | Errno::NXIO
            | Errno::EXIST
            | Errno::NOTEMPTY
            | Errno::NOTDIR
            | Errno::ISDIR
            | Errno::NAMETOOLONG
            | Errno::INVAL
            | Errno::PERM
            | Errno::OPNOTSUPP
            | Errno::MLINK
    )
}

fn id_of(backing: &Backing) -> &BackingId {
    backing.downcast_ref().expect("open makes nothing else")
}

async fn seek(fs: &FileSystem, inode: swarm_proto::InodeNumber, offset: u64, whence: Whence) -> Result<i64, Errno> {
    let found = fs.seek(inode, offset, whence).await?;
    i64::try_from(found).map_err(|_| Errno::OVERFLOW)
}

#[cfg(test)]
mod tests;
