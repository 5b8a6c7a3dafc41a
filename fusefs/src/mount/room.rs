//! Room on a disk that the cache and the spool share.

use std::path::Path;
use std::sync::Arc;

use swarm_seeder::store::cache::CacheStore;

use crate::write::Spool;

/// What is cached can be fetched again, what is unsaved cannot: where both lie on one disk, the cache makes room.
pub(super) fn have_cache_give_way(spool: &Spool, cache: &Arc<CacheStore>, cache_dir: &Path) {
    let disk = |folder: &Path| rustix::fs::stat(folder).ok().map(|stat| stat.st_dev);
    if disk(spool.folder()) == disk(cache_dir) {
        let cache = cache.clone();
        spool.ask_for_room(move |bytes| {
            let given = cache.make_room(bytes);
            // With nothing left to give it is asked again at each write.
            if given > 0 {
                tracing::info!(wanted = bytes, given, "the cache makes room for what is written");
            }
        });
    }
}
