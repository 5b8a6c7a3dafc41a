//! **PURE.** What is known of each peer: how fast, how far, how busy, how honest.
//!
//! Invariant: a peer's outstanding bytes are the bytes of its live requests that did not come yet.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use swarm_proto::{CHUNK_BYTES, MAX_RUN_CHUNKS, PeerId, SegmentId};

use super::meter::Meter;
use super::{BanRules, PeerAddress, PeerStats, Standing};

/// A peer, within one fetcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct PeerKey(u32);

/// Bytes of one chunk.
const CHUNK: u64 = CHUNK_BYTES as u64;

/// Bytes of the longest run.
const MAX_RUN: u64 = CHUNK * MAX_RUN_CHUNKS as u64;

/// First runs asked of a peer whose rate is unknown: 5 ms at 100 Mbit/s, 50 ms at 10 Mbit/s. It doubles
/// with every answer, so a fast peer has its longest runs after four.
const FIRST_RUN: u64 = 64 * 1024;

/// How much work one run is. Long enough that a request's overhead does not show and short enough that
/// a slow peer's run does not hold up a reader in order.
const RUN_WORK: f64 = 0.060;

/// Below this much work a run is not split over peers: a request costs about as much.
const SMALLEST_WORK: f64 = 0.004;

/// Bytes that a fast peer has to do at a time, by how its part compares with that of its equals: where the
/// processor is what limits, those with more outstanding get more of it, and two long runs still fill a link.
const PIPELINE_AHEAD: f64 = 2.0 * MAX_RUN as f64;
const PIPELINE: f64 = 4.0 * MAX_RUN as f64;
const PIPELINE_BEHIND: f64 = 6.0 * MAX_RUN as f64;

/// Most bytes outstanding at one peer: the HTTP/2 window of its connection.
const WINDOW: f64 = 32.0 * MAX_RUN as f64;

/// Most requests outstanding at one peer.
const MOST_REQUESTS: u32 = 64;

/// Taken for a peer of which nothing is known, until something is.
const GUESSED_RATE: f64 = 4e6;
const GUESSED_LATENCY: f64 = 0.020;

/// Rests after a failure: first, longest, and longest while somebody waits for nobody else.
const FIRST_REST: Duration = Duration::from_millis(250);
const LONGEST_REST: Duration = Duration::from_secs(15);
const LONGEST_REST_WANTED: Duration = Duration::from_secs(1);

/// First rest of a peer that said it is busy.
const BUSY_REST: Duration = Duration::from_millis(50);

/// A peer that sends nothing for so long although it was asked is suspected to be gone.
const SILENCE: Duration = Duration::from_millis(300);

/// Answers of which the slowness is remembered.
const HISTORY: usize = 32;

/// How fast the memory of who served lately fades.
const RECENT_SECONDS: f64 = 5.0;

/// One peer.
pub(super) struct Peer {
    pub(super) address: Arc<PeerAddress>,
    pub(super) same_zone: bool,
    meter: Meter,
    latency: Option<f64>,
    outstanding: u64,
    requests: u32,
    ramp: u64,
    /// Actual ÷ predicted duration of the last answers.
    slowness: VecDeque<f32>,
    recent: f64,
    recent_at: Instant,
    /// When it last sent a byte, or was asked while idle.
    heard_at: Instant,
    failures: u32,
    busy: u32,
    /// Times in a row that others were quicker with what it was late with.
    outrun: u32,
    rest_since: Instant,
    rest: Duration,
    /// It must answer a small question before it is trusted with work again.
    probation: bool,
    probing: bool,
    corrupt: VecDeque<(SegmentId, Instant)>,
    banned_until: Option<Instant>,
    was_banned: bool,
    bytes: u64,
}

/// All peers.
pub(super) struct Scoreboard {
    zone: String,
    rules: BanRules,
    keys: HashMap<PeerId, PeerKey>,
    peers: Vec<Peer>,
}

/// How a peer's part lately compares with that of peers about as fast.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// More than theirs.
    Ahead,
    /// About as much.
    Even,
    /// Less.
    Behind,
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
            let rest = (BUSY_REST * 2u32.pow(peer.busy.min(5))).min(LONGEST_REST_WANTED);
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

impl Peer {
    fn new(address: Arc<PeerAddress>, same_zone: bool, now: Instant) -> Self {
        Self {
            address,
            same_zone,
            meter: Meter::new(now),
            latency: None,
            outstanding: 0,
            requests: 0,
            ramp: FIRST_RUN,
            slowness: VecDeque::with_capacity(HISTORY),
            recent: 0.0,
            recent_at: now,
            heard_at: now,
            failures: 0,
            busy: 0,
            outrun: 0,
            rest_since: now,
            rest: Duration::ZERO,
            probation: false,
            probing: false,
            corrupt: VecDeque::new(),
            banned_until: None,
            was_banned: false,
            bytes: 0,
        }
    }

    fn forgive(&mut self) {
        self.failures = 0;
        self.busy = 0;
        self.rest = Duration::ZERO;
        self.probation = false;
        self.probing = false;
        self.ramp = FIRST_RUN;
        self.meter.forget();
    }

    /// Whether it may be given work now.
    pub(super) fn is_usable(&self, now: Instant) -> bool {
        !self.probation && now >= self.rest_since + self.rest && !self.is_banned(now)
    }

    pub(super) fn is_banned(&self, now: Instant) -> bool {
        self.banned_until.is_some_and(|until| now < until)
    }

