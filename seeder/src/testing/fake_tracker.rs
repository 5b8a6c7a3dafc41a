//! A tracker that knows what it is told.

use std::collections::HashMap;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use swarm_proto::{PeerId, SegmentId};

use crate::swarm::{Holder, Locator, Offence};

/// A [`Locator`] in memory: told who holds what, it can be made unreachable, and notes what is reported.
#[derive(Default)]
pub struct FakeTracker {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    holders: HashMap<SegmentId, Vec<Holder>>,
    reports: Vec<(PeerId, Offence)>,
    away: bool,
    calls: usize,
}

impl FakeTracker {
    /// From now on these hold the segment, and nobody else.
    pub fn set(&self, id: SegmentId, holders: Vec<Holder>) {
        self.state.lock().holders.insert(id, holders);
    }

    /// From now on it cannot be asked, or can again.
    pub fn set_away(&self, away: bool) {
        self.state.lock().away = away;
    }

    /// All that was reported, in order.
    pub fn reports(&self) -> Vec<(PeerId, Offence)> {
        self.state.lock().reports.clone()
    }

    /// How often it was asked.
    pub fn calls(&self) -> usize {
        self.state.lock().calls
    }
}

impl Locator for FakeTracker {
    fn locate(&self, ids: Vec<SegmentId>) -> BoxFuture<'_, Result<Vec<Vec<Holder>>, String>> {
        let mut state = self.state.lock();
        state.calls += 1;
        let found = match state.away {
            true => Err("the tracker is away".to_owned()),
            false => Ok(ids.iter().map(|id| state.holders.get(id).cloned().unwrap_or_default()).collect()),
        };
        Box::pin(std::future::ready(found))
    }

    fn report(&self, peer: PeerId, offence: Offence) {
        self.state.lock().reports.push((peer, offence));
    }
}
