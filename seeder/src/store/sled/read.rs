//! Bytes out of the store: every run is verified against the tree, and the tree against the id, unless that
//! was done a short while ago and the file has not been touched since (see [`proofs`](super::proofs)).
//!
//! Bytes at rest may rot while we run. Invariant: what did not verify is dropped, durably, before its
//! reader hears of it; what is read while the segment is written anew is read again.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use swarm_proto::{ChunkRange, ChunkTree, Segment, SegmentId};
use tokio::sync::oneshot;

use super::commit::{Change, Lost, Mended};
use super::core::{Core, closed};
use super::schema::{Place, Record, Row};
use crate::store::disk::{Access, DiskFile, Stamp};
use crate::store::segment_file::{self, read_chunks, read_tree, rebuild_tree, write_tree};
use crate::store::{Loan, StoreError, failed};

/// Chunks that a pass over a segment reads at a time.
const PASS_CHUNKS: u32 = 64;
/// How often a segment may be written anew under a reader.
const MOST_TRIES: u32 = 8;

/// Where a trusted tree may come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TreeFrom {
    /// Memory, else the disk.
    Anywhere,
    /// The disk, so that rot of the tree is found.
    Disk,
}

/// Why bytes at rest could not be given out.
enum ReadError {
    /// These chunks do not verify.
    Bad(Vec<u32>),
    /// The tree does not, and the bytes do not hash to the id either; or the file is gone.
    AllBad,
    /// The bytes changed while they were read.
    Again,
    /// A failure that says nothing of the bytes.
    Failed(StoreError),
}

impl From<StoreError> for ReadError {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

/// The open content of one segment.
pub(super) enum Content<'a> {
    File(Box<dyn DiskFile>),
    Inline(&'a Core, u64),
}

impl Core {
    /// Bytes of a run of chunks.
    pub(super) fn read(&self, id: SegmentId, chunks: ChunkRange) -> Result<Bytes, StoreError> {
        self.verified(id, |record| {
            let segment = record.segment(id);
            if !segment.all().contains(chunks) || !record.presence().has(chunks) {
                return Err(StoreError::Partial(id).into());
            }
            let content = self.content(id, record)?;
            let tree = self.tree_of(segment, record, &content, TreeFrom::Anywhere)?;
            if chunks.is_empty() {
                return Ok(Bytes::new());
            }
            // Before the bytes: a change while they are read makes it another.
            let stamp = content.stamp().unwrap_or_default();
            match content.read(segment, chunks) {
                Ok(bytes) if self.is_good(segment, chunks, stamp, || tree.check(chunks, &bytes).is_ok()) => {
                    return Ok(bytes);
                }
                Err(error) if !is_rot(&error) => return Err(failed("read chunks")(error).into()),
                _ => {}
            }
            let bad = bad_chunks(&content, &tree, chunks.iter())?;
            if bad.is_empty() {
                return Err(ReadError::Again);
            }
            // While it is known: what damaged the chunks may have taken the tree, and nothing could be
            // verified without it.
            if !content.read_tree(segment).is_ok_and(|tree| tree.is_some()) {
                self.put_tree_back(&tree, record);
            }
            Err(ReadError::Bad(bad))
        })?
        .map_err(|lost| corrupt(id, &lost))
    }

    /// The file of a segment, if a run of its chunks was verified: now, unless that was done a short while ago.
    pub(super) fn lend(&self, id: SegmentId, chunks: ChunkRange) -> Result<Option<Loan>, StoreError> {
        let record = self.index.get(&id).filter(|record| !record.is_empty()).ok_or(StoreError::Missing(id))?;
        let segment = record.segment(id);
        if record.place != Place::File {
            return Ok(None);
        }
        if !segment.all().contains(chunks) || !record.presence().has(chunks) {
            return Err(StoreError::Partial(id));
        }
        // Before it is looked at, so that it is the file that was verified, or its reader finds it otherwise.
        let file = self.disk.open(&self.home.segment_file(&id), Access::Read);
        let stamp = file.as_ref().ok().and_then(|file| file.stamp().ok().flatten());
        if !stamp.is_some_and(|stamp| self.proofs.hold(segment, chunks, stamp, Instant::now())) {
            self.read(id, chunks)?;
        }
        let descriptor = file.map_err(failed("open a segment's file"))?.into_descriptor();
        Ok(descriptor.map(|file| Loan { file, offset: segment.bytes_of(chunks).start }))
    }

