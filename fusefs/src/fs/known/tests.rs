//! What is believed, for how long, and what is taken back from the kernel.

use super::*;
use crate::fs::fake::node;
use crate::fs::node::Kind;

const HOUR: Duration = Duration::from_secs(3_600);

fn file(inode: u64) -> Arc<Node> {
    Arc::new(node(inode, Kind::File))
}

fn entry(name: &'static str, inode: u64) -> (Bytes, Node) {
    (Bytes::from(name), node(inode, Kind::File))
}

fn change(inode: u64, name: &'static str) -> v1::Change {
    v1::Change { inode, name: Bytes::from(name), content: name.is_empty() }
}

fn live() -> (Known, Instant) {
    let mut known = Known::new(HOUR, 100);
    known.begin();
    (known, Instant::now())
}

const DIR: InodeNumber = InodeNumber(1);

#[test]
fn what_is_pushed_when_it_changes_is_believed_for_long() {
    let (mut known, now) = live();
    let ticket = known.ticket(Revision(5));
    assert_eq!(known.learn_name(ticket, DIR, "a".into(), Some(file(2)), now), Trust::For(HOUR));
    let (found, trust) = known.name(DIR, b"a", now + HOUR).unwrap();
    assert_eq!((found.unwrap().inode.0, trust), (2, Trust::For(HOUR)));
}

#[test]
fn without_pushed_changes_nothing_is_believed_for_more_than_a_second() {
    let (mut known, now) = live();
    known.lost();
    let ticket = known.ticket(Revision(5));
    assert_eq!(known.learn_node(ticket, file(2), now), Trust::For(BRIEFLY));
    assert_eq!(known.node(InodeNumber(2), now).unwrap().1, Trust::For(BRIEFLY));
    assert_eq!(known.node(InodeNumber(2), now + BRIEFLY).unwrap().1, Trust::Once);
}

#[test]
fn a_change_takes_the_name_the_inode_and_the_listing_back() {
    let (mut known, now) = live();
    let ticket = known.ticket(Revision(5));
    known.learn_listing(ticket, DIR, vec![entry("a", 2), entry("b", 3)], now);
    assert!(known.name(DIR, b"a", now).is_some());
    assert!(known.take_back().is_empty());
    known.changed(Revision(6), &[change(1, "a")]);
    let back = known.take_back();
    for want in
        [Invalidation::Name(DIR, "a".into()), Invalidation::Attributes(DIR), Invalidation::Attributes(InodeNumber(2))]
    {
        assert!(back.contains(&want), "{want:?} is not among {back:?}");
    }
    assert_eq!(known.name(DIR, b"a", now).unwrap().1, Trust::Once);
    assert_eq!(known.listing(DIR, now).unwrap().1, Trust::Once);
    assert_eq!(known.node(InodeNumber(3), now).unwrap().1, Trust::For(HOUR), "its neighbour was not touched");
    known.lost();
    assert_eq!(known.name(DIR, b"a", now).unwrap().1, Trust::Once);
}

#[test]
fn an_answer_that_was_overtaken_by_a_change_is_not_kept() {
    let (mut known, now) = live();
    let ticket = known.ticket(Revision(5));
    known.changed(Revision(6), &[change(1, "a")]);
    known.changed(Revision(7), &[change(9, "")]);
    assert_eq!(known.learn_name(ticket, DIR, "a".into(), None, now), Trust::For(Duration::ZERO));
    assert_eq!(known.learn_node(ticket, file(9), now), Trust::For(Duration::ZERO));
    known.learn_listing(ticket, DIR, vec![entry("a", 2)], now);
    assert!(known.listing(DIR, now).is_none());
    assert!(known.name(DIR, b"a", now).is_none() && known.node(InodeNumber(9), now).is_none());
    assert_eq!(known.learn_name(ticket, DIR, "b".into(), None, now), Trust::For(HOUR), "another name is fine");
    let later = known.ticket(Revision(7));
    assert_eq!(known.learn_node(later, file(9), now), Trust::For(HOUR));
}

