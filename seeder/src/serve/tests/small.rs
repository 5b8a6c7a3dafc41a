//! Streams of small segments.

use super::*;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::serve::receive::MOST_SEGMENTS;

type Requests = mpsc::Sender<v1::StoreSmallRequest>;

async fn open(server: &Server) -> (Requests, Streaming<v1::StoreSmallAnswer>) {
    let (requests, queue) = mpsc::channel(64);
    let answers = server.client().await.store_stream(ReceiverStream::new(queue)).await.unwrap();
    (requests, answers.into_inner())
}

fn request(number: u64, data: &[u8]) -> v1::StoreSmallRequest {
    let header = Some(header(&[ChunkTree::build(data).segment()], vec![]));
    v1::StoreSmallRequest { number, header, data: Bytes::copy_from_slice(data) }
}

async fn next(answers: &mut Streaming<v1::StoreSmallAnswer>) -> v1::StoreSmallAnswer {
    tokio::time::timeout(Duration::from_secs(10), answers.message()).await.expect("it answers").unwrap().unwrap()
}

#[tokio::test]
async fn each_small_segment_of_a_stream_is_answered_for_itself() {
    let server = start().await;
    let (requests, mut answers) = open(&server).await;
    let good = bytes(20_000, 1);
    let wrong = v1::StoreSmallRequest { data: bytes(20_000, 9).into(), ..request(2, &bytes(20_000, 2)) };
    let short = v1::StoreSmallRequest { data: bytes(19_999, 3).into(), ..request(3, &bytes(20_000, 3)) };
    let mut passed_on = request(4, &bytes(20_000, 4));
    passed_on.header.as_mut().unwrap().forward = vec![server.target()];
    let headless = v1::StoreSmallRequest { header: None, ..request(5, &good) };
    let large = request(6, &bytes(MOST_SMALL_BYTES + 1, 6));
    for request in [request(1, &good), wrong, short, passed_on, headless, large] {
        requests.send(request).await.unwrap();
    }
    let mut said = vec![];
    for _ in 0..6 {
        let answer = next(&mut answers).await;
        said.push((answer.number, answer.ack.map(|ack| ack.outcomes().collect::<Vec<_>>()), answer.refused.is_empty()));
    }
    said.sort_unstable_by_key(|(number, ..)| *number);
    let held = |outcome| Some(vec![outcome]);
    assert_eq!(said[0], (1, held(v1::StoreOutcome::Held), true));
    assert_eq!(said[1], (2, held(v1::StoreOutcome::Corrupt), true));
    assert!(said[2..].iter().all(|(_, ack, no_words)| ack.is_none() && !no_words), "{said:?}");
    assert_eq!(server.shelf.segments.lock().len(), 1);
    assert_eq!((server.requests("store", "ok"), server.requests("store", "invalid")), (2, 4));
    assert_eq!(server.counters.stored_bytes.get(), 20_000);
}

#[tokio::test]
async fn all_that_one_run_acknowledges_names_it_and_another_run_is_another() {
    let (first, second) = (start().await, start().await);
    let data = bytes(100, 1);
    let segment = ChunkTree::build(&data).segment();
    let piped = send(&first, frames(header(&[segment], vec![second.target()]), &[&data])).await.unwrap();
    let runs: Vec<u64> = piped.acks.iter().map(|ack| ack.process).collect();
    assert!(runs[0] != 0 && runs[1] != 0 && runs[0] != runs[1]);
    let (requests, mut answers) = open(&first).await;
    requests.send(request(1, &data)).await.unwrap();
    assert_eq!(next(&mut answers).await.ack.unwrap().process, runs[0]);
    let mut client = first.client().await;
    let touch = v1::TouchRequest { segment_ids: segment.id.to_wire(), keep_ms: 0 };
    assert_eq!(client.touch(touch).await.unwrap().into_inner().process, runs[0]);
    assert_eq!(client.sync(v1::SyncRequest {}).await.unwrap().into_inner().process, runs[0]);
}

#[tokio::test]
async fn segments_are_taken_though_nobody_reads_the_answers() {
    let server = start().await;
    let narrow = Channel::from_shared(format!("http://{}", server.address)).unwrap().initial_stream_window_size(0);
    let mut client = ChunksClient::new(narrow.connect().await.unwrap());
    let (requests, queue) = mpsc::channel(16);
    // Refused at once, before any other is answered, which waits to be read.
    let headless = v1::StoreSmallRequest { header: None, ..request(0, b"x") };
    let good = (1..16).map(|number| request(number.into(), &bytes(100, number)));
    std::iter::once(headless).chain(good).for_each(|request| requests.try_send(request).unwrap());
    let _answers = client.store_stream(ReceiverStream::new(queue)).await.unwrap();
    let taken = async {
        while server.shelf.segments.lock().len() < 15 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), taken).await.expect("all are taken");
}

#[tokio::test]
async fn the_largest_request_fits_and_a_larger_one_ends_the_stream() {
    let server = start().await;
    let (requests, mut answers) = open(&server).await;
    let count = usize::try_from(MOST_SEGMENTS).unwrap();
    let data = bytes(MOST_SMALL_BYTES, 1);
    let segments: Vec<Segment> =
        data.chunks(MOST_SMALL_BYTES / count).map(|part| ChunkTree::build(part).segment()).collect();
    let largest = v1::StoreSmallRequest {
        number: u64::MAX,
        header: Some(v1::StoreHeader { keep_ms: 600_000_000, ..header(&segments, vec![]) }),
        data: data.into(),
    };
    requests.send(largest).await.unwrap();
    let acks = next(&mut answers).await.ack.unwrap();
    assert!(acks.outcomes().count() == count && acks.outcomes().all(|outcome| outcome == v1::StoreOutcome::Held));
    requests.send(request(2, &bytes(200 * 1024, 2))).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(10), answers.message()).await.expect("it ends").unwrap_err();
    assert_eq!(ended.code(), Code::OutOfRange, "{ended}");
}

#[tokio::test]
async fn a_stream_is_no_reason_to_go_on_serving() {
    let server = start().await;
    let (requests, mut answers) = open(&server).await;
    requests.send(request(1, &bytes(100, 1))).await.unwrap();
    assert_eq!(next(&mut answers).await.number, 1);
    server.accepting.cancel();
    tokio::time::timeout(Duration::from_secs(10), server.served.ended()).await.expect("it ends by itself");
    assert!(matches!(answers.message().await, Ok(None) | Err(_)));
}

#[tokio::test]
async fn so_many_streams_of_one_address_and_calls_beside_them() {
    let server = start().await;
    let mut client = server.client().await;
    let mut streams = vec![];
    let refused = loop {
        let (requests, queue) = mpsc::channel(1);
        match client.store_stream(ReceiverStream::new(queue)).await {
            Ok(answers) => streams.push((requests, answers)),
            Err(refused) => break refused,
        }
        assert!(streams.len() < 1_000, "they are bounded");
    };
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let data = bytes(100, 1);
    let segment = ChunkTree::build(&data).segment();
    send(&server, frames(header(&[segment], vec![]), &[&data])).await.unwrap();
    streams.pop();
    let again = async {
        loop {
            let (_requests, queue) = mpsc::channel(1);
            if client.store_stream(ReceiverStream::new(queue)).await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), again).await.expect("a seat is given back");
}
