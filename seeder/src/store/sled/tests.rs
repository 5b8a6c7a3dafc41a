//! The durable store against the suite, and against what only it must survive.

use std::os::unix::fs::FileExt;
use std::path::Path;

use tempfile::TempDir;

use super::schema::Place;
use super::*;
use crate::store::conformance::{self, Subject};
use crate::store::disk;

/// A store in a folder of its own.
struct Sled {
    inline_up_to: u32,
    dirs: Mutex<Vec<TempDir>>,
}

fn config(dir: &Path) -> StoreConfig {
    StoreConfig { free_floor: Some(0), settle_every: Duration::from_millis(50), ..StoreConfig::new(dir) }
}

impl Subject for Sled {
    type Store = SledStore;

    fn open(&self) -> BoxFuture<'_, Arc<SledStore>> {
        async {
            let dir = tempfile::tempdir().unwrap();
            // Room for 16 segments of 4 MiB, at what they cost.
            let capacity = if self.inline_up_to == u32::MAX { 130 << 20 } else { 66 << 20 };
            let config = StoreConfig { capacity, inline_up_to: self.inline_up_to, ..config(dir.path()) };
            self.dirs.lock().push(dir);
            tokio::task::spawn_blocking(|| SledStore::open(config)).await.unwrap().unwrap()
        }
        .boxed()
    }

    fn put<'a>(&'a self, store: &'a Arc<SledStore>, bytes: Bytes) -> BoxFuture<'a, ()> {
        async move {
            let segment = ChunkTree::build(&bytes).segment();
            conformance::store_one(store.as_ref(), segment, [bytes], AckLevel::Close).await.unwrap();
        }
        .boxed()
    }

    fn rot(&self, store: &Arc<SledStore>, segment: Segment, chunk: u32) -> bool {
        rot(store, segment, chunk);
        true
    }
}

fn rot(store: &SledStore, segment: Segment, chunk: u32) {
    let at = segment.bytes_of(ChunkRange::new(chunk, chunk + 1)).start;
    match store.core.index.get(&segment.id).unwrap().place {
        Place::File => flip(&store.core.home.segment_file(&segment.id), at),
        Place::Inline(number) => {
            let row = Row::Chunk { number: number.get(), chunk };
            let mut value = store.core.database.get(row).unwrap().unwrap();
            value[0] ^= 1;
            store.core.database.put(row, &value);
        }
    }
}

fn flip(path: &Path, at: u64) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

/// A folder in memory where there is one: what is tried here is order, not the machine's disk.
fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    match memory.is_dir() {
        true => tempfile::tempdir_in(memory).unwrap(),
        false => tempfile::tempdir().unwrap(),
    }
}

/// Open a store, off the async threads.
async fn open_on(config: StoreConfig, disk: Arc<dyn Disk>) -> Result<Arc<SledStore>, StoreError> {
    tokio::task::spawn_blocking(|| SledStore::open_on(config, disk)).await.unwrap()
}

async fn open(dir: &Path) -> Arc<SledStore> {
    open_on(config(dir), Arc::new(RealDisk)).await.unwrap()
}

async fn put(store: &Arc<SledStore>, bytes: &Bytes, level: AckLevel) -> Result<Segment, StoreError> {
    let segment = ChunkTree::build(bytes).segment();
    conformance::store_one(store.as_ref(), segment, [bytes.clone()], level).await.map(|()| segment)
}

/// All that a store says it has is there, and nothing lies about that nobody names.
async fn assert_sound(store: &Arc<SledStore>) {
    // Dropped chunks are removed after their group was answered: the next answer comes after that.
    store.touch(Vec::new(), Duration::ZERO).await.unwrap();
    for (id, whole) in store.inventory() {
        let held = store.held(&id).unwrap();
        assert_eq!(held.presence == swarm_proto::Presence::Whole, whole);
        for chunk in held.segment.all().iter().filter(|chunk| held.presence.has_chunk(*chunk)) {
            store.read(id, ChunkRange::new(chunk, chunk + 1)).await.unwrap();
        }
    }
    let core = &store.core;
    assert_eq!(core.disk.list(&core.home.temp()).unwrap(), [], "temporary files are left");
    let files: usize = core
        .disk
        .list(&core.home.segments())
        .unwrap()
        .iter()
        .map(|fan| core.disk.list(&core.home.segments().join(&fan.name)).unwrap().len())
        .sum();
    let records: Vec<_> = store.inventory().into_iter().map(|(id, _)| core.index.get(&id).unwrap()).collect();
    assert_eq!(files, records.iter().filter(|record| record.place == Place::File).count(), "files without a record");
    let numbers: std::collections::HashSet<u64> = core
        .database
        .scan(schema::Keys::inline_from(0))
        .map(|row| match row.unwrap().0 {
            Some(Row::Chunk { number, .. } | Row::Tree { number }) => number,
            _ => 0,
        })
        .collect();
    let inline = records
        .iter()
        .filter_map(|record| match record.place {
            Place::Inline(number) => Some(number.get()),
            Place::File => None,
        })
        .collect();
    assert_eq!(numbers, inline, "chunks without a record, or a record without chunks");
    let used: u64 = store
        .inventory()
        .into_iter()
        .map(|(id, _)| {
            let record = core.index.get(&id).unwrap();
            room::cost(record.segment(id), record.place)
        })
        .sum();
    assert_eq!(store.usage().used_bytes, used);
}

