//! A mounted swarm: put together, started, and taken down again, in this process.
//!
//! The command line (`cli/mount.rs`) and `swarmfs up` both start one here.

pub mod doctor;
pub mod table;
pub mod unmount;
