//! Keeps the catalog's registry of seeders in step with the peers, so that a tracker that starts again
//! knows whom it misses.
//!
//! Not mounts: they may vanish at any time. A record is written when its seeder first tells what it holds, when its
//! stream ends, when the tracker stops, and now and then in between.

use std::sync::Arc;
use std::time::{Duration, Instant};

use swarm_proto::PeerId;
use swarm_proto::v1::PeerKind;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::catalog::Catalog;
use crate::peers::{Facts, SeederRecord, Unsaved};
use crate::soft::Soft;
use crate::store::{StoreError, schema};

/// How much later than the event a record is written.
const WRITE_EVERY: Duration = Duration::from_millis(500);

/// Ticks after which a live seeder's last-seen is written again: five minutes.
const REFRESH_TICKS: u32 = 600;

const MS: i64 = 1_000_000;

/// Tell `soft` of the seeders that the catalog remembers.
pub async fn restore(catalog: &Catalog, soft: &Soft) -> Result<(), StoreError> {
    let now = Instant::now();
    for (id, record) in catalog.seeders().await? {
        soft.registry.restore(from_store(id, record), now);
    }
    Ok(())
}

/// Write what changes until `stop`.
pub async fn run(catalog: Arc<Catalog>, soft: Arc<Soft>, stop: CancellationToken) {
    let mut ticks = interval(WRITE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for number in 1u32.. {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.cancelled() => return,
        }
        if number.is_multiple_of(REFRESH_TICKS) {
            soft.registry.mark_live_unsaved();
        }
        save(&catalog, &soft).await;
    }
}

/// Write what changed since the last time.
pub async fn save(catalog: &Catalog, soft: &Soft) {
    for Unsaved { id, record } in soft.registry.unsaved() {
        if let Err(error) = catalog.put_seeder(id, to_store(record)).await {
            tracing::warn!(%error, seeder = %id, "remember a seeder");
            soft.registry.mark_unsaved(&id);
        }
    }
}

fn to_store(record: SeederRecord) -> schema::SeederRecord {
    let SeederRecord { facts, draining, last_seen_ms } = record;
    schema::SeederRecord {
        host: facts.host,
        zone: facts.zone,
        address: facts.address,
        capacity_bytes: facts.capacity_bytes,
        draining,
        last_seen_ns: i64::try_from(last_seen_ms).unwrap_or(i64::MAX).saturating_mul(MS),
    }
}

fn from_store(id: PeerId, record: schema::SeederRecord) -> SeederRecord {
    let schema::SeederRecord { host, zone, address, capacity_bytes, draining, last_seen_ns } = record;
    let facts = Facts { id, kind: PeerKind::Seeder, address, zone, host, capacity_bytes, version: String::new() };
    SeederRecord { facts, draining, last_seen_ms: u64::try_from(last_seen_ns / MS).unwrap_or_default() }
}
