//! The serving side over real connections, on a store that fails when told to.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::Body as _;
use prometheus::Registry;
use swarm_proto::v1::chunks_client::ChunksClient;
use swarm_proto::v1::store_frame::Frame;
use swarm_proto::{CHUNK_BYTES, ChunkRange, ChunkSet, ChunkTree, PeerId, Presence, Segment, SegmentId, v1};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tonic::Code;
use tonic::codegen::Service as _;
use tonic::transport::Channel;

use super::{Counters, MOST_SMALL_BYTES, ServeConfig, Served, serve};
use crate::store::StoreError;
use shelf::{Shelf, Store};

mod lending;
mod shelf;
mod small;

/// One served shelf.
struct Server {
    me: PeerId,
    shelf: Arc<Shelf>,
    address: SocketAddr,
    counters: Counters,
    served: Served,
    accepting: CancellationToken,
    _stop: DropGuard,
}

async fn start_on(shelf: Shelf) -> Server {
    start_as(PeerId::random(), TcpListener::bind("127.0.0.1:0").await.unwrap(), shelf).await
}

async fn start_as(me: PeerId, listener: TcpListener, shelf: Shelf) -> Server {
    let shelf = Arc::new(shelf);
    let address = listener.local_addr().unwrap();
    let counters = Counters::new(&Registry::new(), me);
    let (stop, accepting) = (CancellationToken::new(), CancellationToken::new());
    let store = Arc::new(Store(Arc::clone(&shelf)));
    let config = ServeConfig { me, upload_limit: None };
    let served =
        serve(config, store, listener, counters.clone(), &TaskTracker::new(), accepting.clone(), stop.clone()).await;
    Server { me, shelf, address, counters, served, accepting, _stop: stop.drop_guard() }
}

async fn start() -> Server {
    start_on(Shelf::default()).await
}

impl Server {
    async fn client(&self) -> ChunksClient<Channel> {
        let channel = Channel::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap();
        ChunksClient::new(channel)
    }

    fn put(&self, bytes: &[u8]) -> Segment {
        let tree = ChunkTree::build(bytes);
        let segment = tree.segment();
        self.shelf.segments.lock().insert(segment.id, (Bytes::copy_from_slice(bytes), tree, Presence::Whole));
        segment
    }

    fn target(&self) -> v1::Target {
        v1::Target { peer_id: self.me.to_wire(), address: self.address.to_string() }
    }

    fn requests(&self, call: &str, outcome: &str) -> u64 {
        self.counters.requests.with_label_values(&[call, outcome]).get()
    }
}

fn bytes(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|at| (at as u64).wrapping_mul(0x9E37_79B9).to_le_bytes()[3] ^ seed).collect()
}

fn want(segment: Segment, chunks: ChunkRange, with_tree: bool) -> v1::FetchRequest {
    v1::FetchRequest {
        segment_id: segment.id.to_wire(),
        first_chunk: chunks.start,
        chunk_count: chunks.len(),
        with_tree,
        peer_id: Bytes::new(),
    }
}

fn header(segments: &[Segment], forward: Vec<v1::Target>) -> v1::StoreHeader {
    v1::StoreHeader {
        segments: segments.iter().map(|segment| (*segment).into()).collect(),
        level: v1::AckLevel::Close.into(),
        forward,
        keep_ms: 0,
    }
}

fn frames(header: v1::StoreHeader, data: &[&[u8]]) -> Vec<v1::StoreFrame> {
    let all: Vec<u8> = data.concat();
    let header = v1::StoreFrame { frame: Some(Frame::Header(header)) };
    let parts =
        all.chunks(300_000).map(|part| v1::StoreFrame { frame: Some(Frame::Data(Bytes::copy_from_slice(part))) });
    std::iter::once(header).chain(parts).collect()
}

async fn send(server: &Server, frames: Vec<v1::StoreFrame>) -> Result<v1::StoreReply, tonic::Status> {
    let mut client = server.client().await;
    let sent = client.store(tokio_stream::iter(frames));
    tokio::time::timeout(Duration::from_secs(60), sent)
        .await
        .expect("an answer in time")
        .map(tonic::Response::into_inner)
}

