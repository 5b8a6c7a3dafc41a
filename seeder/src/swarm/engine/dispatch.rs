//! **PURE.** Handing out work: who is asked for what, now.

use std::time::{Duration, Instant};

use swarm_proto::{CHUNK_BYTES, ChunkRange, MAX_RUN_CHUNKS, Segment, SegmentId};

use super::super::bucket::Bucket;
use super::super::in_flight::{NewRequest, WantId};
use super::super::picker::{Candidate, pick};
use super::super::scoreboard::{Part, PeerKey};
use super::{Action, Assignment, Engine, hedge};

/// So many wants in a row that found no holder with room end the search: those behind would have to be
/// held by quite other peers. It bounds the work for each event.
const REFUSALS: u32 = 64;

/// What a request may take beyond what was predicted before it is given up.
const PATIENCE_FACTOR: u32 = 8;
const PATIENCE: Duration = Duration::from_secs(2);

/// How far a want could be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Served {
    /// Nobody has room for the rest, or may be asked now.
    Refused,
    /// Nothing is left that anybody could be asked for.
    Fully,
}

impl Engine {
    /// Give work to whoever has room, then see to what waits for nobody and what is late.
    pub(super) fn dispatch(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.wake = None;
        self.starving.clear();
        self.hedge_late(now, actions);
        let queue: Vec<WantId> = self.in_flight.queue().collect();
        let mut refused = 0;
        for want in queue {
            // Most often nobody has room: then the rest of the queue need not be looked at.
            if refused == REFUSALS || (refused == 1 && !self.scoreboard.any_room(now)) {
                break;
            }
            refused += u32::from(self.serve(want, now, actions) == Served::Refused);
            if self.bucket.as_mut().is_some_and(|bucket| !bucket.is_open(now)) {
                break;
            }
        }
        if let Some(at) = self.bucket.as_ref().and_then(Bucket::opens_at) {
            self.wake_at(at);
        }
        self.hedge_end(now, actions);
        self.revive(now, actions);
        self.ask_tracker(actions);
    }

    /// Hand out the wanted runs of one want, as far as there is room.
    fn serve(&mut self, want: WantId, now: Instant, actions: &mut Vec<Action>) -> Served {
        let Some((segment, mut run)) = self.in_flight.next_run(want) else { return Served::Fully };
        for peer in self.locations.uncertain(&segment.id, now) {
            if self.scoreboard.get(peer).is_usable(now) {
                actions.push(Action::AskHave(peer, vec![segment.id]));
            }
        }
        loop {
            if self.bucket.as_mut().is_some_and(|bucket| !bucket.is_open(now)) {
                return Served::Refused;
            }
            let candidates = self.candidates(segment, run, now);
            if candidates.is_empty() {
                self.starving.insert(segment.id);
                if let Some(due) = self.locations.need_again(segment.id, now) {
                    self.wake_at(due);
                }
                // Others may have later chunks of the segment.
                match self.in_flight.next_run_from(want, run.start + 1) {
                    Some(next) => run = next,
                    None => return Served::Fully,
                }
                continue;
            }
            let longest = ChunkRange::new(run.start, run.end.min(run.start + MAX_RUN_CHUNKS));
            let bytes = segment.bytes_of(longest).len();
            let queued = self.in_flight.wanted_bytes().max(bytes);
            let Some((at, bytes)) = pick(&candidates, bytes, queued) else { return Served::Refused };
            let chunks = u32::try_from(bytes.div_ceil(u64::from(CHUNK_BYTES))).unwrap_or(1).clamp(1, longest.len());
            let taken = ChunkRange::new(run.start, run.start + chunks);
            self.send(candidates[at].key, segment.id, taken, false, now, actions);
            match self.in_flight.next_run_from(want, taken.end) {
                Some(next) => run = next,
                None => return Served::Fully,
            }
        }
    }

