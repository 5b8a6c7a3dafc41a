//! **PURE.** What to do next: wants, answers, locations and time go in, actions come out.
//!
//! The whole of fetching but the moving of bytes: [`super::fetcher`] performs the actions, and the
//! simulation of the tests performs them in virtual time. Invariant: after every event all actions that
//! it made possible were returned, and [`Engine::next_wake`] says when time alone makes the next ones
//! possible.

mod hedge;
mod outcome;

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;
use swarm_proto::{CHUNK_BYTES, ChunkRange, ChunkTree, MAX_RUN_CHUNKS, PeerId, Presence, Segment, SegmentId, v1};

use super::bucket::Bucket;
use super::in_flight::{InFlight, NewRequest, RequestId, Settled, WantId};
use super::locations::Locations;
use super::picker::{Candidate, pick};
use super::scoreboard::{Part, PeerKey, Scoreboard};
use super::{FetchError, Fetched, Holder, Offence, PeerAddress, SwarmConfig, SwarmStats, Want};

pub(super) use outcome::Failure;

/// How often progress is looked at while anything is under way.
const PULSE: Duration = Duration::from_millis(10);

/// So many wants in a row that found no holder with room end the search: those behind would have to be
/// held by quite other peers. It bounds the work for each event.
const REFUSALS: u32 = 64;

/// What a request may take beyond what was predicted before it is given up.
const PATIENCE_FACTOR: u32 = 8;
const PATIENCE: Duration = Duration::from_secs(2);

/// Something to be done outside.
#[derive(Debug)]
pub(super) enum Action {
    /// Send a request.
    Send(Assignment),
    /// Nobody needs the answer any more.
    Cancel(RequestId),
    /// A want is complete.
    Done(WantId, Box<Fetched>),
    /// Ask the tracker.
    Locate(Vec<SegmentId>),
    /// Ask a peer what it has of segments; also to see whether it is there.
    AskHave(PeerKey, Vec<SegmentId>),
    /// Tell the tracker.
    Report(PeerId, Offence),
}

/// How far a want could be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Served {
    /// Nobody has room for the rest, or may be asked now.
    Refused,
    /// Nothing is left that anybody could be asked for.
    Fully,
}

/// A request to be sent.
#[derive(Debug)]
pub(super) struct Assignment {
    pub(super) id: RequestId,
    pub(super) peer: PeerKey,
    pub(super) segment: Segment,
    pub(super) chunks: ChunkRange,
    /// Ask for the tree too.
    pub(super) with_tree: bool,
    /// The tree, if it is known already.
    pub(super) tree: Option<ChunkTree>,
    /// When to give it up.
    pub(super) deadline: Instant,
}

/// The engine.
pub(super) struct Engine {
    me: PeerId,
    request_timeout: Duration,
    in_flight: InFlight,
    scoreboard: Scoreboard,
    locations: Locations,
    trees: LruCache<SegmentId, ChunkTree>,
    bucket: Option<Bucket>,
    /// Wanted segments that nobody usable holds, as of the last dispatch.
    starving: HashSet<SegmentId>,
    /// When something that was refused for now becomes possible.
    wake: Option<Instant>,
    hedge_allowance: f64,
    /// What holders did wrong last, for error messages.
    troubles: LruCache<SegmentId, Trouble>,
    stats: SwarmStats,
}

#[derive(Debug, Default)]
struct Trouble {
    peers: Vec<PeerKey>,
    last: String,
}

impl Engine {
    pub(super) fn new(config: &SwarmConfig, now: Instant) -> Self {
        let size = |count: usize| NonZeroUsize::new(count).unwrap_or(NonZeroUsize::MIN);
        Self {
            me: config.me,
            request_timeout: config.request_timeout,
            in_flight: InFlight::default(),
            scoreboard: Scoreboard::new(config.zone.clone(), config.ban),
            locations: Locations::new(config.locations_kept),
            trees: LruCache::new(size(config.trees_kept)),
            bucket: config.download_limit.map(|limit| Bucket::new(limit, now)),
            starving: HashSet::new(),
            wake: None,
            hedge_allowance: hedge::FIRST_ALLOWANCE,
            troubles: LruCache::new(size(1024)),
            stats: SwarmStats::default(),
        }
    }

    /// Somebody waits for chunks.
    ///
    /// Errors: `None` if the same segment is wanted with another length: one of the two is wrong.
    pub(super) fn want(&mut self, want: &Want, now: Instant, actions: &mut Vec<Action>) -> Option<WantId> {
        if !self.in_flight.agrees(want.segment) {
            return None;
        }
        let tree = self.trees.get(&want.segment.id).filter(|tree| tree.segment() == want.segment).cloned();
        let (id, settled) = self.in_flight.want(want, tree);
        self.settle(settled, now, actions);
        self.locations.need(want.segment.id, now);
        self.dispatch(now, actions);
        Some(id)
    }

    /// Nobody waits any more.
    pub(super) fn withdraw(&mut self, id: WantId, now: Instant, actions: &mut Vec<Action>) {
        let settled = self.in_flight.withdraw(id);
        self.settle(settled, now, actions);
        self.dispatch(now, actions);
    }

