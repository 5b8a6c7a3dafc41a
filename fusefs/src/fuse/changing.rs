//! Decodes and answers what changes names, attributes and extended attributes.
//!
//! The file that says how the mount is cannot be changed: its name in the root is taken, and whoever tries is told
//! EPERM.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use bytes::Bytes;
use std::time::{SystemTime, UNIX_EPOCH};

use fuser::{INodeNo, RenameFlags, ReplyAttr, ReplyEmpty, ReplyEntry, ReplyXattr, Request, TimeOrNow};
use swarm_proto::InodeNumber;

use super::{Operations, errno, status_file};
use crate::errno::Errno;
use crate::fs::{self, ExtendedMode, Found, Maker, NewAttributes, RenameMode, ResizedBy, Special, When};

/// The bits of a mode that say what kind of thing it is, and those kinds that mknod(2) makes.
mod kind {
    pub(super) const MASK: u32 = 0o170_000;
    pub(super) const FIFO: u32 = 0o010_000;
    pub(super) const CHARACTER_DEVICE: u32 = 0o020_000;
    pub(super) const BLOCK_DEVICE: u32 = 0o060_000;
    pub(super) const FILE: u32 = 0o100_000;
    pub(super) const SOCKET: u32 = 0o140_000;
}

/// A symlink lets everybody follow it.
const SYMLINK_MODE: u32 = 0o777;
/// Flags of setxattr(2).
const XATTR_CREATE: i32 = 1;
const XATTR_REPLACE: i32 = 2;

/// What setattr(2)'s many relatives want to set.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub(super) mode: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) size: Option<u64>,
    /// The size is that of an open file.
    pub(super) by_handle: bool,
    pub(super) accessed: Option<TimeOrNow>,
    pub(super) modified: Option<TimeOrNow>,
}

/// Which call removes a name.
#[derive(Debug, Clone, Copy)]
pub(super) enum Removal {
    Unlink,
    RemoveDirectory,
}

impl Operations {
    pub(super) fn make_node(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        device: u32,
        reply: ReplyEntry,
    ) {
        let device = u64::from(device);
        let special = match mode & kind::MASK {
            0 | kind::FILE => None,
            kind::FIFO => Some(Special::Fifo),
            kind::SOCKET => Some(Special::Socket),
            kind::CHARACTER_DEVICE => Some(Special::CharacterDevice(device)),
            kind::BLOCK_DEVICE => Some(Special::BlockDevice(device)),
            _ => return reply.error(fuser::Errno::EINVAL),
        };
        let maker = maker(request, mode);
        self.make("mknod", parent, name, reply, async move |fs, parent, name| match special {
            None => fs.make_file(parent, name, maker).await,
            Some(special) => fs.make_special(parent, name, maker, special).await,
        });
    }

    pub(super) fn make_directory(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        reply: ReplyEntry,
    ) {
        let maker = maker(request, mode);
        self.make("mkdir", parent, name, reply, async move |fs, parent, name| {
            fs.make_directory(parent, name, maker).await
        });
    }

