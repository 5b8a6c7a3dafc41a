//! **PURE.** How many bytes a second a peer sends while it has something to send.
//!
//! The rate is the bytes of the last while over its busy time: only the time counts in which a request was
//! under way. It is not a mean of many small rates, because bytes show in frames and in whole replies, so
//! that small rates scatter wildly and their mean is not the rate.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The last while: so much busy time, or less if so many bytes came in it.
const WHILE: Duration = Duration::from_millis(250);
const MANY: u64 = 32 * 1024 * 1024;
const SHORTEST_WHILE: Duration = Duration::from_millis(25);

/// The while is kept in slices of at least this.
const SLICE: Duration = Duration::from_millis(10);

/// Bytes that make a first guess.
const ENOUGH: u64 = 256 * 1024;

/// Busy time that makes one with fewer bytes.
const LONG_ENOUGH: Duration = Duration::from_millis(100);

/// A rate that was not measured for so long is forgotten, so that a peer that had a bad moment while
/// little was asked gets another chance.
const STALE: Duration = Duration::from_secs(10);

/// Measures one peer.
#[derive(Debug)]
pub(super) struct Meter {
    slices: VecDeque<(u64, Duration)>,
    /// Sums of the slices.
    bytes: u64,
    busy: Duration,
    since: Instant,
    heard_at: Instant,
    running: bool,
}

impl Meter {
    pub(super) fn new(now: Instant) -> Self {
        let slices = VecDeque::with_capacity(32);
        Self { slices, bytes: 0, busy: Duration::ZERO, since: now, heard_at: now, running: false }
    }

    /// Bytes a second, once measured.
    pub(super) fn rate(&self) -> Option<f64> {
        let measured = self.bytes >= ENOUGH || self.busy >= LONG_ENOUGH;
        measured.then(|| (self.bytes as f64 / self.busy.as_secs_f64().max(1e-4)).max(1.0))
    }

    /// Whether the last bytes say little about now.
    pub(super) fn is_stale(&self, now: Instant) -> bool {
        !self.running && now.saturating_duration_since(self.heard_at) > STALE
    }

    /// A request is under way from now on.
    pub(super) fn start(&mut self, now: Instant) {
        if self.is_stale(now) {
            self.forget();
        }
        self.since = now;
        self.running = true;
    }

    /// Bytes came.
    pub(super) fn add(&mut self, bytes: u64, now: Instant) {
        self.advance(now);
        self.bytes += bytes;
        if let Some(slice) = self.slices.back_mut() {
            slice.0 += bytes;
        }
        if bytes > 0 {
            self.heard_at = now;
            self.shorten();
        }
    }

    /// No request is under way any more.
    pub(super) fn stop(&mut self, now: Instant) {
        self.advance(now);
        self.running = false;
    }

    /// The peer is another one now.
    pub(super) fn forget(&mut self) {
        self.slices.clear();
        self.bytes = 0;
        self.busy = Duration::ZERO;
    }

    fn advance(&mut self, now: Instant) {
        let passed = if self.running { now.saturating_duration_since(self.since) } else { Duration::ZERO };
        self.since = now;
        self.busy += passed;
        match self.slices.back_mut() {
            Some(slice) if slice.1 < SLICE => slice.1 += passed,
            _ => self.slices.push_back((0, passed)),
        }
    }

    fn shorten(&mut self) {
        while let Some((bytes, busy)) = self.slices.front().copied() {
            let left = self.busy.saturating_sub(busy);
            let enough = left >= WHILE || (self.bytes - bytes >= MANY && left >= SHORTEST_WHILE);
            if !enough {
                return;
            }
            self.slices.pop_front();
            self.bytes -= bytes;
            self.busy = left;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_busy_time_counts() {
        let mut now = Instant::now();
        let mut meter = Meter::new(now);
        for _ in 0..20 {
            meter.start(now);
            now += Duration::from_millis(10);
            meter.add(100_000, now);
            meter.stop(now);
            now += Duration::from_secs(1);
        }
        let rate = meter.rate().unwrap();
        assert!((9e6..11e6).contains(&rate), "{rate}");
    }

    #[test]
    fn bytes_that_come_in_lumps_do_not_blur_the_rate_and_a_change_shows_soon() {
        let mut now = Instant::now();
        let mut meter = Meter::new(now);
        meter.start(now);
        for lump in 0..100u64 {
            now += Duration::from_millis(if lump % 2 == 0 { 118 } else { 2 });
            meter.add(600_000, now);
            if lump > 5 {
                let rate = meter.rate().unwrap();
                assert!((7.5e6..13e6).contains(&rate), "{rate} where 10e6 pass");
            }
        }
        for _ in 0..30 {
            now += Duration::from_millis(10);
            meter.add(10_000, now);
        }
        let rate = meter.rate().unwrap();
        assert!((0.9e6..1.2e6).contains(&rate), "{rate}");
    }

    #[test]
    fn a_peer_that_sends_nothing_has_next_to_no_rate() {
        let mut now = Instant::now();
        let mut meter = Meter::new(now);
        meter.start(now);
        for _ in 0..100 {
            now += Duration::from_millis(10);
            meter.add(0, now);
        }
        assert!(meter.rate().unwrap() < 10.0);
        meter.stop(now);
        assert!(meter.is_stale(now + Duration::from_secs(11)));
    }

    #[test]
    fn its_memory_is_bounded() {
        let mut now = Instant::now();
        let mut meter = Meter::new(now);
        meter.start(now);
        for _ in 0..100_000 {
            now += Duration::from_millis(11);
            meter.add(1, now);
        }
        assert!(meter.slices.len() < 40, "{}", meter.slices.len());
    }
}
