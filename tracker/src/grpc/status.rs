//! `Status`: health of the whole swarm.

use std::collections::HashSet;
use std::time::Instant;

use swarm_proto::convert;
use swarm_proto::v1::{PeerKind, StatusReply, StatusRequest};
use tonic::Status;

use super::holders::Desk;
use crate::peers::{Snapshot, State};

/// Answer one call.
pub(super) async fn status(desk: &Desk, request: &StatusRequest) -> Result<StatusReply, Status> {
    convert::within("replicas", u64::from(request.replicas), 0, 16)?;
    let mut reply = StatusReply {
        replicas: desk.copies.replicas,
        min_replicas: desk.copies.min_replicas,
        boot_id: desk.boot_id.to_wire(),
        swarm_id: desk.swarm_id.to_wire(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_ms: u64::try_from(desk.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        ..StatusReply::default()
    };
    count_peers(&mut reply, &desk.soft.registry.snapshots(Instant::now()));
    Ok(reply)
}

fn count_peers(reply: &mut StatusReply, all: &[Snapshot]) {
    let mut hosts = HashSet::new();
    for known in all {
        if known.facts.kind != PeerKind::Seeder {
            reply.mounts_live += u32::from(known.state == State::Live);
            continue;
        }
        match known.state {
            State::Live => reply.seeders_live += 1,
            State::Stale => reply.seeders_stale += 1,
            State::Dead => {
                reply.seeders_dead += 1;
                continue;
            }
        }
        if known.state == State::Live {
            hosts.insert(known.facts.host.as_str());
        }
        let load = known.load.unwrap_or_default();
        reply.capacity_bytes = reply.capacity_bytes.saturating_add(known.facts.capacity_bytes);
        reply.used_bytes = reply.used_bytes.saturating_add(load.used_bytes);
        reply.free_bytes = reply.free_bytes.saturating_add(known.free_bytes());
        reply.corrupt = reply.corrupt.saturating_add(load.corrupt_segments);
    }
    reply.seeder_hosts = u32::try_from(hosts.len()).expect("there are fewer hosts than peers");
}
