//! What the tracker knows at the moment when it is asked.
//!
//! The health of the segments is the last count, at most some seconds old: a scrape must not wait for one.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntGauge, IntGaugeVec, Opts};
use swarm_proto::v1::{PeerKind, PeerState};

use crate::census::Census;

/// Set when they are collected.
pub(super) struct Gauges {
    census: Arc<Census>,
    peers: IntGaugeVec,
    health: IntGaugeVec,
    segments: IntGauge,
    holdings: IntGauge,
    memory: IntGauge,
    revision: IntGauge,
    files: IntGauge,
    logical_bytes: IntGauge,
}

const KINDS: [(PeerKind, &str); 2] = [(PeerKind::Seeder, "seeder"), (PeerKind::Mount, "mount")];
const STATES: [&str; 4] = ["live", "stale", "dead", "draining"];

impl Gauges {
    pub(super) fn new(census: Arc<Census>) -> Result<Self, prometheus::Error> {
        let health = "Distinct segments that live files name, by health (healthy, under_replicated, over_replicated, \
                      missing), as last counted";
        Ok(Self {
            census,
            peers: IntGaugeVec::new(Opts::new("swarm_tracker_peers", "Peers, by kind and state"), &["kind", "state"])?,
            health: IntGaugeVec::new(Opts::new("swarm_tracker_segment_health", health), &["health"])?,
            segments: IntGauge::new("swarm_tracker_segments", "Segments that have a holder")?,
            holdings: IntGauge::new("swarm_tracker_holdings", "Pairs of a segment and a holder of it")?,
            memory: IntGauge::new("swarm_tracker_holders_memory_bytes", "Memory that the holders take")?,
            revision: IntGauge::new("swarm_tracker_revision", "Revision of the catalog")?,
            files: IntGauge::new("swarm_tracker_files", "Files in the catalog")?,
            logical_bytes: IntGauge::new("swarm_tracker_logical_bytes", "Sum of the sizes of all files")?,
        })
    }

    fn all(&self) -> [&dyn Collector; 8] {
        [
            &self.peers,
            &self.health,
            &self.segments,
            &self.holdings,
            &self.memory,
            &self.revision,
            &self.files,
            &self.logical_bytes,
        ]
    }

    fn set_peers(&self) {
        let soft = self.census.soft();
        let mut counts: HashMap<(PeerKind, &str), i64> = HashMap::new();
        let mut holdings = 0;
        for known in soft.registry.snapshots(Instant::now()) {
            *counts.entry((known.facts.kind, name_of(known.peer_state()))).or_default() += 1;
            holdings += soft.holders.held_by(known.slot);
        }
        for (kind, kind_name) in KINDS {
            for state in STATES {
                let count = counts.get(&(kind, state)).copied().unwrap_or_default();
                self.peers.with_label_values(&[kind_name, state]).set(count);
            }
        }
        self.segments.set(saturate(soft.holders.segments()));
        self.holdings.set(saturate(holdings));
        self.memory.set(saturate(soft.holders.memory_bytes() as u64));
    }

    fn set_catalog(&self) {
        let catalog = self.census.catalog();
        let counts = catalog.counts();
        self.revision.set(saturate(catalog.revision().0));
        self.files.set(saturate(counts.files));
        self.logical_bytes.set(saturate(counts.logical_bytes));
        let Some(counted) = self.census.last() else { return };
        let tally = counted.histogram.tally(catalog.settings().replicas);
        let classes = [
            ("healthy", tally.healthy),
            ("under_replicated", tally.under),
            ("over_replicated", tally.over),
            ("missing", tally.missing),
        ];
        for (name, count) in classes {
            self.health.with_label_values(&[name]).set(saturate(count));
        }
    }
}

impl Collector for Gauges {
    fn desc(&self) -> Vec<&Desc> {
        self.all().into_iter().flat_map(|gauge| gauge.desc()).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.set_peers();
        self.set_catalog();
        self.all().into_iter().flat_map(|gauge| gauge.collect()).collect()
    }
}

fn name_of(state: PeerState) -> &'static str {
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
