//! **PURE.** What the end of a request or of a question means.

use std::time::{Duration, Instant};

use bytes::Bytes;
use swarm_proto::{ChunkRange, ChunkTree, Presence, SegmentId};

use super::super::Offence;
use super::super::in_flight::{Request, RequestId};
use super::super::scoreboard::{PeerKey, Verdict};
use super::{Action, Engine, Trouble};

/// Why a request brought nothing. The variant says what is done about it.
#[derive(Debug, Clone)]
pub(in super::super) enum Failure {
    /// The peer lacks the segment: ask others, and the tracker again.
    Missing,
    /// The peer has other chunks of it: take those from it.
    Held(Presence),
    /// The peer is right to refuse, as far as one can see: ask others, but accuse nobody.
    Refused(String),
    /// Bytes or tree did not verify: distrust the segment there.
    Corrupt(String),
    /// The peer has no capacity now: let it rest shortly.
    Busy,
    /// The peer could not be reached: let it rest, and see whether it comes back.
    Unreachable(String),
    /// The peer did not answer in time.
    TooSlow,
}

/// Bytes to be checked against a tree, outside.
#[derive(Debug)]
pub(in super::super) struct ToCheck {
    pub(in super::super) request: RequestId,
    pub(in super::super) chunks: ChunkRange,
    pub(in super::super) data: Bytes,
}

impl Engine {
    /// A verified tree came with a reply: the bytes that waited for it.
    pub(in super::super) fn tree_came(&mut self, tree: &ChunkTree) -> Vec<ToCheck> {
        self.stats.tree_bytes += tree.values().len() as u64;
        self.remember_tree(tree.clone());
        let parked = self.in_flight.learn_tree(tree);
        parked.into_iter().map(|(request, chunks, data)| ToCheck { request, chunks, data }).collect()
    }

    /// Bytes came before the tree that proves them: they wait for it here.
    ///
    /// Returns: the tree, if it has come meanwhile; the bytes are then to be checked now.
    pub(in super::super) fn park(
        &mut self,
        id: RequestId,
        data: &Bytes,
        latency: Option<Duration>,
        now: Instant,
        actions: &mut Vec<Action>,
    ) -> Option<ChunkTree> {
        let segment = self.in_flight.get(id)?.segment;
        if let Some(tree) = self.in_flight.tree(&segment.id) {
            return Some(tree.clone());
        }
        let request = self.in_flight.get(id)?.clone();
        self.finish(&request, Some(latency), now);
        self.in_flight.park(id, data.clone());
        self.unstick(&segment.id);
        self.dispatch(now, actions);
        None
    }

    /// Verified bytes of a request came.
    pub(in super::super) fn delivered(
        &mut self,
        id: RequestId,
        data: &Bytes,
        latency: Option<Duration>,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let was_parked = self.in_flight.get(id).is_some_and(Request::is_parked);
        let Some((request, settled)) = self.in_flight.deliver(id, data) else {
            self.stats.wasted_bytes += data.len() as u64;
            return;
        };
        if !was_parked {
            self.finish(&request, Some(latency), now);
        }
        self.stats.payload_bytes += settled.useful_bytes;
        self.stats.wasted_bytes += (data.len() as u64).saturating_sub(settled.useful_bytes);
        self.scoreboard.credit(request.peer, settled.useful_bytes);
        self.earn_hedges(settled.useful_bytes);
        self.troubles.pop(&request.segment.id);
        self.settle(settled, now, actions);
        self.dispatch(now, actions);
    }

    /// A request brought nothing.
    pub(in super::super) fn failed(
        &mut self,
        id: RequestId,
        failure: &Failure,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let Some(known) = self.in_flight.get(id) else { return };
        let was_parked = known.is_parked();
        let Some(request) = self.in_flight.fail(id) else { return };
        if !was_parked {
            if matches!(failure, Failure::Corrupt(_)) {
                // Wrong bytes say as much about the way as right ones do.
                let left = request.bytes().saturating_sub(request.received);
                self.scoreboard.came(request.peer, left, now);
                self.scoreboard.over(request.peer, 0, now);
            } else {
                self.finish(&request, None, now);
            }
        }
        self.judge(&request, failure, now, actions);
        self.unstick(&request.segment.id);
        self.dispatch(now, actions);
    }

    /// A peer said what it has of segments, in the order asked.
    pub(in super::super) fn has(
        &mut self,
        peer: PeerKey,
        answers: Vec<(SegmentId, Presence)>,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        self.scoreboard.probed(peer);
        for (id, presence) in answers {
            match &presence {
                Presence::Partial(set) if set.is_empty() => self.locations.missing(&id, peer, now),
                _ => self.locations.has(&id, peer, presence, now),
            }
        }
        self.dispatch(now, actions);
    }

