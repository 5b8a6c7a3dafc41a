//! A real process that stores segments is killed, again and again, over one folder.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Instant;

use super::*;

const FOLDER: &str = "SWARM_TEST_STORE_TO_KILL";
const ROUND: &str = "SWARM_TEST_STORE_ROUND";
const ROUNDS: usize = 6;

/// Not a test: the process to be killed.
#[tokio::test(flavor = "multi_thread")]
async fn child_stores_until_it_is_killed() {
    let (Ok(dir), Ok(round)) = (std::env::var(FOLDER), std::env::var(ROUND)) else {
        println!("nothing to do: this is the process that another test kills");
        return;
    };
    let round: u64 = round.parse().unwrap();
    let store = open(Path::new(&dir)).await;
    println!("opened");
    let until = Instant::now() + Duration::from_secs(60);
    let jobs = (0..4u64).map(|job| {
        let store = store.clone();
        async move {
            let mut seed = (round * 4 + job) << 32;
            while Instant::now() < until {
                seed += 1;
                let bytes =
                    conformance::sample(seed, usize::try_from(1 + seed.wrapping_mul(0x9E37_79B9) % 400_000).unwrap());
                let level = if seed.is_multiple_of(8) { AckLevel::Fsync } else { AckLevel::Close };
                let segment = put(&store, &bytes, level).await.unwrap();
                // One write, so that a line is whole or absent.
                let line = format!("\nstored {}\n", segment.id);
                std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
                if seed.is_multiple_of(16) {
                    // Not by rot: bytes that really are bad would be found bad if it is killed now.
                    let written = store.core.index.get(&segment.id).unwrap().written;
                    let (reply, answer) = oneshot::channel();
                    let chunks = commit::Lost::Some(vec![0]);
                    let change = Change::Drop { id: segment.id, written, chunks, reply: Some(reply) };
                    assert!(store.core.commits.send(change).is_ok());
                    answer.await.unwrap();
                    let tree = ChunkTree::build(&bytes);
                    let one = ChunkRange::new(0, 1);
                    let length = bytes.len().min(16 * 1024);
                    store.mend(tree, one, bytes.slice(..length)).await.unwrap();
                }
            }
        }
    });
    futures::future::join_all(jobs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_loses_nothing_that_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut stored: Vec<SegmentId> = Vec::new();
    for round in 0..ROUNDS {
        let name = "store::sled::tests::kill::child_stores_until_it_is_killed";
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([name, "--exact", "--nocapture", "--test-threads=1"])
            .env(FOLDER, dir.path())
            .env(ROUND, round.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let before = stored.len();
        let wanted = before + 20 + 37 * round;
        let mut killed = false;
        // After the kill, what is still in the pipe was acknowledged before.
        for line in lines {
            stored.extend(line.strip_prefix("stored ").and_then(|id| id.parse::<SegmentId>().ok()));
            if stored.len() >= wanted && !killed {
                child.kill().unwrap();
                killed = true;
            }
        }
        child.wait().unwrap();
        assert!(killed, "round {round}: it ended by itself after {} segments", stored.len() - before);

        let store = open(dir.path()).await;
        for id in &stored {
            // One that the child was mending may lack the chunk that it was about to write.
            let held = store.held(id).map(|held| held.presence);
            match held {
                Some(swarm_proto::Presence::Whole) => {}
                _ => assert!(store.damaged().iter().any(|damaged| damaged.segment.id == *id), "round {round}: {id}"),
            }
        }
        let damaged = store.damaged().len();
        assert!(damaged <= 4 * (1 + round), "round {round}: {damaged} damaged");
        for (id, _) in store.inventory() {
            assert_eq!(store.reverify(id).await.unwrap(), [0; 0], "round {round}");
        }
        store.close().await;
    }
}
