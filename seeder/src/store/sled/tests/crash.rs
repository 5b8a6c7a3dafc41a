//! The machine stops, or one step fails, at every step that changes the disk.

use std::collections::HashSet;

use super::*;
use crate::store::disk::sim::{Image, SimDisk, Trouble, restore};

const ENOSPC: i32 = 28;
const EIO: i32 = 5;

/// What the script was told.
#[derive(Default)]
struct Told {
    /// Acknowledged at the close level, and not damaged by the script since.
    close: HashSet<SegmentId>,
    /// At the fsync level.
    fsync: HashSet<SegmentId>,
    failures: Vec<StoreError>,
}

impl Told {
    fn hear(&mut self, disk: &SimDisk, segment: Segment, level: AckLevel, outcome: Result<(), StoreError>) {
        match outcome {
            // Only what was heard before the crash was told to anybody.
            Ok(()) if disk.crash().is_none() => {
                self.close.insert(segment.id);
                if level == AckLevel::Fsync {
                    self.fsync.insert(segment.id);
                }
            }
            Ok(()) => {}
            Err(error) => self.failures.push(error),
        }
    }
}

fn samples() -> Vec<(Bytes, Segment)> {
    let lengths = [30_000, 100_000, 9_000, 300_000, 70_000, 1_200_000, 20_000];
    let samples = lengths.iter().enumerate().map(|(seed, length)| conformance::sample(seed as u64, *length));
    samples.map(|bytes| (bytes.clone(), ChunkTree::build(&bytes).segment())).collect()
}

/// All that changes a store, one thing after the other, so that steps are the same in every run.
async fn script(store: &Arc<SledStore>, disk: &SimDisk) -> Told {
    let samples = samples();
    let mut told = Told::default();
    for (bytes, segment) in &samples[..2] {
        let outcome = put(store, bytes, AckLevel::Close).await.map(drop);
        told.hear(disk, *segment, AckLevel::Close, outcome);
    }
    // A group of a small and a large one.
    let mut writers = Vec::new();
    for (bytes, segment) in &samples[2..4] {
        if let Ok(mut writer) = store.begin(*segment).await {
            // An error comes again from the commit.
            let _ = writer.write(bytes.clone()).await;
            writers.push((*segment, writer));
        }
    }
    let (segments, writers): (Vec<_>, Vec<_>) = writers.into_iter().unzip();
    let outcomes = store.commit(writers, AckLevel::Fsync, Duration::from_secs(60)).await;
    for (segment, outcome) in segments.into_iter().zip(outcomes) {
        told.hear(disk, segment, AckLevel::Fsync, outcome);
    }
    let _ = store.touch(samples.iter().map(|(_, segment)| segment.id).collect(), Duration::from_secs(60)).await;
    // Chunks of an inline segment and of a file are lost; the one is mended, the other sent anew.
    for at in [0, 1] {
        let (bytes, segment) = &samples[at];
        told.close.remove(&segment.id);
        let Some(record) = store.core.index.get(&segment.id) else { continue };
        let (reply, answer) = oneshot::channel();
        let chunks = commit::Lost::Some(vec![1]);
        let change = Change::Drop { id: segment.id, written: record.written, chunks, reply: Some(reply) };
        assert!(store.core.commits.send(change).is_ok());
        let _ = answer.await;
        let (tree, one) = (ChunkTree::build(bytes), ChunkRange::new(1, 2));
        let part = conformance::part(bytes, *segment, one);
        let outcome = match at {
            0 => store.mend(tree, one, part).await,
            _ => put(store, bytes, AckLevel::Close).await.map(drop),
        };
        told.hear(disk, *segment, AckLevel::Close, outcome);
    }
    // Several pieces, and one that is given up.
    let (bytes, segment) = &samples[5];
    let pieces = [bytes.slice(..600_000), bytes.slice(600_000..)];
    let outcome = conformance::store_one(store.as_ref(), *segment, pieces, AckLevel::Close).await;
    told.hear(disk, *segment, AckLevel::Close, outcome);
    if let Ok(mut writer) = store.begin(samples[4].1).await {
        let _ = writer.write(samples[4].0.slice(..1000)).await;
    }
    let before: Vec<SegmentId> = told.close.iter().copied().collect();
    if store.sync().await.is_ok() && disk.crash().is_none() {
        told.fsync.extend(before);
    }
    let outcome = put(store, &samples[6].0, AckLevel::Close).await.map(drop);
    told.hear(disk, samples[6].1, AckLevel::Close, outcome);
    told
}

