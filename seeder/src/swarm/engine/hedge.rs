//! **PURE.** Asking a second holder for what the first is late with.
//!
//! A request slower than nineteen of twenty of its peer's is *late*; one of a peer that has gone silent is
//! *lost*. When nothing is left to hand out, idle peers also repeat what is expected to end last. The first
//! verified answer wins and the others are cancelled. Invariant: the bytes repeated for lateness stay
//! within [`ALLOWANCE`] of those delivered; only those of silent peers go beyond.

use std::time::{Duration, Instant};

use swarm_proto::{CHUNK_BYTES, ChunkRange, Segment};

use super::super::in_flight::RequestId;
use super::super::scoreboard::PeerKey;
use super::{Action, Engine};

/// Share of the delivered bytes that may be asked for twice, and what may be before any came.
pub(super) const ALLOWANCE: f64 = 0.05;
pub(super) const FIRST_ALLOWANCE: f64 = 2.0 * 1024.0 * 1024.0;

/// Most that is saved up.
const MOST_ALLOWANCE: f64 = 16.0 * 1024.0 * 1024.0;

/// No request is late before this.
const LEAST_PATIENCE: Duration = Duration::from_millis(20);

/// An idle peer repeats a request only if it is expected to end so much sooner, and could have done it
/// twice since it was sent: expectations alone are worth little.
const WORTHWHILE: Duration = Duration::from_millis(10);

/// How long a peer may take for what was predicted to take so long.
pub(super) fn patience(predicted: Duration, slow_factor: f64) -> Duration {
    (predicted.mul_f64(slow_factor) + Duration::from_millis(5)).max(LEAST_PATIENCE)
}

impl Engine {
    /// Bytes were delivered: more may be repeated.
    pub(super) fn earn_hedges(&mut self, bytes: u64) {
        self.hedge_allowance = (self.hedge_allowance + bytes as f64 * ALLOWANCE).min(MOST_ALLOWANCE);
    }

    /// See to what is late or lost. It comes before the queue, because it was wanted before the queue was.
    pub(super) fn hedge_late(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let mut late: Vec<(bool, Instant, RequestId)> = Vec::new();
        for (id, request) in self.in_flight.requests().filter(|(_, request)| !request.is_parked()) {
            let peer = self.scoreboard.get(request.peer);
            let lost = peer.is_silent(now) || !peer.is_usable(now);
            if lost || now >= request.hedge_at {
                late.push((!lost, request.hedge_at, id));
            }
        }
        late.sort();
        for (in_budget, _, id) in late {
            while self.repeat(id, in_budget, None, now, actions) {}
        }
    }

    /// When the queue is empty, let idle peers repeat what would end last.
    pub(super) fn hedge_end(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.in_flight.wanted_bytes() > 0 {
            return;
        }
        let mut ending: Vec<(Duration, Duration, RequestId)> = Vec::new();
        for (id, request) in self.in_flight.requests().filter(|(_, request)| !request.is_parked()) {
            let remaining = self.scoreboard.get(request.peer).remaining();
            let age = now.saturating_duration_since(request.sent);
            if remaining > WORTHWHILE && age >= WORTHWHILE {
                ending.push((remaining, age, id));
            }
        }
        ending.sort();
        for (remaining, age, id) in ending.into_iter().rev() {
            let must_beat = (remaining.saturating_sub(WORTHWHILE)).min(age / 2);
            self.repeat(id, true, Some(must_beat), now, actions);
        }
    }

    /// Ask another holder for the first part of a request that nobody else has been asked for.
    fn repeat(
        &mut self,
        id: RequestId,
        in_budget: bool,
        must_beat: Option<Duration>,
        now: Instant,
        actions: &mut Vec<Action>,
    ) -> bool {
        if in_budget && self.hedge_allowance <= 0.0 {
            return false;
        }
        let (Some(request), Some(missing)) = (self.in_flight.get(id), self.in_flight.uncovered(id)) else {
            return false;
        };
        let (segment, slow) = (request.segment, request.peer);
        let Some((peer, run)) = self.stand_in(segment, missing, slow, must_beat, now) else { return false };
        let bytes = u64::from(run.len()) * u64::from(CHUNK_BYTES);
        if in_budget {
            self.hedge_allowance -= bytes as f64;
        }
        self.send(peer, segment.id, run, true, now, actions);
        true
    }

    /// Who repeats the start of `missing`, and how much of it.
    fn stand_in(
        &self,
        segment: Segment,
        missing: ChunkRange,
        slow: PeerKey,
        must_beat: Option<Duration>,
        now: Instant,
    ) -> Option<(PeerKey, ChunkRange)> {
        let candidates = self.candidates(segment, missing, now);
        let fits = candidates.iter().filter(|candidate| {
            let peer = self.scoreboard.get(candidate.key);
            let can = match must_beat {
                // At the end only peers that have nothing else to do, and only if it is worth it.
                Some(must_beat) => peer.live_requests() == 0 && peer.predict(u64::from(CHUNK_BYTES)) < must_beat,
                None => candidate.room && !peer.is_silent(now),
            };
            candidate.key != slow && can
        });
        let end = |at: &PeerKey| self.scoreboard.get(*at).predict(u64::from(CHUNK_BYTES));
        let best = fits.min_by_key(|candidate| end(&candidate.key))?;
        let in_time = must_beat.map_or(u64::MAX, |within| self.scoreboard.get(best.key).bytes_within(within));
        let bytes = best.run_bytes.min(best.has_bytes).min(in_time);
        let chunks = u32::try_from(bytes.div_ceil(u64::from(CHUNK_BYTES))).unwrap_or(1).clamp(1, missing.len());
        Some((best.key, ChunkRange::new(missing.start, missing.start + chunks)))
    }
}
