//! A manifest that arrives in pieces, before anything names it.
//!
//! Pieces are written under a number of their own while they come, so that a wrong upload harms nobody
//! else's; the head is written when digest and layout were verified.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use swarm_proto::{Fault, ManifestDigest};

use super::{HERE_BYTES, Leftover, Manifests, STORED_PAGE_BYTES};
use crate::catalog::layout::{LayoutReader, MAX_LAYOUT_BYTES};
use crate::catalog::{put, refusal_of};
use crate::namespace::Refusal;
use crate::store::schema::{BodyNumber, Key, ManifestBody, ManifestHead, Record, prefix};
use crate::store::{Commit, Condition, Outcome, StoreError, Write};

/// Bytes written to the store at once.
const FLUSH_BYTES: usize = 64 * STORED_PAGE_BYTES;
/// How often to try again when another upload of the same manifest comes between.
const TRIES: usize = 8;

/// See the module. One that is dropped unfinished leaves its pages to the sweep.
pub struct Upload {
    manifests: Arc<Manifests>,
    hasher: blake3::Hasher,
    reader: LayoutReader,
    length: u64,
    pending: BytesMut,
    body: Option<BodyNumber>,
    pages: u32,
}

impl Upload {
    /// Nothing yet.
    pub fn new(manifests: Arc<Manifests>) -> Self {
        Self {
            manifests,
            hasher: blake3::Hasher::new(),
            reader: LayoutReader::default(),
            length: 0,
            pending: BytesMut::new(),
            body: None,
            pages: 0,
        }
    }

    /// The next bytes.
    ///
    /// Errors: [`Fault::Invalid`] as soon as they cannot be a manifest any more, or the store's.
    pub async fn push(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        self.length += bytes.len() as u64;
        if self.length > MAX_LAYOUT_BYTES {
            return Err(Refusal::new(Fault::Invalid, "a manifest larger than any can be"));
        }
        self.hasher.update(bytes);
        self.reader.push(bytes, &mut |_| {}).map_err(invalid)?;
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= FLUSH_BYTES {
            let whole = self.pending.len() / STORED_PAGE_BYTES * STORED_PAGE_BYTES;
            self.write(whole).await.map_err(|error| refusal_of(&error))?;
        }
        Ok(())
    }

    /// Verify and keep it.
    ///
    /// Shape:  the size of the file that it describes.
    /// Errors: [`Fault::Invalid`] if it is not the manifest of that digest, or the store's.
    pub async fn finish(&mut self, digest: ManifestDigest) -> Result<u64, Refusal> {
        let got = ManifestDigest::new(*self.hasher.finalize().as_bytes());
        if got != digest {
            return Err(Refusal::new(Fault::Invalid, format!("its digest is {got}, not {digest}")));
        }
        let file_bytes = std::mem::take(&mut self.reader).finish().map_err(invalid)?.file_bytes;
        self.keep(digest, file_bytes).await.map_err(|error| refusal_of(&error))?;
        Ok(file_bytes)
    }

    async fn keep(&mut self, digest: ManifestDigest, file_bytes: u64) -> Result<(), StoreError> {
        if self.body.is_some() || self.pending.len() > HERE_BYTES {
            self.write(self.pending.len()).await?;
        }
        let body = match self.body {
            Some(body) => ManifestBody::Pages(body),
            None => ManifestBody::Here(self.pending.split().freeze()),
        };
        let length = u32::try_from(self.length).expect("MAX_LAYOUT_BYTES is below 4 GiB");
        let head = Record::Manifest(ManifestHead { file_bytes, length, body });
        let key = Key::Manifest(digest);
        for _ in 0..TRIES {
            let there = self.manifests.store.get(key.encode()).await?;
            // One that is there is written again as it is, so that no sweep takes it now.
            let (condition, value) = match there {
                Some(there) => (Condition::UnchangedSince(key.encode(), there.revision), there.value),
                None => (Condition::Absent(key.encode()), head.encode()),
            };
            let ours = matches!(condition, Condition::Absent(_));
            let mut writes = vec![Write { key: key.encode(), value: Some(value) }];
            if let (true, Some(body)) = (ours, self.body) {
                writes.push(Write { key: Key::Upload(body).encode(), value: None });
            }
            if let Outcome::Committed(_) =
                self.manifests.store.commit(Commit { conditions: vec![condition], writes }).await?
            {
                self.manifests.used_again(digest);
                if ours {
                    self.body = None;
                }
                return Ok(());
            }
        }
        Err(StoreError::Io {
            action: "keep a manifest",
            source: Arc::new(std::io::Error::other("it is being written by others all the time")),
        })
    }

    async fn write(&mut self, length: usize) -> Result<(), StoreError> {
        let mut writes = Vec::new();
        let body = match self.body {
            Some(body) => body,
            None => {
                let number = self.manifests.numbers.take(1).await?.into_range().start;
                self.body = Some(BodyNumber(number));
                writes.push(put(Key::Upload(BodyNumber(number)), Record::Mark));
                BodyNumber(number)
            }
        };
        let bytes = self.pending.split_to(length).freeze();
        for page in bytes.chunks(STORED_PAGE_BYTES) {
            writes.push(put(Key::ManifestPage(body, self.pages), Record::Page(bytes.slice_ref(page))));
            self.pages += 1;
        }
        self.manifests.store.commit(Commit { conditions: Vec::new(), writes }).await?;
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(body) = self.body {
            self.manifests.leave(Leftover::Body(body));
        }
    }
}

impl Manifests {
    /// Drop all pages of a body, and then the mark that says so.
    pub(in crate::catalog) async fn drop_body(&self, body: BodyNumber, mark: Key) -> Result<(), StoreError> {
        loop {
            let page = self.store.scan(prefix::pages(body), Bytes::new(), FLUSH_BYTES / STORED_PAGE_BYTES).await?;
            let mut writes: Vec<Write> =
                page.entries.into_iter().map(|entry| Write { key: entry.key, value: None }).collect();
            if !page.more {
                writes.push(Write { key: mark.encode(), value: None });
            }
            self.store.commit(Commit { conditions: Vec::new(), writes }).await?;
            if !page.more {
                return Ok(());
            }
        }
    }
}

fn invalid(error: swarm_proto::ManifestError) -> Refusal {
    Refusal::new(Fault::Invalid, error.to_string())
}
