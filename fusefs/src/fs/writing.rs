//! Files that are open for writing: handles, writes, sizes.
//!
//! A file that is being written has one [`Unsaved`] on this mount, whichever handles it has: all of them read through
//! it, so that a write is seen at once by everybody here. It goes when the last handle that writes is closed and all
//! is saved; where it has no name any more, so that nothing is saved, with the last handle at all.

mod conflict;
mod copy;
mod ending;
mod joining;
mod letting_go;
mod owed;
mod passing;
mod raise;
mod reading;
mod resend;
mod resume;
mod save;
mod sizes;
mod stores;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt;
use parking_lot::Mutex;
use swarm_proto::{ByteRange, InodeNumber};
use swarm_seeder::store::AckLevel;

use super::changing::{Maker, now_ns};
use super::content::{OpenContent, Version};
use super::invalidation::Invalidation;
use super::node::Node;
use super::open_files::{Backing, Mode, Opened};
use super::reading::ASKED_MOST;
use super::{FileSystem, Found};
use owed::Owed;
use save::Saved;

use crate::errno::Errno;
use crate::write::pieces::{Source, Stamp};
use crate::write::unsaved::{At, Base, Unsaved};
use crate::write::{Debts, Outbox, Spool};

pub use passing::Writer;
pub use sizes::{Reserve, ResizedBy};

/// Largest file: what `off_t` can say.
const MOST_BYTES: u64 = i64::MAX as u64;

/// What writing needs.
pub struct Writing {
    outbox: Arc<dyn Outbox>,
    spool: Arc<Spool>,
    swarm: String,
    /// Names conflict copies.
    host: String,
    timeout: Duration,
    /// A close does not wait.
    writeback: bool,
    open: Mutex<Open>,
    owed: Mutex<Owed>,
    /// None: what seeders lack of what was saved is not remembered.
    debts: Option<Debts>,
}

#[derive(Default)]
struct Open {
    files: HashMap<InodeNumber, Arc<Written>>,
    /// Handles that write, and what else they may.
    handles: HashMap<u64, Writer>,
}

/// A file under way, and how what it is based on is read.
pub(super) struct Written {
    unsaved: Unsaved,
    base: Mutex<Option<(u64, Arc<dyn OpenContent>)>>,
    /// How a save ended that nobody waited for: for whoever closes or syncs next.
    failed: Mutex<Option<Errno>>,
    /// It has no name any more and is not saved: all that is left of it goes with its last handle.
    nameless: AtomicBool,
}

impl Writing {
    /// Files are kept in `spool` until `outbox` has them at the seeders; a wait without progress ends after `timeout`.
    pub fn new(outbox: Arc<dyn Outbox>, spool: Arc<Spool>, swarm: String, timeout: Duration) -> Self {
        let (open, owed) = (Mutex::default(), Mutex::default());
        Self {
            outbox,
            spool,
            swarm,
            host: conflict::this_machine(),
            timeout,
            writeback: false,
            open,
            owed,
            debts: None,
        }
    }

    /// What this machine is called in the names of conflict copies; empty: as it calls itself.
    pub fn with_host(self, host: &str) -> Self {
        match host {
            "" => self,
            _ => Self { host: host.to_owned(), ..self },
        }
    }

    /// Where it is remembered what seeders lack of what was saved.
    pub fn with_debts(self, debts: Debts) -> Self {
        Self { debts: Some(debts), ..self }
    }

    /// Whether a close returns at once and what was written is saved meanwhile.
    pub fn with_writeback(self, writeback: bool) -> Self {
        Self { writeback, ..self }
    }

    fn find(&self, inode: InodeNumber) -> Option<Arc<Written>> {
        self.open.lock().files.get(&inode).cloned()
    }

    /// One more writes a file that is under way; none: it is not.
    fn join(&self, inode: InodeNumber) -> Option<Arc<Written>> {
        let open = self.open.lock();
        let written = open.files.get(&inode)?;
        written.unsaved.enter();
        Some(written.clone())
    }
}