    /// A want's time is over: why it failed.
    pub(super) fn expire(&mut self, id: WantId, now: Instant, actions: &mut Vec<Action>) -> Option<FetchError> {
        let (segment, chunks) = self.in_flight.missing(id)?;
        let error = match self.troubles.get(&segment.id) {
            Some(trouble) => {
                FetchError::AllFailed { segment, holders: trouble.peers.len(), last: trouble.last.clone() }
            }
            None if self.locations.holders(&segment.id).is_empty() => FetchError::NoHolder { segment, chunks },
            None => {
                let holders = self.locations.holders(&segment.id).len();
                FetchError::AllFailed { segment, holders, last: "no answer in time".to_owned() }
            }
        };
        self.withdraw(id, now, actions);
        Some(error)
    }

    /// Learn soon who holds these.
    pub(super) fn expect(&mut self, ids: &[SegmentId], now: Instant, actions: &mut Vec<Action>) {
        ids.iter().for_each(|id| self.locations.need(*id, now));
        self.ask_tracker(actions);
    }

    /// Somebody told who holds a segment.
    pub(super) fn learn(&mut self, id: SegmentId, holders: &[Holder], now: Instant, actions: &mut Vec<Action>) {
        let holders = self.introduce(holders, now);
        self.locations.learn(id, holders, now);
        self.dispatch(now, actions);
    }

    /// The tracker answered, or nobody could be asked.
    pub(super) fn located(
        &mut self,
        ids: &[SegmentId],
        found: Option<&[Vec<Holder>]>,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let found = found.map(|found| found.iter().map(|holders| self.introduce(holders, now)).collect());
        self.locations.answer(ids, found, now);
        self.dispatch(now, actions);
    }

    /// Bytes of a live request came so far.
    pub(super) fn progress(&mut self, id: RequestId, received: u64, now: Instant) {
        let Some(request) = self.in_flight.get_mut(id) else { return };
        let bytes = request.bytes();
        let (old, new) = (request.received.min(bytes), received.min(bytes));
        request.received = received.max(request.received);
        let peer = request.peer;
        self.scoreboard.came(peer, new.saturating_sub(old), now);
    }

    /// Time passed: ask again, hedge, wake peers that rested.
    pub(super) fn tick(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.dispatch(now, actions);
    }

    /// When [`Self::tick`] should be called next; `None`: not before something else happens.
    pub(super) fn next_wake(&self, now: Instant) -> Option<Instant> {
        let busy = self.in_flight.requests().next().is_some();
        let pulse = busy.then(|| now + PULSE);
        [self.wake, pulse].into_iter().flatten().min()
    }

    /// The tree of a segment, if it is known.
    pub(super) fn tree(&mut self, id: &SegmentId) -> Option<ChunkTree> {
        self.trees.get(id).or_else(|| self.in_flight.tree(id)).cloned()
    }

    /// Keep a verified tree.
    pub(super) fn remember_tree(&mut self, tree: ChunkTree) {
        if !tree.values().is_empty() {
            self.trees.put(tree.segment().id, tree);
        }
    }

    /// Where a peer is reached.
    pub(super) fn address(&self, peer: PeerKey) -> Arc<PeerAddress> {
        Arc::clone(&self.scoreboard.get(peer).address)
    }

    /// What a peer says it has, in terms of a segment that somebody waits for.
    pub(super) fn read(&self, id: &SegmentId, presence: &v1::Presence) -> Option<Presence> {
        self.in_flight.segment(id).map(|segment| presence.read(segment.chunks()))
    }

    /// What was done so far.
    pub(super) fn stats(&self, now: Instant) -> SwarmStats {
        let mut stats = self.stats.clone();
        stats.banned = self.scoreboard.banned(now);
        stats.peers = self.scoreboard.iter().map(|(_, peer)| peer.stats(now)).collect();
        stats
    }

    /// The running totals, without the peers.
    pub(super) fn totals(&mut self) -> &mut SwarmStats {
        &mut self.stats
    }

    fn introduce(&mut self, holders: &[Holder], now: Instant) -> Vec<(PeerKey, bool)> {
        let others = holders.iter().filter(|holder| holder.peer.id != self.me);
        others.map(|holder| (self.scoreboard.introduce(&holder.peer, now), holder.partial)).collect()
    }

    fn ask_tracker(&mut self, actions: &mut Vec<Action>) {
        while let Some(ids) = self.locations.question() {
            actions.push(Action::Locate(ids));
        }
    }

    fn wake_at(&mut self, at: Instant) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }

    /// Give work to whoever has room, then see to what waits for nobody and what is late.
    fn dispatch(&mut self, now: Instant, actions: &mut Vec<Action>) {
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
    fn candidates(&self, segment: Segment, run: ChunkRange, now: Instant) -> Vec<Candidate<PeerKey>> {
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

    fn send(
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

    /// Pass on what a change of the table led to.
    fn settle(&mut self, settled: Settled, now: Instant, actions: &mut Vec<Action>) {
        for (id, request) in settled.needless {
            let missing = request.bytes().saturating_sub(request.received);
            if !request.is_parked() {
                let silent = now >= request.hedge_at && self.scoreboard.get(request.peer).is_silent(now);
                self.scoreboard.cancelled(request.peer, missing, request.sent, request.predicted, now);
                if silent {
                    self.lost(request.peer, now, actions);
                }
            }
            actions.push(Action::Cancel(id));
        }
        for (id, fetched) in settled.done {
            actions.push(Action::Done(id, Box::new(fetched)));
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
