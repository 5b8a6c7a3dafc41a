//! One way to bound how many of something there are at once: in all, and for one address.
//!
//! Invariant: a seat counts until its [`Seat`] is dropped; an address without seats takes no memory.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

/// A bounded number of seats; clones share them.
#[derive(Debug, Clone)]
pub struct Seats {
    most: usize,
    most_of_one: usize,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

impl Seats {
    /// `most` in all, of them `most_of_one` for each address.
    pub fn new(most: usize, most_of_one: usize) -> Self {
        Self { most, most_of_one, taken: Arc::default() }
    }

    /// A seat for `address`, if there is one.
    pub fn take(&self, address: IpAddr) -> Option<Seat> {
        // A 4-in-6 address is the same machine as the plain one.
        let address = address.to_canonical();
        let mut taken = self.taken.lock();
        let here = taken.by_address.get(&address).copied().unwrap_or(0);
        if taken.total >= self.most || here >= self.most_of_one {
            return None;
        }
        taken.total += 1;
        taken.by_address.insert(address, here + 1);
        Some(Seat { taken: Arc::clone(&self.taken), address })
    }
}

/// Acts on drop: gives the seat back.
#[derive(Debug)]
pub struct Seat {
    taken: Arc<Mutex<Taken>>,
    address: IpAddr,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.taken.lock();
        taken.total = taken.total.saturating_sub(1);
        match taken.by_address.get_mut(&self.address) {
            Some(here) if *here > 1 => *here -= 1,
            _ => drop(taken.by_address.remove(&self.address)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_take_every_seat() {
        let seats = Seats::new(10, 4);
        let one = IpAddr::from([10, 0, 0, 1]);
        let mapped = "::ffff:10.0.0.1".parse().unwrap();
        let mut taken: Vec<Seat> =
            (0..10).filter_map(|at| seats.take(if at % 2 == 0 { one } else { mapped })).collect();
        assert_eq!(taken.len(), 4);
        let others: Vec<Seat> = (0..10u8).filter_map(|at| seats.take(IpAddr::from([10, 0, 1, at]))).collect();
        assert_eq!(others.len(), 6);
        taken.pop();
        assert!(seats.take(one).is_some());
        drop((taken, others));
        let empty = seats.taken.lock();
        assert!(empty.total == 0 && empty.by_address.is_empty());
    }
}
