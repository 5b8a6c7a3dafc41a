//! A peer: a store, the fetcher, the serving side and the announcer, started and drained together.
//!
//! Not a policy: with the durable store it is a seeder, with the evicting cache the peer of a mount, and
//! neither is named here. Invariant: a peer announces only after it serves, and says that it leaves
//! before it stops serving.

mod usage;

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use prometheus::Registry;
use swarm_proto::PeerId;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::announcer::{AnnounceConfig, AnnounceState, Announcer, Binding, OpenFiles};
use crate::serve::{Counters, ServeConfig, Served, serve};
use crate::store::{ChunkStore, Holding};
use crate::swarm::Swarm;
use crate::tracker_client::TrackerClient;

/// What a peer gives to others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sharing {
    /// It serves what it has.
    Serve {
        /// Where; port 0: any free one.
        listen: SocketAddr,
        /// host:port at which others reach it; none: the listening address, whose host the tracker fills
        /// in if it is unspecified.
        advertise: Option<String>,
        /// Bytes of chunks a second over all askers; none: no limit.
        upload_limit: Option<NonZeroU64>,
    },
    /// Nothing (a mount with `--no-share`): it is known to the tracker, but holds nothing for others.
    Nothing,
}

/// What a peer needs to know.
#[derive(Clone)]
pub struct PeerConfig {
    /// Who it is, over all its restarts.
    pub id: PeerId,
    /// What it gives.
    pub sharing: Sharing,
    /// Failure domain; empty: the default one.
    pub zone: String,
    /// The machine; peers of one host count as one failure. Empty: the peer's address.
    pub host: String,
    /// Asked with the swarm of every tracker that is reached; an error is tried again later, but for a seeder's at a
    /// tracker that was never its own: that ends it.
    pub binding: Binding,
}

/// Why a peer did not start.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// Nobody can listen there.
    #[error("listen on {address}: {source}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
}

/// How something stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// All that was in flight ended by itself.
    Clean,
    /// Something was cut off.
    Forced,
}

/// A peer that runs.
pub struct Peer<S: ChunkStore> {
    id: PeerId,
    store: Arc<S>,
    swarm: Arc<Swarm>,
    tracker: TrackerClient,
    counters: Counters,
    address: Option<SocketAddr>,
    announcer: Announcer,
    open_files: OpenFiles,
    served: Option<Served>,
    stop_accepting: CancellationToken,
}

impl<S: ChunkStore> Peer<S> {
    /// Serve `store` and announce it; its tasks belong to `tasks` and end at `stop`.
    ///
    /// Shape:  returns as soon as it serves; the tracker may be away. [`Self::announced`] tells when it
    ///         is known there.
    /// Errors: [`PeerError::Bind`].
    pub async fn start(
        config: PeerConfig,
        store: Arc<S>,
        swarm: Arc<Swarm>,
        tracker: TrackerClient,
        registry: &Registry,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Result<Self, PeerError> {
        let counters = Counters::new(registry, config.id);
        usage::register(registry, config.id, Arc::clone(&store));
        let stop_accepting = stop.child_token();
        let (mut address, mut served, mut advertised) = (None, None, String::new());
        if let Sharing::Serve { listen, advertise, upload_limit } = config.sharing {
            let bound = TcpListener::bind(listen).await.and_then(|listener| Ok((listener.local_addr()?, listener)));
            let (local, listener) = bound.map_err(|source| PeerError::Bind { address: listen, source })?;
            let serve_config = ServeConfig { me: config.id, upload_limit };
            let (accepting, stop) = (stop_accepting.clone(), stop.clone());
            let serving =
                serve(serve_config, Arc::clone(&store), listener, counters.clone(), tasks, accepting, stop).await;
            (address, served, advertised) =
                (Some(local), Some(serving), advertise.unwrap_or_else(|| local.to_string()));
        }
        let open_files = OpenFiles::default();
        let announce_config = AnnounceConfig {
            me: config.id,
            address: advertised,
            zone: config.zone,
            host: config.host,
            binding: config.binding,
            open_files: match store.holding() {
                Holding::Replica => None,
                Holding::Cached => Some(open_files.clone()),
            },
        };
        let announcer =
            Announcer::start(announce_config, Arc::clone(&store), counters.clone(), &tracker, tasks, stop.clone());
        usage::register_announcing(registry, config.id, announcer.state());
        let reporter = tracker.clone();
        tasks.spawn(async move { reporter.send_reports(stop).await });
        let id = config.id;
        Ok(Self { id, store, swarm, tracker, counters, address, announcer, open_files, served, stop_accepting })
    }

    /// Who it is.
    pub fn id(&self) -> PeerId {
        self.id
    }

    /// What it keeps.
    pub fn store(&self) -> &Arc<S> {
        &self.store
    }

    /// What it fetches with.
    pub fn swarm(&self) -> &Arc<Swarm> {
        &self.swarm
    }

    /// The tracker that it announces to.
    pub fn tracker(&self) -> &TrackerClient {
        &self.tracker
    }

    /// What it served so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Where it listens; none if it shares nothing.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Inodes that a mount has open: whoever opens and closes them says so here, and the trackers are told.
    pub fn open_files(&self) -> &OpenFiles {
        &self.open_files
    }

    /// How the announcing goes; changes wake the receiver.
    pub fn announced(&self) -> watch::Receiver<AnnounceState> {
        self.announcer.state()
    }

    /// Returns when a tracker refuses this peer for good: why, and what to do.
    pub async fn refused(&self) -> String {
        let mut state = self.announced();
        match state.wait_for(|state| state.refused.is_some()).await {
            Ok(state) => state.refused.clone().unwrap_or_default(),
            // All links have ended: the peer is being stopped.
            Err(_) => std::future::pending().await,
        }
    }

    /// Stop accepting, tell the trackers, and let the calls in flight end, for at most `within`.
    ///
    /// The store is not flushed and other tasks go on: that is for the owner, who then cancels `stop`.
    pub async fn drain(&self, within: Duration) -> Stopped {
        self.stop_accepting.cancel();
        let finish = async {
            if let Some(served) = &self.served {
                served.ended().await;
            }
        };
        // The trackers first: who asks them meanwhile is not sent here any more.
        self.announcer.leave().await;
        match tokio::time::timeout(within, finish).await {
            Ok(()) => Stopped::Clean,
            Err(_) => Stopped::Forced,
        }
    }
}
