//! The durable store against the suite, and against what only it must survive.

use std::os::unix::fs::FileExt;
use std::path::Path;

use tempfile::TempDir;

use super::schema::Place;
use super::*;
use crate::store::conformance::{self, Subject};

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
            let capacity = 66 << 20;
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
            store.core.database.put(row, &value).unwrap();
        }
    }
}

fn flip(path: &Path, at: u64) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn conforms_with_files() {
    let subject = Sled { inline_up_to: 64 * 1024, dirs: Mutex::default() };
    conformance::chunk_store(&subject).await;
    conformance::replica_sink(&subject).await;
}
