//! The next link of a pipeline: passes the frames of one Store on to another seeder.
//!
//! Invariant: whatever the other does, every seeder of the forward list has exactly one entry in
//! [`Downstream::acks`], in order, with one outcome for each segment.

use std::num::NonZeroUsize;
use std::time::Duration;

use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;
use swarm_proto::v1::chunks_client::ChunksClient;
use swarm_proto::v1::store_frame::Frame;
use swarm_proto::{MAX_MESSAGE_BYTES, PeerId, convert, v1};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::{CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES};

/// Channels kept open to other seeders.
const MOST_CHANNELS: NonZeroUsize = NonZeroUsize::new(64).expect("64 is not zero");
/// Longest wait for a connection.
const CONNECT_WAIT: Duration = Duration::from_secs(3);
/// Frames that wait to be passed on: enough to cover a hiccup.
const FRAMES_WAITING: usize = 4;
/// Longest wait for the last link, to take a frame and to answer; each link before it waits so much
/// longer, so that one that hangs is blamed by its neighbour. With two links this must stay below the
/// 15 s after which an uploader gives up on the first seeder.
const LINK_WAIT: Duration = Duration::from_secs(4);
/// Characters of an address.
const MOST_ADDRESS: u64 = 255 + 6;

/// A seeder that bytes are passed on to.
#[derive(Debug, Clone)]
pub(super) struct Target {
    id: PeerId,
    address: String,
}

impl TryFrom<&v1::Target> for Target {
    type Error = Status;
    fn try_from(message: &v1::Target) -> Result<Self, Status> {
        convert::within("length of forward.address", message.address.len() as u64, 1, MOST_ADDRESS)?;
        Ok(Self { id: convert::peer_id("forward.peer_id", &message.peer_id)?, address: message.address.clone() })
    }
}

/// Connections to other seeders, one for each address.
pub(crate) struct Forward {
    channels: Mutex<LruCache<String, Channel>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Forward {
    pub(crate) fn new(tasks: TaskTracker, stop: CancellationToken) -> Self {
        Self { channels: Mutex::new(LruCache::new(MOST_CHANNELS)), tasks, stop }
    }

    fn channel(&self, address: &str) -> Result<Channel, String> {
        if let Some(channel) = self.channels.lock().get(address) {
            return Ok(channel.clone());
        }
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|_| format!("{address:?} is not host:port"))?
            .connect_timeout(CONNECT_WAIT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(10))
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        let channel = endpoint.connect_lazy();
        self.channels.lock().put(address.to_owned(), channel.clone());
        Ok(channel)
    }
}

/// One call of Store to the next seeder; nothing if there is none.
pub(super) struct Downstream {
    targets: Vec<Target>,
    segments: usize,
    frames: Option<mpsc::Sender<v1::StoreFrame>>,
    reply: Option<oneshot::Receiver<Result<v1::StoreReply, String>>>,
    failure: String,
}

impl Downstream {
    /// Call the first of `targets`, giving it the rest.
    pub(super) fn open(forward: &Forward, header: &v1::StoreHeader, targets: &[Target], segments: usize) -> Self {
        let targets = targets.to_vec();
        let mut downstream = Self { targets, segments, frames: None, reply: None, failure: String::new() };
        let Some(first) = downstream.targets.first() else { return downstream };
        let channel = match forward.channel(&first.address) {
            Ok(channel) => channel,
            Err(reason) => {
                downstream.failure = reason;
                return downstream;
            }
        };
        let (frames, passed) = mpsc::channel(FRAMES_WAITING);
        let (replied, reply) = oneshot::channel();
        let rest = v1::StoreHeader { forward: header.forward[1..].to_vec(), ..header.clone() };
        frames.try_send(v1::StoreFrame { frame: Some(Frame::Header(rest)) }).expect("the channel is empty");
        let stop = forward.stop.clone();
        forward.tasks.spawn(async move {
            let mut client = ChunksClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
            let called = tokio::select! {
                called = client.store(ReceiverStream::new(passed)) => called,
                () = stop.cancelled() => Err(Status::unavailable("this seeder is stopping")),
            };
            let result = called.map(tonic::Response::into_inner).map_err(|status| status.message().to_owned());
            let _ = replied.send(result);
        });
        (downstream.frames, downstream.reply) = (Some(frames), Some(reply));
        downstream
    }

    /// Pass a frame on; one that cannot take it is given up.
    pub(super) async fn pass(&mut self, data: Bytes) {
        let Some(frames) = &self.frames else { return };
        let frame = v1::StoreFrame { frame: Some(Frame::Data(data)) };
        let wait = self.patience();
        match frames.send_timeout(frame, wait).await {
            Ok(()) => {}
            Err(mpsc::error::SendTimeoutError::Closed(_)) => self.frames = None,
            Err(mpsc::error::SendTimeoutError::Timeout(_)) => {
                // Its call hangs: do not wait for its reply either.
                (self.frames, self.reply) = (None, None);
                self.failure = format!("took nothing for {wait:?}");
            }
        }
    }

    /// How long the next link may take over one thing.
    fn patience(&self) -> Duration {
        LINK_WAIT.saturating_mul(u32::try_from(self.targets.len() + 1).unwrap_or(u32::MAX))
    }

    /// No more frames.
    pub(super) fn end(&mut self) {
        self.frames = None;
    }

    /// What the targets said; call after [`Self::end`].
    pub(super) async fn acks(self) -> Vec<v1::StoreAck> {
        let Some(first) = self.targets.first() else { return Vec::new() };
        let wait = self.patience();
        let mut failure = self.failure;
        let mut reply = v1::StoreReply::default();
        if let Some(waiting) = self.reply {
            match tokio::time::timeout(wait, waiting).await {
                Ok(Ok(Ok(answered))) => reply = answered,
                Ok(Ok(Err(reason))) => failure = reason,
                Ok(Err(_)) => failure = "the call ended without a reply".to_owned(),
                Err(_) => failure = format!("no reply for {wait:?}"),
            }
        }
        if !failure.is_empty() {
            tracing::warn!(peer = %first.id, address = first.address, reason = failure, "pass segments on");
        }
        let mut acks = reply.acks.into_iter();
        self.targets
            .iter()
            .map(|target| {
                let ack = acks
                    .next()
                    .filter(|ack| ack.peer_id.as_ref() == target.id.as_bytes() && ack.outcomes.len() == self.segments);
                ack.unwrap_or_else(|| v1::StoreAck {
                    peer_id: target.id.to_wire(),
                    outcomes: vec![v1::StoreOutcome::Unavailable.into(); self.segments],
                    message: match failure.is_empty() {
                        true => "another seeder answers at its address".to_owned(),
                        false => format!("{} cannot be reached: {failure}", first.address),
                    },
                    process: 0,
                })
            })
            .collect()
    }
}
