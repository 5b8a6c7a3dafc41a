//! **PURE.** How much can be stored when every byte is kept several times.
//!
//! Invariant: no more than the seeders can take, each byte at different seeders.

/// Bytes that fit at `replicas` copies, or at one copy a seeder where there are fewer of those.
///
/// Shape: the largest D with Σ min(room, D) ≥ replicas × D: a seeder that has more room than all of D
///        holds one copy of everything, and the rest of its room is of no use.
/// Cost:  O(n log n).
pub fn storable(rooms: impl IntoIterator<Item = u64>, replicas: u32) -> u64 {
    let mut rooms: Vec<u128> = rooms.into_iter().filter(|room| *room > 0).map(u128::from).collect();
    rooms.sort_unstable_by(|a, b| b.cmp(a));
    let mut copies = (replicas.max(1) as usize).min(rooms.len());
    let mut rest: u128 = rooms.iter().sum();
    for room in rooms {
        if copies <= 1 || room * copies as u128 <= rest {
            break;
        }
        rest -= room;
        copies -= 1;
    }
    match copies {
        0 => 0,
        copies => u64::try_from(rest / copies as u128).unwrap_or(u64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn equal_seeders_share_and_a_giant_helps_once() {
        assert_eq!(storable([100, 100, 100], 3), 100);
        assert_eq!(storable([100, 100, 100, 100], 2), 200);
        assert_eq!(storable([1_000_000, 100, 100], 2), 200);
        assert_eq!(storable([1_000_000, 100], 3), 100, "two seeders keep two copies");
        assert_eq!(storable([100], 3), 100);
        assert_eq!(storable([], 3), 0);
        assert_eq!(storable([0, 0], 2), 0);
        assert_eq!(storable([u64::MAX; 3], 1), u64::MAX);
    }

    proptest! {
        #[test]
        fn it_is_the_largest_amount_that_fits(
            rooms in proptest::collection::vec(1u64..500, 1..8),
            replicas in 1u32..5,
        ) {
            let copies = u64::from(replicas).min(rooms.len() as u64);
            let fits = |amount: u64| rooms.iter().map(|room| (*room).min(amount)).sum::<u64>() >= copies * amount;
            let got = storable(rooms.iter().copied(), replicas);
            prop_assert!(fits(got) && !fits(got + 1), "{got}");
        }
    }
}
