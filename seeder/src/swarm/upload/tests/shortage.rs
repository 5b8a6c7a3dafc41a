//! What seeders lack is known without asking, and mended only where somebody could take it.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_took_that_is_away_now_is_sent_again_to_others() {
    let swarm = swarm(2, |_| {}).await;
    let [first, second] = [0, 1].map(|at: usize| swarm.seeders[at].state.id);
    swarm.tracker.away.lock().insert(second);
    let uploaded = put(&swarm, &bytes(10, 1)).await.unwrap();
    let (ids, segment) = (uploaded.segment_ids(), uploaded.manifest.segments().next().unwrap());
    assert_eq!(swarm.uploader.short(&ids), [(ids[0], Shortage::OfReplicas)]);
    assert_eq!(swarm.uploader.live_lately(), [first]);
    *swarm.tracker.away.lock() = HashSet::from([first]);
    eventually_live(&swarm, second).await;
    let content = async { Some(Bytes::from(bytes(10, 1))) };
    assert_eq!(swarm.uploader.send_again(segment, Box::pin(content)).await.unwrap(), 1);
    assert_eq!(swarm.seeders[1].holds(&ids), 1);
    swarm.tracker.away.lock().clear();
    eventually_live(&swarm, first).await;
    assert_eq!(swarm.uploader.short(&ids), [], "both have it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_are_asked_for_only_where_somebody_could_take_them() {
    let swarm = swarm(3, |_| {}).await;
    let ids = [0, 1, 2].map(|at: usize| swarm.seeders[at].state.id);
    *swarm.tracker.away.lock() = HashSet::from([ids[1], ids[2]]);
    let segment = put(&swarm, &bytes(10, 1)).await.unwrap().manifest.segments().next().unwrap();
    let in_vain =
        || -> BoxFuture<'static, Option<Bytes>> { Box::pin(async { panic!("they are read and nobody takes them") }) };
    assert_eq!(swarm.uploader.send_again(segment, in_vain()).await.unwrap(), 1, "the one that is up has it");
    swarm.uploader.forget(&[segment.id]);
    assert_eq!(swarm.uploader.send_again(segment, in_vain()).await.unwrap(), 1, "and says so when it is asked");
    swarm.tracker.away.lock().remove(&ids[1]);
    swarm.tracker.full.lock().insert(ids[1]);
    eventually_live(&swarm, ids[1]).await;
    assert_eq!(swarm.uploader.send_again(segment, in_vain()).await.unwrap(), 1, "the other one is full");
    swarm.tracker.away.lock().clear();
    eventually_live(&swarm, ids[2]).await;
    let lost = swarm.uploader.send_again(segment, Box::pin(std::future::ready(None))).await;
    assert!(matches!(lost, Err(UploadError::Read(_))), "{lost:?}");
    let content = async { Some(Bytes::from(bytes(10, 1))) };
    assert_eq!(swarm.uploader.send_again(segment, Box::pin(content)).await.unwrap(), 2);
    assert_eq!(swarm.uploader.send_again(segment, in_vain()).await.unwrap(), 2, "as many as are wanted");
}

/// Wait until the uploader has heard that a seeder is up.
async fn eventually_live(swarm: &Swarm, seeder: PeerId) {
    let began = std::time::Instant::now();
    while !swarm.uploader.live().await.unwrap().contains(&seeder) {
        assert!(began.elapsed() < Duration::from_secs(10), "it is not heard of");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn what_all_seeders_have_lacks_only_seeders() {
    let swarm = swarm(2, |config| config.replicas = 3).await;
    let ids = put(&swarm, &bytes(10, 1)).await.unwrap().segment_ids();
    assert_eq!(swarm.uploader.short(&ids), [(ids[0], Shortage::OfSeeders)]);
    assert_eq!((swarm.uploader.shortage(3), swarm.uploader.shortage(1)), (Shortage::None, Shortage::OfReplicas));
}

#[tokio::test]
async fn what_the_only_seeder_has_lacks_only_seeders_and_what_one_of_two_has_lacks_a_replica() {
    let alone = swarm(1, |_| {}).await;
    assert_eq!(alone.uploader.shortage(1), Shortage::OfReplicas, "as long as nobody has asked how many there are");
    let ids = put(&alone, &bytes(10, 1)).await.unwrap().segment_ids();
    assert_eq!(alone.uploader.short(&ids), [(ids[0], Shortage::OfSeeders)]);
    let two = swarm(2, |_| {}).await;
    two.tracker.away.lock().insert(two.seeders[1].state.id);
    let ids = put(&two, &bytes(10, 1)).await.unwrap().segment_ids();
    assert_eq!(two.uploader.short(&ids), [(ids[0], Shortage::OfReplicas)]);
}

#[tokio::test]
async fn a_seeder_that_holds_what_is_asked_for_says_so_again() {
    let swarm = swarm(2, |_| {}).await;
    let uploaded = put(&swarm, &bytes(10, 1)).await.unwrap();
    let (ids, segments) = (uploaded.segment_ids(), uploaded.manifest.segments().collect::<Vec<_>>());
    swarm.uploader.forget(&ids);
    assert_eq!(swarm.uploader.short(&ids).len(), 1);
    let received = swarm.seeders[0].received();
    swarm.uploader.confirm(&segments).await.unwrap();
    assert_eq!((swarm.uploader.short(&ids).len(), swarm.seeders[0].received()), (0, received));
}
