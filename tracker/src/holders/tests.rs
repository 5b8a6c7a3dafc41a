//! Holders against a naive model, and what they cost.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use swarm_proto::SegmentId;

use super::{Doubt, Extent, Holders, Survey};
use crate::peers::PeerSlot;

const PEERS: u32 = 8;

#[derive(Debug, Clone)]
enum Step {
    Add(u32, Vec<u16>, bool),
    Remove(u32, Vec<u16>),
    Inventory(u32, Vec<Vec<u16>>, Vec<u16>),
    Forget(u32),
    Doubt(u32, u16, bool),
}

fn id(number: u32) -> SegmentId {
    SegmentId::new(*blake3::hash(&number.to_le_bytes()).as_bytes())
}

fn ids(numbers: &[u16]) -> Vec<SegmentId> {
    numbers.iter().map(|number| id(u32::from(*number))).collect()
}

fn peer(number: u32) -> PeerSlot {
    PeerSlot::new(number).unwrap()
}

fn extent(partial: bool) -> Extent {
    if partial { Extent::Partial } else { Extent::Whole }
}

fn step() -> impl Strategy<Value = Step> {
    let some = || proptest::collection::vec(0u16..60, 0..20);
    prop_oneof![
        4 => (0..PEERS, some(), any::<bool>()).prop_map(|(peer, ids, partial)| Step::Add(peer, ids, partial)),
        2 => (0..PEERS, some()).prop_map(|(peer, ids)| Step::Remove(peer, ids)),
        2 => (0..PEERS, proptest::collection::vec(some(), 0..3), some())
            .prop_map(|(peer, parts, lost)| Step::Inventory(peer, parts, lost)),
        1 => (0..PEERS).prop_map(Step::Forget),
        1 => (0..PEERS, 0u16..60, any::<bool>()).prop_map(|(peer, id, raised)| Step::Doubt(peer, id, raised)),
    ]
}

/// (segment, peer) → (partial, doubted).
type Model = BTreeMap<(u16, u32), (bool, bool)>;

fn apply(holders: &Holders, model: &mut Model, step: &Step) {
    match step {
        Step::Add(who, what, partial) => {
            holders.add(peer(*who), extent(*partial), &ids(what)).unwrap();
            model.extend(what.iter().map(|id| ((*id, *who), (*partial, false))));
        }
        Step::Remove(who, what) => {
            holders.remove(peer(*who), &ids(what));
            model.retain(|(id, at), _| at != who || !what.contains(id));
        }
        Step::Inventory(who, parts, lost) => {
            holders.begin_inventory(peer(*who));
            for part in parts {
                holders.add(peer(*who), Extent::Whole, &ids(part)).unwrap();
            }
            // A delta may come between the parts.
            holders.remove(peer(*who), &ids(lost));
            holders.end_inventory(peer(*who));
            model.retain(|(_, at), _| at != who);
            let kept = parts.iter().flatten().filter(|id| !lost.contains(id));
            model.extend(kept.map(|id| ((*id, *who), (false, false))));
        }
        Step::Forget(who) => {
            holders.forget(peer(*who));
            model.retain(|(_, at), _| at != who);
        }
        Step::Doubt(who, what, raised) => {
            let doubt = if *raised { Doubt::Raised } else { Doubt::Cleared };
            holders.doubt(peer(*who), &id(u32::from(*what)), doubt);
            if let Some(entry) = model.get_mut(&(*what, *who)) {
                entry.1 = *raised;
            }
        }
    }
}

proptest! {
    #[test]
    fn holders_agree_with_a_naive_map(steps in proptest::collection::vec(step(), 0..60)) {
        let (holders, mut model) = (Holders::new(), Model::new());
        for step in &steps {
            apply(&holders, &mut model, step);
        }
        for number in 0..60u16 {
            let mut got = Vec::new();
            holders.holders_into(id(u32::from(number)).as_bytes(), &mut got);
            let got: BTreeSet<_> =
                got.iter().map(|holder| (holder.peer(), holder.is_partial(), holder.is_doubted())).collect();
            let want: BTreeSet<_> = (0..PEERS)
                .filter_map(|who| model.get(&(number, who)).map(|(partial, doubted)| (peer(who), *partial, *doubted)))
                .collect();
            prop_assert_eq!(got, want);
        }
        for who in 0..PEERS {
            let want = model.keys().filter(|(_, at)| *at == who).count() as u64;
            prop_assert_eq!(holders.held_by(peer(who)), want);
        }
        let distinct: BTreeSet<_> = model.keys().map(|(id, _)| id).collect();
        prop_assert_eq!(holders.segments(), distinct.len() as u64);
    }
}

