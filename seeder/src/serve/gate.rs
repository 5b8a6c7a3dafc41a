//! The way out: admission by bytes in flight, the upload limit, and the watch over askers that stopped
//! reading.
//!
//! Invariant: a [`Pass`] lives as long as the bytes it was given for lie in this process's memory; with
//! it they are given back.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::admission::{Admission, Asker, FairQueue};
use super::listener::Link;

/// Bytes of answers in flight, over all askers.
const BUDGET_BYTES: u64 = 64 * 1024 * 1024;

/// How long a fetch waits for room before it is told to ask elsewhere: about what one run takes on a
/// link of 100 Mbit/s.
const ROOM_WAIT: Duration = Duration::from_millis(100);

/// How long a fetch may wait for its turn under the upload limit.
const TURN_WAIT_SECONDS: u64 = 8;

/// What may go out at once although the upload limit is lower: one run.
const BURST_BYTES: u64 = 1024 * 1024;

/// An asker that took less than [`STALL_BYTES`] of all its connection in this time has stopped reading.
const STALL_AFTER: Duration = Duration::from_secs(60);
const STALL_BYTES: u64 = 16 * 1024;

/// The peer is busy: ask another, or later.
#[derive(Debug)]
pub(crate) struct Busy;

/// Lets answers out.
pub(crate) struct Gate {
    admission: Mutex<Admission>,
    room: Notify,
    watched: Mutex<Watched>,
    limit: Option<UploadLimit>,
}

#[derive(Default)]
struct Watched {
    next: u64,
    passes: HashMap<u64, Watch>,
}

struct Watch {
    since: Instant,
    written: u64,
    link: Arc<Link>,
}

impl Gate {
    /// `limit`: bytes a second, over all askers.
    pub(crate) fn open(limit: Option<NonZeroU64>, tasks: &TaskTracker, stop: &CancellationToken) -> Arc<Self> {
        let gate = Arc::new(Self {
            admission: Mutex::new(Admission::new(BUDGET_BYTES)),
            room: Notify::new(),
            watched: Mutex::default(),
            limit: limit.map(UploadLimit::new),
        });
        if gate.limit.is_some() {
            let (gate, stop) = (Arc::clone(&gate), stop.clone());
            tasks.spawn(async move {
                if let Some(limit) = &gate.limit {
                    let _ = stop.run_until_cancelled(limit.pace()).await;
                }
            });
        }
        let (weak, stop) = (Arc::downgrade(&gate), stop.clone());
        tasks.spawn(async move {
            let mut tick = tokio::time::interval(STALL_AFTER / 6);
            while stop.run_until_cancelled(tick.tick()).await.is_some() {
                let Some(gate) = weak.upgrade() else { break };
                gate.kill_stalled(Instant::now());
            }
        });
        gate
    }

    /// Room for `bytes` of an answer.
    ///
    /// Errors: [`Busy`] after [`ROOM_WAIT`], or if the upload limit leaves no turn soon.
    pub(crate) async fn pass(
        self: &Arc<Self>,
        asker: Asker,
        bytes: u64,
        link: Option<Arc<Link>>,
    ) -> Result<Pass, Busy> {
        tokio::time::timeout(ROOM_WAIT, self.room_for(asker, bytes)).await.map_err(|_| Busy)?;
        let mut pass = Pass { gate: Arc::clone(self), asker, bytes, watch: None };
        if let Some(limit) = &self.limit {
            limit.turn(asker, bytes).await?;
        }
        if let Some(link) = link {
            let mut watched = self.watched.lock();
            let number = watched.next;
            watched.next += 1;
            watched.passes.insert(number, Watch { since: Instant::now(), written: link.written(), link });
            pass.watch = Some(number);
        }
        Ok(pass)
    }

    async fn room_for(&self, asker: Asker, bytes: u64) {
        loop {
            let freed = self.room.notified();
            tokio::pin!(freed);
            // Registered before the attempt, so that what is freed in between is not missed.
            freed.as_mut().enable();
            if self.admission.lock().admit(asker, bytes) {
                return;
            }
            freed.await;
        }
    }

    /// Bytes of answers in flight.
    #[cfg(test)]
    pub(crate) fn in_flight_bytes(&self) -> u64 {
        self.admission.lock().in_flight()
    }

    fn kill_stalled(&self, now: Instant) {
        for watch in self.watched.lock().passes.values_mut() {
            if now.saturating_duration_since(watch.since) < STALL_AFTER {
                continue;
            }
            let written = watch.link.written();
            if written.saturating_sub(watch.written) < STALL_BYTES {
                tracing::debug!("end a connection whose peer stopped reading");
                watch.link.kill();
            }
            (watch.since, watch.written) = (now, written);
        }
    }
}

/// Acts on drop: gives back the room of one answer.
pub(crate) struct Pass {
    gate: Arc<Gate>,
    asker: Asker,
    bytes: u64,
    watch: Option<u64>,
}

