//! Takes segments: Store, as one link of a pipeline.
//!
//! Invariants: a segment is acknowledged only after the sink verified it and made it durable; what
//! happens downstream never fails what happens here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use swarm_proto::convert::within;
use swarm_proto::{PeerId, Segment, v1};
use tonic::{Status, Streaming};

use super::Chunks;
use super::forward::{Downstream, Target};
use crate::store::{AckLevel, ChunkStore, ReplicaSink, SegmentWriter, StoreError};

/// Longest wait without progress: for the next frame, for one write.
const PROGRESS_WAIT: Duration = Duration::from_secs(30);
/// Bytes that must come in each [`PROGRESS_WAIT`], so that a drip does not hold a place for hours:
/// about 9 KiB a second.
const PROGRESS_BYTES: u64 = 256 * 1024;
/// Longest wait for the sink to make segments durable; disks that sync 64 MiB slower are broken.
const COMMIT_WAIT: Duration = Duration::from_secs(60);
/// Segments of one call.
pub(super) const MOST_SEGMENTS: u64 = 1_024;
/// Bytes of one call.
const MOST_BYTES: u64 = 64 * 1024 * 1024;
/// Bytes of one data frame.
pub(super) const MOST_FRAME_BYTES: usize = 1024 * 1024;
/// Seeders that a call may be passed on to.
const MOST_FORWARD: u64 = 8;
/// How long segments are kept when the header does not say.
const DEFAULT_KEEP: Duration = Duration::from_secs(3_600);
/// Longest time that a header or a touch may ask for.
const MOST_KEEP: Duration = Duration::from_secs(7 * 24 * 3_600);

/// A checked header.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) segments: Vec<Segment>,
    pub(super) level: AckLevel,
    pub(super) forward: Vec<Target>,
    pub(super) keep: Duration,
}

impl TryFrom<&v1::StoreHeader> for Header {
    type Error = Status;
    fn try_from(message: &v1::StoreHeader) -> Result<Self, Status> {
        within("header.segments", message.segments.len() as u64, 1, MOST_SEGMENTS)?;
        let segments = message.segments.iter().map(Segment::try_from).collect::<Result<Vec<_>, _>>()?;
        let total = segments.iter().map(|segment| u64::from(segment.length)).sum();
        within("sum of header.segments.length", total, 1, MOST_BYTES)?;
        let level = match message.level() {
            v1::AckLevel::Close => AckLevel::Close,
            v1::AckLevel::Fsync => AckLevel::Fsync,
            v1::AckLevel::Unspecified => return Err(Status::invalid_argument("header.level is missing or unknown")),
        };
        within("header.forward", message.forward.len() as u64, 0, MOST_FORWARD)?;
        let forward = message.forward.iter().map(Target::try_from).collect::<Result<_, _>>()?;
        Ok(Self { segments, level, forward, keep: keep(message.keep_ms)? })
    }
}

/// How long to keep, from a message's field.
pub(super) fn keep(keep_ms: u64) -> Result<Duration, Status> {
    within("keep_ms", keep_ms, 0, u64::try_from(MOST_KEEP.as_millis()).unwrap_or(u64::MAX))?;
    Ok(match keep_ms {
        0 => DEFAULT_KEEP,
        ms => Duration::from_millis(ms),
    })
}

impl<S: ChunkStore> Chunks<S> {
    pub(super) async fn receive(
        &self,
        sink: Arc<dyn ReplicaSink>,
        mut frames: Streaming<v1::StoreFrame>,
    ) -> Result<v1::StoreReply, Status> {
        let message = match next(&mut frames).await? {
            Some(v1::store_frame::Frame::Header(header)) => header,
            _ => return Err(Status::invalid_argument("the first frame must be the header")),
        };
        let header = Header::try_from(&message)?;
        let mut downstream = Downstream::open(&self.forward, &message, &header.forward, header.segments.len());
        let mut incoming = Incoming::new(sink.as_ref(), &header.segments);
        let mut progress = Progress::default();
        loop {
            let asked = Instant::now();
            let Some(frame) = next(&mut frames).await? else { break };
            let v1::store_frame::Frame::Data(data) = frame else {
                return Err(Status::invalid_argument("a second header"));
            };
            within("length of data", data.len() as u64, 1, MOST_FRAME_BYTES as u64)?;
            if data.len() as u64 > incoming.missing_bytes() {
                return Err(Status::invalid_argument("more data than the header's segments have"));
            }
            if !progress.came(data.len() as u64, asked.elapsed()) {
                return Err(Status::deadline_exceeded("the data comes too slowly"));
            }
            downstream.pass(data.clone()).await;
            incoming.take(data).await;
        }
        if incoming.missing_bytes() > 0 {
            let message = format!("the data ends {} bytes too early", incoming.missing_bytes());
            return Err(Status::invalid_argument(message));
        }
        // The downstream commits while we do.
        downstream.end();
        let (own, others) = tokio::join!(incoming.commit(header.level, header.keep), downstream.acks());
        self.counters.stored_bytes.inc_by(held_bytes(&header.segments, &own));
        let mut acks = vec![ack(self.me, self.process, &own)];
        acks.extend(others);
        Ok(v1::StoreReply { acks })
    }
}

/// Whether data comes fast enough, not counting the time that we took over it.
#[derive(Default)]
struct Progress {
    waited: Duration,
    bytes: u64,
}

