//! Changes over a stream, against a tracker whose streams are of no use.

use super::*;
use std::sync::atomic::AtomicUsize;

use futures::stream::BoxStream;
use swarm_proto::SwarmId;
use swarm_proto::v1::catalog_server::{Catalog, CatalogServer};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Request;
use tonic::transport::Server;

use crate::tracker_client::TrackerClientConfig;

/// A tracker that answers each change over a stream with UNAVAILABLE, and makes it when it is called.
#[derive(Clone, Default)]
struct Busy {
    refused: Arc<AtomicUsize>,
    made: Arc<parking_lot::Mutex<Vec<Bytes>>>,
}

type Reply<T> = Result<Response<T>, Status>;

fn none<T>() -> Reply<T> {
    Err(Status::unimplemented("not asked in these tests"))
}

#[tonic::async_trait]
impl Catalog for Busy {
    type ReadDirStream = BoxStream<'static, Result<v1::ReadDirReply, Status>>;
    type GetManifestStream = BoxStream<'static, Result<v1::ManifestPage, Status>>;
    type MutateStreamStream = BoxStream<'static, Result<v1::MutateAnswer, Status>>;
    type WatchStream = BoxStream<'static, Result<v1::WatchReply, Status>>;
    type ExportStream = BoxStream<'static, Result<v1::CatalogPart, Status>>;

    async fn mutate(&self, request: Request<v1::MutateRequest>) -> Reply<v1::MutateReply> {
        let request = request.into_inner();
        self.made.lock().push(request.request_id);
        let results = request.operations.iter().map(|_| v1::OperationResult::default()).collect();
        Ok(Response::new(v1::MutateReply { revision: 1, results }))
    }

    async fn mutate_stream(&self, request: Request<Streaming<v1::MutateRequest>>) -> Reply<Self::MutateStreamStream> {
        let refused = self.refused.clone();
        let answers = request.into_inner().map(move |request| {
            refused.fetch_add(1, Ordering::SeqCst);
            Ok(v1::MutateAnswer {
                request_id: request?.request_id,
                fault: Fault::Unavailable.into(),
                message: "too many changes at the same time".to_owned(),
                reply: None,
            })
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn lookup(&self, _: Request<v1::LookupRequest>) -> Reply<v1::NodeReply> {
        none()
    }
    async fn resolve(&self, _: Request<v1::ResolveRequest>) -> Reply<v1::NodeReply> {
        none()
    }
    async fn get_node(&self, _: Request<v1::GetNodeRequest>) -> Reply<v1::NodeReply> {
        none()
    }
    async fn lease_nodes(&self, _: Request<v1::LeaseNodesRequest>) -> Reply<v1::LeaseNodesReply> {
        none()
    }
    async fn get_manifests(&self, _: Request<v1::GetManifestsRequest>) -> Reply<v1::GetManifestsReply> {
        none()
    }
    async fn stat_fs(&self, _: Request<v1::StatFsRequest>) -> Reply<v1::StatFsReply> {
        none()
    }
    async fn read_dir(&self, _: Request<v1::ReadDirRequest>) -> Reply<Self::ReadDirStream> {
        none()
    }
    async fn get_manifest(&self, _: Request<v1::GetManifestRequest>) -> Reply<Self::GetManifestStream> {
        none()
    }
    async fn watch(&self, _: Request<v1::WatchRequest>) -> Reply<Self::WatchStream> {
        none()
    }
    async fn export(&self, _: Request<v1::ExportRequest>) -> Reply<Self::ExportStream> {
        none()
    }
    async fn put_manifest(&self, _: Request<Streaming<v1::ManifestPage>>) -> Reply<v1::PutManifestReply> {
        none()
    }
    async fn import(&self, _: Request<Streaming<v1::CatalogPart>>) -> Reply<v1::ImportReply> {
        none()
    }
}

async fn start(tracker: Busy) -> (TrackerClient, DropGuard) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let connections = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let service = CatalogServer::new(tracker).max_decoding_message_size(swarm_proto::MAX_MESSAGE_BYTES);
    let server = Server::builder().add_service(service);
    let serving = server.serve_with_incoming_shutdown(connections, stop.clone().cancelled_owned());
    tokio_util::task::TaskTracker::new().spawn(serving);
    let config = TrackerClientConfig {
        address: address.to_string().parse().unwrap(),
        me: None,
        zone: String::new(),
        patience: Duration::ZERO,
    };
    let client = TrackerClient::new(config).unwrap();
    client.bind_to(SwarmId::random());
    (client, stop.drop_guard())
}

fn make_directory(name: impl Into<Bytes>) -> v1::operation::Operation {
    let make = v1::MakeDirectory { parent: 1, name: name.into(), ownership: None };
    v1::operation::Operation::MakeDirectory(make)
}

#[tokio::test]
async fn a_change_that_a_stream_has_no_room_for_is_made_by_a_call() {
    let tracker = Busy::default();
    let (client, _stop) = start(tracker.clone()).await;
    let mut made = 0;
    // Without patience, so that nothing is tried twice. The first changes go by calls until the stream is open.
    while tracker.refused.load(Ordering::SeqCst) < 10 {
        client.change(AckLevel::Close, make_directory("a")).await.unwrap();
        made += 1;
        assert!(made < 10_000, "the stream is used");
    }
    let ids: std::collections::HashSet<Bytes> = tracker.made.lock().iter().cloned().collect();
    assert_eq!((tracker.made.lock().len(), ids.len()), (made, made));
}

#[tokio::test]
async fn a_change_that_is_too_large_for_a_stream_does_not_go_there() {
    let tracker = Busy::default();
    let (client, _stop) = start(tracker.clone()).await;
    while tracker.refused.load(Ordering::SeqCst) == 0 {
        client.change(AckLevel::Close, make_directory("a")).await.unwrap();
    }
    client.change(AckLevel::Close, make_directory(vec![b'x'; MAX_STREAMED_CHANGE_BYTES])).await.unwrap();
    assert_eq!(tracker.refused.load(Ordering::SeqCst), 1);
}
