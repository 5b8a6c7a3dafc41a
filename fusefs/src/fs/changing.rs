//! Changing names and attributes: what each such operation of the kernel asks of the catalog.
//!
//! Not here: the content of files, and how a change is waited for and learned from (`own_change.rs`).
//!
//! What is answered here survives kill -9 of every process; the tracker's disk follows within a second.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use swarm_proto::v1::operation::Operation;
use swarm_proto::{InodeNumber, v1};
use swarm_seeder::store::AckLevel;

use super::known::{Becomes, Touched};
use super::node::{Kind, Node};
use super::own_change::Answered;
use super::{FileSystem, Found};
use crate::errno::Errno;

pub use v1::RenameMode;

/// Permission bits with set-id and sticky.
const MODE_BITS: u32 = 0o7777;

/// Who makes something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Maker {
    /// Owner.
    pub uid: u32,
    /// Group, unless the directory has the set-group-id bit.
    pub gid: u32,
    /// Permission bits; the kernel has taken the umask away.
    pub mode: u32,
}

/// What is neither a regular file, nor a directory, nor a symlink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device of this number.
    CharacterDevice(u64),
    /// A block device of this number.
    BlockDevice(u64),
}

/// A time to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// This mount's clock says.
    Now,
    /// Nanoseconds since 1970.
    At(i64),
}

/// Attributes to set; what is none stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NewAttributes {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Last access.
    pub accessed: Option<When>,
    /// Last change of the content.
    pub modified: Option<When>,
}

impl FileSystem {
    /// mkdir(2).
    pub async fn make_directory(&self, parent: InodeNumber, name: Bytes, maker: Maker) -> Result<Found, Errno> {
        let ownership = ownership(maker);
        let make = v1::MakeDirectory { parent: parent.0, name: name.clone(), ownership };
        let answered = self.ask_names([(parent, name.clone())], Operation::MakeDirectory(make)).await?.done()?;
        if let Some(node) = answered.node() {
            answered.made_directory(&node);
        }
        self.made(answered, parent, name).await
    }

    /// symlink(2).
    pub async fn make_symlink(
        &self,
        parent: InodeNumber,
        name: Bytes,
        maker: Maker,
        target: Bytes,
    ) -> Result<Found, Errno> {
        let ownership = ownership(maker);
        let make = v1::MakeSymlink { parent: parent.0, name: name.clone(), ownership, target };
        self.make(parent, name, Operation::MakeSymlink(make)).await
    }

    /// mknod(2) of what is no regular file.
    pub async fn make_special(
        &self,
        parent: InodeNumber,
        name: Bytes,
        maker: Maker,
        special: Special,
    ) -> Result<Found, Errno> {
        let (kind, device) = match special {
            Special::Fifo => (v1::NodeKind::Fifo, 0),
            Special::Socket => (v1::NodeKind::Socket, 0),
            Special::CharacterDevice(device) => (v1::NodeKind::CharacterDevice, device),
            Special::BlockDevice(device) => (v1::NodeKind::BlockDevice, device),
        };
        let ownership = ownership(maker);
        let make = v1::MakeSpecial { parent: parent.0, name: name.clone(), ownership, kind: kind.into(), device };
        self.make(parent, name, Operation::MakeSpecial(make)).await
    }

    /// An empty regular file.
    ///
    /// Errors: [`Errno::EXIST`] if there is anything of that name.
    pub async fn make_file(&self, parent: InodeNumber, name: Bytes, maker: Maker) -> Result<Found, Errno> {
        let publish = v1::PublishFile {
            parent: parent.0,
            name: name.clone(),
            ownership: ownership(maker),
            size: 0,
            if_exists: v1::IfExists::Fail.into(),
            base_version: 0,
            acknowledged: Vec::new(),
            content: None,
        };
        self.make(parent, name, Operation::PublishFile(publish)).await
    }

    /// unlink(2).
    pub async fn unlink(&self, parent: InodeNumber, name: Bytes) -> Result<(), Errno> {
        let unlink = v1::Unlink { parent: parent.0, name: name.clone() };
        let answered = self.ask_names([(parent, name)], Operation::Unlink(unlink)).await?.done()?;
        answered.conclude(&[Becomes::Absent]);
        Ok(())
    }

    /// rmdir(2).
    pub async fn remove_directory(&self, parent: InodeNumber, name: Bytes) -> Result<(), Errno> {
        let remove = v1::RemoveDirectory { parent: parent.0, name: name.clone() };
        let answered = self.ask_names([(parent, name)], Operation::RemoveDirectory(remove)).await?.done()?;
        answered.conclude(&[Becomes::Absent]);
        Ok(())
    }

