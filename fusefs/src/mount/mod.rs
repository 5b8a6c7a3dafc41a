//! A mounted swarm: put together, started, and taken down again, in this process.
//!
//! The command line (`cli/mount.rs`) and `swarmfs up` both start one here. Invariant: a start that fails
//! leaves no mount, no task and no listening socket behind.

mod cache;
mod config;
mod content;
mod dead;
pub mod doctor;
mod folder;
mod locating;
mod room;
mod start;
pub mod status;
pub mod table;
pub mod unmount;

pub use config::MountConfig;
pub use folder::FolderError;
pub use start::{Mount, MountError};
