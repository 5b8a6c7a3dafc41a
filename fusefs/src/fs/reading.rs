//! Opening, reading and closing files.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use swarm_proto::{ByteRange, Extent, InodeNumber, Manifest, ManifestDigest};

use super::content::Version;
use super::invalidation::Invalidation;
use super::known::Trust;
use super::node::{Kind, Node};
use super::open_files::{Backing, Mode, Opened, Reading};
use super::siblings::Siblings;
use super::writing::NeverPassed;
use super::{FileSystem, MANIFEST_EXTENTS_MOST, differ};
use crate::errno::{self, Errno};

/// Smaller files are never read by the kernel alone: it gains little there, and whoever reads a handle that it got so
/// sees nothing of what others on this machine write.
const PASSED_BYTES_LEAST: u64 = 1024 * 1024;
/// Largest file that is fetched ahead of a walk.
const WALK_FILE_BYTES_MOST: u64 = 1024 * 1024;
/// Bytes that are fetched ahead of a walk at once.
const WALK_BYTES_MOST: u64 = 32 * 1024 * 1024;
/// How often an open asks again for the version that is current, while this mount saves one after the other.
pub(super) const ASKED_MOST: usize = 8;

/// What a seek looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whence {
    /// The next byte that is stored.
    Data,
    /// The next byte of a hole; the end of a file is one.
    Hole,
}

impl FileSystem {
    /// Open a file for reading, at the version that is current in the whole swarm.
    ///
    /// Shape:  0 is a thread of which the kernel does not say which; `back` gives a complete cache file to the kernel to
    ///         read by itself.
    /// Errors: [`Errno::STALE`] if the inode is gone, or the kernel has to be told what is new of it: it looks its name
    ///         up again.
    pub async fn open(
        self: &Arc<Self>,
        inode: InodeNumber,
        thread: u32,
        back: impl Fn(&File) -> io::Result<Backing> + Send + Sync,
    ) -> Result<Opened, Errno> {
        let opening = self.begin_open(inode, thread);
        for _ in 0..ASKED_MOST {
            let (opened, node) = self.open_current(inode, &back).await?;
            if !self.is_behind(&node) {
                return self.end_open(opening, opened, &node);
            }
            // Saved and let go by this mount since it was asked for.
            self.take_back(&opened);
        }
        let (opened, node) = self.open_current(inode, &back).await?;
        self.end_open(opening, opened, &node)
    }

    /// The kernel is told that a file was opened.
    pub fn count_open(&self, opened: &Opened) {
        let mode = match (&opened.mode, opened.to_write) {
            (Mode::Cached { .. }, false) => "cached",
            (Mode::Passthrough(_), false) => "passthrough",
            (Mode::Direct(_), false) => "direct",
            (Mode::Passthrough(_), true) => "passthrough-writing",
            (Mode::Direct(_) | Mode::Cached { .. }, true) => "writing",
        };
        self.counters.opens.with_label_values(&[mode]).inc();
    }

    /// A file was opened, and the kernel is not told so.
    pub(super) fn take_back(self: &Arc<Self>, opened: &Opened) {
        if let Some(inode) = self.open.inode_of(opened.handle) {
            self.release(opened.handle);
            self.open.forget_pages(inode);
        }
    }

    async fn open_current(
        self: &Arc<Self>,
        inode: InodeNumber,
        back: impl Fn(&File) -> io::Result<Backing> + Send + Sync,
    ) -> Result<(Opened, Arc<Node>), Errno> {
        let (node, version) = self.current(inode).await?;
        let written = self.written(inode);
        if let Some(written) = &written {
            written.meet(&node, &version);
        }
        let mut content = self.content.open(&version);
        if node.size < PASSED_BYTES_LEAST || written.is_some() {
            content = Arc::new(NeverPassed(content));
        }
        let joins = || written.is_some_and(|written| written.is_passed_on());
        let opened = self.open.open(node.clone(), version, content, joins, back);
        self.tell_opened(inode);
        self.follow_walk(inode);
        Ok((opened, node))
    }

    /// Whether this mount knows a newer version, which is one that it has saved.
    pub(super) fn is_behind(&self, node: &Node) -> bool {
        self.known.lock().newer(node.inode, node.version).is_some()
    }

    /// Whether an open needs no question now.
    pub fn is_leased(&self, inode: InodeNumber) -> bool {
        self.known.lock().leased(inode, Instant::now()).is_some()
    }

