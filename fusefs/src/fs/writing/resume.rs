//! Saving what is left in the spool: of a mount that died while it saved, and what a person wants tried again.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use swarm_proto::{InodeNumber, Manifest, ManifestDigest};
use swarm_seeder::store::AckLevel;
use tokio_util::sync::CancellationToken;

use super::{FileSystem, Writing, Written};
use crate::errno::{self, Errno};
use crate::write::Unsaved;
use crate::write::spool::{Note, SpoolFile, State};
use crate::write::unsaved::Base;

/// How often the spool is looked through: a person who asks for a retry waits for it.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Why something is still left, and what its note says.
enum Left {
    /// What it said before.
    AsItWas(String),
    /// Where it is now.
    Noted(String),
}

impl FileSystem {
    /// Save what is left and is to be saved, now and whenever somebody asks for it, until `stop`. One such task runs
    /// for a mount.
    pub async fn resume_saves(self: Arc<Self>, stop: CancellationToken) {
        let Some(writing) = &self.writing else { return };
        loop {
            let spool = writing.spool.clone();
            let kept = tokio::task::spawn_blocking(move || spool.kept()).await;
            let kept = kept.ok().and_then(Result::ok).unwrap_or_default();
            for note in kept.into_iter().filter(|note| note.state == State::Saving) {
                tokio::select! {
                    () = self.resume(writing, note) => {}
                    () = stop.cancelled() => return,
                }
            }
            if tokio::time::timeout(LOOK_EVERY, stop.cancelled()).await.is_ok() {
                return;
            }
        }
    }

    /// Save one; if that fails, its note says why.
    pub(super) async fn resume(self: &Arc<Self>, writing: &Writing, note: Note) {
        let path = note.path.clone();
        let told = match self.try_resume(writing, &note).await {
            Ok(()) => {
                tracing::info!(path, "saved what an earlier mount had begun to save");
                Ok(())
            }
            Err(Left::Noted(why)) => {
                tracing::error!(path, why, "save what is left in the spool");
                Ok(())
            }
            Err(Left::AsItWas(why)) => {
                tracing::error!(path, why, "save what is left in the spool");
                Note { state: State::Failed, error: Some(why), ..note }.write(writing.spool.folder())
            }
        };
        if let Err(error) = told {
            tracing::error!(%error, "write a note of the spool");
        }
    }

    async fn try_resume(self: &Arc<Self>, writing: &Writing, note: &Note) -> Result<(), Left> {
        if note.swarm != writing.swarm {
            return Err(Left::AsItWas(format!("it belongs to another swarm, {}", note.swarm)));
        }
        let inode = InodeNumber(note.inode);
        match self.node(inode).await {
            Ok(_) => {}
            Err(Errno::STALE) => return Err(Left::AsItWas("the file is gone: its name was removed".to_owned())),
            Err(error) => return Err(Left::AsItWas(errno::words(error))),
        }
        if self.place_of(inode).is_none() {
            self.walk_to(&note.path).await;
        }
        let base = self.base_of_note(note).await.map_err(Left::AsItWas)?;
        // Before the saving.
        let is_all = note.is_as_printed(writing.spool.folder());
        let unsaved = Unsaved::resume(note, base, &writing.spool, writing.outbox.segment_bytes());
        let unsaved = unsaved.map_err(|error| Left::AsItWas(error.to_string()))?;
        let file = unsaved.file().map_err(|error| Left::AsItWas(error.to_string()))?;
        let written = Arc::new(Written::new(unsaved));
        let old = written.unsaved.base();
        let base = match self.save(&written, AckLevel::Close).await {
            Ok(_) => {
                // Nobody here wrote it: the kernel has the version before.
                self.show_anew(inode);
                written.unsaved.base()
            }
            // Lost, but a conflict copy has it.
            Err(Errno::STALE) => old,
            Err(error) => {
                let why = errno::words(error);
                // Not the note that there was: the save may have put its bytes behind what somebody else appended.
                if let Some(note) = written.unsaved.note(State::Failed, Some(why.clone())) {
                    keep(&file.latest(), &note);
                }
                return Err(Left::Noted(why));
            }
        };
        match rest_of(note, &base).filter(|_| !is_all) {
            None => file.latest().done(),
            Some(rest) => keep(&file, &rest),
        }
        Ok(())
    }

    async fn base_of_note(&self, note: &Note) -> Result<Base, String> {
        let version = note.base_version;
        let Some(digest) = &note.base_manifest else {
            return Ok(Base { version, digest: None, manifest: Arc::new(Manifest::default()) });
        };
        let digest: ManifestDigest = digest.parse().map_err(|_| "its note names no manifest".to_owned())?;
        let manifest = self.catalog.manifest(digest).await;
        let manifest = manifest.map_err(|error| format!("the version that it was based on is gone: {error}"))?;
        Ok(Base { version, digest: Some(digest), manifest })
    }

    /// Look up a path of this mount, so that the place of its last name is known.
    async fn walk_to(&self, path: &str) {
        let mut at = self.config.root;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let found = self.lookup(at, Bytes::copy_from_slice(name.as_bytes())).await;
            let Some(node) = found.ok().and_then(|found| found.node) else { return };
            at = node.inode;
        }
    }
}

/// What was written after that of which the saving had begun: nobody asked for it to be saved.
fn rest_of(note: &Note, base: &Base) -> Option<Note> {
    note.changed.as_ref()?;
    let since = note.since.clone()?;
    Some(Note {
        base_version: base.version,
        base_manifest: base.digest.map(|digest| digest.to_string()),
        size: since.size,
        changed: None,
        since: Some(since),
        state: State::Interrupted,
        error: Some("written after what was being saved, which is saved now".to_owned()),
        ..note.clone()
    })
}

fn keep(file: &SpoolFile, note: &Note) {
    if let Err(error) = file.keep(note) {
        tracing::error!(%error, path = note.path, "write a note of the spool");
    }
}
