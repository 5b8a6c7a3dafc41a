//! Sending to further seeders what they lack of what was saved, as fewer were up when it was.
//!
//! Not here: what an fsync(2) finds lost (`raise`). Invariant: what is owed is paid only by the word of as many seeders
//! as are wanted, and forgotten otherwise only when no current version has it.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::{FutureExt, StreamExt};
use swarm_proto::{ByteRange, Extent, InodeNumber, Manifest, PeerId, Segment, SegmentId};
use swarm_seeder::swarm::upload::Shortage;
use tokio_util::sync::CancellationToken;

use super::{FileSystem, Writing};
use crate::fs::content::Version;
use crate::write::debts::{Bearer, Debt, Debtor, Debts, Kept, Key, Lacking, Part, bytes_at};
use crate::write::spool::SpoolFile;
use crate::write::unsaved::Save;

/// First and longest pause between two looks at who is up.
const PAUSES: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));
/// Debts that are paid at a time, and segments of each.
pub(super) const AT_ONCE: usize = 4;
/// After so many debts in a row that could not be paid, the others wait for the next look.
const IN_VAIN_MOST: usize = 8;
/// After so many segments in a row of one debt, the others wait too.
const SEGMENTS_IN_VAIN_MOST: usize = 4;
/// Debts that keep bytes and are asked at each look whether their file still is what it was.
const CHECKED_MOST: usize = 16;
/// How long a segment that is not kept here is waited for.
const READ: Duration = Duration::from_secs(10);
/// Bytes that are read from a file at a time.
const STEP_BYTES: u64 = 1 << 20;

/// What came of an attempt.
enum Attempt {
    /// A seeder has more than before, or nothing is owed any more.
    Gained,
    /// There is nobody who could be given it.
    Nobody,
    /// Something failed: try again.
    Failed,
}

