//! The fetcher: asks holders until every chunk that is wanted is here and verified.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;
use swarm_proto::v1::chunks_client::ChunksClient;
use swarm_proto::{ChunkRange, ChunkTree, MAX_MESSAGE_BYTES, MAX_RUN_CHUNKS, PeerId, SegmentId, v1};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::{Channel, Endpoint};

use super::{FetchError, Fetched, Holder, Locator, Offence, SwarmConfig, SwarmStats, Want};

/// Fetches chunks from the peers that hold them.
pub struct Swarm {
    config: SwarmConfig,
    locator: Arc<dyn Locator>,
    stop: CancellationToken,
    trees: Mutex<LruCache<SegmentId, ChunkTree>>,
    holders: Mutex<LruCache<SegmentId, Vec<Holder>>>,
    channels: Mutex<HashMap<PeerId, (String, Channel)>>,
    stats: Mutex<SwarmStats>,
}

impl Swarm {
    /// A fetcher that learns from `locator` who holds what; its work runs in `tasks` until `stop`.
    pub fn new(
        config: SwarmConfig,
        locator: Arc<dyn Locator>,
        _registry: &prometheus::Registry,
        _tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let size = |count: usize| std::num::NonZeroUsize::new(count).unwrap_or(std::num::NonZeroUsize::MIN);
        Arc::new(Self {
            trees: Mutex::new(LruCache::new(size(config.trees_kept))),
            holders: Mutex::new(LruCache::new(size(config.locations_kept))),
            channels: Mutex::default(),
            stats: Mutex::default(),
            config,
            locator,
            stop,
        })
    }

    /// Fetch chunks. Dropping the future cancels what nobody else waits for.
    ///
    /// Errors: [`FetchError`], at the want's deadline at the latest.
    pub async fn fetch(&self, want: Want) -> Result<Fetched, FetchError> {
        let mut last = None;
        let attempts = async {
            loop {
                let holders = self.locate(want.segment.id).await;
                for holder in &holders {
                    match self.fetch_from(holder, &want).await {
                        Ok(fetched) => return fetched,
                        Err(reason) => last = Some((holders.len(), reason)),
                    }
                }
                self.holders.lock().pop(&want.segment.id);
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        };
        let fetched = tokio::select! {
            fetched = attempts => Some(fetched),
            () = tokio::time::sleep_until(want.deadline.into()) => None,
            () = self.stop.cancelled() => return Err(FetchError::Stopping),
        };
        fetched.ok_or(match last {
            None => FetchError::NoHolder { segment: want.segment, chunks: want.chunks },
            Some((holders, last)) => FetchError::AllFailed { segment: want.segment, holders, last },
        })
    }

    /// Learn soon who holds these segments; never waits.
    pub fn expect(&self, _ids: &[SegmentId]) {}

    /// The verified tree of a segment, if it is in memory.
    pub fn known_tree(&self, id: &SegmentId) -> Option<ChunkTree> {
        self.trees.lock().get(id).cloned()
    }

    /// Keep a tree that the caller has, so that it is not fetched.
    pub fn remember_tree(&self, tree: ChunkTree) {
        self.trees.lock().put(tree.segment().id, tree);
    }

    /// Holders of a segment that the caller has heard of.
    pub fn learn(&self, id: SegmentId, holders: Vec<Holder>) {
        self.holders.lock().put(id, holders);
    }

    /// What was done so far.
    pub fn stats(&self) -> SwarmStats {
        self.stats.lock().clone()
    }

    async fn locate(&self, id: SegmentId) -> Vec<Holder> {
        if let Some(known) = self.holders.lock().get(&id) {
            return known.clone();
        }
        let asked = tokio::time::timeout(self.config.locate_timeout, self.locator.locate(vec![id])).await;
        let found = asked.ok().and_then(Result::ok).and_then(|mut all| all.pop()).unwrap_or_default();
        self.holders.lock().put(id, found.clone());
        found
    }

    async fn fetch_from(&self, holder: &Holder, want: &Want) -> Result<Fetched, String> {
        let mut client = ChunksClient::new(self.channel(holder)?).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let mut tree = match ChunkTree::wire_len(want.segment) {
            0 => ChunkTree::verify(want.segment, Bytes::new()).ok(),
            _ => self.known_tree(&want.segment.id),
        };
        let mut pieces: Vec<(ChunkRange, Bytes)> = Vec::new();
        for run in want.chunks.runs(MAX_RUN_CHUNKS) {
            let request = v1::FetchRequest {
                segment_id: want.segment.id.to_wire(),
                first_chunk: run.start,
                chunk_count: run.len(),
                with_tree: tree.is_none(),
                peer_id: self.config.me.to_wire(),
            };
            let answered = tokio::time::timeout(self.config.request_timeout, client.fetch(request)).await;
            let reply = match answered {
                Err(_) => return Err("no answer in time".to_owned()),
                Ok(Err(status)) => return Err(status.to_string()),
                Ok(Ok(reply)) => reply.into_inner(),
            };
            let corrupt = |error: swarm_proto::TreeError| {
                self.locator.report(holder.peer.id, Offence::Corrupt(want.segment.id));
                error.to_string()
            };
            let known = match tree.take() {
                Some(known) => known,
                None => ChunkTree::verify(want.segment, reply.tree).map_err(corrupt)?,
            };
            known.check(run, &reply.data).map_err(corrupt)?;
            self.remember_tree(known.clone());
            tree = Some(known);
            self.stats.lock().payload_bytes += reply.data.len() as u64;
            pieces.push((run, reply.data));
        }
        let tree = tree.ok_or("nothing was wanted")?;
        Ok(Fetched { tree, pieces })
    }

    fn channel(&self, holder: &Holder) -> Result<Channel, String> {
        let mut channels = self.channels.lock();
        if let Some((address, channel)) = channels.get(&holder.peer.id)
            && *address == holder.peer.address
        {
            return Ok(channel.clone());
        }
        let endpoint = Endpoint::from_shared(format!("http://{}", holder.peer.address)).map_err(|e| e.to_string())?;
        let channel = endpoint
            .connect_timeout(self.config.connect_timeout)
            .tcp_nodelay(true)
            .initial_stream_window_size(8 << 20)
            .initial_connection_window_size(32 << 20)
            .max_frame_size(1 << 20)
            .connect_lazy();
        channels.insert(holder.peer.id, (holder.peer.address.clone(), channel.clone()));
        Ok(channel)
    }
}
