//! **PURE.** What this mount knows of the catalog, and how far it may be believed.
//!
//! Invariants:
//! * what the kernel was given for long is known here, so that it can be taken back: whatever is pushed
//!   out of here is taken back from the kernel too;
//! * an answer is believed only if no change that it may have missed was pushed since it was asked for
//!   ([`Ticket`]);
//! * nothing is believed for longer than [`BRIEFLY`] while no changes are pushed;
//! * what a change of ours made of things is known from its answer on, and is not taken back from the kernel when
//!   its echo is pushed ([`own`]);
//! * a leased file is as it is leased until the lease is over, or until it is known to have changed.

mod answers;
mod leases;
mod listings;
mod own;
mod recent;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lru::LruCache;
use swarm_proto::{InodeNumber, Revision, v1};

use super::invalidation::Invalidation;
use super::node::Node;
use leases::Leases;
use listings::Listings;
use own::OnTheirWay;
use recent::RecentChanges;

pub use own::{Becomes, OwnChange, Touched};

/// How long an answer holds while no changes are pushed: as long as promise 2 of the design allows a
/// name to be old.
pub const BRIEFLY: Duration = Duration::from_secs(1);
/// Entries of all directory listings together, as a multiple of the names that are kept.
const LISTED_PER_NAME: usize = 2;

/// Epoch of what a change was pushed for: it was right once.
const DOUBTED: u64 = u64::MAX;

/// Taken before a question is asked; judges its answer.
#[derive(Debug, Clone, Copy)]
pub struct Ticket {
    epoch: u64,
    newest: Revision,
}

/// How far an answer may be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// The kernel may keep it so long; zero: it is right now, but may be changing.
    For(Duration),
    /// It was right once: only good if nobody can be asked.
    Once,
}

/// A directory's entries at one moment, in the order of their names' bytes.
pub struct Listing {
    /// The directory.
    pub directory: InodeNumber,
    /// Its entries.
    pub entries: Vec<(Bytes, Arc<Node>)>,
}

impl Listing {
    /// Where `name` stands.
    pub fn find(&self, name: &[u8]) -> Option<usize> {
        self.entries.binary_search_by(|(entry, _)| entry[..].cmp(name)).ok()
    }
}

struct Learned<T> {
    value: T,
    epoch: u64,
    at: Instant,
    /// Up to this revision the kernel knows of its changes without being told: the newest was ours.
    own: Revision,
}

/// What is known; see the module.
pub struct Known {
    ttl: Duration,
    live: bool,
    /// Rises whenever changes may have been missed; what was learned before is not believed.
    epoch: u64,
    nodes: LruCache<InodeNumber, Learned<Arc<Node>>>,
    names: LruCache<(InodeNumber, Bytes), Learned<Option<InodeNumber>>>,
    listings: Listings,
    /// Directory in which an inode was last seen, and its name there.
    parents: LruCache<InodeNumber, (InodeNumber, Bytes)>,
    leases: Leases,
    /// Inodes of which the kernel may have been told an older version.
    untold: LruCache<InodeNumber, ()>,
    /// Inodes that changed, in whatever it was, since the kernel looked a name of theirs up.
    renamed: LruCache<InodeNumber, ()>,
    changes: RecentChanges,
    own: OnTheirWay,
    take_back: Vec<Invalidation>,
}

impl Known {
    /// Nothing known. `ttl` is how long the kernel may keep what is pushed when it changes; `most` names
    /// and inodes are kept.
    pub fn new(ttl: Duration, most: usize) -> Self {
        let most = NonZeroUsize::new(most).unwrap_or(NonZeroUsize::MIN);
        Self {
            ttl,
            live: false,
            epoch: 0,
            nodes: LruCache::new(most),
            names: LruCache::new(most),
            listings: Listings::new(most.get().saturating_mul(LISTED_PER_NAME)),
            parents: LruCache::new(most),
            leases: Leases::new(),
            untold: LruCache::new(most),
            renamed: LruCache::new(most),
            changes: RecentChanges::default(),
            own: OnTheirWay::default(),
            take_back: Vec::new(),
        }
    }

    /// Before asking: `newest` is the revision that the answer will at least be of.
    pub fn ticket(&self, newest: Revision) -> Ticket {
        Ticket { epoch: self.epoch, newest }
    }

    /// What the kernel must forget since this was last asked.
    pub fn take_back(&mut self) -> Vec<Invalidation> {
        std::mem::take(&mut self.take_back)
    }

    /// Whether changes are pushed.
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// Changes are pushed from now on; what was learned before may have missed some.
    pub fn begin(&mut self) {
        self.epoch += 1;
        self.live = true;
    }

