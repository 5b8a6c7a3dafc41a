//! The `Holders` service: one method each, all of them in their own rooms.

use std::sync::Arc;

use swarm_proto::v1::holders_server::Holders;
use swarm_proto::v1::{
    AnnounceMessage, LocateReply, LocateRequest, PeersReply, PeersRequest, PlaceReply, PlaceRequest, ReportReply,
    ReportRequest, StatusReply, StatusRequest, TrackerOrder,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::desk::Desk;
use super::{announce, locate, peers, place, report, status};

/// The service.
pub struct HoldersService {
    desk: Arc<Desk>,
}

impl HoldersService {
    /// Answers from `desk`.
    pub fn new(desk: Arc<Desk>) -> Self {
        Self { desk }
    }
}

#[tonic::async_trait]
impl Holders for HoldersService {
    type AnnounceStream = ReceiverStream<Result<TrackerOrder, Status>>;

    async fn announce(
        &self,
        request: Request<Streaming<AnnounceMessage>>,
    ) -> Result<Response<Self::AnnounceStream>, Status> {
        let seen = request.remote_addr().map(|address| address.ip());
        Ok(Response::new(announce::begin(&self.desk, request.into_inner(), seen)))
    }

    async fn locate(&self, request: Request<LocateRequest>) -> Result<Response<LocateReply>, Status> {
        locate::locate(&self.desk, &request.into_inner()).map(Response::new)
    }

    async fn place(&self, request: Request<PlaceRequest>) -> Result<Response<PlaceReply>, Status> {
        place::place(&self.desk, request.into_inner()).await.map(Response::new)
    }

    async fn report(&self, request: Request<ReportRequest>) -> Result<Response<ReportReply>, Status> {
        report::report(&self.desk, &request.into_inner()).map(Response::new)
    }

    async fn peers(&self, _: Request<PeersRequest>) -> Result<Response<PeersReply>, Status> {
        Ok(Response::new(peers::peers(&self.desk)))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        status::status(&self.desk, &request.into_inner()).await.map(Response::new)
    }
}
