//! The uploader against small seeders of its own, which fail in every way that real ones do.

use std::collections::{HashMap, HashSet};
use std::io::Cursor;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use swarm_proto::v1::chunks_server::{Chunks, ChunksServer};
use swarm_proto::v1::{self, StoreOutcome, store_frame};
use swarm_proto::{Extent, PeerId, Segment, SegmentId};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use super::*;
use crate::swarm::PeerAddress;

mod shortage;

/// Longest wait for a sync.
const SYNC: Duration = Duration::from_secs(30);

/// What a seeder does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Well,
    Full,
    DiskFails,
    /// Takes everything and never answers.
    Hangs,
    SyncFails,
    /// Takes and touches everything, and does not answer a sync.
    SyncHangs,
}

struct State {
    id: PeerId,
    mood: Mutex<Mood>,
    held: Mutex<HashMap<SegmentId, Bytes>>,
    received: AtomicU64,
    touches: AtomicU64,
    syncs: AtomicU64,
    /// Which run of it this is.
    process: AtomicU64,
}

#[derive(Clone)]
struct Seeder {
    state: Arc<State>,
    address: String,
}

#[tonic::async_trait]
impl Chunks for Seeder {
    async fn fetch(&self, _: Request<v1::FetchRequest>) -> Result<Response<v1::FetchReply>, Status> {
        Err(Status::unimplemented("fetch"))
    }
    async fn fetch_many(&self, _: Request<v1::FetchManyRequest>) -> Result<Response<v1::FetchManyReply>, Status> {
        Err(Status::unimplemented("fetch_many"))
    }
    async fn have(&self, _: Request<v1::HaveRequest>) -> Result<Response<v1::HaveReply>, Status> {
        Err(Status::unimplemented("have"))
    }
    async fn store(&self, request: Request<Streaming<v1::StoreFrame>>) -> Result<Response<v1::StoreReply>, Status> {
        let mut frames = request.into_inner();
        let Some(store_frame::Frame::Header(header)) = frames.message().await?.and_then(|frame| frame.frame) else {
            return Err(Status::invalid_argument("no header"));
        };
        let mut all = Vec::new();
        while let Some(frame) = frames.message().await? {
            let Some(store_frame::Frame::Data(data)) = frame.frame else {
                return Err(Status::invalid_argument("a second header"));
            };
            all.extend_from_slice(&data);
        }
        let mood = *self.state.mood.lock();
        if mood == Mood::Hangs {
            futures::future::pending::<()>().await;
        }
        self.state.received.fetch_add(all.len() as u64, Ordering::SeqCst);
        let mut rest = &all[..];
        let mut outcomes = Vec::new();
        for segment in &header.segments {
            let (bytes, after) = rest.split_at(segment.length as usize);
            rest = after;
            let id = SegmentId::try_from(&segment.id[..]).unwrap();
            assert_eq!(blake3::hash(bytes).as_bytes(), id.as_bytes());
            outcomes.push(match mood {
                Mood::Full => StoreOutcome::Full,
                Mood::DiskFails => StoreOutcome::Unavailable,
                _ => {
                    self.state.held.lock().insert(id, Bytes::copy_from_slice(bytes));
                    StoreOutcome::Held
                }
            });
        }
        assert!(rest.is_empty());
        let mut acks = vec![v1::StoreAck {
            peer_id: self.state.id.to_wire(),
            outcomes: outcomes.into_iter().map(Into::into).collect(),
            message: String::new(),
            process: self.state.process.load(Ordering::SeqCst),
        }];
        if let Some(next) = header.forward.first() {
            let further = v1::StoreHeader { forward: header.forward[1..].to_vec(), ..header.clone() };
            let frames: Vec<v1::StoreFrame> = std::iter::once(store_frame::Frame::Header(further))
                .chain(all.chunks(1 << 20).map(|data| store_frame::Frame::Data(Bytes::copy_from_slice(data))))
                .map(|frame| v1::StoreFrame { frame: Some(frame) })
                .collect();
            let called = async {
                let client = v1::chunks_client::ChunksClient::connect(format!("http://{}", next.address)).await;
                let mut client = client.map_err(|error| Status::unavailable(error.to_string()))?;
                client.store(futures::stream::iter(frames)).await
            };
            acks.extend(called.await.map(|reply| reply.into_inner().acks).unwrap_or_default());
        }
        Ok(Response::new(v1::StoreReply { acks }))
    }
    // Who has no such stream is sent each by a call.
    type StoreStreamStream = futures::stream::BoxStream<'static, Result<v1::StoreSmallAnswer, Status>>;