/// A version that is read through the daemon, whatever of it is in the cache.
pub(super) struct NeverPassed(pub(super) Arc<dyn OpenContent>);

impl OpenContent for NeverPassed {
    fn read(
        &self,
        offset: u64,
        length: u32,
        deadline: Instant,
    ) -> futures::future::BoxFuture<'_, Result<Bytes, Errno>> {
        self.0.read(offset, length, deadline)
    }

    fn complete_file(&self) -> Option<Arc<std::fs::File>> {
        None
    }
}

impl Written {
    fn new(unsaved: Unsaved) -> Self {
        Self { unsaved, base: Mutex::default(), failed: Mutex::default(), nameless: AtomicBool::new(false) }
    }

    /// Somebody opens it at this version.
    pub(super) fn meet(&self, node: &Node, version: &Version) {
        self.unsaved.meet(&base_of(node, version));
    }
}

fn base_of(node: &Node, version: &Version) -> Base {
    Base { version: node.version, digest: version.digest, manifest: version.manifest.clone() }
}

impl FileSystem {
    fn writing(&self) -> Result<&Writing, Errno> {
        self.writing.as_ref().ok_or(Errno::ROFS)
    }

    pub(super) fn written(&self, inode: InodeNumber) -> Option<Arc<Written>> {
        self.writing.as_ref()?.find(inode)
    }

    /// A file under way, if it and not the version that is open is what processes of this mount read.
    pub(super) fn shown_as_written(&self, inode: InodeNumber) -> Option<Arc<Written>> {
        self.written(inode).filter(|written| !written.unsaved.is_outdated())
    }

    /// Where unsaved bytes lie; none in a read-only mount.
    pub fn spool_folder(&self) -> Option<&std::path::Path> {
        Some(self.writing.as_ref()?.spool.folder())
    }

    /// Files that are open for writing or not saved yet.
    pub fn unsaved_files(&self) -> usize {
        self.writing.as_ref().map_or(0, |writing| writing.open.lock().files.len())
    }

    /// Open a file for writing, at the version that is current in the whole swarm unless this mount has unsaved
    /// bytes of it.
    ///
    /// Shape:  0 is a thread of which the kernel does not say which; `back` gives a file of the spool to the kernel to
    ///         write by itself, which is done only with what is empty then.
    /// Errors: as [`Self::open`] has them.
    pub async fn open_to_write(
        self: &Arc<Self>,
        inode: InodeNumber,
        thread: u32,
        truncate: bool,
        writer: Writer,
        back: impl Fn(&File) -> io::Result<Backing> + Send + Sync,
    ) -> Result<Opened, Errno> {
        self.writing()?;
        let opening = self.begin_open(inode, thread);
        let mut asked = 0;
        let (opened, node) = loop {
            let (written, node, version) = self.join_current(inode).await?;
            let opened = self.enter(&written, node.clone(), version, writer, Some(&back).filter(|_| truncate))?;
            asked += 1;
            if asked >= ASKED_MOST || !self.is_behind(&node) {
                break (opened, node);
            }
            self.take_back(&opened);
        };
        let opened = self.end_open(opening, opened, &node)?;
        if truncate && let Err(error) = self.cut(inode, 0) {
            self.release(opened.handle);
            return Err(error);
        }
        if truncate {
            // The kernel has made it empty by itself.
            self.forget_attributes_now(inode);
        }
        Ok(opened)
    }

    /// Make a file and open it for writing; `back` as [`Self::open_to_write`] has it.
    pub async fn create(
        self: &Arc<Self>,
        parent: InodeNumber,
        name: Bytes,
        maker: Maker,
        writer: Writer,
        back: impl FnOnce(&File) -> io::Result<Backing> + Send,
    ) -> Result<(Found, Opened), Errno> {
        self.writing()?;
        let found = self.make_file(parent, name, maker).await?;
        let node = found.node.clone().ok_or(Errno::IO)?;
        let version = self.version_of(&node, None).await?;
        let back = Some(back).filter(|_| version.manifest.size() == 0);
        let written = self.join_or_begin(&node, &version)?;
        let opened = self.enter(&written, node, version, writer, back)?;
        Ok((found, opened))
    }

