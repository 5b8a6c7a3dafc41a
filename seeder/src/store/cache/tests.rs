//! What the cache promises: it never serves what did not verify, stays within its limit, and survives.

mod room;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use swarm_proto::settings::ByteCount;
use swarm_proto::{
    ByteRange, CHUNK_BYTES, ChunkRange, ChunkTree, Extent, Manifest, ManifestDigest, Presence, Segment, SegmentId,
};
use tempfile::TempDir;

use super::{CacheConfig, CacheFile, CacheStore};
use crate::store::conformance::{self, Subject};
use crate::store::{ChunkStore, StoreError};

const CHUNK: u64 = CHUNK_BYTES as u64;

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

/// A file, its manifest, and the bytes of every segment.
struct Sample {
    bytes: Vec<u8>,
    manifest: Arc<Manifest>,
    digest: ManifestDigest,
    segments: Vec<(ChunkTree, Bytes)>,
}

impl Sample {
    /// Cut into segments of `segment` bytes.
    fn plain(length: usize, segment: usize, seed: u64) -> Self {
        let bytes = noise(length, seed);
        let segments: Vec<_> =
            bytes.chunks(segment).map(|part| (ChunkTree::build(part), Bytes::copy_from_slice(part))).collect();
        let extents = segments.iter().map(|(tree, _)| Extent::whole(tree.segment())).collect();
        Self::of(extents, segments)
    }

    fn of(extents: Vec<Extent>, segments: Vec<(ChunkTree, Bytes)>) -> Self {
        let mut bytes = Vec::new();
        for extent in &extents {
            match extent {
                Extent::Hole { length } => bytes.resize(bytes.len() + usize::try_from(*length).unwrap(), 0),
                Extent::Data { segment, offset_in_segment, length } => {
                    let (_, data) = segments.iter().find(|(tree, _)| tree.segment() == *segment).unwrap();
                    let at = *offset_in_segment as usize;
                    bytes.extend_from_slice(&data[at..at + *length as usize]);
                }
            }
        }
        let manifest = Arc::new(Manifest::new(extents).unwrap());
        Self { digest: manifest.digest(), bytes, manifest, segments }
    }

    /// One segment.
    fn whole(bytes: Bytes) -> Self {
        let tree = ChunkTree::build(&bytes);
        Self::of(vec![Extent::whole(tree.segment())], vec![(tree, bytes)])
    }

    fn data_of(&self, id: SegmentId) -> &(ChunkTree, Bytes) {
        self.segments.iter().find(|(tree, _)| tree.segment().id == id).unwrap()
    }

    fn all(&self) -> ByteRange {
        ByteRange::at(0, self.manifest.size())
    }

    fn open(&self, store: &CacheStore) -> Arc<CacheFile> {
        store.file(self.digest, self.manifest.clone()).unwrap()
    }

    /// Put what is missing of `range`.
    fn fill(&self, file: &CacheFile, range: ByteRange) -> Result<(), StoreError> {
        file.missing(range).into_iter().try_for_each(|run| self.put(file, run.extent, run.segment, run.chunks))
    }

    fn put(&self, file: &CacheFile, extent: usize, segment: Segment, chunks: ChunkRange) -> Result<(), StoreError> {
        let (tree, data) = self.data_of(segment.id);
        let part = segment.bytes_of(chunks);
        let part = data.slice(usize::try_from(part.start).unwrap()..usize::try_from(part.end).unwrap());
        file.write(extent, tree, chunks, &part)
    }

    fn expect(&self, file: &CacheFile, range: ByteRange) {
        let want = &self.bytes[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()];
        assert!(file.read(range).unwrap() == want, "wrong bytes at {range:?}");
    }
}

fn config(dir: &Path, size: u64) -> CacheConfig {
    CacheConfig { dir: dir.to_owned(), size: ByteCount(size), free_space_ratio: 0.0, spare_bytes: 0 }
}

/// A folder in memory where there is one: these tests sync often, and a busy disk would make them slow.
fn quick_dir() -> TempDir {
    TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap()
}