    async fn store_stream(
        &self,
        _: Request<Streaming<v1::StoreSmallRequest>>,
    ) -> Result<Response<Self::StoreStreamStream>, Status> {
        Err(Status::unimplemented("store_stream"))
    }

    async fn touch(&self, request: Request<v1::TouchRequest>) -> Result<Response<v1::TouchReply>, Status> {
        self.state.touches.fetch_add(1, Ordering::SeqCst);
        let held = self.state.held.lock();
        let ids = SegmentId::unpack(&request.get_ref().segment_ids).unwrap();
        let stamps = ids.map(|id| u64::from(held.contains_key(&id))).collect();
        Ok(Response::new(v1::TouchReply { stamps, process: self.state.process.load(Ordering::SeqCst) }))
    }
    async fn sync(&self, _: Request<v1::SyncRequest>) -> Result<Response<v1::SyncReply>, Status> {
        self.state.syncs.fetch_add(1, Ordering::SeqCst);
        let mood = *self.state.mood.lock();
        match mood {
            Mood::SyncFails => Err(Status::unavailable("disk")),
            Mood::SyncHangs => std::future::pending().await,
            _ => Ok(Response::new(v1::SyncReply { process: self.state.process.load(Ordering::SeqCst) })),
        }
    }
}

impl Seeder {
    fn holds(&self, ids: &[SegmentId]) -> usize {
        let held = self.state.held.lock();
        ids.iter().filter(|id| held.contains_key(id)).count()
    }
    fn received(&self) -> u64 {
        self.state.received.load(Ordering::SeqCst)
    }
    fn set(&self, mood: Mood) {
        *self.state.mood.lock() = mood;
    }
}

/// A tracker that knows what the seeders hold, places at the first ones, and does not hear of failures.
#[derive(Clone, Default)]
struct Tracker {
    seeders: Arc<Mutex<Vec<Seeder>>>,
    full: Arc<Mutex<HashSet<PeerId>>>,
    away: Arc<Mutex<HashSet<PeerId>>>,
    /// It says of everybody that they hold everything.
    lies: Arc<std::sync::atomic::AtomicBool>,
    /// How often it was asked who holds something, or who is to take it.
    asked: Arc<AtomicU64>,
}

fn address(seeder: &Seeder) -> PeerAddress {
    PeerAddress { id: seeder.state.id, address: seeder.address.clone(), zone: String::new(), host: String::new() }
}

