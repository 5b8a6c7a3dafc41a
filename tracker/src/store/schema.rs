//! **PURE.** Every record that the catalog ever writes: its key, its value, how long it lives.
//!
//! Keys begin with one letter; numbers in keys are big-endian, so that bytes sort as numbers do. Values
//! begin with the version of their layout; numbers in them are little-endian; `text` and `blob` are a
//! `u32` length and that many bytes. A tree is a whole set of inodes and entries: there is one that is
//! live ([`Key::Swarm`] names it), and while an import runs a second one beside it.
//!
//! Invariant: `decode(encode(r)) == r`, and any other bytes are an error, never a panic.

pub mod answers;
mod codec;
mod node;

use bytes::Bytes;
use swarm_proto::{InodeNumber, ManifestDigest, PeerId, RequestId, SwarmId};

pub use codec::SchemaError;

use crate::namespace::Node;

/// Names a set of inodes and entries; each import makes a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TreeNumber(pub u32);

/// Names the pages of one stored manifest. Not the digest: pages arrive before they are verified, and
/// nobody may write over another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BodyNumber(pub u64);

/// A record's key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// `s`. Which swarm this is, and which tree is live. Written at the first start and by imports.
    Swarm,
    /// `c`. The first number that was never leased. Inodes, versions and bodies take their numbers here.
    Numbers,
    /// `o`. The swarm's settings.
    Settings,
    /// `i` tree:u32 inode:u64. An inode; lives until its last link goes, a file until besides no mount has it open.
    Node(TreeNumber, InodeNumber),
    /// `e` tree:u32 directory:u64 name. A name in a directory.
    Entry(TreeNumber, InodeNumber, Bytes),
    /// `m` digest:[u8;32]. A manifest; swept an hour after the last file that names it went.
    Manifest(ManifestDigest),
    /// `p` body:u64 page:u32. A page of a manifest that does not fit its record.
    ManifestPage(BodyNumber, u32),
    /// `u` body:u64. An upload that runs: if it is found at a start, its pages are swept.
    Upload(BodyNumber),
    /// `t` tree:u32. An import that runs: if it is found at a start, its tree is swept.
    Import(TreeNumber),
    /// `q` request id:[u8;16]. The answer to a mutation; kept 10 minutes, then an hour without the answer.
    Request(RequestId),
    /// `r` request id:[u8;16] page:u32. The answer, where it does not fit the record.
    RequestPage(RequestId, u32),
    /// `k` peer id:[u8;16]. A seeder that has once announced; lives until it is removed by hand.
    Seeder(PeerId),
}

/// The value of [`Key::Swarm`]. v1: swarm id, tree:u32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Swarm {
    /// This swarm, over all its life.
    pub id: SwarmId,
    /// The live tree.
    pub tree: TreeNumber,
}

/// The value of [`Key::Settings`]. v1: replicas:u32 min_replicas:u32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Settings {
    /// Replicas that a healthy segment has, 1 to 16.
    pub replicas: u32,
    /// Acknowledgements that a writer waits for, 1 to `replicas`.
    pub min_replicas: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { replicas: 3, min_replicas: 2 }
    }
}

/// The value of [`Key::Manifest`]. v1: size:u64 bytes:u32 body:u64, then the bytes if there is no body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestHead {
    /// Size of the file that it describes.
    pub file_bytes: u64,
    /// Length of the manifest's own layout.
    pub length: u32,
    /// Where those bytes are.
    pub body: ManifestBody,
}

/// Where a manifest's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManifestBody {
    /// In the record.
    Here(Bytes),
    /// In pages, each full but the last.
    Pages(BodyNumber),
}

/// The value of [`Key::Request`]. v1: at:i64 digest:[u8;32] pages:u32, then the answer if there are none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestRecord {
    /// When it was answered, nanoseconds since 1970.
    pub at_ns: i64,
    /// BLAKE3 of its operations: the same id with others is no retry.
    pub operations: [u8; 32],
    /// The answer.
    pub answer: Answer,
}

/// Where the answer to a request is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// In the record: the results of a `MutateReply`, as protobuf.
    Here(Bytes),
    /// In so many pages.
    Pages(u32),
    /// No longer kept.
    Expired,
}

/// The value of [`Key::Seeder`]. v1: capacity:u64 last_seen:i64 draining:u8 host:text zone:text address:text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeederRecord {
    /// The machine.
    pub host: String,
    /// Failure domain; empty: the default one.
    pub zone: String,
    /// host:port.
    pub address: String,
    /// Bytes it offers.
    pub capacity_bytes: u64,
    /// Being emptied.
    pub draining: bool,
    /// Nanoseconds since 1970.
    pub last_seen_ns: i64,
}

/// A record: what stands under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// Under [`Key::Swarm`].
    Swarm(Swarm),
    /// Under [`Key::Numbers`]. v1: next:u64.
    Numbers(u64),
    /// Under [`Key::Settings`].
    Settings(Settings),
    /// Under [`Key::Node`]. v1 and v2: see `schema/node.rs`.
    Node(Node),
    /// Under [`Key::Entry`]. v1: inode:u64.
    Entry(InodeNumber),
    /// Under [`Key::Manifest`].
    Manifest(ManifestHead),
    /// Under [`Key::ManifestPage`] and [`Key::RequestPage`]: bytes, with no version before them.
    Page(Bytes),
    /// Under [`Key::Upload`] and [`Key::Import`]: nothing but the version.
    Mark,
    /// Under [`Key::Request`].
    Request(RequestRecord),
    /// Under [`Key::Seeder`].
    Seeder(SeederRecord),
}

/// Prefixes for scans.
pub mod prefix {
    use super::{BodyNumber, TreeNumber};
    use bytes::Bytes;
    use swarm_proto::RequestId;

    /// All manifests' heads.
    pub const MANIFESTS: Bytes = Bytes::from_static(b"m");
    /// All uploads that run or were cut short.
    pub const UPLOADS: Bytes = Bytes::from_static(b"u");
    /// All imports that run or were cut short.
    pub const IMPORTS: Bytes = Bytes::from_static(b"t");
    /// All answered requests.
    pub const REQUESTS: Bytes = Bytes::from_static(b"q");
    /// All seeders.
    pub const SEEDERS: Bytes = Bytes::from_static(b"k");

    /// All inodes of a tree.
    pub fn nodes(tree: TreeNumber) -> Bytes {
        [b"i", &tree.0.to_be_bytes()[..]].concat().into()
    }

    /// All entries of a tree.
    pub fn entries(tree: TreeNumber) -> Bytes {
        [b"e", &tree.0.to_be_bytes()[..]].concat().into()
    }

    /// All pages of a body.
    pub fn pages(body: BodyNumber) -> Bytes {
        [b"p", &body.0.to_be_bytes()[..]].concat().into()
    }

    /// All pages of an answer.
    pub fn answer(request: RequestId) -> Bytes {
        [b"r", &request.as_bytes()[..]].concat().into()
    }
}

#[cfg(test)]
mod tests;
