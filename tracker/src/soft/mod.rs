//! The soft half as one: who the peers are, what they hold, and what was said against them.
//!
//! Not the wire: `grpc` checks messages and calls in here. Invariant: the holdings of a peer change only
//! under its `holdings` lock, and only while it is not dead; so nothing that a dead peer held is left, and
//! nothing that a returning peer announced is lost to the sweep.

#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use swarm_proto::v1::{self, Load, PeerKind, Refresh, TrackerOrder, Verify, tracker_order::Order};
use swarm_proto::{InodeNumber, PeerId, ProcessId, SegmentId};

use crate::acks::AckSink;
use crate::holders::{Doubt, Extent, Holders, HoldersFull};
use crate::opens::OpenSource;
use crate::peers::{Facts, Liveness, Opened, OrderSender, Peer, PeerSlot, Refusal, Registry, State, TooManyOpen};

/// Segments that one peer may announce: at 64 bytes each, what a hostile peer can claim is bounded. At
/// 4 MiB a segment it is 128 TiB.
const MOST_SEGMENTS_A_PEER: u64 = 1 << 25;

/// A doubt is forgotten after this long: an honest peer has looked again by then.
const DOUBT: Duration = Duration::from_secs(120);

/// Doubts remembered; the oldest is cleared for a new one.
const MOST_DOUBTS: usize = 65_536;

/// A peer that could not be reached is handed out last for this long.
const SHUN: Duration = Duration::from_secs(5);

/// One peer is told to verify one segment at most this often.
const VERIFY_EVERY: Duration = Duration::from_secs(60);

/// Why an announce was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AnnounceError {
    /// A newer stream of the same process took over.
    #[error("a newer stream of this peer took over")]
    Replaced,
    /// More segments than one peer may announce.
    #[error("a peer may announce {MOST_SEGMENTS_A_PEER} segments at most")]
    TooMany,
    /// No room in this tracker.
    #[error(transparent)]
    Full(#[from] HoldersFull),
    /// More open files than one mount may have.
    #[error(transparent)]
    TooManyOpen(#[from] TooManyOpen),
}

/// What somebody says against a holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Complaint {
    /// It said that it lacks the segment.
    Missing(SegmentId),
    /// Its bytes or its tree did not verify.
    Corrupt(SegmentId),
    /// No answer, or too slow.
    Unreachable,
}

/// How far the inventory of a stream has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Progress {
    #[default]
    NotBegun,
    Coming,
    Complete,
}

/// One announce stream.
#[derive(Clone)]
pub struct Announced {
    opened: Opened,
    inventory: Progress,
    refreshed: bool,
    loads: u32,
}

impl Announced {
    /// The stream itself.
    pub fn opened(&self) -> &Opened {
        &self.opened
    }
}

/// Peers and holders.
pub struct Soft {
    /// Who holds what.
    pub holders: Holders,
    /// Who the peers are.
    pub registry: Registry,
    doubts: Mutex<VecDeque<(Instant, PeerSlot, SegmentId)>>,
    verified: Mutex<HashMap<(PeerSlot, SegmentId), Instant>>,
}

impl Soft {
    /// Nobody holds anything yet.
    pub fn new(registry: Registry) -> Self {
        Self { holders: Holders::new(), registry, doubts: Mutex::default(), verified: Mutex::default() }
    }

    /// A peer said Hello.
    pub(crate) fn open(&self, facts: Facts, process: ProcessId, orders: OrderSender) -> Result<Announced, Refusal> {
        let opened = self.registry.open(facts, process, orders, Instant::now())?;
        Ok(Announced { opened, inventory: Progress::NotBegun, refreshed: false, loads: 0 })
    }

    /// A part of all that the peer holds; the last one is followed by [`Self::end_inventory`].
    pub fn inventory_part(
        &self,
        stream: &mut Announced,
        whole: &[SegmentId],
        partial: &[SegmentId],
    ) -> Result<(), AnnounceError> {
        let slot = stream.opened.peer.slot();
        self.change(stream, |stream| {
            if stream.inventory != Progress::Coming {
                self.holders.begin_inventory(slot);
                stream.inventory = Progress::Coming;
            }
            self.holders.add(slot, Extent::Whole, whole)?;
            Ok(self.holders.add(slot, Extent::Partial, partial)?)
        })
    }

