//! Reading files of the swarm without a mount: what `get` and `cat` share.
//!
//! Invariant: bytes are in memory only within the room that was granted for them.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use swarm_proto::manifest::{Part, PartSource};
use swarm_proto::v1::{Node, PeerInfo, PeerKind, PeerState};
use swarm_proto::{ByteRange, CHUNK_BYTES, ChunkRange, Manifest, ManifestDigest, PeerId, SegmentId};
use swarm_seeder::swarm::{FetchError, Fetched, Holder, Locator, Offence, Swarm, SwarmConfig, Urgency, Want};
use swarm_seeder::tracker_client::{TrackerClient, TrackerError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connect::{Connection, Tool, tracker_failure};
use super::exit::{Exit, Failure, Outcome};
use super::name::escape;

/// Unit of the room.
const ROOM_UNIT_BYTES: u64 = 1024;
/// Longest piece that is fetched at once: within it the fetcher spreads over peers.
const PIECE_BYTES: u64 = 4 << 20;
/// How long to find out why a piece did not come.
const JUDGING: Duration = Duration::from_secs(2);

/// Fetches verified bytes from the peers of a swarm.
pub(crate) struct Fetcher {
    swarm: Arc<Swarm>,
    corrupt: Arc<Corrupt>,
    tracker: TrackerClient,
    room: Arc<Semaphore>,
    room_units: u32,
    timeout: Duration,
}

/// The tracker, and a memory of which segments came wrong: the difference between "nobody answers" and
/// "what they have is corrupt".
struct Corrupt {
    tracker: TrackerClient,
    segments: Mutex<HashSet<SegmentId>>,
}

impl Locator for Corrupt {
    fn locate(&self, ids: Vec<SegmentId>) -> BoxFuture<'_, Result<Vec<Vec<Holder>>, String>> {
        Locator::locate(&self.tracker, ids)
    }

    fn report(&self, peer: PeerId, offence: Offence) {
        if let Offence::Corrupt(id) = offence {
            self.segments.lock().insert(id);
        }
        self.tracker.report(peer, offence);
    }
}

/// A piece of a file with its bytes; a hole has none.
pub(crate) struct Piece {
    /// Where it stands in the file.
    pub(crate) in_file: ByteRange,
    /// Its bytes in order; empty for a hole.
    pub(crate) bytes: Vec<Bytes>,
    _room: Option<OwnedSemaphorePermit>,
}

