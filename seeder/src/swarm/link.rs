//! The way to one peer: its connection, and a count of what comes over it while it comes.
//!
//! tonic's channel is kept as it is and reconnects by itself; the count sits between it and the decoder,
//! because the engine wants to know of bytes before a whole reply is here, and because a peer that sends
//! without end must be stopped.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http_body::{Body, Frame, SizeHint};
use swarm_proto::MAX_MESSAGE_BYTES;
use swarm_proto::v1::chunks_client::ChunksClient;
use tokio::time::Instant;
use tonic::Status;
use tonic::codegen::Service;
use tonic::transport::{Channel, Endpoint};

use super::SwarmConfig;

/// HTTP/2 flow control: one reply never waits for it, and all that are outstanding at a peer fit.
const STREAM_WINDOW: u32 = 8 << 20;
const CONNECTION_WINDOW: u32 = 32 << 20;

/// Largest HTTP/2 frame that we take. A run travels in a few of them.
const MAX_FRAME: u32 = 256 << 10;

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

    /// A client whose replies are counted into `progress` and end at `most_bytes`.
    pub(super) fn counted(&self, progress: Arc<Progress>, most_bytes: u64) -> ChunksClient<Counted> {
        let counted = Counted { channel: self.channel.clone(), progress, most_bytes: most_bytes + SLACK };
        ChunksClient::new(counted).max_decoding_message_size(MAX_MESSAGE_BYTES)
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

    fn head_came(&self) {
        let passed = u64::try_from(self.sent.elapsed().as_micros()).unwrap_or(u64::MAX - 1);
        self.head_us.store(passed.saturating_add(1), Ordering::Relaxed);
    }
}

/// A channel whose replies are counted.
#[derive(Clone)]
pub(super) struct Counted {
    channel: Channel,
    progress: Arc<Progress>,
    most_bytes: u64,
}

impl Service<http::Request<tonic::body::Body>> for Counted {
    type Response = http::Response<CountedBody>;
    type Error = tonic::transport::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.channel.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let (progress, left) = (Arc::clone(&self.progress), self.most_bytes);
        let reply = self.channel.call(request);
        Box::pin(async move {
            let reply = reply.await?;
            progress.head_came();
            Ok(reply.map(|body| CountedBody { body, progress, left }))
        })
    }
}

/// A reply that counts its bytes and ends in an error when there are too many.
pub(super) struct CountedBody {
    body: tonic::body::Body,
    progress: Arc<Progress>,
    left: u64,
}

impl Body for CountedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            let bytes = data.len() as u64;
            self.progress.bytes.fetch_add(bytes, Ordering::Relaxed);
            match self.left.checked_sub(bytes) {
                Some(left) => self.left = left,
                None => return Poll::Ready(Some(Err(Status::out_of_range("the reply is longer than what was asked")))),
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
