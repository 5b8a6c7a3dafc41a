//! Changes of the catalog: one a call, or many over one stream.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use swarm_proto::{Fault, fault, v1};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tonic::{Code, Status};

use super::{convert, status_of};
use crate::catalog::Catalog;
use crate::metrics::Metrics;

/// Requests of one stream that are being answered; more wait on the wire.
const AT_ONCE: usize = 64;
/// The same of all streams; more are refused. A hostile client holds at most so many messages.
const MOST_AT_ONCE: usize = 1_024;
/// Longest time that one may take.
const WITHIN: Duration = Duration::from_secs(30);

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
    running: Arc<Semaphore>,
    metrics: Option<Arc<Metrics>>,
}

impl Desk {
    pub(super) fn new(catalog: Arc<Catalog>) -> Self {
        Self { catalog, running: Arc::new(Semaphore::new(MOST_AT_ONCE)), metrics: None }
    }

    pub(super) fn counted(self, metrics: Arc<Metrics>) -> Self {
        Self { metrics: Some(metrics), ..self }
    }

    /// An answer to each request, as they are ready. Ends with the stream, with an error if that ended with one.
    pub(super) fn answer_all<S: Stream<Item = Result<v1::MutateRequest, Status>> + Send>(
        &self,
        requests: S,
    ) -> impl Stream<Item = Result<v1::MutateAnswer, Status>> + Send + use<S> {
        let desk = self.clone();
        // What the stream was opened for; it may outlive an import.
        let swarm = self.catalog.swarm_id();
        let each = move |request: Result<v1::MutateRequest, Status>| {
            let desk = desk.clone();
            async move {
                let request = request?;
                if desk.catalog.swarm_id() != swarm {
                    return Err(fault::to_status(
                        Fault::OtherSwarm,
                        "another catalog was imported here: connect again",
                    ));
                }
                Ok(desk.answer_one(request).await)
            }
        };
        requests.map(each).buffer_unordered(AT_ONCE)
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
