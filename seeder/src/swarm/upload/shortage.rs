//! What the seeders hold fewer of than they should, and how that is mended.
//!
//! Not here: who remembers it and has the bytes, which is whoever committed them.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use swarm_proto::{PeerId, Segment, SegmentId};

use super::uploader::{Inner, Piece, Uploader};
use super::{KnownSeeder, SeederState, UploadError};

/// How much of what is wanted of a segment is lacking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shortage {
    /// Nothing.
    None,
    /// All seeders that there are have it, which are fewer than replicas are wanted: a further one may join.
    OfSeeders,
    /// Seeders that there are lack it.
    OfReplicas,
}

impl Uploader {
    /// What a segment lacks that so many seeders hold, by what is known of the swarm without asking.
    pub fn shortage(&self, replicas: usize) -> Shortage {
        let wanted = (self.inner.config.replicas as usize).max(1);
        if replicas >= wanted {
            return Shortage::None;
        }
        // However few: as long as there is no other seeder, whoever remembers this can do nothing about it.
        match self.inner.lately.lock().known {
            0 => Shortage::OfReplicas,
            known if replicas >= known => Shortage::OfSeeders,
            _ => Shortage::OfReplicas,
        }
    }

    /// Those of `ids` that lack something, by what was acknowledged to this uploader.
    ///
    /// Cost: no question to anybody.
    pub fn short(&self, ids: &[SegmentId]) -> Vec<(SegmentId, Shortage)> {
        let (ledger, now) = (self.inner.ledger.lock(), Instant::now());
        let of = |id: &SegmentId| self.shortage(ledger.holders(id, now, Duration::MAX).len());
        ids.iter().map(|id| (*id, of(id))).filter(|(_, shortage)| *shortage != Shortage::None).collect()
    }

    /// The seeders that are up now, in order.
    ///
    /// Errors: the tracker's.
    pub async fn live(&self) -> Result<Vec<PeerId>, UploadError> {
        self.inner.seeders().await?;
        Ok(self.live_lately())
    }

    /// Those that were up when somebody last asked.
    pub fn live_lately(&self) -> Vec<PeerId> {
        self.inner.lately.lock().live.clone()
    }

    /// Have a segment held by as many seeders that are up as replicas are wanted, and enter who does; how many do.
    ///
    /// Shape:  `bytes` is waited for only where some seeder could take them, once there is memory for them; none: they
    ///         cannot be had.
    /// Errors: as [`Self::place`].
    pub async fn send_again(
        &self,
        segment: Segment,
        bytes: BoxFuture<'_, Option<bytes::Bytes>>,
    ) -> Result<usize, UploadError> {
        if let Some(replicas) = self.inner.nobody_left(segment).await? {
            return Ok(replicas);
        }
        let room = self.room(segment.length.into()).await?;
        let missing = || UploadError::Read(std::sync::Arc::new(std::io::ErrorKind::NotFound.into()));
        let bytes = bytes.await.ok_or_else(missing)?;
        Ok(self.place(Piece { segment, bytes }, room).await?.replicas)
    }

    /// Have seeders say again, as far as the tracker knows of them, that they hold these.
    pub async fn confirm(&self, segments: &[Segment]) -> Result<(), UploadError> {
        let up: HashSet<PeerId> = self.inner.seeders().await?.iter().map(|seeder| seeder.id).collect();
        self.inner.ask_around(segments, &up).await
    }
}

impl Inner {
    /// How many of those that are up hold a segment, if they are enough or no other could take it; none: one could.
    async fn nobody_left(&self, segment: Segment) -> Result<Option<usize>, UploadError> {
        let seeders = self.seeders().await?;
        if seeders.is_empty() {
            return Err(UploadError::NoSeeder);
        }
        let up: HashSet<PeerId> = seeders.iter().map(|seeder| seeder.id).collect();
        if self.own_word(segment, &up).is_empty() {
            self.ask_around(&[segment], &up).await?;
        }
        let holders = self.own_word(segment, &up);
        let full = self.links.full(Instant::now());
        let could_take = |seeder: &KnownSeeder| {
            let has_room = seeder.free_bytes >= u64::from(segment.length) && !full.contains(&seeder.id);
            seeder.state == SeederState::Live && has_room && !holders.contains(&seeder.id)
        };
        let enough = holders.len() >= self.want(seeders.len());
        Ok((enough || !seeders.iter().any(could_take)).then_some(holders.len()))
    }
}