    pub(super) fn make_symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let maker = maker(request, SYMLINK_MODE);
        let target = Bytes::copy_from_slice(target.as_os_str().as_bytes());
        self.make("symlink", parent, name, reply, async move |fs, parent, name| {
            fs.make_symlink(parent, name, maker, target).await
        });
    }

    pub(super) fn make_link(&self, (inode, thread): (INodeNo, u32), parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if inode == status_file::INODE {
            return reply.error(fuser::Errno::EPERM);
        }
        let inode = self.numbers.to_catalog(inode);
        self.make("link", parent, name, reply, async move |fs, parent, name| {
            fs.link(inode, thread, parent, name).await
        });
    }

    /// Make a name by `how`, and answer what it names.
    fn make<F>(
        &self,
        operation: &'static str,
        parent: INodeNo,
        name: &OsStr,
        reply: ReplyEntry,
        how: impl FnOnce(std::sync::Arc<fs::FileSystem>, InodeNumber, Bytes) -> F + Send + 'static,
    ) where
        F: Future<Output = Result<Found, Errno>> + Send + 'static,
    {
        if is_status(parent, name) {
            return reply.error(fuser::Errno::EPERM);
        }
        let (numbers, place) = (self.numbers, self.place(parent, name));
        let work = how(self.fs.clone(), place.0, place.1);
        self.answer(operation, self.metadata_limit(), work, move |found| Self::entry(numbers, found, reply));
    }

    pub(super) fn remove(&self, removal: Removal, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        if is_status(parent, name) {
            return reply.error(fuser::Errno::EPERM);
        }
        let (fs, (parent, name)) = (self.fs.clone(), self.place(parent, name));
        match removal {
            Removal::RemoveDirectory => {
                let work = async move { fs.remove_directory(parent, name).await };
                self.answer("rmdir", self.metadata_limit(), work, |done| empty(done, reply));
            }
            Removal::Unlink => {
                let work = async move { fs.unlink(parent, name).await };
                self.answer("unlink", self.metadata_limit(), work, |done| empty(done, reply));
            }
        }
    }

    pub(super) fn move_name(
        &self,
        from: (INodeNo, &OsStr),
        to: (INodeNo, &OsStr),
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mode = match flags {
            _ if flags.is_empty() => RenameMode::Replace,
            RenameFlags::RENAME_NOREPLACE => RenameMode::NoReplace,
            RenameFlags::RENAME_EXCHANGE => RenameMode::Exchange,
            _ => return reply.error(fuser::Errno::EINVAL),
        };
        if is_status(from.0, from.1) || is_status(to.0, to.1) {
            return reply.error(fuser::Errno::EPERM);
        }
        let (fs, from, to) = (self.fs.clone(), self.place(from.0, from.1), self.place(to.0, to.1));
        let work = async move { fs.rename(from, to, mode).await };
        self.answer("rename", self.metadata_limit(), work, |done| empty(done, reply));
    }

    pub(super) fn set_attributes(&self, inode: INodeNo, wanted: Wanted, reply: ReplyAttr) {
        if inode == status_file::INODE {
            return reply.error(fuser::Errno::EPERM);
        }
        let (fs, numbers, inode) = (self.fs.clone(), self.numbers, self.numbers.to_catalog(inode));
        let new = NewAttributes {
            mode: wanted.mode,
            uid: wanted.uid,
            gid: wanted.gid,
            accessed: wanted.accessed.map(when),
            modified: wanted.modified.map(when),
        };
        let limit = match wanted.size {
            Some(_) => super::writing::SAVE_LIMIT,
            None => self.metadata_limit(),
        };
        let by = if wanted.by_handle { ResizedBy::Handle } else { ResizedBy::Name };
        let work = async move {
            if let Some(size) = wanted.size {
                fs.resize(inode, size, by).await?;
            }
            match new == NewAttributes::default() {
                true => fs.attributes(inode).await,
                false => fs.set_attributes(inode, new).await,
            }
        };
        self.answer("setattr", limit, work, move |found| match found {
            Ok(Found { node: Some(node), keep }) => reply.attr(&keep, &numbers.attributes(&node)),
            Ok(Found { node: None, .. }) => reply.error(fuser::Errno::ESTALE),
            Err(error) => reply.error(error),
        });
    }

    pub(super) fn set_extended(&self, inode: INodeNo, name: &OsStr, value: &[u8], flags: i32, reply: ReplyEmpty) {
        // The kernel then asks never again.
        if !self.xattr {
            return reply.error(fuser::Errno::ENOSYS);
        }
        let mode = match flags {
            0 => ExtendedMode::Set,
            XATTR_CREATE => ExtendedMode::Create,
            XATTR_REPLACE => ExtendedMode::Replace,
            _ => return reply.error(fuser::Errno::EINVAL),
        };
        if inode == status_file::INODE {
            return reply.error(fuser::Errno::EPERM);
        }
        let (fs, inode) = (self.fs.clone(), self.numbers.to_catalog(inode));
        let (name, value) = (Bytes::copy_from_slice(name.as_bytes()), Bytes::copy_from_slice(value));
        let work = async move { fs.set_extended(inode, name, value, mode).await };
        self.answer("setxattr", self.metadata_limit(), work, |done| empty(done, reply));
    }

    pub(super) fn remove_extended(&self, inode: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        if !self.xattr {
            return reply.error(fuser::Errno::ENOSYS);
        }
        if inode == status_file::INODE {
            return reply.error(fuser::Errno::EPERM);
        }
        let (fs, inode) = (self.fs.clone(), self.numbers.to_catalog(inode));
        let name = Bytes::copy_from_slice(name.as_bytes());
        let work = async move { fs.remove_extended(inode, name).await };
        self.answer("removexattr", self.metadata_limit(), work, |done| empty(done, reply));
    }

    pub(super) fn get_extended(&self, inode: INodeNo, name: &OsStr, room: u32, reply: ReplyXattr) {
        // `ls -l`, which asks twice for every file, is then as fast as it can be.
        if !self.xattr {
            return reply.error(fuser::Errno::ENOSYS);
        }
        if inode == status_file::INODE || !name.as_bytes().starts_with(fs::USER_PREFIX) {
            return reply.error(errno(Errno::NODATA));
        }
        let (fs, inode) = (self.fs.clone(), self.numbers.to_catalog(inode));
        let name = name.to_owned();
        let work = async move { fs.attribute(inode, name.as_bytes()).await };
        self.answer("getxattr", self.metadata_limit(), work, move |value| value_reply(value.as_deref(), room, reply));
    }

    pub(super) fn list_extended(&self, inode: INodeNo, room: u32, reply: ReplyXattr) {
        if !self.xattr {
            return reply.error(fuser::Errno::ENOSYS);
        }
        if inode == status_file::INODE {
            return value_reply(Ok(b""), room, reply);
        }
        let (fs, inode) = (self.fs.clone(), self.numbers.to_catalog(inode));
        if let Some(names) = fs.attribute_names_known(inode) {
            return value_reply(Ok(&names), room, reply);
        }
        let work = async move { fs.attribute_names(inode).await };
        self.answer("listxattr", self.metadata_limit(), work, move |names| value_reply(names.as_deref(), room, reply));
    }

    pub(super) fn sync_names(&self, inode: INodeNo, reply: ReplyEmpty) {
        let (fs, inode) = (self.fs.clone(), self.numbers.to_catalog(inode));
        let work = async move { fs.sync_names(inode).await };
        self.answer("fsyncdir", self.metadata_limit(), work, |done| empty(done, reply));
    }

    pub(super) fn place(&self, parent: INodeNo, name: &OsStr) -> (InodeNumber, Bytes) {
        (self.numbers.to_catalog(parent), Bytes::copy_from_slice(name.as_bytes()))
    }
}

