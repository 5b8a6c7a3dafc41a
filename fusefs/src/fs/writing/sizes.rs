//! Sizes of files: truncate(2), ftruncate(2) and fallocate(2).
//!
//! Not the bytes. Invariant: a file that is open for writing here changes at once for this mount, and for others with
//! its save; any other is opened, changed and saved before the call returns.

use std::sync::Arc;

use swarm_proto::{ByteRange, InodeNumber};
use swarm_seeder::store::AckLevel;

use super::{FileSystem, MOST_BYTES, Writer, now_ns, spool_error};
use crate::errno::Errno;

/// How a process named the file whose size it changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResizedBy {
    /// ftruncate(2): it is saved when the handle is closed.
    Handle,
    /// truncate(2): it is saved at once.
    Name,
}

/// What to do with a range of a file besides reading and writing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reserve {
    /// Have it lie within the file.
    Within,
    /// Nothing but check that it could be: no room is set aside.
    Nothing,
    /// Make zeros of it, within the file as it is.
    Punch,
    /// Make zeros of it, and have it lie within the file.
    Zero,
}

impl FileSystem {
    /// Change the size of a file: of one that is open for writing here, with its next save, otherwise at once.
    pub async fn resize(self: &Arc<Self>, inode: InodeNumber, size: u64, by: ResizedBy) -> Result<(), Errno> {
        if size > MOST_BYTES {
            return Err(Errno::FBIG);
        }
        let joined = self.writing()?.join(inode);
        let opened = match &joined {
            Some(_) => None,
            None => {
                let (written, node, version) = self.join_current(inode).await?;
                Some(self.enter(&written, node, version, Writer::Uncached, None::<fn(&_) -> _>)?)
            }
        };
        let outcome = async {
            let written = self.written(inode).ok_or(Errno::STALE)?;
            if written.unsaved.shape().size != size || by == ResizedBy::Handle {
                self.cut(inode, size)?;
            }
            match by {
                ResizedBy::Handle => Ok(()),
                ResizedBy::Name => self.save(&written, AckLevel::Close).await.map(|_| ()),
            }
        };
        let outcome = outcome.await;
        if let Some(joined) = joined {
            self.part(joined);
        }
        if let Some(opened) = opened {
            self.release(opened.handle);
        }
        outcome
    }

    pub(super) fn cut(&self, inode: InodeNumber, size: u64) -> Result<(), Errno> {
        let written = self.written(inode).ok_or(Errno::STALE)?;
        written.unsaved.resize(size, now_ns()).map_err(|error| spool_error(&error))
    }

    /// fallocate(2) of a file that is open for writing.
    pub fn reserve(&self, inode: InodeNumber, range: ByteRange, reserve: Reserve) -> Result<(), Errno> {
        let written = self.written(inode).ok_or(Errno::BADF)?;
        if range.end > MOST_BYTES {
            return Err(Errno::FBIG);
        }
        let now = now_ns();
        let size = written.unsaved.shape().size;
        if matches!(reserve, Reserve::Punch | Reserve::Zero) {
            written.unsaved.punch(range, now).map_err(|error| spool_error(&error))?;
        }
        match matches!(reserve, Reserve::Within | Reserve::Zero) && range.end > size {
            true => written.unsaved.resize(range.end, now).map_err(|error| spool_error(&error)),
            false => Ok(()),
        }
    }
}
