//! Making bits durable: behind the writes, in batches, and only after the data that they speak of.
//!
//! A version is due once it was left alone for a moment, or was not for a while: a sync in the middle of a
//! copy costs the copy, and all that a crash takes is the bits.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use swarm_proto::ManifestDigest;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::entry::Entry;
use super::file::CacheFile;
use super::store::CacheStore;

/// How often it looks for what is due.
const TICK: Duration = Duration::from_millis(500);
/// A version is due when nothing was written to it for so long,
const QUIET: Duration = Duration::from_secs(1);
/// or when its oldest unsynced chunk is as old as this.
const OLDEST: Duration = Duration::from_secs(5);
/// From so many versions on, one sync of the disk is cheaper than one of each.
const SYNC_DISK_FROM: usize = 24;

/// Versions with something that the disk does not know.
#[derive(Default)]
pub(super) struct Dirty {
    waiting: HashMap<ManifestDigest, Waiting>,
}

struct Waiting {
    entry: Arc<Entry>,
    since: Instant,
    last: Instant,
    used_only: bool,
}

impl Dirty {
    pub(super) fn note_write(&mut self, entry: &Arc<Entry>, now: Instant) {
        let waiting = self.note(entry, now);
        if waiting.used_only {
            waiting.used_only = false;
            waiting.since = now;
        }
        waiting.last = now;
    }

    pub(super) fn note_use(&mut self, entry: &Arc<Entry>, now: Instant) {
        self.note(entry, now);
    }

    fn note(&mut self, entry: &Arc<Entry>, now: Instant) -> &mut Waiting {
        let fresh = || Waiting { entry: entry.clone(), since: now, last: now, used_only: true };
        let waiting = self.waiting.entry(entry.digest).or_insert_with(fresh);
        if !Arc::ptr_eq(&waiting.entry, entry) {
            *waiting = fresh();
        }
        waiting
    }

    fn take_due(&mut self, due: impl Fn(&Waiting) -> bool) -> Vec<Waiting> {
        self.waiting.extract_if(|_, waiting| due(waiting)).map(|(_, waiting)| waiting).collect()
    }
}

impl CacheStore {
    /// Start making bits durable in the background, until `stop`; then once more.
    pub fn start(self: &Arc<Self>, tasks: &TaskTracker, stop: CancellationToken) {
        let store = self.clone();
        let runner = tasks.clone();
        tasks.spawn(async move {
            loop {
                let stopping = tokio::select! {
                    () = stop.cancelled() => true,
                    () = tokio::time::sleep(TICK) => false,
                };
                let store = store.clone();
                let flush = move || match stopping {
                    true => store.flush(),
                    false => store.flush_due(Instant::now()),
                };
                // A panic in there is a bug that the runtime reports; bits are only hints, so go on.
                let _ = runner.spawn_blocking(flush).await;
                if stopping {
                    return;
                }
            }
        });
    }

    /// Make the bits of all chunks written so far durable. Blocks.
    pub fn flush(&self) {
        let all = self.dirty.lock().take_due(|_| true);
        self.flush_these(all);
    }

    fn flush_due(&self, now: Instant) {
        let due = self.dirty.lock().take_due(|waiting| {
            now.saturating_duration_since(waiting.last) >= QUIET
                || now.saturating_duration_since(waiting.since) >= OLDEST
        });
        self.flush_these(due);
    }

    fn flush_these(&self, due: Vec<Waiting>) {
        let pinned = due.iter().filter_map(|waiting| self.pin_entry(&waiting.entry));
        // The pages are taken before the sync: a bit set during it waits for the next.
        let (written, used): (Vec<_>, Vec<_>) = pinned
            .map(|file| {
                let pages = file.entry.take_dirty();
                (file, pages)
            })
            .partition(|(_, pages)| !pages.is_empty());
        for (file, _) in used {
            let _ = self.folder.touch(&file.entry.digest);
        }
        let together = written.len() >= SYNC_DISK_FROM && self.folder.sync_all().is_ok();
        for (file, pages) in written {
            if let Err(error) = self.write_pages(&file, &pages, together) {
                tracing::warn!(digest = %file.entry.digest, %error, "make cached chunks durable");
            }
        }
    }

    fn write_pages(&self, file: &CacheFile, pages: &[(u64, Vec<u8>)], synced: bool) -> std::io::Result<()> {
        use std::os::unix::fs::FileExt;
        let files = file.entry.files(&self.folder).map_err(std::io::Error::other)?;
        if !synced {
            rustix::fs::fdatasync(&files.data)?;
        }
        pages.iter().try_for_each(|(at, page)| files.meta.write_all_at(page, *at))?;
        // Only now is it sure what the file system set aside for it.
        self.recount(&file.entry, &files);
        Ok(())
    }
}