    /// Bytes of an open file; fewer than `length` only at its end.
    pub async fn read(&self, handle: u64, offset: u64, length: u32) -> Result<Bytes, Errno> {
        let deadline = Instant::now() + self.config.read_timeout;
        let inode = self.open.inode_of(handle).ok_or(Errno::BADF)?;
        if let Some(written) = self.shown_as_written(inode) {
            let bytes = self.read_written(&written, ByteRange::at(offset, length.into()), deadline);
            let bytes = tokio::time::timeout_at(deadline.into(), bytes).await.unwrap_or(Err(Errno::IO))?;
            self.counters.reads.inc();
            self.counters.read_bytes.inc_by(bytes.len() as u64);
            return Ok(bytes);
        }
        let content = match self.open.reading(handle).ok_or(Errno::BADF)? {
            Reading::Content(content) => content,
            Reading::Renew { version, number } => {
                let content = self.content.open(&version);
                self.open.renew(handle, content.clone(), number);
                content
            }
        };
        let bytes = tokio::time::timeout_at(deadline.into(), content.read(offset, length, deadline));
        let bytes = bytes.await.unwrap_or(Err(Errno::IO))?;
        self.counters.reads.inc();
        self.counters.read_bytes.inc_by(bytes.len() as u64);
        Ok(bytes)
    }

    /// A program was started through an open handle: until that is closed, the file is a running program's.
    pub fn runs(&self, handle: u64) {
        if let Some(inode) = self.open.inode_of(handle) {
            self.running.begin(handle, inode);
        }
    }

    /// Whether a program that was started on this mount runs from a file.
    pub fn is_run(&self, inode: InodeNumber) -> bool {
        self.running.has(inode)
    }

    /// Close a file.
    pub fn release(self: &Arc<Self>, handle: u64) {
        self.running.end(handle);
        if let Some(inode) = self.open.inode_of(handle) {
            self.look_for_stores(inode);
            self.leave(handle, inode);
            self.tell_closed(inode);
        }
        let Some(read) = self.open.release(handle) else { return };
        self.leave_last(read.inode);
        let known = self.known.lock().node(read.inode, Instant::now());
        // While it was open the kernel was shown the size of the version that was read.
        if known.is_none_or(|(known, _)| differ(&known, &read)) {
            self.invalidations.send([Invalidation::Attributes(read.inode)]);
        }
    }

    /// The next data or hole from `offset` on.
    ///
    /// Errors: [`Errno::NXIO`] past the end, and if there is no more data.
    pub async fn seek(&self, inode: InodeNumber, offset: u64, whence: Whence) -> Result<u64, Errno> {
        if let Some(written) = self.shown_as_written(inode) {
            return self.seek_written(&written, offset, whence).ok_or(Errno::NXIO);
        }
        let version = match self.open.opened(inode) {
            Some((_, version)) => version,
            None => self.current(inode).await?.1,
        };
        seek(&version.manifest, offset, whence).ok_or(Errno::NXIO)
    }

    /// An inode as it is now in the whole swarm, and its content.
    pub(super) async fn current(&self, inode: InodeNumber) -> Result<(Arc<Node>, Version), Errno> {
        let last = || self.known.lock().node(inode, Instant::now()).map(|(node, _)| (node, None));
        let ticket = self.ticket();
        let known = match self.is_offline() {
            true => last(),
            false => self.known.lock().leased(inode, Instant::now()).map(|node| (node, None)),
        };
        let asked = match known {
            Some(known) => known,
            None => {
                self.counters.asked("open");
                match self.catalog.current(inode).await {
                    Ok(Some(((node, manifest), revision))) => {
                        let node = Arc::new(node);
                        self.learn(|known| known.learn_current(ticket, revision, node.clone(), Instant::now()));
                        // It lives on where it is open. Here it is not: its name was looked up before it lost it.
                        if node.links == 0 && self.open.opened(inode).is_none() {
                            return Err(self.is_gone(inode));
                        }
                        (node, manifest)
                    }
                    Ok(None) => return Err(self.is_gone(inode)),
                    Err(error) => self.or_last(error, last)?,
                }
            }
        };
        let (node, manifest) = asked;
        match node.kind {
            Kind::File => {}
            Kind::Directory => return Err(Errno::ISDIR),
            _ => return Err(Errno::INVAL),
        }
        // Whoever opens it tells the kernel what is new of it; here nobody does.
        let unopened = |_: &Errno| self.invalidations.send([Invalidation::Attributes(inode)]);
        let version = self.version_of(&node, manifest).await.inspect_err(unopened)?;
        Ok((node, version))
    }

    /// An inode is gone, and what it was named is to be asked for: the kernel looks its name up again, whatever is
    /// remembered.
    pub(super) fn is_gone(&self, inode: InodeNumber) -> Errno {
        self.learn(|known| known.gone(inode));
        Errno::STALE
    }

    /// The content of a file, of which the manifest may have come with the inode.
    pub(super) async fn version_of(&self, node: &Node, sent: Option<Arc<Manifest>>) -> Result<Version, Errno> {
        let Some(digest) = node.content else {
            return Ok(Version { digest: None, manifest: Arc::new(Manifest::default()) });
        };
        let remembered = self.manifests.lock().get(&digest).cloned();
        let manifest = match remembered.or(sent).or_else(|| self.content.cached_manifest(&digest)) {
            Some(manifest) => manifest,
            None => {
                self.counters.asked("manifest");
                self.catalog.manifest(digest).await.map_err(|error| {
                    tracing::warn!(%error, inode = %node.inode, "load manifest");
                    errno::of_tracker(&error)
                })?
            }
        };
        if manifest.size() != node.size {
            tracing::error!(inode = %node.inode, "the catalog's size of a file is not that of its manifest");
            return Err(Errno::IO);
        }
        self.remember(digest, &manifest);
        Ok(Version { digest: Some(digest), manifest })
    }

