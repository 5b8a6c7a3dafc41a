//! One replica of the tracker: the announce stream, and its life after it breaks.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use swarm_proto::v1::announce_message::Message;
use swarm_proto::v1::holders_client::HoldersClient;
use swarm_proto::v1::tracker_order::Order;
use swarm_proto::{MAX_MESSAGE_BYTES, SegmentId, SwarmId, convert, v1};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::Shared;
use super::open_files::Follower;
use super::pending::{Backoff, Pending, State, deltas, inventory};
use crate::store::{ChunkStore, Holding};
use crate::tracker_client::innermost;

/// Longest wait for the tracker to open the stream and to say welcome.
const WELCOME_WAIT: Duration = Duration::from_secs(5);
/// Longest wait for the tracker to take one message.
const SEND_WAIT: Duration = Duration::from_secs(10);
/// Longest wait for a tracker to take the word that this peer leaves.
pub(super) const LEAVE_WAIT: Duration = Duration::from_secs(1);
/// Messages on their way; an inventory's are half a MiB each.
const MESSAGES_WAITING: usize = 4;
/// What a tracker may ask for between two words of load.
const LOAD_EVERY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(60));
/// A stream that lived so long was a good one: the next attempt starts without a pause.
const GOOD_LIFE: Duration = Duration::from_secs(2);
/// A change of used bytes that the tracker is told at once, for it places by free space.
const LARGE_CHANGE_BYTES: u64 = 64 * 1024 * 1024;

/// How a stream ended.
enum Ended {
    /// On purpose.
    Left,
    /// It broke, or never began: try again.
    Broken(String),
    /// The tracker is not this peer's; says what to do.
    Refused(String),
}

impl From<tonic::Status> for Ended {
    fn from(status: tonic::Status) -> Self {
        Self::Broken(innermost(&status))
    }
}

/// Announce to one replica until the peer stops or leaves.
pub(super) async fn run<S: ChunkStore>(shared: Arc<Shared<S>>, channel: Channel, endpoint: String) {
    let (stop, leave) = (shared.stop.clone(), shared.leave.clone());
    let mut backoff = Backoff::default();
    let mut told_absence = false;
    // Whether it was this peer's tracker once, and why it was said to be so no longer.
    let (mut was_ours, mut told_loss) = (false, None);
    loop {
        let began = Instant::now();
        let mut link = Link { shared: &shared, endpoint: &endpoint, told: false, is_ours: false };
        let ended = tokio::select! {
            ended = link.live(channel.clone()) => ended,
            () = stop.cancelled() => return,
        };
        let was_told = link.told;
        was_ours |= link.is_ours;
        told_loss = told_loss.filter(|_| !was_told);
        drop(link);
        match ended {
            Ended::Left => return,
            // Its catalog was lost, and may be brought back. A mount, which people use, never ends by itself.
            Ended::Refused(reason) if was_ours || shared.store.holding() == Holding::Cached => {
                if told_loss.as_ref() != Some(&reason) {
                    tracing::error!(tracker = endpoint, reason, "the tracker is not this peer's; trying on");
                    told_loss = Some(reason);
                }
            }
            Ended::Refused(reason) => {
                tracing::error!(tracker = endpoint, reason, "the tracker is not this peer's");
                shared.state.send_modify(|state| state.refused = Some(reason));
                return;
            }
            Ended::Broken(reason) => {
                if was_told || !told_absence {
                    tracing::warn!(tracker = endpoint, reason, "no announcing to this tracker now; trying on");
                    told_absence = true;
                }
            }
        }
        if began.elapsed() >= GOOD_LIFE {
            backoff.reset();
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.pause(rand::random())) => {}
            () = leave.cancelled() => return,
            () = stop.cancelled() => return,
        }
    }
}

/// One stream. Acts on drop: the replica no longer counts as told.
struct Link<'a, S> {
    shared: &'a Shared<S>,
    endpoint: &'a str,
    told: bool,
    is_ours: bool,
}

impl<S> Drop for Link<'_, S> {
    fn drop(&mut self) {
        if self.told {
            self.shared.state.send_modify(|state| state.told -= 1);
        }
    }
}

/// What the stream has told, beside the inventory.
struct Live {
    out: mpsc::Sender<v1::AnnounceMessage>,
    orders: Streaming<v1::TrackerOrder>,
    changes: broadcast::Receiver<SegmentId>,
    pending: Pending,
    /// Of what the peer has open; none if it opens nothing.
    open_files: Option<Follower>,
    told_used_bytes: u64,
    /// This peer's, as the tracker hands it out.
    address: String,
}

