//! Names and holders together: a commit is located at once, status counts it, and a restart forgets nothing.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::path::Path;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use support::*;
use swarm_proto::meant::MeantFor;
use swarm_proto::settings::Span;
use swarm_proto::v1::announce_message::Message;
use swarm_proto::v1::catalog_client::CatalogClient;
use swarm_proto::v1::holders_client::HoldersClient;
use swarm_proto::v1::operation::Operation as Op;
use swarm_proto::v1::publish_file::Content;
use swarm_proto::v1::{self, Acknowledged, Load, PeerKind, PeerState, PublishFile, StatusReply, StatusRequest};
use swarm_proto::{Extent, Fault, Manifest, PeerId, RequestId, Segment, SegmentId, SwarmId, fault};
use swarm_tracker::server::Stopped;
use swarm_tracker::{Tracker, TrackerConfig};
use tokio::io::copy;
use tokio::net::{TcpListener, TcpStream};
use tonic::transport::{Channel, Endpoint};

const LENGTH: u32 = 1 << 20;

fn manifest(numbers: &[u32]) -> Bytes {
    let extent = |number: &u32| Extent::Data {
        segment: Segment { id: segment(*number), length: LENGTH },
        offset_in_segment: 0,
        length: LENGTH,
    };
    Manifest::new(numbers.iter().map(extent).collect()).unwrap().encode()
}

/// Publish a file of whole segments, with acknowledgements of each; its fault.
async fn publish(channel: &Channel, name: &str, numbers: &[u32], acks: &[(PeerId, &[u32])]) -> Fault {
    let acknowledged = |(peer, numbers): &(PeerId, &[u32])| Acknowledged {
        peer_id: peer.to_wire(),
        segment_ids: SegmentId::pack(&segments(numbers.iter().copied())),
    };
    let file = PublishFile {
        parent: 1,
        name: Bytes::copy_from_slice(name.as_bytes()),
        ownership: Some(v1::Ownership { mode: 0o644, ..Default::default() }),
        size: u64::from(LENGTH) * numbers.len() as u64,
        content: Some(Content::Manifest(manifest(numbers))),
        acknowledged: acks.iter().map(acknowledged).collect(),
        ..Default::default()
    };
    let request = v1::MutateRequest {
        request_id: RequestId::random().to_wire(),
        operations: vec![v1::Operation { operation: Some(Op::PublishFile(file)) }],
        durable: false,
        with_others: false,
    };
    let reply = CatalogClient::new(channel.clone()).mutate(request).await.unwrap().into_inner();
    reply.results[0].fault()
}

async fn status(tracker: &Tracker, replicas: u32) -> StatusReply {
    holders(tracker).await.status(StatusRequest { replicas }).await.unwrap().into_inner()
}

fn in_folder(folder: &Path) -> TrackerConfig {
    TrackerConfig { data: Some(folder.to_owned()), ..config() }
}

#[tokio::test]
async fn what_a_commit_acknowledges_is_located_at_once() {
    let tracker = Tracker::start(config()).await.unwrap();
    let (one, _) = FakePeer::join(&tracker, hello(PeerKind::Seeder, 1)).await;
    let (two, _) = FakePeer::join(&tracker, hello(PeerKind::Seeder, 2)).await;
    let channel = channel(&tracker).await;
    let acks: &[(PeerId, &[u32])] = &[(one.id, &[1, 2]), (two.id, &[1])];
    assert_eq!(publish(&channel, "file", &[1, 2], acks).await, Fault::Unspecified);
    let found = locate(&holders(&tracker).await, &segments([1, 2])).await;
    assert_eq!((found[0].len(), &found[1]), (2, &vec![(one.id, false)]));
    // The second file needs no upload: a live seeder holds it.
    assert_eq!(publish(&channel, "again", &[2], &[]).await, Fault::Unspecified);
    assert_eq!(publish(&channel, "nobody", &[3], &[]).await, Fault::SendAgain);
    // Whom nobody knows cannot acknowledge.
    let stranger = PeerId::random();
    publish(&channel, "stranger", &[4], &[(stranger, &[4])]).await;
    assert_eq!(locate(&holders(&tracker).await, &[segment(4)]).await, [vec![]]);
}

