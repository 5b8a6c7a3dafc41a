//! The tracker over real connections: announces, locates in batches, single lookups, memory.

use std::time::{Duration, Instant};

use swarm_proto::v1::announce_message::Message;
use swarm_proto::v1::catalog_client::CatalogClient;
use swarm_proto::v1::holders_client::HoldersClient;
use swarm_proto::v1::{self, PeerKind};
use swarm_proto::{PeerId, ProcessId, SegmentId};
use tonic::transport::Channel;

use super::harness::Swarm;
use super::measure::cpu_seconds;
use super::report::Report;

/// Segments, each with three holders.
const SEGMENTS: usize = 1_000_000;
const CONNECTIONS: usize = 8;
const BATCH: usize = 4_096;

pub(crate) fn run(report: &mut Report) {
    if !report.wants("tracker") {
        return;
    }
    report.section(
        "Tracker, over real gRPC connections, per core-second of the server",
        &["work", "a core-second", "goal"],
    );
    let runtime = tokio::runtime::Runtime::new().expect("start a runtime");
    runtime.block_on(measure(report));
}

async fn measure(report: &mut Report) {
    let swarm = Swarm::start(0);
    let url = swarm.tracker_url.replace("swarm://", "http://");
    let pid = swarm.tracker.pid();
    let channels: Vec<Channel> = {
        let mut channels = Vec::new();
        for _ in 0..CONNECTIONS {
            let endpoint = Channel::from_shared(url.clone()).expect("the URL of a tracker that runs");
            channels.push(endpoint.connect().await.expect("connect to a tracker that runs"));
        }
        channels
    };
    let ids: Vec<SegmentId> =
        (0..SEGMENTS as u64).map(|index| SegmentId::new(*blake3::hash(&index.to_le_bytes()).as_bytes())).collect();
    let resident = swarm.tracker.resident_bytes();

    // Three holders of each segment, among six seeders.
    let began = cpu_seconds(pid);
    let mut streams = Vec::new();
    for seeder in 0..6usize {
        let own: Vec<&SegmentId> = (0..3).flat_map(|copy| ids[(seeder + copy) % 6..].iter().step_by(6)).collect();
        let mut messages = vec![message(Message::Hello(v1::Hello {
            peer_id: PeerId::random().to_wire(),
            kind: PeerKind::Seeder.into(),
            address: format!("127.0.0.1:{}", 40_000 + seeder),
            zone: String::new(),
            host: format!("host-{seeder}"),
            capacity_bytes: 1 << 40,
            version: "bench".to_owned(),
            process_id: ProcessId::random().to_wire(),
        }))];
        let parts: Vec<_> = own.chunks(BATCH).collect();
        for (index, part) in parts.iter().enumerate() {
            messages.push(message(Message::Inventory(v1::Inventory {
                whole_ids: SegmentId::pack(part.iter().copied()),
                partial_ids: Default::default(),
                last: index + 1 == parts.len(),
            })));
        }
        let (send, receive) = tokio::sync::mpsc::channel(4);
        let mut client = HoldersClient::new(channels[seeder % CONNECTIONS].clone());
        let orders = client.announce(tokio_stream::wrappers::ReceiverStream::new(receive)).await.expect("announce");
        for message in messages {
            send.send(message).await.expect("the stream is open");
        }
        streams.push((send, orders));
    }
    wait_for_holders(&channels[0], &ids).await;
    let announced = 3.0 * SEGMENTS as f64 / (cpu_seconds(pid) - began);
    report.row(&["segments announced".into(), rate(announced), "≥ 1 M".into()]);

    let began = cpu_seconds(pid);
    let located = fan_out(&channels, 60, {
        let ids = ids.clone();
        move |channel, turn| {
            let start = (turn * 7_919 * BATCH) % (SEGMENTS - BATCH);
            let request = locate(&ids[start..start + BATCH]);
            async move {
                let reply = HoldersClient::new(channel)
                    .max_decoding_message_size(16 << 20)
                    .locate(request)
                    .await
                    .expect("locate");
                assert_eq!(reply.into_inner().counts.len(), BATCH);
                BATCH
            }
        }
    })
    .await;
    report.row(&[
        format!("segments located, {BATCH} a call"),
        rate(located as f64 / (cpu_seconds(pid) - began)),
        "≥ 1 M".into(),
    ]);

    let began = cpu_seconds(pid);
    let single = fan_out(&channels, 20_000, {
        let ids = ids.clone();
        move |channel, turn| {
            let start = (turn * 7_919) % SEGMENTS;
            let request = locate(&ids[start..=start]);
            async move {
                HoldersClient::new(channel).locate(request).await.expect("locate");
                1
            }
        }
    })
    .await;
    report.row(&["single locates".into(), rate(single as f64 / (cpu_seconds(pid) - began)), "≥ 80 k".into()]);

    let began = cpu_seconds(pid);
    let lookups = fan_out(&channels, 20_000, |channel, _| async move {
        let request = v1::GetNodeRequest { inode: 1, min_revision: 0, current: false, with_manifest: false };
        CatalogClient::new(channel).get_node(request).await.expect("look up the root");
        1
    })
    .await;
    report.row(&[
        "single lookups of an inode".into(),
        rate(lookups as f64 / (cpu_seconds(pid) - began)),
        "≥ 80 k".into(),
    ]);

    let counted = swarm.tracker.metrics().sum("swarm_tracker_holders_memory_bytes");
    let grown = (swarm.tracker.resident_bytes().saturating_sub(resident)) as f64;
    report.section(
        "Tracker, memory a segment with three holders (1 M segments), bytes",
        &["counted by the table itself", "growth of the process", "goal"],
    );
    report.row(&[
        format!("{:.1}", counted / SEGMENTS as f64),
        format!("{:.1}", grown / SEGMENTS as f64),
        "≤ 96, aim 64".into(),
    ]);
}

