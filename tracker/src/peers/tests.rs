//! The registry: who takes whose place.

use std::time::{Duration, Instant};

use swarm_proto::v1::PeerKind;
use swarm_proto::{PeerId, ProcessId};
use tokio::sync::mpsc;

use super::{Facts, Liveness, Opened, PeerSlot, Refusal, Registry, SeederRecord, State};

const GRACE: Duration = Duration::from_secs(10);
const DEAD_AFTER: Duration = Duration::from_secs(60);

fn facts(number: u64, kind: PeerKind) -> Facts {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&number.to_le_bytes());
    Facts {
        id: PeerId::new(id),
        kind,
        address: "a:1".into(),
        zone: String::new(),
        host: "a".into(),
        capacity_bytes: 1,
        version: String::new(),
    }
}

fn hello(registry: &Registry, number: u64, kind: PeerKind, process: u8, now: Instant) -> Result<Opened, Refusal> {
    let (orders, _) = mpsc::channel(1);
    registry.open(facts(number, kind), ProcessId::new([process; 16]), orders, now)
}

/// A peer that said hello, and told what it holds.
fn open(registry: &Registry, number: u64, kind: PeerKind, process: u8, now: Instant) -> Result<Opened, Refusal> {
    hello(registry, number, kind, process, now).inspect(Opened::join)
}

#[test]
fn a_slot_is_used_again_once_its_mount_is_forgotten() {
    let (registry, now) = (Registry::new(GRACE, DEAD_AFTER), Instant::now());
    let first = open(&registry, 1, PeerKind::Mount, 1, now).unwrap();
    first.close(Liveness::Broken { at: now });
    registry.forget_old(now + DEAD_AFTER - Duration::from_secs(1));
    assert!(registry.find(&first.peer.id()).is_some());
    // What it holds must go first.
    *first.peer.holdings.lock() = true;
    registry.forget_old(now + DEAD_AFTER);
    assert!(registry.find(&first.peer.id()).is_some());
    *first.peer.holdings.lock() = false;
    registry.forget_old(now + DEAD_AFTER);
    assert!(registry.find(&first.peer.id()).is_none() && registry.get(first.peer.slot()).is_none());
    let second = open(&registry, 2, PeerKind::Mount, 1, now).unwrap();
    assert_eq!(second.peer.slot(), first.peer.slot());
}

#[test]
fn a_seeder_is_remembered_for_ever() {
    let (registry, now) = (Registry::new(GRACE, DEAD_AFTER), Instant::now());
    let seeder = open(&registry, 1, PeerKind::Seeder, 1, now).unwrap();
    seeder.close(Liveness::Left { at: now });
    registry.forget_old(now + 100 * DEAD_AFTER);
    assert_eq!(registry.state(&seeder.peer, now), State::Dead);
    assert_eq!(registry.snapshots(now).len(), 1);
}

#[test]
fn an_old_stream_that_ends_late_does_not_touch_the_new_one() {
    let (registry, now) = (Registry::new(GRACE, DEAD_AFTER), Instant::now());
    let old = open(&registry, 1, PeerKind::Seeder, 7, now).unwrap();
    let new = open(&registry, 1, PeerKind::Seeder, 7, now).unwrap();
    assert!(old.replaced.is_cancelled() && !old.is_current() && new.is_current());
    old.close(Liveness::Left { at: now });
    assert_eq!(registry.state(&new.peer, now), State::Live);
    assert!(matches!(open(&registry, 1, PeerKind::Seeder, 8, now), Err(Refusal::CopiedStore { .. })));
}

#[test]
fn a_full_registry_forgets_dead_mounts_before_it_refuses() {
    let (registry, now) = (Registry::new(GRACE, DEAD_AFTER), Instant::now());
    let mut number = 0;
    let refused = loop {
        number += 1;
        match open(&registry, number, PeerKind::Mount, 1, now) {
            Ok(opened) if number % 2 == 0 => opened.close(Liveness::Broken { at: now }),
            Ok(_) => {}
            Err(refusal) => break refusal,
        }
    };
    assert_eq!(refused, Refusal::TooMany);
    assert!(open(&registry, number, PeerKind::Seeder, 1, now + GRACE).is_ok());
    assert!(u64::try_from(registry.snapshots(now).len()).unwrap() < number);
}

#[test]
fn a_seeder_of_an_earlier_process_is_stale_until_it_says_hello() {
    let (registry, now) = (Registry::new(GRACE, DEAD_AFTER), Instant::now());
    let record = SeederRecord { facts: facts(1, PeerKind::Seeder), draining: true, last_seen_ms: 0 };
    registry.restore(record.clone(), now);
    registry.restore(record, now);
    let seen = &registry.snapshots(now)[0];
    assert_eq!((seen.state, seen.draining, seen.slot), (State::Stale, true, PeerSlot::new(0).unwrap()));
    assert!(seen.state_for > Duration::from_secs(1 << 30), "not seen since 1970");
    assert!(registry.unsaved().is_empty());
    let opened = open(&registry, 1, PeerKind::Seeder, 1, now + GRACE).unwrap();
    let seen = registry.snapshot(&opened.peer, now + GRACE);
    assert_eq!((seen.state, seen.draining, seen.state_for), (State::Live, true, Duration::ZERO));
    assert_eq!(registry.unsaved().len(), 1);
    assert!(registry.unsaved().is_empty());
}

#[test]
fn a_seeder_that_only_looks_which_swarm_this_is_is_not_remembered() {
    let (registry, now) = (Registry::new(GRACE, DEAD_AFTER), Instant::now());
    let opened = hello(&registry, 1, PeerKind::Seeder, 1, now).unwrap();
    assert!(registry.unsaved().is_empty() && registry.snapshots(now).is_empty());
    opened.close(Liveness::Broken { at: now });
    assert!(registry.unsaved().is_empty() && registry.snapshots(now).is_empty());
    registry.forget_old(now);
    assert!(registry.find(&opened.peer.id()).is_none());
    open(&registry, 1, PeerKind::Seeder, 1, now).unwrap();
    assert_eq!((registry.unsaved().len(), registry.snapshots(now).len()), (1, 1));
    open(&registry, 2, PeerKind::Mount, 1, now).unwrap();
    assert!(registry.unsaved().is_empty());
}
