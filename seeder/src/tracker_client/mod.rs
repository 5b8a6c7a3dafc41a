//! Talking to the tracker: one client for all its replicas.
//!
//! Every call has a deadline for each attempt and one for all; an attempt that fails for want of a
//! tracker goes to the next replica. Not here: what to do with the answers, and the announce stream,
//! which belongs to the announcer.
//!
//! Invariant: the newest revision that any answer carried is sent with every later question, so no
//! answer is from before it, unless the catalog itself went back. A client that is bound to a swarm is
//! answered by no other.

mod address;
mod catalog;
mod holders;

pub use address::{AddressError, DEFAULT_PORT, TrackerAddress};
pub use catalog::{Changed, Currency, Leased, NodeWithManifest, Outcome, Refusal};

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use swarm_proto::meant::MeantFor;
use swarm_proto::v1::catalog_client::CatalogClient;
use swarm_proto::v1::holders_client::HoldersClient;
use swarm_proto::{Fault, MAX_MESSAGE_BYTES, PeerId, Revision, SwarmId, fault, v1};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

use crate::session::Session;
use catalog::Changes;

/// Longest wait for one attempt of a small question. A stopped replica hangs its callers; a killed one
/// is replaced in about 1.3 s.
const ATTEMPT: Duration = Duration::from_millis(1_500);
/// Longest wait for one attempt of a question with a large answer.
const BULK_ATTEMPT: Duration = Duration::from_secs(20);
/// How long the others are waited for once one of several addresses answered.
const OTHERS: Duration = Duration::from_millis(500);
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
    /// What answers knows none of these questions: a seeder, say, or a web server.
    #[error("what answers at {address} is no swarm-tracker, or one of another version")]
    Stranger {
        /// The replicas.
        address: String,
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
            Self::Stranger { .. } => Fault::Invalid,
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
    /// One for each channel.
    sessions: Vec<Session<Changes>>,
    preferred: AtomicUsize,
    newest: AtomicU64,
    meant: MeantFor,
    /// Whether a replica of another swarm was met, and whether that was said.
    strayed: AtomicBool,
    told_strayed: AtomicBool,
    reports: tokio::sync::mpsc::Sender<swarm_proto::v1::HolderReport>,
    reports_out: parking_lot::Mutex<Option<tokio::sync::mpsc::Receiver<swarm_proto::v1::HolderReport>>>,
}

