//! What a peer keeps and whom it has told, as metrics that are read when somebody looks.

use std::sync::Arc;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntGauge, Opts, Registry};
use swarm_proto::PeerId;
use tokio::sync::watch;

use crate::announcer::AnnounceState;
use crate::store::{ChunkStore, Usage};

/// Gauges whose values `read` tells when they are collected.
struct Gauges<R, const N: usize> {
    gauges: [IntGauge; N],
    read: R,
}

impl<R: Fn() -> [u64; N] + Send + Sync, const N: usize> Collector for Gauges<R, N> {
    fn desc(&self) -> Vec<&Desc> {
        self.gauges.iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        for (gauge, value) in self.gauges.iter().zip((self.read)()) {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        }
        self.gauges.iter().flat_map(Collector::collect).collect()
    }
}

fn gauges<const N: usize>(
    registry: &Registry,
    me: PeerId,
    names: [(&str, &str); N],
    read: impl Fn() -> [u64; N] + Send + Sync + 'static,
) {
    let gauges = names.map(|(name, help)| {
        IntGauge::with_opts(Opts::new(name, help).const_label("peer", me.to_string())).expect("the names are valid")
    });
    if let Err(error) = registry.register(Box::new(Gauges { gauges, read })) {
        tracing::debug!(%error, "register gauges");
    }
}

/// How full the store is.
pub(super) fn register<S: ChunkStore>(registry: &Registry, me: PeerId, store: Arc<S>) {
    let names = [
        ("swarm_peer_capacity_bytes", "Bytes that the store may use; 0: whatever is free"),
        ("swarm_peer_used_bytes", "Bytes that the store uses"),
        ("swarm_peer_free_bytes", "Bytes that the store could still take"),
        ("swarm_peer_segments", "Segments held, whole or in part"),
        ("swarm_peer_corrupt_segments", "Segments with a chunk known to be bad, not repaired yet"),
    ];
    gauges(registry, me, names, move || {
        let Usage { capacity_bytes, used_bytes, free_bytes, segments, corrupt_segments } = store.usage();
        [capacity_bytes, used_bytes, free_bytes, segments, corrupt_segments]
    });
}

/// Who knows of this peer.
pub(super) fn register_announcing(registry: &Registry, me: PeerId, state: watch::Receiver<AnnounceState>) {
    let names = [
        ("swarm_peer_trackers_told", "Replicas of the tracker that know all that this peer holds"),
        ("swarm_peer_trackers", "Replicas of the tracker"),
    ];
    gauges(registry, me, names, move || {
        let state = state.borrow();
        [state.told as u64, state.replicas as u64]
    });
}
