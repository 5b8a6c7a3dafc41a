//! Replies built by hand, frame by frame: what a decent gRPC library would not let one send.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use parking_lot::Mutex;
use prost::Message;
use tokio::time::Instant;
use tonic::body::Body;

/// Bytes of one HTTP/2 data frame of a fake's reply.
const FRAME: usize = 64 * 1024;

/// A link of limited rate that all replies of a peer share.
#[derive(Debug, Default)]
pub(super) struct Pace {
    state: Mutex<(Option<u64>, Option<Instant>)>,
}

impl Pace {
    pub(super) fn set(&self, bytes_per_second: Option<u64>) {
        self.state.lock().0 = bytes_per_second;
    }

    /// When `bytes` more will have passed.
    fn passes(&self, bytes: usize) -> Option<Instant> {
        let mut state = self.state.lock();
        let rate = state.0?;
        let start = state.1.unwrap_or_else(Instant::now).max(Instant::now());
        let end = start + Duration::from_secs_f64(bytes as f64 / rate as f64);
        state.1 = Some(end);
        Some(end)
    }
}

/// A gRPC message with its header, which may declare any length.
pub(super) fn framed(message: &impl Message, declared: Option<u32>) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(length + 5);
    bytes.put_u8(0);
    bytes.put_u32(declared.unwrap_or(u32::try_from(length).expect("a reply is short")));
    message.encode(&mut bytes).expect("there is room");
    bytes.freeze()
}

/// The message of a request.
pub(super) async fn request<M: Message + Default>(body: Body) -> Option<M> {
    let bytes = body.collect().await.ok()?.to_bytes();
    M::decode(bytes.get(5..)?).ok()
}

/// A reply that ends with a status and no message.
pub(super) fn status(code: tonic::Code, words: &str) -> http::Response<Body> {
    tonic::Status::new(code, words).into_http()
}

/// A decent reply, at the peer's pace.
pub(super) fn whole(bytes: Bytes, pace: Arc<Pace>) -> http::Response<Body> {
    let frames = futures::stream::unfold((bytes, pace), |(mut bytes, pace)| async move {
        if bytes.is_empty() {
            return None;
        }
        let frame = bytes.split_to(bytes.len().min(FRAME));
        if let Some(at) = pace.passes(frame.len()) {
            tokio::time::sleep_until(at).await;
        }
        Some((Frame::data(frame), (bytes, pace)))
    });
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
    respond(frames.chain(futures::stream::once(std::future::ready(Frame::trailers(trailers)))))
}

/// A reply that comes in drops.
pub(super) fn dripped(bytes: Bytes, drop_bytes: usize, every: Duration) -> http::Response<Body> {
    respond(futures::stream::unfold(bytes, move |mut bytes| async move {
        tokio::time::sleep(every).await;
        let frame = bytes.split_to(bytes.len().min(drop_bytes));
        (!frame.is_empty()).then(|| (Frame::data(frame), bytes))
    }))
}

/// A reply that goes on for ever: `bytes`, then zeros.
pub(super) fn endless(bytes: Bytes) -> http::Response<Body> {
    let first = futures::stream::once(std::future::ready(Frame::data(bytes)));
    let zeros = futures::stream::repeat_with(|| Frame::data(Bytes::from_static(&[0; 4096])));
    respond(first.chain(zeros))
}

/// A reply that breaks off in the middle.
pub(super) fn broken(bytes: Bytes) -> http::Response<Body> {
    let frames = futures::stream::iter([Ok(Frame::data(bytes)), Err(std::io::Error::other("the peer is gone"))]);
    http::Response::builder()
        .header("content-type", "application/grpc")
        .body(Body::new(StreamBody::new(frames)))
        .expect("the head is right")
}

fn respond(frames: impl futures::Stream<Item = Frame<Bytes>> + Send + 'static) -> http::Response<Body> {
    let frames = frames.map(Ok::<_, std::convert::Infallible>);
    http::Response::builder()
        .header("content-type", "application/grpc")
        .body(Body::new(StreamBody::new(frames)))
        .expect("the head is right")
}
