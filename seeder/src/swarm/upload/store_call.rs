//! One call of `Store`: header, frames, and a watch on whether anything moves.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use swarm_proto::v1::chunks_client::ChunksClient;
use swarm_proto::v1::{self, StoreFrame, store_frame};
use swarm_proto::{PeerId, Segment};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::ledger::Process;
use crate::serve::MOST_SMALL_BYTES;
use crate::session::{Session, Talk};
use crate::store::AckLevel;
use crate::swarm::PeerAddress;

/// Largest data frame.
const FRAME_BYTES: usize = 1 << 20;
/// Segments up to this long are copied together into one frame: a frame costs more than the copy.
const GATHER_BYTES: usize = 128 * 1024;

/// What one seeder said of all segments of a call.
#[derive(Debug)]
pub(super) struct Word {
    /// Who.
    pub(super) peer: PeerId,
    /// Which run of it.
    pub(super) process: Process,
    /// For each segment, held or why not.
    pub(super) outcomes: Vec<v1::StoreOutcome>,
    /// Why not, in words.
    pub(super) message: String,
}

/// What the seeders of one call said.
#[derive(Debug)]
pub(super) enum Said {
    /// What each acknowledged.
    Acks(Vec<Word>),
    /// The seeder that was called is too busy; nothing is wrong with it.
    Busy(String),
    /// The call failed; it is unknown what any of them has.
    Failed(String),
}

/// Store `pieces` at `targets[0]`, which passes them on to the rest.
///
/// Cost: waits as long as bytes move, and `stall` without any.
pub(super) async fn store(
    mut client: ChunksClient<Channel>,
    session: &Session<Small>,
    pieces: &[(Segment, Bytes)],
    targets: &[PeerAddress],
    level: AckLevel,
    keep: Duration,
    stall: Duration,
) -> Said {
    let bytes: usize = pieces.iter().map(|(_, bytes)| bytes.len()).sum();
    if targets.len() == 1 && bytes <= MOST_SMALL_BYTES {
        let small = store_small(client.clone(), session, pieces, level, keep);
        match tokio::time::timeout(stall, small).await {
            Ok(Some(said)) => return said,
            Ok(None) => {}
            Err(_) => return Said::Failed(format!("no answer for {stall:?}")),
        }
    }
    let frames = frames(pieces, &targets[1..], level, keep);
    let moved = Arc::new(AtomicU64::new(0));
    let counter = moved.clone();
    let stream = futures::stream::iter(frames).inspect(move |_| {
        counter.fetch_add(1, Ordering::Relaxed);
    });
    let call = client.store(stream);
    tokio::pin!(call);
    let mut last = 0;
    loop {
        tokio::select! {
            answered = &mut call => {
                return match answered {
                    Ok(reply) => Said::Acks(read(reply.into_inner(), pieces.len())),
                    Err(status) if status.code() == Code::ResourceExhausted => Said::Busy(words(&status)),
                    Err(status) => Said::Failed(words(&status)),
                };
            }
            () = tokio::time::sleep(stall) => {
                let now = moved.load(Ordering::Relaxed);
                if now == last {
                    return Said::Failed(format!("nothing moved for {stall:?}"));
                }
                last = now;
            }
        }
    }
}

/// What a stream of small segments carries.
pub(super) struct Small;

impl Talk for Small {
    type Key = u64;
    type Request = v1::StoreSmallRequest;
    type Message = v1::StoreSmallAnswer;
    type Answer = Result<v1::StoreAck, String>;

    fn read(message: v1::StoreSmallAnswer) -> (u64, Self::Answer) {
        (message.number, message.ack.ok_or(message.refused))
    }
}

/// Store `pieces` over the stream to a seeder. None: there is none now.
async fn store_small(
    mut client: ChunksClient<Channel>,
    session: &Session<Small>,
    pieces: &[(Segment, Bytes)],
    level: AckLevel,
    keep: Duration,
) -> Option<Said> {
    let number = rand::random();
    let request = || {
        let data = match pieces {
            [(_, bytes)] => bytes.clone(),
            pieces => pieces.iter().map(|(_, bytes)| &bytes[..]).collect::<Vec<_>>().concat().into(),
        };
        v1::StoreSmallRequest { number, header: Some(header(pieces, &[], level, keep)), data }
    };
    let open = |requests| async move { client.store_stream(requests).await };
    // A stream that ended without an answer: perhaps it was silent for too long. To store it again by a call is harmless.
    Some(match session.ask(number, request, open).await?.ok()? {
        Ok(ack) => Said::Acks(read(v1::StoreReply { acks: vec![ack] }, pieces.len())),
        Err(reason) => Said::Failed(reason),
    })
}