fn store() -> (TempDir, Arc<CacheStore>) {
    let dir = quick_dir();
    let store = CacheStore::open(config(dir.path(), 1 << 30)).unwrap();
    (dir, store)
}

fn path_of(dir: &Path, digest: &ManifestDigest, kind: &str) -> PathBuf {
    let name = digest.to_string();
    dir.join("files").join(&name[..2]).join(format!("{name}.{kind}"))
}

fn flip(path: &Path, at: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

fn disk_use(dir: &Path) -> u64 {
    let mut total = 0;
    for entry in fs::read_dir(dir).unwrap().flatten() {
        // Another thread may have removed it meanwhile.
        let Ok(meta) = entry.metadata() else { continue };
        total += if meta.is_dir() { disk_use(&entry.path()) } else { meta.blocks() * 512 };
    }
    total
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_folder(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}

/// The cache for the suite that every store passes.
#[derive(Default)]
struct Cached(Mutex<Vec<TempDir>>);

impl Subject for Cached {
    type Store = CacheStore;

    fn open(&self) -> BoxFuture<'_, Arc<CacheStore>> {
        let dir = TempDir::new().unwrap();
        let store = CacheStore::open(config(dir.path(), 64 << 20)).unwrap();
        self.0.lock().push(dir);
        async { store }.boxed()
    }

    fn put<'a>(&'a self, store: &'a Arc<CacheStore>, bytes: Bytes) -> BoxFuture<'a, ()> {
        let sample = Sample::whole(bytes);
        sample.fill(&sample.open(store), sample.all()).unwrap();
        async {}.boxed()
    }

    fn rot(&self, _store: &Arc<CacheStore>, segment: Segment, chunk: u32) -> bool {
        let digest = Manifest::new(vec![Extent::whole(segment)]).unwrap().digest();
        let dirs = self.0.lock();
        flip(&path_of(dirs.last().unwrap().path(), &digest, "data"), u64::from(chunk) * CHUNK + 77);
        true
    }
}

#[tokio::test]
async fn it_does_what_every_store_does() {
    conformance::chunk_store(&Cached::default()).await;
}

/// Slices that begin and end inside chunks, a hole, and one segment shown twice.
fn sliced() -> Sample {
    let segments: Vec<_> = [(300_000, 1), (90_000, 2), (10_000, 3)]
        .map(|(length, seed)| noise(length, seed))
        .map(|data| (ChunkTree::build(&data), Bytes::from(data)))
        .into();
    let of = |index: usize, offset_in_segment, length| {
        let segment = segments[index].0.segment();
        Extent::Data { segment, offset_in_segment, length }
    };
    let extents = vec![
        of(0, 5_000, 200_000),
        Extent::Hole { length: 70_000 },
        of(1, 17_000, 10),
        of(2, 0, 10_000),
        of(0, 250_001, 49_999),
        Extent::Hole { length: 12_345 },
    ];
    Sample::of(extents, segments)
}

#[test]
fn what_was_written_is_read_and_only_that_is_missing() {
    // A real disk, where there is reading at once.
    let dir = TempDir::new().unwrap();
    let store = CacheStore::open(config(dir.path(), 1 << 30)).unwrap();
    let sample = Sample::plain(1_000_000, 300_000, 7);
    let file = sample.open(&store);
    assert_eq!(file.cached_bytes(), 0);
    assert!(matches!(file.read(ByteRange::at(0, 1)), Err(StoreError::Partial(_))));
    let middle = ByteRange::at(310_000, 4096);
    let [run] = file.missing(middle)[..] else { panic!("one chunk is missing") };
    assert_eq!((run.extent, run.chunks), (1, ChunkRange::new(0, 1)));
    sample.fill(&file, middle).unwrap();
    sample.expect(&file, middle);
    assert_eq!(file.cached_bytes(), CHUNK);
    assert!(file.complete().is_none());
    sample.fill(&file, sample.all()).unwrap();
    sample.expect(&file, sample.all());
    assert_eq!(file.read_at_once(middle).unwrap(), sample.bytes[310_000..314_096]);
    assert_eq!(file.cached_bytes(), 1_000_000);
    let whole = file.complete().unwrap();
    let mut seen = vec![0; 1_000_000];
    whole.read_exact_at(&mut seen, 0).unwrap();
    assert!(seen == sample.bytes);
    assert!(whole.write_at(&[0], 0).is_err(), "the kernel's handle must not write");
}

#[test]
fn slices_holes_and_repetitions_survive_a_restart_and_serve_whole_chunks() {
    let (dir, store) = store();
    let sample = sliced();
    let file = sample.open(&store);
    sample.fill(&file, sample.all()).unwrap();
    sample.expect(&file, sample.all());
    store.flush();
    drop((file, store));
    let store = CacheStore::open(config(dir.path(), 1 << 30)).unwrap();
    let file = store.cached_file(&sample.digest).unwrap();
    assert!(file.missing(sample.all()).is_empty());
    assert!(file.complete().is_none(), "nothing was verified by this process");
    sample.expect(&file, sample.all());
    assert!(file.complete().is_some());
    // The edges were cut inside chunks, yet peers get whole ones.
    let segment = sample.segments[0].0.segment();
    let held = store.held(&segment.id).unwrap();
    let Presence::Partial(chunks) = held.presence else { panic!("chunks 13 and 14 are in no slice") };
    assert_eq!(chunks.gaps(segment.all()), vec![ChunkRange::new(13, 15)]);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for run in [ChunkRange::new(0, 13), ChunkRange::new(15, segment.chunks())] {
        let served = runtime.block_on(store.read(segment.id, run)).unwrap();
        sample.segments[0].0.check(run, &served).unwrap();
    }
    assert!(matches!(runtime.block_on(store.read(segment.id, ChunkRange::new(12, 16))), Err(StoreError::Partial(_))));
}

#[test]
fn a_byte_flipped_anywhere_while_down_is_never_served() {
    let sample = Sample::plain(400_000, 150_000, 3);
    let (dir, store) = store();
    let file = sample.open(&store);
    sample.fill(&file, sample.all()).unwrap();
    store.flush();
    drop((file, store));
    let pristine = quick_dir();
    copy_folder(dir.path(), pristine.path());
    let meta_length = fs::metadata(path_of(dir.path(), &sample.digest, "meta")).unwrap().len();
    let flips =
        (0..400_000u64).step_by(9_973).map(|at| ("data", at)).chain((0..meta_length).step_by(3).map(|at| ("meta", at)));
    let mut lost = 0;
    for (kind, at) in flips {
        let dir = quick_dir();
        copy_folder(pristine.path(), dir.path());
        flip(&path_of(dir.path(), &sample.digest, kind), at);
        let store = CacheStore::open(config(dir.path(), 1 << 30)).unwrap();
        let file = sample.open(&store);
        // Read until all that is wrong was found; nothing wrong comes out on the way.
        let mut rounds = 0;
        loop {
            match file.read(sample.all()) {
                Ok(bytes) => {
                    assert!(bytes == sample.bytes, "{kind} byte {at}: wrong bytes were served");
                    break;
                }
                Err(_) => {
                    lost += u32::from(rounds == 0);
                    sample.fill(&file, sample.all()).unwrap();
                }
            }
            rounds += 1;
            assert!(rounds < 10, "{kind} byte {at}: never mended");
        }
        assert!(file.complete().is_some());
    }
    assert!(lost > 40, "only {lost} flips were noticed");
}

#[test]
fn one_flipped_byte_costs_one_chunk() {
    let sample = Sample::plain(1_000_000, 500_000, 4);
    let (dir, store) = store();
    let file = sample.open(&store);
    sample.fill(&file, sample.all()).unwrap();
    store.flush();
    drop((file, store));
    flip(&path_of(dir.path(), &sample.digest, "data"), 700_000);
    let store = CacheStore::open(config(dir.path(), 1 << 30)).unwrap();
    let mut changes = store.changes();
    let file = sample.open(&store);
    assert!(matches!(file.read(sample.all()), Err(StoreError::Corrupt { chunk: 12, .. })));
    let [run] = file.missing(sample.all())[..] else { panic!("exactly the bad chunk is missing") };
    assert_eq!((run.extent, run.chunks), (1, ChunkRange::new(12, 13)));
    assert_eq!(changes.try_recv().unwrap(), sample.segments[1].0.segment().id);
    sample.expect(&file, ByteRange::at(0, 500_000));
    // The loss is remembered, too.
    store.flush();
    drop((file, store));
    let store = CacheStore::open(config(dir.path(), 1 << 30)).unwrap();
    assert_eq!(sample.open(&store).missing(sample.all()), vec![run]);
}

#[tokio::test]
async fn a_peer_is_served_nothing_that_rotted_while_running() {
    let (dir, store) = store();
    let sample = Sample::plain(200_000, 200_000, 5);
    let segment = sample.segments[0].0.segment();
    let file = sample.open(&store);
    sample.fill(&file, sample.all()).unwrap();
    assert_eq!(store.inventory(), vec![(segment.id, true)]);
    let served = store.read(segment.id, segment.all()).await.unwrap();
    assert!(served == sample.bytes);
    assert_eq!(store.tree(segment.id).await.unwrap(), sample.segments[0].0);
    flip(&path_of(dir.path(), &sample.digest, "data"), 40_000);
    assert!(matches!(store.read(segment.id, ChunkRange::new(1, 5)).await, Err(StoreError::Corrupt { chunk: 2, .. })));
    assert_eq!(store.inventory(), vec![(segment.id, false)]);
    assert!(matches!(store.read(segment.id, segment.all()).await, Err(StoreError::Partial(_))));
    flip(&path_of(dir.path(), &sample.digest, "data"), 0);
    assert_eq!(store.reverify(segment.id).await.unwrap(), vec![0]);
    assert!(!store.held(&segment.id).unwrap().presence.has_chunk(0));
    assert!(matches!(store.read(SegmentId::new([9; 32]), ChunkRange::new(0, 1)).await, Err(StoreError::Missing(_))));
}

#[tokio::test]
async fn a_file_that_the_kernel_reads_is_replaced_not_mended() {
    let (dir, store) = store();
    let sample = Sample::plain(100_000, 100_000, 6);
    let segment = sample.segments[0].0.segment();
    let file = sample.open(&store);
    sample.fill(&file, sample.all()).unwrap();
    let kernels = file.complete().unwrap();
    let data = path_of(dir.path(), &sample.digest, "data");
    flip(&data, 50_000);
    assert!(store.read(segment.id, segment.all()).await.is_err());
    assert!(!data.exists(), "the name is free for a good copy");
    assert!(matches!(sample.fill(&file, sample.all()), Err(StoreError::Full)), "the old file is not written");
    assert_eq!(kernels.metadata().unwrap().len(), 100_000);
    let fresh = sample.open(&store);
    sample.fill(&fresh, sample.all()).unwrap();
    sample.expect(&fresh, sample.all());
    assert_ne!(kernels.metadata().unwrap().ino(), fresh.complete().unwrap().metadata().unwrap().ino());
}

#[test]
fn a_file_that_was_stored_to_while_the_kernel_had_it_is_trusted_no_more() {
    for at_once in [true, false] {
        // A real disk, where there is reading at once.
        let dir = TempDir::new().unwrap();
        let store = CacheStore::open(config(dir.path(), 1 << 30)).unwrap();
        let sample = Sample::plain(100_000, 50_000, 7);
        let file = sample.open(&store);
        sample.fill(&file, sample.all()).unwrap();
        let kernels = file.complete().unwrap();
        assert!(file.complete().is_some(), "still");
        assert!(file.read_at_once(ByteRange::at(0, 10)).is_some());
        let data = path_of(dir.path(), &sample.digest, "data");
        flip(&data, 70_000);
        // Also of a chunk that is as it was: the next store may go there, and tells nothing.
        match at_once {
            true => assert!(file.read_at_once(ByteRange::at(0, 10)).is_none()),
            false => assert!(file.complete().is_none(), "it is given to the kernel no more"),
        }
        assert!(file.read(ByteRange::at(0, 10)).is_err());
        assert!(!data.exists(), "the name is free for a good copy");
        assert_eq!(file.missing(sample.all()).len(), 2);
        let fresh = sample.open(&store);
        sample.fill(&fresh, sample.all()).unwrap();
        sample.expect(&fresh, sample.all());
        assert_ne!(kernels.metadata().unwrap().ino(), fresh.complete().unwrap().metadata().unwrap().ino());
    }
}

#[test]
fn killed_at_any_moment_it_opens_and_serves_nothing_wrong() {
    let (dir, store) = store();
    let sample = Sample::plain(2_000_000, 400_000, 11);
    let small = Sample::plain(20, 20, 12);
    let file = sample.open(&store);
    let check = |after: &str, least: u64| {
        let copy = quick_dir();
        copy_folder(dir.path(), copy.path());
        let again = CacheStore::open(config(copy.path(), 1 << 30)).unwrap();
        let reopened = sample.open(&again);
        assert!(reopened.cached_bytes() >= least, "{after}: flushed chunks were lost");
        while reopened.read(sample.all()).is_err() {
            sample.fill(&reopened, sample.all()).unwrap();
        }
        sample.expect(&reopened, sample.all());
    };
    check("before the first write", 0);
    let mut flushed = 0;
    for (step, at) in (0..2_000_000).step_by(150_000).enumerate() {
        sample.fill(&file, ByteRange::at(at, 40_000).intersect(sample.all())).unwrap();
        check("after a write", flushed);
        if step % 3 == 0 {
            store.flush();
            flushed = file.cached_bytes();
            check("after a flush", flushed);
        }
    }
    assert!(flushed > 0);
    let tiny = small.open(&store);
    small.fill(&tiny, small.all()).unwrap();
    store.flush();
    // Cut in the middle of making a file: any prefix of it.
    let meta = fs::read(path_of(dir.path(), &small.digest, "meta")).unwrap();
    for cut in 0..=meta.len() {
        let copy = quick_dir();
        copy_folder(dir.path(), copy.path());
        fs::write(path_of(copy.path(), &small.digest, "meta"), &meta[..cut]).unwrap();
        let again = CacheStore::open(config(copy.path(), 1 << 30)).unwrap();
        let file = small.open(&again);
        while file.read(small.all()).is_err() {
            small.fill(&file, small.all()).unwrap();
        }
        small.expect(&file, small.all());
    }
}

#[test]
fn bits_are_on_disk_only_after_a_flush() {
    let (dir, store) = store();
    let sample = Sample::plain(100_000, 100_000, 1);
    let file = sample.open(&store);
    sample.fill(&file, sample.all()).unwrap();
    for (flush, cached) in [(false, 0), (true, 100_000)] {
        if flush {
            store.flush();
        }
        let copy = TempDir::new().unwrap();
        copy_folder(dir.path(), copy.path());
        let again = CacheStore::open(config(copy.path(), 1 << 30)).unwrap();
        assert_eq!(sample.open(&again).cached_bytes(), cached);
    }
}

#[test]
fn segments_that_a_new_version_shares_are_copied_not_missed() {
    let (_dir, store) = store();
    let old = Sample::plain(400_000, 100_000, 1);
    let file = old.open(&store);
    old.fill(&file, old.all()).unwrap();
    let edit = noise(5_000, 77);
    let mut segments = old.segments.clone();
    segments.push((ChunkTree::build(&edit), Bytes::from(edit)));
    let kept = |index: usize| Extent::whole(segments[index].0.segment());
    let cut = Extent::Data { segment: segments[2].0.segment(), offset_in_segment: 5_000, length: 95_000 };
    let new = Sample::of(vec![kept(0), kept(4), cut, kept(3)], segments);
    let fresh = new.open(&store);
    let runs = fresh.missing(new.all());
    let adopted: Vec<bool> = runs.iter().map(|run| fresh.can_adopt(run) && fresh.adopt(run)).collect();
    assert_eq!(adopted, [true, false, true, true]);
    assert_eq!(fresh.missing(new.all()).iter().map(|run| run.extent).collect::<Vec<_>>(), [1]);
    new.fill(&fresh, new.all()).unwrap();
    new.expect(&fresh, new.all());
}

#[test]
fn wrong_lengths_trees_and_manifests_are_refused() {
    let (_dir, store) = store();
    let sample = Sample::plain(100_000, 50_000, 1);
    let file = sample.open(&store);
    let (tree, data) = &sample.segments[0];
    let (other, _) = &sample.segments[1];
    for (extent, tree, chunks, bytes) in [
        (0, other, ChunkRange::new(0, 1), data.slice(..16_384)),
        (0, tree, ChunkRange::new(0, 1), data.slice(..16_383)),
        (0, tree, ChunkRange::new(3, 9), data.clone()),
        (7, tree, ChunkRange::new(0, 1), data.slice(..16_384)),
    ] {
        assert!(matches!(file.write(extent, tree, chunks, &bytes), Err(StoreError::Mismatch(_))));
    }
    assert_eq!(file.cached_bytes(), 0);
    let wrong = store.file(ManifestDigest::new([1; 32]), sample.manifest.clone());
    assert!(matches!(wrong.err(), Some(StoreError::Unusable(_))));
}

#[test]
fn a_folder_in_use_or_not_a_cache_is_refused_in_words() {
    let (dir, _store) = store();
    let text = |dir: &Path| CacheStore::open(config(dir, 1)).err().unwrap().to_string();
    assert!(text(dir.path()).contains("uses it"), "{}", text(dir.path()));
    let foreign = TempDir::new().unwrap();
    fs::write(foreign.path().join("thesis.tex"), "x").unwrap();
    assert!(text(foreign.path()).contains("thesis.tex"));
    let newer = TempDir::new().unwrap();
    fs::write(newer.path().join("VERSION"), "swarmfs cache 9\n").unwrap();
    assert!(text(newer.path()).contains("another program"));
}

#[test]
fn an_unused_handle_leaves_nothing_behind() {
    let (dir, store) = store();
    let sample = Sample::plain(100_000, 50_000, 1);
    drop(sample.open(&store));
    assert!(store.manifest(&sample.digest).is_none());
    assert_eq!(disk_use(&dir.path().join("files")), 0);
    assert!(store.inventory().is_empty());
}

#[test]
fn files_removed_behind_its_back_are_made_anew() {
    let (dir, store) = store();
    let sample = Sample::plain(100_000, 50_000, 1);
    let file = sample.open(&store);
    sample.fill(&file, sample.all()).unwrap();
    drop(file);
    fs::remove_dir_all(dir.path().join("files")).unwrap();
    fs::create_dir(dir.path().join("files")).unwrap();
    // More files than stay open idle: the removed one is opened again.
    for seed in 0..200 {
        let other = Sample::plain(20, 20, 1000 + seed);
        other.fill(&other.open(&store), other.all()).unwrap();
    }
    let file = sample.open(&store);
    assert!(file.read(sample.all()).is_err());
    assert_eq!(file.missing(sample.all()).len(), 2);
    assert!(sample.fill(&file, sample.all()).is_err());
    drop(file);
    let file = sample.open(&store);
    sample.fill(&file, sample.all()).unwrap();
    sample.expect(&file, sample.all());
    store.flush();
    drop((file, store));
    let store = CacheStore::open(config(dir.path(), 1 << 30)).unwrap();
    assert_eq!(store.cached_file(&sample.digest).unwrap().cached_bytes(), 100_000);
}