/// Whether a name is that of the file which says how the mount is.
pub(super) fn is_status(parent: INodeNo, name: &OsStr) -> bool {
    parent == INodeNo::ROOT && name == status_file::NAME
}

/// Who asks, and the permission bits of what is made.
pub(super) fn maker(request: &Request, mode: u32) -> Maker {
    Maker { uid: request.uid(), gid: request.gid(), mode }
}

fn when(time: TimeOrNow) -> When {
    match time {
        TimeOrNow::Now => When::Now,
        TimeOrNow::SpecificTime(time) => When::At(nanoseconds(time)),
    }
}

/// fuser takes the nanoseconds of a time before 1970 off, where the kernel means them added.
fn nanoseconds(time: SystemTime) -> i64 {
    match UNIX_EPOCH.duration_since(time) {
        Ok(before) => fs::nanoseconds(time).saturating_add(2 * i64::from(before.subsec_nanos())),
        Err(_) => fs::nanoseconds(time),
    }
}

fn empty(done: Result<(), fuser::Errno>, reply: ReplyEmpty) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

/// As getxattr(2) and listxattr(2) want it: the length for a caller without room, else all of it.
fn value_reply(value: Result<&[u8], &fuser::Errno>, room: u32, reply: ReplyXattr) {
    match value {
        Err(error) => reply.error(*error),
        Ok(value) => match u32::try_from(value.len()) {
            Ok(length) if room == 0 => reply.size(length),
            Ok(length) if length <= room => reply.data(value),
            _ => reply.error(fuser::Errno::ERANGE),
        },
    }
}
