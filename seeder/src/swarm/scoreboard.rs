//! **PURE.** What is known of each peer: how fast, how far, how busy, how honest.
//!
//! Invariant: a peer's outstanding bytes are the bytes of its live requests that did not come yet.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use swarm_proto::{PeerId, SegmentId};

use super::{BanRules, PeerAddress};

mod peer;

pub(super) use peer::{Part, Peer};

use peer::{CHUNK, FIRST_RUN, GUESSED_LATENCY, GUESSED_RATE, HISTORY, LONGEST_REST_ALONE, MAX_RUN};

/// A peer, within one fetcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct PeerKey(u32);

/// Rests after a failure: first and longest.
const FIRST_REST: Duration = Duration::from_millis(250);
const LONGEST_REST: Duration = Duration::from_secs(15);

/// First rest of a peer that said it is busy.
const BUSY_REST: Duration = Duration::from_millis(50);

/// All peers.
pub(super) struct Scoreboard {
    zone: String,
    rules: BanRules,
    keys: HashMap<PeerId, PeerKey>,
    peers: Vec<Peer>,
}

/// What a failure led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing more.
    Noted,
    /// The peer is banned from now on.
    Banned,
}

impl Scoreboard {
    pub(super) fn new(zone: String, rules: BanRules) -> Self {
        Self { zone, rules, keys: HashMap::new(), peers: Vec::new() }
    }

    /// The key of a peer; a changed address is taken over, and what was held against the old one forgotten.
    pub(super) fn introduce(&mut self, address: &PeerAddress, now: Instant) -> PeerKey {
        if let Some(key) = self.keys.get(&address.id) {
            let peer = &mut self.peers[key.0 as usize];
            if *peer.address != *address {
                if peer.address.address != address.address {
                    peer.forgive();
                }
                peer.same_zone = address.zone == self.zone;
                peer.address = Arc::new(address.clone());
            }
            return *key;
        }
        let key = PeerKey(u32::try_from(self.peers.len()).expect("fewer peers than 2^32"));
        self.peers.push(Peer::new(Arc::new(address.clone()), address.zone == self.zone, now));
        self.keys.insert(address.id, key);
        key
    }

    /// One peer.
    pub(super) fn get(&self, key: PeerKey) -> &Peer {
        &self.peers[key.0 as usize]
    }

    fn get_mut(&mut self, key: PeerKey) -> &mut Peer {
        &mut self.peers[key.0 as usize]
    }

    /// All peers.
    pub(super) fn iter(&self) -> impl Iterator<Item = (PeerKey, &Peer)> {
        self.peers.iter().enumerate().map(|(at, peer)| (PeerKey(u32::try_from(at).unwrap_or(u32::MAX)), peer))
    }

    /// A request for `bytes` was sent.
    pub(super) fn sent(&mut self, key: PeerKey, bytes: u64, now: Instant) {
        let peer = self.get_mut(key);
        if peer.requests == 0 {
            peer.heard_at = now;
            if peer.meter.is_stale(now) {
                // Much may have changed: feel the way again.
                peer.ramp = peer.ramp.min(FIRST_RUN);
            }
            peer.meter.start(now);
        }
        peer.requests += 1;
        peer.outstanding += bytes;
        peer.recent = peer.recent(now) + bytes as f64;
        peer.recent_at = now;
    }

    /// `bytes` more of its live requests came.
    pub(super) fn came(&mut self, key: PeerKey, bytes: u64, now: Instant) {
        let peer = self.get_mut(key);
        if bytes > 0 {
            peer.outstanding = peer.outstanding.saturating_sub(bytes);
            peer.heard_at = now;
        }
        peer.meter.add(bytes, now);
    }

    /// A request is over, in whatever way; `missing` of its bytes did not come.
    pub(super) fn over(&mut self, key: PeerKey, missing: u64, now: Instant) {
        let peer = self.get_mut(key);
        peer.requests = peer.requests.saturating_sub(1);
        peer.outstanding = peer.outstanding.saturating_sub(missing);
        if peer.requests == 0 {
            peer.outstanding = 0;
            peer.meter.stop(now);
        }
    }

    /// A request was cancelled, `missing` of whose bytes did not come yet.
    ///
    /// Nobody knows how far it was: bytes show in large frames. It is taken to have gone on at the peer's
    /// rate, but at most to the middle if it was late already, and less each time that this happens. To
    /// take nothing would leave a peer that was outrun once with no rate and never asked again.
    pub(super) fn cancelled(&mut self, key: PeerKey, missing: u64, sent: Instant, predicted: Duration, now: Instant) {
        let peer = self.get_mut(key);
        let late = now.saturating_duration_since(sent) > predicted;
        peer.outrun = if late { peer.outrun + 1 } else { peer.outrun };
        let quiet = now.saturating_duration_since(sent.max(peer.heard_at)).as_secs_f64();
        let credit = quiet * peer.meter.rate().unwrap_or(GUESSED_RATE);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, which is meant")]
        let credit = (credit as u64).min(missing >> if late { peer.outrun.min(20) } else { 0 });
        peer.meter.add(credit, now);
        self.over(key, missing, now);
    }

    /// It answered rightly: `bytes` in `took`, where `predicted` had been expected.
    pub(super) fn answered(&mut self, key: PeerKey, bytes: u64, took: Duration, predicted: Duration) {
        let peer = self.get_mut(key);
        peer.failures = 0;
        peer.busy = 0;
        peer.outrun = 0;
        peer.rest = Duration::ZERO;
        peer.probation = false;
        if bytes * 2 >= peer.ramp {
            peer.ramp = (peer.ramp * 2).min(MAX_RUN);
        }
        if peer.slowness.len() == HISTORY {
            peer.slowness.pop_front();
        }
        let ratio = took.as_secs_f64() / predicted.as_secs_f64().max(1e-4);
        #[allow(clippy::cast_possible_truncation, reason = "a ratio needs no more digits")]
        peer.slowness.push_back(ratio as f32);
    }

