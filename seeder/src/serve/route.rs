//! How calls reach [`Chunks`]: Fetch and FetchMany by a body of our own, the others by the generated server.
//!
//! Those two carry nearly all bytes. The generated server copies each answer into one buffer; here the
//! bytes that the store read travel as they are, and what they take of the peer's budget is given back
//! when the last of them was written out. Also here: bounds on what callers can make us hold before we
//! know what they want.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body::Frame;
use http_body_util::BodyExt;
use prometheus::IntGauge;
use prost::Message;
use swarm_proto::seats::{Seat, Seats};
use swarm_proto::v1;
use swarm_proto::v1::chunks_server::{ChunksServer, SERVICE_NAME};
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;

use super::Chunks;
use super::counters::Counters;
use super::fetch::{Answer, outcome};
use super::listener::Remote;
use super::receive::MOST_FRAME_BYTES;
use super::small::MOST_SMALL_BYTES;
use crate::grpc;
use crate::store::ChunkStore;

/// Bytes of a Fetch request: two ids, three numbers, and room for fields to come; and of 64 of them.
pub(super) const MOST_FETCH_BYTES: usize = 4 * 1024;
const MOST_FETCH_MANY_BYTES: usize = 16 * 1024;
/// Bytes of the other requests: 4,096 ids of 32 bytes, and room.
const MOST_LIST_BYTES: usize = 256 * 1024;
/// Calls that are neither Fetch nor Store at once: 64 MiB of requests; and of one address.
const MOST_LISTS: (usize, usize) = (256, 64);
/// Calls of Store at once, and of one address. A put makes up to 16, and each is passed on. A call can
/// make us hold 9 MiB: its window, a frame, and what waits to be passed on.
const MOST_STORES: (usize, usize) = (96, 64);
/// Streams of small segments at once, and of one address. Whoever has none makes calls of Store. One can make us hold
/// 8 MiB: the requests that are answered at once, one that is half here, and its window.
const MOST_STREAMS: (usize, usize) = (256, 64);
/// Bytes of one request of such a stream: its segments, and a header of 1,024 of them, some 40 bytes each.
const MOST_SMALL_REQUEST_BYTES: usize = MOST_SMALL_BYTES + 64 * 1024;
/// Longest life of a call that is neither Fetch nor Store: a Sync waits for a slow disk, and the uploader for
/// it a little longer than this.
const LIST_WAIT: Duration = Duration::from_secs(110);
/// Longest wait for the request of a Fetch.
const REQUEST_WAIT: Duration = Duration::from_secs(10);

type Lists<S> = ChunksServer<Chunks<S>>;

/// The service `Chunks` on the wire.
pub(crate) struct Route<S: ChunkStore> {
    chunks: Arc<Chunks<S>>,
    lists: Lists<S>,
    stores: Lists<S>,
    streams: Lists<S>,
    lists_seats: Seats,
    stores_seats: Seats,
    streams_seats: Seats,
}

impl<S: ChunkStore> Route<S> {
    pub(crate) fn new(chunks: Arc<Chunks<S>>) -> Self {
        let server = ChunksServer::from_arc(Arc::clone(&chunks));
        Self {
            lists: server.clone().max_decoding_message_size(MOST_LIST_BYTES),
            streams: server.clone().max_decoding_message_size(MOST_SMALL_REQUEST_BYTES),
            stores: server.max_decoding_message_size(MOST_FRAME_BYTES + MOST_LIST_BYTES),
            lists_seats: Seats::new(MOST_LISTS.0, MOST_LISTS.1),
            stores_seats: Seats::new(MOST_STORES.0, MOST_STORES.1),
            streams_seats: Seats::new(MOST_STREAMS.0, MOST_STREAMS.1),
            chunks,
        }
    }
}

impl<S: ChunkStore> Clone for Route<S> {
    fn clone(&self) -> Self {
        Self {
            chunks: Arc::clone(&self.chunks),
            lists: self.lists.clone(),
            stores: self.stores.clone(),
            streams: self.streams.clone(),
            lists_seats: self.lists_seats.clone(),
            stores_seats: self.stores_seats.clone(),
            streams_seats: self.streams_seats.clone(),
        }
    }
}

impl<S: ChunkStore> NamedService for Route<S> {
    const NAME: &'static str = SERVICE_NAME;
}

impl<S: ChunkStore> tonic::codegen::Service<Request<Body>> for Route<S> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default();
        match method {
            "Fetch" => Box::pin(answered(Arc::clone(&self.chunks), request, fetch)),
            "FetchMany" => Box::pin(answered(Arc::clone(&self.chunks), request, fetch_many)),
            "Store" => {
                let call = bounded(&self.stores_seats, &mut self.stores, request);
                Box::pin(async move { Ok(call.await.unwrap_or_else(Status::into_http)) })
            }
            "StoreStream" => {
                let Some(seat) = take(&self.streams_seats, &request) else {
                    return Box::pin(std::future::ready(Ok(busy().into_http())));
                };
                // It keeps its seat as long as requests are read and answered, not only until the answer begins.
                request.extensions_mut().insert(Arc::new(seat));
                tonic::codegen::Service::call(&mut self.streams, request)
            }
            _ => {
                let call = bounded(&self.lists_seats, &mut self.lists, request);
                Box::pin(async move {
                    let answer = tokio::time::timeout(LIST_WAIT, call).await;
                    let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("the call took too long")));
                    Ok(answer.unwrap_or_else(Status::into_http))
                })
            }
        }
    }
}