impl Placer for Tracker {
    fn holders(&self, ids: Vec<SegmentId>) -> BoxFuture<'_, Result<Vec<Vec<PeerAddress>>, TrackerError>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let seeders = self.seeders.lock();
        let lies = self.lies.load(Ordering::SeqCst);
        let holds = |seeder: &&Seeder, id: &SegmentId| lies || seeder.holds(&[*id]) == 1;
        let of = |id: &SegmentId| seeders.iter().filter(|seeder| holds(seeder, id)).map(address).collect();
        let all = ids.iter().map(of).collect();
        Box::pin(async move { Ok(all) })
    }
    fn place(
        &self,
        segments: Vec<Segment>,
        replicas: u32,
        exclude: Vec<PeerId>,
    ) -> BoxFuture<'_, Result<Vec<Vec<PeerAddress>>, TrackerError>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let (seeders, full, away) = (self.seeders.lock(), self.full.lock(), self.away.lock());
        let fit = |id: &PeerId| !exclude.contains(id) && !full.contains(id) && !away.contains(id);
        let free = seeders.iter().filter(|seeder| fit(&seeder.state.id));
        let targets: Vec<PeerAddress> = free.take(replicas as usize).map(address).collect();
        let all = vec![targets; segments.len()];
        Box::pin(async move { Ok(all) })
    }
    fn seeders(&self) -> BoxFuture<'_, Result<Vec<KnownSeeder>, TrackerError>> {
        let (full, away) = (self.full.lock(), self.away.lock());
        let up = |seeder: &Seeder| KnownSeeder {
            id: seeder.state.id,
            state: if away.contains(&seeder.state.id) { SeederState::Away } else { SeederState::Live },
            free_bytes: if full.contains(&seeder.state.id) { 0 } else { 1 << 40 },
        };
        let all = self.seeders.lock().iter().map(up).collect();
        Box::pin(async move { Ok(all) })
    }
}

struct Swarm {
    seeders: Vec<Seeder>,
    tracker: Tracker,
    uploader: Uploader,
    _stop: DropGuard,
}

async fn swarm(count: u8, change: impl FnOnce(&mut UploadConfig)) -> Swarm {
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let tracker = Tracker::default();
    for n in 1..=count {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let seeder = Seeder {
            address: listener.local_addr().unwrap().to_string(),
            state: Arc::new(State {
                id: PeerId::new([n; 16]),
                mood: Mutex::new(Mood::Well),
                held: Mutex::default(),
                received: AtomicU64::new(0),
                touches: AtomicU64::new(0),
                syncs: AtomicU64::new(0),
                process: AtomicU64::new(1),
            }),
        };
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let service = ChunksServer::new(seeder.clone()).max_decoding_message_size(swarm_proto::MAX_MESSAGE_BYTES);
        let server = tonic::transport::Server::builder().add_service(service);
        tasks.spawn(server.serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned()));
        tracker.seeders.lock().push(seeder);
    }
    let mut config = UploadConfig {
        segment_bytes: 256 * 1024,
        replicas: 2,
        patience: Duration::from_secs(2),
        in_flight_bytes: 1 << 20,
        ..UploadConfig::default()
    };
    change(&mut config);
    let uploader = Uploader::new(Arc::new(tracker.clone()), config, &tasks, stop.clone());
    let seeders = tracker.seeders.lock().clone();
    Swarm { seeders, tracker, uploader, _stop: stop.drop_guard() }
}

fn bytes(length: usize, seed: u8) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
    bytes
}

/// The file that a manifest describes, from what one seeder holds.
fn read_back(uploaded: &Uploaded, seeders: &[Seeder]) -> Vec<u8> {
    let mut all = Vec::new();
    for extent in uploaded.manifest.extents() {
        match extent {
            Extent::Hole { length } => all.resize(all.len() + usize::try_from(*length).unwrap(), 0),
            Extent::Data { segment, .. } => {
                let found = seeders.iter().find_map(|seeder| seeder.state.held.lock().get(&segment.id).cloned());
                all.extend_from_slice(&found.expect("some seeder holds it"));
            }
        }
    }
    all
}

async fn put(swarm: &Swarm, content: &[u8]) -> Result<Uploaded, UploadError> {
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, content).unwrap();
    let upload = upload_file(&swarm.uploader, Arc::new(file));
    tokio::time::timeout(Duration::from_secs(60), upload).await.expect("every upload ends")
}

