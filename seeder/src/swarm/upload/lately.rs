//! **PURE.** What was heard of the seeders last, for those who must not wait for an answer.

use swarm_proto::PeerId;

use super::{KnownSeeder, SeederState};

/// What was heard of the seeders last.
#[derive(Debug, Default)]
pub(super) struct Lately {
    /// How many the swarm has, whether or not they are up; 0: not known yet.
    pub(super) known: usize,
    /// Those that are up, in order.
    pub(super) live: Vec<PeerId>,
}

impl Lately {
    pub(super) fn of(seeders: &[KnownSeeder]) -> Self {
        let live = seeders.iter().filter(|seeder| seeder.state == SeederState::Live);
        let mut live: Vec<PeerId> = live.map(|seeder| seeder.id).collect();
        live.sort_unstable();
        Self { known: seeders.len(), live }
    }
}
