//! `Status`: health of the whole swarm.

use std::collections::HashSet;
use std::time::Instant;

use swarm_proto::v1::{PeerKind, StatusReply, StatusRequest};
use swarm_proto::{convert, fault};
use tonic::Status;

use super::desk::Desk;
use crate::catalog::refusal_of;
use crate::peers::{Snapshot, State};

/// Answer one call.
pub(super) async fn status(desk: &Desk, request: &StatusRequest) -> Result<StatusReply, Status> {
    convert::within("replicas", u64::from(request.replicas), 0, 16)?;
    let counted = desk.census.current(&desk.tasks).await.map_err(|error| {
        let refusal = refusal_of(&error);
        fault::to_status(refusal.fault, refusal.message)
    })?;
    let settings = desk.catalog.settings();
    let wanted = match request.replicas {
        0 => settings.replicas,
        asked => asked,
    };
    let (tally, names) = (counted.histogram.tally(wanted), desk.catalog.counts());
    let mut reply = StatusReply {
        segments: tally.segments,
        healthy: tally.healthy,
        under_replicated: tally.under,
        over_replicated: tally.over,
        missing: tally.missing,
        files: names.files,
        directories: names.directories,
        logical_bytes: names.logical_bytes,
        distinct_bytes: counted.distinct_bytes,
        replicas: settings.replicas,
        min_replicas: settings.min_replicas,
        boot_id: desk.boot_id.to_wire(),
        swarm_id: desk.catalog.swarm_id().to_wire(),
        revision: desk.catalog.revision().0,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_ms: u64::try_from(desk.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        ..StatusReply::default()
    };
    count_peers(&mut reply, &desk.soft.registry.snapshots(Instant::now()));
    Ok(reply)
}

/// Shape: sums over seeders that are not dead; they saturate, for a peer may say anything.
fn count_peers(reply: &mut StatusReply, all: &[Snapshot]) {
    let mut hosts = HashSet::new();
    for known in all {
        if known.facts.kind != PeerKind::Seeder {
            reply.mounts_live += u32::from(known.state == State::Live);
            continue;
        }
        match known.state {
            State::Live => {
                reply.seeders_live += 1;
                hosts.insert(known.facts.host.as_str());
            }
            State::Stale => reply.seeders_stale += 1,
            State::Dead => {
                reply.seeders_dead += 1;
                continue;
            }
        }
        let load = known.load.unwrap_or_default();
        reply.capacity_bytes = reply.capacity_bytes.saturating_add(known.capacity_bytes());
        reply.used_bytes = reply.used_bytes.saturating_add(load.used_bytes);
        reply.free_bytes = reply.free_bytes.saturating_add(known.free_bytes());
        reply.corrupt = reply.corrupt.saturating_add(load.corrupt_segments);
    }
    reply.seeder_hosts = u32::try_from(hosts.len()).expect("there are fewer hosts than peers");
}