#[tokio::test]
async fn files_of_every_odd_size_reach_two_seeders_and_are_whole() {
    let swarm = swarm(3, |_| {}).await;
    let segment = 256 * 1024;
    for (n, length) in
        [0, 1, 16_384, 16_385, segment - 1, segment, segment + 1, 9 * segment + 7].into_iter().enumerate()
    {
        let content = bytes(length, u8::try_from(n).unwrap());
        let uploaded = put(&swarm, &content).await.unwrap();
        assert_eq!(uploaded.manifest.size(), length as u64);
        assert_eq!(uploaded.sent_bytes, length as u64);
        assert!(read_back(&uploaded, &swarm.seeders) == content, "length {length}");
        let ids = uploaded.segment_ids();
        let replicas: usize = swarm.seeders.iter().map(|seeder| seeder.holds(&ids)).sum();
        assert_eq!(replicas, 2 * ids.len(), "length {length}");
        let streamed = upload_stream(&swarm.uploader, Cursor::new(content)).await.unwrap();
        assert_eq!((streamed.manifest, streamed.sent_bytes), (uploaded.manifest, 0));
    }
}

#[tokio::test]
async fn what_the_swarm_has_is_touched_and_not_sent_again() {
    let first = swarm(3, |_| {}).await;
    let content = bytes(900_000, 1);
    put(&first, &content).await.unwrap();
    let received: u64 = first.seeders.iter().map(Seeder::received).sum();
    // Another process: it remembers nothing of the first.
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let config = first.uploader.config().clone();
    let uploader = Uploader::new(Arc::new(first.tracker.clone()), config, &tasks, stop.clone());
    let again = upload_stream(&uploader, Cursor::new(content)).await.unwrap();
    assert_eq!(again.sent_bytes, 0);
    assert_eq!(first.seeders.iter().map(Seeder::received).sum::<u64>(), received);
    assert!(first.seeders.iter().map(|seeder| seeder.state.touches.load(Ordering::SeqCst)).sum::<u64>() >= 2);
    assert_eq!(uploader.stats().skipped_bytes, 900_000);
    stop.cancel();
}

#[tokio::test]
async fn a_hint_without_a_touch_skips_nothing() {
    let swarm = swarm(2, |_| {}).await;
    let content = bytes(1_000, 1);
    // The tracker believes that both hold it, and only the first does.
    swarm.tracker.lies.store(true, Ordering::SeqCst);
    let id = SegmentId::new(*blake3::hash(&content).as_bytes());
    swarm.seeders[0].state.held.lock().insert(id, content.clone().into());
    put(&swarm, &content).await.unwrap();
    assert_eq!((swarm.seeders[0].received(), swarm.seeders[1].received()), (0, 1_000));
}

#[tokio::test]
async fn small_ones_that_come_soon_after_each_other_are_sent_unasked_to_the_same_seeders() {
    let swarm = swarm(3, |config| config.unasked_bytes = 4_000).await;
    let began = std::time::Instant::now();
    for seed in 0..9 {
        put(&swarm, &bytes(1_000, seed)).await.unwrap();
    }
    let asked = u128::from(swarm.tracker.asked.load(Ordering::SeqCst));
    assert!(asked <= 1 + began.elapsed().as_millis() / 500, "{asked}");
    assert_eq!(swarm.seeders.iter().map(Seeder::received).collect::<Vec<_>>(), [9_000, 9_000, 0]);
    // One that fails is left out at once.
    swarm.seeders[0].set(Mood::DiskFails);
    put(&swarm, &bytes(1_000, 100)).await.unwrap();
    assert_eq!(swarm.seeders[2].received(), 1_000);
    // Large ones are asked for as ever.
    let before = swarm.tracker.asked.load(Ordering::SeqCst);
    put(&swarm, &bytes(5_000, 101)).await.unwrap();
    assert_eq!(swarm.tracker.asked.load(Ordering::SeqCst), before + 2);
}

#[tokio::test]
async fn short_ones_that_were_sent_lately_are_remembered() {
    for recent_bytes in [0, 1 << 20] {
        let swarm = swarm(2, |config| (config.unasked_bytes, config.recent_bytes) = (4_000, recent_bytes)).await;
        for (length, is_short) in [(4_000, true), (4_001, false)] {
            let uploaded = put(&swarm, &bytes(length, 1)).await.unwrap();
            let sent = swarm.uploader.sent(&uploaded.segment_ids()[0]);
            assert_eq!(sent.is_some(), is_short && recent_bytes > 0, "{length} bytes, room for {recent_bytes}");
            assert!(sent.is_none_or(|sent| sent == bytes(length, 1)));
        }
    }
}

