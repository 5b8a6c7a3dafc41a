//! Around every call: counted, timed, and ended when it takes too long.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{Request, Response};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tonic::{Code, Status};
use tower::{Layer, Service};

use crate::metrics::Metrics;

/// Longest time that a call may take which has neither a stream to read nor to write.
const UNARY_WITHIN: Duration = Duration::from_secs(30);

/// Calls that stream, and so have deadlines of their own.
const STREAMED: [&str; 7] =
    ["Announce", "Watch", "MutateStream", "Export", "Import", "PutManifest", "ServerReflectionInfo"];

/// Unary calls; anything else that a client asks for is counted as `other`, so that invented names do
/// not fill the metrics.
const UNARY: [&str; 16] = [
    "Locate",
    "Place",
    "Report",
    "Peers",
    "Status",
    "Lookup",
    "Resolve",
    "GetNode",
    "LeaseNodes",
    "ReadDir",
    "GetManifest",
    "GetManifests",
    "Mutate",
    "StatFs",
    "Check",
    "List",
];

/// Unary calls at a time. Answers take microseconds, commits milliseconds, so honest clients do not come
/// near it; a hostile one that sends the halves of many messages holds at most so many of them.
const MOST_CALLS: usize = 2_048;

/// Wraps every service.
#[derive(Clone)]
pub struct ObserveLayer {
    metrics: Arc<Metrics>,
    running: Arc<Semaphore>,
}

impl ObserveLayer {
    /// Counts into `metrics`.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, running: Arc::new(Semaphore::new(MOST_CALLS)) }
    }
}

impl<S> Layer<S> for ObserveLayer {
    type Service = Observe<S>;
    fn layer(&self, inner: S) -> Observe<S> {
        Observe { inner, metrics: self.metrics.clone(), running: self.running.clone() }
    }
}

/// A service that is observed.
#[derive(Clone)]
pub struct Observe<S> {
    inner: S,
    metrics: Arc<Metrics>,
    running: Arc<Semaphore>,
}

impl<S, A, B> Service<Request<A>> for Observe<S>
where
    S: Service<Request<A>, Response = Response<B>>,
    S::Future: Send + 'static,
    B: Default,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<B>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let (method, streamed) = method_of(request.uri().path());
        let (answer, metrics, began) = (self.inner.call(request), self.metrics.clone(), Instant::now());
        let permit = if streamed { None } else { Some(self.running.clone().try_acquire_owned()) };
        Box::pin(async move {
            let result = match permit {
                None => answer.await,
                Some(Err(_)) => Ok(Status::unavailable("too many calls at the same time: try again").into_http()),
                Some(Ok(_permit)) => match timeout(UNARY_WITHIN, answer).await {
                    Ok(result) => result,
                    Err(_) => Ok(Status::deadline_exceeded(format!("no answer within {UNARY_WITHIN:?}")).into_http()),
                },
            };
            let code = match &result {
                Ok(response) => code_of(response),
                Err(_) => Code::Internal,
            };
            metrics.count_call(method, code, began.elapsed());
            result
        })
    }
}

/// The name of a method, and whether it streams.
fn method_of(path: &str) -> (&'static str, bool) {
    let name = path.rsplit('/').next().unwrap_or_default();
    let find = |names: &[&'static str]| names.iter().find(|known| **known == name).copied();
    match (find(&STREAMED), find(&UNARY)) {
        (Some(known), _) => (known, true),
        (None, Some(known)) => (known, false),
        (None, None) => ("other", false),
    }
}

/// A refusal stands in the headers; a stream that fails later counts as begun.
fn code_of<B>(response: &Response<B>) -> Code {
    match response.headers().get("grpc-status") {
        Some(code) => Code::from_bytes(code.as_bytes()),
        None => Code::Ok,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_of_our_services_has_a_name_of_its_own() {
        let descriptors = String::from_utf8_lossy(swarm_proto::v1::DESCRIPTORS);
        for name in UNARY.iter().chain(&STREAMED[..6]).filter(|name| !["Check", "List"].contains(name)) {
            assert!(descriptors.contains(name), "{name} is no method");
            assert_eq!(method_of(&format!("/swarm.v1.X/{name}")).0, *name);
        }
        assert_eq!(method_of("/swarm.v1.Holders/Invented"), ("other", false));
        assert_eq!(method_of(""), ("other", false));
    }
}
