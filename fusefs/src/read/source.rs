//! Where chunks come from when they are not here: the swarm, or a fake.

use std::sync::Arc;

use futures::future::BoxFuture;
use swarm_proto::{ChunkTree, SegmentId};
use swarm_seeder::swarm::{FetchError, Fetched, Swarm, Want};

/// Yields verified chunks.
pub trait ChunkSource: Send + Sync + 'static {
    /// Fetch chunks; dropping the future withdraws the want. Two wants for one chunk cost one transfer.
    fn fetch(self: Arc<Self>, want: Want) -> BoxFuture<'static, Result<Fetched, FetchError>>;

    /// These will be wanted soon: find out who holds them. Never waits.
    fn expect(&self, ids: &[SegmentId]);

    /// Whether the tree of a segment is known, so that it need not be fetched.
    fn knows_tree(&self, id: &SegmentId) -> bool;

    /// A verified tree that the caller has.
    fn remember_tree(&self, tree: ChunkTree);
}

impl ChunkSource for Swarm {
    fn fetch(self: Arc<Self>, want: Want) -> BoxFuture<'static, Result<Fetched, FetchError>> {
        Box::pin(async move { Swarm::fetch(&self, want).await })
    }

    fn expect(&self, ids: &[SegmentId]) {
        Swarm::expect(self, ids);
    }

    fn knows_tree(&self, id: &SegmentId) -> bool {
        self.known_tree(id).is_some()
    }

    fn remember_tree(&self, tree: ChunkTree) {
        Swarm::remember_tree(self, tree);
    }
}
