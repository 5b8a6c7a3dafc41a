//! **PURE.** What is known of one peer, and what follows for the work it can be given.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use swarm_proto::{CHUNK_BYTES, MAX_RUN_CHUNKS, SegmentId};

use super::super::meter::Meter;
use super::super::{PeerAddress, PeerStats, Standing};

/// Bytes of one chunk.
pub(super) const CHUNK: u64 = CHUNK_BYTES as u64;

/// Bytes of the longest run.
pub(super) const MAX_RUN: u64 = CHUNK * MAX_RUN_CHUNKS as u64;

/// First runs asked of a peer whose rate is unknown: 5 ms at 100 Mbit/s, 50 ms at 10 Mbit/s. It doubles
/// with every answer, so a fast peer has its longest runs after four.
pub(super) const FIRST_RUN: u64 = 64 * 1024;

/// How much work one run is. Long enough that a request's overhead does not show and short enough that
/// a slow peer's run does not hold up a reader in order.
pub(super) const RUN_WORK: f64 = 0.060;

/// Below this much work a run is not split over peers: a request costs about as much.
pub(super) const SMALLEST_WORK: f64 = 0.004;

/// Bytes that a fast peer has to do at a time, by how its part compares with that of its equals: where the
/// processor is what limits, those with more outstanding get more of it, and two long runs still fill a link.
pub(super) const PIPELINE_AHEAD: f64 = 2.0 * MAX_RUN as f64;
pub(super) const PIPELINE: f64 = 4.0 * MAX_RUN as f64;
pub(super) const PIPELINE_BEHIND: f64 = 6.0 * MAX_RUN as f64;

/// Most bytes outstanding at one peer: the HTTP/2 window of its connection.
pub(super) const WINDOW: f64 = 32.0 * MAX_RUN as f64;

/// Most requests outstanding at one peer.
pub(super) const MOST_REQUESTS: u32 = 64;

/// Taken for a peer of which nothing is known, until something is.
pub(super) const GUESSED_RATE: f64 = 4e6;
pub(super) const GUESSED_LATENCY: f64 = 0.020;

/// A peer that sends nothing for so long although it was asked is suspected to be gone.
pub(super) const SILENCE: Duration = Duration::from_millis(300);

/// Answers of which the slowness is remembered.
pub(super) const HISTORY: usize = 32;

/// How fast the memory of who served lately fades.
pub(super) const RECENT_SECONDS: f64 = 5.0;

/// Longest rest of a peer that alone has what somebody waits for.
pub(super) const LONGEST_REST_ALONE: Duration = Duration::from_secs(1);

/// One peer.
pub(in super::super) struct Peer {
    pub(in super::super) address: Arc<PeerAddress>,
    pub(in super::super) same_zone: bool,
    pub(super) meter: Meter,
    pub(super) latency: Option<f64>,
    pub(super) outstanding: u64,
    pub(super) requests: u32,
    pub(super) ramp: u64,
    /// Actual ÷ predicted duration of the last answers.
    pub(super) slowness: VecDeque<f32>,
    pub(super) recent: f64,
    pub(super) recent_at: Instant,
    /// When it last sent a byte, or was asked while idle.
    pub(super) heard_at: Instant,
    pub(super) failures: u32,
    pub(super) busy: u32,
    /// Times in a row that others were quicker with what it was late with.
    pub(super) outrun: u32,
    pub(super) rest_since: Instant,
    pub(super) rest: Duration,
    /// It must answer a small question before it is trusted with work again.
    pub(super) probation: bool,
    pub(super) probing: bool,
    pub(super) corrupt: VecDeque<(SegmentId, Instant)>,
    pub(super) banned_until: Option<Instant>,
    pub(super) was_banned: bool,
    pub(super) bytes: u64,
}

/// How a peer's part lately compares with that of peers about as fast.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Part {
    /// More than theirs.
    Ahead,
    /// About as much.
    Even,
    /// Less.
    Behind,
}

