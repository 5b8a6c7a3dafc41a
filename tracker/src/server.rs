//! A whole tracker in one process: built from its configuration, run, and stopped.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use swarm_proto::admin::{self, Readiness};
use swarm_proto::v1::holders_server::HoldersServer;
use swarm_proto::{BootId, MAX_MESSAGE_BYTES, meant, v1};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::{Request, Status};

use crate::capacity::SwarmCapacity;
use crate::catalog::{Catalog, CatalogConfig};
use crate::census::Census;
use crate::config::{AdminListen, TrackerConfig};
use crate::grpc::catalog::{CatalogRoute, CatalogService};
use crate::grpc::desk::Desk;
use crate::grpc::holders::HoldersService;
use crate::grpc::observe::ObserveLayer;
use crate::listener::Listener;
use crate::metrics::Metrics;
use crate::peers::Registry;
use crate::roster;
use crate::soft::Soft;
use crate::store::schema::Settings;
use crate::store::{MemoryStore, SledStore, Store, StoreError};

/// Largest message to the Holders service: 16,384 ids and their framing.
const MOST_HOLDERS_MESSAGE: usize = 1024 * 1024;

/// Streams of one connection at a time. Together with the largest message and the windows this bounds
/// what one connection can make the tracker hold.
const STREAMS_A_CONNECTION: u32 = 128;
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;

/// A peer whose machine vanished is noticed after the two together.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(3);
const KEEPALIVE_WITHIN: Duration = Duration::from_secs(4);

/// How long calls may go on after stop was asked for.
const DRAIN: Duration = Duration::from_secs(3);

/// How long the rest may take.
const CLOSE: Duration = Duration::from_secs(10);

/// How old the health that the metrics show may be.
const COUNT_EVERY: Duration = Duration::from_secs(10);

/// How often time is looked at: what the dead held is forgotten so much later than the grace, at most.
const SWEEP_EVERY: Duration = Duration::from_millis(250);

/// Why a tracker did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting is wrong.
    #[error("`{key}`: {reason}")]
    Config {
        /// Which.
        key: &'static str,
        /// Why.
        reason: String,
    },
    /// An address cannot be bound.
    #[error("cannot listen on {address}: {source}; choose another --{flag}")]
    Bind {
        /// Which flag says where.
        flag: &'static str,
        /// Which.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The catalog cannot be used.
    #[error(transparent)]
    Catalog(#[from] StoreError),
    /// A part of the program contradicts itself.
    #[error("{0}")]
    Internal(String),
}

/// How a tracker stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// All calls had ended.
    Clean,
    /// Some had to be cut.
    Forced,
}

/// A running tracker.
pub struct Tracker {
    address: SocketAddr,
    admin_address: Option<SocketAddr>,
    soft: Arc<Soft>,
    catalog: Arc<Catalog>,
    /// Cancelled once the catalog's folder is free.
    closed: CancellationToken,
    ready: Readiness,
    phases: Phases,
}

/// The end comes in three steps: no new calls, no more connections, no more work.
struct Phases {
    /// Ends streams, and the accepting of connections.
    stop: CancellationToken,
    /// Cuts the connections that are left.
    cut: CancellationToken,
    /// Ends what answers the calls.
    halt: CancellationToken,
    calls: TaskTracker,
    work: TaskTracker,
}

impl Drop for Phases {
    /// A tracker that was not stopped ends without waiting.
    fn drop(&mut self) {
        self.stop.cancel();
        self.cut.cancel();
        self.halt.cancel();
    }
}

impl Tracker {
    /// Start it; it serves when this returns.
    ///
    /// Errors: nothing is left behind.
    /// Cost:   reads all names of the catalog.
    pub async fn start(config: TrackerConfig) -> Result<Self, StartError> {
        config.validate().map_err(|(key, reason)| StartError::Config { key, reason })?;
        let listener = Listener::bind(config.listen).await.map_err(|source| StartError::Bind {
            flag: "listen",
            address: config.listen,
            source,
        })?;
        let phases = Phases {
            stop: CancellationToken::new(),
            cut: CancellationToken::new(),
            halt: CancellationToken::new(),
            calls: TaskTracker::new(),
            work: TaskTracker::new(),
        };
        let soft = Arc::new(Soft::new(Registry::new(config.stale_grace.0, config.dead_after.0)));
        let (closed, catalog) = open_catalog(&config, soft.clone(), &phases).await?;
        roster::restore(&catalog, &soft).await?;
        let census = Arc::new(Census::new(soft.clone(), catalog.clone()));
        let metrics = Metrics::new(census.clone());
        let metrics = Arc::new(metrics.map_err(|error| StartError::Internal(error.to_string()))?);
        let ready = Readiness::default();
        let admin_address = match config.admin_listen {
            AdminListen::Off => None,
            AdminListen::On(address) => {
                let (registry, ready) = (metrics.registry().clone(), ready.clone());
                let bound = admin::serve(address, registry, ready, &phases.work, phases.halt.clone());
                Some(bound.await.map_err(|source| StartError::Bind { flag: "admin-listen", address, source })?)
            }
        };
        let address = listener.address();
        let tracker = Self { address, admin_address, soft, catalog, closed, ready, phases };
        tracker.serve(listener, metrics, census.clone())?;
        tracker.look_after(census);
        tracker.ready.set(true);
        tracing::info!(%address, swarm = %tracker.catalog.swarm_id(), "tracker serves");
        Ok(tracker)
    }

