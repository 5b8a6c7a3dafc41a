//! **PURE.** What one mount has open, as far as it told.
//!
//! Invariants: at most [`MOST_OPEN`] inodes; as long as a mount that began to tell all has not come to the end, it may have
//! anything open, but not for ever, or one mount could keep every file that is removed.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use swarm_proto::InodeNumber;
use swarm_proto::v1;

/// Inodes that one mount may have open: more than a machine has file descriptors.
const MOST_OPEN: usize = 1 << 20;
/// How long telling all may take.
const TELLING: Duration = Duration::from_secs(60);

/// A mount has more open than it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a mount may have {MOST_OPEN} files open at most")]
pub struct TooManyOpen;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct OpenFiles {
    inodes: HashSet<u64>,
    telling_since: Option<Instant>,
}

impl OpenFiles {
    /// The mount says what is open, or what changed. One that is in both lists is open.
    ///
    /// Errors: [`TooManyOpen`]; what there was room for is known.
    pub(crate) fn told(&mut self, message: &v1::OpenFiles, now: Instant) -> Result<(), TooManyOpen> {
        if message.all {
            self.inodes = HashSet::new();
            self.telling_since = Some(now);
        }
        if !message.more {
            self.telling_since = None;
        }
        for inode in &message.closed {
            self.inodes.remove(inode);
        }
        for inode in &message.opened {
            if self.inodes.len() >= MOST_OPEN && !self.inodes.contains(inode) {
                return Err(TooManyOpen);
            }
            self.inodes.insert(*inode);
        }
        Ok(())
    }

    /// Whether it may have this open.
    pub(crate) fn may_have(&self, inode: InodeNumber, now: Instant) -> bool {
        self.inodes.contains(&inode.0)
            || self.telling_since.is_some_and(|since| now.saturating_duration_since(since) < TELLING)
    }

    /// It is given up.
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(all: bool, more: bool, opened: &[u64], closed: &[u64]) -> v1::OpenFiles {
        v1::OpenFiles { all, opened: opened.to_vec(), closed: closed.to_vec(), more }
    }

    fn open(files: &OpenFiles, now: Instant) -> Vec<u64> {
        (1..6).filter(|inode| files.may_have(InodeNumber(*inode), now)).collect()
    }

    #[test]
    fn what_was_opened_is_open_until_it_is_closed_or_all_is_told_anew() {
        let (mut files, now) = (OpenFiles::default(), Instant::now());
        files.told(&parts(true, false, &[1, 2], &[]), now).unwrap();
        files.told(&parts(false, false, &[3, 4], &[1, 4, 9]), now).unwrap();
        assert_eq!(open(&files, now), [2, 3, 4]);
        files.told(&parts(true, false, &[5], &[]), now).unwrap();
        assert_eq!(open(&files, now), [5]);
        files.forget();
        assert_eq!(open(&files, now), [0; 0]);
    }

    #[test]
    fn until_the_last_part_came_anything_may_be_open_but_not_for_ever() {
        let (mut files, now) = (OpenFiles::default(), Instant::now());
        files.told(&parts(true, true, &[1], &[]), now).unwrap();
        files.told(&parts(false, true, &[2], &[]), now).unwrap();
        assert_eq!(open(&files, now), [1, 2, 3, 4, 5]);
        assert_eq!(open(&files, now + TELLING), [1, 2]);
        files.told(&parts(false, false, &[3], &[]), now).unwrap();
        assert_eq!(open(&files, now), [1, 2, 3]);
    }

    #[test]
    fn there_is_an_end_to_what_a_mount_has_open() {
        let (mut files, now) = (OpenFiles::default(), Instant::now());
        let all: Vec<u64> = (0..MOST_OPEN as u64).collect();
        files.told(&parts(true, false, &all, &[]), now).unwrap();
        files.told(&parts(false, false, &[7], &[]), now).unwrap();
        assert_eq!(files.told(&parts(false, false, &[MOST_OPEN as u64], &[]), now), Err(TooManyOpen));
        files.told(&parts(false, false, &[MOST_OPEN as u64], &[7]), now).unwrap();
    }
}
