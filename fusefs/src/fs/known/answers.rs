//! **PURE.** What answers of the tracker teach.
//!
//! Invariant: an answer that may have missed a change is given to whoever asked, and not kept.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use swarm_proto::{InodeNumber, Revision};

use super::{Invalidation, Known, Learned, Listing, Node, Ticket, Trust};
use crate::fs::catalog::Entries;

impl Known {
    /// An answer about an inode.
    pub fn learn_node(&mut self, ticket: Ticket, node: Arc<Node>, now: Instant) -> Trust {
        let inode = node.inode;
        if self.changes.may_be_missed(ticket.newest, inode, b"") {
            return Trust::For(Duration::ZERO);
        }
        if self.nodes.peek(&inode).is_some_and(|old| old.value.changed_ns != node.changed_ns) {
            self.renamed.put(inode, ());
        }
        self.keep_node(node, ticket.epoch, now, Revision::default());
        self.trust(ticket.epoch, now, now).at_least_now().unless(self.own.is_changing(inode, b""))
    }

    /// An inode as it was at a revision, of which whoever asked tells the kernel: what is pushed up to that is no news.
    /// To have the kernel ask again while it asks is to have it throw the answer away, and go on with the old size.
    pub fn learn_current(&mut self, ticket: Ticket, revision: Revision, node: Arc<Node>, now: Instant) {
        if !self.changes.may_be_missed(revision, node.inode, b"") {
            self.keep_node(node, ticket.epoch, now, revision);
        }
    }

    pub(super) fn keep_node(&mut self, node: Arc<Node>, epoch: u64, at: Instant, own: Revision) {
        let inode = node.inode;
        self.leases.forget_older(&node);
        let own = self.nodes.peek(&inode).map_or(own, |old| old.own.max(own));
        match self.nodes.push(inode, Learned { value: node.clone(), epoch, at, own }) {
            Some((same, old)) if same == inode && old.value.version != node.version => {
                self.untold.put(inode, ());
            }
            Some((other, _)) if other != inode => self.take_back.push(Invalidation::Attributes(other)),
            _ => {}
        }
    }

    /// A file that no change is acknowledged of before `until`. What else is known of it stays: the kernel was
    /// told that.
    pub fn learn_lease(&mut self, ticket: Ticket, node: Arc<Node>, until: Instant) {
        let changed = self.changes.may_be_missed(ticket.newest, node.inode, b"");
        let is_older = self.nodes.peek(&node.inode).is_some_and(|known| known.value.version > node.version);
        if !changed && !is_older && ticket.epoch == self.epoch {
            self.leases.keep(node, until);
        }
    }

    /// An answer about a name.
    pub fn learn_name(
        &mut self,
        ticket: Ticket,
        parent: InodeNumber,
        name: Bytes,
        node: Option<Arc<Node>>,
        now: Instant,
    ) -> Trust {
        let child = node.as_ref().map(|node| node.inode);
        let has_no_other = node.as_ref().is_some_and(|node| node.links == 1);
        let of_node = node.map(|node| self.learn_node(ticket, node, now));
        if self.changes.may_be_missed(ticket.newest, parent, &name) {
            return Trust::For(Duration::ZERO);
        }
        if let Some(child) = child {
            self.parents.put(child, (parent, name.clone()));
            if has_no_other {
                self.renamed.pop(&child);
            }
        }
        let pending = self.own.is_changing(parent, &name);
        self.keep_name(parent, name, child, ticket.epoch, now);
        let trust = self.trust(ticket.epoch, now, now).at_least_now().unless(pending);
        of_node.map_or(trust, |of_node| trust.and(of_node))
    }

    /// All entries of a directory, in the order of their names' bytes.
    pub fn learn_listing(
        &mut self,
        ticket: Ticket,
        directory: InodeNumber,
        entries: Entries,
        now: Instant,
    ) -> Arc<Listing> {
        let mut entries: Vec<_> = entries.into_iter().map(|(name, node)| (name, Arc::new(node))).collect();
        entries.sort_by(|(left, _), (right, _)| left.cmp(right));
        // An entry that changed while the listing was on its way notes the directory itself too.
        let missed = self.changes.may_be_missed(ticket.newest, directory, b"");
        for (name, node) in &entries {
            self.learn_node(ticket, node.clone(), now);
            if !missed {
                self.parents.put(node.inode, (directory, name.clone()));
            }
        }
        let listing = Arc::new(Listing { directory, entries });
        if !missed {
            self.listings.keep(listing.clone(), ticket.epoch, now);
        }
        listing
    }

    pub(super) fn keep_name(
        &mut self,
        parent: InodeNumber,
        name: Bytes,
        child: Option<InodeNumber>,
        epoch: u64,
        at: Instant,
    ) {
        self.keep_own_name((parent, name), child, epoch, at, Revision::default());
    }

    pub(super) fn keep_own_name(
        &mut self,
        key: (InodeNumber, Bytes),
        child: Option<InodeNumber>,
        epoch: u64,
        at: Instant,
        own: Revision,
    ) {
        let own = self.names.peek(&key).map_or(own, |old| old.own.max(own));
        let pushed_out = self.names.push(key.clone(), Learned { value: child, epoch, at, own });
        if let Some(((parent, name), _)) = pushed_out.filter(|(other, _)| *other != key) {
            self.take_back.push(Invalidation::Name(parent, name));
        }
    }
}
