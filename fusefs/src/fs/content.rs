//! The seam between the file system and the bytes of files.

use std::fs::File;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::future::BoxFuture;
use swarm_proto::{Manifest, ManifestDigest};

use crate::errno::Errno;

/// A version of a file: its manifest, and the digest under which it is cached.
#[derive(Debug, Clone)]
pub struct Version {
    /// Of the manifest; none for an empty file.
    pub digest: Option<ManifestDigest>,
    /// What it is made of.
    pub manifest: Arc<Manifest>,
}

/// Where the bytes of files come from: the cache, else the swarm.
pub trait Content: Send + Sync + 'static {
    /// Read one version through one handle, which has its own readahead.
    fn open(&self, version: &Version) -> Arc<dyn OpenContent>;
    /// Somebody will soon read all of these, in this order. Never waits, and may do nothing.
    fn prefetch(&self, versions: Vec<Version>);
    /// Bytes of this version that are in the cache.
    fn cached_bytes(&self, version: &Version) -> u64;
    /// The manifest of a version that is cached, for when no tracker answers.
    fn cached_manifest(&self, digest: &ManifestDigest) -> Option<Arc<Manifest>>;
}

/// One handle's view of one version of a file.
pub trait OpenContent: Send + Sync + 'static {
    /// Verified bytes from `offset`: `length` of them, fewer only at the end of the file.
    ///
    /// Errors: [`Errno::IO`] once `deadline` has passed.
    fn read(&self, offset: u64, length: u32, deadline: Instant) -> BoxFuture<'_, Result<Bytes, Errno>>;
    /// A file that is exactly this version and was verified by this process, for the kernel to read by
    /// itself. Such a file is replaced or unlinked, never written or punched.
    fn complete_file(&self) -> Option<Arc<File>>;
}
