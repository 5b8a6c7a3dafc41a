//! Hostile input to every call: an error status, no panic, memory bounded, and the tracker still answers.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use support::*;
use swarm_proto::v1::announce_message::Message;
use swarm_proto::v1::{self, Hello, HolderReport, LocateRequest, PeerKind, PlaceRequest, ReportRequest};
use swarm_proto::{PeerId, SegmentId};
use swarm_tracker::Tracker;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Code;
use tonic::body::Body;
use tonic::transport::Channel;
use tower::{Service, ServiceExt};

const METHODS: [&str; 24] = [
    "swarm.v1.Holders/Announce",
    "swarm.v1.Holders/Locate",
    "swarm.v1.Holders/Place",
    "swarm.v1.Holders/Report",
    "swarm.v1.Holders/Peers",
    "swarm.v1.Holders/Status",
    "swarm.v1.Catalog/Lookup",
    "swarm.v1.Catalog/Resolve",
    "swarm.v1.Catalog/GetNode",
    "swarm.v1.Catalog/LeaseNodes",
    "swarm.v1.Catalog/ReadDir",
    "swarm.v1.Catalog/GetManifest",
    "swarm.v1.Catalog/GetManifests",
    "swarm.v1.Catalog/PutManifest",
    "swarm.v1.Catalog/Mutate",
    "swarm.v1.Catalog/MutateStream",
    "swarm.v1.Catalog/StatFs",
    "swarm.v1.Catalog/Import",
    "swarm.v1.Catalog/Watch",
    "swarm.v1.Catalog/Export",
    "grpc.health.v1.Health/Check",
    "grpc.health.v1.Health/List",
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "swarm.v1.Holders/Invented",
];

/// tonic's reflection ends its stream without a word when it cannot read a question.
fn is_foreign(method: &str) -> bool {
    method.contains("reflection")
}

static PANICS: AtomicUsize = AtomicUsize::new(0);

/// Count the panics of every thread: tokio would swallow those of the tracker's tasks.
fn count_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            // A test that fails is no panic of the tracker's.
            if !info.location().is_some_and(|at| at.file().contains("tests/")) {
                PANICS.fetch_add(1, Ordering::SeqCst);
            }
            before(info);
        }));
    });
}

async fn still_answers(tracker: &Tracker) {
    let reply = holders(tracker).await.peers(v1::PeersRequest {}).await;
    assert!(reply.is_ok(), "{reply:?}");
    assert_eq!(PANICS.load(Ordering::SeqCst), 0, "something panicked");
}

/// Send `body` as it is; the gRPC code of the answer, `Unknown` if the connection was cut instead.
async fn raw(channel: &Channel, method: &str, body: Vec<u8>) -> Code {
    let request = http::Request::post(format!("http://tracker/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Body::new(Full::new(Bytes::from(body))))
        .unwrap();
    let answer = async {
        let mut channel = channel.clone();
        let response = channel.ready().await.ok()?.call(request).await.ok()?;
        let header = response.headers().get("grpc-status").cloned();
        if header.is_some() {
            return header;
        }
        // An answer stream that stays open is read for a moment only.
        let rest = tokio::time::timeout(Duration::from_millis(300), response.into_body().collect()).await;
        rest.ok()?.ok()?.trailers()?.get("grpc-status").cloned()
    };
    let code = tokio::time::timeout(SOON, answer).await.expect("every call ends");
    code.map_or(Code::Unknown, |code| Code::from_bytes(code.as_bytes()))
}

fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0], &length[..], message].concat()
}

