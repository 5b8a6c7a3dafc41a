//! A peer that behaves as it is told, and counts what it served.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::pending;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use prost::Message;
use swarm_proto::{ChunkRange, ChunkSet, ChunkTree, PeerId, Presence, Segment, SegmentId, convert, v1};
use tokio::runtime::{Builder, Runtime};
use tonic::Code;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::NamedService;
use tonic::transport::Server;

use super::reply::{self, Pace};
use crate::swarm::{Holder, PeerAddress};

/// How a fake peer answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Conduct {
    /// As it should.
    Honest,
    /// One bit of the data is wrong.
    WrongBytes,
    /// One bit of these chunks of one segment is wrong, all else is right: a rotten disk.
    Rotten(SegmentId, u32),
    /// One bit of the tree is wrong.
    WrongTree,
    /// The last byte of the data is missing.
    Truncated,
    /// The reply's message declares its right length and goes on for ever.
    Endless,
    /// The reply's message declares four gigabytes.
    Huge,
    /// So many bytes in each interval.
    Drip(usize, Duration),
    /// It says that it has nothing.
    Missing,
    /// It never answers.
    Hang,
    /// Every reply breaks off in the middle.
    Disconnect,
    /// It says that it has no capacity.
    Busy,
    /// It answers as it should, after a pause.
    Late(Duration),
}

/// What a fake peer served.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Served {
    /// Requests for chunks.
    pub requests: u64,
    /// Bytes of chunks in replies that were begun.
    pub bytes: u64,
    /// Bytes of trees.
    pub tree_bytes: u64,
    /// Questions about what it has.
    pub have: u64,
}

/// A real gRPC peer on loopback that behaves as it is told: an honest one, a `FlakySource`, a `SlowPeer`
/// or a `LyingPeer`, by its [`Conduct`].
pub struct FakePeer {
    address: SocketAddr,
    shared: Arc<Shared>,
    zone: String,
    runtime: Option<Runtime>,
}

struct Shared {
    id: PeerId,
    conduct: Mutex<Conduct>,
    segments: Mutex<HashMap<SegmentId, Content>>,
    served: Mutex<Served>,
    pace: Arc<Pace>,
}

#[derive(Clone)]
struct Content {
    tree: ChunkTree,
    data: Bytes,
    has: Presence,
}