#[test]
fn an_answer_from_before_the_stream_was_lost_is_not_believed_after_it() {
    let (mut known, now) = live();
    let ticket = known.ticket(Revision(5));
    known.lost();
    known.begin();
    assert_eq!(known.learn_node(ticket, file(2), now), Trust::For(Duration::ZERO));
    assert_eq!(known.node(InodeNumber(2), now).unwrap().1, Trust::Once);
}

#[test]
fn losing_the_stream_takes_everything_back_but_keeps_it_for_want_of_better() {
    let (mut known, now) = live();
    let ticket = known.ticket(Revision(5));
    known.learn_name(ticket, DIR, "a".into(), Some(file(2)), now);
    known.learn_name(ticket, DIR, "none".into(), None, now);
    known.lost();
    let back = known.take_back();
    assert!(back.contains(&Invalidation::Name(DIR, "a".into())));
    assert!(back.contains(&Invalidation::Name(DIR, "none".into())));
    assert!(back.contains(&Invalidation::Attributes(InodeNumber(2))));
    assert_eq!(known.name(DIR, b"a", now + HOUR).unwrap().1, Trust::Once);
}

#[test]
fn what_is_pushed_out_is_taken_back_from_the_kernel() {
    let mut known = Known::new(HOUR, 2);
    known.begin();
    let now = Instant::now();
    let ticket = known.ticket(Revision(1));
    for (index, name) in ["a", "b", "c"].into_iter().enumerate() {
        known.learn_name(ticket, DIR, name.into(), Some(file(10 + index as u64)), now);
    }
    let back = known.take_back();
    assert!(back.contains(&Invalidation::Name(DIR, "a".into())), "{back:?}");
    assert!(back.contains(&Invalidation::Attributes(InodeNumber(10))), "{back:?}");
}

#[test]
fn a_listing_knows_which_names_are_absent() {
    let (mut known, now) = live();
    let ticket = known.ticket(Revision(1));
    known.learn_listing(ticket, DIR, vec![entry("b", 3), entry("a", 2)], now);
    assert_eq!(known.name(DIR, b"b", now).unwrap().0.unwrap().inode.0, 3);
    assert!(known.name(DIR, b"c", now).unwrap().0.is_none());
    known.changed(Revision(2), &[change(1, "c")]);
    assert!(known.take_back().contains(&Invalidation::Name(DIR, "c".into())));
    assert_eq!(known.name(DIR, b"c", now).unwrap().1, Trust::Once);
}

#[test]
fn changes_that_are_forgotten_still_judge_old_answers() {
    let (mut known, now) = live();
    let ticket = known.ticket(Revision(5));
    known.changed(Revision(6), &[change(77, "")]);
    for revision in 0..recent::CHANGES_REMEMBERED as u64 {
        known.changed(Revision(7 + revision), &[change(1_000 + revision, "")]);
    }
    assert_eq!(known.learn_node(ticket, file(77), now), Trust::For(Duration::ZERO));
}

#[test]
fn a_lease_holds_until_it_is_over_or_a_change_is_pushed_or_may_have_been_missed() {
    let (mut known, now) = live();
    let (ticket, until) = (known.ticket(Revision(5)), now + HOUR);
    for inode in [2, 3, 4] {
        known.learn_lease(ticket, file(inode), until);
        assert!(known.leased(InodeNumber(inode), now).is_some());
        assert!(known.leased(InodeNumber(inode), until).is_none(), "it is over");
    }
    known.changed(Revision(6), &[change(2, "")]);
    assert!(known.leased(InodeNumber(2), now).is_none(), "it changed");
    // An answer from before the change that came after it.
    known.learn_lease(ticket, file(2), until);
    assert!(known.leased(InodeNumber(2), now).is_none(), "the answer is older than the change");
    assert!(known.leased(InodeNumber(3), now).is_some());
    known.lost();
    assert!(known.leased(InodeNumber(3), now).is_none(), "changes may be missed");
    known.learn_lease(ticket, file(4), until);
    assert!(known.leased(InodeNumber(4), now).is_none(), "it was asked for before that");
}