    /// The inventory is complete: what it did not name is no longer held.
    ///
    /// Shape: does nothing if a newer stream has begun an inventory, or forgotten this one.
    /// Cost:  O(what the peer holds).
    pub fn end_inventory(&self, stream: &mut Announced) {
        let peer = stream.opened.peer.clone();
        let _held = peer.holdings.lock();
        if stream.inventory == Progress::Coming && stream.opened.is_current() {
            self.holders.end_inventory(peer.slot());
            stream.inventory = Progress::Complete;
            stream.opened.join();
        }
    }

    /// What changed at the peer.
    pub fn delta(
        &self,
        stream: &mut Announced,
        whole: &[SegmentId],
        partial: &[SegmentId],
        lost: &[SegmentId],
    ) -> Result<(), AnnounceError> {
        let slot = stream.opened.peer.slot();
        self.change(stream, |_| {
            self.holders.remove(slot, lost);
            self.holders.add(slot, Extent::Whole, whole)?;
            Ok(self.holders.add(slot, Extent::Partial, partial)?)
        })?;
        self.want_inventory(stream);
        Ok(())
    }

    /// How busy the peer is.
    pub fn load(&self, stream: &mut Announced, load: Load) {
        stream.opened.set_load(load);
        stream.loads = stream.loads.saturating_add(1);
        if stream.loads > 1 {
            self.want_inventory(stream);
        }
    }

    /// What a mount has open, or what changed of that.
    pub fn open_files(&self, stream: &Announced, message: &v1::OpenFiles) -> Result<(), AnnounceError> {
        let mut open = stream.opened.peer.open_files.lock();
        match stream.opened.is_current() {
            true => Ok(open.told(message, Instant::now())?),
            false => Err(AnnounceError::Replaced),
        }
    }

    /// Deltas of a peer say nothing as long as its inventory is unknown: ask for it, once.
    fn want_inventory(&self, stream: &mut Announced) {
        if stream.inventory == Progress::NotBegun && !stream.refreshed {
            stream.refreshed = stream.opened.peer.order(TrackerOrder { order: Some(Order::Refresh(Refresh {})) });
        }
    }

    fn change(
        &self,
        stream: &mut Announced,
        act: impl FnOnce(&mut Announced) -> Result<(), AnnounceError>,
    ) -> Result<(), AnnounceError> {
        let peer = stream.opened.peer.clone();
        let mut held = peer.holdings.lock();
        if !stream.opened.is_current() {
            return Err(AnnounceError::Replaced);
        }
        *held = true;
        act(stream)?;
        match self.holders.held_by(peer.slot()) > MOST_SEGMENTS_A_PEER {
            true => Err(AnnounceError::TooMany),
            false => Ok(()),
        }
    }

    /// The stream broke.
    pub fn broken(&self, stream: &Announced) {
        stream.opened.close(Liveness::Broken { at: Instant::now() });
    }

    /// The peer said that it leaves: dead at once.
    pub fn left(&self, stream: &Announced) {
        stream.opened.close(Liveness::Left { at: Instant::now() });
        self.forget_if_dead(&stream.opened.peer, Instant::now());
    }

    /// Somebody says that a holder answered wrongly or not at all.
    ///
    /// Shape: lowers the holder, for a while or until it announces the segment again. Never removes it: an
    ///        anonymous word must not make data unreachable.
    pub fn complain(&self, id: &PeerId, complaint: Complaint) {
        let now = Instant::now();
        let Some(peer) = self.registry.find(id) else { return };
        match complaint {
            Complaint::Unreachable => peer.shun(now + SHUN),
            Complaint::Missing(segment) => self.doubt(&peer, segment, now),
            Complaint::Corrupt(segment) => {
                peer.count_corrupt();
                self.doubt(&peer, segment, now);
                self.have_verified(&peer, segment, now);
            }
        }
    }

    fn doubt(&self, peer: &Peer, segment: SegmentId, now: Instant) {
        if !self.holders.doubt(peer.slot(), &segment, Doubt::Raised) {
            return;
        }
        let mut doubts = self.doubts.lock();
        let oldest = match doubts.len() >= MOST_DOUBTS {
            true => doubts.pop_front(),
            false => None,
        };
        doubts.push_back((now, peer.slot(), segment));
        drop(doubts);
        if let Some((_, slot, segment)) = oldest {
            self.holders.doubt(slot, &segment, Doubt::Cleared);
        }
    }

