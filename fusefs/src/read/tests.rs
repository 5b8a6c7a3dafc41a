//! Reading against a source that counts, waits and fails as it is told.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use prometheus::Registry;
use swarm_proto::settings::ByteCount;
use swarm_proto::{ChunkRange, ChunkTree, Extent, Manifest, ManifestDigest, Segment, SegmentId};
use swarm_seeder::store::cache::{CacheConfig, CacheStore};
use swarm_seeder::swarm::{FetchError, Fetched, Urgency, Want};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{ChunkSource, OpenFile, ReadConfig, ReadEngine, ReadError};

const MIB: usize = 1 << 20;

/// Peers that hold everything, in memory.
#[derive(Default)]
struct Peers {
    segments: Mutex<HashMap<SegmentId, (ChunkTree, Bytes)>>,
    wants: Mutex<Vec<Want>>,
    bytes: AtomicU64,
    withdrawn: AtomicU64,
    /// Nothing is answered while this is true.
    shut: watch::Sender<bool>,
    /// Ahead wants are never answered.
    only_readers: AtomicBool,
    nobody_holds_it: AtomicBool,
}

struct Withdrawn(Option<Arc<Peers>>);

impl Withdrawn {
    fn answered(mut self) {
        self.0 = None;
    }
}

impl Drop for Withdrawn {
    fn drop(&mut self) {
        if let Some(peers) = &self.0 {
            peers.withdrawn.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl Peers {
    fn shut(&self, shut: bool) {
        self.shut.send_replace(shut);
    }

    fn wants(&self) -> Vec<Want> {
        self.wants.lock().clone()
    }

    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::SeqCst)
    }

    fn add(&self, data: &[u8]) -> Segment {
        let tree = ChunkTree::build(data);
        self.segments.lock().insert(tree.segment().id, (tree.clone(), Bytes::copy_from_slice(data)));
        tree.segment()
    }
}

impl ChunkSource for Peers {
    fn fetch(self: Arc<Self>, want: Want) -> BoxFuture<'static, Result<Fetched, FetchError>> {
        self.wants.lock().push(want);
        let guard = Withdrawn(Some(self.clone()));
        Box::pin(async move {
            let error = FetchError::NoHolder { segment: want.segment, chunks: want.chunks };
            let answer = async {
                if self.nobody_holds_it.load(Ordering::SeqCst)
                    || (want.urgency == Urgency::Ahead && self.only_readers.load(Ordering::SeqCst))
                {
                    std::future::pending::<()>().await;
                }
                let _ = self.shut.subscribe().wait_for(|shut| !shut).await;
            };
            let answered = tokio::time::timeout_at(want.deadline.into(), answer).await;
            guard.answered();
            answered.map_err(|_| error)?;
            let (tree, data) = self.segments.lock()[&want.segment.id].clone();
            let part = want.segment.bytes_of(want.chunks);
            self.bytes.fetch_add(part.len(), Ordering::SeqCst);
            let at = |byte: u64| usize::try_from(byte).unwrap();
            let pieces = vec![(want.chunks, data.slice(at(part.start)..at(part.end)))];
            Ok(Fetched { tree, pieces })
        })
    }

    fn expect(&self, _ids: &[SegmentId]) {}

    fn knows_tree(&self, _id: &SegmentId) -> bool {
        true
    }

    fn remember_tree(&self, _tree: ChunkTree) {}
}

struct Mount {
    dir: Arc<TempDir>,
    peers: Arc<Peers>,
    cache: Arc<CacheStore>,
    engine: Arc<ReadEngine>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

#[derive(Clone)]
struct Sample {
    bytes: Vec<u8>,
    digest: ManifestDigest,
    manifest: Arc<Manifest>,
}

impl Mount {
    fn with(config: ReadConfig, cache_bytes: u64) -> Self {
        // In memory where that is possible: a busy disk would make the tests slow.
        let dir = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap();
        Self::at(Arc::new(dir), Arc::default(), config, cache_bytes)
    }

    fn new() -> Self {
        Self::with(config(), 1 << 30)
    }

