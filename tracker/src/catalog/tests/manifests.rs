use std::collections::HashSet;

use futures::StreamExt;
use swarm_proto::ManifestDigest;
use swarm_proto::manifest::{INLINE_BYTES, PAGE_BYTES};

use super::*;
use crate::catalog::manifests::Upload;
use crate::store::schema::prefix;

async fn put(running: &Running, manifest: &Manifest, piece: usize) -> Result<u64, Refusal> {
    let mut upload = Upload::new(running.catalog.manifests().clone());
    for piece in manifest.encode().chunks(piece) {
        upload.push(piece).await?;
    }
    upload.finish(manifest.digest()).await
}

async fn read(running: &Running, digest: ManifestDigest) -> Option<Bytes> {
    let mut pages = running.catalog.manifests().pages(digest).await.unwrap()?;
    let mut bytes = Vec::new();
    let mut full = true;
    while let Some(page) = pages.next().await {
        let page = page.unwrap();
        assert!(full && !page.is_empty(), "only the last page is short");
        full = page.len() == PAGE_BYTES;
        bytes.extend_from_slice(&page);
    }
    Some(bytes.into())
}

async fn keys(running: &Running, prefix: &'static [u8]) -> usize {
    let page = running.catalog.store().scan(Bytes::from_static(prefix), Bytes::new(), usize::MAX);
    page.await.unwrap().entries.len()
}

fn known(name: &str, manifest: &Manifest) -> Submitted {
    Submitted::Publish(Publish { content: Content::Known(manifest.digest()), ..file(ROOT, name, manifest) })
}

#[tokio::test]
async fn manifests_of_any_size_are_what_was_put_also_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::in_folder(folder.path()).await;
    // 17 + 49 n bytes: in the record, around its limit, some pages, many pages.
    let all: Vec<Manifest> =
        [0, 1, 330, 333, 334, 1_300, 6_000, 60_000].into_iter().map(|segments| manifest(7, segments)).collect();
    for (number, manifest) in all.iter().enumerate() {
        assert_eq!(put(&running, manifest, 1 + 40_000 * number).await, Ok(manifest.size()));
        assert_eq!(put(&running, manifest, PAGE_BYTES).await, Ok(manifest.size()), "twice is as good");
        if manifest.size() > 0 {
            assert_eq!(fault(&running.one(known(&number.to_string(), manifest)).await), None);
        }
        assert_eq!(read(&running, manifest.digest()).await, Some(manifest.encode()));
    }
    running.close().await;
    let running = Running::in_folder(folder.path()).await;
    for manifest in &all {
        assert_eq!(read(&running, manifest.digest()).await, Some(manifest.encode()));
        let encoded = manifest.encode();
        let whole = running.catalog.manifests().whole(manifest.digest(), INLINE_BYTES).await.unwrap();
        assert_eq!(whole, Some(encoded.clone()).filter(|encoded| encoded.len() <= INLINE_BYTES));
    }
    assert_eq!(read(&running, ManifestDigest::new([7; 32])).await, None);
}

#[tokio::test]
async fn what_is_not_the_manifest_of_its_digest_is_refused_and_leaves_nothing() {
    let config = CatalogConfig { sweep_every: Duration::from_millis(5), ..CatalogConfig::default() };
    let running = Running::with(Arc::new(MemoryStore::new()), config, Arc::new(())).await;
    let good = manifest(1, 50_000);
    let mut flipped = good.encode().to_vec();
    flipped[2_000_000] ^= 1;
    for (bytes, digest) in [
        (&flipped[..], good.digest()),
        (&good.encode()[..1_000_000], good.digest()),
        (&noise(100, 1)[..], ManifestDigest::new(*blake3::hash(&noise(100, 1)).as_bytes())),
        (&[], good.digest()),
    ] {
        let mut upload = Upload::new(running.catalog.manifests().clone());
        let pushed = upload.push(bytes).await;
        let done = match pushed {
            Ok(()) => upload.finish(digest).await.map(|_| ()),
            Err(refusal) => Err(refusal),
        };
        assert_eq!(done.unwrap_err().fault, Fault::Invalid);
        assert_eq!(read(&running, digest).await, None);
    }
    eventually("the pages of what was refused are swept", async || {
        keys(&running, b"p").await == 0 && keys(&running, b"u").await == 0
    })
    .await;
}

