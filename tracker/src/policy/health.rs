//! **PURE.** How well a segment is kept.
//!
//! Invariant: every segment has exactly one [`Health`]; cached copies never count.

use crate::peers::State;

/// How well one segment is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// As many replicas as wanted.
    Healthy,
    /// Fewer, but not none.
    Under,
    /// More.
    Over,
    /// No replica that could be read.
    Missing,
}

/// Whole replicas of one segment, at seeders.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Replicas {
    /// At seeders that live or broke off less than the grace ago.
    pub counted: u32,
    /// At seeders that are being emptied: readable, but going.
    pub draining: u32,
}

impl Replicas {
    /// Count the whole replica of a seeder.
    pub fn count(&mut self, state: State, draining: bool) {
        match state {
            State::Dead => {}
            // A stale seeder counts: it comes back more often than not, and flapping numbers warn nobody.
            State::Live | State::Stale if draining => self.draining += 1,
            State::Live | State::Stale => self.counted += 1,
        }
    }

    /// What that means if `wanted` are.
    pub fn health(self, wanted: u32) -> Health {
        match self.counted {
            0 if self.draining == 0 => Health::Missing,
            counted if counted < wanted => Health::Under,
            counted if counted > wanted => Health::Over,
            _ => Health::Healthy,
        }
    }
}

/// Segments by health.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// All.
    pub segments: u64,
    /// As wanted.
    pub healthy: u64,
    /// Too few replicas.
    pub under: u64,
    /// Too many.
    pub over: u64,
    /// None.
    pub missing: u64,
}

/// Segments by what they have, so that one count answers for any number that is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Histogram {
    missing: u64,
    /// By counted replicas; the last class is "that many or more".
    counted: [u64; Histogram::CLASSES],
}

impl Histogram {
    /// More than the 16 replicas that may be asked for.
    const CLASSES: usize = 18;

    /// Count one segment.
    pub fn add(&mut self, replicas: Replicas) {
        match replicas {
            Replicas { counted: 0, draining: 0 } => self.missing += 1,
            Replicas { counted, .. } => self.counted[(counted as usize).min(Self::CLASSES - 1)] += 1,
        }
    }

    /// By health, if `wanted` replicas are, at most 16.
    pub fn tally(&self, wanted: u32) -> Tally {
        let mut tally = Tally { segments: self.missing, missing: self.missing, ..Tally::default() };
        for (counted, segments) in (0..).zip(self.counted) {
            tally.segments += segments;
            let class = match (Replicas { counted, draining: 1 }).health(wanted) {
                Health::Healthy => &mut tally.healthy,
                Health::Under => &mut tally.under,
                Health::Over => &mut tally.over,
                // A draining replica is none of them.
                Health::Missing => &mut tally.missing,
            };
            *class += segments;
        }
        tally
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replicas(counted: u32, draining: u32) -> Replicas {
        Replicas { counted, draining }
    }

    #[test]
    fn health_is_replicas_against_what_is_wanted() {
        assert_eq!(replicas(0, 0).health(3), Health::Missing);
        assert_eq!(replicas(2, 0).health(3), Health::Under);
        assert_eq!(replicas(3, 0).health(3), Health::Healthy);
        assert_eq!(replicas(4, 0).health(3), Health::Over);
    }

    #[test]
    fn a_draining_replica_can_be_read_but_does_not_count() {
        assert_eq!(replicas(0, 1).health(1), Health::Under);
        assert_eq!(replicas(1, 1).health(1), Health::Healthy);
        assert_eq!(replicas(2, 1).health(3), Health::Under);
    }

    #[test]
    fn a_dead_seeder_counts_for_nothing_and_a_stale_one_still_does() {
        let mut count = Replicas::default();
        count.count(State::Dead, false);
        assert_eq!(count, replicas(0, 0));
        count.count(State::Stale, false);
        count.count(State::Live, false);
        count.count(State::Live, true);
        assert_eq!(count, replicas(2, 1));
    }

    #[test]
    fn one_histogram_answers_for_every_wanted_number() {
        let all = [replicas(0, 0), replicas(0, 2), replicas(1, 0), replicas(3, 1), replicas(3, 0), replicas(40, 0)];
        let mut histogram = Histogram::default();
        all.iter().for_each(|replicas| histogram.add(*replicas));
        for wanted in 1..=16 {
            let count = |health| all.iter().filter(|replicas| replicas.health(wanted) == health).count() as u64;
            let want = Tally {
                segments: 6,
                healthy: count(Health::Healthy),
                under: count(Health::Under),
                over: count(Health::Over),
                missing: count(Health::Missing),
            };
            assert_eq!(histogram.tally(wanted), want, "{wanted}");
        }
    }
}