fn words(status: &Status) -> String {
    match status.message() {
        "" => status.code().to_string(),
        message => message.to_owned(),
    }
}

fn read(reply: v1::StoreReply, count: usize) -> Vec<Word> {
    let acks = reply.acks.into_iter().filter_map(|ack| {
        let peer = PeerId::try_from(&ack.peer_id[..]).ok()?;
        let mut outcomes: Vec<v1::StoreOutcome> = ack.outcomes().collect();
        outcomes.resize(count, v1::StoreOutcome::Unavailable);
        Some(Word { peer, process: NonZeroU64::new(ack.process), outcomes, message: ack.message })
    });
    acks.collect()
}

fn header(pieces: &[(Segment, Bytes)], forward: &[PeerAddress], level: AckLevel, keep: Duration) -> v1::StoreHeader {
    let level = match level {
        AckLevel::Close => v1::AckLevel::Close,
        AckLevel::Fsync => v1::AckLevel::Fsync,
    };
    let target = |peer: &PeerAddress| v1::Target { peer_id: peer.id.to_wire(), address: peer.address.clone() };
    v1::StoreHeader {
        segments: pieces.iter().map(|(segment, _)| (*segment).into()).collect(),
        level: level.into(),
        forward: forward.iter().map(target).collect(),
        keep_ms: u64::try_from(keep.as_millis()).unwrap_or(u64::MAX),
    }
}

fn frames(pieces: &[(Segment, Bytes)], forward: &[PeerAddress], level: AckLevel, keep: Duration) -> Vec<StoreFrame> {
    let header = header(pieces, forward, level, keep);
    let mut frames = vec![StoreFrame { frame: Some(store_frame::Frame::Header(header)) }];
    let mut push = |data: Bytes| frames.push(StoreFrame { frame: Some(store_frame::Frame::Data(data)) });
    let mut gathered = BytesMut::new();
    for (_, bytes) in pieces {
        let small = bytes.len() <= GATHER_BYTES && pieces.len() > 1;
        if !gathered.is_empty() && (!small || gathered.len() + bytes.len() > FRAME_BYTES) {
            push(gathered.split().freeze());
        }
        if small {
            gathered.extend_from_slice(bytes);
            continue;
        }
        for start in (0..bytes.len()).step_by(FRAME_BYTES) {
            push(bytes.slice(start..bytes.len().min(start + FRAME_BYTES)));
        }
    }
    if !gathered.is_empty() {
        push(gathered.freeze());
    }
    frames
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use swarm_proto::SegmentId;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn frames_carry_all_bytes_in_order_and_none_is_too_long(lengths in prop::collection::vec(prop_oneof![1usize..300_000, Just(FRAME_BYTES), Just(2 * FRAME_BYTES + 1)], 1..12)) {
            let pieces: Vec<(Segment, Bytes)> = lengths.iter().enumerate().map(|(n, length)| {
                let id = SegmentId::new([u8::try_from(n).unwrap(); 32]);
                (Segment { id, length: u32::try_from(*length).unwrap() }, vec![u8::try_from(n).unwrap(); *length].into())
            }).collect();
            let frames = frames(&pieces, &[], AckLevel::Close, Duration::from_secs(1));
            let mut sent = Vec::new();
            for (index, frame) in frames.iter().enumerate() {
                match frame.frame.as_ref().unwrap() {
                    store_frame::Frame::Header(header) => prop_assert!(index == 0 && header.segments.len() == pieces.len()),
                    store_frame::Frame::Data(data) => {
                        prop_assert!(index > 0 && !data.is_empty() && data.len() <= FRAME_BYTES);
                        sent.extend_from_slice(data);
                    }
                }
            }
            let all: Vec<u8> = pieces.iter().flat_map(|(_, bytes)| bytes.to_vec()).collect();
            prop_assert!(sent == all);
        }
    }
}