    /// Whether bytes that were just read need no proof, or pass it.
    fn is_good(
        &self,
        segment: Segment,
        chunks: ChunkRange,
        stamp: Option<Stamp>,
        check: impl FnOnce() -> bool,
    ) -> bool {
        let Some(stamp) = stamp else { return check() };
        if self.proofs.hold(segment, chunks, stamp, Instant::now()) {
            return true;
        }
        let is_good = check();
        if is_good {
            self.proofs.enter(segment, chunks, stamp, Instant::now());
        }
        is_good
    }

    /// The tree of a segment.
    pub(super) fn tree(&self, id: SegmentId) -> Result<ChunkTree, StoreError> {
        self.verified(id, |record| {
            let content = self.content(id, record)?;
            self.tree_of(record.segment(id), record, &content, TreeFrom::Anywhere)
        })?
        .map_err(|lost| corrupt(id, &lost))
    }

    /// Read all of a segment again; the chunks that were dropped.
    pub(super) fn reverify(&self, id: SegmentId) -> Result<Vec<u32>, StoreError> {
        self.proofs.forget(&id);
        let outcome = self.verified(id, |record| {
            let segment = record.segment(id);
            let content = self.content(id, record)?;
            let tree = self.tree_of(segment, record, &content, TreeFrom::Disk)?;
            let good = record.chunk_set();
            let mut bad = Vec::new();
            for run in segment.all().runs(PASS_CHUNKS) {
                let is_good = good.contains_all(run)
                    && content.read(segment, run).is_ok_and(|bytes| tree.check(run, &bytes).is_ok());
                if !is_good {
                    bad.extend(bad_chunks(&content, &tree, run.iter().filter(|chunk| good.contains(*chunk)))?);
                }
            }
            if bad.is_empty() { Ok(()) } else { Err(ReadError::Bad(bad)) }
        })?;
        Ok(outcome.err().unwrap_or_default())
    }

    /// Drop what is gone of these segments, as far as the length of their files says so: a touch promises that they
    /// are here, and so spares somebody from sending them.
    pub(super) fn drop_vanished(&self, ids: &[SegmentId]) {
        for id in ids {
            let in_file = |record: &Record| record.place == Place::File && record.is_whole();
            let Some(record) = self.index.get(id).filter(in_file) else { continue };
            let file = self.disk.open(&self.home.segment_file(id), Access::Read);
            let is_there = match file.and_then(|file| file.length()) {
                Ok(length) => length >= segment_file::file_bytes(record.segment(*id)),
                Err(error) => error.kind() != io::ErrorKind::NotFound,
            };
            if !is_there && let Err(error) = self.reverify(*id) {
                tracing::warn!(segment = %id, %error, "look at a segment whose file is gone or short");
            }
        }
    }

    /// Do `work` on the record as it is; `Err` within `Ok` are the chunks that it found bad and that are
    /// dropped now.
    fn verified<T>(
        &self,
        id: SegmentId,
        work: impl Fn(&Record) -> Result<T, ReadError>,
    ) -> Result<Result<T, Vec<u32>>, StoreError> {
        for _ in 0..MOST_TRIES {
            let record = self.index.get(&id).filter(|record| !record.is_empty()).ok_or(StoreError::Missing(id))?;
            let (lost, chunks) = match work(&record) {
                Ok(done) => return Ok(Ok(done)),
                Err(ReadError::Failed(error)) => return Err(error),
                Err(ReadError::Again) => continue,
                Err(ReadError::AllBad) => (Lost::All, record.chunk_set().iter().collect()),
                Err(ReadError::Bad(bad)) => (Lost::Some(bad.clone()), bad),
            };
            if self.drop_now(id, &record, lost)? {
                return Ok(Err(chunks));
            }
        }
        Err(changing("read a segment"))
    }

