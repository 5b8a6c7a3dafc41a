//! **PURE.** Who is believed to hold which segment, and when to ask again.
//!
//! Locations are hints, never proof: a holder that was wrong is left aside for a while, and what it is
//! remembered for survives the next answer of the tracker, which may not have heard of it yet.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use lru::LruCache;
use swarm_proto::{ChunkRange, Presence, SegmentId};

use super::scoreboard::PeerKey;

/// Age at which the holders of a segment that is wanted are asked for again, while they are used.
const OLD: Duration = Duration::from_secs(60);

/// Between two questions for a segment that nobody usable holds: first, longest.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(1);

/// How long a holder is left aside that lacked the segment, and one that had it wrong; doubles.
const MISSING_ASIDE: Duration = Duration::from_secs(1);
const CORRUPT_ASIDE: Duration = Duration::from_secs(30);
const LONGEST_ASIDE: Duration = Duration::from_secs(600);

/// The same if nobody else holds the segment.
const ALONE_ASIDE: Duration = Duration::from_secs(2);

/// Age at which a partial holder is asked again what it has.
const PRESENCE_OLD: Duration = Duration::from_secs(1);

/// Partial holders of one segment that are asked what they have.
const PARTIAL_ASKED: usize = 8;

/// Segments in one question.
const MOST_AT_ONCE: usize = 4096;

/// Questions under way at a time.
const MOST_QUESTIONS: u32 = 2;

/// What a holder is believed to have.
#[derive(Debug, Clone)]
pub(super) enum Has {
    /// All of it.
    Whole,
    /// Some of it; to be asked.
    Some,
    /// These chunks, at that time.
    Chunks(Presence, Instant),
}

/// A holder of one segment.
#[derive(Debug, Clone)]
pub(super) struct HolderOf {
    pub(super) peer: PeerKey,
    pub(super) has: Has,
    asked_at: Option<Instant>,
    wrong_at: Option<Instant>,
    aside: Duration,
}

impl HolderOf {
    /// Whether it may be asked at `now`; `alone`: nobody else can.
    pub(super) fn is_trusted(&self, alone: bool, now: Instant) -> bool {
        let aside = if alone { self.aside.min(ALONE_ASIDE) } else { self.aside };
        self.wrong_at.is_none_or(|at| now >= at + aside)
    }

    /// Chunks of `run` that it is believed to have, from its start on.
    pub(super) fn has_of(&self, run: ChunkRange) -> u32 {
        match &self.has {
            Has::Whole => run.len(),
            Has::Some => 0,
            Has::Chunks(presence, _) => {
                run.iter().take_while(|chunk| presence.has_chunk(*chunk)).count().try_into().unwrap_or(run.len())
            }
        }
    }

    /// Whether it is known to lack the beginning of `run`.
    pub(super) fn lacks(&self, run: ChunkRange) -> bool {
        !matches!(self.has, Has::Some) && self.has_of(run) == 0
    }

    /// Whether it has all of the segment.
    pub(super) fn is_whole(&self) -> bool {
        matches!(self.has, Has::Whole | Has::Chunks(Presence::Whole, _))
    }
}

#[derive(Debug, Default)]
struct Location {
    holders: Vec<HolderOf>,
    located_at: Option<Instant>,
    /// In the queue, or being asked for.
    asking: bool,
    retries: u32,
}

/// All locations.
pub(super) struct Locations {
    known: LruCache<SegmentId, Location>,
    to_ask: VecDeque<SegmentId>,
    questions: u32,
}

impl Locations {
    pub(super) fn new(kept: usize) -> Self {
        let kept = NonZeroUsize::new(kept).unwrap_or(NonZeroUsize::MIN);
        Self { known: LruCache::new(kept), to_ask: VecDeque::new(), questions: 0 }
    }

    /// The holders of a segment, best first.
    pub(super) fn holders(&self, id: &SegmentId) -> &[HolderOf] {
        self.known.peek(id).map_or(&[], |location| &location.holders)
    }

    /// Somebody wants it: ask unless its holders are known and fresh.
    pub(super) fn need(&mut self, id: SegmentId, now: Instant) {
        let location = self.known.get_or_insert_mut(id, Location::default);
        let fresh = location.located_at.is_some_and(|at| now.saturating_duration_since(at) < OLD);
        if !fresh && !location.asking {
            location.asking = true;
            self.to_ask.push_back(id);
        }
    }

    /// Nobody usable holds it: ask again, at growing intervals.
    ///
    /// Returns: when that will be due, if it is not yet.
    pub(super) fn need_again(&mut self, id: SegmentId, now: Instant) -> Option<Instant> {
        let location = self.known.get_or_insert_mut(id, Location::default);
        if location.asking {
            return None;
        }
        let wait = (FIRST_RETRY * 2u32.pow(location.retries.min(5))).min(LONGEST_RETRY);
        match location.located_at.map(|at| at + wait) {
            Some(due) if now < due => Some(due),
            _ => {
                location.retries += 1;
                location.asking = true;
                self.to_ask.push_back(id);
                None
            }
        }
    }

