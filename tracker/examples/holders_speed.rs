//! What one core-second of a tracker does: segments announced, located in batches, and looked up singly.
//!
//! `cargo run --release -p swarm-tracker --example holders_speed [SEGMENTS]`. The tracker runs in a process
//! of its own over real connections, and its CPU time is read from /proc; the speed of the client that
//! asks does not count.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use swarm_proto::v1::announce_message::Message;
use swarm_proto::v1::holders_client::HoldersClient;
use swarm_proto::v1::{AnnounceMessage, Hello, Inventory, LocateRequest, PeerKind, PeersRequest};
use swarm_proto::{PeerId, ProcessId, SegmentId};
use swarm_tracker::config::AdminListen;
use swarm_tracker::{Tracker, TrackerConfig};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

const SEEDERS: u32 = 3;
const BATCH: usize = 64;

fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("serve") => runtime.block_on(serve()),
        segments => {
            let segments = segments.map_or(1_000_000, |text| text.parse().expect("a number of segments"));
            runtime.block_on(measure(segments));
        }
    }
}

async fn serve() {
    let listen = "127.0.0.1:0".parse().expect("an address");
    let config = TrackerConfig { listen, admin_listen: AdminListen::Off, ..TrackerConfig::default() };
    let tracker = Tracker::start(config).await.expect("the tracker starts");
    println!("{}", tracker.address());
    std::future::pending::<()>().await;
}

fn id(number: u32) -> SegmentId {
    SegmentId::new(*blake3::hash(&number.to_le_bytes()).as_bytes())
}

async fn measure(segments: u32) {
    let mut server = Command::new(std::env::current_exe().expect("this program"))
        .arg("serve")
        .stdout(Stdio::piped())
        .spawn()
        .expect("the server starts");
    let mut address = String::new();
    BufReader::new(server.stdout.take().expect("piped")).read_line(&mut address).expect("the server's address");
    let endpoint = Endpoint::from_shared(format!("http://{}", address.trim())).expect("an address");
    let ids: Vec<SegmentId> = (0..segments).map(id).collect();

    let (before, memory) = (cpu(&server), rss(&server));
    let mut streams = Vec::new();
    for number in 0..SEEDERS {
        streams.push(announce(&endpoint, number, &ids).await);
    }
    let mut client = client(&endpoint).await;
    loop {
        let last = LocateRequest { segment_ids: ids[ids.len() - 1].to_wire(), ..Default::default() };
        let found = client.locate(last).await.expect("located").into_inner();
        if found.counts == [SEEDERS] {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let announced = f64::from(segments) * f64::from(SEEDERS) / (cpu(&server) - before);
    println!("announced                  {announced:>12.0} a core-second");
    let grown = rss(&server).saturating_sub(memory) as f64 / f64::from(segments);
    println!("resident, three holders    {grown:>12.1} bytes a segment");

    for (name, batch, calls, clients) in [
        ("located, batches of 64", BATCH, 30_000, 4),
        ("located, batches of 4096", 4_096, 600, 2),
        ("single lookups", 1, 150_000, 8),
    ] {
        let (before, began) = (cpu(&server), Instant::now());
        let mut running = FuturesUnordered::new();
        for number in 0..clients {
            let mut channel = self::client(&endpoint).await;
            let ids = &ids;
            running.push(async move {
                let mut waiting = FuturesUnordered::new();
                for call in 0..calls / clients {
                    let start = (call * 7_919 + number * 104_729) * batch % (ids.len() - batch).max(1);
                    let request = LocateRequest {
                        segment_ids: SegmentId::pack(&ids[start..start + batch]),
                        ..Default::default()
                    };
                    let mut channel = channel.clone();
                    waiting.push(async move { channel.locate(request).await.expect("located") });
                    if waiting.len() >= 16 {
                        waiting.next().await;
                    }
                }
                while waiting.next().await.is_some() {}
                drop(channel.peers(PeersRequest {}).await);
            });
        }
        while running.next().await.is_some() {}
        let done = (calls * batch) as f64;
        println!(
            "{name:<26} {:>12.0} a core-second, {:>10.0} a second",
            done / (cpu(&server) - before),
            done / began.elapsed().as_secs_f64()
        );
    }
    server.kill().expect("the server is killed");
    server.wait().expect("the server ended");
}

async fn client(endpoint: &Endpoint) -> HoldersClient<Channel> {
    HoldersClient::new(endpoint.connect().await.expect("a connection"))
}

async fn announce(
    endpoint: &Endpoint,
    number: u32,
    ids: &[SegmentId],
) -> tonic::Streaming<swarm_proto::v1::TrackerOrder> {
    let (out, messages) = tokio::sync::mpsc::channel(8);
    let hello = Hello {
        peer_id: PeerId::random().to_wire(),
        kind: PeerKind::Seeder.into(),
        address: format!("127.0.0.1:{}", 9_000 + number),
        process_id: ProcessId::random().to_wire(),
        ..Default::default()
    };
    out.send(AnnounceMessage { message: Some(Message::Hello(hello)) }).await.expect("room");
    let orders = client(endpoint).await.announce(ReceiverStream::new(messages)).await.expect("announced");
    let parts = ids.len().div_ceil(16_384);
    for (part, ids) in ids.chunks(16_384).enumerate() {
        let whole_ids = SegmentId::pack(ids);
        let inventory = Inventory { whole_ids, last: part + 1 == parts, ..Default::default() };
        out.send(AnnounceMessage { message: Some(Message::Inventory(inventory)) }).await.expect("taken");
    }
    // Kept open, so that the peer lives on.
    std::mem::forget(out);
    orders.into_inner()
}

/// CPU seconds of the server, of 100 ticks each.
fn cpu(server: &Child) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.id())).expect("the server lives");
    let fields: Vec<&str> = stat.rsplit(") ").next().expect("fields").split(' ').collect();
    let ticks = |at: usize| fields[at].parse::<f64>().expect("ticks");
    (ticks(11) + ticks(12)) / 100.0
}

fn rss(server: &Child) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{}/statm", server.id())).expect("the server lives");
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("pages") * 4096
}