    /// renameat2(2).
    pub async fn rename(
        &self,
        (parent, name): (InodeNumber, Bytes),
        (new_parent, new_name): (InodeNumber, Bytes),
        mode: RenameMode,
    ) -> Result<(), Errno> {
        let rename = v1::Rename {
            parent: parent.0,
            name: name.clone(),
            new_parent: new_parent.0,
            new_name: new_name.clone(),
            mode: mode.into(),
        };
        let names = [(parent, name), (new_parent, new_name)];
        let named = |at: usize| self.known.lock().named(names[at].0, &names[at].1);
        let (moved, target) = (named(0), named(1));
        let answered = self.ask_names(names.clone(), Operation::Rename(rename)).await?.done()?;
        let node = answered.node();
        let now_there = becomes(node.clone());
        let now_here = match mode {
            // Two names of one inode: both stay.
            _ if target.is_some() && node.as_ref().map(|node| node.inode) == target => now_there.clone(),
            RenameMode::Exchange => becomes(target.and_then(|target| answered.other(target))),
            _ if node.is_some() && (moved.is_none() || moved == node.map(|node| node.inode)) => Becomes::Absent,
            _ => Becomes::Unknown,
        };
        answered.conclude(&[now_here, now_there]);
        Ok(())
    }

    /// link(2).
    ///
    /// Shape:  0 is a thread of which the kernel does not say which.
    /// Errors: [`Errno::STALE`] if the inode may have lost its name a moment ago: the kernel looks that up again.
    pub async fn link(
        &self,
        inode: InodeNumber,
        thread: u32,
        new_parent: InodeNumber,
        new_name: Bytes,
    ) -> Result<Found, Errno> {
        let link = v1::Link { inode: inode.0, new_parent: new_parent.0, new_name: new_name.clone() };
        let touched = Touched { names: vec![(new_parent, new_name.clone())], inodes: vec![inode] };
        let answered = self.ask_change(touched, AckLevel::Close, Operation::Link(link)).await?.done();
        // Perhaps its name was replaced elsewhere a moment ago, and leads to another now.
        if answered.as_ref().err() == Some(&Errno::NOENT) && self.retelling.begin(inode, thread) {
            return Err(self.is_gone(inode));
        }
        self.retelling.end(inode, thread);
        self.made(answered?, new_parent, new_name).await
    }

    /// chmod(2), chown(2), utimensat(2).
    pub async fn set_attributes(&self, inode: InodeNumber, new: NewAttributes) -> Result<Found, Errno> {
        // A new owner must not inherit the power of the old one, whoever gives the file away. The kernel does this by
        // the mode that it knows; ours may be newer.
        let gives_away = new.mode.is_none() && (new.uid.is_some() || new.gid.is_some());
        let clear_set_id = gives_away && self.kind_of(inode).await? == Kind::File;
        let now = now_ns();
        let time = |when: When| match when {
            When::Now => now,
            When::At(time) => time,
        };
        let (modified_ns, accessed_ns) = (new.modified.map(time), new.accessed.map(time));
        let only_times = NewAttributes { accessed: None, modified: None, ..new } == NewAttributes::default();
        if self.set_times_of_unsaved(inode, modified_ns, accessed_ns) && only_times {
            return self.attributes(inode).await;
        }
        let set = v1::SetAttributes {
            inode: inode.0,
            mode: new.mode.map(|mode| mode & MODE_BITS),
            uid: new.uid,
            gid: new.gid,
            modified_ns,
            accessed_ns,
            clear_set_id,
        };
        self.change_inode(inode, Operation::SetAttributes(set)).await
    }

    /// Whether a file has set-id bits that a write takes away, as far as is known at once.
    pub fn may_have_set_id(&self, inode: InodeNumber) -> bool {
        let known = self.known.lock().node(inode, Instant::now());
        known.is_none_or(|(node, _)| has_set_id(&node))
    }

    /// Take the set-id bits of a file away, as somebody writes to it who could not set them.
    pub async fn clear_set_id(&self, inode: InodeNumber) -> Result<(), Errno> {
        let known = self.known.lock().node(inode, Instant::now());
        let node = match known {
            Some((node, _)) => node,
            None => self.node(inode).await?.0,
        };
        if !has_set_id(&node) {
            return Ok(());
        }
        let set = v1::SetAttributes { inode: inode.0, clear_set_id: true, ..v1::SetAttributes::default() };
        match self.change_inode(inode, Operation::SetAttributes(set)).await {
            // Without a name it is run by nobody.
            Ok(_) | Err(Errno::STALE) => {}
            Err(error) => return Err(error),
        }
        self.forget_attributes_now(inode);
        Ok(())
    }

