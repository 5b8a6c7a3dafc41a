//! What is held against a peer, and for how long.

use swarm_proto::PeerId;

use super::*;

fn secs(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

fn board(now: Instant) -> (Scoreboard, PeerKey) {
    let mut board = Scoreboard::new("here".to_owned(), BanRules::default());
    let key = board.introduce(&address("a:1"), now);
    (board, key)
}

fn address(at: &str) -> PeerAddress {
    PeerAddress { id: PeerId::new([7; 16]), address: at.to_owned(), zone: "here".to_owned(), host: String::new() }
}

fn segment(at: u8) -> SegmentId {
    SegmentId::new([at; 32])
}

#[test]
fn three_different_corrupt_segments_ban_and_one_does_not() {
    let now = Instant::now();
    let (mut board, key) = board(now);
    for _ in 0..50 {
        assert_eq!(board.corrupt(key, segment(1), now), Verdict::Noted);
    }
    assert_eq!(board.corrupt(key, segment(2), now), Verdict::Noted);
    assert!(board.get(key).is_usable(now));
    assert_eq!(board.corrupt(key, segment(3), now), Verdict::Banned);
    assert!(!board.get(key).is_usable(now + secs(3599.0)));
    assert_eq!(board.banned(now), 1);
}

#[test]
fn corrupt_segments_far_apart_ban_nobody() {
    let mut now = Instant::now();
    let (mut board, key) = board(now);
    for at in 0..100 {
        assert_eq!(board.corrupt(key, segment(at), now), Verdict::Noted);
        now += secs(301.0);
    }
}

#[test]
fn after_a_ban_the_first_wrong_answer_bans_again() {
    let now = Instant::now();
    let (mut board, key) = board(now);
    for at in 1..4 {
        board.corrupt(key, segment(at), now);
    }
    let later = now + secs(3601.0);
    assert!(board.get(key).is_usable(later));
    assert_eq!(board.corrupt(key, segment(9), later), Verdict::Banned);
    assert!(!board.get(key).is_usable(later + secs(10.0)));
}

#[test]
fn a_peer_that_failed_must_answer_before_it_works_again_and_waits_longer_each_time() {
    let mut now = Instant::now();
    let (mut board, key) = board(now);
    let mut rests = Vec::new();
    for _ in 0..10 {
        board.failed(key, now);
        assert!(!board.get(key).is_usable(now + secs(100.0)), "not before it has answered");
        let began = now;
        while !board.wants_probe(key, false, now) {
            now += secs(0.01);
        }
        rests.push((now - began).as_secs_f64());
        board.probing(key);
        assert!(!board.wants_probe(key, false, now), "one question at a time");
    }
    assert!(rests[0] < 0.4 && rests[9] > 10.0 && rests[9] < 20.0, "{rests:?}");
    board.failed(key, now);
    assert!(board.wants_probe(key, true, now + secs(1.0)), "within a second if nobody else has it");
    board.probed(key);
    assert!(board.get(key).is_usable(now));
}

#[test]
fn one_broken_connection_is_one_failure() {
    let now = Instant::now();
    let (mut board, key) = board(now);
    (0..20).for_each(|_| board.failed(key, now));
    assert!(board.wants_probe(key, false, now + secs(0.4)));
}

#[test]
fn a_new_address_is_a_new_start() {
    let now = Instant::now();
    let (mut board, key) = board(now);
    board.failed(key, now);
    assert_eq!(board.introduce(&address("b:2"), now), key);
    assert!(board.get(key).is_usable(now));
    assert_eq!(board.get(key).address.address, "b:2");
}

#[test]
fn a_busy_peer_rests_shortly_and_needs_no_question() {
    let now = Instant::now();
    let (mut board, key) = board(now);
    board.busy(key, now);
    assert!(!board.get(key).is_usable(now));
    assert!(board.get(key).is_usable(now + secs(0.1)));
}

#[test]
fn an_unknown_peer_starts_small_and_grows_with_every_answer() {
    let mut now = Instant::now();
    let (mut board, key) = board(now);
    let mut runs = Vec::new();
    for _ in 0..6 {
        let run = board.get(key).run_bytes();
        runs.push(run >> 10);
        assert!(board.get(key).has_room(run, Part::Even));
        board.sent(key, run, now);
        assert!(board.get(key).has_room(run, Part::Even), "two requests at least");
        now += secs(0.001);
        board.came(key, run, now);
        board.over(key, 0, now);
        board.answered(key, run, secs(0.001), secs(0.001));
    }
    assert_eq!(runs, [64, 128, 256, 512, 1024, 1024]);
}

#[test]
fn a_run_is_about_sixty_milliseconds_of_a_slow_peer() {
    let mut now = Instant::now();
    let (mut board, key) = board(now);
    for _ in 0..200 {
        board.sent(key, 125_000, now);
        now += secs(0.1);
        board.came(key, 125_000, now);
        board.over(key, 0, now);
        board.answered(key, 125_000, secs(0.1), secs(0.1));
    }
    // 10 Mbit/s.
    let run = board.get(key).run_bytes();
    assert!((64 << 10..=96 << 10).contains(&run), "{run}");
}

#[test]
fn its_slowest_twentieth_of_answers_says_when_it_is_late() {
    let now = Instant::now();
    let (mut board, key) = board(now);
    assert_eq!(board.get(key).slow_factor(), 3.0);
    for at in 0..32 {
        let took = if at % 16 == 0 { 5.0 } else { 1.0 };
        board.answered(key, 16_384, secs(took), secs(1.0));
    }
    assert_eq!(board.get(key).slow_factor(), 5.0);
}

#[test]
fn a_peer_is_silent_when_nothing_comes_although_it_was_asked() {
    let now = Instant::now();
    let (mut board, key) = board(now);
    assert!(!board.get(key).is_silent(now + secs(100.0)), "nobody asked");
    board.sent(key, 16_384, now);
    assert!(!board.get(key).is_silent(now + secs(0.2)));
    assert!(board.get(key).is_silent(now + secs(0.5)));
    board.came(key, 1, now + secs(0.5));
    assert!(!board.get(key).is_silent(now + secs(0.6)));
}
