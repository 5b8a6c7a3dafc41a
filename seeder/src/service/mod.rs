//! The daemon around a seeder's peer: its configuration, its repair, its start and its end.
//!
//! The library works without it (a mount has a peer and no daemon); nothing here is used by `peer`.

mod config;
mod daemon;
mod repair;

pub use config::{ConfigError, Flags, SeederConfig};
pub use daemon::{Seeder, SeederError, raise_file_limit};
