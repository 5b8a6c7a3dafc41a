//! Whose turn it is to do the work of a lane: its thread's, or a caller's who brings little while the disk is quick.
//!
//! To wake a thread for a little, and be woken by it, takes longer than the little itself; but a caller's thread serves
//! others, and must not wait for a disk. Invariant: one at a time does the work.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

/// Work that takes longer says that the disk is slow.
const LONG: Duration = Duration::from_millis(10);
/// How long it is believed to be.
const SLOW_FOR: Duration = Duration::from_millis(250);

/// See the module.
pub(super) struct Turn {
    at_work: Mutex<()>,
    began: Instant,
    /// Milliseconds since `began`.
    slow_until: AtomicU64,
    ended: AtomicBool,
}

/// While it lives, nobody else does the work.
pub(super) struct Taken<'t> {
    turn: &'t Turn,
    since: Instant,
    _at_work: MutexGuard<'t, ()>,
}

impl Default for Turn {
    fn default() -> Self {
        let (at_work, slow_until, ended) = (Mutex::default(), AtomicU64::new(0), AtomicBool::new(false));
        Self { at_work, began: Instant::now(), slow_until, ended }
    }
}

impl Turn {
    /// For the lane's thread: wait for it.
    pub(super) fn take(&self) -> Taken<'_> {
        self.taken(self.at_work.lock())
    }

    /// For a thread that must not wait; none: it is somebody's, the disk was slow just now, or the lane is to end.
    pub(super) fn take_at_once(&self) -> Option<Taken<'_>> {
        if self.ended.load(Ordering::Acquire) || self.now_ms() < self.slow_until.load(Ordering::Relaxed) {
            return None;
        }
        let taken = self.taken(self.at_work.try_lock()?);
        // It may have ended in between, and who ended it waited for nobody then.
        (!self.ended.load(Ordering::Acquire)).then_some(taken)
    }

    /// From now on only the lane's thread does the work; who was at it is done.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        drop(self.at_work.lock());
    }

    fn taken<'t>(&'t self, at_work: MutexGuard<'t, ()>) -> Taken<'t> {
        Taken { turn: self, since: Instant::now(), _at_work: at_work }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if self.since.elapsed() > LONG {
            let until = self.turn.now_ms() + u64::try_from(SLOW_FOR.as_millis()).unwrap_or(u64::MAX);
            self.turn.slow_until.store(until, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_has_it_only_while_it_is_free_and_the_disk_quick_and_never_after_the_end() {
        let turn = Turn::default();
        let taken = turn.take();
        assert!(turn.take_at_once().is_none());
        drop(taken);
        let taken = turn.take_at_once().unwrap();
        std::thread::sleep(LONG * 2);
        drop(taken);
        assert!(turn.take_at_once().is_none(), "it took long");
        drop(turn.take());
        let turn = Turn::default();
        assert!(turn.take_at_once().is_some());
        turn.end();
        assert!(turn.take_at_once().is_none());
    }
}
