//! Manifests: what files consist of, by the digest of their layout.
//!
//! A manifest exists once its head record does; its pages are written before. Heads are written by
//! uploads, and by the commits of files that bring theirs along. One that no file names is swept after a
//! grace, counted from when this process first saw it so.
//!
//! Invariant: what is under a head verified against its digest when it was written.

mod sweep;
mod upload;

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use lru::LruCache;
use parking_lot::Mutex;
use swarm_proto::manifest::{self, PAGE_BYTES};
use swarm_proto::{Fault, ManifestDigest, Segment};

use super::layout::{LayoutReader, Sizes};
use super::load::get;
use super::numbers::Numbers;
use super::state::State;
use super::{put, refusal_of};
use crate::namespace::Refusal;
use crate::store::schema::{BodyNumber, Key, ManifestBody, ManifestHead, Record, TreeNumber, prefix};
use crate::store::{MAX_VALUE_BYTES, SCAN_PAGE, Store, StoreError, Write};

pub use upload::Upload;

/// Bytes of manifests that are kept in memory.
const CACHE_BYTES: usize = 64 * 1024 * 1024;
/// Larger ones are read from the store each time.
const CACHED_BYTES: usize = 1024 * 1024;
/// Bytes of a stored page: as much as a value takes.
pub(super) const STORED_PAGE_BYTES: usize = MAX_VALUE_BYTES;
/// Manifests up to this stay in their head record, which has a few bytes besides.
const HERE_BYTES: usize = MAX_VALUE_BYTES - 64;

/// See the module.
pub struct Manifests {
    store: Arc<dyn Store>,
    numbers: Arc<Numbers>,
    cache: Mutex<Cache>,
    /// Perhaps named by no file, and since when.
    dead: Mutex<HashMap<ManifestDigest, Instant>>,
    /// Held for reading by whoever needs that no manifest goes; the sweep writes.
    keep: Arc<tokio::sync::RwLock<()>>,
    leftovers: Mutex<Vec<Leftover>>,
}

/// What somebody who went away left in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leftover {
    /// Pages of a manifest that was not finished, or was there already.
    Body(BodyNumber),
    /// Names that never became the live ones, or no longer are.
    Tree(TreeNumber),
}

/// While it lives no manifest is swept.
pub(crate) type KeepGuard = tokio::sync::OwnedRwLockReadGuard<()>;

struct Cache {
    entries: LruCache<ManifestDigest, Bytes>,
    bytes: usize,
}

impl Cache {
    fn put(&mut self, digest: ManifestDigest, bytes: Bytes) {
        if bytes.len() > CACHED_BYTES {
            return;
        }
        self.bytes += bytes.len();
        if let Some((_, old)) = self.entries.push(digest, bytes) {
            self.bytes -= old.len();
        }
        while self.bytes > CACHE_BYTES {
            let Some((_, old)) = self.entries.pop_lru() else { break };
            self.bytes -= old.len();
        }
    }
}

/// A manifest that a commit may name.
#[derive(Debug, Clone)]
pub(super) struct Prepared {
    /// Its digest.
    pub(super) digest: ManifestDigest,
    /// Whether the store has it already.
    pub(super) origin: Origin,
    /// Its records; of one that is stored, its head as it is.
    pub(super) writes: Vec<Write>,
}

/// Where a prepared manifest comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// It is stored.
    Stored,
    /// The commit is to bring it along.
    Brought,
}

impl Manifests {
    pub(super) fn new(store: Arc<dyn Store>, numbers: Arc<Numbers>) -> Self {
        const ENTRIES: NonZeroUsize = NonZeroUsize::new(256 * 1024).expect("not zero");
        let cache = Mutex::new(Cache { entries: LruCache::new(ENTRIES), bytes: 0 });
        Self { store, numbers, cache, dead: Mutex::default(), keep: Arc::default(), leftovers: Mutex::default() }
    }

    /// Sweep nothing while the guard lives.
    pub(crate) async fn keep_all(&self) -> KeepGuard {
        self.keep.clone().read_owned().await
    }