impl FileSystem {
    /// Remember which of the segments `ids` of a version, just committed, seeders hold too few replicas of.
    ///
    /// Shape: `bearer` says what has the bytes of a range of the file at the same offset, if anything here has.
    /// Cost:  a look into memory, if they hold enough.
    pub(super) fn owe<'f>(
        &self,
        writing: &Writing,
        inode: InodeNumber,
        manifest: &Manifest,
        ids: &[SegmentId],
        bearer: impl Fn(ByteRange) -> Option<Bearer<'f>>,
    ) {
        let Some(debts) = &writing.debts else { return };
        let short: HashMap<SegmentId, Shortage> = writing.outbox.short(ids).into_iter().collect();
        if short.is_empty() {
            return;
        }
        let nobody_left = short.values().all(|shortage| *shortage == Shortage::OfSeeders);
        let mut lacking: Vec<Lacking<'f>> = Vec::with_capacity(short.len());
        let mut found = HashMap::with_capacity(short.len());
        for (segment, at) in places(manifest) {
            let Some(shortage) = short.get(&segment.id) else { continue };
            let at_risk = *shortage == Shortage::OfReplicas;
            let index = *found.entry(segment.id).or_insert_with(|| {
                lacking.push(Lacking { segment, at_risk, bytes: None });
                lacking.len() - 1
            });
            // Of the places that it has in the file, one that was sent from here: elsewhere the base has its bytes.
            if at_risk && lacking[index].bytes.is_none() {
                let range = |at| ByteRange::at(at, segment.length.into());
                lacking[index].bytes = at.and_then(|at| Some((bearer(range(at))?, at)));
            }
        }
        let debtor = Debtor { swarm: writing.swarm.clone(), inode, path: self.path_of(inode) };
        debts.add(debtor, lacking, nobody_left.then(|| writing.outbox.live_lately()));
    }

    /// This mount has put another version in the place of one.
    pub(super) fn replaced(&self, writing: &Writing, inode: InodeNumber, manifest: &Manifest) {
        if let Some(debts) = writing.debts.as_ref().filter(|debts| !debts.is_empty(&writing.swarm)) {
            let ids = ids_of(manifest);
            debts.replaced(&writing.swarm, inode, |id| ids.contains(id));
        }
    }

    /// A file has no name any more: nothing of it is owed.
    pub(in crate::fs) fn forget_debts(&self, inode: InodeNumber) {
        let Some(writing) = &self.writing else { return };
        if let Some(debts) = writing.debts.as_ref().filter(|debts| !debts.is_empty(&writing.swarm)) {
            debts.gone(&writing.swarm, inode);
        }
    }

    /// How much seeders lack of what this mount has saved.
    pub fn owed(&self) -> crate::write::debts::Sum {
        let Some(writing) = &self.writing else { return Default::default() };
        writing.debts.as_ref().map(|debts| debts.sum(&writing.swarm)).unwrap_or_default()
    }

    /// Send what seeders lack once others are up, until `stop`. One such task runs for a mount.
    pub async fn pay_debts(self: Arc<Self>, stop: CancellationToken) {
        let Some(writing) = &self.writing else { return };
        let Some(debts) = &writing.debts else { return };
        let paying = async {
            let mut pause = PAUSES.0;
            loop {
                if debts.is_empty(&writing.swarm) {
                    debts.more().await;
                    pause = PAUSES.0;
                }
                let mut next = Instant::now() + pause;
                // What is new may be paid soon, however long nothing could be.
                while Instant::now() < next && tokio::time::timeout_at(next.into(), debts.more()).await.is_ok() {
                    next = next.min(Instant::now() + PAUSES.0);
                }
                pause = match self.pay_some(writing, debts).await {
                    true => PAUSES.0,
                    false => (pause * 2).min(PAUSES.1),
                };
            }
        };
        tokio::select! {
            () = paying => {}
            () = stop.cancelled() => {}
        }
    }

    /// Pay what can be paid now; whether anything was.
    pub(super) async fn pay_some(&self, writing: &Writing, debts: &Debts) -> bool {
        let live = match writing.outbox.live().await {
            Ok(live) => live,
            Err(error) => {
                tracing::debug!(%error, "ask which seeders are up");
                return false;
            }
        };
        let (mut gained, mut in_vain) = (0_usize, 0);
        let due = debts.due(&writing.swarm, &live).into_iter();
        let mut attempts =
            futures::stream::iter(due.map(|key| self.pay(writing, debts, key, &live))).buffer_unordered(AT_ONCE);
        while let Some(attempt) = attempts.next().await {
            match attempt {
                Attempt::Gained => (gained, in_vain) = (gained + 1, 0),
                Attempt::Nobody => {}
                Attempt::Failed => in_vain += 1,
            }
            if in_vain >= IN_VAIN_MOST {
                break;
            }
        }
        drop(attempts);
        for key in debts.keeping(&writing.swarm, CHECKED_MOST) {
            self.still_owed(debts, key).await;
            debts.looked_at(key, None);
        }
        if gained > 0 {
            let left = debts.sum(&writing.swarm).files;
            tracing::info!(saves = gained, files_left = left, "sent to further seeders what they lacked");
        }
        gained > 0
    }

    /// The version of which something is owed, and what; none: nothing is, or nobody can say.
    async fn still_owed(&self, debts: &Debts, key: Key) -> Option<(Version, Debt)> {
        let asked = tokio::time::timeout(self.config.metadata_timeout, self.catalog.current(key.0)).await;
        let (node, manifest) = match asked {
            Ok(Ok(Some((current, _)))) if current.0.links > 0 => current,
            Ok(Ok(_)) => {
                debts.change(key, Vec::clear);
                return None;
            }
            Ok(Err(_)) | Err(_) => return None,
        };
        let version = self.version_of(&node, manifest).await.ok()?;
        let ids = ids_of(&version.manifest);
        // Of this one only: another may be of a version that was committed since.
        debts.change(key, |parts| parts.retain(|part| ids.contains(&part.segment)));
        Some((version, debts.get(key)?))
    }

    async fn pay(&self, writing: &Writing, debts: &Debts, key: Key, live: &[PeerId]) -> Attempt {
        let Some((version, debt)) = self.still_owed(debts, key).await else {
            debts.looked_at(key, None);
            return if debts.get(key).is_none() { Attempt::Gained } else { Attempt::Failed };
        };
        let mut parts = debt.parts.clone();
        // Not always those first that nobody can give.
        let first = rand::random_range(0..parts.len().max(1));
        parts.rotate_left(first);
        let sends = parts.into_iter().map(|part| self.send_part(writing, &version, part));
        let mut sends = futures::stream::iter(sends).buffer_unordered(AT_ONCE);
        let (mut sent, mut in_vain) = (Vec::new(), 0);
        while let Some((id, now)) = sends.next().await {
            in_vain = if now.is_some() { 0 } else { in_vain + 1 };
            sent.push((id, now));
            if in_vain >= SEGMENTS_IN_VAIN_MOST {
                break;
            }
        }
        drop(sends);
        let now: HashMap<SegmentId, usize> = sent.iter().filter_map(|(id, now)| Some((*id, (*now)?))).collect();
        let shortage = |part: &Part| now.get(&part.segment).map(|replicas| writing.outbox.shortage(*replicas));
        debts.change(key, |parts| {
            parts.retain(|part| shortage(part) != Some(Shortage::None));
            let had_by_all = parts.iter_mut().filter(|part| shortage(part) == Some(Shortage::OfSeeders));
            had_by_all.for_each(|part| (part.at_risk, part.kept) = (false, None));
        });
        let is_done = |(id, now): &(SegmentId, Option<usize>)| {
            let paid = debts.get(key).is_none_or(|debt| debt.parts.iter().all(|part| part.segment != *id));
            paid || now.is_some_and(|now| now >= live.len())
        };
        let all_done = sent.len() == debt.parts.len() && sent.iter().all(is_done);
        debts.looked_at(key, all_done.then(|| live.to_vec()));
        match (all_done, debts.get(key)) {
            (_, None) => Attempt::Gained,
            (true, Some(after)) if after == debt => Attempt::Nobody,
            (_, Some(after)) if after != debt => Attempt::Gained,
            _ => Attempt::Failed,
        }
    }

    /// Have one segment held by as many as are wanted; how many hold it, none if that failed.
    async fn send_part(&self, writing: &Writing, version: &Version, part: Part) -> (SegmentId, Option<usize>) {
        let segment = part.segment();
        // Not before there is memory for them does the time run in which they are read.
        let bytes = async { self.bytes_of(writing, segment, version, part.kept, None, Instant::now() + READ).await };
        let sent = writing.outbox.send_again(segment, bytes.boxed()).await;
        let sent = sent.inspect_err(|error| tracing::debug!(%error, segment = %segment.id, "send a segment again"));
        (part.segment, sent.ok())
    }

    /// All bytes of a segment of a version: where they are kept, from the spool, or by the readers of files.
    pub(super) async fn bytes_of(
        &self,
        writing: &Writing,
        segment: Segment,
        version: &Version,
        kept: Option<Kept>,
        file: Option<Arc<SpoolFile>>,
        deadline: Instant,
    ) -> Option<Bytes> {
        if let (Some(kept), Some(debts)) = (kept, &writing.debts)
            && let Ok(file) = debts.open_kept(kept)
            && let Some(bytes) = read(Arc::new(file), kept.offset, segment).await
        {
            return Some(bytes);
        }
        let at = places(&version.manifest).filter(|(found, _)| found.id == segment.id).find_map(|(_, at)| at)?;
        if let Some(file) = file
            && let Some(bytes) = read(file.file().clone(), at, segment).await
        {
            return Some(bytes);
        }
        let content = self.content.open(version);
        let (mut bytes, end) = (BytesMut::new(), at + u64::from(segment.length));
        while (bytes.len() as u64) < u64::from(segment.length) {
            let from = at + bytes.len() as u64;
            let length = u32::try_from(STEP_BYTES.min(end - from)).ok()?;
            let read = tokio::time::timeout_at(deadline.into(), content.read(from, length, deadline)).await;
            let read = read.ok()?.ok().filter(|read| !read.is_empty())?;
            bytes.extend_from_slice(&read);
        }
        (blake3::hash(&bytes).as_bytes() == segment.id.as_bytes()).then(|| bytes.freeze())
    }
}