#[test]
fn a_lease_never_shows_an_older_version_than_is_known() {
    let (mut known, now) = live();
    let (ticket, until) = (known.ticket(Revision(5)), now + HOUR);
    let version = |version| Arc::new(Node { version, ..node(2, Kind::File) });
    let leased = |known: &Known| known.leased(InodeNumber(2), now).map(|node| node.version);
    known.learn_lease(ticket, version(3), until);
    known.learn_node(ticket, version(3), now);
    assert_eq!(leased(&known), Some(3));
    known.learn_node(ticket, version(4), now);
    assert_eq!(leased(&known), None, "somebody asked meanwhile");
    known.learn_lease(ticket, version(3), until);
    assert_eq!(leased(&known), None, "an answer that was slow");
    known.learn_lease(ticket, version(5), until);
    assert_eq!(leased(&known), Some(5));
    assert_eq!(known.node(InodeNumber(2), now).unwrap().0.version, 4, "as the kernel was told");
}

#[test]
fn what_is_learned_anew_is_untold_until_the_kernel_was_told() {
    let (mut known, now) = live();
    let ticket = known.ticket(Revision(5));
    let version = |version| Arc::new(Node { version, ..node(2, Kind::File) });
    known.learn_node(ticket, version(1), now);
    known.learn_node(ticket, version(1), now);
    assert!(!known.take_untold(InodeNumber(2)));
    known.learn_listing(ticket, DIR, vec![("a".into(), (*version(2)).clone())], now);
    assert!(known.take_untold(InodeNumber(2)));
    assert!(!known.take_untold(InodeNumber(2)));
}

#[test]
fn of_a_catalog_that_went_back_answers_are_believed_again() {
    let (mut known, now) = live();
    known.changed(Revision(100), &[change(2, "")]);
    known.lost();
    known.begin();
    let ticket = known.ticket(Revision(3));
    assert_eq!(known.learn_node(ticket, file(2), now), Trust::For(Duration::ZERO), "from before the change");
    known.replaced();
    let ticket = known.ticket(Revision(3));
    assert_eq!(known.learn_node(ticket, file(2), now), Trust::For(HOUR));
}

fn touched(name: &'static str, inode: u64) -> Touched {
    Touched { names: vec![(DIR, name.into())], inodes: vec![InodeNumber(inode)] }
}

/// Make a name by a change of ours that is answered at a revision.
fn make(known: &mut Known, revision: u64, name: &'static str, inode: u64, now: Instant) {
    let ticket = known.ticket(Revision(0));
    known.own_node(ticket, Revision(revision), file(inode), now);
    known.own_name(ticket, Revision(revision), (DIR, name.into()), &Becomes::Names(file(inode)), now);
    known.own_doubt(Revision(revision), DIR);
}

#[test]
fn the_echo_of_an_own_change_is_no_news_and_what_comes_after_it_is() {
    let (mut known, now) = live();
    known.learn_node(known.ticket(Revision(1)), Arc::new(node(1, Kind::Directory)), now);
    make(&mut known, 6, "a", 2, now);
    known.changed(Revision(6), &[change(1, "a"), change(1, ""), change(2, "")]);
    assert!(known.take_back().is_empty());
    assert_eq!(known.name(DIR, b"a", now).unwrap().1, Trust::For(HOUR));
    known.changed(Revision(7), &[change(1, "a")]);
    assert!(known.take_back().contains(&Invalidation::Name(DIR, "a".into())));
    assert_eq!(known.name(DIR, b"a", now).unwrap().1, Trust::Once);
}

#[test]
fn what_is_pushed_while_a_change_of_ours_is_on_its_way_waits_for_its_answer() {
    for theirs_is_newer in [false, true] {
        let (mut known, now) = live();
        let mut touches = touched("a", 2);
        let own = known.begin_own(&mut touches);
        assert_eq!(touches.inodes, [DIR, InodeNumber(2)]);
        known.changed(Revision(6), &[change(1, "a")]);
        assert!(known.take_back().is_empty());
        make(&mut known, if theirs_is_newer { 5 } else { 6 }, "a", 2, now);
        known.end_own(own, &touches);
        let back = known.take_back();
        assert_eq!(back.contains(&Invalidation::Name(DIR, "a".into())), theirs_is_newer, "{back:?}");
        assert!(!known.own.is_changing(DIR, b"a"));
    }
}

