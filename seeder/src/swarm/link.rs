//! The way to one peer: its connection, and the one call that carries nearly all bytes.
//!
//! tonic's channel is kept as it is and reconnects by itself. Fetch does not go through the generated
//! client, which copies each reply into one buffer: here the bytes stay where the connection read them, and
//! are counted while they come, because the engine wants to know of them before a whole reply is here, and
//! because a peer that sends without end must be stopped.

use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::header::{CONTENT_TYPE, HeaderValue, TE};
use http::{Method, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use prost::Message;
use swarm_proto::v1::chunks_client::ChunksClient;
use swarm_proto::{CHUNK_BYTES, MAX_MESSAGE_BYTES, MAX_RUN_CHUNKS, v1};
use tokio::time::Instant;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::SwarmConfig;
use crate::grpc;

/// The one call that does not go through the generated client.
const FETCH: &str = "/swarm.v1.Chunks/Fetch";

/// HTTP/2 flow control: one reply never waits for it, and all that are outstanding at a peer fit.
const STREAM_WINDOW: u32 = 8 << 20;
const CONNECTION_WINDOW: u32 = 32 << 20;

/// Largest HTTP/2 frame that we take: a run travels in one, so it lies in one piece.
const MAX_FRAME: u32 = MAX_RUN_CHUNKS * CHUNK_BYTES;

/// What a reply may have beyond the bytes asked for: its framing, the tree of the longest segment, and a
/// chunk, by which a segment may be longer than a lying manifest says.
const SLACK: u64 = 160 * 1024;

/// A connection to one peer; clones share it.
#[derive(Clone)]
pub(super) struct Link {
    channel: Channel,
}

impl Link {
    /// To `host:port`. Nothing is connected before the first call.
    ///
    /// Errors: the address is none.
    pub(super) fn new(address: &str, config: &SwarmConfig) -> Result<Self, String> {
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
        Ok(Self { channel })
    }

    /// Fetch; what comes is counted into `progress`, and a reply of much more than `most_bytes` is cut off.
    pub(super) async fn fetch(
        &self,
        request: &v1::FetchRequest,
        progress: &Progress,
        most_bytes: u64,
    ) -> Result<v1::FetchReply, Status> {
        let mut channel = self.channel.clone();
        poll_fn(|context| channel.poll_ready(context)).await.map_err(broken)?;
        let mut call = http::Request::new(Body::new(Full::new(grpc::framed(&request.encode_to_vec(), 0))));
        *call.method_mut() = Method::POST;
        *call.uri_mut() = Uri::from_static(FETCH);
        call.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(grpc::CONTENT_TYPE));
        call.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
        let (head, mut body) = channel.call(call).await.map_err(broken)?.into_parts();
        progress.head_came();
        let mut status = Status::from_header_map(&head.headers);
        let mut message = grpc::Pieces::default();
        let mut left = most_bytes + SLACK;
        while let Some(frame) = body.frame().await {
            match frame?.into_data() {
                Ok(data) => {
                    progress.came(data.len() as u64);
                    left = left
                        .checked_sub(data.len() as u64)
                        .ok_or_else(|| Status::out_of_range("the reply is longer than what was asked"))?;
                    message.push(data);
                }
                Err(frame) => status = status.or_else(|| Status::from_header_map(frame.trailers_ref()?)),
            }
        }
        match status {
            Some(status) if status.code() == Code::Ok => message.decode(),
            Some(status) => Err(status),
            None if head.status == StatusCode::OK => Err(Status::unavailable("the reply broke off")),
            None => Err(Status::unavailable(format!("the reply is HTTP {}, not gRPC", head.status))),
        }
    }

    /// A client for small questions.
    pub(super) fn plain(&self) -> ChunksClient<Channel> {
        ChunksClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }
}

/// How far one reply is.
#[derive(Debug)]
pub(super) struct Progress {
    sent: Instant,
    bytes: AtomicU64,
    /// Microseconds from the request to the reply's head, plus one; 0: it has not come.
    head_us: AtomicU64,
}

impl Progress {
    /// Of a request that is sent now.
    pub(super) fn new() -> Self {
        Self { sent: Instant::now(), bytes: AtomicU64::new(0), head_us: AtomicU64::new(0) }
    }

    /// Bytes of the reply that came.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// From the request to the head of the reply.
    pub(super) fn latency(&self) -> Option<Duration> {
        self.head_us.load(Ordering::Relaxed).checked_sub(1).map(Duration::from_micros)
    }

    fn came(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn head_came(&self) {
        let passed = u64::try_from(self.sent.elapsed().as_micros()).unwrap_or(u64::MAX - 1);
        self.head_us.store(passed.saturating_add(1), Ordering::Relaxed);
    }
}

/// The connection failed, not the peer.
fn broken(error: tonic::transport::Error) -> Status {
    Status::from_error(error.into())
}
