//! **PURE.** Changes that this mount makes itself.
//!
//! Such a change comes twice: in its answer, and as an echo among all changes that are pushed, in either order.
//! The kernel, which asked for it, knows what became of it, so:
//!
//! * between [`Known::begin_own`] and [`Known::end_own`] nothing that it changes is promised to the kernel for
//!   longer than now, and what is pushed of it waits: it may be the echo;
//! * what its answer says is known as of its revision; what is pushed up to that revision is no news.
//!
//! Several changes may share a revision. An answer shows inodes as they are at its revision, whoever else changed them
//! in it; of names it tells only what the change itself did, so names of a revision that others share are doubted.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use swarm_proto::{InodeNumber, Revision, v1};

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

/// A change of ours, from when it is asked for until it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OwnChange(u64);

/// Changes of ours that were asked for and not answered yet.
#[derive(Default)]
pub(super) struct OnTheirWay {
    next: u64,
    /// What they are changing: inodes (the name is empty) and names in directories.
    touching: HashMap<(InodeNumber, Bytes), Vec<OwnChange>>,
    held: Vec<Held>,
}

/// Changes that were pushed while those were on their way that they may be the echo of.
struct Held {
    revision: Revision,
    changes: Vec<v1::Change>,
    /// Not those that were asked for later: they are of a later revision.
    waits_for: HashSet<OwnChange>,
}

impl OnTheirWay {
    fn begin(&mut self, touched: &Touched) -> OwnChange {
        let own = OwnChange(self.next);
        self.next += 1;
        for key in touched.keys() {
            self.touching.entry(key).or_default().push(own);
        }
        own
    }

    /// Returns what need not wait any longer.
    fn end(&mut self, own: OwnChange, touched: &Touched) -> Vec<Held> {
        for key in touched.keys() {
            if let Some(changing) = self.touching.get_mut(&key) {
                changing.retain(|other| *other != own);
                if changing.is_empty() {
                    self.touching.remove(&key);
                }
            }
        }
        for held in &mut self.held {
            held.waits_for.remove(&own);
        }
        self.held.extract_if(.., |held| held.waits_for.is_empty()).collect()
    }

    /// Whether a change of ours is changing this now.
    pub(super) fn is_changing(&self, inode: InodeNumber, name: &[u8]) -> bool {
        !self.touching.is_empty() && self.touching.contains_key(&(inode, Bytes::copy_from_slice(name)))
    }

    /// Whether what was pushed may be the echo of changes of ours, and is judged once they are answered.
    pub(super) fn hold(&mut self, revision: Revision, changes: &[v1::Change]) -> bool {
        if self.touching.is_empty() {
            return false;
        }
        let touching = |change: &v1::Change| self.touching.get(&(InodeNumber(change.inode), change.name.clone()));
        let waits_for: HashSet<OwnChange> = changes.iter().filter_map(touching).flatten().copied().collect();
        let holds = !waits_for.is_empty();
        if holds {
            self.held.push(Held { revision, changes: changes.to_vec(), waits_for });
        }
        holds
    }
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
    pub fn begin_own(&mut self, touched: &mut Touched) -> OwnChange {
        for (parent, name) in &touched.names {
            touched.inodes.push(*parent);
            touched.inodes.extend(self.named(*parent, name));
        }
        touched.inodes.sort_unstable();
        touched.inodes.dedup();
        self.own.begin(touched)
    }

    /// It was answered, and what is in its answer is known; or nobody knows what became of it, and all that it touches
    /// is doubted.
    pub fn end_own(&mut self, own: OwnChange, touched: &Touched) {
        for held in self.own.end(own, touched) {
            self.judge(held.revision, &held.changes);
        }
    }

    /// The newest revision as of which an inode is known by a change of ours.
    pub(super) fn own_of_node(&self, inode: InodeNumber) -> Revision {
        self.nodes.peek(&inode).map(|learned| learned.own).unwrap_or_default()
    }

    /// The same of a name.
    pub(super) fn own_of_name(&self, parent: InodeNumber, name: &Bytes) -> Revision {
        self.names.peek(&(parent, name.clone())).map(|learned| learned.own).unwrap_or_default()
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
