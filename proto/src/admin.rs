//! What every daemon has: threads, `/metrics`, `/livez`, `/readyz` and a log for its operator, and how it is stopped.
//!
//! Not the gRPC health service: that is served beside the program's own services.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use prometheus::{Registry, TextEncoder};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing_subscriber::EnvFilter;

/// The threads of a daemon: half as many as there are cores, and others for what waits for disks. Most calls are short,
/// and handing them from thread to thread costs more than a second core brings.
pub fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let workers = std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2));
    tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build()
}

/// Whether a daemon can do its work now; clones share it.
#[derive(Clone, Default)]
pub struct Readiness(Arc<AtomicBool>);

impl Readiness {
    /// Say so.
    pub fn set(&self, ready: bool) {
        self.0.store(ready, Ordering::Release);
    }

    /// Whether it is.
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Serve the operator's HTTP endpoint until `stop`.
///
/// Errors: the address cannot be bound.
pub async fn serve(
    listen: SocketAddr,
    registry: Registry,
    ready: Readiness,
    tasks: &TaskTracker,
    stop: CancellationToken,
) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind(listen).await?;
    let bound = listener.local_addr()?;
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .with_state((registry, ready));
    tasks.spawn(async move {
        let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await;
        if let Err(error) = served {
            tracing::error!(%error, "serve metrics");
        }
    });
    Ok(bound)
}

async fn metrics(State((registry, _)): State<(Registry, Readiness)>) -> (StatusCode, String) {
    match TextEncoder::new().encode_to_string(&registry.gather()) {
        Ok(text) => (StatusCode::OK, text),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

async fn readyz(State((_, ready)): State<(Registry, Readiness)>) -> (StatusCode, &'static str) {
    match ready.get() {
        true => (StatusCode::OK, "ready\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
    }
}

/// Write the log to standard error: `filter` is `info`, `debug`, or `target=level,…`.
///
/// A second call in one process (tests) leaves the first in place.
pub fn init_log(filter: &str, format: LogFormat) -> Result<(), String> {
    // Of an unmount by somebody else, which is not its business, fuser warns that there is nothing to unmount; and of
    // each reply that the kernel no longer waits for, as of reads under way at an unmount, that it could not be sent.
    let filter = EnvFilter::try_new(format!("fuser::session=error,fuser::reply=off,{filter}"))
        .map_err(|error| format!("log filter {filter:?}: {error}"))?;
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours)
        .with_writer(std::io::stderr)
        // It would tell standard error that this cannot be written to, and panic where that fails: on a full disk.
        .log_internal_errors(false);
    let set = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    drop(set);
    Ok(())
}

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Wait until the process is asked to stop (SIGINT or SIGTERM, also as PID 1 of a container).
pub async fn stop_requested() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}
