//! Takes small segments: many requests over one stream, for which a call each would cost more than the bytes.

use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use swarm_proto::convert::within;
use swarm_proto::{PeerId, v1};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::counters::Counters;
use super::receive::{self, Header, Incoming};
use super::seats::Seat;
use crate::store::ReplicaSink;

/// Bytes of segments in one request.
pub(crate) const MOST_SMALL_BYTES: usize = 128 * 1024;
/// Requests of one stream that are being answered; more wait on the wire.
const AT_ONCE: usize = 16;
/// Longest silence of a stream: its seat is for others then.
const SILENCE: Duration = Duration::from_secs(60);

/// Answers such requests.
#[derive(Clone)]
pub(super) struct Small {
    pub(super) me: PeerId,
    pub(super) process: u64,
    pub(super) sink: Arc<dyn ReplicaSink>,
    pub(super) counters: Counters,
}

impl Small {
    /// An answer to each request, as they are ready. Nothing is read any more after `stop`; what has come is answered.
    pub(super) fn answer_all(
        self,
        requests: Streaming<v1::StoreSmallRequest>,
        seat: Option<Arc<Seat>>,
        stop: CancellationToken,
    ) -> impl Stream<Item = Result<v1::StoreSmallAnswer, Status>> + Send {
        let come = futures::stream::unfold((requests, seat), |(mut requests, seat)| async move {
            let next = timeout(SILENCE, requests.message()).await.ok()?.transpose()?;
            Some((next, (requests, seat)))
        });
        let each = move |request: Result<v1::StoreSmallRequest, Status>| {
            let small = self.clone();
            async move {
                let request = request?;
                let number = request.number;
                let stored = small.store(request).await;
                small.counters.answered("store", &stored);
                Ok(match stored {
                    Ok(ack) => v1::StoreSmallAnswer { number, ack: Some(ack), refused: String::new() },
                    Err(status) => v1::StoreSmallAnswer { number, ack: None, refused: status.message().to_owned() },
                })
            }
        };
        come.take_until(stop.cancelled_owned()).map(each).buffer_unordered(AT_ONCE)
    }

    async fn store(&self, request: v1::StoreSmallRequest) -> Result<v1::StoreAck, Status> {
        let message = request.header.ok_or_else(|| Status::invalid_argument("there is no header"))?;
        let header = Header::try_from(&message)?;
        if !header.forward.is_empty() {
            return Err(Status::invalid_argument("small segments are not passed on: send them to each seeder"));
        }
        within("length of data", request.data.len() as u64, 1, MOST_SMALL_BYTES as u64)?;
        let mut incoming = Incoming::new(self.sink.as_ref(), &header.segments);
        if request.data.len() as u64 != incoming.missing_bytes() {
            let message = format!("{} bytes, the header has {}", request.data.len(), incoming.missing_bytes());
            return Err(Status::invalid_argument(message));
        }
        incoming.take(request.data).await;
        let outcomes = incoming.commit(header.level, header.keep).await;
        self.counters.stored_bytes.inc_by(receive::held_bytes(&header.segments, &outcomes));
        Ok(receive::ack(self.me, self.process, &outcomes))
    }
}
