//! From the close level to the fsync level: makes the disk follow what was acknowledged.
//!
//! Not what is acknowledged: that is the commit lane's. Invariant: [`Setting::Settled`] never passes the
//! number of bytes that may not be on the disk, so that a restart verifies exactly those.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use swarm_proto::SegmentId;
use tokio::sync::oneshot;

use super::commit::Change;
use super::core::{Core, Numbers};
use super::schema::{Row, Setting};
use crate::store::disk::Access;
use crate::store::segment_file::folder_name;
use crate::store::{StoreError, failed};

/// Threads that wait for the disk at once: their waits share its journal's commits.
const SYNCERS: usize = 4;

/// Raise these segments to the fsync level now.
pub(super) struct RaiseJob {
    pub(super) ids: Vec<SegmentId>,
    pub(super) reply: oneshot::Sender<Result<(), StoreError>>,
}

/// What the background does.
pub(super) enum Chore {
    /// Raise everything, and tell.
    Sync(oneshot::Sender<Result<(), StoreError>>),
    /// Remove the temporary file of a writer that was given up.
    Unlink(PathBuf),
}

/// Bytes that were written but may not be on the disk, by the number they were written under.
#[derive(Default)]
pub(super) struct Unsettled {
    entries: Mutex<BTreeMap<u64, (SegmentId, Progress)>>,
}

/// How far the bytes of one number are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// Not acknowledged yet: nothing to do but to hold the mark back.
    Pending,
    /// In the database, which is synced as a whole.
    Inline,
    /// In a file that was not synced.
    File,
    /// In a file that was synced before it was renamed.
    SyncedFile,
}

impl Unsettled {
    /// A new number under which bytes of a segment are about to be written; holds the mark back.
    pub(super) fn begin(&self, numbers: &Numbers, id: SegmentId) -> u64 {
        let mut entries = self.entries.lock();
        let number = numbers.take();
        entries.insert(number, (id, Progress::Pending));
        number
    }

    /// The mark as it may be written now.
    fn mark(&self, numbers: &Numbers) -> u64 {
        // Under the lock, so that no number is given out and not entered yet.
        let entries = self.entries.lock();
        entries.keys().next().copied().unwrap_or_else(|| numbers.next())
    }

    /// Enter or advance a number.
    pub(super) fn set(&self, number: u64, id: SegmentId, progress: Progress) {
        self.entries.lock().insert(number, (id, progress));
    }

    /// Take numbers out.
    pub(super) fn remove(&self, numbers: impl IntoIterator<Item = u64>) {
        let mut entries = self.entries.lock();
        for number in numbers {
            entries.remove(&number);
        }
    }

    fn ready(&self, only: Option<&HashSet<SegmentId>>) -> Vec<(u64, SegmentId, Progress)> {
        let entries = self.entries.lock();
        let wanted = entries
            .iter()
            .filter(|(_, (id, progress))| *progress != Progress::Pending && only.is_none_or(|only| only.contains(id)));
        wanted.map(|(number, (id, progress))| (*number, *id, *progress)).collect()
    }
}

/// One group of the raise lane.
pub(super) fn raise(core: &Core, jobs: Vec<RaiseJob>) {
    let ids: HashSet<SegmentId> = jobs.iter().flat_map(|job| job.ids.iter().copied()).collect();
    let result = settle(core, Some(&ids));
    for job in jobs {
        // An error says that the waiter has gone.
        let _ = job.reply.send(result.clone());
    }
}