    /// A peer did not say what it has.
    pub(in super::super) fn has_failed(
        &mut self,
        peer: PeerKey,
        ids: &[SegmentId],
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        ids.iter().for_each(|id| self.locations.unanswered(id, peer, now));
        self.scoreboard.failed(peer, now);
        self.dispatch(now, actions);
    }

    /// Book the end of a request; `answered` with the sample of the latency, if it had one.
    fn finish(&mut self, request: &Request, answered: Option<Option<Duration>>, now: Instant) {
        let bytes = request.bytes();
        let left = bytes.saturating_sub(request.received);
        match answered {
            Some(latency) => {
                self.scoreboard.came(request.peer, left, now);
                self.scoreboard.over(request.peer, 0, now);
                let took = now.saturating_duration_since(request.sent);
                self.scoreboard.answered(request.peer, bytes, took, request.predicted);
                if let Some(sample) = latency.filter(|_| request.peer_was_idle) {
                    self.scoreboard.latency(request.peer, sample);
                }
            }
            None => self.scoreboard.over(request.peer, left, now),
        }
    }

    fn judge(&mut self, request: &Request, failure: &Failure, now: Instant, actions: &mut Vec<Action>) {
        let (peer, id) = (request.peer, request.segment.id);
        let who = self.scoreboard.get(peer).address.id;
        let words = match failure {
            Failure::Missing => {
                self.locations.missing(&id, peer, now);
                actions.push(Action::Report(who, Offence::Missing(id)));
                "it does not have the segment".to_owned()
            }
            Failure::Refused(words) => {
                self.locations.missing(&id, peer, now);
                words.clone()
            }
            Failure::Held(presence) => {
                let promised = self.locations.holders(&id).iter().any(|h| h.peer == peer && h.is_whole());
                if presence.has(request.chunks) {
                    // It says that it has what it did not send.
                    self.locations.missing(&id, peer, now);
                } else {
                    self.locations.has(&id, peer, presence.clone(), now);
                }
                if promised {
                    actions.push(Action::Report(who, Offence::Missing(id)));
                }
                "it does not have these chunks".to_owned()
            }
            Failure::Corrupt(words) => {
                self.stats.corrupt += 1;
                self.locations.corrupt(&id, peer, now);
                actions.push(Action::Report(who, Offence::Corrupt(id)));
                if self.scoreboard.corrupt(peer, id, now) == Verdict::Banned {
                    self.withdraw_from(peer, now, actions);
                }
                words.clone()
            }
            Failure::Busy => {
                self.scoreboard.busy(peer, now);
                "it is busy".to_owned()
            }
            Failure::Unreachable(words) => {
                self.lost(peer, now, actions);
                words.clone()
            }
            Failure::TooSlow => {
                self.report_unreachable(peer, now, actions);
                self.scoreboard.too_slow(peer, now);
                "no answer in time".to_owned()
            }
        };
        if !matches!(failure, Failure::Corrupt(_)) {
            self.stats.failed += 1;
        }
        let trouble = self.troubles.get_or_insert_mut(id, Trouble::default);
        if !trouble.peers.contains(&peer) {
            trouble.peers.push(peer);
        }
        trouble.last = format!("{}: {words}", self.scoreboard.get(peer).address.address);
    }

    /// A peer does not answer. Others have done its work already, or will.
    pub(super) fn lost(&mut self, peer: PeerKey, now: Instant, actions: &mut Vec<Action>) {
        self.report_unreachable(peer, now, actions);
        self.scoreboard.failed(peer, now);
    }

    /// Once for each failure of a connection, not for each request on it.
    fn report_unreachable(&self, peer: PeerKey, now: Instant, actions: &mut Vec<Action>) {
        let peer = self.scoreboard.get(peer);
        if peer.is_usable(now) {
            actions.push(Action::Report(peer.address.id, Offence::Unreachable));
        }
    }

    /// Take back all that a peer was asked for.
    fn withdraw_from(&mut self, peer: PeerKey, now: Instant, actions: &mut Vec<Action>) {
        let theirs = self.in_flight.requests().filter(|(_, request)| request.peer == peer);
        let theirs: Vec<RequestId> = theirs.map(|(id, _)| id).collect();
        for id in theirs {
            let was_parked = self.in_flight.get(id).is_some_and(Request::is_parked);
            if let Some(request) = self.in_flight.fail(id) {
                if !was_parked {
                    self.finish(&request, None, now);
                }
                self.unstick(&request.segment.id);
                actions.push(Action::Cancel(id));
            }
        }
    }

    /// Bytes that wait for a tree which nobody brings are asked for again, with the tree.
    fn unstick(&mut self, id: &SegmentId) {
        if let Some(request) = self.in_flight.stuck(id) {
            self.in_flight.fail(request);
        }
    }
}