/// Three of `peers` hold each of `segments`, spread as a placement would.
fn filled(segments: u32, peers: u32) -> Holders {
    let holders = Holders::new();
    for who in 0..peers {
        let held: Vec<_> =
            (0..segments).filter(|number| (0..3).any(|k| (number * 7 + k * 5) % peers == who)).map(id).collect();
        for part in held.chunks(16_384) {
            holders.add(peer(who), Extent::Whole, part).unwrap();
        }
    }
    holders
}

#[test]
fn a_segment_with_three_holders_costs_at_most_96_bytes_and_64_on_average() {
    // The index doubles as it grows, so that one size alone would flatter or wrong it.
    let mut all = Vec::new();
    for segments in [300_000, 400_000, 500_000] {
        let holders = filled(segments, 16);
        assert_eq!(holders.segments(), u64::from(segments));
        let each = holders.memory_bytes() as f64 / f64::from(segments);
        println!("{segments} segments: {each:.1} bytes each");
        assert!(each <= 96.0, "{each}");
        all.push(each);
    }
    assert!(all.iter().sum::<f64>() / 3.0 <= 64.0, "{all:?}");
}

#[test]
fn slots_of_segments_that_nobody_holds_any_more_are_used_again() {
    let holders = filled(100_000, 4);
    let before = holders.memory_bytes();
    for who in 0..4 {
        holders.forget(peer(who));
    }
    assert_eq!(holders.segments(), 0);
    for round in 1..4 {
        let fresh: Vec<_> = (0..100_000).map(|number| id(number + round * 1_000_000)).collect();
        for who in 0..3 {
            holders.add(peer(who), Extent::Whole, &fresh).unwrap();
        }
        assert_eq!(holders.segments(), 100_000);
        for who in 0..3 {
            holders.forget(peer(who));
        }
    }
    assert!(holders.memory_bytes() <= before + before / 4, "{} after {before}", holders.memory_bytes());
}

#[test]
fn an_addition_during_an_inventory_outlives_it() {
    let holders = Holders::new();
    holders.add(peer(0), Extent::Whole, &[id(1), id(2)]).unwrap();
    holders.begin_inventory(peer(0));
    holders.add(peer(0), Extent::Whole, &[id(2)]).unwrap();
    // Acknowledged to a publisher while the inventory came in.
    holders.add(peer(0), Extent::Whole, &[id(3)]).unwrap();
    holders.end_inventory(peer(0));
    let held = |number| {
        let mut got = Vec::new();
        holders.holders_into(id(number).as_bytes(), &mut got);
        got.len()
    };
    assert_eq!((held(1), held(2), held(3)), (0, 1, 1));
}

#[test]
fn hundreds_of_holders_of_one_segment_come_and_go() {
    let holders = Holders::new();
    for who in 0..500 {
        holders.add(peer(who), Extent::Partial, &[id(1)]).unwrap();
    }
    let mut got = Vec::new();
    holders.holders_into(id(1).as_bytes(), &mut got);
    assert_eq!(got.len(), 500);
    for who in 0..500 {
        holders.forget(peer(who));
    }
    assert_eq!(holders.segments(), 0);
}

#[test]
fn a_survey_shows_each_segment_once() {
    let holders = Holders::new();
    holders.add(peer(0), Extent::Whole, &[id(1), id(2)]).unwrap();
    holders.add(peer(1), Extent::Whole, &[id(2)]).unwrap();
    let mut survey = Survey::new(&holders);
    let counts: Vec<_> = [1, 2, 2, 3, 1, 3].map(|number| survey.first(&id(number)).map(<[_]>::len)).into();
    assert_eq!(counts, [Some(1), Some(2), None, Some(0), None, None]);
}
