//! Several catalogs on one store, as replicas on etcd will be.

use super::wandering::Wandering;
use super::*;
use crate::namespace::plan::RenameMode;

#[tokio::test]
async fn replicas_that_change_the_same_names_agree_on_one_winner_each() {
    let store: Arc<dyn Store> = Arc::new(Wandering::default());
    let replicas = [Running::on(store.clone()).await, Running::on(store.clone()).await, Running::on(store).await];
    for round in 0..30 {
        let races = (0..9usize).map(|racer| {
            let catalog = &replicas[racer % 3].catalog;
            let content = manifest(racer as u64, 1);
            let publish = Publish { if_exists: IfExists::Fail, ..file(ROOT, &format!("round {round}"), &content) };
            catalog.mutate(request(vec![Submitted::Publish(publish)]))
        });
        let done = futures::future::join_all(races).await;
        let winners = done.iter().filter(|done| done.as_ref().unwrap().results[0].is_ok()).count();
        assert_eq!(winners, 1, "round {round}");
    }
    let newest = replicas[0].catalog.store().revision().await.unwrap();
    let mut images = Vec::new();
    for replica in &replicas {
        images.push(replica.catalog.view_at(newest).await.unwrap().image.clone());
    }
    images[0].check().unwrap();
    assert!(images[0] == images[1] && images[1] == images[2]);
}

#[tokio::test]
async fn two_renames_on_two_replicas_never_build_a_loop() {
    let store: Arc<dyn Store> = Arc::new(Wandering::default());
    let (one, two) = (Running::on(store.clone()).await, Running::on(store).await);
    for round in 0..50 {
        // The moves share no record but the directories above their new places.
        let (left, right) = (one.make(ROOT, &format!("l{round}")).await, one.make(ROOT, &format!("r{round}")).await);
        let (a, b) = (one.make(left, "a").await, one.make(right, "b").await);
        let (a_below, b_below) = (one.make(a, "below").await, one.make(b, "below").await);
        let newest = one.catalog.revision();
        drop(two.catalog.view_at(newest).await.unwrap());
        let into = |parent: InodeNumber, name: &str, to: InodeNumber| {
            Submitted::Plain(Operation::Rename(at(parent, name), at(to, "x"), RenameMode::Replace))
        };
        let (first, second) = tokio::join!(
            one.catalog.mutate(request(vec![into(left, "a", b_below)])),
            two.catalog.mutate(request(vec![into(right, "b", a_below)]))
        );
        let done = [first, second].iter().filter(|done| done.as_ref().unwrap().results[0].is_ok()).count();
        assert_eq!(done, 1);
        two.catalog.view_current().await.unwrap().image.check().unwrap();
    }
}

#[tokio::test]
async fn a_retry_on_another_replica_gets_the_first_answer() {
    let store: Arc<dyn Store> = Arc::new(Wandering::default());
    let (one, two) = (Running::on(store.clone()).await, Running::on(store).await);
    for round in 0..30 {
        // Of every other one nothing is written but the answer.
        let asked = request(vec![match round % 2 {
            0 => directory(ROOT, &round.to_string()),
            _ => unlink(ROOT, "none"),
        }]);
        let (first, second) = tokio::join!(one.catalog.mutate(asked.clone()), two.catalog.mutate(asked.clone()));
        assert_eq!(first.unwrap(), second.unwrap());
    }
}

#[tokio::test]
async fn numbers_of_two_replicas_differ() {
    let store: Arc<dyn Store> = Arc::new(Wandering::default());
    let (one, two) = (Running::on(store.clone()).await, Running::on(store).await);
    let mut seen = std::collections::HashSet::new();
    for round in 0..20 {
        assert!(seen.insert(one.make(ROOT, &format!("one {round}")).await));
        assert!(seen.insert(two.make(ROOT, &format!("two {round}")).await));
    }
}
