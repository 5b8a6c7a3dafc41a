//! Changes of the catalog: one a call, or many over one stream.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::Stream;
use swarm_proto::answering::Answering;
use swarm_proto::seats::{Seat, Seats};
use swarm_proto::{Fault, fault, v1};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Code, Status};

use super::{convert, status_of};
use crate::catalog::Catalog;
use crate::metrics::Metrics;

/// Streams at once, and of one address. A mount keeps one, and whoever has none makes calls. One can make us hold the
/// requests that are being answered, each of at most [`swarm_proto::MAX_STREAMED_CHANGE_BYTES`], one that is half here,
/// and its window.
const MOST_STREAMS: (usize, usize) = (1_024, 128);
/// Requests of one stream that are being answered, or whose answers were not taken; more wait on the wire.
const AT_ONCE: usize = 64;
/// Requests of all streams that are being answered; more are refused.
const MOST_AT_ONCE: usize = 1_024;
/// Longest time that one may take.
const WITHIN: Duration = Duration::from_secs(30);
/// Longest time that a stream may be without a whole request: its seat is for others then. Longer than [`WITHIN`], so
/// that one whose answers are slow is not taken for one that nobody reads.
const SILENCE: Duration = Duration::from_secs(60);

/// Do what a request asks for.
pub(super) async fn answer(catalog: &Catalog, request: v1::MutateRequest) -> Result<v1::MutateReply, Status> {
    let durable = request.durable;
    let mutated = catalog.mutate(convert::request(request)?).await.map_err(status_of)?;
    if durable {
        catalog.sync().await.map_err(|error| {
            tracing::error!(%error, "sync the catalog");
            Status::unavailable(format!("the change is made, but not on the disk: {error}"))
        })?;
    }
    Ok(convert::reply(mutated))
}

/// Answers requests that come over streams.
#[derive(Clone)]
pub(super) struct Desk {
    catalog: Arc<Catalog>,
    seats: Seats,
    running: Arc<Semaphore>,
    metrics: Option<Arc<Metrics>>,
}

impl Desk {
    pub(super) fn new(catalog: Arc<Catalog>) -> Self {
        let seats = Seats::new(MOST_STREAMS.0, MOST_STREAMS.1);
        Self { catalog, seats, running: Arc::new(Semaphore::new(MOST_AT_ONCE)), metrics: None }
    }

    pub(super) fn counted(self, metrics: Arc<Metrics>) -> Self {
        Self { metrics: Some(metrics), ..self }
    }

    /// A seat for a stream from `address`; who has none is told to make calls.
    pub(super) fn seat(&self, address: Option<IpAddr>) -> Result<Seat, Status> {
        let seat = self.seats.take(address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)));
        seat.ok_or_else(|| Status::resource_exhausted("too many streams of changes: call Mutate instead"))
    }

    /// An answer to each request, as they are ready. Ends with the stream, with an error if that ended with one, and
    /// after [`SILENCE`].
    pub(super) fn answer_all(
        &self,
        requests: impl Stream<Item = Result<v1::MutateRequest, Status>> + Send + 'static,
        seat: Seat,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> impl Stream<Item = Result<v1::MutateAnswer, Status>> + Send + 'static {
        let desk = self.clone();
        // What the stream was opened for; it may outlive an import.
        let swarm = self.catalog.swarm_id();
        let each = move |request: v1::MutateRequest| {
            let desk = desk.clone();
            async move {
                if desk.catalog.swarm_id() != swarm {
                    return Err(fault::to_status(
                        Fault::OtherSwarm,
                        "another catalog was imported here: connect again",
                    ));
                }
                Ok(desk.answer_one(request).await)
            }
        };
        Answering { at_once: AT_ONCE, silence: SILENCE, stop, tasks }.start(requests, seat, each)
    }

    async fn answer_one(&self, request: v1::MutateRequest) -> v1::MutateAnswer {
        let (request_id, began) = (request.request_id.clone(), Instant::now());
        let answered = match self.running.try_acquire() {
            Err(_) => Err(Status::unavailable("too many changes at the same time: try again")),
            Ok(_permit) => timeout(WITHIN, answer(&self.catalog, request))
                .await
                .unwrap_or_else(|_| Err(Status::deadline_exceeded(format!("no answer within {WITHIN:?}")))),
        };
        if let Some(metrics) = &self.metrics {
            let code = answered.as_ref().err().map_or(Code::Ok, Status::code);
            metrics.count_call("Mutate", code, began.elapsed());
        }
        message(request_id, answered)
    }
}

fn message(request_id: Bytes, answered: Result<v1::MutateReply, Status>) -> v1::MutateAnswer {
    let refused = |status: Status| (fault::of_status(&status), status.message().to_owned());
    let (reply, (fault, message)) = match answered {
        Ok(reply) => (Some(reply), (Fault::Unspecified, String::new())),
        Err(status) => (None, refused(status)),
    };
    v1::MutateAnswer { request_id, fault: fault.into(), message, reply }
}
