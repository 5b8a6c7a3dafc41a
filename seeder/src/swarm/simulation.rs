//! The engine against links in virtual time: how near a read comes to the sum of the links' rates.
//!
//! A link serves its requests at a fixed rate, shared among them, after a latency; bytes show in frames,
//! as HTTP/2 shows them. The reader reads in order through a window, as a mount does.

#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "numbers of a simulation are small")]

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use bytes::Bytes;
use swarm_proto::{ChunkRange, ChunkTree, MAX_RUN_CHUNKS, PeerId, SegmentId};

use super::engine::{Action, Assignment, Engine, Failure};
use super::in_flight::WantId;
use super::scoreboard::PeerKey;
use super::{Holder, PeerAddress, SwarmConfig, SwarmStats, Urgency, Want};

const MIB: u64 = 1 << 20;
const SEGMENT: usize = 4 << 20;
const STEP: Duration = Duration::from_micros(250);
const FRAME: f64 = 256.0 * 1024.0;

/// Bytes a second of a link of so many Mbit/s.
const fn mbit(rate: f64) -> f64 {
    rate * 125_000.0
}

#[derive(Clone)]
struct Link {
    rate: f64,
    latency: Duration,
    /// From then on the link carries nothing, or again.
    silent: Option<(Duration, Duration)>,
    /// From then on every request fails at once.
    dies: Option<Duration>,
    /// From then on its rate is another one.
    becomes: Option<(Duration, f64)>,
}

impl Link {
    fn new(megabits: f64, latency_ms: f64) -> Self {
        let latency = Duration::from_secs_f64(latency_ms / 1e3);
        Self { rate: mbit(megabits), latency, silent: None, dies: None, becomes: None }
    }
}

struct Transfer {
    assignment: Assignment,
    begins: Instant,
    left: f64,
    all: f64,
}

struct Read {
    seconds: f64,
    first_byte: f64,
    longest_stall: f64,
    stats: SwarmStats,
}

impl Read {
    fn share(&self, of: u64, links: &[Link]) -> f64 {
        let sum: f64 = links.iter().map(|link| link.rate).sum();
        of as f64 / sum / self.seconds
    }
}

struct World {
    start: Instant,
    now: Instant,
    engine: Engine,
    links: Vec<Link>,
    holders: Vec<Holder>,
    transfers: BTreeMap<PeerKey, Vec<Transfer>>,
    trees: HashMap<SegmentId, ChunkTree>,
    done: Vec<WantId>,
    located: Vec<(Instant, Vec<SegmentId>)>,
    zeros: Bytes,
}

impl World {
    fn new(links: &[Link]) -> Self {
        let start = Instant::now();
        let holder = |at: usize| Holder {
            peer: PeerAddress {
                id: PeerId::new([u8::try_from(at).unwrap() + 1; 16]),
                address: format!("10.0.0.{at}:1"),
                zone: String::new(),
                host: String::new(),
            },
            partial: false,
        };
        Self {
            start,
            now: start,
            engine: Engine::new(&SwarmConfig::new(PeerId::new([0; 16]), ""), start),
            links: links.to_vec(),
            holders: (0..links.len()).map(holder).collect(),
            transfers: BTreeMap::new(),
            trees: HashMap::new(),
            done: Vec::new(),
            located: Vec::new(),
            zeros: Bytes::from(vec![0; MIB as usize]),
        }
    }

    fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Send(assignment) => {
                    let link = self.link(assignment.peer);
                    let tree = if assignment.with_tree { ChunkTree::wire_len(assignment.segment) } else { 0 };
                    let all = (assignment.segment.bytes_of(assignment.chunks).len() + tree as u64) as f64;
                    let begins = self.now + link.latency;
                    let transfer = Transfer { begins, left: all, all, assignment };
                    self.transfers.entry(transfer.assignment.peer).or_default().push(transfer);
                }
                Action::Cancel(id) => {
                    self.transfers.values_mut().for_each(|all| all.retain(|transfer| transfer.assignment.id != id));
                }
                Action::Done(id, fetched) => {
                    assert!(!fetched.pieces.is_empty());
                    self.done.push(id);
                }
                Action::Locate(ids) => self.located.push((self.now + Duration::from_millis(1), ids)),
                Action::AskHave(..) | Action::Report(..) => {}
            }
        }
    }

    fn link(&self, peer: PeerKey) -> Link {
        let address = self.engine.address(peer);
        self.links[self.holders.iter().position(|holder| holder.peer.id == address.id).unwrap()].clone()
    }

    /// One step of all links.
    fn step(&mut self) {
        self.now += STEP;
        let passed = self.now - self.start;
        let mut actions = Vec::new();
        let due: Vec<_> = self.located.extract_if(.., |(at, _)| *at <= self.now).collect();
        for (_, ids) in due {
            let found = vec![self.holders.clone(); ids.len()];
            self.engine.located(&ids, Some(&found), self.now, &mut actions);
        }
        let mut ended: Vec<(Transfer, bool)> = Vec::new();
        let peers: Vec<PeerKey> = self.transfers.keys().copied().collect();
        for peer in peers {
            let link = self.link(peer);
            let silent = link.silent.is_some_and(|(from, to)| passed >= from && passed < to);
            let dead = link.dies.is_some_and(|at| passed >= at);
            let rate = match link.becomes {
                Some((from, rate)) if passed >= from => rate,
                _ => link.rate,
            };
            let transfers = self.transfers.get_mut(&peer).unwrap();
            if dead {
                ended.extend(transfers.drain(..).map(|transfer| (transfer, false)));
                continue;
            }
            let now = self.now;
            ended.extend(transfers.extract_if(.., |t| now >= t.assignment.deadline).map(|t| (t, false)));
            if silent {
                continue;
            }
            // What one transfer does not need in this step goes to the others.
            let mut budget = rate * STEP.as_secs_f64();
            loop {
                let mut active: Vec<&mut Transfer> =
                    transfers.iter_mut().filter(|t| t.begins <= now && t.left > 0.0).collect();
                if active.is_empty() || budget < 1e-6 {
                    break;
                }
                let each = budget / active.len() as f64;
                for transfer in &mut active {
                    let bytes = each.min(transfer.left);
                    transfer.left -= bytes;
                    budget -= bytes;
                }
            }
            ended.extend(transfers.extract_if(.., |t| t.left <= 0.5).map(|t| (t, true)));
            for transfer in transfers.iter() {
                let came = ((transfer.all - transfer.left) / FRAME).floor() * FRAME;
                self.engine.progress(transfer.assignment.id, came as u64, now);
            }
        }
        for (transfer, answered) in ended {
            let Assignment { id, segment, chunks, with_tree, .. } = transfer.assignment;
            let latency = Some(transfer.begins - transfer.begins.min(self.now)).filter(|l| l.is_zero());
            let latency = latency.map(|_| self.link(transfer.assignment.peer).latency);
            if !answered {
                let why = if self.now >= transfer.assignment.deadline {
                    Failure::TooSlow
                } else {
                    Failure::Unreachable("x".into())
                };
                self.engine.failed(id, &why, self.now, &mut actions);
                continue;
            }
            let data = self.zeros.slice(..usize::try_from(segment.bytes_of(chunks).len()).unwrap());
            if with_tree {
                let tree = self.trees[&segment.id].clone();
                for parked in self.engine.tree_came(&tree) {
                    self.engine.delivered(parked.request, &parked.data, None, self.now, &mut actions);
                }
            } else if transfer.assignment.tree.is_none()
                && self.engine.park(id, &data, latency, self.now, &mut actions).is_none()
            {
                continue;
            }
            self.engine.delivered(id, &data, latency, self.now, &mut actions);
        }
        if self.engine.next_wake(self.now).is_some_and(|at| at <= self.now + STEP * 40) {
            // The driver looks every ten milliseconds.
            if passed.as_micros() % 10_000 < STEP.as_micros() {
                self.engine.tick(self.now, &mut actions);
            }
        }
        self.perform(actions);
    }

    /// Read `bytes` in order, in wants of 1 MiB, with so much read ahead.
    fn read(mut self, bytes: u64, window: u64) -> Read {
        let segments: Vec<_> = (0..bytes.div_ceil(SEGMENT as u64))
            .map(|at| {
                let mut data = vec![0; SEGMENT];
                data[..8].copy_from_slice(&at.to_le_bytes());
                let tree = ChunkTree::build(&data);
                self.trees.insert(tree.segment().id, tree.clone());
                tree.segment()
            })
            .collect();
        let wants = bytes / MIB;
        let per_segment = SEGMENT as u64 / MIB;
        let deadline = self.start + Duration::from_secs(600);
        let (mut asked, mut read) = (0, 0);
        let mut pending: BTreeMap<WantId, u64> = BTreeMap::new();
        let mut here = vec![false; wants as usize];
        let (mut first_byte, mut last_progress, mut longest_stall) = (None, self.start, Duration::ZERO);
        while read < wants {
            // The window grows as a reader's does: it doubles while reading is sequential.
            let ahead = (read * 2 + 1).min(window / MIB);
            while asked < wants.min(read + ahead.max(1)) {
                let segment = segments[(asked / per_segment) as usize];
                let first = u32::try_from(asked % per_segment).unwrap() * MAX_RUN_CHUNKS;
                let chunks = ChunkRange::new(first, first + MAX_RUN_CHUNKS);
                let urgency = if asked == read { Urgency::Reader } else { Urgency::Ahead };
                let mut actions = Vec::new();
                let want = Want { segment, chunks, urgency, deadline };
                let id = self.engine.want(&want, self.now, &mut actions).unwrap();
                pending.insert(id, asked);
                self.perform(actions);
                asked += 1;
            }
            self.step();
            for id in std::mem::take(&mut self.done) {
                here[pending.remove(&id).unwrap() as usize] = true;
            }
            let before = read;
            while read < wants && here[read as usize] {
                read += 1;
            }
            if read > before {
                first_byte.get_or_insert(self.now - self.start);
                longest_stall = longest_stall.max(self.now - last_progress);
                last_progress = self.now;
            }
            assert!(self.now < deadline, "the read never ends: {read} of {wants}");
        }
        Read {
            seconds: (self.now - self.start).as_secs_f64(),
            first_byte: first_byte.unwrap().as_secs_f64(),
            longest_stall: longest_stall.as_secs_f64(),
            stats: self.engine.stats(self.now),
        }
    }
}