    /// One more writes a file, at the version that is current.
    pub(super) async fn join_current(
        self: &Arc<Self>,
        inode: InodeNumber,
    ) -> Result<(Arc<Written>, Arc<Node>, Version), Errno> {
        let (mut node, mut version) = self.current(inode).await?;
        let mut written = self.join_or_begin(&node, &version)?;
        // Saved and let go by this mount since it was asked for: what is written now would be over the version before.
        for _ in 0..ASKED_MOST {
            if !self.is_behind(&node) {
                break;
            }
            self.part(written);
            (node, version) = self.current(inode).await?;
            written = self.join_or_begin(&node, &version)?;
        }
        Ok((written, node, version))
    }

    /// One more writes a file, which is opened at this version unless it is under way.
    fn join_or_begin(&self, node: &Node, version: &Version) -> Result<Arc<Written>, Errno> {
        let writing = self.writing()?;
        let (inode, base) = (node.inode, base_of(node, version));
        let path = self.path_of(inode);
        let mut open = writing.open.lock();
        let new = || {
            let (swarm, spool) = (writing.swarm.clone(), writing.spool.clone());
            let unsaved = Unsaved::new(inode, swarm, path, base, spool, writing.outbox.segment_bytes());
            Arc::new(Written::new(unsaved))
        };
        let written = open.files.entry(inode).or_insert_with(new).clone();
        written.unsaved.enter();
        Ok(written)
    }

    fn enter(
        &self,
        written: &Arc<Written>,
        node: Arc<Node>,
        version: Version,
        writer: Writer,
        back: Option<impl FnOnce(&File) -> io::Result<Backing>>,
    ) -> Result<Opened, Errno> {
        let writing = self.writing()?;
        let (inode, base) = (node.inode, base_of(&node, &version));
        written.unsaved.leave_outdated(&base);
        written.unsaved.meet(&base);
        let content = Arc::new(NeverPassed(self.content.open(&version)));
        let back = back.filter(|_| writer == Writer::Plain);
        let opened = self.open.open_to_write(node, version, content, || written.is_passed_on(), || written.pass(back?));
        if writer == Writer::Reads && !matches!(opened.mode, Mode::Cached { .. }) {
            written.unsaved.may_be_mapped();
        }
        self.tell_opened(inode);
        writing.open.lock().handles.insert(opened.handle, writer);
        Ok(opened)
    }

    /// Write bytes to a file that is open for that.
    ///
    /// Errors: [`Errno::NOSPC`] if the spool's disk is full; nothing was written then.
    /// Cost:   one copy into the page cache of the spool's disk, on the caller's thread.
    pub fn write(self: &Arc<Self>, inode: InodeNumber, at: At, bytes: &[u8], offset: u64) -> Result<u32, Errno> {
        let written = self.written(inode).ok_or(Errno::BADF)?;
        let end = offset.checked_add(bytes.len() as u64).filter(|end| *end <= MOST_BYTES);
        end.ok_or(Errno::FBIG)?;
        let done = written.unsaved.write(at, bytes, now_ns()).map_err(|error| spool_error(&error))?;
        if at == At::End {
            // Not through the kernel's cache, and perhaps behind what somebody else had appended: its last page is old.
            self.invalidations.send([Invalidation::Content(inode), Invalidation::Attributes(inode)]);
        }
        for range in done.filled {
            self.send_early(&written, range, done.stamp);
        }
        self.counters.written_bytes.inc_by(bytes.len() as u64);
        u32::try_from(bytes.len()).map_err(|_| Errno::INVAL)
    }

    fn send_early(&self, written: &Arc<Written>, range: ByteRange, stamp: Stamp) {
        let Some(writing) = &self.writing else { return };
        let Ok(file) = written.unsaved.file() else { return };
        let outbox = writing.outbox.clone();
        let sending = self.tasks.spawn(async move { outbox.send(file.file().clone(), range).await.ok().map(Arc::new) });
        written.unsaved.sends_early(range, stamp, async move { sending.await.ok().flatten() }.boxed().shared());
    }

