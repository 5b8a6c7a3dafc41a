//! One change of the catalog that this mount makes: asked for, waited for, and learned from.
//!
//! Not here: what the changes are (`changing.rs`, and the writing of files).
//!
//! Invariant: a change that is begun is concluded, also if whoever waits for it goes away; what nobody can say
//! then is doubted.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use swarm_proto::{Fault, Revision, v1};
use swarm_seeder::store::AckLevel;
use swarm_seeder::tracker_client::Refusal;

use super::known::{Becomes, Known, OwnChange, Ticket, Touched, Trust};
use super::node::Node;
use super::{Access, FileSystem, catalog};
use crate::errno::{self, Errno};

/// A change that was answered; dropping it doubts what it touched.
pub(super) struct Answered<'fs> {
    guard: OwnChangeGuard<'fs>,
    ticket: Ticket,
    changed: catalog::Changed,
}

/// Ends a change of ours when it is dropped.
struct OwnChangeGuard<'fs> {
    fs: &'fs FileSystem,
    own: OwnChange,
    touched: Touched,
    concluded: bool,
}

impl Drop for OwnChangeGuard<'_> {
    fn drop(&mut self) {
        let Self { own, touched, concluded, .. } = self;
        self.fs.learn(|known| {
            if !*concluded {
                known.doubt(touched);
            }
            known.end_own(*own, touched);
        });
    }
}

impl FileSystem {
    /// Have the catalog changed. Never takes longer than a question about a name.
    ///
    /// Errors: [`Errno::TIMEDOUT`] if nobody answers; it may be done all the same, then or later. [`Errno::ROFS`].
    pub(super) async fn ask_change(
        &self,
        mut touched: Touched,
        level: AckLevel,
        operation: v1::operation::Operation,
    ) -> Result<Answered<'_>, Errno> {
        // The kernel refuses by itself, until somebody remounts it.
        if self.config.access == Access::ReadOnly {
            return Err(Errno::ROFS);
        }
        let (own, ticket) = {
            let mut known = self.known.lock();
            (known.begin_own(&mut touched), known.ticket(self.catalog.newest()))
        };
        let guard = OwnChangeGuard { fs: self, own, touched, concluded: false };
        self.counters.asked("change");
        let asked = tokio::time::timeout(self.config.metadata_timeout, self.catalog.change(level, operation));
        match asked.await {
            Ok(Ok(changed)) => {
                if changed.refused.is_none() {
                    self.changed_at.fetch_max(changed.revision.0, Ordering::AcqRel);
                }
                Ok(Answered { guard, ticket, changed })
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "change the catalog");
                Err(errno::of_tracker(&error))
            }
            Err(_) => Err(Errno::TIMEDOUT),
        }
    }
}

impl Answered<'_> {
    /// Why it was refused, if it was.
    pub(super) fn refusal(&self) -> Option<&Refusal> {
        self.changed.refused.as_ref()
    }

    /// The inode that was made or changed; also the inode as it is, where a write was refused as stale.
    pub(super) fn node(&self) -> Option<Arc<Node>> {
        self.changed.node.clone().map(Arc::new)
    }

    /// The revision of this answer.
    pub(super) fn revision(&self) -> Revision {
        self.changed.revision
    }

    /// Another inode that it changed.
    pub(super) fn other(&self, inode: swarm_proto::InodeNumber) -> Option<Arc<Node>> {
        self.changed.others.iter().find(|other| other.inode == inode).cloned().map(Arc::new)
    }

    /// If it was done, go on; if it was refused, doubt what that shows to be old.
    ///
    /// Errors: the refusal's number.
    pub(super) fn done(mut self) -> Result<Self, Errno> {
        let Some(Refusal { fault, message }) = self.refusal().cloned() else { return Ok(self) };
        tracing::debug!(?fault, message, "a change of the catalog was refused");
        // The kernel asks for nothing that it knows to be in vain: it knew otherwise, or knew nothing. All other
        // refusals say nothing of names.
        self.guard.concluded =
            !matches!(fault, Fault::NotFound | Fault::Exists | Fault::Stale | Fault::NotDirectory | Fault::IsDirectory);
        if fault == Fault::Stale {
            // One of these is gone; which, the refusal says only to people.
            let gone = &self.guard.touched.inodes;
            self.guard.fs.learn(|known| gone.iter().for_each(|inode| known.gone(*inode)));
        }
        Err(errno::of_fault(fault))
    }

    /// Learn what it did. `becomes`: what the names are now, in the order in which they were touched.
    ///
    /// Shape: the inode that was made or changed, and how long the kernel may keep that.
    pub(super) fn conclude(mut self, becomes: &[Becomes]) -> (Option<Arc<Node>>, Duration) {
        let node = self.node();
        let others: Vec<Arc<Node>> = std::mem::take(&mut self.changed.others).into_iter().map(Arc::new).collect();
        let (ticket, revision, now) = (self.ticket, self.changed.revision, Instant::now());
        let nameless = others.iter().chain(&node).filter(|node| node.links == 0);
        nameless.for_each(|node| self.guard.fs.forget_debts(node.inode));
        let touched = &self.guard.touched;
        let trust = self.guard.fs.learn(|known: &mut Known| {
            let mut trust = Trust::For(Duration::MAX);
            for other in &others {
                known.own_node(ticket, revision, other.clone(), now);
            }
            if let Some(node) = &node {
                trust = trust.and(known.own_node(ticket, revision, node.clone(), now));
            }
            let told = |inode| others.iter().chain(&node).any(|node| node.inode == inode);
            for inode in touched.inodes.iter().filter(|inode| !told(**inode)) {
                known.own_doubt(revision, *inode);
            }
            for (name, becomes) in touched.names.iter().zip(becomes) {
                trust = trust.and(known.own_name(ticket, revision, name.clone(), becomes, now));
            }
            trust
        });
        self.guard.concluded = true;
        // What its guard does at its end: what was pushed meanwhile is judged by what is known now.
        let keep = super::kernel_may_keep(trust);
        drop(self);
        (node, keep)
    }

    /// A directory that it made is known to be empty; before [`Self::conclude`].
    pub(super) fn made_directory(&self, directory: &Node) {
        let (ticket, revision) = (self.ticket, self.changed.revision);
        self.guard.fs.learn(|known| known.own_directory(ticket, revision, directory.inode, Instant::now()));
    }
}
