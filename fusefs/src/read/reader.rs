//! One handle to one version of a file.

use std::fs::File;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use swarm_proto::manifest::PartSource;
use swarm_proto::{ByteRange, ChunkRange, ManifestDigest};
use swarm_seeder::store::cache::CacheFile;
use swarm_seeder::swarm::Urgency;
use tokio::sync::watch;

use super::ReadError;
use super::engine::{Purpose, Shared, aligned};
use super::flights::{Found, Outcome, Run, bytes_in};
use super::readahead::{Advice, Readahead, StreamId};

/// Times that a read looks again for bytes that were there a moment ago, or that somebody else failed to get.
const ATTEMPTS: u32 = 16;
/// A read that fails after so long a wait is not tried again for a moment.
const LONG_WAIT: Duration = Duration::from_millis(500);
/// That moment: the kernel asks again at once.
const ASKED_AGAIN_WITHIN: Duration = Duration::from_millis(500);
/// What is asked of the swarm ends this much before the reader gives up, so that it can say what was wrong.
const LAST_WORD: Duration = Duration::from_millis(50);
/// Zeros that holes are answered with: as many as the kernel asks for at once.
static ZEROS: LazyLock<Bytes> = LazyLock::new(|| vec![0; 1 << 20].into());

/// One handle to one version of a file; while it lives the version stays in the cache.
pub struct OpenFile {
    shared: Arc<Shared>,
    file: Arc<CacheFile>,
    ahead: Mutex<Ahead>,
    /// Reads that failed a moment ago after a long wait. Where the kernel's readahead fails, it asks again for the
    /// one page that its reader wants, who would wait all that time twice.
    failed: Mutex<Vec<(ByteRange, Instant, ReadError)>>,
}

struct Ahead {
    readahead: Readahead,
    /// Runs that are fetched ahead for this handle; dropping one withdraws it unless a reader waits.
    kept: Vec<(StreamId, watch::Receiver<Outcome>)>,
}

/// Where a stretch of a read comes from.
struct Piece {
    in_file: ByteRange,
    from: Origin,
}

enum Origin {
    Hole,
    Cache,
    Run { run: Arc<Run>, outcome: watch::Receiver<Outcome>, in_segment: ByteRange, own: bool },
}

/// Why the pieces of a plan did not make a read.
enum Setback {
    /// Look again.
    Changed,
    /// A run failed; whether this read had started it.
    Failed { error: ReadError, own: bool },
}

impl OpenFile {
    pub(super) fn new(shared: Arc<Shared>, file: Arc<CacheFile>) -> Self {
        let cap = shared.config.max_readahead.min(shared.budget.limit() / 2);
        Self {
            shared,
            file,
            ahead: Mutex::new(Ahead { readahead: Readahead::new(cap), kept: Vec::new() }),
            failed: Mutex::default(),
        }
    }

    /// Which version.
    pub fn digest(&self) -> ManifestDigest {
        self.file.digest()
    }

    /// Verified bytes from `offset`: `length` of them, fewer only at the end of the file.
    ///
    /// Shape:  holes are zeros.
    /// Errors: by `deadline`, or the configured timeout if that is sooner.
    /// Cost:   no copy if all lies in one run that was fetched just now.
    pub async fn read(&self, offset: u64, length: u32, deadline: Instant) -> Result<Bytes, ReadError> {
        let size = self.file.manifest().size();
        let range = ByteRange::at(offset, u64::from(length)).intersect(ByteRange::at(0, size));
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let began = Instant::now();
        if let Some(error) = self.failed_just_now(range, began) {
            return Err(error);
        }
        let deadline = deadline.min(began + self.shared.config.read_timeout);
        self.shared.metrics.reads.inc();
        let read = self.read_by(range, size, deadline);
        let read = tokio::time::timeout_at(deadline.into(), read).await;
        let read = read.unwrap_or(Err(ReadError::TimedOut(self.shared.config.read_timeout)));
        read.inspect_err(|error| {
            self.shared.metrics.failed.inc();
            match error {
                ReadError::Stopping => tracing::debug!(digest = %self.file.digest(), offset, length, %error, "read"),
                _ => tracing::warn!(digest = %self.file.digest(), offset, length, %error, "read"),
            }
            if began.elapsed() >= LONG_WAIT {
                self.failed.lock().push((range, Instant::now(), error.clone()));
            }
        })
    }

    fn failed_just_now(&self, range: ByteRange, now: Instant) -> Option<ReadError> {
        let mut failed = self.failed.lock();
        if failed.is_empty() {
            return None;
        }
        failed.retain(|(_, at, _)| now.saturating_duration_since(*at) < ASKED_AGAIN_WITHIN);
        let again = failed.iter().find(|(range_of, ..)| !range_of.intersect(range).is_empty());
        again.map(|(_, _, error)| error.clone())
    }

    async fn read_by(&self, range: ByteRange, size: u64, deadline: Instant) -> Result<Bytes, ReadError> {
        let mut plan = self.plan(range, deadline);
        // After the reader's own wants, so that those come first.
        self.go_ahead(range, size);
        let mut last = ReadError::Failed("what was cached keeps vanishing".to_owned());
        for _ in 0..ATTEMPTS {
            match self.gather(range, &mut plan).await {
                Ok(bytes) => return Ok(bytes),
                Err(Setback::Failed { error, own: true }) => return Err(error),
                Err(Setback::Failed { error, own: false }) => last = error,
                Err(Setback::Changed) => {}
            }
            // The old plan goes last: it keeps what is still being fetched from being withdrawn.
            plan = self.plan(range, deadline);
        }
        Err(last)
    }