    /// A manifest's head.
    pub(super) async fn head(&self, digest: ManifestDigest) -> Result<Option<ManifestHead>, StoreError> {
        match get(&*self.store, Key::Manifest(digest)).await? {
            Some(Record::Manifest(head)) => Ok(Some(head)),
            _ => Ok(None),
        }
    }

    /// All bytes of a manifest, unless it has more than `most`.
    ///
    /// Errors: [`Fault::Corrupt`] if what is stored does not verify.
    pub async fn whole(&self, digest: ManifestDigest, most: usize) -> Result<Option<Bytes>, Refusal> {
        if let Some(bytes) = self.cache.lock().entries.get(&digest) {
            return Ok((bytes.len() <= most).then(|| bytes.clone()));
        }
        let Some(head) = self.head(digest).await.map_err(|error| refusal_of(&error))? else { return Ok(None) };
        if head.length as usize > most {
            return Ok(None);
        }
        let mut bytes = BytesMut::with_capacity(head.length as usize);
        let mut pages = self.stored_pages(head);
        while let Some(page) = pages.next().await {
            bytes.extend_from_slice(&page.map_err(|error| refusal_of(&error))?);
        }
        drop(pages);
        let bytes = bytes.freeze();
        if manifest::digest_of(&bytes) != digest {
            return Err(Refusal::new(Fault::Corrupt, format!("manifest {digest} does not verify")));
        }
        self.cache.lock().put(digest, bytes.clone());
        Ok(Some(bytes))
    }

