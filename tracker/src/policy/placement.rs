//! **PURE.** Which seeders take a new segment.
//!
//! Invariant: the seeders of one segment are distinct, each has room for it, and no zone (then no host)
//! is taken twice while another could be. A seeder that comes or goes moves only the segments that it
//! gains or loses, and one with twice the room gets twice the segments: weighted rendezvous hashing.

use swarm_proto::{PeerId, SegmentId};

/// A seeder that may take segments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seeder {
    /// Who.
    pub id: PeerId,
    /// Failure domain.
    pub zone: String,
    /// Machine.
    pub host: String,
    /// Bytes that it could still take.
    pub free_bytes: u64,
}

struct Candidate {
    key: u64,
    zone: usize,
    host: usize,
    weight: f64,
    left_bytes: u64,
}

/// Places the segments of one request.
pub struct Placement {
    candidates: Vec<Candidate>,
    near: Option<usize>,
    scores: Vec<f64>,
}

/// What the places already chosen have in common with a candidate; less is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Shares {
    Nothing,
    Zone,
    Host,
}

impl Placement {
    /// Among `seeders`; the first replica of each segment goes to zone `near` if that has room.
    pub fn new(seeders: &[Seeder], near: Option<&str>) -> Self {
        let number = |all: &mut Vec<String>, name: &str| {
            all.iter().position(|known| known == name).unwrap_or_else(|| {
                all.push(name.to_owned());
                all.len() - 1
            })
        };
        let (mut zones, mut hosts) = (Vec::new(), Vec::new());
        let candidates: Vec<_> = seeders
            .iter()
            .map(|seeder| Candidate {
                key: key_of(&seeder.id),
                zone: number(&mut zones, &seeder.zone),
                host: number(&mut hosts, &seeder.host),
                weight: seeder.free_bytes.max(1) as f64,
                left_bytes: seeder.free_bytes,
            })
            .collect();
        let near = near.and_then(|near| zones.iter().position(|zone| zone == near));
        Self { scores: Vec::with_capacity(candidates.len()), candidates, near }
    }

    /// Append to `into` the indices of at most `replicas` seeders for a segment, and count its bytes
    /// against their room; returns how many there are.
    ///
    /// Cost: O(seeders × replicas).
    pub fn choose(&mut self, id: &SegmentId, length: u32, replicas: usize, into: &mut Vec<usize>) -> usize {
        let word = first_word(id.as_bytes());
        self.scores.clear();
        self.scores.extend(self.candidates.iter().map(|candidate| match candidate.left_bytes >= u64::from(length) {
            true => score(word ^ candidate.key, candidate.weight),
            false => f64::INFINITY,
        }));
        let start = into.len();
        for _ in 0..replicas {
            let Some(best) = self.best(&into[start..]) else { break };
            self.candidates[best].left_bytes -= u64::from(length);
            into.push(best);
        }
        into.len() - start
    }

    fn best(&self, chosen: &[usize]) -> Option<usize> {
        let mut best: Option<((bool, Shares, f64), usize)> = None;
        for (at, candidate) in self.candidates.iter().enumerate() {
            let score = self.scores[at];
            if score.is_infinite() || chosen.contains(&at) {
                continue;
            }
            let far = chosen.is_empty() && self.near.is_some_and(|near| near != candidate.zone);
            let rank = (far, self.shares(candidate, chosen), score);
            if best.as_ref().is_none_or(|(least, _)| rank < *least) {
                best = Some((rank, at));
            }
        }
        best.map(|(_, at)| at)
    }

    fn shares(&self, candidate: &Candidate, chosen: &[usize]) -> Shares {
        let mut shares = Shares::Nothing;
        for other in chosen.iter().map(|at| &self.candidates[*at]) {
            if other.host == candidate.host {
                return Shares::Host;
            }
            if other.zone == candidate.zone {
                shares = Shares::Zone;
            }
        }
        shares
    }
}

