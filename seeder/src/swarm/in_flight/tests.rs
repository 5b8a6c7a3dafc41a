//! The table under random histories: no chunk is ever in two states or in none, and every want ends.

use std::collections::HashMap;

use proptest::prelude::*;

use super::super::scoreboard::Scoreboard;
use super::super::{BanRules, PeerAddress};
use super::*;

impl InFlight {
    /// The invariants, checked the slow way.
    fn check(&self) {
        let mut wanted_chunks = 0;
        for (id, flight) in &self.flights {
            let requested = requested(&self.requests, flight);
            let needed = needed(&self.wants, flight);
            for chunk in flight.segment.all().iter() {
                let states = [
                    flight.wanted.contains(chunk),
                    flight.held.contains(chunk),
                    requested.contains(chunk) && !flight.held.contains(chunk),
                ];
                let count = states.iter().filter(|is| **is).count();
                assert!(count <= 1, "chunk {chunk} is in {count} states: {states:?}");
                assert_eq!(needed.contains(chunk), count == 1 && needed.contains(chunk), "chunk {chunk} is lost");
                assert!(!flight.wanted.contains(chunk) || needed.contains(chunk), "nobody wants chunk {chunk}");
            }
            let mut pieces = ChunkSet::empty(flight.segment.chunks());
            for (range, bytes) in flight.pieces.values() {
                assert!(range.iter().all(|chunk| !pieces.contains(chunk)), "pieces overlap");
                pieces.insert(*range);
                assert_eq!(bytes.len() as u64, flight.segment.bytes_of(*range).len());
            }
            assert_eq!(pieces, flight.held);
            wanted_chunks += u64::from(flight.wanted.count());
            for want in &flight.wants {
                let live = &self.wants[want];
                assert_eq!(live.segment, *id);
                let has_wanted = live.chunks.iter().any(|chunk| flight.wanted.contains(chunk));
                assert!(!has_wanted || self.queue.contains(&(live.urgency, *want)), "a want left the queue");
            }
            assert!(flight.requests.iter().all(|request| self.requests.contains_key(request)));
        }
        assert_eq!(self.wanted_chunks, wanted_chunks);
        assert_eq!(self.requests.len(), self.flights.values().map(|flight| flight.requests.len()).sum::<usize>());
        assert_eq!(self.wants.len(), self.flights.values().map(|flight| flight.wants.len()).sum::<usize>());
    }
}

#[derive(Debug, Clone)]
enum Step {
    Want { segment: usize, start: u32, length: u32 },
    Request { want: prop::sample::Index, most: u32 },
    Hedge(prop::sample::Index),
    Answer(prop::sample::Index),
    Fail(prop::sample::Index),
    Withdraw(prop::sample::Index),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let index = any::<prop::sample::Index>;
    let step = prop_oneof![
        3 => (0..2usize, 0..40u32, 1..20u32).prop_map(|(segment, start, length)| Step::Want { segment, start, length }),
        4 => (index(), 1..12u32).prop_map(|(want, most)| Step::Request { want, most }),
        1 => index().prop_map(Step::Hedge),
        3 => index().prop_map(Step::Answer),
        1 => index().prop_map(Step::Fail),
        1 => index().prop_map(Step::Withdraw),
    ];
    prop::collection::vec(step, 0..80)
}

/// Drives the table as the engine does, and knows what the bytes must be.
struct Model {
    table: InFlight,
    content: Vec<(ChunkTree, Bytes)>,
    waiting: HashMap<WantId, (usize, ChunkRange)>,
    now: Instant,
    peers: Vec<PeerKey>,
}

impl Model {
    fn new() -> Self {
        let content = [600_000usize, 300_001].map(|length| {
            let data: Vec<u8> = (0..length).map(|at| (at / 777 + length).to_le_bytes()[0]).collect();
            (ChunkTree::build(&data), Bytes::from(data))
        });
        let now = Instant::now();
        let mut scoreboard = Scoreboard::new(String::new(), BanRules::default());
        let peers = (1..4u8).map(|at| {
            let address = at.to_string();
            let id = swarm_proto::PeerId::new([at; 16]);
            scoreboard.introduce(&PeerAddress { id, address, zone: String::new(), host: String::new() }, now)
        });
        let peers = peers.collect();
        Self { table: InFlight::default(), content: content.into(), waiting: HashMap::new(), now, peers }
    }

    fn settled(&mut self, settled: Settled) {
        for (id, fetched) in settled.done {
            let (segment, chunks) = self.waiting.remove(&id).expect("a want ends once");
            let (tree, data) = &self.content[segment];
            assert_eq!(fetched.tree, *tree);
            let mut next = chunks.start;
            for (range, piece) in fetched.pieces {
                assert_eq!(range.start, next);
                next = range.end;
                let bytes = tree.segment().bytes_of(range);
                assert_eq!(piece, data[usize_of(bytes.start)..usize_of(bytes.end)]);
            }
            assert_eq!(next, chunks.end);
        }
    }

    fn request(&mut self, segment: SegmentId, chunks: ChunkRange, hedge: bool, peer: usize) {
        let predicted = Duration::from_millis(1);
        let peer = self.peers[peer];
        let (sent, hedge_at) = (self.now, self.now);
        let new = NewRequest { peer, segment, chunks, hedge, sent, predicted, hedge_at, peer_was_idle: true };
        self.table.request(new).expect("the segment is wanted");
    }

