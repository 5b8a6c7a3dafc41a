//! The fetcher against real peers that behave and misbehave.

use std::time::Instant as Clock;

use swarm_proto::{ChunkRange, Segment};

use super::*;
use crate::swarm::{Offence, Standing, Urgency};
use crate::testing::{Conduct, FakePeer, FakeTracker, noise};

mod local;

const MIB: usize = 1 << 20;
const LONG: Duration = Duration::from_secs(30);

struct Room {
    swarm: Arc<Swarm>,
    tracker: Arc<FakeTracker>,
    stop: CancellationToken,
}

impl Room {
    fn new() -> Self {
        Self::with(SwarmConfig::new(swarm_proto::PeerId::random(), ""))
    }

    fn with(config: SwarmConfig) -> Self {
        let tracker = Arc::new(FakeTracker::default());
        let stop = CancellationToken::new();
        let locator: Arc<dyn Locator> = Arc::clone(&tracker) as _;
        let swarm = Swarm::new(config, locator, &prometheus::Registry::new(), TaskTracker::new(), stop.clone());
        Self { swarm, tracker, stop }
    }

    /// Let all these peers hold `data`.
    fn hold(&self, peers: &[FakePeer], data: &[u8]) -> Segment {
        let mut segment = None;
        for peer in peers {
            segment = Some(peer.hold(data));
        }
        let segment = segment.expect("some peer");
        self.tracker.set(segment.id, peers.iter().map(FakePeer::holder).collect());
        segment
    }

