//! Every peer that this tracker knows, by id and by slot.
//!
//! Invariant: a peer has at most one stream, and only the newest one changes it. Locks are taken in the
//! order table, peer, and never held over an await.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::{Mutex, RwLock};
use swarm_proto::v1::{Load, PeerInfo, PeerKind, PeerState, TrackerOrder};
use swarm_proto::{PeerId, ProcessId};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{Liveness, PeerSlot, State};

/// Peers that one tracker remembers; more are refused, so that invented ids do not fill its memory.
const MOST_PEERS: usize = 65_536;

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

/// A seeder as the catalog remembers it over restarts of the tracker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeederRecord {
    /// What it said last.
    pub facts: Facts,
    /// Whether it is being emptied.
    pub draining: bool,
    /// When its stream was last open; milliseconds since 1970.
    pub last_seen_ms: u64,
}

/// A record that the catalog has not got yet.
pub(crate) struct Unsaved {
    pub(crate) id: PeerId,
    pub(crate) record: SeederRecord,
}

/// Orders on their way to a peer.
pub(crate) type OrderSender = mpsc::Sender<Result<TrackerOrder, Status>>;

/// Why a stream was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Another process announces under this id.
    #[error(
        "peer {id} is already announced by another process at {address:?}, connected for {seconds} s. If this store is \
         a copy of that one, give it a new id; if that process is gone, its stream ends within seconds: try again"
    )]
    CopiedStore {
        /// The id.
        id: PeerId,
        /// Where the other one is.
        address: String,
        /// Since when.
        seconds: u64,
    },
    /// Too many peers.
    #[error("this tracker knows {MOST_PEERS} peers already")]
    TooMany,
}

struct Stream {
    number: u64,
    process: ProcessId,
    replaced: CancellationToken,
    orders: OrderSender,
}

struct Inner {
    facts: Arc<Facts>,
    liveness: Liveness,
    /// For a peer that this process never saw: when an earlier one did.
    seen_before_ms: Option<u64>,
    stream: Option<Stream>,
    load: Option<Load>,
    draining: bool,
    corrupt_reports: u64,
    shunned_until: Option<Instant>,
    unsaved: bool,
}

/// A peer.
pub struct Peer {
    id: PeerId,
    slot: PeerSlot,
    inner: Mutex<Inner>,
    /// Held while the peer's holdings change; whether it has any.
    pub(crate) holdings: Mutex<bool>,
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
    number: u64,
}

#[derive(Default)]
struct Table {
    by_id: HashMap<PeerId, Arc<Peer>>,
    slots: Vec<Option<Arc<Peer>>>,
    free: Vec<PeerSlot>,
    streams: u64,
}

/// All peers.
pub struct Registry {
    table: RwLock<Table>,
    grace: Duration,
    dead_after: Duration,
}

impl Registry {
    /// Nobody yet. `grace`: how long a broken stream is forgiven; `dead_after`: how long a mount that is
    /// gone is remembered.
    pub fn new(grace: Duration, dead_after: Duration) -> Self {
        Self { table: RwLock::new(Table::default()), grace, dead_after }
    }

    /// How long a broken stream is forgiven.
    pub fn grace(&self) -> Duration {
        self.grace
    }

    /// A seeder of an earlier tracker process: stale from now on, until it announces.
    pub fn restore(&self, record: SeederRecord, now: Instant) {
        let mut table = self.table.write();
        if table.by_id.contains_key(&record.facts.id) {
            return;
        }
        let id = record.facts.id;
        let inner = Inner {
            facts: Arc::new(record.facts),
            liveness: Liveness::Broken { at: now },
            seen_before_ms: Some(record.last_seen_ms),
            stream: None,
            load: None,
            draining: record.draining,
            corrupt_reports: 0,
            shunned_until: None,
            unsaved: false,
        };
        table.insert(id, inner);
    }

    /// A peer said Hello.
    ///
    /// Errors: [`Refusal::CopiedStore`] if another process of the same id is live.
    pub(crate) fn open(
        &self,
        facts: Facts,
        process: ProcessId,
        orders: OrderSender,
        now: Instant,
    ) -> Result<Opened, Refusal> {
        let mut table = self.table.write();
        let replaced = CancellationToken::new();
        table.streams += 1;
        let number = table.streams;
        let stream = Stream { number, process, replaced: replaced.clone(), orders };
        if let Some(peer) = table.by_id.get(&facts.id) {
            let mut inner = peer.inner.lock();
            if let Some(old) = &inner.stream {
                if old.process != process {
                    let seconds = inner.liveness.age(now).as_secs();
                    return Err(Refusal::CopiedStore { id: facts.id, address: inner.facts.address.clone(), seconds });
                }
                old.replaced.cancel();
            }
            inner.facts = Arc::new(facts);
            inner.liveness = Liveness::Open { since: now };
            inner.seen_before_ms = None;
            inner.stream = Some(stream);
            inner.shunned_until = None;
            inner.unsaved = true;
            drop(inner);
            return Ok(Opened { peer: peer.clone(), replaced, number });
        }
        if table.by_id.len() >= MOST_PEERS {
            return Err(Refusal::TooMany);
        }
        let id = facts.id;
        let inner = Inner {
            facts: Arc::new(facts),
            liveness: Liveness::Open { since: now },
            seen_before_ms: None,
            stream: Some(stream),
            load: None,
            draining: false,
            corrupt_reports: 0,
            shunned_until: None,
            unsaved: true,
        };
        let peer = table.insert(id, inner);
        Ok(Opened { peer, replaced, number })
    }