    pub(super) fn remember_version(&self, version: &Version) {
        if let Some(digest) = version.digest {
            self.remember(digest, &version.manifest);
        }
    }

    fn remember(&self, digest: ManifestDigest, manifest: &Arc<Manifest>) {
        if manifest.extents().len() <= MANIFEST_EXTENTS_MOST {
            self.manifests.lock().put(digest, manifest.clone());
        }
    }

    /// If the files of a directory are opened one after the other, have the next ones fetched.
    fn follow_walk(self: &Arc<Self>, inode: InodeNumber) {
        let listing = {
            let mut known = self.known.lock();
            let Some(parent) = known.parent_of(inode) else { return };
            let Some((listing, Trust::For(_))) = known.listing_as_asked(parent, Instant::now()) else { return };
            listing
        };
        let next = Siblings::opened(&mut self.siblings.lock(), &listing, inode);
        let files = |index: &usize| listing.entries[*index].1.kind == Kind::File;
        let next: Vec<InodeNumber> =
            next.into_iter().filter(files).map(|index| listing.entries[index].1.inode).collect();
        if !next.is_empty() {
            let this = self.clone();
            self.tasks.spawn(async move { this.prefetch(next).await });
        }
    }

    /// Ask for all these at once, so that their opens need not, and fetch the bytes of the small ones.
    async fn prefetch(&self, inodes: Vec<InodeNumber>) {
        let ticket = self.ticket();
        self.counters.asked("lease");
        let asked = tokio::time::timeout(self.config.metadata_timeout, self.catalog.lease(inodes));
        let Ok(Ok(leased)) = asked.await else { return };
        let mut bytes = 0;
        let mut versions = Vec::new();
        for (node, manifest) in leased.files {
            let node = Arc::new(node);
            // Large manifests are left for when they are needed. Remembered before the lease, so that an open
            // that finds the lease has nothing left to ask.
            let wanted = node.kind == Kind::File && (manifest.is_some() || node.size <= WALK_FILE_BYTES_MOST);
            let version = if wanted { self.version_of(&node, manifest).await.ok() } else { None };
            if let Some(until) = leased.until {
                self.known.lock().learn_lease(ticket, node.clone(), until);
            }
            // Where the kernel has pages, nearly nothing is asked for.
            if (1..=WALK_FILE_BYTES_MOST).contains(&node.size) && !self.open.has_pages(node.inode, node.version) {
                bytes += node.size;
                versions.extend(version.filter(|_| bytes <= WALK_BYTES_MOST));
            }
        }
        self.counters.prefetched_files.inc_by(versions.len() as u64);
        self.content.prefetch(versions);
    }
}

fn seek(manifest: &Manifest, offset: u64, whence: Whence) -> Option<u64> {
    if offset >= manifest.size() {
        return None;
    }
    let wanted = |extent: &Extent| matches!(extent, Extent::Data { .. }) == (whence == Whence::Data);
    let mut start = 0;
    for extent in manifest.extents() {
        let end = start + extent.length();
        if end > offset && wanted(extent) {
            return Some(start.max(offset));
        }
        start = end;
    }
    // The end of a file is a hole.
    (whence == Whence::Hole).then_some(manifest.size())
}

#[cfg(test)]
mod tests {
    use super::*;
    use swarm_proto::{Segment, SegmentId};

    #[test]
    fn seeks_find_data_and_holes_and_the_end() {
        let data = Extent::whole(Segment { id: SegmentId::new([1; 32]), length: 100 });
        let manifest = Manifest::new(vec![data, Extent::Hole { length: 50 }, data, data]).unwrap();
        let at = |offset, whence| seek(&manifest, offset, whence);
        assert_eq!(at(0, Whence::Data), Some(0));
        assert_eq!(at(30, Whence::Hole), Some(100));
        assert_eq!(at(120, Whence::Hole), Some(120));
        assert_eq!(at(120, Whence::Data), Some(150));
        assert_eq!(at(160, Whence::Hole), Some(350));
        assert_eq!(at(349, Whence::Data), Some(349));
        assert_eq!(at(350, Whence::Data), None);
        assert_eq!(at(350, Whence::Hole), None);
        let sparse = Manifest::new(vec![Extent::Hole { length: 50 }]).unwrap();
        assert_eq!(seek(&sparse, 0, Whence::Data), None);
        assert_eq!(seek(&sparse, 0, Whence::Hole), Some(0));
    }
}
