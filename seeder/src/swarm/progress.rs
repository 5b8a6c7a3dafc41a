//! How far one reply has come, for whoever waits for it and for the engine, which looks in between.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// How far one reply is.
#[derive(Debug)]
pub(super) struct Progress {
    sent: Instant,
    bytes: AtomicU64,
    /// Microseconds from the request to the reply's head, plus one; 0: it has not come.
    head_us: AtomicU64,
    local: AtomicBool,
}

impl Progress {
    /// Of a request that is sent now.
    pub(super) fn new() -> Self {
        Self {
            sent: Instant::now(),
            bytes: AtomicU64::new(0),
            head_us: AtomicU64::new(0),
            local: AtomicBool::new(false),
        }
    }

    /// Bytes of the reply that came.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Whether they were read on this machine.
    pub(super) fn is_local(&self) -> bool {
        self.local.load(Ordering::Relaxed)
    }

    /// From the request to the head of the reply.
    pub(super) fn latency(&self) -> Option<Duration> {
        self.head_us.load(Ordering::Relaxed).checked_sub(1).map(Duration::from_micros)
    }

    /// What comes is read on this machine.
    pub(super) fn read_here(&self) {
        self.local.store(true, Ordering::Relaxed);
    }

    pub(super) fn came(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn head_came(&self) {
        let passed = u64::try_from(self.sent.elapsed().as_micros()).unwrap_or(u64::MAX - 1);
        self.head_us.store(passed.saturating_add(1), Ordering::Relaxed);
    }
}
