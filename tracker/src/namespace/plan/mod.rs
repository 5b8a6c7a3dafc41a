//! **PURE.** What each operation writes, or why it is refused.
//!
//! Every rule that POSIX states for names is stated in the file of its family, and nowhere else. A plan
//! checks everything first and writes last, so a refused operation leaves nothing behind.

mod attributes;
mod link;
mod make;
mod publish;
mod reclaim;
mod remove;
mod rename;
mod write;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use bytes::Bytes;
use swarm_proto::{Fault, InodeNumber, ManifestDigest};

use super::{Body, Content, Draft, Extended, ExtendedName, Name, NameWrite, Node, Refusal, Relied};

pub use super::{Device, DeviceKind};
pub use reclaim::reclaim;

/// Numbers that were never used for anything.
#[derive(Debug, Clone)]
pub struct Fresh(std::ops::Range<u64>);

impl Fresh {
    /// Most numbers that one operation takes.
    pub const A_PLAN: u64 = 1;

    /// These numbers.
    pub fn new(numbers: std::ops::Range<u64>) -> Self {
        Self(numbers)
    }

    /// How many are left.
    pub fn left(&self) -> u64 {
        self.0.end.saturating_sub(self.0.start)
    }

    /// Those that were not taken.
    pub fn into_range(self) -> std::ops::Range<u64> {
        self.0
    }

    /// One that nobody gets again.
    pub fn take(&mut self) -> Result<u64, Refusal> {
        self.0.next().ok_or_else(|| Refusal::new(Fault::Unavailable, "no fresh inode numbers are leased"))
    }
}

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

/// What an operation will do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Planned {
    /// What must not have changed until it is done.
    pub relied: Vec<Relied>,
    /// What it writes; each record at most once.
    pub writes: Vec<NameWrite>,
    /// The inode that it made or changed, as it then is; None for removals.
    pub node: Option<(InodeNumber, Node)>,
}

/// Plan one operation on what the draft shows.
///
/// Errors: the errno of POSIX as a [`Fault`]; an inode number that is unknown is [`Fault::Stale`].
/// Cost:   O(log entries); a rename of a directory O(depth).
pub fn plan(draft: &Draft<'_>, operation: &Operation, now_ns: i64, fresh: &mut Fresh) -> Result<Planned, Refusal> {
    let mut plan = Plan { draft, now_ns, nodes: BTreeMap::new(), done: Planned::default() };
    let result = match operation {
        Operation::MakeDirectory(at, ownership) => make::directory(&mut plan, at, ownership, fresh).map(Some),
        Operation::MakeSymlink(at, ownership, target) => {
            make::symlink(&mut plan, at, ownership, target, fresh).map(Some)
        }
        Operation::MakeSpecial(at, ownership, special) => {
            make::special(&mut plan, at, ownership, *special, fresh).map(Some)
        }
        Operation::PublishFile(at, ownership, content, if_exists) => {
            publish::file(&mut plan, at, ownership, *content, *if_exists, fresh).map(Some)
        }
        Operation::WriteFile(inode, write) => write::file(&mut plan, *inode, write, fresh).map(Some),
        Operation::SetAttributes(inode, attributes) => attributes::set(&mut plan, *inode, attributes).map(Some),
        Operation::SetExtended(inode, name, change) => {
            attributes::set_extended(&mut plan, *inode, name, change).map(Some)
        }
        Operation::Unlink(at) => remove::unlink(&mut plan, at).map(|()| None),
        Operation::RemoveDirectory(at) => remove::directory(&mut plan, at).map(|()| None),
        Operation::Rename(from, to, mode) => rename::rename(&mut plan, from, to, *mode).map(Some),
        Operation::Link(inode, at) => link::link(&mut plan, *inode, at).map(Some),
    };
    let inode = result?;
    Ok(plan.finish(inode))
}

/// Of the mode of what runs with its owner's rights.
const SET_USER_ID: u16 = 0o4000;
/// The same of its group; of a directory whose group goes to what is made in it.
const SET_GROUP_ID: u16 = 0o2000;
/// The group may execute it.
const GROUP_EXECUTES: u16 = 0o0010;

