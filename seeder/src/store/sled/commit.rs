//! The commit lane: the only writer of records, by its thread or, for little, its callers'. Takes what waits as one group, one batch and one flush.
//!
//! Moves no segment bytes of files (those are written before) and syncs nothing (that is `settle`).
//! Invariant: the index changes after the database was flushed, and a reply comes after both; chunks
//! found bad leave the index even where the database fails.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::time::Duration;

use bytes::Bytes;
use swarm_proto::{CHUNK_BYTES, ChunkRange, ChunkTree, Segment, SegmentId};
use tokio::sync::oneshot;

use super::core::{Core, now_ms};
use super::database::Writes;
use super::room::{Reservation, cost};
use super::schema::{Keys, Place, Record, Row, Setting};
use super::settle::Progress;
use super::writer::TempFile;
use crate::store::{StoreError, failed};

/// A segment whose bytes were verified.
pub(super) struct Staged {
    pub(super) segment: Segment,
    pub(super) content: Content,
    /// Given back when the record takes the room, or the writer is dropped.
    pub(super) room: Option<Reservation>,
}

impl Staged {
    /// Taking it moves no file.
    pub(super) fn is_in_memory(&self) -> bool {
        matches!(self.content, Content::Known | Content::Inline { .. })
    }
}

/// Where the bytes of a staged segment are.
pub(super) enum Content {
    /// It was held whole before: the bytes were verified and let go.
    Known,
    /// In memory.
    Inline { pieces: Vec<Bytes>, tree: ChunkTree },
    /// In a temporary file, tree and all; synced or not.
    File { temp: TempFile, progress: Progress },
}

/// What becomes of a mend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mended {
    /// The chunks are there.
    Done,
    /// The segment was written anew meanwhile: look again.
    Changed,
}

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// What the lane does.
pub(super) enum Change {
    /// Take segments; outcomes in order.
    Store { staged: Vec<Staged>, keep: Duration, reply: oneshot::Sender<Vec<Result<(), StoreError>>> },
    /// Keep segments that are held whole; stamps in order, 0 for others.
    Touch { ids: Vec<SegmentId>, keep: Duration, reply: Reply<Vec<u64>> },
    /// Drop chunks of bytes written under a number; answers whether they were still those.
    Drop { id: SegmentId, written: u64, chunks: Lost, reply: Option<oneshot::Sender<bool>> },
    /// Chunks were written in place (a file) or come along (inline).
    Mend { tree: ChunkTree, written: u64, chunks: ChunkRange, bytes: Bytes, reply: Reply<Mended> },
}

/// Chunks found bad.
pub(super) enum Lost {
    /// All.
    All,
    /// These.
    Some(Vec<u32>),
}

impl Change {
    /// The bytes written under a number may never have reached the disk.
    pub(super) fn lose(id: SegmentId, written: u64) -> Self {
        Self::Drop { id, written, chunks: Lost::All, reply: None }
    }
}

/// Tells one caller how the group ended.
type Finish = Box<dyn FnOnce(Option<&StoreError>) + Send>;

/// One group while it is being put together.
struct Group<'a> {
    core: &'a Core,
    writes: Writes,
    records: HashMap<SegmentId, Record>,
    /// Numbers begun, and what they become.
    begun: Vec<(u64, SegmentId, Progress)>,
    /// Of chunks lost.
    lost: Vec<SegmentId>,
    /// Inline numbers that no record names any more.
    garbage: Vec<u64>,
    /// Files given their names for segments that had no record.
    named: Vec<SegmentId>,
    reservations: Vec<Reservation>,
    finish: Vec<Finish>,
}

/// Do one group; waits for whoever does another.
pub(super) fn commit(core: &Core, changes: Vec<Change>) {
    let _turn = core.commit_turn.take();
    commit_now(core, changes);
}

/// Do a small change on a thread that must not wait; returns it if that could take long.
pub(super) fn commit_here(core: &Core, change: Change) -> Option<Change> {
    let turn = if core.database.is_crowded() { None } else { core.commit_turn.take_at_once() };
    match turn {
        Some(_turn) => {
            commit_now(core, vec![change]);
            None
        }
        None => Some(change),
    }
}

fn commit_now(core: &Core, changes: Vec<Change>) {
    let mut group = Group {
        core,
        writes: Vec::new(),
        records: HashMap::new(),
        begun: Vec::new(),
        lost: Vec::new(),
        garbage: Vec::new(),
        named: Vec::new(),
        reservations: Vec::new(),
        finish: Vec::new(),
    };
    for change in changes {
        match change {
            Change::Store { staged, keep, reply } => group.store(staged, keep, reply),
            Change::Touch { ids, keep, reply } => group.touch(&ids, keep, reply),
            Change::Drop { id, written, chunks, reply } => group.drop_chunks(id, written, &chunks, reply),
            Change::Mend { tree, written, chunks, bytes, reply } => group.mend(&tree, written, chunks, &bytes, reply),
        }
    }
    group.end();
}

