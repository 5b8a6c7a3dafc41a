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

impl Tally {
    /// Count one segment.
    pub fn add(&mut self, health: Health) {
        self.segments += 1;
        let class = match health {
            Health::Healthy => &mut self.healthy,
            Health::Under => &mut self.under,
            Health::Over => &mut self.over,
            Health::Missing => &mut self.missing,
        };
        *class += 1;
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
    fn a_tally_adds_up() {
        let mut tally = Tally::default();
        for health in [Health::Healthy, Health::Under, Health::Over, Health::Missing, Health::Healthy] {
            tally.add(health);
        }
        assert_eq!(tally, Tally { segments: 5, healthy: 2, under: 1, over: 1, missing: 1 });
    }
}
