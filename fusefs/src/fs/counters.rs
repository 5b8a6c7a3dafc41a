//! What the mount counts for its operator.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// Counters of one mount.
#[derive(Clone)]
pub struct Counters {
    /// Reads that the daemon answered; what the kernel reads from its cache or passes through moves it not.
    pub reads: IntCounter,
    /// Bytes of those.
    pub read_bytes: IntCounter,
    /// Bytes that were written through the daemon.
    pub written_bytes: IntCounter,
    /// Opens, by `mode`: `passthrough`, `cached`, `direct` or `writing`.
    pub opens: IntCounterVec,
    /// Questions that were put to the tracker's catalog, by `question`.
    pub questions: IntCounterVec,
    /// Requests that ended in an error other than "no such file", by `operation`.
    pub failures: IntCounterVec,
    /// Files that were asked for before they were opened.
    pub prefetched_files: IntCounter,
    /// 1 while changes are pushed.
    pub live: IntGauge,
}

impl Counters {
    /// All at zero.
    pub fn new() -> Self {
        Self {
            reads: counter("swarmfs_fuse_reads_total", "Reads answered by the daemon"),
            read_bytes: counter("swarmfs_fuse_read_bytes_total", "Bytes of reads answered by the daemon"),
            written_bytes: counter("swarmfs_fuse_written_bytes_total", "Bytes of writes taken by the daemon"),
            opens: counters("swarmfs_opens_total", "Files opened, by how the kernel reads them", "mode"),
            questions: counters("swarmfs_catalog_questions_total", "Questions put to the tracker", "question"),
            failures: counters("swarmfs_fuse_failures_total", "Requests that ended in an error", "operation"),
            prefetched_files: counter("swarmfs_prefetched_files_total", "Files fetched ahead of a walk"),
            live: IntGauge::new("swarmfs_watch_live", "1 while the tracker pushes changes").expect("a valid name"),
        }
    }

    /// Show them at an endpoint.
    ///
    /// Errors: another collector in the registry has one of the names.
    pub fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.reads.clone()))?;
        registry.register(Box::new(self.read_bytes.clone()))?;
        registry.register(Box::new(self.written_bytes.clone()))?;
        registry.register(Box::new(self.opens.clone()))?;
        registry.register(Box::new(self.questions.clone()))?;
        registry.register(Box::new(self.failures.clone()))?;
        registry.register(Box::new(self.prefetched_files.clone()))?;
        registry.register(Box::new(self.live.clone()))
    }

    pub(super) fn asked(&self, question: &str) {
        self.questions.with_label_values(&[question]).inc();
    }
}

impl Default for Counters {
    fn default() -> Self {
        Self::new()
    }
}

fn counter(name: &str, help: &str) -> IntCounter {
    IntCounter::new(name, help).expect("a valid name")
}

fn counters(name: &str, help: &str, label: &str) -> IntCounterVec {
    IntCounterVec::new(Opts::new(name, help), &[label]).expect("a valid name and label")
}