#[tokio::test]
async fn status_counts_each_segment_once_and_mounts_never() {
    let tracker = Tracker::start(config()).await.unwrap();
    let mut peers = Vec::new();
    for number in 1..=4 {
        let (mut peer, _) = FakePeer::join(&tracker, hello(PeerKind::Seeder, number)).await;
        peer.tell(&[]).await;
        peers.push(peer);
    }
    let (mut mount, _) = FakePeer::join(&tracker, hello(PeerKind::Mount, 9)).await;
    let channel = channel(&tracker).await;
    // 1: four replicas, 2: three, 3: one and a mount; the second file shares all of them.
    let acks: Vec<(PeerId, &[u32])> =
        vec![(peers[0].id, &[1, 2, 3]), (peers[1].id, &[1, 2]), (peers[2].id, &[1, 2]), (peers[3].id, &[1])];
    assert_eq!(publish(&channel, "a", &[1, 2, 3], &acks).await, Fault::Unspecified);
    assert_eq!(publish(&channel, "b", &[3, 3, 1], &[]).await, Fault::Unspecified);
    mount.tell(&segments([3])).await;
    peers[0].send(Message::Load(Load { used_bytes: 7, free_bytes: 9, corrupt_segments: 2, ..Load::default() })).await;
    let ask = || status(&tracker, 0);
    let got = until(ask, |got| got.corrupt == 2 && got.segments == 3).await;
    assert_eq!((got.healthy, got.under_replicated, got.over_replicated, got.missing), (1, 1, 1, 0));
    assert_eq!((got.files, got.directories, got.logical_bytes), (2, 1, 6 << 20));
    assert_eq!((got.distinct_bytes, got.used_bytes, got.free_bytes), (3 << 20, 7, (3 << 40) + 9));
    assert_eq!((got.seeders_live, got.mounts_live, got.seeder_hosts), (4, 1, 4));
    assert_eq!((got.replicas, got.min_replicas), (3, 2));
    let got = status(&tracker, 1).await;
    assert_eq!((got.healthy, got.under_replicated, got.over_replicated), (1, 0, 2));

    // A seeder dies: what only it had is missing, though the mount could still serve it.
    drop(peers.remove(0));
    let got = until(ask, |got| got.missing == 1).await;
    assert_eq!((got.healthy, got.under_replicated, got.over_replicated), (1, 1, 0));
    assert_eq!((got.seeders_live, got.seeders_dead, got.corrupt), (3, 1, 0));
}

#[tokio::test]
async fn a_tracker_that_starts_again_knows_its_names_and_misses_its_seeders() {
    let folder = tempfile::tempdir().unwrap();
    let first = Tracker::start(in_folder(folder.path())).await.unwrap();
    let zone = v1::Hello { zone: "attic".into(), ..hello(PeerKind::Seeder, 1) };
    let (mut peer, welcome) = FakePeer::join(&first, zone.clone()).await;
    peer.tell(&segments([1])).await;
    let (_mount, _) = FakePeer::join(&first, hello(PeerKind::Mount, 2)).await;
    assert_eq!(publish(&channel(&first).await, "file", &[1], &[(peer.id, &[1])]).await, Fault::Unspecified);
    assert_eq!(first.stop().await, Stopped::Clean);

    let patient = TrackerConfig { stale_grace: Span(Duration::from_secs(3)), ..in_folder(folder.path()) };
    let second = Tracker::start(patient).await.unwrap();
    let peers = holders(&second).await.peers(v1::PeersRequest {}).await.unwrap().into_inner().peers;
    assert_eq!(peers.len(), 1, "mounts are not remembered");
    let info = peers[0].info.clone().unwrap();
    assert_eq!((info.state(), info.zone.as_str(), &info.peer_id), (PeerState::Stale, "attic", &peer.id.to_wire()));
    assert_eq!(status(&second, 0).await.missing, 1, "nobody announced yet");
    let place =
        v1::PlaceRequest { segment_ids: segment(9).to_wire(), lengths: vec![1], replicas: 1, ..Default::default() };
    assert_eq!(holders(&second).await.place(place).await.unwrap().into_inner().counts, [0]);
    let client = holders(&second).await;
    until(|| state(&client, peer.id), |state| *state == Some(PeerState::Dead)).await;

    let (mut again, welcome_again) = FakePeer::join(&second, zone).await;
    assert_eq!(welcome_again.swarm_id, welcome.swarm_id);
    assert_ne!(welcome_again.boot_id, welcome.boot_id);
    again.tell(&segments([1])).await;
    until(|| status(&second, 1), |got| got.healthy == 1).await;
    assert_eq!(second.stop().await, Stopped::Clean);
}

#[tokio::test]
async fn a_tracker_that_has_just_started_places_on_seeders_that_are_about_to_come() {
    let folder = tempfile::tempdir().unwrap();
    let first = Tracker::start(in_folder(folder.path())).await.unwrap();
    let (mut peer, _) = FakePeer::join(&first, hello(PeerKind::Seeder, 1)).await;
    peer.tell(&segments([1])).await;
    assert_eq!(first.stop().await, Stopped::Clean);

    let second = Tracker::start(in_folder(folder.path())).await.unwrap();
    let client = holders(&second).await;
    let place =
        v1::PlaceRequest { segment_ids: segment(9).to_wire(), lengths: vec![1], replicas: 1, ..Default::default() };
    let mut client = client;
    let began = Instant::now();
    let mut asked = Box::pin(client.place(place));
    let early = tokio::time::timeout(Duration::from_millis(100), &mut asked).await;
    assert!(early.is_err(), "it does not wait: {early:?}");
    let (peer, _) = FakePeer::join(&second, hello(PeerKind::Seeder, 1)).await;
    peer.inventory(&[], true).await;
    let placed = asked.await.unwrap().into_inner().counts;
    // It waits for a second; on a machine that was busy for so long this shows nothing.
    assert!(placed == [1] || began.elapsed() >= Duration::from_secs(1), "{placed:?}");
}

