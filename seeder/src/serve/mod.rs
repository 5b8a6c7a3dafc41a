//! The serving side of a peer: the gRPC service `Chunks` over any [`ChunkStore`].
//!
//! Not the store and not fetching. Invariants: every byte served was verified when it was read; what
//! lies in memory for askers is bounded over all of them; a call that is not understood is answered
//! with a status, never with a panic.

mod admission;
mod counters;
mod fetch;
mod forward;
mod gate;
mod lend;
mod listener;
mod receive;
mod route;
mod small;

pub use counters::Counters;
pub(crate) use small::MOST_SMALL_BYTES;

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use swarm_proto::seats::Seat;
use swarm_proto::v1::chunks_server::Chunks as ChunksCalls;
use swarm_proto::v1::chunks_server::SERVICE_NAME;
use swarm_proto::{MAX_MESSAGE_BYTES, PeerId, convert, v1};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use crate::store::{ChunkStore, Holding, ReplicaSink};
use fetch::{MOST_IDS, outcome};
use forward::Forward;
use gate::Gate;
use listener::Remote;
use route::Route;
use small::Small;

/// HTTP/2 window of one stream that brings us data (Store; what Fetch sends is the asker's to bound).
const STREAM_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// HTTP/2 window of a connection.
const CONNECTION_WINDOW_BYTES: u32 = 32 * 1024 * 1024;
/// Largest HTTP/2 frame: a run travels in one.
const MOST_HTTP_FRAME_BYTES: u32 = 1024 * 1024;
/// Streams of one connection.
const MOST_STREAMS: u32 = 256;
/// Bytes of a request's headers.
const MOST_HEADER_BYTES: u32 = 16 * 1024;
/// How often a silent connection is asked for a sign of life, and how long that may take.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(20));

/// What the serving side needs to know.
#[derive(Debug, Clone)]
pub struct ServeConfig {
    /// The peer that serves.
    pub me: PeerId,
    /// Bytes of chunks and trees a second over all askers; none: no limit.
    pub upload_limit: Option<NonZeroU64>,
}

/// The service `Chunks`: one answer for each call.
pub(crate) struct Chunks<S> {
    me: PeerId,
    /// Which run of the peer this is; never 0.
    process: u64,
    store: Arc<S>,
    gate: Arc<Gate>,
    forward: Forward,
    counters: Counters,
    /// Where streams run.
    tasks: TaskTracker,
    /// No new requests from then on.
    stopping: CancellationToken,
}

