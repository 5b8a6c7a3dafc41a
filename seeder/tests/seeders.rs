//! Whole seeders in this process, with a whole tracker: what one of them does is seen by the others.

#![allow(clippy::unwrap_used, reason = "a test that meets an error has failed")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prometheus::Registry;
use swarm_proto::settings::ByteCount;
use swarm_proto::v1::chunks_client::ChunksClient;
use swarm_proto::v1::store_frame::Frame;
use swarm_proto::{CHUNK_BYTES, ChunkTree, PeerId, Presence, Segment, v1};
use swarm_seeder::peer::Stopped;
use swarm_seeder::service::{Seeder, SeederConfig, SeederError};
use swarm_seeder::store::ChunkStore;
use swarm_seeder::swarm::{Locator, Offence, Swarm, SwarmConfig, Urgency, Want};
use swarm_seeder::tracker_client::{TrackerClient, TrackerClientConfig, TrackerError};
use swarm_tracker::config::AdminListen;
use swarm_tracker::{Tracker, TrackerConfig};
use tempfile::TempDir;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

const PATIENCE: Duration = Duration::from_secs(30);

/// A folder for everything, and the words to start things in it.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        let _ = swarm_proto::admin::init_log("warn", swarm_proto::admin::LogFormat::Text);
        Self { folder: TempDir::new().unwrap() }
    }

    fn data(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn tracker(&self, name: &str, listen: SocketAddr) -> Tracker {
        let config = TrackerConfig {
            listen,
            data: Some(self.data(name)),
            admin_listen: AdminListen::Off,
            ..TrackerConfig::default()
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Tracker::start(config.clone()).await {
                Ok(tracker) => return tracker,
                Err(error) if Instant::now() > deadline => panic!("start the tracker: {error}"),
                // The port of a tracker that has just ended.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    fn config(&self, name: &str, tracker: SocketAddr) -> SeederConfig {
        SeederConfig {
            tracker: format!("swarm://{tracker}"),
            listen: anywhere(),
            data: self.data(name),
            capacity: ByteCount(1 << 30),
            admin_listen: "off".to_owned(),
            ..SeederConfig::default()
        }
    }

    async fn seeder(&self, name: &str, tracker: SocketAddr) -> Seeder {
        let seeder = Seeder::start(self.config(name, tracker), &Registry::new()).await.unwrap();
        assert!(seeder.announced(PATIENCE).await, "{name} is announced");
        seeder
    }

    async fn seeders<const N: usize>(&self, tracker: SocketAddr) -> [Seeder; N] {
        let mut seeders = Vec::new();
        for number in 0..N {
            seeders.push(self.seeder(&format!("seeder-{number}"), tracker).await);
        }
        seeders.try_into().ok().unwrap()
    }
}

fn anywhere() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn bytes(length: usize, seed: u64) -> Vec<u8> {
    let byte = |at: usize| ((at as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15 ^ seed) >> 29).to_le_bytes()[0];
    (0..length).map(byte).collect()
}

/// Send segments to the first of `seeders`, which pass them on.
async fn store(seeders: &[&Seeder], data: &[&[u8]]) -> v1::StoreReply {
    let segments = data.iter().map(|bytes| ChunkTree::build(bytes).segment().into()).collect();
    let target =
        |seeder: &&Seeder| v1::Target { peer_id: seeder.id().to_wire(), address: seeder.address().to_string() };
    let header = v1::StoreHeader {
        segments,
        level: v1::AckLevel::Close.into(),
        forward: seeders[1..].iter().map(target).collect(),
        keep_ms: 0,
    };
    let mut frames = vec![v1::StoreFrame { frame: Some(Frame::Header(header)) }];
    for part in data.concat().chunks(1 << 20) {
        frames.push(v1::StoreFrame { frame: Some(Frame::Data(Bytes::copy_from_slice(part))) });
    }
    let mut client = ChunksClient::connect(format!("http://{}", seeders[0].address())).await.unwrap();
    client.store(tokio_stream::iter(frames)).await.unwrap().into_inner()
}

fn all_held(reply: &v1::StoreReply) -> bool {
    reply.acks.iter().all(|ack| ack.outcomes().all(|outcome| outcome == v1::StoreOutcome::Held))
}

/// Somebody who reads and reports, and holds nothing.
struct Reader {
    client: TrackerClient,
    swarm: Arc<Swarm>,
    _stop: DropGuard,
}

fn reader(tracker: SocketAddr) -> Reader {
    reader_of(&tracker.to_string())
}

fn reader_of(trackers: &str) -> Reader {
    let me = PeerId::random();
    let client = TrackerClient::new(TrackerClientConfig {
        address: trackers.parse().unwrap(),
        me: Some(me),
        zone: String::new(),
        patience: Duration::from_secs(5),
    });
    let (client, stop, tasks) = (client.unwrap(), CancellationToken::new(), TaskTracker::new());
    let locator = Arc::new(client.clone());
    let swarm = Swarm::new(SwarmConfig::new(me, ""), locator, &Registry::new(), tasks.clone(), stop.clone());
    let (sender, until) = (client.clone(), stop.clone());
    tasks.spawn(async move { sender.send_reports(until).await });
    Reader { client, swarm, _stop: stop.drop_guard() }
}

impl Reader {
    async fn read(&self, segment: Segment) -> Vec<u8> {
        let deadline = Instant::now() + PATIENCE;
        let want = Want { segment, chunks: segment.all(), urgency: Urgency::Reader, deadline };
        let fetched = self.swarm.fetch(want).await.unwrap();
        fetched.pieces.into_iter().flat_map(|(_, bytes)| bytes).collect()
    }

    /// Wait until so many whole holders are known of a segment.
    async fn located(&self, segment: Segment, holders: usize) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.client.locate(&[segment.id]).await.unwrap_or_default();
            let whole = found.first().map(|found| found.iter().filter(|holder| !holder.partial).count());
            if whole == Some(holders) {
                return;
            }
            assert!(Instant::now() < deadline, "{whole:?} holders instead of {holders}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Flip one byte of a segment's file on disk.
fn rot(data: &Path, segment: Segment, at: usize) {
    let name = segment.id.to_string();
    let mut folders = vec![data.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else if entry.file_name().to_string_lossy().contains(&name) {
                use std::os::unix::fs::FileExt;
                let file = std::fs::OpenOptions::new().read(true).write(true).open(entry.path()).unwrap();
                let mut byte = [0];
                file.read_exact_at(&mut byte, at as u64).unwrap();
                file.write_all_at(&[byte[0] ^ 1], at as u64).unwrap();
                return;
            }
        }
    }
    panic!("no file of segment {name}");
}

fn is_whole(seeder: &Seeder, segment: Segment) -> bool {
    seeder.peer().store().held(&segment.id).is_some_and(|held| held.presence == Presence::Whole)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_stored_on_three_is_located_on_three_and_read_back() {
    let place = Place::new();
    let tracker = place.tracker("tracker", anywhere()).await;
    let [a, b, c] = place.seeders(tracker.address()).await;
    let data = [bytes(4 << 20, 1), bytes(1, 2), bytes(CHUNK_BYTES as usize + 1, 3), bytes(1_000_000, 4)];
    let slices: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
    let reply = store(&[&a, &b, &c], &slices).await;
    assert!(reply.acks.len() == 3 && all_held(&reply), "{reply:?}");
    let reader = reader(tracker.address());
    for bytes in &data {
        let segment = ChunkTree::build(bytes).segment();
        reader.located(segment, 3).await;
        assert!(reader.read(segment).await == *bytes);
    }
    let served: u64 = [&a, &b, &c].iter().map(|seeder| seeder.peer().counters().served_bytes.get()).sum();
    assert!(served >= data.iter().map(|bytes| bytes.len() as u64).sum::<u64>(), "{served}");
    for seeder in [a, b, c] {
        assert_eq!(seeder.stop().await, Stopped::Clean);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotten_chunk_that_a_reader_meets_is_repaired_and_nobody_is_banned() {
    let place = Place::new();
    let tracker = place.tracker("tracker", anywhere()).await;
    let [a, b] = place.seeders(tracker.address()).await;
    let data = bytes(4 << 20, 1);
    let segment = ChunkTree::build(&data).segment();
    assert!(all_held(&store(&[&a, &b], &[&data]).await));
    let reader = reader(tracker.address());
    reader.located(segment, 2).await;
    rot(&place.data("seeder-0"), segment, 1_000_000);
    // Whoever is asked first, each chunk of the rotten one is read once.
    let chunk = segment.all().runs(1).nth(1_000_000 / CHUNK_BYTES as usize).unwrap();
    let mut client = ChunksClient::connect(format!("http://{}", a.address())).await.unwrap();
    let request = v1::FetchRequest {
        segment_id: segment.id.to_wire(),
        first_chunk: chunk.start,
        chunk_count: 1,
        ..v1::FetchRequest::default()
    };
    let reply = client.fetch(request.clone()).await.unwrap().into_inner();
    assert!(reply.data.is_empty(), "rotten bytes were served");
    assert!(reader.read(segment).await == data);
    eventually("the segment is whole again", || is_whole(&a, segment)).await;
    reader.located(segment, 2).await;
    let reply = client.fetch(request).await.unwrap().into_inner();
    let range = segment.bytes_of(chunk);
    assert!(reply.data[..] == data[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]);
    assert_eq!(reader.swarm.stats().banned, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_makes_an_honest_seeder_look_again_and_mend_itself() {
    let place = Place::new();
    let tracker = place.tracker("tracker", anywhere()).await;
    let [a, b] = place.seeders(tracker.address()).await;
    let data = bytes(3 << 20, 1);
    let segment = ChunkTree::build(&data).segment();
    assert!(all_held(&store(&[&a, &b], &[&data]).await));
    let reader = reader(tracker.address());
    reader.located(segment, 2).await;
    rot(&place.data("seeder-1"), segment, 77);
    let mut changes = b.peer().store().changes();
    reader.client.report(b.id(), Offence::Corrupt(segment.id));
    tokio::time::timeout(PATIENCE, changes.recv()).await.expect("it looked").unwrap();
    eventually("the segment is whole again", || is_whole(&b, segment)).await;
    assert_eq!(b.peer().store().reverify(segment.id).await.unwrap(), Vec::<u32>::new());
    reader.located(segment, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_tracker_finds_everything_again() {
    let place = Place::new();
    let tracker = place.tracker("tracker", anywhere()).await;
    let address = tracker.address();
    let [a, b] = place.seeders(address).await;
    let segments: Vec<Segment> = {
        let data: Vec<Vec<u8>> = (0..40).map(|number| bytes(10_000, number)).collect();
        let slices: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
        assert!(all_held(&store(&[&a, &b], &slices).await));
        slices.iter().map(|bytes| ChunkTree::build(bytes).segment()).collect()
    };
    tracker.stop().await;
    let tracker = place.tracker("tracker", address).await;
    let reader = reader(tracker.address());
    for segment in segments {
        reader.located(segment, 2).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seeder_serves_while_the_tracker_is_away_and_joins_when_it_comes() {
    let place = Place::new();
    let first = place.tracker("tracker", anywhere()).await;
    let address = first.address();
    first.stop().await;
    let seeder = Seeder::start(place.config("seeder", address), &Registry::new()).await.unwrap();
    let data = bytes(100_000, 1);
    assert!(all_held(&store(&[&seeder], &[&data]).await));
    assert!(!seeder.announced(Duration::ZERO).await);
    let tracker = place.tracker("tracker", address).await;
    assert!(seeder.announced(PATIENCE).await);
    reader(tracker.address()).located(ChunkTree::build(&data).segment(), 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_is_no_trackers_does_not_end_the_wait_for_one_that_is() {
    let place = Place::new();
    let tracker = place.tracker("tracker", anywhere()).await;
    let address = tracker.address();
    let seeder = place.seeder("seeder", address).await;
    let reader = reader_of(&format!("{address},{}", seeder.address()));
    reader.client.stat_fs().await.unwrap();
    tracker.stop().await;
    let (answer, _tracker) = tokio::join!(reader.client.stat_fs(), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        place.tracker("tracker", address).await
    });
    answer.unwrap();
    let none = reader_of(&seeder.address().to_string()).client.stat_fs().await.unwrap_err();
    assert!(matches!(none, TrackerError::Stranger { .. }), "{none:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_seeder_is_the_same_peer_with_the_same_segments() {
    let place = Place::new();
    let tracker = place.tracker("tracker", anywhere()).await;
    let seeder = place.seeder("seeder", tracker.address()).await;
    let (id, data) = (seeder.id(), bytes(700_000, 1));
    let segment = ChunkTree::build(&data).segment();
    assert!(all_held(&store(&[&seeder], &[&data]).await));
    let reader = reader(tracker.address());
    reader.located(segment, 1).await;
    assert_eq!(seeder.stop().await, Stopped::Clean);
    reader.located(segment, 0).await;
    let seeder = place.seeder("seeder", tracker.address()).await;
    assert_eq!(seeder.id(), id);
    reader.located(segment, 1).await;
    assert!(reader.read(segment).await == data);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_of_another_swarm_ends_with_a_clear_error() {
    let place = Place::new();
    let (one, two) = (place.tracker("one", anywhere()).await, place.tracker("two", anywhere()).await);
    place.seeder("seeder", one.address()).await.stop().await;
    let seeder = Seeder::start(place.config("seeder", two.address()), &Registry::new()).await.unwrap();
    let error = tokio::time::timeout(PATIENCE, seeder.failed()).await.expect("it does not go on");
    assert!(matches!(error, SeederError::Refused(_)) && error.exit_code() == 78, "{error:?}");
    assert!(error.to_string().contains("belongs to swarm"), "{error}");
    assert!(!seeder.announced(Duration::ZERO).await);
    seeder.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_start_says_why_and_leaves_nothing_behind() {
    let place = Place::new();
    let tracker = SocketAddr::from(([127, 0, 0, 1], 9));
    let first = Seeder::start(place.config("seeder", tracker), &Registry::new()).await.unwrap();
    let again = Seeder::start(place.config("seeder", tracker), &Registry::new()).await;
    let error = again.err().expect("the store is in use");
    assert!(error.exit_code() == 78 && error.to_string().contains("in use"), "{error}");
    let same_port = SeederConfig { listen: first.address(), ..place.config("other", tracker) };
    let error = Seeder::start(same_port, &Registry::new()).await.err().expect("the port is taken");
    assert_eq!(error.exit_code(), 69, "{error}");
    let error = Seeder::start(SeederConfig::default(), &Registry::new()).await.err().expect("no tracker is named");
    assert_eq!(error.exit_code(), 78, "{error}");
    std::fs::write(place.data("file"), "").unwrap();
    let error = Seeder::start(place.config("file", tracker), &Registry::new()).await.err().expect("not a folder");
    assert_eq!(error.exit_code(), 78, "{error}");
    // The folder whose port was taken is free again.
    let other = Seeder::start(place.config("other", tracker), &Registry::new()).await.unwrap();
    other.stop().await;
    first.stop().await;
}
