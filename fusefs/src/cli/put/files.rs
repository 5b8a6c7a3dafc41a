//! Puts a planned tree: folders level by level, then files many at a time, then what is left.

use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::StreamExt;
use swarm_proto::Fault;
use swarm_proto::v1::operation::Operation;
use swarm_proto::v1::{IfExists, Ownership, PublishFile, Unlink};
use swarm_seeder::swarm::upload::{UploadError, Uploaded, Uploader, upload_file, upload_stream};
use swarm_seeder::tracker_client::TrackerClient;

use super::commit::{Committed, Committer};
use super::scan::{Item, Plan};
use super::{SharedProblems, upload_failure};
use crate::cli::connect::tracker_failure;
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::name::escape;

/// Files on their way at a time: enough to fill a batch, and few enough for the limit of open files.
const FILES: usize = 400;
/// How often a file is sent whose segments were lost before its commit.
const ATTEMPTS: u32 = 4;

/// A put under way.
pub(crate) struct Putting {
    pub(super) tracker: TrackerClient,
    pub(super) uploader: Uploader,
    committer: Committer,
    pub(super) problems: SharedProblems,
    files: AtomicU64,
    bytes: AtomicU64,
    hole_bytes: AtomicU64,
}

/// A name in a folder of the swarm.
struct Place {
    parent: u64,
    name: Vec<u8>,
    ownership: Ownership,
}

impl Putting {
    pub(super) fn new(tracker: TrackerClient, uploader: Uploader, committer: Committer) -> Self {
        Self {
            tracker,
            uploader,
            committer,
            problems: SharedProblems::default(),
            files: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            hole_bytes: AtomicU64::new(0),
        }
    }

    /// Files and bytes that are in the catalog.
    pub(super) fn done(&self) -> (u64, u64) {
        (self.files.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    /// Where the bar stands.
    pub(super) fn position(&self) -> (u64, String) {
        let stats = self.uploader.stats();
        let files = self.files.load(Ordering::Relaxed);
        let bytes = stats.sent_bytes + stats.skipped_bytes + self.hole_bytes.load(Ordering::Relaxed);
        (bytes, format!("{files} files"))
    }

    /// Put a whole plan; what fails is added to the problems.
    pub(super) async fn tree(&self, mut plan: Plan) -> Outcome {
        self.make_folders(&mut plan).await?;
        let inodes: Vec<Option<u64>> = plan.folders.iter().map(|folder| folder.inode).collect();
        // Of a folder that could not be made, one failure is enough.
        plan.files.retain(|(item, _)| inodes[item.parent].is_some());
        plan.entries.retain(|(item, _)| inodes[item.parent].is_some());
        let stopped = futures::stream::iter(std::mem::take(&mut plan.files))
            .map(|(item, _)| {
                let parent = inodes[item.parent].unwrap_or_default();
                async move { self.item(item, parent).await }
            })
            .buffer_unordered(FILES)
            .any(|failure| async move {
                let fatal = failure.as_ref().is_some_and(|failure| failure.exit == Exit::Unreachable);
                failure.into_iter().for_each(|failure| self.problems.add(failure));
                // Without tracker or seeders each of ten thousand files would fail after its own minute.
                fatal
            })
            .await;
        if stopped {
            return self.problems.conclude("files were not copied");
        }
        self.make_entries(&plan.entries, &inodes).await?;
        self.set_times(&plan).await
    }

    async fn item(&self, item: Item, parent: u64) -> Option<Failure> {
        let place = Place { parent, name: item.name, ownership: item.ownership };
        let path = item.source.as_os_str().as_bytes();
        let upload = || async {
            let source = item.source.clone();
            let opened = tokio::task::spawn_blocking(move || File::open(source)).await;
            let file =
                opened.map_err(|_| UploadError::Stopping)?.map_err(|error| UploadError::Read(Arc::new(error)))?;
            upload_file(&self.uploader, Arc::new(file)).await
        };
        for _ in 0..ATTEMPTS {
            let uploaded = match upload().await {
                Ok(uploaded) => uploaded,
                Err(error) => return Some(upload_failure(path, &error)),
            };
            match self.publish(path, &place, &uploaded).await {
                Ok(true) => return None,
                Ok(false) => self.uploader.forget(&uploaded.segment_ids()),
                Err(failure) => return Some(failure),
            }
        }
        Some(lost_again(path))
    }

    /// Put what a reader yields; it cannot be read twice.
    pub(super) async fn stream(
        &self,
        reader: impl Read + Send + 'static,
        parent: u64,
        name: &[u8],
        ownership: Ownership,
    ) -> Outcome {
        let place = Place { parent, name: name.to_vec(), ownership };
        let uploaded =
            upload_stream(&self.uploader, reader).await.map_err(|error| upload_failure(b"standard input", &error))?;
        match self.publish(name, &place, &uploaded).await? {
            true => Ok(()),
            false => Err(lost_again(b"standard input")),
        }
    }

    /// Commit one file; false if its segments must be sent again.
    async fn publish(&self, path: &[u8], place: &Place, uploaded: &Uploaded) -> Outcome<bool> {
        let shown = || escape(path);
        let manifest = &uploaded.manifest;
        let content = match manifest.size() {
            0 => None,
            _ => Some(self.tracker.offer_manifest(manifest).await.map_err(|error| tracker_failure(shown(), &error))?),
        };
        let publish = PublishFile {
            parent: place.parent,
            name: place.name.clone().into(),
            ownership: Some(place.ownership),
            size: manifest.size(),
            if_exists: IfExists::Replace.into(),
            content,
            ..PublishFile::default()
        };
        let ids = uploaded.segment_ids();
        let mut committed = self.committer.commit(publish.clone(), ids.clone()).await;
        if let Committed::Refused(refusal) = &committed
            && matches!(refusal.fault, Fault::Exists | Fault::Invalid)
            && self.unlink(place).await
        {
            // Something that is not a file stood there; `cp` replaces it too.
            committed = self.committer.commit(publish, ids).await;
        }
        match committed {
            Committed::Done => {
                let data: u64 = manifest.extents().iter().filter(|extent| is_data(extent)).map(|e| e.length()).sum();
                self.files.fetch_add(1, Ordering::Relaxed);
                self.bytes.fetch_add(manifest.size(), Ordering::Relaxed);
                self.hole_bytes.fetch_add(manifest.size() - data, Ordering::Relaxed);
                Ok(true)
            }
            Committed::SendAgain => Ok(false),
            Committed::Refused(refusal) => Err(Failure::fault(shown(), refusal.fault, &refusal.message)),
            Committed::Failed(error) => Err(tracker_failure(shown(), &error)),
            Committed::Stopping => Err(Failure::new(Exit::Interrupted, "interrupted")),
        }
    }

    async fn unlink(&self, place: &Place) -> bool {
        let unlink = Unlink { parent: place.parent, name: place.name.clone().into() };
        self.tracker.mutate_one(Operation::Unlink(unlink)).await.is_ok()
    }
}

fn is_data(extent: &swarm_proto::Extent) -> bool {
    matches!(extent, swarm_proto::Extent::Data { .. })
}

fn lost_again(path: &[u8]) -> Failure {
    let words = "seeders lose its segments again and again before they can be committed";
    Failure::new(Exit::Unreachable, format!("{}: {words}", escape(path))).hint("`swarmfs peers` shows which are up")
}
