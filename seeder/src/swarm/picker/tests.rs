//! Who is chosen, and for how much.

#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small numbers")]

use super::*;

const CHUNK: u64 = 16 * 1024;
const MIB: u64 = 1 << 20;

/// A peer of so many bytes a second that is idle; its run is 60 ms of its work.
fn idle(key: u32, rate: f64) -> Candidate<u32> {
    let chunks = |seconds: f64| ((rate * seconds / CHUNK as f64) as u64 * CHUNK).clamp(CHUNK, MIB);
    Candidate {
        key,
        rate,
        latency: 0.0005,
        outstanding: 0,
        run_bytes: chunks(0.060),
        smallest_run: chunks(0.004),
        recent: 0.0,
        same_zone: true,
        whole: true,
        has_bytes: u64::MAX,
        room: true,
    }
}

#[test]
fn a_lone_run_on_fast_peers_is_one_request() {
    let candidates: Vec<_> = (0..4).map(|key| idle(key, 1e9)).collect();
    assert_eq!(pick(&candidates, MIB, MIB), Some((0, MIB)));
}

#[test]
fn a_lone_run_on_slow_peers_is_split() {
    let candidates: Vec<_> = (0..4).map(|key| idle(key, 12.5e6)).collect();
    let (_, bytes) = pick(&candidates, MIB, MIB).unwrap();
    assert!((4 * CHUNK..=16 * CHUNK).contains(&bytes), "{bytes}");
}

#[test]
fn a_long_queue_is_handed_out_in_runs_of_each_peers_size() {
    let mut candidates = vec![idle(0, 12.5e6), idle(1, 1.25e6)];
    let (at, bytes) = pick(&candidates, MIB, 64 * MIB).unwrap();
    assert_eq!((at, bytes), (0, candidates[0].run_bytes));
    candidates[0].room = false;
    candidates[0].outstanding = 2 * candidates[0].run_bytes;
    let (at, bytes) = pick(&candidates, MIB, 64 * MIB).unwrap();
    assert_eq!((at, bytes), (1, candidates[1].run_bytes));
}

#[test]
fn equal_peers_take_turns() {
    let mut candidates: Vec<_> =
        [1.0, 1.3, 0.7, 1.1].iter().enumerate().map(|(k, f)| idle(k as u32, f * 5e8)).collect();
    let mut given = [0u64; 4];
    for _ in 0..1000 {
        let (at, bytes) = pick(&candidates, MIB, MIB).unwrap();
        given[at] += bytes;
        candidates[at].recent += bytes as f64;
    }
    assert!(given.iter().all(|bytes| *bytes == 250 * MIB), "{given:?}");
}

#[test]
fn the_own_zone_comes_first_unless_it_is_much_slower() {
    let mut candidates = vec![idle(0, 1e8), idle(1, 5e7)];
    candidates[0].same_zone = false;
    assert_eq!(pick(&candidates, CHUNK, CHUNK).unwrap().0, 1);
    candidates[1].rate = 1e5;
    assert_eq!(pick(&candidates, CHUNK, CHUNK).unwrap().0, 0);
}

#[test]
fn a_whole_holder_is_preferred_to_a_partial_one() {
    let mut candidates = vec![idle(0, 1e8), idle(1, 1e8)];
    candidates[0].whole = false;
    assert_eq!(pick(&candidates, CHUNK, CHUNK).unwrap().0, 1);
}

#[test]
fn a_small_want_waits_for_a_quick_peer_rather_than_ask_a_crawling_one() {
    let mut candidates = vec![idle(0, 12.5e6), idle(1, 1e4)];
    candidates[0].room = false;
    candidates[0].outstanding = MIB;
    assert_eq!(pick(&candidates, CHUNK, CHUNK), None);
}

#[test]
fn nobody_is_given_more_than_there_is_or_than_it_has() {
    let mut candidate = idle(0, 1e9);
    assert_eq!(pick(&[candidate.clone()], 3 * CHUNK, 3 * CHUNK), Some((0, 3 * CHUNK)));
    candidate.has_bytes = 2 * CHUNK;
    assert_eq!(pick(&[candidate.clone()], MIB, MIB), Some((0, 2 * CHUNK)));
    candidate.room = false;
    assert_eq!(pick(&[candidate], MIB, MIB), None);
    assert_eq!(pick::<u32>(&[], MIB, MIB), None);
}
