//! `Announce`: one task for each peer's stream.
//!
//! Invariant: nothing of a stream is believed before its Hello was, and every stream ends: by its peer,
//! by a newer one of the same process, or by this tracker's stop.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use swarm_proto::convert::{self, ConvertError};
use swarm_proto::v1::announce_message::Message;
use swarm_proto::v1::{
    AnnounceMessage, Delta, Hello, Inventory, InventoryTaken, OpenFiles, PeerKind, TrackerOrder, Welcome,
    tracker_order::Order,
};
use swarm_proto::{ProcessId, SegmentId};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::desk::Desk;
use crate::peers::{Facts, Refusal, advertised};
use crate::soft::{AnnounceError, Announced, EPOCH};

/// A stream that says nothing for so long is closed.
const HELLO_WITHIN: Duration = Duration::from_secs(10);

/// Orders that wait for a slow peer; further ones are not sent, and given again when there is cause.
const ORDERS: usize = 64;

/// How often a peer sends its load.
const LOAD_EVERY: Duration = Duration::from_secs(5);

/// Ids in one inventory or delta.
const MOST_IDS: usize = 16_384;

/// Inodes in one message of open files.
const MOST_OPEN_FILES: usize = 65_536;

type Orders = mpsc::Sender<Result<TrackerOrder, Status>>;

/// Run the stream in a task of its own; the answer stream carries its orders, and why it ended.
pub(super) fn begin(
    desk: &Arc<Desk>,
    messages: Streaming<AnnounceMessage>,
    seen: Option<IpAddr>,
) -> ReceiverStream<Result<TrackerOrder, Status>> {
    let (orders, out) = mpsc::channel(ORDERS);
    let desk = desk.clone();
    desk.tasks.clone().spawn(async move {
        if let Err(status) = run(&desk, messages, seen, orders.clone()).await {
            tracing::debug!(code = ?status.code(), message = status.message(), "announce stream ends");
            // If the queue is full the peer does not read, and will not read this either.
            drop(orders.try_send(Err(status)));
        }
    });
    ReceiverStream::new(out)
}

async fn run(
    desk: &Arc<Desk>,
    mut messages: Streaming<AnnounceMessage>,
    seen: Option<IpAddr>,
    orders: Orders,
) -> Result<(), Status> {
    let first = tokio::select! {
        first = timeout(HELLO_WITHIN, messages.message()) => first,
        () = desk.stop.cancelled() => return Err(stopping()),
    };
    let Ok(first) = first else {
        return Err(Status::deadline_exceeded(format!("no Hello within {HELLO_WITHIN:?}")));
    };
    let Some(AnnounceMessage { message: Some(Message::Hello(hello)) }) = first? else {
        return Err(Status::invalid_argument("the first message must be a Hello"));
    };
    let (facts, process) = read_hello(hello, seen)?;
    let address = facts.address.clone();
    let shown = (facts.id, facts.kind.as_str_name());
    let mut stream = desk.soft.open(facts, process, orders.clone()).map_err(|refusal| match refusal {
        Refusal::CopiedStore { .. } => Status::already_exists(refusal.to_string()),
        Refusal::TooMany => Status::resource_exhausted(refusal.to_string()),
    })?;
    tracing::info!(peer = %shown.0, kind = shown.1, address, "peer announces");
    let welcome = Order::Welcome(Welcome {
        boot_id: desk.boot_id.to_wire(),
        swarm_id: desk.catalog.swarm_id().to_wire(),
        epoch: EPOCH,
        grace_ms: millis(desk.soft.registry.grace()),
        load_every_ms: millis(LOAD_EVERY),
        address,
    });
    drop(orders.try_send(Ok(TrackerOrder { order: Some(welcome) })));
    let ended = listen(desk, &mut stream, messages, &orders).await;
    match &ended {
        Ok(()) => desk.soft.left(&stream),
        Err(_) => desk.soft.broken(&stream),
    }
    tracing::info!(peer = %shown.0, left = ended.is_ok(), "peer's stream ended");
    ended
}

/// Take the peer's messages until it leaves; anything else that ends the stream is an error.
async fn listen(
    desk: &Arc<Desk>,
    stream: &mut Announced,
    mut messages: Streaming<AnnounceMessage>,
    orders: &Orders,
) -> Result<(), Status> {
    let replaced = stream.opened().replaced.clone();
    loop {
        let message = tokio::select! {
            message = messages.message() => message?,
            () = replaced.cancelled() => return Err(AnnounceError::Replaced.into()),
            () = orders.closed() => return Err(Status::cancelled("the peer no longer listens")),
            () = desk.stop.cancelled() => return Err(stopping()),
        };
        let Some(AnnounceMessage { message }) = message else {
            return Err(Status::cancelled("the peer closed its stream without leaving"));
        };
        match message {
            Some(Message::Inventory(inventory)) => take_inventory(desk, stream, inventory, orders).await?,
            Some(Message::Delta(delta)) => take_delta(desk, stream, &delta)?,
            Some(Message::Load(load)) => desk.soft.load(stream, load),
            Some(Message::Leaving(_)) => return Ok(()),
            Some(Message::Hello(_)) => return Err(Status::invalid_argument("a second Hello in one stream")),
            Some(Message::OpenFiles(open)) => take_open_files(desk, stream, &open)?,
            // A message of a newer version: what this tracker does not know it need not do.
            None => {}
        }
    }
}

