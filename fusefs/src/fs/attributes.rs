//! Names, attributes, links' targets and the capacity of the swarm.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use swarm_proto::{Fault, InodeNumber, v1};
use swarm_seeder::tracker_client::TrackerError;

use super::known::{BRIEFLY, Trust};
use super::node::{Kind, Node};
use super::{FileSystem, is_good, kernel_may_keep};
use crate::errno::Errno;

/// Longest name of the catalog.
const NAME_BYTES_MOST: usize = 255;
/// How old an answer about the capacity may be.
const CAPACITY_HOLDS: Duration = Duration::from_secs(2);
/// A question that comes again so soon after it was asked in vain is the same one.
const SAME_QUESTION: Duration = Duration::from_millis(100);

/// The answer to a lookup or a question for attributes.
#[derive(Debug, Clone)]
pub struct Found {
    /// The inode; none if there is no such name.
    pub node: Option<Arc<Node>>,
    /// How long the kernel may keep this.
    pub keep: Duration,
}

impl FileSystem {
    /// A name, if it can be answered at once.
    pub fn lookup_known(&self, parent: InodeNumber, name: &[u8]) -> Option<Result<Found, Errno>> {
        if name.len() > NAME_BYTES_MOST {
            return Some(Err(Errno::NAMETOOLONG));
        }
        let (node, trust) = self.learn(|known| known.name(parent, name, Instant::now()))?;
        is_good(trust).then(|| Ok(self.found(node, trust)))
    }

    /// A name.
    pub async fn lookup(&self, parent: InodeNumber, name: Bytes) -> Result<Found, Errno> {
        let last = || {
            let (node, _) = self.learn(|known| known.name(parent, &name, Instant::now()))?;
            Some(self.found(node, Trust::For(BRIEFLY)))
        };
        if self.is_offline()
            && let Some(found) = last()
        {
            return Ok(found);
        }
        // A kernel that was told of no answer to whether a name it knows still holds asks for it anew at once.
        let in_vain =
            |asked: &(InodeNumber, Bytes, Instant)| asked.0 == parent && asked.1 == name && Instant::now() < asked.2;
        if self.unanswered.lock().as_ref().is_some_and(in_vain) {
            return match self.config.offline_ok {
                true => last().ok_or(Errno::TIMEDOUT),
                false => Err(Errno::TIMEDOUT),
            };
        }
        let ticket = self.ticket();
        self.counters.asked("lookup");
        match self.catalog.lookup(parent, name.clone()).await {
            Ok(node) => {
                let node = node.map(Arc::new);
                let now = Instant::now();
                let trust = self.learn(|known| known.learn_name(ticket, parent, name.clone(), node.clone(), now));
                Ok(self.found(node, trust))
            }
            Err(error) => {
                if let TrackerError::Refused { fault: Fault::Stale, .. } = error {
                    self.learn(|known| known.gone(parent));
                }
                if let TrackerError::Unreachable { .. } = error {
                    *self.unanswered.lock() = Some((parent, name.clone(), Instant::now() + SAME_QUESTION));
                }
                self.or_last(error, last)
            }
        }
    }

    /// Attributes, if they can be answered at once.
    pub fn attributes_known(&self, inode: InodeNumber) -> Option<Found> {
        let (known, live) = {
            let mut known = self.known.lock();
            (known.node(inode, Instant::now()), known.is_live())
        };
        if let Some((node, trust)) = known.clone()
            && is_good(trust)
        {
            return (!self.is_nobodys(&node)).then(|| self.found(Some(node), trust));
        }
        // A reader of an open file must not wait for a tracker that is away: the kernel asks for the size
        // whenever a read comes near the end.
        if live {
            return None;
        }
        let known = known.map(|(node, _)| node);
        let node = match self.open.opened(inode) {
            Some((opened, _)) => known.unwrap_or(opened),
            // On the way to the file that says how the mount is, and to unmount it.
            None if inode == self.config.root => known?,
            None => return None,
        };
        Some(self.found(Some(node), Trust::For(BRIEFLY)))
    }