    /// A manifest's bytes in pages of [`PAGE_BYTES`] and a last shorter one. None: it is unknown.
    ///
    /// Not verified here: whoever asked for a digest checks it.
    pub async fn pages(
        self: &Arc<Self>,
        digest: ManifestDigest,
    ) -> Result<Option<BoxStream<'static, Result<Bytes, StoreError>>>, StoreError> {
        if let Some(bytes) = self.cache.lock().entries.get(&digest).cloned() {
            let count = bytes.len().div_ceil(PAGE_BYTES);
            let page = move |n| Ok(bytes.slice(n * PAGE_BYTES..bytes.len().min((n + 1) * PAGE_BYTES)));
            return Ok(Some(stream::iter((0..count).map(page)).boxed()));
        }
        let Some(head) = self.head(digest).await? else { return Ok(None) };
        let stored = self.clone().stored_pages_owned(head);
        let gathered = stored.chunks(PAGE_BYTES / STORED_PAGE_BYTES).map(|pages| {
            let mut page = BytesMut::with_capacity(PAGE_BYTES);
            for part in pages {
                page.extend_from_slice(&part?);
            }
            Ok(page.freeze())
        });
        Ok(Some(gathered.boxed()))
    }

    fn stored_pages_owned(self: Arc<Self>, head: ManifestHead) -> BoxStream<'static, Result<Bytes, StoreError>> {
        stored_pages(self.store.clone(), head)
    }

    fn stored_pages(&self, head: ManifestHead) -> BoxStream<'static, Result<Bytes, StoreError>> {
        stored_pages(self.store.clone(), head)
    }

    /// Read a manifest's segments without holding all of it.
    ///
    /// Shape: how large the file is; None if the manifest is unknown.
    pub(super) async fn segments_of(
        &self,
        digest: ManifestDigest,
        each: &mut (dyn FnMut(Segment) + Send),
    ) -> Result<Option<Sizes>, Refusal> {
        let Some(head) = self.head(digest).await.map_err(|error| refusal_of(&error))? else { return Ok(None) };
        self.read_segments(digest, head, each).await.map(Some)
    }

    async fn read_segments(
        &self,
        digest: ManifestDigest,
        head: ManifestHead,
        each: &mut (dyn FnMut(Segment) + Send),
    ) -> Result<Sizes, Refusal> {
        let corrupt = |why: String| Refusal::new(Fault::Corrupt, format!("manifest {digest}: {why}"));
        let mut reader = LayoutReader::default();
        let mut pages = self.stored_pages(head);
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| refusal_of(&error))?;
            reader.push(&page, &mut |segment| each(segment)).map_err(|error| corrupt(error.to_string()))?;
        }
        reader.finish().map_err(|error| corrupt(error.to_string()))
    }

    pub(super) async fn for_each_live_segment(
        &self,
        state: &State,
        each: &mut (dyn FnMut(Segment) + Send),
    ) -> Result<(), StoreError> {
        let mut after = Bytes::new();
        loop {
            let page = self.store.scan(prefix::MANIFESTS, after, SCAN_PAGE).await?;
            after = page.entries.last().map(|entry| entry.key.clone()).unwrap_or_default();
            for entry in page.entries {
                let key = Key::decode(&entry.key).map_err(super::load::corrupt)?;
                let Key::Manifest(digest) = key else { continue };
                if !state.view().image.is_live(&digest) {
                    continue;
                }
                let record = Record::decode(&key, &entry.versioned.value).map_err(super::load::corrupt)?;
                let Record::Manifest(head) = record else { continue };
                if let Err(refusal) = self.read_segments(digest, head, each).await {
                    tracing::error!(%digest, %refusal, "read a manifest");
                }
            }
            if !page.more {
                return Ok(());
            }
        }
    }

    /// The records of a manifest that a commit brings along; `body` for one that needs pages.
    ///
    /// Shape: `bytes` was verified to be a manifest of a file of `file_bytes`.
    pub(super) fn prepare(&self, bytes: &Bytes, file_bytes: u64, body: BodyNumber) -> Prepared {
        let digest = manifest::digest_of(bytes);
        // Callers bring at most INLINE_BYTES along.
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let mut writes = Vec::new();
        let here = bytes.len() <= HERE_BYTES;
        if !here {
            for (number, page) in (0u32..).zip(bytes.chunks(STORED_PAGE_BYTES)) {
                writes.push(put(Key::ManifestPage(body, number), Record::Page(bytes.slice_ref(page))));
            }
        }
        let body = if here { ManifestBody::Here(bytes.clone()) } else { ManifestBody::Pages(body) };
        writes.push(put(Key::Manifest(digest), Record::Manifest(ManifestHead { file_bytes, length, body })));
        self.cache.lock().put(digest, bytes.clone());
        Prepared { digest, origin: Origin::Brought, writes }
    }

    /// A manifest that is stored. None: it is not.
    pub(super) async fn stored(&self, digest: ManifestDigest) -> Result<Option<Prepared>, StoreError> {
        let Some(head) = self.head(digest).await? else { return Ok(None) };
        let writes = vec![put(Key::Manifest(digest), Record::Manifest(head))];
        Ok(Some(Prepared { digest, origin: Origin::Stored, writes }))
    }

    /// As after a restart.
    #[cfg(test)]
    pub(crate) fn forget_cached(&self) {
        let mut cache = self.cache.lock();
        cache.entries.clear();
        cache.bytes = 0;
    }

    /// Whether [`Self::prepare`] will need a number for its pages.
    pub(super) fn needs_body(bytes: &Bytes) -> bool {
        bytes.len() > HERE_BYTES
    }
}

fn stored_pages(store: Arc<dyn Store>, head: ManifestHead) -> BoxStream<'static, Result<Bytes, StoreError>> {
    let body = match head.body {
        ManifestBody::Here(bytes) => return stream::iter([Ok(bytes)]).boxed(),
        ManifestBody::Pages(body) => body,
    };
    let count = head.length.div_ceil(u32::try_from(STORED_PAGE_BYTES).expect("it is 16 KiB"));
    // A few at a time: one trip to the store, and no more in memory than a page that is sent.
    let runs = stream::iter((0..count).step_by(PAGE_BYTES / STORED_PAGE_BYTES));
    let run = move |first: u32| {
        let store = store.clone();
        async move {
            let after = match first {
                0 => Bytes::new(),
                first => Key::ManifestPage(body, first - 1).encode(),
            };
            let page = store.scan(prefix::pages(body), after, PAGE_BYTES / STORED_PAGE_BYTES).await;
            match page {
                Ok(page) => stream::iter(page.entries.into_iter().map(|entry| Ok(entry.versioned.value))).left_stream(),
                Err(error) => stream::iter([Err(error)]).right_stream(),
            }
        }
    };
    runs.then(run).flatten().boxed()
}
