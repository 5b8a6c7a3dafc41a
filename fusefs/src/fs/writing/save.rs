//! Saving a file: send what the swarm lacks, commit a manifest of all of it, and what to do if somebody was faster.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use swarm_proto::v1::operation::Operation;
use swarm_proto::{ByteRange, Fault, InodeNumber, Manifest, SegmentId, v1};
use swarm_seeder::store::AckLevel;
use swarm_seeder::swarm::upload::UploadError;

use super::resend::bearer;
use super::{FileSystem, Writing, Written, base_of, spool_error};
use crate::errno::{self, Errno};
use crate::fs::content::Version;
use crate::fs::known::Touched;
use crate::fs::node::Node;
use crate::fs::own_change::Answered;
use crate::write::outbox::Delivered;
use crate::write::pieces::Sent;
use crate::write::unsaved::{Base, Rebased, Save};

/// Stretches of one file on their way at a time.
const AT_ONCE: usize = 32;
/// A version that no file has.
const NO_VERSION: u64 = 0;
/// Pauses while nobody answers.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// How a save ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Saved {
    /// The swarm has it.
    Here,
    /// Nothing was unsaved.
    Already,
    /// The file has no name any more: what was written to it goes with its last handle.
    Nameless,
}

/// Why a save did not come to its end.
pub(super) enum Setback {
    /// Begin again: what was sent is not held any more, or the file changed under our eyes.
    Again,
    /// Somebody else has saved another version: this one.
    Raced(Arc<Node>),
    /// It failed.
    Failed(Errno),
}

impl FileSystem {
    /// Save what is unsaved; nothing to do is no work.
    ///
    /// Errors: [`Errno::STALE`] if another mount was faster: its version stays, and a conflict copy has ours;
    ///         [`Errno::NOSPC`], [`Errno::IO`], [`Errno::TIMEDOUT`]: it stays unsaved.
    pub(super) async fn save(self: &Arc<Self>, written: &Arc<Written>, level: AckLevel) -> Result<Saved, Errno> {
        let saved = self.save_now(written, level).await;
        match saved {
            // A conflict copy has it.
            Ok(_) | Err(Errno::STALE) => {}
            Err(error) => written.unsaved.tell_failed(&errno::words(error)),
        }
        saved
    }

