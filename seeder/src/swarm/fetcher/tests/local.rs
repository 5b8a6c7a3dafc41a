//! Peers on this machine that lend files, and lenders that are no help.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use swarm_proto::ChunkTree;
use tokio::net::UnixStream;
use tonic::Code;

use super::*;
use crate::local;

/// What a lender says to a question: a loan and a file, or bytes that are none.
#[derive(Clone)]
enum Answer {
    Lent(Vec<u8>),
    LentOfAPipe,
    NoFile,
    Nothing,
    Refused(Code),
    Lacks,
    Garbage,
    Close,
    Hang,
}

/// Lends for a fake peer until it is dropped; counts the questions.
struct Lender {
    questions: Arc<Mutex<Vec<v1::FetchRequest>>>,
    _task: tokio::task::JoinSet<()>,
}

impl Lender {
    fn of(peer: &FakePeer, answer: Answer, tree: Bytes) -> Self {
        let address = peer.holder().peer;
        let listener = local::listen(address.id, address.address.parse().unwrap()).unwrap();
        let questions: Arc<Mutex<Vec<v1::FetchRequest>>> = Arc::default();
        let asked = Arc::clone(&questions);
        let mut task = tokio::task::JoinSet::new();
        task.spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, answer.clone(), Arc::clone(&asked), tree.clone()));
            }
        });
        Self { questions, _task: task }
    }

    fn asked(&self) -> usize {
        self.questions.lock().len()
    }
}

