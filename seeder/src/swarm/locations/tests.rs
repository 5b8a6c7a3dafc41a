//! When is asked again, and what is remembered.

use swarm_proto::{ChunkSet, PeerId};

use super::super::scoreboard::Scoreboard;
use super::super::{BanRules, PeerAddress};
use super::*;

const ID: SegmentId = SegmentId::new([1; 32]);

fn keys(count: u8, now: Instant) -> Vec<PeerKey> {
    let mut scoreboard = Scoreboard::new(String::new(), BanRules::default());
    let address = |at: u8| PeerAddress {
        id: PeerId::new([at; 16]),
        address: at.to_string(),
        zone: String::new(),
        host: String::new(),
    };
    (0..count).map(|at| scoreboard.introduce(&address(at), now)).collect()
}

fn secs(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

#[test]
fn many_segments_are_one_question_and_two_are_under_way_at_most() {
    let now = Instant::now();
    let mut locations = Locations::new(100_000);
    let id = |at: u32| SegmentId::try_from([at.to_le_bytes(); 8].concat().as_slice()).unwrap();
    (0..10_000).for_each(|at| locations.need(id(at), now));
    let first = locations.question().unwrap();
    let second = locations.question().unwrap();
    assert_eq!((first.len(), second.len()), (4096, 4096));
    assert_eq!(locations.question(), None);
    locations.answer(&first, Some(vec![Vec::new(); 4096]), now);
    assert_eq!(locations.question().unwrap().len(), 10_000 - 2 * 4096);
    locations.need(first[0], now);
    locations.answer(&second, None, now);
    assert_eq!(locations.question(), None, "what is known or asked for is not asked for again");
}

#[test]
fn a_segment_without_holders_is_asked_for_at_growing_intervals_up_to_a_second() {
    let mut now = Instant::now();
    let start = now;
    let mut locations = Locations::new(10);
    let mut asked = Vec::new();
    locations.need(ID, now);
    while now < start + secs(10.0) {
        if let Some(ids) = locations.question() {
            asked.push(now - start);
            locations.answer(&ids, Some(vec![Vec::new()]), now);
        }
        locations.need_again(ID, now);
        now += secs(0.01);
    }
    assert!((9..=15).contains(&asked.len()), "{asked:?}");
    assert!(asked[1] < secs(0.3), "soon at first: {asked:?}");
    assert!(asked.windows(2).all(|pair| pair[1] - pair[0] <= secs(1.1)), "{asked:?}");
}

#[test]
fn who_was_wrong_stays_aside_although_the_tracker_names_it_again() {
    let now = Instant::now();
    let peers = keys(2, now);
    let mut locations = Locations::new(10);
    locations.learn(ID, vec![(peers[0], false), (peers[1], false)], now);
    locations.corrupt(&ID, peers[0], now);
    let ids = locations.question().expect("the tracker is asked again at once");
    locations.answer(&ids, Some(vec![vec![(peers[0], false), (peers[1], false)]]), now);
    let trusted = |alone, at: Instant| -> Vec<bool> {
        locations.holders(&ID).iter().map(|holder| holder.is_trusted(alone, at)).collect()
    };
    assert_eq!(trusted(false, now + secs(1.0)), [false, true]);
    assert_eq!(trusted(true, now + secs(1.0)), [false, true]);
    assert_eq!(trusted(true, now + secs(3.0)), [true, true], "if there is nobody else");
    assert_eq!(trusted(false, now + secs(31.0)), [true, true]);
}

#[test]
fn each_further_wrong_doubles_the_time_aside() {
    let now = Instant::now();
    let peers = keys(1, now);
    let mut locations = Locations::new(10);
    locations.learn(ID, vec![(peers[0], false)], now);
    for times in 0..4 {
        locations.missing(&ID, peers[0], now);
        let aside = secs(f64::from(1 << times));
        let holder = &locations.holders(&ID)[0];
        assert!(!holder.is_trusted(false, now + aside - secs(0.01)) && holder.is_trusted(false, now + aside));
    }
}

#[test]
fn partial_holders_are_asked_what_they_have_once_a_second_while_it_matters() {
    let now = Instant::now();
    let peers = keys(2, now);
    let mut locations = Locations::new(10);
    locations.learn(ID, vec![(peers[0], false), (peers[1], true)], now);
    assert_eq!(locations.uncertain(&ID, now), [peers[1]]);
    assert!(locations.uncertain(&ID, now).is_empty(), "it is being asked");
    let mut set = ChunkSet::empty(10);
    set.insert(ChunkRange::new(2, 5));
    locations.has(&ID, peers[1], Presence::Partial(set), now);
    let holder = &locations.holders(&ID)[1];
    assert_eq!(holder.has_of(ChunkRange::new(2, 9)), 3);
    assert_eq!(holder.has_of(ChunkRange::new(1, 9)), 0);
    assert!(locations.uncertain(&ID, now + secs(0.9)).is_empty());
    assert_eq!(locations.uncertain(&ID, now + secs(1.1)), [peers[1]], "it may have more by now");
    locations.has(&ID, peers[1], Presence::Whole, now);
    assert!(locations.uncertain(&ID, now + secs(60.0)).is_empty());
}

#[test]
fn what_is_learned_joins_what_is_known() {
    let now = Instant::now();
    let peers = keys(3, now);
    let mut locations = Locations::new(10);
    locations.learn(ID, vec![(peers[0], false)], now);
    locations.learn(ID, vec![(peers[1], true), (peers[0], false)], now);
    let holders: Vec<_> = locations.holders(&ID).iter().map(|holder| (holder.peer, holder.is_whole())).collect();
    assert_eq!(holders, [(peers[1], false), (peers[0], true)]);
    locations.need(ID, now);
    assert_eq!(locations.question(), None, "what was learned need not be asked");
    locations.need(ID, now + secs(61.0));
    assert!(locations.question().is_some(), "unless it is old");
}
