//! Announce, locate, place and the peers' lives, over real gRPC.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use support::*;
use swarm_proto::v1::announce_message::Message;
use swarm_proto::v1::tracker_order::Order;
use swarm_proto::v1::{self, HolderReport, Leaving, Load, PeerKind, PeerState, PlaceRequest, ReportKind};
use swarm_proto::{ProcessId, SegmentId};
use swarm_tracker::Tracker;
use swarm_tracker::server::Stopped;
use tonic::Code;

async fn holders_of(client: &v1::holders_client::HoldersClient<tonic::transport::Channel>, number: u32) -> usize {
    locate(client, &[segment(number)]).await[0].len()
}

#[tokio::test]
async fn an_announced_segment_is_located_and_a_lost_one_is_not() {
    let tracker = Tracker::start(config()).await.unwrap();
    let client = holders(&tracker).await;
    let (mut peer, welcome) = FakePeer::join(&tracker, hello(PeerKind::Seeder, 1)).await;
    assert_eq!(welcome.address, "127.0.0.1:9001", "the unspecified host is replaced by the one seen");
    peer.inventory(&segments(0..100), false).await;
    peer.tell(&segments(100..200)).await;
    let found = locate(&client, &segments([0, 150, 999])).await;
    assert_eq!(found, [vec![(peer.id, false)], vec![(peer.id, false)], vec![]]);

    let delta = v1::Delta {
        whole_ids: SegmentId::pack(&[segment(500)]),
        partial_ids: SegmentId::pack(&[segment(501)]),
        lost_ids: SegmentId::pack(&[segment(0)]),
    };
    peer.send(Message::Delta(delta)).await;
    until(|| holders_of(&client, 501), |count| *count == 1).await;
    let found = locate(&client, &segments([0, 500, 501])).await;
    assert_eq!(found, [vec![], vec![(peer.id, false)], vec![(peer.id, true)]]);

    // A new inventory replaces what was known, at its last part.
    peer.tell(&segments(50..60)).await;
    assert_eq!((holders_of(&client, 150).await, holders_of(&client, 55).await), (0, 1));
    assert_eq!(tracker.stop().await, Stopped::Clean);
}

#[tokio::test]
async fn a_broken_stream_is_stale_then_dead_and_its_holdings_go() {
    let tracker = Tracker::start(config()).await.unwrap();
    let client = holders(&tracker).await;
    let (gone, _) = FakePeer::join(&tracker, hello(PeerKind::Seeder, 1)).await;
    let (stays, _) = FakePeer::join(&tracker, hello(PeerKind::Seeder, 2)).await;
    for peer in [&gone, &stays] {
        peer.inventory(&segments(0..10), true).await;
    }
    until(|| holders_of(&client, 9), |count| *count == 2).await;
    let (id, other) = (gone.id, stays.id);
    drop(gone);
    let ask = || state(&client, id);
    until(ask, |state| *state == Some(PeerState::Stale)).await;
    for found in locate(&client, &segments(0..10)).await {
        assert_eq!(found, [(other, false), (id, false)], "the stale one comes last");
    }
    until(ask, |state| *state == Some(PeerState::Dead)).await;
    assert_eq!(locate(&client, &[segment(3)]).await, [vec![(other, false)]]);

    // It comes back, as another process, and says everything again.
    let (back, _) = FakePeer::join(&tracker, hello(PeerKind::Seeder, 1)).await;
    assert_eq!(state(&client, id).await, Some(PeerState::Live));
    back.inventory(&segments(0..10), true).await;
    until(|| holders_of(&client, 9), |count| *count == 2).await;
}

#[tokio::test]
async fn a_peer_that_leaves_is_dead_at_once() {
    let tracker = Tracker::start(config()).await.unwrap();
    let client = holders(&tracker).await;
    let (mut peer, _) = FakePeer::join(&tracker, hello(PeerKind::Mount, 1)).await;
    peer.tell(&segments(0..10)).await;
    assert_eq!(holders_of(&client, 9).await, 1);
    peer.send(Message::Leaving(Leaving {})).await;
    let id = peer.id;
    let ask = || state(&client, id);
    let then = until(ask, |state| *state != Some(PeerState::Live)).await;
    assert_eq!(then, Some(PeerState::Dead));
    assert_eq!(locate(&client, &[segment(3)]).await, [vec![]]);
}