#[tokio::test]
async fn seeders_that_fail_are_replaced() {
    for mood in [Mood::Full, Mood::DiskFails] {
        for failing in 0..2 {
            let swarm = swarm(3, |_| {}).await;
            swarm.seeders[failing].set(mood);
            let uploaded = put(&swarm, &bytes(600_000, 1)).await.unwrap();
            let ids = uploaded.segment_ids();
            let holders = swarm.seeders.iter().filter(|seeder| seeder.holds(&ids) == ids.len()).count();
            assert_eq!(holders, 2, "{mood:?} at {failing}");
        }
    }
}

#[tokio::test]
async fn a_seeder_that_is_gone_is_replaced_wherever_it_stands_in_the_pipeline() {
    for gone in 0..2 {
        let swarm = swarm(3, |_| {}).await;
        // A port that nobody listens on.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        swarm.tracker.seeders.lock()[gone].address = port.to_string();
        let uploaded = put(&swarm, &bytes(600_000, 1)).await.unwrap();
        let ids = uploaded.segment_ids();
        let others = swarm.seeders.iter().enumerate().filter(|(n, _)| *n != gone);
        assert!(others.map(|(_, seeder)| seeder.holds(&ids)).all(|held| held == ids.len()), "{gone} is gone");
    }
}

#[tokio::test]
async fn fewer_seeders_than_replicas_are_enough_and_it_is_said() {
    let swarm = swarm(1, |config| config.replicas = 3).await;
    put(&swarm, &bytes(600_000, 1)).await.unwrap();
    assert_eq!(swarm.uploader.stats().fewest_replicas, 1);
}

#[tokio::test]
async fn too_few_replicas_are_an_error_that_says_why() {
    let full = swarm(2, |_| {}).await;
    full.seeders[1].set(Mood::Full);
    assert!(matches!(put(&full, b"x").await, Err(UploadError::Full { got: 1, need: 2, .. })));
    full.seeders[1].set(Mood::Well);
    full.tracker.full.lock().insert(full.seeders[1].state.id);
    assert!(matches!(put(&full, b"y").await, Err(UploadError::Full { got: 1, need: 2, .. })));
    let failing = swarm(2, |_| {}).await;
    failing.seeders[1].set(Mood::DiskFails);
    assert!(matches!(put(&failing, b"x").await, Err(UploadError::TooFew { got: 1, need: 2, .. })));
    let nobody = swarm(0, |_| {}).await;
    assert!(matches!(put(&nobody, b"x").await, Err(UploadError::NoSeeder)));
}

#[tokio::test]
async fn a_seeder_that_comes_back_in_time_is_used() {
    let swarm = swarm(2, |config| config.patience = Duration::from_secs(30)).await;
    swarm.seeders[1].set(Mood::DiskFails);
    let seeder = swarm.seeders[1].clone();
    let (uploaded, ()) = tokio::join!(put(&swarm, b"x"), async {
        // It has failed at least once before it is well again.
        while seeder.received() == 0 {
            tokio::task::yield_now().await;
        }
        seeder.set(Mood::Well);
    });
    assert_eq!(seeder.holds(&uploaded.unwrap().segment_ids()), 1);
}

#[tokio::test(start_paused = true)]
async fn a_seeder_that_never_answers_is_found_out() {
    // With paused time, silence costs nothing as soon as everybody waits.
    let swarm = swarm(3, |config| config.patience = Duration::from_secs(120)).await;
    swarm.seeders[1].set(Mood::Hangs);
    let uploaded = upload_stream(&swarm.uploader, Cursor::new(bytes(1_000, 1))).await.unwrap();
    let ids = uploaded.segment_ids();
    assert_eq!((swarm.seeders[0].holds(&ids), swarm.seeders[2].holds(&ids)), (1, 1));
}

