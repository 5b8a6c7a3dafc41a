//! The announcer against a tracker that only listens, restarts and orders.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt;
use parking_lot::Mutex;
use prometheus::Registry;
use swarm_proto::v1::announce_message::Message;
use swarm_proto::v1::holders_server::{Holders, HoldersServer};
use swarm_proto::v1::tracker_order::Order;
use swarm_proto::{BootId, ChunkRange, ChunkSet, ChunkTree, PeerId, Presence, Segment, SegmentId, SwarmId, v1};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use super::{AnnounceConfig, Announcer, Binding};
use crate::serve::Counters;
use crate::store::{ChunkStore, Held, Holding, StoreError, Usage};
use crate::tracker_client::{TrackerClient, TrackerClientConfig};

/// A store that is only told what it holds.
struct Claims {
    held: Mutex<BTreeMap<SegmentId, Presence>>,
    rotten: Mutex<Vec<SegmentId>>,
    verified: Mutex<Vec<SegmentId>>,
    changes: broadcast::Sender<SegmentId>,
}

impl Claims {
    /// Few changes fit, so that tests can make receivers lag.
    fn new() -> Arc<Self> {
        let changes = broadcast::channel(64).0;
        Arc::new(Self { held: Mutex::default(), rotten: Mutex::default(), verified: Mutex::default(), changes })
    }

    fn set(&self, id: SegmentId, presence: Option<Presence>) {
        match presence {
            Some(presence) => drop(self.held.lock().insert(id, presence)),
            None => drop(self.held.lock().remove(&id)),
        }
        let _ = self.changes.send(id);
    }
}

impl ChunkStore for Claims {
    fn holding(&self) -> Holding {
        Holding::Replica
    }
    fn held(&self, id: &SegmentId) -> Option<Held> {
        let presence = self.held.lock().get(id)?.clone();
        Some(Held { segment: Segment { id: *id, length: 1 << 16 }, presence })
    }
    async fn tree(&self, id: SegmentId) -> Result<ChunkTree, StoreError> {
        Err(StoreError::Missing(id))
    }
    async fn read(&self, id: SegmentId, _: ChunkRange) -> Result<Bytes, StoreError> {
        Err(StoreError::Missing(id))
    }
    async fn reverify(&self, id: SegmentId) -> Result<Vec<u32>, StoreError> {
        self.verified.lock().push(id);
        if !self.rotten.lock().contains(&id) {
            return Ok(Vec::new());
        }
        self.set(id, Some(partial()));
        Ok(vec![0])
    }
    fn inventory(&self) -> Vec<(SegmentId, bool)> {
        self.held.lock().iter().map(|(id, presence)| (*id, *presence == Presence::Whole)).collect()
    }
    fn changes(&self) -> broadcast::Receiver<SegmentId> {
        self.changes.subscribe()
    }
    fn usage(&self) -> Usage {
        Usage { capacity_bytes: 77, ..Usage::default() }
    }
}

fn partial() -> Presence {
    let mut set = ChunkSet::empty(4);
    set.insert(ChunkRange::new(1, 3));
    Presence::Partial(set)
}

/// What the tracker believes: segment → whole.
#[derive(Default)]
struct Belief {
    held: BTreeMap<SegmentId, bool>,
    hello: Option<v1::Hello>,
    inventories: usize,
    loads: usize,
    left: bool,
    orders: Option<mpsc::Sender<Result<v1::TrackerOrder, Status>>>,
}

/// A tracker with one ear.
struct Ear {
    belief: Arc<Mutex<Belief>>,
    swarm: SwarmId,
    boot: BootId,
    epoch: u64,
    stop: CancellationToken,
    tasks: TaskTracker,
}

