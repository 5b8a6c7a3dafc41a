//! Who the peers are, and whether they live. Not what they hold: that is [`crate::holders`].

mod address;
mod liveness;
mod open_files;
mod peer;
mod registry;
#[cfg(test)]
mod tests;

use std::fmt;

pub use self::address::{AddressError, advertised};
pub use self::liveness::{Liveness, State};
pub use self::open_files::TooManyOpen;
pub(crate) use self::peer::OrderSender;
pub use self::peer::{Facts, Opened, Peer, Snapshot};
pub(crate) use self::registry::Unsaved;
pub use self::registry::{Refusal, Registry, SeederRecord};

/// A peer's small number in this tracker process; used again once the peer is forgotten.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerSlot(u32);

impl PeerSlot {
    /// Slots that a holder's four bytes have room for.
    pub const MOST: u32 = (1 << 30) - 1;

    /// `None` if it does not fit.
    pub fn new(number: u32) -> Option<Self> {
        (number < Self::MOST).then_some(Self(number))
    }

    pub(crate) fn of_stored(number: u32) -> Self {
        Self(number)
    }

    /// The number.
    pub fn number(self) -> u32 {
        self.0
    }

    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Debug for PeerSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "peer #{}", self.0)
    }
}
