//! A hostile peer: stands before an honest seeder, under whose name it is announced, and lies.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use http_body_util::StreamBody;
use swarm_proto::v1::chunks_client::ChunksClient;
use swarm_proto::v1::chunks_server::{Chunks, ChunksServer};
use swarm_proto::v1::{
    FetchManyReply, FetchManyRequest, FetchOutcome, FetchReply, FetchRequest, HaveReply, HaveRequest, StoreFrame,
    StoreReply, SyncReply, SyncRequest, TouchReply, TouchRequest,
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status, Streaming};

/// What it does to the answers of a fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Lie {
    /// Nothing: it passes on what the seeder says.
    Honest,
    /// One bit of the data is wrong.
    WrongBytes,
    /// One bit of the tree is wrong.
    WrongTree,
    /// The last byte is missing.
    Truncated,
    /// More data than was asked for.
    TooLong,
    /// Data that never ends.
    Endless,
    /// A message of 1 MiB at twenty bytes a second.
    Drip,
}

impl Lie {
    pub(crate) const ALL: [Self; 6] =
        [Self::WrongBytes, Self::WrongTree, Self::Truncated, Self::TooLong, Self::Endless, Self::Drip];

    fn of(number: u8) -> Self {
        Self::ALL.into_iter().find(|lie| *lie as u8 == number).unwrap_or(Self::Honest)
    }
}

/// The liar; it stops when this is dropped.
pub(crate) struct Liar {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    _runtime: tokio::runtime::Runtime,
}

struct Shared {
    lie: AtomicU8,
    lies_told: AtomicU64,
}

impl Liar {
    /// Listen; `seeder` is where the honest one will be.
    pub(crate) fn before(seeder: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let shared = Arc::new(Shared { lie: AtomicU8::new(0), lies_told: AtomicU64::new(0) });
        let honest = Channel::from_shared(format!("http://{seeder}")).unwrap();
        let address = runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let proxy = Proxy { honest: ChunksClient::new(honest.connect_lazy()), shared: shared.clone() };
            let service = Raw { polite: ChunksServer::new(proxy), shared: shared.clone() };
            let serve = Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener));
            #[expect(clippy::disallowed_methods, reason = "it ends with the runtime, which the liar owns")]
            tokio::spawn(serve);
            address
        });
        Self { address, shared, _runtime: runtime }
    }

    pub(crate) fn tell(&self, lie: Lie) {
        self.shared.lie.store(lie as u8, Ordering::SeqCst);
    }

    pub(crate) fn lies_told(&self) -> u64 {
        self.shared.lies_told.load(Ordering::SeqCst)
    }
}

impl Shared {
    fn lie(&self) -> Lie {
        let lie = Lie::of(self.lie.load(Ordering::SeqCst));
        if lie != Lie::Honest {
            self.lies_told.fetch_add(1, Ordering::SeqCst);
        }
        lie
    }
}

/// Passes calls on, and changes what a fetch answers.
struct Proxy {
    honest: ChunksClient<Channel>,
    shared: Arc<Shared>,
}

fn flipped(bytes: &Bytes) -> Bytes {
    let mut bytes = bytes.to_vec();
    if let Some(byte) = bytes.last_mut() {
        *byte ^= 1;
    }
    bytes.into()
}

#[tonic::async_trait]
impl Chunks for Proxy {
    async fn fetch(&self, request: Request<FetchRequest>) -> Result<Response<FetchReply>, Status> {
        let asked = request.into_inner();
        let mut reply = self.honest.clone().fetch(asked).await?.into_inner();
        match self.shared.lie() {
            Lie::WrongTree if !reply.tree.is_empty() => reply.tree = flipped(&reply.tree),
            Lie::WrongBytes | Lie::WrongTree => reply.data = flipped(&reply.data),
            Lie::Truncated => reply.data.truncate(reply.data.len().saturating_sub(1)),
            Lie::TooLong => reply.data = [reply.data.as_ref(), b"x"].concat().into(),
            Lie::Honest | Lie::Endless | Lie::Drip => {}
        }
        Ok(Response::new(reply))
    }

    async fn fetch_many(&self, request: Request<FetchManyRequest>) -> Result<Response<FetchManyReply>, Status> {
        let mut outcomes = Vec::new();
        for fetch in request.into_inner().fetches {
            outcomes.push(match self.fetch(Request::new(fetch)).await {
                Ok(reply) => FetchOutcome { reply: Some(reply.into_inner()), ..FetchOutcome::default() },
                Err(status) => FetchOutcome {
                    reply: None,
                    code: u32::try_from(i32::from(status.code())).unwrap(),
                    message: status.message().to_owned(),
                },
            });
        }
        Ok(Response::new(FetchManyReply { outcomes }))
    }

    async fn have(&self, request: Request<HaveRequest>) -> Result<Response<HaveReply>, Status> {
        self.honest.clone().have(request.into_inner()).await
    }

    async fn store(&self, request: Request<Streaming<StoreFrame>>) -> Result<Response<StoreReply>, Status> {
        let frames = request.into_inner().filter_map(|frame| std::future::ready(frame.ok()));
        self.honest.clone().store(frames).await
    }

    // Who has no such stream is sent each by a call.
    type StoreStreamStream = futures::stream::BoxStream<'static, Result<swarm_proto::v1::StoreSmallAnswer, Status>>;

    async fn store_stream(
        &self,
        _: Request<Streaming<swarm_proto::v1::StoreSmallRequest>>,
    ) -> Result<Response<Self::StoreStreamStream>, Status> {
        Err(Status::unimplemented("store_stream"))
    }

    async fn touch(&self, request: Request<TouchRequest>) -> Result<Response<TouchReply>, Status> {
        self.honest.clone().touch(request.into_inner()).await
    }

    async fn sync(&self, request: Request<SyncRequest>) -> Result<Response<SyncReply>, Status> {
        self.honest.clone().sync(request.into_inner()).await
    }
}

/// Answers a fetch with raw bytes where a well-formed message would be too honest.
#[derive(Clone)]
struct Raw {
    polite: ChunksServer<Proxy>,
    shared: Arc<Shared>,
}

impl NamedService for Raw {
    const NAME: &'static str = <ChunksServer<Proxy> as NamedService>::NAME;
}

impl tower::Service<http::Request<Body>> for Raw {
    type Response = http::Response<Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<'static, Result<http::Response<Body>, std::convert::Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        tower::Service::<http::Request<Body>>::poll_ready(&mut self.polite, context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let lie = Lie::of(self.shared.lie.load(Ordering::SeqCst));
        let raw = matches!(lie, Lie::Endless | Lie::Drip) && request.uri().path().contains("/Fetch");
        if !raw {
            return Box::pin(self.polite.call(request));
        }
        self.shared.lie();
        Box::pin(async move {
            let header = http_body::Frame::data(Bytes::from_static(&[0, 0, 0x10, 0, 0]));
            let (block, pause) = match lie {
                Lie::Drip => (Bytes::from_static(b"x"), Duration::from_millis(50)),
                _ => (Bytes::from(vec![b'x'; 16 << 10]), Duration::ZERO),
            };
            let more = futures::stream::repeat(()).then(move |()| {
                let block = block.clone();
                async move {
                    tokio::time::sleep(pause).await;
                    http_body::Frame::data(block)
                }
            });
            let frames = futures::stream::iter([header]).chain(more).map(Ok::<_, std::convert::Infallible>);
            let response = http::Response::builder().header("content-type", "application/grpc");
            Ok(response.body(Body::new(StreamBody::new(frames))).expect("a valid response"))
        })
    }
}
