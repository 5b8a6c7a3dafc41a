//! Follows what changes in the catalog, so that the kernel may keep what does not.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt;
use swarm_proto::{Revision, v1};
use tokio_util::sync::CancellationToken;

use super::FileSystem;
use super::catalog::Changes;

/// First and longest pause before the stream is opened again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

impl FileSystem {
    /// Follow changes until `stop`. One such task runs for a mount.
    pub async fn follow_changes(&self, stop: CancellationToken) {
        let followed = async {
            let mut pause = PAUSES.0;
            let mut said = false;
            let mut strayed = false;
            loop {
                strayed |= self.catalog.take_strayed();
                let after = if strayed { Revision(0) } else { self.catalog.newest() };
                let asked = self.catalog.watch(after);
                match tokio::time::timeout(self.config.metadata_timeout, asked).await {
                    Ok(Ok(changes)) => {
                        pause = PAUSES.0;
                        said = false;
                        if std::mem::take(&mut strayed) {
                            self.catalog.went_back(after);
                            self.learn(super::Known::replaced);
                        }
                        self.follow(changes, after).await;
                    }
                    Ok(Err(error)) => gone(&mut said, &error.to_string()),
                    Err(_) => gone(&mut said, "no answer in time"),
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSES.1);
            }
        };
        tokio::select! {
            () = followed => {}
            () = stop.cancelled() => {}
        }
    }

    async fn follow(&self, mut changes: Changes, after: Revision) {
        tracing::debug!("changes are pushed");
        self.away.store(false, Ordering::Relaxed);
        self.learn(super::Known::begin);
        self.counters.live.set(1);
        let reason = loop {
            match changes.next().await {
                Some(Ok(reply)) => self.apply(&reply, after),
                Some(Err(error)) => break error.to_string(),
                None => break "the tracker ended it".to_owned(),
            }
        };
        self.counters.live.set(0);
        // Until the next attempt answers, which for a tracker that is there takes no time.
        self.away.store(true, Ordering::Relaxed);
        self.learn(super::Known::lost);
        tracing::warn!(reason, "changes are no longer pushed: names and attributes are asked for again each second");
    }

    /// A reply to the question what changed `after` a revision.
    fn apply(&self, reply: &v1::WatchReply, after: Revision) {
        let revision = Revision(reply.revision);
        if reply.reset && revision < after {
            tracing::warn!(%revision, "the catalog is older than what was seen of it; was it restored? All is asked anew");
            self.catalog.went_back(revision);
            self.learn(super::Known::replaced);
            return;
        }
        self.catalog.saw(revision);
        self.learn(|known| {
            if reply.reset {
                known.reset();
            }
            known.changed(revision, &reply.changes);
        });
    }
}

/// Say once that nobody answers.
fn gone(said: &mut bool, reason: &str) {
    if !std::mem::replace(said, true) {
        tracing::warn!(reason, "the tracker is away");
    }
}
