//! One seeder in this process, from its configuration to its last flush.
//!
//! Not a process: `swarmfs up` and tests run several. Order of the start: check, open the store, bind,
//! serve, announce; of the end: stop accepting, say that it leaves, finish what is in flight, flush.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use prometheus::Registry;
use swarm_proto::admin::{self, Readiness};
use swarm_proto::{PeerId, SwarmId};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::config::{Checked, ConfigError, SeederConfig};
use super::repair::{self, RepairCounters};
use crate::announcer::Binding;
use crate::peer::{Peer, PeerConfig, PeerError, Sharing, Stopped};
use crate::store::{ChunkStore, SledStore, StoreConfig, StoreError};
use crate::swarm::{Swarm, SwarmConfig};
use crate::tracker_client::{TrackerClient, TrackerClientConfig};

/// How long calls in flight may take to end once the seeder is asked to stop.
const DRAIN_WAIT: Duration = Duration::from_secs(10);
/// How long tasks may take to end after that, and the store to be flushed.
const FLUSH_WAIT: Duration = Duration::from_secs(30);
/// How long a question to the tracker is tried.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a seeder did not start, or does not go on.
#[derive(Debug, thiserror::Error)]
pub enum SeederError {
    /// The settings cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The folder cannot be written to.
    #[error("folder {}: {source}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The store did not open.
    #[error("open the store: {0}")]
    Store(#[from] StoreError),
    /// Nobody can listen there.
    #[error("cannot listen on {address}: {source}; choose another --{flag}")]
    Bind {
        /// Which flag says where.
        flag: &'static str,
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A part of it panicked: a bug.
    #[error("open the store: {0}")]
    Crashed(String),
    /// The tracker serves another swarm than the store belongs to.
    #[error("{0}")]
    Refused(String),
}

impl From<PeerError> for SeederError {
    fn from(PeerError::Bind { address, source }: PeerError) -> Self {
        Self::Bind { flag: "listen", address, source }
    }
}

impl SeederError {
    /// The exit code of a process that ends with it, after `sysexits.h`.
    pub fn exit_code(&self) -> u8 {
        let denied = |source: &io::Error| source.kind() == io::ErrorKind::PermissionDenied;
        match self {
            Self::Folder { source, .. } | Self::Bind { source, .. } if denied(source) => 77,
            Self::Store(StoreError::Io { source, .. }) if denied(source) => 77,
            // A wrong folder or the wrong tracker was named.
            Self::Config(_) | Self::Folder { .. } | Self::Store(StoreError::Unusable(_)) | Self::Refused(_) => 78,
            Self::Bind { .. } => 69,
            Self::Store(_) => 74,
            Self::Crashed(_) => 70,
        }
    }
}

/// A seeder that runs.
pub struct Seeder {
    peer: Peer<SledStore>,
    address: SocketAddr,
    admin_address: Option<SocketAddr>,
    ready: Readiness,
    tasks: TaskTracker,
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
}

impl Seeder {
    /// Open the store and serve it; the tracker may be away, and is joined when it is back.
    ///
    /// Errors: [`SeederError`]; nothing is left running.
    pub async fn start(config: SeederConfig, registry: &Registry) -> Result<Self, SeederError> {
        let checked = config.check()?;
        std::fs::create_dir_all(&config.data)
            .map_err(|source| SeederError::Folder { path: config.data.clone(), source })?;
        let store = open_store(&config, &checked).await?;
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let started = Self::run(&config, &checked, &store, registry, &tasks, &stop).await;
        if started.is_err() {
            stop.cancel();
            tasks.close();
            tasks.wait().await;
            store.close().await;
        }
        started
    }

    async fn run(
        config: &SeederConfig,
        checked: &Checked,
        store: &Arc<SledStore>,
        registry: &Registry,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<Self, SeederError> {
        let ready = Readiness::default();
        let peer = start_peer(config, checked, Arc::clone(store), registry, tasks, stop).await?;
        let address = peer.address().expect("a seeder always serves");
        let admin_address = match checked.admin_listen {
            Some(listen) => {
                let served = admin::serve(listen, registry.clone(), ready.clone(), tasks, stop.clone()).await;
                Some(served.map_err(|source| SeederError::Bind { flag: "admin-listen", address: listen, source })?)
            }
            None => None,
        };
        if let Some(sink) = store.sink() {
            let counters = RepairCounters::new(registry, peer.id());
            let repair = repair::run(Arc::clone(store), sink, Arc::clone(peer.swarm()), counters);
            tasks.spawn(stop.clone().run_until_cancelled_owned(repair));
        }
        tasks.spawn(stop.clone().run_until_cancelled_owned(become_ready(peer.announced(), ready.clone())));
        tracing::info!(peer = %peer.id(), %address, data = %config.data.display(), "serving chunks");
        let (tasks, stop) = (tasks.clone(), stop.clone());
        let stop_on_drop = stop.clone().drop_guard();
        Ok(Self { peer, address, admin_address, ready, tasks, stop, _stop_on_drop: stop_on_drop })
    }

    /// Who it is, over all its restarts.
    pub fn id(&self) -> PeerId {
        self.peer.id()
    }

    /// Where it serves chunks.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it shows itself to its operator.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin_address
    }

    /// Its peer, with store, fetcher and counters.
    pub fn peer(&self) -> &Peer<SledStore> {
        &self.peer
    }

    /// Wait until a tracker knows all that it holds; false if none did within `patience`.
    pub async fn announced(&self, patience: Duration) -> bool {
        let mut state = self.peer.announced();
        let told = tokio::time::timeout(patience, state.wait_for(|state| state.told > 0)).await;
        matches!(told, Ok(Ok(_)))
    }

    /// Returns when it cannot go on: why, and what to do.
    pub async fn failed(&self) -> SeederError {
        SeederError::Refused(self.peer.refused().await)
    }

    /// Drain and end it, within about 10 s for what is in flight and 30 s for the store.
    pub async fn stop(self) -> Stopped {
        self.ready.set(false);
        let drained = self.peer.drain(DRAIN_WAIT).await;
        self.stop.cancel();
        self.tasks.close();
        let end = async {
            self.tasks.wait().await;
            Arc::clone(self.peer.store()).close().await;
        };
        match tokio::time::timeout(FLUSH_WAIT, end).await {
            Ok(()) => drained,
            Err(_) => {
                tracing::error!("the store was not flushed within {FLUSH_WAIT:?}");
                Stopped::Forced
            }
        }
    }
}

async fn open_store(config: &SeederConfig, checked: &Checked) -> Result<Arc<SledStore>, SeederError> {
    let store_config = StoreConfig {
        capacity: config.capacity.0,
        inline_up_to: checked.inline_up_to,
        ..StoreConfig::new(&config.data)
    };
    let opened = tokio::task::spawn_blocking(|| SledStore::open(store_config)).await;
    opened.map_err(|error| SeederError::Crashed(error.to_string()))?.map_err(SeederError::Store)
}

async fn start_peer(
    config: &SeederConfig,
    checked: &Checked,
    store: Arc<SledStore>,
    registry: &Registry,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Result<Peer<SledStore>, SeederError> {
    let id = store.peer_id();
    let tracker = TrackerClient::new(TrackerClientConfig {
        address: checked.tracker.clone(),
        me: Some(id),
        zone: config.zone.clone(),
        patience: PATIENCE,
    });
    let tracker = tracker.map_err(|error| ConfigError { key: "tracker", reason: error.to_string() })?;
    let swarm_config =
        SwarmConfig { download_limit: config.download_limit, ..SwarmConfig::new(id, config.zone.clone()) };
    let swarm = Swarm::new(swarm_config, Arc::new(tracker.clone()), registry, tasks.clone(), stop.clone());
    let peer_config = PeerConfig {
        id,
        sharing: Sharing::Serve {
            listen: config.listen,
            advertise: config.advertise.clone(),
            upload_limit: checked.upload_limit,
        },
        zone: config.zone.clone(),
        host: config.host.clone(),
        binding: binding(&store, config, &tracker),
    };
    Ok(Peer::start(peer_config, store, swarm, tracker, registry, tasks, stop.clone()).await?)
}

/// The store remembers the first swarm it served and belongs to no other.
fn binding(store: &Arc<SledStore>, config: &SeederConfig, client: &TrackerClient) -> Binding {
    let (store, data, client) = (Arc::clone(store), config.data.display().to_string(), client.clone());
    if let Some(bound) = store.swarm_id() {
        client.bind_to(bound);
    }
    Arc::new(move |swarm: SwarmId| {
        let (store, data, client) = (Arc::clone(&store), data.clone(), client.clone());
        Box::pin(async move {
            match store.swarm_id() {
                Some(bound) if bound == swarm => Ok(()),
                Some(bound) => Err(format!(
                    "the store in {data} belongs to swarm {bound}, but the tracker {} serves swarm {swarm}. If that \
                     tracker has lost its catalog, bring it back (`swarmfs catalog import`) before anybody else joins: \
                     the store is whole, and is of use again then. If this seeder is to join another swarm, give it a \
                     --data folder of its own there",
                    client.address()
                )),
                None => {
                    client.agree().await.map_err(|error| error.to_string())?;
                    if client.bind_to(swarm) != swarm {
                        return Err(format!("the addresses in {} are not replicas of one tracker", client.address()));
                    }
                    store.bind_swarm(swarm).await.map_err(|error| format!("join the swarm: {error}"))
                }
            }
        })
    })
}

/// Let this process have as many files open as it may: a shell's usual limit is below the connections
/// and segment files of a busy seeder.
pub fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "raise the limit of open files");
    }
}

/// Ready from the first time that a tracker knows what is held: a rolling restart waits for it, and a
/// tracker that goes away later does not take the seeders with it.
async fn become_ready(mut state: tokio::sync::watch::Receiver<crate::announcer::AnnounceState>, ready: Readiness) {
    if state.wait_for(|state| state.told > 0).await.is_ok() {
        ready.set(true);
    }
}
