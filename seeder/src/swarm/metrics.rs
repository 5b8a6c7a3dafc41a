//! The fetcher's Prometheus metrics, read from its totals when they are asked for.

use std::sync::{Arc, Weak};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntGauge, Registry};

use super::{Swarm, SwarmStats};

/// Name, meaning and source of every total.
const TOTALS: [Total; 9] = [
    ("swarm_fetch_payload_bytes_total", "Verified chunk bytes fetched from peers", |stats| stats.payload_bytes),
    ("swarm_fetch_tree_bytes_total", "Bytes of chunk trees fetched from peers", |stats| stats.tree_bytes),
    ("swarm_fetch_received_bytes_total", "Bytes of replies, useful or not", |stats| stats.received_bytes),
    ("swarm_fetch_local_bytes_total", "Of them, read from files that peers here lent", |stats| stats.local_bytes),
    ("swarm_fetch_wasted_bytes_total", "Chunk bytes that came and were of no use", |stats| stats.wasted_bytes),
    ("swarm_fetch_requests_total", "Requests sent to peers", |stats| stats.requests),
    ("swarm_fetch_hedges_total", "Requests that repeated what another peer was late with", |stats| stats.hedges),
    ("swarm_fetch_corrupt_total", "Replies that did not verify", |stats| stats.corrupt),
    ("swarm_fetch_failed_total", "Requests that failed otherwise", |stats| stats.failed),
];

type Total = (&'static str, &'static str, fn(&SwarmStats) -> u64);

struct Totals {
    swarm: Weak<Swarm>,
    descs: Vec<Desc>,
}

/// Show the totals of a fetcher in a registry. A registry that has some already keeps those.
pub(super) fn register(swarm: &Arc<Swarm>, registry: &Registry) {
    let desc = |name: &str, help: &str| Desc::new(name.to_owned(), help.to_owned(), Vec::new(), Default::default());
    let mut descs: Vec<Desc> = TOTALS.iter().filter_map(|(name, help, _)| desc(name, help).ok()).collect();
    descs.extend(desc(BANNED.0, BANNED.1).ok());
    let totals = Totals { swarm: Arc::downgrade(swarm), descs };
    if let Err(error) = registry.register(Box::new(totals)) {
        tracing::warn!(%error, "register the fetcher's metrics");
    }
}

const BANNED: (&str, &str) = ("swarm_fetch_banned_peers", "Peers that are not asked because they answered wrongly");

impl Collector for Totals {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Some(swarm) = self.swarm.upgrade() else { return Vec::new() };
        let stats = swarm.stats();
        let mut families = Vec::new();
        for (name, help, read) in TOTALS {
            if let Ok(counter) = IntCounter::new(name, help) {
                counter.inc_by(read(&stats));
                families.extend(counter.collect());
            }
        }
        if let Ok(gauge) = IntGauge::new(BANNED.0, BANNED.1) {
            gauge.set(i64::try_from(stats.banned).unwrap_or(i64::MAX));
            families.extend(gauge.collect());
        }
        families
    }
}
