//! Takes the bytes of one segment: hashes them as they come and writes them to where they will lie.
//!
//! Acknowledges nothing. Invariant: what a writer that was dropped has written is removed, and nothing
//! becomes a [`Staged`] segment whose bytes do not hash to its id.

use std::any::Any;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use swarm_proto::tree::TreeBuilder;
use swarm_proto::{MAX_SEGMENT_BYTES, Segment};
use tokio::task::JoinHandle;

use super::commit::{Content, Staged};
use super::core::Core;
use super::room::{Reservation, cost};
use super::schema::{Place, Record};
use super::settle::{Chore, Progress, remove_temp};
use crate::store::disk::DiskFile;
use crate::store::segment_file::{file_bytes, write_tree};
use crate::store::{SegmentWriter, StoreError, failed};

/// Bytes gathered before they are hashed and written together.
const PIECE_BYTES: usize = 512 * 1024;
/// Bytes of one segment that are hashed on an async thread.
const HASHED_HERE_MOST: u32 = 64 * 1024;

/// A file that is removed unless it was given its lasting name.
pub(super) struct TempFile {
    core: Arc<Core>,
    path: PathBuf,
    renamed: bool,
}

impl TempFile {
    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// It is somebody else's now.
    pub(super) fn was_renamed(mut self) {
        self.renamed = true;
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if self.renamed {
            return;
        }
        let path = std::mem::take(&mut self.path);
        // Off the async threads while the store is open; here where its lanes have ended.
        if let Err(Chore::Unlink(path)) = self.core.chores.send(Chore::Unlink(path)) {
            remove_temp(&self.core, &path);
        }
    }
}

/// A segment's file while it is being written.
struct Draft {
    // Before `temp`: closed before it is removed.
    file: Box<dyn DiskFile>,
    temp: TempFile,
    builder: TreeBuilder,
}

impl Draft {
    fn create(core: &Arc<Core>, segment: Segment) -> Result<(Self, Reservation), StoreError> {
        core.look_at_disk().map_err(failed("ask the disk for its room"))?;
        let room = core.room.reserve(cost(segment, Place::File))?;
        let path = core.home.temp().join(core.numbers.take().to_string());
        let file = core.disk.create(&path).map_err(failed("create a segment's file"))?;
        let temp = TempFile { core: core.clone(), path, renamed: false };
        file.reserve(file_bytes(segment)).map_err(failed("reserve a segment's file"))?;
        Ok((Self { file, temp, builder: TreeBuilder::default() }, room))
    }

    fn append(mut self, pieces: &[Bytes]) -> Result<Self, StoreError> {
        self.file.write_at(pieces, self.builder.length()).map_err(failed("write a segment"))?;
        pieces.iter().for_each(|piece| self.builder.update(piece));
        Ok(self)
    }

    fn finish(self, segment: Segment) -> Result<Finished, StoreError> {
        let tree = self.builder.finish();
        if tree.segment() != segment {
            return Err(StoreError::Mismatch(segment.id));
        }
        write_tree(self.file.as_ref(), &tree).map_err(failed("write a segment's tree"))?;
        self.temp.core.trees.put(tree);
        Ok(Finished { file: self.file, temp: self.temp })
    }
}

/// A segment's file, complete and verified.
pub(super) struct Finished {
    file: Box<dyn DiskFile>,
    temp: TempFile,
}

enum Step {
    Draft(Box<Draft>),
    Finished(Finished),
}

enum Kind {
    /// Held already: only hashed.
    Known(Box<TreeBuilder>),
    /// Goes into the database.
    Inline,
    /// Goes into a file.
    File(Progressing),
    /// The file is with a caller of this writer that went away, or it never will be complete.
    Failed(StoreError),
}

/// The file is here, or with a worker.
enum Progressing {
    Here(Step),
    Away(JoinHandle<Result<Step, StoreError>>),
}

/// [`SegmentWriter`] of the sled store.
pub(super) struct SledWriter {
    core: Arc<Core>,
    segment: Segment,
    kind: Kind,
    room: Option<Reservation>,
    /// Bytes that came in all.
    received: u64,
    /// Bytes that came and were not handed on.
    pieces: Vec<Bytes>,
    waiting: usize,
}

impl SledWriter {
    /// Prepare for one segment.
    pub(super) async fn begin(core: Arc<Core>, segment: Segment) -> Result<Self, StoreError> {
        if !(1..=MAX_SEGMENT_BYTES).contains(&segment.length) {
            return Err(StoreError::Mismatch(segment.id));
        }
        let held = core.index.get(&segment.id);
        let (kind, room) = if held.as_ref().is_some_and(Record::is_whole) {
            (Kind::Known(Box::default()), None)
        } else if segment.length <= core.config.inline_up_to {
            let place = Place::Inline(std::num::NonZeroU64::MIN);
            (Kind::Inline, Some(core.room.reserve(cost(segment, place))?))
        } else {
            let (draft, room) = core.run(move |core| Draft::create(core, segment)).await??;
            (Kind::File(Progressing::Here(Step::Draft(Box::new(draft)))), Some(room))
        };
        Ok(Self { core, segment, kind, room, received: 0, pieces: Vec::new(), waiting: 0 })
    }

