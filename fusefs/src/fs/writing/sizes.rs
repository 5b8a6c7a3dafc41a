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
    ///
    /// Shape: one that has this size already is as if written now.
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
            self.cut(inode, size)?;
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

    /// As [`Self::resize`], for who writes it.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::Maker;
    use crate::fs::fake::{Bench, ROOT};
    use crate::fs::node::Kind;

    /// When it was written, and its version, as the swarm has them.
    fn saved(bench: &Bench, inode: InodeNumber) -> (i64, u64) {
        let node = bench.swarm.node_of(inode);
        (node.modified_ns, node.version)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_cut_to_the_size_that_a_file_has_marks_it_as_written_and_is_saved_once() {
        let (bench, outbox, _folder) = Bench::writing(1 << 20).await;
        for (name, bytes) in [("full", &b"base"[..]), ("empty", b"")] {
            let inode = bench.swarm.make(ROOT, name, Kind::File);
            bench.swarm.write(inode, bytes);
            bench.fs.lookup(ROOT, name.into()).await.unwrap();
            let size = bytes.len() as u64;
            let mut last = saved(&bench, inode);
            for by in [ResizedBy::Handle, ResizedBy::Name] {
                let handle = bench.fs.open_cached(inode, bytes.is_empty()).await.unwrap().handle;
                bench.fs.resize(inode, size, by).await.unwrap();
                let shown = bench.fs.attributes(inode).await.unwrap().node.unwrap();
                assert!(shown.modified_ns > last.0, "{name}, by {by:?}");
                bench.fs.flush(inode).await.unwrap();
                bench.fs.release(handle);
                assert_eq!(saved(&bench, inode), (shown.modified_ns, last.1 + 1), "{name}, by {by:?}");
                assert_eq!(bench.swarm.content(inode), bytes);
                last = saved(&bench, inode);
            }
            bench.fs.resize(inode, size, ResizedBy::Name).await.unwrap();
            assert!(saved(&bench, inode).0 > last.0, "{name}, which nobody has open");
        }
        assert_eq!(outbox.sends.load(std::sync::atomic::Ordering::SeqCst), 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_file_that_was_made_empty_is_not_saved() {
        let (bench, _, _folder) = Bench::writing(1 << 20).await;
        let never = |_: &std::fs::File| Err(std::io::ErrorKind::Unsupported.into());
        let maker = Maker { uid: 0, gid: 0, mode: 0o644 };
        let (found, opened) = bench.fs.create(ROOT, "new".into(), maker, Writer::Reads, never).await.unwrap();
        let made = found.node.unwrap();
        bench.fs.flush(made.inode).await.unwrap();
        bench.fs.release(opened.handle);
        assert_eq!(saved(&bench, made.inode), (made.modified_ns, made.version));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_cut_that_changed_nothing_loses_no_race() {
        let (bench, _, _folder) = Bench::writing(1 << 20).await;
        let inode = bench.swarm.make(ROOT, "file", Kind::File);
        bench.fs.lookup(ROOT, "file".into()).await.unwrap();
        bench.fs.open_cached(inode, true).await.unwrap();
        bench.swarm.write_silently(inode, b"somebody else's");
        bench.fs.flush(inode).await.unwrap();
        assert_eq!(bench.swarm.content(inode), "somebody else's");
        assert_eq!(bench.swarm.named(ROOT, |name| name.starts_with(b"file.conflict")), None);
    }
}
