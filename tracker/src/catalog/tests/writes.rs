//! Contents for files that are open, and answers that tell all that was changed.

use super::*;
use crate::catalog::writer::WriteFile;
use crate::namespace::plan::{RenameMode, SetId};

pub(super) async fn file_of(running: &Running, name: &str, content: u64) -> (InodeNumber, Node) {
    running.one(publish(ROOT, name, &manifest(content, 1))).await.unwrap().unwrap()
}

fn content_of(inode: InodeNumber, base: &Node, content: &Manifest) -> WriteFile {
    WriteFile {
        inode,
        base_version: base.content().unwrap().version,
        size: content.size(),
        content: Content::Inline(content.encode()),
        modified_ns: 70,
        changed_ns: 80,
        accessed_ns: None,
        set_id: SetId::Keep,
        acknowledged: Vec::new(),
    }
}

pub(super) fn write(inode: InodeNumber, base: &Node, content: &Manifest) -> Submitted {
    Submitted::Write(content_of(inode, base, content))
}

#[tokio::test]
async fn a_write_makes_a_new_version_of_what_it_was_based_on_also_without_a_name() {
    let running = Running::in_memory().await;
    let (inode, first) = file_of(&running, "f", 1).await;
    let holes = Manifest::new(vec![Extent::Hole { length: 100 }, Extent::whole(segment(5))]).unwrap();
    let second = running.one(write(inode, &first, &holes)).await.unwrap().unwrap().1;
    let content = second.content().unwrap();
    assert_eq!((content.size, content.allocated, content.manifest), (4196, 4096, Some(holes.digest())));
    assert!(content.version > first.content().unwrap().version);
    assert_eq!((second.modified_ns, second.accessed_ns, second.mode), (70, first.accessed_ns, first.mode));
    assert_eq!(second.changed_ns, first.changed_ns, "the writer's clock is behind: it stays");
    running.one(unlink(ROOT, "f")).await.unwrap();
    let empty = WriteFile { size: 0, content: Content::Empty, ..content_of(inode, &second, &holes) };
    let third = running.one(Submitted::Write(empty)).await.unwrap().unwrap().1;
    assert_eq!((third.links, third.size(), third.content().unwrap().manifest), (0, 0, None));
    assert!(!running.catalog.view().image.is_live(&holes.digest()));
}

#[tokio::test]
async fn who_lost_a_race_is_told_what_is_there_also_when_it_asks_again() {
    let running = Running::in_memory().await;
    let (inode, first) = file_of(&running, "f", 1).await;
    let won = running.one(write(inode, &first, &manifest(2, 1))).await.unwrap().unwrap();
    let late = request(vec![write(inode, &first, &manifest(3, 1))]);
    let refused = running.catalog.mutate(late.clone()).await.unwrap();
    let refusal = refused.results[0].clone().unwrap_err();
    assert_eq!((refusal.fault, refusal.node), (Fault::Stale, Some(Box::new(won))));
    assert_eq!(running.catalog.mutate(late).await.unwrap(), refused);
    let gone = running.one(write(InodeNumber(99), &first, &manifest(3, 1))).await.unwrap_err();
    assert_eq!((gone.fault, gone.node), (Fault::Stale, None));
    let unlike = WriteFile { size: 5, ..content_of(inode, &first, &manifest(3, 1)) };
    assert_eq!(fault(&running.one(Submitted::Write(unlike)).await), Some(Fault::Invalid));
}

#[tokio::test]
async fn of_two_writes_in_one_request_the_second_sees_the_first() {
    let running = Running::in_memory().await;
    let (inode, first) = file_of(&running, "f", 1).await;
    let both = vec![write(inode, &first, &manifest(2, 1)), write(inode, &first, &manifest(3, 1))];
    let done = running.run(both).await.results;
    let (won, lost) = (done[0].clone().unwrap().unwrap(), done[1].clone().unwrap_err());
    assert_eq!((lost.fault, lost.node), (Fault::Stale, Some(Box::new(won))));
}

#[tokio::test]
async fn a_write_whose_segments_nobody_vouches_for_is_to_be_sent_again() {
    let (config, store) = (CatalogConfig::default(), Arc::new(MemoryStore::new()));
    let running = Running::with(store, config, Arc::new(Ledger::default())).await;
    let made = Publish { content: Content::Empty, size: 0, ..file(ROOT, "f", &manifest(1, 1)) };
    let (inode, first) = running.one(Submitted::Publish(made)).await.unwrap().unwrap();
    let content = manifest(1, 2);
    assert_eq!(fault(&running.one(write(inode, &first, &content)).await), Some(Fault::SendAgain));
    let ids = content.segments().map(|segment| segment.id).collect();
    let vouched = WriteFile { acknowledged: vec![(PeerId::random(), ids)], ..content_of(inode, &first, &content) };
    assert_eq!(fault(&running.one(Submitted::Write(vouched)).await), None);
}

/// Inodes with their links, in order.
fn shown(others: &[(InodeNumber, Node)]) -> Vec<(InodeNumber, u32)> {
    let mut shown: Vec<_> = others.iter().map(|(inode, node)| (*inode, node.links)).collect();
    shown.sort_unstable();
    shown
}

#[tokio::test]
async fn whoever_asks_is_told_all_other_inodes_that_an_operation_changed_as_they_were_committed() {
    let running = Running::in_memory().await;
    let (moved, _) = file_of(&running, "moved", 1).await;
    let (target, _) = file_of(&running, "target", 2).await;
    let replace = Operation::Rename(at(ROOT, "moved"), at(ROOT, "target"), RenameMode::Replace);
    let operations = vec![
        directory(ROOT, "d"),
        directory(ROOT, "e"),
        directory(ROOT, "e"),
        Submitted::Plain(Operation::RemoveDirectory(at(ROOT, "e"))),
        Submitted::Plain(replace),
        unlink(ROOT, "target"),
        Submitted::Plain(Operation::SetAttributes(moved, crate::namespace::plan::Attributes::default())),
    ];
    let asked = Request { others: Others::Tell, ..request(operations) };
    let told = running.catalog.mutate(asked.clone()).await.unwrap();
    assert!(told.results[2].is_err() && told.results.iter().filter(|done| done.is_err()).count() == 1, "{told:?}");
    let others: Vec<_> = told.others.iter().map(|others| shown(others)).collect();
    let want = [
        vec![(ROOT, 3)],
        // As it is when all is done: the answer carries that revision.
        vec![(ROOT, 3)],
        vec![],
        vec![(ROOT, 3)],
        vec![(ROOT, 3), (target, 0)],
        vec![(ROOT, 3), (moved, 0)],
        vec![],
    ];
    assert_eq!(others, want, "a directory that is gone is not told");
    let again = running.catalog.mutate(asked).await.unwrap();
    assert_eq!((again.results, again.others), (told.results, Vec::new()), "a kept answer has only the results");
    assert_eq!(running.run(vec![directory(ROOT, "x")]).await.others, Vec::<Vec<_>>::new());
}
