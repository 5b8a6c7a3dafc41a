//! The `Catalog` service: names and manifests.
//!
//! Checks and converts messages; all meaning lies in [`crate::catalog`] and [`crate::namespace`]. No call
//! waits for ever: reads wait at most [`CATCH_UP`](crate::catalog::CATCH_UP) for their revision, an upload that
//! is silent for [`SILENCE`] is cut. A stream of changes ends by a time of its own, in `changes`.

mod changes;
mod convert;
mod manifests;
mod read;
mod route;
mod transfer;

#[cfg(test)]
mod tests;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use swarm_proto::v1::{self, catalog_server};
use swarm_proto::{Fault, Revision, fault};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use crate::catalog::{CapacitySource, Catalog};
use crate::metrics::Metrics;
use crate::namespace::Refusal;
use crate::store::StoreError;

pub use route::CatalogRoute;

/// Longest silence of an upload.
const SILENCE: Duration = Duration::from_secs(30);

type Reply<T> = Result<Response<T>, Status>;
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// See the module.
#[derive(Clone)]
pub struct CatalogService {
    catalog: Arc<Catalog>,
    capacity: Arc<dyn CapacitySource>,
    uploads: Arc<tokio::sync::Semaphore>,
    streamed: changes::Desk,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// Manifests and catalogs that may arrive at the same time; more wait.
const UPLOADS: usize = 16;

impl CatalogService {
    /// Serve a catalog; wrap it in [`CatalogRoute`].
    pub fn new(catalog: Arc<Catalog>, capacity: Arc<dyn CapacitySource>) -> Self {
        let uploads = Arc::new(tokio::sync::Semaphore::new(UPLOADS));
        let streamed = changes::Desk::new(catalog.clone());
        Self { catalog, capacity, uploads, streamed, tasks: TaskTracker::new(), stop: CancellationToken::new() }
    }

    /// Count changes that come over a stream like calls.
    pub fn counted(self, metrics: Arc<Metrics>) -> Self {
        Self { streamed: self.streamed.counted(metrics), ..self }
    }

    /// Run streams of changes in `tasks`, and end them and those of watchers at `stop`: they would go on for ever.
    pub fn until(self, stop: CancellationToken, tasks: TaskTracker) -> Self {
        Self { stop, tasks, ..self }
    }

    /// A place among the uploads; waits for one as long as a stream may be silent.
    async fn upload_permit(&self) -> Result<tokio::sync::OwnedSemaphorePermit, Status> {
        match tokio::time::timeout(SILENCE, self.uploads.clone().acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(fault::to_status(Fault::Unavailable, "too many uploads at the same time: try again")),
        }
    }
}

/// A refusal as a client gets it.
fn status_of(refusal: Refusal) -> Status {
    fault::to_status(refusal.fault, refusal.message)
}

fn store_status(error: &StoreError) -> Status {
    status_of(crate::catalog::refusal_of(error))
}

/// The next message of a client's stream, or why there is none.
async fn next<T>(stream: &mut Streaming<T>) -> Result<Option<T>, Status> {
    match tokio::time::timeout(SILENCE, stream.message()).await {
        Ok(message) => message,
        Err(_) => Err(Status::deadline_exceeded(format!("nothing came for {} seconds", SILENCE.as_secs()))),
    }
}

#[tonic::async_trait]
impl catalog_server::Catalog for CatalogService {
    type ReadDirStream = Answers<v1::ReadDirReply>;
    type GetManifestStream = Answers<v1::ManifestPage>;
    type MutateStreamStream = Answers<v1::MutateAnswer>;
    type WatchStream = Answers<v1::WatchReply>;
    type ExportStream = Answers<v1::CatalogPart>;

    async fn lookup(&self, request: Request<v1::LookupRequest>) -> Reply<v1::NodeReply> {
        read::lookup(&self.catalog, request.into_inner()).await.map(Response::new)
    }

    async fn resolve(&self, request: Request<v1::ResolveRequest>) -> Reply<v1::NodeReply> {
        read::resolve(&self.catalog, request.into_inner()).await.map(Response::new)
    }

    async fn get_node(&self, request: Request<v1::GetNodeRequest>) -> Reply<v1::NodeReply> {
        read::get_node(&self.catalog, request.into_inner()).await.map(Response::new)
    }

    async fn lease_nodes(&self, request: Request<v1::LeaseNodesRequest>) -> Reply<v1::LeaseNodesReply> {
        read::lease_nodes(&self.catalog, request.into_inner()).await.map(Response::new)
    }

    async fn read_dir(&self, request: Request<v1::ReadDirRequest>) -> Reply<Self::ReadDirStream> {
        read::read_dir(self.catalog.clone(), request.into_inner()).await.map(Response::new)
    }

    async fn get_manifest(&self, request: Request<v1::GetManifestRequest>) -> Reply<Self::GetManifestStream> {
        manifests::get(&self.catalog, &request.into_inner()).await.map(Response::new)
    }

    async fn get_manifests(&self, request: Request<v1::GetManifestsRequest>) -> Reply<v1::GetManifestsReply> {
        manifests::get_many(&self.catalog, &request.into_inner()).await.map(Response::new)
    }

    async fn put_manifest(&self, request: Request<Streaming<v1::ManifestPage>>) -> Reply<v1::PutManifestReply> {
        let _permit = self.upload_permit().await?;
        manifests::put(&self.catalog, request.into_inner()).await.map(Response::new)
    }

    async fn mutate(&self, request: Request<v1::MutateRequest>) -> Reply<v1::MutateReply> {
        changes::answer(&self.catalog, request.into_inner()).await.map(Response::new)
    }

    async fn mutate_stream(&self, request: Request<Streaming<v1::MutateRequest>>) -> Reply<Self::MutateStreamStream> {
        let seat = self.streamed.seat(request.remote_addr().map(|address| address.ip()))?;
        let (tasks, stop) = (self.tasks.clone(), self.stop.clone());
        Ok(Response::new(Box::pin(self.streamed.answer_all(request.into_inner(), seat, tasks, stop))))
    }

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Reply<Self::WatchStream> {
        let after = Revision(request.into_inner().after_revision);
        let changes = read::watch(self.catalog.clone(), after);
        Ok(Response::new(Box::pin(changes.take_until(self.stop.clone().cancelled_owned()))))
    }

    async fn stat_fs(&self, _: Request<v1::StatFsRequest>) -> Reply<v1::StatFsReply> {
        let capacity = self.capacity.capacity();
        Ok(Response::new(v1::StatFsReply {
            capacity_bytes: capacity.capacity_bytes,
            free_bytes: capacity.free_bytes,
            inodes: self.catalog.counts().inodes,
            swarm_id: self.catalog.swarm_id().to_wire(),
        }))
    }

    async fn export(&self, _: Request<v1::ExportRequest>) -> Reply<Self::ExportStream> {
        Ok(Response::new(transfer::export(&self.catalog).await))
    }

    async fn import(&self, request: Request<Streaming<v1::CatalogPart>>) -> Reply<v1::ImportReply> {
        let _permit = self.upload_permit().await?;
        transfer::import(&self.catalog, self.capacity.as_ref(), request.into_inner()).await.map(Response::new)
    }
}