async fn take_inventory(
    desk: &Arc<Desk>,
    stream: &mut Announced,
    inventory: Inventory,
    orders: &Orders,
) -> Result<(), Status> {
    let whole = convert::segment_ids("inventory.whole_ids", &inventory.whole_ids, MOST_IDS)?;
    let partial = convert::segment_ids("inventory.partial_ids", &inventory.partial_ids, MOST_IDS)?;
    few([&whole, &partial])?;
    desk.soft.inventory_part(stream, &whole, &partial)?;
    if !inventory.last {
        return Ok(());
    }
    end_inventory(desk, stream).await?;
    let taken = TrackerOrder { order: Some(Order::InventoryTaken(InventoryTaken {})) };
    orders.try_send(Ok(taken)).map_err(|_| Status::resource_exhausted("the peer takes no orders"))
}

/// What a large peer lost is removed where that may take its time.
async fn end_inventory(desk: &Arc<Desk>, stream: &mut Announced) -> Result<(), Status> {
    let (soft, mut moved) = (desk.soft.clone(), stream.clone());
    let ended = desk.tasks.spawn_blocking(move || {
        soft.end_inventory(&mut moved);
        moved
    });
    *stream = ended.await.map_err(|error| Status::internal(error.to_string()))?;
    Ok(())
}

fn take_delta(desk: &Arc<Desk>, stream: &mut Announced, delta: &Delta) -> Result<(), Status> {
    let whole = convert::segment_ids("delta.whole_ids", &delta.whole_ids, MOST_IDS)?;
    let partial = convert::segment_ids("delta.partial_ids", &delta.partial_ids, MOST_IDS)?;
    let lost = convert::segment_ids("delta.lost_ids", &delta.lost_ids, MOST_IDS)?;
    few([&whole, &partial, &lost])?;
    Ok(desk.soft.delta(stream, &whole, &partial, &lost)?)
}

fn take_open_files(desk: &Arc<Desk>, stream: &Announced, open: &OpenFiles) -> Result<(), Status> {
    let numbers = open.opened.len() + open.closed.len();
    if numbers > MOST_OPEN_FILES {
        let message = format!("open_files: {numbers} numbers in one message, at most {MOST_OPEN_FILES}");
        return Err(Status::resource_exhausted(message));
    }
    Ok(desk.soft.open_files(stream, open)?)
}

fn few<const N: usize>(lists: [&Vec<SegmentId>; N]) -> Result<(), ConvertError> {
    let all = lists.iter().map(|list| list.len()).sum::<usize>();
    convert::within("ids in one message", all as u64, 0, MOST_IDS as u64).map(drop)
}

fn read_hello(hello: Hello, seen: Option<IpAddr>) -> Result<(Facts, ProcessId), Status> {
    let id = convert::peer_id("hello.peer_id", &hello.peer_id)?;
    let process = ProcessId::try_from(&hello.process_id[..])
        .map_err(|error| Status::invalid_argument(format!("hello.process_id: {error}")))?;
    let kind = match PeerKind::try_from(hello.kind) {
        Ok(kind @ (PeerKind::Seeder | PeerKind::Mount)) => kind,
        _ => return Err(Status::invalid_argument(format!("hello.kind: {} is no kind of peer", hello.kind))),
    };
    let address = advertised(&hello.address, seen)
        .map_err(|error| Status::invalid_argument(format!("hello.address: {error}")))?;
    if kind == PeerKind::Seeder && address.is_empty() {
        return Err(Status::invalid_argument("hello.address: a seeder must be reachable"));
    }
    for (field, text) in [("zone", &hello.zone), ("host", &hello.host), ("version", &hello.version)] {
        if text.len() > 255 || text.chars().any(char::is_control) {
            return Err(Status::invalid_argument(format!(
                "hello.{field}: must be at most 255 bytes without control characters"
            )));
        }
    }
    let host = match (hello.host.is_empty(), address.rsplit_once(':')) {
        (false, _) => hello.host,
        (true, Some((host, _))) => host.to_owned(),
        (true, None) => seen.map(|seen| seen.to_string()).unwrap_or_default(),
    };
    let Hello { zone, version, capacity_bytes, .. } = hello;
    Ok((Facts { id, kind, address, zone, host, capacity_bytes, version }, process))
}

impl From<AnnounceError> for Status {
    fn from(error: AnnounceError) -> Self {
        match error {
            AnnounceError::Replaced => Self::aborted(error.to_string()),
            AnnounceError::TooMany | AnnounceError::Full(_) | AnnounceError::TooManyOpen(_) => {
                Self::resource_exhausted(error.to_string())
            }
        }
    }
}

fn stopping() -> Status {
    Status::unavailable("this tracker is stopping")
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