fn outcomes(reply: &v1::StoreReply) -> Vec<Vec<v1::StoreOutcome>> {
    reply.acks.iter().map(|ack| ack.outcomes().collect()).collect()
}

#[tokio::test]
async fn every_run_arrives_as_it_lies_and_is_counted() {
    let server = start().await;
    let mut client = server.client().await;
    let mut total = 0;
    for length in [1, 16_384, 16_385, 1 << 20, (4 << 20) - 7] {
        let data = bytes(length, 1);
        let segment = server.put(&data);
        let mut got = Vec::new();
        for run in segment.all().runs(64) {
            let reply = client.fetch(want(segment, run, true)).await.unwrap().into_inner();
            let tree = ChunkTree::verify(segment, reply.tree).expect("the tree of the segment");
            tree.check(run, &reply.data).expect("the chunks of the run");
            assert_eq!(reply.held, None);
            got.extend_from_slice(&reply.data);
        }
        assert!(got == data, "length {length}");
        total += length as u64;
    }
    assert_eq!(server.counters.served_bytes.get(), total);
    assert_eq!(server.counters.in_flight.get(), 0);
}

#[tokio::test]
async fn what_is_missing_is_answered_with_what_is_here() {
    let server = start().await;
    let mut client = server.client().await;
    let segment = server.put(&bytes(20 * CHUNK_BYTES as usize, 2));
    let mut set = ChunkSet::empty(20);
    set.insert(ChunkRange::new(3, 9));
    let partial = Presence::Partial(set);
    server.shelf.segments.lock().get_mut(&segment.id).unwrap().2 = partial.clone();

    let reply = client.fetch(want(segment, ChunkRange::new(8, 10), true)).await.unwrap().into_inner();
    assert!(reply.data.is_empty());
    assert_eq!(reply.held.unwrap().read(20), partial);
    let reply = client.fetch(want(segment, ChunkRange::new(3, 9), false)).await.unwrap().into_inner();
    assert_eq!((reply.held, reply.data.len()), (None, 6 * CHUNK_BYTES as usize));

    let unknown = Segment { id: SegmentId::new([9; 32]), length: 5 };
    let reply = client.fetch(want(unknown, ChunkRange::new(0, 1), true)).await.unwrap().into_inner();
    assert_eq!(reply.held, Some(v1::Presence::default()));

    let ids = SegmentId::pack([&segment.id, &unknown.id]);
    let have = client.have(v1::HaveRequest { segment_ids: ids }).await.unwrap().into_inner();
    assert_eq!(have.presences[0].read(20), partial);
    assert_eq!(have.presences[1], v1::Presence::default());
}

#[tokio::test]
async fn several_small_fetches_are_answered_in_order_each_for_itself() {
    let server = start().await;
    let mut client = server.client().await;
    let data: Vec<Vec<u8>> = (0..40).map(|index| bytes(100 + 700 * usize::from(index), index)).collect();
    let segments: Vec<Segment> = data.iter().map(|data| server.put(data)).collect();
    let mut fetches: Vec<_> = segments.iter().map(|segment| want(*segment, segment.all(), true)).collect();
    let unknown = Segment { id: SegmentId::new([9; 32]), length: 5 };
    fetches.insert(7, want(unknown, ChunkRange::new(0, 1), true));
    fetches.insert(8, want(segments[0], ChunkRange::new(5, 6), true));
    let reply = client.fetch_many(v1::FetchManyRequest { fetches }).await.unwrap().into_inner();
    let mut outcomes = reply.outcomes;
    assert_eq!(Code::from(i32::try_from(outcomes.remove(8).code).unwrap()), Code::InvalidArgument);
    assert_eq!(outcomes.remove(7).reply.unwrap().held, Some(v1::Presence::default()));
    assert_eq!(outcomes.len(), data.len());
    for ((segment, data), outcome) in segments.iter().zip(&data).zip(outcomes) {
        let reply = outcome.reply.unwrap();
        assert!(reply.data == *data);
        ChunkTree::verify(*segment, reply.tree).unwrap().check(segment.all(), &reply.data).unwrap();
    }
    assert_eq!(server.counters.served_bytes.get(), data.iter().map(|data| data.len() as u64).sum::<u64>());
}

