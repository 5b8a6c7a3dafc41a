//! A peer of the swarm: a store, the fetcher, the serving side and the announcer.
//!
//! [`peer::Peer`] joins them. With the durable store it is a seeder; with the evicting cache it is the
//! peer of a mount. So repair (a seeder that fetches from seeders) and reading (a mount that fetches
//! from peers) run the same code. The daemon around it sits behind the feature `service`.

mod aligned;
pub mod announcer;
mod grpc;
mod local;
pub mod peer;
pub mod serve;
#[cfg(feature = "service")]
pub mod service;
mod session;
pub mod store;
pub mod swarm;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod tracker_client;
