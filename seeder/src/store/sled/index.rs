//! The records of all segments, in memory: a mirror of the database's segment rows.
//!
//! Not durable and decides nothing. Invariant: apart from chunks just found bad, it never says more than
//! what was flushed; only the commit lane changes it.

use std::collections::HashMap;

use parking_lot::RwLock;
use swarm_proto::range::chunks_of;
use swarm_proto::{Segment, SegmentId};

use super::schema::Record;
use crate::store::{Damaged, Held};

/// All records by segment.
#[derive(Default)]
pub(super) struct Index {
    inner: RwLock<Inner>,
}

#[derive(Default)]
struct Inner {
    records: HashMap<SegmentId, Record>,
    /// Records that are not whole.
    partial: u64,
    /// Of these, those of which nothing is left.
    empty: u64,
}

/// Numbers of segments.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Held whole or in part.
    pub(super) held: u64,
    /// With chunks that were dropped as corrupt and are not mended.
    pub(super) damaged: u64,
}

impl Index {
    /// The record of a segment, also of one of which nothing is left.
    pub(super) fn get(&self, id: &SegmentId) -> Option<Record> {
        self.inner.read().records.get(id).cloned()
    }

    /// What is held of a segment; `None` if no chunk is.
    pub(super) fn held(&self, id: &SegmentId) -> Option<Held> {
        let inner = self.inner.read();
        let record = inner.records.get(id).filter(|record| !record.is_empty())?;
        Some(Held { segment: Segment { id: *id, length: record.length }, presence: record.presence() })
    }

    /// Set or remove a record; returns the one before.
    pub(super) fn set(&self, id: SegmentId, record: Option<Record>) -> Option<Record> {
        let mut inner = self.inner.write();
        let count = |record: &Option<Record>| {
            let record = record.as_ref();
            (record.is_some_and(|r| !r.is_whole()) as u64, record.is_some_and(Record::is_empty) as u64)
        };
        let after = count(&record);
        let old = match record {
            Some(record) => inner.records.insert(id, record),
            None => inner.records.remove(&id),
        };
        let before = count(&old);
        inner.partial = inner.partial + after.0 - before.0;
        inner.empty = inner.empty + after.1 - before.1;
        old
    }

    /// Segments of which anything is held, and whether all of it is.
    pub(super) fn inventory(&self) -> Vec<(SegmentId, bool)> {
        let inner = self.inner.read();
        let held = inner.records.iter().filter(|(_, record)| !record.is_empty());
        held.map(|(id, record)| (*id, record.is_whole())).collect()
    }

    /// Segments that are not whole, and what they lack.
    pub(super) fn damaged(&self) -> Vec<Damaged> {
        let inner = self.inner.read();
        if inner.partial == 0 {
            return Vec::new();
        }
        let partial = inner.records.iter().filter_map(|(id, record)| Some((id, record, record.partial.as_ref()?)));
        partial
            .map(|(id, record, chunks)| {
                let segment = Segment { id: *id, length: record.length };
                Damaged { segment, lost: chunks.gaps(segment.all()) }
            })
            .collect()
    }

    /// How many there are.
    pub(super) fn counts(&self) -> Counts {
        let inner = self.inner.read();
        Counts { held: inner.records.len() as u64 - inner.empty, damaged: inner.partial }
    }
}

impl Record {
    /// A segment of this record's length and the given id.
    pub(super) fn segment(&self, id: SegmentId) -> Segment {
        Segment { id, length: self.length }
    }

    /// Chunks of the segment.
    pub(super) fn chunks(&self) -> u32 {
        chunks_of(self.length)
    }
}