    /// Drop chunks of the bytes that a record stood for; whether it still did.
    fn drop_now(&self, id: SegmentId, record: &Record, chunks: Lost) -> Result<bool, StoreError> {
        let (reply, answer) = oneshot::channel();
        let change = Change::Drop { id, written: record.written, chunks, reply: Some(reply) };
        self.commits.send(change).map_err(|_| closed())?;
        answer.blocking_recv().map_err(|_| closed())
    }

    fn content(&self, id: SegmentId, record: &Record) -> Result<Content<'_>, ReadError> {
        match record.place {
            Place::Inline(number) => Ok(Content::Inline(self, number.get())),
            Place::File => match self.disk.open(&self.home.segment_file(&id), Access::Read) {
                Ok(file) => Ok(Content::File(file)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Err(ReadError::AllBad),
                Err(error) => Err(failed("open a segment's file")(error).into()),
            },
        }
    }

    fn tree_of(
        &self,
        segment: Segment,
        record: &Record,
        content: &Content<'_>,
        from: TreeFrom,
    ) -> Result<ChunkTree, ReadError> {
        if let (TreeFrom::Anywhere, Some(tree)) = (from, self.trees.get(&segment.id)) {
            return Ok(tree);
        }
        let tree = match content.read_tree(segment) {
            Ok(Some(tree)) => tree,
            Err(error) if !is_rot(&error) => return Err(failed("read a tree")(error).into()),
            _ if !record.is_whole() => return Err(ReadError::AllBad),
            _ => match content.rebuild_tree(segment) {
                Ok(Some(tree)) => {
                    self.put_tree_back(&tree, record);
                    tree
                }
                Err(error) if !is_rot(&error) => return Err(failed("read a segment")(error).into()),
                _ => return Err(ReadError::AllBad),
            },
        };
        self.trees.put(tree.clone());
        Ok(tree)
    }

