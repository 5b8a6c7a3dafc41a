//! The person's side of Swarmfs: the mount, and the tool that puts, gets and shows.

pub mod cli;
pub mod up;
