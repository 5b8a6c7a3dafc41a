//! Peers and holders together, with the time that the tests say.

use std::time::{Duration, Instant};

use swarm_proto::v1::{self, PeerKind};
use swarm_proto::{InodeNumber, PeerId, ProcessId, SegmentId};
use tokio::sync::mpsc;

use super::{Announced, Complaint, DOUBT, Soft};
use crate::acks::AckSink;
use crate::opens::OpenSource;
use crate::peers::{Facts, Registry};

const GRACE: Duration = Duration::from_secs(10);

fn soft() -> Soft {
    Soft::new(Registry::new(GRACE, Duration::from_secs(60)))
}

fn id(number: u8) -> SegmentId {
    SegmentId::new([number; 32])
}

fn announce(soft: &Soft, number: u8, kind: PeerKind, held: &[SegmentId]) -> Announced {
    let facts = Facts {
        id: PeerId::new([number; 16]),
        kind,
        address: "a:1".into(),
        zone: String::new(),
        host: "a".into(),
        capacity_bytes: 1,
        version: String::new(),
    };
    let (orders, _) = mpsc::channel(1);
    let mut stream = soft.open(facts, ProcessId::random(), orders).unwrap();
    soft.inventory_part(&mut stream, held, &[]).unwrap();
    soft.end_inventory(&mut stream);
    stream
}

#[test]
fn what_the_dead_held_is_forgotten_and_not_before() {
    let soft = soft();
    let stream = announce(&soft, 1, PeerKind::Seeder, &[id(1), id(2)]);
    soft.broken(&stream);
    soft.sweep(Instant::now());
    assert_eq!(soft.holders.segments(), 2, "only stale");
    soft.sweep(Instant::now() + GRACE);
    assert_eq!(soft.holders.segments(), 0);
    // Nor does a late word of the old stream bring anything back.
    let mut late = stream.clone();
    assert!(soft.delta(&mut late, &[id(3)], &[], &[]).is_err());
    soft.acknowledged(PeerId::new([1; 16]), &[id(3)]);
    assert_eq!(soft.holders.segments(), 1, "stale by the real clock, so an acknowledgement still counts");
}

#[test]
fn a_peer_that_leaves_is_forgotten_at_once_and_acknowledges_nothing_more() {
    let soft = soft();
    let stream = announce(&soft, 1, PeerKind::Seeder, &[id(1)]);
    soft.left(&stream);
    assert_eq!(soft.holders.segments(), 0);
    soft.acknowledged(PeerId::new([1; 16]), &[id(1)]);
    assert_eq!(soft.holders.segments(), 0);
}

#[test]
fn a_peer_that_came_back_in_time_keeps_what_it_announced() {
    let soft = soft();
    soft.broken(&announce(&soft, 1, PeerKind::Seeder, &[id(1)]));
    let _back = announce(&soft, 1, PeerKind::Seeder, &[id(1), id(2)]);
    soft.sweep(Instant::now() + 100 * GRACE);
    assert_eq!(soft.holders.segments(), 2);
}

#[test]
fn only_a_whole_replica_of_a_seeder_saves_an_upload() {
    let soft = soft();
    let mut seeder = announce(&soft, 1, PeerKind::Seeder, &[id(1)]);
    soft.delta(&mut seeder, &[], &[id(2)], &[]).unwrap();
    let _mount = announce(&soft, 2, PeerKind::Mount, &[id(2), id(3)]);
    assert_eq!(soft.known(&[id(1), id(2), id(3), id(4)]), [true, false, false, false]);
    soft.left(&seeder);
    assert_eq!(soft.known(&[id(1)]), [false]);
}

#[test]
fn a_doubt_passes_with_time_or_with_a_new_word_of_the_peer() {
    let soft = soft();
    let mut stream = announce(&soft, 1, PeerKind::Seeder, &[id(1), id(2)]);
    let doubted = |number| {
        let mut found = Vec::new();
        soft.holders.holders_into(id(number).as_bytes(), &mut found);
        found[0].is_doubted()
    };
    for number in [1, 2] {
        soft.complain(&PeerId::new([1; 16]), Complaint::Missing(id(number)));
        assert!(doubted(number));
    }
    soft.delta(&mut stream, &[id(1)], &[], &[]).unwrap();
    assert!(!doubted(1) && doubted(2));
    soft.sweep(Instant::now() + DOUBT / 2);
    assert!(doubted(2));
    soft.sweep(Instant::now() + DOUBT);
    assert!(!doubted(2));
}

#[test]
fn a_complaint_about_what_nobody_knows_changes_nothing() {
    let soft = soft();
    let _stream = announce(&soft, 1, PeerKind::Seeder, &[id(1)]);
    soft.complain(&PeerId::new([9; 16]), Complaint::Corrupt(id(1)));
    soft.complain(&PeerId::new([1; 16]), Complaint::Missing(id(9)));
    assert!(soft.doubts.lock().is_empty());
    assert_eq!(soft.holders.segments(), 1);
}

fn opened(numbers: &[u64]) -> v1::OpenFiles {
    v1::OpenFiles { all: true, opened: numbers.to_vec(), ..v1::OpenFiles::default() }
}

#[test]
fn what_a_mount_has_open_is_open_until_it_is_dead() {
    let soft = soft();
    let (one, two) = (announce(&soft, 1, PeerKind::Mount, &[]), announce(&soft, 2, PeerKind::Mount, &[]));
    soft.open_files(&one, &opened(&[1, 2])).unwrap();
    soft.open_files(&two, &opened(&[2, 3])).unwrap();
    let open = || soft.are_open(&[4, 3, 2, 1].map(InodeNumber));
    assert_eq!(open(), [false, true, true, true]);
    soft.broken(&one);
    soft.sweep(Instant::now());
    assert_eq!(open(), [false, true, true, true], "it may come back");
    soft.sweep(Instant::now() + GRACE);
    assert_eq!(open(), [false, true, true, false]);
    assert!(soft.open_files(&one, &opened(&[1])).is_err(), "a late word of the old stream");
    soft.left(&two);
    assert_eq!(open(), [false; 4]);
}

#[test]
fn a_mount_that_came_back_has_open_what_it_says_now() {
    let soft = soft();
    let first = announce(&soft, 1, PeerKind::Mount, &[]);
    soft.open_files(&first, &opened(&[1, 2])).unwrap();
    soft.broken(&first);
    let second = announce(&soft, 1, PeerKind::Mount, &[]);
    let open = || soft.are_open(&[1, 2, 3].map(InodeNumber));
    assert_eq!(open(), [true, true, false], "it has said nothing yet");
    soft.open_files(&second, &opened(&[3])).unwrap();
    assert_eq!(open(), [false, false, true]);
    assert!(soft.open_files(&first, &opened(&[1])).is_err());
}
