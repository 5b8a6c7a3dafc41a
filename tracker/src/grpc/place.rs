//! `Place`: which seeders should take these new segments.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use swarm_proto::convert::{self, ConvertError};
use swarm_proto::v1::{PeerInfo, PeerKind, PlaceReply, PlaceRequest};
use swarm_proto::{MAX_SEGMENT_BYTES, PeerId, SegmentId};
use tonic::Status;

use super::desk::Desk;
use crate::peers::{Snapshot, State};
use crate::policy::placement::{Placement, Seeder};

const MOST_SEGMENTS: u64 = 4_096;
const MOST_REPLICAS: u64 = 16;
const MOST_EXCLUDED: usize = 4_096;

/// Choices that are made at once; more go where they may take their time.
const AT_ONCE: usize = 200_000;

/// How long a tracker that has just started waits for seeders that it knows and has not heard yet, if there are too few
/// without them. A client's attempt lasts longer.
const PATIENCE: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(50);

struct Wanted {
    segments: Vec<(SegmentId, u32)>,
    replicas: usize,
    zone: String,
}

/// Answer one call.
pub(super) async fn place(desk: &Desk, request: PlaceRequest) -> Result<PlaceReply, Status> {
    let (wanted, excluded) = read(request)?;
    let deadline = Instant::now() + PATIENCE;
    let (seeders, infos) = loop {
        let Eligible { seeders, infos, awaited } = eligible(desk, &excluded);
        if seeders.len() >= wanted.replicas || !awaited || Instant::now() >= deadline {
            break (seeders, infos);
        }
        tokio::time::sleep(POLL).await;
    };
    if wanted.segments.len() * seeders.len() <= AT_ONCE {
        return Ok(choose(&seeders, infos, &wanted));
    }
    let choice = desk.tasks.spawn_blocking(move || choose(&seeders, infos, &wanted));
    choice.await.map_err(|error| Status::internal(error.to_string()))
}

fn read(request: PlaceRequest) -> Result<(Wanted, HashSet<PeerId>), ConvertError> {
    let ids =
        SegmentId::unpack(&request.segment_ids).map_err(|source| ConvertError::Id { field: "segment_ids", source })?;
    let count = convert::within("segments", ids.len() as u64, 1, MOST_SEGMENTS)?;
    convert::within("lengths", request.lengths.len() as u64, count, count)?;
    for length in &request.lengths {
        convert::within("lengths", u64::from(*length), 1, u64::from(MAX_SEGMENT_BYTES))?;
    }
    let segments = ids.zip(request.lengths.iter().copied()).collect();
    convert::within("replicas", u64::from(request.replicas), 1, MOST_REPLICAS)?;
    let excluded = convert::peer_ids("exclude_peer_ids", &request.exclude_peer_ids, MOST_EXCLUDED)?;
    let wanted = Wanted { segments, replicas: request.replicas as usize, zone: request.zone };
    Ok((wanted, excluded.into_iter().collect()))
}

struct Eligible {
    seeders: Vec<Seeder>,
    infos: Vec<PeerInfo>,
    /// There are others that may be heard in a moment.
    awaited: bool,
}

fn eligible(desk: &Desk, excluded: &HashSet<PeerId>) -> Eligible {
    let all = desk.soft.registry.snapshots(Instant::now());
    let fit = |known: &&Snapshot| {
        known.facts.kind == PeerKind::Seeder && !known.draining && !excluded.contains(&known.facts.id)
    };
    let awaited = all.iter().filter(fit).any(|known| known.state == State::Stale && known.unheard);
    let live = all.iter().filter(fit).filter(|known| known.state == State::Live).map(|known| {
        let seeder = Seeder {
            id: known.facts.id,
            zone: known.facts.zone.clone(),
            host: known.facts.host.clone(),
            free_bytes: known.free_bytes(),
        };
        (seeder, known.info())
    });
    let (seeders, infos) = live.unzip();
    Eligible { seeders, infos, awaited }
}

fn choose(seeders: &[Seeder], infos: Vec<PeerInfo>, wanted: &Wanted) -> PlaceReply {
    let near = (!wanted.zone.is_empty()).then_some(wanted.zone.as_str());
    let mut placement = Placement::new(seeders, near);
    let mut reply = PlaceReply::default();
    let mut indices: Vec<Option<u32>> = vec![None; seeders.len()];
    let mut infos: Vec<Option<PeerInfo>> = infos.into_iter().map(Some).collect();
    let mut chosen = Vec::new();
    for (id, length) in &wanted.segments {
        chosen.clear();
        let count = placement.choose(id, *length, wanted.replicas, &mut chosen);
        reply.counts.push(u32::try_from(count).expect("at most MOST_REPLICAS"));
        for at in &chosen {
            let index = *indices[*at].get_or_insert_with(|| {
                reply.peers.extend(infos[*at].take());
                u32::try_from(reply.peers.len() - 1).expect("there are fewer peers than slots, which are u32")
            });
            reply.targets.push(index);
        }
    }
    reply
}
