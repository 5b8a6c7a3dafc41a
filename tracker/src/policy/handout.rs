//! **PURE.** In which order the holders of a segment are handed out.
//!
//! Invariant: the dead, the asker and those that serve nothing never; then believed before doubted,
//! reachable before stale, near before far, whole before partial, idle before busy, and among equals an
//! order that differs from segment to segment, so that readers spread.

use crate::peers::State;

/// Holders of one segment that one answer names at most. A swarm of a thousand mounts with the same file
/// would otherwise answer in megabytes.
pub const MOST_HOLDERS: usize = 32;

/// Whole holders among them at least, if there are so many: partial ones alone may lack a chunk.
const WHOLE_AT_LEAST: usize = 4;

/// What of a peer decides its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Whether it lives.
    pub state: State,
    /// Reported as unreachable a moment ago.
    pub shunned: bool,
    /// In another zone than the asker.
    pub far: bool,
    /// Fetches that it answers now.
    pub in_flight: u32,
}

/// What of one holding decides its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holding {
    /// Only some chunks.
    pub partial: bool,
    /// Reported as wrong for this segment.
    pub doubted: bool,
}

/// A place in the order; smaller is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank(u64);

const DOUBTED: u32 = 63;
const UNREACHABLE: u32 = 62;
const FAR: u32 = 61;
const PARTIAL: u32 = 60;
const BUSY: u32 = 54;

/// The place of one holder of one segment. `None`: never handed out.
///
/// Shape: `tie` is any number that differs from one (segment, peer) to another.
pub fn rank(standing: &Standing, holding: Holding, tie: u64) -> Option<Rank> {
    let unreachable = match standing.state {
        State::Dead => return None,
        State::Stale => true,
        State::Live => standing.shunned,
    };
    // Steps of four: a peer with 3 fetches is not worse than one with 1.
    let busy = u64::from(32 - standing.in_flight.leading_zeros()).div_ceil(2);
    let bit = |set: bool, at: u32| u64::from(set) << at;
    Some(Rank(
        bit(holding.doubted, DOUBTED)
            | bit(unreachable, UNREACHABLE)
            | bit(standing.far, FAR)
            | bit(holding.partial, PARTIAL)
            | busy << BUSY
            | tie >> (64 - BUSY),
    ))
}

impl Rank {
    fn is_partial(self) -> bool {
        self.0 >> PARTIAL & 1 == 1
    }
}

/// Put the holders of one segment in order, and keep the best [`MOST_HOLDERS`].
pub fn order<T>(holders: &mut Vec<(Rank, T)>) {
    holders.sort_unstable_by_key(|(rank, _)| *rank);
    if holders.len() <= MOST_HOLDERS {
        return;
    }
    let whole = holders[..MOST_HOLDERS].iter().filter(|(rank, _)| !rank.is_partial()).count();
    let mut rest = MOST_HOLDERS;
    let mut last = MOST_HOLDERS;
    for _ in whole..WHOLE_AT_LEAST {
        let Some(found) = holders[rest..].iter().position(|(rank, _)| !rank.is_partial()) else { break };
        let Some(victim) = holders[..last].iter().rposition(|(rank, _)| rank.is_partial()) else { break };
        holders.swap(victim, rest + found);
        (rest, last) = (rest + found + 1, victim);
    }
    holders.truncate(MOST_HOLDERS);
    holders.sort_unstable_by_key(|(rank, _)| *rank);
}

/// A tie breaker for one holder of one segment.
pub fn tie(id: &[u8; 32], peer: u32) -> u64 {
    let word = u64::from_le_bytes([id[0], id[1], id[2], id[3], id[4], id[5], id[6], id[7]]);
    (word ^ u64::from(peer).wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xd6e8_feb8_6659_fd93)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Standing = Standing { state: State::Live, shunned: false, far: false, in_flight: 0 };
    const WHOLE: Holding = Holding { partial: false, doubted: false };

    fn at(standing: Standing, holding: Holding, tie: u64) -> Rank {
        rank(&standing, holding, tie).unwrap()
    }

    #[test]
    fn the_dead_are_never_handed_out() {
        assert_eq!(rank(&Standing { state: State::Dead, ..GOOD }, WHOLE, 0), None);
    }

    #[test]
    fn believed_before_doubted_before_anything_else() {
        let best = at(GOOD, WHOLE, u64::MAX);
        let busy = at(Standing { in_flight: 100, ..GOOD }, WHOLE, 0);
        let busiest = at(Standing { in_flight: u32::MAX, ..GOOD }, WHOLE, u64::MAX);
        let partial = at(GOOD, Holding { partial: true, ..WHOLE }, 0);
        let far = at(Standing { far: true, ..GOOD }, WHOLE, 0);
        let stale = at(Standing { state: State::Stale, ..GOOD }, WHOLE, 0);
        let doubted = at(GOOD, Holding { doubted: true, ..WHOLE }, 0);
        let order = [best, busy, busiest, partial, far, stale, doubted];
        assert!(order.is_sorted_by(|a, b| a < b), "{order:?}");
        assert_eq!(at(Standing { shunned: true, ..GOOD }, WHOLE, 0), stale);
    }

    #[test]
    fn equals_are_spread_over_segments() {
        let first = (0..64u8).filter(|number| {
            let id = *blake3::hash(&[*number]).as_bytes();
            at(GOOD, WHOLE, tie(&id, 0)) < at(GOOD, WHOLE, tie(&id, 1))
        });
        let count = first.count();
        assert!((16..48).contains(&count), "{count}");
    }

    #[test]
    fn many_partial_holders_do_not_push_the_whole_ones_out() {
        let mut holders: Vec<_> =
            (0..1000).map(|number| (at(GOOD, Holding { partial: true, ..WHOLE }, number << 40), number)).collect();
        let far = Standing { far: true, ..GOOD };
        holders.extend((0..6).map(|number| (at(far, WHOLE, number << 40), 2000 + number)));
        order(&mut holders);
        assert_eq!(holders.len(), MOST_HOLDERS);
        assert_eq!(holders.iter().filter(|(_, number)| *number >= 2000).count(), WHOLE_AT_LEAST);
        assert!(holders.is_sorted_by_key(|(rank, _)| *rank));
        assert_eq!(holders[0].1, 0, "the best stays first");
    }
}
