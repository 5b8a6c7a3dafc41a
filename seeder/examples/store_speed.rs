//! What the durable store does in a second here: `cargo run --release --example store_speed -- [DIR]`.
//!
//! Four tasks store large and then small segments at both levels of acknowledgement and read them back
//! out of the page cache, each read verified; the plain files of the machine are the yardstick.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use swarm_proto::{ChunkTree, Segment};
use swarm_seeder::store::{AckLevel, ChunkStore, ReplicaSink, SledStore, StoreConfig};

const TOTAL_BYTES: u64 = 512 << 20;
const TASKS: usize = 4;
const FRAME_BYTES: usize = 1 << 20;

#[tokio::main]
async fn main() -> Result<()> {
    let dir = std::env::args().nth(1).unwrap_or_else(|| "store-speed".to_owned());
    let (dir, store_dir) = (Path::new(&dir), Path::new(&dir).join("store"));
    std::fs::create_dir_all(dir)?;
    let store = tokio::task::spawn_blocking(|| SledStore::open(StoreConfig::new(store_dir))).await??;
    for (what, length, group) in [("4 MiB", 4 << 20, 4), ("16 KiB", 16 << 10, 256)] {
        for level in [AckLevel::Close, AckLevel::Fsync] {
            let samples = samples(u64::from(level == AckLevel::Fsync), length);
            let clock = Clock::start();
            let tasks = samples.chunks(samples.len().div_ceil(TASKS));
            let outcomes = tasks.map(|samples| put(&store, samples, group, level));
            futures::future::try_join_all(outcomes).await?;
            clock.report(&format!("store segments of {what}, {level:?} level"), samples.len() * length);
            let clock = Clock::start();
            for (_, segment) in &samples {
                for run in segment.all().runs(64) {
                    store.read(segment.id, run).await?;
                }
            }
            clock.report("  read and verify them, one after the other", samples.len() * length);
        }
    }
    store.close().await;
    let (bytes, clock) = (samples(3, 4 << 20), Clock::start());
    for (at, (bytes, _)) in bytes.iter().enumerate() {
        std::fs::write(dir.join(format!("plain-{at}")), bytes)?;
    }
    clock.report("write plain files of 4 MiB", bytes.len() * (4 << 20));
    Ok(())
}

async fn put(store: &Arc<SledStore>, samples: &[(Bytes, Segment)], group: usize, level: AckLevel) -> Result<()> {
    for batch in samples.chunks(group) {
        let mut writers = Vec::new();
        for (bytes, segment) in batch {
            let mut writer = store.begin(*segment).await?;
            for at in (0..bytes.len()).step_by(FRAME_BYTES) {
                writer.write(bytes.slice(at..bytes.len().min(at + FRAME_BYTES))).await?;
            }
            writers.push(writer);
        }
        for outcome in store.commit(writers, level, Duration::from_secs(60)).await {
            outcome?;
        }
    }
    Ok(())
}

fn samples(seed: u64, length: usize) -> Vec<(Bytes, Segment)> {
    let mut stream = blake3::Hasher::new().update(&seed.to_le_bytes()).update(&length.to_le_bytes()).finalize_xof();
    let count = TOTAL_BYTES / length as u64;
    let sample = |_| {
        let mut bytes = vec![0; length];
        stream.fill(&mut bytes);
        let segment = ChunkTree::build(&bytes).segment();
        (bytes.into(), segment)
    };
    (0..count).map(sample).collect()
}

struct Clock {
    start: Instant,
    cpu: Duration,
}

impl Clock {
    fn start() -> Self {
        Self { start: Instant::now(), cpu: cpu() }
    }

    fn report(&self, what: &str, bytes: usize) {
        let mib = bytes as f64 / (1 << 20) as f64;
        let rate = mib / self.start.elapsed().as_secs_f64();
        let cost = (cpu() - self.cpu).as_secs_f64() / mib * 1024.0;
        println!("{what}: {rate:.0} MiB/s, {cost:.2} CPU-s per GiB");
    }
}

fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or_default(), u32::try_from(time.tv_nsec).unwrap_or_default())
}
