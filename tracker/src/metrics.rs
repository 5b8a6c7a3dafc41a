//! What a tracker shows Prometheus.
//!
//! Calls are counted as they end; everything else is read when it is asked for.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};
use swarm_proto::v1::PeerKind;
use tonic::Code;

use crate::soft::Soft;

/// Counters of calls.
pub struct Metrics {
    registry: Registry,
    calls: IntCounterVec,
    seconds: HistogramVec,
}

impl Metrics {
    /// Counters, and gauges that read `soft`.
    pub fn new(soft: Arc<Soft>) -> Result<Self, prometheus::Error> {
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
        registry.register(Box::new(SoftGauges::new(soft)?))?;
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

/// Gauges over peers and holders.
struct SoftGauges {
    soft: Arc<Soft>,
    peers: IntGaugeVec,
    segments: IntGauge,
    holdings: IntGauge,
    memory: IntGauge,
}

impl SoftGauges {
    fn new(soft: Arc<Soft>) -> Result<Self, prometheus::Error> {
        Ok(Self {
            soft,
            peers: IntGaugeVec::new(Opts::new("swarm_tracker_peers", "Peers, by kind and state"), &["kind", "state"])?,
            segments: IntGauge::new("swarm_tracker_segments", "Segments that have a holder")?,
            holdings: IntGauge::new("swarm_tracker_holdings", "Pairs of a segment and a holder of it")?,
            memory: IntGauge::new("swarm_tracker_holders_memory_bytes", "Memory that the holders take")?,
        })
    }
}

const KINDS: [(PeerKind, &str); 2] = [(PeerKind::Seeder, "seeder"), (PeerKind::Mount, "mount")];
const STATES: [&str; 4] = ["live", "stale", "dead", "draining"];

impl Collector for SoftGauges {
    fn desc(&self) -> Vec<&Desc> {
        let single = [&self.segments, &self.holdings, &self.memory];
        self.peers.desc().into_iter().chain(single.into_iter().flat_map(Collector::desc)).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let all = self.soft.registry.snapshots(Instant::now());
        let mut counts: HashMap<(PeerKind, &str), i64> = HashMap::new();
        let mut holdings = 0;
        for known in &all {
            *counts.entry((known.facts.kind, state_name(known.peer_state()))).or_default() += 1;
            holdings += self.soft.holders.held_by(known.slot);
        }
        for (kind, kind_name) in KINDS {
            for state in STATES {
                let count = counts.get(&(kind, state)).copied().unwrap_or_default();
                self.peers.with_label_values(&[kind_name, state]).set(count);
            }
        }
        self.segments.set(saturate(self.soft.holders.segments()));
        self.holdings.set(saturate(holdings));
        self.memory.set(saturate(self.soft.holders.memory_bytes() as u64));
        let single = [&self.segments, &self.holdings, &self.memory];
        self.peers.collect().into_iter().chain(single.into_iter().flat_map(Collector::collect)).collect()
    }
}

fn state_name(state: swarm_proto::v1::PeerState) -> &'static str {
    use swarm_proto::v1::PeerState;
    match state {
        PeerState::Live => "live",
        PeerState::Stale => "stale",
        PeerState::Draining => "draining",
        PeerState::Dead | PeerState::Unspecified => "dead",
    }
}

fn saturate(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
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