impl FakePeer {
    /// A peer that listens on loopback.
    pub fn start(conduct: Conduct) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
        Self::listen(listener, conduct)
    }

    /// A peer on a socket of its own, which may lie in another network namespace.
    pub fn listen(listener: TcpListener, conduct: Conduct) -> Self {
        let shared = Arc::new(Shared {
            id: PeerId::random(),
            conduct: Mutex::new(conduct),
            segments: Mutex::default(),
            served: Mutex::default(),
            pace: Arc::default(),
        });
        let address = listener.local_addr().expect("it is bound");
        let runtime = Some(serve(listener, Arc::clone(&shared)));
        Self { address, shared, zone: String::new(), runtime }
    }

    /// The same, in a zone.
    #[must_use]
    pub fn in_zone(mut self, zone: &str) -> Self {
        zone.clone_into(&mut self.zone);
        self
    }

    /// Let it hold a segment.
    pub fn hold(&self, data: &[u8]) -> Segment {
        self.hold_bytes(&Bytes::copy_from_slice(data))
    }

    /// The same, with no copy: many peers can share them.
    pub fn hold_bytes(&self, data: &Bytes) -> Segment {
        let tree = ChunkTree::build(data);
        let content = Content { tree: tree.clone(), data: data.clone(), has: Presence::Whole };
        self.shared.segments.lock().insert(tree.segment().id, content);
        tree.segment()
    }

    /// Let it hold some chunks of a segment.
    pub fn hold_part(&self, data: &[u8], chunks: ChunkRange) -> Segment {
        let segment = self.hold(data);
        if let Some(content) = self.shared.segments.lock().get_mut(&segment.id) {
            let mut set = ChunkSet::empty(segment.chunks());
            set.insert(chunks);
            content.has = Presence::Partial(set);
        }
        segment
    }

    /// Change how it behaves; replies under way go on as before.
    pub fn set(&self, conduct: Conduct) {
        *self.shared.conduct.lock() = conduct;
    }

    /// Limit what it sends in a second, over all replies.
    pub fn limit(&self, bytes_per_second: u64) {
        self.shared.pace.set(Some(bytes_per_second));
    }

    /// Who it is.
    pub fn id(&self) -> PeerId {
        self.shared.id
    }

    /// What it served so far.
    pub fn served(&self) -> Served {
        *self.shared.served.lock()
    }

    /// As a tracker would name it, as a whole holder.
    pub fn holder(&self) -> Holder {
        let address = self.address.to_string();
        let peer = PeerAddress { id: self.shared.id, host: address.clone(), address, zone: self.zone.clone() };
        Holder { peer, partial: false }
    }

    /// The same, as a partial holder.
    pub fn partial_holder(&self) -> Holder {
        Holder { partial: true, ..self.holder() }
    }

    /// End it at once, with all its connections.
    pub fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    /// Start it again at the same address, with what it held.
    pub fn revive(&mut self) {
        self.kill();
        // The killed one's socket is closed by its own thread, a moment later.
        for _ in 0..200 {
            if let Ok(listener) = TcpListener::bind(self.address) {
                self.runtime = Some(serve(listener, Arc::clone(&self.shared)));
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("{} is still taken", self.address);
    }
}

impl Drop for FakePeer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn serve(listener: TcpListener, shared: Arc<Shared>) -> Runtime {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("threads can be started");
    listener.set_nonblocking(true).expect("a socket can be non-blocking");
    runtime.spawn(async move {
        let listener = tokio::net::TcpListener::from_std(listener).expect("it is non-blocking");
        let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
        let server = Server::builder().max_frame_size(1 << 20).add_service(FakeChunks(shared));
        drop(server.serve_with_incoming(incoming).await);
    });
    runtime
}

#[derive(Clone)]
struct FakeChunks(Arc<Shared>);

impl NamedService for FakeChunks {
    const NAME: &'static str = "swarm.v1.Chunks";
}

impl Service<http::Request<Body>> for FakeChunks {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            let (head, body) = request.into_parts();
            Ok(match head.uri.path().rsplit('/').next() {
                Some("Fetch") => match reply::request::<v1::FetchRequest>(body).await {
                    Some(request) => shared.fetch(&request).await,
                    None => reply::status(Code::InvalidArgument, "not a request"),
                },
                Some("FetchMany") => match reply::request::<v1::FetchManyRequest>(body).await {
                    Some(request) => shared.fetch_many(&request).await,
                    None => reply::status(Code::InvalidArgument, "not a request"),
                },
                _ => match reply::request::<v1::HaveRequest>(body).await {
                    Some(request) => shared.have(&request).await,
                    None => reply::status(Code::InvalidArgument, "not a request"),
                },
            })
        })
    }
}

impl Shared {
    async fn fetch(&self, request: &v1::FetchRequest) -> http::Response<Body> {
        let conduct = self.begin().await;
        match self.outcome(&conduct, request) {
            Ok(message) => self.send(&conduct, &message),
            Err((code, words)) => reply::status(code, words),
        }
    }

    async fn fetch_many(&self, request: &v1::FetchManyRequest) -> http::Response<Body> {
        let conduct = self.begin().await;
        let outcome = |fetch| match self.outcome(&conduct, fetch) {
            Ok(reply) => v1::FetchOutcome { reply: Some(reply), ..v1::FetchOutcome::default() },
            Err((code, words)) => v1::FetchOutcome {
                reply: None,
                code: u32::try_from(i32::from(code)).expect("codes are small"),
                message: words.to_owned(),
            },
        };
        let message = v1::FetchManyReply { outcomes: request.fetches.iter().map(outcome).collect() };
        self.send(&conduct, &message)
    }

