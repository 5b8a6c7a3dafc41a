//! Decodes and answers what changes the content of files.

use std::ffi::OsStr;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use fuser::{
    FileHandle, FopenFlags, INodeNo, OpenFlags, ReplyCreate, ReplyEmpty, ReplyOpen, ReplyWrite, Request, WriteFlags,
};
use swarm_proto::ByteRange;

use super::changing::{is_status, maker};
use super::convert::{GENERATION, errno};
use super::{Operations, id_of, limited, status_file};
use crate::errno::Errno;
use crate::fs::open_files::{Backing, Mode, Opened};
use crate::fs::{FileSystem, Reserve, Writer};
use crate::write::unsaved::At;

/// A save goes on as long as it gets on: each of its waits has an end of its own.
pub(super) const SAVE_LIMIT: Duration = Duration::from_secs(24 * 3_600);

/// Flags of open(2).
mod flag {
    pub(super) const ACCESS: i32 = 0o3;
    pub(super) const WRITE_ONLY: i32 = 0o1;
    pub(super) const EXCLUSIVE: i32 = 0o200;
    pub(super) const TRUNCATE: i32 = 0o1_000;
    pub(super) const APPEND: i32 = 0o2_000;
    /// O_DIRECT, where it is this: elsewhere it only means that such a handle is passed through.
    pub(super) const DIRECT: i32 = 0o40_000;
    /// O_DSYNC, which O_SYNC has too.
    pub(super) const DATA_SYNC: i32 = 0o10_000;
    /// What the kernel adds where it opens a program to run it.
    pub(super) const EXECUTE: i32 = 0o40;
}

/// Flags of fallocate(2).
mod allocate {
    pub(super) const KEEP_SIZE: i32 = 1;
    pub(super) const PUNCH_HOLE: i32 = 2;
    pub(super) const ZERO_RANGE: i32 = 16;
}

impl Operations {
    pub(super) fn open_to_write(&self, request: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if inode == status_file::INODE {
            return reply.error(fuser::Errno::EPERM);
        }
        let (fs, inode) = (self.fs.clone(), self.numbers.to_catalog(inode));
        let (truncate, limit) = (truncates(flags), self.metadata_limit() * 2);
        if flags.0 & flag::ACCESS == 0 && fs.is_run(inode) {
            // The kernel says so too, but only after this was answered and its pages are gone from under the program.
            return reply.error(fuser::Errno::ETXTBSY);
        }
        let (thread, user) = (request.pid(), request.uid());
        let task = async move {
            let back = |file: &File| Ok(Arc::new(reply.open_backing(file)?) as Backing);
            let work = async {
                let opened = fs.open_to_write(inode, thread, truncate, writer(flags.0), back).await?;
                // The kernel asks for it as well, in a word that does not reach us.
                if truncate && user != 0 && fs.may_have_set_id(inode) {
                    fs.clear_set_id(inode).await.inspect_err(|_| fs.release(opened.handle))?;
                }
                Ok(opened)
            };
            match limited(&fs, "open", limit, work).await {
                Err(error) => reply.error(error),
                Ok(opened) => {
                    fs.count_open(&opened);
                    let Opened { handle, mode, .. } = opened;
                    match mode {
                        Mode::Cached { keep_pages } => reply.opened(FileHandle(handle), how(flags.0, keep_pages)),
                        Mode::Direct(backing) => {
                            reply.opened_passthrough(FileHandle(handle), FopenFlags::FOPEN_DIRECT_IO, id_of(&backing));
                        }
                        Mode::Passthrough(backing) => {
                            reply.opened_passthrough(FileHandle(handle), how_passed(flags.0), id_of(&backing));
                        }
                    }
                }
            }
        };
        self.tasks.spawn_on(task, &self.runtimes.names);
    }

    pub(super) fn create_file(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        (mode, flags): (u32, i32),
        reply: ReplyCreate,
    ) {
        if is_status(parent, name) {
            return reply.error(fuser::Errno::EPERM);
        }
        let (numbers, fs) = (self.numbers, self.fs.clone());
        let (maker, (parent, name)) = (maker(request, mode), self.place(parent, name));
        let limit = self.metadata_limit();
        let task = async move {
            let back = |file: &File| Ok(Arc::new(reply.open_backing(file)?) as Backing);
            let work = fs.create(parent, name, maker, writer(flags), back);
            let (found, opened) = match limited(&fs, "create", limit, work).await {
                Ok(made) => made,
                // Somebody else made it since the kernel was told that there is nothing. It is to be opened, which the
                // kernel does with what it finds there now, once it knows who may.
                Err(fuser::Errno::EEXIST) if flags & flag::EXCLUSIVE == 0 => return reply.error(fuser::Errno::ESTALE),
                Err(error) => return reply.error(error),
            };
            let Some(node) = found.node else { return reply.error(fuser::Errno::EIO) };
            fs.count_open(&opened);
            let (handle, attributes) = (FileHandle(opened.handle), numbers.attributes(&node));
            match opened.mode {
                Mode::Cached { keep_pages } => {
                    reply.created(&found.keep, &attributes, GENERATION, handle, how(flags, keep_pages));
                }
                Mode::Passthrough(backing) => {
                    let flags = how_passed(flags);
                    reply.created_passthrough(&found.keep, &attributes, GENERATION, handle, flags, id_of(&backing));
                }
                // Somebody here has opened what was made just now, and writes it by the kernel.
                Mode::Direct(backing) => {
                    let flags = FopenFlags::FOPEN_DIRECT_IO;
                    reply.created_passthrough(&found.keep, &attributes, GENERATION, handle, flags, id_of(&backing));
                }
            }
        };
        self.tasks.spawn_on(task, &self.runtimes.names);
    }

