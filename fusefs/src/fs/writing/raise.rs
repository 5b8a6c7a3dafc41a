//! fsync(2) of what a close had acknowledged: the disks of the seeders are to have it, and what one of them lost
//! meanwhile is sent again.
//!
//! Not here: what was acknowledged (`owed`).

use std::collections::HashSet;
use std::time::{Duration, Instant};

use futures::{FutureExt, StreamExt};
use swarm_proto::{InodeNumber, Segment, SegmentId};

use super::resend::AT_ONCE;
use super::{FileSystem, Writing};
use crate::errno::Errno;
use crate::fs::content::Version;
use crate::write::debts::Bearer;

/// First and longest pause between two attempts.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

fn left_until(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

impl FileSystem {
    /// All that this mount saved of a version lately survives a power cut from now on. Of the rest, the disks followed.
    ///
    /// Errors: [`Errno::IO`] if that is not so within the time that a save may take, though it was sent again.
    pub(super) async fn raise(&self, inode: InodeNumber, version: &Version) -> Result<(), Errno> {
        let writing = self.writing()?;
        let mut owed = writing.owed.lock().of(&version.manifest, Instant::now());
        let (mut pause, deadline) = (PAUSES.0, Instant::now() + writing.timeout);
        let mut fewer = Vec::new();
        while !owed.is_empty() {
            // Of what is left, the other half is for sending it to others.
            let too_few = writing.outbox.sync(owed.clone(), left_until(deadline) / 2).await;
            let too_few: HashSet<SegmentId> = too_few.into_iter().collect();
            let lost = writing.owed.lock().settle(&owed, &writing.outbox.acknowledged(&owed));
            let (left, enough): (Vec<SegmentId>, Vec<SegmentId>) =
                lost.into_iter().partition(|id| too_few.contains(id));
            // Fewer than had acknowledged them, and as many as a save needs: the rest is sent behind.
            writing.owed.lock().paid(&enough);
            fewer.extend(enough);
            owed = left;
            let Some(segment) = owed.first() else { break };
            if Instant::now() + pause >= deadline {
                tracing::error!(
                    %segment,
                    of = owed.len(),
                    path = self.path_of(inode),
                    "sync a file: too few seeders could write out what was acknowledged, and nobody else took it in time; \
                     see which ones are up with `swarmfs peers`, and sync it again"
                );
                return Err(Errno::IO);
            }
            tracing::warn!(%segment, of = owed.len(), "sync a file: a seeder lost what it had acknowledged; it is sent again");
            // And what is left then for those others to write it out.
            let until = deadline - left_until(deadline) / 4;
            let again = self.send_lost(writing, inode, version, &owed, until);
            if tokio::time::timeout_at(until.into(), again).await.is_ok() {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSES.1);
            }
        }
        if !fewer.is_empty() {
            let written = self.written(inode);
            let file = written.as_ref().and_then(|written| written.unsaved.data_file());
            let has = |range| written.as_ref().is_some_and(|written| written.unsaved.is_in_spool(range));
            let bearer = |range| file.as_deref().filter(|_| has(range)).map(Bearer::Spool);
            self.owe(writing, inode, &version.manifest, &fewer, bearer);
        }
        Ok(())
    }

    /// Have seeders hold again what some of them lost.
    async fn send_lost(
        &self,
        writing: &Writing,
        inode: InodeNumber,
        version: &Version,
        ids: &[SegmentId],
        deadline: Instant,
    ) {
        let mut wanted: HashSet<SegmentId> = ids.iter().copied().collect();
        let mut segments: Vec<Segment> = version.manifest.segments().collect();
        segments.retain(|segment| wanted.remove(&segment.id));
        if let Err(error) = writing.outbox.confirm(segments.clone()).await {
            tracing::debug!(%error, "ask seeders what they hold");
        }
        let short: HashSet<SegmentId> = writing.outbox.short(ids).into_iter().map(|(id, _)| id).collect();
        segments.retain(|segment| short.contains(&segment.id));
        let file = self.written(inode).and_then(|written| written.unsaved.data_file());
        let sends = segments.into_iter().map(|segment| {
            let bytes = self.bytes_of(writing, segment, version, None, file.clone(), deadline).boxed();
            async move {
                if let Err(error) = writing.outbox.send_again(segment, bytes).await {
                    tracing::warn!(%error, segment = %segment.id, "send a segment again");
                }
            }
        });
        futures::stream::iter(sends).buffer_unordered(AT_ONCE).collect::<()>().await;
    }
}
