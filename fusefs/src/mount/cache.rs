//! The mount's own folder: opening its cache, and who its peer is.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use swarm_proto::PeerId;
use swarm_seeder::store::StoreError;
use swarm_seeder::store::cache::{CacheConfig, CacheStore};

use super::config::MountConfig;
use super::start::{SPOOL_FLOOR_BYTES, blocking};

/// How long the cache of a mount that is just ending is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(50);
/// File in the cache's folder that says who this peer is.
const PEER_ID: &str = "peer-id";

/// Open the cache, waiting a moment for a mount that is just ending.
pub(super) async fn open(config: &MountConfig, folder: &Path) -> Result<Arc<CacheStore>, StoreError> {
    let began = Instant::now();
    loop {
        let cache = CacheConfig {
            dir: folder.to_owned(),
            size: config.cache_size,
            free_space_ratio: config.free_space_ratio,
            spare_bytes: if config.read_only || config.spool_dir.is_some() { 0 } else { 2 * SPOOL_FLOOR_BYTES },
        };
        match blocking(move || CacheStore::open(cache)).await {
            Err(StoreError::Unusable(_)) if is_locked(folder) && began.elapsed() < PATIENCE => {
                tokio::time::sleep(POLL).await;
            }
            other => return other,
        }
    }
}

fn is_locked(folder: &Path) -> bool {
    let Ok(lock) = std::fs::File::open(folder.join("LOCK")) else { return false };
    flock(&lock, FlockOperation::NonBlockingLockShared).is_err()
}

/// Who this peer is: the same over restarts, as its cache is.
pub(super) fn peer_id(folder: &Path) -> std::io::Result<PeerId> {
    let path = folder.join(PEER_ID);
    if let Some(id) = std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok()) {
        return Ok(id);
    }
    let id = PeerId::random();
    let partial = folder.join(format!("{PEER_ID}.new"));
    std::fs::write(&partial, format!("{id}\n"))?;
    std::fs::rename(partial, path)?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_stays_who_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let id = peer_id(folder.path()).unwrap();
        assert_eq!(peer_id(folder.path()).unwrap(), id);
        std::fs::write(folder.path().join(PEER_ID), "junk").unwrap();
        assert_ne!(peer_id(folder.path()).unwrap(), id);
    }
}