#[test]
fn what_a_change_of_ours_is_changing_is_not_promised_for_longer_than_now() {
    let (mut known, now) = live();
    let ticket = known.ticket(Revision(5));
    known.learn_name(ticket, DIR, "a".into(), Some(file(2)), now);
    let mut touches = touched("a", 9);
    let own = known.begin_own(&mut touches);
    assert!(touches.inodes.contains(&InodeNumber(2)), "what it names changes too");
    assert_eq!(known.name(DIR, b"a", now).unwrap().1, Trust::For(Duration::ZERO));
    assert_eq!(known.node(InodeNumber(2), now).unwrap().1, Trust::For(Duration::ZERO));
    assert_eq!(known.learn_name(ticket, DIR, "a".into(), None, now), Trust::For(Duration::ZERO));
    known.end_own(own, &touches);
    assert_eq!(known.name(DIR, b"a", now).unwrap().1, Trust::For(HOUR));
}

#[test]
fn an_answer_from_before_an_own_change_does_not_undo_it() {
    let (mut known, now) = live();
    let before = known.ticket(Revision(5));
    make(&mut known, 6, "a", 2, now);
    assert_eq!(known.learn_name(before, DIR, "a".into(), None, now), Trust::For(Duration::ZERO));
    known.learn_listing(before, DIR, vec![], now);
    assert!(known.listing(DIR, now).is_none());
    // Of two changes of ours, the answer of the older comes last.
    let older = Arc::new(Node { mode: 0o600, ..node(2, Kind::File) });
    assert_eq!(known.own_node(before, Revision(5), older, now), Trust::For(Duration::ZERO));
    assert_eq!(known.name(DIR, b"a", now).unwrap().0.unwrap().mode, 0o644);
}

#[test]
fn an_own_change_is_not_newer_than_a_catalog_that_was_replaced() {
    let (mut known, now) = live();
    make(&mut known, 100, "a", 2, now);
    known.replaced();
    known.take_back();
    known.changed(Revision(3), &[change(1, "a")]);
    assert!(known.take_back().contains(&Invalidation::Name(DIR, "a".into())));
}

#[test]
fn of_a_revision_that_somebody_else_shares_names_are_doubted() {
    let (mut known, now) = live();
    known.learn_node(known.ticket(Revision(1)), Arc::new(node(1, Kind::Directory)), now);
    make(&mut known, 6, "a", 2, now);
    // Another mount replaced it in the same commit: what it made is nothing of ours.
    known.changed(Revision(6), &[change(1, "a"), change(1, ""), change(2, ""), change(3, "")]);
    assert!(known.take_back().contains(&Invalidation::Name(DIR, "a".into())));
    assert_eq!(known.name(DIR, b"a", now).unwrap().1, Trust::Once);
}

#[test]
fn what_is_pushed_does_not_wait_for_changes_that_were_asked_for_after_it() {
    let (mut known, now) = live();
    let (mut first, mut second) = (touched("a", 2), touched("b", 3));
    let own = known.begin_own(&mut first);
    known.changed(Revision(6), &[change(1, "theirs")]);
    let later = known.begin_own(&mut second);
    assert!(!known.take_back().is_empty(), "nothing of ours is changing that name, but its directory");
    known.changed(Revision(7), &[change(1, ""), change(1, "theirs")]);
    assert!(known.take_back().is_empty());
    make(&mut known, 8, "a", 2, now);
    known.end_own(own, &first);
    assert!(known.take_back().is_empty(), "the second was asked for before it was pushed");
    known.end_own(later, &second);
    assert!(known.take_back().contains(&Invalidation::Name(DIR, "theirs".into())));
}
