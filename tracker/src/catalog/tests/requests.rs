use super::*;

#[tokio::test]
async fn the_same_request_again_gets_the_first_answer_again() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let running = Running::on(store.clone()).await;
    let asked = request(vec![directory(ROOT, "d"), directory(ROOT, "d"), publish(ROOT, "f", &manifest(1, 2))]);
    let first = running.catalog.mutate(asked.clone()).await.unwrap();
    running.one(unlink(ROOT, "f")).await.unwrap();
    let revision = running.catalog.revision();
    assert_eq!(running.catalog.mutate(asked.clone()).await.unwrap(), first);
    assert_eq!(running.catalog.revision(), revision, "nothing was done again");
    assert!(running.catalog.view().image.entry(ROOT, b"f").is_none());
    running.close().await;
    let running = Running::on(store).await;
    assert_eq!(running.catalog.mutate(asked).await.unwrap(), first, "after a restart too");
}

#[tokio::test]
async fn an_answer_of_1024_operations_is_kept_too() {
    let running = Running::in_memory().await;
    let asked = request((0..1024).map(|n| publish(ROOT, &format!("file {n}"), &manifest(n, 1))).collect());
    let first = running.catalog.mutate(asked.clone()).await.unwrap();
    assert!(first.results.iter().all(Result::is_ok));
    assert_eq!(running.catalog.mutate(asked).await.unwrap(), first);
}

#[tokio::test]
async fn copies_of_one_request_at_the_same_time_are_done_once() {
    let running = Running::in_memory().await;
    let content = manifest(1, 1);
    let asked = request(vec![Submitted::Publish(Publish { if_exists: IfExists::Fail, ..file(ROOT, "f", &content) })]);
    let copies = (0..20).map(|_| running.catalog.mutate(asked.clone()));
    let done = futures::future::join_all(copies).await;
    let answers: Vec<&Mutated> = done.iter().flatten().collect();
    assert!(!answers.is_empty() && answers.iter().all(|answer| answer.results[0].is_ok()));
    for refused in done.iter().filter_map(|done| done.as_ref().err()) {
        assert_eq!(refused.fault, Fault::Unavailable, "told to ask again");
    }
    assert_eq!(&running.catalog.mutate(asked).await.unwrap(), answers[0]);
}

#[tokio::test]
async fn an_id_that_is_used_for_another_request_is_refused() {
    let running = Running::in_memory().await;
    let first = request(vec![directory(ROOT, "d")]);
    running.catalog.mutate(first.clone()).await.unwrap();
    let other = Request { id: first.id, ..request(vec![directory(ROOT, "e")]) };
    assert_eq!(running.catalog.mutate(other).await.unwrap_err().fault, Fault::Invalid);
    assert!(running.catalog.view().image.entry(ROOT, b"e").is_none());
}

#[tokio::test]
async fn a_retry_that_comes_too_late_is_told_so_and_not_done_again() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let running = Running::on(store.clone()).await;
    let small = request(vec![directory(ROOT, "d")]);
    let large = request((0..1000).map(|n| directory(ROOT, &n.to_string())).collect());
    for asked in [&small, &large] {
        running.catalog.mutate(asked.clone()).await.unwrap();
    }
    running.close().await;
    let config = CatalogConfig {
        answers_kept: Duration::from_secs(1),
        sweep_every: Duration::from_millis(10),
        ..CatalogConfig::default()
    };
    let running = Running::with(store, config, Arc::new(())).await;
    let stored = async |prefix: &'static [u8]| {
        running.catalog.store().scan(Bytes::from_static(prefix), Bytes::new(), usize::MAX).await.unwrap().entries.len()
    };
    eventually("the pages of answers go", async || stored(b"r").await == 0).await;
    for asked in [&small, &large] {
        let refused = running.catalog.mutate(asked.clone()).await.unwrap_err();
        assert_eq!(refused.fault, Fault::Expired);
    }
    eventually("in the end the ids go too", async || stored(b"q").await == 0).await;
}

#[tokio::test]
async fn no_operations_and_too_many_are_refused() {
    let running = Running::in_memory().await;
    for count in [0, 1025] {
        let asked = request((0..count).map(|n| directory(ROOT, &n.to_string())).collect());
        assert_eq!(running.catalog.mutate(asked).await.unwrap_err().fault, Fault::Invalid);
    }
}

#[tokio::test]
async fn a_catalog_that_is_closed_refuses_and_has_done_what_it_answered() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let running = Running::on(store.clone()).await;
    let catalog = running.catalog.clone();
    let many = (0..50).map(|n| catalog.mutate(request(vec![directory(ROOT, &n.to_string())])));
    let (done, ()) = tokio::join!(futures::future::join_all(many), running.close());
    let refused = catalog.mutate(request(vec![directory(ROOT, "late")])).await.unwrap_err();
    assert_eq!(refused.fault, Fault::Unavailable);
    let running = Running::on(store).await;
    for (n, done) in done.iter().enumerate() {
        let there = running.catalog.view().image.entry(ROOT, n.to_string().as_bytes()).is_some();
        assert_eq!(there, done.is_ok(), "request {n}");
    }
}
