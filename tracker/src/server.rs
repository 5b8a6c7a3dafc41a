//! A whole tracker in one process: built from its configuration, run, and stopped.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use swarm_proto::admin::{self, Readiness};
use swarm_proto::v1::holders_server::HoldersServer;
use swarm_proto::{BootId, SwarmId, v1};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Server;

use crate::config::{AdminListen, TrackerConfig};
use crate::grpc::holders::{Copies, Desk, HoldersService};
use crate::grpc::observe::ObserveLayer;
use crate::listener::Listener;
use crate::metrics::Metrics;
use crate::peers::Registry;
use crate::soft::Soft;

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
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
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
    stop: CancellationToken,
    cut: CancellationToken,
    ready: Readiness,
    tasks: TaskTracker,
}

impl Tracker {
    /// Start it; it serves when this returns.
    ///
    /// Errors: nothing is left behind.
    pub async fn start(config: TrackerConfig) -> Result<Self, StartError> {
        config.validate().map_err(|(key, reason)| StartError::Config { key, reason })?;
        let listener = Listener::bind(config.listen)
            .await
            .map_err(|source| StartError::Bind { address: config.listen, source })?;
        let (stop, cut, tasks) = (CancellationToken::new(), CancellationToken::new(), TaskTracker::new());
        let soft = Arc::new(Soft::new(Registry::new(config.stale_grace.0, config.dead_after.0)));
        let metrics = Arc::new(Metrics::new(soft.clone()).map_err(|error| StartError::Internal(error.to_string()))?);
        let ready = Readiness::default();
        let admin_address = match config.admin_listen {
            AdminListen::Off => None,
            AdminListen::On(address) => {
                let bound = admin::serve(address, metrics.registry().clone(), ready.clone(), &tasks, cut.clone());
                Some(bound.await.map_err(|source| StartError::Bind { address, source })?)
            }
        };
        let desk = Arc::new(Desk {
            soft: soft.clone(),
            boot_id: BootId::random(),
            swarm_id: SwarmId::random(),
            copies: Copies { replicas: config.replicas, min_replicas: config.min_replicas },
            started: Instant::now(),
            tasks: tasks.clone(),
            stop: stop.clone(),
        });
        let tracker = Self { address: listener.address(), admin_address, soft, stop, cut, ready, tasks };
        tracker.serve(listener, desk, metrics)?;
        tracker.sweep();
        tracker.ready.set(true);
        tracing::info!(address = %tracker.address, "tracker serves");
        Ok(tracker)
    }

    fn serve(&self, listener: Listener, desk: Arc<Desk>, metrics: Arc<Metrics>) -> Result<(), StartError> {
        let (_, health) = tonic_health::server::health_reporter();
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(v1::DESCRIPTORS)
            .build_v1()
            .map_err(|error| StartError::Internal(error.to_string()))?;
        let holders = HoldersServer::new(HoldersService::new(desk))
            .max_decoding_message_size(MOST_HOLDERS_MESSAGE)
            .max_encoding_message_size(swarm_proto::MAX_MESSAGE_BYTES);
        let connections = listener.accept(&self.tasks, self.stop.clone(), self.cut.clone());
        let server = Server::builder()
            .layer(ObserveLayer::new(metrics))
            .max_concurrent_streams(STREAMS_A_CONNECTION)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keepalive_interval(Some(KEEPALIVE_EVERY))
            .http2_keepalive_timeout(Some(KEEPALIVE_WITHIN))
            .add_service(holders)
            .add_service(health)
            .add_service(reflection)
            .serve_with_incoming_shutdown(connections, self.stop.clone().cancelled_owned());
        self.tasks.spawn(async move {
            if let Err(error) = server.await {
                tracing::error!(%error, "serve");
            }
        });
        Ok(())
    }

    fn sweep(&self) {
        let (soft, stop, tasks) = (self.soft.clone(), self.stop.clone(), self.tasks.clone());
        self.tasks.spawn(async move {
            let mut ticks = interval(SWEEP_EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    _ = ticks.tick() => {}
                    () = stop.cancelled() => return,
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

    /// Stop: no new calls, a few seconds for those in progress, then none.
    ///
    /// Cost: at most about five seconds.
    pub async fn stop(self) -> Stopped {
        self.ready.set(false);
        self.stop.cancel();
        self.tasks.close();
        // The operator's endpoint answers until the calls have ended.
        let clean = timeout(DRAIN, self.tasks.wait()).await.is_ok();
        self.cut.cancel();
        if timeout(DRAIN, self.tasks.wait()).await.is_err() {
            tracing::warn!("tasks of the tracker did not end");
        }
        match clean {
            true => Stopped::Clean,
            false => Stopped::Forced,
        }
    }
}

impl Drop for Tracker {
    /// A tracker that was not stopped ends without waiting.
    fn drop(&mut self) {
        self.stop.cancel();
        self.cut.cancel();
    }
}
