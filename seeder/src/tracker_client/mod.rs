//! Talking to the tracker: one client for all its replicas.
//!
//! Every call has a deadline for each attempt and one for all; an attempt that fails for want of a
//! tracker goes to the next replica. Not here: what to do with the answers, and the announce stream,
//! which belongs to the announcer.
//!
//! Invariant: the newest revision that any answer carried is sent with every later question, so no
//! answer is from before it, unless the catalog itself went back.

mod address;
mod catalog;
mod holders;

pub use address::{AddressError, DEFAULT_PORT, TrackerAddress};
pub use catalog::{Currency, Leased, NodeWithManifest, Outcome, Refusal};

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use swarm_proto::v1::catalog_client::CatalogClient;
use swarm_proto::v1::holders_client::HoldersClient;
use swarm_proto::{Fault, MAX_MESSAGE_BYTES, PeerId, Revision, fault};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

/// Longest wait for one attempt of a small question. A stopped replica hangs its callers; a killed one
/// is replaced in about 1.3 s.
const ATTEMPT: Duration = Duration::from_millis(1_500);
/// Longest wait for one attempt of a question with a large answer.
const BULK_ATTEMPT: Duration = Duration::from_secs(20);
/// First and longest pause between attempts.
const PAUSES: (Duration, Duration) = (Duration::from_millis(30), Duration::from_millis(500));

/// Why the tracker did not do it. The variant tells the caller what to do next.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TrackerError {
    /// It understood and refused: asking again changes nothing.
    #[error("{message}")]
    Refused {
        /// Why, for programs.
        fault: Fault,
        /// Why, for people.
        message: String,
    },
    /// No replica answered in time: try later.
    #[error("the tracker at {address} does not answer ({reason}); is swarm-tracker running there?")]
    Unreachable {
        /// The replicas that were tried.
        address: String,
        /// What the last attempt met.
        reason: String,
        /// How long it was tried.
        waited: Duration,
    },
    /// It answered something that makes no sense: it is not ours, or of another version.
    #[error("the tracker at {address} answered {what} that cannot be read; do both run the same version?")]
    Nonsense {
        /// The replicas.
        address: String,
        /// Which part.
        what: String,
    },
}

impl TrackerError {
    /// What it means to a caller that thinks in faults.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Refused { fault, .. } => *fault,
            Self::Unreachable { .. } => Fault::Unavailable,
            Self::Nonsense { .. } => Fault::Corrupt,
        }
    }
}

/// How a [`TrackerClient`] behaves.
#[derive(Debug, Clone)]
pub struct TrackerClientConfig {
    /// The replicas.
    pub address: TrackerAddress,
    /// Who asks; left out of the holders it is told.
    pub me: Option<PeerId>,
    /// The asker's zone; empty: none.
    pub zone: String,
    /// How long to go on trying before [`TrackerError::Unreachable`].
    pub patience: Duration,
}

/// A client of all replicas of one tracker; clones share it.
#[derive(Clone)]
pub struct TrackerClient {
    shared: Arc<Shared>,
}

struct Shared {
    config: TrackerClientConfig,
    channels: Vec<Channel>,
    preferred: AtomicUsize,
    newest: AtomicU64,
    /// Why nobody is asked.
    estranged: parking_lot::RwLock<Option<Arc<str>>>,
    replaced: AtomicBool,
    reports: tokio::sync::mpsc::Sender<swarm_proto::v1::HolderReport>,
    reports_out: parking_lot::Mutex<Option<tokio::sync::mpsc::Receiver<swarm_proto::v1::HolderReport>>>,
}

impl TrackerClient {
    /// A client that connects when it is first used.
    ///
    /// Errors: the address cannot be made a URI.
    pub fn new(config: TrackerClientConfig) -> Result<Self, AddressError> {
        let channels = config.address.endpoints().iter().map(|endpoint| channel(endpoint)).collect::<Result<_, _>>()?;
        let (reports, reports_out) = tokio::sync::mpsc::channel(1_024);
        Ok(Self {
            shared: Arc::new(Shared {
                config,
                channels,
                preferred: AtomicUsize::new(0),
                newest: AtomicU64::new(0),
                estranged: parking_lot::RwLock::default(),
                replaced: AtomicBool::new(false),
                reports,
                reports_out: parking_lot::Mutex::new(Some(reports_out)),
            }),
        })
    }

    /// The replicas it talks to.
    pub fn address(&self) -> &TrackerAddress {
        &self.shared.config.address
    }

    /// One channel for each replica, in the order of the address: for the announcer, which talks to all.
    pub fn channels(&self) -> &[Channel] {
        &self.shared.channels
    }

    /// The newest revision that an answer carried.
    pub fn newest_revision(&self) -> Revision {
        Revision(self.shared.newest.load(Ordering::Acquire))
    }

    /// Never be answered from before `revision` again.
    pub fn saw(&self, revision: Revision) {
        self.shared.newest.fetch_max(revision.0, Ordering::AcqRel);
    }

    /// The catalog there is another than the one that was seen: its revisions are older, and `revision` is its newest.
    pub fn went_back(&self, revision: Revision) {
        self.shared.newest.store(revision.0, Ordering::Release);
    }

    /// Refuse every question from now on, since what answers there is not the tracker that is meant.
    pub fn estrange(&self, reason: &str) {
        *self.shared.estranged.write() = Some(Arc::from(reason));
    }