async fn serve(stream: UnixStream, answer: Answer, asked: Arc<Mutex<Vec<v1::FetchRequest>>>, tree: Bytes) {
    while let Ok(Some((question, _))) = local::receive(&stream, 4096).await {
        let request = v1::FetchRequest::decode(question.as_slice()).unwrap();
        let offset = u64::from(request.first_chunk) * 16_384;
        let reply =
            v1::FetchReply { tree: if request.with_tree { tree.clone() } else { Bytes::new() }, ..Default::default() };
        asked.lock().push(request);
        let refused = |code: Code| v1::FetchOutcome { code: i32::from(code) as u32, ..Default::default() };
        let lent = || v1::FetchOutcome { reply: Some(reply.clone()), ..Default::default() };
        let (outcome, file): (_, Option<OwnedFd>) = match &answer {
            Answer::Lent(bytes) => (Some(lent()), Some(file(bytes).into())),
            Answer::LentOfAPipe => (Some(lent()), Some(std::io::pipe().unwrap().0.into())),
            Answer::NoFile => (Some(lent()), None),
            Answer::Nothing => (None, None),
            Answer::Refused(code) => (Some(refused(*code)), None),
            Answer::Lacks => {
                let held = Some(v1::Presence::default());
                let reply = v1::FetchReply { held, ..Default::default() };
                (Some(v1::FetchOutcome { reply: Some(reply), ..Default::default() }), None)
            }
            Answer::Garbage => {
                drop(local::send(&stream, &[0xFF; 9], None).await);
                continue;
            }
            Answer::Close => return,
            Answer::Hang => std::future::pending().await,
        };
        let loan = v1::Loan { outcome, offset }.encode_to_vec();
        drop(local::send(&stream, &loan, file.as_ref().map(|file| file.as_fd())).await);
    }
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn tree_of(data: &[u8]) -> Bytes {
    ChunkTree::build(data).values().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_of_a_peer_on_this_machine_are_read_from_the_file_it_lends() {
    let room = Room::new();
    let peer = FakePeer::start(Conduct::Honest);
    let data = noise(1, 3 * MIB + 77);
    let segment = room.hold(std::slice::from_ref(&peer), &data);
    let lender = Lender::of(&peer, Answer::Lent(data.clone()), tree_of(&data));
    assert!(room.read(segment, segment.all(), LONG).await.unwrap() == data);
    assert!(room.read(segment, ChunkRange::new(7, 9), LONG).await.unwrap() == data[7 * 16_384..9 * 16_384]);
    assert_eq!(peer.served().requests, 0, "nothing came over the network");
    let stats = room.swarm.stats();
    assert!(lender.asked() >= 4 && stats.local_bytes >= data.len() as u64, "{stats:?}");
    assert_eq!((stats.local_bytes, stats.corrupt), (stats.received_bytes, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lender_that_is_no_help_leaves_the_network() {
    let data = noise(2, MIB + 5);
    for answer in [
        Answer::LentOfAPipe,
        Answer::Lent(Vec::new()),
        Answer::Lent(data[..MIB / 2].to_vec()),
        Answer::NoFile,
        Answer::Garbage,
        Answer::Close,
        Answer::Refused(Code::Unimplemented),
    ] {
        let room = Room::new();
        let peer = FakePeer::start(Conduct::Honest);
        let segment = room.hold(std::slice::from_ref(&peer), &data);
        let lender = Lender::of(&peer, answer, tree_of(&data));
        assert!(room.read(segment, segment.all(), LONG).await.unwrap() == data);
        assert!(lender.asked() > 0 && peer.served().requests > 0);
        assert_eq!(room.swarm.stats().corrupt, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lies_in_no_file_is_not_asked_for_again() {
    let room = Room::new();
    let peer = FakePeer::start(Conduct::Honest);
    let lender = Lender::of(&peer, Answer::Refused(Code::Unimplemented), Bytes::new());
    let mut asked = None;
    for seed in 0..5_usize {
        // By default segments of up to 64 KiB lie in no file; a seeder can be told otherwise.
        for length in [65_536, 200_000 - seed] {
            let data = noise(seed as u64, length);
            let segment = room.hold(std::slice::from_ref(&peer), &data);
            assert!(room.read(segment, segment.all(), LONG).await.unwrap() == data);
        }
        assert!(lender.asked() > 0);
        assert_eq!(*asked.get_or_insert(lender.asked()), lender.asked());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lender_that_lies_hangs_or_refuses_is_passed_over_for_another_peer() {
    let data = noise(3, 2 * MIB);
    let wrong = data.iter().map(|byte| byte ^ 1).collect();
    for (answer, corrupt) in [
        (Answer::Lent(wrong), true),
        (Answer::Hang, false),
        (Answer::Nothing, false),
        (Answer::Refused(Code::ResourceExhausted), false),
        (Answer::Refused(Code::Unavailable), false),
        (Answer::Lacks, false),
    ] {
        let room = Room::new();
        let peers = peers(2, &Conduct::Honest);
        let segment = room.hold(&peers, &data);
        let lender = Lender::of(&peers[0], answer, tree_of(&data));
        for run in segment.all().runs(4) {
            let from = run.start as usize * 16_384;
            let got = room.read(segment, run, LONG).await.unwrap();
            assert!(got == data[from..from + got.len()]);
        }
        assert!(lender.asked() > 0 && peers[1].served().requests > 0);
        assert_eq!(room.swarm.stats().corrupt > 0, corrupt);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lender_that_comes_back_is_found_again() {
    let room = Room::new();
    let peer = FakePeer::start(Conduct::Honest);
    let data = noise(4, MIB);
    let segment = room.hold(std::slice::from_ref(&peer), &data);
    for _ in 0..2 {
        let lender = Lender::of(&peer, Answer::Lent(data.clone()), tree_of(&data));
        let give_up = Clock::now() + LONG;
        while lender.asked() == 0 {
            assert!(room.read(segment, segment.all(), LONG).await.unwrap() == data);
            assert!(Clock::now() < give_up, "never asked again");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        drop(lender);
        assert!(room.read(segment, segment.all(), LONG).await.unwrap() == data);
    }
    assert!(peer.served().requests > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_local_reads_all_comes_over_the_network() {
    let room = Room::with(SwarmConfig { local_reads: false, ..SwarmConfig::new(swarm_proto::PeerId::random(), "") });
    let peer = FakePeer::start(Conduct::Honest);
    let data = noise(5, MIB);
    let segment = room.hold(std::slice::from_ref(&peer), &data);
    let lender = Lender::of(&peer, Answer::Lent(data.clone()), tree_of(&data));
    assert!(room.read(segment, segment.all(), LONG).await.unwrap() == data);
    assert_eq!((lender.asked(), room.swarm.stats().local_bytes), (0, 0));
}