    pub(super) fn write_bytes(
        &self,
        inode: INodeNo,
        offset: u64,
        bytes: &[u8],
        how: WriteFlags,
        flags: OpenFlags,
        reply: ReplyWrite,
    ) {
        let inode = self.numbers.to_catalog(inode);
        let at = if flags.0 & flag::APPEND != 0 { At::End } else { At::Offset(offset) };
        // Past its cache, the kernel leaves it to us to take the set-id bits away, and says whose writes do.
        if how.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID) && self.fs.may_have_set_id(inode) {
            let (fs, bytes) = (self.fs.clone(), bytes.to_vec());
            let work = async move {
                fs.clear_set_id(inode).await?;
                fs.write(inode, at, &bytes, offset)
            };
            return self.answer("write", self.metadata_limit() * 2, work, |written| match written {
                Ok(written) => reply.written(written),
                Err(error) => reply.error(error),
            });
        }
        // On this thread: the bytes lie in its buffer, and the spool's disk takes them as fast as a copy would.
        let done = {
            let _within = self.runtimes.names.enter();
            self.fs.write(inode, at, bytes, offset)
        };
        match done {
            Ok(written) => reply.written(written),
            Err(error) => {
                self.fs.counters().failures.with_label_values(&["write"]).inc();
                reply.error(errno(error));
            }
        }
    }

    pub(super) fn flush_file(&self, inode: INodeNo, handle: FileHandle, reply: ReplyEmpty) {
        let inode = self.numbers.to_catalog(inode);
        self.save("flush", reply, async move |fs| {
            fs.flush(inode).await?;
            fs.check_stores(handle.0)
        });
    }

    pub(super) fn sync_file(&self, inode: INodeNo, handle: FileHandle, reply: ReplyEmpty) {
        let inode = self.numbers.to_catalog(inode);
        self.save("fsync", reply, async move |fs| {
            fs.sync(inode).await?;
            fs.check_stores(handle.0)
        });
    }

    fn save<F>(
        &self,
        operation: &'static str,
        reply: ReplyEmpty,
        how: impl FnOnce(Arc<FileSystem>) -> F + Send + 'static,
    ) where
        F: Future<Output = Result<(), Errno>> + Send + 'static,
    {
        let work = how(self.fs.clone());
        self.answer_at_once(&self.runtimes.names, operation, SAVE_LIMIT, work, |done| match done {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        });
    }

    pub(super) fn allocate(&self, inode: INodeNo, range: (u64, u64), mode: i32, reply: ReplyEmpty) {
        let reserve = match mode {
            0 => Reserve::Within,
            allocate::KEEP_SIZE => Reserve::Nothing,
            mode if mode == allocate::PUNCH_HOLE | allocate::KEEP_SIZE => Reserve::Punch,
            allocate::ZERO_RANGE => Reserve::Zero,
            mode if mode == allocate::ZERO_RANGE | allocate::KEEP_SIZE => Reserve::Punch,
            _ => return reply.error(fuser::Errno::EOPNOTSUPP),
        };
        let Some(end) = range.0.checked_add(range.1) else { return reply.error(fuser::Errno::EFBIG) };
        let range = ByteRange { start: range.0, end };
        match self.fs.reserve(self.numbers.to_catalog(inode), range, reserve) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(error)),
        }
    }

    pub(super) fn copy_range(&self, from: (INodeNo, u64), to: (INodeNo, u64), length: u64, reply: ReplyWrite) {
        /// Most bytes of one answer, which counts in 32 bits; a multiple of any block.
        const MOST: u64 = 1 << 31;
        let (fs, numbers) = (self.fs.clone(), self.numbers);
        let work = async move {
            let (from, to) = ((numbers.to_catalog(from.0), from.1), (numbers.to_catalog(to.0), to.1));
            fs.copy_range(from, to, length.min(MOST)).await
        };
        self.answer("copy_file_range", SAVE_LIMIT, work, |copied| match copied {
            Ok(copied) => reply.written(u32::try_from(copied).unwrap_or(u32::MAX)),
            Err(error) => reply.error(error),
        });
    }
}

/// How the kernel treats a handle that it passes through. With O_DIRECT, writes would run beside each other, and ask for
/// buffers and offsets that the disk likes: they come to the daemon.
pub(super) fn how_passed(flags: i32) -> FopenFlags {
    match flags & flag::DIRECT != 0 {
        true => FopenFlags::FOPEN_DIRECT_IO,
        false => FopenFlags::empty(),
    }
}

/// What a handle with these flags may do.
/// Whether an open empties the file, which one that only reads may do too.
pub(super) fn truncates(flags: OpenFlags) -> bool {
    flags.0 & flag::TRUNCATE != 0
}

/// Whether a program is to be run.
pub(super) fn executes(flags: OpenFlags) -> bool {
    flags.0 & flag::EXECUTE != 0
}

fn writer(flags: i32) -> Writer {
    match flags & flag::ACCESS == flag::WRITE_ONLY {
        false => Writer::Reads,
        true if flags & (flag::DIRECT | flag::DATA_SYNC) != 0 => Writer::Uncached,
        true => Writer::Plain,
    }
}

/// How the kernel treats the pages of a handle that writes.
///
/// Through its cache it sends one write in several requests where a page is not there yet; between two of them the first
/// part could be saved, and another mount's append come behind it. So a handle that appends writes without the cache.
fn how(flags: i32, keep_pages: bool) -> FopenFlags {
    match (flags & flag::APPEND != 0, keep_pages) {
        (true, _) => FopenFlags::FOPEN_DIRECT_IO,
        (false, true) => FopenFlags::FOPEN_KEEP_CACHE,
        (false, false) => FopenFlags::empty(),
    }
}