impl Peer {
    pub(super) fn new(address: Arc<PeerAddress>, same_zone: bool, now: Instant) -> Self {
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

    pub(super) fn forgive(&mut self) {
        self.failures = 0;
        self.busy = 0;
        self.rest = Duration::ZERO;
        self.probation = false;
        self.probing = false;
        self.ramp = FIRST_RUN;
        self.meter.forget();
    }

    /// Whether it may be given work now.
    pub(in super::super) fn is_usable(&self, now: Instant) -> bool {
        !self.probation && now >= self.rest_since + self.rest && !self.is_banned(now)
    }

    pub(in super::super) fn is_banned(&self, now: Instant) -> bool {
        self.banned_until.is_some_and(|until| now < until)
    }

    /// Whether it was asked and has sent nothing for suspiciously long.
    pub(in super::super) fn is_silent(&self, now: Instant) -> bool {
        let patience = SILENCE + self.known_latency() * 4;
        self.requests > 0 && now.saturating_duration_since(self.heard_at) > patience
    }

    /// When its rest ends, if it only rests because it was busy.
    pub(in super::super) fn busy_until(&self) -> Option<Instant> {
        (!self.probation && !self.rest.is_zero()).then(|| self.rest_since + self.rest)
    }

    pub(super) fn rested_at(&self, alone: bool) -> Instant {
        let rest = if alone { self.rest.min(LONGEST_REST_ALONE) } else { self.rest };
        self.rest_since + rest
    }

    pub(in super::super) fn stats(&self, now: Instant) -> PeerStats {
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

    pub(super) fn standing(&self, now: Instant) -> Standing {
        match (self.is_banned(now), self.is_usable(now)) {
            (true, _) => Standing::Banned,
            (false, false) => Standing::Resting,
            (false, true) => Standing::Good,
        }
    }

    /// Measured rate in bytes a second, unless that was too long ago.
    pub(in super::super) fn rate(&self, now: Instant) -> Option<f64> {
        self.meter.rate().filter(|_| !self.meter.is_stale(now))
    }

    pub(super) fn known_latency(&self) -> Duration {
        Duration::from_secs_f64(self.latency.unwrap_or(GUESSED_LATENCY))
    }

    /// Measured latency in seconds, unless that was too long ago.
    pub(in super::super) fn latency(&self, now: Instant) -> Option<f64> {
        self.latency.filter(|_| !self.meter.is_stale(now))
    }

    pub(super) fn latency_or_guess(&self) -> f64 {
        self.latency.unwrap_or(GUESSED_LATENCY)
    }

    /// Bytes asked for that did not come yet.
    pub(in super::super) fn outstanding(&self) -> u64 {
        self.outstanding
    }

    /// Live requests.
    pub(in super::super) fn live_requests(&self) -> u32 {
        self.requests
    }

    /// Bytes it was asked for lately, fading.
    pub(in super::super) fn recent(&self, now: Instant) -> f64 {
        let age = now.saturating_duration_since(self.recent_at).as_secs_f64();
        self.recent * (-age / RECENT_SECONDS).exp()
    }

    /// The run that suits it: about [`RUN_WORK`] of its time.
    pub(in super::super) fn run_bytes(&self) -> u64 {
        let measured = self.meter.rate().map_or(u64::MAX, |rate| whole_chunks(rate * RUN_WORK));
        measured.min(self.ramp).clamp(CHUNK, MAX_RUN)
    }

    /// The run below which splitting does not pay.
    pub(in super::super) fn smallest_run(&self) -> u64 {
        self.meter.rate().map_or(CHUNK, |rate| whole_chunks(rate * SMALLEST_WORK)).clamp(CHUNK, MAX_RUN)
    }

    /// Whether it can be given a run of `bytes` on top of what it has.
    pub(in super::super) fn has_room(&self, bytes: u64, part: Part) -> bool {
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
    pub(in super::super) fn predict(&self, bytes: u64) -> Duration {
        let rate = self.meter.rate().unwrap_or(GUESSED_RATE);
        Duration::from_secs_f64(self.latency_or_guess() + (self.outstanding + bytes) as f64 / rate.max(1.0))
    }

    /// How many bytes more it would send within so long.
    pub(in super::super) fn bytes_within(&self, within: Duration) -> u64 {
        let rate = self.meter.rate().unwrap_or(GUESSED_RATE);
        let bytes = whole_chunks((within.as_secs_f64() - self.latency_or_guess()) * rate);
        bytes.saturating_sub(self.outstanding)
    }

    /// How long what it was asked for already will take from now.
    pub(in super::super) fn remaining(&self) -> Duration {
        let rate = self.meter.rate().unwrap_or(GUESSED_RATE);
        Duration::from_secs_f64(self.outstanding as f64 / rate.max(1.0))
    }

    /// How many times longer than predicted its slowest twentieth of answers takes.
    pub(in super::super) fn slow_factor(&self) -> f64 {
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
