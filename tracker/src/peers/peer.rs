//! One peer: what it says of itself, and what is known of it.
//!
//! Invariant: a peer has at most one stream, and only the newest one changes it.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use swarm_proto::v1::{Load, PeerInfo, PeerKind, PeerState, TrackerOrder};
use swarm_proto::{PeerId, ProcessId};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::open_files::OpenFiles;
use super::{Liveness, PeerSlot, State};

/// What a peer says of itself; changes only with a new Hello.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Who.
    pub id: PeerId,
    /// Seeder or mount.
    pub kind: PeerKind,
    /// host:port; empty: it serves nothing.
    pub address: String,
    /// Failure domain; empty: the default one.
    pub zone: String,
    /// The machine.
    pub host: String,
    /// Bytes it offers.
    pub capacity_bytes: u64,
    /// Its program's version.
    pub version: String,
}

/// Orders on their way to a peer.
pub(crate) type OrderSender = mpsc::Sender<Result<TrackerOrder, Status>>;

pub(super) struct Stream {
    pub(super) number: u64,
    pub(super) process: ProcessId,
    pub(super) replaced: CancellationToken,
    pub(super) orders: OrderSender,
}

/// What changes of a peer.
pub(super) struct Inner {
    pub(super) facts: Arc<Facts>,
    pub(super) liveness: Liveness,
    /// For a peer that this process never saw: when an earlier one did.
    pub(super) seen_before_ms: Option<u64>,
    pub(super) stream: Option<Stream>,
    pub(super) load: Option<Load>,
    pub(super) draining: bool,
    pub(super) corrupt_reports: u64,
    pub(super) shunned_until: Option<Instant>,
    /// It stayed when it heard which swarm this is.
    pub(super) joined: bool,
    pub(super) unsaved: bool,
}

/// A peer.
pub struct Peer {
    pub(super) id: PeerId,
    pub(super) slot: PeerSlot,
    pub(super) inner: Mutex<Inner>,
    /// Held while the peer's holdings change; whether it has any.
    pub(crate) holdings: Mutex<bool>,
    /// What it has open; locked before `inner`.
    pub(crate) open_files: Mutex<OpenFiles>,
}

/// What is known of a peer at one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Where its holdings are found.
    pub slot: PeerSlot,
    /// What it says of itself.
    pub facts: Arc<Facts>,
    /// Whether it lives.
    pub state: State,
    /// Whether it is being emptied.
    pub draining: bool,
    /// What it last said of its load; absent before the first time.
    pub load: Option<Load>,
    /// How long it has been in this state, at most from the stream's end.
    pub state_for: Duration,
    /// Reports of corrupt answers since this tracker started.
    pub corrupt_reports: u64,
    /// Reported as unreachable a moment ago.
    pub shunned: bool,
    /// An earlier process of the tracker knew it; this one has not heard it yet.
    pub unheard: bool,
}

impl Snapshot {
    /// As the wire says it.
    pub fn peer_state(&self) -> PeerState {
        match self.state {
            State::Live if self.draining => PeerState::Draining,
            State::Live => PeerState::Live,
            State::Stale => PeerState::Stale,
            State::Dead => PeerState::Dead,
        }
    }

    /// As others need to know it.
    pub fn info(&self) -> PeerInfo {
        PeerInfo {
            peer_id: self.facts.id.to_wire(),
            kind: self.facts.kind.into(),
            address: self.facts.address.clone(),
            zone: self.facts.zone.clone(),
            host: self.facts.host.clone(),
            state: self.peer_state().into(),
        }
    }

    /// Bytes that it offers; where it offers whatever is free, what it uses and could still take.
    pub fn capacity_bytes(&self) -> u64 {
        let load = self.load.unwrap_or_default();
        match self.facts.capacity_bytes {
            0 => load.used_bytes.saturating_add(load.free_bytes),
            offered => offered,
        }
    }

    /// Bytes that it could still take: what it said last, or all it offers if it said nothing yet.
    pub fn free_bytes(&self) -> u64 {
        self.load.as_ref().map_or(self.facts.capacity_bytes, |load| load.free_bytes)
    }
}

/// An open stream of a peer.
#[derive(Clone)]
pub struct Opened {
    /// Whose.
    pub peer: Arc<Peer>,
    /// Cancelled when a newer stream of the same process takes over.
    pub replaced: CancellationToken,
    pub(super) number: u64,
}

impl Inner {
    /// A peer without a stream, of which nothing else is known yet.
    pub(super) fn new(facts: Facts, liveness: Liveness) -> Self {
        Self {
            facts: Arc::new(facts),
            liveness,
            seen_before_ms: None,
            stream: None,
            load: None,
            draining: false,
            corrupt_reports: 0,
            shunned_until: None,
            joined: false,
            unsaved: false,
        }
    }

    /// The same peer, with a new stream.
    pub(super) fn greet(&mut self, facts: Facts, stream: Stream, now: Instant) {
        self.facts = Arc::new(facts);
        self.liveness = Liveness::Open { since: now };
        self.seen_before_ms = None;
        self.stream = Some(stream);
        self.shunned_until = None;
        self.unsaved = true;
    }
}

impl Peer {
    /// Who.
    pub fn id(&self) -> PeerId {
        self.id
    }

    /// Its small number.
    pub fn slot(&self) -> PeerSlot {
        self.slot
    }

    /// What it says of itself.
    pub fn facts(&self) -> Arc<Facts> {
        self.inner.lock().facts.clone()
    }

    /// Send an order if the peer listens and its queue has room; whether it was sent.
    pub(crate) fn order(&self, order: TrackerOrder) -> bool {
        self.inner.lock().stream.as_ref().is_some_and(|stream| stream.orders.try_send(Ok(order)).is_ok())
    }

    pub(crate) fn count_corrupt(&self) {
        self.inner.lock().corrupt_reports += 1;
    }

    pub(crate) fn shun(&self, until: Instant) {
        self.inner.lock().shunned_until = Some(until);
    }
}

impl Opened {
    /// Whether no newer stream took over.
    pub(crate) fn is_current(&self) -> bool {
        self.peer.inner.lock().stream.as_ref().is_some_and(|stream| stream.number == self.number)
    }

    /// The peer told what it holds: it is one of this swarm.
    pub(crate) fn join(&self) {
        self.peer.inner.lock().joined = true;
    }

    pub(crate) fn set_load(&self, load: Load) {
        let mut inner = self.peer.inner.lock();
        if inner.stream.as_ref().is_some_and(|stream| stream.number == self.number) {
            inner.load = Some(load);
        }
    }

    /// The stream ended; nothing happens if it was replaced.
    pub(crate) fn close(&self, liveness: Liveness) {
        let mut inner = self.peer.inner.lock();
        if inner.stream.as_ref().is_some_and(|stream| stream.number == self.number) {
            inner.stream = None;
            inner.liveness = liveness;
            inner.unsaved = true;
        }
    }
}

/// Milliseconds since 1970.
pub(super) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
