//! **PURE.** Which chunks are wanted, by whom, and who was asked for them.
//!
//! Invariant: a chunk of a segment is exactly one of *absent* (nobody wants it), *wanted* (somebody does,
//! nobody was asked), *requested* (at least one live request covers it) and *held* (it is here, verified,
//! and somebody who wants it still waits for other chunks). Concurrent wants share chunks and requests.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use bytes::Bytes;
use swarm_proto::{CHUNK_BYTES, ChunkRange, ChunkSet, ChunkTree, Segment, SegmentId};

use super::scoreboard::PeerKey;
use super::{Fetched, Urgency, Want};

mod flight;

use flight::{Flight, first_run, one, usize_of};

/// One call of a caller that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct WantId(u64);

/// One request to one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct RequestId(u64);

/// A request that was sent and not finished.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) peer: PeerKey,
    pub(super) segment: Segment,
    pub(super) chunks: ChunkRange,
    /// Whether the segment's tree comes with it.
    pub(super) with_tree: bool,
    pub(super) sent: Instant,
    /// How long the peer was expected to take.
    pub(super) predicted: Duration,
    /// When a second holder is asked.
    pub(super) hedge_at: Instant,
    /// Reply bytes that came so far.
    pub(super) received: u64,
    /// No other request was under way to that peer when this one was sent.
    pub(super) peer_was_idle: bool,
    /// The bytes came, before the tree that another request brings.
    came: bool,
    parked: Option<Bytes>,
}

impl Request {
    /// Bytes of the chunks.
    pub(super) fn bytes(&self) -> u64 {
        self.segment.bytes_of(self.chunks).len()
    }

    /// Whether its bytes came, and waited for the tree or still do: the peer has done its part.
    pub(super) fn is_parked(&self) -> bool {
        self.came
    }
}

/// What a new request is; see [`Request`].
#[derive(Debug, Clone)]
pub(super) struct NewRequest {
    pub(super) peer: PeerKey,
    pub(super) segment: SegmentId,
    pub(super) chunks: ChunkRange,
    /// It repeats chunks that another request has.
    pub(super) hedge: bool,
    pub(super) sent: Instant,
    pub(super) predicted: Duration,
    pub(super) hedge_at: Instant,
    pub(super) peer_was_idle: bool,
}

/// What a delivery or a withdrawal led to.
#[derive(Debug, Default)]
pub(super) struct Settled {
    /// Wants that are complete, with their pieces in order.
    pub(super) done: Vec<(WantId, Fetched)>,
    /// Requests that nobody needs any more; they are gone from here already.
    pub(super) needless: Vec<(RequestId, Request)>,
    /// Bytes of the delivery that somebody had been waiting for.
    pub(super) useful_bytes: u64,
}

struct LiveWant {
    segment: SegmentId,
    chunks: ChunkRange,
    urgency: Urgency,
}

/// The table of all wants and requests.
#[derive(Default)]
pub(super) struct InFlight {
    next: u64,
    flights: HashMap<SegmentId, Flight>,
    wants: HashMap<WantId, LiveWant>,
    requests: HashMap<RequestId, Request>,
    /// Wants that may have a wanted chunk, in the order in which they are served.
    queue: BTreeSet<(Urgency, WantId)>,
    wanted_chunks: u64,
}

impl InFlight {
    /// Somebody waits for chunks. They may be held already: then [`Settled::done`] has them.
    ///
    /// Shape: `tree` is the segment's tree if it is known.
    pub(super) fn want(&mut self, want: &Want, tree: Option<ChunkTree>) -> (WantId, Settled) {
        let id = WantId(self.next());
        let flight = self.flights.entry(want.segment.id).or_insert_with(|| Flight::new(want.segment));
        flight.tree = flight.tree.take().or(tree);
        flight.wants.push(id);
        let requested = requested(&self.requests, flight);
        for chunk in want.chunks.iter() {
            if !flight.held.contains(chunk) && !flight.wanted.contains(chunk) && !requested.contains(chunk) {
                flight.wanted.insert(one(chunk));
                self.wanted_chunks += 1;
            }
        }
        self.queue.insert((want.urgency, id));
        let live = LiveWant { segment: want.segment.id, chunks: want.chunks, urgency: want.urgency };
        self.wants.insert(id, live);
        let mut settled = Settled::default();
        self.settle(want.segment.id, &mut settled);
        (id, settled)
    }