#[tokio::test]
async fn a_fetch_that_the_disk_does_not_answer_holds_the_others_of_its_batch_only_for_a_moment() {
    let server = start().await;
    let mut client = server.client().await;
    let segments: Vec<Segment> = (0..9).map(|index| server.put(&bytes(5_000, index))).collect();
    server.shelf.stuck.lock().insert(segments[4].id);
    let fetches = segments.iter().map(|segment| want(*segment, segment.all(), true)).collect();
    let reply = client.fetch_many(v1::FetchManyRequest { fetches }).await.unwrap().into_inner();
    for (index, outcome) in reply.outcomes.into_iter().enumerate() {
        let code = Code::from(i32::try_from(outcome.code).unwrap());
        let expected = if index == 4 { Code::ResourceExhausted } else { Code::Ok };
        assert_eq!((code, outcome.reply.is_some()), (expected, index != 4), "{index}");
    }
}

#[tokio::test]
async fn too_many_fetches_at_once_are_refused() {
    let server = start().await;
    let mut client = server.client().await;
    let segment = server.put(&bytes(1 << 20, 1));
    let one = || want(segment, ChunkRange::new(0, 1), false);
    let half = || want(segment, ChunkRange::new(0, 33), false);
    for fetches in [vec![], (0..65).map(|_| one()).collect(), vec![half(), half()]] {
        let refused = client.fetch_many(v1::FetchManyRequest { fetches }).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    }
}

#[tokio::test]
async fn a_pipeline_of_three_holds_every_segment_three_times() {
    let servers = [start().await, start().await, start().await];
    let data = [bytes(1, 1), bytes(700_000, 2), bytes(16_384, 3), bytes(2_000_001, 4)];
    let segments: Vec<Segment> = data.iter().map(|bytes| ChunkTree::build(bytes).segment()).collect();
    let slices: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
    let forward = servers[1..].iter().map(Server::target).collect();
    let reply = send(&servers[0], frames(header(&segments, forward), &slices)).await.unwrap();
    let peers: Vec<_> = reply.acks.iter().map(|ack| PeerId::try_from(ack.peer_id.as_ref()).unwrap()).collect();
    assert_eq!(peers, servers.each_ref().map(|server| server.me));
    assert_eq!(outcomes(&reply), vec![vec![v1::StoreOutcome::Held; 4]; 3]);
    for server in &servers {
        for (segment, bytes) in segments.iter().zip(&data) {
            assert!(server.shelf.segments.lock()[&segment.id].0 == *bytes);
        }
    }
}

#[tokio::test]
async fn a_failure_downstream_fails_nothing_here() {
    let (here, full) = (start().await, start().await);
    *full.shelf.trouble.lock() = Some(StoreError::Full);
    let gone = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        v1::Target { peer_id: PeerId::random().to_wire(), address: listener.local_addr().unwrap().to_string() }
    };
    let data = bytes(3_000_000, 5);
    let segment = ChunkTree::build(&data).segment();
    let call = |forward| frames(header(&[segment], forward), &[&data]);

    let reply = send(&here, call(vec![full.target()])).await.unwrap();
    assert_eq!(outcomes(&reply), [[v1::StoreOutcome::Held], [v1::StoreOutcome::Full]]);
    let reply = send(&here, call(vec![gone, full.target()])).await.unwrap();
    let unavailable = [v1::StoreOutcome::Unavailable];
    assert_eq!(outcomes(&reply), [[v1::StoreOutcome::Held], unavailable, unavailable]);
    let stranger = v1::Target { peer_id: PeerId::random().to_wire(), ..full.target() };
    let reply = send(&here, call(vec![stranger])).await.unwrap();
    assert_eq!(outcomes(&reply), [[v1::StoreOutcome::Held], unavailable]);
    let nonsense = v1::Target { peer_id: PeerId::random().to_wire(), address: "no such \u{7f} place".into() };
    let reply = send(&here, call(vec![nonsense])).await.unwrap();
    assert_eq!(outcomes(&reply), [[v1::StoreOutcome::Held], unavailable]);
}