#[tonic::async_trait]
impl Holders for Ear {
    type AnnounceStream = ReceiverStream<Result<v1::TrackerOrder, Status>>;
    async fn announce(
        &self,
        request: Request<Streaming<v1::AnnounceMessage>>,
    ) -> Result<Response<Self::AnnounceStream>, Status> {
        let (orders, out) = mpsc::channel(16);
        let welcome = v1::Welcome {
            boot_id: self.boot.to_wire(),
            swarm_id: self.swarm.to_wire(),
            epoch: self.epoch,
            grace_ms: 1_000,
            load_every_ms: 200,
            address: "10.1.1.1:7".into(),
        };
        orders.send(Ok(v1::TrackerOrder { order: Some(Order::Welcome(welcome)) })).await.unwrap();
        let (belief, stop, mut messages) = (Arc::clone(&self.belief), self.stop.clone(), request.into_inner());
        belief.lock().orders = Some(orders.clone());
        self.tasks.spawn(async move {
            let mut fresh = BTreeMap::new();
            while let Some(Ok(Some(message))) = stop.run_until_cancelled(messages.message()).await {
                let mut belief = belief.lock();
                let ids = |packed: &Bytes| SegmentId::unpack(packed).unwrap().collect::<Vec<_>>();
                match message.message.expect("a known message") {
                    Message::Hello(hello) => belief.hello = Some(hello),
                    Message::Inventory(part) => {
                        fresh.extend(ids(&part.whole_ids).into_iter().map(|id| (id, true)));
                        fresh.extend(ids(&part.partial_ids).into_iter().map(|id| (id, false)));
                        if part.last {
                            belief.held = std::mem::take(&mut fresh);
                            belief.inventories += 1;
                            let taken = Order::InventoryTaken(v1::InventoryTaken {});
                            orders.try_send(Ok(v1::TrackerOrder { order: Some(taken) })).unwrap();
                        }
                    }
                    Message::Delta(delta) => {
                        belief.held.extend(ids(&delta.whole_ids).into_iter().map(|id| (id, true)));
                        belief.held.extend(ids(&delta.partial_ids).into_iter().map(|id| (id, false)));
                        for id in ids(&delta.lost_ids) {
                            belief.held.remove(&id);
                        }
                    }
                    Message::Load(_) => belief.loads += 1,
                    Message::OpenFiles(_) => {}
                    Message::Leaving(_) => {
                        belief.left = true;
                        belief.orders = None;
                        break;
                    }
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(out)))
    }
    async fn locate(&self, _: Request<v1::LocateRequest>) -> Result<Response<v1::LocateReply>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn place(&self, _: Request<v1::PlaceRequest>) -> Result<Response<v1::PlaceReply>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn report(&self, _: Request<v1::ReportRequest>) -> Result<Response<v1::ReportReply>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn peers(&self, _: Request<v1::PeersRequest>) -> Result<Response<v1::PeersReply>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusReply>, Status> {
        Err(Status::unimplemented(""))
    }
}

/// One life of a tracker.
struct Life {
    belief: Arc<Mutex<Belief>>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Life {
    async fn start(address: SocketAddr, swarm: SwarmId, epoch: u64) -> (Self, SocketAddr) {
        let listener = loop {
            match TcpListener::bind(address).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        let address = listener.local_addr().unwrap();
        let (belief, stop, tasks) = (Arc::<Mutex<Belief>>::default(), CancellationToken::new(), TaskTracker::new());
        let ear = Ear {
            belief: Arc::clone(&belief),
            swarm,
            boot: BootId::random(),
            epoch,
            stop: stop.clone(),
            tasks: tasks.clone(),
        };
        let serving = tonic::transport::Server::builder()
            .add_service(HoldersServer::new(ear))
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop.clone().cancelled_owned());
        tasks.spawn(serving);
        (Self { belief, stop, tasks }, address)
    }

    async fn end(self) {
        self.belief.lock().orders = None;
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn order(&self, order: Order) {
        let orders = self.belief.lock().orders.clone().expect("an open stream");
        orders.send(Ok(v1::TrackerOrder { order: Some(order) })).await.unwrap();
    }
}

struct Fixture {
    store: Arc<Claims>,
    announcer: Announcer,
    _stop: tokio_util::sync::DropGuard,
}

fn announce(addresses: &[SocketAddr], binding: Binding) -> Fixture {
    let endpoints: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let me = PeerId::random();
    let tracker = TrackerClient::new(TrackerClientConfig {
        address: endpoints.join(",").parse().unwrap(),
        me: Some(me),
        zone: String::new(),
        patience: Duration::from_secs(1),
    });
    let (store, stop) = (Claims::new(), CancellationToken::new());
    let config = AnnounceConfig { me, address: "0.0.0.0:9".into(), zone: "z".into(), host: "h".into(), binding };
    let counters = Counters::new(&Registry::new(), me);
    let announcer =
        Announcer::start(config, Arc::clone(&store), counters, &tracker.unwrap(), &TaskTracker::new(), stop.clone());
    Fixture { store, announcer, _stop: stop.drop_guard() }
}

fn any() -> Binding {
    Arc::new(|_| async { Ok(()) }.boxed())
}

fn id(number: u32) -> SegmentId {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    SegmentId::new(bytes)
}

async fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(15);
    while !is() {
        assert!(Instant::now() < deadline, "not within 15 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn anywhere() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

#[tokio::test]
async fn every_replica_learns_everything_and_then_each_change() {
    let swarm = SwarmId::random();
    let (one, first) = Life::start(anywhere(), swarm, 1).await;
    let (two, second) = Life::start(anywhere(), swarm, 1).await;
    let fixture = announce(&[first, second], any());
    let mut state = fixture.announcer.state();
    tokio::time::timeout(Duration::from_secs(15), state.wait_for(|state| state.told == 2)).await.unwrap().unwrap();
    assert_eq!(fixture.announcer.state().borrow().address.as_deref(), Some("10.1.1.1:7"));
    fixture.store.set(id(1), Some(Presence::Whole));
    fixture.store.set(id(2), Some(partial()));
    fixture.store.set(id(3), Some(Presence::Whole));
    fixture.store.set(id(3), None);
    for life in [&one, &two] {
        eventually("the changes arrive", || life.belief.lock().held == BTreeMap::from([(id(1), true), (id(2), false)]))
            .await;
        eventually("load arrives", || life.belief.lock().loads >= 2).await;
        assert_eq!(life.belief.lock().inventories, 1);
    }
    let hello = one.belief.lock().hello.clone().unwrap();
    assert_eq!((hello.kind(), hello.capacity_bytes, hello.zone.as_str()), (v1::PeerKind::Seeder, 77, "z"));
    fixture.store.set(id(1), None);
    eventually("the loss arrives", || one.belief.lock().held == BTreeMap::from([(id(2), false)])).await;
}

#[tokio::test]
async fn a_tracker_that_was_born_again_is_told_everything_within_one_announce() {
    let swarm = SwarmId::random();
    let (first, address) = Life::start(anywhere(), swarm, 1).await;
    let fixture = announce(&[address], any());
    (0..40_000).for_each(|number| drop(fixture.store.held.lock().insert(id(number), Presence::Whole)));
    eventually("the first tracker knows", || first.belief.lock().inventories == 1).await;
    first.end().await;
    eventually("the loss of the tracker is noticed", || fixture.announcer.state().borrow().told == 0).await;
    let (second, _) = Life::start(address, swarm, 1).await;
    eventually("the second tracker knows all", || second.belief.lock().held.len() == 40_000).await;
}

#[tokio::test]
async fn a_burst_that_outruns_the_announcer_is_told_in_full() {
    let (life, address) = Life::start(anywhere(), SwarmId::random(), 1).await;
    let fixture = announce(&[address], any());
    eventually("announced", || fixture.announcer.state().borrow().told == 1).await;
    // One poll of the announcer cannot come between: 64 changes fit.
    (0..5_000).for_each(|number| fixture.store.set(id(number), Some(Presence::Whole)));
    eventually("all are known", || life.belief.lock().held.len() == 5_000).await;
    assert!(life.belief.lock().inventories >= 2);
}

#[tokio::test]
async fn a_refresh_brings_everything_again() {
    let (life, address) = Life::start(anywhere(), SwarmId::random(), 1).await;
    let fixture = announce(&[address], any());
    fixture.store.set(id(1), Some(Presence::Whole));
    eventually("known", || life.belief.lock().held.len() == 1).await;
    life.belief.lock().held.clear();
    life.order(Order::Refresh(v1::Refresh {})).await;
    eventually("known again", || life.belief.lock().held.len() == 1).await;
}

#[tokio::test]
async fn an_order_to_verify_drops_the_rot_and_an_old_leader_orders_nothing() {
    let (life, address) = Life::start(anywhere(), SwarmId::random(), 5).await;
    let fixture = announce(&[address], any());
    fixture.store.set(id(1), Some(Presence::Whole));
    fixture.store.set(id(2), Some(Presence::Whole));
    fixture.store.rotten.lock().push(id(2));
    eventually("announced", || life.belief.lock().held.len() == 2).await;
    let verify = |number, epoch| Order::Verify(v1::Verify { segment_id: id(number).to_wire(), epoch });
    life.order(verify(1, 4)).await;
    life.order(Order::Verify(v1::Verify { segment_id: vec![1; 3].into(), epoch: 9 })).await;
    life.order(verify(2, 5)).await;
    eventually("the rot is told", || life.belief.lock().held == BTreeMap::from([(id(1), true), (id(2), false)])).await;
    assert_eq!(*fixture.store.verified.lock(), [id(2)]);
}

#[tokio::test]
async fn another_swarm_is_refused_and_told_nothing() {
    let (life, address) = Life::start(anywhere(), SwarmId::random(), 1).await;
    let fixture = announce(&[address], Arc::new(|_| async { Err("wrong swarm".to_owned()) }.boxed()));
    let mut state = fixture.announcer.state();
    let refused = state.wait_for(|state| state.refused.is_some());
    let refused = tokio::time::timeout(Duration::from_secs(15), refused).await.unwrap().unwrap().refused.clone();
    assert_eq!(refused.as_deref(), Some("wrong swarm"));
    assert_eq!(life.belief.lock().inventories, 0);
}

#[tokio::test]
async fn a_tracker_that_lost_its_swarm_is_tried_until_it_has_it_again() {
    let (ours, other) = (SwarmId::random(), SwarmId::random());
    let asked = Arc::<Mutex<Vec<SwarmId>>>::default();
    let heard = Arc::clone(&asked);
    let (life, address) = Life::start(anywhere(), ours, 1).await;
    let fixture = announce(
        &[address],
        Arc::new(move |swarm| {
            heard.lock().push(swarm);
            async move { if swarm == ours { Ok(()) } else { Err("wrong swarm".to_owned()) } }.boxed()
        }),
    );
    fixture.store.set(id(1), Some(Presence::Whole));
    eventually("announced", || !life.belief.lock().held.is_empty()).await;
    life.end().await;
    let (life, _) = Life::start(address, other, 1).await;
    eventually("refused again and again", || asked.lock().iter().filter(|swarm| **swarm == other).count() > 1).await;
    assert_eq!((life.belief.lock().inventories, fixture.announcer.state().borrow().refused.clone()), (0, None));
    life.end().await;
    let (life, _) = Life::start(address, ours, 1).await;
    eventually("announced again", || !life.belief.lock().held.is_empty()).await;
}

#[tokio::test]
async fn leaving_is_said_and_does_not_wait_for_a_tracker_that_is_away() {
    let (life, address) = Life::start(anywhere(), SwarmId::random(), 1).await;
    let away = TcpListener::bind(anywhere()).await.unwrap();
    let fixture = announce(&[address, away.local_addr().unwrap()], any());
    eventually("announced", || fixture.announcer.state().borrow().told == 1).await;
    tokio::time::timeout(Duration::from_secs(10), fixture.announcer.leave()).await.expect("it ends");
    assert!(life.belief.lock().left);
}
