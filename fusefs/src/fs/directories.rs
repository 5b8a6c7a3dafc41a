//! Open directories. Each keeps one listing for all its pages, so that cursors stay good while names come
//! and go; a rewind takes a new one.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use swarm_proto::InodeNumber;

use super::known::Listing;
use super::node::{Kind, Node};
use super::{FileSystem, is_good, kernel_may_keep};
use crate::errno::Errno;

/// Cursors of `.` and `..`, before those of the entries.
const DOTS: u64 = 2;

#[derive(Default)]
pub(super) struct Directories {
    open: Mutex<HashMap<u64, Open>>,
    next: AtomicU64,
}

struct Open {
    inode: InodeNumber,
    listing: Option<Arc<Listing>>,
}

/// Where to go on in a directory.
pub struct Page {
    /// The directory.
    pub directory: InodeNumber,
    /// The one above it, as far as it is known.
    pub parent: InodeNumber,
    listing: Arc<Listing>,
    cursor: u64,
}

/// One entry of a [`Page`].
pub enum Entry<'a> {
    /// `.`
    Itself,
    /// `..`
    Parent,
    /// A name.
    Named(&'a [u8], &'a Arc<Node>),
}

impl Page {
    /// The entries from here on, each with the cursor after it.
    pub fn entries(&self) -> impl Iterator<Item = (u64, Entry<'_>)> {
        let dots = [Entry::Itself, Entry::Parent].into_iter();
        let names = self.listing.entries.iter().map(|(name, node)| Entry::Named(name, node));
        let skip = usize::try_from(self.cursor).unwrap_or(usize::MAX);
        (1..).zip(dots.chain(names)).skip(skip)
    }

    /// Entries from here on, `.` and `..` among them.
    pub fn remaining(&self) -> u64 {
        (self.listing.entries.len() as u64 + DOTS).saturating_sub(self.cursor)
    }
}

impl FileSystem {
    /// Open a directory; its entries are asked for when they are read.
    pub fn open_directory(&self, inode: InodeNumber) -> u64 {
        let handle = self.directories.next.fetch_add(1, Ordering::Relaxed) + 1;
        self.directories.open.lock().insert(handle, Open { inode, listing: None });
        handle
    }

    /// Close it.
    pub fn close_directory(&self, handle: u64) {
        self.directories.open.lock().remove(&handle);
    }

    /// Entries from `cursor` on, if they can be answered at once.
    pub fn page_known(&self, handle: u64, cursor: u64) -> Option<Page> {
        let mut open = self.directories.open.lock();
        let open = open.get_mut(&handle)?;
        if cursor == 0 || open.listing.is_none() {
            let (listing, trust) = self.known.lock().listing(open.inode, Instant::now())?;
            if !is_good(trust) {
                return None;
            }
            open.listing = Some(listing);
        }
        let listing = open.listing.clone()?;
        Some(self.page(listing, cursor))
    }

    /// Entries from `cursor` on.
    pub async fn page_at(&self, handle: u64, cursor: u64) -> Result<Page, Errno> {
        let inode = self.directories.open.lock().get(&handle).map(|open| open.inode).ok_or(Errno::BADF)?;
        let listing = self.listing(inode).await?;
        if let Some(open) = self.directories.open.lock().get_mut(&handle) {
            open.listing = Some(listing.clone());
        }
        Ok(self.page(listing, cursor))
    }

    /// An entry's inode as the kernel shall see it now, and how long it may keep name and attributes.
    pub fn entry_now(&self, directory: InodeNumber, name: &[u8], listed: &Arc<Node>) -> (Arc<Node>, Duration) {
        let now = Instant::now();
        let given = self.learn(|known| known.give_entry(directory, name, listed.inode, now));
        // The listing may be older than a change; then the kernel asks again at once.
        let (node, keep) =
            given.map_or((listed.clone(), Duration::ZERO), |(node, trust)| (node, kernel_may_keep(trust)));
        (self.as_shown(node), keep)
    }

    /// All entries of a directory, as they are or were at most a moment ago.
    pub(super) async fn listing(&self, inode: InodeNumber) -> Result<Arc<Listing>, Errno> {
        let known = || self.known.lock().listing(inode, Instant::now());
        if let Some((listing, trust)) = known()
            && (is_good(trust) || self.is_offline())
        {
            return Ok(listing);
        }
        let ticket = self.ticket();
        self.counters.asked("read_dir");
        match self.catalog.read_dir(inode).await {
            Ok(entries) => Ok(self.learn(|known| known.learn_listing(ticket, inode, entries, Instant::now()))),
            Err(error) => self.or_last(error, || known().map(|(listing, _)| listing)).map_err(|errno| match errno {
                // The directory itself is gone: the kernel looks its name up again.
                Errno::NOENT => Errno::STALE,
                other => other,
            }),
        }
    }

    fn page(&self, listing: Arc<Listing>, cursor: u64) -> Page {
        let directory = listing.directory;
        let parent = self.known.lock().parent_of(directory).unwrap_or(directory);
        Page { directory, parent, listing, cursor }
    }
}

impl Entry<'_> {
    /// What it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Itself | Self::Parent => Kind::Directory,
            Self::Named(_, node) => node.kind,
        }
    }
}
