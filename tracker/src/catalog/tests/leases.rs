//! No change of a leased file is answered before its lease is over; nothing else waits.

use std::time::Instant;

use super::*;
use crate::catalog::leases::TERM;

/// A catalog that no other process shares, and that began long enough ago to know all leases.
async fn settled(folder: &Path) -> Running {
    let running = Running::in_folder(folder).await;
    tokio::time::sleep(TERM).await;
    running
}

async fn file_of(running: &Running, name: &str, content: u64) -> InodeNumber {
    running.one(publish(ROOT, name, &manifest(content, 1))).await.unwrap().unwrap().0
}

#[tokio::test]
async fn a_change_of_a_leased_file_is_answered_when_the_lease_is_over() {
    let folder = tempfile::tempdir().unwrap();
    let running = settled(folder.path()).await;
    let changes = [
        publish(ROOT, "f", &manifest(2, 1)),
        unlink(ROOT, "f"),
        Submitted::Plain(Operation::Rename(
            at(ROOT, "other"),
            at(ROOT, "f"),
            crate::namespace::plan::RenameMode::Replace,
        )),
    ];
    for change in changes {
        let inode = file_of(&running, "f", 1).await;
        file_of(&running, "other", 3).await;
        let leased_at = Instant::now();
        let (revision, term) = {
            let (view, term) = running.catalog.view_leased(&[inode]).await.unwrap();
            (view.revision, term)
        };
        assert_eq!(term, TERM);
        let other = running.one(publish(ROOT, "other", &manifest(4, 1)));
        let changed = async {
            let mutated = running.run(vec![change]).await;
            assert_eq!(fault(&mutated.results[0]), None);
            assert!(mutated.revision > revision);
            Instant::now()
        };
        let (other, answered) = tokio::join!(async { other.await.map(|_| Instant::now()) }, changed);
        assert!(answered >= leased_at + TERM, "{:?}", answered - leased_at);
        assert!(other.unwrap() < answered, "a file that nobody leased waits for nothing");
    }
}

#[tokio::test]
async fn a_write_to_a_leased_file_waits_too() {
    let folder = tempfile::tempdir().unwrap();
    let running = settled(folder.path()).await;
    let (inode, first) = super::writes::file_of(&running, "f", 1).await;
    let leased_at = Instant::now();
    drop(running.catalog.view_leased(&[inode]).await.unwrap());
    running.one(super::writes::write(inode, &first, &manifest(2, 1))).await.unwrap();
    assert!(leased_at.elapsed() >= TERM);
}

#[tokio::test]
async fn a_change_that_came_first_is_what_is_leased() {
    let folder = tempfile::tempdir().unwrap();
    let running = settled(folder.path()).await;
    let inode = file_of(&running, "f", 1).await;
    drop(running.catalog.view_leased(&[inode]).await.unwrap());
    let changed = running.catalog.mutate(request(vec![publish(ROOT, "f", &manifest(2, 1))]));
    let leased = async {
        // The change is made, and its answer waits.
        let new = manifest(2, 1).digest();
        eventually("the change shows", async || {
            running.catalog.view().image.node(inode).unwrap().content().unwrap().manifest == Some(new)
        })
        .await;
        let view = running.catalog.view_leased(&[inode]).await.unwrap().0;
        view.image.node(inode).unwrap().content().unwrap().manifest == Some(new)
    };
    let (changed, is_new) = tokio::join!(changed, leased);
    assert!(changed.unwrap().results[0].is_ok() && is_new);
}

#[tokio::test]
async fn a_retry_waits_too_and_so_does_a_process_that_does_not_know_the_leases_of_the_last_one() {
    let folder = tempfile::tempdir().unwrap();
    let running = settled(folder.path()).await;
    let inode = file_of(&running, "f", 1).await;
    drop(running.catalog.view_leased(&[inode]).await.unwrap());
    let leased_at = Instant::now();
    let change = request(vec![publish(ROOT, "f", &manifest(2, 1))]);
    let (first, second) = tokio::join!(running.catalog.mutate(change.clone()), async {
        eventually("it is committed", async || {
            running.catalog.view().image.node(inode).unwrap().content().unwrap().manifest
                == Some(manifest(2, 1).digest())
        })
        .await;
        running.catalog.mutate(change.clone()).await
    });
    assert!(leased_at.elapsed() >= TERM - Duration::from_millis(1));
    assert_eq!(first.unwrap(), second.unwrap());
    running.close().await;
    let began = Instant::now();
    let running = Running::in_folder(folder.path()).await;
    file_of(&running, "new", 5).await;
    let unhindered = began.elapsed();
    file_of(&running, "f", 3).await;
    assert!(began.elapsed() >= TERM, "{unhindered:?} for a new file");
}

#[tokio::test]
async fn a_store_that_others_write_to_leases_nothing() {
    let running = Running::in_memory().await;
    let inode = file_of(&running, "f", 1).await;
    assert_eq!(running.catalog.view_leased(&[inode]).await.unwrap().1, Duration::ZERO);
}

#[tokio::test]
async fn a_name_that_is_made_again_is_answered_when_the_file_it_hides_is_no_longer_leased() {
    let folder = tempfile::tempdir().unwrap();
    let running = settled(folder.path()).await;
    let inode = file_of(&running, "f", 1).await;
    let leased_at = Instant::now();
    drop(running.catalog.view_leased(&[inode]).await.unwrap());
    let removed = running.catalog.mutate(request(vec![unlink(ROOT, "f")]));
    let made_again = async {
        eventually("the name is free", async || running.catalog.view().image.entry(ROOT, b"f").is_none()).await;
        running.one(publish(ROOT, "f", &manifest(2, 1))).await.unwrap();
        leased_at.elapsed()
    };
    let (removed, made_again) = tokio::join!(removed, made_again);
    assert!(removed.unwrap().results[0].is_ok());
    assert!(made_again >= TERM, "{made_again:?}");
}
