//! The read engine as the file system sees it.

use std::fs::File;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use swarm_proto::{Manifest, ManifestDigest};

use crate::errno::{self, Errno};
use crate::fs::content::{Content, OpenContent, Version};
use crate::read::{OpenFile, ReadEngine};

/// Reads files with the engine.
pub(super) struct EngineContent(pub(super) Arc<ReadEngine>);

/// A file without a byte: nothing to cache, to fetch, or to pass through.
struct Empty;

/// A file whose manifest is not the one of its digest.
struct Wrong;

impl Content for EngineContent {
    fn open(&self, version: &Version) -> Arc<dyn OpenContent> {
        let Some(digest) = version.digest else { return Arc::new(Empty) };
        match self.0.open(digest, version.manifest.clone()) {
            Ok(file) => Arc::new(Opened(file)),
            Err(error) => {
                tracing::error!(%error, %digest, "open a version");
                Arc::new(Wrong)
            }
        }
    }

    fn prefetch(&self, versions: Vec<Version>) {
        let files = versions.into_iter().filter_map(|version| Some((version.digest?, version.manifest)));
        self.0.prefetch(files.collect());
    }

    fn cached_bytes(&self, version: &Version) -> u64 {
        version.digest.map_or(0, |digest| self.0.cached_bytes(&digest))
    }

    fn cached_manifest(&self, digest: &ManifestDigest) -> Option<Arc<Manifest>> {
        self.0.cached_manifest(digest)
    }
}

struct Opened(Arc<OpenFile>);

impl OpenContent for Opened {
    fn read(&self, offset: u64, length: u32, deadline: Instant) -> BoxFuture<'_, Result<Bytes, Errno>> {
        async move {
            self.0.read(offset, length, deadline).await.map_err(|error| {
                tracing::warn!(%error, digest = %self.0.digest(), offset, length, "read");
                errno::of_read(&error)
            })
        }
        .boxed()
    }

    fn complete_file(&self) -> Option<Arc<File>> {
        self.0.passthrough()
    }
}

impl OpenContent for Empty {
    fn read(&self, _: u64, _: u32, _: Instant) -> BoxFuture<'_, Result<Bytes, Errno>> {
        async { Ok(Bytes::new()) }.boxed()
    }

    fn complete_file(&self) -> Option<Arc<File>> {
        None
    }
}

impl OpenContent for Wrong {
    fn read(&self, _: u64, _: u32, _: Instant) -> BoxFuture<'_, Result<Bytes, Errno>> {
        async { Err(Errno::IO) }.boxed()
    }

    fn complete_file(&self) -> Option<Arc<File>> {
        None
    }
}
