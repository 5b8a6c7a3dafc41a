//! One batch of segments on its way: who has them, who takes them, until enough seeders stand for each.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use swarm_proto::v1::{self, StoreOutcome};
use swarm_proto::{MAX_SEGMENT_BYTES, PeerId, Segment, SegmentId};

use super::ledger::Process;
use super::links::Trouble;
use super::store_call::{Said, Word, store};
use super::uploader::{BATCH_SEGMENTS, Inner, Job, TOUCH, TOUCH_SEGMENTS};
use super::{KnownSeeder, SeederState, UploadError};
use crate::swarm::PeerAddress;

/// Small segments of a batch travel together, up to so many bytes a store call.
const BUNDLE_BYTES: u64 = 4 << 20;
/// How long the seeders that were named for a batch sent unasked serve for the next one.
const PLACE_AGE: Duration = Duration::from_millis(500);
/// How long a swarm without seeders is given to get one.
const NO_SEEDER: Duration = Duration::from_secs(3);
/// How often what has enough replicas, but not all that are wanted, is tried again.
const EXTRA_ROUNDS: u32 = 2;
/// First and longest pause after a round that placed nothing.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Longest silence of a store call. Below the caller's patience, so that another seeder can be tried.
const STALL: Duration = Duration::from_secs(15);

/// A segment of the batch that is not done.
struct Open {
    job: Job,
    holders: Vec<PeerId>,
    sent: bool,
    /// Rounds in which it had enough replicas already, but not all that are wanted.
    extra: u32,
    /// Send to each seeder by itself: a pipeline failed and nobody knows which link, or it is too small for one, whose
    /// links are waited for one after the other.
    direct: bool,
}

/// Segments that travel in one call.
struct Bundle {
    members: Vec<usize>,
    exclude: Vec<PeerId>,
    direct: bool,
    bytes: u64,
}

impl Bundle {
    fn empty(exclude: Vec<PeerId>, direct: bool) -> Self {
        Self { members: Vec::new(), exclude, direct, bytes: 0 }
    }
}

