//! Segments of a file under way that are sent before anybody asked for it to be saved.
//!
//! Not the sending. Invariant: what is held as sent is what the file has there now; a write into it forgets it, and
//! a file that is written over and over sends no more.

use std::sync::Arc;

use futures::future::{BoxFuture, Shared};
use swarm_proto::ByteRange;

use super::{Inner, Unsaved};
use crate::write::outbox::Delivered;
use crate::write::pieces::Stamp;

/// Segments sent early that were then written again, after which no more are.
pub(super) const WASTED_MOST: u32 = 4;

/// A segment that is sent before anybody asked for the file to be saved; none if that failed.
pub type Early = Shared<BoxFuture<'static, Option<Arc<Delivered>>>>;

impl Unsaved {
    /// A segment that is sent as it was at `stamp`; forgotten if it was written since.
    pub fn sends_early(&self, range: ByteRange, stamp: Stamp, early: Early) {
        let mut inner = self.locked();
        if inner.pieces.is_unsaved(range) && inner.pieces.is_as_at(range, stamp) {
            inner.early.insert(range.start, early);
        }
    }

    /// What was sent early is held no more: the next save sends it again.
    pub fn sends_anew(&self) {
        self.inner.lock().early.clear();
    }
}

impl Inner {
    /// Segments that end within a range that was just written and are wholly unsaved.
    pub(super) fn filled(&self, range: ByteRange, segment_bytes: u64) -> Vec<ByteRange> {
        if self.wasted >= WASTED_MOST {
            return Vec::new();
        }
        let windows = range.start / segment_bytes..range.end / segment_bytes;
        let windows = windows.map(|window| ByteRange::at(window * segment_bytes, segment_bytes));
        windows.filter(|window| !self.early.contains_key(&window.start) && self.pieces.is_unsaved(*window)).collect()
    }

    /// Segments that were sent early and are no longer what the file has.
    pub(super) fn forget_early(&mut self, range: ByteRange, segment_bytes: u64) {
        let first = range.start / segment_bytes * segment_bytes;
        let stale: Vec<u64> = self.early.range(first..range.end.max(first + 1)).map(|(start, _)| *start).collect();
        for start in stale {
            self.early.remove(&start);
            self.wasted += 1;
        }
    }
}