fn rss_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_bytes_to_every_call_are_refused() {
    count_panics();
    let tracker = Tracker::start(config()).await.unwrap();
    let channel = channel(&tracker).await;
    let mut rng = StdRng::seed_from_u64(7);
    for round in 0..40 {
        for method in METHODS {
            let mut message = vec![0; rng.random_range(1..400)];
            rng.fill_bytes(&mut message);
            // A first byte that no message of ours begins with, so that it cannot be a request by chance.
            if round % 2 == 0 {
                message[0] = 0xff;
                let code = raw(&channel, method, framed(&message)).await;
                assert!(code != Code::Ok || is_foreign(method), "{method} took {message:02x?}");
            } else {
                raw(&channel, method, framed(&message)).await;
            }
        }
    }
    still_answers(&tracker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lies_about_length_cost_no_memory() {
    count_panics();
    let tracker = Tracker::start(config()).await.unwrap();
    let before = rss_bytes();
    for _ in 0..4 {
        let channel = channel(&tracker).await;
        for method in METHODS {
            // 4 GiB announced; a message cut short; one that says it is compressed.
            for body in [
                vec![0, 0xff, 0xff, 0xff, 0xff, 1, 2, 3],
                vec![0, 0, 0, 1, 0, 1, 2, 3],
                vec![1, 0, 0, 0, 1, 0],
                vec![0, 0],
            ] {
                let code = raw(&channel, method, body).await;
                assert!(code != Code::Ok || is_foreign(method), "{method}");
            }
        }
    }
    // Larger than any message may be, and really sent.
    let channel = channel(&tracker).await;
    for method in ["swarm.v1.Holders/Locate", "swarm.v1.Holders/Announce", "swarm.v1.Catalog/Mutate"] {
        let code = raw(&channel, method, framed(&vec![0; 8 << 20])).await;
        assert_ne!(code, Code::Ok, "{method}");
    }
    still_answers(&tracker).await;
    let grown = rss_bytes().saturating_sub(before);
    assert!(grown < 256 << 20, "{} MiB more", grown >> 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_not_http2_end_the_connection() {
    count_panics();
    let tracker = Tracker::start(config()).await.unwrap();
    let mut rng = StdRng::seed_from_u64(11);
    for round in 0..60 {
        let mut stream = TcpStream::connect(tracker.address()).await.unwrap();
        let mut garbage = vec![0; rng.random_range(1..2000)];
        rng.fill_bytes(&mut garbage);
        if round % 2 == 0 {
            stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        }
        if round % 3 == 0 {
            garbage = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec();
        }
        // The other side may have hung up already.
        drop(stream.write_all(&garbage).await);
        if round % 2 == 1 {
            let mut rest = Vec::new();
            let read = tokio::time::timeout(SOON, stream.read_to_end(&mut rest)).await;
            assert!(read.is_ok(), "the connection stays open");
        }
    }
    still_answers(&tracker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_connections_and_streams_are_closed() {
    count_panics();
    let tracker = Tracker::start(config()).await.unwrap();
    // Connections that say nothing, or not enough.
    let mut silent = TcpStream::connect(tracker.address()).await.unwrap();
    let mut slow = TcpStream::connect(tracker.address()).await.unwrap();
    slow.write_all(b"PRI * HT").await.unwrap();
    // A stream without a Hello.
    let (out, messages) = tokio::sync::mpsc::channel(1);
    let mut client = holders(&tracker).await;
    let announced = client.announce(tokio_stream::wrappers::ReceiverStream::new(messages)).await.unwrap();
    let mut orders = announced.into_inner();
    let status = tokio::time::timeout(SOON, orders.message()).await.expect("it is closed").unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    drop(out);
    for stream in [&mut silent, &mut slow] {
        let mut rest = Vec::new();
        tokio::time::timeout(SOON, stream.read_to_end(&mut rest)).await.expect("it is closed").ok();
    }
    still_answers(&tracker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_hellos_and_announces_are_refused_by_name() {
    count_panics();
    let tracker = Tracker::start(config()).await.unwrap();
    let good = || hello(PeerKind::Seeder, 1);
    let bad: [(Hello, &str); 10] = [
        (Hello { peer_id: Bytes::from_static(&[1; 15]), ..good() }, "peer_id"),
        (Hello { process_id: Bytes::new(), ..good() }, "process_id"),
        (Hello { kind: 0, ..good() }, "kind"),
        (Hello { kind: -7, ..good() }, "kind"),
        (Hello { address: String::new(), ..good() }, "address"),
        (Hello { address: "nowhere".into(), ..good() }, "address"),
        (Hello { address: "a".repeat(500_000), ..good() }, "address"),
        (Hello { zone: "z".repeat(256), ..good() }, "zone"),
        (Hello { host: "a\u{1b}[31m".into(), ..good() }, "host"),
        (Hello { version: "\n".into(), ..good() }, "version"),
    ];
    for (hello, field) in bad {
        let status = FakePeer::connect(&tracker, hello).await.end().await;
        assert_eq!(status.code(), Code::InvalidArgument, "{field}");
        assert!(status.message().contains(field) && status.message().len() < 500, "{field}: {status:?}");
    }
    let many = SegmentId::pack(&segments(0..16_385));
    let messages = [
        Message::Hello(good()),
        Message::Inventory(v1::Inventory { whole_ids: Bytes::from_static(&[0; 33]), ..Default::default() }),
        Message::Inventory(v1::Inventory { whole_ids: many.clone(), ..Default::default() }),
        Message::Inventory(v1::Inventory { whole_ids: many.slice(..32), partial_ids: many.slice(32..), last: true }),
        Message::Delta(v1::Delta { lost_ids: many, ..Default::default() }),
        Message::Delta(v1::Delta { partial_ids: Bytes::from_static(&[0; 1]), ..Default::default() }),
    ];
    for message in messages {
        let (mut peer, _) = FakePeer::join(&tracker, good()).await;
        peer.send(message).await;
        assert_eq!(peer.end().await.code(), Code::InvalidArgument);
        // The id is free again: a broken stream does not lock its peer out.
    }
    // The first message is something else.
    let (out, messages) = tokio::sync::mpsc::channel(1);
    out.send(v1::AnnounceMessage { message: None }).await.unwrap();
    let answer = holders(&tracker).await.announce(tokio_stream::wrappers::ReceiverStream::new(messages)).await;
    assert_eq!(answer.unwrap().into_inner().message().await.unwrap_err().code(), Code::InvalidArgument);
    still_answers(&tracker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mount_with_too_many_open_files_loses_its_stream_and_nothing_else() {
    count_panics();
    let tracker = Tracker::start(config()).await.unwrap();
    let open = |numbers: std::ops::Range<u64>| v1::OpenFiles { opened: numbers.collect(), ..Default::default() };
    let mut too_long = open(0..65_536);
    too_long.closed = vec![0];
    let (mut peer, _) = FakePeer::join(&tracker, hello(PeerKind::Mount, 1)).await;
    peer.send(Message::OpenFiles(open(u64::MAX - 65_536..u64::MAX))).await;
    peer.send(Message::OpenFiles(too_long)).await;
    assert_eq!(peer.end().await.code(), Code::ResourceExhausted);
    let (mut peer, _) = FakePeer::join(&tracker, hello(PeerKind::Mount, 2)).await;
    for part in 0..=16 {
        let from = part * 65_536;
        peer.send(Message::OpenFiles(v1::OpenFiles { all: part == 0, more: true, ..open(from..from + 65_536) })).await;
    }
    assert_eq!(peer.end().await.code(), Code::ResourceExhausted);
    still_answers(&tracker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn absurd_loads_and_capacities_do_not_overflow() {
    count_panics();
    let tracker = Tracker::start(config()).await.unwrap();
    let mut client = holders(&tracker).await;
    let mut peers = Vec::new();
    for number in 1..=3 {
        let hello = Hello { capacity_bytes: u64::MAX, ..hello(PeerKind::Seeder, number) };
        let (mut peer, _) = FakePeer::join(&tracker, hello).await;
        let most = u64::MAX;
        let load = v1::Load {
            used_bytes: most,
            free_bytes: most,
            segments: most,
            served_bytes_total: most,
            in_flight: u32::MAX,
            corrupt_segments: most,
        };
        peer.send(Message::Load(load)).await;
        peer.tell(&segments([1])).await;
        peers.push(peer);
    }
    assert_eq!(locate(&client, &[segment(1)]).await[0].len(), 3);
    let status = client.status(v1::StatusRequest { replicas: 0 }).await.unwrap().into_inner();
    assert_eq!((status.capacity_bytes, status.seeders_live), (u64::MAX, 3));
    let place = PlaceRequest {
        segment_ids: segment(9).to_wire(),
        lengths: vec![1 << 26],
        replicas: 16,
        ..PlaceRequest::default()
    };
    assert_eq!(client.place(place).await.unwrap().into_inner().counts, [3]);
    still_answers(&tracker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_out_of_range_are_refused() {
    count_panics();
    let tracker = Tracker::start(config()).await.unwrap();
    let mut client = holders(&tracker).await;
    let ids = |count| SegmentId::pack(&segments(0..count));
    let locates = [
        LocateRequest::default(),
        LocateRequest { segment_ids: ids(4_097), ..Default::default() },
        LocateRequest { segment_ids: Bytes::from_static(&[0; 31]), ..Default::default() },
        LocateRequest { segment_ids: ids(1), peer_id: Bytes::from_static(&[0; 3]), ..Default::default() },
    ];
    for request in locates {
        assert_eq!(client.locate(request).await.unwrap_err().code(), Code::InvalidArgument);
    }
    let place = |count: u32| PlaceRequest {
        segment_ids: ids(count),
        lengths: vec![1; count as usize],
        replicas: 3,
        ..Default::default()
    };
    let places = [
        place(0),
        place(4_097),
        PlaceRequest { lengths: vec![1; 2], ..place(3) },
        PlaceRequest { lengths: vec![0], ..place(1) },
        PlaceRequest { lengths: vec![u32::MAX], ..place(1) },
        PlaceRequest { replicas: 0, ..place(1) },
        PlaceRequest { replicas: u32::MAX, ..place(1) },
        PlaceRequest { exclude_peer_ids: Bytes::from_static(&[0; 17]), ..place(1) },
    ];
    for request in places {
        assert_eq!(client.place(request).await.unwrap_err().code(), Code::InvalidArgument);
    }
    let report = |peer: &'static [u8], segment: &'static [u8], kind| ReportRequest {
        reporter_id: Bytes::new(),
        reports: vec![HolderReport {
            peer_id: Bytes::from_static(peer),
            segment_id: Bytes::from_static(segment),
            kind,
        }],
    };
    let reports = [
        report(&[0; 15], &[0; 32], 1),
        report(&[0; 16], &[0; 31], 1),
        report(&[0; 16], &[], 2),
        report(&[0; 16], &[0; 32], 0),
        report(&[0; 16], &[0; 32], 99),
        ReportRequest { reporter_id: Bytes::from_static(&[0; 2]), ..Default::default() },
        ReportRequest { reports: vec![HolderReport::default(); 257], ..Default::default() },
    ];
    for request in reports {
        assert_eq!(client.report(request).await.unwrap_err().code(), Code::InvalidArgument);
    }
    // A peer that nobody knows is not an error: it may just have been forgotten.
    client.report(report(&[0; 16], &[0; 32], 1)).await.unwrap();
    assert_eq!(client.status(v1::StatusRequest { replicas: 17 }).await.unwrap_err().code(), Code::InvalidArgument);
    still_answers(&tracker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_invented_peers_leave_nothing_behind() {
    count_panics();
    let short = swarm_proto::settings::Span(Duration::from_millis(300));
    let tracker = Tracker::start(swarm_tracker::TrackerConfig { stale_grace: short, dead_after: short, ..config() })
        .await
        .unwrap();
    let mut client = holders(&tracker).await;
    for number in 0..100u8 {
        let invented = Hello { peer_id: PeerId::random().to_wire(), ..hello(PeerKind::Mount, number) };
        let (mut peer, _) = FakePeer::join(&tracker, invented).await;
        peer.tell(&segments(u32::from(number) * 100..u32::from(number) * 100 + 50)).await;
    }
    let ask = || {
        let mut client = client.clone();
        async move { client.peers(v1::PeersRequest {}).await.unwrap().into_inner().peers.len() }
    };
    until(ask, |count| *count == 0).await;
    assert_eq!(locate(&client, &[segment(1)]).await, [vec![]]);
    drop(client.status(v1::StatusRequest { replicas: 0 }).await.unwrap());
    still_answers(&tracker).await;
}