#[tokio::test]
async fn an_upload_of_wrong_pages_does_not_touch_a_good_one() {
    let running = Running::in_memory().await;
    let good = manifest(1, 50_000);
    let mut liar = Upload::new(running.catalog.manifests().clone());
    let mut honest = Upload::new(running.catalog.manifests().clone());
    let encoded = good.encode();
    let lie = manifest(2, 50_000).encode();
    for at in (0..encoded.len()).step_by(PAGE_BYTES) {
        let end = encoded.len().min(at + PAGE_BYTES);
        liar.push(&lie[at..end]).await.unwrap();
        honest.push(&encoded[at..end]).await.unwrap();
    }
    assert!(liar.finish(good.digest()).await.is_err());
    honest.finish(good.digest()).await.unwrap();
    assert_eq!(read(&running, good.digest()).await, Some(encoded));
}

#[tokio::test]
async fn a_manifest_that_was_never_put_is_not_found_and_a_bad_one_invalid() {
    let running = Running::in_memory().await;
    let unknown = manifest(1, 5);
    assert_eq!(fault(&running.one(known("f", &unknown)).await), Some(Fault::NotFound));
    let too_long = manifest(1, 1_400);
    assert_eq!(fault(&running.one(publish(ROOT, "f", &too_long)).await), Some(Fault::Invalid));
    let noisy = Publish { content: Content::Inline(noise(200, 3)), ..file(ROOT, "f", &unknown) };
    assert_eq!(fault(&running.one(Submitted::Publish(noisy)).await), Some(Fault::Invalid));
    let lies = Publish { size: 5, ..file(ROOT, "f", &unknown) };
    assert_eq!(fault(&running.one(Submitted::Publish(lies)).await), Some(Fault::Invalid));
    // One operation brings it along, the next of the same request names it.
    let both = running.run(vec![publish(ROOT, "f", &unknown), known("g", &unknown)]).await;
    assert!(both.results.iter().all(Result::is_ok), "{both:?}");
}

#[tokio::test]
async fn the_sweep_takes_what_no_file_names_for_the_grace_and_nothing_else() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let running = Running::with(store.clone(), hasty(), Arc::new(())).await;
    let (kept, removed, put_only) = (manifest(1, 2_000), manifest(2, 1_300), manifest(3, 2_000));
    put(&running, &kept, PAGE_BYTES).await.unwrap();
    put(&running, &put_only, PAGE_BYTES).await.unwrap();
    for name in ["kept", "kept too"] {
        running.one(known(name, &kept)).await.unwrap();
    }
    running.one(unlink(ROOT, "kept too")).await.unwrap();
    running.one(publish(ROOT, "removed", &removed)).await.unwrap();
    running.one(unlink(ROOT, "removed")).await.unwrap();
    all_reclaimed(&running).await;
    let state = running.catalog.state().clone();
    let hour = Duration::from_secs(3600);
    assert_eq!(running.catalog.manifests().sweep(&state, hour).await.unwrap(), 0, "all within the grace");
    let guard = running.catalog.manifests().keep_all().await;
    assert_eq!(running.catalog.manifests().sweep(&state, Duration::ZERO).await.unwrap(), 0, "not while an export runs");
    drop(guard);
    running.close().await;
    // A start finds what an earlier process left.
    let config = CatalogConfig {
        manifest_grace: Duration::ZERO,
        sweep_every: Duration::from_millis(5),
        ..CatalogConfig::default()
    };
    let running = Running::with(store, config, Arc::new(())).await;
    eventually("only the kept one is left", async || keys(&running, b"m").await == 1).await;
    assert_eq!(read(&running, kept.digest()).await, Some(kept.encode()));
    assert_eq!(read(&running, removed.digest()).await, None);
    eventually("pages go with their heads", async || {
        keys(&running, b"p").await == kept.encode().len().div_ceil(crate::store::MAX_VALUE_BYTES)
            && keys(&running, b"u").await == 0
    })
    .await;
}