    /// Changes are no longer pushed: the kernel must ask again for everything.
    pub fn lost(&mut self) {
        if self.live {
            self.live = false;
            self.doubt_all();
        }
    }

    /// Changes were missed, and are pushed again from now on.
    pub fn reset(&mut self) {
        self.doubt_all();
        self.live = true;
    }

    /// The same, and the catalog is another: what was pushed before says nothing of it.
    pub fn replaced(&mut self) {
        self.changes = RecentChanges::default();
        self.nodes.iter_mut().for_each(|(_, learned)| learned.own = Revision::default());
        self.names.iter_mut().for_each(|(_, learned)| learned.own = Revision::default());
        self.reset();
    }

    fn doubt_all(&mut self) {
        self.epoch += 1;
        self.leases.forget_all();
        let names = self.names.iter().map(|((parent, name), _)| Invalidation::Name(*parent, name.clone()));
        let nodes = self.nodes.iter().map(|(inode, _)| Invalidation::Attributes(*inode));
        self.take_back.extend(names.chain(nodes));
    }

    /// Changes were pushed, all that were made at a revision.
    pub fn changed(&mut self, revision: Revision, changes: &[v1::Change]) {
        for change in changes {
            let (inode, name) = (InodeNumber(change.inode), change.name.clone());
            // An entry is a part of its directory.
            self.changes.note(revision, inode, Bytes::new());
            if !name.is_empty() {
                self.changes.note(revision, inode, name);
            }
        }
        if !self.own.hold(revision, changes) {
            self.judge(revision, changes);
        }
    }

    /// Doubt what was changed, unless it is known already.
    fn judge(&mut self, revision: Revision, changes: &[v1::Change]) {
        // Several changes may share a revision. If all of it is ours, nobody else had a hand in it; else what an
        // answer of that revision said of a name may not have been the last word.
        let ours = changes.iter().all(|change| match change.name.is_empty() {
            true => self.own_of_node(InodeNumber(change.inode)) >= revision,
            false => self.own_of_name(InodeNumber(change.inode), &change.name) >= revision,
        });
        let is_known = |own: Revision| own > revision || (ours && own == revision);
        for change in changes {
            let (inode, name) = (InodeNumber(change.inode), change.name.clone());
            if !is_known(self.own_of_node(inode)) {
                self.doubt_node(inode);
            }
            if !name.is_empty()
                && !is_known(self.own_of_name(inode, &name))
                && let Some(child) = self.doubt_name(inode, name)
                && !is_known(self.own_of_node(child))
            {
                // Its links changed, if it lives on at all.
                self.changes.note(revision, child, Bytes::new());
                self.doubt_node(child);
            }
        }
    }

    /// A name may have become another; returns what it named.
    fn doubt_name(&mut self, parent: InodeNumber, name: Bytes) -> Option<InodeNumber> {
        let mut child = self.listings.doubt(parent, &name);
        if let Some(learned) = self.names.peek_mut(&(parent, name.clone())) {
            learned.epoch = DOUBTED;
            child = learned.value.or(child);
        }
        self.take_back.push(Invalidation::Name(parent, name));
        child
    }

    fn doubt_node(&mut self, inode: InodeNumber) {
        self.ask_anew(inode);
        self.take_back.push(Invalidation::Attributes(inode));
    }

    /// An inode, and whatever names it, is asked for anew. The kernel is not told: that would have it throw away what
    /// it is asking for.
    pub fn ask_anew(&mut self, inode: InodeNumber) {
        self.leases.forget(inode);
        if let Some(learned) = self.nodes.peek_mut(&inode) {
            learned.epoch = DOUBTED;
        }
    }

    /// An inode, if it is known, and how far it may be believed.
    pub fn node(&mut self, inode: InodeNumber, now: Instant) -> Option<(Arc<Node>, Trust)> {
        let learned = self.nodes.get(&inode)?;
        let (epoch, at, node) = (learned.epoch, learned.at, learned.value.clone());
        let trust = self.trust(epoch, at, now).unless(self.own.is_changing(inode, b""));
        Some((node, trust))
    }

    /// A newer version of an inode than this one, if one is known.
    pub fn newer(&self, inode: InodeNumber, version: u64) -> Option<Arc<Node>> {
        self.nodes.peek(&inode).map(|learned| &learned.value).filter(|node| node.version > version).cloned()
    }