impl Inner {
    /// Have every segment of a batch held by enough seeders, and tell those who wait.
    pub(super) async fn deliver(self: &Arc<Self>, batch: Vec<Job>) {
        let mut open = match self.look_up(batch).await {
            Ok(open) => open,
            Err((batch, error)) => {
                return batch.into_iter().for_each(|job| self.finish(job.segment, Err(error.clone())));
            }
        };
        let (mut progress, mut pause) = (Instant::now(), PAUSES.0);
        let mut seen_seeders = progress;
        let mut last = "the tracker knows no other seeder to place it at".to_owned();
        while !open.is_empty() {
            let seeders = match self.seeders().await {
                Ok(seeders) => seeders,
                Err(error) => return self.fail(open, |_| error.clone()),
            };
            if seeders.is_empty() {
                if seen_seeders.elapsed() > NO_SEEDER {
                    return self.fail(open, |_| UploadError::NoSeeder);
                }
                tokio::time::sleep(PAUSES.0).await;
                continue;
            }
            seen_seeders = Instant::now();
            let need = self.need(seeders.len());
            let want = self.want(seeders.len());
            open = self.settle(open, need, want);
            if open.is_empty() {
                return;
            }
            let round = match self.round(&mut open, want).await {
                Ok(round) => round,
                Err(error) => return self.fail(open, |_| error.clone()),
            };
            if let Some(reason) = round.trouble {
                last = reason;
            }
            open.iter_mut().filter(|open| open.holders.len() >= need).for_each(|open| open.extra += 1);
            open = self.settle(open, need, want);
            if round.acknowledged {
                (progress, pause) = (Instant::now(), PAUSES.0);
                continue;
            }
            if open.is_empty() {
                return;
            }
            let others_failed = self.links.forgive_failures();
            if round.nowhere && !others_failed && self.no_room(&open, &seeders) {
                return self.fail(open, |open| UploadError::Full {
                    segment: open.job.segment,
                    got: open.holders.len(),
                    need,
                });
            }
            if progress.elapsed() > self.config.patience {
                return self.fail(open, |open| UploadError::TooFew {
                    segment: open.job.segment,
                    got: open.holders.len(),
                    need,
                    last: last.clone(),
                });
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    fn fail(&self, open: Vec<Open>, error: impl Fn(&Open) -> UploadError) {
        open.iter().for_each(|open| self.finish(open.job.segment, Err(error(open))));
    }

    /// Whether every seeder that could still take a segment has no room for it: waiting helps nothing.
    fn no_room(&self, open: &[Open], seeders: &[KnownSeeder]) -> bool {
        let full = self.links.full(Instant::now());
        let hopeless = |open: &Open| {
            seeders.iter().filter(|seeder| !open.holders.contains(&seeder.id)).all(|seeder| {
                let is_live = seeder.state == SeederState::Live;
                full.contains(&seeder.id) || (is_live && seeder.free_bytes < u64::from(open.job.segment.length))
            })
        };
        open.iter().all(hopeless)
    }

    /// Answer for what is done; returns the rest.
    fn settle(&self, open: Vec<Open>, need: usize, want: usize) -> Vec<Open> {
        let (done, open): (Vec<Open>, Vec<Open>) = open
            .into_iter()
            .partition(|open| open.holders.len() >= want || (open.extra >= EXTRA_ROUNDS && open.holders.len() >= need));
        for done in done {
            self.finish(done.job.segment, Ok((done.sent, done.holders.len())));
        }
        open
    }

    /// Who has the segments: our own memory first, then the tracker's hint and a durable touch.
    async fn look_up(&self, batch: Vec<Job>) -> Result<Vec<Open>, (Vec<Job>, UploadError)> {
        let up: HashSet<PeerId> = match self.seeders().await {
            Ok(seeders) => seeders.iter().map(|seeder| seeder.id).collect(),
            Err(error) => return Err((batch, error)),
        };
        let own = |job: &Job| self.own_word(job.segment, &up);
        let bytes: u64 = batch.iter().map(|job| u64::from(job.segment.length)).sum();
        let asks = bytes > self.config.unasked_bytes;
        let unknown = batch.iter().filter(|job| asks && own(job).is_empty()).map(|job| job.segment).collect::<Vec<_>>();
        if let Err(error) = self.ask_around(&unknown, &up).await {
            return Err((batch, error));
        }
        let open = batch.into_iter().map(|job| {
            let holders = own(&job);
            Open { job, holders, sent: false, extra: 0, direct: !asks }
        });
        Ok(open.collect())
    }

    /// Who stands for a segment by our own memory. The word of one that is not in `up` helps nobody now.
    pub(super) fn own_word(&self, segment: Segment, up: &HashSet<PeerId>) -> Vec<PeerId> {
        let mut holders = self.ledger.lock().holders(&segment.id, Instant::now(), self.config.keep / 2);
        holders.retain(|holder| up.contains(holder));
        holders
    }

    /// Enter which of those that are up durably hold these, and keep them from now on. Whoever could not write out what it
    /// took is not asked: others are to have it.
    pub(super) async fn ask_around(&self, segments: &[Segment], up: &HashSet<PeerId>) -> Result<(), UploadError> {
        let ids: Vec<SegmentId> = segments.iter().map(|segment| segment.id).collect();
        let located = if ids.is_empty() { Vec::new() } else { self.placer.holders(ids).await? };
        let stuck = self.links.stuck(Instant::now());
        let is_asked = |holder: &PeerAddress| up.contains(&holder.id) && !stuck.contains(&holder.id);
        let mut touches: HashMap<PeerId, (PeerAddress, Vec<SegmentId>)> = HashMap::new();
        for (segment, holders) in segments.iter().zip(located) {
            for holder in holders.into_iter().filter(is_asked) {
                touches.entry(holder.id).or_insert_with(|| (holder, Vec::new())).1.push(segment.id);
            }
        }
        let lengths: HashMap<SegmentId, Segment> = segments.iter().map(|segment| (segment.id, *segment)).collect();
        let touch = |(holder, ids): (PeerAddress, Vec<SegmentId>)| {
            let lengths = &lengths;
            async move {
                if self.links.client(&holder).is_ok() {
                    for (id, process) in self.touched(holder.id, &ids).await.unwrap_or_default() {
                        if let Some(segment) = lengths.get(&id) {
                            self.ledger.lock().acknowledge(*segment, (holder.id, process), Instant::now(), false);
                        }
                    }
                }
            }
        };
        futures::future::join_all(touches.into_values().map(touch)).await;
        Ok(())
    }

    /// Those of `ids` that a seeder durably holds and keeps from now on, and which run of it says so; none if it does not
    /// answer.
    async fn touched(&self, peer: PeerId, ids: &[SegmentId]) -> Option<Vec<(SegmentId, Process)>> {
        let (mut client, _) = self.links.known(peer)?;
        let mut held = Vec::new();
        for some in ids.chunks(TOUCH_SEGMENTS) {
            let keep_ms = u64::try_from(self.config.keep.as_millis()).unwrap_or(u64::MAX);
            let request = v1::TouchRequest { segment_ids: SegmentId::pack(some), keep_ms };
            let reply = tokio::time::timeout(TOUCH, client.touch(request)).await.ok()?.ok()?.into_inner();
            let process = NonZeroU64::new(reply.process);
            let stamped = some.iter().zip(reply.stamps).filter(|(_, stamp)| *stamp > 0);
            held.extend(stamped.map(|(id, _)| (*id, process)));
        }
        Some(held)
    }

    /// Renew a seeder's promise; what it has lost counts no more.
    pub(super) async fn touch(&self, peer: PeerId, ids: &[SegmentId]) {
        // No answer: the old promise still runs, and the next renewal comes before it ends.
        let Some(held) = self.touched(peer, ids).await else { return };
        let held: Vec<SegmentId> = held.into_iter().map(|(id, _)| id).collect();
        let held_set: HashSet<&SegmentId> = held.iter().collect();
        let mut ledger = self.ledger.lock();
        ids.iter().filter(|id| !held_set.contains(id)).for_each(|id| ledger.lost(peer, id));
        ledger.renewed(&held, Instant::now());
    }
}

/// What a round did.
struct Round {
    /// Some seeder acknowledged something.
    acknowledged: bool,
    /// The tracker knew no seeder for anything.
    nowhere: bool,
    /// What the last seeder that failed said.
    trouble: Option<String>,
}

impl Inner {
    /// Place what is open and send it, once.
    async fn round(self: &Arc<Self>, open: &mut [Open], want: usize) -> Result<Round, UploadError> {
        let avoided = self.links.avoided(Instant::now());
        let mut sends = Vec::new();
        for ((exclude, missing), bundles) in by_question(bundles(open, &avoided), open, want) {
            let heads = bundles.iter().map(|bundle| {
                let length = u32::try_from(bundle.bytes).unwrap_or(MAX_SEGMENT_BYTES).min(MAX_SEGMENT_BYTES);
                Segment { id: open[bundle.members[0]].job.segment.id, length }
            });
            let targets = self.targets(heads.collect(), missing, exclude).await?;
            for (bundle, targets) in bundles.into_iter().zip(targets) {
                match targets.is_empty() {
                    false => sends.push((bundle, targets)),
                    // Enough must be enough, where there is nobody else.
                    true => bundle.members.iter().for_each(|index| open[*index].extra = EXTRA_ROUNDS),
                }
            }
        }
        let mut round = Round { acknowledged: false, nowhere: sends.is_empty(), trouble: None };
        let calls = sends.iter().flat_map(|(bundle, targets)| {
            let links = if bundle.direct { 1 } else { targets.len() };
            targets.chunks(links).map(move |chain| (bundle, chain))
        });
        let said = {
            let open = &*open;
            futures::future::join_all(calls.map(|(bundle, chain)| async move {
                let said = self.send(bundle, open, chain).await;
                (bundle, chain, said)
            }))
            .await
        };
        for (bundle, chain, said) in said {
            self.hear(open, bundle, chain, said, &mut round);
        }
        if round.acknowledged {
            self.sync_behind();
        }
        Ok(round)
    }

    /// Who is to take each of these: as just before, if it is one that is sent unasked, or as the tracker says.
    async fn targets(
        &self,
        heads: Vec<Segment>,
        missing: u32,
        exclude: Vec<PeerId>,
    ) -> Result<Vec<Vec<PeerAddress>>, UploadError> {
        let is_short = heads.len() == 1 && u64::from(heads[0].length) <= self.config.unasked_bytes;
        if !is_short {
            return Ok(self.placer.place(heads, missing, exclude).await?);
        }
        let key = (exclude, missing);
        if let Some((at, last, targets)) = &*self.placed.lock()
            && *last == key
            && at.elapsed() < PLACE_AGE
        {
            return Ok(vec![targets.clone()]);
        }
        let targets = self.placer.place(heads, key.1, key.0.clone()).await?;
        if let [targets] = &targets[..] {
            let complete = targets.len() == key.1 as usize;
            *self.placed.lock() = complete.then(|| (Instant::now(), key, targets.clone()));
        }
        Ok(targets)
    }

    async fn send(&self, bundle: &Bundle, open: &[Open], targets: &[PeerAddress]) -> Said {
        let (client, small) = match self.links.line(&targets[0]) {
            Ok(line) => line,
            Err(reason) => return Said::Failed(reason),
        };
        // The others are called only for syncs and touches, but by the same name.
        targets.iter().skip(1).for_each(|target| drop(self.links.client(target)));
        let pieces: Vec<_> =
            bundle.members.iter().map(|index| (open[*index].job.segment, open[*index].job.bytes.clone())).collect();
        store(client, &small, &pieces, targets, self.config.level, self.config.keep, STALL).await
    }

    /// Enter what the seeders of one call said.
    fn hear(&self, open: &mut [Open], bundle: &Bundle, targets: &[PeerAddress], said: Said, round: &mut Round) {
        let now = Instant::now();
        let mut trouble = |peer: PeerId, kind: Trouble, reason: String| {
            tracing::debug!(%peer, reason, "store segments");
            self.links.avoid(peer, kind, now);
            let name = targets.iter().find(|target| target.id == peer).map(|target| target.address.as_str());
            round.trouble = Some(format!("{}: {reason}", name.unwrap_or("a seeder")));
        };
        let acks = match said {
            Said::Acks(acks) => acks,
            Said::Busy(reason) => {
                round.trouble = Some(format!("{}: {reason}", targets[0].address));
                return;
            }
            Said::Failed(reason) if targets.len() > 1 => {
                tracing::debug!(first = targets[0].address, reason, "store segments through a pipeline");
                round.trouble = Some(format!("{}: {reason}", targets[0].address));
                return bundle.members.iter().for_each(|index| open[*index].direct = true);
            }
            Said::Failed(reason) => return trouble(targets[0].id, Trouble::Failed, reason),
        };
        for target in targets {
            let Some(Word { process, outcomes, message, .. }) = acks.iter().find(|word| word.peer == target.id) else {
                trouble(target.id, Trouble::Failed, "no acknowledgement".to_owned());
                continue;
            };
            for (index, outcome) in bundle.members.iter().zip(outcomes) {
                let open = &mut open[*index];
                match outcome {
                    StoreOutcome::Held => {
                        self.ledger.lock().acknowledge(open.job.segment, (target.id, *process), now, true);
                        if !open.holders.contains(&target.id) {
                            open.holders.push(target.id);
                        }
                        open.sent = true;
                        round.acknowledged = true;
                    }
                    StoreOutcome::Full => trouble(target.id, Trouble::Full, "full".to_owned()),
                    StoreOutcome::Corrupt | StoreOutcome::Unavailable | StoreOutcome::Unspecified => {
                        let words = if message.is_empty() { outcome.as_str_name() } else { message };
                        trouble(target.id, Trouble::Failed, words.to_owned());
                    }
                }
            }
        }
    }
}

/// What may travel together: the same seeders are out of the question, and the sum is not too long.
fn bundles(open: &[Open], avoided: &[PeerId]) -> Vec<Bundle> {
    let mut filling: HashMap<(Vec<PeerId>, bool), Bundle> = HashMap::new();
    let mut full = Vec::new();
    for (index, open) in open.iter().enumerate() {
        let mut exclude: Vec<PeerId> = open.holders.iter().chain(avoided).copied().collect();
        exclude.sort_unstable();
        exclude.dedup();
        let length = u64::from(open.job.segment.length);
        let bundle = filling
            .entry((exclude.clone(), open.direct))
            .or_insert_with(|| Bundle::empty(exclude.clone(), open.direct));
        let full_up = bundle.bytes + length > BUNDLE_BYTES || bundle.members.len() >= BATCH_SEGMENTS;
        if !bundle.members.is_empty() && full_up {
            full.push(std::mem::replace(bundle, Bundle::empty(exclude, open.direct)));
        }
        bundle.members.push(index);
        bundle.bytes += length;
    }
    full.extend(filling.into_values());
    full
}

/// Bundles by what the tracker is asked for them: whom to leave out, and how many replicas are missing.
fn by_question(bundles: Vec<Bundle>, open: &[Open], want: usize) -> BTreeMap<(Vec<PeerId>, u32), Vec<Bundle>> {
    let mut questions: BTreeMap<(Vec<PeerId>, u32), Vec<Bundle>> = BTreeMap::new();
    for bundle in bundles {
        let held = bundle.members.iter().map(|index| open[*index].holders.len()).min().unwrap_or_default();
        let missing = u32::try_from(want.saturating_sub(held)).unwrap_or(u32::MAX).max(1);
        questions.entry((bundle.exclude.clone(), missing)).or_default().push(bundle);
    }
    questions
}