    async fn take(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        self.received += bytes.len() as u64;
        if self.received > u64::from(self.segment.length) {
            self.kind = Kind::Failed(StoreError::Mismatch(self.segment.id));
        }
        match &mut self.kind {
            Kind::Failed(error) => return Err(error.clone()),
            Kind::Known(builder) => builder.update(&bytes),
            Kind::Inline => self.pieces.push(bytes),
            Kind::File(_) => {
                self.waiting += bytes.len();
                self.pieces.push(bytes);
                if self.waiting >= PIECE_BYTES || self.received == u64::from(self.segment.length) {
                    self.hand_on().await?;
                }
            }
        }
        Ok(())
    }

    /// Give what waits to a worker, after the one before: one piece is written while the next comes in.
    async fn hand_on(&mut self) -> Result<(), StoreError> {
        let permit = self.core.workers.clone().acquire_owned().await.map_err(|_| super::core::closed())?;
        let Step::Draft(draft) = self.step().await? else { return Err(self.mismatch()) };
        let pieces = std::mem::take(&mut self.pieces);
        self.waiting = 0;
        let segment = self.segment;
        let is_last = self.received == u64::from(segment.length);
        let job = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let draft = draft.append(&pieces)?;
            match is_last {
                true => draft.finish(segment).map(Step::Finished),
                false => Ok(Step::Draft(Box::new(draft))),
            }
        });
        self.kind = Kind::File(Progressing::Away(job));
        Ok(())
    }

    /// The file, once its worker is done. A caller may give up waiting and ask again.
    async fn step(&mut self) -> Result<Step, StoreError> {
        let result = match &mut self.kind {
            Kind::File(Progressing::Away(job)) => {
                let result = job.await;
                result.unwrap_or_else(|error| Err(failed("write a segment")(std::io::Error::other(error))))
            }
            _ => Err(self.mismatch()),
        };
        let next = Kind::Failed(result.as_ref().err().cloned().unwrap_or_else(|| self.mismatch()));
        match (std::mem::replace(&mut self.kind, next), result) {
            (Kind::File(Progressing::Here(step)), _) => Ok(step),
            (_, result) => result,
        }
    }

    fn mismatch(&self) -> StoreError {
        StoreError::Mismatch(self.segment.id)
    }

    /// Verify that all came; sync the file if asked to.
    pub(super) async fn stage(mut self, sync: Sync, hashed: Hashed) -> Result<Staged, StoreError> {
        let segment = self.segment;
        if self.received != u64::from(segment.length) {
            return Err(StoreError::Mismatch(segment.id));
        }
        let content = match &mut self.kind {
            Kind::Known(builder) => match std::mem::take(builder).finish().segment() == segment {
                true => Content::Known,
                false => return Err(StoreError::Mismatch(segment.id)),
            },
            Kind::Inline => {
                let pieces = std::mem::take(&mut self.pieces);
                let build = || {
                    let mut builder = TreeBuilder::default();
                    pieces.iter().for_each(|piece| builder.update(piece));
                    (pieces, builder.finish())
                };
                let (pieces, tree) = match hashed {
                    Hashed::Here if segment.length <= HASHED_HERE_MOST => build(),
                    _ => self.core.run(move |_| build()).await?,
                };
                if tree.segment() != segment {
                    return Err(StoreError::Mismatch(segment.id));
                }
                Content::Inline { pieces, tree }
            }
            Kind::Failed(error) => return Err(error.clone()),
            Kind::File(_) => {
                let Step::Finished(Finished { file, temp }) = self.step().await? else {
                    return Err(StoreError::Mismatch(segment.id));
                };
                match sync {
                    Sync::Later => Content::File { temp, progress: Progress::File },
                    Sync::Now => {
                        self.core.run(move |_| file.sync()).await?.map_err(failed("sync a segment's file"))?;
                        Content::File { temp, progress: Progress::SyncedFile }
                    }
                }
            }
        };
        Ok(Staged { segment, content, room: self.room.take() })
    }
}

/// Where what goes into the database is hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hashed {
    /// On the caller's thread, if it is short: another one would take longer to wake.
    Here,
    /// Off the async threads.
    Elsewhere,
}

/// When a file is brought to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sync {
    /// Before it is named.
    Now,
    /// In the background.
    Later,
}

impl SegmentWriter for SledWriter {
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, Result<(), StoreError>> {
        self.take(bytes).boxed()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any + Send> {
        self
    }
}