    /// It is the tracker that is meant. If it was not until now, its catalog was brought back: no revision is known of
    /// it, and [`Self::take_replaced`] says so once.
    pub fn reconcile(&self) {
        let mut estranged = self.shared.estranged.write();
        if estranged.is_some() {
            self.went_back(Revision(0));
            self.shared.replaced.store(true, Ordering::Release);
            *estranged = None;
        }
    }

    /// Whether the catalog was replaced by another since this was last asked.
    pub fn take_replaced(&self) -> bool {
        self.shared.replaced.swap(false, Ordering::AcqRel)
    }

    /// Ask a small question: `attempt` puts `request` to one replica.
    async fn ask<R, T, A, F>(&self, request: R, attempt: A) -> Result<T, TrackerError>
    where
        R: Clone,
        A: Fn(Channel, R) -> F,
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.ask_within(ATTEMPT, request, attempt).await
    }

    /// Ask a question whose answer takes long.
    async fn ask_bulk<R, T, A, F>(&self, request: R, attempt: A) -> Result<T, TrackerError>
    where
        R: Clone,
        A: Fn(Channel, R) -> F,
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.ask_within(BULK_ATTEMPT, request, attempt).await
    }

    /// Put one question to the replicas in turn until one answers or patience ends.
    async fn ask_within<R, T, A, F>(&self, limit: Duration, request: R, attempt: A) -> Result<T, TrackerError>
    where
        R: Clone,
        A: Fn(Channel, R) -> F,
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let shared = &self.shared;
        let began = Instant::now();
        let mut pause = PAUSES.0;
        loop {
            if let Some(reason) = shared.estranged.read().clone() {
                return Err(TrackerError::Refused { fault: Fault::Stale, message: reason.to_string() });
            }
            let index = shared.preferred.load(Ordering::Relaxed) % shared.channels.len();
            let reason =
                match tokio::time::timeout(limit, attempt(shared.channels[index].clone(), request.clone())).await {
                    Ok(Ok(response)) => return Ok(response.into_inner()),
                    Ok(Err(status)) if !is_absence(&status) => {
                        return Err(TrackerError::Refused {
                            fault: fault::of_status(&status),
                            message: status.message().to_owned(),
                        });
                    }
                    Ok(Err(status)) => innermost(&status),
                    Err(_) => format!("no answer within {limit:?}"),
                };
            shared.preferred.fetch_add(1, Ordering::Relaxed);
            let waited = began.elapsed();
            if waited + pause >= shared.config.patience {
                return Err(TrackerError::Unreachable { address: shared.config.address.to_string(), reason, waited });
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    fn nonsense(&self, what: impl std::fmt::Display) -> TrackerError {
        TrackerError::Nonsense { address: self.shared.config.address.to_string(), what: what.to_string() }
    }
}

fn channel(endpoint: &str) -> Result<Channel, AddressError> {
    let endpoint = Endpoint::from_shared(format!("http://{endpoint}"))
        .map_err(|_| AddressError { text: endpoint.to_owned() })?
        .connect_timeout(Duration::from_secs(1))
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true)
        .initial_stream_window_size(4 * 1024 * 1024)
        .initial_connection_window_size(16 * 1024 * 1024);
    Ok(endpoint.connect_lazy())
}

fn catalog_client(channel: Channel) -> CatalogClient<Channel> {
    CatalogClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

fn holders_client(channel: Channel) -> HoldersClient<Channel> {
    HoldersClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// Whether a status means that nobody answered, rather than that somebody refused.
fn is_absence(status: &Status) -> bool {
    let ours = status.metadata().contains_key(fault::FAULT_KEY);
    match status.code() {
        Code::Unavailable => !ours || fault::of_status(status) == Fault::Unavailable,
        Code::DeadlineExceeded | Code::Cancelled => true,
        // A transport error on a connection that has just died.
        Code::Unknown | Code::Internal => !ours && std::error::Error::source(status).is_some(),
        _ => false,
    }
}

/// The last cause of a status, which says more to a person than "transport error".
pub(crate) fn innermost(status: &Status) -> String {
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(status);
    let mut text = status.message().to_owned();
    while let Some(error) = cause {
        text = error.to_string();
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_estranged_client_refuses_at_once_and_says_why() {
        let address = "127.0.0.1:1".parse().unwrap();
        let config =
            TrackerClientConfig { address, me: None, zone: String::new(), patience: Duration::from_millis(50) };
        let client = TrackerClient::new(config).unwrap();
        assert!(matches!(client.stat_fs().await, Err(TrackerError::Unreachable { .. })));
        client.saw(Revision(9));
        client.estrange("another swarm");
        client.estrange("another swarm still");
        let refused = client.stat_fs().await.unwrap_err();
        assert!(refused.fault() == Fault::Stale && refused.to_string() == "another swarm still", "{refused}");
        client.reconcile();
        assert_eq!(
            (client.newest_revision(), client.take_replaced(), client.take_replaced()),
            (Revision(0), true, false)
        );
        client.saw(Revision(3));
        client.reconcile();
        assert_eq!((client.newest_revision(), client.take_replaced()), (Revision(3), false));
        assert!(matches!(client.stat_fs().await, Err(TrackerError::Unreachable { .. })));
    }

    #[tokio::test]
    async fn revisions_only_rise_until_the_catalog_went_back() {
        let address = "127.0.0.1:1".parse().unwrap();
        let config = TrackerClientConfig { address, me: None, zone: String::new(), patience: Duration::ZERO };
        let client = TrackerClient::new(config).unwrap();
        client.saw(Revision(9));
        client.saw(Revision(4));
        assert_eq!(client.newest_revision(), Revision(9));
        client.went_back(Revision(4));
        assert_eq!(client.newest_revision(), Revision(4));
    }
}
