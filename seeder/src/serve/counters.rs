//! What a peer served, for its operator and for the tracker.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use swarm_proto::PeerId;
use tonic::{Code, Status};

/// Counts of one peer's serving side; clones share them.
#[derive(Debug, Clone)]
pub struct Counters {
    /// Bytes of chunks served.
    pub served_bytes: IntCounter,
    /// Of them, bytes that processes of this machine read from lent files.
    pub lent_bytes: IntCounter,
    /// Bytes of chunk trees served.
    pub served_tree_bytes: IntCounter,
    /// Bytes of segments taken and acknowledged.
    pub stored_bytes: IntCounter,
    /// Calls, by `call` and `outcome`.
    pub requests: IntCounterVec,
    /// Fetches being answered now.
    pub in_flight: IntGauge,
}

impl Counters {
    /// Counters in `registry`, with the peer's id as a label: several peers may share a process.
    ///
    /// A registry that has them already (a peer that was started again) shows the first ones.
    pub fn new(registry: &Registry, me: PeerId) -> Self {
        let named = |name: &str, help: &str| Opts::new(name, help).const_label("peer", me.to_string());
        let counter = |name, help| IntCounter::with_opts(named(name, help)).expect("the names are valid");
        let counters = Self {
            served_bytes: counter("swarm_peer_served_bytes_total", "Bytes of chunks served"),
            lent_bytes: counter("swarm_peer_lent_bytes_total", "Of them, read here from files that were lent"),
            served_tree_bytes: counter("swarm_peer_served_tree_bytes_total", "Bytes of chunk trees served"),
            stored_bytes: counter("swarm_peer_stored_bytes_total", "Bytes of segments taken and acknowledged"),
            requests: IntCounterVec::new(
                named("swarm_peer_requests_total", "Calls answered, by call and outcome"),
                &["call", "outcome"],
            )
            .expect("the names are valid"),
            in_flight: IntGauge::with_opts(named("swarm_peer_fetches_in_flight", "Fetches being answered now"))
                .expect("the names are valid"),
        };
        let all: [Box<dyn prometheus::core::Collector>; 6] = [
            Box::new(counters.served_bytes.clone()),
            Box::new(counters.lent_bytes.clone()),
            Box::new(counters.served_tree_bytes.clone()),
            Box::new(counters.stored_bytes.clone()),
            Box::new(counters.requests.clone()),
            Box::new(counters.in_flight.clone()),
        ];
        for collector in all {
            if let Err(error) = registry.register(collector) {
                tracing::debug!(%error, "register a counter");
            }
        }
        counters
    }

    /// Count one call by what became of it.
    pub(crate) fn answered<T>(&self, call: &str, result: &Result<T, Status>) {
        let outcome = match result {
            Ok(_) => "ok",
            Err(status) => outcome(status.code()),
        };
        self.outcome(call, outcome);
    }

    /// Count one call as `outcome`.
    pub(crate) fn outcome(&self, call: &str, outcome: &str) {
        self.requests.with_label_values(&[call, outcome]).inc();
    }
}

fn outcome(code: Code) -> &'static str {
    match code {
        Code::InvalidArgument | Code::OutOfRange => "invalid",
        Code::ResourceExhausted => "busy",
        Code::FailedPrecondition | Code::Unimplemented => "refused",
        Code::DeadlineExceeded | Code::Cancelled => "timeout",
        Code::Unavailable => "unavailable",
        _ => "failed",
    }
}
