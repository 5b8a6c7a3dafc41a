//! **PURE.** The operations, as they are asked for.

use bytes::Bytes;
use swarm_proto::{Fault, InodeNumber, ManifestDigest};

use crate::namespace::{Content, Device, ExtendedName, Name, Node, Refusal};

/// Of the mode of what runs with its owner's rights.
const SET_USER_ID: u16 = 0o4000;
/// The same of its group; of a directory whose group goes to what is made in it.
pub(super) const SET_GROUP_ID: u16 = 0o2000;
/// The group may execute it.
const GROUP_EXECUTES: u16 = 0o0010;

/// Permissions, owner and time of something that is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ownership {
    /// Permission bits, 0 to 07777.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Nanoseconds since 1970; also when it was accessed.
    pub modified_ns: i64,
    /// Whether the directory that it is made in has a say.
    pub inherit: Inherit,
}

/// What something that is made takes from a directory with the set-group-id bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inherit {
    /// Nothing.
    Nothing,
    /// Its group, and a directory the bit too.
    Group,
}

/// A file's new content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewContent {
    /// What the publisher says that the size is.
    pub size: u64,
    /// A manifest that is known. None: an empty file.
    pub manifest: Option<Described>,
}

/// A manifest, and what it says of its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Described {
    /// The manifest.
    pub digest: ManifestDigest,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Those that are not holes.
    pub data_bytes: u64,
}

/// A new content for an inode, by somebody who has it open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileWrite {
    /// Only this version is replaced.
    pub base_version: u64,
    /// The content.
    pub content: NewContent,
    /// When it was written, by the writer's clock, as the two below.
    pub modified_ns: i64,
    /// Last change of anything; one that is later stays.
    pub changed_ns: i64,
    /// If it is to change.
    pub accessed_ns: Option<i64>,
    /// As a write does.
    pub set_id: SetId,
}

/// What happens to a file's set-id bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SetId {
    /// They stay.
    #[default]
    Keep,
    /// The one of the user goes, and the one of the group if the group may execute the file; without that, it is a
    /// mark for locks.
    Clear,
}

/// What is done to an extended attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExtendedChange {
    /// Set it, whether it is there or not.
    Set(Bytes),
    /// Set it; refuse if it is there.
    Create(Bytes),
    /// Set it; refuse if it is not there.
    Replace(Bytes),
    /// Remove it; refuse if it is not there.
    Remove,
}

/// What to do if a published name exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfExists {
    /// Refuse.
    Fail,
    /// Give whatever file is there the new content.
    Replace,
    /// Only if the file has this version; if there is none, that is stale too.
    ReplaceVersion(u64),
}

/// How a rename treats its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameMode {
    /// As rename(2) does.
    Replace,
    /// Refuse if there is one.
    NoReplace,
    /// Swap the two.
    Exchange,
}

/// An entry: where it is, and its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct At {
    /// The directory.
    pub parent: InodeNumber,
    /// The name in it.
    pub name: Name,
}

/// One change of the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// mkdir(2).
    MakeDirectory(At, Ownership),
    /// symlink(2), with its target.
    MakeSymlink(At, Ownership, Bytes),
    /// mknod(2): mkfifo(3), bind(2) of a socket, or a device.
    MakeSpecial(At, Ownership, Special),
    /// Create a file with its content, or give an existing one a new content.
    PublishFile(At, Ownership, NewContent, IfExists),
    /// Give a file, which may have lost its last name, a new content.
    WriteFile(InodeNumber, FileWrite),
    /// chmod(2), chown(2), utimensat(2).
    SetAttributes(InodeNumber, Attributes),
    /// setxattr(2), removexattr(2).
    SetExtended(InodeNumber, ExtendedName, ExtendedChange),
    /// unlink(2).
    Unlink(At),
    /// rmdir(2).
    RemoveDirectory(At),
    /// renameat2(2).
    Rename(At, At, RenameMode),
    /// link(2).
    Link(InodeNumber, At),
}

/// What a special file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A device.
    Device(Device),
}

/// Attributes to set; what is None stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits, 0 to 07777.
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Nanoseconds since 1970, as the one below.
    pub modified_ns: Option<i64>,
    /// When it was read.
    pub accessed_ns: Option<i64>,
    /// What happens to the set-id bits, before `mode` is set.
    pub set_id: SetId,
}

impl SetId {
    /// What is done to a file; others keep what they have.
    pub(super) fn apply(self, node: &mut Node) {
        if self == Self::Keep || node.content().is_none() {
            return;
        }
        node.mode &= !SET_USER_ID;
        if node.mode & GROUP_EXECUTES != 0 {
            node.mode &= !SET_GROUP_ID;
        }
    }
}

impl NewContent {
    /// As an inode has it, in this version.
    ///
    /// Errors: EINVAL if the size is not the manifest's.
    pub(super) fn checked(&self) -> Result<impl FnOnce(u64) -> Content + use<>, Refusal> {
        let real = self.manifest.map_or(0, |described| described.file_bytes);
        if self.size != real {
            let message = format!("a size of {} bytes, where the manifest has {real}", self.size);
            return Err(Refusal::new(Fault::Invalid, message));
        }
        // The manifest of no bytes is no manifest: all empty files look alike.
        let described = self.manifest.filter(|described| described.file_bytes > 0);
        Ok(move |version| Content {
            size: real,
            allocated: described.map_or(0, |described| described.data_bytes),
            version,
            manifest: described.map(|described| described.digest),
        })
    }
}