    /// fsync(2) of a directory: what was changed in it, and all before it, survives a power cut once this is answered.
    ///
    /// Errors: [`Errno::IO`], once, if the tracker has lost changes that it had acknowledged to this mount.
    pub async fn sync_names(&self, directory: InodeNumber) -> Result<(), Errno> {
        // The catalog syncs as a whole, and after any change that is asked to be durable, also one that is refused; and
        // no directory has a name that is empty. So this changes nothing.
        let nothing = v1::Unlink { parent: directory.0, name: Bytes::new() };
        let acknowledged = self.changed_at.load(Ordering::Acquire);
        let answered = self.ask_change(Touched::default(), AckLevel::Fsync, Operation::Unlink(nothing)).await?;
        let revision = answered.revision();
        answered.conclude(&[]);
        // The answer is a record of its own: its revision is above those of all changes before it, if they are there.
        if revision.0 > acknowledged {
            return Ok(());
        }
        tracing::error!(
            acknowledged,
            now = revision.0,
            "sync names: the tracker has lost changes that it had acknowledged; did its machine lose power, or was an older \
             catalog imported? What was saved here last may have to be saved again"
        );
        // What is changed from now on is not lost with it.
        self.changed_at.compare_exchange(acknowledged, revision.0, Ordering::AcqRel, Ordering::Acquire).ok();
        Err(Errno::IO)
    }

    /// Change one inode that exists; what it is then.
    pub(super) async fn change_inode(&self, inode: InodeNumber, operation: Operation) -> Result<Found, Errno> {
        let touched = Touched { names: Vec::new(), inodes: vec![inode] };
        let answered = self.ask_change(touched, AckLevel::Close, operation).await?.done()?;
        match answered.conclude(&[]) {
            (Some(node), keep) => Ok(Found { node: Some(self.as_shown(node)), keep }),
            (None, _) => self.attributes(inode).await,
        }
    }

    async fn kind_of(&self, inode: InodeNumber) -> Result<Kind, Errno> {
        // No inode ever changes its kind.
        let known = self.known.lock().node(inode, Instant::now());
        match known {
            Some((node, _)) => Ok(node.kind),
            None => Ok(self.node(inode).await?.0.kind),
        }
    }

    async fn make(&self, parent: InodeNumber, name: Bytes, operation: Operation) -> Result<Found, Errno> {
        let answered = self.ask_names([(parent, name.clone())], operation).await?.done()?;
        self.made(answered, parent, name).await
    }

    /// Learn of a name that was made, and answer it.
    async fn made(&self, answered: Answered<'_>, parent: InodeNumber, name: Bytes) -> Result<Found, Errno> {
        let becomes = becomes(answered.node());
        match answered.conclude(std::slice::from_ref(&becomes)) {
            (Some(node), keep) => Ok(Found { node: Some(self.as_shown(node)), keep }),
            (None, _) => self.lookup(parent, name).await,
        }
    }

    async fn ask_names<const N: usize>(
        &self,
        names: [(InodeNumber, Bytes); N],
        operation: Operation,
    ) -> Result<Answered<'_>, Errno> {
        let touched = Touched { names: names.into(), inodes: Vec::new() };
        self.ask_change(touched, AckLevel::Close, operation).await
    }
}

/// What a name is that was given to this inode. One that has no name any more lost it to somebody else at once.
fn becomes(node: Option<Arc<Node>>) -> Becomes {
    match node {
        Some(node) if node.links > 0 => Becomes::Names(node),
        _ => Becomes::Unknown,
    }
}

/// Whether a file has a set-id bit; that of the group means something else where the group may not execute.
fn has_set_id(node: &Node) -> bool {
    const USER: u16 = 0o4_000;
    const GROUP: u16 = 0o2_010;
    node.kind == Kind::File && (node.mode & USER != 0 || node.mode & GROUP == GROUP)
}

fn ownership(maker: Maker) -> Option<v1::Ownership> {
    let Maker { uid, gid, mode } = maker;
    Some(v1::Ownership { mode: mode & MODE_BITS, uid, gid, modified_ns: now_ns(), inherit: true })
}

/// This mount's clock.
pub(super) fn now_ns() -> i64 {
    nanoseconds(SystemTime::now())
}

/// Nanoseconds since 1970; what is further away than they can say is as far as they can.
pub(crate) fn nanoseconds(time: SystemTime) -> i64 {
    let signed = |distance: Duration| i64::try_from(distance.as_nanos()).unwrap_or(i64::MAX);
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => signed(after),
        Err(before) => -signed(before.duration()),
    }
}

#[cfg(test)]
mod tests;
