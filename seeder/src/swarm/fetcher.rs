//! The fetcher: performs what the engine decides, and waits on behalf of its callers.
//!
//! It moves bytes, checks them, and holds the one lock around [`Engine`]; it decides nothing. Invariant:
//! the lock is never held over an await, a hash or a system call.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use swarm_proto::{ChunkTree, Presence, SegmentId, v1};
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::engine::{Action, Assignment, Engine};
use super::in_flight::{RequestId, WantId};
use super::link::Link;
use super::progress::Progress;
use super::scoreboard::PeerKey;
use super::{FetchError, Fetched, Holder, Locator, SwarmConfig, SwarmStats, Want, metrics};

mod request;

/// Longest that a peer may take to say what it has.
const HAVE_TIMEOUT: Duration = Duration::from_secs(3);

/// How soon a want is tried again whose segment is wanted with another length by somebody else.
const DISAGREED: Duration = Duration::from_millis(50);

/// How often connections are looked at that are used no more.
const SWEEP: Duration = Duration::from_secs(30);

/// Fetches chunks from the peers that hold them.
pub struct Swarm {
    this: Weak<Self>,
    config: SwarmConfig,
    locator: Arc<dyn Locator>,
    tasks: TaskTracker,
    runtime: Handle,
    stop: CancellationToken,
    wake: Notify,
    state: Mutex<State>,
}

struct State {
    engine: Engine,
    waiting: HashMap<WantId, oneshot::Sender<Fetched>>,
    live: HashMap<RequestId, Live>,
    links: HashMap<PeerKey, OpenLink>,
    /// When the driver wakes by itself.
    armed: Option<std::time::Instant>,
}

struct Live {
    progress: Arc<Progress>,
    task: AbortHandle,
}

struct OpenLink {
    address: String,
    link: Link,
    used: Instant,
}

impl State {
    fn forget(&mut self, id: RequestId) -> Option<Live> {
        let live = self.live.remove(&id)?;
        let totals = self.engine.totals();
        let bytes = live.progress.bytes();
        totals.received_bytes += bytes;
        totals.local_bytes += if live.progress.is_local() { bytes } else { 0 };
        Some(live)
    }
}