impl Group<'_> {
    fn record(&self, id: &SegmentId) -> Option<Record> {
        self.records.get(id).cloned().or_else(|| self.core.index.get(id))
    }

    fn store(&mut self, staged: Vec<Staged>, keep: Duration, reply: oneshot::Sender<Vec<Result<(), StoreError>>>) {
        let kept_until_ms = kept_until(keep);
        let outcomes: Vec<_> = staged.into_iter().map(|staged| self.store_one(staged, kept_until_ms)).collect();
        self.finish.push(Box::new(move |failure| {
            let outcomes = outcomes.into_iter().map(|outcome| match failure {
                Some(error) => outcome.and(Err(error.clone())),
                None => outcome,
            });
            // An error says that the caller has gone; so everywhere below.
            let _ = reply.send(outcomes.collect());
        }));
    }

    fn store_one(&mut self, staged: Staged, kept_until_ms: u64) -> Result<(), StoreError> {
        let Segment { id, length } = staged.segment;
        let old = self.record(&id);
        if let Some(mut record) = old.clone().filter(Record::is_whole) {
            record.kept_until_ms = record.kept_until_ms.max(kept_until_ms);
            record.touched = self.core.numbers.take();
            self.records.insert(id, record);
            return Ok(());
        }
        let begin = || self.core.unsettled.begin(&self.core.numbers, id);
        let give_up = |number| self.core.unsettled.remove([number]);
        let (number, place, progress) = match staged.content {
            // It was whole when its bytes came, and chunks were dropped as corrupt since.
            Content::Known => return Err(StoreError::Missing(id)),
            Content::Inline { pieces, tree } => {
                let number = begin();
                self.put_inline(number, &pieces.concat().into(), tree.segment().all(), &tree);
                (number, Place::Inline(NonZeroU64::new(number).expect("numbers start at 1")), Progress::Inline)
            }
            Content::File { temp, progress } => {
                let number = begin();
                let named = self.core.disk.rename(temp.path(), &self.core.home.segment_file(&id));
                named.map_err(failed("name a segment's file")).inspect_err(|_| give_up(number))?;
                temp.was_renamed();
                if old.is_none() {
                    self.named.push(id);
                }
                (number, Place::File, progress)
            }
        };
        self.forget_inline(old.as_ref());
        self.begun.push((number, id, progress));
        self.reservations.extend(staged.room);
        let kept_until_ms = old.map_or(0, |old| old.kept_until_ms).max(kept_until_ms);
        self.records
            .insert(id, Record { length, place, written: number, touched: number, kept_until_ms, partial: None });
        Ok(())
    }

    /// Put chunks, and the tree if there is one, under a number that no flushed record names, or chunks
    /// that no flushed record has.
    fn put_inline(&self, number: u64, bytes: &Bytes, chunks: ChunkRange, tree: &ChunkTree) {
        for (chunk, value) in chunks.iter().zip(bytes.chunks(CHUNK_BYTES as usize)) {
            self.core.database.put(Row::Chunk { number, chunk }, value);
        }
        if !tree.values().is_empty() {
            self.core.database.put(Row::Tree { number }, tree.values());
        }
    }

    fn forget_inline(&mut self, old: Option<&Record>) {
        if let Some(Place::Inline(number)) = old.map(|old| old.place) {
            self.writes.push((Row::Garbage { number: number.get() }, Some(Vec::new())));
            self.garbage.push(number.get());
        }
    }

    fn touch(&mut self, ids: &[SegmentId], keep: Duration, reply: Reply<Vec<u64>>) {
        let kept_until_ms = kept_until(keep);
        let mut stamps = Vec::with_capacity(ids.len());
        for id in ids {
            let Some(mut record) = self.record(id).filter(Record::is_whole) else {
                stamps.push(0);
                continue;
            };
            record.touched = self.core.numbers.take();
            record.kept_until_ms = record.kept_until_ms.max(kept_until_ms);
            stamps.push(record.touched);
            self.records.insert(*id, record);
        }
        self.answer(reply, stamps);
    }

    fn drop_chunks(&mut self, id: SegmentId, written: u64, lost: &Lost, reply: Option<oneshot::Sender<bool>>) {
        let record = self.record(&id).filter(|record| record.written == written);
        let are_those = record.is_some();
        if let Some(mut record) = record {
            let mut chunks = record.chunk_set();
            match lost {
                Lost::All => chunks.remove(ChunkRange::new(0, record.chunks())),
                Lost::Some(lost) => lost.iter().for_each(|chunk| chunks.remove(ChunkRange::new(*chunk, *chunk + 1))),
            }
            if matches!(lost, Lost::All) {
                self.core.unsettled.remove([written]);
            }
            if chunks.count() < record.chunk_set().count() {
                tracing::warn!(segment = %id, good = chunks.count(), of = chunks.length(), "bad chunks dropped");
                record.set_chunks(chunks);
                self.lost.push(id);
                self.records.insert(id, record);
            }
        }
        self.finish.push(Box::new(move |_| {
            let _ = reply.map(|reply| reply.send(are_those));
        }));
    }

    fn mend(&mut self, tree: &ChunkTree, written: u64, chunks: ChunkRange, bytes: &Bytes, reply: Reply<Mended>) {
        let id = tree.segment().id;
        let Some(mut record) = self.record(&id).filter(|record| record.written == written) else {
            return self.answer(reply, Mended::Changed);
        };
        let number = self.core.unsettled.begin(&self.core.numbers, id);
        let progress = match record.place {
            Place::File => Progress::File,
            Place::Inline(place) => {
                self.put_inline(place.get(), bytes, chunks, tree);
                Progress::Inline
            }
        };
        self.begun.push((number, id, progress));
        let mut good = record.chunk_set();
        good.insert(chunks);
        record.set_chunks(good);
        record.written = number;
        self.records.insert(id, record);
        self.answer(reply, Mended::Done);
    }

    fn answer<T: Send + 'static>(&mut self, reply: Reply<T>, answer: T) {
        self.finish.push(Box::new(move |failure| {
            let _ = reply.send(failure.map_or(Ok(answer), |error| Err(error.clone())));
        }));
    }

    fn end(mut self) {
        let failure = self.flush().err();
        if let Some(error) = &failure {
            tracing::error!(%error, "the database did not take a group of changes");
            self.core.unsettled.remove(self.begun.iter().map(|(number, ..)| *number));
            for id in &self.named {
                super::settle::remove_temp(self.core, &self.core.home.segment_file(id));
            }
            // Bad chunks are not served, whatever the database says.
            for id in std::mem::take(&mut self.lost) {
                let Some(lost) = self.records.get(&id).and_then(|record| record.partial.clone()) else { continue };
                if let Some(mut record) = self.core.index.get(&id) {
                    record.set_chunks(*lost);
                    self.core.index.set(id, Some(record));
                    self.core.changed(id);
                }
            }
        } else {
            for (number, id, progress) in &self.begun {
                self.core.unsettled.set(*number, *id, *progress);
            }
            for (id, record) in std::mem::take(&mut self.records) {
                self.enter(id, record);
            }
        }
        drop(self.reservations);
        for finish in self.finish {
            finish(failure.as_ref());
        }
        if failure.is_none() {
            for number in self.garbage {
                if let Err(error) = collect(self.core, number) {
                    tracing::warn!(%error, "cannot remove dropped chunks; done at the next start");
                }
            }
        }
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        if self.records.is_empty() {
            return Ok(());
        }
        let rows = self.records.iter().map(|(id, record)| (Row::Segment(*id), Some(record.encode(id))));
        self.writes.extend(rows);
        let next = self.core.numbers.next().to_le_bytes().to_vec();
        self.writes.push((Row::Setting(Setting::Next), Some(next)));
        let writes = std::mem::take(&mut self.writes);
        self.core.database.apply(writes);
        self.core.database.flush().map_err(failed("write records"))
    }

    fn enter(&self, id: SegmentId, record: Record) {
        let segment = record.segment(id);
        let (place, presence) = (record.place, record.partial.clone());
        let old = self.core.index.set(id, Some(record));
        self.core.room.take(cost(segment, place));
        if let Some(old) = &old {
            self.core.room.give_back(cost(segment, old.place));
        }
        if old.is_none_or(|old| old.partial != presence) {
            self.core.changed(id);
        }
    }
}

/// Remove the chunks of an inline number that no record names.
pub(super) fn collect(core: &Core, number: u64) -> std::io::Result<()> {
    core.database.remove(Keys::inline(number))?;
    core.database.apply(vec![(Row::Garbage { number }, None)]);
    Ok(())
}

fn kept_until(keep: Duration) -> u64 {
    now_ms().saturating_add(u64::try_from(keep.as_millis()).unwrap_or(u64::MAX))
}
