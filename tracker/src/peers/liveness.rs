//! **PURE.** A peer's life: its stream's, and a grace.
//!
//! Invariant: a peer without a stream is stale for the grace and then dead; one that said goodbye is dead.

use std::time::{Duration, Instant};

/// Whether a peer answers, as far as the tracker can know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Its stream is open.
    Live,
    /// The stream broke less than the grace ago: handed out last.
    Stale,
    /// Gone for longer: never handed out.
    Dead,
}

/// When a peer's stream opened, broke, or was closed on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// The stream is open.
    Open {
        /// Since then.
        since: Instant,
    },
    /// The stream broke.
    Broken {
        /// Then.
        at: Instant,
    },
    /// The peer said that it leaves.
    Left {
        /// Then.
        at: Instant,
    },
}

impl Liveness {
    /// What that means now.
    pub fn state(&self, now: Instant, grace: Duration) -> State {
        match self {
            Self::Open { .. } => State::Live,
            Self::Broken { at } if now.saturating_duration_since(*at) < grace => State::Stale,
            Self::Broken { .. } | Self::Left { .. } => State::Dead,
        }
    }

    /// How long ago the stream opened or closed.
    pub fn age(&self, now: Instant) -> Duration {
        let (Self::Open { since: at } | Self::Broken { at } | Self::Left { at }) = self;
        now.saturating_duration_since(*at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(10);

    #[test]
    fn a_broken_stream_is_forgiven_for_the_grace() {
        let at = Instant::now();
        let broken = Liveness::Broken { at };
        assert_eq!(broken.state(at, GRACE), State::Stale);
        assert_eq!(broken.state(at + GRACE - Duration::from_millis(1), GRACE), State::Stale);
        assert_eq!(broken.state(at + GRACE, GRACE), State::Dead);
    }

    #[test]
    fn a_goodbye_is_not() {
        let at = Instant::now();
        assert_eq!(Liveness::Left { at }.state(at, GRACE), State::Dead);
    }

    #[test]
    fn an_open_stream_lives_however_old_it_is() {
        let since = Instant::now();
        let later = since + Duration::from_secs(1 << 20);
        assert_eq!(Liveness::Open { since }.state(later, GRACE), State::Live);
        assert_eq!(Liveness::Open { since }.age(later).as_secs(), 1 << 20);
    }
}