    fn at(dir: Arc<TempDir>, peers: Arc<Peers>, config: ReadConfig, cache_bytes: u64) -> Self {
        let (dir_of_it, size) = (dir.path().join("cache"), ByteCount(cache_bytes));
        let cache = CacheConfig { dir: dir_of_it, size, free_space_ratio: 0.0, spare_bytes: 0 };
        let cache = CacheStore::open(cache).unwrap();
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let engine =
            ReadEngine::new(cache.clone(), peers.clone(), config, &Registry::new(), tasks.clone(), stop.clone());
        Self { dir, peers, cache, engine, tasks, stop }
    }

    /// A file of `length` bytes in segments of `segment`, which the peers hold.
    fn file(&self, length: usize, segment: usize, seed: u64) -> Sample {
        let bytes = noise(length, seed);
        let extents = bytes.chunks(segment).map(|part| Extent::whole(self.peers.add(part))).collect();
        sample(bytes, extents)
    }

    fn open(&self, sample: &Sample) -> Arc<OpenFile> {
        self.engine.open(sample.digest, sample.manifest.clone()).unwrap()
    }

    async fn settled(&self) {
        until(|| {
            let stats = self.engine.stats();
            stats.written_bytes + stats.uncached_bytes >= stats.fetched_bytes
        })
        .await;
    }

    async fn close(self) -> (Arc<TempDir>, Arc<Peers>) {
        self.stop.cancel();
        self.tasks.close();
        tokio::time::timeout(Duration::from_secs(60), self.tasks.wait()).await.expect("all tasks end");
        (self.dir, self.peers)
    }
}

fn config() -> ReadConfig {
    ReadConfig { max_readahead: 8 << 20, read_timeout: Duration::from_secs(60), memory: Some(64 << 20) }
}

fn sample(bytes: Vec<u8>, extents: Vec<Extent>) -> Sample {
    let manifest = Arc::new(Manifest::new(extents).unwrap());
    Sample { bytes, digest: manifest.digest(), manifest }
}

fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        out.extend_from_slice(&(state ^ (state >> 29)).to_le_bytes());
    }
    out.truncate(length);
    out
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