/// One group of the background lane; an empty one when nothing was asked.
pub(super) fn do_chores(core: &Core, chores: Vec<Chore>) {
    let mut waiters = Vec::new();
    for chore in chores {
        match chore {
            Chore::Sync(waiter) => waiters.push(waiter),
            Chore::Unlink(path) => remove_temp(core, &path),
        }
    }
    if let Err(error) = core.look_at_disk() {
        tracing::warn!(%error, "cannot ask the disk how much is free");
    }
    if waiters.is_empty() && core.unsettled.ready(None).is_empty() {
        return;
    }
    let result = settle(core, None);
    if let (Err(error), true) = (&result, waiters.is_empty()) {
        tracing::error!(%error, "the disk does not follow what was acknowledged");
    }
    for waiter in waiters {
        let _ = waiter.send(result.clone());
    }
}

/// Take rows to the database, if enough have come together. On a thread of its own: nobody who waits for the disk waits
/// for this.
pub(super) fn take_rows(core: &Core) {
    if core.database.wants_checkpoint()
        && let Err(error) = core.database.checkpoint()
    {
        tracing::warn!(%error, "take rows from the journal to the database; tried again");
    }
}

/// Remove a file that nothing names.
pub(super) fn remove_temp(core: &Core, path: &std::path::Path) {
    match core.disk.unlink(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, path = %path.display(), "cannot remove a temporary file; swept at the next start");
        }
        _ => {}
    }
}

/// Bring what is ready to the disk: files, then folders, then the mark, then the database's own files.
///
/// Errors: the first failure; what a failed file held is dropped, as the kernel may have dropped it.
pub(super) fn settle(core: &Core, only: Option<&HashSet<SegmentId>>) -> Result<(), StoreError> {
    let ready = core.unsettled.ready(only);
    let files: Vec<_> = ready.iter().filter(|(_, _, progress)| *progress == Progress::File).collect();
    let outcomes = in_parallel(files.len(), |at| sync_file(core, &files[at].1));
    let mut failure = None;
    let mut lost = HashSet::new();
    for ((number, id, _), outcome) in files.iter().zip(outcomes) {
        if let Err(error) = outcome {
            tracing::error!(%error, segment = %id, "the disk lost a file; drop the segment");
            failure.get_or_insert_with(|| failed("sync a segment's file")(error));
            lost.insert(*number);
            // The reply is not waited for: this may be what the commit lane waits for.
            let _ = core.commits.send(Change::lose(*id, *number));
        }
    }
    let folders: BTreeSet<u8> = ready
        .iter()
        .filter(|(number, _, progress)| *progress != Progress::Inline && !lost.contains(number))
        .map(|(_, id, _)| id.as_bytes()[0])
        .collect();
    let folders: Vec<PathBuf> = folders.into_iter().map(|byte| core.home.segments().join(folder_name(byte))).collect();
    for outcome in in_parallel(folders.len(), |at| core.disk.sync_folder(&folders[at])) {
        outcome.map_err(failed("sync a folder of segments"))?;
    }
    core.unsettled.remove(ready.iter().map(|(number, _, _)| *number).filter(|number| !lost.contains(number)));
    let settled = core.unsettled.mark(&core.numbers);
    let mark = || {
        core.database.put(Row::Setting(Setting::Settled), &settled.to_le_bytes());
        core.database.flush()?;
        core.database.sync()
    };
    mark().map_err(failed("sync the database"))?;
    match failure {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

fn sync_file(core: &Core, id: &SegmentId) -> io::Result<()> {
    match core.disk.open(&core.home.segment_file(id), Access::Read) {
        // Dropped since.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(file) => file.sync(),
    }
}

/// Do `work` for 0 to `count`, some at once; results in order.
pub(super) fn in_parallel<T: Send>(count: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    if count <= 1 {
        return (0..count).map(work).collect();
    }
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<(usize, T)>> = Mutex::new(Vec::with_capacity(count));
    std::thread::scope(|scope| {
        for _ in 0..SYNCERS.min(count) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= count {
                        break;
                    }
                    let result = work(at);
                    results.lock().push((at, result));
                }
            });
        }
    });
    let mut results = results.into_inner();
    results.sort_by_key(|(at, _)| *at);
    results.into_iter().map(|(_, result)| result).collect()
}