#[tokio::test]
async fn two_processes_with_one_peer_id_are_a_copied_store() {
    let tracker = Tracker::start(config()).await.unwrap();
    let (mut first, _) = FakePeer::join(&tracker, hello(PeerKind::Seeder, 1)).await;
    let mut second = FakePeer::connect(&tracker, hello(PeerKind::Seeder, 1)).await;
    let status = second.end().await;
    assert_eq!(status.code(), Code::AlreadyExists);
    assert!(status.message().contains("copy") && status.message().contains("127.0.0.1:9001"), "{status:?}");

    // The same process, though, connects again and takes over.
    let again = v1::Hello { process_id: first.process.to_wire(), ..hello(PeerKind::Seeder, 1) };
    let (mut third, _) = FakePeer::join(&tracker, again).await;
    assert_eq!(first.end().await.code(), Code::Aborted);
    let client = holders(&tracker).await;
    assert_eq!(state(&client, third.id).await, None, "it has not told what it holds");
    third.tell(&[]).await;
    assert_eq!(state(&client, third.id).await, Some(PeerState::Live));
}

#[tokio::test]
async fn each_tracker_process_has_a_boot_id_of_its_own() {
    let mut seen = Vec::new();
    for _ in 0..2 {
        let tracker = Tracker::start(config()).await.unwrap();
        let (_peer, welcome) = FakePeer::join(&tracker, hello(PeerKind::Seeder, 1)).await;
        let request = v1::LocateRequest { segment_ids: segment(1).to_wire(), ..Default::default() };
        let reply = holders(&tracker).await.locate(request).await.unwrap().into_inner();
        assert_eq!(reply.boot_id, welcome.boot_id);
        assert_eq!(welcome.grace_ms, 1500);
        seen.push(welcome.boot_id);
    }
    assert_ne!(seen[0], seen[1]);
}

#[tokio::test]
async fn a_delta_without_an_inventory_is_answered_by_refresh() {
    let tracker = Tracker::start(config()).await.unwrap();
    let (mut peer, _) = FakePeer::join(&tracker, hello(PeerKind::Seeder, 1)).await;
    peer.send(Message::Load(Load::default())).await;
    peer.send(Message::Delta(v1::Delta { whole_ids: segment(1).to_wire(), ..Default::default() })).await;
    assert!(matches!(peer.order().await, Ok(Order::Refresh(_))));
}

