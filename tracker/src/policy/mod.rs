//! **PURE.** What to do, decided from plain values; who does it lies elsewhere.

pub mod handout;
pub mod health;
pub mod placement;
pub mod room;