impl Swarm {
    /// A fetcher that learns from `locator` who holds what; its work runs in `tasks` until `stop`.
    ///
    /// Shape: called within a tokio runtime, on which it then works.
    pub fn new(
        config: SwarmConfig,
        locator: Arc<dyn Locator>,
        registry: &prometheus::Registry,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let swarm = Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            state: Mutex::new(State {
                engine: Engine::new(&config, now()),
                waiting: HashMap::new(),
                live: HashMap::new(),
                links: HashMap::new(),
                armed: None,
            }),
            config,
            locator,
            tasks,
            runtime: Handle::current(),
            stop,
            wake: Notify::new(),
        });
        metrics::register(&swarm, registry);
        swarm.tasks.spawn_on(drive(Weak::clone(&swarm.this), swarm.stop.clone()), &swarm.runtime);
        swarm
    }

    /// Fetch chunks. Dropping the future cancels what nobody else waits for.
    ///
    /// Errors: [`FetchError`], at the want's deadline at the latest.
    pub async fn fetch(&self, want: Want) -> Result<Fetched, FetchError> {
        let (segment, chunks) = (want.segment, want.chunks);
        if chunks.is_empty() || segment.length > swarm_proto::MAX_SEGMENT_BYTES || !segment.all().contains(chunks) {
            return Err(FetchError::NoHolder { segment, chunks });
        }
        let deadline = Instant::from_std(want.deadline);
        let (id, mut done) = loop {
            if self.stop.is_cancelled() {
                return Err(FetchError::Stopping);
            }
            if let Some(started) = self.start(&want) {
                break started;
            }
            if Instant::now() + DISAGREED > deadline {
                let last = "its length is not the one that others want it with".to_owned();
                return Err(FetchError::AllFailed { segment, holders: 0, last });
            }
            tokio::time::sleep(DISAGREED).await;
        };
        let guard = WantGuard { swarm: self, id };
        tokio::select! {
            biased;
            fetched = &mut done => fetched.map_err(|_| FetchError::Stopping),
            () = self.stop.cancelled() => Err(FetchError::Stopping),
            () = tokio::time::sleep_until(deadline) => {
                let expired = self.with_engine(|engine, actions| engine.expire(guard.id, now(), actions));
                Err(expired.unwrap_or(FetchError::NoHolder { segment, chunks }))
            }
        }
    }

    /// Learn soon who holds these segments; never waits.
    pub fn expect(&self, ids: &[SegmentId]) {
        self.with_engine(|engine, actions| engine.expect(ids, now(), actions));
    }

    /// The verified tree of a segment, if it is in memory.
    pub fn known_tree(&self, id: &SegmentId) -> Option<ChunkTree> {
        self.state.lock().engine.tree(id)
    }

    /// Keep a verified tree that the caller has, so that it is not fetched.
    pub fn remember_tree(&self, tree: ChunkTree) {
        self.state.lock().engine.remember_tree(tree);
    }

    /// Holders of a segment that the caller has heard of.
    pub fn learn(&self, id: SegmentId, holders: Vec<Holder>) {
        self.with_engine(|engine, actions| engine.learn(id, &holders, now(), actions));
    }

    /// What was done so far.
    pub fn stats(&self) -> SwarmStats {
        self.state.lock().engine.stats(now())
    }

    fn start(&self, want: &Want) -> Option<(WantId, oneshot::Receiver<Fetched>)> {
        let (send, receive) = oneshot::channel();
        let mut actions = Vec::new();
        let mut state = self.state.lock();
        let id = state.engine.want(want, now(), &mut actions)?;
        state.waiting.insert(id, send);
        self.perform(&mut state, actions);
        Some((id, receive))
    }

    /// Tell the engine something, and do what it says.
    fn with_engine<T>(&self, event: impl FnOnce(&mut Engine, &mut Vec<Action>) -> T) -> T {
        let mut actions = Vec::new();
        let mut state = self.state.lock();
        let told = event(&mut state.engine, &mut actions);
        self.perform(&mut state, actions);
        told
    }

    fn perform(&self, state: &mut State, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Send(assignment) => self.send(state, assignment),
                Action::Cancel(id) => {
                    if let Some(live) = state.forget(id) {
                        live.task.abort();
                    }
                }
                Action::Done(id, fetched) => {
                    if let Some(waiting) = state.waiting.remove(&id) {
                        // A caller that went away has withdrawn, or is about to.
                        drop(waiting.send(*fetched));
                    }
                }
                Action::Locate(ids) => {
                    self.spawn(move |swarm| async move { swarm.locate(ids).await });
                }
                Action::AskHave(peer, ids) => {
                    let link = self.link(state, peer);
                    self.spawn(move |swarm| async move { swarm.ask_have(peer, link, ids).await });
                }
                Action::Report(peer, offence) => self.locator.report(peer, offence),
            }
        }
        let wake = state.engine.next_wake(now());
        if let Some(at) = wake
            && state.armed.is_none_or(|armed| at < armed)
        {
            state.armed = wake;
            self.wake.notify_one();
        }
    }

    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, work: impl FnOnce(Arc<Self>) -> F) -> Option<AbortHandle> {
        let swarm = self.this.upgrade()?;
        let stop = self.stop.clone();
        let work = work(swarm);
        let task = async move {
            tokio::select! {
                () = work => {}
                () = stop.cancelled() => {}
            }
        };
        Some(self.tasks.spawn_on(task, &self.runtime).abort_handle())
    }

    fn send(&self, state: &mut State, assignment: Assignment) {
        let id = assignment.id;
        let link = self.link(state, assignment.peer);
        let progress = Arc::new(Progress::new());
        let counted = Arc::clone(&progress);
        let task = self.spawn(move |swarm| async move { swarm.request(assignment, link, counted).await });
        if let Some(task) = task {
            state.live.insert(id, Live { progress, task });
        }
    }

    fn link(&self, state: &mut State, peer: PeerKey) -> Result<Link, String> {
        let address = state.engine.address(peer);
        if let Some(open) = state.links.get_mut(&peer)
            && open.address == address.address
        {
            open.used = Instant::now();
            return Ok(open.link.clone());
        }
        let link = Link::new(address.id, &address.address, &self.config)?;
        let open = OpenLink { address: address.address.clone(), link: link.clone(), used: Instant::now() };
        state.links.insert(peer, open);
        Ok(link)
    }

    async fn locate(&self, ids: Vec<SegmentId>) {
        let asked = tokio::time::timeout(self.config.locate_timeout, self.locator.locate(ids.clone())).await;
        let found = match asked {
            Ok(Ok(found)) => Some(found),
            Ok(Err(error)) => {
                tracing::debug!(%error, segments = ids.len(), "locate");
                None
            }
            Err(_) => None,
        };
        let remembered = if found.is_none() { self.locator.remembered(&ids) } else { Vec::new() };
        self.with_engine(|engine, actions| {
            engine.located(&ids, found.as_deref(), now(), actions);
            remembered.iter().for_each(|(id, holders)| engine.learn(*id, holders, now(), actions));
        });
    }

    async fn ask_have(&self, peer: PeerKey, link: Result<Link, String>, ids: Vec<SegmentId>) {
        let asked = async {
            let request = v1::HaveRequest { segment_ids: SegmentId::pack(&ids) };
            let reply = link.ok()?.plain().have(request).await.ok()?.into_inner();
            (reply.presences.len() == ids.len()).then_some(reply.presences)
        };
        let presences = tokio::time::timeout(HAVE_TIMEOUT, asked).await.ok().flatten();
        self.with_engine(|engine, actions| match presences {
            Some(presences) => {
                let read = |(id, presence): (SegmentId, v1::Presence)| Some((id, engine.read(&id, &presence)?));
                let answers: Vec<(SegmentId, Presence)> = ids.iter().copied().zip(presences).filter_map(read).collect();
                engine.has(peer, answers, now(), actions);
            }
            None => engine.has_failed(peer, &ids, now(), actions),
        });
    }

    /// Note progress, let time pass, and say when to come back.
    fn tick(&self) -> Option<std::time::Instant> {
        let mut actions = Vec::new();
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let now = now();
        for (id, live) in &state.live {
            state.engine.progress(*id, live.progress.bytes(), now);
        }
        state.engine.tick(now, &mut actions);
        self.perform(state, actions);
        state.armed = state.engine.next_wake(now);
        state.armed
    }

    fn sweep(&self) {
        let old = self.config.idle_connection;
        self.state.lock().links.retain(|_, open| open.used.elapsed() < old);
    }
}

/// Withdraws a want when its caller stops waiting, for whatever reason.
struct WantGuard<'a> {
    swarm: &'a Swarm,
    id: WantId,
}

impl Drop for WantGuard<'_> {
    fn drop(&mut self) {
        let mut actions = Vec::new();
        let mut state = self.swarm.state.lock();
        if state.waiting.remove(&self.id).is_some() {
            state.engine.withdraw(self.id, now(), &mut actions);
            self.swarm.perform(&mut state, actions);
        }
    }
}

async fn drive(swarm: Weak<Swarm>, stop: CancellationToken) {
    let mut swept = Instant::now();
    loop {
        let Some(alive) = swarm.upgrade() else { return };
        let at = alive.tick().map(Instant::from_std);
        if swept.elapsed() > SWEEP {
            alive.sweep();
            swept = Instant::now();
        }
        let at = at.unwrap_or_else(|| Instant::now() + SWEEP);
        tokio::select! {
            () = alive.wake.notified() => {}
            () = tokio::time::sleep_until(at) => {}
            () = stop.cancelled() => {
                let mut state = alive.state.lock();
                state.waiting.clear();
                return;
            }
        }
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

#[cfg(test)]
mod tests;
