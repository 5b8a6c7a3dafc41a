//! What every engine must do; run by the tests of each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use swarm_proto::Revision;

use super::{Commit, Condition, MAX_VALUE_BYTES, Outcome, Store, StoreError, Write, scan_all};

/// Makes an empty store.
pub(super) type Make<'a> = &'a mut dyn FnMut() -> BoxFuture<'static, Arc<dyn Store>>;

fn key(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn put(at: &str, value: &str) -> Write {
    Write { key: key(at), value: Some(key(value)) }
}

fn remove(at: &str) -> Write {
    Write { key: key(at), value: None }
}

async fn commit(store: &dyn Store, conditions: Vec<Condition>, writes: Vec<Write>) -> Outcome {
    store.commit(Commit { conditions, writes }).await.expect("the store works")
}

async fn done(store: &dyn Store, writes: Vec<Write>) -> Revision {
    match commit(store, Vec::new(), writes).await {
        Outcome::Committed(revision) => revision,
        Outcome::Conflict => panic!("a commit without conditions cannot conflict"),
    }
}

async fn contents(store: &dyn Store, prefix: &str) -> BTreeMap<Bytes, Bytes> {
    let mut found = BTreeMap::new();
    let each = |entry: super::KeyValue| {
        assert!(found.insert(entry.key, entry.versioned.value).is_none(), "a key came twice");
        Ok(())
    };
    scan_all(store, key(prefix), each).await.expect("the store works");
    found
}

/// All of it.
pub(super) async fn run(make: Make<'_>) {
    values_carry_the_revision_that_wrote_them(&*make().await).await;
    a_commit_is_all_or_nothing(&*make().await).await;
    each_condition_holds_when_it_should(&*make().await).await;
    a_scan_is_ordered_paged_and_stays_within_its_prefix(&*make().await).await;
    watchers_see_every_commit_once_and_in_order(&*make().await).await;
    racing_commits_on_one_condition_have_one_winner(make().await).await;
    epochs_grow(&*make().await).await;
    any_bytes_are_keys_and_values(&*make().await).await;
}

async fn values_carry_the_revision_that_wrote_them(store: &dyn Store) {
    assert_eq!(store.revision().await.ok(), Some(Revision(0)));
    assert!(store.get(key("a")).await.expect("works").is_none());
    let first = done(store, vec![put("a", "1"), put("b", "1")]).await;
    let second = done(store, vec![put("b", "2")]).await;
    assert!(second > first);
    let a = store.get(key("a")).await.expect("works").expect("it was written");
    let b = store.get(key("b")).await.expect("works").expect("it was written");
    assert_eq!((a.revision, &a.value[..]), (first, &b"1"[..]));
    assert_eq!((b.revision, &b.value[..]), (second, &b"2"[..]));
    assert_eq!(store.revision().await.ok(), Some(second));
    store.sync().await.expect("works");
    done(store, vec![remove("a"), remove("never there")]).await;
    assert!(store.get(key("a")).await.expect("works").is_none());
}

async fn a_commit_is_all_or_nothing(store: &dyn Store) {
    done(store, vec![put("a", "1")]).await;
    let before = (store.revision().await.ok(), contents(store, "").await);
    let refused = commit(
        store,
        vec![Condition::Present(key("a")), Condition::Absent(key("a"))],
        vec![put("b", "1"), remove("a"), put("c", "1")],
    );
    assert_eq!(refused.await, Outcome::Conflict);
    assert_eq!(before, (store.revision().await.ok(), contents(store, "").await));
}

async fn each_condition_holds_when_it_should(store: &dyn Store) {
    let first = done(store, vec![put("a", "1")]).await;
    let second = done(store, vec![put("other", "1")]).await;
    let third = done(store, vec![put("b", "1")]).await;
    let cases = [
        (Condition::Absent(key("x")), true),
        (Condition::Absent(key("a")), false),
        (Condition::Present(key("x")), false),
        (Condition::Present(key("a")), true),
        (Condition::UnchangedSince(key("a"), first), true),
        (Condition::UnchangedSince(key("a"), second), true),
        (Condition::UnchangedSince(key("b"), second), false),
        (Condition::UnchangedSince(key("b"), third), true),
        (Condition::UnchangedSince(key("x"), third), false),
    ];
    for (condition, holds) in cases {
        let outcome = commit(store, vec![condition.clone()], vec![put("z", "1")]).await;
        assert_eq!(matches!(outcome, Outcome::Committed(_)), holds, "{condition:?}");
    }
    done(store, vec![remove("a")]).await;
    let gone = commit(store, vec![Condition::UnchangedSince(key("a"), Revision(u64::MAX))], vec![put("z", "2")]).await;
    assert_eq!(gone, Outcome::Conflict, "a removed key is not unchanged");
}

async fn a_scan_is_ordered_paged_and_stays_within_its_prefix(store: &dyn Store) {
    let names = ["p", "p/", "p/a", "p/b", "p/b/c", "p/\u{7f}", "p0", "o", "q"];
    done(store, names.iter().map(|name| put(name, name)).collect()).await;
    let mut after = Bytes::new();
    let mut seen = Vec::new();
    loop {
        let page = store.scan(key("p/"), after, 2).await.expect("works");
        assert!(page.entries.len() <= 2 && (!page.more || page.entries.len() == 2));
        after = page.entries.last().map(|entry| entry.key.clone()).unwrap_or_default();
        seen.extend(page.entries.into_iter().map(|entry| entry.key));
        if !page.more {
            break;
        }
    }
    assert_eq!(seen, ["p/", "p/a", "p/b", "p/b/c", "p/\u{7f}"].map(key));
    assert_eq!(contents(store, "").await.len(), names.len());
    let past = store.scan(key("p/"), key("z"), 5).await.expect("works");
    assert!(past.entries.is_empty() && !past.more);
    let early = store.scan(key("p/"), key("a"), 1).await.expect("works");
    assert_eq!(early.entries.first().map(|entry| entry.key.clone()), Some(key("p/")));
}

async fn watchers_see_every_commit_once_and_in_order(store: &dyn Store) {
    done(store, vec![put("before", "1")]).await;
    let from = store.revision().await.expect("works");
    let mut watch = store.watch(from);
    let mut want = Vec::new();
    for n in 0..5 {
        let writes = vec![put("k", &n.to_string()), remove("before")];
        want.push((done(store, writes.clone()).await, writes));
    }
    let conflict = commit(store, vec![Condition::Absent(key("k"))], vec![put("k", "no")]).await;
    assert_eq!(conflict, Outcome::Conflict);
    for (revision, writes) in want {
        let next = tokio::time::timeout(Duration::from_secs(10), watch.next()).await.expect("it was committed");
        let (at, event) = next.expect("nothing was lost");
        assert_eq!((at, &*event), (revision, &writes));
    }
    assert!(matches!(watch.try_next(), Ok(None)), "a refused commit is no event");
    if from > Revision(0) {
        let lost = store.watch(Revision(0)).next().await;
        let all = lost.as_ref().is_ok_and(|(revision, _)| *revision == from);
        assert!(all || matches!(lost, Err(StoreError::TooOld(_))), "a gap is never silent");
    }
}

async fn racing_commits_on_one_condition_have_one_winner(store: Arc<dyn Store>) {
    for round in 0..20 {
        let at = format!("race {round}");
        let racers = (0..8).map(|n| {
            let (store, at) = (store.clone(), at.clone());
            async move {
                let writes = vec![put(&at, &n.to_string()), put(&format!("{at} won by"), &n.to_string())];
                commit(&*store, vec![Condition::Absent(key(&at))], writes).await
            }
        });
        let outcomes = futures::future::join_all(racers).await;
        assert_eq!(outcomes.iter().filter(|outcome| **outcome != Outcome::Conflict).count(), 1);
    }
}

async fn epochs_grow(store: &dyn Store) {
    let first = store.lead().await.expect("works");
    let second = store.lead().await.expect("works");
    assert!(second.epoch > first.epoch && !second.lost.is_cancelled());
}

async fn any_bytes_are_keys_and_values(store: &dyn Store) {
    let keys: Vec<Bytes> =
        (1..=255u8).map(|byte| Bytes::from(vec![byte, 0, 255, byte])).chain([Bytes::from(vec![9; 300])]).collect();
    let large = Bytes::from(vec![7; MAX_VALUE_BYTES]);
    let writes = keys.iter().map(|key| Write { key: key.clone(), value: Some(large.clone()) }).collect();
    done(store, writes).await;
    done(store, vec![Write { key: key("empty"), value: Some(Bytes::new()) }]).await;
    let found = contents(store, "").await;
    assert!(keys.iter().all(|key| found[key] == large));
    assert!(found[&key("empty")].is_empty());
}
