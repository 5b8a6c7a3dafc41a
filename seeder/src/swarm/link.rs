//! The way to one peer: its connection, and the calls that carry nearly all bytes.
//!
//! tonic's channel is kept as it is and reconnects by itself. Fetch and FetchMany do not go through the
//! generated client, which copies each reply into one buffer: here the bytes stay where the connection read
//! them, and are counted while they come, because the engine wants to know of them before a whole reply is
//! here, and because a peer that sends without end must be stopped.
//!
//! Small fetches that are asked for at the same moment travel as one FetchMany: a round trip costs more than
//! the bytes of a small file.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, join_all};
use http::header::{CONTENT_TYPE, HeaderValue, TE};
use http::{Method, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use parking_lot::Mutex;
use prost::Message;
use swarm_proto::v1::chunks_client::ChunksClient;
use swarm_proto::{CHUNK_BYTES, ChunkRange, MAX_MESSAGE_BYTES, MAX_RUN_CHUNKS, PeerId, Segment, v1};
use tokio::sync::oneshot;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::SwarmConfig;
use super::borrow::Lender;
use super::progress::Progress;
use crate::grpc;

/// The calls that do not go through the generated client.
const FETCH: &str = "/swarm.v1.Chunks/Fetch";
const FETCH_MANY: &str = "/swarm.v1.Chunks/FetchMany";

/// Most chunks of a fetch that may travel with others, most bytes with its tree, most chunks of those that
/// travel together, and most fetches.
const SMALL_CHUNKS: u32 = 4;
const SMALL_BYTES: u64 = 80 * 1024;
const MANY_CHUNKS: u32 = MAX_RUN_CHUNKS;
const MANY_FETCHES: usize = 64;

/// HTTP/2 flow control: one reply never waits for it, and all that are outstanding at a peer fit.
const STREAM_WINDOW: u32 = 8 << 20;
const CONNECTION_WINDOW: u32 = 32 << 20;

/// Largest HTTP/2 frame that we take: a run travels in one, so it lies in one piece.
const MAX_FRAME: u32 = MAX_RUN_CHUNKS * CHUNK_BYTES;

/// What one answer of several may have beyond its bytes and its tree.
const FRAMING: u64 = 1024;

/// What the others of a batch are told if one answer ran over.
const RAN_OVER: &str = "an answer before this one was longer than what was asked";

/// What a reply may have beyond the bytes asked for: its framing, the tree of the longest segment, and a
/// chunk, by which a segment may be longer than a lying manifest says.
const SLACK: u64 = 160 * 1024;

/// A connection to one peer; clones share it.
#[derive(Clone)]
pub(super) struct Link {
    /// None: all goes over the network.
    lender: Option<Lender>,
    channel: Channel,
    small: Arc<Mutex<Vec<Small>>>,
}

/// A small fetch that waits for company.
struct Small {
    request: v1::FetchRequest,
    progress: Arc<Progress>,
    most_bytes: u64,
    answer: oneshot::Sender<Result<v1::FetchReply, Status>>,
}

impl Link {
    /// To a peer at `host:port`. Nothing is connected before the first call.
    ///
    /// Errors: the address is none.
    pub(super) fn new(peer: PeerId, address: &str, config: &SwarmConfig) -> Result<Self, String> {
        let lender = config.local_reads.then(|| Lender::new(peer, address));
        let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| error.to_string())?;
        let channel = endpoint
            .connect_timeout(config.connect_timeout)
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(MAX_FRAME)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(5))
            .connect_lazy();
        Ok(Self { lender, channel, small: Arc::default() })
    }

    /// Fetch from a segment; what comes is counted into `progress`, and a reply of much more than `most_bytes` is cut
    /// off.
    ///
    /// Shape: `spawn` runs what must go on although the caller goes away.
    pub(super) async fn fetch(
        &self,
        segment: Segment,
        request: v1::FetchRequest,
        progress: &Arc<Progress>,
        most_bytes: u64,
        spawn: impl FnOnce(BoxFuture<'static, ()>),
    ) -> Result<v1::FetchReply, Status> {
        if let Some(lender) = &self.lender {
            let chunks = ChunkRange::new(request.first_chunk, request.first_chunk + request.chunk_count);
            let bytes = segment.bytes_of(chunks).len();
            if let Some(answer) = lender.fetch(segment, &request, bytes, progress).await {
                return answer;
            }
        }
        if request.chunk_count > SMALL_CHUNKS || most_bytes > SMALL_BYTES {
            return self.fetch_one(&request, progress, most_bytes).await;
        }
        let (answer, answered) = oneshot::channel();
        let small = Small { request, progress: Arc::clone(progress), most_bytes, answer };
        let first = {
            let mut waiting = self.small.lock();
            waiting.push(small);
            waiting.len() == 1
        };
        if first {
            let link = self.clone();
            spawn(Box::pin(async move { link.send_small().await }));
        }
        answered.await.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time, or stopping")))
    }

    /// Send the small fetches that wait, and those that are about to.
    async fn send_small(self) {
        tokio::task::yield_now().await;
        let waiting = std::mem::take(&mut *self.small.lock());
        let mut batches: Vec<Vec<Small>> = Vec::new();
        let mut room = 0;
        for small in waiting.into_iter().filter(|small| !small.answer.is_closed()) {
            let chunks = small.request.chunk_count;
            match batches.last_mut() {
                Some(batch) if chunks <= room && batch.len() < MANY_FETCHES => batch.push(small),
                _ => {
                    batches.push(vec![small]);
                    room = MANY_CHUNKS;
                }
            }
            room -= chunks;
        }
        join_all(batches.into_iter().map(|batch| self.send_batch(batch))).await;
    }

    async fn send_batch(&self, mut batch: Vec<Small>) {
        if let [_] = batch[..]
            && let Some(Small { request, progress, most_bytes, mut answer }) = batch.pop()
        {
            // Whoever goes away takes the call along.
            return tokio::select! {
                reply = self.fetch_one(&request, &progress, most_bytes) => drop(answer.send(reply)),
                () = answer.closed() => {}
            };
        }
        let mut batch = VecDeque::from(batch);
        let Err(status) = self.fetch_many(&mut batch).await else { return };
        for (index, small) in batch.into_iter().enumerate() {
            // Only the first can be the one that ran over.
            let status = match status.code() {
                Code::OutOfRange if index > 0 => Status::unavailable(RAN_OVER),
                _ => status.clone(),
            };
            // Who went away does not hear it.
            drop(small.answer.send(Err(status)));
        }
    }

    /// Answer the fetches of `batch`, each as soon as its part of the reply came.
    async fn fetch_many(&self, batch: &mut VecDeque<Small>) -> Result<(), Status> {
        let fetches = batch.iter().map(|small| small.request.clone()).collect();
        let most_bytes = batch.iter().map(|small| small.most_bytes + FRAMING).sum();
        let request = v1::FetchManyRequest { fetches }.encode_to_vec();
        let mut reply = self.call(FETCH_MANY, &request, most_bytes).await?;
        batch.iter().for_each(|small| small.progress.head_came());
        let mut elements = grpc::Elements::default();
        while let Some(piece) = reply.next().await? {
            elements.push(piece);
            while let Some(outcome) = elements.next::<v1::FetchOutcome>().map_err(|status| unreadable(&status))? {
                let small = batch.pop_front().ok_or_else(|| Status::out_of_range("more answers than questions"))?;
                small.progress.came(outcome.encoded_len() as u64);
                let failed = || Status::new(Code::from(i32::try_from(outcome.code).unwrap_or(2)), outcome.message);
                drop(small.answer.send(outcome.reply.ok_or_else(failed)));
            }
        }
        match batch.is_empty() {
            true => Ok(()),
            false => Err(Status::unavailable("fewer answers than questions")),
        }
    }

    async fn fetch_one(
        &self,
        request: &v1::FetchRequest,
        progress: &Progress,
        most_bytes: u64,
    ) -> Result<v1::FetchReply, Status> {
        let mut reply = self.call(FETCH, &request.encode_to_vec(), most_bytes).await?;
        progress.head_came();
        let mut message = grpc::Pieces::default();
        while let Some(piece) = reply.next().await? {
            progress.came(piece.len() as u64);
            message.push(piece);
            if message.declared().is_some_and(|length| length > most_bytes + SLACK) {
                return Err(Status::out_of_range("the reply says that it is longer than what was asked"));
            }
        }
        message.decode().map_err(|status| unreadable(&status))
    }

    async fn call(&self, path: &'static str, request: &[u8], most_bytes: u64) -> Result<Coming, Status> {
        let mut channel = self.channel.clone();
        poll_fn(|context| channel.poll_ready(context)).await.map_err(broken)?;
        let mut call = http::Request::new(Body::new(Full::new(grpc::framed(request, 0))));
        *call.method_mut() = Method::POST;
        *call.uri_mut() = Uri::from_static(path);
        call.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(grpc::CONTENT_TYPE));
        call.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
        let (head, body) = channel.call(call).await.map_err(broken)?.into_parts();
        let status = Status::from_header_map(&head.headers);
        Ok(Coming { http: head.status, status, body, left: most_bytes + SLACK })
    }

    /// A client for small questions.
    pub(super) fn plain(&self) -> ChunksClient<Channel> {
        ChunksClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }
}