#[tokio::test]
async fn equal_segments_on_their_way_are_sent_once() {
    let swarm = swarm(2, |_| {}).await;
    let content = bytes(256 * 1024, 1).repeat(12);
    let uploaded = put(&swarm, &content).await.unwrap();
    assert_eq!(uploaded.sent_bytes, 256 * 1024);
    assert_eq!(swarm.seeders[0].received(), 256 * 1024);
    assert!(read_back(&uploaded, &swarm.seeders) == content);
}

#[tokio::test]
async fn holes_are_not_sent() {
    let swarm = swarm(2, |_| {}).await;
    let file = tempfile::tempfile().unwrap();
    file.set_len(64 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"end", (64 << 20) - 3).unwrap();
    let uploaded = upload_file(&swarm.uploader, Arc::new(file)).await.unwrap();
    assert_eq!(uploaded.manifest.size(), 64 << 20);
    assert!(uploaded.sent_bytes <= 256 * 1024, "{} bytes sent", uploaded.sent_bytes);
    assert!(read_back(&uploaded, &swarm.seeders).ends_with(b"end"));
}

#[tokio::test]
async fn a_sync_reaches_each_seeder_once_and_its_failure_is_noticed() {
    let swarm = swarm(2, |_| {}).await;
    let uploaded = put(&swarm, &bytes(600_000, 1)).await.unwrap();
    let ids = uploaded.segment_ids();
    assert!(swarm.uploader.sync(&ids, SYNC).await.is_empty());
    assert!(swarm.uploader.sync(&ids, SYNC).await.is_empty());
    assert!(swarm.seeders.iter().all(|seeder| seeder.state.syncs.load(Ordering::SeqCst) == 1));
    let more = put(&swarm, &bytes(600_000, 2)).await.unwrap().segment_ids();
    swarm.seeders[0].set(Mood::SyncFails);
    assert_eq!(swarm.uploader.sync(&more, SYNC).await, more);
    assert!(swarm.uploader.sync(&ids, SYNC).await.is_empty(), "what was synced before stays so");
}

#[tokio::test]
async fn what_a_seeder_does_not_write_out_in_time_is_sent_to_another_though_it_says_that_it_has_it() {
    for (mood, wait) in [(Mood::SyncHangs, Duration::from_millis(200)), (Mood::SyncFails, SYNC)] {
        let swarm = swarm(3, |_| {}).await;
        let uploaded = put(&swarm, &bytes(10, 1)).await.unwrap();
        let (ids, segments) = (uploaded.segment_ids(), uploaded.manifest.segments().collect::<Vec<_>>());
        swarm.seeders[0].set(mood);
        let began = std::time::Instant::now();
        assert_eq!(swarm.uploader.sync(&ids, wait).await, ids, "{mood:?}");
        assert!(began.elapsed() < SYNC);
        swarm.uploader.confirm(&segments).await.unwrap();
        assert_eq!(swarm.uploader.short(&ids), [(ids[0], Shortage::OfReplicas)]);
        let content = async { Some(Bytes::from(bytes(10, 1))) };
        assert_eq!(swarm.uploader.send_again(segments[0], Box::pin(content)).await.unwrap(), 2);
        assert_eq!(swarm.seeders[2].holds(&ids), 1);
        assert!(swarm.uploader.sync(&ids, wait).await.is_empty(), "two have it durably");
    }
}

