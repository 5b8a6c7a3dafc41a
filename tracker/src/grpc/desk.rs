//! What the methods of the `Holders` service work with.

use std::sync::Arc;
use std::time::Instant;

use swarm_proto::BootId;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::catalog::Catalog;
use crate::census::Census;
use crate::soft::Soft;

/// What all methods need.
pub struct Desk {
    /// Peers and holders.
    pub soft: Arc<Soft>,
    /// This process.
    pub boot_id: BootId,
    /// Names, and the swarm's settings.
    pub catalog: Arc<Catalog>,
    /// How well all segments are kept.
    pub census: Arc<Census>,
    /// When this process began.
    pub started: Instant,
    /// Where streams run.
    pub tasks: TaskTracker,
    /// Ends all streams.
    pub stop: CancellationToken,
}