    /// Attributes of an inode.
    ///
    /// Errors: [`Errno::STALE`] if it is gone and not open; the kernel then looks its name up again.
    pub async fn attributes(&self, inode: InodeNumber) -> Result<Found, Errno> {
        let (node, trust) = self.node(inode).await?;
        match self.is_nobodys(&node) {
            // Somebody else has it open. Who asks here goes by a name that leads to another by now, or to nothing; told
            // that there are no links, the kernel would refuse by itself to make one.
            true => Err(self.is_gone(inode)),
            false => Ok(self.found(Some(node), trust)),
        }
    }

    /// Whether neither a name leads to a file, nor a process of this mount has it open.
    fn is_nobodys(&self, node: &Node) -> bool {
        node.links == 0 && self.open.opened(node.inode).is_none()
    }

    /// Where a symlink points.
    pub async fn link_target(&self, inode: InodeNumber) -> Result<Bytes, Errno> {
        let known = self.known.lock().node(inode, Instant::now());
        let node = match known {
            // A link never changes where it points: another target is another inode.
            Some((node, _)) => node,
            None => self.node(inode).await?.0,
        };
        match node.kind {
            Kind::Symlink => Ok(node.target.clone()),
            _ => Err(Errno::INVAL),
        }
    }

    /// Capacity of the swarm, from memory where it was asked for lately or cannot be had.
    pub async fn capacity(&self) -> Result<v1::StatFsReply, Errno> {
        let last = self.capacity.lock().clone();
        if let Some((at, capacity)) = &last
            && (at.elapsed() < CAPACITY_HOLDS || self.away.load(std::sync::atomic::Ordering::Relaxed))
        {
            return Ok(capacity.clone());
        }
        self.counters.asked("stat_fs");
        match self.catalog.stat_fs().await {
            Ok(capacity) => {
                *self.capacity.lock() = Some((Instant::now(), capacity.clone()));
                Ok(capacity)
            }
            Err(error) => match last {
                Some((_, capacity)) => Ok(capacity),
                None => Err(crate::errno::of_tracker(&error)),
            },
        }
    }

    pub(super) async fn node(&self, inode: InodeNumber) -> Result<(Arc<Node>, Trust), Errno> {
        let last = || {
            let (node, _) = self.known.lock().node(inode, Instant::now())?;
            Some((node, Trust::For(BRIEFLY)))
        };
        if self.is_offline()
            && let Some(found) = last()
        {
            return Ok(found);
        }
        let ticket = self.ticket();
        self.counters.asked("node");
        match self.catalog.node(inode).await {
            Ok(Some(node)) => {
                let node = Arc::new(node);
                let trust = self.learn(|known| known.learn_node(ticket, node.clone(), Instant::now()));
                Ok((node, trust))
            }
            Ok(None) => match self.open.opened(inode) {
                // Its last name is gone, but it is still open here.
                Some((node, _)) => Ok((Arc::new(Node { links: 0, ..(*node).clone() }), Trust::For(BRIEFLY))),
                None => Err(self.is_gone(inode)),
            },
            Err(error) => match self.open.opened(inode) {
                Some((node, _)) => Ok((node, Trust::For(BRIEFLY))),
                None => self.or_last(error, last),
            },
        }
    }

    pub(super) fn found(&self, node: Option<Arc<Node>>, trust: Trust) -> Found {
        Found { node: node.map(|node| self.as_shown(node)), keep: kernel_may_keep(trust) }
    }

    /// An inode as processes of this mount see it.
    pub(super) fn as_shown(&self, node: Arc<Node>) -> Arc<Node> {
        let (inode, version) = (node.inode, node.version);
        let shown = self.as_written(self.open.as_seen(node));
        // Saved between the answer and the look at what is unsaved: neither would show it.
        match self.known.lock().newer(inode, version) {
            Some(newer) => self.as_written(self.open.as_seen(newer)),
            None => shown,
        }
    }
}