#[tokio::test]
async fn a_downstream_that_hangs_is_given_up_before_the_sender_gives_us_up() {
    let here = start().await;
    let deaf = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = deaf.local_addr().unwrap().to_string();
    let target = v1::Target { peer_id: PeerId::random().to_wire(), address };
    // More than waits on the way: the sender is held up too.
    let data = bytes(12 << 20, 5);
    let segment = ChunkTree::build(&data).segment();
    let sent = send(&here, frames(header(&[segment], vec![target; 2]), &[&data]));
    let reply = tokio::time::timeout(Duration::from_secs(15), sent).await.expect("in time").unwrap();
    let unavailable = [v1::StoreOutcome::Unavailable];
    assert_eq!(outcomes(&reply), [[v1::StoreOutcome::Held], unavailable, unavailable]);
}

#[tokio::test]
async fn wrong_bytes_are_never_acknowledged_and_the_other_segments_are() {
    let server = start().await;
    let (right, mut wrong) = (bytes(50_000, 1), bytes(50_000, 2));
    let segments = [&right, &wrong].map(|bytes| ChunkTree::build(bytes).segment());
    wrong[40_000] ^= 1;
    let reply = send(&server, frames(header(&segments, vec![]), &[&right, &wrong])).await.unwrap();
    assert_eq!(outcomes(&reply), [[v1::StoreOutcome::Held, v1::StoreOutcome::Corrupt]]);
    assert!(!reply.acks[0].message.is_empty());
    assert_eq!(server.counters.stored_bytes.get(), 50_000);
}

#[tokio::test]
async fn a_store_call_that_breaks_the_rules_is_refused_and_leaves_nothing() {
    let server = start().await;
    let data = bytes(100_000, 1);
    let segment = ChunkTree::build(&data).segment();
    let good = || header(&[segment], vec![]);
    let frame = |data: &[u8]| v1::StoreFrame { frame: Some(Frame::Data(Bytes::copy_from_slice(data))) };
    let begin = |header| v1::StoreFrame { frame: Some(Frame::Header(header)) };
    let cases = [
        vec![],
        vec![frame(&data)],
        vec![v1::StoreFrame { frame: None }],
        vec![begin(good())],
        vec![begin(good()), frame(&data[1..])],
        vec![begin(good()), frame(&data), frame(&[0])],
        vec![begin(good()), begin(good()), frame(&data)],
        vec![begin(good()), frame(&[])],
        vec![begin(v1::StoreHeader { level: 0, ..good() }), frame(&data)],
        vec![begin(v1::StoreHeader { level: 77, ..good() }), frame(&data)],
        vec![begin(v1::StoreHeader { keep_ms: u64::MAX, ..good() }), frame(&data)],
        vec![begin(v1::StoreHeader { segments: vec![], ..good() }), frame(&data)],
        vec![begin(header(&vec![segment; 1_025], vec![]))],
        vec![begin(header(&[Segment { length: 0, ..segment }], vec![]))],
        vec![begin(header(&[Segment { length: u32::MAX, ..segment }], vec![]))],
        vec![begin(header(&[Segment { length: 60 << 20, ..segment }; 2], vec![]))],
        vec![begin(header(&[segment], vec![server.target(); 9]))],
        vec![begin(header(&[segment], vec![v1::Target { peer_id: vec![1; 5].into(), ..server.target() }]))],
        vec![begin(header(&[segment], vec![v1::Target { address: "x".repeat(9_999), ..server.target() }]))],
        vec![begin(v1::StoreHeader { segments: vec![v1::Segment { id: vec![1; 31].into(), length: 1 }], ..good() })],
    ];
    let count = cases.len() as u64;
    for (number, case) in cases.into_iter().enumerate() {
        let status = send(&server, case).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "case {number}: {status}");
    }
    assert!(server.shelf.segments.lock().is_empty());
    assert_eq!(server.requests("store", "invalid"), count);
    send(&server, frames(good(), &[&data])).await.unwrap();
}