    /// The whole file for the kernel to read by itself, if every chunk of it was verified by this process.
    /// It is never written again, only replaced or unlinked.
    pub fn passthrough(&self) -> Option<Arc<File>> {
        self.file.complete()
    }

    /// Bytes of it that are in the cache.
    pub fn cached_bytes(&self) -> u64 {
        self.file.cached_bytes()
    }

    /// Find where each byte of `range` is, and begin to fetch what is nowhere.
    fn plan(&self, range: ByteRange, deadline: Instant) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let Ok(parts) = self.file.manifest().parts(range) else { return pieces };
        let until = deadline.checked_sub(LAST_WORD).unwrap_or(deadline).max(Instant::now());
        let mut flights = self.shared.flights.lock();
        for part in parts {
            let PartSource::Segment { segment, in_segment, chunks } = part.source else {
                pieces.push(Piece { in_file: part.in_file, from: Origin::Hole });
                continue;
            };
            // The bytes of the read that some chunks of this segment are.
            let shown = |chunks| {
                let bytes = segment.bytes_of(chunks).intersect(in_segment);
                let in_file = ByteRange::at(part.in_file.start + (bytes.start - in_segment.start), bytes.len());
                (in_file, bytes)
            };
            for found in flights.find(segment, chunks) {
                let absent = match found {
                    Found::Run(run, outcome, chunks) => {
                        run.promote(until);
                        let (in_file, in_segment) = shown(chunks);
                        pieces.push(Piece { in_file, from: Origin::Run { run, outcome, in_segment, own: false } });
                        continue;
                    }
                    Found::Absent(chunks) => chunks,
                };
                let mut from = absent.start;
                for run in self.file.absent(part.extent, absent).into_iter().flat_map(aligned) {
                    push_cached(&mut pieces, shown(ChunkRange::new(from, run.start)).0);
                    from = run.end;
                    let purpose = Purpose { extent: part.extent, segment, urgency: Urgency::Reader, deadline: until };
                    if let Some((started, outcome)) = self.shared.start(&mut flights, &self.file, run, purpose) {
                        let (in_file, in_segment) = shown(run);
                        pieces.push(Piece {
                            in_file,
                            from: Origin::Run { run: started, outcome, in_segment, own: true },
                        });
                    }
                }
                push_cached(&mut pieces, shown(ChunkRange::new(from, absent.end)).0);
            }
        }
        pieces
    }

    /// Wait for all pieces and put them together.
    async fn gather(&self, range: ByteRange, plan: &mut [Piece]) -> Result<Bytes, Setback> {
        if let [only] = plan {
            return self.bytes_of(only).await;
        }
        let mut all = BytesMut::with_capacity(usize::try_from(range.len()).map_err(|_| Setback::Changed)?);
        for piece in plan {
            let bytes = self.bytes_of(piece).await?;
            all.extend_from_slice(&bytes);
        }
        match all.len() as u64 == range.len() {
            true => Ok(all.freeze()),
            false => Err(Setback::Changed),
        }
    }

    async fn bytes_of(&self, piece: &mut Piece) -> Result<Bytes, Setback> {
        let length = piece.in_file.len();
        match &mut piece.from {
            Origin::Hole => {
                self.shared.metrics.hole_bytes.inc_by(length);
                let length = usize::try_from(length).map_err(|_| Setback::Changed)?;
                Ok(match length <= ZEROS.len() {
                    true => ZEROS.slice(..length),
                    false => Bytes::from(vec![0; length]),
                })
            }
            Origin::Cache => {
                let read = self.shared.read_cached(&self.file, piece.in_file).await;
                // What could not be read was dropped, and is fetched on the next look.
                let bytes = read.map_err(|error| {
                    tracing::debug!(%error, "read the cache");
                    Setback::Changed
                })?;
                self.shared.metrics.cache_bytes.inc_by(length);
                Ok(bytes)
            }
            Origin::Run { run, outcome, in_segment, own } => {
                let over = outcome.wait_for(|outcome| !matches!(outcome, Outcome::Pending)).await;
                let over = over.map(|outcome| outcome.clone()).map_err(|_| Setback::Changed)?;
                match over {
                    Outcome::Landed(fetched) => {
                        let bytes = bytes_in(&fetched, run.segment, *in_segment);
                        if bytes.len() as u64 != length {
                            return Err(Setback::Changed);
                        }
                        self.shared.flights.lock().served(run, length);
                        self.shared.metrics.memory_bytes.inc_by(length);
                        Ok(bytes)
                    }
                    Outcome::Failed(error) => Err(Setback::Failed { error, own: *own }),
                    Outcome::InCache | Outcome::Pending => Err(Setback::Changed),
                }
            }
        }
    }

    /// Fetch what will probably be read next.
    fn go_ahead(&self, range: ByteRange, size: u64) {
        let mut state = self.ahead.lock();
        let Advice { stream, ahead, abandoned } = state.readahead.on_read(range, size);
        if !abandoned.is_empty() {
            state.kept.retain(|(stream, _)| !abandoned.contains(stream));
        }
        let Some(ahead) = ahead else { return };
        state.kept.retain(|(_, outcome)| matches!(*outcome.borrow(), Outcome::Pending));
        let reached = self.shared.start_ahead(&self.file, ahead, |outcome| state.kept.push((stream, outcome)));
        if reached < ahead.end {
            state.readahead.reached(stream, reached);
        }
    }
}

/// Neighbours in the file are one read of it.
fn push_cached(pieces: &mut Vec<Piece>, in_file: ByteRange) {
    if in_file.is_empty() {
        return;
    }
    match pieces.last_mut() {
        Some(Piece { in_file: last, from: Origin::Cache }) if last.end == in_file.start => last.end = in_file.end,
        _ => pieces.push(Piece { in_file, from: Origin::Cache }),
    }
}
