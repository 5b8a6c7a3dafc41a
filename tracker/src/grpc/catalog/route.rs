//! How calls reach [`CatalogService`]: each by the generated server, with the largest message that it may bring.
//!
//! There may be a thousand streams of changes, open for hours: a message that is half here is smaller there than in a
//! call, which has a deadline.

use std::convert::Infallible;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use http::{Request, Response};
use swarm_proto::v1::catalog_server::{CatalogServer, SERVICE_NAME};
use swarm_proto::{MAX_MESSAGE_BYTES, MAX_STREAMED_CHANGE_BYTES};
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;

use super::CatalogService;

/// The service `Catalog` on the wire.
#[derive(Clone)]
pub struct CatalogRoute {
    calls: CatalogServer<CatalogService>,
    changes: CatalogServer<CatalogService>,
}

impl CatalogRoute {
    /// Serve `service`.
    pub fn new(service: CatalogService) -> Self {
        let server = CatalogServer::new(service).max_encoding_message_size(MAX_MESSAGE_BYTES);
        Self {
            changes: server.clone().max_decoding_message_size(MAX_STREAMED_CHANGE_BYTES),
            calls: server.max_decoding_message_size(MAX_MESSAGE_BYTES),
        }
    }
}

impl NamedService for CatalogRoute {
    const NAME: &'static str = SERVICE_NAME;
}

impl Service<Request<Body>> for CatalogRoute {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match request.uri().path().ends_with("/MutateStream") {
            true => self.changes.call(request),
            false => self.calls.call(request),
        }
    }
}