fn quiet(dir: &Path) -> StoreConfig {
    // The background only works when told to, so that steps are the same in every run.
    StoreConfig { settle_every: Duration::from_secs(3600), capacity: 1 << 30, ..config(dir) }
}

/// Run the script with some trouble; the store is dropped at the end.
async fn run(trouble: Trouble) -> (TempDir, SimDisk, Told) {
    let dir = folder();
    let disk = SimDisk::new(dir.path());
    let store = open_on(quiet(dir.path()), Arc::new(disk.clone())).await.unwrap();
    disk.arm(trouble).unwrap();
    let told = script(&store, &disk).await;
    if disk.crash().is_none() && !matches!(trouble, Trouble::FailAt(..)) {
        disk.crash_now().unwrap();
    }
    drop(store);
    (dir, disk, told)
}

async fn assert_survives(image: &Image, want: &HashSet<SegmentId>, what: &str) {
    let dir = folder();
    restore(image, dir.path()).unwrap();
    let store = match open_on(quiet(dir.path()), Arc::new(RealDisk)).await {
        Ok(store) => store,
        Err(error) => panic!("{what}: the store does not open: {error}"),
    };
    for (bytes, segment) in samples() {
        if want.contains(&segment.id) {
            match store.read(segment.id, segment.all()).await {
                Ok(got) => assert!(got == bytes, "{what}: wrong bytes"),
                Err(error) => panic!("{what}: an acknowledged segment of {} bytes is lost: {error}", segment.length),
            }
        }
    }
    assert_sound(&store).await;
    store.sync().await.unwrap();
    drop(store);
    // And once more: what the first opening put right is right.
    let store = match open_on(quiet(dir.path()), Arc::new(RealDisk)).await {
        Ok(store) => store,
        Err(error) => panic!("{what}: the store does not open a second time: {error}"),
    };
    assert_sound(&store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_a_crash_at_every_step() {
    let (_dir, disk, told) = run(Trouble::None).await;
    assert!(told.failures.is_empty(), "{:?}", told.failures);
    assert_eq!((told.close.len(), told.fsync.len()), (6, 5));
    let steps = disk.steps();
    assert!(steps > 30, "only {steps} steps");
    for half in 0..=2 * steps {
        let (_dir, disk, told) = run(Trouble::CrashAt(half)).await;
        let crash = disk.crash().expect("it has crashed by now");
        assert_survives(&crash.kill, &told.close, &format!("kill -9 at half-step {half}")).await;
        let image = crash.power_cut(half, Path::new("db"));
        assert_survives(&image, &told.fsync, &format!("power cut at half-step {half}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_fails_once_loses_nothing_that_was_acknowledged() {
    let steps = run(Trouble::None).await.1.steps();
    for step in 0..steps {
        let error = if step.is_multiple_of(2) { ENOSPC } else { EIO };
        let (dir, _disk, told) = run(Trouble::FailAt(step, error)).await;
        for failure in &told.failures {
            assert!(
                matches!(failure, StoreError::Full | StoreError::Io { .. } | StoreError::Missing(_)),
                "{failure:?}"
            );
        }
        let store = open_on(quiet(dir.path()), Arc::new(RealDisk)).await.unwrap();
        for id in &told.close {
            // A sync that fails takes the segment with it: the kernel may have dropped its bytes.
            let is_lost = store.damaged().iter().any(|damaged| damaged.segment.id == *id);
            assert!(is_lost || store.inventory().contains(&(*id, true)), "step {step}: a segment is lost");
        }
        drop(store);
        // Damaged ones have files but nothing is held of them: left out of what must be sound.
        let store = open(dir.path()).await;
        if store.damaged().is_empty() {
            assert_sound(&store).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_whose_making_was_cut_short_is_made_at_the_next_start() {
    let total = {
        let dir = folder();
        let disk = SimDisk::new(dir.path());
        drop(open_on(quiet(dir.path()), Arc::new(disk.clone())).await.unwrap());
        disk.steps()
    };
    // All but the making of most of the 256 folders, which are alike.
    let halves = (0..2 * total).filter(|half| *half < 24 || *half > 2 * total - 40 || half.is_multiple_of(97));
    for half in halves {
        let dir = folder();
        let disk = SimDisk::new(dir.path());
        disk.arm(Trouble::CrashAt(half)).unwrap();
        drop(open_on(quiet(dir.path()), Arc::new(disk.clone())).await);
        let Some(crash) = disk.crash() else { continue };
        assert_survives(&crash.kill, &HashSet::new(), &format!("kill -9 at half-step {half} of making")).await;
        let image = crash.power_cut(half, Path::new("db"));
        assert_survives(&image, &HashSet::new(), &format!("power cut at half-step {half} of making")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_runs_full_is_full_and_not_broken() {
    let dir = folder();
    let disk = SimDisk::new(dir.path());
    let config = StoreConfig { free_floor: Some(10 << 20), ..quiet(dir.path()) };
    let store = open_on(config, Arc::new(disk.clone())).await.unwrap();
    let (bytes, segment) = &samples()[5];
    disk.arm(Trouble::FailAt(2, ENOSPC)).unwrap();
    let outcome = put(&store, bytes, AckLevel::Close).await;
    assert!(matches!(outcome, Err(StoreError::Full)), "in the middle of writing: {outcome:?}");
    disk.set_free((10 << 20) + 1000);
    assert!(matches!(put(&store, bytes, AckLevel::Close).await, Err(StoreError::Full)), "at the floor");
    assert_eq!(store.held(&segment.id), None);
    disk.set_free(1 << 30);
    put(&store, bytes, AckLevel::Close).await.unwrap();
    assert_sound(&store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_that_never_got_a_record_are_swept_at_the_next_start() {
    let dir = folder();
    let store = open_on(quiet(dir.path()), Arc::new(RealDisk)).await.unwrap();
    let segment = put(&store, &samples()[0].0, AckLevel::Close).await.unwrap();
    let number = store.core.numbers.next() + 1;
    for row in [Row::Chunk { number, chunk: 0 }, Row::Chunk { number, chunk: 1 }, Row::Tree { number }] {
        store.core.database.put(row, &[7; 100]);
    }
    store.core.database.flush().unwrap();
    store.close().await;
    let store = open_on(quiet(dir.path()), Arc::new(RealDisk)).await.unwrap();
    assert_eq!(store.inventory(), [(segment.id, true)]);
    assert_sound(&store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_the_disk_could_not_sync_is_not_held_any_more() {
    let dir = folder();
    let disk = SimDisk::new(dir.path());
    let store = open_on(quiet(dir.path()), Arc::new(disk.clone())).await.unwrap();
    let bytes = &samples()[3].0;
    let segment = put(&store, bytes, AckLevel::Close).await.unwrap();
    disk.arm(Trouble::FailAt(0, EIO)).unwrap();
    assert!(matches!(store.sync().await, Err(StoreError::Io { .. })));
    // Through the commit lane, after the drop that the failure sent there.
    assert_eq!(store.touch(vec![segment.id], Duration::ZERO).await.unwrap(), [0]);
    assert_eq!((store.held(&segment.id), store.damaged().len()), (None, 1));
    put(&store, bytes, AckLevel::Fsync).await.unwrap();
    assert!(store.read(segment.id, segment.all()).await.unwrap() == *bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mend_of_bytes_that_were_written_anew_is_told_to_look_again() {
    let dir = folder();
    let store = open_on(quiet(dir.path()), Arc::new(RealDisk)).await.unwrap();
    let bytes = &samples()[0].0;
    let segment = put(&store, bytes, AckLevel::Close).await.unwrap();
    let written = store.core.index.get(&segment.id).unwrap().written;
    for (written, want) in [(written - 1, commit::Mended::Changed), (written, commit::Mended::Done)] {
        let (reply, answer) = oneshot::channel();
        let (tree, chunks) = (ChunkTree::build(bytes), segment.all());
        let change = Change::Mend { tree, written, chunks, bytes: bytes.clone(), reply };
        assert!(store.core.commits.send(change).is_ok());
        assert_eq!(answer.await.unwrap().unwrap(), want);
    }
}
