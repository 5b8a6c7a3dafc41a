//! copy_file_range(2) within the swarm: no bytes move, the copy names the same segments.

use std::sync::Arc;

use swarm_proto::{ByteRange, Extent, InodeNumber, Manifest, v1};
use swarm_seeder::store::AckLevel;

use super::save::{Saved, Setback};
use super::{FileSystem, base_of};
use crate::errno::Errno;
use crate::fs::changing::now_ns;
use crate::write::pieces::slices;
use crate::write::unsaved::Base;

/// How often it is tried while others save the same file.
const ATTEMPTS: u32 = 8;

impl FileSystem {
    /// Give a range of one file to another; how many bytes, fewer only at the end of the source.
    ///
    /// Shape:  both are saved first, and the destination is saved with the copy in it.
    /// Errors: [`Errno::OPNOTSUPP`] if one has no name any more and so is not saved, or if the kernel writes the destination by
    ///         itself: it then copies the bytes.
    pub async fn copy_range(
        self: &Arc<Self>,
        from: (InodeNumber, u64),
        to: (InodeNumber, u64),
        length: u64,
    ) -> Result<u64, Errno> {
        if self.written(to.0).is_some_and(|written| written.unsaved.is_passed()) {
            return Err(Errno::OPNOTSUPP);
        }
        if let Some(written) = self.written(from.0)
            && self.save(&written, AckLevel::Close).await? == Saved::Nameless
        {
            return Err(Errno::OPNOTSUPP);
        }
        let source = match (self.shown_as_written(from.0), self.open.opened(from.0)) {
            (Some(written), _) => written.unsaved.base().manifest,
            (None, Some((_, version))) => version.manifest,
            (None, None) => self.current(from.0).await?.1.manifest,
        };
        let range = ByteRange::at(from.1, length).intersect(ByteRange::at(0, source.size()));
        if range.is_empty() {
            return Ok(0);
        }
        let copied: Vec<Extent> = slices(&source, range).collect();
        let (writing, written) = (self.writing()?, self.written(to.0).ok_or(Errno::BADF)?);
        for _ in 0..ATTEMPTS {
            if self.save(&written, AckLevel::Close).await? == Saved::Nameless {
                return Err(Errno::OPNOTSUPP);
            }
            let turn = tokio::time::timeout(writing.timeout, written.unsaved.saving.lock());
            let _turn = turn.await.map_err(|_| Errno::TIMEDOUT)?;
            let base = written.unsaved.base();
            let manifest = spliced(&base, to.1, range.len(), &copied).ok_or(Errno::FBIG)?;
            let now = now_ns();
            let change = v1::WriteFile { inode: to.0.0, modified_ns: now, changed_ns: now, ..v1::WriteFile::default() };
            match self.replace(writing, &base, manifest, change, AckLevel::Close).await {
                Ok(base) => {
                    written.unsaved.replaced(base);
                    self.show_anew(to.0);
                    return Ok(range.len());
                }
                Err(Setback::Raced(winner)) => {
                    let version = self.version_of(&winner, None).await?;
                    written.unsaved.meet(&base_of(&winner, &version));
                }
                // Segments of the source are held by nobody now.
                Err(Setback::Again) => return Err(Errno::IO),
                Err(Setback::Failed(error)) => return Err(error),
            }
        }
        Err(Errno::IO)
    }
}

/// A version with other extents from `at` on.
fn spliced(base: &Base, at: u64, length: u64, copied: &[Extent]) -> Option<Manifest> {
    let size = base.manifest.size();
    let mut extents: Vec<Extent> = slices(&base.manifest, ByteRange { start: 0, end: at }).collect();
    extents.extend_from_slice(copied);
    let end = at.checked_add(length)?;
    if end < size {
        extents.extend(slices(&base.manifest, ByteRange { start: end, end: size }));
    }
    Manifest::new(extents).ok()
}