    async fn save_now(self: &Arc<Self>, written: &Arc<Written>, level: AckLevel) -> Result<Saved, Errno> {
        let writing = self.writing()?;
        let unsaved = &written.unsaved;
        // Whoever saves it now ends by its own timeouts; several of them may come one after the other.
        let turn = tokio::time::timeout(writing.timeout * 2, unsaved.saving.lock());
        let _turn = turn.await.map_err(|_| Errno::TIMEDOUT)?;
        let inode = unsaved.inode();
        let (mut pause, deadline) = (PAUSES.0, Instant::now() + writing.timeout);
        let mut setbacks = 0;
        let mut once_more = false;
        while std::mem::take(&mut once_more) || Instant::now() < deadline {
            if let Some(file) = unsaved.waits() {
                // Elsewhere: a write may wait for what only this process can give it.
                let waited = tokio::task::spawn_blocking(move || file.wait_for_writes()).await;
                waited.map_err(|_| Errno::IO)?.map_err(|error| spool_error(&error))?;
            }
            let Some(mut save) = unsaved.begin_save() else { return Ok(Saved::Already) };
            let node = self.known.lock().node(inode, Instant::now()).map(|(node, _)| node);
            if node.as_ref().is_some_and(|node| node.links == 0) {
                return Ok(Saved::Nameless);
            }
            unsaved.tell_saving();
            self.join_crowded(writing, written, &mut save).await;
            match self.try_save(writing, written, &save, level).await {
                Ok(()) => return Ok(Saved::Here),
                Err(Setback::Again) => {
                    // Else what was sent early would count as held for ever.
                    unsaved.sends_anew();
                    setbacks += 1;
                    // However long the first attempt took: others may take it.
                    once_more = setbacks == 1;
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSES.1);
                }
                // The tracker does not answer: it may be back in time.
                Err(Setback::Failed(Errno::TIMEDOUT)) if Instant::now() + pause < deadline => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSES.1);
                }
                Err(Setback::Failed(error)) => return Err(error),
                Err(Setback::Raced(winner)) => {
                    let version = self.version_of(&winner, None).await?;
                    let base = base_of(&winner, &version);
                    // What is open here is of the winner's from now on; the kernel has pages of both.
                    self.open.saved(winner, version, NO_VERSION);
                    if !save.appended {
                        match self.lose(writing, written, &save, base).await {
                            Ok(()) => return Err(Errno::STALE),
                            Err(Setback::Failed(error)) => return Err(error),
                            // Its next attempt loses the same race, with what is sent then.
                            Err(Setback::Again | Setback::Raced(_)) => {
                                unsaved.sends_anew();
                                tokio::time::sleep(pause).await;
                                pause = (pause * 2).min(PAUSES.1);
                                continue;
                            }
                        }
                    }
                    // Not an attempt: others got on, and with them the file.
                    match unsaved.rebase(base).map_err(|error| spool_error(&error))? {
                        Rebased::Done => self.show_anew(inode),
                        // Something else was written since this save began: the next one loses the race with all of it.
                        Rebased::NotAppended => {}
                    }
                }
            }
        }
        tracing::error!(%inode, "save a file: it changes, or its segments are lost, again and again");
        Err(Errno::IO)
    }

    async fn try_save(
        self: &Arc<Self>,
        writing: &Writing,
        written: &Written,
        save: &Save,
        level: AckLevel,
    ) -> Result<(), Setback> {
        let (manifest, ids, leases) = deliver(writing, save).await?;
        if !save.held.is_empty() {
            written.unsaved.was_wasted(wasted(&leases, &ids));
        }
        // Half of the time, since there may have to be a second attempt.
        if level == AckLevel::Fsync && !writing.outbox.sync(ids.clone(), writing.timeout / 2).await.is_empty() {
            writing.outbox.forget(&ids);
            return Err(Setback::Again);
        }
        let acknowledged = writing.outbox.acknowledged(&ids);
        if level == AckLevel::Close {
            writing.owed.lock().add(&acknowledged, Instant::now());
        }
        let change = v1::WriteFile {
            inode: written.unsaved.inode().0,
            modified_ns: save.modified_ns,
            changed_ns: save.changed_ns,
            accessed_ns: save.accessed_ns,
            acknowledged,
            ..v1::WriteFile::default()
        };
        let base = self.replace(writing, &save.base, manifest, change, level).await;
        let base = base.inspect_err(|setback| {
            if matches!(setback, Setback::Again) {
                writing.outbox.forget(&ids);
            }
        })?;
        // Before the spool is told that it is saved: if this process dies in between, the next one saves it again.
        self.owe(writing, written.unsaved.inode(), &base.manifest, &ids, |range| bearer(save, range));
        written.unsaved.settle(save.stamp, base);
        if !save.runs().is_empty() {
            written.unsaved.leave_to_base(save.runs());
        }
        Ok(())
    }

    /// Commit another version of a file; `change` has all but its content.
    pub(super) async fn replace(
        self: &Arc<Self>,
        writing: &Writing,
        base: &Base,
        manifest: Manifest,
        change: v1::WriteFile,
        level: AckLevel,
    ) -> Result<Base, Setback> {
        let manifest = Arc::new(manifest);
        let digest = (manifest.size() > 0).then(|| manifest.digest());
        let content = self.offer(&manifest).await.map_err(Setback::Failed)?;
        let (inode, modified_ns) = (change.inode, change.modified_ns);
        let change = v1::WriteFile { base_version: base.version, size: manifest.size(), content, ..change };
        let touched = Touched { names: Vec::new(), inodes: vec![InodeNumber(inode)] };
        let answered = self.commit(writing, level, touched, Operation::WriteFile(change)).await;
        let answered = answered.map_err(Setback::Failed)?;
        // A version that is the very one that was to be saved: it was done, and its answer was lost.
        let is_ours =
            |node: &Node| node.version > base.version && node.content == digest && node.modified_ns == modified_ns;
        let node = match (answered.refusal(), answered.node()) {
            (None, Some(node)) => node,
            (Some(refusal), Some(node)) if refusal.fault == Fault::Stale && is_ours(&node) => node,
            (Some(refusal), Some(node)) if refusal.fault == Fault::Stale => return Err(Setback::Raced(node)),
            (Some(refusal), _) if refusal.fault == Fault::SendAgain => return Err(Setback::Again),
            (Some(refusal), _) => {
                tracing::error!(%refusal, inode, "save a file");
                return Err(Setback::Failed(errno::of_fault(refusal.fault)));
            }
            (None, None) => return Err(Setback::Failed(Errno::PROTO)),
        };
        let version = Version { digest, manifest };
        self.remember_version(&version);
        self.replaced(writing, InodeNumber(inode), &version.manifest);
        answered.conclude(&[]);
        self.open.saved(node.clone(), version.clone(), base.version);
        Ok(base_of(&node, &version))
    }

    /// What a commit carries of a manifest.
    pub(super) async fn offer(&self, manifest: &Arc<Manifest>) -> Result<Option<v1::write_file::Content>, Errno> {
        match manifest.size() {
            0 => Ok(None),
            _ => {
                let offered = self.catalog.offer_manifest(manifest.clone()).await;
                offered.map(Some).map_err(|error| errno::of_tracker(&error))
            }
        }
    }

    /// Put a change to the catalog until it answers.
    pub(super) async fn commit(
        &self,
        writing: &Writing,
        level: AckLevel,
        touched: Touched,
        operation: Operation,
    ) -> Result<Answered<'_>, Errno> {
        let deadline = Instant::now() + writing.timeout;
        let mut pause = PAUSES.0;
        loop {
            match self.ask_change(touched.clone(), level, operation.clone()).await {
                Err(Errno::TIMEDOUT) if Instant::now() + pause < deadline => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSES.1);
                }
                other => return other,
            }
        }
    }

    /// Where the end of a file moved, or its bytes are others than the kernel has.
    pub(super) fn show_anew(&self, inode: InodeNumber) {
        use crate::fs::invalidation::Invalidation;
        self.invalidations.send([Invalidation::Content(inode), Invalidation::Attributes(inode)]);
    }
}