#[tokio::test]
async fn a_peer_without_a_sink_refuses_to_keep() {
    let server = start_on(Shelf { has_no_sink: true, ..Shelf::default() }).await;
    let mut client = server.client().await;
    let data = bytes(10, 1);
    let stored = send(&server, frames(header(&[ChunkTree::build(&data).segment()], vec![]), &[&data])).await;
    let touched = client.touch(v1::TouchRequest { segment_ids: Bytes::new(), keep_ms: 0 }).await;
    let synced = client.sync(v1::SyncRequest {}).await;
    let codes = [stored.unwrap_err().code(), touched.unwrap_err().code(), synced.unwrap_err().code()];
    assert_eq!(codes, [Code::FailedPrecondition; 3]);
}

#[tokio::test]
async fn a_touch_answers_for_every_id_in_order() {
    let server = start().await;
    let segment = server.put(&bytes(10, 1));
    let ids = SegmentId::pack([&SegmentId::new([1; 32]), &segment.id]);
    let mut client = server.client().await;
    let touch = |segment_ids, keep_ms| v1::TouchRequest { segment_ids, keep_ms };
    let reply = client.touch(touch(ids.clone(), 1_000)).await.unwrap().into_inner();
    assert!(reply.stamps[0] == 0 && reply.stamps[1] > 0);
    for request in [touch(ids.slice(1..), 0), touch(vec![0; 4_097 * 32].into(), 0), touch(ids, u64::MAX)] {
        assert_eq!(client.touch(request).await.unwrap_err().code(), Code::InvalidArgument);
    }
}

#[tokio::test]
async fn a_fetch_that_makes_no_sense_is_refused() {
    let server = start().await;
    let segment = server.put(&bytes(100_000, 1));
    let good = want(segment, segment.all(), true);
    let cases = [
        v1::FetchRequest { segment_id: Bytes::new(), ..good.clone() },
        v1::FetchRequest { segment_id: vec![0; 33].into(), ..good.clone() },
        v1::FetchRequest { chunk_count: 0, ..good.clone() },
        v1::FetchRequest { chunk_count: 65, ..good.clone() },
        v1::FetchRequest { chunk_count: u32::MAX, ..good.clone() },
        v1::FetchRequest { first_chunk: u32::MAX, ..good.clone() },
        v1::FetchRequest { first_chunk: 1, ..good.clone() },
        v1::FetchRequest { peer_id: vec![0; 3].into(), ..good.clone() },
    ];
    let mut client = server.client().await;
    for case in cases {
        let status = client.fetch(case.clone()).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{case:?}: {status}");
    }
    let long = v1::FetchRequest { peer_id: vec![0; 100_000].into(), ..good.clone() };
    assert_eq!(client.fetch(long).await.unwrap_err().code(), Code::ResourceExhausted);
    assert!(client.fetch(good).await.is_ok());
}

/// A request body of these bytes, whatever they are; one that does not end stays half open.
struct Raw {
    bytes: Option<Bytes>,
    ends: bool,
}