fn read(links: &[Link], mebibytes: u64) -> (f64, Read) {
    let read = World::new(links).read(mebibytes * MIB, 64 * MIB);
    let share = read.share(mebibytes * MIB, links);
    let bytes: Vec<u64> = read.stats.peers.iter().map(|peer| peer.bytes / MIB).collect();
    println!(
        "{share:.3} of the sum, {:.2} s, first {:.1} ms, stall {:.0} ms, {} requests, {} hedges, wasted {} KiB, {bytes:?}",
        read.seconds,
        read.first_byte * 1e3,
        read.longest_stall * 1e3,
        read.stats.requests,
        read.stats.hedges,
        read.stats.wasted_bytes >> 10
    );
    (share, read)
}

#[test]
fn equal_links_are_filled_and_share_evenly() {
    let links = vec![Link::new(100.0, 0.5); 4];
    let (share, read) = read(&links, 400);
    assert!(share >= 0.97, "{share}");
    for peer in &read.stats.peers {
        let part = peer.bytes as f64 / (400 * MIB) as f64;
        assert!((0.2..0.3).contains(&part), "{part}");
    }
}

#[test]
fn unequal_links_are_filled() {
    let links = [100.0, 100.0, 50.0, 10.0].map(|rate| Link::new(rate, 0.5));
    let (share, _) = read(&links, 200);
    assert!(share >= 0.97, "{share}");
}