/// Serve `store` on `listener` until `stop_accepting`; the task then ends when the calls in flight have
/// ended, or at `stop`.
///
/// Shape: gRPC with `Chunks`, health and reflection; the task belongs to `tasks`.
pub async fn serve<S: ChunkStore>(
    config: ServeConfig,
    store: Arc<S>,
    listener: TcpListener,
    counters: Counters,
    tasks: &TaskTracker,
    stop_accepting: CancellationToken,
    stop: CancellationToken,
) -> Served {
    let gate = Gate::open(config.upload_limit, tasks, &stop);
    let forward = Forward::new(tasks.clone(), stop.clone());
    let (tasks_of_streams, stopping) = (tasks.clone(), stop_accepting.clone());
    let (me, process) = (config.me, rand::random::<u64>().max(1));
    let chunks = Arc::new(Chunks { me, process, store, gate, forward, counters, tasks: tasks_of_streams, stopping });
    if let Ok(address) = listener.local_addr()
        && chunks.store.holding() == Holding::Replica
    {
        lend::start(Arc::clone(&chunks), address, tasks, stop_accepting.clone(), stop.clone());
    }
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_service_status(SERVICE_NAME, tonic_health::ServingStatus::Serving).await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(v1::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .expect("the descriptors were compiled by us");
    let router = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(MOST_HTTP_FRAME_BYTES)
        .max_concurrent_streams(MOST_STREAMS)
        .http2_max_header_list_size(MOST_HEADER_BYTES)
        .http2_keepalive_interval(Some(KEEPALIVE.0))
        .http2_keepalive_timeout(Some(KEEPALIVE.1))
        .add_service(Route::new(chunks))
        .add_service(health_service.max_decoding_message_size(MAX_MESSAGE_BYTES))
        .add_service(reflection.max_decoding_message_size(MAX_MESSAGE_BYTES));
    let connections = listener::connections(listener, stop_accepting.clone());
    let ended = CancellationToken::new();
    let served = Served { ended: ended.clone() };
    tasks.spawn(async move {
        let _ended = ended.drop_guard();
        let serving = router.serve_with_incoming_shutdown(connections, async move {
            stop_accepting.cancelled().await;
            health.set_service_status(SERVICE_NAME, tonic_health::ServingStatus::NotServing).await;
        });
        if let Some(Err(error)) = stop.run_until_cancelled(serving).await {
            tracing::error!(%error, "serve chunks");
        }
    });
    served
}

/// A serving side that runs.
#[derive(Debug, Clone)]
pub struct Served {
    ended: CancellationToken,
}

impl Served {
    /// Returns once every call in flight has ended and all connections are closed.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }
}

impl<S: ChunkStore> Chunks<S> {
    fn sink(&self) -> Result<Arc<dyn ReplicaSink>, Status> {
        let refused = "this peer is a mount: it keeps only cached copies";
        self.store.sink().ok_or_else(|| Status::failed_precondition(refused))
    }

    async fn touch_all(&self, request: v1::TouchRequest) -> Result<v1::TouchReply, Status> {
        let sink = self.sink()?;
        let ids = convert::segment_ids("segment_ids", &request.segment_ids, MOST_IDS)?;
        let stamps = sink.touch(ids, receive::keep(request.keep_ms)?).await.map_err(|error| {
            tracing::warn!(%error, "touch segments");
            Status::unavailable(format!("the store failed: {error}"))
        })?;
        Ok(v1::TouchReply { stamps, process: self.process })
    }

    async fn sync_all(&self) -> Result<v1::SyncReply, Status> {
        self.sink()?.sync().await.map_err(|error| {
            tracing::warn!(%error, "sync the store");
            Status::unavailable(format!("the store failed: {error}"))
        })?;
        Ok(v1::SyncReply { process: self.process })
    }
}

#[tonic::async_trait]
impl<S: ChunkStore> ChunksCalls for Chunks<S> {
    async fn fetch(&self, request: Request<v1::FetchRequest>) -> Result<Response<v1::FetchReply>, Status> {
        let from = request.extensions().get::<Remote>().cloned();
        self.fetch_run(request.into_inner(), from.as_ref()).await.map(|answer| Response::new(answer.into()))
    }

    async fn fetch_many(&self, request: Request<v1::FetchManyRequest>) -> Result<Response<v1::FetchManyReply>, Status> {
        let from = request.extensions().get::<Remote>().cloned();
        let answers = self.fetch_each(request.into_inner(), from.as_ref()).await?;
        Ok(Response::new(v1::FetchManyReply { outcomes: answers.into_iter().map(outcome).collect() }))
    }

    async fn have(&self, request: Request<v1::HaveRequest>) -> Result<Response<v1::HaveReply>, Status> {
        let result = self.have_all(request.get_ref());
        self.counters.answered("have", &result);
        result.map(Response::new)
    }

    async fn store(&self, request: Request<Streaming<v1::StoreFrame>>) -> Result<Response<v1::StoreReply>, Status> {
        let result = match self.sink() {
            Ok(sink) => self.receive(sink, request.into_inner()).await,
            Err(refused) => Err(refused),
        };
        self.counters.answered("store", &result);
        result.map(Response::new)
    }

    type StoreStreamStream = BoxStream<'static, Result<v1::StoreSmallAnswer, Status>>;

    async fn store_stream(
        &self,
        request: Request<Streaming<v1::StoreSmallRequest>>,
    ) -> Result<Response<Self::StoreStreamStream>, Status> {
        let seat = request.extensions().get::<Arc<Seat>>().cloned();
        let (me, process) = (self.me, self.process);
        let small = Small { me, process, sink: self.sink()?, counters: self.counters.clone() };
        let (tasks, stop) = (self.tasks.clone(), self.stopping.clone());
        Ok(Response::new(small.answer_all(request.into_inner(), seat, tasks, stop).boxed()))
    }

    async fn touch(&self, request: Request<v1::TouchRequest>) -> Result<Response<v1::TouchReply>, Status> {
        let result = self.touch_all(request.into_inner()).await;
        self.counters.answered("touch", &result);
        result.map(Response::new)
    }

    async fn sync(&self, _: Request<v1::SyncRequest>) -> Result<Response<v1::SyncReply>, Status> {
        let result = self.sync_all().await;
        self.counters.answered("sync", &result);
        result.map(Response::new)
    }
}

#[cfg(test)]
mod tests;
