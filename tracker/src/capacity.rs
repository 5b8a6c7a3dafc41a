//! What the swarm can store, for df: the seeders' room at the swarm's replication factor.

use std::sync::Arc;
use std::time::Instant;

use swarm_proto::PeerId;
use swarm_proto::v1::PeerKind;

use crate::catalog::{Capacity, CapacitySource, Catalog};
use crate::peers::{Snapshot, State};
use crate::policy::room::storable;
use crate::soft::Soft;

/// Reads the seeders' last words.
pub struct SwarmCapacity {
    /// Peers.
    pub soft: Arc<Soft>,
    /// The swarm's settings.
    pub catalog: Arc<Catalog>,
}

impl CapacitySource for SwarmCapacity {
    fn capacity(&self) -> Capacity {
        let replicas = self.catalog.settings().replicas;
        let all = self.soft.registry.snapshots(Instant::now());
        let seeders = || all.iter().filter(|known| known.facts.kind == PeerKind::Seeder && known.state != State::Dead);
        // A draining seeder's room is going away, what it holds is not yet.
        let free = seeders().filter(|known| !known.draining).map(Snapshot::free_bytes);
        Capacity {
            capacity_bytes: storable(seeders().map(Snapshot::capacity_bytes), replicas),
            free_bytes: storable(free, replicas),
        }
    }

    fn joined(&self) -> Vec<PeerId> {
        let all = self.soft.registry.snapshots(Instant::now());
        all.iter().filter(|known| known.facts.kind == PeerKind::Seeder).map(|known| known.facts.id).collect()
    }
}
