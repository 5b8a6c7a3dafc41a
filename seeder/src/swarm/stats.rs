//! What the fetcher did so far, for `status` and tests.

use std::time::Duration;

use super::PeerAddress;

/// Totals since the fetcher was made.
#[derive(Debug, Clone, Default)]
pub struct SwarmStats {
    /// Verified chunk bytes handed out, each counted once.
    pub payload_bytes: u64,
    /// Bytes of trees that came.
    pub tree_bytes: u64,
    /// Bytes of replies that came, with their framing, useful or not.
    pub received_bytes: u64,
    /// Of them, bytes of peers on this machine that were read from the files they lie in.
    pub local_bytes: u64,
    /// Chunk bytes that came and were not needed any more, or did not verify.
    pub wasted_bytes: u64,
    /// Requests sent.
    pub requests: u64,
    /// Of them, second requests for chunks that another peer was slow with.
    pub hedges: u64,
    /// Replies that did not verify.
    pub corrupt: u64,
    /// Requests that failed in any other way.
    pub failed: u64,
    /// Peers that are banned now.
    pub banned: u64,
    /// Every peer ever asked.
    pub peers: Vec<PeerStats>,
}

/// What is known of one peer.
#[derive(Debug, Clone)]
pub struct PeerStats {
    /// Who.
    pub peer: PeerAddress,
    /// Verified chunk bytes that came from it.
    pub bytes: u64,
    /// Measured rate; `None` until measured.
    pub bytes_per_second: Option<u64>,
    /// From a request to the first byte of its reply; `None` until measured.
    pub latency: Option<Duration>,
    /// Chunk bytes asked for and not answered yet.
    pub in_flight_bytes: u64,
    /// Whether it is asked now.
    pub standing: Standing,
}

/// Whether a peer is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Yes.
    Good,
    /// It was busy or failed a moment ago, and is tried again soon.
    Resting,
    /// It answered wrongly too often.
    Banned,
}
