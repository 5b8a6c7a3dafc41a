//! Random operations against a model of which chunks are good; and many tasks on the same segments.

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

const LENGTHS: [usize; 7] = [500, 16_384, 40_000, 65_536, 65_537, 200_000, 1_100_000];

fn samples() -> Vec<(Bytes, Segment)> {
    let samples = LENGTHS.iter().enumerate().map(|(seed, length)| conformance::sample(seed as u64, *length));
    samples.map(|bytes| (bytes.clone(), ChunkTree::build(&bytes).segment())).collect()
}

/// Chunks that the store should say it has, and of these the ones that are bad at rest.
#[derive(Default, Clone)]
struct Chunks {
    held: BTreeSet<u32>,
    bad: BTreeSet<u32>,
}

impl Chunks {
    fn lose(&mut self, lost: &[u32]) {
        self.held.retain(|chunk| !lost.contains(chunk));
        self.bad.retain(|chunk| !lost.contains(chunk));
    }
}

/// By index of the sample.
type Model = BTreeMap<usize, Chunks>;

fn run_of(dice: &mut StdRng, segment: Segment) -> ChunkRange {
    let start = dice.random_range(0..segment.chunks());
    ChunkRange::new(start, dice.random_range(start + 1..=segment.chunks()))
}

async fn step(store: &Arc<SledStore>, dice: &mut StdRng, model: &mut Model, samples: &[(Bytes, Segment)]) {
    let at = dice.random_range(0..samples.len());
    let (bytes, segment) = &samples[at];
    let chunks = model.entry(at).or_default();
    let run = run_of(dice, *segment);
    match dice.random_range(0..10) {
        0..3 => {
            let level = if dice.random() { AckLevel::Close } else { AckLevel::Fsync };
            put(store, bytes, level).await.unwrap();
            // One that it says it has whole is not written again, rotten or not.
            if chunks.held.len() < segment.chunks() as usize {
                *chunks = Chunks { held: segment.all().iter().collect(), bad: BTreeSet::new() };
            }
        }
        3 if chunks.held.contains(&run.start) && chunks.bad.insert(run.start) => rot(store, *segment, run.start),
        4..7 => {
            let outcome = store.read(segment.id, run).await;
            let bad: Vec<u32> = run.iter().filter(|chunk| chunks.bad.contains(chunk)).collect();
            if chunks.held.is_empty() {
                assert!(matches!(outcome, Err(StoreError::Missing(_))), "{outcome:?}");
            } else if !run.iter().all(|chunk| chunks.held.contains(&chunk)) {
                assert!(matches!(outcome, Err(StoreError::Partial(_))), "{outcome:?}");
            } else if let Some(first) = bad.first() {
                assert!(matches!(outcome, Err(StoreError::Corrupt { chunk, .. }) if chunk == *first), "{outcome:?}");
                chunks.lose(&bad);
            } else {
                assert!(outcome.unwrap() == conformance::part(bytes, *segment, run));
            }
        }
        7 => {
            let known = store.core.index.get(&segment.id).is_some();
            let part = conformance::part(bytes, *segment, run);
            let outcome = store.mend(ChunkTree::build(bytes), run, part).await;
            assert_eq!(outcome.is_ok(), known, "{outcome:?}");
            if known {
                chunks.held.extend(run.iter());
                chunks.bad.retain(|chunk| !run.iter().contains(chunk));
            }
        }
        8 if !chunks.held.is_empty() => {
            let bad: Vec<u32> = chunks.bad.iter().copied().collect();
            assert_eq!(store.reverify(segment.id).await.unwrap(), bad);
            chunks.lose(&bad);
        }
        _ => {
            let stamp = store.touch(vec![segment.id], Duration::from_secs(60)).await.unwrap()[0];
            assert_eq!(stamp > 0, chunks.held.len() == segment.chunks() as usize);
        }
    }
}

fn assert_same(store: &SledStore, model: &Model, samples: &[(Bytes, Segment)]) {
    for (at, (_, segment)) in samples.iter().enumerate() {
        let want = model.get(&at).cloned().unwrap_or_default().held;
        let held = store.held(&segment.id).map(|held| held.presence);
        let got = segment.all().iter().filter(|chunk| held.as_ref().is_some_and(|held| held.has_chunk(*chunk)));
        assert_eq!(got.collect::<BTreeSet<_>>(), want);
        let is_whole = want.len() == segment.chunks() as usize;
        assert_eq!(store.inventory().contains(&(segment.id, is_whole)), !want.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn random_operations_and_restarts_agree_with_the_model() {
    let samples = samples();
    for seed in 0..4 {
        let mut dice = StdRng::seed_from_u64(seed);
        let (dir, mut model) = (folder(), Model::new());
        for _ in 0..4 {
            // Closing brings all to the disk, so opening verifies nothing: what is bad, a reader finds.
            let store = open_on(StoreConfig { inline_up_to: 70_000, ..config(dir.path()) }, Arc::new(RealDisk)).await;
            let store = store.unwrap();
            assert_same(&store, &model, &samples);
            for _ in 0..50 {
                step(&store, &mut dice, &mut model, &samples).await;
                assert_same(&store, &model, &samples);
            }
            store.close().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_menders_and_writers_on_the_same_segments_never_see_a_wrong_byte() {
    let dir = folder();
    let (store, samples) = (open(dir.path()).await, samples());
    for (bytes, _) in &samples {
        put(&store, bytes, AckLevel::Close).await.unwrap();
    }
    let tasks = (0..8u64).map(|seed| {
        let (store, samples) = (store.clone(), samples.clone());
        tokio::task::spawn_blocking(move || {
            let mut dice = StdRng::seed_from_u64(seed);
            let runtime = tokio::runtime::Handle::current();
            for _ in 0..60 {
                let (bytes, segment) = &samples[dice.random_range(0..samples.len())];
                let run = run_of(&mut dice, *segment);
                match dice.random_range(0..6) {
                    0..3 => match runtime.block_on(store.read(segment.id, run)) {
                        Ok(got) => assert!(got == conformance::part(bytes, *segment, run)),
                        Err(StoreError::Missing(_) | StoreError::Partial(_) | StoreError::Corrupt { .. }) => {}
                        Err(other) => panic!("{other:?}"),
                    },
                    3 => {
                        let part = conformance::part(bytes, *segment, run);
                        runtime.block_on(store.mend(ChunkTree::build(bytes), run, part)).unwrap();
                    }
                    4 => {
                        let (reply, answer) = oneshot::channel();
                        let written = store.core.index.get(&segment.id).unwrap().written;
                        let chunks = commit::Lost::Some(run.iter().collect());
                        let change = Change::Drop { id: segment.id, written, chunks, reply: Some(reply) };
                        assert!(store.core.commits.send(change).is_ok());
                        answer.blocking_recv().unwrap();
                    }
                    _ => match runtime.block_on(put(&store, bytes, AckLevel::Fsync)) {
                        // Whole when its bytes came, and not any more when they were committed.
                        Ok(_) | Err(StoreError::Missing(_)) => {}
                        Err(other) => panic!("{other:?}"),
                    },
                }
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    for (bytes, segment) in &samples {
        put(&store, bytes, AckLevel::Close).await.unwrap();
        assert!(store.read(segment.id, segment.all()).await.unwrap() == *bytes);
    }
    assert_sound(&store).await;
}