impl Progress {
    /// More came after so long; whether that is still enough.
    fn came(&mut self, bytes: u64, waited: Duration) -> bool {
        self.bytes += bytes;
        self.waited += waited;
        if self.waited < PROGRESS_WAIT {
            return true;
        }
        std::mem::take(self).bytes >= PROGRESS_BYTES
    }
}

/// The next frame; nothing at the end of the stream.
async fn next(frames: &mut Streaming<v1::StoreFrame>) -> Result<Option<v1::store_frame::Frame>, Status> {
    let message = tokio::time::timeout(PROGRESS_WAIT, frames.message())
        .await
        .map_err(|_| Status::deadline_exceeded(format!("no frame for {PROGRESS_WAIT:?}")))??;
    match message {
        None => Ok(None),
        Some(v1::StoreFrame { frame: Some(frame) }) => Ok(Some(frame)),
        Some(v1::StoreFrame { frame: None }) => Err(Status::invalid_argument("an empty or unknown frame")),
    }
}

/// The segments of one call on their way into the sink.
///
/// Invariant: segments before `at` have an entry in `done`; `written` bytes of segment `at` have come.
pub(super) struct Incoming<'a> {
    sink: &'a dyn ReplicaSink,
    segments: &'a [Segment],
    at: usize,
    written: u32,
    open: Option<Result<Box<dyn SegmentWriter>, StoreError>>,
    done: Vec<Result<Box<dyn SegmentWriter>, StoreError>>,
    missing: u64,
}

impl<'a> Incoming<'a> {
    pub(super) fn new(sink: &'a dyn ReplicaSink, segments: &'a [Segment]) -> Self {
        let missing = segments.iter().map(|segment| u64::from(segment.length)).sum();
        Self { sink, segments, at: 0, written: 0, open: None, done: Vec::with_capacity(segments.len()), missing }
    }

    pub(super) fn missing_bytes(&self) -> u64 {
        self.missing
    }

    /// The next bytes, which the caller knows to be no more than are missing. A segment that failed is
    /// skipped; the others go on.
    pub(super) async fn take(&mut self, mut data: Bytes) {
        while !data.is_empty() {
            let Some(segment) = self.segments.get(self.at).copied() else { return };
            let room = segment.length - self.written;
            let now = data.split_to(data.len().min(room as usize));
            let length = u32::try_from(now.len()).expect("at most `room`, which is a u32");
            let writer = match self.open.take() {
                Some(writer) => writer,
                None => in_time("begin a segment", self.sink.begin(segment)).await,
            };
            let writer = match writer {
                Ok(mut writer) => in_time("write a segment", writer.write(now)).await.map(|()| writer),
                failed => failed,
            };
            self.written += length;
            self.missing -= u64::from(length);
            match self.written == segment.length {
                true => {
                    self.done.push(writer);
                    (self.at, self.written) = (self.at + 1, 0);
                }
                false => self.open = Some(writer),
            }
        }
    }

    /// Make all that came durable; outcomes in the order of the segments.
    pub(super) async fn commit(self, level: AckLevel, keep: Duration) -> Vec<Result<(), StoreError>> {
        let mut outcomes = Vec::with_capacity(self.done.len());
        let mut writers = Vec::with_capacity(self.done.len());
        for writer in self.done {
            outcomes.push(writer.map(|writer| writers.push(writer)));
        }
        if writers.is_empty() {
            return outcomes;
        }
        let committed = tokio::time::timeout(COMMIT_WAIT, self.sink.commit(writers, level, keep)).await;
        let mut committed = committed.unwrap_or_default().into_iter();
        for outcome in outcomes.iter_mut().filter(|outcome| outcome.is_ok()) {
            *outcome = committed.next().unwrap_or_else(|| Err(too_slow("commit segments")));
        }
        outcomes
    }
}

async fn in_time<T>(doing: &'static str, work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    tokio::time::timeout(PROGRESS_WAIT, work).await.unwrap_or_else(|_| Err(too_slow(doing)))
}

fn too_slow(doing: &'static str) -> StoreError {
    StoreError::Io { doing, source: Arc::new(std::io::ErrorKind::TimedOut.into()) }
}

/// Bytes of the segments that are held now.
pub(super) fn held_bytes(segments: &[Segment], outcomes: &[Result<(), StoreError>]) -> u64 {
    let held = segments.iter().zip(outcomes).filter(|(_, outcome)| outcome.is_ok());
    held.map(|(segment, _)| u64::from(segment.length)).sum()
}

pub(super) fn ack(me: PeerId, process: u64, results: &[Result<(), StoreError>]) -> v1::StoreAck {
    let outcome = |result: &Result<(), StoreError>| match result {
        Ok(()) => v1::StoreOutcome::Held,
        Err(StoreError::Mismatch(_)) => v1::StoreOutcome::Corrupt,
        Err(StoreError::Full) => v1::StoreOutcome::Full,
        Err(_) => v1::StoreOutcome::Unavailable,
    };
    let first_error = results.iter().find_map(|result| result.as_ref().err());
    if let Some(error) = first_error {
        tracing::warn!(%error, "take segments");
    }
    v1::StoreAck {
        peer_id: me.to_wire(),
        outcomes: results.iter().map(|result| outcome(result).into()).collect(),
        message: first_error.map(ToString::to_string).unwrap_or_default(),
        process,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drip_is_too_slow_and_a_slow_line_is_not() {
        let (mut drip, mut line) = (Progress::default(), Progress::default());
        let second = Duration::from_secs(1);
        assert!((1..30).all(|_| drip.came(1, second)));
        assert!(!drip.came(1, second));
        assert!((1..600).all(|_| line.came(12 * 1024, second)));
    }
}
