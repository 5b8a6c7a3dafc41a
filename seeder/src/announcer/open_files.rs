//! What a mount has open, for the trackers: there a file that loses its last name lives until no mount has it open.
//!
//! Whoever opens and closes files counts here and never waits; each link to a tracker takes what changed when it is due.
//! A file that was opened and closed again in between is not told at all.
//!
//! Invariant: what a link was given is what is open, but for the changes of at most [`GATHER`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use swarm_proto::v1;
use tokio::sync::Notify;

use super::pending::GATHER;

/// Inodes of one message, as the tracker allows.
const MOST_INODES: usize = 65_536;

/// Inodes that are open, counted. Clones are one.
#[derive(Clone, Default)]
pub struct OpenFiles {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    /// How often each is open, at least once.
    open: HashMap<u64, u64>,
    links: HashMap<u64, Behind>,
    links_so_far: u64,
}

/// How far a link is behind.
#[derive(Default)]
struct Behind {
    /// Inodes that changed since it was told, and whether it was told that they are open.
    told: HashMap<u64, bool>,
    since: Option<Instant>,
    wake: Arc<Notify>,
}

impl OpenFiles {
    /// It was opened, once more if it is open already.
    pub fn opened(&self, inode: u64) {
        let mut inner = self.inner.lock();
        let times = inner.open.entry(inode).or_default();
        *times += 1;
        if *times == 1 {
            inner.changed(inode, false);
        }
    }

    /// It was closed, as often as it was opened if it is open no longer.
    pub fn closed(&self, inode: u64) {
        let mut inner = self.inner.lock();
        let Some(times) = inner.open.get_mut(&inode) else { return };
        *times -= 1;
        if *times == 0 {
            inner.open.remove(&inode);
            inner.changed(inode, true);
        }
    }

    /// All that is open, in messages, and a way to follow what changes from then on.
    pub(super) fn follow(&self) -> (Vec<v1::OpenFiles>, Follower) {
        let mut inner = self.inner.lock();
        let number = inner.links_so_far;
        inner.links_so_far += 1;
        let behind = Behind::default();
        let wake = Arc::clone(&behind.wake);
        inner.links.insert(number, behind);
        let open: Vec<u64> = inner.open.keys().copied().collect();
        drop(inner);
        (in_full(&open), Follower { files: self.clone(), number, wake })
    }
}

impl Inner {
    fn changed(&mut self, inode: u64, was_open: bool) {
        for behind in self.links.values_mut() {
            behind.told.entry(inode).or_insert(was_open);
            if behind.since.is_none() {
                behind.since = Some(Instant::now());
                behind.wake.notify_one();
            }
        }
    }
}

/// One link's part. Acts on drop: nothing is kept for it any more.
pub(super) struct Follower {
    files: OpenFiles,
    number: u64,
    wake: Arc<Notify>,
}

impl Follower {
    /// Return once there is something to tell. Cancel: safe.
    pub(super) async fn due(&self) {
        loop {
            let since = self.files.inner.lock().links.get(&self.number).and_then(|behind| behind.since);
            match since {
                Some(since) => return tokio::time::sleep_until((since + GATHER).into()).await,
                None => self.wake.notified().await,
            }
        }
    }

    /// The messages that tell what changed.
    pub(super) fn take(&self) -> Vec<v1::OpenFiles> {
        let mut inner = self.files.inner.lock();
        let Inner { open, links, .. } = &mut *inner;
        let Some(behind) = links.get_mut(&self.number) else { return Vec::new() };
        behind.since = None;
        let changes = std::mem::take(&mut behind.told).into_iter();
        let changes: Vec<(u64, bool)> = changes
            .map(|(inode, was_open)| (inode, was_open, open.contains_key(&inode)))
            .filter(|(_, was_open, is_open)| was_open != is_open)
            .map(|(inode, _, is_open)| (inode, is_open))
            .collect();
        drop(inner);
        changes.chunks(MOST_INODES).map(delta).collect()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.files.inner.lock().links.remove(&self.number);
    }
}

fn delta(changes: &[(u64, bool)]) -> v1::OpenFiles {
    let of = |open| changes.iter().filter(|(_, is_open)| *is_open == open).map(|(inode, _)| *inode).collect();
    v1::OpenFiles { opened: of(true), closed: of(false), ..v1::OpenFiles::default() }
}

/// The messages that tell all that is open; at least one, the first one and all but the last marked.
fn in_full(open: &[u64]) -> Vec<v1::OpenFiles> {
    let parts = open.len().div_ceil(MOST_INODES).max(1);
    let mut open = open.chunks(MOST_INODES);
    (0..parts)
        .map(|part| v1::OpenFiles {
            all: part == 0,
            opened: open.next().unwrap_or_default().to_vec(),
            closed: Vec::new(),
            more: part + 1 < parts,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(mut inodes: Vec<u64>) -> Vec<u64> {
        inodes.sort_unstable();
        inodes
    }

    #[test]
    fn nothing_open_is_told_too_and_much_in_parts() {
        assert_eq!(in_full(&[]), [v1::OpenFiles { all: true, ..v1::OpenFiles::default() }]);
        let files = OpenFiles::default();
        let count = 2 * MOST_INODES as u64 + 1;
        (0..count).for_each(|inode| files.opened(inode));
        let (parts, _follower) = files.follow();
        let marks: Vec<_> = parts.iter().map(|part| (part.all, part.more, part.opened.len())).collect();
        assert_eq!(marks, [(true, true, MOST_INODES), (false, true, MOST_INODES), (false, false, 1)]);
        let all = parts.into_iter().flat_map(|part| part.opened).collect();
        assert_eq!(sorted(all), (0..count).collect::<Vec<_>>());
    }

    #[test]
    fn an_inode_that_was_opened_twice_is_open_until_it_was_closed_twice() {
        let files = OpenFiles::default();
        files.opened(7);
        let (parts, follower) = files.follow();
        assert_eq!(parts[0].opened, [7]);
        files.opened(7);
        files.closed(7);
        assert_eq!(follower.take(), []);
        files.closed(7);
        files.closed(7);
        files.opened(8);
        let told = follower.take();
        assert_eq!(told, [v1::OpenFiles { opened: vec![8], closed: vec![7], ..v1::OpenFiles::default() }]);
        assert_eq!(follower.take(), []);
    }

    #[test]
    fn what_was_open_only_between_two_words_is_not_told() {
        let files = OpenFiles::default();
        files.opened(1);
        let (_, follower) = files.follow();
        files.closed(1);
        files.opened(1);
        files.opened(2);
        files.closed(2);
        assert_eq!(follower.take(), []);
        drop(follower);
        files.opened(3);
        assert!(files.inner.lock().links.is_empty(), "nothing is kept for a link that is gone");
    }
}