    /// The peer of a slot.
    pub fn get(&self, slot: PeerSlot) -> Option<Arc<Peer>> {
        self.table.read().slots.get(slot.index())?.clone()
    }

    /// The peer of an id.
    pub fn find(&self, id: &PeerId) -> Option<Arc<Peer>> {
        self.table.read().by_id.get(id).cloned()
    }

    /// Everybody, by slot.
    pub fn all(&self) -> Vec<Arc<Peer>> {
        self.table.read().slots.iter().flatten().cloned().collect()
    }

    /// What is known of everybody.
    pub fn snapshots(&self, now: Instant) -> Vec<Snapshot> {
        self.all().iter().map(|peer| self.snapshot(peer, now)).collect()
    }

    /// What is known of `peer`.
    pub fn snapshot(&self, peer: &Peer, now: Instant) -> Snapshot {
        let inner = peer.inner.lock();
        let state_for = match inner.seen_before_ms {
            Some(seen_ms) => Duration::from_millis(unix_ms().saturating_sub(seen_ms)),
            None => inner.liveness.age(now),
        };
        Snapshot {
            slot: peer.slot,
            facts: inner.facts.clone(),
            state: inner.liveness.state(now, self.grace),
            draining: inner.draining,
            load: inner.load,
            state_for,
            corrupt_reports: inner.corrupt_reports,
            shunned: inner.shunned_until.is_some_and(|until| now < until),
        }
    }

    /// Whether `peer` lives.
    pub fn state(&self, peer: &Peer, now: Instant) -> State {
        peer.inner.lock().liveness.state(now, self.grace)
    }

    /// Forget mounts that have been dead for long and hold nothing; their slots are used again.
    pub(crate) fn forget_old(&self, now: Instant) {
        let mut table = self.table.write();
        let old: Vec<_> = table
            .by_id
            .values()
            .filter(|peer| {
                let inner = peer.inner.lock();
                inner.facts.kind != PeerKind::Seeder
                    && inner.stream.is_none()
                    && inner.liveness.age(now) >= self.dead_after.max(self.grace)
                    && peer.holdings.try_lock().is_some_and(|held| !*held)
            })
            .map(|peer| (peer.id, peer.slot))
            .collect();
        for (id, slot) in old {
            table.by_id.remove(&id);
            table.slots[slot.index()] = None;
            table.free.push(slot);
        }
    }

    /// Seeders whose record changed since the last call, as the catalog shall remember them.
    pub(crate) fn unsaved(&self) -> Vec<Unsaved> {
        let now_ms = unix_ms();
        let take = |peer: &Arc<Peer>| {
            let mut inner = peer.inner.lock();
            let seeder = inner.facts.kind == PeerKind::Seeder;
            let unsaved = std::mem::take(&mut inner.unsaved);
            let record =
                || SeederRecord { facts: (*inner.facts).clone(), draining: inner.draining, last_seen_ms: now_ms };
            (seeder && unsaved).then(|| Unsaved { id: peer.id, record: record() })
        };
        self.all().iter().filter_map(take).collect()
    }

    /// Have the records of all live seeders saved again, so that their last-seen moves on.
    pub(crate) fn mark_live_unsaved(&self) {
        for peer in self.all() {
            let mut inner = peer.inner.lock();
            inner.unsaved |= inner.stream.is_some();
        }
    }

    /// The record could not be saved: try again.
    pub(crate) fn mark_unsaved(&self, id: &PeerId) {
        if let Some(peer) = self.find(id) {
            peer.inner.lock().unsaved = true;
        }
    }
}

impl Table {
    fn insert(&mut self, id: PeerId, inner: Inner) -> Arc<Peer> {
        let slot = self.free.pop().unwrap_or_else(|| {
            let number = u32::try_from(self.slots.len()).ok().and_then(PeerSlot::new);
            number.expect("there are at most MOST_PEERS peers, and seeders of the catalog")
        });
        let peer = Arc::new(Peer { id, slot, inner: Mutex::new(inner), holdings: Mutex::new(false) });
        match self.slots.get_mut(slot.index()) {
            Some(place) => *place = Some(peer.clone()),
            None => self.slots.push(Some(peer.clone())),
        }
        self.by_id.insert(id, peer.clone());
        peer
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
fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