fn message(message: Message) -> v1::AnnounceMessage {
    v1::AnnounceMessage { message: Some(message) }
}

fn locate(ids: &[SegmentId]) -> v1::LocateRequest {
    v1::LocateRequest { segment_ids: SegmentId::pack(ids), peer_id: Default::default(), zone: String::new() }
}

fn rate(a_second: f64) -> String {
    match a_second {
        rate if rate >= 1e6 => format!("{:.2} M", rate / 1e6),
        rate => format!("{:.0} k", rate / 1e3),
    }
}

/// Run `turns` calls on every connection, four at a time on each; returns the sum of what they did.
#[expect(clippy::disallowed_methods, reason = "a benchmark owns its tasks: it awaits them all below")]
async fn fan_out<F, W>(channels: &[Channel], turns: usize, work: W) -> usize
where
    F: Future<Output = usize> + Send + 'static,
    W: Fn(Channel, usize) -> F + Clone + Send + Sync + 'static,
{
    let mut tasks = Vec::new();
    for (index, channel) in channels.iter().enumerate() {
        for lane in 0..4 {
            let (channel, work) = (channel.clone(), work.clone());
            tasks.push(tokio::spawn(async move {
                let mut done = 0;
                for turn in (lane..turns).step_by(4) {
                    done += work(channel.clone(), turn * CONNECTIONS + index).await;
                }
                done
            }));
        }
    }
    let mut done = 0;
    for task in tasks {
        done += task.await.expect("a task that did not panic");
    }
    done
}

async fn wait_for_holders(channel: &Channel, ids: &[SegmentId]) {
    let began = Instant::now();
    loop {
        let tail = locate(&ids[ids.len() - 1_000..]);
        let reply = HoldersClient::new(channel.clone()).locate(tail).await.expect("locate").into_inner();
        if reply.counts.iter().all(|count| *count == 3) {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(120), "1 M segments are not announced within 2 minutes");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
