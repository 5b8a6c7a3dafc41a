//! Lending over real local sockets.

use prost::Message;
use tokio::net::UnixStream;

use super::*;
use crate::{aligned, local};

const MIB: usize = 1 << 20;

async fn asked(stream: &UnixStream, question: &[u8]) -> (v1::Loan, Option<std::os::fd::OwnedFd>) {
    local::send(stream, question, None).await.unwrap();
    let answer = tokio::time::timeout(Duration::from_secs(20), local::receive(stream, 1 << 20)).await;
    let (answer, file) = answer.expect("an answer in time").unwrap().expect("an answer");
    (v1::Loan::decode(Bytes::from(answer)).unwrap(), file)
}

impl Server {
    async fn local(&self) -> UnixStream {
        local::connect(self.me, &self.address.to_string()).await.unwrap()
    }
}

#[tokio::test]
async fn a_file_is_lent_with_the_tree_and_counted_as_served() {
    let server = start().await;
    let content = bytes(2 * MIB, 1);
    let segment = server.put(&content);
    let stream = server.local().await;
    for with_tree in [true, false] {
        let chunks = ChunkRange::new(10, 74);
        let (loan, file) = asked(&stream, &want(segment, chunks, with_tree).encode_to_vec()).await;
        let reply = loan.outcome.unwrap().reply.unwrap();
        assert!(reply.data.is_empty() && reply.held.is_none());
        let tree = if with_tree { ChunkTree::build(&content).values().clone() } else { Bytes::new() };
        assert!(reply.tree == tree);
        let lent = aligned::read_exact_at(file.unwrap(), loan.offset, MIB).unwrap();
        assert!(lent == content[10 * 16_384..74 * 16_384]);
    }
    assert_eq!(server.counters.served_bytes.get(), 2 * MIB as u64);
    assert_eq!(server.counters.lent_bytes.get(), 2 * MIB as u64);
    assert_eq!(server.counters.served_tree_bytes.get(), 128 * 32);
    assert_eq!(server.requests("lend", "ok"), 2);
}

#[tokio::test]
async fn what_cannot_be_lent_is_said_and_the_connection_goes_on() {
    let server = start().await;
    let content = bytes(2 * MIB, 2);
    let (segment, small) = (server.put(&content), server.put(&bytes(60_000, 3)));
    let stream = server.local().await;
    let question = |segment, start, end| want(segment, ChunkRange::new(start, end), false).encode_to_vec();
    let gone = Segment { id: SegmentId::new([7; 32]), length: 5 * 16_384 };
    for (question, code) in [
        (question(segment, 100, 150), Code::InvalidArgument),
        (question(segment, 0, 65), Code::InvalidArgument),
        (question(small, 0, 4), Code::Unimplemented),
        (b"\xFF\xFF not a question".to_vec(), Code::InvalidArgument),
        (Vec::new(), Code::InvalidArgument),
    ] {
        let (loan, file) = asked(&stream, &question).await;
        let outcome = loan.outcome.unwrap();
        assert_eq!((Code::from(outcome.code as i32), outcome.reply, file.is_some()), (code, None, false));
    }
    let (loan, file) = asked(&stream, &question(gone, 0, 5)).await;
    let held = loan.outcome.unwrap().reply.unwrap().held.unwrap();
    assert!(!held.whole && held.bitmap.is_empty() && file.is_none());
    assert_eq!(server.counters.served_bytes.get(), 0);
    let (loan, file) = asked(&stream, &question(segment, 0, 64)).await;
    assert!(loan.outcome.unwrap().reply.is_some() && file.is_some());
}

#[tokio::test]
async fn a_question_that_is_too_long_ends_only_its_connection() {
    let server = start().await;
    let segment = server.put(&bytes(MIB, 4));
    let stream = server.local().await;
    local::send(&stream, &vec![0; 5_000], None).await.unwrap();
    assert!(!matches!(local::receive(&stream, 100).await, Ok(Some(_))));
    let (loan, _) = asked(&server.local().await, &want(segment, segment.all(), false).encode_to_vec()).await;
    assert!(loan.outcome.unwrap().reply.is_some());
}

#[tokio::test]
async fn connections_beyond_the_most_are_closed_and_find_room_later() {
    let server = start().await;
    let segment = server.put(&bytes(MIB, 5));
    let question = want(segment, segment.all(), false).encode_to_vec();
    let mut streams = Vec::new();
    for _ in 0..super::super::lend::MOST_CONNECTIONS {
        let stream = server.local().await;
        asked(&stream, &question).await;
        streams.push(stream);
    }
    let extra = server.local().await;
    assert!(!matches!(local::receive(&extra, 100).await, Ok(Some(_))));
    streams.clear();
    let give_up = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let stream = server.local().await;
        let sent = local::send(&stream, &question, None).await;
        if sent.is_ok() && matches!(local::receive(&stream, 1 << 20).await, Ok(Some(_))) {
            break;
        }
        assert!(tokio::time::Instant::now() < give_up, "room again");
    }
}

#[tokio::test]
async fn a_peer_that_stops_lends_no_more() {
    let server = start().await;
    let segment = server.put(&bytes(MIB, 6));
    let stream = server.local().await;
    asked(&stream, &want(segment, segment.all(), false).encode_to_vec()).await;
    server.accepting.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(20), local::receive(&stream, 100)).await;
    assert!(matches!(ended, Ok(Ok(None))), "{ended:?}");
    assert!(local::connect(server.me, &server.address.to_string()).await.is_err());
}

#[tokio::test]
async fn a_name_that_somebody_else_has_is_taken_when_it_is_free() {
    let me = PeerId::random();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let squatter = local::listen(me, listener.local_addr().unwrap()).unwrap();
    let server = start_as(me, listener, Shelf::default()).await;
    let segment = server.put(&bytes(MIB, 7));
    let question = want(segment, segment.all(), false).encode_to_vec();
    drop(squatter);
    let give_up = tokio::time::Instant::now() + Duration::from_secs(20);
    let stream = loop {
        match local::connect(me, &server.address.to_string()).await {
            Ok(stream) => break stream,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
        assert!(tokio::time::Instant::now() < give_up, "it never listened");
    };
    assert!(asked(&stream, &question).await.1.is_some());
}