#[tokio::test]
async fn a_reported_holder_comes_last_is_told_to_verify_and_is_believed_again_once_it_announced() {
    let tracker = Tracker::start(config()).await.unwrap();
    let mut client = holders(&tracker).await;
    let (mut bad, _) = FakePeer::join(&tracker, hello(PeerKind::Seeder, 1)).await;
    let (mut good, _) = FakePeer::join(&tracker, hello(PeerKind::Seeder, 2)).await;
    for peer in [&mut bad, &mut good] {
        peer.tell(&segments([1, 2])).await;
    }
    let report = |kind: ReportKind| v1::ReportRequest {
        reporter_id: ProcessId::random().to_wire(),
        reports: vec![HolderReport { peer_id: bad.id.to_wire(), segment_id: segment(1).to_wire(), kind: kind.into() }],
    };
    let (corrupt, missing) = (report(ReportKind::Corrupt), report(ReportKind::Missing));
    client.report(missing).await.unwrap();
    client.report(corrupt.clone()).await.unwrap();
    client.report(corrupt).await.unwrap();
    assert_eq!(locate(&client, &[segment(1)]).await[0][1].0, bad.id, "it goes last");
    match bad.order().await.unwrap() {
        Order::Verify(verify) => assert_eq!(verify.segment_id, segment(1).to_wire()),
        other => panic!("{other:?}"),
    }
    let peers = client.peers(v1::PeersRequest {}).await.unwrap().into_inner().peers;
    assert_eq!(peers.iter().map(|peer| peer.corrupt_reports_total).collect::<Vec<_>>(), [2, 0]);
    // Only one order came of two reports: the next thing that the peer hears is about another segment.
    let other = v1::ReportRequest {
        reports: vec![HolderReport {
            peer_id: bad.id.to_wire(),
            segment_id: segment(2).to_wire(),
            kind: ReportKind::Corrupt.into(),
        }],
        ..Default::default()
    };
    client.report(other).await.unwrap();
    match bad.order().await.unwrap() {
        Order::Verify(verify) => assert_eq!(verify.segment_id, segment(2).to_wire()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn holders_in_the_askers_zone_come_first_and_the_asker_never() {
    let tracker = Tracker::start(config()).await.unwrap();
    let mut client = holders(&tracker).await;
    let mut peers = Vec::new();
    for (number, zone) in [(1, "a"), (2, "b"), (3, "a")] {
        let (peer, _) =
            FakePeer::join(&tracker, v1::Hello { zone: zone.into(), ..hello(PeerKind::Seeder, number) }).await;
        peer.inventory(&segments(0..20), true).await;
        peers.push(peer);
    }
    until(|| holders_of(&client, 19), |count| *count == 3).await;
    for (zone, first) in [("a", vec![1, 3]), ("b", vec![2])] {
        let request = v1::LocateRequest {
            segment_ids: SegmentId::pack(&segments(0..20)),
            zone: zone.into(),
            peer_id: peers[0].id.to_wire(),
        };
        let reply = client.locate(request).await.unwrap().into_inner();
        assert_eq!(reply.counts, [2; 20]);
        for holders in reply.holders.chunks(2) {
            let best = reply.peers[holders[0] as usize / 2].peer_id[0];
            assert!(first.contains(&best), "{best} first for {zone}");
            assert!(holders.iter().all(|holder| reply.peers[*holder as usize / 2].peer_id[0] != 1));
        }
    }
}

fn place(ids: &[SegmentId], replicas: u32) -> PlaceRequest {
    PlaceRequest {
        segment_ids: SegmentId::pack(ids),
        lengths: vec![1 << 22; ids.len()],
        replicas,
        ..PlaceRequest::default()
    }
}

#[tokio::test]
async fn segments_are_placed_on_live_seeders_with_room_and_never_on_mounts() {
    let tracker = Tracker::start(config()).await.unwrap();
    let mut client = holders(&tracker).await;
    let none = client.place(place(&segments([1]), 3)).await.unwrap().into_inner();
    assert_eq!(none.counts, [0]);
    let mut peers = Vec::new();
    for number in 1..=4 {
        peers.push(FakePeer::join(&tracker, hello(PeerKind::Seeder, number)).await.0);
    }
    let (mut mount, _) = FakePeer::join(&tracker, hello(PeerKind::Mount, 9)).await;
    let early = client.place(place(&segments([1]), 3)).await.unwrap().into_inner();
    assert_eq!(early.counts, [0], "none has told what it holds");
    peers[3].send(Message::Load(Load { free_bytes: 0, used_bytes: 1 << 40, ..Load::default() })).await;
    for peer in peers.iter_mut().chain([&mut mount]) {
        peer.tell(&[]).await;
    }
    let ids = segments(0..300);
    let full = peers[3].id.to_wire();
    let reply = client.place(place(&ids, 3)).await.unwrap().into_inner();
    assert_eq!(reply.counts, vec![3; 300]);
    assert!(reply.peers.iter().all(|peer| peer.peer_id != full));
    for targets in reply.targets.chunks(3) {
        assert!(targets[0] != targets[1] && targets[1] != targets[2] && targets[0] != targets[2]);
    }
    let excluded = PlaceRequest { exclude_peer_ids: peers[0].id.to_wire(), ..place(&ids, 3) };
    let reply = client.place(excluded).await.unwrap().into_inner();
    assert_eq!(reply.counts, vec![2; 300]);
    assert!(reply.peers.iter().all(|peer| peer.peer_id != peers[0].id.to_wire()));
}

#[tokio::test]
async fn stop_ends_open_streams_and_says_so() {
    let tracker = Tracker::start(config()).await.unwrap();
    let (mut peer, _) = FakePeer::join(&tracker, hello(PeerKind::Seeder, 1)).await;
    assert_eq!(tracker.stop().await, Stopped::Clean);
    assert_eq!(peer.end().await.code(), Code::Unavailable);
}