impl TrackerClient {
    /// A client that connects when it is first used.
    ///
    /// Errors: the address cannot be made a URI.
    pub fn new(config: TrackerClientConfig) -> Result<Self, AddressError> {
        let channels: Vec<_> =
            config.address.endpoints().iter().map(|endpoint| channel(endpoint)).collect::<Result<_, _>>()?;
        let (reports, reports_out) = tokio::sync::mpsc::channel(1_024);
        Ok(Self {
            shared: Arc::new(Shared {
                config,
                sessions: channels.iter().map(|_| Session::default()).collect(),
                channels,
                preferred: AtomicUsize::new(0),
                newest: AtomicU64::new(0),
                meant: MeantFor::default(),
                strayed: AtomicBool::new(false),
                told_strayed: AtomicBool::new(false),
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

    /// Be answered by the swarm that answers now, and by no other from then on; which one it is.
    pub async fn bind(&self) -> Result<SwarmId, TrackerError> {
        let swarm = self.swarm_of(&self.stat_fs().await?)?;
        Ok(self.shared.meant.bind(swarm))
    }

    /// Be answered by `swarm` only, unless this client is bound to another already; to which it is bound.
    pub fn bind_to(&self, swarm: SwarmId) -> SwarmId {
        self.shared.meant.bind(swarm)
    }

    /// Make sure, once, that all replicas which answer now are of one swarm, and be bound to it; nothing is done for a
    /// single one.
    ///
    /// Errors: they are not, in words for a person.
    pub async fn agree(&self) -> Result<(), TrackerError> {
        let Shared { channels, meant, config, .. } = &*self.shared;
        if channels.len() < 2 || meant.is_bound() {
            return Ok(());
        }
        let endpoints = config.address.endpoints();
        let ask = |(index, channel): (usize, &Channel)| {
            let mut client = catalog_client(InterceptedService::new(channel.clone(), meant.clone()));
            async move { (index, client.stat_fs(v1::StatFsRequest {}).await) }
        };
        let mut asked: FuturesUnordered<_> = channels.iter().enumerate().map(ask).collect();
        let mut first: Option<(usize, SwarmId)> = None;
        let mut limit = ATTEMPT;
        while let Ok(Some((index, answer))) = tokio::time::timeout(limit, asked.next()).await {
            let Ok(reply) = answer else { continue };
            let swarm = self.swarm_of(&reply.into_inner())?;
            let (known, ours) = *first.get_or_insert((index, swarm));
            limit = OTHERS;
            if ours != swarm {
                let (known, endpoint) = (&endpoints[known], &endpoints[index]);
                let message = format!(
                    "{known} serves swarm {ours}, {endpoint} serves swarm {swarm}: name the replicas of one tracker"
                );
                return Err(TrackerError::Refused { fault: Fault::OtherSwarm, message });
            }
        }
        if let Some((index, swarm)) = first {
            self.shared.preferred.store(index, Ordering::Relaxed);
            meant.bind(swarm);
        }
        Ok(())
    }

    fn swarm_of(&self, reply: &v1::StatFsReply) -> Result<SwarmId, TrackerError> {
        SwarmId::try_from(reply.swarm_id.as_ref()).map_err(|error| self.nonsense(error))
    }

    /// Whether a replica refused since this was last asked because it is of another swarm than this client is bound to.
    /// What it serves next may be the right swarm again, from an older copy of its catalog.
    pub fn take_strayed(&self) -> bool {
        self.shared.strayed.swap(false, Ordering::AcqRel)
    }

    /// Ask a small question: `attempt` puts `request` to one replica, and says itself how new an answer it takes, as the
    /// catalog may go back between two attempts.
    async fn ask<R, T, A, F>(&self, request: R, attempt: A) -> Result<T, TrackerError>
    where
        R: Clone,
        A: Fn(Line, R) -> F,
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.ask_within(ATTEMPT, request, attempt).await
    }

    /// Ask a question whose answer takes long.
    async fn ask_bulk<R, T, A, F>(&self, request: R, attempt: A) -> Result<T, TrackerError>
    where
        R: Clone,
        A: Fn(Line, R) -> F,
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.ask_within(BULK_ATTEMPT, request, attempt).await
    }

    async fn ask_within<R, T, A, F>(&self, limit: Duration, request: R, attempt: A) -> Result<T, TrackerError>
    where
        R: Clone,
        A: Fn(Line, R) -> F,
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let ask = |index| {
            let answer = attempt(self.line(index), request.clone());
            async move { answer.await.map(Response::into_inner) }
        };
        self.ask_in_turn(limit, ask).await
    }

    /// Put one question to the replicas, by their number, until one answers or patience ends.
    async fn ask_in_turn<T, A, F>(&self, limit: Duration, attempt: A) -> Result<T, TrackerError>
    where
        A: Fn(usize) -> F,
        F: Future<Output = Result<T, Status>>,
    {
        self.agree().await?;
        let shared = &self.shared;
        let began = Instant::now();
        let mut pause = PAUSES.0;
        let mut strangers = 0;
        let mut index = shared.preferred.load(Ordering::Relaxed);
        loop {
            let reason = match tokio::time::timeout(limit, attempt(index)).await {
                Ok(Ok(answer)) => {
                    // Looked at first: a write would have every answer contend for it.
                    if shared.told_strayed.load(Ordering::Relaxed) {
                        shared.told_strayed.store(false, Ordering::Relaxed);
                    }
                    return Ok(answer);
                }
                Ok(Err(status)) if is_strange(&status) || !is_absence(&status) => {
                    let refused = match is_strange(&status) {
                        true => TrackerError::Stranger { address: shared.config.address.to_string() },
                        false => refusal(&status),
                    };
                    match &refused {
                        TrackerError::Stranger { .. } => {}
                        other_swarm if other_swarm.fault() == Fault::OtherSwarm => self.strayed(other_swarm),
                        _ => return Err(refused),
                    }
                    strangers += 1;
                    if strangers == shared.channels.len() {
                        return Err(refused);
                    }
                    index = self.turn_from(index);
                    continue;
                }
                Ok(Err(status)) => innermost(&status),
                Err(_) => format!("no answer within {limit:?}"),
            };
            strangers = 0;
            index = self.turn_from(index);
            let waited = began.elapsed();
            if waited + pause >= shared.config.patience {
                return Err(TrackerError::Unreachable { address: shared.config.address.to_string(), reason, waited });
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// The way to a replica.
    fn line(&self, index: usize) -> Line {
        let Shared { channels, meant, .. } = &*self.shared;
        InterceptedService::new(channels[index % channels.len()].clone(), meant.clone())
    }

    /// The next replica, which is asked first from now on.
    fn turn_from(&self, index: usize) -> usize {
        let next = (index + 1) % self.shared.channels.len();
        self.shared.preferred.store(next, Ordering::Relaxed);
        next
    }

    /// A replica is of another swarm: say so, once until somebody answers.
    fn strayed(&self, refused: &TrackerError) {
        self.shared.strayed.store(true, Ordering::Release);
        if !self.shared.told_strayed.swap(true, Ordering::Relaxed) {
            let tracker = self.address();
            tracing::error!(
                %tracker,
                reason = %refused,
                "another swarm's tracker answers: bring its catalog back (`swarmfs catalog import`); if that swarm is meant, \
                 mount anew, and give a seeder a --data folder of its own there"
            );
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

/// The way to one replica.
type Line = InterceptedService<Channel, MeantFor>;

fn catalog_client(line: Line) -> CatalogClient<Line> {
    CatalogClient::new(line).max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES)
}

fn holders_client(line: Line) -> HoldersClient<Line> {
    HoldersClient::new(line).max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES)
}

fn refusal(status: &Status) -> TrackerError {
    TrackerError::Refused { fault: fault::of_status(status), message: status.message().to_owned() }
}

/// Whether a status is of somebody who knows nothing of such questions.
fn is_strange(status: &Status) -> bool {
    status.code() == Code::Unimplemented && !status.metadata().contains_key(fault::FAULT_KEY)
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