    /// Whether it was asked and has sent nothing for suspiciously long.
    pub(super) fn is_silent(&self, now: Instant) -> bool {
        let patience = SILENCE + self.known_latency() * 4;
        self.requests > 0 && now.saturating_duration_since(self.heard_at) > patience
    }

    /// When its rest ends, if it only rests because it was busy.
    pub(super) fn busy_until(&self) -> Option<Instant> {
        (!self.probation && !self.rest.is_zero()).then(|| self.rest_since + self.rest)
    }

    fn rested_at(&self, alone: bool) -> Instant {
        let rest = if alone { self.rest.min(LONGEST_REST_WANTED) } else { self.rest };
        self.rest_since + rest
    }

    pub(super) fn stats(&self, now: Instant) -> PeerStats {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate fits, and saturates")]
        let bytes_per_second = self.meter.rate().map(|rate| rate as u64);
        PeerStats {
            peer: (*self.address).clone(),
            bytes: self.bytes,
            bytes_per_second,
            latency: self.latency.map(Duration::from_secs_f64),
            in_flight_bytes: self.outstanding,
            standing: self.standing(now),
        }
    }

    fn standing(&self, now: Instant) -> Standing {
        match (self.is_banned(now), self.is_usable(now)) {
            (true, _) => Standing::Banned,
            (false, false) => Standing::Resting,
            (false, true) => Standing::Good,
        }
    }

    /// Measured rate in bytes a second, unless that was too long ago.
    pub(super) fn rate(&self, now: Instant) -> Option<f64> {
        self.meter.rate().filter(|_| !self.meter.is_stale(now))
    }

    fn known_latency(&self) -> Duration {
        Duration::from_secs_f64(self.latency.unwrap_or(GUESSED_LATENCY))
    }

    /// Measured latency in seconds, unless that was too long ago.
    pub(super) fn latency(&self, now: Instant) -> Option<f64> {
        self.latency.filter(|_| !self.meter.is_stale(now))
    }

    fn latency_or_guess(&self) -> f64 {
        self.latency.unwrap_or(GUESSED_LATENCY)
    }

    /// Bytes asked for that did not come yet.
    pub(super) fn outstanding(&self) -> u64 {
        self.outstanding
    }

    /// Live requests.
    pub(super) fn live_requests(&self) -> u32 {
        self.requests
    }

    /// Bytes it was asked for lately, fading.
    pub(super) fn recent(&self, now: Instant) -> f64 {
        let age = now.saturating_duration_since(self.recent_at).as_secs_f64();
        self.recent * (-age / RECENT_SECONDS).exp()
    }

    /// The run that suits it: about [`RUN_WORK`] of its time.
    pub(super) fn run_bytes(&self) -> u64 {
        let measured = self.meter.rate().map_or(u64::MAX, |rate| whole_chunks(rate * RUN_WORK));
        measured.min(self.ramp).clamp(CHUNK, MAX_RUN)
    }

    /// The run below which splitting does not pay.
    pub(super) fn smallest_run(&self) -> u64 {
        self.meter.rate().map_or(CHUNK, |rate| whole_chunks(rate * SMALLEST_WORK)).clamp(CHUNK, MAX_RUN)
    }

    /// Whether it can be given a run of `bytes` on top of what it has.
    pub(super) fn has_room(&self, bytes: u64, part: Part) -> bool {
        if self.requests == 0 {
            return true;
        }
        if self.requests >= MOST_REQUESTS {
            return false;
        }
        let run = self.run_bytes() as f64;
        let product = self.meter.rate().unwrap_or(0.0) * self.latency_or_guess();
        let most = (2.0 * run + product).clamp(2.0 * run, WINDOW);
        let pipeline = match part {
            Part::Ahead => PIPELINE_AHEAD,
            Part::Even => PIPELINE,
            Part::Behind => PIPELINE_BEHIND,
        };
        let most = if run >= MAX_RUN as f64 { most.max(pipeline) } else { most };
        (self.outstanding + bytes) as f64 <= most
    }

    /// How long `bytes` more would take now.
    pub(super) fn predict(&self, bytes: u64) -> Duration {
        let rate = self.meter.rate().unwrap_or(GUESSED_RATE);
        Duration::from_secs_f64(self.latency_or_guess() + (self.outstanding + bytes) as f64 / rate.max(1.0))
    }

    /// How many bytes more it would send within so long.
    pub(super) fn bytes_within(&self, within: Duration) -> u64 {
        let rate = self.meter.rate().unwrap_or(GUESSED_RATE);
        let bytes = whole_chunks((within.as_secs_f64() - self.latency_or_guess()) * rate);
        bytes.saturating_sub(self.outstanding)
    }

    /// How long what it was asked for already will take from now.
    pub(super) fn remaining(&self) -> Duration {
        let rate = self.meter.rate().unwrap_or(GUESSED_RATE);
        Duration::from_secs_f64(self.outstanding as f64 / rate.max(1.0))
    }

    /// How many times longer than predicted its slowest twentieth of answers takes.
    pub(super) fn slow_factor(&self) -> f64 {
        if self.slowness.len() < 8 {
            return 3.0;
        }
        let mut sorted: Vec<f32> = self.slowness.iter().copied().collect();
        sorted.sort_by(f32::total_cmp);
        f64::from(sorted[(sorted.len() * 19 / 20).min(sorted.len() - 1)]).clamp(1.5, 8.0)
    }
}

fn whole_chunks(bytes: f64) -> u64 {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, which is what is meant")]
    let chunks = (bytes / CHUNK as f64).round() as u64;
    chunks.saturating_mul(CHUNK)
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
