//! A tracker on port 0, and peers that say what a test wants them to say.

#![allow(dead_code, reason = "each test program uses a part")]

use std::time::{Duration, Instant};

use swarm_proto::v1::announce_message::Message;
use swarm_proto::v1::holders_client::HoldersClient;
use swarm_proto::v1::tracker_order::Order;
use swarm_proto::v1::{self, AnnounceMessage, Hello, LocateRequest, PeerKind, PeerState, Welcome};
use swarm_proto::{PeerId, ProcessId, SegmentId};
use swarm_tracker::config::AdminListen;
use swarm_tracker::{Tracker, TrackerConfig};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

/// Longest wait for anything that must happen.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// In memory, on any port, with a short grace.
pub(crate) fn config() -> TrackerConfig {
    TrackerConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        admin_listen: AdminListen::Off,
        stale_grace: swarm_proto::settings::Span(Duration::from_millis(1500)),
        ..TrackerConfig::default()
    }
}

pub(crate) async fn channel(tracker: &Tracker) -> Channel {
    Endpoint::from_shared(format!("http://{}", tracker.address())).unwrap().connect().await.unwrap()
}

pub(crate) async fn holders(tracker: &Tracker) -> HoldersClient<Channel> {
    HoldersClient::new(channel(tracker).await)
}

pub(crate) fn segment(number: u32) -> SegmentId {
    SegmentId::new(*blake3::hash(&number.to_le_bytes()).as_bytes())
}

pub(crate) fn segments(numbers: impl IntoIterator<Item = u32>) -> Vec<SegmentId> {
    numbers.into_iter().map(segment).collect()
}

/// One announce stream, over a connection of its own.
pub(crate) struct FakePeer {
    pub(crate) id: PeerId,
    pub(crate) process: ProcessId,
    pub(crate) out: mpsc::Sender<AnnounceMessage>,
    pub(crate) orders: Streaming<v1::TrackerOrder>,
}

pub(crate) fn hello(kind: PeerKind, number: u8) -> Hello {
    Hello {
        peer_id: PeerId::new([number; 16]).to_wire(),
        kind: kind.into(),
        address: format!("0.0.0.0:{}", 9000 + u16::from(number)),
        zone: String::new(),
        host: format!("host-{number}"),
        capacity_bytes: 1 << 40,
        version: "test".into(),
        process_id: ProcessId::random().to_wire(),
    }
}

impl FakePeer {
    pub(crate) async fn connect(tracker: &Tracker, hello: Hello) -> Self {
        Self::connect_over(channel(tracker).await, hello).await
    }

    async fn connect_over(channel: Channel, hello: Hello) -> Self {
        let (out, messages) = mpsc::channel(64);
        let id = PeerId::try_from(&hello.peer_id[..]).unwrap_or(PeerId::new([0; 16]));
        let process = ProcessId::try_from(&hello.process_id[..]).unwrap_or(ProcessId::new([0; 16]));
        let message = AnnounceMessage { message: Some(Message::Hello(hello)) };
        out.send(message).await.unwrap();
        let mut client = HoldersClient::new(channel);
        let orders = client.announce(ReceiverStream::new(messages)).await.unwrap().into_inner();
        Self { id, process, out, orders }
    }

    /// Connected and welcomed.
    pub(crate) async fn join(tracker: &Tracker, hello: Hello) -> (Self, Welcome) {
        Self::join_over(channel(tracker).await, hello).await
    }

    /// The same, over a connection that the test made.
    pub(crate) async fn join_over(channel: Channel, hello: Hello) -> (Self, Welcome) {
        let mut peer = Self::connect_over(channel, hello).await;
        match peer.order().await.unwrap() {
            Order::Welcome(welcome) => (peer, welcome),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn send(&self, message: Message) {
        self.out.send(AnnounceMessage { message: Some(message) }).await.unwrap();
    }

    pub(crate) async fn inventory(&self, whole: &[SegmentId], last: bool) {
        let whole_ids = SegmentId::pack(whole);
        self.send(Message::Inventory(v1::Inventory { whole_ids, last, ..Default::default() })).await;
    }

    /// Say all that it holds, and wait until the tracker knows it and counts this peer.
    pub(crate) async fn tell(&mut self, whole: &[SegmentId]) {
        self.inventory(whole, true).await;
        self.taken().await;
    }

    /// The next order that wants something.
    pub(crate) async fn order(&mut self) -> Result<Order, Status> {
        loop {
            match self.next().await? {
                Order::InventoryTaken(_) => {}
                order => return Ok(order),
            }
        }
    }

    /// The tracker knows what was told.
    pub(crate) async fn taken(&mut self) {
        while !matches!(self.next().await.unwrap(), Order::InventoryTaken(_)) {}
    }

    async fn next(&mut self) -> Result<Order, Status> {
        let next = tokio::time::timeout(SOON, self.orders.message()).await.expect("an order in time");
        next.map(|order| order.expect("an order, not the end").order.expect("a known order"))
    }

    /// Why the stream ended, whatever came before.
    pub(crate) async fn end(&mut self) -> Status {
        loop {
            if let Err(status) = self.order().await {
                return status;
            }
        }
    }
}

/// Who holds each segment: (peer id, partial), best first.
pub(crate) async fn locate(client: &HoldersClient<Channel>, ids: &[SegmentId]) -> Vec<Vec<(PeerId, bool)>> {
    let request = LocateRequest { segment_ids: SegmentId::pack(ids), ..Default::default() };
    let reply = client.clone().locate(request).await.unwrap().into_inner();
    assert_eq!(reply.counts.len(), ids.len());
    let mut holders = reply.holders.iter();
    reply
        .counts
        .iter()
        .map(|count| {
            holders
                .by_ref()
                .take(*count as usize)
                .map(|holder| {
                    let peer = &reply.peers[*holder as usize / 2];
                    (PeerId::try_from(&peer.peer_id[..]).unwrap(), holder % 2 == 1)
                })
                .collect()
        })
        .collect()
}

pub(crate) async fn state(client: &HoldersClient<Channel>, id: PeerId) -> Option<PeerState> {
    let peers = client.clone().peers(v1::PeersRequest {}).await.unwrap().into_inner().peers;
    peers.into_iter().filter_map(|peer| peer.info).find(|info| info.peer_id == id.to_wire()).map(|info| info.state())
}

/// Ask until the answer is right; panics with the last one after [`SOON`].
pub(crate) async fn until<T: std::fmt::Debug, F: Future<Output = T>>(
    mut ask: impl FnMut() -> F,
    right: impl Fn(&T) -> bool,
) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        let answer = ask().await;
        if right(&answer) {
            return answer;
        }
        assert!(Instant::now() < deadline, "still {answer:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