    fn have_verified(&self, peer: &Peer, segment: SegmentId, now: Instant) {
        let mut verified = self.verified.lock();
        if verified.len() >= MOST_DOUBTS {
            verified.retain(|_, at| now.saturating_duration_since(*at) < VERIFY_EVERY);
            if verified.len() >= MOST_DOUBTS {
                return;
            }
        }
        let key = (peer.slot(), segment);
        if verified.get(&key).is_some_and(|at| now.saturating_duration_since(*at) < VERIFY_EVERY) {
            return;
        }
        let order = Order::Verify(Verify { segment_id: segment.to_wire(), epoch: EPOCH });
        if peer.order(TrackerOrder { order: Some(order) }) {
            verified.insert(key, now);
        }
    }

    /// What time does: forget what the dead held, old doubts, and mounts that are gone for long.
    pub fn sweep(&self, now: Instant) {
        for peer in self.registry.all() {
            self.forget_if_dead(&peer, now);
        }
        self.registry.forget_old(now);
        loop {
            let mut doubts = self.doubts.lock();
            match doubts.front() {
                Some((at, ..)) if now.saturating_duration_since(*at) >= DOUBT => {}
                _ => break,
            }
            let front = doubts.pop_front();
            drop(doubts);
            if let Some((_, slot, segment)) = front {
                self.holders.doubt(slot, &segment, Doubt::Cleared);
            }
        }
        self.verified.lock().retain(|_, at| now.saturating_duration_since(*at) < VERIFY_EVERY);
    }

    fn forget_if_dead(&self, peer: &Arc<Peer>, now: Instant) {
        let mut held = peer.holdings.lock();
        if self.registry.state(peer, now) != State::Dead {
            return;
        }
        if *held {
            self.holders.forget(peer.slot());
            *held = false;
        }
        // Nothing comes of an old stream after this: it would have to be the current one.
        peer.open_files.lock().forget();
    }
}

impl AckSink for Soft {
    fn acknowledged(&self, id: PeerId, ids: &[SegmentId]) {
        let Some(peer) = self.registry.find(&id) else { return };
        let mut held = peer.holdings.lock();
        let is_there = self.registry.get(peer.slot()).is_some_and(|there| Arc::ptr_eq(&there, &peer));
        if !is_there || self.registry.state(&peer, Instant::now()) == State::Dead {
            return;
        }
        *held = true;
        if let Err(error) = self.holders.add(peer.slot(), Extent::Whole, ids) {
            tracing::warn!(%error, peer = %id, "enter acknowledged segments");
        }
    }

    fn known(&self, ids: &[SegmentId]) -> Vec<bool> {
        let now = Instant::now();
        let mut durable: HashMap<PeerSlot, bool> = HashMap::new();
        let mut found = Vec::new();
        let mut known = |id: &SegmentId| {
            found.clear();
            self.holders.holders_into(id.as_bytes(), &mut found);
            found.iter().filter(|holder| !holder.is_partial()).any(|holder| {
                *durable.entry(holder.peer()).or_insert_with(|| {
                    let peer = self.registry.get(holder.peer());
                    peer.map(|peer| self.registry.snapshot(&peer, now))
                        .is_some_and(|known| known.facts.kind == PeerKind::Seeder && known.state != State::Dead)
                })
            })
        };
        ids.iter().map(&mut known).collect()
    }
}

impl OpenSource for Soft {
    fn are_open(&self, inodes: &[InodeNumber]) -> Vec<bool> {
        let now = Instant::now();
        let mut open = vec![false; inodes.len()];
        for peer in self.registry.all() {
            if self.registry.state(&peer, now) == State::Dead {
                continue;
            }
            let files = peer.open_files.lock();
            for (inode, open) in inodes.iter().zip(&mut open) {
                *open |= files.may_have(*inode, now);
            }
        }
        open
    }
}

/// The epoch of a tracker that leads alone, as it does on the embedded store.
pub const EPOCH: u64 = 1;