impl<S: ChunkStore> Link<'_, S> {
    async fn live(&mut self, channel: Channel) -> Ended {
        let leave = self.shared.leave.clone();
        let (mut live, load_every) = tokio::select! {
            opened = self.open(channel) => match opened {
                Ok(opened) => opened,
                Err(ended) => return ended,
            },
            () = leave.cancelled() => return Ended::Left,
        };
        match self.follow(&mut live, load_every).await {
            Ok(()) => {
                let farewell = async {
                    let _ = send(&live.out, Message::Leaving(v1::Leaving {})).await;
                    drop(live.out);
                    while let Ok(Some(_)) = live.orders.message().await {}
                };
                let _ = tokio::time::timeout(LEAVE_WAIT, farewell).await;
                Ended::Left
            }
            Err(ended) => ended,
        }
    }

    /// Say hello, be welcomed, and tell everything.
    async fn open(&mut self, channel: Channel) -> Result<(Live, Duration), Ended> {
        let shared = self.shared;
        let (out, messages) = mpsc::channel(MESSAGES_WAITING);
        send(&out, Message::Hello(self.hello())).await?;
        let mut client = HoldersClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let welcomed = async {
            let mut orders = client.announce(ReceiverStream::new(messages)).await?.into_inner();
            let first = orders.message().await?;
            Ok::<_, Ended>((orders, first.and_then(|message| message.order)))
        };
        let (orders, first) = tokio::time::timeout(WELCOME_WAIT, welcomed)
            .await
            .map_err(|_| Ended::Broken(format!("no welcome within {WELCOME_WAIT:?}")))??;
        let Some(Order::Welcome(welcome)) = first else {
            return Err(Ended::Broken("it did not begin with a welcome".to_owned()));
        };
        self.check(&welcome).await?;
        self.is_ours = true;
        // Subscribed before the inventory is taken: what changes meanwhile is told again.
        let changes = shared.store.changes();
        let address = welcome.address;
        // First: who has just begun keeps files for those that tell it in time.
        let open_files = self.tell_open_files(&out).await?;
        let pending = Pending::default();
        let mut live = Live { out, orders, changes, pending, open_files, told_used_bytes: 0, address };
        self.tell_everything(&mut live).await?;
        let load_every = Duration::from_millis(welcome.load_every_ms).clamp(LOAD_EVERY.0, LOAD_EVERY.1);
        Ok((live, load_every))
    }

    async fn check(&self, welcome: &v1::Welcome) -> Result<(), Ended> {
        let swarm = SwarmId::try_from(welcome.swarm_id.as_ref())
            .map_err(|error| Ended::Broken(format!("its welcome cannot be read: {error}")))?;
        (self.shared.config.binding)(swarm).await.map_err(Ended::Refused)?;
        self.shared.epoch.fetch_max(welcome.epoch, Ordering::AcqRel);
        Ok(())
    }

    /// Tell changes and load, and take orders, until the peer leaves.
    async fn follow(&mut self, live: &mut Live, load_every: Duration) -> Result<(), Ended> {
        let mut load_ticks = tokio::time::interval(load_every);
        let mut changes_end = false;
        loop {
            let due = live.pending.due();
            let tell = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.shared.leave.cancelled() => return Ok(()),
                () = tell => self.tell_changes(live).await?,
                () = open_files_due(live.open_files.as_ref()) => tell_opened_and_closed(live).await?,
                _ = load_ticks.tick() => self.tell_load(live).await?,
                order = live.orders.message() => match order? {
                    Some(order) => self.obey(live, order.order).await?,
                    None => return Err(Ended::Broken("it closed the stream".to_owned())),
                },
                change = live.changes.recv(), if !changes_end => match change {
                    Ok(id) => live.pending.insert(id, Instant::now()),
                    Err(RecvError::Lagged(_)) => self.tell_everything(live).await?,
                    Err(RecvError::Closed) => changes_end = true,
                },
            }
        }
    }

    async fn obey(&mut self, live: &mut Live, order: Option<Order>) -> Result<(), Ended> {
        match order {
            Some(Order::Welcome(welcome)) => self.check(&welcome).await,
            Some(Order::Refresh(v1::Refresh {})) => self.tell_everything(live).await,
            Some(Order::InventoryTaken(v1::InventoryTaken {})) => {
                if !std::mem::replace(&mut self.told, true) {
                    self.shared.state.send_modify(|state| {
                        state.told += 1;
                        state.address = Some(live.address.clone());
                    });
                    tracing::info!(tracker = self.endpoint, address = live.address, "announced");
                }
                Ok(())
            }
            Some(Order::Verify(verify)) => {
                match convert::segment_id("verify.segment_id", &verify.segment_id) {
                    Ok(_) if !self.shared.accepts(verify.epoch) => {
                        tracing::warn!(
                            tracker = self.endpoint,
                            epoch = verify.epoch,
                            "refuse an order of an old epoch"
                        );
                    }
                    Ok(id) => {
                        if self.shared.verify.try_send(id).is_err() {
                            tracing::warn!(segment = %id, "too many orders to verify: this one is dropped");
                        }
                    }
                    Err(error) => tracing::warn!(tracker = self.endpoint, %error, "an order that cannot be read"),
                }
                Ok(())
            }
            // A later version's; what it wants is not known here.
            None => Ok(()),
        }
    }

    fn hello(&self) -> v1::Hello {
        let Shared { config, store, process, .. } = self.shared;
        let kind = match store.holding() {
            Holding::Replica => v1::PeerKind::Seeder,
            Holding::Cached => v1::PeerKind::Mount,
        };
        v1::Hello {
            peer_id: config.me.to_wire(),
            kind: kind.into(),
            address: config.address.clone(),
            zone: config.zone.clone(),
            host: config.host.clone(),
            capacity_bytes: match store.holding() {
                Holding::Replica => store.usage().capacity_bytes,
                Holding::Cached => 0,
            },
            version: env!("CARGO_PKG_VERSION").to_owned(),
            process_id: process.to_wire(),
        }
    }

    fn shares(&self) -> bool {
        !self.shared.config.address.is_empty()
    }

    async fn tell_everything(&self, live: &mut Live) -> Result<(), Ended> {
        let _ = live.pending.take();
        let held: Vec<(SegmentId, State)> = match self.shares() {
            true => {
                let state = |whole| if whole { State::Whole } else { State::Partial };
                self.shared.store.inventory().into_iter().map(|(id, whole)| (id, state(whole))).collect()
            }
            false => Vec::new(),
        };
        for part in inventory(&held) {
            send(&live.out, Message::Inventory(part)).await?;
        }
        Ok(())
    }

    /// All that is open.
    async fn tell_open_files(&self, out: &mpsc::Sender<v1::AnnounceMessage>) -> Result<Option<Follower>, Ended> {
        let Some(files) = &self.shared.config.open_files else { return Ok(None) };
        let (parts, follower) = files.follow();
        for part in parts {
            send(out, Message::OpenFiles(part)).await?;
        }
        Ok(Some(follower))
    }

    async fn tell_changes(&self, live: &mut Live) -> Result<(), Ended> {
        let ids = live.pending.take();
        if !self.shares() {
            return Ok(());
        }
        let state = |id: &SegmentId| State::of(self.shared.store.held(id).as_ref().map(|held| &held.presence));
        let changes: Vec<_> = ids.iter().map(|id| (*id, state(id))).collect();
        for delta in deltas(&changes) {
            send(&live.out, Message::Delta(delta)).await?;
        }
        if self.shared.store.usage().used_bytes.abs_diff(live.told_used_bytes) >= LARGE_CHANGE_BYTES {
            self.tell_load(live).await?;
        }
        Ok(())
    }

    async fn tell_load(&self, live: &mut Live) -> Result<(), Ended> {
        let Shared { store, counters, .. } = self.shared;
        let usage = store.usage();
        live.told_used_bytes = usage.used_bytes;
        let load = v1::Load {
            used_bytes: usage.used_bytes,
            free_bytes: usage.free_bytes,
            segments: usage.segments,
            served_bytes_total: counters.served_bytes.get(),
            in_flight: u32::try_from(counters.in_flight.get()).unwrap_or(0),
            corrupt_segments: usage.corrupt_segments,
        };
        send(&live.out, Message::Load(load)).await
    }
}

async fn open_files_due(open_files: Option<&Follower>) {
    match open_files {
        Some(follower) => follower.due().await,
        None => std::future::pending().await,
    }
}

async fn tell_opened_and_closed(live: &Live) -> Result<(), Ended> {
    for part in live.open_files.iter().flat_map(Follower::take) {
        send(&live.out, Message::OpenFiles(part)).await?;
    }
    Ok(())
}

async fn send(out: &mpsc::Sender<v1::AnnounceMessage>, message: Message) -> Result<(), Ended> {
    out.send_timeout(v1::AnnounceMessage { message: Some(message) }, SEND_WAIT)
        .await
        .map_err(|_| Ended::Broken("it takes no more messages".to_owned()))
}