/// Send what is unsaved; the manifest of the whole file, and what keeps its segments until the commit.
pub(super) async fn deliver(
    writing: &Writing,
    save: &Save,
) -> Result<(Manifest, Vec<SegmentId>, Vec<Arc<Delivered>>), Setback> {
    let mut sent = Sent::default();
    let mut leases: Vec<Arc<Delivered>> = Vec::new();
    let mut held: Vec<Arc<Delivered>> = Vec::new();
    for early in &save.held {
        // Else it would be sent twice.
        held.extend(early.clone().await);
    }
    if let Some(file) = &save.file {
        let mut stretches: Vec<ByteRange> = Vec::new();
        for range in save.to_send() {
            let mut at = range.start;
            for (start, early) in save.early.range(range.start..range.end) {
                // None: it failed; it is sent anew.
                let Some(delivered) = early.clone().await else { continue };
                let window = ByteRange::at(*start, delivered.extents.iter().map(swarm_proto::Extent::length).sum());
                if window.end > range.end || window.start < at {
                    continue;
                }
                if at < window.start {
                    stretches.push(ByteRange { start: at, end: window.start });
                }
                at = window.end;
                sent.add(window.start, delivered.extents.iter().copied());
                leases.push(delivered);
            }
            if at < range.end {
                stretches.push(ByteRange { start: at, end: range.end });
            }
        }
        let mut sends: Vec<_> = stretches.into_iter().map(|range| (file.file().clone(), range)).collect();
        if let Some(joined) = &save.joined {
            sends.extend(joined.runs.iter().map(|run| (joined.file.clone(), *run)));
        }
        let sends = sends.into_iter().map(|(file, range)| async move {
            let delivered = writing.outbox.send(file, range).await?;
            Ok::<_, UploadError>((range.start, Arc::new(delivered)))
        });
        let sends: Vec<_> =
            futures::stream::iter(sends).buffer_unordered(AT_ONCE).try_collect().await.map_err(setback)?;
        for (start, delivered) in sends {
            sent.add(start, delivered.extents.iter().copied());
            leases.push(delivered);
        }
    }
    let extents = save.extents(&sent).ok_or(Setback::Again)?;
    let manifest = Manifest::new(extents).map_err(|error| {
        tracing::error!(%error, "save a file");
        Setback::Failed(Errno::FBIG)
    })?;
    let mut seen = HashSet::new();
    let fresh = leases.iter().flat_map(|delivered| &delivered.extents);
    let ids = fresh.filter_map(|extent| match extent {
        swarm_proto::Extent::Data { segment, .. } if seen.insert(segment.id) => Some(segment.id),
        _ => None,
    });
    let ids = ids.collect();
    leases.extend(held);
    Ok((manifest, ids, leases))
}

/// How many of these are not of what is saved: they were sent early, and written over.
fn wasted(leases: &[Arc<Delivered>], ids: &[SegmentId]) -> u32 {
    let ids: HashSet<&SegmentId> = ids.iter().collect();
    let is_of_it = |extent: &swarm_proto::Extent| match extent {
        swarm_proto::Extent::Data { segment, .. } => ids.contains(&segment.id),
        swarm_proto::Extent::Hole { .. } => true,
    };
    let wasted = leases.iter().filter(|delivered| !delivered.extents.iter().all(is_of_it)).count();
    u32::try_from(wasted).unwrap_or(u32::MAX)
}

fn setback(error: UploadError) -> Setback {
    match &error {
        // It was cut while it was read.
        UploadError::Read(read) if read.kind() == std::io::ErrorKind::UnexpectedEof => return Setback::Again,
        UploadError::Changing => return Setback::Again,
        _ => tracing::error!(%error, "send a file to seeders"),
    }
    Setback::Failed(match error {
        UploadError::Full { .. } => Errno::NOSPC,
        UploadError::TooLarge(_) => Errno::FBIG,
        UploadError::Tracker(error) => errno::of_tracker(&error),
        _ => Errno::IO,
    })
}