impl http_body::Body for Raw {
    type Data = Bytes;
    type Error = tonic::Status;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, tonic::Status>>> {
        match self.bytes.take() {
            Some(bytes) => Poll::Ready(Some(Ok(http_body::Frame::data(bytes)))),
            None if self.ends => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

/// What a call is answered with: the gRPC status, from headers or trailers; none without an answer.
async fn raw_call(server: &Server, method: &str, bytes: Vec<u8>, ends: bool) -> Option<Code> {
    let mut channel = Channel::from_shared(format!("http://{}", server.address)).unwrap().connect().await.unwrap();
    let uri = format!("http://{}/swarm.v1.Chunks/{method}", server.address);
    let body = tonic::body::Body::new(Raw { bytes: Some(bytes.into()), ends });
    let request = http::Request::post(uri)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)
        .unwrap();
    let code = |headers: &http::HeaderMap| headers.get("grpc-status").map(|value| Code::from_bytes(value.as_bytes()));
    let answered = async {
        std::future::poll_fn(|cx| channel.poll_ready(cx)).await.unwrap();
        let response = channel.call(request).await.unwrap();
        let mut found = code(response.headers());
        let mut body = response.into_body();
        while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            found = found.or(frame.unwrap().trailers_ref().and_then(code));
        }
        found.expect("every answer has a status")
    };
    tokio::time::timeout(Duration::from_millis(if ends { 20_000 } else { 300 }), answered).await.ok()
}

#[tokio::test]
async fn random_bytes_and_huge_lengths_are_answered_with_an_error_and_nobody_panics() {
    let server = start().await;
    let segment = server.put(&bytes(100_000, 1));
    let mut bodies: Vec<Vec<u8>> = vec![
        vec![],
        vec![0],
        vec![0, 0, 0, 0],
        vec![0, 255, 255, 255, 255],
        vec![0, 127, 255, 255, 255, 1, 2, 3],
        vec![1, 0, 0, 0, 3, 1, 2, 3],
        vec![0, 0, 0, 0, 9, 1, 2, 3],
    ];
    for seed in 0..40u8 {
        let mut body = vec![0, 0, 0, 0, 60];
        body.extend(bytes(60, seed.wrapping_mul(37)));
        bodies.push(body);
    }
    for method in ["Fetch", "Have", "Touch", "Store", "Nothing", ""] {
        for body in &bodies {
            let code = raw_call(&server, method, body.clone(), true).await.expect("an answer");
            assert_ne!(code, Code::Ok, "{method} {body:?}");
        }
    }
    let mut client = server.client().await;
    assert!(client.fetch(want(segment, segment.all(), true)).await.is_ok());
}

#[tokio::test]
async fn half_open_streams_and_connections_keep_nobody_else_out() {
    let server = start().await;
    let segment = server.put(&bytes(100_000, 1));
    let mut held = Vec::new();
    for number in 0..50 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        match number % 3 {
            0 => {}
            1 => stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap(),
            _ => stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0").await.unwrap(),
        }
        held.push(stream);
    }
    for method in ["Fetch", "Have", "Touch", "Store"] {
        assert!(raw_call(&server, method, vec![0, 0, 0], false).await.is_none(), "it waits for the rest");
    }
    let mut client = server.client().await;
    assert!(client.fetch(want(segment, segment.all(), true)).await.is_ok());
    drop(held);
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed() {
    let server = start().await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let closed = async { while !matches!(stream.read(&mut [0; 64]).await, Ok(0) | Err(_)) {} };
    tokio::time::timeout(Duration::from_secs(25), closed).await.expect("closed by the server");
}

#[tokio::test]
async fn a_caller_that_hangs_up_gives_its_room_back() {
    let server = start().await;
    let data = bytes(4 << 20, 1);
    let segment = server.put(&data);
    for _ in 0..40 {
        let mut client = server.client().await;
        // Windows are small by default: most of each answer waits in the server until we hang up.
        let calls = (0..4).map(|run| {
            let mut client = client.clone();
            async move { client.fetch(want(segment, ChunkRange::new(run * 64, run * 64 + 64), false)).await.map(drop) }
        });
        let calls: Vec<_> = calls.collect();
        let _ = tokio::time::timeout(Duration::from_millis(2), futures::future::join_all(calls)).await;
        client = server.client().await;
        drop(client);
    }
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while server.counters.in_flight.get() != 0 {
        assert!(tokio::time::Instant::now() < deadline, "{} still count", server.counters.in_flight.get());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut client = server.client().await;
    assert!(client.fetch(want(segment, ChunkRange::new(0, 64), true)).await.is_ok());
}

#[tokio::test]
async fn a_drained_server_ends_its_calls_and_takes_no_more() {
    let server = start().await;
    let segment = server.put(&bytes(100_000, 1));
    let mut client = server.client().await;
    assert!(client.fetch(want(segment, segment.all(), false)).await.is_ok());
    server.accepting.cancel();
    tokio::time::timeout(Duration::from_secs(10), server.served.ended()).await.expect("it ends by itself");
    assert!(client.fetch(want(segment, segment.all(), false)).await.is_err());
}