#[tokio::test]
async fn what_a_seeder_lost_by_a_power_cut_before_it_was_synced_is_noticed_by_the_sync() {
    let swarm = swarm(2, |_| {}).await;
    let uploaded = put(&swarm, &bytes(10, 1)).await.unwrap();
    let (ids, segments) = (uploaded.segment_ids(), uploaded.manifest.segments().collect::<Vec<_>>());
    let restart = || swarm.seeders[0].state.process.fetch_add(1, Ordering::SeqCst);
    restart();
    swarm.seeders[0].state.held.lock().clear();
    assert_eq!(swarm.uploader.sync(&ids, SYNC).await, ids);
    swarm.uploader.confirm(&segments).await.unwrap();
    assert_eq!(swarm.uploader.short(&ids).len(), 1, "it does not have it");
    let content = async { Some(Bytes::from(bytes(10, 1))) };
    assert_eq!(swarm.uploader.send_again(segments[0], Box::pin(content)).await.unwrap(), 2);
    // Where it was killed and lost nothing, it says so.
    restart();
    assert_eq!(swarm.uploader.sync(&ids, SYNC).await, ids);
    let received = swarm.seeders[0].received();
    swarm.uploader.confirm(&segments).await.unwrap();
    assert!(swarm.uploader.sync(&ids, SYNC).await.is_empty());
    assert_eq!((swarm.uploader.short(&ids).len(), swarm.seeders[0].received()), (0, received));
}

#[tokio::test]
async fn acknowledgements_name_who_holds_what() {
    let swarm = swarm(2, |_| {}).await;
    let uploaded = put(&swarm, &bytes(600_000, 1)).await.unwrap();
    let ids = uploaded.segment_ids();
    let acknowledged = swarm.uploader.acknowledged(&ids, 1_000);
    assert_eq!(acknowledged.len(), 2);
    for one in &acknowledged {
        let got: HashSet<SegmentId> = SegmentId::unpack(&one.segment_ids).unwrap().collect();
        assert_eq!(got, ids.iter().copied().collect());
    }
    swarm.uploader.forget(&ids);
    assert!(swarm.uploader.acknowledged(&ids, 1_000).is_empty());
}

#[tokio::test]
async fn promises_are_renewed_while_they_are_needed() {
    let swarm = swarm(2, |config| config.keep = Duration::from_secs(2)).await;
    let uploaded = put(&swarm, b"content").await.unwrap();
    let touches = || swarm.seeders.iter().map(|seeder| seeder.state.touches.load(Ordering::SeqCst)).min();
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while touches() < Some(3) {
        assert!(std::time::Instant::now() < deadline, "no renewal");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(swarm.uploader.acknowledged(&uploaded.segment_ids(), 9).len(), 2);
}

#[tokio::test]
async fn a_file_that_shrinks_while_it_is_read_is_noticed() {
    let swarm = swarm(2, |_| {}).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes(2_000_000, 1)).unwrap();
    let open = Arc::new(file.reopen().unwrap());
    let range = swarm_proto::ByteRange::at(0, 3_000_000);
    let error = upload_range(&swarm.uploader, &open, range).await.unwrap_err();
    assert!(matches!(error, UploadError::Read(error) if error.kind() == std::io::ErrorKind::UnexpectedEof));
}

#[tokio::test]
async fn equal_files_that_come_while_others_are_answered_are_placed_too() {
    let swarm = swarm(2, |_| {}).await;
    let again = |number: u32| {
        let swarm = &swarm;
        async move {
            for round in 0..50u32 {
                let own = (number * 1_000 + round).to_be_bytes();
                let (equal, own) = tokio::join!(put(swarm, b"equal in all of them"), put(swarm, &own));
                assert_eq!(equal.and(own).map(drop).err().map(|error| error.to_string()), None);
            }
        }
    };
    futures::future::join_all((0..8).map(again)).await;
}

#[tokio::test]
async fn a_stop_ends_what_waits() {
    let swarm = swarm(1, |config| config.patience = Duration::from_secs(3_600)).await;
    swarm.seeders[0].set(Mood::DiskFails);
    let stop = swarm.uploader.inner.stop.clone();
    let (outcome, ()) = tokio::join!(put(&swarm, b"x"), async {
        while swarm.seeders[0].received() == 0 {
            tokio::task::yield_now().await;
        }
        stop.cancel();
    });
    assert!(matches!(outcome, Err(UploadError::Stopping)));
}
