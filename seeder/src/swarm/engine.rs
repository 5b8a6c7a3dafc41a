//! **PURE.** What to do next: wants, answers, locations and time go in, actions come out.
//!
//! The whole of fetching but the moving of bytes: [`super::fetcher`] performs the actions, and the
//! simulation of the tests performs them in virtual time. Invariant: after every event all actions that
//! it made possible were returned, and [`Engine::next_wake`] says when time alone makes the next ones
//! possible.

mod dispatch;
mod hedge;
mod outcome;

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;
use swarm_proto::{ChunkRange, ChunkTree, PeerId, Presence, Segment, SegmentId, v1};

use super::bucket::Bucket;
use super::in_flight::{InFlight, RequestId, Settled, WantId};
use super::locations::Locations;
use super::scoreboard::{PeerKey, Scoreboard};
use super::{FetchError, Fetched, Holder, Offence, PeerAddress, SwarmConfig, SwarmStats, Want};

pub(super) use outcome::Failure;

/// How often progress is looked at while anything is under way.
const PULSE: Duration = Duration::from_millis(10);

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
            None if self.locations.holders(&segment.id).iter().all(|holder| holder.lacks(chunks)) => {
                FetchError::NoHolder { segment, chunks }
            }
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
