//! What reading did, for operators and tests.

use prometheus::core::Collector;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use swarm_seeder::swarm::Urgency;

/// Running totals of one mount.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReadStats {
    /// Reads answered or failed.
    pub reads: u64,
    /// Bytes answered.
    pub bytes: u64,
    /// Of those, from memory into which they had been fetched.
    pub memory_bytes: u64,
    /// Of those, from the cache.
    pub cache_bytes: u64,
    /// Reads that failed.
    pub failed: u64,
    /// Runs fetched because a reader waited.
    pub reader_runs: u64,
    /// Runs fetched ahead.
    pub ahead_runs: u64,
    /// Runs fetched ahead that nobody waited for any more.
    pub withdrawn_runs: u64,
    /// Bytes that the swarm brought.
    pub fetched_bytes: u64,
    /// Bytes taken over from other cached versions.
    pub adopted_bytes: u64,
    /// Bytes written to the cache.
    pub written_bytes: u64,
    /// Bytes that the cache did not take: no room, a slow disk, or a broken one.
    pub uncached_bytes: u64,
    /// Bytes of runs in memory or on their way.
    pub waiting_bytes: u64,
}

pub(super) struct Metrics {
    pub(super) reads: IntCounter,
    pub(super) memory_bytes: IntCounter,
    pub(super) cache_bytes: IntCounter,
    pub(super) hole_bytes: IntCounter,
    pub(super) failed: IntCounter,
    runs: IntCounterVec,
    pub(super) withdrawn: IntCounter,
    pub(super) fetched_bytes: IntCounter,
    pub(super) adopted_bytes: IntCounter,
    pub(super) written_bytes: IntCounter,
    pub(super) uncached_bytes: IntCounter,
    pub(super) waiting_bytes: IntGauge,
}

impl Metrics {
    pub(super) fn new(registry: &Registry) -> Self {
        let counter = |name: &str, help: &str| IntCounter::new(name, help).expect("the names are valid");
        let bytes = Opts::new("swarmfs_read_bytes_total", "Bytes of files given to readers, by where they were");
        let bytes = IntCounterVec::new(bytes, &["from"]).expect("the names are valid");
        let runs = Opts::new("swarmfs_read_runs_total", "Runs of chunks fetched, by who waits for them");
        let runs = IntCounterVec::new(runs, &["for"]).expect("the names are valid");
        let waiting = IntGauge::new("swarmfs_read_waiting_bytes", "Bytes of runs in memory or on their way");
        let metrics = Self {
            reads: counter("swarmfs_reads_total", "Reads of files, answered or failed"),
            memory_bytes: bytes.with_label_values(&["memory"]),
            cache_bytes: bytes.with_label_values(&["cache"]),
            hole_bytes: bytes.with_label_values(&["hole"]),
            failed: counter("swarmfs_reads_failed_total", "Reads that failed"),
            runs: runs.clone(),
            withdrawn: counter("swarmfs_read_withdrawn_total", "Runs read ahead that nobody waited for any more"),
            fetched_bytes: counter("swarmfs_read_fetched_bytes_total", "Bytes that the swarm brought"),
            adopted_bytes: counter("swarmfs_read_adopted_bytes_total", "Bytes taken over from other cached versions"),
            written_bytes: counter("swarmfs_cache_written_bytes_total", "Bytes written to the cache"),
            uncached_bytes: counter("swarmfs_cache_refused_bytes_total", "Bytes that the cache did not take"),
            waiting_bytes: waiting.expect("the names are valid"),
        };
        let counters = [
            &metrics.reads,
            &metrics.failed,
            &metrics.withdrawn,
            &metrics.fetched_bytes,
            &metrics.adopted_bytes,
            &metrics.written_bytes,
            &metrics.uncached_bytes,
        ];
        let mut collectors: Vec<Box<dyn Collector>> =
            vec![Box::new(bytes), Box::new(runs), Box::new(metrics.waiting_bytes.clone())];
        for counter in counters {
            collectors.push(Box::new(counter.clone()));
        }
        for collector in collectors {
            if let Err(error) = registry.register(collector) {
                tracing::debug!(%error, "register a metric of another mount in this process");
            }
        }
        metrics
    }

    pub(super) fn started(&self, urgency: Urgency) {
        self.runs(urgency).inc();
    }

    fn runs(&self, urgency: Urgency) -> IntCounter {
        self.runs.with_label_values(&[match urgency {
            Urgency::Reader => "reader",
            Urgency::Ahead => "ahead",
        }])
    }

    pub(super) fn stats(&self, waiting_bytes: u64) -> ReadStats {
        ReadStats {
            reads: self.reads.get(),
            bytes: self.memory_bytes.get() + self.cache_bytes.get() + self.hole_bytes.get(),
            memory_bytes: self.memory_bytes.get(),
            cache_bytes: self.cache_bytes.get(),
            failed: self.failed.get(),
            reader_runs: self.runs(Urgency::Reader).get(),
            ahead_runs: self.runs(Urgency::Ahead).get(),
            withdrawn_runs: self.withdrawn.get(),
            fetched_bytes: self.fetched_bytes.get(),
            adopted_bytes: self.adopted_bytes.get(),
            written_bytes: self.written_bytes.get(),
            uncached_bytes: self.uncached_bytes.get(),
            waiting_bytes,
        }
    }
}