/// A reply that is coming.
struct Coming {
    http: StatusCode,
    status: Option<Status>,
    body: Body,
    left: u64,
}

impl Coming {
    /// The next piece of its message; none once it ended well.
    async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        while let Some(frame) = self.body.frame().await {
            match frame?.into_data() {
                Ok(data) => {
                    let left = self.left.checked_sub(data.len() as u64);
                    self.left = left.ok_or_else(|| Status::out_of_range("the reply is longer than what was asked"))?;
                    return Ok(Some(data));
                }
                Err(frame) => {
                    self.status = self.status.take().or_else(|| Status::from_header_map(frame.trailers_ref()?));
                }
            }
        }
        match self.status.take() {
            Some(status) if status.code() == Code::Ok => Ok(None),
            Some(status) => Err(status),
            None if self.http == StatusCode::OK => Err(Status::unavailable("the reply broke off")),
            None => Err(Status::unavailable(format!("the reply is HTTP {}, not gRPC", self.http))),
        }
    }
}

/// The connection failed, not the peer.
fn broken(error: tonic::transport::Error) -> Status {
    Status::from_error(error.into())
}

/// The peer sent something else than a reply: that says nothing of what it holds.
fn unreadable(status: &Status) -> Status {
    Status::unavailable(format!("its reply cannot be read: {}", status.message()))
}
