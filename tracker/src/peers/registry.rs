//! Every peer that this tracker knows, by id and by slot.
//!
//! Invariant: an id has one slot and a slot one id. Locks are taken in the order table, peer, and never
//! held over an await.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use swarm_proto::v1::PeerKind;
use swarm_proto::{PeerId, ProcessId};
use tokio_util::sync::CancellationToken;

use super::peer::{Inner, Stream, unix_ms};
use super::{Facts, Liveness, Opened, OrderSender, Peer, PeerSlot, Snapshot, State};

/// Peers that one tracker remembers; more are refused, so that invented ids do not fill its memory.
const MOST_PEERS: usize = 65_536;

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
            seen_before_ms: Some(record.last_seen_ms),
            draining: record.draining,
            joined: true,
            ..Inner::new(record.facts, Liveness::Broken { at: now })
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
            inner.greet(facts, stream, now);
            drop(inner);
            return Ok(Opened { peer: peer.clone(), replaced, number });
        }
        if table.by_id.len() >= MOST_PEERS {
            // Invented mounts that came and went must not keep real peers out.
            table.forget(|inner| inner.liveness.state(now, self.grace) == State::Dead);
        }
        if table.by_id.len() >= MOST_PEERS {
            return Err(Refusal::TooMany);
        }
        let id = facts.id;
        let mut inner = Inner::new(facts.clone(), Liveness::Open { since: now });
        inner.greet(facts, stream, now);
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

    /// What is known of everybody that has told what it holds: others may only be looking whether this is their swarm.
    pub fn snapshots(&self, now: Instant) -> Vec<Snapshot> {
        let of_joined = |peer: &Arc<Peer>| {
            let inner = peer.inner.lock();
            inner.joined.then(|| self.snapshot_of(peer.slot, &inner, now))
        };
        self.all().iter().filter_map(of_joined).collect()
    }

    /// What is known of `peer`.
    pub fn snapshot(&self, peer: &Peer, now: Instant) -> Snapshot {
        self.snapshot_of(peer.slot, &peer.inner.lock(), now)
    }

    fn snapshot_of(&self, slot: PeerSlot, inner: &Inner, now: Instant) -> Snapshot {
        let state_for = match inner.seen_before_ms {
            Some(seen_ms) => Duration::from_millis(unix_ms().saturating_sub(seen_ms)),
            None => inner.liveness.age(now),
        };
        Snapshot {
            slot,
            facts: inner.facts.clone(),
            state: inner.liveness.state(now, self.grace),
            draining: inner.draining,
            load: inner.load,
            state_for,
            corrupt_reports: inner.corrupt_reports,
            unheard: inner.seen_before_ms.is_some(),
            shunned: inner.shunned_until.is_some_and(|until| now < until),
        }
    }

    /// Whether `peer` lives.
    pub fn state(&self, peer: &Peer, now: Instant) -> State {
        peer.inner.lock().liveness.state(now, self.grace)
    }

    /// Forget mounts that have been dead for long and hold nothing, and whoever left without telling what it holds; their
    /// slots are used again.
    pub(crate) fn forget_old(&self, now: Instant) {
        let long = self.dead_after.max(self.grace);
        self.table.write().forget(|inner| inner.liveness.age(now) >= long);
    }

    /// Seeders whose record changed since the last call, as the catalog shall remember them: not those that only
    /// looked whether this is their swarm, as they do at a tracker that has lost its catalog.
    pub(crate) fn unsaved(&self) -> Vec<Unsaved> {
        let now_ms = unix_ms();
        let take = |peer: &Arc<Peer>| {
            let mut inner = peer.inner.lock();
            let ours = inner.facts.kind == PeerKind::Seeder && inner.joined;
            let unsaved = ours && std::mem::take(&mut inner.unsaved);
            let record =
                || SeederRecord { facts: (*inner.facts).clone(), draining: inner.draining, last_seen_ms: now_ms };
            unsaved.then(|| Unsaved { id: peer.id, record: record() })
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
    /// Forget, of those without a stream and without holdings, who never joined, and mounts that are `old`.
    fn forget(&mut self, old: impl Fn(&Inner) -> bool) {
        let forgettable = |peer: &&Arc<Peer>| {
            let inner = peer.inner.lock();
            inner.stream.is_none()
                && (!inner.joined || (inner.facts.kind != PeerKind::Seeder && old(&inner)))
                && peer.holdings.try_lock().is_some_and(|held| !*held)
        };
        let old: Vec<_> = self.by_id.values().filter(forgettable).map(|peer| (peer.id, peer.slot)).collect();
        for (id, slot) in old {
            self.by_id.remove(&id);
            self.slots[slot.index()] = None;
            self.free.push(slot);
        }
    }

    fn insert(&mut self, id: PeerId, inner: Inner) -> Arc<Peer> {
        let slot = self.free.pop().unwrap_or_else(|| {
            let number = u32::try_from(self.slots.len()).ok().and_then(PeerSlot::new);
            number.expect("there are at most MOST_PEERS peers, and seeders of the catalog")
        });
        let peer = Arc::new(Peer {
            id,
            slot,
            inner: Mutex::new(inner),
            holdings: Mutex::new(false),
            open_files: Mutex::default(),
        });
        match self.slots.get_mut(slot.index()) {
            Some(place) => *place = Some(peer.clone()),
            None => self.slots.push(Some(peer.clone())),
        }
        self.by_id.insert(id, peer.clone());
        peer
    }
}
