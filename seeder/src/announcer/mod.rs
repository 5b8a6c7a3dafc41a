//! Tells every replica of the tracker who this peer is and what it holds, and takes their orders.
//!
//! Not the store and not repair: an order to verify ends in a smaller presence, which is told like any
//! other change. Invariant: while a replica is connected, what it knows is at most 100 ms behind the
//! store; after a gap it is told everything again.

mod link;
mod open_files;
mod pending;
mod verify;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::future::BoxFuture;
use swarm_proto::{PeerId, ProcessId, SwarmId};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::serve::Counters;
use crate::store::ChunkStore;
use crate::tracker_client::TrackerClient;

pub use open_files::OpenFiles;

/// Orders to verify that may wait; more are refused, and come again with the next report.
const MOST_VERIFY_ORDERS: usize = 1_024;

/// Asked with the id of the swarm that a tracker serves; an error, in words for a person, if it is not this peer's.
pub type Binding = Arc<dyn Fn(SwarmId) -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// What a peer says of itself.
#[derive(Clone)]
pub struct AnnounceConfig {
    /// Who.
    pub me: PeerId,
    /// host:port for other peers; empty: it serves nothing, and announces that it holds nothing.
    pub address: String,
    /// Failure domain; empty: the default one.
    pub zone: String,
    /// The machine; empty: the peer's address.
    pub host: String,
    /// Whether this swarm is the right one.
    pub binding: Binding,
    /// What it has open; a seeder opens nothing.
    pub open_files: Option<OpenFiles>,
}

/// How the announcing goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AnnounceState {
    /// Replicas that know all that this peer holds.
    pub told: usize,
    /// Replicas in all.
    pub replicas: usize,
    /// The peer's address as a tracker hands it out.
    pub address: Option<String>,
    /// Why this peer must not go on; says what to do.
    pub refused: Option<String>,
}

/// What all links share.
struct Shared<S> {
    config: AnnounceConfig,
    process: ProcessId,
    store: Arc<S>,
    counters: Counters,
    /// Newest epoch that any replica told; orders of an older one come from a leader that was replaced.
    epoch: AtomicU64,
    state: watch::Sender<AnnounceState>,
    verify: mpsc::Sender<swarm_proto::SegmentId>,
    leave: CancellationToken,
    stop: CancellationToken,
}

impl<S> Shared<S> {
    /// Whether an order of `epoch` still counts.
    fn accepts(&self, epoch: u64) -> bool {
        epoch >= self.epoch.fetch_max(epoch, Ordering::AcqRel)
    }
}

/// The announcing of one peer.
pub struct Announcer {
    state: watch::Receiver<AnnounceState>,
    leave: CancellationToken,
    links: TaskTracker,
}

impl Announcer {
    /// Announce to every replica until `stop`; tries again for ever where one is away.
    pub fn start<S: ChunkStore>(
        config: AnnounceConfig,
        store: Arc<S>,
        counters: Counters,
        tracker: &TrackerClient,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let channels = tracker.channels();
        let (state, watched) = watch::channel(AnnounceState { replicas: channels.len(), ..AnnounceState::default() });
        let (verify, orders) = mpsc::channel(MOST_VERIFY_ORDERS);
        tasks.spawn(stop.clone().run_until_cancelled_owned(verify::run(Arc::clone(&store), orders)));
        let leave = CancellationToken::new();
        let shared = Arc::new(Shared {
            config,
            process: ProcessId::random(),
            store,
            counters,
            epoch: AtomicU64::new(0),
            state,
            verify,
            leave: leave.clone(),
            stop,
        });
        let links = TaskTracker::new();
        for (channel, endpoint) in channels.iter().zip(tracker.address().endpoints()) {
            let link = link::run(Arc::clone(&shared), channel.clone(), endpoint.clone());
            tasks.spawn(links.track_future(link));
        }
        links.close();
        Self { state: watched, leave, links }
    }

    /// How it goes; changes wake the receiver.
    pub fn state(&self) -> watch::Receiver<AnnounceState> {
        self.state.clone()
    }

    /// Tell every replica that this peer leaves on purpose, and stop announcing.
    ///
    /// Cost: a replica that does not take it is given up after a second.
    pub async fn leave(&self) {
        self.leave.cancel();
        self.links.wait().await;
    }
}

#[cfg(test)]
mod tests;