    fn serve(&self, listener: Listener, metrics: Arc<Metrics>, census: Arc<Census>) -> Result<(), StartError> {
        let Phases { stop, cut, calls, .. } = &self.phases;
        let desk = Desk {
            soft: self.soft.clone(),
            boot_id: BootId::random(),
            catalog: self.catalog.clone(),
            census,
            started: Instant::now(),
            tasks: calls.clone(),
            stop: stop.clone(),
        };
        let holders = HoldersServer::new(HoldersService::new(Arc::new(desk)))
            .max_decoding_message_size(MOST_HOLDERS_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let capacity = SwarmCapacity { soft: self.soft.clone(), catalog: self.catalog.clone() };
        let service = CatalogService::new(self.catalog.clone(), Arc::new(capacity));
        let catalog = CatalogRoute::new(service.counted(metrics.clone()).until(stop.clone(), calls.clone()));
        let (_, health) = tonic_health::server::health_reporter();
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(v1::DESCRIPTORS)
            .build_v1()
            .map_err(|error| StartError::Internal(error.to_string()))?;
        let server = Server::builder()
            .layer(ObserveLayer::new(metrics))
            .max_concurrent_streams(STREAMS_A_CONNECTION)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keepalive_interval(Some(KEEPALIVE_EVERY))
            .http2_keepalive_timeout(Some(KEEPALIVE_WITHIN))
            .add_service(InterceptedService::new(holders, ours_only(self.catalog.clone())))
            .add_service(InterceptedService::new(catalog, ours_only(self.catalog.clone())))
            .add_service(health)
            .add_service(reflection);
        let connections = listener.accept(calls, stop.clone(), cut.clone());
        let served = server.serve_with_incoming_shutdown(connections, stop.clone().cancelled_owned());
        calls.spawn(async move {
            if let Err(error) = served.await {
                tracing::error!(%error, "serve");
            }
        });
        Ok(())
    }

    /// What runs beside the calls.
    fn look_after(&self, census: Arc<Census>) {
        let Phases { halt, work, .. } = &self.phases;
        work.spawn(roster::run(self.catalog.clone(), self.soft.clone(), halt.clone()));
        let (tasks, stop) = (work.clone(), halt.clone());
        work.spawn(async move {
            while timeout(COUNT_EVERY, stop.cancelled()).await.is_err() {
                if let Err(error) = census.current(&tasks).await {
                    tracing::warn!(%error, "count the segments");
                }
            }
        });
        let (soft, halt, tasks) = (self.soft.clone(), halt.clone(), work.clone());
        work.spawn(async move {
            let mut ticks = interval(SWEEP_EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    _ = ticks.tick() => {}
                    () = halt.cancelled() => return,
                }
                let soft = soft.clone();
                // A large peer's holdings take a while to forget.
                if let Err(error) = tasks.spawn_blocking(move || soft.sweep(Instant::now())).await {
                    tracing::error!(%error, "sweep");
                }
            }
        });
    }

    /// Where it serves peers.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it serves its operator, if anywhere.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin_address
    }

    /// Stop: no new calls, a few seconds for those in progress, then none. Another tracker can open the
    /// same folder when this returns.
    ///
    /// Cost: milliseconds; at most about sixteen seconds.
    pub async fn stop(self) -> Stopped {
        let Self { catalog, soft, closed, ready, phases, .. } = self;
        ready.set(false);
        phases.stop.cancel();
        phases.calls.close();
        let clean = timeout(DRAIN, phases.calls.wait()).await.is_ok();
        phases.cut.cancel();
        // The streams have ended: that is when their seeders were last seen.
        if timeout(DRAIN, roster::save(&catalog, &soft)).await.is_err() {
            tracing::warn!("the registry of seeders could not be saved in time");
        }
        phases.halt.cancel();
        phases.work.close();
        drop(catalog);
        let ended = async {
            phases.calls.wait().await;
            phases.work.wait().await;
            // Connections that were cut let go of their services a moment later.
            closed.cancelled().await;
        };
        if timeout(CLOSE, ended).await.is_err() {
            tracing::warn!("some work of the tracker did not end in time");
        }
        match clean {
            true => Stopped::Clean,
            false => Stopped::Forced,
        }
    }
}

/// Refuses what is meant for another swarm.
fn ours_only(catalog: Arc<Catalog>) -> impl FnMut(Request<()>) -> Result<Request<()>, Status> + Clone + Send + Sync {
    move |request| meant::check(catalog.swarm_id(), &request).map(|()| request)
}

/// In its folder, or in memory.
async fn open_catalog(
    config: &TrackerConfig,
    soft: Arc<Soft>,
    phases: &Phases,
) -> Result<(CancellationToken, Arc<Catalog>), StoreError> {
    let Phases { work, halt, .. } = phases;
    let (store, closed): (Arc<dyn Store>, _) = match &config.data {
        Some(folder) => {
            let store = SledStore::open(folder, work, halt.clone()).await?;
            let closed = store.closed();
            (Arc::new(store), closed)
        }
        // Memory is free whenever it is.
        None => (Arc::new(MemoryStore::new()), halt.clone()),
    };
    let settings = Settings { replicas: config.replicas, min_replicas: config.min_replicas };
    let usual = CatalogConfig::default();
    // A mount whose stream broke has what it had open until it is given up.
    let orphan_grace = usual.orphan_grace.max(config.stale_grace.0);
    let wanted = CatalogConfig { settings: Some(settings), orphan_grace, ..usual };
    Ok((closed, Catalog::open(store, wanted, soft.clone(), soft, work, halt.clone()).await?))
}