    /// The next question to the tracker, if one is due.
    pub(super) fn question(&mut self) -> Option<Vec<SegmentId>> {
        if self.questions >= MOST_QUESTIONS || self.to_ask.is_empty() {
            return None;
        }
        self.questions += 1;
        let count = self.to_ask.len().min(MOST_AT_ONCE);
        Some(self.to_ask.drain(..count).collect())
    }

    /// The answer; `None`: nobody could be asked.
    pub(super) fn answer(&mut self, ids: &[SegmentId], found: Option<Vec<Vec<(PeerKey, bool)>>>, now: Instant) {
        self.questions = self.questions.saturating_sub(1);
        let found = found.map(Vec::into_iter);
        let mut found = found.into_iter().flatten();
        for id in ids {
            let holders = found.next();
            // A segment that was forgotten meanwhile is not wanted.
            let Some(location) = self.known.peek_mut(id) else { continue };
            location.asking = false;
            location.located_at = Some(now);
            if let Some(holders) = holders {
                location.replace(holders);
            }
        }
    }

    /// Holders that somebody told of; they join those known.
    pub(super) fn learn(&mut self, id: SegmentId, holders: Vec<(PeerKey, bool)>, now: Instant) {
        let location = self.known.get_or_insert_mut(id, Location::default);
        let mut all: Vec<(PeerKey, bool)> = holders;
        for known in &location.holders {
            if !all.iter().any(|(peer, _)| *peer == known.peer) {
                all.push((known.peer, !known.is_whole()));
            }
        }
        location.replace(all);
        location.located_at.get_or_insert(now);
    }

    /// A holder said what it has.
    pub(super) fn has(&mut self, id: &SegmentId, peer: PeerKey, presence: Presence, now: Instant) {
        if let Some(holder) = self.holder(id, peer) {
            holder.asked_at = None;
            holder.has = Has::Chunks(presence, now);
        }
    }

    /// A holder does not have it.
    pub(super) fn missing(&mut self, id: &SegmentId, peer: PeerKey, now: Instant) {
        self.put_aside(id, peer, MISSING_ASIDE, now);
    }

    /// A holder has it wrong.
    pub(super) fn corrupt(&mut self, id: &SegmentId, peer: PeerKey, now: Instant) {
        self.put_aside(id, peer, CORRUPT_ASIDE, now);
    }

    /// The asking failed: ask again when it is needed.
    pub(super) fn unanswered(&mut self, id: &SegmentId, peer: PeerKey, now: Instant) {
        if let Some(holder) = self.holder(id, peer) {
            holder.asked_at = Some(now);
        }
    }

    /// Partial holders of a wanted segment that should be asked now what they have.
    pub(super) fn uncertain(&mut self, id: &SegmentId, now: Instant) -> Vec<PeerKey> {
        let Some(location) = self.known.peek_mut(id) else { return Vec::new() };
        let mut ask = Vec::new();
        for holder in location.holders.iter_mut().filter(|holder| !holder.is_whole()).take(PARTIAL_ASKED) {
            let fresh = match holder.has {
                Has::Chunks(_, at) => now.saturating_duration_since(at) < PRESENCE_OLD,
                _ => false,
            };
            let asked = holder.asked_at.is_some_and(|at| now.saturating_duration_since(at) < PRESENCE_OLD);
            if !fresh && !asked && holder.wrong_at.is_none_or(|at| now >= at + holder.aside) {
                holder.asked_at = Some(now);
                ask.push(holder.peer);
            }
        }
        ask
    }

    fn holder(&mut self, id: &SegmentId, peer: PeerKey) -> Option<&mut HolderOf> {
        self.known.peek_mut(id)?.holders.iter_mut().find(|holder| holder.peer == peer)
    }

    fn put_aside(&mut self, id: &SegmentId, peer: PeerKey, least: Duration, now: Instant) {
        if let Some(holder) = self.holder(id, peer) {
            holder.wrong_at = Some(now);
            holder.aside = (holder.aside * 2).clamp(least, LONGEST_ASIDE);
        }
        if let Some(location) = self.known.peek_mut(id)
            && !location.asking
        {
            // The tracker may know better by now.
            location.asking = true;
            self.to_ask.push_back(*id);
        }
    }
}

impl Location {
    fn replace(&mut self, holders: Vec<(PeerKey, bool)>) {
        if !holders.is_empty() {
            self.retries = self.retries.min(1);
        }
        let mut old = std::mem::take(&mut self.holders);
        for (peer, partial) in holders {
            if self.holders.iter().any(|holder| holder.peer == peer) {
                continue;
            }
            let mut holder = match old.iter().position(|holder| holder.peer == peer) {
                Some(at) => old.swap_remove(at),
                None => HolderOf { peer, has: Has::Some, asked_at: None, wrong_at: None, aside: Duration::ZERO },
            };
            match (partial, &holder.has) {
                // What the holder itself said is better than what the tracker heard, unless it said none.
                (false, Has::Chunks(..)) if holder.wrong_at.is_some() => {}
                (false, _) => holder.has = Has::Whole,
                (true, Has::Whole) => holder.has = Has::Some,
                (true, _) => {}
            }
            self.holders.push(holder);
        }
    }
}

#[cfg(test)]
mod tests;