/// Call the generated server if there is room for one more.
fn bounded<S: ChunkStore>(
    seats: &Seats,
    server: &mut Lists<S>,
    request: Request<Body>,
) -> impl Future<Output = Result<Response<Body>, Status>> + use<S> {
    let called = take(seats, &request).map(|seat| {
        let answer = tonic::codegen::Service::call(server, request);
        async move {
            let answer = answer.await;
            drop(seat);
            answer
        }
    });
    async move {
        match called {
            Some(answer) => answer.await.map_err(|never| match never {}),
            None => Err(busy()),
        }
    }
}

fn take(seats: &Seats, request: &Request<Body>) -> Option<Seat> {
    let address = request.extensions().get::<Remote>().map(|remote| remote.address.ip());
    seats.take(address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)))
}

fn busy() -> Status {
    Status::resource_exhausted("this peer is busy: ask another, or later")
}

/// Answer a call by `answer`, in pieces that are not copied together.
async fn answered<S: ChunkStore, F>(
    chunks: Arc<Chunks<S>>,
    request: Request<Body>,
    answer: impl FnOnce(Arc<Chunks<S>>, Body, Option<Remote>) -> F,
) -> Result<Response<Body>, Infallible>
where
    F: Future<Output = Result<Vec<Bytes>, Status>>,
{
    let _answering = Answering::begin(&chunks.counters.in_flight);
    let (parts, body) = request.into_parts();
    Ok(match answer(chunks, body, parts.extensions.get::<Remote>().cloned()).await {
        Ok(pieces) => {
            let mut response = Response::new(Body::new(Reply { pieces: pieces.into_iter(), ended: false }));
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(grpc::CONTENT_TYPE));
            response
        }
        Err(status) => status.into_http(),
    })
}

async fn fetch<S: ChunkStore>(chunks: Arc<Chunks<S>>, body: Body, from: Option<Remote>) -> Result<Vec<Bytes>, Status> {
    let answer = async { chunks.fetch_run(read_request(body, MOST_FETCH_BYTES).await?, from.as_ref()).await }.await;
    count(&chunks.counters, &answer);
    let (head, data) = encoded(answer?);
    Ok(vec![grpc::framed(&head, data.len()), data])
}

async fn fetch_many<S: ChunkStore>(
    chunks: Arc<Chunks<S>>,
    body: Body,
    from: Option<Remote>,
) -> Result<Vec<Bytes>, Status> {
    let answers = async {
        let request = read_request(body, MOST_FETCH_MANY_BYTES).await?;
        chunks.fetch_each(request, from.as_ref()).await
    };
    let answers =
        answers.await.inspect_err(|status| chunks.counters.answered("fetch", &Err::<(), _>(status.clone())))?;
    answers.iter().for_each(|answer| count(&chunks.counters, answer));
    let mut pieces: Vec<(Vec<u8>, Bytes)> = answers.into_iter().map(element).collect();
    let length: usize = pieces.iter().map(|(head, data)| head.len() + data.len()).sum();
    let (first, data) = pieces.remove(0);
    let framed = grpc::framed(&first, length - first.len());
    let rest = pieces.into_iter().flat_map(|(head, data)| [head.into(), data]);
    Ok([framed, data].into_iter().chain(rest).collect())
}

fn count(counters: &Counters, answer: &Result<Answer, Status>) {
    match answer {
        Ok(Answer::Lacks(_)) => counters.outcome("fetch", "missing"),
        other => counters.answered("fetch", other),
    }
}

/// A FetchReply: its first bytes, and the data that ends it.
fn encoded(answer: Answer) -> (Vec<u8>, Bytes) {
    match answer {
        Answer::Lacks(_) => (v1::FetchReply::from(answer).encode_to_vec(), Bytes::new()),
        Answer::Chunks { tree, data, pass } => {
            let mut head = v1::FetchReply { tree, ..v1::FetchReply::default() }.encode_to_vec();
            grpc::begin_field(grpc::DATA, data.len(), &mut head);
            (head, pass.attach(data))
        }
    }
}

/// One of the outcomes of a FetchManyReply, likewise.
fn element(answer: Result<Answer, Status>) -> (Vec<u8>, Bytes) {
    let (outcome, data) = match answer {
        Ok(answer) => {
            let (reply, data) = encoded(answer);
            let mut head = Vec::with_capacity(reply.len() + 16);
            grpc::begin_field(grpc::REPLY, reply.len() + data.len(), &mut head);
            head.extend_from_slice(&reply);
            (head, data)
        }
        Err(_) => (outcome(answer).encode_to_vec(), Bytes::new()),
    };
    let mut head = Vec::with_capacity(outcome.len() + 8);
    grpc::begin_field(grpc::OUTCOMES, outcome.len() + data.len(), &mut head);
    head.extend_from_slice(&outcome);
    (head, data)
}

/// Acts on drop: one fetch fewer is being answered, also if its caller hung up.
struct Answering(IntGauge);

impl Answering {
    fn begin(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The one message of a request.
async fn read_request<M: Message + Default>(mut body: Body, most_bytes: usize) -> Result<M, Status> {
    let read = async {
        let mut message = grpc::Pieces::default();
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame?.into_data() {
                if message.len() + data.len() > most_bytes {
                    return Err(Status::resource_exhausted("the request is too long"));
                }
                message.push(data);
            }
        }
        message.decode()
    };
    let read = tokio::time::timeout(REQUEST_WAIT, read).await;
    read.unwrap_or_else(|_| Err(Status::deadline_exceeded("the request did not end")))
}

/// A reply in gRPC's format, in pieces that are not copied together.
struct Reply {
    pieces: std::vec::IntoIter<Bytes>,
    ended: bool,
}

impl http_body::Body for Reply {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(piece) = self.pieces.find(|piece| !piece.is_empty()) {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        if std::mem::replace(&mut self.ended, true) {
            return Poll::Ready(None);
        }
        let mut trailers = HeaderMap::with_capacity(1);
        trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}
