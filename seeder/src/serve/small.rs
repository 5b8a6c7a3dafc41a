//! Takes small segments: many requests over one stream, for which a call each would cost more than the bytes.

use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use swarm_proto::answering::Answering;
use swarm_proto::convert::within;
use swarm_proto::seats::Seat;
use swarm_proto::{PeerId, v1};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Status, Streaming};

use super::counters::Counters;
use super::receive::{self, Header, Incoming};
use crate::store::ReplicaSink;

/// Bytes of segments in one request.
pub(crate) const MOST_SMALL_BYTES: usize = 128 * 1024;
/// Requests of one stream that are being answered, or whose answers were not taken; more wait on the wire.
const AT_ONCE: usize = 16;
/// Longest time that a stream may be without a whole request: its seat is for others then.
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
    /// An answer to each request, as they are ready. Nothing is read any more after `stop`; what was read is answered.
    pub(super) fn answer_all(
        self,
        requests: Streaming<v1::StoreSmallRequest>,
        seat: Option<Arc<Seat>>,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> impl Stream<Item = Result<v1::StoreSmallAnswer, Status>> + Send + 'static {
        let each = move |request: v1::StoreSmallRequest| {
            let small = self.clone();
            async move {
                let number = request.number;
                let stored = small.store(request).await;
                small.counters.answered("store", &stored);
                Ok(match stored {
                    Ok(ack) => v1::StoreSmallAnswer { number, ack: Some(ack), refused: String::new() },
                    Err(status) => v1::StoreSmallAnswer { number, ack: None, refused: status.message().to_owned() },
                })
            }
        };
        Answering { at_once: AT_ONCE, silence: SILENCE, stop, tasks }.start(requests, seat, each)
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
