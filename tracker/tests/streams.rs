//! Streams of changes: what one client does with its own keeps nobody else from changing names.

#![cfg(test)]

mod support;

use std::time::Duration;

use bytes::Bytes;
use support::*;
use swarm_proto::v1;
use swarm_proto::v1::catalog_client::CatalogClient;
use swarm_proto::v1::operation::Operation;
use swarm_proto::{Fault, MAX_STREAMED_CHANGE_BYTES, RequestId};
use swarm_tracker::Tracker;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

const ROOT: u64 = 1;

type Client = CatalogClient<Channel>;
type Stream = (mpsc::Sender<v1::MutateRequest>, Streaming<v1::MutateAnswer>);

async fn client(tracker: &Tracker) -> Client {
    CatalogClient::new(channel(tracker).await)
}

/// Makes directories with these names.
fn making(names: impl IntoIterator<Item = String>) -> v1::MutateRequest {
    let make = |name: String| {
        let ownership = Some(v1::Ownership { mode: 0o755, ..v1::Ownership::default() });
        let make = v1::MakeDirectory { parent: ROOT, name: Bytes::from(name), ownership };
        v1::Operation { operation: Some(Operation::MakeDirectory(make)) }
    };
    let operations = names.into_iter().map(make).collect();
    v1::MutateRequest { request_id: RequestId::random().to_wire(), operations, durable: false, with_others: false }
}

/// A stream on which these requests are sent first.
async fn open(client: &mut Client, first: Vec<v1::MutateRequest>) -> Result<Stream, Status> {
    let (requests, queue) = mpsc::channel(first.len().max(1));
    first.into_iter().for_each(|request| requests.try_send(request).unwrap());
    Ok((requests, client.mutate_stream(ReceiverStream::new(queue)).await?.into_inner()))
}

async fn ask(stream: &mut Stream, request: v1::MutateRequest) -> v1::MutateAnswer {
    stream.0.send(request).await.unwrap();
    timeout(SOON, stream.1.message()).await.expect("it answers").unwrap().unwrap()
}

async fn names(client: &Client) -> u64 {
    client.clone().stat_fs(v1::StatFsRequest {}).await.unwrap().into_inner().inodes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_no_answers_keeps_nobody_from_changing_names() {
    let tracker = Tracker::start(config()).await.unwrap();
    // No room for answers at all.
    let narrow = Endpoint::from_shared(format!("http://{}", tracker.address())).unwrap().initial_stream_window_size(0);
    let mut greedy = Client::new(narrow.connect().await.unwrap());
    let mut streams = Vec::new();
    for stream in 0..32 {
        // The first is answered at once, before any other, and waits to be read.
        let nameless = v1::MutateRequest { request_id: Bytes::new(), ..making([String::new()]) };
        let requests = (1..64).map(|n| making([format!("{stream} {n}")]));
        streams.push(open(&mut greedy, std::iter::once(nameless).chain(requests).collect()).await.unwrap());
    }
    // All may be answered at once that may be in all; some of them now are.
    let mut honest = client(&tracker).await;
    until(|| names(&honest), |names| *names > 700).await;
    // Refused while all those are under way, but not for longer.
    let mut stream = open(&mut honest, Vec::new()).await.unwrap();
    let answered =
        async { while ask(&mut stream, making(["honest".to_owned()])).await.fault() != Fault::Unspecified {} };
    timeout(Duration::from_secs(10), answered).await.expect("there is room for others");
    drop(streams);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_many_streams_of_one_address_and_calls_beside_them() {
    let tracker = Tracker::start(config()).await.unwrap();
    let mut streams = Vec::new();
    let refused = 'full: loop {
        let mut client = client(&tracker).await;
        for _ in 0..50 {
            match open(&mut client, Vec::new()).await {
                Ok(stream) => streams.push(stream),
                Err(refused) => break 'full refused,
            }
        }
        assert!(streams.len() < 2_000, "they are bounded");
    };
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    let mut client = client(&tracker).await;
    client.mutate(making(["call".to_owned()])).await.unwrap();
    streams.pop();
    let again = || {
        let mut client = client.clone();
        async move { open(&mut client, Vec::new()).await.is_ok() }
    };
    assert!(until(again, |opened| *opened).await, "a seat is given back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_for_a_stream_ends_it_and_goes_by_a_call() {
    let tracker = Tracker::start(config()).await.unwrap();
    let mut client = client(&tracker).await;
    let large = making((0..1_000).map(|n| format!("{n:0>200}")));
    assert!(prost::Message::encoded_len(&large) > MAX_STREAMED_CHANGE_BYTES);
    let (requests, mut answers) = open(&mut client, vec![making(["small".to_owned()]), large.clone()]).await.unwrap();
    let answer = timeout(SOON, answers.message()).await.expect("it answers").unwrap().unwrap();
    assert_eq!(answer.fault(), Fault::Unspecified, "what came before is answered");
    let ended = timeout(SOON, answers.message()).await.expect("it ends").unwrap_err();
    assert_eq!(ended.code(), Code::OutOfRange, "{ended}");
    drop(requests);
    assert_eq!(client.mutate(large).await.unwrap().into_inner().results.len(), 1_000);
    until(|| names(&client), |names| *names == 1_002).await;
}