    /// Holders that could be asked for the start of a run.
    pub(super) fn candidates(&self, segment: Segment, run: ChunkRange, now: Instant) -> Vec<Candidate<PeerKey>> {
        let holders = self.locations.holders(&segment.id);
        let usable = |alone: bool| {
            holders.iter().filter(move |holder| {
                holder.has_of(run) > 0
                    && holder.is_trusted(alone, now)
                    && self.scoreboard.get(holder.peer).is_usable(now)
            })
        };
        let alone = usable(false).next().is_none();
        let (best_rate, best_latency) = self.scoreboard.best(now);
        let known: Vec<(f64, f64)> = usable(alone)
            .map(|holder| self.scoreboard.get(holder.peer))
            .map(|peer| (peer.rate(now).unwrap_or(best_rate), peer.recent(now)))
            .collect();
        let mut candidates: Vec<Candidate<PeerKey>> = usable(alone)
            .map(|holder| {
                let peer = self.scoreboard.get(holder.peer);
                let has = ChunkRange::new(run.start, run.start + holder.has_of(run));
                let has_bytes = segment.bytes_of(has).len();
                let run_bytes = peer.run_bytes();
                let (rate, recent) = (peer.rate(now).unwrap_or(best_rate), peer.recent(now));
                let room = peer.has_room(run_bytes.min(has_bytes), part(rate, recent, &known));
                Candidate {
                    key: holder.peer,
                    rate,
                    latency: peer.latency(now).unwrap_or(best_latency),
                    outstanding: peer.outstanding(),
                    run_bytes,
                    smallest_run: peer.smallest_run(),
                    recent,
                    same_zone: peer.same_zone,
                    whole: holder.is_whole(),
                    has_bytes,
                    room: room && !peer.is_silent(now),
                }
            })
            .collect();
        // If all are silent, waiting for them is all that is left; hedging tries them in turn.
        if candidates.iter().all(|candidate| self.scoreboard.get(candidate.key).is_silent(now)) {
            candidates.iter_mut().for_each(|c| c.room = self.scoreboard.get(c.key).has_room(c.run_bytes, Part::Even));
        }
        candidates
    }

    pub(super) fn send(
        &mut self,
        peer: PeerKey,
        segment: SegmentId,
        chunks: ChunkRange,
        hedge: bool,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let known = self.scoreboard.get(peer);
        let bytes = u64::from(chunks.len()) * u64::from(CHUNK_BYTES);
        let predicted = known.predict(bytes);
        let new = NewRequest {
            peer,
            segment,
            chunks,
            hedge,
            sent: now,
            predicted,
            hedge_at: now + hedge::patience(predicted, known.slow_factor()),
            peer_was_idle: known.live_requests() == 0,
        };
        let Some((id, request)) = self.in_flight.request(new) else { return };
        let bytes = request.bytes();
        let deadline = now + (predicted * PATIENCE_FACTOR + PATIENCE).min(self.request_timeout);
        let (segment, with_tree) = (request.segment, request.with_tree);
        let tree = self.in_flight.tree(&segment.id).cloned();
        self.scoreboard.sent(peer, bytes, now);
        if let Some(bucket) = &mut self.bucket {
            bucket.take(bytes);
        }
        self.stats.requests += 1;
        self.stats.hedges += u64::from(hedge);
        actions.push(Action::Send(Assignment { id, peer, segment, chunks, with_tree, tree, deadline }));
    }

    /// Peers that failed are asked a small question when they have rested, if anybody needs them.
    fn revive(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let mut due: Vec<(PeerKey, SegmentId)> = Vec::new();
        let mut wakes: Vec<Instant> = Vec::new();
        for id in self.in_flight.segments() {
            let alone = self.starving.contains(id);
            for holder in self.locations.holders(id) {
                let peer = self.scoreboard.get(holder.peer);
                if self.scoreboard.wants_probe(holder.peer, alone, now) {
                    if !due.iter().any(|(key, _)| *key == holder.peer) {
                        due.push((holder.peer, *id));
                    }
                } else {
                    wakes.extend(self.scoreboard.probe_at(holder.peer, alone));
                    wakes.extend(peer.busy_until());
                }
            }
        }
        wakes.into_iter().filter(|at| *at > now).for_each(|at| self.wake_at(at));
        for (peer, id) in due {
            self.scoreboard.probing(peer);
            actions.push(Action::AskHave(peer, vec![id]));
        }
    }
}

/// Compare one peer's part with that of those about as fast, given the rate and the part of each.
fn part(rate: f64, recent: f64, all: &[(f64, f64)]) -> Part {
    let like = || all.iter().filter(|(other, _)| *other >= rate / 3.0 && *other <= rate * 3.0);
    let mean = like().map(|(_, recent)| recent).sum::<f64>() / like().count().max(1) as f64;
    match recent {
        recent if recent > mean * 1.1 => Part::Ahead,
        recent if recent < mean * 0.9 => Part::Behind,
        _ => Part::Even,
    }
}
