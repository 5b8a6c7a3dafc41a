//! **PURE.** A token bucket: so many bytes a second, in the long run.

use std::time::{Duration, Instant};

use swarm_proto::settings::ByteCount;

/// How much of a second's bytes may be saved up.
const SAVED_SECONDS: f64 = 0.1;

/// Limits how fast bytes are asked for.
#[derive(Debug)]
pub(super) struct Bucket {
    rate: f64,
    bytes: f64,
    filled_at: Instant,
}

impl Bucket {
    /// Full at first.
    pub(super) fn new(limit: ByteCount, now: Instant) -> Self {
        let rate = (limit.0 as f64).max(1.0);
        Self { rate, bytes: rate * SAVED_SECONDS, filled_at: now }
    }

    /// Whether anything may be asked for now. A run may be larger than what is there: the debt is then
    /// waited off, so that the limit holds without cutting runs to slivers.
    pub(super) fn is_open(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.filled_at).as_secs_f64();
        self.bytes = (self.bytes + passed * self.rate).min(self.rate * SAVED_SECONDS);
        self.filled_at = now;
        self.bytes > 0.0
    }

    /// These bytes were asked for.
    pub(super) fn take(&mut self, bytes: u64) {
        self.bytes -= bytes as f64;
    }

    /// When it opens again; `None`: it is open.
    pub(super) fn opens_at(&self) -> Option<Instant> {
        (self.bytes <= 0.0).then(|| self.filled_at + Duration::from_secs_f64(-self.bytes / self.rate + 0.001))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_to_its_rate_in_the_long_run() {
        let start = Instant::now();
        let mut now = start;
        let mut bucket = Bucket::new(ByteCount(1_000_000), start);
        let mut taken = 0;
        while now < start + Duration::from_secs(20) {
            match bucket.is_open(now) {
                true => {
                    bucket.take(262_144);
                    taken += 262_144;
                }
                false => now = bucket.opens_at().expect("closed"),
            }
        }
        assert!((19_900_000..20_700_000).contains(&taken), "{taken}");
    }
}