#[test]
fn links_are_filled_whatever_their_rates_and_latencies() {
    for latency in [0.1, 1.0, 3.0, 8.0] {
        for rates in [vec![100.0; 2], vec![1000.0; 3], vec![20.0, 40.0, 80.0, 160.0], vec![300.0, 30.0], vec![50.0]] {
            let links: Vec<Link> = rates.iter().map(|rate| Link::new(*rate, latency)).collect();
            let (share, read) = read(&links, 160);
            let lost = read.seconds * (1.0 - share);
            let allowed = 0.03 * read.seconds + 6.0 * latency / 1e3;
            assert!(lost <= allowed, "{share} of {rates:?} at {latency} ms");
        }
    }
}

#[test]
fn far_links_are_filled() {
    let links = [100.0, 100.0, 100.0].map(|rate| Link::new(rate, 40.0));
    let (share, _) = read(&links, 200);
    assert!(share >= 0.93, "{share}");
}

#[test]
fn fast_links_share_evenly_with_few_requests() {
    let links = vec![Link::new(10_000.0, 0.2); 4];
    let (_, read) = read(&links, 1024);
    for peer in &read.stats.peers {
        let part = peer.bytes as f64 / (1024 * MIB) as f64;
        assert!((0.2..0.3).contains(&part), "{part}");
    }
    assert!(read.stats.requests < 1200, "{}", read.stats.requests);
}

#[test]
fn a_peer_that_goes_silent_stalls_nobody_for_long() {
    let mut links = vec![Link::new(100.0, 0.5); 4];
    links[1].silent = Some((Duration::from_secs(2), Duration::from_secs(600)));
    let (_, read) = read(&links, 200);
    assert!(read.longest_stall < 1.0, "{}", read.longest_stall);
    let three = 200.0 * MIB as f64 / (mbit(300.0));
    assert!(read.seconds < three * 1.05, "{} {three}", read.seconds);
}

#[test]
fn a_peer_that_dies_costs_only_its_own_rate() {
    let mut links = vec![Link::new(100.0, 0.5); 4];
    links[3].dies = Some(Duration::from_secs(1));
    let (_, read) = read(&links, 200);
    assert!(read.longest_stall < 0.5, "{}", read.longest_stall);
    let three = 200.0 * MIB as f64 / (mbit(300.0));
    assert!(read.seconds < three, "{} {three}", read.seconds);
}

#[test]
fn a_link_that_becomes_slow_is_given_less() {
    let mut links = vec![Link::new(100.0, 0.5); 4];
    links[0].becomes = Some((Duration::from_secs(1), mbit(2.0)));
    let (_, read) = read(&links, 200);
    assert!(read.longest_stall < 1.0, "{}", read.longest_stall);
    let three = 200.0 * MIB as f64 / (mbit(300.0));
    assert!(read.seconds < three * 1.02, "{} {three}", read.seconds);
}

#[test]
fn a_very_slow_peer_does_not_delay_the_first_byte_much() {
    let links = [100.0, 100.0, 50.0, 0.2].map(|rate| Link::new(rate, 0.5));
    let (share, read) = read(&links, 100);
    assert!(read.first_byte < 0.1, "{}", read.first_byte);
    assert!(share > 0.95, "{share}");
}

#[test]
fn a_small_read_moves_one_chunk_and_one_tree() {
    let links = vec![Link::new(100.0, 0.5); 4];
    let mut world = World::new(&links);
    let tree = ChunkTree::build(&vec![7; SEGMENT]);
    let segment = tree.segment();
    world.trees.insert(segment.id, tree);
    let chunks = ChunkRange::new(100, 101);
    let deadline = world.start + Duration::from_secs(10);
    let mut actions = Vec::new();
    let want = Want { segment, chunks, urgency: Urgency::Reader, deadline };
    world.engine.want(&want, world.now, &mut actions).unwrap();
    world.perform(actions);
    while world.done.is_empty() {
        world.step();
    }
    let stats = world.engine.stats(world.now);
    assert_eq!((stats.requests, stats.payload_bytes, stats.tree_bytes), (1, 16_384, 8192));
}
