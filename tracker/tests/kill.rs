//! kill -9 of a real tracker while it is being written to: what it answered is there afterwards.

#![cfg(test)]

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use swarm_proto::v1::catalog_client::CatalogClient;
use swarm_proto::v1::operation::Operation;
use swarm_proto::v1::{self, publish_file::Content};
use swarm_proto::{Extent, Fault, Manifest, PeerId, RequestId, Segment, SegmentId};
use tonic::transport::{Channel, Endpoint};

const ROUNDS: u64 = 6;
const WRITERS: u64 = 4;
const SOON: Duration = Duration::from_secs(30);

/// A real process; killed when it is dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn start(folder: &Path, address: SocketAddr) -> Process {
    let child = Command::new(env!("CARGO_BIN_EXE_swarm-tracker"))
        .arg("--listen")
        .arg(address.to_string())
        .arg("--data")
        .arg(folder)
        .args(["--admin-listen", "off", "--log", "warn"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn();
    Process(child.unwrap())
}

async fn connect(address: SocketAddr) -> CatalogClient<Channel> {
    let deadline = Instant::now() + SOON;
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    loop {
        match endpoint.connect().await {
            Ok(channel) => return CatalogClient::new(channel),
            Err(error) => assert!(Instant::now() < deadline, "the tracker does not start: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn manifest(number: u64) -> Manifest {
    let extent = |n: u64| {
        let id = SegmentId::new(*blake3::hash(&number.wrapping_add(n).to_le_bytes()).as_bytes());
        Extent::whole(Segment { id, length: 1000 })
    };
    Manifest::new((0..1 + number % 600).map(extent).collect()).unwrap()
}

fn publish(name: &str, manifest: &Manifest) -> v1::Operation {
    let ids: Vec<SegmentId> = manifest.segments().map(|segment| segment.id).collect();
    let operation = Operation::PublishFile(v1::PublishFile {
        parent: 1,
        name: Bytes::copy_from_slice(name.as_bytes()),
        ownership: Some(v1::Ownership { mode: 0o644, uid: 0, gid: 0, modified_ns: 0, inherit: false }),
        size: manifest.size(),
        content: Some(Content::Manifest(manifest.encode())),
        if_exists: v1::IfExists::Replace.into(),
        base_version: 0,
        acknowledged: vec![v1::Acknowledged {
            peer_id: PeerId::new([1; 16]).to_wire(),
            segment_ids: SegmentId::pack(&ids),
        }],
    });
    v1::Operation { operation: Some(operation) }
}

/// Publish until the tracker is gone; the names that were answered, and the last request, which was not.
async fn write(address: SocketAddr, writer: u64, round: u64, gone: Arc<AtomicBool>) -> (Vec<u64>, v1::MutateRequest) {
    let mut client = connect(address).await;
    let mut answered = Vec::new();
    for n in 0.. {
        let number = (round * WRITERS + writer) * 1_000_000 + n;
        let operations = vec![publish(&number.to_string(), &manifest(number))];
        let request = v1::MutateRequest {
            request_id: RequestId::random().to_wire(),
            operations,
            durable: false,
            with_others: false,
        };
        match tokio::time::timeout(SOON, client.mutate(request.clone())).await.expect("every call ends") {
            Ok(reply) => {
                assert_eq!(reply.into_inner().results[0].fault(), Fault::Unspecified);
                answered.push(number);
            }
            Err(status) => {
                assert!(gone.load(Ordering::SeqCst), "refused while it ran: {status}");
                return (answered, request);
            }
        }
    }
    unreachable!("the loop has no other end")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_survives_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut answered: Vec<u64> = Vec::new();
    let mut pending: Vec<v1::MutateRequest> = Vec::new();
    for round in 0..=ROUNDS {
        let process = start(folder.path(), address);
        let mut client = connect(address).await;
        // A retry of what was not answered is done once, whether the tracker had done it or not.
        for request in pending.drain(..) {
            let first = client.mutate(request.clone()).await.unwrap().into_inner();
            assert_eq!(client.mutate(request).await.unwrap().into_inner(), first);
        }
        for number in &answered {
            let path = Bytes::from(number.to_string());
            let node = client.resolve(v1::ResolveRequest { path, min_revision: 0 }).await;
            let node = node.unwrap_or_else(|status| panic!("{number} was answered and is lost: {status}"));
            let node = node.into_inner().node.unwrap();
            assert_eq!(node.manifest_digest, manifest(*number).digest().to_wire());
            let request = v1::GetNodeRequest { inode: node.inode, min_revision: 0, current: true, with_manifest: true };
            assert_eq!(client.get_node(request).await.unwrap().into_inner().manifest, manifest(*number).encode());
        }
        if round == ROUNDS {
            break;
        }
        let gone = Arc::new(AtomicBool::new(false));
        let writers = (0..WRITERS).map(|writer| write(address, writer, round, gone.clone()));
        let kill = async {
            let moment = rand::random_range(50..600);
            tokio::time::sleep(Duration::from_millis(moment)).await;
            gone.store(true, Ordering::SeqCst);
            // `Child::kill` is SIGKILL.
            tokio::task::spawn_blocking(move || drop(process)).await.unwrap();
        };
        let (written, ()) = tokio::join!(futures::future::join_all(writers), kill);
        for (numbers, request) in written {
            answered.extend(numbers);
            pending.push(request);
        }
    }
    assert!(answered.len() as u64 > ROUNDS, "too little was written for this to show anything");
}
