//! Who holds a segment, as a mount finds it out: the tracker says it and, while it does not answer, this mount's own memory
//! of whom it gave the segment to.

use std::sync::OnceLock;

use bytes::Bytes;
use futures::future::BoxFuture;
use swarm_proto::{PeerId, SegmentId};
use swarm_seeder::swarm::upload::Uploader;
use swarm_seeder::swarm::{Holder, Locator, Offence};
use swarm_seeder::tracker_client::TrackerClient;

/// See the module.
pub(super) struct Locating {
    tracker: TrackerClient,
    uploader: OnceLock<Uploader>,
}

impl Locating {
    /// For a mount that has given nothing to anybody yet.
    pub(super) fn new(tracker: TrackerClient) -> Self {
        Self { tracker, uploader: OnceLock::new() }
    }

    /// From now on what this gave to seeders is remembered.
    pub(super) fn remember(&self, uploader: Uploader) {
        // Whoever assembles the mount says it once.
        drop(self.uploader.set(uploader));
    }

    /// The bytes of a short segment that this mount sent lately.
    pub(super) fn sent(&self, id: &SegmentId) -> Option<Bytes> {
        self.uploader.get()?.sent(id)
    }
}

impl Locator for Locating {
    fn locate(&self, ids: Vec<SegmentId>) -> BoxFuture<'_, Result<Vec<Vec<Holder>>, String>> {
        Locator::locate(&self.tracker, ids)
    }

    fn remembered(&self, ids: &[SegmentId]) -> Vec<(SegmentId, Vec<Holder>)> {
        self.uploader.get().map(|uploader| uploader.took(ids)).unwrap_or_default()
    }

    fn report(&self, peer: PeerId, offence: Offence) {
        Locator::report(&self.tracker, peer, offence);
    }
}