/// A segment's bytes in a file, if they are there.
async fn read(file: Arc<File>, at: u64, segment: Segment) -> Option<Bytes> {
    let read = tokio::task::spawn_blocking(move || bytes_at(&file, at, segment)).await.ok()?;
    read.inspect_err(|error| tracing::debug!(%error, segment = %segment.id, "read what seeders lack")).ok()
}

/// What has the bytes that a save sent of a range of the file; none: it did not send them all.
pub(super) fn bearer(save: &Save, range: ByteRange) -> Option<Bearer<'_>> {
    let is_in = |run: &ByteRange| run.start <= range.start && range.end <= run.end;
    if let Some(joined) = save.joined.as_ref().filter(|joined| joined.runs.iter().any(is_in)) {
        return Some(Bearer::Nameless(&joined.file));
    }
    save.file.as_deref().filter(|_| save.pieces.is_unsaved(range)).map(Bearer::Spool)
}

/// The segments of a version, and where in the file all of each lies; none: only a slice does.
fn places(manifest: &Manifest) -> impl Iterator<Item = (Segment, Option<u64>)> + '_ {
    let mut end = 0;
    manifest.extents().iter().filter_map(move |extent| {
        let start = end;
        end += extent.length();
        match extent {
            Extent::Data { segment, length, .. } => {
                let whole = u64::from(*length) == u64::from(segment.length);
                Some((*segment, whole.then_some(start)))
            }
            Extent::Hole { .. } => None,
        }
    })
}

fn ids_of(manifest: &Manifest) -> HashSet<SegmentId> {
    manifest.segments().map(|segment| segment.id).collect()
}

#[cfg(test)]
mod tests;