/// Smallest wins. With `u` uniform in (0, 1), `-ln(u) / weight` is exponential with that rate, so that
/// the chance to be the smallest is proportional to the weight, whoever else takes part.
///
/// Source: Thaler and Ravishankar's rendezvous hashing, weighted as by Schindelhauer and Schomaker.
fn score(seed: u64, weight: f64) -> f64 {
    let uniform = ((mix(seed) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    -uniform.ln() / weight
}

/// The finaliser of SplitMix64.
fn mix(mut word: u64) -> u64 {
    word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

fn first_word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[..8]);
    u64::from_le_bytes(word)
}

fn key_of(id: &PeerId) -> u64 {
    let bytes = id.as_bytes();
    mix(first_word(bytes) ^ mix(first_word(&bytes[8..])))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn seeder(number: u8, zone: &str, host: &str, free_bytes: u64) -> Seeder {
        let id = PeerId::new(blake3::hash(&[number]).as_bytes()[..16].try_into().unwrap());
        Seeder { id, zone: zone.into(), host: host.into(), free_bytes }
    }

    fn segment(number: u32) -> SegmentId {
        SegmentId::new(*blake3::hash(&number.to_le_bytes()).as_bytes())
    }

    /// Where each of `segments` goes.
    fn all(seeders: &[Seeder], segments: u32, replicas: usize) -> Vec<Vec<usize>> {
        let mut placement = Placement::new(seeders, None);
        (0..segments)
            .map(|number| {
                let mut into = Vec::new();
                placement.choose(&segment(number), 1, replicas, &mut into);
                into
            })
            .collect()
    }

    #[test]
    fn replicas_lie_in_distinct_zones_then_on_distinct_hosts() {
        let seeders = [
            seeder(0, "a", "h0", 1 << 40),
            seeder(1, "a", "h1", 1 << 40),
            seeder(2, "b", "h2", 1 << 20),
            seeder(3, "b", "h2", 1 << 20),
        ];
        for chosen in all(&seeders, 1000, 3) {
            let zones: BTreeSet<_> = chosen[..2].iter().map(|at| &seeders[*at].zone).collect();
            assert_eq!(zones.len(), 2, "{chosen:?}");
            let hosts: BTreeSet<_> = chosen.iter().map(|at| &seeders[*at].host).collect();
            assert_eq!(hosts.len(), 3, "{chosen:?}");
        }
    }

    #[test]
    fn room_decides_how_much_a_seeder_gets() {
        let seeders = [seeder(0, "", "a", 3 << 40), seeder(1, "", "b", 1 << 40)];
        let first = all(&seeders, 20_000, 1).iter().filter(|chosen| chosen[0] == 0).count();
        assert!((14_400..15_600).contains(&first), "{first}");
    }

    #[test]
    fn a_seeder_that_leaves_moves_only_its_own_segments() {
        let seeders: Vec<_> = (0..10).map(|number| seeder(number, "", &format!("h{number}"), 1 << 40)).collect();
        let (before, after) = (all(&seeders, 2000, 3), all(&seeders[..9], 2000, 3));
        for (before, after) in before.iter().zip(&after) {
            if !before.contains(&9) {
                assert_eq!(before, after);
            }
        }
    }

    #[test]
    fn a_little_less_room_moves_little() {
        let mut seeders: Vec<_> = (0..10).map(|number| seeder(number, "", &format!("h{number}"), 1 << 40)).collect();
        let before = all(&seeders, 2000, 3);
        seeders[4].free_bytes -= 1 << 34;
        let moved = all(&seeders, 2000, 3).iter().zip(&before).filter(|(after, before)| after != before).count();
        assert!(moved < 60, "{moved}");
    }

    #[test]
    fn the_first_replica_stays_near() {
        let seeders = [seeder(0, "a", "0", 1 << 30), seeder(1, "b", "1", 1 << 40), seeder(2, "c", "2", 1 << 40)];
        let mut placement = Placement::new(&seeders, Some("a"));
        for number in 0..100 {
            let mut into = Vec::new();
            placement.choose(&segment(number), 1, 2, &mut into);
            assert_eq!(into[0], 0);
            assert_ne!(into[1], 0);
        }
    }

    #[test]
    fn a_full_seeder_gets_nothing_and_a_filling_one_stops() {
        let seeders = [seeder(0, "", "0", 10), seeder(1, "", "1", 0)];
        let counts: Vec<_> = all(&seeders, 20, 2).iter().map(Vec::len).collect();
        assert_eq!(counts, [vec![1; 10], vec![0; 10]].concat());
    }

    proptest! {
        #[test]
        fn nobody_is_chosen_twice_or_overfilled(
            seeders in proptest::collection::vec((0u8..3, 0u8..5, 0u64..1000), 0..12),
            segments in proptest::collection::vec(1u32..200, 0..40),
            replicas in 0usize..5,
        ) {
            let seeders: Vec<_> = (0u8..).zip(seeders)
                .map(|(number, (zone, host, free))| seeder(number, &zone.to_string(), &host.to_string(), free))
                .collect();
            let mut placement = Placement::new(&seeders, None);
            let mut used = vec![0; seeders.len()];
            for (number, length) in (0..).zip(segments) {
                let mut into = Vec::new();
                let count = placement.choose(&segment(number), length, replicas, &mut into);
                let room = seeders.iter().zip(&used).filter(|(seeder, used)| seeder.free_bytes - **used >= u64::from(length)).count();
                prop_assert_eq!(count, replicas.min(room));
                prop_assert_eq!(into.iter().collect::<BTreeSet<_>>().len(), count);
                for at in into {
                    used[at] += u64::from(length);
                    prop_assert!(used[at] <= seeders[at].free_bytes);
                }
            }
        }
    }
}
