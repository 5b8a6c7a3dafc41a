//! **PURE.** Changes that this mount makes itself.
//!
//! Such a change comes twice: in its answer, and as an echo among all changes that are pushed, in either order.
//! The kernel, which asked for it, knows what became of it, so:
//!
//! * between [`Known::begin_own`] and [`Known::end_own`] nothing that it changes is promised to the kernel for
//!   longer than now, and what is pushed of it waits: it may be the echo;
//! * what its answer says is known as of its revision; what is pushed up to that revision is no news.
//!
//! That holds because an answer shows things as they are at its revision, also where several changes share one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use swarm_proto::{InodeNumber, Revision};

use super::{DOUBTED, Known, Listing, Ticket, Trust};
use crate::fs::node::Node;

/// What one change of ours may change.
#[derive(Debug, Clone, Default)]
pub struct Touched {
    /// Names in directories; the directories themselves change too.
    pub names: Vec<(InodeNumber, Bytes)>,
    /// Other inodes.
    pub inodes: Vec<InodeNumber>,
}

/// What a name is after a change of ours.
#[derive(Debug, Clone)]
pub enum Becomes {
    /// There is no such name.
    Absent,
    /// It names this.
    Names(Arc<Node>),
    /// Somebody else had a hand in it.
    Unknown,
}

/// Changes of ours that are on their way, of one thing.
#[derive(Default)]
pub(super) struct Pending {
    changes: usize,
    /// The newest that was pushed of it meanwhile.
    pushed: Option<Revision>,
}

impl Known {
    /// What a name was last known to name, believed or not.
    pub fn named(&mut self, parent: InodeNumber, name: &[u8]) -> Option<InodeNumber> {
        match self.names.peek(&(parent, Bytes::copy_from_slice(name))) {
            Some(learned) => learned.value,
            None => self.listings.name(parent, name).and_then(|(node, ..)| node).map(|node| node.inode),
        }
    }

    /// A change of ours is asked for. What it names, as far as it is known, is added to what it touches.
    pub fn begin_own(&mut self, touched: &mut Touched) {
        for (parent, name) in &touched.names {
            touched.inodes.push(*parent);
            touched.inodes.extend(self.named(*parent, name));
        }
        touched.inodes.sort_unstable();
        touched.inodes.dedup();
        for key in touched.keys() {
            self.pending.entry(key).or_default().changes += 1;
        }
    }

    /// It was answered, and what is in its answer is known; or nobody knows what became of it, and all that it touches
    /// is doubted.
    pub fn end_own(&mut self, touched: &Touched) {
        for (inode, name) in touched.keys() {
            let key = (inode, name);
            let Some(pending) = self.pending.get_mut(&key) else { continue };
            pending.changes -= 1;
            if pending.changes > 0 {
                continue;
            }
            let pushed = self.pending.remove(&key).and_then(|pending| pending.pushed);
            match (pushed, key) {
                (None, _) => {}
                (Some(revision), (inode, name)) if name.is_empty() => self.node_changed(revision, inode),
                (Some(revision), (inode, name)) => self.name_changed(revision, inode, name),
            }
        }
    }

    /// Whether a change of ours is changing this now.
    pub(super) fn is_pending(&self, inode: InodeNumber, name: &[u8]) -> bool {
        !self.pending.is_empty() && self.pending.contains_key(&(inode, Bytes::copy_from_slice(name)))
    }

    /// Whether what was pushed may be the echo of a change of ours, and is judged once that is answered.
    pub(super) fn is_deferred(&mut self, revision: Revision, inode: InodeNumber, name: Bytes) -> bool {
        match self.pending.get_mut(&(inode, name)) {
            None => false,
            Some(pending) => {
                pending.pushed = pending.pushed.max(Some(revision));
                true
            }
        }
    }

    /// An inode as a change of ours left it.
    pub fn own_node(&mut self, ticket: Ticket, revision: Revision, node: Arc<Node>, now: Instant) -> Trust {
        let inode = node.inode;
        self.changes.note(revision, inode, Bytes::new());
        self.leases.forget(inode);
        if self.changes.may_be_missed(revision, inode, b"") {
            return Trust::For(Duration::ZERO);
        }
        self.keep_node(node, ticket.epoch, now, revision);
        // The kernel hears of this version in the answer.
        self.untold.pop(&inode);
        self.trust(ticket.epoch, now, now).at_least_now()
    }

    /// A change of ours changed an inode, and did not say how. The kernel asks again by itself.
    pub fn own_doubt(&mut self, revision: Revision, inode: InodeNumber) {
        self.changes.note(revision, inode, Bytes::new());
        self.leases.forget(inode);
        if let Some(learned) = self.nodes.peek_mut(&inode)
            && learned.own < revision
        {
            learned.epoch = DOUBTED;
            learned.own = revision;
        }
    }

    /// A name as a change of ours left it.
    pub fn own_name(
        &mut self,
        ticket: Ticket,
        revision: Revision,
        (parent, name): (InodeNumber, Bytes),
        becomes: &Becomes,
        now: Instant,
    ) -> Trust {
        self.changes.note(revision, parent, name.clone());
        let child = match becomes {
            Becomes::Unknown => {
                self.doubt_name(parent, name);
                return Trust::For(Duration::ZERO);
            }
            _ if self.changes.may_be_missed(revision, parent, &name) => return Trust::For(Duration::ZERO),
            Becomes::Absent => None,
            Becomes::Names(node) => Some(node.clone()),
        };
        let inode = child.as_ref().map(|node| node.inode);
        match (inode, self.names.peek(&(parent, name.clone())).and_then(|learned| learned.value)) {
            (Some(inode), _) => drop(self.parents.put(inode, (parent, name.clone()))),
            (None, Some(gone)) => {
                if self.parents.peek(&gone).is_some_and(|place| *place == (parent, name.clone())) {
                    self.parents.pop(&gone);
                }
            }
            (None, None) => {}
        }
        self.listings.edit(parent, name.clone(), child);
        self.keep_own_name((parent, name), inode, ticket.epoch, now, revision);
        self.trust(ticket.epoch, now, now).at_least_now()
    }

    /// A directory that a change of ours made: nobody has put anything into it.
    pub fn own_directory(&mut self, ticket: Ticket, revision: Revision, directory: InodeNumber, now: Instant) {
        if !self.changes.may_be_missed(revision, directory, b"") {
            self.listings.keep(Arc::new(Listing { directory, entries: Vec::new() }), ticket.epoch, now);
        }
    }

    /// An inode is gone, before that was pushed: its name must be looked up again.
    pub fn gone(&mut self, inode: InodeNumber) {
        self.doubt_node(inode);
        if let Some((parent, name)) = self.place_of(inode) {
            self.doubt_name(parent, name);
        }
    }

    /// Nobody can say what is there: a change of ours was refused for what is known, or was not answered.
    pub fn doubt(&mut self, touched: &Touched) {
        for (parent, name) in &touched.names {
            self.doubt_name(*parent, name.clone());
        }
        for inode in &touched.inodes {
            self.doubt_node(*inode);
        }
    }
}

impl Touched {
    fn keys(&self) -> impl Iterator<Item = (InodeNumber, Bytes)> {
        let inodes = self.inodes.iter().map(|inode| (*inode, Bytes::new()));
        self.names.iter().cloned().chain(inodes)
    }
}