    async fn read(&self, segment: Segment, chunks: ChunkRange, wait: Duration) -> Result<Vec<u8>, FetchError> {
        let want = Want { segment, chunks, urgency: Urgency::Reader, deadline: Clock::now() + wait };
        let fetched = self.swarm.fetch(want).await?;
        let mut next = chunks.start;
        let mut bytes = Vec::new();
        for (range, piece) in fetched.pieces {
            assert_eq!(range.start, next, "pieces are consecutive");
            next = range.end;
            bytes.extend_from_slice(&piece);
        }
        assert_eq!(next, chunks.end);
        Ok(bytes)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn peers(count: usize, conduct: &Conduct) -> Vec<FakePeer> {
    (0..count).map(|_| FakePeer::start(conduct.clone())).collect()
}

/// Every way in which a peer can be no help.
fn lies() -> [Conduct; 10] {
    [
        Conduct::WrongBytes,
        Conduct::WrongTree,
        Conduct::Truncated,
        Conduct::Endless,
        Conduct::Huge,
        Conduct::Missing,
        Conduct::Disconnect,
        Conduct::Hang,
        Conduct::Drip(10, Duration::from_millis(50)),
        Conduct::Busy,
    ]
}

async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let give_up = Clock::now() + LONG;
    while !is() {
        assert!(Clock::now() < give_up, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_length_and_every_range_comes_back_as_it_is() {
    let room = Room::new();
    let peers = peers(3, &Conduct::Honest);
    for length in [1, 16_383, 16_384, 16_385, 100_000, MIB, MIB + 1, 4 * MIB] {
        let data = noise(length as u64, length);
        let segment = room.hold(&peers, &data);
        assert_eq!(room.read(segment, segment.all(), LONG).await.unwrap(), data, "length {length}");
        let last = ChunkRange::new(segment.chunks() - 1, segment.chunks());
        let from = (last.start as usize) * 16_384;
        assert_eq!(room.read(segment, last, LONG).await.unwrap(), data[from..], "last chunk of {length}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn four_equal_peers_share_a_large_file_evenly() {
    let room = Room::new();
    let peers = peers(4, &Conduct::Honest);
    let segments: Vec<_> = (0..8).map(|seed| room.hold(&peers, &noise(seed, 4 * MIB))).collect();
    // A reader with 64 MiB read ahead.
    let ahead = Arc::new(tokio::sync::Semaphore::new(64));
    let mut reads = tokio::task::JoinSet::new();
    for segment in segments.into_iter().cycle().take(256) {
        for run in segment.all().runs(64) {
            let permit = Arc::clone(&ahead).acquire_owned().await.unwrap();
            let swarm = Arc::clone(&room.swarm);
            let want = Want { segment, chunks: run, urgency: Urgency::Ahead, deadline: Clock::now() + LONG };
            reads.spawn(async move {
                swarm.fetch(want).await.unwrap();
                drop(permit);
            });
        }
    }
    while let Some(read) = reads.join_next().await {
        read.unwrap();
    }
    let served: Vec<u64> = peers.iter().map(|peer| peer.served().bytes).collect();
    let all: u64 = served.iter().sum();
    for bytes in &served {
        let part = *bytes as f64 / all as f64;
        // They are as quick as this machine lets each of them be at the time.
        assert!((0.12..=0.45).contains(&part), "{served:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slower_peer_serves_less_and_holds_up_nobody() {
    let room = Room::new();
    let peers = peers(3, &Conduct::Honest);
    for (peer, rate) in peers.iter().zip([20, 20, 2]) {
        peer.limit(rate * MIB as u64);
    }
    let segments: Vec<_> = (0..8).map(|seed| room.hold(&peers, &noise(seed, 4 * MIB))).collect();
    let reads = segments.iter().map(|segment| room.read(*segment, segment.all(), LONG));
    for (seed, read) in futures::future::join_all(reads).await.into_iter().enumerate() {
        assert_eq!(read.unwrap(), noise(seed as u64, 4 * MIB));
    }
    let stats = room.swarm.stats();
    let slow = stats.peers.iter().find(|peer| peer.peer.id == peers[2].id()).unwrap().bytes;
    assert!(slow > 0, "it has a part");
    assert!(slow * 5 < stats.payload_bytes, "but no equal one: {slow} of {}", stats.payload_bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_read_moves_one_chunk_and_the_tree() {
    let room = Room::new();
    let peers = peers(3, &Conduct::Honest);
    let data = noise(1, 4 * MIB);
    let segment = room.hold(&peers, &data);
    let chunks = ChunkRange::new(100, 101);
    assert_eq!(room.read(segment, chunks, LONG).await.unwrap(), data[100 * 16_384..101 * 16_384]);
    let bytes: u64 = peers.iter().map(|peer| peer.served().bytes).sum();
    let trees: u64 = peers.iter().map(|peer| peer.served().tree_bytes).sum();
    assert_eq!((bytes, trees), (16_384, 8192));
    // The next one needs no tree.
    room.read(segment, ChunkRange::new(7, 8), LONG).await.unwrap();
    assert_eq!(peers.iter().map(|peer| peer.served().tree_bytes).sum::<u64>(), 8192);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_wants_of_a_chunk_are_one_request() {
    let room = Room::new();
    let peers = peers(1, &Conduct::Late(Duration::from_millis(100)));
    let data = noise(1, 300_000);
    let segment = room.hold(&peers, &data);
    let reads = (0..16).map(|_| room.read(segment, ChunkRange::new(3, 4), LONG));
    for read in futures::future::join_all(reads).await {
        assert_eq!(read.unwrap(), data[3 * 16_384..4 * 16_384]);
    }
    assert_eq!(peers[0].served().requests, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_liar_yields_a_wrong_byte_and_the_read_succeeds_from_others() {
    for lie in lies() {
        let room = Room::new();
        let peers = [FakePeer::start(lie.clone()), FakePeer::start(Conduct::Honest)];
        for seed in 0..4 {
            let data = noise(seed, MIB + 77);
            let segment = room.hold(&peers, &data);
            assert_eq!(room.read(segment, segment.all(), LONG).await.unwrap(), data, "{lie:?}");
        }
        assert!(peers[0].served().requests > 0, "{lie:?} was never asked");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn small_reads_of_one_moment_travel_together_and_no_liar_yields_a_wrong_byte() {
    for lie in [Conduct::Honest].into_iter().chain(lies()) {
        let room = Room::new();
        let peers = [FakePeer::start(lie.clone()), FakePeer::start(Conduct::Honest)];
        let data: Vec<Vec<u8>> =
            (0..200).map(|seed| noise(seed, 1_000 + 200 * usize::try_from(seed).unwrap())).collect();
        let segments: Vec<Segment> = data.iter().map(|data| room.hold(&peers, data)).collect();
        let reads = segments.iter().map(|segment| room.read(*segment, segment.all(), LONG));
        for (read, data) in futures::future::join_all(reads).await.into_iter().zip(&data) {
            assert!(read.unwrap() == *data, "{lie:?}");
        }
        if lie == Conduct::Honest {
            let requests = peers[0].served().requests + peers[1].served().requests;
            assert!(requests < 100, "{requests} requests for 200 small segments");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_honest_peer_is_not_blamed_for_the_trees_of_many_small_reads() {
    let room = Room::new();
    let peers = peers(1, &Conduct::Honest);
    let data: Vec<Vec<u8>> = (0..40).map(|seed| noise(seed, 4 * MIB)).collect();
    let segments: Vec<Segment> = data.iter().map(|data| room.hold(&peers, data)).collect();
    let chunk = ChunkRange::new(100, 101);
    let reads = segments.iter().map(|segment| room.read(*segment, chunk, LONG));
    for (read, data) in futures::future::join_all(reads).await.into_iter().zip(&data) {
        assert!(read.unwrap() == data[100 * 16_384..101 * 16_384]);
    }
    assert!(room.tracker.reports().is_empty(), "{:?}", room.tracker.reports());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_liar_is_reported_and_banned_when_it_goes_on() {
    for lie in [Conduct::WrongBytes, Conduct::WrongTree, Conduct::Truncated, Conduct::Endless, Conduct::Huge] {
        let room = Room::new();
        let peers = [FakePeer::start(lie.clone()), FakePeer::start(Conduct::Honest)];
        // Where the machine is busy it may seem slow or gone as well, and is then left alone for a while.
        let give_up = Clock::now() + 2 * LONG;
        for seed in 0.. {
            let data = noise(seed, 200_000);
            let segment = room.hold(&peers, &data);
            assert_eq!(room.read(segment, segment.all(), LONG).await.unwrap(), data, "{lie:?}");
            let stats = room.swarm.stats();
            if stats.banned > 0 {
                break;
            }
            assert!(Clock::now() < give_up, "{lie:?} is not banned: {stats:?}");
        }
        let corrupt = |(peer, offence): &(_, Offence)| *peer == peers[0].id() && matches!(offence, Offence::Corrupt(_));
        // It is banned first and reported then.
        let reports = || room.tracker.reports().iter().filter(|report| corrupt(report)).count();
        until("it is reported each time", || reports() >= 3).await;
        let stats = room.swarm.stats();
        let standing = |peer: &FakePeer| stats.peers.iter().find(|p| p.peer.id == peer.id()).unwrap().standing;
        assert_eq!(standing(&peers[0]), Standing::Banned, "{lie:?}");
        assert_ne!(standing(&peers[1]), Standing::Banned, "{lie:?}");
        // Requests that were cancelled may still be on their way to it.
        let segment = room.hold(&peers, &noise(999, 200_000));
        let mut asked = 0;
        for _ in 0..100 {
            asked = peers[0].served().requests;
            room.read(segment, segment.all(), LONG).await.unwrap();
            if peers[0].served().requests == asked {
                break;
            }
        }
        assert_eq!(peers[0].served().requests, asked, "{lie:?} is asked no more");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_rotten_chunk_bans_nobody() {
    let room = Room::new();
    let peers = peers(2, &Conduct::Honest);
    let data = noise(5, MIB);
    let segment = room.hold(&peers, &data);
    peers[0].set(Conduct::Rotten(segment.id, 9));
    for _ in 0..20 {
        assert_eq!(room.read(segment, segment.all(), LONG).await.unwrap(), data);
    }
    for seed in 0..20 {
        let segment = room.hold(&peers, &noise(100 + seed, 50_000));
        room.read(segment, segment.all(), LONG).await.unwrap();
    }
    assert!(room.swarm.stats().peers.iter().all(|peer| peer.standing != Standing::Banned));
    // Where the machine is busy one may be reported as unreachable too.
    let corrupt = |(_, offence): &(_, Offence)| matches!(offence, Offence::Corrupt(_));
    let reports: Vec<_> = room.tracker.reports().into_iter().filter(corrupt).collect();
    assert!(reports.iter().all(|report| *report == (peers[0].id(), Offence::Corrupt(segment.id))), "{reports:?}");
    assert!(!reports.is_empty(), "and it is reported");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_killed_in_the_middle_of_a_read_is_no_error() {
    let room = Room::new();
    let mut peers = peers(3, &Conduct::Honest);
    peers.iter().for_each(|peer| peer.limit(20 * MIB as u64));
    let segments: Vec<_> = (0..6).map(|seed| room.hold(&peers, &noise(seed, 4 * MIB))).collect();
    let mut victim = peers.remove(0);
    let reads = segments.iter().map(|segment| room.read(*segment, segment.all(), LONG));
    let kill = async {
        until("the victim serves", || victim.served().bytes > 0).await;
        victim.kill();
    };
    let (reads, ()) = tokio::join!(futures::future::join_all(reads), kill);
    for (seed, read) in reads.into_iter().enumerate() {
        assert_eq!(read.unwrap(), noise(seed as u64, 4 * MIB));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_holders_gone_is_an_error_at_the_deadline_and_their_return_is_noticed() {
    let room = Room::new();
    let mut peers = peers(2, &Conduct::Honest);
    let data = noise(1, MIB);
    let segment = room.hold(&peers, &data);
    room.read(segment, ChunkRange::new(0, 1), LONG).await.unwrap();
    peers.iter_mut().for_each(FakePeer::kill);
    let began = Clock::now();
    let error = room.read(segment, segment.all(), Duration::from_millis(1500)).await.unwrap_err();
    assert!(matches!(error, FetchError::AllFailed { .. }), "{error}");
    assert!(began.elapsed() >= Duration::from_millis(1500), "it tried until the deadline");
    let waits = room.read(segment, segment.all(), LONG);
    let returns = async {
        let begun = Clock::now();
        while room.swarm.state.lock().waiting.is_empty() {
            assert!(begun.elapsed() < LONG, "the read does not wait");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::task::block_in_place(|| peers.iter_mut().for_each(FakePeer::revive));
    };
    let (read, ()) = tokio::join!(waits, returns);
    assert_eq!(read.unwrap(), data, "a read that waited goes on when they are back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_that_nobody_has_is_said_to_have_no_holder() {
    let room = Room::new();
    let nobodys = ChunkTree::build(&noise(1, 50_000)).segment();
    let error = room.read(nobodys, nobodys.all(), Duration::from_millis(400)).await.unwrap_err();
    assert!(matches!(error, FetchError::NoHolder { .. }), "{error}");
    assert!(room.tracker.calls() > 1, "the tracker is asked again while somebody waits");
    assert!(room.swarm.state.lock().waiting.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_go_on_from_known_holders_while_the_tracker_is_away() {
    let room = Room::new();
    let peers = peers(2, &Conduct::Honest);
    let data = noise(1, 2 * MIB);
    let segment = room.hold(&peers, &data);
    room.swarm.expect(&[segment.id]);
    until("it is located", || !room.swarm.stats().peers.is_empty()).await;
    room.tracker.set_away(true);
    assert_eq!(room.read(segment, segment.all(), LONG).await.unwrap(), data);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_late_is_hedged() {
    let room = Room::new();
    let peers = peers(2, &Conduct::Honest);
    // Both are known to be quick; then one stops answering.
    for seed in 0..20 {
        let segment = room.hold(&peers, &noise(seed, 100_000));
        room.read(segment, segment.all(), LONG).await.unwrap();
    }
    peers[0].set(Conduct::Hang);
    let before = room.swarm.stats();
    for seed in 20..24 {
        let data = noise(seed, 100_000);
        let segment = room.hold(&peers, &data);
        assert_eq!(room.read(segment, segment.all(), LONG).await.unwrap(), data);
    }
    let stats = room.swarm.stats();
    assert!(stats.hedges > before.hedges, "{stats:?}");
    assert_eq!(stats.failed, before.failed, "nobody waited for a deadline");
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_a_read_cancels_it_and_leaves_nothing() {
    let room = Room::new();
    let peers = peers(2, &Conduct::Hang);
    let segment = room.hold(&peers, &noise(1, 4 * MIB));
    let read = room.read(segment, segment.all(), LONG);
    assert!(tokio::time::timeout(Duration::from_millis(200), read).await.is_err());
    {
        let state = room.swarm.state.lock();
        assert!(state.waiting.is_empty() && state.live.is_empty());
    }
    let stats = room.swarm.stats();
    assert!(stats.requests > 0);
    assert!(stats.peers.iter().all(|peer| peer.in_flight_bytes == 0), "{stats:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn partial_holders_are_asked_what_they_have_and_complete_each_other() {
    let room = Room::new();
    let peers = peers(2, &Conduct::Honest);
    let data = noise(1, 2 * MIB);
    let segment = peers[0].hold_part(&data, ChunkRange::new(0, 70));
    peers[1].hold_part(&data, ChunkRange::new(60, 128));
    room.tracker.set(segment.id, peers.iter().map(FakePeer::partial_holder).collect());
    assert_eq!(room.read(segment, segment.all(), LONG).await.unwrap(), data);
    assert!(peers.iter().all(|peer| peer.served().have > 0 && peer.served().bytes > 0));
    // One that was named as whole says what it has when it is asked for more.
    let room = Room::new();
    room.tracker.set(segment.id, peers.iter().map(FakePeer::holder).collect());
    assert_eq!(room.read(segment, segment.all(), LONG).await.unwrap(), data);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partial_holder_that_grows_is_asked_again() {
    let room = Room::new();
    let peer = FakePeer::start(Conduct::Honest);
    let data = noise(1, 2 * MIB);
    let segment = peer.hold_part(&data, ChunkRange::new(0, 70));
    room.tracker.set(segment.id, vec![peer.partial_holder()]);
    let grows = async {
        until("the first part comes", || room.swarm.stats().payload_bytes >= 70 * 16_384).await;
        peer.hold(&data);
    };
    let (read, ()) = tokio::join!(room.read(segment, segment.all(), LONG), grows);
    assert_eq!(read.unwrap(), data);
}

#[tokio::test(flavor = "multi_thread")]
async fn holders_of_the_own_zone_are_preferred() {
    let room = Room::with(SwarmConfig::new(swarm_proto::PeerId::random(), "here"));
    let peers = [FakePeer::start(Conduct::Honest).in_zone("there"), FakePeer::start(Conduct::Honest).in_zone("here")];
    for seed in 0..30 {
        let segment = room.hold(&peers, &noise(seed, 30_000));
        room.read(segment, segment.all(), LONG).await.unwrap();
    }
    let (there, here) = (peers[0].served().bytes, peers[1].served().bytes);
    assert!(here > 5 * there, "{here} from here, {there} from there");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_download_limit_holds() {
    let mut config = SwarmConfig::new(swarm_proto::PeerId::random(), "");
    config.download_limit = Some(swarm_proto::settings::ByteCount(8 * MIB as u64));
    let room = Room::with(config);
    let peers = peers(2, &Conduct::Honest);
    let segment = room.hold(&peers, &noise(1, 8 * MIB));
    let began = Clock::now();
    room.read(segment, segment.all(), LONG).await.unwrap();
    // What may be saved up, and one run, are free.
    assert!(began.elapsed() > Duration::from_millis(650), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_ends_every_read() {
    let room = Room::new();
    let peers = peers(1, &Conduct::Hang);
    let segment = room.hold(&peers, &noise(1, MIB));
    let stops = async {
        until("it asks", || peers[0].served().requests > 0).await;
        room.stop.cancel();
    };
    let (read, ()) = tokio::join!(room.read(segment, segment.all(), LONG), stops);
    assert!(matches!(read, Err(FetchError::Stopping)));
    let read = room.read(segment, segment.all(), LONG).await;
    assert!(matches!(read, Err(FetchError::Stopping)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_lies_about_a_length_gets_nobody_accused() {
    let room = Room::new();
    let peers = peers(2, &Conduct::Honest);
    for (seed, length) in [(1, 99_000), (2, 100_001), (3, 500_000), (4, 60_000), (5, 9), (6, 16_384)] {
        let segment = room.hold(&peers, &noise(seed, 100_000));
        let wrong = Segment { id: segment.id, length };
        let error = room.read(wrong, wrong.all(), Duration::from_millis(400)).await.unwrap_err();
        assert!(matches!(error, FetchError::AllFailed { .. }), "{error}");
        assert_eq!(room.read(segment, segment.all(), LONG).await.unwrap(), noise(seed, 100_000));
    }
    assert_eq!(room.tracker.reports(), []);
    assert_eq!(room.swarm.stats().corrupt, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_want_that_makes_no_sense_is_refused() {
    let room = Room::new();
    let segment = ChunkTree::build(&noise(1, 50_000)).segment();
    for chunks in [ChunkRange::new(0, 5), ChunkRange::new(2, 2), ChunkRange::new(9, 10)] {
        assert!(room.read(segment, chunks, LONG).await.is_err());
    }
}
