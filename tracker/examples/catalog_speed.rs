//! How fast the catalog is over real gRPC, on sled: files published in batches and one by one, a large
//! directory listed, single lookups. Prints one line each.

use std::time::{Duration, Instant};

use bytes::Bytes;
use swarm_proto::v1::catalog_client::CatalogClient;
use swarm_proto::v1::operation::Operation;
use swarm_proto::v1::{self, publish_file::Content};
use swarm_proto::{Extent, Manifest, PeerId, RequestId, Segment, SegmentId};
use swarm_tracker::config::AdminListen;
use swarm_tracker::{Tracker, TrackerConfig};
use tonic::transport::{Channel, Endpoint};

type Client = CatalogClient<Channel>;
type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn publish(parent: u64, name: &str) -> v1::Operation {
    let id = SegmentId::new(*blake3::hash(name.as_bytes()).as_bytes());
    let segment = Segment { id, length: 16_384 };
    let manifest = Manifest::new(vec![Extent::whole(segment)]).expect("one whole segment is a manifest");
    let operation = Operation::PublishFile(v1::PublishFile {
        parent,
        name: Bytes::copy_from_slice(name.as_bytes()),
        ownership: Some(v1::Ownership { mode: 0o644, uid: 0, gid: 0, modified_ns: 0, inherit: false }),
        size: manifest.size(),
        content: Some(Content::Manifest(manifest.encode())),
        if_exists: v1::IfExists::Fail.into(),
        base_version: 0,
        acknowledged: vec![v1::Acknowledged { peer_id: PeerId::new([1; 16]).to_wire(), segment_ids: id.to_wire() }],
    });
    v1::Operation { operation: Some(operation) }
}

async fn mutate(client: &mut Client, operations: Vec<v1::Operation>) -> Outcome<v1::MutateReply> {
    let request =
        v1::MutateRequest { request_id: RequestId::random().to_wire(), operations, durable: false, with_others: false };
    let reply = client.mutate(request).await?.into_inner();
    match reply.results.iter().find(|result| result.fault != 0) {
        Some(refused) => Err(format!("refused: {}", refused.message).into()),
        None => Ok(reply),
    }
}

async fn directory(client: &mut Client, name: &'static str) -> Outcome<u64> {
    let ownership = Some(v1::Ownership { mode: 0o755, uid: 0, gid: 0, modified_ns: 0, inherit: false });
    let make = Operation::MakeDirectory(v1::MakeDirectory { parent: 1, name: name.into(), ownership });
    let reply = mutate(client, vec![v1::Operation { operation: Some(make) }]).await?;
    reply.results[0].node.as_ref().map(|node| node.inode).ok_or_else(|| "no inode".into())
}

fn say(what: &str, took: Duration, count: u32) {
    println!("{what:48} {took:>12.2?} {:>12.0}/s", f64::from(count) / took.as_secs_f64());
}

async fn in_batches(client: &mut Client, name: &'static str, count: u32, batch: u32) -> Outcome<u64> {
    let parent = directory(client, name).await?;
    let start = Instant::now();
    for first in (0..count).step_by(batch as usize) {
        let some = first..count.min(first + batch);
        mutate(client, some.map(|n| publish(parent, &format!("{name} {n:06}"))).collect()).await?;
    }
    say(&format!("publish {count} files, {batch} a request"), start.elapsed(), count);
    Ok(parent)
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let folder = tempfile::tempdir()?;
    let config = TrackerConfig {
        listen: "127.0.0.1:0".parse()?,
        data: Some(folder.path().to_owned()),
        admin_listen: AdminListen::Off,
        ..TrackerConfig::default()
    };
    let tracker = Tracker::start(config.clone()).await?;
    let channel = Endpoint::from_shared(format!("http://{}", tracker.address()))?.connect().await?;
    let mut client = CatalogClient::new(channel);
    in_batches(&mut client, "small", 2_000, 256).await?;
    let listed = in_batches(&mut client, "listed", 10_000, 1_024).await?;
    in_batches(&mut client, "single", 1_000, 1).await?;
    let parent = directory(&mut client, "many").await?;
    let start = Instant::now();
    let clients = (0..64u32).map(|who| {
        let mut client = client.clone();
        async move {
            for n in 0..50u32 {
                mutate(&mut client, vec![publish(parent, &format!("many {who} {n}"))]).await?;
            }
            Outcome::Ok(())
        }
    });
    futures::future::try_join_all(clients).await?;
    say("publish, 64 clients, 1 a request", start.elapsed(), 64 * 50);
    for round in 0..3 {
        let start = Instant::now();
        let request = v1::ReadDirRequest { inode: listed, after: Bytes::new(), min_revision: 0, limit: 0 };
        let mut pages = client.read_dir(request).await?.into_inner();
        let mut entries = 0;
        while let Some(page) = pages.message().await? {
            entries += u32::try_from(page.entries.len())?;
        }
        say(&format!("list {entries} entries, round {round}"), start.elapsed(), entries);
    }
    let start = Instant::now();
    for n in 0..2_000 {
        let name = Bytes::from(format!("listed {n:06}"));
        client.lookup(v1::LookupRequest { parent: listed, name, min_revision: 0 }).await?;
    }
    say("look up, one after the other", start.elapsed(), 2_000);
    tracker.stop().await;
    let start = Instant::now();
    let tracker = Tracker::start(config).await?;
    say("start again with 16,200 files", start.elapsed(), 16_200);
    tracker.stop().await;
    Ok(())
}
