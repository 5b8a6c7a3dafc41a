//! `Locate`: who holds these segments, best first.

use std::time::Instant;

use hashbrown::HashMap;
use swarm_proto::convert::{self, ConvertError};
use swarm_proto::v1::{LocateReply, LocateRequest};
use swarm_proto::{PeerId, SegmentId};
use tonic::Status;

use super::desk::Desk;
use crate::peers::{PeerSlot, Snapshot};
use crate::policy::handout::{self, Holding, Rank, Standing};

/// Segments in one call.
const MOST_SEGMENTS: u64 = 4_096;

/// A peer that some segment of this call names.
struct Seen {
    /// `None`: not for this asker.
    peer: Option<(Standing, Snapshot)>,
    /// Its index in the answer, once it has one.
    index: Option<u32>,
}

/// Answer one call.
///
/// Cost: O(holders), one peer looked up once; no lock is held from one segment to the next.
pub(super) fn locate(desk: &Desk, request: &LocateRequest) -> Result<LocateReply, Status> {
    let ids =
        SegmentId::unpack(&request.segment_ids).map_err(|source| ConvertError::Id { field: "segment_ids", source })?;
    convert::within("segments", ids.len() as u64, 1, MOST_SEGMENTS)?;
    let asker = match request.peer_id.is_empty() {
        true => None,
        false => Some(convert::peer_id("peer_id", &request.peer_id)?),
    };
    let mut answer = Answer {
        desk,
        asker,
        zone: &request.zone,
        now: Instant::now(),
        numbers: HashMap::new(),
        seen: Vec::new(),
        reply: LocateReply {
            counts: Vec::with_capacity(ids.len()),
            holders: Vec::with_capacity(ids.len() * 3),
            boot_id: desk.boot_id.to_wire(),
            peers: Vec::new(),
        },
    };
    let (mut found, mut ranked) = (Vec::new(), Vec::new());
    for id in ids {
        found.clear();
        desk.soft.holders.holders_into(id.as_bytes(), &mut found);
        ranked.clear();
        for holder in &found {
            let holding = Holding { partial: holder.is_partial(), doubted: holder.is_doubted() };
            if let Some(rank) = answer.rank(holder.peer(), holding, id.as_bytes()) {
                ranked.push(rank);
            }
        }
        handout::order(&mut ranked);
        answer.push(&ranked);
    }
    Ok(answer.reply)
}

struct Answer<'a> {
    desk: &'a Desk,
    asker: Option<PeerId>,
    zone: &'a str,
    now: Instant,
    numbers: HashMap<PeerSlot, u32>,
    seen: Vec<Seen>,
    reply: LocateReply,
}

impl Answer<'_> {
    fn rank(&mut self, slot: PeerSlot, holding: Holding, id: &[u8; 32]) -> Option<(Rank, (u32, bool))> {
        let number = match self.numbers.get(&slot) {
            Some(number) => *number,
            None => self.look_up(slot),
        };
        let (standing, _) = self.seen[number as usize].peer.as_ref()?;
        let rank = handout::rank(standing, holding, handout::tie(id, slot.number()))?;
        Some((rank, (number, holding.partial)))
    }

    fn look_up(&mut self, slot: PeerSlot) -> u32 {
        let peer = self.desk.soft.registry.get(slot).and_then(|peer| {
            let known = self.desk.soft.registry.snapshot(&peer, self.now);
            let hidden = known.facts.address.is_empty() || self.asker == Some(known.facts.id);
            let standing = Standing {
                state: known.state,
                shunned: known.shunned,
                far: !self.zone.is_empty() && known.facts.zone != self.zone,
                in_flight: known.load.as_ref().map_or(0, |load| load.in_flight),
            };
            (!hidden).then_some((standing, known))
        });
        let number = u32::try_from(self.seen.len()).expect("there are fewer peers than slots, which are u32");
        self.seen.push(Seen { peer, index: None });
        self.numbers.insert(slot, number);
        number
    }

    fn push(&mut self, ranked: &[(Rank, (u32, bool))]) {
        self.reply.counts.push(u32::try_from(ranked.len()).expect("at most MOST_HOLDERS"));
        for (_, (number, partial)) in ranked {
            let seen = &mut self.seen[*number as usize];
            let index = match (seen.index, &seen.peer) {
                (Some(index), _) => index,
                (None, Some((_, known))) => {
                    let index = u32::try_from(self.reply.peers.len()).expect("there are fewer peers than slots");
                    self.reply.peers.push(known.info());
                    seen.index = Some(index);
                    index
                }
                // Only a peer that was ranked comes here, and a hidden one has no rank.
                (None, None) => continue,
            };
            self.reply.holders.push(2 * index + u32::from(*partial));
        }
    }
}
