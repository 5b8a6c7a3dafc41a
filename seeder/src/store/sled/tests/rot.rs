//! Bytes that change at rest: data, trees, records, whole files, the database itself.

use std::path::PathBuf;

use super::*;
use crate::store::Loan;
use crate::store::disk::Access;

const LENGTH: usize = 500_000;

async fn one_file(dir: &Path) -> (Arc<SledStore>, Bytes, Segment, PathBuf) {
    let store = open(dir).await;
    let bytes = conformance::sample(1, LENGTH);
    let segment = put(&store, &bytes, AckLevel::Fsync).await.unwrap();
    let path = store.core.home.segment_file(&segment.id);
    (store, bytes, segment, path)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotten_tree_is_made_again_from_good_bytes() {
    let dir = folder();
    let (store, bytes, segment, path) = one_file(dir.path()).await;
    store.close().await;
    let good = std::fs::read(&path).unwrap();
    flip(&path, LENGTH as u64 + 100);
    let store = open(dir.path()).await;
    assert!(store.read(segment.id, segment.all()).await.unwrap() == bytes);
    assert_eq!(std::fs::read(&path).unwrap(), good, "it was put right on the disk");
    // The tree in memory does not hide what lies on the disk from a scrub.
    flip(&path, LENGTH as u64 + 100);
    assert_eq!(store.reverify(segment.id).await.unwrap(), [0; 0]);
    assert_eq!(std::fs::read(&path).unwrap(), good);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotten_tree_over_rotten_bytes_drops_all_and_mending_brings_all_back() {
    let dir = folder();
    let (store, bytes, segment, path) = one_file(dir.path()).await;
    store.close().await;
    flip(&path, LENGTH as u64 + 100);
    flip(&path, 20_000);
    let store = open(dir.path()).await;
    let outcome = store.read(segment.id, ChunkRange::new(5, 6)).await;
    assert!(matches!(outcome, Err(StoreError::Corrupt { .. })), "{outcome:?}");
    assert_eq!((store.held(&segment.id), store.usage().corrupt_segments), (None, 1));
    let tree = ChunkTree::build(&bytes);
    for run in segment.all().runs(9) {
        let part = conformance::part(&bytes, segment, run);
        store.mend(tree.clone(), run, part).await.unwrap();
    }
    assert_eq!(store.usage().corrupt_segments, 0);
    store.close().await;
    let store = open(dir.path()).await;
    assert!(store.read(segment.id, segment.all()).await.unwrap() == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_cut_short_or_gone_while_running_loses_what_is_gone() {
    let dir = folder();
    let (store, bytes, segment, path) = one_file(dir.path()).await;
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(100_000).unwrap();
    let outcome = store.read(segment.id, segment.all()).await;
    assert!(matches!(outcome, Err(StoreError::Corrupt { chunk: 6, .. })), "{outcome:?}");
    assert!(store.read(segment.id, ChunkRange::new(0, 6)).await.unwrap() == bytes[..6 * 16384]);
    std::fs::remove_file(&path).unwrap();
    let outcome = store.read(segment.id, ChunkRange::new(0, 6)).await;
    assert!(matches!(outcome, Err(StoreError::Corrupt { .. })), "{outcome:?}");
    assert_eq!((store.held(&segment.id), store.inventory()), (None, vec![]));
    put(&store, &bytes, AckLevel::Close).await.unwrap();
    assert!(store.read(segment.id, segment.all()).await.unwrap() == bytes);
    assert_eq!(store.usage().corrupt_segments, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_cut_short_or_gone_while_closed_is_dropped_at_opening() {
    for length in [None, Some(0), Some(100_000), Some(LENGTH as u64)] {
        let dir = folder();
        let (store, _, segment, path) = one_file(dir.path()).await;
        store.close().await;
        match length {
            None => std::fs::remove_file(&path).unwrap(),
            Some(length) => std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(length).unwrap(),
        }
        let store = open(dir.path()).await;
        assert_eq!((store.held(&segment.id), store.usage().used_bytes), (None, 0), "{length:?}");
        assert!(!path.exists());
        assert_sound(&store).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotten_record_is_dropped_and_its_file_proves_itself() {
    let dir = folder();
    let (store, bytes, segment, _) = one_file(dir.path()).await;
    let small = put(&store, &conformance::sample(2, 40_000), AckLevel::Fsync).await.unwrap();
    for id in [segment.id, small.id] {
        let mut value = store.core.database.get(Row::Segment(id)).unwrap().unwrap();
        value[3] ^= 4;
        store.core.database.put(Row::Segment(id), &value);
    }
    store.close().await;
    let store = open(dir.path()).await;
    assert_eq!(store.inventory(), [(segment.id, true)]);
    assert!(store.read(segment.id, segment.all()).await.unwrap() == bytes);
    assert_sound(&store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_ours_in_the_folders_is_left_alone() {
    let dir = folder();
    let (store, _, segment, path) = one_file(dir.path()).await;
    store.close().await;
    let note = path.with_file_name("README");
    std::fs::write(&note, "mine").unwrap();
    let false_name = path.with_file_name(SegmentId::new([segment.id.as_bytes()[0]; 32]).to_string());
    std::fs::copy(&path, &false_name).unwrap();
    let store = open(dir.path()).await;
    assert_eq!(store.inventory(), [(segment.id, true)]);
    assert!(note.exists() && !false_name.exists(), "a file that does not hash to its name is swept, others stay");
}

#[tokio::test(flavor = "multi_thread")]
async fn flips_anywhere_in_the_database_never_give_out_a_wrong_byte() {
    let dir = folder();
    let store = open(dir.path()).await;
    let mut all = Vec::new();
    for seed in 0..40usize {
        let bytes = conformance::sample(seed as u64, 3_000 * (1 + seed));
        all.push((put(&store, &bytes, AckLevel::Close).await.unwrap(), bytes));
    }
    store.close().await;
    let log = std::fs::read(dir.path().join("db/db")).unwrap();
    let used = log.iter().rposition(|byte| *byte != 0).unwrap();
    for round in 0..24usize {
        let mut flipped = log.clone();
        for at in (0..=round % 3).map(|flip| (round * 7919 + flip * 104_729) * 31 % used) {
            flipped[at] ^= 1 << (round % 8);
        }
        let copy = folder();
        copy_folder(dir.path(), copy.path());
        std::fs::write(copy.path().join("db/db"), flipped).unwrap();
        let opened = tokio::time::timeout(Duration::from_secs(60), open_on(config(copy.path()), Arc::new(RealDisk)));
        let store = match opened.await.expect("opening ends") {
            Ok(store) => store,
            Err(error) => panic!("round {round}: {error}"),
        };
        for (segment, bytes) in &all {
            match store.read(segment.id, segment.all()).await {
                Ok(got) => assert!(got == *bytes, "round {round}: wrong bytes"),
                Err(StoreError::Missing(_) | StoreError::Corrupt { .. } | StoreError::Partial(_)) => {}
                Err(StoreError::Io { .. }) => {}
                Err(other) => panic!("round {round}: {other:?}"),
            }
        }
        let large = all.iter().filter(|(segment, _)| segment.length > 64 * 1024);
        for (segment, _) in large {
            assert!(store.inventory().contains(&(segment.id, true)), "round {round}: a file proves itself");
        }
    }
}

fn copy_folder(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir_all(&target).unwrap();
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_that_rotted_with_a_chunk_is_written_again_while_it_is_known() {
    let dir = folder();
    let (store, bytes, segment, path) = one_file(dir.path()).await;
    flip(&path, 0);
    flip(&path, LENGTH as u64 + 100);
    let outcome = store.read(segment.id, segment.all()).await;
    assert!(matches!(outcome, Err(StoreError::Corrupt { chunk: 0, .. })), "{outcome:?}");
    store.close().await;
    // Without it nothing of the other chunks could be verified now.
    let store = open(dir.path()).await;
    let others = ChunkRange::new(1, segment.chunks());
    assert!(store.read(segment.id, others).await.unwrap() == bytes[16 * 1024..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_touch_promises_nothing_of_a_file_that_is_gone_or_short() {
    for damage in [
        |path: &Path| std::fs::remove_file(path).unwrap(),
        |path: &Path| {
            std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(100_000).unwrap();
        },
    ] {
        let dir = folder();
        let (store, bytes, segment, path) = one_file(dir.path()).await;
        assert_ne!(store.touch(vec![segment.id], Duration::ZERO).await.unwrap(), [0]);
        damage(&path);
        assert_eq!(store.touch(vec![segment.id], Duration::ZERO).await.unwrap(), [0], "send it again");
        put(&store, &bytes, AckLevel::Fsync).await.unwrap();
        assert_ne!(store.touch(vec![segment.id], Duration::ZERO).await.unwrap(), [0]);
        assert!(store.read(segment.id, segment.all()).await.unwrap() == bytes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_byte_that_changes_after_it_was_proven_is_found_all_the_same() {
    let dir = folder();
    let (store, bytes, segment, path) = one_file(dir.path()).await;
    let stamp = store.core.disk.open(&path, Access::Read).unwrap().stamp().unwrap().unwrap();
    let began = std::time::Instant::now();
    // Its last change must be old enough for a proof.
    while !store.core.proofs.hold(segment, segment.all(), stamp, std::time::Instant::now()) {
        assert!(began.elapsed() < Duration::from_secs(20), "never proven");
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(store.read(segment.id, segment.all()).await.unwrap() == bytes);
    }
    assert!(store.read(segment.id, segment.all()).await.unwrap() == bytes, "with a proof");
    flip(&path, 20_000);
    let outcome = store.read(segment.id, segment.all()).await;
    assert!(matches!(outcome, Err(StoreError::Corrupt { chunk: 1, .. })), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_that_is_lent_holds_verified_bytes_and_rot_is_not_lent() {
    let dir = folder();
    let (store, bytes, segment, path) = one_file(dir.path()).await;
    let run = ChunkRange::new(3, 9);
    let lent = |loan: Loan, length| crate::aligned::read_exact_at(loan.file, loan.offset, length).unwrap();
    for _ in 0..2 {
        let loan = store.lend(segment.id, run).await.unwrap().unwrap();
        assert!(lent(loan, 6 * 16_384) == bytes[3 * 16_384..9 * 16_384]);
    }
    let outcome = store.lend(segment.id, ChunkRange::new(30, 32)).await;
    assert!(matches!(outcome, Err(StoreError::Partial(_))), "{outcome:?}");
    let other = SegmentId::new([9; 32]);
    assert!(matches!(store.lend(other, run).await, Err(StoreError::Missing(id)) if id == other));
    flip(&path, 5 * 16_384);
    let outcome = store.lend(segment.id, run).await;
    assert!(matches!(outcome, Err(StoreError::Corrupt { chunk: 5, .. })), "{outcome:?}");
    assert_eq!(store.usage().corrupt_segments, 1);
    let loan = store.lend(segment.id, ChunkRange::new(6, 9)).await.unwrap().unwrap();
    assert!(lent(loan, 3 * 16_384) == bytes[6 * 16_384..9 * 16_384]);
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(store.lend(segment.id, ChunkRange::new(6, 9)).await, Err(StoreError::Corrupt { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lies_in_the_database_is_not_lent() {
    let dir = folder();
    let store = open(dir.path()).await;
    let segment = put(&store, &conformance::sample(2, 40_000), AckLevel::Close).await.unwrap();
    assert!(store.lend(segment.id, segment.all()).await.unwrap().is_none());
}