#[tokio::test(flavor = "multi_thread")]
async fn conforms_with_files() {
    let subject = Sled { inline_up_to: 64 * 1024, dirs: Mutex::default() };
    conformance::chunk_store(&subject).await;
    conformance::replica_sink(&subject).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn conforms_with_files_only() {
    let subject = Sled { inline_up_to: 0, dirs: Mutex::default() };
    conformance::chunk_store(&subject).await;
    conformance::replica_sink(&subject).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn conforms_with_everything_in_the_database() {
    let subject = Sled { inline_up_to: u32::MAX, dirs: Mutex::default() };
    conformance::chunk_store(&subject).await;
    conformance::replica_sink(&subject).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_stored_touched_and_damaged_is_so_after_a_restart() {
    let dir = folder();
    let store = open(dir.path()).await;
    let samples: Vec<Bytes> = (0..10).map(|seed| conformance::sample(seed, 20_000 << seed)).collect();
    let mut segments = Vec::new();
    for bytes in &samples {
        segments.push(put(&store, bytes, AckLevel::Close).await.unwrap());
    }
    let ids: Vec<SegmentId> = segments.iter().map(|segment| segment.id).collect();
    let stamps = store.touch(ids.clone(), Duration::from_secs(1_000_000)).await.unwrap();
    let kept: Vec<u64> = ids.iter().map(|id| store.core.index.get(id).unwrap().kept_until_ms).collect();
    rot(&store, segments[1], 0);
    rot(&store, segments[7], 3);
    assert_eq!(store.reverify(ids[1]).await.unwrap(), [0]);
    assert_eq!(store.reverify(ids[7]).await.unwrap(), [3]);
    let (damaged, usage) = (store.damaged().len(), store.usage());
    assert_eq!((damaged, usage.corrupt_segments), (2, 2));
    let (peer, again) = (store.peer_id(), store.clone());
    drop(again);
    store.close().await;

    let store = open(dir.path()).await;
    assert_eq!(store.peer_id(), peer);
    assert_eq!((store.damaged().len(), store.usage().used_bytes), (2, usage.used_bytes));
    assert_sound(&store).await;
    for (id, kept) in ids.iter().zip(kept) {
        assert_eq!(store.core.index.get(id).unwrap().kept_until_ms, kept);
    }
    let later = store.touch(ids, Duration::ZERO).await.unwrap();
    assert!(
        later.iter().zip(&stamps).enumerate().all(|(at, (later, old))| match at {
            1 | 7 => *later == 0,
            _ => later > old,
        }),
        "{stamps:?} {later:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_disk_follows_a_close_level_acknowledgement_by_itself() {
    let dir = folder();
    let disk = disk::sim::SimDisk::new(dir.path());
    let store = open_on(config(dir.path()), Arc::new(disk.clone())).await.unwrap();
    let mut kept = Vec::new();
    for seed in 0..6 {
        let bytes = conformance::sample(seed, 10_000 << seed);
        put(&store, &bytes, AckLevel::Close).await.unwrap();
        kept.push(bytes);
    }
    let settled = || recovery::number(&store.core.database, Setting::Settled).unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while settled() < store.core.numbers.next() {
        assert!(tokio::time::Instant::now() < deadline, "the disk never followed");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    store.sync().await.unwrap();
    let crash = disk.crash_now().unwrap();
    drop(store);
    let dir = folder();
    disk::sim::restore(&crash.power_cut(1, Path::new("db")), dir.path()).unwrap();
    let store = open(dir.path()).await;
    for bytes in kept {
        let segment = ChunkTree::build(&bytes).segment();
        assert!(store.read(segment.id, segment.all()).await.unwrap() == bytes);
    }
}

mod crash;
mod home;
mod journal;
mod kill;
mod model;
mod rot;
