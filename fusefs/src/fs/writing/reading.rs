//! Reading a file that is being written: from the spool what was written here, from the swarm the rest.

use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use rustix::fs::SeekFrom;
use swarm_proto::{ByteRange, Extent};

use super::{FileSystem, Source, Written, spool_error};
use crate::errno::Errno;
use crate::fs::content::{OpenContent, Version};
use crate::fs::reading::Whence;
use crate::write::pieces::slices;
use crate::write::unsaved::{Base, Plan};

impl FileSystem {
    /// Bytes of a file under way; fewer than asked for only at its end.
    pub(in crate::fs) async fn read_written(
        &self,
        written: &Written,
        range: ByteRange,
        deadline: Instant,
    ) -> Result<Bytes, Errno> {
        loop {
            let plan = written.unsaved.plan(range);
            let bytes = self.read_plan(written, &plan, deadline).await;
            // What was appended may have moved while it was read; each such move is a commit of another mount.
            if written.unsaved.holds(&plan) {
                return bytes;
            }
        }
    }

    pub(super) async fn read_plan(&self, written: &Written, plan: &Plan, deadline: Instant) -> Result<Bytes, Errno> {
        let mut all = BytesMut::new();
        for (range, source) in &plan.pieces {
            let bytes = match (source, &plan.file) {
                (Source::Spool, Some(file)) => file.read(*range).map_err(|error| spool_error(&error))?,
                (Source::Spool, None) => return Err(Errno::IO),
                (Source::Hole, _) => zeros(range.len())?,
                (Source::Base, _) => self.read_base(written, &plan.base, *range, deadline).await?,
            };
            if plan.pieces.len() == 1 {
                return Ok(bytes);
            }
            all.extend_from_slice(&bytes);
        }
        Ok(all.freeze())
    }

    async fn read_base(
        &self,
        written: &Written,
        base: &Base,
        range: ByteRange,
        deadline: Instant,
    ) -> Result<Bytes, Errno> {
        let content = written.content(base, |version| self.content.open(version));
        let length = u32::try_from(range.len()).map_err(|_| Errno::INVAL)?;
        let bytes = content.read(range.start, length, deadline).await?;
        match bytes.len() as u64 == range.len() {
            true => Ok(bytes),
            false => Err(Errno::IO),
        }
    }

    /// The next data or hole of a file under way from `offset` on.
    pub(in crate::fs) fn seek_written(&self, written: &Written, offset: u64, whence: Whence) -> Option<u64> {
        let size = written.unsaved.shape().size;
        if offset >= size {
            return None;
        }
        if let Some(file) = written.unsaved.passed_file() {
            let from = match whence {
                Whence::Data => SeekFrom::Data(offset),
                Whence::Hole => SeekFrom::Hole(offset),
            };
            return file.next(from).ok().flatten();
        }
        let plan = written.unsaved.plan(ByteRange { start: offset, end: size });
        let mut at = offset;
        for (range, source) in plan.pieces {
            let extents: Vec<Extent> = match source {
                Source::Hole => vec![Extent::Hole { length: range.len() }],
                Source::Spool if whence == Whence::Data => return Some(at),
                Source::Spool => {
                    at = range.end;
                    continue;
                }
                Source::Base => slices(&plan.base.manifest, range).collect(),
            };
            for extent in extents {
                if matches!(extent, Extent::Data { .. }) == (whence == Whence::Data) {
                    return Some(at);
                }
                at += extent.length();
            }
        }
        // The end of a file is a hole.
        (whence == Whence::Hole).then_some(size)
    }
}

impl Written {
    /// What the file is based on, opened once.
    fn content(&self, base: &Base, open: impl FnOnce(&Version) -> Arc<dyn OpenContent>) -> Arc<dyn OpenContent> {
        let mut opened = self.base.lock();
        match &*opened {
            Some((version, content)) if *version == base.version => content.clone(),
            _ => {
                let content = open(&Version { digest: base.digest, manifest: base.manifest.clone() });
                *opened = Some((base.version, content.clone()));
                content
            }
        }
    }
}

fn zeros(length: u64) -> Result<Bytes, Errno> {
    Ok(vec![0; usize::try_from(length).map_err(|_| Errno::INVAL)?].into())
}
