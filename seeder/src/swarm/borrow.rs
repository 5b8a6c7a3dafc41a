//! Bytes of a peer on this machine: it lends the file they lie in, and they are read from there.
//!
//! Only a way: what comes is checked like what comes over the network. Invariant: whatever goes wrong here leaves the
//! network to be tried, but for the peer's own word on a question, and for its silence, which is the same there.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use swarm_proto::{PeerId, Segment, v1};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::progress::Progress;
use crate::{aligned, local};

/// A peer that was not found on this machine, or was no help, is not asked here again for so long.
const REST: Duration = Duration::from_secs(1);

/// Up to this length segments lie in a store's database by default, and nobody can lend them.
const INLINE_BYTES: u32 = 64 * 1024;

/// Longest answer: the tree of the longest segment, and a presence or some words.
const MOST_ANSWER_BYTES: usize = 160 * 1024;

/// Connections kept for later.
const MOST_IDLE: usize = 16;

/// Reads of one peer's files at a time: a disk that hangs holds no more threads than these.
const MOST_READING: usize = 64;

/// The way to a peer that may run on this machine; clones share it.
#[derive(Clone)]
pub(super) struct Lender {
    peer: PeerId,
    address: Arc<str>,
    shared: Arc<Shared>,
}

struct Shared {
    idle: Mutex<Vec<UnixStream>>,
    rests_until: Mutex<Option<Instant>>,
    reading: Arc<Semaphore>,
    /// Longest segment that it did not lend for lying in no file.
    inline_bytes: AtomicU32,
}

impl Lender {
    /// To `peer`, known by host:port `address`.
    pub(super) fn new(peer: PeerId, address: &str) -> Self {
        let shared = Shared {
            idle: Mutex::default(),
            rests_until: Mutex::default(),
            reading: Arc::new(Semaphore::new(MOST_READING)),
            inline_bytes: AtomicU32::new(INLINE_BYTES),
        };
        Self { peer, address: address.into(), shared: Arc::new(shared) }
    }

    /// A Fetch of a part of `segment` that has `bytes` bytes; none if they must come over the network.
    pub(super) async fn fetch(
        &self,
        segment: Segment,
        request: &v1::FetchRequest,
        bytes: u64,
        progress: &Progress,
    ) -> Option<Result<v1::FetchReply, Status>> {
        if segment.length <= self.shared.inline_bytes.load(Ordering::Relaxed) || self.rests() {
            return None;
        }
        let place = Arc::clone(&self.shared.reading).try_acquire_owned().ok()?;
        let (loan, file) = match self.ask(&request.encode_to_vec()).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::trace!(peer = %self.peer, %error, "look for a peer on this machine");
                self.rest();
                return None;
            }
        };
        let outcome = loan.outcome.unwrap_or_default();
        let Some(reply) = outcome.reply else {
            let code = Code::from(i32::try_from(outcome.code).unwrap_or(2));
            if code == Code::Unimplemented {
                self.shared.inline_bytes.fetch_max(segment.length, Ordering::Relaxed);
                return None;
            }
            return Some(Err(Status::new(code, outcome.message)));
        };
        progress.head_came();
        if reply.held.is_some() {
            return Some(Ok(reply));
        }
        let read = match file {
            Some(file) => read(file, loan.offset, bytes, place).await,
            None => Err(io::Error::other("no file came")),
        };
        let data = match read {
            Ok(data) => data,
            Err(error) => {
                tracing::debug!(peer = %self.peer, %error, "read a file that a peer lent");
                self.rest();
                return None;
            }
        };
        progress.read_here();
        progress.came((data.len() + reply.tree.len()) as u64);
        Some(Ok(v1::FetchReply { data, ..reply }))
    }

    /// Do without for a while: each question counts as served there.
    fn rest(&self) {
        *self.shared.rests_until.lock() = Some(Instant::now() + REST);
    }

    fn rests(&self) -> bool {
        self.shared.rests_until.lock().is_some_and(|until| Instant::now() < until)
    }

    /// Ask over a connection that nobody else uses meanwhile; it is closed if the caller goes away.
    async fn ask(&self, question: &[u8]) -> io::Result<(v1::Loan, Option<OwnedFd>)> {
        let kept = self.shared.idle.lock().pop();
        if let Some(stream) = kept {
            if let Ok(answer) = self.ask_over(stream, question).await {
                return Ok(answer);
            }
            // Closed since, perhaps by a seeder that was started anew with other settings.
            self.shared.inline_bytes.store(INLINE_BYTES, Ordering::Relaxed);
        }
        let stream = local::connect(self.peer, &self.address).await?;
        self.ask_over(stream, question).await
    }

    async fn ask_over(&self, stream: UnixStream, question: &[u8]) -> io::Result<(v1::Loan, Option<OwnedFd>)> {
        local::send(&stream, question, None).await?;
        let (answer, file) = local::receive(&stream, MOST_ANSWER_BYTES).await?.ok_or(io::ErrorKind::ConnectionReset)?;
        let loan = v1::Loan::decode(Bytes::from(answer)).map_err(|error| io::Error::other(error.to_string()))?;
        let mut idle = self.shared.idle.lock();
        if idle.len() < MOST_IDLE {
            idle.push(stream);
        }
        Ok((loan, file))
    }
}

/// Read what was lent. Errors: it is no regular file, or ends before its bytes do.
///
/// Shape: a read that hangs holds its place, also when nobody waits for it any longer.
async fn read(file: OwnedFd, offset: u64, bytes: u64, place: OwnedSemaphorePermit) -> io::Result<Bytes> {
    let work = move || {
        let _place = place;
        let file = File::from(file);
        if !file.metadata()?.is_file() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        aligned::read_exact_at(file, offset, usize::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?)
    };
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}
