//! `Peers`: everybody that this tracker knows.

use std::time::Instant;

use swarm_proto::v1::{PeerStatus, PeersReply};

use super::desk::Desk;
use crate::peers::Snapshot;

/// Answer one call: seeders first, then mounts, each in the order of their ids.
pub(super) fn peers(desk: &Desk) -> PeersReply {
    let mut all = desk.soft.registry.snapshots(Instant::now());
    all.sort_unstable_by_key(|known| (known.facts.kind, known.facts.id));
    PeersReply { peers: all.iter().map(status).collect() }
}

fn status(known: &Snapshot) -> PeerStatus {
    let load = known.load.unwrap_or_default();
    PeerStatus {
        info: Some(known.info()),
        capacity_bytes: known.capacity_bytes(),
        used_bytes: load.used_bytes,
        free_bytes: known.free_bytes(),
        segments: load.segments,
        served_bytes_total: load.served_bytes_total,
        in_flight: load.in_flight,
        corrupt_segments: load.corrupt_segments,
        state_for_ms: u64::try_from(known.state_for.as_millis()).unwrap_or(u64::MAX),
        corrupt_reports_total: known.corrupt_reports,
        version: known.facts.version.clone(),
    }
}
