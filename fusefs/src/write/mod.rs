//! Writing files: what was written and is not saved yet, where it is kept, and how it gets to the seeders.
//!
//! Not the file system (handles, names, commits: `fs`) and not the sending itself (`swarm_seeder`'s uploader).
//! Invariants: bytes that were written here are read here at once, and survive this process in the spool until the
//! swarm has them; nothing is ever taken out of a file of the spool that is not saved.
//!
//! * [`pieces`]: pure: where each byte of a file under way comes from
//! * [`joining`]: pure: which stretches have become too many extents
//! * [`spool`]: the files on this machine in which unsaved bytes lie, and the journal that tells of them
//! * [`unsaved`]: one file under way
//! * [`outbox`]: the seam to what sends bytes to seeders
//! * [`debts`]: what is saved, and seeders hold too few replicas of

pub mod debts;
pub mod joining;
pub mod outbox;
pub mod pieces;
pub mod spool;
pub mod unsaved;

pub use debts::Debts;
pub use outbox::{Delivered, Outbox};
pub use spool::Spool;
pub use unsaved::Unsaved;
