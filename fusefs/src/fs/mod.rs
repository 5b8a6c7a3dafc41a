//! The file system: what each operation of the kernel means, with no kernel in sight.
//!
//! Not here: the kernel's protocol (`fuse.rs`), and how bytes are fetched and kept (`read`). Inode numbers
//! are those of the catalog. Every operation ends: what asks the tracker or the swarm has a deadline.
//!
//! Invariant: what the kernel may keep for long is taken back when the tracker says that it changed; when
//! the tracker cannot say so, the kernel keeps nothing for more than a second.

pub mod catalog;
pub mod content;
pub mod counters;
pub mod invalidation;
pub mod known;
pub mod node;
pub mod open_files;

mod attributes;
mod changing;
mod directories;
mod own_change;
mod places;
mod reading;
mod retelling;
mod running;
mod siblings;
mod watch;
mod writing;
mod xattr;

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;
use swarm_proto::{Fault, InodeNumber, Manifest, ManifestDigest, v1};
use swarm_seeder::swarm::Locator;
use swarm_seeder::tracker_client::TrackerError;
use tokio_util::task::TaskTracker;

use crate::errno::{self, Errno};
use catalog::Catalog;
use content::Content;
use counters::Counters;
use directories::Directories;
use invalidation::{Invalidation, Invalidations};
use known::{Known, Ticket, Trust};
use node::Node;
use open_files::OpenFiles;
use siblings::Siblings;

pub use attributes::Found;
pub(crate) use changing::nanoseconds;
pub use changing::{Maker, NewAttributes, RenameMode, Special, When};
pub use directories::{Entry, Page};
pub use reading::Whence;
pub use writing::{Reserve, ResizedBy, Writer, Writing};
pub use xattr::{ExtendedMode, USER_PREFIX};

/// Names and inodes that are remembered; about 400 bytes each.
const KNOWN_MOST: usize = 200_000;
/// Manifests that are remembered; most are one extent long.
const MANIFESTS_MOST: NonZeroUsize = NonZeroUsize::new(4 * 1024).expect("not zero");
/// Manifests of more extents are asked for at each open: they would crowd out the others.
const MANIFEST_EXTENTS_MOST: usize = 16 * 1024;

/// What may be done to a mounted swarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everything.
    ReadWrite,
    /// Nothing is changed.
    ReadOnly,
}

/// How a [`FileSystem`] behaves.
#[derive(Debug, Clone)]
pub struct FileSystemConfig {
    /// The folder that is shown as the root.
    pub root: InodeNumber,
    /// How long the kernel may keep names and attributes while changes are pushed.
    pub metadata_ttl: Duration,
    /// How long a question to the tracker may take.
    pub metadata_timeout: Duration,
    /// How long a read may take.
    pub read_timeout: Duration,
    /// With the tracker away, answer from what was known last.
    pub offline_ok: bool,
    /// Whether anything may be changed.
    pub access: Access,
    /// Why the kernel may not read cache files by itself, if it may not.
    pub no_passthrough: Option<String>,
    /// Why it may not write files of the spool by itself, if it may not.
    pub no_passed_writes: Option<String>,
}

/// The kernel, as far as it is told something at once and not through the queue.
pub trait Kernel: Send + Sync + 'static {
    /// Forget the attributes of an inode, not its pages. Never waits for a reply of ours.
    fn forget_attributes(&self, inode: InodeNumber);
}

/// A mounted swarm, without the kernel's protocol.
pub struct FileSystem {
    config: FileSystemConfig,
    catalog: Arc<dyn Catalog>,
    content: Arc<dyn Content>,
    locator: Arc<dyn Locator>,
    known: Mutex<Known>,
    manifests: Mutex<LruCache<ManifestDigest, Arc<Manifest>>>,
    open: OpenFiles,
    running: running::Running,
    retelling: retelling::Retelling,
    directories: Directories,
    siblings: Mutex<Siblings>,
    /// Who keeps files that lose their last name while they are open here.
    announced: OnceLock<swarm_seeder::announcer::OpenFiles>,
    /// None: the mount is read-only.
    writing: Option<Writing>,
    capacity: Mutex<Option<(Instant, v1::StatFsReply)>>,
    invalidations: Invalidations,
    kernel: OnceLock<Arc<dyn Kernel>>,
    status: OnceLock<Box<dyn Fn() -> String + Send + Sync>>,
    counters: Counters,
    /// The tracker did not answer the watch.
    away: AtomicBool,
    /// The mount ends: what is still being saved is cut off.
    ending: AtomicBool,
    /// The newest revision at which a change of this mount was acknowledged.
    changed_at: AtomicU64,
    /// The name that was asked for in vain last, and until when the answer is the same.
    unanswered: Mutex<Option<(InodeNumber, Bytes, Instant)>>,
    tasks: TaskTracker,
}