    /// A handle is being closed: save what is unsaved.
    ///
    /// Errors: with writeback, also how an earlier save ended that nobody waited for.
    pub async fn flush(self: &Arc<Self>, inode: InodeNumber) -> Result<(), Errno> {
        let Some(written) = self.written(inode) else { return Ok(()) };
        if let Some(error) = written.failed.lock().take() {
            return Err(error);
        }
        match self.writing()?.writeback {
            true => self.save_behind(written),
            false => return self.save(&written, AckLevel::Close).await.map(|_| ()),
        }
        Ok(())
    }

    /// Save what is unsaved while nobody waits; if this process dies, its next one goes on.
    fn save_behind(self: &Arc<Self>, written: Arc<Written>) {
        if !written.unsaved.is_dirty() {
            return;
        }
        written.unsaved.tell_saving();
        let this = self.clone();
        self.tasks.spawn(async move {
            if let Err(error) = this.save(&written, AckLevel::Close).await {
                *written.failed.lock() = Some(error);
            }
        });
    }

    /// fsync(2): save what is unsaved; that, and all that a close had acknowledged before, survives a power cut.
    ///
    /// Errors: as [`Self::flush`]; [`Errno::IO`] if too few seeders could write out what was acknowledged, and there was
    ///         nobody else to send it to in time.
    pub async fn sync(self: &Arc<Self>, inode: InodeNumber) -> Result<(), Errno> {
        if self.writing.is_none() {
            return Ok(());
        }
        let written = self.written(inode);
        if let Some(error) = written.as_ref().and_then(|written| written.failed.lock().take()) {
            return Err(error);
        }
        let saved = match &written {
            Some(written) => self.save(written, AckLevel::Fsync).await?,
            None => Saved::Already,
        };
        let version = match &written {
            Some(written) => {
                let base = written.unsaved.base();
                Some(Version { digest: base.digest, manifest: base.manifest })
            }
            None => self.open.opened(inode).map(|(_, version)| version),
        };
        if let (Some(version), Saved::Here | Saved::Already) = (version, saved) {
            self.raise(inode, &version).await?;
        }
        match saved {
            // Its commit was asked to be durable, and with it all before it.
            Saved::Here | Saved::Nameless => Ok(()),
            Saved::Already => self.sync_names(self.config.root).await,
        }
    }

    /// Times of a file that is not saved yet; they go with its save. False: nothing of it is unsaved.
    pub(super) fn set_times_of_unsaved(
        &self,
        inode: InodeNumber,
        modified_ns: Option<i64>,
        accessed_ns: Option<i64>,
    ) -> bool {
        let some = modified_ns.is_some() || accessed_ns.is_some();
        some && self.written(inode).is_some_and(|written| written.unsaved.set_times(modified_ns, accessed_ns, now_ns()))
    }

    /// An inode as processes of this mount see it while it is being written.
    pub(super) fn as_written(&self, node: Arc<Node>) -> Arc<Node> {
        let Some(written) = self.written(node.inode) else { return node };
        if !written.unsaved.is_dirty() {
            return node;
        }
        let shape = written.unsaved.shape();
        Arc::new(Node {
            size: shape.size,
            allocated: shape.allocated,
            modified_ns: shape.modified_ns.unwrap_or(node.modified_ns),
            changed_ns: shape.changed_ns.map_or(node.changed_ns, |changed| changed.max(node.changed_ns)),
            accessed_ns: shape.accessed_ns.unwrap_or(node.accessed_ns),
            ..(*node).clone()
        })
    }
}

/// What a failure of the spool's disk means to a writer.
fn spool_error(error: &std::io::Error) -> Errno {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Errno::NOSPC,
        std::io::ErrorKind::FileTooLarge => Errno::FBIG,
        std::io::ErrorKind::NotFound => {
            tracing::error!(%error, "the folder of the spool is gone: unmount, and mount again");
            Errno::IO
        }
        _ => {
            tracing::error!(%error, "write to the spool");
            Errno::IO
        }
    }
}
