//! A whole swarm in one process: tracker, seeders and mount, whose state survives it.

pub mod state;
