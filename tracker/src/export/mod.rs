//! The whole catalog as one portable file, and back: it is the only copy of all names.
//!
//! The file does not depend on the store or its layout of keys; `docs/CATALOG.md` describes it. An export
//! shows one moment. An import builds a second tree beside the live one, verifies all of it, and then
//! makes it the live one in a single commit: until then nothing has changed, whatever goes wrong.

pub mod format;
mod import;
mod write;

#[cfg(test)]
mod tests;

pub use import::{Import, Imported, Replace};
