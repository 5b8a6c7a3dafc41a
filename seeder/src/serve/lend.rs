//! Lending: a process of this machine gets the file in which bytes lie, and reads and verifies them itself.
//!
//! A question is that of a Fetch; it is checked, limited and counted as if its bytes were sent. Invariants: only
//! processes of this user are answered; each connection has one answer under way, so nothing piles up.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use swarm_proto::{PeerId, v1};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;

use super::Chunks;
use super::fetch::{READ_WAIT, failed};
use super::route::MOST_FETCH_BYTES;
use crate::local;
use crate::store::{ChunkStore, Loan};

/// Connections at once; who comes then fetches over the network.
pub(super) const MOST_CONNECTIONS: usize = 256;

/// How long a connection may ask nothing.
const IDLE: Duration = Duration::from_secs(60);

/// How often a name that somebody else has is tried again.
const NAME_POLL: Duration = Duration::from_secs(2);

/// How long an answer may take to be written; all of it fits into the socket's buffer.
const WRITE_WAIT: Duration = Duration::from_secs(10);

/// Lend to processes of this machine that know this peer at `address`, until `stop`; new ones until `stop_accepting`.
pub(super) fn start<S: ChunkStore>(
    chunks: Arc<Chunks<S>>,
    address: SocketAddr,
    tasks: &TaskTracker,
    stop_accepting: CancellationToken,
    stop: CancellationToken,
) {
    let (seats, owner) = (Arc::new(Semaphore::new(MOST_CONNECTIONS)), tasks.clone());
    let first = local::listen(chunks.me, address);
    tasks.spawn(async move {
        let listener = match first {
            Ok(listener) => listener,
            Err(error) => {
                tracing::warn!(%error, "listen for processes of this machine; they use the network until it works");
                let later = listening(chunks.me, address);
                let Some(listener) = stop_accepting.run_until_cancelled(later).await else { return };
                listener
            }
        };
        while let Some(accepted) = stop_accepting.run_until_cancelled(listener.accept()).await {
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!(%error, "accept a connection of this machine");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            if !local::is_ours(&stream) {
                continue;
            }
            let Ok(seat) = Arc::clone(&seats).try_acquire_owned() else { continue };
            let (chunks, accepting, stop) = (Arc::clone(&chunks), stop_accepting.clone(), stop.clone());
            owner.spawn(async move {
                stop.run_until_cancelled(chunks.lend_to(&stream, accepting)).await;
                drop(seat);
            });
        }
    });
}

/// Listen, as soon as nobody else has the name: a process of another user may, and nobody believes it.
async fn listening(me: PeerId, address: SocketAddr) -> UnixListener {
    loop {
        tokio::time::sleep(NAME_POLL).await;
        if let Ok(listener) = local::listen(me, address) {
            return listener;
        }
    }
}

impl<S: ChunkStore> Chunks<S> {
    /// Answer one connection, question by question.
    async fn lend_to(&self, stream: &UnixStream, accepting: CancellationToken) {
        loop {
            let next = tokio::time::timeout(IDLE, local::receive(stream, MOST_FETCH_BYTES));
            let Some(Ok(Ok(Some((question, _))))) = accepting.run_until_cancelled(next).await else { return };
            let (loan, answer) = match v1::FetchRequest::decode(question.as_slice()) {
                Ok(request) => self.lend(request).await,
                Err(error) => (None, Err(Status::invalid_argument(error.to_string()))),
            };
            self.counters.answered("lend", &answer);
            let offset = loan.as_ref().map_or(0, |loan| loan.offset);
            let outcome = match answer {
                Ok(reply) => v1::FetchOutcome { reply: Some(reply), ..v1::FetchOutcome::default() },
                Err(status) => failed(&status),
            };
            let answer = v1::Loan { outcome: Some(outcome), offset }.encode_to_vec();
            let sending = local::send(stream, &answer, loan.as_ref().map(|loan| loan.file.as_fd()));
            if !matches!(tokio::time::timeout(WRITE_WAIT, sending).await, Ok(Ok(()))) {
                return;
            }
        }
    }

    /// What a question is answered with.
    async fn lend(&self, request: v1::FetchRequest) -> (Option<Loan>, Result<v1::FetchReply, Status>) {
        let lent = async {
            let ready = match self.prepare(&request, None)? {
                Ok(ready) => ready,
                Err(held) => return Ok((None, v1::FetchReply { held: Some(held), ..v1::FetchReply::default() })),
            };
            // Nothing of it lies in our memory, but the upload limit holds.
            let _pass = self.pass(ready.asker, ready.bytes, None).await?;
            let read = async {
                let loan = self.store.lend(ready.id, ready.chunks).await?;
                Ok((loan, self.tree_bytes(&ready).await?))
            };
            match tokio::time::timeout(READ_WAIT, read).await {
                Ok(Ok((Some(loan), tree))) => {
                    let data_bytes = ready.bytes - tree.len() as u64;
                    self.count_served(data_bytes, tree.len() as u64);
                    self.counters.lent_bytes.inc_by(data_bytes);
                    Ok((Some(loan), v1::FetchReply { tree, ..v1::FetchReply::default() }))
                }
                Ok(Ok((None, _))) => Err(Status::unimplemented("it lies in no file of its own: Fetch it")),
                Ok(Err(error)) => {
                    let held = Some(self.lacks(ready.id, error)?);
                    Ok((None, v1::FetchReply { held, ..v1::FetchReply::default() }))
                }
                Err(_) => Err(Status::unavailable("the disk is too slow: ask another")),
            }
        };
        match lent.await {
            Ok((loan, reply)) => (loan, Ok(reply)),
            Err(status) => (None, Err(status)),
        }
    }
}