    /// Bytes of it were of use.
    pub(super) fn credit(&mut self, key: PeerKey, bytes: u64) {
        self.get_mut(key).bytes += bytes;
    }

    /// The first byte of a reply came so long after the request, which it had alone.
    pub(super) fn latency(&mut self, key: PeerKey, sample: Duration) {
        let peer = self.get_mut(key);
        let sample = sample.as_secs_f64();
        peer.latency = Some(match peer.latency {
            Some(known) if sample > known => known + (sample - known) / 8.0,
            Some(known) => known + (sample - known) / 2.0,
            None => sample,
        });
    }

    /// It could not be reached, or did not answer in time.
    pub(super) fn failed(&mut self, key: PeerKey, now: Instant) {
        let peer = self.get_mut(key);
        peer.ramp = FIRST_RUN;
        peer.probing = false;
        // One broken connection fails all requests on it, and is one failure.
        if peer.probation && now < peer.rest_since + peer.rest {
            return;
        }
        let longest = LONGEST_REST.min(FIRST_REST * 2u32.saturating_pow(peer.failures.min(10)));
        peer.failures += 1;
        peer.rest = jitter(longest, peer.address.id, peer.failures);
        peer.rest_since = now;
        peer.probation = true;
    }

    /// It is alive, but so slow that a request had to be given up: smaller ones from now on.
    pub(super) fn too_slow(&mut self, key: PeerKey, now: Instant) {
        self.failed(key, now);
        self.get_mut(key).ramp = CHUNK;
    }

    /// It said that it has no capacity now.
    pub(super) fn busy(&mut self, key: PeerKey, now: Instant) {
        let peer = self.get_mut(key);
        peer.ramp = (peer.ramp / 2).max(CHUNK);
        if now >= peer.rest_since + peer.rest {
            let rest = (BUSY_REST * 2u32.pow(peer.busy.min(5))).min(LONGEST_REST_ALONE);
            peer.busy += 1;
            peer.rest = jitter(rest, peer.address.id, peer.busy);
            peer.rest_since = now;
        }
    }

    /// Its bytes or its tree of a segment did not verify.
    pub(super) fn corrupt(&mut self, key: PeerKey, id: SegmentId, now: Instant) -> Verdict {
        let rules = self.rules;
        let peer = self.get_mut(key);
        peer.corrupt.retain(|(other, at)| *other != id && now.saturating_duration_since(*at) < rules.within);
        peer.corrupt.push_back((id, now));
        // Once banned, it has no credit any more.
        let allowed = if peer.was_banned { 1 } else { rules.segments };
        if peer.corrupt.len() < allowed || peer.is_banned(now) {
            return Verdict::Noted;
        }
        peer.banned_until = Some(now + rules.lasts);
        peer.was_banned = true;
        peer.corrupt.clear();
        Verdict::Banned
    }

    /// Whether a peer that failed should be asked a small question now, to see whether it is back.
    ///
    /// Shape: `alone`: somebody waits for something that no other peer has.
    pub(super) fn wants_probe(&self, key: PeerKey, alone: bool, now: Instant) -> bool {
        let peer = self.get(key);
        peer.probation && !peer.probing && !peer.is_banned(now) && now >= peer.rested_at(alone)
    }

    /// When [`Self::wants_probe`] becomes true.
    pub(super) fn probe_at(&self, key: PeerKey, alone: bool) -> Option<Instant> {
        let peer = self.get(key);
        (peer.probation && !peer.probing).then(|| peer.rested_at(alone))
    }

    /// It is being asked.
    pub(super) fn probing(&mut self, key: PeerKey) {
        self.get_mut(key).probing = true;
    }

    /// It answered a small question.
    pub(super) fn probed(&mut self, key: PeerKey) {
        let peer = self.get_mut(key);
        peer.probing = false;
        peer.probation = false;
        peer.rest = Duration::ZERO;
    }

    /// The best rate and latency known of any peer: what is expected of one that was never tried, so that
    /// it is.
    pub(super) fn best(&self, now: Instant) -> (f64, f64) {
        let rate = self.peers.iter().filter_map(|peer| peer.rate(now)).fold(GUESSED_RATE, f64::max);
        (rate, self.peers.iter().filter_map(|peer| peer.latency).fold(GUESSED_LATENCY, f64::min))
    }

    /// Whether any peer could be given anything.
    pub(super) fn any_room(&self, now: Instant) -> bool {
        self.peers.iter().any(|peer| peer.is_usable(now) && peer.has_room(peer.run_bytes(), Part::Behind))
    }

    /// Peers that are banned.
    pub(super) fn banned(&self, now: Instant) -> u64 {
        self.peers.iter().filter(|peer| peer.is_banned(now)).count() as u64
    }
}

/// Between three and five quarters of `rest`, so that many peers do not all try at once.
fn jitter(rest: Duration, id: PeerId, times: u32) -> Duration {
    let seed = id.as_bytes().iter().fold(u64::from(times), |seed, byte| {
        (seed ^ u64::from(*byte)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(23)
    });
    rest.mul_f64(0.75 + (seed % 1024) as f64 / 2048.0)
}

#[cfg(test)]
mod tests;
