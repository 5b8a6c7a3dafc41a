//! **PURE.** What each operation writes, or why it is refused.
//!
//! Every rule that POSIX states for names is stated in the file of its family, and nowhere else. A plan
//! checks everything first and writes last, so a refused operation leaves nothing behind.

mod attributes;
mod link;
mod make;
mod operation;
mod publish;
mod reclaim;
mod remove;
mod rename;
mod write;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use swarm_proto::{Fault, InodeNumber};

use super::{Body, Draft, Extended, NameWrite, Node, Refusal, Relied};

use operation::SET_GROUP_ID;

pub use operation::{
    At, Attributes, Described, ExtendedChange, FileWrite, IfExists, Inherit, NewContent, Operation, Ownership,
    RenameMode, SetId, Special,
};
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
