//! The tracker's one door to gRPC: messages are checked and answered here, and nowhere else.

mod announce;
pub mod catalog;
pub mod desk;
pub mod holders;
mod locate;
pub mod observe;
mod peers;
mod place;
mod report;
mod status;