impl FileSystem {
    /// A file system over a catalog and a source of bytes.
    pub fn new(
        config: FileSystemConfig,
        catalog: Arc<dyn Catalog>,
        content: Arc<dyn Content>,
        locator: Arc<dyn Locator>,
        writing: Option<Writing>,
        invalidations: Invalidations,
        tasks: TaskTracker,
    ) -> Self {
        Self {
            known: Mutex::new(Known::new(config.metadata_ttl, KNOWN_MOST)),
            manifests: Mutex::new(LruCache::new(MANIFESTS_MOST)),
            open: OpenFiles::new(config.no_passthrough.clone(), config.no_passed_writes.clone()),
            running: running::Running::default(),
            retelling: retelling::Retelling::default(),
            directories: Directories::default(),
            siblings: Mutex::new(Siblings::new()),
            capacity: Mutex::new(None),
            kernel: OnceLock::new(),
            status: OnceLock::new(),
            counters: Counters::new(),
            away: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            changed_at: AtomicU64::new(0),
            unanswered: Mutex::new(None),
            config,
            catalog,
            content,
            locator,
            announced: OnceLock::new(),
            writing,
            invalidations,
            tasks,
        }
    }

    /// From now on the kernel can be told things at once.
    pub fn attach(&self, kernel: Arc<dyn Kernel>) {
        // A second kernel cannot be: a file system is mounted once.
        drop(self.kernel.set(kernel));
    }

    /// From now on the trackers are told which files are open.
    pub fn announce_open_files(&self, announced: swarm_seeder::announcer::OpenFiles) {
        // Whoever assembles the mount says it once, before anything is open.
        drop(self.announced.set(announced));
    }

    fn tell_opened(&self, inode: InodeNumber) {
        if let Some(announced) = self.announced.get() {
            announced.opened(inode.0);
        }
    }

    fn tell_closed(&self, inode: InodeNumber) {
        if let Some(announced) = self.announced.get() {
            announced.closed(inode.0);
        }
    }

    /// What the file that says how the mount is shall say.
    pub fn on_status(&self, status: impl Fn() -> String + Send + Sync + 'static) {
        // Whoever assembles the mount says it once.
        drop(self.status.set(Box::new(status)));
    }

    /// The same, now; empty while nobody said it.
    pub fn status_text(&self) -> String {
        self.status.get().map(|status| status()).unwrap_or_default()
    }

    /// How it behaves.
    pub fn config(&self) -> &FileSystemConfig {
        &self.config
    }

    /// What it counts.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Whether the tracker pushes changes.
    pub fn is_live(&self) -> bool {
        self.known.lock().is_live()
    }

    /// Files that are open.
    pub fn open_handles(&self) -> usize {
        self.open.count()
    }

    /// Why the kernel does not read complete cache files by itself; none while it does.
    pub fn no_passthrough(&self) -> Option<String> {
        self.open.no_passthrough()
    }

    /// The kernel may not read cache files by itself, and why.
    pub fn forbid_passthrough(&self, reason: &str) {
        self.open.forbid_passthrough(reason);
    }

    /// Change what is known, and have the kernel forget what follows from it.
    fn learn<T>(&self, change: impl FnOnce(&mut Known) -> T) -> T {
        let mut known = self.known.lock();
        let outcome = change(&mut known);
        // Sent under the lock: nobody learns something newer before the older is taken back.
        self.invalidations.send(known.take_back());
        outcome
    }

    fn ticket(&self) -> Ticket {
        self.known.lock().ticket(self.catalog.newest())
    }

    /// Whether to answer from what was known last without asking.
    fn is_offline(&self) -> bool {
        self.config.offline_ok && self.away.load(Ordering::Relaxed)
    }

    /// What a failed question means: the answer known last, where that is allowed, or an error.
    fn or_last<T>(&self, error: TrackerError, last: impl FnOnce() -> Option<T>) -> Result<T, Errno> {
        let fallback = match &error {
            TrackerError::Unreachable { .. } | TrackerError::Refused { fault: Fault::OtherSwarm, .. }
                if self.config.offline_ok =>
            {
                last()
            }
            _ => None,
        };
        fallback.ok_or_else(|| {
            tracing::debug!(%error, "ask the tracker");
            errno::of_tracker(&error)
        })
    }

    fn forget_attributes_now(&self, inode: InodeNumber) {
        match self.kernel.get() {
            Some(kernel) => kernel.forget_attributes(inode),
            None => self.invalidations.send([Invalidation::Attributes(inode)]),
        }
    }
}

/// How long the kernel may keep an answer; what was right only once is answered again at once.
fn kernel_may_keep(trust: Trust) -> Duration {
    match trust {
        Trust::For(time) => time,
        Trust::Once => Duration::ZERO,
    }
}

/// Whether an answer may be given without asking again.
fn is_good(trust: Trust) -> bool {
    matches!(trust, Trust::For(time) if !time.is_zero())
}

/// Two records of one inode, of which the kernel must not go on showing the older.
fn differ(one: &Node, other: &Node) -> bool {
    one.version != other.version || one.size != other.size || one.modified_ns != other.modified_ns
}
