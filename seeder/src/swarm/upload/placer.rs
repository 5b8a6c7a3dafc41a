//! The tracker as a [`Placer`].

use futures::future::BoxFuture;
use swarm_proto::v1::{PeerKind, PeerState, PeerStatus};
use swarm_proto::{PeerId, Segment, SegmentId};

use super::{KnownSeeder, Placer, SeederState};
use crate::swarm::PeerAddress;
use crate::tracker_client::{TrackerClient, TrackerError};

impl Placer for TrackerClient {
    fn holders(&self, ids: Vec<SegmentId>) -> BoxFuture<'_, Result<Vec<Vec<PeerAddress>>, TrackerError>> {
        Box::pin(async move {
            let holders = self.locate(&ids).await?;
            let whole = |list: Vec<crate::swarm::Holder>| {
                list.into_iter().filter(|holder| !holder.partial).map(|holder| holder.peer).collect()
            };
            Ok(holders.into_iter().map(whole).collect())
        })
    }

    fn place(
        &self,
        segments: Vec<Segment>,
        replicas: u32,
        exclude: Vec<PeerId>,
    ) -> BoxFuture<'_, Result<Vec<Vec<PeerAddress>>, TrackerError>> {
        Box::pin(async move { self.place(&segments, replicas, &exclude).await })
    }

    fn seeders(&self) -> BoxFuture<'_, Result<Vec<KnownSeeder>, TrackerError>> {
        Box::pin(async move {
            let peers = self.peers().await?;
            Ok(peers.iter().filter_map(known_seeder).collect())
        })
    }
}

fn known_seeder(peer: &PeerStatus) -> Option<KnownSeeder> {
    let info = peer.info.as_ref()?;
    let state = match (info.kind(), info.state()) {
        (PeerKind::Seeder, PeerState::Live) => SeederState::Live,
        (PeerKind::Seeder, PeerState::Stale) => SeederState::Stale,
        (PeerKind::Seeder, PeerState::Dead) => SeederState::Away,
        _ => return None,
    };
    Some(KnownSeeder { id: PeerId::try_from(&info.peer_id[..]).ok()?, state, free_bytes: peer.free_bytes })
}