#[tokio::test]
async fn a_folder_is_free_when_stop_returns_and_taken_before() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..4 {
        let tracker = Tracker::start(in_folder(folder.path())).await.unwrap();
        let taken = Tracker::start(in_folder(folder.path())).await.err().expect("two cannot share a folder");
        assert!(taken.to_string().contains("in use"), "{taken}");
        // Clients that go on listening do not keep it.
        let mut catalog = CatalogClient::new(channel(&tracker).await);
        let mut changes = catalog.watch(v1::WatchRequest { after_revision: 0 }).await.unwrap().into_inner();
        let (_peer, _) = FakePeer::join(&tracker, hello(PeerKind::Seeder, 1)).await;
        let name = format!("file {round}");
        assert_eq!(publish(&channel(&tracker).await, &name, &[], &[]).await, Fault::Unspecified);
        assert_eq!(tracker.stop().await, Stopped::Clean);
        while let Ok(Some(_)) = changes.message().await {}
    }
}

#[tokio::test]
async fn a_call_that_never_ends_is_cut_at_stop() {
    let tracker = Tracker::start(config()).await.unwrap();
    let mut catalog = CatalogClient::new(channel(&tracker).await);
    let mut other = catalog.clone();
    let (sending, sent) = tokio::sync::oneshot::channel::<()>();
    let mut sending = Some(sending);
    let endless = catalog.put_manifest(futures::stream::poll_fn(move |_| {
        drop(sending.take());
        Poll::<Option<v1::ManifestPage>>::Pending
    }));
    let stop = async {
        sent.await.unwrap_err();
        // One connection hands over its calls in order: when the second is answered, the first is there.
        other.stat_fs(v1::StatFsRequest {}).await.unwrap();
        tracker.stop().await
    };
    let (answer, stopped) = tokio::join!(endless, stop);
    assert!(answer.is_err());
    assert_eq!(stopped, Stopped::Forced);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_whose_machine_vanishes_is_noticed_by_keepalive() {
    let tracker = Tracker::start(config()).await.unwrap();
    // A cable that can be pulled: nothing passes any more, and nobody says so.
    let cable = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, far) = (cable.local_addr().unwrap(), tracker.address());
    let pulled = tokio_util::sync::CancellationToken::new();
    let tasks = tokio_util::task::TaskTracker::new();
    let pull = pulled.clone();
    tasks.spawn(async move {
        let (near, _) = cable.accept().await.unwrap();
        let far = TcpStream::connect(far).await.unwrap();
        let ((mut near_in, mut near_out), (mut far_in, mut far_out)) = (near.into_split(), far.into_split());
        tokio::select! {
            _ = copy(&mut near_in, &mut far_out) => {}
            _ = copy(&mut far_in, &mut near_out) => {}
            () = pull.cancelled() => {}
        }
        std::future::pending::<()>().await;
        drop((near_in, near_out, far_in, far_out));
    });
    let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    let (peer, _) = FakePeer::join_over(channel, hello(PeerKind::Seeder, 1)).await;
    let client = holders(&tracker).await;
    peer.inventory(&[], true).await;
    until(|| state(&client, peer.id), |state| *state == Some(PeerState::Live)).await;
    pulled.cancel();
    until(|| state(&client, peer.id), |state| *state == Some(PeerState::Dead)).await;
}

#[tokio::test]
async fn a_question_for_another_swarm_is_refused_and_changes_nothing() {
    let tracker = Tracker::start(config()).await.unwrap();
    let mut catalog = CatalogClient::new(channel(&tracker).await);
    let ours = catalog.stat_fs(v1::StatFsRequest {}).await.unwrap().into_inner().swarm_id;
    let ours = SwarmId::try_from(ours.as_ref()).unwrap();
    for (meant, refused) in [(SwarmId::random(), Some(Fault::OtherSwarm)), (ours, None)] {
        let bound = MeantFor::default();
        bound.bind(meant);
        let channel = channel(&tracker).await;
        let mut catalog = CatalogClient::with_interceptor(channel.clone(), bound.clone());
        let mut holders = HoldersClient::with_interceptor(channel, bound);
        let make = v1::MakeDirectory { name: "made".into(), parent: 1, ..Default::default() };
        let request = v1::MutateRequest {
            request_id: RequestId::random().to_wire(),
            operations: vec![v1::Operation { operation: Some(Op::MakeDirectory(make)) }],
            durable: false,
            with_others: false,
        };
        let watched = catalog.watch(v1::WatchRequest { after_revision: 0 }).await.map(drop);
        let mutated = catalog.mutate(request).await.map(drop);
        let listed = holders.peers(v1::PeersRequest {}).await;
        for outcome in [watched, mutated, listed.map(drop)] {
            assert_eq!(outcome.err().map(|status| fault::of_status(&status)), refused);
        }
    }
}