#[tokio::test]
async fn sweeps_and_publishes_that_race_never_leave_a_file_without_its_manifest() {
    let config = CatalogConfig { sweep_every: Duration::from_secs(3600), ..CatalogConfig::default() };
    let running = Running::with(Arc::new(super::wandering::Wandering::default()), config, Arc::new(())).await;
    let content = manifest(1, 10);
    let state = running.catalog.state().clone();
    for _ in 0..200 {
        put(&running, &content, PAGE_BYTES).await.unwrap();
        let (published, swept) =
            tokio::join!(running.one(known("f", &content)), running.catalog.manifests().sweep(&state, Duration::ZERO));
        swept.unwrap();
        match fault(&published) {
            None => assert_eq!(read(&running, content.digest()).await, Some(content.encode())),
            Some(fault) => assert_eq!(fault, Fault::NotFound),
        }
        let head = running.catalog.manifests().head(content.digest()).await.unwrap();
        assert_eq!(head.is_some(), published.is_ok());
        drop(running.one(unlink(ROOT, "f")).await);
        running.catalog.manifests().sweep(&state, Duration::ZERO).await.unwrap();
    }
}

#[tokio::test]
async fn one_that_a_file_has_named_since_it_was_found_dead_is_kept() {
    let running = Running::hasty().await;
    let content = manifest(1, 3);
    running.one(publish(ROOT, "f", &content)).await.unwrap();
    let state = running.catalog.state().clone();
    assert!(!running.catalog.manifests().drop_dead(&state, content.digest()).await.unwrap());
    running.one(unlink(ROOT, "f")).await.unwrap();
    all_reclaimed(&running).await;
    assert!(running.catalog.manifests().drop_dead(&state, content.digest()).await.unwrap());
}

#[tokio::test]
async fn every_live_segment_is_visited_and_no_dead_one() {
    let running = Running::hasty().await;
    running.run(vec![publish(ROOT, "a", &manifest(0, 3)), publish(ROOT, "b", &manifest(2, 3))]).await;
    running.run(vec![publish(ROOT, "gone", &manifest(100, 3)), unlink(ROOT, "gone")]).await;
    all_reclaimed(&running).await;
    let large = manifest(1_000, 5_000);
    put(&running, &large, PAGE_BYTES).await.unwrap();
    running.one(known("large", &large)).await.unwrap();
    let mut seen = HashSet::new();
    running.catalog.for_each_live_segment(&mut |segment| seen.extend([segment.id])).await.unwrap();
    let want: HashSet<SegmentId> = (0..5).chain(1_000..6_000).map(|number| segment(number).id).collect();
    assert_eq!(seen, want);
}

#[tokio::test]
async fn a_manifest_that_rotted_in_the_store_is_not_given_out_as_whole() {
    let running = Running::in_memory().await;
    let content = manifest(1, 1_300);
    running.one(publish(ROOT, "f", &content)).await.unwrap();
    let page = running.catalog.store().scan(Bytes::from_static(b"p"), Bytes::new(), 1).await.unwrap().entries.remove(0);
    let mut rotten = page.versioned.value.to_vec();
    rotten[100] ^= 1;
    let writes = vec![crate::store::Write { key: page.key, value: Some(rotten.into()) }];
    running.catalog.commit_plain(writes).await.unwrap();
    running.catalog.manifests().forget_cached();
    let refused = running.catalog.manifests().whole(content.digest(), INLINE_BYTES).await.unwrap_err();
    assert_eq!(refused.fault, Fault::Corrupt);
}

#[tokio::test]
async fn an_upload_that_a_kill_cut_short_is_swept_by_the_next_start() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let running = Running::on(store.clone()).await;
    let mut upload = Upload::new(running.catalog.manifests().clone());
    upload.push(&manifest(1, 60_000).encode()[..2_000_000]).await.unwrap();
    assert!(keys(&running, b"p").await > 0 && keys(&running, b"u").await == 1);
    running.close().await;
    std::mem::forget(upload);
    let config = CatalogConfig { sweep_every: Duration::from_millis(5), ..CatalogConfig::default() };
    let running = Running::with(store, config, Arc::new(())).await;
    eventually("nothing is left of it", async || {
        keys(&running, b"p").await == 0
            && running.catalog.store().scan(prefix::UPLOADS, Bytes::new(), 1).await.unwrap().entries.is_empty()
    })
    .await;
}
