//! What a tracker shows Prometheus.
//!
//! Calls are counted as they end; everything else is read when it is asked for.

mod gauges;

use std::sync::Arc;
use std::time::Duration;

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry};
use tonic::Code;

use self::gauges::Gauges;
use crate::census::Census;

/// Counters of calls.
pub struct Metrics {
    registry: Registry,
    calls: IntCounterVec,
    seconds: HistogramVec,
}

impl Metrics {
    /// Counters, and gauges of what `census` counts.
    pub fn new(census: Arc<Census>) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let calls = IntCounterVec::new(
            Opts::new("swarm_tracker_calls_total", "Calls answered, by method and gRPC code"),
            &["method", "code"],
        )?;
        let buckets = prometheus::exponential_buckets(0.000_05, 4.0, 10)?;
        let seconds = HistogramVec::new(
            HistogramOpts::new("swarm_tracker_call_seconds", "Time to the answer (of a stream: to its begin)")
                .buckets(buckets),
            &["method"],
        )?;
        registry.register(Box::new(calls.clone()))?;
        registry.register(Box::new(seconds.clone()))?;
        registry.register(Box::new(Gauges::new(census)?))?;
        Ok(Self { registry, calls, seconds })
    }

    /// For the operator's endpoint.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// A call was answered.
    pub(crate) fn count_call(&self, method: &str, code: Code, took: Duration) {
        self.calls.with_label_values(&[method, code_name(code)]).inc();
        self.seconds.with_label_values(&[method]).observe(took.as_secs_f64());
    }
}

fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "cancelled",
        Code::Unknown => "unknown",
        Code::InvalidArgument => "invalid_argument",
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::NotFound => "not_found",
        Code::AlreadyExists => "already_exists",
        Code::PermissionDenied => "permission_denied",
        Code::ResourceExhausted => "resource_exhausted",
        Code::FailedPrecondition => "failed_precondition",
        Code::Aborted => "aborted",
        Code::OutOfRange => "out_of_range",
        Code::Unimplemented => "unimplemented",
        Code::Internal => "internal",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data_loss",
        Code::Unauthenticated => "unauthenticated",
    }
}