    fn answer(&mut self, id: RequestId) {
        let request = self.table.get(id).expect("live").clone();
        let at = usize::from(self.content[1].0.segment() == request.segment);
        let (tree, data) = self.content[at].clone();
        let bytes = request.segment.bytes_of(request.chunks);
        let data = data.slice(usize_of(bytes.start)..usize_of(bytes.end));
        if request.with_tree {
            for (parked, _, bytes) in self.table.learn_tree(&tree) {
                // The one before may have made it needless.
                if let Some((_, settled)) = self.table.deliver(parked, &bytes) {
                    self.settled(settled);
                }
            }
        } else if self.table.tree(&request.segment.id).is_none() {
            if !request.is_parked() {
                assert!(self.table.park(id, data));
            }
            if let Some(stuck) = self.table.stuck(&request.segment.id) {
                self.table.fail(stuck);
            }
            return;
        }
        if let Some((_, settled)) = self.table.deliver(id, &data) {
            self.settled(settled);
        }
    }

    fn nth_request(&self, at: prop::sample::Index) -> Option<RequestId> {
        let mut ids: Vec<RequestId> = self.table.requests().map(|(id, _)| id).collect();
        ids.sort();
        (!ids.is_empty()).then(|| *at.get(&ids))
    }

    fn nth_want(&self, at: prop::sample::Index) -> Option<WantId> {
        let mut ids: Vec<WantId> = self.waiting.keys().copied().collect();
        ids.sort();
        (!ids.is_empty()).then(|| *at.get(&ids))
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Want { segment, start, length } => {
                let known = self.content[segment].0.segment();
                let start = start.min(known.chunks() - 1);
                let chunks = ChunkRange::new(start, (start + length).min(known.chunks()));
                let urgency = if length % 2 == 0 { Urgency::Reader } else { Urgency::Ahead };
                let want = Want { segment: known, chunks, urgency, deadline: self.now };
                let (id, settled) = self.table.want(&want, None);
                self.waiting.insert(id, (segment, chunks));
                self.settled(settled);
            }
            Step::Request { want, most } => {
                if let Some((segment, run)) = self.nth_want(want).and_then(|id| self.table.next_run(id)) {
                    let run = ChunkRange::new(run.start, run.end.min(run.start + most));
                    self.request(segment.id, run, false, most as usize % 2);
                }
            }
            Step::Hedge(at) => {
                if let Some(id) = self.nth_request(at)
                    && let Some(run) = self.table.uncovered(id)
                {
                    let segment = self.table.get(id).expect("live").segment.id;
                    self.request(segment, run, true, 2);
                }
            }
            Step::Answer(at) => {
                if let Some(id) = self.nth_request(at) {
                    self.answer(id);
                }
            }
            Step::Fail(at) => {
                if let Some(id) = self.nth_request(at) {
                    let segment = self.table.fail(id).expect("live").segment.id;
                    if let Some(stuck) = self.table.stuck(&segment) {
                        self.table.fail(stuck);
                    }
                }
            }
            Step::Withdraw(at) => {
                if let Some(id) = self.nth_want(at) {
                    self.waiting.remove(&id);
                    let settled = self.table.withdraw(id);
                    self.settled(settled);
                }
            }
        }
        self.table.check();
    }

    /// Answer everything until nobody waits.
    fn finish(&mut self) {
        for _ in 0..1000 {
            if self.waiting.is_empty() {
                return;
            }
            let queue: Vec<WantId> = self.table.queue().collect();
            for want in queue {
                while let Some((segment, run)) = self.table.next_run(want) {
                    self.request(segment.id, run, false, 0);
                }
            }
            let mut ids: Vec<RequestId> = self.table.requests().map(|(id, _)| id).collect();
            ids.sort();
            for id in ids {
                if self.table.get(id).is_some() {
                    self.answer(id);
                    self.table.check();
                }
            }
        }
        panic!("{} wants never end", self.waiting.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn a_chunk_is_in_one_state_and_every_want_gets_its_bytes(steps in steps()) {
        let mut model = Model::new();
        for step in steps {
            model.step(step);
        }
        model.finish();
        let left: Vec<RequestId> = model.table.requests().map(|(id, _)| id).collect();
        prop_assert!(left.is_empty(), "requests that nobody needs are gone: {:?}", left);
        prop_assert!(model.table.flights.is_empty());
        prop_assert_eq!(model.table.wanted_bytes(), 0);
    }
}

#[test]
fn readers_are_served_before_those_who_read_ahead() {
    let mut model = Model::new();
    let segment = model.content[0].0.segment();
    let want =
        |start, urgency| Want { segment, chunks: ChunkRange::new(start, start + 2), urgency, deadline: model.now };
    let (ahead, _) = model.table.want(&want(0, Urgency::Ahead), None);
    let (later, _) = model.table.want(&want(2, Urgency::Ahead), None);
    let (reader, _) = model.table.want(&want(4, Urgency::Reader), None);
    assert_eq!(model.table.queue().collect::<Vec<_>>(), [reader, ahead, later]);
}