async fn until(condition: impl Fn() -> bool) {
    let deadline = soon();
    while !condition() {
        assert!(Instant::now() < deadline, "it never happened");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn expect(file: &OpenFile, sample: &Sample, offset: usize, length: usize) {
    let got = file.read(offset as u64, u32::try_from(length).unwrap(), soon()).await.unwrap();
    let end = (offset + length).min(sample.bytes.len());
    assert!(got == sample.bytes[offset.min(end)..end], "wrong bytes at {offset}, {length}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_read_as_it_is_whatever_the_requests() {
    let mount = Mount::new();
    let sample = mount.file(3 * MIB + 12_345, MIB + 5_000, 1);
    let file = mount.open(&sample);
    for length in [4096, 100_000, MIB] {
        for offset in (0..sample.bytes.len()).step_by(length) {
            expect(&file, &sample, offset, length).await;
        }
    }
    expect(&file, &sample, sample.bytes.len() - 10, 100).await;
    expect(&file, &sample, sample.bytes.len(), 100).await;
    expect(&file, &sample, sample.bytes.len() + 5_000, 100).await;
    assert_eq!(mount.peers.bytes(), sample.bytes.len() as u64, "every byte came once");
    mount.settled().await;
    let mut whole = vec![0; sample.bytes.len()];
    std::os::unix::fs::FileExt::read_exact_at(&*file.passthrough().unwrap(), &mut whole, 0).unwrap();
    assert!(whole == sample.bytes);
    mount.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slices_and_holes_are_put_together() {
    let mount = Mount::new();
    let data = noise(500_000, 3);
    let segment = mount.peers.add(&data);
    let mut bytes = data[20_001..220_001].to_vec();
    bytes.resize(bytes.len() + 2_000_000, 0);
    bytes.extend_from_slice(&data[5..90]);
    bytes.extend_from_slice(&data[210_000..500_000]);
    let of = |offset_in_segment, length| Extent::Data { segment, offset_in_segment, length };
    let extents = vec![of(20_001, 200_000), Extent::Hole { length: 2_000_000 }, of(5, 85), of(210_000, 290_000)];
    let sample = sample(bytes, extents);
    let file = mount.open(&sample);
    for (offset, length) in [(199_990, 20), (0, MIB), (MIB, MIB), (2 * MIB, MIB), (2_199_990, 100_000)] {
        expect(&file, &sample, offset, length).await;
    }
    mount.settled().await;
    for offset in (0..sample.bytes.len()).step_by(77_777) {
        expect(&file, &sample, offset, 77_777).await;
    }
    mount.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_read_moves_exactly_its_chunk() {
    let mount = Mount::new();
    let sample = mount.file(40 * MIB, 4 * MIB, 2);
    let file = mount.open(&sample);
    expect(&file, &sample, 20 * MIB + 40_000, 4096).await;
    assert_eq!(mount.peers.bytes(), 16 * 1024);
    let [want] = mount.peers.wants()[..] else { panic!("one want") };
    assert_eq!((want.chunks, want.urgency), (ChunkRange::new(2, 3), Urgency::Reader));
    let mut at = 1usize;
    for _ in 0..100 {
        at = (at * 48_271) % 2_147_483_647;
        expect(&file, &sample, (at % (40 * MIB)) / 4096 * 4096, 4096).await;
    }
    assert!(mount.peers.bytes() <= 101 * 16 * 1024, "{} bytes for 101 reads", mount.peers.bytes());
    mount.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_readers_of_a_chunk_cost_one_fetch() {
    let mount = Mount::new();
    let sample = mount.file(MIB, MIB, 2);
    mount.peers.shut(true);
    let files: Vec<_> = (0..8).map(|_| mount.open(&sample)).collect();
    let readers: Vec<_> = (files.iter().cloned())
        .map(|file| mount.tasks.spawn(async move { file.read(100_000, 50_000, soon()).await.unwrap() }))
        .collect();
    until(|| mount.engine.stats().reads == 8).await;
    mount.peers.shut(false);
    for reader in readers {
        assert!(reader.await.unwrap() == sample.bytes[100_000..150_000]);
    }
    assert_eq!(mount.peers.wants().len(), 1);
    mount.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sequential_reader_is_fetched_ahead_in_aligned_runs() {
    let mount = Mount::new();
    let sample = mount.file(32 * MIB, 4 * MIB, 2);
    let file = mount.open(&sample);
    for step in 0..6 {
        expect(&file, &sample, step * MIB, MIB).await;
    }
    let ahead: Vec<_> = mount.peers.wants().into_iter().filter(|want| want.urgency == Urgency::Ahead).collect();
    assert!(ahead.len() >= 4, "{ahead:?}");
    assert!(ahead.iter().all(|want| want.chunks.start % 64 == 0 && want.chunks.len() == 64), "{ahead:?}");
    // The window is 8 MiB by now.
    until(|| mount.engine.stats().fetched_bytes == 14 * MIB as u64).await;
    mount.peers.shut(true);
    for step in 6..12 {
        expect(&file, &sample, step * MIB, MIB).await;
    }
    mount.peers.shut(false);
    mount.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_fetched_ahead_hurries_once_a_reader_waits_for_it() {
    let mount = Mount::new();
    let sample = mount.file(8 * MIB, 4 * MIB, 2);
    mount.peers.only_readers.store(true, Ordering::SeqCst);
    let file = mount.open(&sample);
    expect(&file, &sample, 0, MIB).await;
    expect(&file, &sample, MIB, MIB).await;
    until(|| mount.peers.wants().iter().any(|want| want.urgency == Urgency::Ahead)).await;
    // Sooner than what is fetched ahead would give up.
    let hurried = file.read(2 * MIB as u64, 1 << 20, Instant::now() + Duration::from_secs(6)).await.unwrap();
    assert!(hurried == sample.bytes[2 * MIB..3 * MIB]);
    let wants = mount.peers.wants();
    let third = sample.manifest.segments().next().unwrap();
    let both = wants
        .iter()
        .filter(|want| want.segment == third && want.chunks == ChunkRange::new(128, 192))
        .map(|want| want.urgency);
    assert_eq!(both.collect::<Vec<_>>(), [Urgency::Ahead, Urgency::Reader]);
    mount.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_a_file_withdraws_what_was_fetched_ahead() {
    let mount = Mount::new();
    let sample = mount.file(32 * MIB, 4 * MIB, 2);
    mount.peers.only_readers.store(true, Ordering::SeqCst);
    let file = mount.open(&sample);
    for step in 0..2 {
        expect(&file, &sample, step * MIB, MIB).await;
    }
    until(|| mount.peers.wants().len() == 4).await;
    assert_eq!(mount.peers.withdrawn.load(Ordering::SeqCst), 0);
    drop(file);
    until(|| mount.peers.withdrawn.load(Ordering::SeqCst) == 2).await;
    until(|| mount.engine.stats().withdrawn_runs == 2).await;
    mount.settled().await;
    mount.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_of_what_nobody_has_ends_in_time_and_a_later_one_works() {
    let timeout = Duration::from_millis(300);
    let mount = Mount::with(ReadConfig { read_timeout: timeout, ..config() }, 1 << 30);
    let sample = mount.file(MIB, MIB, 2);
    mount.peers.nobody_holds_it.store(true, Ordering::SeqCst);
    let file = mount.open(&sample);
    let begun = Instant::now();
    let error = file.read(0, 4096, soon()).await.unwrap_err();
    assert!(matches!(error, ReadError::NoHolder(_)), "{error}");
    assert!(begun.elapsed() >= timeout / 2);
    // A source that does not keep its deadline is not waited for either, and the caller's own counts too.
    mount.peers.nobody_holds_it.store(false, Ordering::SeqCst);
    mount.peers.shut(true);
    assert!(file.read(0, 4096, Instant::now() + Duration::from_millis(20)).await.is_err());
    mount.peers.shut(false);
    expect(&file, &sample, 0, MIB).await;
    assert_eq!(mount.engine.stats().failed, 2);
    mount.close().await;
}

async fn until_readable(file: &OpenFile) {
    let give_up = soon();
    while file.read(0, 4096, soon()).await.is_err() {
        assert!(Instant::now() < give_up, "it is never tried again");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_failed_after_a_long_wait_fails_at_once_when_it_is_asked_again_and_works_a_moment_later() {
    let timeout = Duration::from_millis(600);
    let mount = Mount::with(ReadConfig { read_timeout: timeout, ..config() }, 1 << 30);
    let sample = mount.file(MIB, MIB, 2);
    mount.peers.nobody_holds_it.store(true, Ordering::SeqCst);
    let file = mount.open(&sample);
    assert!(file.read(0, 256 * 1024, soon()).await.is_err());
    let wants = mount.peers.wants().len();
    // The page that the reader of a readahead wanted.
    assert!(file.read(8192, 4096, soon()).await.is_err());
    assert_eq!(mount.peers.wants().len(), wants, "nobody was asked again");
    mount.peers.nobody_holds_it.store(false, Ordering::SeqCst);
    expect(&file, &sample, 512 * 1024, 4096).await;
    until_readable(&file).await;
    expect(&file, &sample, 0, MIB).await;
    mount.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_does_not_fail_because_an_earlier_one_ran_out_of_time() {
    let mount = Mount::new();
    let sample = mount.file(MIB, MIB, 2);
    mount.peers.shut(true);
    let file = mount.open(&sample);
    let hasty = file.clone();
    let hasty =
        mount.tasks.spawn(async move { hasty.read(0, 4096, Instant::now() + Duration::from_millis(200)).await });
    until(|| mount.peers.wants().len() == 1).await;
    let patient = file.clone();
    let patient = mount.tasks.spawn(async move { patient.read(0, 4096, soon()).await });
    assert!(hasty.await.unwrap().is_err());
    mount.peers.shut(false);
    assert!(patient.await.unwrap().unwrap() == sample.bytes[..4096]);
    mount.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_room_in_the_cache_reads_go_on_within_the_memory_budget() {
    let memory = 6 * MIB as u64;
    let mount = Mount::with(ReadConfig { memory: Some(memory), ..config() }, 0);
    let sample = mount.file(24 * MIB, 4 * MIB, 2);
    let file = mount.open(&sample);
    for _ in 0..2 {
        for offset in (0..sample.bytes.len()).step_by(128 * 1024) {
            expect(&file, &sample, offset, 128 * 1024).await;
            // What a reader waits for is granted always.
            assert!(mount.engine.stats().waiting_bytes <= memory + MIB as u64);
        }
    }
    assert_eq!(file.cached_bytes(), 0);
    // Twice the file, and little of what was fetched ahead thrown away.
    assert!(mount.peers.bytes() < 54 * MIB as u64, "{}", mount.peers.bytes());
    assert_eq!(mount.engine.stats().written_bytes, 0);
    mount.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_mount_reads_its_cache_with_the_swarm_away_and_mends_what_rotted() {
    let mount = Mount::new();
    let sample = mount.file(3 * MIB, MIB, 9);
    let file = mount.open(&sample);
    expect(&file, &sample, 0, MIB).await;
    expect(&file, &sample, MIB, 2 * MIB).await;
    mount.settled().await;
    drop(file);
    let (dir, peers) = mount.close().await;
    let name = sample.digest.to_string();
    let data = dir.path().join("cache/files").join(&name[..2]).join(format!("{name}.data"));
    let rot = std::fs::OpenOptions::new().read(true).write(true).open(data).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&rot, b"rotten", MIB as u64 + 70_000).unwrap();

    peers.shut(true);
    let before = peers.bytes();
    let mount = Mount::at(dir, peers, config(), 1 << 30);
    assert_eq!(mount.engine.cached_manifest(&sample.digest).unwrap(), sample.manifest);
    let file = mount.open(&sample);
    expect(&file, &sample, 0, MIB).await;
    expect(&file, &sample, 2 * MIB, MIB).await;
    mount.peers.shut(false);
    expect(&file, &sample, MIB, MIB).await;
    assert_eq!(mount.peers.bytes() - before, 16 * 1024, "exactly the rotten chunk came again");
    mount.settled().await;
    // All of it is verified in the background, so the kernel may read it by itself.
    until(|| mount.open(&sample).passthrough().is_some()).await;
    drop(mount.cache.clone());
    mount.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_version_fetches_only_what_is_new() {
    let mount = Mount::new();
    let old = mount.file(4 * MIB, MIB, 5);
    let file = mount.open(&old);
    expect(&file, &old, 0, 4 * MIB).await;
    mount.settled().await;
    drop(file);
    let edit = noise(MIB, 99);
    let mut bytes = old.bytes.clone();
    bytes[MIB..2 * MIB].copy_from_slice(&edit);
    let extents = bytes.chunks(MIB).map(|part| Extent::whole(mount.peers.add(part))).collect();
    let new = sample(bytes, extents);
    let before = mount.peers.bytes();
    let file = mount.open(&new);
    expect(&file, &new, 0, 4 * MIB).await;
    assert_eq!(mount.peers.bytes() - before, MIB as u64);
    assert_eq!(mount.engine.stats().adopted_bytes, 3 * MIB as u64);
    mount.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn siblings_are_there_before_they_are_opened() {
    let mount = Mount::new();
    let files: Vec<_> = (0..200).map(|seed| mount.file(16 * 1024 + 100, 4 * MIB, seed)).collect();
    mount.engine.prefetch(files.iter().map(|one| (one.digest, one.manifest.clone())).collect());
    until(|| mount.engine.stats().fetched_bytes >= 200 * (16 * 1024 + 100)).await;
    mount.settled().await;
    mount.peers.shut(true);
    for one in &files {
        let file = mount.open(one);
        assert!(file.passthrough().is_some());
        expect(&file, one, 0, MIB).await;
    }
    mount.peers.shut(false);
    mount.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_ends_readers_at_once_and_keeps_what_was_read() {
    let mount = Mount::new();
    let sample = mount.file(2 * MIB, MIB, 5);
    let file = mount.open(&sample);
    expect(&file, &sample, 0, MIB).await;
    mount.peers.shut(true);
    let waiting = file.clone();
    let reader = mount.tasks.spawn(async move { waiting.read(MIB as u64, 4096, soon()).await });
    until(|| mount.peers.wants().len() == 2).await;
    drop(file);
    let (dir, peers) = mount.close().await;
    assert!(matches!(reader.await.unwrap(), Err(ReadError::Stopping)));
    peers.shut(false);
    let mount = Mount::at(dir, peers, config(), 1 << 30);
    assert_eq!(mount.engine.cached_bytes(&sample.digest), MIB as u64);
    mount.close().await;
}