    /// Write a tree that had rotted to where it belongs.
    fn put_tree_back(&self, tree: &ChunkTree, record: &Record) {
        let id = tree.segment().id;
        let result = match record.place {
            // Through the lane, as a mend of no chunk: the number may be another's garbage by now.
            Place::Inline(_) => {
                let (tree, written, chunks) = (tree.clone(), record.written, ChunkRange::new(0, 0));
                let (reply, _) = oneshot::channel();
                let change = Change::Mend { tree, written, chunks, bytes: Bytes::new(), reply };
                self.commits.send(change).map_err(|_| io::ErrorKind::BrokenPipe.into())
            }
            Place::File => {
                let file = self.disk.open(&self.home.segment_file(&id), Access::Mend);
                file.and_then(|file| write_tree(file.as_ref(), tree))
            }
        };
        match result {
            Ok(()) => tracing::warn!(segment = %id, "a tree had rotted; written again"),
            Err(error) => tracing::warn!(segment = %id, %error, "a tree has rotted and cannot be written"),
        }
    }
}

impl Content<'_> {
    /// Bytes of a run; not verified.
    pub(super) fn read(&self, segment: Segment, chunks: ChunkRange) -> io::Result<Bytes> {
        let (core, number) = match self {
            Self::File(file) => return read_chunks(file.as_ref(), segment, chunks),
            Self::Inline(core, number) => (core, *number),
        };
        let mut bytes = Vec::with_capacity(usize::try_from(segment.bytes_of(chunks).len()).unwrap_or_default());
        for chunk in chunks.iter() {
            let want = segment.bytes_of(ChunkRange::new(0, chunk + 1)).len() - segment.bytes_of(chunks).start;
            core.database.append(Row::Chunk { number, chunk }, &mut bytes)?;
            if bytes.len() as u64 != want {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(bytes.into())
    }

    /// By which a change will be known; none where that cannot be said.
    fn stamp(&self) -> io::Result<Option<Stamp>> {
        match self {
            Self::File(file) => file.stamp(),
            Self::Inline(..) => Ok(None),
        }
    }

    /// The tree as it lies there; `None` if it does not fold to the id.
    pub(super) fn read_tree(&self, segment: Segment) -> io::Result<Option<ChunkTree>> {
        match self {
            Self::File(file) => read_tree(file.as_ref(), segment),
            Self::Inline(_, _) if ChunkTree::wire_len(segment) == 0 => {
                Ok(ChunkTree::verify(segment, Bytes::new()).ok())
            }
            Self::Inline(core, number) => {
                let values = core.database.get(Row::Tree { number: *number })?.unwrap_or_default();
                Ok(ChunkTree::verify(segment, values.into()).ok())
            }
        }
    }

    /// The tree of the bytes as they lie there; `None` if they do not hash to the id.
    pub(super) fn rebuild_tree(&self, segment: Segment) -> io::Result<Option<ChunkTree>> {
        match self {
            Self::File(file) => rebuild_tree(file.as_ref(), segment),
            Self::Inline(..) => {
                let tree = ChunkTree::build(&self.read(segment, segment.all())?);
                Ok((tree.segment() == segment).then_some(tree))
            }
        }
    }
}

/// Which of these chunks do not verify, each read by itself.
fn bad_chunks(
    content: &Content<'_>,
    tree: &ChunkTree,
    chunks: impl Iterator<Item = u32>,
) -> Result<Vec<u32>, StoreError> {
    let mut bad = Vec::new();
    for chunk in chunks {
        let one = ChunkRange::new(chunk, chunk + 1);
        match content.read(tree.segment(), one) {
            Ok(bytes) if tree.check(one, &bytes).is_ok() => {}
            Err(error) if !is_rot(&error) => return Err(failed("read chunks")(error)),
            _ => bad.push(chunk),
        }
    }
    Ok(bad)
}

/// Whether an error of a read means that the bytes are gone, not that we may try again: a short file, a
/// value that the database finds damaged, a sector that cannot be read.
fn is_rot(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let lost = [Errno::IO.raw_os_error(), Errno::UCLEAN.raw_os_error(), Errno::BADMSG.raw_os_error()];
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData)
        || error.raw_os_error().is_some_and(|code| lost.contains(&code))
}

fn corrupt(id: SegmentId, lost: &[u32]) -> StoreError {
    StoreError::Corrupt { id, chunk: lost.first().copied().unwrap_or_default() }
}

fn changing(doing: &'static str) -> StoreError {
    failed(doing)(io::Error::new(io::ErrorKind::Interrupted, "it is written anew all the time"))
}

/// Put verified chunks into a segment that is held in part.
pub(super) async fn mend(
    core: &Arc<Core>,
    tree: ChunkTree,
    chunks: ChunkRange,
    bytes: Bytes,
) -> Result<(), StoreError> {
    let id = tree.segment().id;
    for _ in 0..MOST_TRIES {
        let record = core.index.get(&id).ok_or(StoreError::Missing(id))?;
        if record.segment(id) != tree.segment() {
            return Err(StoreError::Mismatch(id));
        }
        let (given, content, place) = (tree.clone(), bytes.clone(), record.place);
        let write = move |core: &Arc<Core>| match given.check(chunks, &content).is_ok() {
            false => Err(StoreError::Mismatch(id)),
            true if place == Place::File => mend_file(core, &given, chunks, content).map_err(failed("mend a segment")),
            true => Ok(()),
        };
        core.run(write).await??;
        let (reply, answer) = oneshot::channel();
        let change = Change::Mend { tree: tree.clone(), written: record.written, chunks, bytes: bytes.clone(), reply };
        core.commits.send(change).map_err(|_| closed())?;
        match answer.await.map_err(|_| closed())?? {
            Mended::Done => return Ok(()),
            Mended::Changed => {}
        }
    }
    Err(changing("mend a segment"))
}

fn mend_file(core: &Core, tree: &ChunkTree, chunks: ChunkRange, bytes: Bytes) -> io::Result<()> {
    let file = core.disk.open(&core.home.segment_file(&tree.segment().id), Access::Mend)?;
    segment_file::write_chunks(file.as_ref(), tree.segment(), chunks, bytes)?;
    write_tree(file.as_ref(), tree)
}
