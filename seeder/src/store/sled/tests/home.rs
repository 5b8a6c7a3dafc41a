//! Folders that are refused, and what they are told; who the store is.

use super::*;
use crate::store::sled::home;

async fn refusal(dir: &Path) -> String {
    match open_on(config(dir), Arc::new(RealDisk)).await {
        Err(StoreError::Unusable(why)) => why,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it was opened"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_opener_is_told_who_has_the_store_until_it_is_closed() {
    let dir = folder();
    let store = open(dir.path()).await;
    let why = refusal(dir.path()).await;
    assert!(why.contains(&format!("process {}", std::process::id())), "{why}");
    store.close().await;
    drop(open(dir.path()).await);
    open(dir.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_is_no_store_is_refused_and_left_alone() {
    let dir = folder();
    std::fs::write(dir.path().join("thesis.tex"), "years of work").unwrap();
    let why = refusal(dir.path()).await;
    assert!(why.contains("not a seeder's store") && why.contains("empty folder"), "{why}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    let file = dir.path().join("thesis.tex");
    assert!(refusal(&file).await.contains("name a folder"));
    assert!(refusal(&file.join("below")).await.contains("name a folder"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_or_unreadable_version_is_refused() {
    let dir = folder();
    drop(open(dir.path()).await);
    let path = dir.path().join("VERSION");
    let right = std::fs::read_to_string(&path).unwrap();
    for (text, hint) in [
        (right.replacen(&format!("store {}", home::VERSION), "store 7", 1), "newer program"),
        ("swarm-seeder-store 0\n".to_owned(), "not the version file"),
        ("swarm-seeder-store 99999999999\n".to_owned(), "not the version file"),
        (String::new(), "not the version file"),
        ("x".repeat(100_000), "not the version file"),
        (format!("swarm-seeder-store {}\n", home::VERSION), "does not name the store's peer"),
        (format!("swarm-seeder-store {}\npeer zz\n", home::VERSION), "does not name the store's peer"),
    ] {
        std::fs::write(&path, &text).unwrap();
        let why = refusal(dir.path()).await;
        assert!(why.contains(hint), "{why}");
    }
    std::fs::write(&path, right).unwrap();
    open(dir.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_without_permission_is_told_of_both_users() {
    if rustix::process::geteuid().is_root() {
        println!("only the words are tried: root may write everywhere");
        let error = std::io::ErrorKind::PermissionDenied.into();
        let StoreError::Unusable(why) = home::unusable(Path::new("/"), "read the folder", &error) else { panic!() };
        assert!(why.contains("user 0") && why.contains("chown"), "{why}");
        return;
    }
    let why = refusal(Path::new("/root/store")).await;
    assert!(why.contains("chown"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_belongs_to_one_peer_and_one_swarm_for_good() {
    let dir = folder();
    let store = open(dir.path()).await;
    assert_eq!(store.swarm_id(), None);
    let (peer, ours, other) = (store.peer_id(), SwarmId::new([1; 16]), SwarmId::new([2; 16]));
    store.bind_swarm(ours).await.unwrap();
    store.bind_swarm(ours).await.unwrap();
    store.close().await;
    let store = open(dir.path()).await;
    assert_eq!((store.peer_id(), store.swarm_id()), (peer, Some(ours)));
    let StoreError::Unusable(why) = store.bind_swarm(other).await.unwrap_err() else { panic!() };
    assert!(why.contains(&ours.to_string()) && why.contains(&other.to_string()), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_database_is_set_aside_and_the_files_are_found_again() {
    let dir = folder();
    let store = open(dir.path()).await;
    let peer = store.peer_id();
    let (small, large) = (conformance::sample(1, 50_000), conformance::sample(2, 500_000));
    let small = put(&store, &small, AckLevel::Close).await.unwrap();
    let segment = put(&store, &large, AckLevel::Close).await.unwrap();
    store.close().await;
    std::fs::write(dir.path().join("db/conf"), b"rubbish of some length").unwrap();
    let store = open(dir.path()).await;
    assert_eq!(store.peer_id(), peer);
    assert!(dir.path().join("db.damaged-1").is_dir());
    assert!(store.read(segment.id, segment.all()).await.unwrap() == large);
    assert_eq!(store.held(&small.id), None);
    assert_sound(&store).await;
}