impl Fetcher {
    /// A fetcher whose work runs in `tasks` until `stop`, and gives up on a piece after `timeout`.
    pub(crate) fn new(
        tool: &Tool,
        connection: &Connection,
        timeout: Duration,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Self {
        let units = (tool.settings.in_flight.0.max(PIECE_BYTES) / ROOM_UNIT_BYTES).min(Semaphore::MAX_PERMITS as u64);
        let room_units = u32::try_from(units).unwrap_or(u32::MAX);
        let corrupt = Arc::new(Corrupt { tracker: connection.tracker.clone(), segments: Mutex::default() });
        let config = SwarmConfig {
            local_reads: tool.settings.local_reads,
            ..SwarmConfig::new(PeerId::random(), tool.settings.zone.clone())
        };
        let registry = prometheus::Registry::new();
        let swarm = Swarm::new(config, corrupt.clone(), &registry, tasks.clone(), stop.clone());
        let (reporter, reporting) = (connection.tracker.clone(), stop.clone());
        tasks.spawn(async move { reporter.send_reports(reporting).await });
        Self {
            swarm,
            corrupt,
            tracker: connection.tracker.clone(),
            room: Arc::new(Semaphore::new(room_units as usize)),
            room_units,
            timeout,
        }
    }

    /// The manifests of files, in their order; none for a file that is gone.
    pub(crate) async fn manifests(&self, nodes: &[&Node]) -> Result<Vec<Option<Arc<Manifest>>>, TrackerError> {
        let digests: Vec<Option<ManifestDigest>> =
            nodes.iter().map(|node| ManifestDigest::try_from(&node.manifest_digest[..]).ok()).collect();
        let known: Vec<ManifestDigest> = digests.iter().flatten().copied().collect();
        let mut found = self.tracker.manifests(&known).await?.into_iter();
        let manifests: Vec<Option<Arc<Manifest>>> = digests
            .iter()
            .map(|digest| match digest {
                Some(_) => found.next().flatten(),
                None => Some(Arc::default()),
            })
            .collect();
        let ids: Vec<SegmentId> = manifests
            .iter()
            .flatten()
            .flat_map(|manifest| manifest.segments().map(|segment| segment.id).take(64))
            .collect();
        self.swarm.expect(&ids);
        Ok(manifests)
    }

    /// The manifest of one file; an error if it is gone.
    pub(crate) async fn manifest(&self, path: &[u8], node: &Node) -> Outcome<Arc<Manifest>> {
        let found = self.manifests(&[node]).await.map_err(|error| tracker_failure(escape(path), &error))?;
        found.into_iter().next().flatten().ok_or_else(|| gone(path))
    }

    /// Cut a range of a file into pieces that are fetched one by one.
    pub(crate) fn pieces(manifest: &Manifest, range: ByteRange) -> Vec<Part> {
        let mut pieces = Vec::new();
        let Ok(parts) = manifest.parts(range) else { return pieces };
        for part in parts {
            let PartSource::Segment { .. } = part.source else {
                pieces.push(part);
                continue;
            };
            let mut at = part.in_file.start;
            while at < part.in_file.end {
                let end = part.in_file.end.min(at + PIECE_BYTES);
                pieces.extend(manifest.parts(ByteRange { start: at, end }).into_iter().flatten());
                at = end;
            }
        }
        pieces
    }

    /// Fetch one piece.
    ///
    /// Errors: at most two seconds after the timeout; the exit code says whether nobody answered or what came was corrupt.
    pub(crate) async fn fetch(&self, path: &[u8], part: Part) -> Outcome<Piece> {
        let PartSource::Segment { segment, in_segment, chunks } = part.source else {
            return Ok(Piece { in_file: part.in_file, bytes: Vec::new(), _room: None });
        };
        let units = u32::try_from(in_segment.len().div_ceil(ROOM_UNIT_BYTES)).unwrap_or(u32::MAX);
        let room = self.room.clone().acquire_many_owned(units.clamp(1, self.room_units)).await;
        let room = room.map_err(|_| Failure::new(Exit::Interrupted, "interrupted"))?;
        let deadline = Instant::now() + self.timeout;
        let want = Want { segment, chunks, urgency: Urgency::Reader, deadline };
        match self.swarm.fetch(want).await {
            Ok(fetched) => Ok(Piece { in_file: part.in_file, bytes: slice(fetched, in_segment), _room: Some(room) }),
            Err(error) => Err(self.failure(path, segment.id, &error).await),
        }
    }

    /// Whether seeders hold the segment, and none of them whole: chunks that did not verify were dropped there. Not while
    /// another seeder is away, which may have it.
    async fn is_damaged(&self, id: SegmentId) -> Result<bool, TrackerError> {
        let holders = self.tracker.locate(&[id]).await?.into_iter().next().unwrap_or_default();
        if holders.is_empty() || holders.iter().any(|holder| !holder.partial) {
            return Ok(false);
        }
        let peers = self.tracker.peers().await?;
        // Mounts hold parts of what they read; a seeder is sent whole segments.
        let seeders = || {
            let infos = peers.iter().filter_map(|peer| peer.info.as_ref());
            infos.filter(|peer| peer.kind() == PeerKind::Seeder)
        };
        let holds = |peer: &PeerInfo| holders.iter().any(|holder| holder.peer.id.as_bytes() == &peer.peer_id[..]);
        let is_up = |peer: &PeerInfo| matches!(peer.state(), PeerState::Live | PeerState::Draining);
        Ok(seeders().all(is_up) && seeders().any(holds))
    }

    async fn failure(&self, path: &[u8], id: SegmentId, error: &FetchError) -> Failure {
        let came_wrong = self.corrupt.segments.lock().contains(&id);
        let is_damaged = async || {
            let asked = tokio::time::timeout(JUDGING, self.is_damaged(id)).await;
            asked.is_ok_and(|answer| answer.unwrap_or(false))
        };
        let exit = match error {
            FetchError::Stopping => Exit::Interrupted,
            FetchError::AllFailed { .. } | FetchError::NoHolder { .. } if came_wrong || is_damaged().await => {
                Exit::Corrupt
            }
            FetchError::AllFailed { .. } | FetchError::NoHolder { .. } => Exit::Unreachable,
        };
        let failure = Failure::new(exit, format!("{}: {error}", escape(path)));
        match exit {
            Exit::Corrupt => {
                failure.hint("what its holders have does not verify; `swarmfs status` counts such segments")
            }
            Exit::Unreachable => failure.hint("`swarmfs peers` shows which seeders are up"),
            _ => failure,
        }
    }
}

/// The file was replaced or removed, and its old content is gone.
pub(crate) fn gone(path: &[u8]) -> Failure {
    Failure::new(Exit::NotFound, format!("{}: it was changed or removed meanwhile", escape(path)))
        .hint("run the same command again")
}

/// The wanted bytes of whole chunks.
fn slice(fetched: Fetched, wanted: ByteRange) -> Vec<Bytes> {
    let at = |chunks: ChunkRange| u64::from(chunks.start) * u64::from(CHUNK_BYTES);
    let cut = |(chunks, bytes): (ChunkRange, Bytes)| {
        let range = ByteRange::at(at(chunks), bytes.len() as u64);
        let inside = range.intersect(wanted);
        let start = usize::try_from(inside.start.saturating_sub(range.start)).ok()?;
        let end = start + usize::try_from(inside.len()).ok()?;
        (!inside.is_empty()).then(|| bytes.slice(start..end))
    };
    fetched.pieces.into_iter().filter_map(cut).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use swarm_proto::{ChunkTree, Extent, Segment};

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_slice_is_what_was_wanted(length in 1usize..200_000, a: prop::sample::Index, b: prop::sample::Index, run in 1u32..5) {
            let data: Vec<u8> = (0..length).map(|n| u8::try_from(n * 31 % 251).unwrap()).collect();
            let tree = ChunkTree::build(&data);
            let (a, b) = (a.index(length), b.index(length));
            let wanted = ByteRange { start: a.min(b) as u64, end: a.max(b) as u64 + 1 };
            let chunks = wanted.chunks().unwrap();
            let pieces = chunks.runs(run).map(|run| {
                let bytes = tree.segment().bytes_of(run);
                let bytes = usize::try_from(bytes.start).unwrap()..usize::try_from(bytes.end).unwrap();
                (run, Bytes::copy_from_slice(&data[bytes]))
            }).collect();
            let got: Vec<u8> = slice(Fetched { tree, pieces }, wanted).concat();
            prop_assert!(got == data[a.min(b)..=a.max(b)]);
        }
    }

    #[test]
    fn pieces_are_short_and_cover_the_file() {
        let segment = Segment { id: SegmentId::new([1; 32]), length: 64 << 20 };
        let manifest = Manifest::new(vec![Extent::Hole { length: 100 << 20 }, Extent::whole(segment)]).unwrap();
        let pieces = Fetcher::pieces(&manifest, ByteRange::at(0, manifest.size()));
        assert_eq!(pieces.len(), 1 + 16);
        assert_eq!(pieces.iter().map(|piece| piece.in_file.len()).sum::<u64>(), manifest.size());
        assert!(pieces.windows(2).all(|two| two[0].in_file.end == two[1].in_file.start));
    }
}