    /// A name in a directory, if it is known, or known to be absent.
    ///
    /// Shape: trust is that of the name and, if there is one, of the inode together.
    pub fn name(&mut self, parent: InodeNumber, name: &[u8], now: Instant) -> Option<(Option<Arc<Node>>, Trust)> {
        if let Some(learned) = self.names.get(&(parent, Bytes::copy_from_slice(name))) {
            let (epoch, at, child) = (learned.epoch, learned.at, learned.value);
            let trust = self.trust(epoch, at, now).unless(self.own.is_changing(parent, name));
            let Some(child) = child else { return Some((None, trust)) };
            if let Some((node, trust)) = self.led_to(child, trust, now) {
                return Some((Some(node), trust));
            }
        }
        let (listed, epoch, at) = self.listings.name(parent, name)?;
        let trust = self.trust(epoch, at, now).unless(self.own.is_changing(parent, name));
        let (node, of_both) = match listed {
            None => (None, trust),
            Some(listed) => {
                let (node, trust) = self.led_to(listed.inode, trust, now)?;
                (Some(node), trust)
            }
        };
        // The kernel is given something, also an absence, that must be taken back later.
        if trust != Trust::Once {
            let child = node.as_ref().map(|node| node.inode);
            self.keep_name(parent, Bytes::copy_from_slice(name), child, epoch, at);
        }
        Some((node, of_both))
    }

    /// What a name leads to, which is believed that far. Nothing leads to what is known to have no name.
    fn led_to(&mut self, child: InodeNumber, of_name: Trust, now: Instant) -> Option<(Arc<Node>, Trust)> {
        let (node, of_node) = self.node(child, now)?;
        let trust = of_name.and(of_node).unless(node.links == 0);
        Some((node, trust))
    }

    /// All entries of a directory, if they are known.
    pub fn listing(&mut self, directory: InodeNumber, now: Instant) -> Option<(Arc<Listing>, Trust)> {
        let (listing, epoch, at) = self.listings.whole(directory)?;
        Some((listing, self.trust(epoch, at, now)))
    }

    /// The same, as it was when it was asked for: what this mount made and removed since does not show.
    pub fn listing_as_asked(&mut self, directory: InodeNumber, now: Instant) -> Option<(Arc<Listing>, Trust)> {
        let (listing, epoch, at) = self.listings.as_asked(directory)?;
        Some((listing, self.trust(epoch, at, now)))
    }

    /// The directory in which an inode was last seen.
    pub fn parent_of(&mut self, inode: InodeNumber) -> Option<InodeNumber> {
        self.parents.get(&inode).map(|(parent, _)| *parent)
    }

    /// The same, and its name there.
    pub fn place_of(&mut self, inode: InodeNumber) -> Option<(InodeNumber, Bytes)> {
        self.parents.get(&inode).cloned()
    }

    /// Whether what is known of an inode was replaced since it was last asked, so that the kernel may have been
    /// told another size.
    pub fn take_untold(&mut self, inode: InodeNumber) -> bool {
        self.untold.pop(&inode).is_some()
    }

    /// Whether an inode may have lost a name since the kernel looked it up, as far as answers tell that were given for
    /// something else; since this was last asked.
    pub fn take_renamed(&mut self, inode: InodeNumber) -> bool {
        self.renamed.pop(&inode).is_some()
    }

    /// A file as it is now in the whole swarm, if that is known without asking.
    pub fn leased(&self, inode: InodeNumber, now: Instant) -> Option<Arc<Node>> {
        self.leases.find(inode, now)
    }

    /// Given to the kernel as part of a listing.
    pub fn give_entry(
        &mut self,
        directory: InodeNumber,
        name: &[u8],
        child: InodeNumber,
        now: Instant,
    ) -> Option<(Arc<Node>, Trust)> {
        match self.name(directory, name, now) {
            Some((Some(node), trust)) if node.inode == child => Some((node, trust)),
            _ => None,
        }
    }

    fn trust(&self, epoch: u64, at: Instant, now: Instant) -> Trust {
        match self.live {
            _ if epoch == DOUBTED => Trust::Once,
            true if epoch == self.epoch => Trust::For(self.ttl),
            false if now.saturating_duration_since(at) < BRIEFLY => Trust::For(self.ttl.min(BRIEFLY)),
            _ => Trust::Once,
        }
    }
}

impl Trust {
    pub(super) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::For(one), Self::For(two)) => Self::For(one.min(two)),
            _ => Self::Once,
        }
    }

    /// What is changing now is right at this moment, but cannot be kept.
    fn unless(self, changing: bool) -> Self {
        match self {
            Self::For(_) if changing => Self::For(Duration::ZERO),
            other => other,
        }
    }

    /// A fresh answer is right at this moment even where it cannot be kept.
    fn at_least_now(self) -> Self {
        match self {
            Self::Once => Self::For(Duration::ZERO),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests;
