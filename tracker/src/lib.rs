//! The tracker: names, and which peers hold each segment. It never carries the bytes of files.
//!
//! Two halves that share only the wire: the catalog is durable, the holders are soft and rebuilt from
//! announces. [`server::Tracker`] is both in one process.

pub mod acks;
pub mod capacity;
pub mod catalog;
pub mod census;
pub mod config;
pub mod export;
pub mod grpc;
pub mod holders;
pub mod listener;
pub mod metrics;
pub mod namespace;
pub mod opens;
pub mod peers;
pub mod policy;
pub mod roster;
pub mod server;
pub mod soft;
pub mod store;

pub use config::TrackerConfig;
pub use server::{StartError, Tracker};
