use std::fs;

use proptest::prelude::*;

use super::*;
use crate::namespace::Image;
use crate::namespace::plan::RenameMode;

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => copy_tree(&entry.path(), &to.join(entry.file_name())),
            false => drop(fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

#[tokio::test]
async fn everything_goes_on_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::in_folder(folder.path()).await;
    let below = running.make(ROOT, "d").await;
    running.run(vec![publish(below, "f", &manifest(1, 3)), publish(below, "g", &manifest(1, 3))]).await;
    let (swarm, revision) = (running.catalog.swarm_id(), running.catalog.revision());
    let image = running.catalog.view().image.clone();
    running.close().await;
    let running = Running::in_folder(folder.path()).await;
    assert_eq!(running.catalog.swarm_id(), swarm);
    assert!(running.catalog.revision() >= revision);
    assert_eq!(running.catalog.view().image, image);
    let next = running.make(ROOT, "next").await;
    assert!(image.node(next).is_none() && next > below, "numbers are not used again");
}

#[tokio::test]
async fn every_answered_change_is_in_the_files_at_any_moment() {
    let folder = tempfile::tempdir().unwrap();
    let live = folder.path().join("live");
    let running = Running::in_folder(&live).await;
    let mut highest = ROOT;
    for round in 0..15u64 {
        let many = (0..20).map(|n| {
            let name = format!("{round} {n}");
            running.catalog.mutate(request(vec![
                publish(ROOT, &name, &manifest(n, 1 + round * 40)),
                directory(ROOT, &format!("{name} d")),
            ]))
        });
        for done in futures::future::join_all(many).await {
            assert!(done.unwrap().results.iter().all(Result::is_ok));
        }
        let want = running.catalog.view().image.clone();
        // A kill -9 leaves what the files hold now; nothing is closed or flushed for the copy.
        let copy = folder.path().join(format!("copy {round}"));
        copy_tree(&live, &copy);
        let survivor = Running::in_folder(&copy).await;
        assert_eq!(survivor.catalog.view().image, want);
        survivor.catalog.view().image.check().unwrap();
        let digests: Vec<_> = survivor.catalog.view().image.live_manifests().copied().collect();
        for digest in digests {
            let whole = survivor.catalog.manifests().whole(digest, usize::MAX).await.unwrap();
            assert!(whole.is_some(), "a file's manifest survives with it");
        }
        let made = survivor.make(ROOT, "after the kill").await;
        assert!(made > highest && want.node(made).is_none());
        highest = want.nodes().map(|(inode, _)| inode).max().unwrap();
        survivor.close().await;
    }
}

fn submitted(step: (u8, usize, usize, u8, u8), directories: &[InodeNumber], inodes: &[InodeNumber]) -> Submitted {
    let (kind, from, to, name, size) = step;
    let names = ["a", "b", "c", "d"];
    let pick = |index: usize| directories[index % directories.len()];
    let (from_at, to_at) = (at(pick(from), names[usize::from(name % 4)]), at(pick(to), names[usize::from(size % 4)]));
    match kind % 8 {
        0 | 1 => Submitted::Plain(Operation::MakeDirectory(from_at, OWNER)),
        2 | 3 => publish(pick(from), names[usize::from(name % 4)], &manifest(u64::from(size % 5), u64::from(size % 3))),
        4 => Submitted::Plain(Operation::Unlink(from_at)),
        5 => Submitted::Plain(Operation::RemoveDirectory(from_at)),
        6 => Submitted::Plain(Operation::Link(inodes[to % inodes.len()], from_at)),
        _ => {
            let modes = [RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange];
            Submitted::Plain(Operation::Rename(from_at, to_at, modes[usize::from(size % 3)]))
        }
    }
}

async fn replay(steps: &[(u8, usize, usize, u8, u8)], group: usize) -> (Image, Image) {
    let running = Running::in_memory().await;
    for group in steps.chunks(group) {
        let (directories, inodes): (Vec<InodeNumber>, Vec<InodeNumber>) = {
            let view = running.catalog.view();
            let mut all: Vec<_> = view.image.nodes().map(|(inode, node)| (inode, node.is_directory())).collect();
            all.sort_unstable();
            (
                all.iter().filter(|(_, directory)| *directory).map(|(inode, _)| *inode).collect(),
                all.iter().map(|(inode, _)| *inode).collect(),
            )
        };
        running.run(group.iter().map(|step| submitted(*step, &directories, &inodes)).collect()).await;
    }
    let image = running.catalog.view().image.clone();
    (image, rebuilt(&running.catalog).await)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn after_any_history_the_image_is_what_the_store_makes(
        steps in prop::collection::vec((any::<u8>(), 0usize..20, 0usize..20, any::<u8>(), any::<u8>()), 1..80),
        group in 1usize..20,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (image, rebuilt) = runtime.block_on(replay(&steps, group));
        prop_assert!(image.check().is_ok());
        prop_assert_eq!(image, rebuilt);
    }
}