impl Pass {
    /// The same bytes, which now carry the pass with them: it ends when the last that carries it is gone.
    pub(crate) fn attach(self: Arc<Self>, bytes: Bytes) -> Bytes {
        struct Carried {
            bytes: Bytes,
            _pass: Arc<Pass>,
        }
        impl AsRef<[u8]> for Carried {
            fn as_ref(&self) -> &[u8] {
                &self.bytes
            }
        }
        Bytes::from_owner(Carried { bytes, _pass: self })
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if let Some(number) = self.watch {
            self.gate.watched.lock().passes.remove(&number);
        }
        self.gate.admission.lock().release(self.asker, self.bytes);
        self.gate.room.notify_waiters();
    }
}

/// A token bucket whose waiters are served in turn, asker by asker.
struct UploadLimit {
    rate: NonZeroU64,
    waiting: Mutex<Waiting>,
    came: Notify,
}

#[derive(Default)]
struct Waiting {
    queue: FairQueue<(u64, oneshot::Sender<()>)>,
    bytes: u64,
}

impl UploadLimit {
    fn new(rate: NonZeroU64) -> Self {
        Self { rate, waiting: Mutex::default(), came: Notify::new() }
    }

    async fn turn(&self, asker: Asker, bytes: u64) -> Result<(), Busy> {
        let most = self.rate.get().saturating_mul(TURN_WAIT_SECONDS).max(4 * BURST_BYTES);
        let (called, turn) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock();
            if waiting.bytes.saturating_add(bytes) > most {
                return Err(Busy);
            }
            waiting.bytes += bytes;
            waiting.queue.push(asker, (bytes, called));
        }
        self.came.notify_one();
        turn.await.map_err(|_| Busy)
    }

    async fn pace(&self) {
        // When all that went out so far is paid for.
        let mut paid = Instant::now();
        let burst = self.time_of(BURST_BYTES);
        loop {
            let Some((bytes, called)) = self.next() else {
                self.came.notified().await;
                continue;
            };
            if called.is_closed() {
                continue;
            }
            let now = Instant::now();
            paid = paid.max(now.checked_sub(burst).unwrap_or(now)) + self.time_of(bytes);
            tokio::time::sleep_until(paid.into()).await;
            let _ = called.send(());
        }
    }

    fn next(&self) -> Option<(u64, oneshot::Sender<()>)> {
        let mut waiting = self.waiting.lock();
        let next = waiting.queue.pop()?;
        waiting.bytes = waiting.bytes.saturating_sub(next.0);
        Some(next)
    }

    fn time_of(&self, bytes: u64) -> Duration {
        Duration::from_secs_f64(bytes as f64 / self.rate.get() as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use swarm_proto::PeerId;

    fn asker(number: u8) -> Asker {
        Asker::Peer(PeerId::new([number; 16]))
    }

    fn gate(limit: Option<u64>) -> (Arc<Gate>, TaskTracker, CancellationToken) {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        (Gate::open(limit.and_then(NonZeroU64::new), &tasks, &stop), tasks, stop)
    }

    #[tokio::test(start_paused = true)]
    async fn an_asker_over_its_share_is_told_so_quickly_and_has_room_again_later() {
        let (gate, ..) = gate(None);
        let first = gate.pass(asker(1), BUDGET_BYTES / 2, None).await.ok().unwrap();
        let asked = tokio::time::Instant::now();
        assert!(gate.pass(asker(1), 1 << 20, None).await.is_err());
        assert!(asked.elapsed() <= 2 * ROOM_WAIT);
        assert!(gate.pass(asker(2), 1 << 20, None).await.is_ok());
        drop(first);
        assert!(gate.pass(asker(1), 1 << 20, None).await.is_ok());
        assert_eq!(gate.in_flight_bytes(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_room_is_given_back_when_the_last_bytes_are_gone() {
        let (gate, ..) = gate(None);
        let pass = Arc::new(gate.pass(asker(1), 1000, None).await.ok().unwrap());
        let other = pass.clone().attach(Bytes::from(vec![7; 400]));
        let mut bytes = pass.attach(Bytes::from(vec![7; 600]));
        let rest = bytes.split_off(500);
        drop((bytes, other));
        assert_eq!(gate.in_flight_bytes(), 1000);
        drop(rest);
        assert_eq!(gate.in_flight_bytes(), 0);
    }

    #[tokio::test]
    async fn an_asker_that_stopped_reading_loses_its_connection() {
        let (gate, ..) = gate(None);
        let link = Arc::new(Link::default());
        let _pass = gate.pass(asker(1), 1000, Some(Arc::clone(&link))).await.ok().unwrap();
        gate.kill_stalled(Instant::now() + STALL_AFTER / 2);
        assert!(!link.killed());
        gate.kill_stalled(Instant::now() + STALL_AFTER);
        assert!(link.killed());
    }

    #[tokio::test]
    async fn the_upload_limit_holds_and_is_shared() {
        // 64 MiB/s: the burst is free, the other 8 MiB take an eighth of a second.
        let (gate, ..) = gate(Some(64 << 20));
        let began = Instant::now();
        let mut passes = Vec::new();
        for number in 0..9u8 {
            passes.push(gate.pass(asker(number % 3), 1 << 20, None).await.ok().unwrap());
        }
        assert!(began.elapsed() >= Duration::from_millis(120), "{:?}", began.elapsed());
    }
}