impl SetId {
    /// What is done to a file; others keep what they have.
    fn apply(self, node: &mut Node) {
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
    fn checked(&self) -> Result<impl FnOnce(u64) -> Content + use<>, Refusal> {
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

/// A plan in the making.
struct Plan<'p, 'd> {
    draft: &'p Draft<'d>,
    now_ns: i64,
    /// Inodes that were read, and whether they changed.
    nodes: BTreeMap<InodeNumber, (Option<Node>, Touch)>,
    done: Planned,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Touch {
    Read,
    Changed,
}

impl Plan<'_, '_> {
    /// An inode that must exist.
    fn node(&mut self, inode: InodeNumber) -> Result<&Node, Refusal> {
        let gone = || Refusal::new(Fault::Stale, format!("inode {inode} is gone"));
        if !self.nodes.contains_key(&inode) {
            let node = self.draft.node(inode).cloned().ok_or_else(gone)?;
            self.done.relied.push(Relied::Node(inode));
            self.nodes.insert(inode, (Some(node), Touch::Read));
        }
        self.nodes.get(&inode).and_then(|(node, _)| node.as_ref()).ok_or_else(gone)
    }

    /// A directory that must exist.
    fn directory(&mut self, inode: InodeNumber) -> Result<(), Refusal> {
        match self.node(inode)?.is_directory() {
            true => Ok(()),
            false => Err(Refusal::new(Fault::NotDirectory, format!("inode {inode} is not a directory"))),
        }
    }

    /// What an entry names, if it exists; its directory must.
    fn find(&mut self, at: &At) -> Result<Option<InodeNumber>, Refusal> {
        self.directory(at.parent)?;
        let found = self.draft.entry(at.parent, &at.name);
        self.done.relied.push(match found {
            Some(_) => Relied::Entry(at.parent, at.name.clone()),
            None => Relied::NoEntry(at.parent, at.name.clone()),
        });
        Ok(found)
    }

    /// What an entry names; it must exist.
    fn existing(&mut self, at: &At) -> Result<InodeNumber, Refusal> {
        self.find(at)?.ok_or_else(|| Refusal::new(Fault::NotFound, format!("{:?} does not exist", at.name)))
    }

    /// An entry that must not exist.
    fn free(&mut self, at: &At) -> Result<(), Refusal> {
        match self.find(at)? {
            None => Ok(()),
            Some(_) => Err(Refusal::new(Fault::Exists, format!("{:?} exists", at.name))),
        }
    }

    /// Change an inode that exists; its change time becomes now.
    fn change(&mut self, inode: InodeNumber, change: impl FnOnce(&mut Node)) -> Result<(), Refusal> {
        self.node(inode)?;
        if let Some((Some(node), touch)) = self.nodes.get_mut(&inode) {
            *touch = Touch::Changed;
            node.changed_ns = self.now_ns;
            change(node);
        }
        Ok(())
    }

    /// A new inode in `parent`.
    fn make(
        &mut self,
        inode: InodeNumber,
        parent: InodeNumber,
        ownership: &Ownership,
        links: u32,
        body: Body,
    ) -> Result<(), Refusal> {
        let parent = self.node(parent)?;
        let is_directory = matches!(body, Body::Directory { .. });
        let (gid, bit) = match ownership.inherit {
            Inherit::Group if parent.mode & SET_GROUP_ID != 0 => {
                (parent.gid, if is_directory { SET_GROUP_ID } else { 0 })
            }
            Inherit::Group | Inherit::Nothing => (ownership.gid, 0),
        };
        let node = Node {
            mode: ownership.mode | bit,
            uid: ownership.uid,
            gid,
            links,
            accessed_ns: ownership.modified_ns,
            modified_ns: ownership.modified_ns,
            changed_ns: self.now_ns,
            created_ns: self.now_ns,
            extended: Extended::default(),
            body,
        };
        self.nodes.insert(inode, (Some(node), Touch::Changed));
        Ok(())
    }

    /// One link less. A file that lost its last one stays, as somebody may have it open; anything else goes with it, a
    /// directory at once.
    fn drop_link(&mut self, inode: InodeNumber) -> Result<(), Refusal> {
        self.change(inode, |node| node.links = node.links.saturating_sub(1))?;
        if let Some((slot, _)) = self.nodes.get_mut(&inode)
            && slot.as_ref().is_some_and(|node| node.is_directory() || (node.links == 0 && node.content().is_none()))
        {
            *slot = None;
        }
        Ok(())
    }

    /// Write an entry; its directory's times become now, and its links change by what it won or lost in
    /// subdirectories.
    fn set_entry(&mut self, at: &At, inode: Option<InodeNumber>, subdirectories: i32) -> Result<(), Refusal> {
        let now_ns = self.now_ns;
        self.change(at.parent, |directory| {
            directory.modified_ns = now_ns;
            directory.links = directory.links.saturating_add_signed(subdirectories);
        })?;
        self.done.writes.push(NameWrite::Entry(at.parent, at.name.clone(), inode));
        Ok(())
    }

    /// Whether one more subdirectory fits.
    fn room_for_subdirectory(&mut self, directory: InodeNumber) -> Result<(), Refusal> {
        match self.node(directory)?.links < super::MAX_LINKS {
            true => Ok(()),
            false => Err(Refusal::new(Fault::TooManyLinks, "the directory has too many subdirectories")),
        }
    }

    fn finish(mut self, result: Option<InodeNumber>) -> Planned {
        self.done.node = result.and_then(|inode| Some((inode, self.nodes.get(&inode)?.0.clone()?)));
        let changed = self.nodes.into_iter().filter(|(_, (_, touch))| *touch == Touch::Changed);
        self.done.writes.extend(changed.map(|(inode, (node, _))| NameWrite::Node(inode, node)));
        self.done
    }
}