    /// Whether `want` may join the flight of its segment: another length for the same id cannot be right.
    pub(super) fn agrees(&self, segment: Segment) -> bool {
        self.flights.get(&segment.id).is_none_or(|flight| flight.segment == segment)
    }

    /// Nobody waits for this want any more.
    pub(super) fn withdraw(&mut self, id: WantId) -> Settled {
        let mut settled = Settled::default();
        if let Some(segment) = self.forget_want(id) {
            self.settle(segment, &mut settled);
        }
        settled
    }

    /// Wants in the order in which they are to be served; some may turn out to have nothing wanted.
    pub(super) fn queue(&self) -> impl Iterator<Item = WantId> + '_ {
        self.queue.iter().map(|(_, id)| *id)
    }

    /// Bytes that nobody was asked for yet.
    pub(super) fn wanted_bytes(&self) -> u64 {
        self.wanted_chunks * u64::from(CHUNK_BYTES)
    }

    /// The first run of wanted chunks of a want, as long as it goes, or nothing (it then leaves the queue).
    pub(super) fn next_run(&mut self, id: WantId) -> Option<(Segment, ChunkRange)> {
        let want = self.wants.get(&id)?;
        let flight = self.flights.get(&want.segment)?;
        let run = first_run(want.chunks, |chunk| flight.wanted.contains(chunk));
        if run.is_none() {
            self.queue.remove(&(want.urgency, id));
        }
        Some((flight.segment, run?))
    }

    /// The next wanted run of a want at or after `from`.
    pub(super) fn next_run_from(&self, id: WantId, from: u32) -> Option<ChunkRange> {
        let want = self.wants.get(&id)?;
        let flight = self.flights.get(&want.segment)?;
        let rest = ChunkRange::new(from.max(want.chunks.start), want.chunks.end);
        first_run(rest, |chunk| flight.wanted.contains(chunk))
    }

    /// A peer is asked. The tree comes with it if nobody else brings it.
    ///
    /// Errors: `None` if the segment has no wants (any more).
    pub(super) fn request(&mut self, new: NewRequest) -> Option<(RequestId, &Request)> {
        let id = RequestId(self.next());
        let flight = self.flights.get_mut(&new.segment)?;
        let carried = flight
            .requests
            .iter()
            .filter_map(|id| self.requests.get(id))
            .any(|other| other.with_tree && (!new.hedge || other.peer == new.peer));
        let before = flight.wanted.count();
        flight.wanted.remove(new.chunks);
        self.wanted_chunks -= u64::from(before - flight.wanted.count());
        flight.requests.push(id);
        let request = Request {
            peer: new.peer,
            segment: flight.segment,
            chunks: new.chunks,
            with_tree: flight.tree.is_none() && !carried,
            sent: new.sent,
            predicted: new.predicted,
            hedge_at: new.hedge_at,
            received: 0,
            peer_was_idle: new.peer_was_idle,
            came: false,
            parked: None,
        };
        Some((id, self.requests.entry(id).insert_entry(request).into_mut()))
    }

    /// A live request.
    pub(super) fn get(&self, id: RequestId) -> Option<&Request> {
        self.requests.get(&id)
    }

    /// A live request, to note its progress.
    pub(super) fn get_mut(&mut self, id: RequestId) -> Option<&mut Request> {
        self.requests.get_mut(&id)
    }

    /// All live requests.
    pub(super) fn requests(&self) -> impl Iterator<Item = (RequestId, &Request)> {
        self.requests.iter().map(|(id, request)| (*id, request))
    }

    /// The tree of a segment that somebody waits for.
    pub(super) fn tree(&self, id: &SegmentId) -> Option<&ChunkTree> {
        self.flights.get(id)?.tree.as_ref()
    }

    /// A segment that somebody waits for.
    pub(super) fn segment(&self, id: &SegmentId) -> Option<Segment> {
        self.flights.get(id).map(|flight| flight.segment)
    }

    /// Segments that somebody waits for.
    pub(super) fn segments(&self) -> impl Iterator<Item = &SegmentId> {
        self.flights.keys()
    }

    /// Bytes came for which no tree is here yet.
    ///
    /// Returns: `false` if nobody needs them.
    pub(super) fn park(&mut self, id: RequestId, data: Bytes) -> bool {
        match self.requests.get_mut(&id) {
            Some(request) => {
                request.received = request.bytes();
                request.came = true;
                request.parked = Some(data);
                true
            }
            None => false,
        }
    }

    /// A verified tree came: what waited for it, to be checked now.
    pub(super) fn learn_tree(&mut self, tree: &ChunkTree) -> Vec<(RequestId, ChunkRange, Bytes)> {
        let Some(flight) = self.flights.get_mut(&tree.segment().id) else { return Vec::new() };
        flight.tree.get_or_insert_with(|| tree.clone());
        let mut parked = Vec::new();
        for id in &flight.requests {
            if let Some(request) = self.requests.get_mut(id)
                && let Some(data) = request.parked.take()
            {
                parked.push((*id, request.chunks, data));
            }
        }
        parked
    }

    /// Verified bytes of a request came; the request is finished.
    ///
    /// Shape: `data` is exactly the bytes of the request's chunks.
    pub(super) fn deliver(&mut self, id: RequestId, data: &Bytes) -> Option<(Request, Settled)> {
        let request = self.forget_request(id)?;
        let segment = request.segment;
        let mut settled = Settled::default();
        if let Some(flight) = self.flights.get_mut(&segment.id) {
            let needed = needed(&self.wants, flight);
            let first = segment.bytes_of(request.chunks).start;
            let mut at = request.chunks.start;
            let fresh = |chunk: u32| needed.contains(chunk) && !flight.held.contains(chunk);
            let mut runs = Vec::new();
            while let Some(run) = first_run(ChunkRange::new(at, request.chunks.end), fresh) {
                at = run.end;
                runs.push(run);
            }
            for run in runs {
                let bytes = segment.bytes_of(run);
                // Both ends lie in `data`, whose length the tree's check has established.
                let (start, end) = (bytes.start - first, bytes.end - first);
                let piece = data.slice(usize_of(start)..usize_of(end));
                settled.useful_bytes += piece.len() as u64;
                let before = flight.wanted.count();
                flight.wanted.remove(run);
                self.wanted_chunks -= u64::from(before - flight.wanted.count());
                flight.held.insert(run);
                flight.pieces.insert(run.start, (run, piece));
            }
        }
        self.settle(segment.id, &mut settled);
        Some((request, settled))
    }

    /// A request failed or was cancelled: its chunks are wanted again unless another request has them.
    pub(super) fn fail(&mut self, id: RequestId) -> Option<Request> {
        let request = self.forget_request(id)?;
        let Some(flight) = self.flights.get_mut(&request.segment.id) else { return Some(request) };
        let requested = requested(&self.requests, flight);
        let needed = needed(&self.wants, flight);
        for chunk in request.chunks.iter() {
            if needed.contains(chunk)
                && !requested.contains(chunk)
                && !flight.held.contains(chunk)
                && !flight.wanted.contains(chunk)
            {
                flight.wanted.insert(one(chunk));
                self.wanted_chunks += 1;
            }
        }
        for id in &flight.wants {
            if let Some(want) = self.wants.get(id)
                && !want.chunks.intersect(request.chunks).is_empty()
            {
                self.queue.insert((want.urgency, *id));
            }
        }
        Some(request)
    }

    /// The first part of a request that is still missing and that no other request covers.
    pub(super) fn uncovered(&self, id: RequestId) -> Option<ChunkRange> {
        let request = self.requests.get(&id)?;
        let flight = self.flights.get(&request.segment.id)?;
        let others: Vec<ChunkRange> = flight
            .requests
            .iter()
            .filter(|other| **other != id)
            .filter_map(|other| self.requests.get(other).map(|other| other.chunks))
            .collect();
        first_run(request.chunks, |chunk| {
            !flight.held.contains(chunk) && !others.iter().any(|range| range.contains(one(chunk)))
        })
    }

    /// A request whose bytes wait for a tree that nobody brings: it has to be asked for again, with the tree.
    pub(super) fn stuck(&self, id: &SegmentId) -> Option<RequestId> {
        let flight = self.flights.get(id)?;
        let live = || flight.requests.iter().filter_map(|id| Some((*id, self.requests.get(id)?)));
        if flight.tree.is_some() || !flight.wanted.is_empty() || live().any(|(_, request)| request.with_tree) {
            return None;
        }
        live().find(|(_, request)| request.parked.is_some()).map(|(id, _)| id)
    }

    /// Wanted chunks of a want, for its error message.
    pub(super) fn missing(&self, id: WantId) -> Option<(Segment, ChunkRange)> {
        let want = self.wants.get(&id)?;
        let flight = self.flights.get(&want.segment)?;
        let absent = first_run(want.chunks, |chunk| !flight.held.contains(chunk));
        Some((flight.segment, absent.unwrap_or(want.chunks)))
    }

    fn next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn forget_want(&mut self, id: WantId) -> Option<SegmentId> {
        let want = self.wants.remove(&id)?;
        self.queue.remove(&(want.urgency, id));
        let flight = self.flights.get_mut(&want.segment)?;
        flight.wants.retain(|other| *other != id);
        Some(want.segment)
    }

    fn forget_request(&mut self, id: RequestId) -> Option<Request> {
        let request = self.requests.remove(&id)?;
        if let Some(flight) = self.flights.get_mut(&request.segment.id) {
            flight.requests.retain(|other| *other != id);
        }
        Some(request)
    }

    /// Hand out what is complete, and drop what nobody needs.
    fn settle(&mut self, id: SegmentId, settled: &mut Settled) {
        let Some(flight) = self.flights.get(&id) else { return };
        if let Some(tree) = &flight.tree {
            let complete: Vec<WantId> = flight
                .wants
                .iter()
                .filter(|id| self.wants.get(id).is_some_and(|want| flight.held.contains_all(want.chunks)))
                .copied()
                .collect();
            for id in &complete {
                let Some(want) = self.wants.get(id) else { continue };
                settled.done.push((*id, Fetched { tree: tree.clone(), pieces: flight.cut(want.chunks) }));
            }
            for id in complete {
                self.forget_want(id);
            }
        }
        self.drop_needless(id, settled);
    }

    fn drop_needless(&mut self, id: SegmentId, settled: &mut Settled) {
        let Some(flight) = self.flights.get_mut(&id) else { return };
        let needed = needed(&self.wants, flight);
        let before = flight.wanted.count();
        let unwanted: Vec<u32> = flight.wanted.iter().filter(|chunk| !needed.contains(*chunk)).collect();
        unwanted.into_iter().for_each(|chunk| flight.wanted.remove(one(chunk)));
        self.wanted_chunks -= u64::from(before - flight.wanted.count());

        let pointless = |request: &Request| {
            request.chunks.iter().all(|chunk| flight.held.contains(chunk) || !needed.contains(chunk))
        };
        let (keep, drop): (Vec<RequestId>, Vec<RequestId>) =
            flight.requests.iter().partition(|id| self.requests.get(id).is_some_and(|request| !pointless(request)));
        // Who brings the tree is kept as long as others' bytes wait for it.
        let tree_comes = keep.iter().any(|id| self.requests.get(id).is_some_and(|request| request.with_tree));
        let spare = |id: &RequestId| {
            !keep.is_empty()
                && flight.tree.is_none()
                && !tree_comes
                && self.requests.get(id).is_some_and(|r| r.with_tree)
        };
        let (spared, drop): (Vec<RequestId>, Vec<RequestId>) = drop.into_iter().partition(spare);
        flight.requests = keep.into_iter().chain(spared).collect();
        for id in drop {
            if let Some(request) = self.requests.remove(&id) {
                settled.needless.push((id, request));
            }
        }

        let pieces = flight.pieces.len();
        flight.pieces.retain(|_, (range, _)| range.iter().any(|chunk| needed.contains(chunk)));
        if flight.pieces.len() < pieces {
            flight.held = ChunkSet::empty(flight.segment.chunks());
            flight.pieces.values().for_each(|(range, _)| flight.held.insert(*range));
        }
        if flight.wants.is_empty() && flight.requests.is_empty() {
            self.flights.remove(&id);
        }
    }
}

fn requested(requests: &HashMap<RequestId, Request>, flight: &Flight) -> ChunkSet {
    let mut set = ChunkSet::empty(flight.segment.chunks());
    flight.requests.iter().filter_map(|id| requests.get(id)).for_each(|request| set.insert(request.chunks));
    set
}

fn needed(wants: &HashMap<WantId, LiveWant>, flight: &Flight) -> ChunkSet {
    let mut set = ChunkSet::empty(flight.segment.chunks());
    flight.wants.iter().filter_map(|id| wants.get(id)).for_each(|want| set.insert(want.chunks));
    set
}

#[cfg(test)]
mod tests;
