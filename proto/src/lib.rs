//! The words of Swarmfs: messages, services, content ids and the arithmetic on them.
//!
//! Everything that two programs must agree on lives here, and nothing else: no I/O on content, no
//! policy. Five rooms serve the daemons alike: [`settings`] (one way to be configured), [`admin`] (one way to be
//! observed and stopped), [`journal`] (one way to write ahead of a database), [`answering`] and [`seats`] (one way to
//! answer streams of small requests, and to bound how many there are).

pub mod admin;
pub mod answering;
pub mod convert;
pub mod fault;
pub mod id;
pub mod journal;
pub mod manifest;
pub mod meant;
pub mod presence;
pub mod range;
pub mod seats;
pub mod settings;
pub mod tree;

#[cfg(not(target_pointer_width = "64"))]
compile_error!("lengths of files and segments are used as indices: Swarmfs needs a 64-bit machine");

/// Generated messages, clients and servers of `swarm.v1`; `v1/*.proto` says what every field means.
#[allow(
    missing_docs,
    clippy::all,
    clippy::allow_attributes_without_reason,
    unreachable_pub,
    reason = "generated; the .proto files document it"
)]
pub mod v1 {
    tonic::include_proto!("swarm.v1");
    /// The compiled `.proto` files, for gRPC reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}

pub use fault::Fault;
pub use id::{BootId, InodeNumber, ManifestDigest, PeerId, ProcessId, RequestId, Revision, SegmentId, SwarmId};
pub use manifest::{Extent, Manifest, ManifestError, Part};
pub use presence::{ChunkSet, Presence};
pub use range::{ByteRange, CHUNK_BYTES, ChunkRange, Segment};
pub use tree::{ChunkTree, TreeError};

/// Longest run of chunks in one fetch: 1 MiB.
///
/// Shape: 64 chunks of 16 KiB.
/// Source: measured; unary calls of 256 KiB to 1 MiB, four in flight, cost 0.64 CPU-seconds a GiB, a
/// plain stream 0.95 to 1.3.
pub const MAX_RUN_CHUNKS: u32 = 64;

/// Largest message that any of our services decodes: one run, its tree and their framing.
///
/// tonic reserves the length that a message declares before any of it came, so this bounds the memory
/// that one stream of a hostile peer can claim.
pub const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;

/// Largest request of a stream of changes; a larger one goes by a call.
///
/// Shape: what changes one name is a few hundred bytes; an extended attribute has up to 64 KiB.
pub const MAX_STREAMED_CHANGE_BYTES: usize = 128 * 1024;

/// Length at which a publisher cuts unless told otherwise.
pub const DEFAULT_SEGMENT_BYTES: u32 = 4 * 1024 * 1024;

/// Longest segment that anybody accepts.
pub const MAX_SEGMENT_BYTES: u32 = 64 * 1024 * 1024;