    /// One more request, answered after what the conduct has it wait.
    async fn begin(&self) -> Conduct {
        self.served.lock().requests += 1;
        let conduct = self.conduct.lock().clone();
        match &conduct {
            Conduct::Hang => pending().await,
            Conduct::Late(pause) => tokio::time::sleep(*pause).await,
            _ => {}
        }
        conduct
    }

    fn outcome(&self, conduct: &Conduct, request: &v1::FetchRequest) -> Result<v1::FetchReply, (Code, &'static str)> {
        if *conduct == Conduct::Busy {
            return Err((Code::ResourceExhausted, "busy"));
        }
        let id = convert::segment_id("segment_id", &request.segment_id)
            .map_err(|_| (Code::InvalidArgument, "segment_id"))?;
        let content = self.segments.lock().get(&id).cloned();
        let content =
            content.filter(|_| *conduct != Conduct::Missing).ok_or((Code::NotFound, "no such segment here"))?;
        let chunks = convert::fetch_range(request)
            .ok()
            .filter(|chunks| content.tree.segment().all().contains(*chunks))
            .ok_or((Code::InvalidArgument, "no such chunks"))?;
        Ok(match content.has.has(chunks) {
            false => v1::FetchReply { held: Some((&content.has).into()), ..Default::default() },
            true => self.answer(conduct, &content, chunks, request.with_tree),
        })
    }

    fn answer(&self, conduct: &Conduct, content: &Content, chunks: ChunkRange, with_tree: bool) -> v1::FetchReply {
        let segment = content.tree.segment();
        let bytes = segment.bytes_of(chunks);
        let at = |offset: u64| usize::try_from(offset).expect("segments are short");
        let mut data = content.data.slice(at(bytes.start)..at(bytes.end));
        let mut tree = if with_tree { content.tree.values().clone() } else { Bytes::new() };
        {
            let mut served = self.served.lock();
            served.bytes += data.len() as u64;
            served.tree_bytes += tree.len() as u64;
        }
        match conduct {
            Conduct::WrongBytes => data = flipped(&data, data.len() / 2),
            Conduct::Rotten(id, chunk) if *id == segment.id && chunks.iter().contains(chunk) => {
                let start = segment.bytes_of(ChunkRange::new(*chunk, chunk + 1)).start;
                data = flipped(&data, at(start - bytes.start));
            }
            Conduct::WrongTree if !tree.is_empty() => tree = flipped(&tree, tree.len() / 3),
            Conduct::Truncated => data.truncate(data.len() - 1),
            _ => {}
        }
        v1::FetchReply { tree, data, held: None }
    }

    fn send(&self, conduct: &Conduct, message: &impl Message) -> http::Response<Body> {
        let framed = reply::framed(message, (*conduct == Conduct::Huge).then_some(u32::MAX));
        match conduct {
            Conduct::Endless | Conduct::Huge => reply::endless(framed),
            Conduct::Drip(bytes, every) => reply::dripped(framed, *bytes, *every),
            Conduct::Disconnect => reply::broken(framed.slice(..framed.len() / 2)),
            _ => reply::whole(framed, Arc::clone(&self.pace)),
        }
    }

    async fn have(&self, request: &v1::HaveRequest) -> http::Response<Body> {
        self.served.lock().have += 1;
        let conduct = self.conduct.lock().clone();
        if conduct == Conduct::Hang {
            pending().await
        }
        let Ok(ids) = convert::segment_ids("segment_ids", &request.segment_ids, 4096) else {
            return reply::status(Code::InvalidArgument, "segment_ids");
        };
        let none = v1::Presence::default();
        let segments = self.segments.lock();
        let of = |id: &SegmentId| segments.get(id).map_or_else(|| none.clone(), |content| (&content.has).into());
        let message = v1::HaveReply { presences: ids.iter().map(of).collect() };
        reply::whole(reply::framed(&message, None), Arc::clone(&self.pace))
    }
}

fn flipped(bytes: &Bytes, at: usize) -> Bytes {
    let mut bytes = bytes.to_vec();
    bytes[at] ^= 1;
    bytes.into()
}
